"""Processes that stop moving or are ended by the kernel: a frozen caller, no memory left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fix_gateway import Process, process, until
from tests.fix_ledger import install_ledger, make_table
from tests.fix_postgres import APP_USER, Database

pytestmark = [pytest.mark.slow, pytest.mark.process]

OURS = f"from pg_stat_activity where usename = '{APP_USER}'"
_CALLER = """
import http.client, json, sys
url, token, key, sql = sys.argv[1:]
line = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
line.request("POST", "/execute", json.dumps({"sql": sql, "timeout": 40}),
             {"authorization": "Bearer " + token, "idempotency-key": key,
              "accept": "application/x-ndjson" if sql.startswith("select") else "*/*"})
print("sent", flush=True)
answer = line.getresponse()
answer.read(1000)
print(answer.status, flush=True)
answer.read()
print("read", flush=True)
"""


@contextmanager
def caller(gateway: Process, key: str, sql: str) -> Iterator[subprocess.Popen[str]]:
    """A caller with a process of its own, which can be frozen."""
    command = [sys.executable, "-c", _CALLER, gateway.url, gateway.token(), key, sql]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "sent\n"
            yield child
        finally:
            child.kill()


def tell(capsys: Any, record_property: Any, name: str, seconds: float, what: str) -> None:
    record_property(name, round(seconds, 2))
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {seconds:.2f} s\n")


def busy(database: Database, what: str) -> bool:
    return database.sql(f"select count(*) {OURS} and {what}") != "0"


@pytest.fixture
def written(database: Database) -> Database:
    install_ledger(database)
    make_table(database)
    return database


def test_a_caller_who_is_frozen_while_its_write_runs_finds_the_answer_when_it_thaws(
    written: Database, capsys: Any, record_property: Any
) -> None:
    """As a function between two invocations: its kernel answers for it, so nobody is missed."""
    sql = "insert into did select 'a' from (select pg_sleep(1)) s"
    with (
        process(written, TARGETS__MAIN__POOL__MAX_CONNECTIONS="1") as gateway,
        caller(gateway, "k", sql) as frozen,
    ):
        until(lambda: busy(written, "wait_event = 'PgSleep'"), "it does not run")
        frozen.send_signal(signal.SIGSTOP)
        since = time.monotonic()
        # The only connection is free as soon as the statement is over.
        assert gateway.execute("select 1").json()["rows"] == [[1]]
        tell(
            capsys,
            record_property,
            "frozen_caller_of_a_write_seconds",
            time.monotonic() - since,
            "the connection of a frozen caller's write was free after",
        )
        with gateway.http() as client:
            assert client.get("/outcomes/k").json()["outcome"] == "committed"
        frozen.send_signal(signal.SIGCONT)
        assert frozen.stdout is not None
        assert frozen.stdout.read().split() == ["200", "read"]
    assert written.sql("select count(*) from did") == "1"


def test_a_caller_who_is_frozen_while_it_reads_loses_its_rows_and_holds_no_connection(
    written: Database, capsys: Any, record_property: Any
) -> None:
    sql = "select generate_series(1, 100000000), repeat('x', 1000)"
    with (
        process(written, TARGETS__MAIN__POOL__MAX_CONNECTIONS="2") as gateway,
        caller(gateway, "k", sql) as frozen,
    ):
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == "200\n"
        frozen.send_signal(signal.SIGSTOP)
        since = time.monotonic()
        assert gateway.execute("select 1").json()["rows"] == [[1]]
        until(lambda: not busy(written, "state <> 'idle' and query like '%repeat%'"), "it runs on")
        tell(
            capsys,
            record_property,
            "frozen_reader_seconds",
            time.monotonic() - since,
            "a frozen reader's statement was ended after",
        )
        assert gateway.metric("pgsluice_connections_in_use") == 0


# -- no memory left ----------------------------------------------------------------------

_CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def confined(pid: int, spare: int) -> Iterator[Path]:
    """Process *pid* may have *spare* bytes more than it has; then the kernel ends it."""
    first = not (_CGROUP / "memory").is_dir()
    group = (_CGROUP if first else _CGROUP / "memory") / f"pgsluice-test-{os.getpid()}"
    limit = group / ("memory.max" if first else "memory.limit_in_bytes")
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not limit.exists():
            pytest.skip("control groups without a limit of memory")
        # What it had before it came is not counted here.
        limit.write_text(str(spare))
        yield group
    finally:
        until(lambda: not (group / "cgroup.procs").read_text().strip(), "it is still there")
        group.rmdir()


def test_a_gateway_killed_for_want_of_memory_leaves_nothing_running_and_no_doubt(
    written: Database, capsys: Any, record_property: Any
) -> None:
    with process(written) as gateway, process(written) as other:
        told: list[Any] = []

        def send() -> None:
            with suppress(httpx2.TransportError), gateway.http() as client:
                body = {"sql": "insert into did select 'a' from (select pg_sleep(60)) s"}
                told.append(client.post("/execute", json=body, headers={"idempotency-key": "k"}))

        sender = threading.Thread(target=send)
        sender.start()
        until(lambda: busy(written, "wait_event = 'PgSleep'"), "it does not run")
        with confined(gateway.process.pid, 4 << 20):
            with suppress(httpx2.TransportError):
                # Held in full, as it has to be for this format.
                gateway.execute("select repeat('x', 1000) from generate_series(1, 12000)")
            code = gateway.process.wait(60)
            since = time.monotonic()
            assert code == -signal.SIGKILL, "it was not the kernel that ended it"
        until(lambda: not busy(written, "wait_event = 'PgSleep'"), "its statement runs on")
        tell(capsys, record_property, "out_of_memory_seconds", time.monotonic() - since,
             "statements of a gateway killed for want of memory were ended after")  # fmt: skip
        sender.join(60)
        assert told == []
        with other.http() as client:
            assert client.get("/outcomes/k").json()["outcome"] == "not_executed"
    assert written.sql("select count(*) from did") == "0"
