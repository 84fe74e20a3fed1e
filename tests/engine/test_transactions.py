"""Transactions across requests, on a real PostgreSQL: who may, until when, what ends them."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from gateway.cli.token import token_for
from gateway.settings import TransactionSettings
from tests.fix_gateway import MASTER, PATIENCE, Gateway, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database

OPEN = f"""select count(*) from pg_stat_activity
    where {GATEWAYS} and state like 'idle in transaction%'"""


class Caller:
    """One principal's requests."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        answer = self.client.post(path, json=body)
        return answer.status_code, answer.json()

    def begin(self, **options: Any) -> str:
        status, answer = self.post("/transactions", **options)
        assert status == 201, answer
        return str(answer["transaction"])

    def run(self, sql: str, transaction: str | None = None, **more: Any) -> tuple[int, Any]:
        if transaction is not None:
            more["transaction"] = transaction
        return self.post("/execute", sql=sql, **more)

    def rows(self, sql: str, transaction: str | None = None, **more: Any) -> Any:
        status, answer = self.run(sql, transaction, **more)
        assert status == 200, answer
        return answer["rows"]

    def commit(self, transaction: str) -> tuple[int, Any]:
        return self.post(f"/transactions/{transaction}/commit")

    def roll_back(self, transaction: str) -> tuple[int, Any]:
        return self.post(f"/transactions/{transaction}/rollback")


@pytest.fixture
def table(database: Database) -> Database:
    database.sql("create table t (n int primary key); grant all on t to public")
    return database


@pytest.fixture
def gateway(table: Database) -> Iterator[Gateway]:
    settings = settings_for(table, max_connections=3, max_open_transactions=2)
    with running(settings, table) as it:
        yield it


@pytest.fixture
def caller(gateway: Gateway) -> Iterator[Caller]:
    with gateway.http() as client:
        yield Caller(client)


def count(database: Database) -> int:
    return int(database.sql("select count(*) from t"))


def is_whole(gateway: Gateway) -> None:
    """All three places can be used, and no backend is left in a transaction."""
    with ThreadPoolExecutor(9) as threads:
        answers = list(threads.map(lambda _: gateway.execute("select pg_sleep(0.01)"), range(9)))
    assert all("rows" in answer for answer in answers), answers
    page = httpx2.get(gateway.admin_url + "/metrics").text
    assert 'pgsluice_connections_in_use{target="main"} 0' in page
    assert 'pgsluice_transactions_open{target="main"} 0' in page
    with gateway.http() as client:
        caller = Caller(client)
        both = [caller.begin(), caller.begin()]
        assert [caller.roll_back(each)[0] for each in both] == [200, 200]


def test_commit_keeps_and_roll_back_does_not(
    caller: Caller, gateway: Gateway, table: Database
) -> None:
    kept, dropped = caller.begin(), caller.begin()
    assert caller.run("insert into t values (1)", kept)[0] == 200
    assert caller.run("insert into t values (2)", dropped)[0] == 200
    assert count(table) == 0
    assert caller.rows("select n from t", kept) == [[1]]
    assert caller.commit(kept) == (200, {"status": "committed"})
    assert caller.roll_back(dropped) == (200, {"status": "rolled_back"})
    assert table.sql("select n from t").split() == ["1"]
    for transaction, word in ((kept, "committed"), (dropped, "rolled back")):
        for status, answer in (
            caller.run("select 1", transaction),
            caller.commit(transaction),
            caller.roll_back(transaction),
        ):
            assert (status, answer["code"]) == (410, "transaction_gone")
            assert word in answer["detail"]
    is_whole(gateway)


def test_idle_transaction_expires(gateway: Gateway, caller: Caller, table: Database) -> None:
    transaction = caller.begin(idle_timeout=0.05)
    answer: dict[str, Any] = {}

    def gone() -> bool:
        # Listening with another id does not keep this one alive.
        return int(table.sql(OPEN)) == 0

    caller.run("insert into t values (1)", transaction)
    until(gone, "the transaction was not rolled back")
    status, answer = caller.run("select 1", transaction)
    assert (status, answer["code"]) == (410, "transaction_gone")
    assert "expired" in answer["detail"]
    assert caller.commit(transaction)[0] == 410
    assert count(table) == 0
    is_whole(gateway)


def test_life_of_a_busy_transaction_ends_too(table: Database) -> None:
    settings = settings_for(table, max_connections=3)
    target = replace(
        settings.targets["main"],
        transactions=TransactionSettings(idle_timeout=180.0, max_lifetime=0.3),
    )
    settings = replace(settings, targets={"main": target})
    with running(settings, table) as gateway, gateway.http() as client:
        caller = Caller(client)
        transaction = caller.begin()
        until(lambda: caller.run("select 1", transaction)[0] == 410, "it lives for ever")
        assert int(table.sql(OPEN)) == 0


def test_id_is_its_principals_alone(gateway: Gateway, caller: Caller) -> None:
    transaction = caller.begin()
    other_token = token_for(MASTER, subject="other", lifetime=600)
    with gateway.http(other_token) as client:
        other = Caller(client)
        refusals = [
            other.run("select 1", transaction),
            other.commit(transaction),
            other.roll_back(transaction),
            other.post("/batch", statements=[{"sql": "select 1"}], transaction=transaction),
        ]
        made_up = transaction[:-1] + ("A" if transaction[-1] != "A" else "B")
        assert caller.run("select 1", made_up)[0] == 410
    for status, answer in refusals:
        assert (status, answer["code"]) == (410, "transaction_gone")
        assert answer["detail"].endswith("is not found.")
    # It noticed nothing.
    assert caller.rows("select 1", transaction) == [[1]]
    assert caller.commit(transaction)[0] == 200
    with gateway.http(other_token) as client:
        told = Caller(client).run("select 1", transaction)[1]["detail"]
        assert "committed" not in told
    is_whole(gateway)


def test_calls_on_one_id_run_one_after_the_other(gateway: Gateway, caller: Caller) -> None:
    transaction = caller.begin()
    sql = "select clock_timestamp()::text, pg_sleep(0.01), clock_timestamp()::text"

    def one(_: int) -> Any:
        with gateway.http() as client:
            return Caller(client).rows(sql, transaction)[0]

    with ThreadPoolExecutor(8) as threads:
        spans = sorted((first, last) for first, _, last in threads.map(one, range(16)))
    for before, after in itertools.pairwise(spans):
        assert before[1] <= after[0]
    assert caller.commit(transaction)[0] == 200
    is_whole(gateway)


def test_failed_transaction_takes_nothing_but_its_end(
    gateway: Gateway, caller: Caller, table: Database
) -> None:
    first, second = caller.begin(), caller.begin()
    for number, transaction in enumerate((first, second)):
        assert caller.run(f"insert into t values ({number})", transaction)[0] == 200
        assert caller.run("select 1/0", transaction)[0] == 400
        status, answer = caller.run("select 1", transaction)
        assert (status, answer["code"], answer["sqlstate"]) == (409, "transaction_failed", "25P02")
    status, answer = caller.commit(first)
    assert (status, answer["code"], answer["outcome"]) == (
        409,
        "transaction_failed",
        "not_executed",
    )
    assert caller.roll_back(second) == (200, {"status": "rolled_back"})
    assert caller.commit(first)[0] == 410
    assert count(table) == 0
    is_whole(gateway)


@pytest.mark.parametrize("then", ["execute", "batch", "commit", "rollback"])
def test_backend_terminated_within_a_transaction(
    gateway: Gateway, caller: Caller, table: Database, then: str
) -> None:
    transaction = caller.begin()
    caller.run("insert into t values (1)", transaction)
    pid = caller.rows("select pg_backend_pid()", transaction)[0][0]
    table.sql(f"select pg_terminate_backend({pid}, 5000)")
    if then == "execute":
        status, answer = caller.run("select 1", transaction)
    elif then == "batch":
        status, answer = caller.post(
            "/batch", statements=[{"sql": "select 1"}], transaction=transaction
        )
    elif then == "commit":
        status, answer = caller.commit(transaction)
    else:
        assert caller.roll_back(transaction)[0] == 200
        status, answer = caller.run("select 1", transaction)
    assert (status, answer["code"]) == (410, "transaction_gone")
    assert answer["outcome"] == "not_executed"
    assert caller.run("select 1", transaction)[0] == 410
    assert caller.commit(transaction)[0] == 410
    assert count(table) == 0
    is_whole(gateway)


def test_hang_up_inside_a_transaction_rolls_it_back(
    gateway: Gateway, caller: Caller, table: Database
) -> None:
    transaction = caller.begin()
    caller.run("insert into t values (1)", transaction)
    body = json.dumps({"sql": "select pg_sleep(60)", "transaction": transaction}).encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.sendall(
            b"POST /execute HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer "
            + gateway.token.encode()
            + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        until(
            lambda: (
                table.sql(
                    "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
                ).strip()
                == "1"
            ),
            "the statement never ran",
        )
    until(
        lambda: (
            table.sql(
                f"select count(*) from pg_stat_activity where {GATEWAYS} and state <> 'idle'"
            ).strip()
            == "0"
        ),
        "the transaction lives on",
    )
    status, answer = caller.commit(transaction)
    assert (status, answer["code"]) == (410, "transaction_gone")
    assert count(table) == 0
    is_whole(gateway)


def test_cancelled_statement_leaves_the_transaction_to_its_caller(
    gateway: Gateway, caller: Caller, table: Database
) -> None:
    transaction = caller.begin()
    caller.run("savepoint s", transaction)

    def sleep() -> Any:
        with gateway.http() as client:
            return client.post(
                "/execute",
                json={"sql": "select pg_sleep(60)", "transaction": transaction},
                headers={"x-gateway-request-id": "long-one"},
            )

    with ThreadPoolExecutor(1) as thread:
        asleep = thread.submit(sleep)
        until(
            lambda: caller.client.delete("/statements/long-one").status_code == 202, "never found"
        )
        answer = asleep.result()
    assert answer.json()["outcome"] == "not_executed"
    # Whether the statement had reached PostgreSQL or not, the savepoint is there.
    assert caller.run("rollback to s", transaction)[0] == 200
    assert caller.run("insert into t values (7)", transaction)[0] == 200
    assert caller.commit(transaction)[0] == 200
    assert count(table) == 1
    is_whole(gateway)


def test_begin_beyond_the_limit_waits_for_an_end(gateway: Gateway, caller: Caller) -> None:
    first, second = caller.begin(), caller.begin()

    def third() -> str:
        with gateway.http() as client:
            return Caller(client).begin()

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(third)
        # Single statements go on meanwhile, on the connection that is left.
        for number in range(20):
            assert caller.rows("select $1::int", parameters=[number]) == [[number]]
        assert not waiting.done()
        assert caller.commit(first)[0] == 200
        transaction = waiting.result(PATIENCE)
    assert caller.rows("select 1", transaction) == [[1]]
    assert caller.commit(second)[0] == caller.commit(transaction)[0] == 200
    is_whole(gateway)


def test_begin_gives_up_at_its_deadline_and_takes_no_room(gateway: Gateway, caller: Caller) -> None:
    both = [caller.begin(), caller.begin()]
    for _ in range(5):
        answer = caller.client.post(
            "/transactions", json={}, headers={"x-gateway-deadline-ms": "20"}
        )
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_timeout")
        assert answer.json()["outcome"] == "not_executed"
    assert [caller.commit(each)[0] for each in both] == [200, 200]
    is_whole(gateway)


def test_savepoints_and_cursors_by_sql(gateway: Gateway, caller: Caller, table: Database) -> None:
    transaction = caller.begin()
    for sql in ("insert into t values (1)", "savepoint s", "insert into t values (2)"):
        assert caller.run(sql, transaction)[0] == 200
    assert caller.run("insert into t values (1)", transaction)[1]["sqlstate"] == "23505"
    for sql in ("rollback to savepoint s", "insert into t values (3)", "release savepoint s"):
        assert caller.run(sql, transaction)[0] == 200
    declare = "declare c cursor for select * from generate_series(1, 5)"
    assert caller.run(declare, transaction)[0] == 200
    assert caller.rows("fetch 2 from c", transaction) == [[1], [2]]
    assert caller.rows("fetch all from c", transaction) == [[3], [4], [5]]
    assert caller.commit(transaction)[0] == 200
    assert table.sql("select n from t order by n").split() == ["1", "3"]
    # The cursor went with it.
    assert caller.run("savepoint s")[1]["code"] == "statement_refused"
    is_whole(gateway)


@pytest.mark.parametrize("sql", ["commit", "rollback", "begin", "end", "abort"])
def test_transaction_control_by_sql_is_refused(
    gateway: Gateway, caller: Caller, table: Database, sql: str
) -> None:
    transaction = caller.begin()
    caller.run("insert into t values (1)", transaction)
    status, answer = caller.run(sql, transaction)
    assert (status, answer["code"]) == (400, "statement_refused")
    assert caller.commit(transaction)[0] == 200
    assert count(table) == 1


def test_large_read_streams_and_sees_the_transactions_own_rows(
    gateway: Gateway, caller: Caller
) -> None:
    transaction = caller.begin()
    insert = "insert into t select generate_series(1, 30000)"
    assert caller.run(insert, transaction)[1]["row_count"] == 30_000
    rows = caller.rows("select n, repeat('x', 100) from t order by n", transaction)
    assert [row[0] for row in rows] == list(range(1, 30_001))
    assert caller.rows("select count(*) from t", transaction) == [[30_000]]
    assert caller.roll_back(transaction)[0] == 200
    is_whole(gateway)


def test_read_only_transaction_writes_nothing(caller: Caller, table: Database) -> None:
    transaction = caller.begin(read_only=True, isolation="serializable")
    assert caller.run("insert into t values (1)", transaction)[1]["sqlstate"] == "25006"
    assert caller.roll_back(transaction)[0] == 200
    transaction = caller.begin(read_only=True, isolation="repeatable_read")
    assert caller.run("set transaction read write", transaction)[0] == 400
    assert caller.roll_back(transaction)[0] == 200
    assert count(table) == 0


def limits_of(answer: dict[str, Any]) -> tuple[str, str, float]:
    return answer["expires_at"], answer["ends_at"], answer["idle_timeout"]


def test_every_answer_says_until_when_the_transaction_is_open(caller: Caller) -> None:
    status, begun = caller.post("/transactions", idle_timeout=30)
    assert status == 201
    transaction = begun["transaction"]
    answers = [
        begun,
        caller.run("select 1", transaction)[1]["transaction"],
        caller.post("/batch", statements=[{"sql": "select 1"}], transaction=transaction)[1][
            "transaction"
        ],
        # Also one that says that a statement failed, for the transaction stays open.
        caller.run("select 1/0", transaction)[1]["transaction"],
        caller.run("select 1", transaction)[1]["transaction"],
    ]
    expiries, ends, idle = zip(*map(limits_of, answers), strict=True)
    assert set(idle) == {30.0}
    # Each call puts the idle limit off; the total limit stays, but for the rounding.
    assert list(expiries) == sorted(expiries)
    assert expiries[0] < expiries[-1] < min(ends)
    assert len({each[:16] for each in ends}) <= 2
    assert caller.roll_back(transaction)[0] == 200
    assert "transaction" not in caller.run("select 1", transaction)[1]


@pytest.fixture
def short_lived(table: Database) -> Iterator[Gateway]:
    settings = settings_for(table, max_connections=3, max_open_transactions=2)
    target = replace(settings.targets["main"], transactions=TransactionSettings(max_lifetime=0.5))
    with running(replace(settings, targets={"main": target}), table) as it:
        yield it


def test_total_limit_cancels_what_runs_then_rolls_back(
    short_lived: Gateway, table: Database
) -> None:
    with short_lived.http() as client:
        caller = Caller(client)
        begun = caller.post("/transactions")[1]
        # The nearer limit is the one that counts.
        assert begun["expires_at"] == begun["ends_at"]
        transaction = begun["transaction"]
        sql = "with w as (insert into t values (1) returning n) select n, pg_sleep(600) from w"
        status, answer = caller.run(sql, transaction)
        assert (status, answer["code"]) == (410, "transaction_gone")
        assert answer["outcome"] == "not_executed"
        assert "reached its total limit; it was rolled back" in answer["detail"]
        for status, answer in (caller.run("select 1", transaction), caller.commit(transaction)):
            assert (status, answer["code"]) == (410, "transaction_gone")
            assert "Transaction may be expired. It reached its total limit" in answer["detail"]
    page = httpx2.get(short_lived.admin_url + "/metrics").text
    assert 'pgsluice_transactions_ended_total{target="main",reason="outlived"} 1' in page
    assert 'pgsluice_cancels_total{target="main",reason="deadline"} 1' in page
    assert count(table) == 0
    is_whole(short_lived)


def test_total_limit_ends_a_pause(short_lived: Gateway, table: Database) -> None:
    with short_lived.http() as client:
        caller = Caller(client)
        transaction = caller.begin()
        caller.run("insert into t values (1)", transaction)
        until(lambda: int(table.sql(OPEN)) == 0, "it lives on")
        answer = caller.commit(transaction)[1]
        assert "reached its total limit" in answer["detail"]
    assert count(table) == 0
    is_whole(short_lived)


def test_a_begin_waits_in_a_queue_that_is_bounded(table: Database) -> None:
    settings = settings_for(table, max_connections=2, max_open_transactions=1, max_waiting=1)
    with running(settings, table) as gateway, gateway.http() as client:
        caller = Caller(client)
        first = caller.begin()

        def begin() -> tuple[int, Any]:
            with gateway.http() as another:
                return Caller(another).post("/transactions")

        def waiting() -> bool:
            page = httpx2.get(gateway.admin_url + "/metrics").text
            return 'pgsluice_transactions_waiting{target="main"} 1' in page

        with ThreadPoolExecutor(1) as thread:
            second = thread.submit(begin)
            until(waiting, "nobody waits")
            status, answer = begin()
            assert (status, answer["code"], answer["retry"]) == (429, "queue_full", "safe")
            # Single statements do not stand in that line.
            assert caller.rows("select 1") == [[1]]
            assert caller.commit(first)[0] == 200
            status, answer = second.result(PATIENCE)
        assert status == 201
        assert caller.roll_back(answer["transaction"])[0] == 200
