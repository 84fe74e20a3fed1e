"""Callers that vanish without a word, and what the gateway's sockets are told to do then."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.cli import serve
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_network import lose_packets
from tests.fix_postgres import GATEWAYS, Database

OURS = f"from pg_stat_activity where {GATEWAYS}"
SLEEP = "with gone as (insert into t values (1) returning n) select n, pg_sleep(300) from gone"


def number(database: Database, where: str) -> int:
    return int(database.sql(f"select count(*) {OURS} and {where}"))


def metric(gateway: Gateway, line: str) -> int:
    for each in httpx2.get(gateway.admin_url + "/metrics").text.splitlines():
        if each.startswith(line):
            return int(float(each.rpartition(" ")[2]))
    return 0


@contextlib.contextmanager
def request(gateway: Gateway, body: dict[str, Any]) -> Iterator[socket.socket]:
    """Send one request; at the end the socket is closed, which nobody hears of."""
    raw = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.sendall(
            b"POST /execute HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer "
            + gateway.token.encode()
            + b"\r\ncontent-length: %d\r\n\r\n" % len(raw)
            + raw
        )
        yield sock


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's own listening socket, with its times cut to a tenth."""
    ordinary: Callable[..., socket.socket] = serve.listen

    def listen(*args: Any, **kwargs: Any) -> socket.socket:
        listener = ordinary(*args, **kwargs)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT"):
            value = listener.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), -(-value // 10))
        return listener

    monkeypatch.setattr(serve, "listen", listen)


def vanish_while_it_runs(gateway: Gateway, database: Database) -> None:
    with request(gateway, {"sql": SLEEP, "timeout": 45}) as caller:
        until(lambda: number(database, "wait_event = 'PgSleep'") == 1, "it never ran")
        lose_packets(caller)
        until(lambda: number(database, "state <> 'idle'") == 0, "the statement runs on")
        assert metric(gateway, 'pgsluice_cancels_total{target="main",reason="hangup"}') == 1
        until(lambda: metric(gateway, "pgsluice_connections_in_use") == 0, "a place is lost")
    assert database.sql("select count(*) from t").strip() == "0"
    assert gateway.execute("select 1")["rows"] == [[1]]


@pytest.fixture
def prepared(database: Database) -> Database:
    database.sql("create table t (n int); grant all on t to public")
    return database


def test_statement_of_a_caller_who_vanished_is_cancelled(
    prepared: Database, impatient: None
) -> None:
    with running(settings_for(prepared, max_connections=2), prepared) as gateway:
        vanish_while_it_runs(gateway, prepared)


@pytest.mark.slow
def test_statement_of_a_caller_who_vanished_is_cancelled_before_its_own_limit(
    prepared: Database,
) -> None:
    # 25 seconds of silence; without the probes it would be the 45 of the statement's limit,
    # and counted as a deadline.
    with running(settings_for(prepared, max_connections=2), prepared) as gateway:
        vanish_while_it_runs(gateway, prepared)


@pytest.mark.slow
def test_who_vanishes_in_the_queue_never_runs(prepared: Database, impatient: None) -> None:
    with (
        running(settings_for(prepared, max_connections=1), prepared) as gateway,
        request(gateway, {"sql": "select pg_sleep(300)"}) as first,
    ):
        until(lambda: number(prepared, "wait_event = 'PgSleep'") == 1, "it never ran")
        with request(gateway, {"sql": "insert into t values (1)"}) as waiting:
            until(lambda: metric(gateway, "pgsluice_queue_waiting") == 1, "it does not wait")
            lose_packets(waiting)
            until(lambda: metric(gateway, "pgsluice_queue_waiting") == 0, "it still waits")
            assert number(prepared, "wait_event = 'PgSleep'") == 1
        first.close()
        until(lambda: number(prepared, "state <> 'idle'") == 0, "the statement runs on")
    assert prepared.sql("select count(*) from t").strip() == "0"


@pytest.mark.slow
def test_who_vanishes_while_rows_are_sent_frees_its_place(
    prepared: Database, impatient: None
) -> None:
    with running(settings_for(prepared, max_connections=2), prepared) as gateway:
        sql = "select repeat('x', 1000) from generate_series(1, 1000000)"
        with request(gateway, {"sql": sql}) as caller:
            assert caller.recv(4096).startswith(b"HTTP/1.1 200")
            lose_packets(caller)
            until(lambda: number(prepared, "state <> 'idle'") == 0, "the read goes on")
            until(lambda: metric(gateway, "pgsluice_connections_in_use") == 0, "a place is lost")


@pytest.mark.slow
def test_transaction_of_a_caller_who_vanished_is_rolled_back(
    prepared: Database, impatient: None
) -> None:
    with running(settings_for(prepared, max_connections=2), prepared) as gateway:
        with gateway.http() as client:
            id = client.post("/transactions", json={}).json()["transaction"]
        with request(gateway, {"sql": SLEEP, "transaction": id}) as caller:
            until(lambda: number(prepared, "wait_event = 'PgSleep'") == 1, "it never ran")
            lose_packets(caller)
            until(lambda: number(prepared, "state <> 'idle'") == 0, "the transaction is open")
        gone = gateway.execute("select 1", transaction=id)
        assert gone["code"] == "transaction_gone"
    assert prepared.sql("select count(*) from t").strip() == "0"


def test_the_sockets_of_both_listeners_probe_their_callers(prepared: Database) -> None:
    with running(settings_for(prepared), prepared) as gateway:
        for url in (gateway.url, gateway.admin_url):
            port = int(url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as caller:
                sent = b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n"
                caller.sendall(sent)
                assert caller.recv(4096).startswith(b"HTTP/1.1 200")
                mine = caller.getsockname()[1]
                options = gateway_side(port, mine)
            assert options == {
                "keepalive": 1,
                "idle": 10,
                "interval": 5,
                "count": 3,
                "user_timeout": 25_000,
            }


def gateway_side(port: int, peer: int) -> dict[str, int]:
    """The options of the socket in this process that is connected from *peer* to *port*."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            copy = os.dup(int(entry.name))
        except OSError:
            continue
        try:
            sock = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            continue
        with sock:
            try:
                if sock.getsockname()[1:2] != (port,) or sock.getpeername()[1:2] != (peer,):
                    continue
            except (OSError, IndexError):
                continue
            tcp = socket.IPPROTO_TCP
            return {
                "keepalive": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                "idle": sock.getsockopt(tcp, socket.TCP_KEEPIDLE),
                "interval": sock.getsockopt(tcp, socket.TCP_KEEPINTVL),
                "count": sock.getsockopt(tcp, socket.TCP_KEEPCNT),
                "user_timeout": struct.unpack(
                    "I", sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT, 4)
                )[0],
            }
    raise AssertionError("there is no such socket")
