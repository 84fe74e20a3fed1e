"""What can go wrong, whose fault it is, whether it happened, and whether to retry.

One class each; all facts about an error stand together. A dialect translates
the shape, never the meaning. Messages and hints hold no SQL, value, credential
or host name.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .model import OpenTransaction


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
    request_id: str
    """Of the request that it answers, once it is known."""

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
        self.transaction: OpenTransaction | None = None
        """The one it happened in, if that is still open."""


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


class AwsCannot(GatewayError):
    """AWS could not return this result, and the target is to behave like AWS."""

    code = "unsupported_result"
    status = 400
    fault = Fault.CALLER

    def __init__(self, message: str, *, aws_name: str = "UnsupportedResultException") -> None:
        super().__init__(message)
        self.aws_name = aws_name
        """The exception that AWS answers with."""


class TransactionBusy(GatewayError):
    """AWS would not let the call wait for its turn in the transaction."""

    code = "transaction_busy"
    status = 400
    fault = Fault.CALLER

    def __init__(self) -> None:
        super().__init__("Transaction is still running a query")


class OutcomeUnknown(GatewayError):
    """The connection was lost while the statement may have taken effect."""

    code = "outcome_unknown"
    status = 400
    fault = Fault.DATABASE
    retry = Retry.UNKNOWN
    outcome = Outcome.UNKNOWN
    sqlstate = "08007"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key: str | None = None
        """The caller's idempotency key, by which it can be asked for later."""


class KeyInProgress(GatewayError):
    """A request with the same idempotency key still runs."""

    code = "key_in_progress"
    status = 409
    fault = Fault.CALLER
    retry = Retry.SAFE
    outcome = Outcome.UNKNOWN
    sqlstate = "55P03"

    def __init__(self) -> None:
        super().__init__(
            "a request with the same idempotency key is still running",
            hint="send it again with the same key to get its answer",
            retry_after=1.0,
        )


class KeyReused(GatewayError):
    """The idempotency key was used before, for another request."""

    code = "key_reused"
    status = 422
    fault = Fault.CALLER

    def __init__(self) -> None:
        super().__init__(
            "this idempotency key was used for another request",
            hint="make a new key for each operation, and send it again only with the same body",
        )


class ResultNotKept(GatewayError):
    """The request took effect when it came first; its answer was too large to be kept."""

    code = "result_not_kept"
    status = 409
    fault = Fault.CALLER
    outcome = Outcome.COMMITTED
    sqlstate = "GW409"

    def __init__(self, when: str) -> None:
        super().__init__(
            f"this request took effect at {when}; its answer was too large to be kept",
            hint="read what it has written",
        )


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

    def __init__(
        self,
        message: str = "Authentication service is unavailable",
        *,
        retry_after: float = 1.0,
        reason: str = "",
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason


class SecretUnavailable(GatewayError):
    """The secret of the login cannot be read now; `reason` is for the log."""

    code = "secret_unavailable"
    status = 503
    fault = Fault.GATEWAY
    retry = Retry.SAFE

    def __init__(
        self,
        message: str = "the secret of this login cannot be read",
        *,
        reason: str = "",
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason


class SecretInvalid(GatewayError):
    """The secret of the login holds no user name and password; `reason` is for the log."""

    code = "secret_invalid"
    status = 503
    fault = Fault.GATEWAY
    retry = Retry.SAFE

    def __init__(
        self,
        message: str = "the secret of this login cannot be used",
        *,
        reason: str = "",
        retry_after: float = 5.0,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason


class ClaimsUnsafe(GatewayError):
    """Claims for row-level security cannot be relied on here; `reason` is for the log.

    The login may do too much to be shared, or the database cannot check the seal. Nothing ran.
    """

    code = "claims_unsafe"
    status = 503
    fault = Fault.GATEWAY
    retry = Retry.SAFE

    def __init__(
        self,
        message: str = "sealed claims cannot be used here",
        *,
        hint: str | None = None,
        reason: str = "",
        retry_after: float = 5.0,
    ) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after)
        self.reason = reason


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


class RateLimited(GatewayError):
    """The principal, or a source of failed logins, asks more often than it may."""

    code = "rate_limited"
    status = 429
    fault = Fault.CAPACITY
    retry = Retry.SAFE

    def __init__(
        self, message: str = "Rate exceeded", *, hint: str | None = None, retry_after: float = 1.0
    ) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after)


class QueueTimeout(GatewayError):
    """No connection came free before the deadline."""

    code = "queue_timeout"
    status = 503
    fault = Fault.CAPACITY
    retry = Retry.SAFE

    def __init__(
        self,
        *,
        waited: float,
        retry_after: float = 1.0,
        left: float | None = None,
        expected: float | None = None,
    ) -> None:
        """Say what was waited for in vain.

        Args:
            waited: Seconds in the queue.
            left: Given if it was refused before it waited: seconds up to its deadline.
            expected: What it would have waited at the present pace, if that is known.
        """
        if left is None:
            message = f"no database connection came free within {waited:.1f} s"
        elif expected is None:
            message = "refused at once: its deadline had passed, and no connection was free"
        else:
            message = (
                f"refused at once: a connection is expected to come free in {expected:.1f} s, "
                f"and its deadline is in {left:.1f} s"
            )
        super().__init__(
            message,
            hint="the target is busy; retry later, or raise max_connections",
            retry_after=retry_after,
        )
        self.early = left is not None
        """Whether it never waited."""


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


class LoginRefused(DatabaseUnavailable):
    """PostgreSQL refuses the login of the target, and there is no other credential to try.

    `reason` is for the log; waiting would not help.
    """

    code = "login_refused"

    def __init__(
        self,
        message: str = "the database refused the gateway's login",
        *,
        hint: str | None = "check user, credential and pg_hba.conf for the login of this target",
        sqlstate: str = "28000",
        reason: str = "",
        retry_after: float = 5.0,
    ) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after)
        self.sqlstate = sqlstate
        self.severity = "FATAL"
        self.reason = reason


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
