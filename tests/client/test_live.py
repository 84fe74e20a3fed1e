"""The client against the gateway and a real PostgreSQL."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pgsluice
import pytest

from tests.fix_gateway import Gateway

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
