"""What to send and what an answer means; no socket, no clock, no environment.

A `Request` is bytes and headers ready to go, an answer is a status, headers and
bytes:

    >>> execute(Scope(), "select :p", {"p": [1, None]}).body
    b'{"sql":"select :p","parameters":{"p":[1,null]}}'

Whether a request may be sent a second time is decided here too: see `failure` and
`pause`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ._result import parse
from ._values import to_json
from .errors import ConnectionFailed, Error, InterfaceError, OutcomeUnknown, problem

Parameters = Sequence[Any] | Mapping[str, Any] | None
"""A sequence for `$1 …`, a mapping for `:name`."""

Seconds = float | None
"""How long; `None` sets no limit."""

ATTEMPTS = 3
"""How often a request is sent at most."""

FIRST_PAUSE = 0.05  # seconds
LONGEST_PAUSE = 2.0  # seconds
# Without a deadline of the caller's: a gateway that asks for more is an outage to report.
LONGEST_RETRY_AFTER = 30.0  # seconds

FRAMES = "application/x-ndjson; frames=1"

# What always runs in a transaction of the gateway's, beside its key: a CALL or a VACUUM may
# have to run outside of one, and then no ledger knows of it.
_ORDINARY = "select insert update delete merge with values table"
_BLANKS = r"(?:\s|--[^\n]*(?:\n|$)|/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/)*"


class Scope(NamedTuple):
    """Where a request belongs and how long it may take."""

    target: str | None = None
    database: str | None = None
    timeout: Seconds = None
    """Seconds."""
    transaction: str | None = None
    """It has a target already."""
    key: str | None = None
    """Idempotency key."""
    chosen: bool = False
    """The key is the caller's own."""


class Request(NamedTuple):
    """One call to the gateway, ready to be sent."""

    path: str
    body: bytes | Iterable[bytes]
    """Chunks are sent as they come, once."""
    key: str | None = None
    """Idempotency key."""
    chosen: bool = False
    """The key is the caller's own, who so can send it again; else nobody knows it."""
    repeatable: bool = False
    """Running it twice does no harm, so it may be sent again when its answer was lost."""
    transaction: bool = False
    """It runs in an open transaction, whose errors are not cured by one statement more."""
    replayable: bool = False
    """If the gateway keeps a ledger, its key makes it happen once, however often it is sent."""
    method: str = "POST"
    accept: str = "application/json"
    content_type: str = "application/json"


class Answer(NamedTuple):
    """What came back: the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: Any
    """Bytes, or of a stream what they are read from."""


# Requests ---------------------------------------------------------------------------------


def execute(
    scope: Scope,
    sql: str,
    parameters: Parameters = None,
    *,
    read_only: bool = False,
    max_rows: int | None = None,
    frames: bool = False,
) -> Request:
    """Run one statement; *frames* asks for lines instead of one document."""
    members = {**_statement(sql, parameters), "max_rows": max_rows}
    request = _request("/execute", members, scope, read_only)
    if frames:
        return request._replace(accept=FRAMES)
    return request._replace(replayable=scope.key is not None and _ordinary(sql))


def batch(
    scope: Scope,
    statements: Iterable[str | tuple[str, Parameters]],
    *,
    isolation: str | None = None,
    read_only: bool = False,
) -> Request:
    """Run several statements, all or none."""
    listed = []
    for number, each in enumerate(statements):
        sql, parameters = (each, None) if isinstance(each, str) else each
        listed.append(_statement(sql, parameters, f"statement {number}, "))
    members = {"statements": listed, "isolation": _isolation(isolation)}
    request = _request("/batch", members, scope, read_only)
    return request._replace(replayable=scope.key is not None)


def execute_many(
    scope: Scope, sql: str, parameter_sets: Iterable[Sequence[Any] | Mapping[str, Any]]
) -> Request:
    """Run one statement once for each set of parameters, all or none."""
    sets = [to_json(each, f"set {number}, ") for number, each in enumerate(parameter_sets)]
    request = _request("/batch", {"sql": sql, "parameter_sets": sets}, scope)
    return request._replace(replayable=scope.key is not None)


def copy_in(
    scope: Scope, table: str, body: bytes | Iterable[bytes], *, columns: Sequence[str] = ()
) -> Request:
    """Fill *table* from CSV without a header line."""
    path = f"/copy/{_segment(table)}{_query(scope, columns=','.join(columns) or None)}"
    return Request(path, body, scope.key, content_type="text/csv; header=absent")


def outcome(scope: Scope, request: Request) -> Request:
    """Ask what became of *request*, whose answer was lost."""
    path = f"/outcomes/{_segment(request.key or '')}{_query(scope)}"
    return Request(path, b"", request.key, repeatable=True, method="GET")


def exchange(identity: Mapping[str, Any]) -> Request:
    """Have a signature of AWS exchanged for a token; each is good for one exchange."""
    return Request("/auth/iam", _document(identity), key=None)


def begin(
    scope: Scope,
    *,
    isolation: str | None = None,
    read_only: bool = False,
    deferrable: bool = False,
    idle_timeout: Seconds = None,
) -> Request:
    """Open a transaction."""
    members = {
        "isolation": _isolation(isolation),
        "deferrable": deferrable or None,
        "idle_timeout": idle_timeout,
    }
    return _request("/transactions", members, scope, read_only)._replace(repeatable=False)


def commit(transaction: str, key: str | None = None) -> Request:
    """Make the transaction permanent; with a key it can be asked about afterwards."""
    path = f"/transactions/{_segment(transaction)}/commit"
    return Request(path, b"{}", key, transaction=True, replayable=key is not None)


def rollback(transaction: str) -> Request:
    """Undo the transaction; to do that twice is harmless."""
    path = f"/transactions/{_segment(transaction)}/rollback"
    return Request(path, b"{}", repeatable=True, transaction=True)


def new_key(random_bytes: bytes) -> str:
    """An idempotency key from 16 random bytes: a version 4 UUID without dashes."""
    number = int.from_bytes(random_bytes, "big")
    number = number & ~(0xF << 76) | 4 << 76
    number = number & ~(0x3 << 62) | 2 << 62
    return f"{number:032x}"


def headers(request: Request, *, host: str, remaining: Seconds) -> dict[str, str]:
    """The headers of one attempt, credentials excepted.

    Args:
        host: As the `Host` header says it.
        remaining: Seconds the caller has left, if that is known.
    """
    fields = {"Host": host, "Content-Type": request.content_type, "Accept": request.accept}
    if request.key is not None:
        fields["Idempotency-Key"] = request.key
    if remaining is not None:
        fields["x-gateway-deadline-ms"] = str(max(1, int(remaining * 1000)))
    return fields


def _statement(sql: str, parameters: Parameters, where: str = "") -> dict[str, Any]:
    member: dict[str, Any] = {"sql": sql}
    if parameters is not None:
        member["parameters"] = to_json(parameters, where)
    return member


def _request(
    path: str, members: Mapping[str, Any], scope: Scope, read_only: bool = False
) -> Request:
    key = scope.key
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise ValueError("an idempotency key is 1 to 255 printable ASCII characters")
    inside = scope.transaction is not None
    place = (
        {"transaction": scope.transaction}
        if inside
        else {"target": scope.target, "database": scope.database}
    )
    given = {**members, "read_only": read_only or None, **place, "timeout": scope.timeout}
    body = _document({name: value for name, value in given.items() if value is not None})
    return Request(path, body, key, scope.chosen, repeatable=read_only, transaction=inside)


def _ordinary(sql: str) -> bool:
    words = _ORDINARY.split()
    # Most begin with such a word and a blank; what does not is worth a pattern.
    if sql.partition(" ")[0].lower() in words:
        return True
    return re.match(rf"{_BLANKS}(?:{'|'.join(words)})\b", sql, re.IGNORECASE) is not None


def _query(scope: Scope, **more: str | None) -> str:
    from urllib.parse import quote, urlencode

    asked = {**more, "target": scope.target, "database": scope.database}
    given = {name: text for name, text in asked.items() if text is not None}
    return "?" + urlencode(given, quote_via=quote, safe="") if given else ""


def _document(members: Mapping[str, Any]) -> bytes:
    return json.dumps(members, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _isolation(text: str | None) -> str | None:
    return text and text.lower().replace(" ", "_")


def _segment(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def in_doubt(error: Error) -> bool:
    """Whether *error*, of a later attempt, leaves open what became of the one before it.

    An attempt that was not let in, or that waited in vain for its twin, speaks of itself
    alone. What PostgreSQL refused was looked up before.
    """
    if error.outcome != "not_executed":
        return False
    return error.sqlstate is None or error.code == "statement_timeout"


# Answers ----------------------------------------------------------------------------------


def read(
    request: Request, answer: Answer, *, ledger: bool = False, exact: bool = False
) -> Mapping[str, Any]:
    """The JSON object that *answer* holds; raises the error that it describes.

    Args:
        ledger: Whether the gateway is known to keep its keys in the database.
        exact: Whether numbers with a point are read as Decimal.
    """
    try:
        document = parse(answer.body, exact=exact)
    except ValueError:
        document = None
    if 200 <= answer.status < 300 and isinstance(document, dict):
        return document
    retry_after = _seconds(answer.headers.get("retry-after"))
    if answer.status >= 300 and isinstance(document, dict) and "code" in document:
        raise problem(answer.status, document, retry_after=retry_after)
    if "x-amzn-errortype" in answer.headers and isinstance(document, dict):
        # The Data API's form, for `rds`.
        told = {
            **document,
            "code": answer.headers["x-amzn-errortype"],
            "detail": document.get("message"),
            "sqlstate": document.get("sqlState"),
        }
        raise problem(answer.status, told, retry_after=retry_after)
    # Not the gateway's words: a proxy spoke, or the answer was damaged on the way.
    if 300 <= answer.status < 500:
        raise InterfaceError(
            f"status {answer.status} with an answer that is none of a gateway's",
            hint="check the URL",
            code="not_a_gateway",
            status=answer.status,
        )
    reason = f"status {answer.status} without the gateway's answer"
    error = failure(request, reason, sent=True, ledger=ledger)
    error.status = answer.status
    error.retry_after = retry_after
    raise error


def failure(request: Request, reason: str, *, sent: bool, ledger: bool = False) -> Error:
    """The error for a request that got no answer.

    Args:
        sent: Whether all of it went out; a gateway runs nothing of a request cut short.
        ledger: Whether the gateway is known to keep its keys in the database.
    """
    if not sent:
        return ConnectionFailed(f"the gateway could not be reached: {reason}")
    lost = f"the gateway's answer was lost: {reason}"
    if request.repeatable:
        return ConnectionFailed(lost)
    if request.path == "/auth/iam":
        return ConnectionFailed(lost, retry="never")
    if request.path == "/transactions":
        return ConnectionFailed(
            f"the answer to the begin was lost: {reason}",
            hint="a transaction may be open; nobody can use it, it ends at its idle limit",
            retry="never",
        )
    if request.replayable and ledger:
        return OutcomeUnknown(
            lost,
            hint="sent again with the same key it happens once, and its answer comes again",
            retry="safe",
            key=request.key,
        )
    return OutcomeUnknown(
        lost,
        hint="roll back the transaction and run all of it again"
        if request.transaction and not request.path.endswith("/commit")
        else "look whether it happened before sending it again",
        key=request.key,
    )


def last_word(request: Request, error: Error) -> None:
    """*error* ends the call: what was harmless with the key of *request* is so for whoever has it.

    A caller who did not choose the key would call again under another one, and might do
    twice what was done.
    """
    if error.outcome == "unknown" and error.retry == "safe" and not request.chosen:
        error.retry = "unknown"
        error.hint = "to send it again is harmless only with key=error.key"


def pause(
    request: Request, error: Error, *, attempt: int, remaining: Seconds, jitter: float
) -> float | None:
    """Seconds to wait before *request* is sent again, or `None` if it must not be.

    Full jitter: a random part of a span that doubles, so that callers refused
    together do not come back together.

    Args:
        attempt: How often it was sent, 1 after the first time.
        remaining: Seconds until the caller's deadline, if there is one.
        jitter: A random number from 0 to 1.
    """
    if attempt >= ATTEMPTS or error.retry != "safe" or not isinstance(request.body, bytes):
        return None
    # In an open transaction only a request that was not let in may be repeated: what
    # PostgreSQL refused there, the whole transaction has to repeat.
    if request.transaction and error.status not in (0, 429):
        return None
    wait = jitter * min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) + (error.retry_after or 0)
    longest = LONGEST_RETRY_AFTER if remaining is None else remaining
    return wait if wait < longest else None


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None  # the form with a date, which the gateway never sends
