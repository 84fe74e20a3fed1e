"""What we write, read by the parser of AWS's own SDK with AWS's own service model."""

from __future__ import annotations

import math
from typing import Any

import botocore.compat
import botocore.parsers
import botocore.session
import pytest

from gateway.api.rds_data import codec
from gateway.api.rds_data.metadata import column_metadata
from gateway.core import errors
from gateway.core.model import ArrayKind, Column, Kind, Result

MODEL = botocore.session.get_session().get_service_model("rds-data")
PARSER = botocore.parsers.create_parser("rest-json")


def parsed(operation: str, body: bytes, status: int = 200, headers: Any = None) -> dict[str, Any]:
    response = {"body": body, "status_code": status, "headers": headers or {}}
    shape = MODEL.operation_model(operation).output_shape
    found: dict[str, Any] = PARSER.parse(response, shape)
    return found


CELLS: list[tuple[Kind | ArrayKind, Any, dict[str, Any]]] = [
    (Kind.INT, 7, {"longValue": 7}),
    (Kind.INT, None, {"isNull": True}),
    (Kind.BOOL, False, {"booleanValue": False}),
    (Kind.FLOAT8, 1.5, {"doubleValue": 1.5}),
    (Kind.FLOAT8, math.inf, {"doubleValue": math.inf}),
    (Kind.FLOAT4, "3.14", {"doubleValue": 3.14}),
    (Kind.NUMERIC, "19.90", {"stringValue": "19.90"}),
    (Kind.TEXT, "żółć", {"stringValue": "żółć"}),
    (Kind.JSON, '{"a": 1}', {"stringValue": '{"a":1}'}),
    (Kind.BYTEA, "\\x00ff", {"blobValue": b"\x00\xff"}),
    (Kind.TIMESTAMPTZ, "2024-01-15 03:34:56+00", {"stringValue": "2024-01-15 03:34:56"}),
    (ArrayKind(Kind.INT), [1, None, 3], {"arrayValue": {"longValues": [1, None, 3]}}),
    (ArrayKind(Kind.INT), [], {"arrayValue": {"longValues": []}}),
    (ArrayKind(Kind.FLOAT8), [math.inf], {"arrayValue": {"doubleValues": [math.inf]}}),
    (ArrayKind(Kind.BOOL), [True], {"arrayValue": {"booleanValues": [True]}}),
    (ArrayKind(Kind.TEXT), ["a", None], {"arrayValue": {"stringValues": ["a", None]}}),
    (
        ArrayKind(Kind.INT),
        [[1], [2]],
        {"arrayValue": {"arrayValues": [{"longValues": [1]}, {"longValues": [2]}]}},
    ),
]


def test_a_row_of_every_kind_is_read() -> None:
    columns = tuple(Column(f"c{n}", "t", kind=kind) for n, (kind, _, _) in enumerate(CELLS))
    result = Result(columns, [[value for _, value, _ in CELLS]], 1, "SELECT", True)
    metadata = [column_metadata(column) for column in columns]
    body = codec.write_execute(result, codec.ExecuteOptions(include_metadata=True), metadata)
    answer = parsed("ExecuteStatement", body)
    assert answer["records"] == [[field for _, _, field in CELLS]]
    assert answer["numberOfRecordsUpdated"] == 0
    assert "generatedFields" not in answer
    members = MODEL.shape_for("ColumnMetadata").members
    assert all(set(column) == set(members) for column in answer["columnMetadata"])


def test_a_command_is_read() -> None:
    body = codec.write_execute(Result((), [], 2, "DELETE", False), codec.ExecuteOptions())
    answer = parsed("ExecuteStatement", body)
    del answer["ResponseMetadata"]
    assert answer == {"generatedFields": [], "numberOfRecordsUpdated": 2}


def test_the_other_operations_are_read() -> None:
    row = Result((Column("id", "int4", kind=Kind.INT),), [(7,)], 1, "INSERT", True)
    batch = parsed("BatchExecuteStatement", codec.write_batch([row]))
    assert batch["updateResults"] == [{"generatedFields": [{"longValue": 7}]}]
    assert parsed("BeginTransaction", codec.write_begin("t"))["transactionId"] == "t"
    commit = parsed("CommitTransaction", codec.write_commit())
    assert commit["transactionStatus"] == "Transaction Committed"
    rollback = parsed("RollbackTransaction", codec.write_rollback())
    assert rollback["transactionStatus"] == "Rollback Complete"


@pytest.mark.parametrize(
    "error",
    [
        errors.DatabaseError("no", sqlstate="42P01"),
        errors.StatementTimeout("no", backend=7),
        errors.TransactionGone("no"),
        errors.ResultTooLarge("no"),
        errors.InvalidRequest("no"),
        errors.Forbidden(),
        errors.DatabaseUnavailable(),
        errors.QueueTimeout(waited=1),
        errors.Internal("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_of_the_model(error: errors.GatewayError) -> None:
    status, headers, body = codec.write_error(error, "ExecuteStatement")
    named = botocore.compat.HTTPHeaders.from_dict(
        {name.decode(): value.decode() for name, value in headers}
    )
    answer = parsed("ExecuteStatement", body, status, named)
    modelled = {shape.name: shape for shape in MODEL.error_shapes}[answer["Error"]["Code"]]
    assert answer["Error"]["Message"]
    assert status == modelled.metadata["error"]["httpStatusCode"]
    if isinstance(error, errors.StatementTimeout):
        response = {"body": body, "status_code": 200, "headers": named}
        assert PARSER.parse(response, modelled)["dbConnectionId"] == 7
