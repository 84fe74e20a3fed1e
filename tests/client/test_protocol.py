"""What is sent and what an answer means, in bytes."""

from __future__ import annotations

import enum
import json
import math
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import pgsluice
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgsluice import Interval, Json, _protocol, _result
from pgsluice._protocol import Answer, Request, Scope

UTC = timezone.utc  # noqa: UP017 - the client's oldest Python
NONE = Scope()
WRITE = Request("/execute", b"{}", key="k")
READ = Request("/execute", b"{}", repeatable=True)


def body(request: Request) -> Any:
    return json.loads(request.body)


def column(kind: str, *values: Any) -> list[Any]:
    document = {
        "columns": [{"name": "v", "type": kind}],
        "rows": [[value] for value in values],
        "row_count": len(values),
        "command": "SELECT",
    }
    return [row[0] for row in _result.result(document).rows]


# Requests


def test_defaults_go_into_every_request_of_their_own() -> None:
    request = _protocol.execute(Scope("shop", "db", timeout=2.5), "select 1", read_only=True)
    assert body(request) == {
        "sql": "select 1",
        "target": "shop",
        "database": "db",
        "timeout": 2.5,
        "read_only": True,
    }
    assert request.repeatable


def test_a_statement_in_a_transaction_names_the_transaction_and_no_target() -> None:
    request = _protocol.execute(Scope("shop", "db", transaction="t1"), "select 1")
    assert body(request) == {"sql": "select 1", "transaction": "t1"}
    assert request.transaction and not request.repeatable


def test_a_batch_takes_texts_and_pairs() -> None:
    request = _protocol.batch(NONE, ["select 1", ("select :a", {"a": 1}), ("select $1", (2,))])
    assert body(request) == {
        "statements": [
            {"sql": "select 1"},
            {"sql": "select :a", "parameters": {"a": 1}},
            {"sql": "select $1", "parameters": [2]},
        ]
    }


def test_many_sets_are_one_request() -> None:
    request = _protocol.execute_many(NONE, "insert into t values ($1)", [[1], [2]])
    assert request.path == "/batch"
    assert body(request) == {"sql": "insert into t values ($1)", "parameter_sets": [[1], [2]]}


def test_begin_writes_isolation_as_the_gateway_spells_it() -> None:
    assert body(_protocol.begin(NONE, isolation="REPEATABLE READ", idle_timeout=5)) == {
        "isolation": "repeatable_read",
        "idle_timeout": 5,
    }


def test_the_id_of_a_transaction_cannot_leave_its_place_in_the_path() -> None:
    assert _protocol.commit("../a b").path == "/transactions/..%2Fa%20b/commit"


def test_a_generated_key_is_a_version_4_uuid() -> None:
    for seed in (bytes(16), b"\xff" * 16):
        key = _protocol.new_key(seed)
        assert uuid.UUID(key).version == 4
        assert uuid.UUID(key).variant == uuid.RFC_4122


@pytest.mark.parametrize("key", ["", "a\r\nx: y", "é", "x" * 256])
def test_a_key_that_would_not_survive_a_header_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="idempotency key"):
        _protocol.execute(Scope(key=key), "select 1")


def test_headers_carry_key_and_deadline_only_when_there_are_any() -> None:
    assert _protocol.headers(READ, host="h", remaining=None) == {
        "Host": "h",
        "Content-Type": "application/json",
        "Accept": "application/json",
    }
    full = _protocol.headers(WRITE, host="h", remaining=1.2345)
    assert (full["Idempotency-Key"], full["x-gateway-deadline-ms"]) == ("k", "1234")
    assert _protocol.headers(WRITE, host="h", remaining=-1)["x-gateway-deadline-ms"] == "1"


# Values to JSON


class Mood(enum.Enum):
    GLAD = "glad"


class Level(enum.IntEnum):
    HIGH = 3


class Word(str, enum.Enum):  # noqa: UP042 - StrEnum is not in the client's oldest Python
    YES = "yes"


class Pair(NamedTuple):
    left: int
    right: int


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (2**63 - 1, 2**63 - 1),
        (2**63, "9223372036854775808"),
        (-(2**63) - 1, "-9223372036854775809"),
        (1.5, 1.5),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (Decimal("1.500"), "1.500"),
        (Decimal("NaN"), "NaN"),
        (Decimal("-NaN"), "NaN"),
        (Decimal("-Infinity"), "-Infinity"),
        (datetime(2024, 1, 31, 8, 0, 0, 5), "2024-01-31T08:00:00.000005"),
        (datetime(2024, 1, 31, 8, tzinfo=UTC), "2024-01-31T08:00:00+00:00"),
        (date(2024, 1, 31), "2024-01-31"),
        (time(8, 30), "08:30:00"),
        (timedelta(days=-1, seconds=1, microseconds=2), "0 mons -1 days 00:00:01.000002"),
        (Interval(14, -3, -1), "14 mons -3 days -00:00:00.000001"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"\x00\xff", "AP8="),
        (bytearray(b"a"), "YQ=="),
        pytest.param(memoryview(b"a"), "YQ==", id="memoryview"),
        ([1, [None, Decimal("2")]], [1, [None, "2"]]),
        (Pair(1, 2), [1, 2]),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
        (Mood.GLAD, "glad"),
        (Level.HIGH, 3),
        (Word.YES, "yes"),
        (Json([1, "x"]), '[1, "x"]'),
        (Json(2**70), str(2**70)),
    ],
    ids=repr,
)
def test_values_become_json(value: Any, expected: Any) -> None:
    written = body(_protocol.execute(NONE, "select $1", [value]))["parameters"][0]
    assert written == expected
    assert type(written) is type(expected)


def test_nan_is_sent_as_a_string() -> None:
    assert _protocol.to_json([math.nan]) == ["NaN"]


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"a": object()}, TypeError, "parameter 'a': a object has no form"),
        ([1, {1, 2}], TypeError, r"parameter \$2: a set"),
        ({"doc": {"x": [Decimal(1)]}}, TypeError, "parameter 'doc': a Decimal inside JSON"),
        ({"doc": [{"x": date(2024, 1, 1)}]}, TypeError, "parameter 'doc': a date inside JSON"),
        ({"doc": {1: 2}}, TypeError, "a name in JSON is a str"),
        ({"doc": {"x": math.nan}}, ValueError, "JSON cannot say nan"),
        ({"doc": {"x": 2**64}}, ValueError, "beyond 64 bits"),
        ([Decimal("sNaN")], ValueError, "signalling NaN"),
        ("text", TypeError, "a list, a tuple or a dict"),
        ({1, 2}, TypeError, "a list, a tuple or a dict"),
    ],
)
def test_what_cannot_be_sent_exactly_is_refused_by_name(
    parameters: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _protocol.execute(NONE, "select 1", parameters)


def test_a_bad_value_in_a_batch_names_its_statement() -> None:
    with pytest.raises(TypeError, match="statement 1, parameter 'a'"):
        _protocol.batch(NONE, ["select 1", ("select :a", {"a": object()})])
    with pytest.raises(TypeError, match=r"set 1, parameter \$1"):
        _protocol.execute_many(NONE, "select $1", [[1], [object()]])


# Answers


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("int8", 9223372036854775807, 9223372036854775807),
        ("bool", True, True),
        ("numeric", "1.500", Decimal("1.500")),
        ("float8", 1, 1.0),
        ("float8", "-Infinity", -math.inf),
        ("float4", 0.1, 0.1),
        ("text", "2024-01-31", "2024-01-31"),
        ("mood", "glad", "glad"),
        ("bytea", "AP8=", b"\x00\xff"),
        ("uuid", "00000000-0000-0000-0000-000000000001", uuid.UUID(int=1)),
        ("jsonb", {"a": [1]}, {"a": [1]}),
        ("date", "2024-01-31", date(2024, 1, 31)),
        ("date", "infinity", "infinity"),
        ("date", "10000-01-01", "10000-01-01"),
        ("timestamp", "2024-01-31T08:00:00", datetime(2024, 1, 31, 8)),
        ("timestamp", "2024-01-31T08:00:00.12", datetime(2024, 1, 31, 8, 0, 0, 120_000)),
        ("timestamp", "0044-03-15 00:00:00 BC", "0044-03-15 00:00:00 BC"),
        ("timestamptz", "2024-01-31T08:00:00+00:00", datetime(2024, 1, 31, 8, tzinfo=UTC)),
        (
            "timestamptz",
            "2024-01-31T08:00:00.000001+00:00",
            datetime(2024, 1, 31, 8, 0, 0, 1, tzinfo=UTC),
        ),
        ("timestamptz", "-infinity", "-infinity"),
        ("time", "08:30:00.5", time(8, 30, 0, 500_000)),
        ("time", "24:00:00", "24:00:00"),
        ("timetz", "08:30:00-02", time(8, 30, tzinfo=timezone(timedelta(hours=-2)))),
        (
            "timetz",
            "08:30:00.1+05:30",
            time(8, 30, 0, 100_000, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        ),
        ("interval", "00:00:00", Interval()),
        ("interval", "1 year 2 mons -3 days +04:05:06.7", Interval(14, -3, 14_706_700_000)),
        ("interval", "-1 years -00:00:00.000001", Interval(-12, 0, -1)),
        ("interval", "1 mon 1 day", Interval(1, 1, 0)),
        ("interval", "infinity", "infinity"),
        ("_int4", [1, None, 2], [1, None, 2]),
        (
            "_numeric",
            [["1.0", None], ["2", "3"]],
            [[Decimal("1.0"), None], [Decimal(2), Decimal(3)]],
        ),
        ("_interval", ["1 day"], [Interval(0, 1, 0)]),
        ("_bytea", [], []),
    ],
)
def test_answers_become_values_of_their_columns_type(kind: str, text: Any, expected: Any) -> None:
    value, null = column(kind, text, None)
    assert value == expected
    assert type(value) is type(expected)
    assert null is None


@given(
    st.builds(
        Interval,
        st.integers(-9999, 9999),
        st.integers(-(2**31), 2**31),
        st.integers(-(2**62), 2**62),
    )
)
def test_an_interval_is_read_as_it_was_written(interval: Interval) -> None:
    assert column("interval", str(interval)) == [interval]


def test_an_interval_of_months_is_no_timedelta() -> None:
    assert Interval(0, 1, 5).timedelta() == timedelta(days=1, microseconds=5)
    with pytest.raises(ValueError, match="months"):
        Interval(1).timedelta()


RESULT = _result.result(
    {
        "columns": [{"name": "id", "type": "int8"}, {"name": "name", "type": "text"}],
        "rows": [[1, "a"], [2, "b"]],
        "row_count": 2,
        "command": "SELECT",
    }
)


def test_a_result_is_its_rows() -> None:
    assert list(RESULT) == [(1, "a"), (2, "b")]
    assert len(RESULT) == 2
    assert RESULT.scalar() == 1
    assert RESULT.dicts() == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    assert RESULT.into(lambda id, name: f"{id}{name}") == ["1a", "2b"]
    assert [column.name for column in RESULT.columns] == ["id", "name"]


def test_a_result_without_rows_is_true_and_has_no_scalar() -> None:
    empty = _result.result({"columns": [], "rows": [], "row_count": 3, "command": "DELETE"})
    assert empty
    assert (empty.row_count, empty.scalar()) == (3, None)
    with pytest.raises(pgsluice.NotOneRow, match="there are 0"):
        empty.one()


def test_one_row_is_one_row() -> None:
    with pytest.raises(pgsluice.NotOneRow, match="there are 2"):
        RESULT.one()


def test_columns_of_one_name_have_no_dict() -> None:
    result = _result.result(
        {
            "columns": [{"name": "a", "type": "int4"}] * 2,
            "rows": [[1, 2]],
            "row_count": 1,
            "command": "SELECT",
        }
    )
    assert result.one() == (1, 2)
    with pytest.raises(pgsluice.InterfaceError, match="named twice: a"):
        result.dicts()


def test_a_problem_is_raised_with_its_retry_after() -> None:
    answer = Answer(
        429, {"retry-after": "2"}, b'{"code":"queue_full","detail":"full","retry":"safe"}'
    )
    with pytest.raises(pgsluice.QueueFull) as caught:
        _protocol.read(WRITE, answer)
    assert (caught.value.retry_after, caught.value.retry) == (2.0, "safe")


@pytest.mark.parametrize("status", [301, 401, 404])
def test_a_stranger_who_refuses_is_no_gateway(status: int) -> None:
    with pytest.raises(pgsluice.InterfaceError, match="none of a gateway's") as caught:
        _protocol.read(WRITE, Answer(status, {}, b"<html>"))
    assert (caught.value.outcome, caught.value.status) == ("not_executed", status)


@pytest.mark.parametrize(
    ("status", "text"), [(200, b"<html>"), (200, b'{"rows":['), (502, b"Bad Gateway"), (504, b"")]
)
def test_after_an_answer_that_is_not_the_gateways_a_write_is_unknown(
    status: int, text: bytes
) -> None:
    with pytest.raises(pgsluice.OutcomeUnknown) as caught:
        _protocol.read(WRITE, Answer(status, {}, text))
    assert (caught.value.outcome, caught.value.retry) == ("unknown", "unknown")
    with pytest.raises(pgsluice.ConnectionFailed) as read:
        _protocol.read(READ, Answer(status, {}, text))
    assert read.value.retry == "safe"


# Whether to send again


def test_a_lost_request_is_sent_again_only_if_that_is_harmless() -> None:
    def waits(request: Request, *, sent: bool) -> bool:
        error = _protocol.failure(request, "reset", sent=sent)
        return _protocol.pause(request, error, attempt=1, remaining=None, jitter=0.5) is not None

    assert waits(WRITE, sent=False)
    assert waits(READ, sent=True)
    assert not waits(WRITE, sent=True)
    assert not waits(_protocol.commit("t"), sent=True)
    assert waits(_protocol.commit("t"), sent=False)
    assert waits(_protocol.rollback("t"), sent=True)
    assert not waits(_protocol.begin(NONE), sent=True)


def test_the_pause_is_jittered_and_grows_and_ends() -> None:
    error = pgsluice.QueueFull("full", status=429)

    def wait(attempt: int, jitter: float) -> float | None:
        return _protocol.pause(WRITE, error, attempt=attempt, remaining=None, jitter=jitter)

    assert wait(1, 0.0) == 0
    assert wait(1, 1.0) == _protocol.FIRST_PAUSE
    assert wait(2, 1.0) == _protocol.FIRST_PAUSE * 2
    assert wait(3, 1.0) is None


def test_the_pause_is_never_shorter_than_retry_after_nor_longer_than_the_deadline() -> None:
    error = pgsluice.Draining("bye", status=503, retry_after=1.0)

    def wait(remaining: float | None) -> float | None:
        return _protocol.pause(WRITE, error, attempt=1, remaining=remaining, jitter=0.5)

    assert wait(None) == 1.025
    assert wait(2.0) == 1.025
    assert wait(1.0) is None
    error.retry_after = 60.0
    assert wait(None) is None


def test_a_lost_race_inside_a_transaction_is_not_cured_by_one_statement() -> None:
    error = pgsluice.SerializationFailure("lost", status=409)
    inside = Request("/execute", b"{}", transaction=True)
    assert _protocol.pause(inside, error, attempt=1, remaining=None, jitter=0) is None
    assert _protocol.pause(WRITE, error, attempt=1, remaining=None, jitter=0) == 0
    limited = pgsluice.RateLimited("slow down", status=429)
    assert _protocol.pause(inside, limited, attempt=1, remaining=None, jitter=0) == 0
