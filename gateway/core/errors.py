"""What can go wrong, whose fault it is, whether it happened, and whether to retry.

One class each; all facts about an error stand together. A dialect translates
the shape, never the meaning. Messages and hints hold no SQL, value, credential
or host name.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Fault(Enum):
    """Who has to act."""

    CALLER = "caller"
    DATABASE = "database"
    CAPACITY = "capacity"
    GATEWAY = "gateway"


class Retry(Enum):
    """Whether sending the request again can help and is harmless."""

    NEVER = "never"
    SAFE = "safe"
    UNKNOWN = "unknown"


class Outcome(Enum):
    """Whether the statement took effect."""

    NOT_EXECUTED = "not_executed"
    COMMITTED = "committed"
    UNKNOWN = "unknown"


class GatewayError(Exception):
    """Base of everything the gateway answers with other than a result."""

    code: ClassVar[str] = "internal"
    """Never changes, never reused."""
    status: int = 500
    fault: ClassVar[Fault] = Fault.GATEWAY
    retry: Retry = Retry.NEVER
    outcome: Outcome = Outcome.NOT_EXECUTED

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        statement: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after = retry_after
        self.statement = statement
        """Index of the failing statement in a batch."""
        self.field: str | None = None
        """The member of the request that is at fault."""


class Internal(GatewayError):
    """A defect of the gateway; nothing was executed."""

    code = "internal"
    status = 500
    fault = Fault.GATEWAY
    retry = Retry.SAFE


class InvalidRequest(GatewayError):
    """The request cannot be read."""

    code = "invalid_request"
    status = 400
    fault = Fault.CALLER

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class InvalidParameter(InvalidRequest):
    """A value does not fit, a name is missing, or a count is wrong."""

    code = "invalid_parameter"


class StatementRefused(GatewayError):
    """COPY, empty text, several statements, or transaction control."""

    code = "statement_refused"
    status = 400
    fault = Fault.CALLER


class EmptyStatement(StatementRefused):
    """The text holds no statement at all."""


class SeveralStatements(StatementRefused):
    """The text holds more than one statement."""


class StatementNotAllowed(GatewayError):
    """The grant does not allow statements of this kind."""

    code = "forbidden"
    status = 403
    fault = Fault.CALLER


class DatabaseError(GatewayError):
    """PostgreSQL refused the statement."""

    code = "database_error"
    status = 400
    fault = Fault.CALLER

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str,
        severity: str = "ERROR",
        hint: str | None = None,
        detail: str | None = None,
        where: str | None = None,
        position: int | None = None,
        constraint: str | None = None,
        table: str | None = None,
        column: str | None = None,
        statement: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint, statement=statement)
        self.sqlstate = sqlstate
        self.severity = severity
        self.detail = detail
        self.where = where
        self.position = position
        """Characters, 1-based, in the caller's own SQL."""
        self.constraint = constraint
        self.table = table
        self.column = column


class SerializationFailure(DatabaseError):
    """40001: the transaction lost against another one and was rolled back."""

    code = "serialization_failure"
    status = 409
    fault = Fault.DATABASE
    retry = Retry.SAFE


class Deadlock(DatabaseError):
    """40P01: the transaction was chosen to end a deadlock and was rolled back."""

    code = "deadlock"
    status = 409
    fault = Fault.DATABASE
    retry = Retry.SAFE


class TransactionFailed(DatabaseError):
    """25P02: an earlier statement failed; only a rollback is possible."""

    code = "transaction_failed"
    status = 409


class StatementTimeout(GatewayError):
    """The statement was cancelled at its deadline."""

    code = "statement_timeout"
    status = 400
    fault = Fault.CALLER

    def __init__(
        self, message: str, *, hint: str | None = None, backend: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = "57014"
        self.backend = backend
        """Process id of the backend that ran it."""


class StatementCancelled(GatewayError):
    """The statement was cancelled by its principal or by an administrator."""

    code = "database_error"
    status = 400
    fault = Fault.CALLER
    sqlstate = "57014"


class ResultTooLarge(GatewayError):
    """A result that must be held in memory passed its limit; nothing was kept."""

    code = "result_too_large"
    status = 400
    fault = Fault.CALLER


class OutcomeUnknown(GatewayError):
    """The connection was lost while the statement may have taken effect."""

    code = "outcome_unknown"
    status = 400
    fault = Fault.DATABASE
    retry = Retry.UNKNOWN
    outcome = Outcome.UNKNOWN
    sqlstate = "08007"


class Unauthenticated(GatewayError):
    """No or wrong credentials. `reason` is for the log, never for the caller."""

    code = "unauthenticated"
    status = 401
    fault = Fault.CALLER
    aws_name: ClassVar[str] = "UnrecognizedClientException"
    aws_status: ClassVar[int] = 403

    def __init__(self, message: str | None = None, *, reason: str = "") -> None:
        super().__init__(message or "The security token included in the request is invalid.")
        self.reason = reason


class MissingCredentials(Unauthenticated):
    """There is no Authorization header."""

    aws_name = "MissingAuthenticationTokenException"

    def __init__(self, message: str | None = None, *, reason: str = "") -> None:
        super().__init__(message or "Missing Authentication Token", reason=reason)


class IncompleteSignature(Unauthenticated):
    """The Authorization header cannot be read, or leaves out what must be signed."""

    aws_name = "IncompleteSignatureException"
    aws_status = 400


class InvalidSignature(Unauthenticated):
    """The signature, or something it covers, is wrong."""

    aws_name = "InvalidSignatureException"

    def __init__(self, message: str | None = None, *, reason: str = "") -> None:
        super().__init__(
            message
            or "The request signature we calculated does not match the signature you provided.",
            reason=reason,
        )


class TokenExpired(Unauthenticated):
    """The token was good once."""

    code = "token_expired"
    aws_name = "ExpiredTokenException"

    def __init__(self, message: str | None = None, *, reason: str = "") -> None:
        super().__init__(
            message or "The security token included in the request is expired", reason=reason
        )


class Forbidden(GatewayError):
    """The policy says no, or what was named does not exist: the same answer."""

    code = "forbidden"
    status = 403
    fault = Fault.CALLER

    def __init__(self, message: str | None = None, *, reason: str = "") -> None:
        super().__init__(message or "not authorized for this target")
        self.reason = reason


class AuthUnavailable(GatewayError):
    """The identity provider cannot be reached."""

    code = "auth_unavailable"
    status = 503
    fault = Fault.CAPACITY
    retry = Retry.SAFE


class NotFound(GatewayError):
    """There is nothing of that name."""

    code = "not_found"
    status = 404
    fault = Fault.CALLER


class MethodNotAllowed(GatewayError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405
    fault = Fault.CALLER


class NotAcceptable(GatewayError):
    """None of the media types in Accept can be produced."""

    code = "not_acceptable"
    status = 406
    fault = Fault.CALLER


class TransactionGone(GatewayError):
    """The transaction is finished, expired, or was never the caller's."""

    code = "transaction_gone"
    status = 410
    fault = Fault.CALLER


class TooLarge(GatewayError):
    """The request body passes its limit."""

    code = "too_large"
    status = 413
    fault = Fault.CALLER


class UnsupportedMediaType(GatewayError):
    """The body is not JSON, or it is compressed."""

    code = "unsupported_media_type"
    status = 415
    fault = Fault.CALLER


class QueueFull(GatewayError):
    """The tenant already has as many statements waiting as it may have."""

    code = "queue_full"
    status = 429
    fault = Fault.CAPACITY
    retry = Retry.SAFE

    def __init__(self, *, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"{waiting} statements are already waiting for this target",
            hint=f"retry after {retry_after:.0f} s, or raise max_waiting",
            retry_after=retry_after,
        )


class QueueTimeout(GatewayError):
    """No connection came free before the deadline."""

    code = "queue_timeout"
    status = 503
    fault = Fault.CAPACITY
    retry = Retry.SAFE

    def __init__(self, *, waited: float, retry_after: float = 1.0) -> None:
        super().__init__(
            f"no database connection came free within {waited:.1f} s",
            hint="the target is busy; retry later, or raise max_connections",
            retry_after=retry_after,
        )


class DatabaseUnavailable(GatewayError):
    """The database cannot be reached or does not accept connections."""

    code = "database_unavailable"
    status = 503
    fault = Fault.DATABASE
    retry = Retry.SAFE

    def __init__(
        self,
        message: str = "the database cannot be reached",
        *,
        hint: str | None = None,
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after)


class Draining(GatewayError):
    """This node is shutting down and takes no new work."""

    code = "draining"
    status = 503
    fault = Fault.CAPACITY
    retry = Retry.SAFE

    def __init__(self) -> None:
        super().__init__(
            "this node is shutting down", hint="send the request again", retry_after=1.0
        )


class SlowRequest(GatewayError):
    """The caller was too slow to send its request."""

    code = "slow_request"
    status = 408
    fault = Fault.CALLER
    retry = Retry.SAFE
