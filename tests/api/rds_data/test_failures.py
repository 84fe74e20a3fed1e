from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gateway.api.rds_data.failures import write_error
from gateway.core import errors
from gateway.core.errors import GatewayError, Outcome, Retry


def told(error: GatewayError) -> tuple[int, str, dict[str, str], dict[str, Any]]:
    status, headers, body = write_error(error, "ExecuteStatement")
    named = {name.decode(): value.decode() for name, value in headers}
    return status, named["x-amzn-errortype"], named, json.loads(body)


def sql_error(message: str = "no", sqlstate: str = "42P01", **more: Any) -> errors.DatabaseError:
    return errors.DatabaseError(message, sqlstate=sqlstate, **more)


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (sql_error(), 400, "DatabaseErrorException"),
        (errors.SerializationFailure("x", sqlstate="40001"), 400, "DatabaseErrorException"),
        (errors.Deadlock("x", sqlstate="40P01"), 400, "DatabaseErrorException"),
        (errors.TransactionFailed("x", sqlstate="25P02"), 400, "DatabaseErrorException"),
        (errors.StatementCancelled("x"), 400, "DatabaseErrorException"),
        (errors.OutcomeUnknown("x"), 400, "DatabaseErrorException"),
        (errors.StatementTimeout("x"), 400, "StatementTimeoutException"),
        (errors.ResultTooLarge("x"), 400, "UnsupportedResultException"),
        (errors.TransactionGone("x"), 404, "TransactionNotFoundException"),
        (errors.SeveralStatements("x"), 400, "ValidationException"),
        (errors.EmptyStatement("x"), 400, "ValidationException"),
        (errors.StatementRefused("x"), 400, "ValidationException"),
        (errors.InvalidParameter("x"), 400, "ValidationException"),
        (errors.InvalidRequest("x"), 400, "BadRequestException"),
        (errors.Forbidden(), 403, "AccessDeniedException"),
        (errors.StatementNotAllowed("x"), 403, "AccessDeniedException"),
        (errors.Unauthenticated(), 403, "UnrecognizedClientException"),
        (errors.MissingCredentials(), 403, "MissingAuthenticationTokenException"),
        (errors.IncompleteSignature(), 400, "IncompleteSignatureException"),
        (errors.InvalidSignature(), 403, "InvalidSignatureException"),
        (errors.TokenExpired(), 403, "ExpiredTokenException"),
        (errors.QueueFull(waiting=5, retry_after=2), 429, "ThrottlingException"),
        (errors.QueueTimeout(waited=1), 503, "ServiceUnavailableError"),
        (errors.Draining(), 503, "ServiceUnavailableError"),
        (errors.AuthUnavailable("x"), 503, "ServiceUnavailableError"),
        (errors.DatabaseUnavailable(), 504, "DatabaseUnavailableException"),
        (errors.TooLarge("x"), 413, "ValidationException"),
        (errors.UnsupportedMediaType("x"), 415, "ValidationException"),
        (errors.NotFound("x"), 404, "UnknownOperationException"),
        (errors.MethodNotAllowed("x"), 405, "UnknownOperationException"),
        (errors.SlowRequest("x"), 408, "RequestTimeoutException"),
        (errors.Internal("x"), 500, "InternalServerErrorException"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, GatewayError) else "",
)
def test_each_error_is_an_exception_of_the_model(
    error: GatewayError, status: int, name: str
) -> None:
    assert told(error)[:2] == (status, name)


def test_what_an_sdk_would_repeat_had_surely_no_effect() -> None:
    for kind in (errors.Internal, errors.AuthUnavailable):
        for retry, outcome in (
            (Retry.UNKNOWN, Outcome.UNKNOWN),
            (Retry.NEVER, Outcome.NOT_EXECUTED),
            (Retry.SAFE, Outcome.COMMITTED),
        ):
            error = kind("x")
            error.retry, error.outcome = retry, outcome
            assert told(error)[0] == 400


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            sql_error('relation "x" does not exist', position=15),
            'ERROR: relation "x" does not exist; Position: 15; SQLState: 42P01',
        ),
        (
            sql_error("operator does not exist", "42883", hint="Add casts.", position=36),
            "ERROR: operator does not exist; Hint: Add casts.; Position: 36; SQLState: 42883",
        ),
        (
            sql_error("duplicate key", "23505", detail="Key (id)=(7) already exists."),
            "ERROR: duplicate key; SQLState: 23505",
        ),
        (
            sql_error("two\nlines\r\nhere", "P0001", severity="FATAL"),
            "FATAL: two lines here; SQLState: P0001",
        ),
        (errors.OutcomeUnknown("lost"), "ERROR: lost; SQLState: 08007"),
        (errors.SeveralStatements("x"), "Multistatements aren't supported."),
        (errors.EmptyStatement("x"), "SQL is empty"),
        (errors.TransactionGone("It has expired."), "Transaction is not found. It has expired."),
        (errors.TransactionGone("Transaction t is not found."), "Transaction t is not found."),
        (errors.InvalidParameter("bad", hint="better"), "bad"),
        (errors.ResultTooLarge("big", hint="page"), "big; Hint: page"),
    ],
)
def test_messages_have_the_form_that_drivers_take_apart(error: GatewayError, message: str) -> None:
    assert told(error)[3]["message"] == message


def test_the_pattern_of_a_known_driver_finds_position_and_state() -> None:
    message = told(sql_error("a\nb", hint="c\nd", position=7))[3]["message"]
    found = re.match(r"ERROR: .*(?:\n |;) Position: (\d+); SQLState: (\w+)$", message)
    assert found is not None
    assert found.groups() == ("7", "42P01")


def test_facts_of_a_constraint_are_members_and_the_row_is_not() -> None:
    error = sql_error(
        "duplicate",
        "23505",
        detail="Key (id)=(secret)",
        constraint="pk",
        table="t",
        column="id",
        statement=0,
    )
    _, _, headers, body = told(error)
    assert {name: body[name] for name in ("sqlState", "constraint", "table", "column")} == {
        "sqlState": "23505",
        "constraint": "pk",
        "table": "t",
        "column": "id",
    }
    assert body["statement"] == 0
    assert headers["x-gateway-sqlstate"] == "23505"
    assert "secret" not in json.dumps(body)


def test_outcome_and_retry_are_said_twice() -> None:
    _, _, headers, body = told(errors.OutcomeUnknown("x"))
    assert (body["outcome"], body["retry"]) == ("unknown", "unknown")
    assert headers["x-gateway-outcome"] == "unknown"
    assert headers["x-gateway-retry"] == "unknown"


def test_when_to_come_back_is_a_whole_number_of_seconds() -> None:
    assert told(errors.QueueFull(waiting=1, retry_after=0.2))[2]["retry-after"] == "1"
    assert told(errors.QueueFull(waiting=1, retry_after=2.1))[2]["retry-after"] == "3"
    assert "retry-after" not in told(errors.Internal("x"))[2]


def test_a_timeout_names_its_backend() -> None:
    assert told(errors.StatementTimeout("x", backend=123))[3]["dbConnectionId"] == 123
    assert "dbConnectionId" not in told(errors.StatementTimeout("x"))[3]


def test_who_is_refused_hears_which_operation_and_no_reason() -> None:
    message = told(errors.Forbidden(reason="target is unknown"))[3]["message"]
    assert "rds-data:ExecuteStatement" in message
    assert "unknown" not in message
