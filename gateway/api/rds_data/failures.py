"""Errors of the house as exceptions of the Data API.

    >>> status, headers, body = write_error(TransactionGone("It has expired."), "ExecuteStatement")
    >>> status, dict(headers)[b"x-amzn-errortype"]
    (404, b'TransactionNotFoundException')

Names, statuses and the form of SQL messages are those that AWS SDKs and drivers branch on.
"""

from __future__ import annotations

from math import ceil
from typing import Any
from urllib.parse import quote

import msgspec

from ...core.errors import (
    AuthUnavailable,
    AwsCannot,
    ClaimsUnsafe,
    DatabaseError,
    DatabaseUnavailable,
    Draining,
    EmptyStatement,
    Forbidden,
    GatewayError,
    Internal,
    InvalidParameter,
    InvalidRequest,
    KeyInProgress,
    KeyReused,
    LoginRefused,
    MethodNotAllowed,
    NotFound,
    Outcome,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    RateLimited,
    ResultNotKept,
    ResultTooLarge,
    Retry,
    SecretInvalid,
    SecretUnavailable,
    SeveralStatements,
    SlowRequest,
    StatementCancelled,
    StatementNotAllowed,
    StatementTimeout,
    TransactionBusy,
    TransactionGone,
    Unauthenticated,
)

_encode = msgspec.json.Encoder().encode

# Which exception of the model an error is, and with which status. SDKs send a request again
# on any 5xx and on throttling: those are kept for what surely had no effect. SQL errors are
# never BadRequestException, which one library repeats thirty times.
_NAMES: dict[type[GatewayError], tuple[str, int]] = {
    DatabaseError: ("DatabaseErrorException", 400),
    StatementCancelled: ("DatabaseErrorException", 400),
    TransactionBusy: ("DatabaseErrorException", 400),
    OutcomeUnknown: ("DatabaseErrorException", 400),
    # Sent again by nobody: the same call has another key when its library repeats it.
    KeyInProgress: ("DatabaseErrorException", 409),
    KeyReused: ("BadRequestException", 400),
    ResultNotKept: ("UnsupportedResultException", 400),
    StatementTimeout: ("StatementTimeoutException", 400),
    ResultTooLarge: ("UnsupportedResultException", 400),
    TransactionGone: ("TransactionNotFoundException", 404),
    InvalidParameter: ("ValidationException", 400),
    InvalidRequest: ("BadRequestException", 400),
    Forbidden: ("AccessDeniedException", 403),
    StatementNotAllowed: ("AccessDeniedException", 403),
    QueueFull: ("ThrottlingException", 429),
    RateLimited: ("ThrottlingException", 429),
    QueueTimeout: ("ServiceUnavailableError", 503),
    Draining: ("ServiceUnavailableError", 503),
    AuthUnavailable: ("ServiceUnavailableError", 503),
    SecretUnavailable: ("SecretsErrorException", 400),
    SecretInvalid: ("InvalidSecretException", 400),
    ClaimsUnsafe: ("ServiceUnavailableError", 503),
    LoginRefused: ("DatabaseErrorException", 400),
    DatabaseUnavailable: ("DatabaseUnavailableException", 504),
    NotFound: ("UnknownOperationException", 404),
    MethodNotAllowed: ("UnknownOperationException", 405),
    SlowRequest: ("RequestTimeoutException", 408),
    Internal: ("InternalServerErrorException", 500),
}


def _exception(kind: type[GatewayError]) -> tuple[str, int]:
    for each in kind.__mro__:
        if each in _NAMES:
            return _NAMES[each]
    if kind.status >= 500:
        return "InternalServerErrorException", kind.status
    # Refused for what it is: too large, of a media type that is not ours, not one statement.
    return "ValidationException", kind.status


def _one_line(text: str) -> str:
    """*text* without line breaks: drivers match it with patterns that end at one."""
    return " ".join(text.splitlines()) if "\n" in text or "\r" in text else text


def _sql_message(error: GatewayError, sqlstate: str) -> str:
    """`ERROR: …; Hint: …; Position: 15; SQLState: 42P01`, the form that drivers take apart.

    The detail stays out, as with AWS: it quotes rows.
    """
    parts = [f"{getattr(error, 'severity', 'ERROR')}: {error.message}"]
    if error.hint:
        parts.append(f"Hint: {error.hint}")
    position = getattr(error, "position", None)
    if position is not None:
        parts.append(f"Position: {position}")
    parts.append(f"SQLState: {sqlstate}")
    return "; ".join(_one_line(part) for part in parts)


def _message(error: GatewayError, operation: str) -> str:
    if isinstance(
        error, (DatabaseError, KeyInProgress, LoginRefused, StatementCancelled, OutcomeUnknown)
    ):
        return _sql_message(error, error.sqlstate)
    if isinstance(error, SeveralStatements):
        return "Multistatements aren't supported."
    if isinstance(error, EmptyStatement):
        return "SQL is empty"
    if isinstance(error, Forbidden):
        return f"User is not authorized to perform: rds-data:{operation} on the resource"
    message = error.message
    if isinstance(error, TransactionGone) and "is not found" not in message:
        message = f"Transaction is not found. {message}"
    if error.hint and not isinstance(error, (InvalidRequest, Unauthenticated)):
        message = f"{message}; Hint: {error.hint}"
    return _one_line(message)


_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def _header(text: str) -> bytes:
    """*text* as the value of a header: what is not printable ASCII is percent-encoded."""
    return quote(text, safe=_PLAIN).encode("ascii")


def write_error(
    error: GatewayError, operation: str
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """*error* as status, headers and body.

    Besides the modelled members there are `sqlState`, `constraint`, `table`, `column`,
    `hint`, `statement` (index of the failing set of a batch), `outcome` and `retry`. In
    JavaScript they are properties of the exception; boto3 drops them and keeps the
    headers, which therefore say the same again: `x-gateway-sqlstate`, `-constraint` ….

    Args:
        operation: Name in the model, such as `ExecuteStatement`.
    """
    if isinstance(error, Unauthenticated):
        name, status = error.aws_name, error.aws_status
    elif isinstance(error, AwsCannot):
        name, status = error.aws_name, error.status
    elif type(error) is InvalidRequest and error.field is not None:
        # About one member. BadRequestException would make one library try it thirty times.
        name, status = "ValidationException", error.status
    else:
        name, status = _exception(type(error))
    if status >= 429 and (error.retry is not Retry.SAFE or error.outcome is not _NOT_EXECUTED):
        # An SDK would send it again, although it may have happened.
        status = 400
    body: dict[str, Any] = {
        "message": _message(error, operation),
        "outcome": error.outcome.value,
        "retry": error.retry.value,
    }
    headers = [
        (b"content-type", b"application/json"),
        (b"x-amzn-errortype", _header(name)),
        (b"x-gateway-outcome", _header(error.outcome.value)),
        (b"x-gateway-retry", _header(error.retry.value)),
    ]
    if isinstance(error, OutcomeUnknown) and error.key is not None:
        body["resolveUrl"] = where = "/outcomes/" + quote(error.key, safe="")
        headers.append((b"x-gateway-outcome-url", where.encode("ascii")))
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate:
        body["sqlState"] = sqlstate
        headers.append((b"x-gateway-sqlstate", _header(sqlstate)))
    for member in ("constraint", "table", "column", "hint", "statement"):
        value = getattr(error, member, None)
        if value is not None:
            body[member] = value
            if member != "hint":
                headers.append((b"x-gateway-" + member.encode(), _header(str(value))))
    if isinstance(error, InvalidRequest) and error.field:
        body["field"] = error.field
    if isinstance(error, StatementTimeout) and error.backend is not None:
        body["dbConnectionId"] = error.backend
    if error.retry_after is not None:
        headers.append((b"retry-after", _header(str(max(1, ceil(error.retry_after))))))
    return status, headers, _encode(body)


_NOT_EXECUTED = Outcome.NOT_EXECUTED
