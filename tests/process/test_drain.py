"""SIGTERM: what runs is finished, what is open is told, nobody new is let in."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest

from tests.fix_gateway import PATIENCE, Process, process, until
from tests.fix_postgres import GATEWAYS, Database

pytestmark = pytest.mark.process
OURS = f"select count(*) from pg_stat_activity where {GATEWAYS}"
LONG = str(int(PATIENCE))
"""Seconds of grace that no test needs."""


@contextmanager
def held_lock(database: Database) -> Iterator[subprocess.Popen[str]]:
    """Advisory lock 42, in a session of its own, until its standard input is closed."""
    psql = [str(database.server.binaries.program("psql")), "-XqAt", database.dsn]
    with subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdin is not None and it.stdout is not None
        it.stdin.write("select pg_advisory_lock(42); \\echo held\n")
        it.stdin.flush()
        while it.stdout.readline().strip() != "held":
            pass
        yield it


def let_go(lock: subprocess.Popen[str]) -> None:
    assert lock.stdin is not None
    lock.stdin.close()
    lock.wait(PATIENCE)


def waits_for_lock(database: Database, number: int = 1) -> None:
    until(
        lambda: int(database.sql(OURS + " and wait_event = 'advisory'")) == number,
        "nobody waits for the lock",
    )


@pytest.fixture
def table(database: Database) -> Database:
    database.sql("create table t (n int); grant all on t to public")
    return database


WAIT = "with w as (insert into t values (2) returning n) select n, pg_advisory_xact_lock(42) from w"


def test_terminated_gateway_finishes_what_runs_and_takes_nothing_new(table: Database) -> None:
    with (
        held_lock(table) as lock,
        process(table, SERVER__DRAIN_TIMEOUT=LONG) as gateway,
        ThreadPoolExecutor(1) as threads,
    ):
        running = threads.submit(gateway.execute, WAIT)
        waits_for_lock(table)
        gateway.drain()
        refused = gateway.execute("insert into t values (3)")
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert (refused.json()["retry"], refused.json()["outcome"]) == ("safe", "not_executed")
        with gateway.http() as client:
            assert client.post("/transactions", json={}).json()["code"] == "draining"
        assert gateway.metric("pgsluice_draining") == 1
        assert not running.done()
        let_go(lock)
        answer = running.result(PATIENCE)
        assert (answer.status_code, answer.json()["rows"][0][0]) == (200, 2)
        assert gateway.end() == 0
        assert '"event":"drain_began"' in gateway.said
    until(lambda: table.sql(OURS).strip() == "0", "connections were left behind")
    assert table.sql("select n from t").split() == ["2"]


def test_idle_gateway_ends_at_once(table: Database) -> None:
    with process(table, SERVER__DRAIN_TIMEOUT="3600") as gateway:
        assert gateway.execute("select 1").status_code == 200
        gateway.signal(signal.SIGTERM)
        assert gateway.end() == 0


def test_open_transaction_may_be_brought_to_its_end(table: Database) -> None:
    with (
        process(table, SERVER__DRAIN_TIMEOUT=LONG, SERVER__DRAIN_IDLE=LONG) as gateway,
        gateway.http() as client,
    ):
        begun = client.post("/transactions", json={}).json()
        inside = {"sql": "insert into t values (1)", "transaction": begun["transaction"]}
        assert client.post("/execute", json=inside).status_code == 200
        gateway.drain()
        # The answer says that its time has become short.
        answer = client.post("/execute", json=inside).json()["transaction"]
        assert answer["ends_at"] < begun["ends_at"]
        assert answer["idle_timeout"] <= float(LONG) < begun["idle_timeout"]
        done = client.post(f"/transactions/{begun['transaction']}/commit")
        assert done.json() == {"status": "committed"}
        # With it went the last thing to wait for.
        assert gateway.end() == 0
    assert table.sql("select count(*) from t").strip() == "2"


def test_open_transaction_that_nobody_ends_is_rolled_back_and_says_so(table: Database) -> None:
    with (
        held_lock(table) as lock,
        process(table, SERVER__DRAIN_TIMEOUT=LONG, SERVER__DRAIN_IDLE="0") as gateway,
        process(table) as other,
        ThreadPoolExecutor(1) as threads,
        gateway.http() as client,
        other.http() as elsewhere,
    ):
        transaction = client.post("/transactions", json={}).json()["transaction"]
        insert = {"sql": "insert into t values (1)", "transaction": transaction}
        assert client.post("/execute", json=insert).status_code == 200
        running = threads.submit(gateway.execute, WAIT)
        waits_for_lock(table)
        gateway.drain()
        until(lambda: not gateway.metric("pgsluice_transactions_open"), "it is still open")
        for path, body in (
            ("/execute", insert),
            (f"/transactions/{transaction}/commit", {}),
            (f"/transactions/{transaction}/rollback", {}),
        ):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (410, "transaction_gone")
            assert "shut down; it was rolled back" in answer.json()["detail"]
        ended = gateway.metric('pgsluice_transactions_ended_total{target="main",reason="drained"}')
        assert ended == 1
        # Another node never had it, and says no more than that.
        answer = elsewhere.post("/execute", json=insert)
        assert (answer.status_code, answer.json()["code"]) == (410, "transaction_gone")
        assert answer.json()["detail"] == f"Transaction {transaction} is not found."
        let_go(lock)
        assert running.result(PATIENCE).status_code == 200
        assert gateway.end() == 0
    assert table.sql("select n from t").split() == ["2"]


def test_whoever_waits_is_sent_away(table: Database) -> None:
    small = {"TARGETS__MAIN__POOL__MAX_CONNECTIONS": "2"}
    with (
        held_lock(table) as lock,
        process(
            table,
            SERVER__DRAIN_TIMEOUT=LONG,
            SERVER__DRAIN_IDLE=LONG,
            TARGETS__MAIN__POOL__MAX_OPEN_TRANSACTIONS="1",
            **small,
        ) as gateway,
        ThreadPoolExecutor(4) as threads,
        gateway.http() as client,
    ):

        def begin() -> httpx2.Response:
            with gateway.http() as another:
                return another.post("/transactions", json={})

        transaction = client.post("/transactions", json={}).json()["transaction"]
        running = threads.submit(gateway.execute, WAIT)
        waits_for_lock(table)
        queued = threads.submit(gateway.execute, "insert into t values (9)")
        second = threads.submit(begin)
        until(lambda: gateway.metric("pgsluice_queue_waiting") == 1, "nobody waits for a turn")
        until(
            lambda: gateway.metric("pgsluice_transactions_waiting") == 1,
            "nobody waits to begin a transaction",
        )
        gateway.drain()
        for each in (queued, second):
            answer = each.result(PATIENCE)
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            assert answer.json()["retry"] == "safe"
        refused = 'pgsluice_queue_refusals_total{target="main",reason="draining"}'
        assert gateway.metric(refused) == 1
        let_go(lock)
        assert running.result(PATIENCE).status_code == 200
        assert client.post(f"/transactions/{transaction}/rollback").status_code == 200
        assert gateway.end() == 0
    assert table.sql("select n from t").split() == ["2"]


def test_statement_that_outlasts_the_grace_time_is_cancelled_and_a_commit_is_not(
    table: Database,
) -> None:
    # A deferred trigger makes COMMIT wait for a lock that the test holds.
    table.sql("""
        create table slow (n int); grant all on slow to public;
        create function wait() returns trigger language plpgsql security definer as
        $$ begin perform pg_advisory_xact_lock(42); return null; end $$;
        create constraint trigger waits after insert on slow deferrable initially deferred
        for each row execute function wait()""")
    with (
        held_lock(table) as lock,
        process(table, SERVER__DRAIN_TIMEOUT="0.05") as gateway,
        ThreadPoolExecutor(2) as threads,
        gateway.http() as client,
    ):
        transaction = client.post("/transactions", json={}).json()["transaction"]
        insert = {"sql": "insert into t values (1)", "transaction": transaction}
        assert client.post("/execute", json=insert).status_code == 200
        commit = threads.submit(gateway.execute, "insert into slow values (1)")
        until(
            lambda: int(table.sql(OURS + " and wait_event = 'advisory' and query = 'COMMIT'")) == 1,
            "COMMIT does not wait",
        )
        running = threads.submit(gateway.execute, WAIT)
        waits_for_lock(table, 2)
        gateway.signal(signal.SIGTERM)
        answer = running.result(PATIENCE)
        assert (answer.status_code, answer.json()["sqlstate"]) == (400, "57014")
        assert "shutting down" in answer.json()["detail"]
        assert (answer.json()["outcome"], answer.json()["retry"]) == ("not_executed", "safe")
        cancelled = 'pgsluice_cancels_total{target="main",reason="drain"}'
        assert gateway.metric(cancelled) == 1
        # The grace time is over, the COMMIT is not, and the gateway waits for it.
        assert int(table.sql(OURS + " and query = 'COMMIT' and state = 'active'")) == 1
        assert not commit.done()
        let_go(lock)
        assert commit.result(PATIENCE).status_code == 200
        assert gateway.end() == 0
    until(lambda: table.sql(OURS).strip() == "0", "connections were left behind")
    assert table.sql("select count(*) from slow").strip() == "1"
    assert table.sql("select count(*) from t").strip() == "0"


def test_second_signal_ends_it_whatever_runs(table: Database) -> None:
    with (
        held_lock(table) as lock,
        process(table, SERVER__DRAIN_TIMEOUT=LONG, SERVER__DRAIN_IDLE=LONG) as gateway,
        ThreadPoolExecutor(1) as threads,
        gateway.http() as client,
    ):
        assert client.post("/transactions", json={}).status_code == 201
        running = threads.submit(gateway.execute, WAIT)
        waits_for_lock(table)
        gateway.drain()
        gateway.signal(signal.SIGTERM)
        assert gateway.end() == 128 + signal.SIGTERM
        with pytest.raises(httpx2.TransportError):
            running.result(PATIENCE)
        until(lambda: table.sql(OURS).strip() == "0", "statements outlived the gateway")
        let_go(lock)
    assert table.sql("select count(*) from t").strip() == "0"


def test_sighup_during_a_drain_changes_nothing(table: Database) -> None:
    with (
        held_lock(table) as lock,
        process(table, SERVER__DRAIN_TIMEOUT=LONG) as gateway,
        ThreadPoolExecutor(1) as threads,
    ):
        running = threads.submit(gateway.execute, WAIT)
        waits_for_lock(table)
        gateway.drain()
        gateway.signal(signal.SIGHUP)
        assert gateway.execute("select 1").json()["code"] == "draining"
        let_go(lock)
        assert running.result(PATIENCE).status_code == 200
        assert gateway.end() == 0
    assert _reloads(gateway) == 0


def _reloads(gateway: Process) -> int:
    return gateway.said.count('"event":"configuration_loaded"')
