"""What to send and what an answer means; no socket, no clock, no environment.

A `Request` is bytes and headers ready to go, an answer is a status, headers and
bytes. Python values become JSON without loss and come back by the type of their
column:

    >>> execute(Defaults(), "select :p", {"p": [1, None]}).body
    b'{"sql":"select :p","parameters":{"p":[1,null]}}'
    >>> result({"columns": [{"name": "n", "type": "numeric"}], "rows": [["1.50"]],
    ...         "row_count": 1, "command": "SELECT"}).rows
    [(Decimal('1.50'),)]

What Python cannot hold without loss stays the text that PostgreSQL wrote: the
timestamp `infinity`, a year after 9999, a time of 24:00.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .errors import ConnectionFailed, Error, InterfaceError, NotOneRow, OutcomeUnknown, problem

if TYPE_CHECKING:
    from datetime import timedelta

T = TypeVar("T")

Parameters = Sequence[Any] | Mapping[str, Any] | None
"""A sequence for `$1 …`, a mapping for `:name`."""

ATTEMPTS = 3
"""How often a request is sent at most."""

FIRST_PAUSE = 0.05  # seconds
LONGEST_PAUSE = 2.0  # seconds
# Without a deadline of the caller's: a gateway that asks for more is an outage to report.
LONGEST_RETRY_AFTER = 30.0  # seconds


class Defaults(NamedTuple):
    """What goes into each request unless a call says otherwise."""

    target: str | None = None
    database: str | None = None


class Request(NamedTuple):
    """One call to the gateway, ready to be sent."""

    path: str
    body: bytes
    key: str | None = None
    """Idempotency key."""
    repeatable: bool = False
    """Running it twice does no harm, so it may be sent again when its answer was lost."""
    transaction: bool = False
    """It runs in an open transaction, whose errors are not cured by one statement more."""


class Answer(NamedTuple):
    """What came back: the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Column(NamedTuple):
    """One column of a result."""

    name: str
    type: str
    """PostgreSQL's name of the type: `int8`, `_text` (an array), `mood`."""


class Interval(NamedTuple):
    """PostgreSQL's interval: its three parts are not convertible into each other."""

    months: int = 0
    days: int = 0
    microseconds: int = 0

    def timedelta(self) -> timedelta:
        """The same length as a `timedelta`; ValueError if there are months in it."""
        from datetime import timedelta

        if self.months:
            raise ValueError("months have no fixed length, so timedelta cannot say them")
        return timedelta(days=self.days, microseconds=self.microseconds)

    def __str__(self) -> str:
        sign = "-" if self.microseconds < 0 else ""
        seconds, micros = divmod(abs(self.microseconds), 1_000_000)
        clock = f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micros:06}"
        return f"{self.months} mons {self.days} days {clock}"


class Json:
    """A value to be sent as JSON text, whatever it is: for lists, strings and numbers.

    A dict is sent as JSON without this. A list would be read as an array where the
    parameter is one, and a string as JSON text.
    """

    __slots__ = ("text",)

    def __init__(self, value: object) -> None:
        self.text = json.dumps(value, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        return f"Json({self.text})"


class Result:
    """What one statement gave."""

    __slots__ = ("columns", "command", "notices", "row_count", "rows", "truncated")

    def __init__(
        self,
        columns: tuple[Column, ...],
        rows: list[tuple[Any, ...]],
        row_count: int,
        command: str,
        notices: tuple[str, ...] = (),
        truncated: bool = False,
    ) -> None:
        self.columns = columns
        self.rows = rows
        self.row_count = row_count
        """Rows returned, or rows affected by a statement that returns none."""
        self.command = command
        """`SELECT`, `INSERT`, `CREATE TABLE` …"""
        self.notices = notices
        self.truncated = truncated
        """Whether there were more rows than the request allowed."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Result {self.command} {self.row_count}>"

    def dicts(self) -> list[dict[str, Any]]:
        """The rows by column name; InterfaceError if a name comes twice."""
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InterfaceError(
                f"columns named twice: {', '.join(twice)}", hint="rename them with AS"
            )
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    def into(self, make: Callable[..., T]) -> list[T]:
        """Each row as `make(**columns)`: a dataclass, a NamedTuple, `dict`."""
        return [make(**row) for row in self.dicts()]

    def one(self) -> tuple[Any, ...]:
        """The only row; NotOneRow if there are none or several."""
        if len(self.rows) != 1:
            raise NotOneRow(f"one row was expected, there are {len(self.rows)}")
        return self.rows[0]

    def scalar(self) -> Any:
        """The first column of the first row; `None` if there is no row."""
        return self.rows[0][0] if self.rows and self.rows[0] else None


# Requests ---------------------------------------------------------------------------------


def execute(
    defaults: Defaults,
    sql: str,
    parameters: Parameters = None,
    *,
    transaction: str | None = None,
    timeout: float | None = None,
    read_only: bool = False,
    key: str | None = None,
) -> Request:
    """Run one statement."""
    members: dict[str, Any] = {"sql": sql}
    if parameters is not None:
        members["parameters"] = to_json(parameters)
    if read_only:
        members["read_only"] = True
    return _request("/execute", members, defaults, transaction, timeout, key, read_only)


def batch(
    defaults: Defaults,
    statements: Iterable[str | tuple[str, Parameters]],
    *,
    transaction: str | None = None,
    timeout: float | None = None,
    key: str | None = None,
) -> Request:
    """Run several statements, all or none."""
    listed: list[dict[str, Any]] = []
    for number, statement in enumerate(statements):
        sql, parameters = (statement, None) if isinstance(statement, str) else statement
        member: dict[str, Any] = {"sql": sql}
        if parameters is not None:
            member["parameters"] = to_json(parameters, f"statement {number}, ")
        listed.append(member)
    return _request("/batch", {"statements": listed}, defaults, transaction, timeout, key)


def execute_many(
    defaults: Defaults,
    sql: str,
    parameter_sets: Iterable[Sequence[Any] | Mapping[str, Any]],
    *,
    transaction: str | None = None,
    timeout: float | None = None,
    key: str | None = None,
) -> Request:
    """Run one statement once for each set of parameters, all or none."""
    sets = [to_json(each, f"set {number}, ") for number, each in enumerate(parameter_sets)]
    members = {"sql": sql, "parameter_sets": sets}
    return _request("/batch", members, defaults, transaction, timeout, key)


def begin(
    defaults: Defaults,
    *,
    isolation: str | None = None,
    read_only: bool = False,
    deferrable: bool = False,
    idle_timeout: float | None = None,
) -> Request:
    """Open a transaction."""
    members: dict[str, Any] = {}
    if isolation is not None:
        members["isolation"] = isolation.lower().replace(" ", "_")
    if read_only:
        members["read_only"] = True
    if deferrable:
        members["deferrable"] = True
    if idle_timeout is not None:
        members["idle_timeout"] = idle_timeout
    return _request("/transactions", members, defaults, None, None, None)


def commit(transaction: str) -> Request:
    """Make the transaction permanent."""
    return Request(f"/transactions/{_segment(transaction)}/commit", b"{}", transaction=True)


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


def headers(request: Request, *, host: str, remaining: float | None) -> dict[str, str]:
    """The headers of one attempt, credentials excepted.

    Args:
        host: As the `Host` header says it.
        remaining: Seconds the caller has left, if that is known.
    """
    fields = {"Host": host, "Content-Type": "application/json", "Accept": "application/json"}
    if request.key is not None:
        fields["Idempotency-Key"] = request.key
    if remaining is not None:
        fields["x-gateway-deadline-ms"] = str(max(1, int(remaining * 1000)))
    return fields


def _request(
    path: str,
    members: dict[str, Any],
    defaults: Defaults,
    transaction: str | None,
    timeout: float | None,
    key: str | None,
    repeatable: bool = False,
) -> Request:
    if transaction is not None:
        members["transaction"] = transaction
    else:
        if defaults.target is not None:
            members["target"] = defaults.target
        if defaults.database is not None:
            members["database"] = defaults.database
    if timeout is not None:
        members["timeout"] = timeout
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise ValueError("an idempotency key is 1 to 255 printable ASCII characters")
    body = json.dumps(members, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Request(path, body.encode(), key, repeatable, transaction is not None)


def _segment(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


# Answers ----------------------------------------------------------------------------------


def read(request: Request, answer: Answer) -> Mapping[str, Any]:
    """The JSON object that *answer* holds; raises the error that it describes."""
    try:
        document = json.loads(answer.body)
    except ValueError:
        document = None
    if 200 <= answer.status < 300 and isinstance(document, dict):
        return document
    retry_after = _seconds(answer.headers.get("retry-after"))
    if answer.status >= 300 and isinstance(document, dict) and "code" in document:
        raise problem(answer.status, document, retry_after=retry_after)
    # Not the gateway's words: a proxy spoke, or the answer was damaged on the way.
    if 300 <= answer.status < 500:
        raise InterfaceError(
            f"status {answer.status} with an answer that is none of a gateway's",
            hint="check the URL",
            code="not_a_gateway",
            status=answer.status,
        )
    error = failure(request, f"status {answer.status} without the gateway's answer", sent=True)
    error.status = answer.status
    error.retry_after = retry_after
    raise error


def failure(request: Request, reason: str, *, sent: bool) -> Error:
    """The error for a request that got no answer.

    Args:
        sent: Whether all of it went out; a gateway runs nothing of a request cut short.
    """
    if not sent:
        return ConnectionFailed(f"the gateway could not be reached: {reason}")
    if request.repeatable:
        return ConnectionFailed(f"the gateway's answer was lost: {reason}")
    if request.path == "/transactions":
        return ConnectionFailed(
            f"the answer to the begin was lost: {reason}",
            hint="a transaction may be open; nobody can use it, it ends at its idle limit",
            retry="never",
        )
    return OutcomeUnknown(
        f"the gateway's answer was lost: {reason}",
        hint="roll back the transaction and run all of it again"
        if request.transaction and not request.path.endswith("/commit")
        else "look whether it happened before sending it again",
    )


def pause(
    request: Request, error: Error, *, attempt: int, remaining: float | None, jitter: float
) -> float | None:
    """Seconds to wait before *request* is sent again, or `None` if it must not be.

    Full jitter: a random part of a span that doubles, so that callers refused
    together do not come back together.

    Args:
        attempt: How often it was sent, 1 after the first time.
        remaining: Seconds until the caller's deadline, if there is one.
        jitter: A random number from 0 to 1.
    """
    if attempt >= ATTEMPTS or error.retry != "safe":
        return None
    # In an open transaction only a request that was not let in may be repeated: what
    # PostgreSQL refused there, the whole transaction has to repeat.
    if request.transaction and error.status not in (0, 429):
        return None
    wait = jitter * min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) + (error.retry_after or 0)
    longest = LONGEST_RETRY_AFTER if remaining is None else remaining
    return wait if wait < longest else None


def result(document: Mapping[str, Any]) -> Result:
    """The rows of one answer as Python values."""
    columns = tuple(Column(each["name"], each["type"]) for each in document["columns"])
    rows = document["rows"]
    readers = [(at, _reader(column.type)) for at, column in enumerate(columns)]
    readings = [(at, reader) for at, reader in readers if reader is not None]
    for row in rows if readings else ():
        for at, reader in readings:
            if row[at] is not None:
                row[at] = reader(row[at])
    return Result(
        columns,
        list(map(tuple, rows)),
        document["row_count"],
        document["command"],
        tuple(document.get("notices", ())),
        document.get("truncated", False),
    )


def results(document: Mapping[str, Any]) -> list[Result]:
    """The results of a batch, in the order of its statements."""
    return [result(each) for each in document["results"]]


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None  # the form with a date, which the gateway never sends


# Values to JSON ---------------------------------------------------------------------------


def to_json(parameters: Sequence[Any] | Mapping[str, Any], where: str = "") -> Any:
    """The member `parameters` of a request.

    Raises:
        TypeError: A value has no form that PostgreSQL would read; the message names it.
        ValueError: A value cannot be said exactly in JSON.
    """
    if isinstance(parameters, Mapping):
        return {
            name: _value(value, f"{where}parameter {name!r}") for name, value in parameters.items()
        }
    if isinstance(parameters, (str, bytes)) or not isinstance(parameters, Sequence):
        raise TypeError(f"{where}parameters are a list, a tuple or a dict")
    return [
        _value(value, f"{where}parameter ${number}") for number, value in enumerate(parameters, 1)
    ]


def _value(value: Any, where: str) -> Any:
    # The plain ones first, by their exact class: a subclass may be an Enum.
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return value
    if kind is int:
        # JSON readers lose digits beyond 64 bits; as a string PostgreSQL reads all of them.
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Enum):
        return _value(value.value, where)
    if isinstance(value, Json):
        return value.text
    if isinstance(value, Interval):
        return str(value)
    if isinstance(value, Mapping):
        return _json(value, where)
    if isinstance(value, (list, tuple)):
        return [_value(each, where) for each in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        from binascii import b2a_base64

        return b2a_base64(value, newline=False).decode()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return _value(int(value), where)
    return _library_value(value, where)


def _library_value(value: Any, where: str) -> str:
    from datetime import date, time, timedelta
    from decimal import Decimal
    from uuid import UUID

    if isinstance(value, Decimal):
        if value.is_snan():
            raise ValueError(f"{where}: PostgreSQL has no signalling NaN")
        return str(value).replace("-NaN", "NaN")
    if isinstance(value, (date, time)):  # datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        micros = value.seconds * 1_000_000 + value.microseconds
        return str(Interval(0, value.days, micros))
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{where}: a {type(value).__name__} has no form for PostgreSQL")


def _float(value: float) -> float | str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value)


def _json(value: Any, where: str) -> Any:
    """*value* if it is JSON; inside a document nothing is turned into something else."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{where}: an integer beyond 64 bits in JSON; wrap it in Json(…)")
        return value
    if isinstance(value, float):
        if isinstance(_float(value), str):
            raise ValueError(f"{where}: JSON cannot say {value}")
        return value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where}: a name in JSON is a str, not {type(name).__name__}")
        return {name: _json(each, where) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each, where) for each in value]
    raise TypeError(
        f"{where}: a {type(value).__name__} inside JSON; turn it into a str or a number first"
    )


# JSON to values ---------------------------------------------------------------------------


def _reader(kind: str) -> Callable[[Any], Any] | None:
    """What turns the JSON of a column of type *kind* into its value; `None`: it is already."""
    if kind.startswith("_"):
        reader = _reader(kind[1:])
        return _array(reader) if reader is not None else None
    make = _READERS.get(kind)
    return make() if make is not None else None


def _array(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read_array(value: Any) -> Any:
        if isinstance(value, list):
            return [read_array(each) for each in value]
        return reader(value) if value is not None else None

    return read_array


def _or_text(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def read_or_keep(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            return text

    return read_or_keep


def _numeric() -> Callable[[Any], Any]:
    from decimal import Decimal

    return Decimal


def _uuid() -> Callable[[Any], Any]:
    from uuid import UUID

    return UUID


def _bytea() -> Callable[[Any], Any]:
    from binascii import a2b_base64

    return a2b_base64


def _date() -> Callable[[Any], Any]:
    from datetime import date

    return _or_text(date.fromisoformat)


def _timestamp() -> Callable[[Any], Any]:
    from datetime import datetime

    return _or_text(lambda text: datetime.fromisoformat(_full(text)))


def _time() -> Callable[[Any], Any]:
    from datetime import time

    def parse(text: str) -> Any:
        # Python 3.14 reads 24:00 as 00:00, which is another time.
        return text if text.startswith("24") else time.fromisoformat(_full(text))

    return _or_text(parse)


_SHORT = re.compile(r"\.(\d{1,5})(?!\d)|([+-]\d\d)$")


def _full(text: str) -> str:
    """*text* with 6 digits after the point and minutes in the offset, as Python 3.10 wants it."""
    if "." not in text and len(text) in (8, 19, 25):
        return text
    return _SHORT.sub(lambda m: f".{m[1]:0<6}" if m[1] else f"{m[2]}:00", text)


# PostgreSQL manual, 8.5.5 "Interval Output", style `postgres`.
_INTERVAL = re.compile(
    r"(?:([+-]?\d+) years? ?)?(?:([+-]?\d+) mons? ?)?(?:([+-]?\d+) days? ?)?"
    r"(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
)


def _interval(text: str) -> Interval | str:
    match = _INTERVAL.fullmatch(text)
    if not match or not text:
        return text
    years, months, days, sign, hours, minutes, seconds, fraction = match.groups(default="")
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    micros = whole * 1_000_000 + int(f"{fraction:0<6}")
    return Interval(
        int(years or 0) * 12 + int(months or 0), int(days or 0), -micros if sign == "-" else micros
    )


# Made on first use: a function that reads no numeric does not import decimal.
_READERS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "numeric": _numeric,
    "float4": lambda: float,
    "float8": lambda: float,
    "bytea": _bytea,
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamp,
    "time": _time,
    "timetz": _time,
    "interval": lambda: _interval,
    "uuid": _uuid,
}
