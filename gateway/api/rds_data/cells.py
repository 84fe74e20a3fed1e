"""Rows to the Data API's `Field` unions: one compiled encoder for each row shape.

Every cell becomes an object with exactly one member (`longValue`, `stringValue`, …,
`isNull`); both AWS SDKs refuse or misread anything else.

    >>> encode = row_encoder((Kind.INT, Kind.TEXT))
    >>> encode([(1, "a"), (None, "b")])
    b'[{"longValue":1},{"stringValue":"a"}],[{"isNull":true},{"stringValue":"b"}]'

The wire shapes follow the botocore service model `rds-data/2018-08-01`; what AWS
cannot return (intervals, ranges, arrays in arrays, …) is given as PostgreSQL's text.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from enum import Enum
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from ...core.formats import copied
from ...core.model import ArrayKind, Column, Kind

Rows = Sequence[Sequence[Any]]
Encode = Callable[[Rows], bytes]
"""Rows in; the rows as JSON, comma-joined, without brackets around them; `b""` for none."""


class Special(Enum):
    """Types whose text needs a turn of its own before it is a `Field`."""

    BIT = "bit"
    """bit(1): text `0` or `1`, a boolean for the Data API."""
    TIMETZ = "timetz"
    """The Data API knows no time zones: the time in UTC, zone dropped."""
    VECTOR = "vector"
    """int2vector or oidvector in an array: PostgreSQL's text, for one of them may be NULL, and
    among `arrayValues` there is no NULL."""


class SpecialArray(NamedTuple):
    """An array of a `Special` element."""

    element: Special


CellKind = Kind | ArrayKind | Special | SpecialArray | None
"""What a cell holds; `None` decides by the Python type of each value."""


class Choices(NamedTuple):
    """`resultSetOptions`: how exact numbers are given."""

    decimal_return: str = "STRING"
    """`STRING` or `DOUBLE_OR_LONG`."""
    long_return: str = "LONG"
    """`LONG` or `STRING`."""


DEFAULT_CHOICES = Choices()

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


# Structs, not dicts: 0.11 s against 0.20 s for 200,000 rows of six cells. `gc=False`: a
# cell is never part of a cycle, and a million of them must not wake the collector.
class _Null(msgspec.Struct, gc=False, frozen=True):
    isNull: bool = True


class _Boolean(msgspec.Struct, gc=False):
    booleanValue: bool


class _Long(msgspec.Struct, gc=False):
    longValue: int


class _Double(msgspec.Struct, gc=False):
    doubleValue: float | str


class _String(msgspec.Struct, gc=False):
    stringValue: str


class _Blob(msgspec.Struct, gc=False):
    blobValue: bytes


class _Array(msgspec.Struct, gc=False):
    arrayValue: dict[str, Any]


_NULL = _Null()
_TRUE = _Boolean(True)
_FALSE = _Boolean(False)

_encode = msgspec.json.Encoder().encode


def compact_json(text: str) -> str:
    r"""JSON *text* without the blanks between its tokens; numbers and strings untouched.

    >>> compact_json('{"a": [1, 1.50],  "b c": "x , y"}')
    '{"a":[1,1.50],"b c":"x , y"}'
    """
    try:
        return msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, RecursionError):
        # Deeper than the formatter goes: PostgreSQL's own spelling is just as valid.
        return text


_MOMENT = re.compile(
    r"(\d{4,6})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(\.\d+)?"
    r"([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?( BC)?",
    re.ASCII,
)


def utc_text(text: str) -> str:
    """A timestamptz as PostgreSQL prints it, in UTC and without the zone.

    The zone is another one where the caller has set it, inside a transaction.

    >>> utc_text("2024-01-15 03:34:56+00"), utc_text("2024-01-15 03:34:56.5+05:30")
    ('2024-01-15 03:34:56', '2024-01-14 22:04:56.5')
    >>> utc_text("0044-03-15 00:00:00+00 BC"), utc_text("0001-01-01 00:00:00+01")
    ('0044-03-15 00:00:00 BC', '0001-12-31 23:00:00 BC')
    """
    if text.endswith("+00"):
        return text[:-3]
    match = _MOMENT.fullmatch(text)
    if match is None:
        return text  # infinite, or in another style
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    fraction, sign, *parts, era = match.groups()[6:]
    offset = timedelta(**dict(zip(("hours", "minutes", "seconds"), map(_int, parts), strict=True)))
    # Python's calendar ends at 9999 and knows no years before 1; every 400 years are alike.
    year = 1 - year if era else year
    shift = year - (2000 + year % 400)
    there = datetime(year - shift, month, day, hour, minute, second)
    moment = there + offset if sign == "-" else there - offset
    year, era = moment.year + shift, ""
    if year < 1:
        year, era = 1 - year, " BC"
    return f"{year:04}-{moment:%m-%d %H:%M:%S}{fraction or ''}{era}"


def _int(digits: str | None) -> int:
    return int(digits) if digits else 0


def time_in_utc(text: str) -> str:
    """A timetz such as `15:30:00.5-08` as a time in UTC.

    >>> time_in_utc("15:30:00.5-08"), time_in_utc("01:00:00+05:30")
    ('23:30:00.5', '19:30:00')
    """
    at = max(text.rfind("+"), text.rfind("-"))
    if at < 0:
        return text
    clock, zone = text[:at], text[at:]
    sign = -1 if zone[0] == "-" else 1
    offset = [int(part) for part in zone[1:].split(":")]
    hour, minute, second = clock.split(":")
    whole, point, fraction = second.partition(".")
    seconds = sum(n * unit for n, unit in zip(offset, (3600, 60, 1), strict=False))
    total = int(hour) * 3600 + int(minute) * 60 + int(whole) - sign * seconds
    total %= 86400
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}{point}{fraction}"


def blob(text: str) -> bytes:
    r"""Bytes of a bytea in PostgreSQL's hex form, `\x` and digits."""
    return bytes.fromhex(text[2:])


def number(value: float) -> float | str:
    """A float as JSON can carry it: what is not finite is named by a string."""
    if isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def exact_number(text: str) -> int | float | None:
    """A numeric as a JSON number: int at scale 0, else float; `None` if no number holds it."""
    if "." not in text:
        if text.lstrip("-").isdigit():
            whole = int(text) if len(text) <= 20 else 1 << 64
            if _INT64_MIN <= whole <= _INT64_MAX:
                return whole
        else:
            return None
    value = float(text)
    return value if isfinite(value) else None


def _double(value: float) -> _Double:
    return _Double(number(value))


def _decimal(text: str) -> Any:
    value = exact_number(text)
    if value is None:
        return _String(text)
    return _Long(value) if isinstance(value, int) else _Double(value)


def _any(value: Any) -> Any:
    """A cell whose kind nobody knows, by the Python type of its value."""
    if isinstance(value, str):
        return _String(value)
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, int):
        return _Long(value) if _INT64_MIN <= value <= _INT64_MAX else _String(str(value))
    if isinstance(value, float):
        return _double(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _Blob(bytes(value))
    if isinstance(value, (list, tuple)):
        return _Array(_nested("stringValues", str, value))
    return _String(str(value))


def _same(value: Any) -> Any:
    return value


# Member of ArrayValue and what makes an element of it. There is no list of blobs: bytea
# elements stay PostgreSQL's hex text.
_ELEMENTS: dict[Kind | Special, tuple[str, Callable[[Any], Any]]] = {
    Kind.BOOL: ("booleanValues", _same),
    Kind.INT: ("longValues", _same),
    Kind.FLOAT8: ("doubleValues", number),
    Kind.FLOAT4: ("doubleValues", lambda text: number(float(text))),
    Kind.JSON: ("stringValues", compact_json),
    Kind.TIMESTAMPTZ: ("stringValues", utc_text),
    Special.TIMETZ: ("stringValues", time_in_utc),
    Special.BIT: ("booleanValues", lambda value: value in ("1", True)),
}


def _nested(member: str, change: Callable[[Any], Any], values: Sequence[Any]) -> dict[str, Any]:
    if values and any(isinstance(value, (list, tuple)) for value in values):
        return {"arrayValues": [_nested(member, change, value) for value in values]}
    if change is _same:
        return {member: values}
    return {member: [None if value is None else change(value) for value in values]}


def _leaves(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _leaves(value)
        else:
            found.append(value)
    return found


def _vector_texts(values: Sequence[Any]) -> list[Any]:
    return [
        None
        if value is None
        else " ".join(map(str, value))
        if all(isinstance(item, int) for item in value)
        else _vector_texts(value)
        for value in values
    ]


def _array_cell(element: Kind | Special, choices: Choices) -> Callable[[Any], Any]:
    """What turns a (nested) list of *element* into an `arrayValue` cell."""
    member, change = _ELEMENTS.get(element, ("stringValues", _same))
    if element is Kind.INT and choices.long_return == "STRING":
        member, change = "stringValues", str
    if element is Special.VECTOR:
        return lambda values: _Array(_nested("stringValues", _same, _vector_texts(values)))
    if element is Kind.NUMERIC and choices.decimal_return == "DOUBLE_OR_LONG":

        def decimals(values: Any) -> _Array:
            # One variant for all elements: strings as soon as one does not fit a double.
            fits = all(
                leaf is None or leaf == "NaN" or isfinite(float(leaf)) for leaf in _leaves(values)
            )
            if fits:
                return _Array(_nested("doubleValues", lambda text: number(float(text)), values))
            return _Array(_nested("stringValues", _same, values))

        return decimals

    def cell(values: Any) -> _Array:
        return _Array(_nested(member, change, values))

    return cell


_SCALARS: dict[Kind | Special, str] = {
    Kind.BOOL: "(TRUE if {v} else FALSE)",
    Kind.INT: "Long({v})",
    # x - x is 0 for every finite number and NaN for the rest.
    Kind.FLOAT8: "(Double({v}) if {v} - {v} == 0 else double({v}))",
    Kind.FLOAT4: "double(float({v}))",
    Kind.NUMERIC: "String({v})",
    Kind.TEXT: "String({v})",
    Kind.JSON: "String(compact_json({v}))",
    Kind.BYTEA: "Blob(blob({v}))",
    Kind.DATE: "String({v})",
    Kind.TIMESTAMP: "String({v})",
    Kind.TIMESTAMPTZ: "String({v}[:-3] if {v}[-3:] == '+00' else utc_text({v}))",
    Special.BIT: "(TRUE if {v} in ('1', True) else FALSE)",
    Special.TIMETZ: "String(time_in_utc({v}))",
    Special.VECTOR: "any_cell({v})",
}

_NAMES: dict[str, Any] = {
    "encode": _encode,
    "NULL": _NULL,
    "TRUE": _TRUE,
    "FALSE": _FALSE,
    "Long": _Long,
    "Double": _Double,
    "String": _String,
    "Blob": _Blob,
    "double": _double,
    "decimal": _decimal,
    "compact_json": compact_json,
    "utc_text": utc_text,
    "time_in_utc": time_in_utc,
    "blob": blob,
    "any_cell": _any,
}


def _cell_source(kind: CellKind, value: str, choices: Choices, names: dict[str, Any]) -> str:
    """Python source that makes a cell of the variable *value*."""
    if isinstance(kind, (ArrayKind, SpecialArray)):
        name = f"array_{value}"
        names[name] = _array_cell(kind.element, choices)
        made = f"{name}({value})"
    elif kind is None:
        made = f"any_cell({value})"
    elif kind is Kind.INT and choices.long_return == "STRING":
        made = f"String(str({value}))"
    elif kind is Kind.NUMERIC and choices.decimal_return == "DOUBLE_OR_LONG":
        made = f"decimal({value})"
    else:
        made = _SCALARS[kind].format(v=value)
    return f"NULL if {value} is None else {made}"


@lru_cache(maxsize=1024)
def row_encoder(kinds: tuple[CellKind, ...], choices: Choices = DEFAULT_CHOICES) -> Encode:
    """An encoder for rows whose cells are of *kinds*, compiled once for each shape.

    The source is made of our own variable names alone; nothing of a caller is in it.
    """
    names = dict(_NAMES)
    cells = [_cell_source(kind, f"c{n}", choices, names) for n, kind in enumerate(kinds)]
    loop = (
        f"for ({''.join(f'c{n},' for n in range(len(kinds)))}) in rows"
        if kinds
        else ("for _ in rows")
    )
    source = f"def encode_rows(rows):\n return encode([[{', '.join(cells)}] {loop}])[1:-1]\n"
    exec(compile(source, "<row encoder>", "exec"), names)
    encode_rows: Encode = names["encode_rows"]
    return encode_rows


def cell_kinds(columns: Sequence[Column]) -> tuple[CellKind, ...]:
    """The kinds of *columns* as this dialect tells them apart."""
    return tuple(_cell_kind(column) for column in columns)


def _cell_kind(column: Column) -> CellKind:
    if column.type == "timetz":
        return Special.TIMETZ
    if column.type == "_timetz":
        return SpecialArray(Special.TIMETZ)
    if column.type in ("_int2vector", "_oidvector"):
        return SpecialArray(Special.VECTOR)
    if column.typmod == 1:
        if column.type == "bit":
            return Special.BIT
        if column.type == "_bit":
            return SpecialArray(Special.BIT)
    return column.kind


def _plain_scalar(kind: CellKind, choices: Choices) -> Callable[[Any], Any]:
    """What makes a value of `formattedRecords` of one that is not NULL."""
    if kind is Kind.BOOL or kind is Kind.TEXT:
        return _same
    if kind is Kind.INT:
        return str if choices.long_return == "STRING" else _same
    if kind is Kind.NUMERIC:
        if choices.decimal_return != "DOUBLE_OR_LONG":
            return _same
        return lambda text: text if (value := exact_number(text)) is None else value
    if kind is Kind.BYTEA:
        return lambda text: b64encode(blob(text)).decode()
    if isinstance(kind, (Kind, Special)):
        return _ELEMENTS.get(kind, ("", _same))[1]
    return lambda value: value if isinstance(value, (bool, str)) else _plain_any(value)


def _plain_any(value: Any) -> Any:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
        return str(value)
    return value if isinstance(value, (int, bytes, list)) else str(value)


def _plain(kind: CellKind, choices: Choices) -> Callable[[Any], Any]:
    if not isinstance(kind, (ArrayKind, SpecialArray)):
        return _plain_scalar(kind, choices)
    change = _plain_scalar(kind.element, choices)

    def array(values: Any) -> list[Any]:
        return [
            None if value is None else array(value) if isinstance(value, list) else change(value)
            for value in values
        ]

    return array


def formatted_encoder(
    labels: Sequence[str], kinds: Sequence[CellKind], choices: Choices = DEFAULT_CHOICES
) -> Encode:
    """An encoder for `formattedRecords`: objects by label, as the inside of a JSON string.

    What it returns is already escaped, so that a long answer can be sent in pieces
    between `"[` and `]"`.
    """
    plain = [_plain(kind, choices) for kind in kinds]

    def encode(rows: Rows) -> bytes:
        objects = [
            {
                label: None if value is None else change(value)
                for label, change, value in zip(labels, plain, row, strict=True)
            }
            for row in rows
        ]
        return _encode(_encode(objects)[1:-1].decode())[1:-1]

    return encode


# -- the same from the text of COPY --------------------------------------------------------

_APART = b',"\\u0000",'
"""Stands between the values of a jsonb column while they are compacted at once: no jsonb holds
that string, and nowhere else can these characters follow each other."""


def _compact_inside(values: copied.Values, clear: bool) -> copied.Values | None:
    bare = copied.bare_json(values, clear)
    if bare is None:
        return None
    try:
        whole: bytes = msgspec.json.format(b"[" + _APART.join(bare) + b"]", indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return None
    joined = whole[1:-1].replace(_APART, b"\0")
    if joined.count(b"\0") != len(values) - 1:
        return None
    if b"\\" in joined:
        joined = joined.replace(b"\\", b"\\\\")
    return joined.replace(b'"', b'\\"').split(b"\0")


def _utc_inside(values: copied.Values, clear: bool) -> copied.Values | None:
    joined = b"\t".join(values) + b"\t"
    if joined.count(b"+00\t") != len(values):
        return None
    return joined[:-4].split(b"+00\t")


_floats_inside = copied.floats(_encode)


_LONG, _TEXTUAL = b'{"longValue":', b'{"stringValue":"'
_COPIED: dict[CellKind, tuple[bytes, bytes, Any, bytes]] = {
    Kind.BOOL: (b'{"booleanValue":', b"}", copied.words, b"t"),
    Kind.INT: (_LONG, b"}", copied.as_it_is, b"0"),
    Kind.FLOAT8: (b'{"doubleValue":', b"}", _floats_inside, b"0"),
    Kind.FLOAT4: (b'{"doubleValue":', b"}", _floats_inside, b"0"),
    Kind.NUMERIC: (_TEXTUAL, b'"}', copied.as_it_is, b""),
    Kind.TEXT: (_TEXTUAL, b'"}', copied.text, b""),
    Kind.JSON: (_TEXTUAL, b'"}', _compact_inside, b"0"),
    Kind.BYTEA: (b'{"blobValue":"', b'"}', copied.base64, b"\\\\x"),
    Kind.DATE: (_TEXTUAL, b'"}', copied.as_it_is, b""),
    Kind.TIMESTAMP: (_TEXTUAL, b'"}', copied.as_it_is, b""),
    Kind.TIMESTAMPTZ: (_TEXTUAL, b'"}', _utc_inside, b"+00"),
}


def copied_cells(columns: Sequence[Column], choices: Choices) -> list[copied.Cell]:
    """How the values that COPY gives are written; arrays are not among them."""
    return [
        _copied_cell(column, kind, choices)
        for column, kind in zip(columns, cell_kinds(columns), strict=True)
    ]


def _copied_cell(column: Column, kind: CellKind, choices: Choices) -> copied.Cell:
    encode = row_encoder((kind,), choices)
    read = copied.read_as_driver(kind) if isinstance(kind, Kind) else str

    def one(value: str) -> bytes:
        return encode([(read(value),)])[1:-1]

    before, behind, many, sample = _COPIED.get(kind, (b"", b"", copied.never, b""))
    if kind is Kind.INT and choices.long_return == "STRING":
        before, behind = _TEXTUAL, b'"}'
    if (kind is Kind.NUMERIC and choices.decimal_return == "DOUBLE_OR_LONG") or (
        column.type == "json"
    ):
        many = copied.never  # of a json, any string may be part
    return copied.Cell(before, behind, b'{"isNull":true}', many, one, sample)
