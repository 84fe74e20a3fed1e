"""Problem documents become exceptions that say what happened."""

from __future__ import annotations

import pickle

import pgsluice
import pytest
from pgsluice.errors import Error, kind, problem

from gateway.core import errors as gateway_errors


@pytest.mark.parametrize(
    ("code", "sqlstate", "expected"),
    [
        ("database_error", "23505", pgsluice.UniqueViolation),
        ("database_error", "23503", pgsluice.ForeignKeyViolation),
        ("database_error", "23001", pgsluice.IntegrityError),
        ("database_error", "22P02", pgsluice.DataError),
        ("database_error", "42P01", pgsluice.ProgrammingError),
        ("database_error", "0A000", pgsluice.NotSupportedError),
        ("database_error", "57P01", pgsluice.OperationalError),
        ("database_error", "XX001", pgsluice.InternalError),
        ("database_error", "P0001", pgsluice.DatabaseError),
        ("database_error", None, pgsluice.DatabaseError),
        ("serialization_failure", "40001", pgsluice.SerializationFailure),
        ("deadlock", "40P01", pgsluice.Deadlock),
        ("statement_timeout", "57014", pgsluice.StatementTimeout),
        ("queue_full", None, pgsluice.QueueFull),
        ("token_expired", None, pgsluice.TokenExpired),
        ("invalid_parameter", None, pgsluice.DataError),
        ("a_code_of_tomorrow", None, pgsluice.DatabaseError),
    ],
)
def test_the_class_follows_the_code_then_the_sqlstate(
    code: str, sqlstate: str | None, expected: type[Error]
) -> None:
    assert kind(code, sqlstate) is expected


def test_every_code_of_the_gateway_has_a_class_of_its_own_or_a_family() -> None:
    def below(cls: type[gateway_errors.GatewayError]) -> set[str]:
        return {cls.code}.union(*(below(each) for each in cls.__subclasses__()))

    codes = below(gateway_errors.GatewayError) - {"database_error"}
    assert {code for code in codes if kind(code, None) is pgsluice.DatabaseError} == set()


def test_all_members_of_a_problem_are_kept() -> None:
    error = problem(
        400,
        {
            "type": "errors#database_error",
            "title": "Database error",
            "status": 400,
            "detail": "duplicate key",
            "code": "database_error",
            "sqlstate": "23505",
            "position": 7,
            "hint": "choose another",
            "constraint": "products_sku_key",
            "table": "products",
            "column": None,
            "statement": 2,
            "retry": "never",
            "outcome": "not_executed",
            "request_id": "r1",
        },
        retry_after=1.5,
    )
    assert isinstance(error, pgsluice.UniqueViolation)
    facts = ("code", "status", "sqlstate", "position", "constraint", "table", "column")
    assert [getattr(error, name) for name in facts] == [
        "database_error",
        400,
        "23505",
        7,
        "products_sku_key",
        "products",
        None,
    ]
    assert (error.statement, error.retry, error.outcome) == (2, "never", "not_executed")
    assert (error.request_id, error.retry_after) == ("r1", 1.5)
    assert str(error) == "duplicate key [23505] (choose another)"


def test_an_error_survives_pickle() -> None:
    error = problem(429, {"code": "queue_full", "detail": "full", "retry": "safe"}, retry_after=2)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is pgsluice.QueueFull
    assert (again.message, again.status, again.retry_after) == ("full", 429, 2)
