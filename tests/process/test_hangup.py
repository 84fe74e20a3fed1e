"""Callers that go away, in every way TCP knows, and a gateway that does."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fix_gateway import Gateway, process, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database

OURS = f"from pg_stat_activity where {GATEWAYS}"


def number(database: Database, where: str) -> int:
    return int(database.sql(f"select count(*) {OURS} and {where}"))


def request(port: int, token: str, body: dict[str, Any]) -> socket.socket:
    """Send one request; nobody reads its answer."""
    raw = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(
        b"POST /execute HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer "
        + token.encode()
        + b"\r\ncontent-length: %d\r\n\r\n" % len(raw)
        + raw
    )
    return sock


def fin(sock: socket.socket) -> None:
    sock.close()


def rst(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def pipelined(sock: socket.socket) -> None:
    """Bytes of a next request behind the unfinished one, then gone."""
    sock.sendall(b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n")
    sock.close()


def pipelined_rst(sock: socket.socket) -> None:
    sock.sendall(b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n")
    rst(sock)


WAYS = pytest.mark.parametrize("leave", [fin, rst, half, pipelined, pipelined_rst])


@pytest.fixture
def gateway(database: Database) -> Iterator[Gateway]:
    database.sql("create table t (n int); grant all on t to public")
    with running(settings_for(database, max_connections=2), database) as it:
        yield it


def metric(gateway: Gateway, line: str) -> int:
    for each in httpx2.get(gateway.admin_url + "/metrics").text.splitlines():
        if each.startswith(line):
            return int(float(each.rpartition(" ")[2]))
    return 0


def is_whole(gateway: Gateway) -> None:
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: gateway.execute("select pg_sleep(0.01)"), range(6)))
    assert all("rows" in answer for answer in answers), answers
    until(lambda: metric(gateway, "pgsluice_connections_in_use") == 0, "a place was not given back")
    assert metric(gateway, "pgsluice_queue_waiting") == 0


@WAYS
@pytest.mark.parametrize(
    "sql",
    [
        "select pg_sleep(30)",
        "with gone as (insert into t values (1) returning n) select n, pg_sleep(30) from gone",
    ],
    ids=["read", "write"],
)
def test_statement_of_a_caller_who_left_is_cancelled(
    gateway: Gateway, database: Database, leave: Callable[[socket.socket], None], sql: str
) -> None:
    with request(gateway.port, gateway.token, {"sql": sql}) as sock:
        until(lambda: number(database, "wait_event = 'PgSleep'") == 1, "it never ran")
        pids = database.sql(f"select pid {OURS}").split()
        leave(sock)
        until(lambda: number(database, "state <> 'idle'") == 0, "the statement runs on")
        # The connection was kept: cancelled and cleaned, not thrown away.
        assert set(pids) <= set(database.sql(f"select pid {OURS}").split())
        assert gateway.execute("select 1")["rows"] == [[1]]
        assert database.sql("select count(*) from t").strip() == "0"
        assert metric(gateway, 'pgsluice_cancels_total{target="main",reason="hangup"}') == 1
    is_whole(gateway)


@WAYS
def test_caller_who_left_the_queue_never_runs(
    gateway: Gateway, database: Database, leave: Callable[[socket.socket], None]
) -> None:
    with ExitStack() as stack:
        busy = [
            stack.enter_context(
                request(gateway.port, gateway.token, {"sql": "select pg_sleep(30)"})
            )
            for _ in range(2)
        ]
        until(lambda: number(database, "wait_event = 'PgSleep'") == 2, "they never ran")
        waiting = stack.enter_context(
            request(gateway.port, gateway.token, {"sql": "insert into t values (1)"})
        )
        until(lambda: metric(gateway, "pgsluice_queue_waiting") == 1, "it does not wait")
        leave(waiting)
        until(lambda: metric(gateway, "pgsluice_queue_waiting") == 0, "it still waits")
        for each in busy:
            leave(each)
        until(lambda: number(database, "state <> 'idle'") == 0, "the statements run on")
        is_whole(gateway)
        assert database.sql("select count(*) from t").strip() == "0"


def test_caller_who_leaves_while_rows_are_sent_frees_its_place(
    gateway: Gateway, database: Database
) -> None:
    sql = "select repeat('x', 1000) from generate_series(1, 200000)"
    for leave in (fin, rst):
        with request(gateway.port, gateway.token, {"sql": sql}) as sock:
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            leave(sock)
        until(lambda: number(database, "state <> 'idle'") == 0, "the read goes on")
    is_whole(gateway)


def test_commit_on_its_way_is_finished(gateway: Gateway, database: Database) -> None:
    # A deferred trigger makes COMMIT wait for a lock that the test holds.
    database.sql("""
        create function wait() returns trigger language plpgsql security definer as
        $$ begin perform pg_advisory_xact_lock(42); return null; end $$;
        create constraint trigger waits after insert on t deferrable initially deferred
        for each row execute function wait()""")
    psql = [str(gateway_psql(database)), "-XqAt", database.dsn]
    with subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write("select pg_advisory_lock(42); \\echo held\n")
        holder.stdin.flush()
        while holder.stdout.readline().strip() != "held":
            pass
        with request(gateway.port, gateway.token, {"sql": "insert into t values (1)"}) as sock:
            until(
                lambda: number(database, "wait_event = 'advisory' and query = 'COMMIT'") == 1,
                "COMMIT does not wait",
            )
            rst(sock)
        # A request served after the hang-up was seen: the commit is still on its way.
        assert gateway.execute("select 1")["rows"] == [[1]]
        assert number(database, "query = 'COMMIT' and state = 'active'") == 1
        holder.stdin.write("select pg_advisory_unlock(42);\n\\q\n")
        holder.stdin.close()
    until(lambda: database.sql("select count(*) from t").strip() == "1", "it was not committed")
    is_whole(gateway)


def gateway_psql(database: Database) -> Path:
    """The psql of the server under test."""
    return database.server.binaries.program("psql")


@pytest.mark.process
def test_killed_gateway_leaves_no_statement_behind(database: Database) -> None:
    database.sql("create table t (n int); grant all on t to public")
    sql = "with w as (insert into t values (1) returning n) select n, pg_sleep(60) from w"
    with (
        process(database) as killed,
        request(killed.port, killed.token(), {"sql": sql}),
        request(killed.port, killed.token(), {"sql": "select pg_sleep(60)"}),
    ):
        until(lambda: number(database, "wait_event = 'PgSleep'") == 2, "they never ran")
        killed.signal(signal.SIGKILL)
        until(lambda: number(database, "true") == 0, "statements outlived the gateway")
    assert database.sql("select count(*) from t").strip() == "0"
