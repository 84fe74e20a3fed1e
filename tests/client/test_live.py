"""The client against the gateway and a real PostgreSQL."""

from __future__ import annotations

import enum
import io
import math
import tracemalloc
import uuid
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pgsluice
import pytest

from tests.fix_gateway import Gateway, until

UTC = timezone.utc  # noqa: UP017 - the client's oldest Python


@pytest.fixture
def db(shared_gateway: Gateway) -> Iterator[pgsluice.Client]:
    with pgsluice.connect(shared_gateway.url, token=shared_gateway.token, timeout=30) as client:
        yield client


@pytest.fixture
def table(db: pgsluice.Client) -> Iterator[str]:
    name = f"client_{uuid.uuid4().hex}"
    db.execute(f"create table {name} (id int primary key, n int check (n >= 0))")
    yield name
    db.execute(f"drop table {name}")


ROUND_TRIPS: list[tuple[str, Any]] = [
    ("bool", True),
    ("int2", -32768),
    ("int4", 2**31 - 1),
    ("int8", 2**63 - 1),
    ("int8", -(2**63)),
    ("numeric", Decimal("123456789012345678901234567890.12345678901234567890")),
    ("numeric", Decimal("1.500")),
    ("numeric", Decimal("-0.000001")),
    ("numeric", Decimal("Infinity")),
    ("float8", 0.1),
    ("float8", 1.0),
    ("float8", 5e-324),
    ("float8", -math.inf),
    ("float4", 0.5),
    ("text", "é € 😀 ' \" \\ \n :a $1"),
    ("text", ""),
    ("bytea", bytes(range(256))),
    ("bytea", b""),
    ("uuid", uuid.UUID(int=2**127 + 5)),
    ("date", date(1, 1, 1)),
    ("date", date(9999, 12, 31)),
    ("timestamp", datetime(2024, 2, 29, 23, 59, 59, 999_999)),
    ("timestamp", datetime(2024, 2, 29, 8, 0, 0, 120_000)),
    ("timestamptz", datetime(2024, 2, 29, 8, 0, 0, 1, tzinfo=UTC)),
    ("timestamptz", datetime(2024, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    ("time", time(8, 30, 0, 500_000)),
    ("timetz", time(8, 30, tzinfo=timezone(timedelta(hours=-2)))),
    ("interval", pgsluice.Interval(14, -3, 14_706_700_000)),
    ("interval", pgsluice.Interval(-1, 40, -1)),
    ("interval", pgsluice.Interval(0, 0, 10**16)),
    ("jsonb", {"a": [1, {"b": None}], "c": "é", "d": True}),
    ("json", {}),
    ("_int4", [1, None, 3]),
    ("_int4", [[1, 2], [3, 4]]),
    ("_int8", []),
    ("_numeric", [Decimal("1.0"), None]),
    ("_text", ["a,b", '"', "", "NULL", None]),
    ("_timestamptz", [datetime(2024, 1, 1, tzinfo=UTC), None]),
    ("_uuid", [uuid.UUID(int=1)]),
    ("_bytea", [b"\x00", b""]),
    ("_float8", [math.inf, 1.5]),
    ("inet", "10.0.0.1"),
    ("int4range", pgsluice.Range(1, 5)),
    ("int8range", pgsluice.Range(None, 5)),
    ("int4range", pgsluice.Range(empty=True)),
    ("numrange", pgsluice.Range(Decimal("1.50"), None, "(]")),
    ("daterange", pgsluice.Range(date(2024, 1, 1), date(2024, 2, 1))),
    ("tsrange", pgsluice.Range(datetime(2024, 1, 1, 0, 0, 0, 5), datetime(2024, 1, 2), "[]")),
    ("tstzrange", pgsluice.Range(datetime(2024, 1, 1, tzinfo=UTC), None)),
    ("int4multirange", pgsluice.Multirange([pgsluice.Range(1, 2), pgsluice.Range(5, 9)])),
    ("_int4range", [pgsluice.Range(1, 2), None]),
    ("_interval", [pgsluice.Interval(1, 2, 3)]),
]


@pytest.mark.parametrize(("kind", "value"), ROUND_TRIPS, ids=lambda value: str(value)[:30])
def test_a_value_comes_back_as_it_went(db: pgsluice.Client, kind: str, value: Any) -> None:
    result = db.execute(f"select $1::{kind} as v, null::{kind} as n", [value])
    back, null = result.one()
    assert back == value
    assert type(back) is type(value)
    assert null is None
    assert result.columns[0] == ("v", kind)


def test_nan_comes_back(db: pgsluice.Client) -> None:
    number, exact = db.execute("select $1::float8, $2::numeric", [math.nan, Decimal("NaN")]).one()
    assert math.isnan(number)
    assert exact.is_nan()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("timestamptz", "infinity"),
        ("timestamp", "-infinity"),
        ("date", "infinity"),
        ("date", "10000-01-01"),
        ("timestamp", "0044-03-15 00:00:00 BC"),
        ("time", "24:00:00"),
    ],
)
def test_what_python_cannot_hold_is_text_both_ways(
    db: pgsluice.Client, kind: str, text: str
) -> None:
    assert db.scalar(f"select $1::{kind}", [text]) == text


def test_a_timedelta_is_an_interval(db: pgsluice.Client) -> None:
    value = timedelta(days=-1, seconds=3, microseconds=7)
    assert db.scalar("select :v::interval", {"v": value}).timedelta() == value


def test_json_wraps_what_is_not_a_dict(db: pgsluice.Client) -> None:
    for value in ([1, "x", None], "text", 1.5, None):
        assert db.scalar("select $1::jsonb", [pgsluice.Json(value)]) == value


@dataclass
class Row:
    id: int
    n: int


def test_rows_come_in_the_form_asked_for(db: pgsluice.Client, table: str) -> None:
    done = db.execute(f"insert into {table} values (1, 10), (2, 20)")
    assert (done.row_count, done.command, done.rows) == (2, "INSERT", [])
    sql = f"select * from {table} where id <= :id order by id"
    assert db.execute(sql, {"id": 2}, read_only=True).rows == [(1, 10), (2, 20)]
    assert db.query(sql, {"id": 1}) == [{"id": 1, "n": 10}]
    assert db.query(sql, {"id": 2}, into=Row) == [Row(1, 10), Row(2, 20)]
    assert db.query_one(sql, {"id": 1}, into=Row) == Row(1, 10)
    assert db.query_one(sql, {"id": 0}) is None
    with pytest.raises(pgsluice.NotOneRow):
        db.query_one(sql, {"id": 2})


def test_a_read_only_statement_cannot_write(db: pgsluice.Client, table: str) -> None:
    with pytest.raises(pgsluice.DatabaseError) as caught:
        db.execute(f"insert into {table} values (1, 1)", read_only=True)
    assert caught.value.outcome == "not_executed"
    assert db.scalar(f"select count(*) from {table}") == 0


def test_many_sets_happen_together_or_not_at_all(db: pgsluice.Client, table: str) -> None:
    insert = f"insert into {table} values (:id, :n)"
    done = db.execute_many(insert, [{"id": n, "n": n} for n in range(5)])
    assert [each.row_count for each in done] == [1] * 5
    with pytest.raises(pgsluice.UniqueViolation):
        db.execute_many(insert, [{"id": 7, "n": 1}, {"id": 1, "n": 1}])
    assert db.scalar(f"select count(*) from {table}") == 5


def test_a_batch_happens_together_or_not_at_all(db: pgsluice.Client, table: str) -> None:
    results = db.batch(
        [
            (f"insert into {table} values ($1, $2)", [1, 1]),
            f"select n from {table}",
        ]
    )
    assert results[1].scalar() == 1
    with pytest.raises(pgsluice.CheckViolation) as caught:
        db.batch(
            [
                (f"insert into {table} values ($1, $2)", [2, 2]),
                (f"update {table} set n = $1", [-1]),
            ]
        )
    assert caught.value.statement == 1
    assert caught.value.constraint == f"{table}_n_check"
    assert db.scalar(f"select count(*) from {table}") == 1


def test_a_transaction_holds_or_vanishes(db: pgsluice.Client, table: str) -> None:
    with db.transaction(isolation="serializable") as tx:
        assert tx.scalar("show transaction_isolation") == "serializable"
        tx.execute(f"insert into {table} values (1, 1)")
        tx.execute_many(f"insert into {table} values ($1, $2)", [[2, 2], [3, 3]])
        assert tx.batch([f"select count(*) from {table}"])[0].scalar() == 3
    assert db.scalar(f"select count(*) from {table}") == 3
    with pytest.raises(KeyError), db.transaction() as tx:
        tx.execute(f"delete from {table}")
        raise KeyError
    assert db.scalar(f"select count(*) from {table}") == 3


def test_a_failed_statement_ends_its_transaction_with_its_own_error(
    db: pgsluice.Client, table: str
) -> None:
    with pytest.raises(pgsluice.CheckViolation), db.transaction() as tx:
        tx.execute(f"insert into {table} values (1, 1)")
        tx.execute(f"insert into {table} values (2, -2)")
    assert db.scalar(f"select count(*) from {table}") == 0


def test_a_syntax_error_says_where(db: pgsluice.Client) -> None:
    with pytest.raises(pgsluice.ProgrammingError) as caught:
        db.execute("select 1 frm x y")
    assert (caught.value.sqlstate, caught.value.retry) == ("42601", "never")
    assert caught.value.position is not None
    assert caught.value.request_id


def test_a_deadline_cancels_the_statement(db: pgsluice.Client) -> None:
    with pytest.raises(pgsluice.StatementTimeout) as caught:
        db.execute("select pg_sleep(60)", timeout=0.2)
    assert caught.value.outcome == "not_executed"


def test_a_wrong_token_is_refused(shared_gateway: Gateway) -> None:
    with (
        pgsluice.connect(shared_gateway.url, token="wrong") as client,
        pytest.raises(pgsluice.Unauthenticated),
    ):
        client.execute("select 1")


def test_a_key_pair_is_as_good_as_a_token(shared_gateway: Gateway) -> None:
    with pgsluice.connect(
        shared_gateway.url,
        access_key=shared_gateway.access_key,
        secret_key=shared_gateway.secret_key,
        timeout=30,
    ) as client:
        assert client.scalar("select :name::text", {"name": "ü"}) == "ü"
        with client.transaction() as tx:
            assert tx.scalar("select 1") == 1


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


@pytest.fixture
def moods(shared_gateway: Gateway) -> Iterator[pgsluice.Client]:
    shared_gateway.execute("create type client_mood as enum ('glad', 'sad')")
    with pgsluice.connect(
        shared_gateway.url, token=shared_gateway.token, types={"client_mood": Mood}
    ) as client:
        yield client
    shared_gateway.execute("drop type client_mood")


def test_an_enum_is_an_enum_both_ways(moods: pgsluice.Client) -> None:
    row = moods.execute("select $1::client_mood, $2::client_mood[]", [Mood.SAD, [Mood.GLAD, None]])
    assert row.one() == (Mood.SAD, [Mood.GLAD, None])


def test_numbers_inside_json_are_exact_when_asked(shared_gateway: Gateway) -> None:
    text = '{"n": 0.12345678901234567890, "i": 123456789012345678901234567890}'
    sql = "select $1::jsonb, 0.5::float8"
    with pgsluice.connect(
        shared_gateway.url, token=shared_gateway.token, exact_json=True
    ) as client:
        document, number = client.execute(sql, [text]).one()
        ((streamed, _),) = list(client.stream(sql, [text]))
    assert document == {"n": Decimal("0.12345678901234567890"), "i": 123456789012345678901234567890}
    assert streamed == document
    assert (number, type(number)) == (0.5, float)


def test_rows_are_named_after_their_columns(db: pgsluice.Client) -> None:
    (row,) = db.query("select 1 as a, 2 as b", into=namedtuple)
    assert (row.a, row.b, row) == (1, 2, (1, 2))
    assert db.query("select 1 as a, 2 as a", into=tuple) == [(1, 2)]


def test_a_result_is_cut_off_where_asked(db: pgsluice.Client) -> None:
    cut = db.execute("select n from generate_series(1, 10) n", max_rows=3)
    assert (cut.rows, cut.truncated) == ([(1,), (2,), (3,)], True)


def test_many_rows_are_read_in_constant_memory(db: pgsluice.Client) -> None:
    tracemalloc.start()
    try:
        total = 0
        with db.stream(
            "select n, repeat('x', 50) from generate_series(1, 80000) n", read_only=True
        ) as rows:
            assert [column.name for column in rows.columns] == ["n", "repeat"]
            for n, _ in rows:
                total += n
                if n == 20_000:
                    tracemalloc.reset_peak()
                    early = tracemalloc.get_traced_memory()[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 80_000 * 80_001 // 2
    assert (rows.row_count, rows.command) == (80_000, "SELECT")
    assert peak - early < 4 << 20


def test_a_stream_that_is_left_early_stops_its_statement(
    db: pgsluice.Client, shared_gateway: Gateway
) -> None:
    with db.stream("select generate_series(1, 100000000) /* left early */") as rows:
        assert next(rows) == (1,)
    running = (
        "select count(*) from pg_stat_activity where query like '%/* left early */%'"
        " and state = 'active' and pid <> pg_backend_pid()"
    )
    until(lambda: db.scalar(running) == 0, "the statement goes on")


def test_a_stream_has_the_errors_of_a_statement(db: pgsluice.Client) -> None:
    with pytest.raises(pgsluice.ProgrammingError):
        next(db.stream("select nonsense"))
    with pytest.raises(pgsluice.DataError) as caught:
        list(db.stream("select 1 / (50000 - n) from generate_series(1, 60000) n", read_only=True))
    assert caught.value.sqlstate == "22012"
    assert list(db.stream("select 1 where false")) == []


def test_rows_are_copied_in(db: pgsluice.Client) -> None:
    db.execute(
        "create table client_copied (n int, t text, b bytea, a text[], j jsonb, r int4range,"
        " o bool, i interval)"
    )
    row = (1, 'é,\n"x"', b"\x00\xff", ["a,b", None, ""], {"k": [1]}, pgsluice.Range(1, 5), True)
    row = (*row, pgsluice.Interval(1, 2, 3))
    try:
        nothing = (None,) * len(row)
        assert db.copy_in("client_copied", iter([row, nothing])) == 2
        assert db.query("select * from client_copied order by n", into=tuple) == [row, nothing]
        assert db.copy_in("client_copied", '7,seven\n8,""\n', columns=["n", "t"]) == 2
        assert db.copy_in("client_copied", io.BytesIO(b"9,nine\n"), columns=["n", "t"]) == 1
        assert db.scalar("select t from client_copied where n = 8") == ""
        with pytest.raises(pgsluice.DataError):
            db.copy_in("client_copied", [("x",)], columns=["n"])
        assert db.scalar("select count(*) from client_copied") == 5
    finally:
        db.execute("drop table client_copied")


def test_work_that_lost_a_race_is_done_again(db: pgsluice.Client, table: str) -> None:
    db.execute(f"insert into {table} values (1, 0)")
    seen: list[int] = []

    def work(tx: pgsluice.Transaction) -> int:
        n: int = tx.scalar(f"select n from {table}")
        seen.append(n)
        if len(seen) == 1:
            db.execute(f"update {table} set n = n + 10")
        tx.execute(f"update {table} set n = $1", [n + 1])
        return n + 1

    assert db.transaction(isolation="repeatable_read").run(work) == 11
    assert seen == [0, 10]
    with pytest.raises(pgsluice.CheckViolation):
        db.transaction().run(lambda tx: tx.execute(f"update {table} set n = -1"))
    seen.clear()
    with pytest.raises(pgsluice.SerializationFailure):
        db.transaction(isolation="repeatable_read", attempts=1).run(work)


def test_a_transaction_can_be_told_to_write_nothing(db: pgsluice.Client, table: str) -> None:
    with pytest.raises(pgsluice.OperationalError), db.transaction(read_only=True) as tx:
        tx.execute(f"insert into {table} values (1, 1)")
    with db.transaction() as tx, pytest.raises(ValueError, match="outside of a transaction"):
        tx.execute("select 1", key="k")


def test_a_key_sent_twice_happens_once(db: pgsluice.Client, table: str) -> None:
    insert = f"insert into {table} values (1, 1) returning id"
    key = uuid.uuid4().hex
    assert db.execute(insert, key=key).scalar() == 1
    assert db.execute(insert, key=key).scalar() == 1
    assert db.scalar(f"select count(*) from {table}") == 1
