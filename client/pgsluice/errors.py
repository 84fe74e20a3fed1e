"""What can go wrong, whether it happened, and whether to try again.

Every error is an `Error`. Its class follows PEP 249 and PostgreSQL: catch
`IntegrityError` for any broken constraint, `UniqueViolation` for that one.
What to do next is in two attributes, not in the class:

    outcome  `not_executed`, `committed` or `unknown`: did it happen?
    retry    `safe`, `never` or `unknown`: can sending it again help, without harm?

    >>> error = problem(409, {"code": "serialization_failure", "sqlstate": "40001",
    ...                       "detail": "lost a race", "retry": "safe"})
    >>> type(error).__name__, error.retry, error.outcome
    ('SerializationFailure', 'safe', 'not_executed')
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Error(Exception):
    """Base of everything this package raises about a statement or an answer."""

    code: str = "error"
    """The gateway's word for it; never changes, never reused."""
    status: int = 0
    """HTTP status of the answer, 0 without an answer."""
    retry: str = "never"
    """`never`, `safe` (nothing happened, again may help) or `unknown`."""
    outcome: str = "not_executed"
    """`not_executed`, `committed` or `unknown`."""
    sqlstate: str | None = None
    """PostgreSQL's five characters."""
    detail: str | None = None
    """PostgreSQL's DETAIL, where the gateway passes it on."""
    hint: str | None = None
    """What to do about it."""
    position: int | None = None
    """Where in the SQL, in characters, 1-based."""
    constraint: str | None = None
    table: str | None = None
    column: str | None = None
    statement: int | None = None
    """Index of the failing statement in a batch."""
    field: str | None = None
    """The member of the request that is at fault."""
    request_id: str | None = None
    """What the gateway's log calls the request."""
    retry_after: float | None = None
    """Seconds to wait before the next try."""
    key: str | None = None
    """Idempotency key of the request whose answer was lost."""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        text = self.message or self.code
        if self.sqlstate:
            text = f"{text} [{self.sqlstate}]"
        return f"{text} ({self.hint})" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process borders (multiprocessing, test runners) by pickle.
        return type(self), (self.message,), self.__dict__


class InterfaceError(Error):
    """The client was used wrongly, or what answered is no gateway."""

    code = "interface_error"


class NotOneRow(InterfaceError):
    """One row was asked for and there are none or several."""

    code = "not_one_row"


class DatabaseError(Error):
    """The gateway or PostgreSQL refused the statement."""

    code = "database_error"


class DataError(DatabaseError):
    """A value does not fit (SQLSTATE class 22, or a parameter that its type refuses)."""


class OperationalError(DatabaseError):
    """Not the statement's fault: load, limits, credentials, connections."""


class IntegrityError(DatabaseError):
    """A constraint refused it (SQLSTATE class 23); `constraint` names it."""


class InternalError(DatabaseError):
    """A defect of the gateway or of PostgreSQL."""


class ProgrammingError(DatabaseError):
    """The statement is wrong: syntax, names, kinds of statement (SQLSTATE class 42)."""


class NotSupportedError(DatabaseError):
    """PostgreSQL does not have it (SQLSTATE class 0A)."""


class NotNullViolation(IntegrityError):
    """23502: a column that must have a value got none."""


class ForeignKeyViolation(IntegrityError):
    """23503: the row referred to does not exist, or is still referred to."""


class UniqueViolation(IntegrityError):
    """23505: there is such a row already."""


class CheckViolation(IntegrityError):
    """23514: a check constraint says no."""


class ExclusionViolation(IntegrityError):
    """23P01: it overlaps another row."""


class SerializationFailure(OperationalError):
    """40001: lost against another transaction; run the whole transaction again."""

    code = "serialization_failure"
    retry = "safe"


class Deadlock(OperationalError):
    """40P01: chosen to end a deadlock; run the whole transaction again."""

    code = "deadlock"
    retry = "safe"


class TransactionFailed(OperationalError):
    """An earlier statement failed; only a rollback is possible."""

    code = "transaction_failed"


class TransactionGone(OperationalError):
    """The transaction is finished or has expired."""

    code = "transaction_gone"


class StatementTimeout(OperationalError):
    """Cancelled at its deadline; nothing was kept."""

    code = "statement_timeout"


class ResultTooLarge(OperationalError):
    """The result passes what the gateway may hold; nothing was kept."""

    code = "result_too_large"


class RequestTooLarge(OperationalError):
    """The request passes what the gateway accepts."""

    code = "too_large"


class OutcomeUnknown(OperationalError):
    """The answer was lost: it may have happened or not. Look before sending it again.

    `retry` is `safe` only if the caller chose the key and the gateway keeps it: sent again
    with that key it happens once. Else `key` is the one that was chosen for it.
    """

    code = "outcome_unknown"
    retry = "unknown"
    outcome = "unknown"


class ConnectionFailed(OperationalError):
    """The gateway could not be reached, or was lost during a read; nothing happened."""

    code = "connection_failed"
    retry = "safe"


class Unauthenticated(OperationalError):
    """No or wrong credentials."""

    code = "unauthenticated"


class TokenExpired(Unauthenticated):
    """The token was good once."""

    code = "token_expired"


class Forbidden(OperationalError):
    """The policy says no, or what was named does not exist."""

    code = "forbidden"


class KeyInProgress(OperationalError):
    """A request with this idempotency key is running at this moment."""

    code = "key_in_progress"


class KeyReused(ProgrammingError):
    """This idempotency key came with another statement before."""

    code = "key_reused"


class QueueFull(OperationalError):
    """Too many statements are waiting already."""

    code = "queue_full"
    retry = "safe"


class RateLimited(OperationalError):
    """Too many requests in too short a time."""

    code = "rate_limited"
    retry = "safe"


class QueueTimeout(OperationalError):
    """No database connection came free in time."""

    code = "queue_timeout"
    retry = "safe"


class DatabaseUnavailable(OperationalError):
    """PostgreSQL cannot be reached by the gateway."""

    code = "database_unavailable"
    retry = "safe"


class Draining(OperationalError):
    """This node of the gateway is shutting down."""

    code = "draining"
    retry = "safe"


class AuthUnavailable(OperationalError):
    """The gateway cannot reach the identity provider."""

    code = "auth_unavailable"
    retry = "safe"


# The classes with a code of their own, not one of all their kind, and who has which else.
_BY_CODE: dict[str, type[Error]] = {
    kind.code: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, OperationalError | ProgrammingError)
    if "code" in vars(kind)
}
for _kind, _codes in (
    (ProgrammingError, "invalid_request statement_refused not_found"),
    (DataError, "invalid_parameter"),
    (InterfaceError, "method_not_allowed not_acceptable unsupported_media_type"),
    (OperationalError, "slow_request result_not_kept claims_unsafe login_refused"),
    (OperationalError, "secret_invalid secret_unavailable transaction_busy"),
    (NotSupportedError, "unsupported_result"),
    (InternalError, "internal"),
):
    _BY_CODE.update(dict.fromkeys(_codes.split(), _kind))

_BY_SQLSTATE: dict[str, type[Error]] = {
    "23502": NotNullViolation,
    "23503": ForeignKeyViolation,
    "23505": UniqueViolation,
    "23514": CheckViolation,
    "23P01": ExclusionViolation,
    "25P02": TransactionFailed,
    "40001": SerializationFailure,
    "40P01": Deadlock,
}

# The first two characters, PostgreSQL manual, appendix "PostgreSQL Error Codes".
_BY_SQLSTATE_CLASS: dict[str, type[Error]] = {
    "0A": NotSupportedError,
    "21": ProgrammingError,
    "22": DataError,
    "23": IntegrityError,
    "26": ProgrammingError,
    "34": ProgrammingError,
    "3D": ProgrammingError,
    "3F": ProgrammingError,
    "42": ProgrammingError,
    "44": IntegrityError,
    "XX": InternalError,
    **dict.fromkeys(("08", "25", "28", "2D", "40", "53", "54", "55", "57", "58"), OperationalError),
}

# Members of the problem document that become attributes of the same name.
_MEMBERS = (
    "retry",
    "outcome",
    "sqlstate",
    "hint",
    "position",
    "constraint",
    "table",
    "column",
    "statement",
    "field",
    "request_id",
)


def kind(code: str, sqlstate: str | None) -> type[Error]:
    """The class for a gateway code and, if PostgreSQL spoke, its SQLSTATE."""
    if code in _BY_CODE:
        return _BY_CODE[code]
    state = sqlstate or ""
    return _BY_SQLSTATE.get(state) or _BY_SQLSTATE_CLASS.get(state[:2]) or DatabaseError


def problem(status: int, document: Mapping[str, Any], *, retry_after: float | None = None) -> Error:
    """The error that a problem document (RFC 9457) of the gateway describes."""
    code = str(document.get("code", "error"))
    facts = {name: document[name] for name in _MEMBERS if document.get(name) is not None}
    message = document.get("detail") or document.get("title") or code
    return kind(code, facts.get("sqlstate"))(
        str(message), code=code, status=status, retry_after=retry_after, **facts
    )
