"""Callers that send or read slowly, or not at all, hold no connection to PostgreSQL."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from typing import Any

import httpx2
import pytest

from gateway.api.guard import GuardedProtocol, guarded
from gateway.api.limits import GuardLimits
from gateway.cli import serve
from gateway.settings import Settings
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database
from tests.fix_tools import debian

DEAF = 40
PLACES = 4
LARGE = "select repeat('x', 1000) from generate_series(1, 20000)"
BUFFERED = "select repeat('x', 6000000)"
"""An answer in one piece, and more than the sockets' own buffers take."""


def metric(gateway: Gateway, line: str) -> int:
    for each in httpx2.get(gateway.admin_url + "/metrics").text.splitlines():
        if each.startswith(line):
            return int(float(each.rpartition(" ")[2]))
    return 0


def in_use(gateway: Gateway) -> int:
    return metric(gateway, "pgsluice_connections_in_use")


def head(gateway: Gateway, length: int) -> bytes:
    return (
        b"POST /execute HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer "
        + gateway.token.encode()
        + b"\r\ncontent-length: %d\r\n\r\n" % length
    )


def deaf(gateway: Gateway, sql: str) -> socket.socket:
    """Ask, and never read; little fits into the socket."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", gateway.port))
    body = json.dumps({"sql": sql}).encode()
    sock.sendall(head(gateway, len(body)) + body)
    return sock


def work(gateway: Gateway, count: int) -> list[int]:
    """As a fast caller: one statement after the other on one connection; the statuses."""
    connection = HTTPConnection("127.0.0.1", gateway.port)
    statuses = []
    try:
        for _ in range(count):
            headers = {"authorization": f"Bearer {gateway.token}"}
            connection.request("POST", "/execute", '{"sql": "select 1"}', headers)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
    finally:
        connection.close()
    return statuses


def four_fast_callers(gateway: Gateway) -> None:
    with ThreadPoolExecutor(4) as threads:
        for statuses in threads.map(lambda _: work(gateway, 50), range(4)):
            assert statuses == [200] * 50


def patient(settings: Settings) -> Settings:
    """*settings* whose streams may stand still for ever."""
    main = replace(settings.targets["main"], stream_rate=0.0)
    return replace(settings, targets={"main": main})


def in_one_piece(settings: Settings) -> Settings:
    """*settings* under which `BUFFERED` is no stream."""
    main = replace(settings.targets["main"], read_budget=8_000_000)
    return replace(settings, targets={"main": main})


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def change(**limits: float) -> None:
        monkeypatch.setattr(serve, "GuardLimits", partial(GuardLimits, **limits))

    return change


def test_forty_who_never_read_leave_four_connections_to_four_who_do(
    database: Database, limits: Callable[..., None]
) -> None:
    # Nobody is ever given up: what the fast callers get, they get beside all of them.
    limits(write_stall=1e6)
    settings = patient(settings_for(database, max_connections=PLACES))
    with running(settings, database) as gateway, ExitStack() as callers:
        for _ in range(DEAF):
            callers.enter_context(deaf(gateway, LARGE))
        until(lambda: metric(gateway, "pgsluice_requests_active") >= DEAF, "they are not there")
        four_fast_callers(gateway)
        assert 0 < in_use(gateway) < PLACES, "streams hold a share, and never all"


def test_who_does_not_read_a_small_answer_holds_no_connection(
    database: Database, limits: Callable[..., None]
) -> None:
    limits(write_stall=1e6)
    settings = in_one_piece(settings_for(database, max_connections=PLACES))
    with running(settings, database) as gateway, ExitStack() as callers:
        for _ in range(3 * PLACES):
            callers.enter_context(deaf(gateway, BUFFERED))
        ours = f"from pg_stat_activity where {GATEWAYS}"
        until(
            lambda: (
                metric(gateway, "pgsluice_statements_total") >= 3 * PLACES and in_use(gateway) == 0
            ),
            "an answer that nobody reads holds a connection",
        )
        assert database.sql(f"select count(*) {ours} and state <> 'idle'").strip() == "0"
        four_fast_callers(gateway)


def test_who_never_reads_is_given_up_and_its_place_given_on(
    database: Database, limits: Callable[..., None]
) -> None:
    limits(write_stall=0.3)
    settings = patient(settings_for(database, max_connections=PLACES))
    with running(settings, database) as gateway, ExitStack() as callers:
        socks = [callers.enter_context(deaf(gateway, LARGE)) for _ in range(8)]
        until(lambda: metric(gateway, "pgsluice_requests_active") == 0, "they are still served")
        until(lambda: in_use(gateway) == 0, "a place was not given back")
        for sock in socks:
            assert not is_whole(sock), "half an answer looks like a whole one"
        four_fast_callers(gateway)


def test_answers_that_nobody_reads_have_a_budget_together(
    database: Database, limits: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(write_stall=1e6, max_unread=12_000_000)
    made: list[type[GuardedProtocol]] = []

    def remembered(*args: Any) -> type[GuardedProtocol]:
        made.append(guarded(*args))
        return made[-1]

    monkeypatch.setattr(serve, "guarded", remembered)
    settings = in_one_piece(settings_for(database, max_connections=PLACES))
    with running(settings, database) as gateway, ExitStack() as callers:
        state = made[0].state
        for _ in range(12):
            callers.enter_context(deaf(gateway, BUFFERED))
        # Each leaves more than three million bytes behind what its socket takes.
        until(lambda: state.refused.get("unread", 0) >= 7, "nobody was cut off")
        until(lambda: state.unread <= 12_000_000, "what was cut off still counts")
        assert state.unread > 0, "those within the budget were cut off too"
        four_fast_callers(gateway)


def is_whole(sock: socket.socket) -> bool:
    """Read what is left; whether the chunked answer has its end."""
    sock.settimeout(10)
    last = b""
    try:
        while piece := sock.recv(1 << 16):
            last = (last + piece)[-5:]
    except ConnectionResetError:
        pass
    return last == b"0\r\n\r\n"


def test_half_a_head_and_half_a_body_hold_no_connection(database: Database) -> None:
    settings = settings_for(database, max_connections=PLACES)
    with running(settings, database) as gateway, ExitStack() as callers:
        for count in range(DEAF):
            sock = callers.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            request = head(gateway, 1000)
            sock.sendall(request[:60] if count % 2 else request + b'{"sql": ')
        four_fast_callers(gateway)
        until(lambda: in_use(gateway) == 0, "a place was not given back")


# -- a tool that does nothing else -----------------------------------------------------


@pytest.fixture
def tool() -> Iterator[str]:
    yield debian("slowhttptest")


MODES = {
    "slow heads": ["-H", "-i", "1", "-t", "POST", "-u", "/execute"],
    "slow bodies": ["-B", "-i", "1", "-s", "8192", "-t", "POST", "-u", "/execute"],
    "slow reading": ["-X", "-w", "1", "-y", "32", "-n", "1", "-z", "32", "-k", "3",
                     "-u", "/openapi.yaml"],
    "many ranges": ["-R", "-a", "5", "-b", "3000", "-t", "GET", "-u", "/openapi.yaml"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_bystander_of_a_slow_attack_notices_nothing(
    database: Database, tool: str, mode: str
) -> None:
    settings = settings_for(database, max_connections=PLACES)
    with running(settings, database) as gateway:
        options = [gateway.url + each if each.startswith("/") else each for each in MODES[mode]]
        attack = [tool, "-c", "400", "-r", "400", "-l", "8", "-p", "5", *options]
        with subprocess.Popen(attack, stdout=subprocess.PIPE, text=True) as process:
            done = 0
            while process.poll() is None:
                assert work(gateway, 10) == [200] * 10
                done += 10
            assert process.stdout is not None
            said = process.stdout.read()
        assert process.returncode == 0, said
        assert done > 0
        four_fast_callers(gateway)
        until(lambda: in_use(gateway) == 0, "a place was not given back")


def answer_of(sock: socket.socket) -> Any:
    """The parsed answer of a connection that is closed behind it."""
    sock.settimeout(30)
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    first, _, body = data.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(body)


@pytest.mark.slow
def test_slow_heads_and_bodies_are_told_so(database: Database) -> None:
    settings = settings_for(database, max_connections=PLACES)
    with running(settings, database) as gateway, ExitStack() as callers:
        socks = []
        for sent in (head(gateway, 1000)[:60], head(gateway, 1000) + b'{"sql": '):
            sock = callers.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            sock.sendall(sent)
            socks.append(sock)
        for sock in socks:
            status, problem = answer_of(sock)
            assert (status, problem["code"]) == (408, "slow_request")
            assert (problem["outcome"], problem["retry"]) == ("not_executed", "safe")
