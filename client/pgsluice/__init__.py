"""PostgreSQL over HTTP through a pgsluice gateway, without dependencies.

    import pgsluice

    db = pgsluice.connect("https://gateway.example.com", token="…")
    for name, price in db.execute("select name, price from products where price < :p", {"p": 10}):
        ...

Nothing but this file is imported until it is used: a function that starts cold
pays for `http.client` and `ssl` with its first statement, not with the import.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not imported for this
    from ._lambda import lambda_deadline, lambda_handler
    from ._result import Column, Result
    from ._values import Interval, Json, Multirange, Range
    from .aio import AsyncClient, AsyncStream, AsyncTransaction
    from .errors import (
        AuthUnavailable,
        CheckViolation,
        ConnectionFailed,
        DatabaseError,
        DatabaseUnavailable,
        DataError,
        Deadlock,
        Draining,
        Error,
        ExclusionViolation,
        Forbidden,
        ForeignKeyViolation,
        IntegrityError,
        InterfaceError,
        InternalError,
        KeyInProgress,
        KeyReused,
        NotNullViolation,
        NotOneRow,
        NotSupportedError,
        OperationalError,
        OutcomeUnknown,
        ProgrammingError,
        QueueFull,
        QueueTimeout,
        RateLimited,
        RequestTooLarge,
        ResultTooLarge,
        SerializationFailure,
        StatementTimeout,
        TokenExpired,
        TransactionFailed,
        TransactionGone,
        Unauthenticated,
        UniqueViolation,
    )
    from .rds import rds_data_client
    from .sync import Client, Stream, Transaction, connect

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "AsyncTransaction",
    "AuthUnavailable",
    "CheckViolation",
    "Client",
    "Column",
    "ConnectionFailed",
    "DataError",
    "DatabaseError",
    "DatabaseUnavailable",
    "Deadlock",
    "Draining",
    "Error",
    "ExclusionViolation",
    "Forbidden",
    "ForeignKeyViolation",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "Interval",
    "Json",
    "KeyInProgress",
    "KeyReused",
    "Multirange",
    "NotNullViolation",
    "NotOneRow",
    "NotSupportedError",
    "OperationalError",
    "OutcomeUnknown",
    "ProgrammingError",
    "QueueFull",
    "QueueTimeout",
    "Range",
    "RateLimited",
    "RequestTooLarge",
    "Result",
    "ResultTooLarge",
    "SerializationFailure",
    "StatementTimeout",
    "Stream",
    "TokenExpired",
    "Transaction",
    "TransactionFailed",
    "TransactionGone",
    "Unauthenticated",
    "UniqueViolation",
    "connect",
    "lambda_deadline",
    "lambda_handler",
    "rds_data_client",
]

_HOMES = {
    "AsyncClient": "aio",
    "AsyncStream": "aio",
    "AsyncTransaction": "aio",
    "lambda_deadline": "_lambda",
    "lambda_handler": "_lambda",
    "rds_data_client": "rds",
    "Client": "sync",
    "Stream": "sync",
    "Transaction": "sync",
    "connect": "sync",
    "Column": "_result",
    "Result": "_result",
    "Interval": "_values",
    "Json": "_values",
    "Multirange": "_values",
    "Range": "_values",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
