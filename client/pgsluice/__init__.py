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
    from ._boto3 import boto3_session
    from ._lambda import lambda_deadline, lambda_handler
    from ._result import Column, Result
    from ._values import Interval, Json, Multirange, Range
    from .aio import AsyncClient, AsyncStream, AsyncTransaction
    from .errors import *
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
    "boto3_session",
    "connect",
    "lambda_deadline",
    "lambda_handler",
    "rds_data_client",
]

_HOMES = {
    "_boto3": {"boto3_session"},
    "_lambda": {"lambda_deadline", "lambda_handler"},
    "_result": {"Column", "Result"},
    "_values": {"Interval", "Json", "Multirange", "Range"},
    "aio": {"AsyncClient", "AsyncStream", "AsyncTransaction"},
    "rds": {"rds_data_client"},
    "sync": {"Client", "Stream", "Transaction", "connect"},
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    value: object = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
