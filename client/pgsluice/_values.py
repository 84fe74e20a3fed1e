"""Python values to JSON and back, without loss, by the type of their column.

    >>> to_json([1, None, Interval(months=1), Range(1, 5)])
    [1, None, '1 mons 0 days 00:00:00.000000', '[1,5)']
    >>> reader("int4range")("[1,5)")
    Range(1, 5, '[)')

What Python cannot hold without loss stays the text that PostgreSQL wrote: the
timestamp `infinity`, a year after 9999, a time of 24:00.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datetime import timedelta

Types = Mapping[str, Callable[[Any], Any]]
"""By PostgreSQL's name of a type: what makes the value, for example an `enum.Enum`."""


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


class Range:
    """PostgreSQL's range: from *lower* to *upper*, `None` where there is no bound."""

    __slots__ = ("bounds", "empty", "lower", "upper")

    def __init__(
        self, lower: Any = None, upper: Any = None, bounds: str = "[)", *, empty: bool = False
    ) -> None:
        if bounds not in ("[)", "(]", "()", "[]"):
            raise ValueError("bounds are '[)', '(]', '()' or '[]'")
        self.lower = None if empty else lower
        self.upper = None if empty else upper
        # As PostgreSQL says it: what has no bound does not include one.
        self.bounds = (
            "()"
            if empty
            else ("(" if lower is None else bounds[0]) + (")" if upper is None else bounds[1])
        )
        self.empty = empty

    def _key(self) -> tuple[Any, ...]:
        return self.lower, self.upper, self.bounds, self.empty

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Range) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        if self.empty:
            return "Range(empty=True)"
        return f"Range({self.lower!r}, {self.upper!r}, {self.bounds!r})"

    def __contains__(self, value: Any) -> bool:
        if self.empty:
            return False
        low, high = self.lower, self.upper
        return (low is None or (value >= low if self.bounds[0] == "[" else value > low)) and (
            high is None or (value <= high if self.bounds[1] == "]" else value < high)
        )

    def __str__(self) -> str:
        if self.empty:
            return "empty"
        return f"{self.bounds[0]}{_bound(self.lower)},{_bound(self.upper)}{self.bounds[1]}"


class Multirange(tuple[Range, ...]):
    """PostgreSQL's multirange: ranges in their order. A plain list of ranges is an array."""

    __slots__ = ()

    def __str__(self) -> str:
        return "{" + ",".join(map(str, self)) + "}"


def _bound(value: Any) -> str:
    if value is None:
        return ""
    text = str(_value(value, "bound of a range"))
    if text and not set(text) & set('",()[]{}\\ \t\n\r\v\f'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


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
    if isinstance(value, (Interval, Range, Multirange)):
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
    if isinstance(value, UUID) or type(value).__module__ == "ipaddress":
        return str(value)
    raise TypeError(f"{where}: a {type(value).__name__} has no form for PostgreSQL")


def _float(value: float) -> float | str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value)


def copy_text(value: Any) -> str | None:
    """*value* as a field of COPY: the text that PostgreSQL reads for its type."""
    if value is None:
        return None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "\\x" + bytes(value).hex()
    if isinstance(value, Mapping):
        return Json(_json(value, "field")).text
    if isinstance(value, (list, tuple)) and not isinstance(value, (Interval, Multirange)):
        return "{" + ",".join(map(_element, value)) + "}"
    made = _value(value, "field")
    if isinstance(made, bool):
        return "t" if made else "f"
    return str(made)


def _element(value: Any) -> str:
    text = copy_text(value)
    if text is None:
        return "NULL"
    if isinstance(value, (list, tuple)) and not isinstance(value, (Interval, Multirange)):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


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


def reader(kind: str, types: Types | None = None) -> Callable[[Any], Any] | None:
    """What turns the JSON of a column of type *kind* into its value; `None`: it is already."""
    if types and kind in types:
        return types[kind]
    if kind.startswith("_"):
        each = reader(kind[1:], types)
        return _array(each) if each is not None else None
    make = _READERS.get(kind)
    return make() if make is not None else None


def _array(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read_array(value: Any) -> Any:
        if isinstance(value, list):
            return [read_array(each) for each in value]
        return read(value) if value is not None else None

    return read_array


def _or_text(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def read_or_keep(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            return text

    return read_or_keep


def _named(module: str, name: str) -> Callable[[], Callable[[Any], Any]]:
    def made() -> Callable[[Any], Any]:
        from importlib import import_module

        make: Callable[[Any], Any] = getattr(import_module(module), name)
        return make

    return made


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


# Patterns are compiled, and kept by `re`, when a value needs them.
_SHORT = r"\.(\d{1,5})(?!\d)|([+-]\d\d)$"


def _full(text: str) -> str:
    """*text* with 6 digits after the point and minutes in the offset, as Python 3.10 wants it."""
    if "." not in text and len(text) in (8, 19, 25):
        return text
    return re.sub(_SHORT, lambda m: f".{m[1]:0<6}" if m[1] else f"{m[2]}:00", text)


# PostgreSQL manual, 8.5.5 "Interval Output", style `postgres`.
_INTERVAL = (
    r"(?:([+-]?\d+) years? ?)?(?:([+-]?\d+) mons? ?)?(?:([+-]?\d+) days? ?)?"
    r"(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
)


def _interval(text: str) -> Interval | str:
    match = re.fullmatch(_INTERVAL, text)
    if not match or not text:
        return text
    years, months, days, sign, hours, minutes, seconds, fraction = match.groups(default="")
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    micros = whole * 1_000_000 + int(f"{fraction:0<6}")
    return Interval(
        int(years or 0) * 12 + int(months or 0), int(days or 0), -micros if sign == "-" else micros
    )


_BOUND = r'("(?:[^"\\]|\\.|"")*"|[^",()\[\]{}]*)'
_RANGE = rf"([\[(]){_BOUND},{_BOUND}([\])])"
_ESCAPED = r'(?s)\\(.)|"(")'


def _range(make: Callable[[], Callable[[Any], Any]]) -> Callable[[], Callable[[Any], Any]]:
    def made() -> Callable[[Any], Any]:
        read = make()

        def bound(text: str) -> Any:
            if text.startswith('"'):
                text = re.sub(_ESCAPED, lambda m: m[1] or m[2], text[1:-1])
            elif not text:
                return None
            return read(text)

        def read_range(text: str) -> Any:
            if text == "empty":
                return Range(empty=True)
            match = re.fullmatch(_RANGE, text)
            if match is None:
                return text
            return Range(bound(match[2]), bound(match[3]), match[1] + match[4])

        return read_range

    return made


def _multirange(kind: str) -> Callable[[], Callable[[Any], Any]]:
    def made() -> Callable[[Any], Any]:
        read = _READERS[kind]()
        return lambda text: Multirange(read(match[0]) for match in re.finditer(_RANGE, text))

    return made


# Made on first use: a function that reads no numeric does not import decimal.
_READERS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "numeric": _named("decimal", "Decimal"),
    "float4": lambda: float,
    "float8": lambda: float,
    "bytea": _named("binascii", "a2b_base64"),
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamp,
    "time": _time,
    "timetz": _time,
    "interval": lambda: _interval,
    "uuid": _named("uuid", "UUID"),
}
for _name, _of in (
    ("int4", lambda: int),
    ("int8", lambda: int),
    ("num", _READERS["numeric"]),
    ("date", _date),
    ("ts", _timestamp),
    ("tstz", _timestamp),
):
    _READERS[f"{_name}range"] = _range(_of)
    _READERS[f"{_name}multirange"] = _multirange(f"{_name}range")
