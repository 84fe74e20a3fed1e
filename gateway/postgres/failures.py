"""SQLSTATEs and driver errors become the errors of `core.errors`, once."""

from __future__ import annotations

import asyncio
import errno
import ssl

import asyncpg

from ..core.errors import (
    DatabaseError,
    DatabaseUnavailable,
    Deadlock,
    GatewayError,
    Internal,
    InvalidParameter,
    LoginRefused,
    OutcomeUnknown,
    SerializationFailure,
    SeveralStatements,
    StatementCancelled,
    TransactionFailed,
)

READ_ONLY = "25006"
NO_TRANSACTION_BLOCK = "25001"
INVALID_TERMINATION = "2D000"
UNTYPED = frozenset({"42P08", "42P18", "42725", "42804"})
"""A parameter's type is ambiguous, indeterminate, fits several functions, or would be unknown
where any type will do."""
IN_RECOVERY = frozenset({READ_ONLY, "0A000"})
"""What a standby answers to a write, and to BEGIN READ WRITE."""
STALE = frozenset({"26000", "0A000"})

_NO_PATH = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})
_NOT_NOW = frozenset({"53300", "57P03", "57P01", "57P02", "53400", "53000", "53200"})
_BY_STATE: dict[str, type[DatabaseError]] = {
    "40001": SerializationFailure,
    "40P01": Deadlock,
    "25P02": TransactionFailed,
}


def _fields(error: asyncpg.PostgresError, position: int | None) -> DatabaseError:
    sqlstate = error.sqlstate or "XX000"
    kind = _BY_STATE.get(sqlstate, DatabaseError)
    if position is None:
        text = getattr(error, "position", None)
        position = int(text) if text else None
    return kind(
        getattr(error, "message", None) or str(error),
        sqlstate=sqlstate,
        severity=getattr(error, "severity_en", None) or getattr(error, "severity", None) or "ERROR",
        hint=getattr(error, "hint", None),
        detail=getattr(error, "detail", None),
        where=getattr(error, "context", None),
        position=position,
        constraint=getattr(error, "constraint_name", None),
        table=getattr(error, "table_name", None),
        column=getattr(error, "column_name", None),
    )


def is_sign_of_ddl(error: BaseException) -> bool:
    """Whether *error* may be that of a statement prepared before something was changed."""
    if isinstance(error, asyncpg.InternalServerError):
        return "cache lookup failed" in str(error)
    return isinstance(
        error,
        asyncpg.InvalidCachedStatementError
        | asyncpg.UndefinedFunctionError
        | asyncpg.DatatypeMismatchError,
    )


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's own code of *error*, if it is PostgreSQL's."""
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def lost(error: BaseException) -> bool:
    """Whether the connection went away, so that nothing more can be asked on it."""
    if isinstance(error, asyncpg.PostgresError):
        if (error.sqlstate or "")[:2] != "08" and error.sqlstate not in {"57P01", "57P02"}:
            return False
        # Any function may raise an ERROR of such a state; the driver's own have no severity.
        return getattr(error, "severity_en", None) != "ERROR"
    if isinstance(error, asyncpg.InternalClientError):
        return True
    if isinstance(error, asyncpg.InterfaceError):
        # The driver's refusals of a value or a feature are of this class, too.
        return "connection" in str(error) and ("closed" in str(error) or "released" in str(error))
    return isinstance(error, OSError) and not isinstance(error, TimeoutError)


def unsent(error: BaseException) -> bool:
    """Whether the driver surely sent nothing: it had seen the end of the session before."""
    return isinstance(error, asyncpg.InternalClientError) or (
        isinstance(error, asyncpg.InterfaceError)
        and ("connection is closed" in str(error) or "been released" in str(error))
    )


def unheard(error: BaseException) -> bool:
    """Whether the network took what was sent nowhere: no acknowledgement came in time.

    So it is with a connection that was idle when its path died, behind a firewall that
    forgot it for one.
    """
    cause = error.__cause__ if isinstance(error, asyncpg.PostgresError) else error
    return isinstance(cause, OSError) and cause.errno in _NO_PATH


def translate(error: BaseException, *, may_have_run: bool = False) -> GatewayError:
    """*error* in the gateway's words.

    Args:
        may_have_run: The statement was on its way in a form that commits by itself, so
            a lost connection leaves its outcome unknown.
    """
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, asyncpg.PostgresError) and not lost(error):
        if error.sqlstate == "42601" and "multiple commands" in str(error):
            return SeveralStatements("Multistatements aren't supported.")
        if error.sqlstate == "57014":
            return StatementCancelled("the statement was cancelled")
        return _fields(error, None)
    if isinstance(error, asyncpg.DataError | ValueError | UnicodeError) and not isinstance(
        error, asyncpg.PostgresError
    ):
        return InvalidParameter("a value does not fit the type of its parameter")
    if lost(error):
        if may_have_run and not unsent(error):
            return OutcomeUnknown(
                "the connection was lost while the statement was running",
                hint="it may have taken effect; read before sending it again",
            )
        return DatabaseUnavailable("the connection to the database was lost")
    if isinstance(error, asyncpg.InterfaceError):
        return InvalidParameter("the driver refused the statement or its parameters")
    return Internal(f"unexpected {type(error).__name__}")


def translate_connect(error: BaseException) -> GatewayError:
    """A failure to connect, in the gateway's words; nothing was executed."""
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return DatabaseUnavailable("no host of the target takes writes now")
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state in {"28P01", "28000"}:
            # PostgreSQL's own words name user, database and address: they are for the log.
            if state == "28P01":
                message = "password authentication failed for the gateway's login"
                return LoginRefused(message, sqlstate=state, reason=str(error))
            return LoginRefused(sqlstate=state, reason=str(error))
        if state == "3D000":
            return DatabaseUnavailable("the database does not exist", hint="check its name")
        if state in _NOT_NOW:
            return DatabaseUnavailable("the database does not accept connections now")
        return DatabaseUnavailable(f"the database refused the connection ({state})")
    if isinstance(error, ssl.SSLError):
        return DatabaseUnavailable(
            "the TLS certificate of the database cannot be verified", hint="check cafile"
        )
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return DatabaseUnavailable("the database did not answer in time")
    return DatabaseUnavailable()
