"""The native dialect's JSON, without a server."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.native import codec
from gateway.core.errors import (
    DatabaseError,
    GatewayError,
    InvalidParameter,
    InvalidRequest,
    QueueFull,
    SerializationFailure,
    Unauthenticated,
)
from gateway.core.formats.json import Shape
from gateway.core.model import (
    Column,
    ExecuteBatch,
    ExecuteMany,
    Isolation,
    Kind,
    OpenTransaction,
    Result,
    Statement,
    TransactionMode,
)

ARRAYS = Shape()
OBJECTS = Shape(objects=True)


def _body(**members: Any) -> bytes:
    return json.dumps(members).encode()


def _result(*names: str, rows: Any = ()) -> Result:
    columns = tuple(Column(name, "int4", 23, Kind.INT) for name in names)
    return Result(columns, rows, len(rows), "SELECT", True)


class TestExecute:
    def test_sql_alone_takes_the_defaults(self) -> None:
        request, shape = codec.read_execute(_body(sql="select 1"), {})
        assert request.statement == Statement("select 1")
        assert (request.transaction, request.timeout, request.max_rows) == (None, None, None)
        assert not request.read_only
        assert shape == ARRAYS

    def test_every_member_is_read(self) -> None:
        request, shape = codec.read_execute(
            _body(
                sql="select :a", parameters={"a": [1, None]}, target="t", database="d",
                transaction="x", timeout=2.5, read_only=True, rows="objects", max_rows=0,
                int8="string",
            ),
            {},
        )  # fmt: skip
        assert request.statement.parameters == {"a": [1, None]}
        assert (request.ask.target, request.ask.database) == ("t", "d")
        assert (request.transaction, request.timeout, request.max_rows) == ("x", 2.5, 0)
        assert request.read_only
        assert shape == Shape(True, True)

    @pytest.mark.parametrize("parameters", [None, [], {}])
    def test_no_parameters_are_none_at_all(self, parameters: Any) -> None:
        request, _ = codec.read_execute(_body(sql="select 1", parameters=parameters), {})
        assert request.statement.parameters is None

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            (b"", None),
            (b"{", None),
            (b'{"sql":"\xff"}', None),
            (b"[" * 100_000, None),
            (b"[]", None),
            (b"{}", None),
            (_body(sql=1), "sql"),
            (_body(sql="select 1", parameters=1), "parameters"),
            (_body(sql="select 1", timeout=0), "timeout"),
            (_body(sql="select 1", timeout=86_401), "timeout"),
            (_body(sql="select 1", max_rows=-1), "max_rows"),
            (_body(sql="select 1", max_rows=1.5), "max_rows"),
            (_body(sql="select 1", rows="tables"), "rows"),
            (_body(sql="select 1", read_only="yes"), "read_only"),
            (_body(sql="select 1", surprise=1), None),
            (_body(sql="select \0"), "sql"),
        ],
    )
    def test_what_does_not_fit_is_refused_with_its_member(
        self, body: bytes, field: str | None
    ) -> None:
        with pytest.raises(InvalidRequest) as caught:
            codec.read_execute(body, {})
        assert caught.value.field == field

    def test_more_parameters_than_the_driver_takes_are_refused(self) -> None:
        with pytest.raises(InvalidParameter):
            codec.read_execute(_body(sql="x", parameters=[1] * (codec.MAX_PARAMETERS + 1)), {})

    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, body: bytes) -> None:
        with contextlib.suppress(InvalidRequest):
            codec.read_execute(body, {})


class TestBatch:
    def test_statements(self) -> None:
        request, _ = codec.read_batch(
            _body(statements=[{"sql": "a"}, {"sql": "b", "parameters": [1]}]), {}
        )
        assert isinstance(request, ExecuteBatch)
        assert list(request.statements) == [Statement("a"), Statement("b", [1])]

    def test_sets(self) -> None:
        request, _ = codec.read_batch(_body(sql="a", parameter_sets=[[1], {"n": 2}, None]), {})
        assert isinstance(request, ExecuteMany)
        assert list(request.sets) == [[1], {"n": 2}, None]

    def test_mode(self) -> None:
        request, _ = codec.read_batch(
            _body(statements=[], isolation="serializable", read_only=True, deferrable=True), {}
        )
        assert request.mode == TransactionMode(Isolation.SERIALIZABLE, True, True)

    @pytest.mark.parametrize(
        "members",
        [
            {},
            {"sql": "a"},
            {"parameter_sets": []},
            {"statements": [], "sql": "a"},
            {"statements": [], "parameter_sets": []},
            {"statements": [], "transaction": "x", "read_only": True},
            {"statements": [], "transaction": "x", "isolation": "serializable"},
            {"statements": [{"sql": "a", "rows": "objects"}]},
            {"statements": [{}]},
            {"statements": [], "isolation": "read_uncommitted"},
        ],
    )
    def test_forms_are_not_mixed(self, members: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest):
            codec.read_batch(_body(**members), {})


class TestBegin:
    def test_an_empty_body_asks_for_the_defaults(self) -> None:
        request = codec.read_begin(b"", {})
        assert (request.mode, request.idle_timeout) == (TransactionMode(), None)

    def test_mode_and_idle_time(self) -> None:
        request = codec.read_begin(_body(isolation="repeatable_read", idle_timeout=9), {})
        assert request.mode.isolation is Isolation.REPEATABLE_READ
        assert request.idle_timeout == 9

    def test_commit_and_rollback_take_the_id_from_the_path(self) -> None:
        assert codec.read_commit(b"", {"id": "x"})[:2] == ("x", True)
        assert codec.read_rollback(b"", {"id": "x"})[:2] == ("x", False)


class TestResult:
    def test_arrays(self) -> None:
        assert json.loads(codec.write_result(_result("a", "a", rows=[(1, None)]), ARRAYS)) == {
            "columns": [{"name": "a", "type": "int4"}] * 2,
            "rows": [[1, None]],
            "row_count": 1,
            "command": "SELECT",
        }

    def test_objects(self) -> None:
        answer = json.loads(codec.write_result(_result("a", "b", rows=[(1, 2)]), OBJECTS))
        assert answer["rows"] == [{"a": 1, "b": 2}]

    def test_objects_hold_no_name_twice(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            codec.write_result(_result("a", "a", rows=[(1, 2)]), OBJECTS)
        assert caught.value.field == "rows"

    @pytest.mark.parametrize(("shape", "row"), [(ARRAYS, []), (OBJECTS, {})])
    def test_rows_without_columns(self, shape: Shape, row: Any) -> None:
        answer = json.loads(codec.write_result(_result(rows=[(), ()]), shape))
        assert (answer["columns"], answer["rows"]) == ([], [row, row])

    def test_extras_stand_only_where_there_are_some(self) -> None:
        result = _result("a")._replace(notices=("told",), truncated=True)
        transaction = OpenTransaction("x", 0.0, 60.0, 86_400.0)
        answer = json.loads(codec.write_result(result, ARRAYS, transaction))
        assert answer["notices"] == ["told"]
        assert answer["truncated"] is True
        assert answer["transaction"] == {
            "id": "x",
            "expires_at": "1970-01-01T00:00:00.000+00:00",
            "idle_timeout": 60.0,
            "ends_at": "1970-01-02T00:00:00.000+00:00",
        }

    def test_a_streamed_answer_is_the_same_as_a_whole_one(self) -> None:
        result = _result("a", rows=[(1,), (2,)])
        streamed = codec.write_head(result.columns, ARRAYS) + b"[1],[2]]"
        streamed += codec.write_tail(2, "SELECT")
        assert streamed == codec.write_result(result, ARRAYS)

    def test_batch(self) -> None:
        answer = json.loads(codec.write_results([_result("a")] * 2, ARRAYS))
        assert len(answer["results"]) == 2
        assert "transaction" not in answer
        assert json.loads(codec.write_results([], ARRAYS)) == {"results": []}


def _problem(error: GatewayError) -> tuple[int, dict[bytes, bytes], dict[str, Any]]:
    status, headers, body = codec.write_error(error, "execute")
    return status, dict(headers), json.loads(body)


class TestProblem:
    def test_what_postgresql_tells(self) -> None:
        status, headers, problem = _problem(
            DatabaseError(
                "no", sqlstate="23505", constraint="t_pkey", table="t", position=7, statement=0
            )
        )
        assert status == problem["status"] == 400
        assert headers[b"content-type"] == b"application/problem+json"
        assert headers[b"x-gateway-outcome"] == b"not_executed"
        expected = {
            "code": "database_error", "sqlstate": "23505", "constraint": "t_pkey", "table": "t",
            "position": 7, "statement": 0, "retry": "never", "outcome": "not_executed",
        }  # fmt: skip
        assert expected.items() <= problem.items()
        assert not {"hint", "column", "field"} & set(problem)

    def test_a_lost_race_may_be_sent_again(self) -> None:
        status, _, problem = _problem(SerializationFailure("lost", sqlstate="40001"))
        assert (status, problem["retry"]) == (409, "safe")

    def test_when_to_come_again_is_a_whole_number_from_one(self) -> None:
        _, headers, _ = _problem(QueueFull(waiting=3, retry_after=0.2))
        assert headers[b"retry-after"] == b"1"

    def test_who_is_not_let_in_is_told_how(self) -> None:
        status, headers, problem = _problem(Unauthenticated(reason="signature"))
        assert (status, headers[b"www-authenticate"]) == (401, b'Bearer realm="pgsluice"')
        assert "signature" not in problem.values()
