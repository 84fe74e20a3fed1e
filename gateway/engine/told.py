"""What a caller is told of a failure, and what becomes of the connection behind it."""

from __future__ import annotations

import asyncio

from ..core.errors import (
    DatabaseUnavailable,
    GatewayError,
    OutcomeUnknown,
    ResultTooLarge,
    StatementTimeout,
    TransactionGone,
)
from ..core.model import Call
from ..postgres.connection import Connection
from ..postgres.failures import translate
from .binding import Bound
from .plans import located
from .targets import Lease, Target


class RolledBack(DatabaseUnavailable):
    """The connection was lost before anything was committed: the work can be done again."""

    def __init__(self) -> None:
        super().__init__("the connection to the database was lost; nothing was committed")


def timed_out(connection: Connection) -> StatementTimeout:
    """The statement on *connection* was cancelled at its deadline."""
    return StatementTimeout(
        "canceling statement due to statement timeout",
        hint="raise its timeout, or make it faster; nothing of it was kept",
        backend=connection.get_server_pid(),
    )


def connection_lost() -> TransactionGone:
    """An open transaction went with its connection."""
    return TransactionGone("the connection of the transaction was lost; it was rolled back")


def too_large(target: Target) -> ResultTooLarge:
    """A result that has to be held is larger than *target* allows."""
    return ResultTooLarge(
        f"the result is larger than {target.settings.response_bytes} bytes",
        hint="return fewer rows or columns, or raise response_bytes",
    )


def keep_state(error: Exception, bound: Bound) -> None:
    """Give a PostgreSQL error its position in the caller's text, keeping its SQLSTATE."""
    error._bound = bound  # type: ignore[attr-defined]


def told(error: BaseException, connection: Connection) -> BaseException:
    """*error* as its caller is told of it."""
    if isinstance(error, GatewayError | asyncio.CancelledError):
        return error
    if isinstance(error, TimeoutError):
        return timed_out(connection)
    bound = getattr(error, "_bound", None)
    if bound is not None:
        return located(error, bound.variant)
    return translate(error)


def cancel_reason(error: BaseException, call: Call) -> str | None:
    """Why the statement that *error* ended was stopped; `None` if it was not."""
    if isinstance(error, StatementTimeout | TimeoutError):
        return "deadline"
    if isinstance(error, asyncio.CancelledError):
        return call.cancel_reason if call.cancelled else "hangup"
    return None


def after_failure(lease: Lease, error: BaseException, call: Call) -> BaseException:
    """Send the connection to be cleaned; return what the caller is told."""
    said = told(error, lease.connection)
    reason = cancel_reason(said, call)
    if reason is not None:
        lease.target.cancelled(reason)
    if isinstance(said, DatabaseUnavailable | OutcomeUnknown):
        lease.connection.broken = True
    lease.settle_soon()
    return said
