"""Rows as an Arrow IPC stream, with PostgreSQL's types mapped exactly or refused.

numeric(p,s) is decimal128, numeric without a scale is a string, because no Arrow
type holds it; timestamptz is microseconds in UTC; arrays are lists. What its
Arrow type cannot hold (an infinite date, NaN in a decimal, an array in several
dimensions) is an error that says which cast helps, never another value.

The only module that knows nanoarrow, which the extra `arrow` installs.
"""

from __future__ import annotations

import datetime
import struct
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate, chain
from typing import Any, NamedTuple

from ..errors import GatewayError
from ..model import ArrayKind, Column, Kind
from .json import Rows, read_bytea

ROWS = 1 << 12
"""Rows of a record batch at the most."""

_POSTGRES_EPOCH = 946_684_800
"""2000-01-01 in seconds since 1970, where PostgreSQL's binary times begin."""
_POSTGRES_EPOCH_DAYS = 10_957
_MICROSECONDS = 1_000_000
_UNIX = datetime.datetime(1970, 1, 1)
_UNIX_UTC = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNIX_ORDINAL = _UNIX.toordinal()
EPOCH_MICROSECONDS = _POSTGRES_EPOCH * _MICROSECONDS
"""The same in microseconds."""
_MINUS_INFINITY = -(1 << 63)


class NotRepresentable(GatewayError):
    """A value has no place in the Arrow type of its column."""

    code = "invalid_request"
    status = 400

    def __init__(self, what: str, type: str) -> None:
        super().__init__(
            f"{what} does not fit the Arrow type of a column of type {type}",
            hint="cast the column to text",
        )
        self.field = "accept"


def available() -> bool:
    """Whether the extra is installed."""
    return find_spec("nanoarrow") is not None


class Made(NamedTuple):
    """The buffers of one column: validity first, `None` if nothing is NULL."""

    nulls: int
    buffers: list[Any]
    child: Made | None = None
    child_length: int = 0


Build = Callable[[Sequence[Any]], Made]


def _bits(values: Sequence[Any]) -> bytes:
    """One bit for each value that is true, the first in the lowest."""
    text = "".join(["1" if value else "0" for value in reversed(values)])
    return int(text or "0", 2).to_bytes((len(values) + 7) // 8, "little")


def _validity(values: Sequence[Any]) -> tuple[int, bytes | None]:
    """How many are NULL, and one bit for each that is not."""
    nulls = values.count(None)
    return nulls, _bits([value is not None for value in values]) if nulls else None


# Columns without NULL are the rule, and looking for one in vain costs as much as building:
# so they are built first, and None is what makes that fail.


def _numbers(typecode: str) -> Build:
    def build(values: Sequence[Any]) -> Made:
        try:
            return Made(0, [None, array(typecode, values)])
        except TypeError:
            nulls, valid = _validity(values)
            return Made(nulls, [valid, array(typecode, [value or 0 for value in values])])

    return build


def _floats(values: Sequence[Any]) -> Made:
    """float4, which comes as PostgreSQL's digits."""
    nulls, valid = _validity(values)
    return Made(nulls, [valid, array("f", [float(value or 0) for value in values])])


_DIGITS = bytes([0x30, 0x31]) + bytes(254)


def _bools(values: Sequence[Any]) -> Made:
    try:
        text = bytes(values)[::-1].translate(_DIGITS)
    except TypeError:
        nulls, valid = _validity(values)
        return Made(nulls, [valid, _bits(values)])
    size = (len(values) + 7) // 8
    return Made(0, [None, int(text or b"0", 2).to_bytes(size, "little")])


def offsets(lengths: Any) -> array[int]:
    """Where each value of these lengths begins, and where the last one ends."""
    ends = list(accumulate(lengths, initial=0))
    return array("i", struct.pack(f"={len(ends)}i", *ends))  # half the price of array("i", ends)


def _text(values: Sequence[Any]) -> Made:
    nulls, valid = 0, None
    try:
        text = "".join(values)
    except TypeError:
        nulls, valid = _validity(values)
        values = [value or "" for value in values]
        text = "".join(values)
    data = text.encode()
    if len(data) == len(text):
        return Made(nulls, [valid, offsets(map(len, values)), data])
    pieces = [value.encode() for value in values]
    return Made(nulls, [valid, offsets(map(len, pieces)), data])


def _binary(values: Sequence[Any]) -> Made:
    nulls, valid = _validity(values)
    pieces = [
        b"" if value is None else value if isinstance(value, bytes) else read_bytea(value)
        for value in values
    ]
    return Made(nulls, [valid, offsets(map(len, pieces)), b"".join(pieces)])


def decimal(type: str, precision: int, scale: int) -> Build:
    """128-bit integers, little-endian: the digits without their point."""

    def build(values: Sequence[Any]) -> Made:
        nulls, valid = 0, None
        try:
            text = ",".join(values)
        except TypeError:
            nulls, valid = _validity(values)
            zero = "0" * (scale + 1)
            text = ",".join([value or zero for value in values])
        if "N" in text:  # an infinity cannot be in a numeric with a scale
            raise NotRepresentable("NaN", type)
        digits = text.replace(".", "")  # all of `scale` digits behind the point
        words = array("q", bytes(16 * len(values)))
        try:
            low = array("q", map(int, digits.split(",")))
        except OverflowError:
            wide = [int(each) for each in digits.split(",")]
            data = b"".join([each.to_bytes(16, "little", signed=True) for each in wide])
            return Made(nulls, [valid, data])
        words[0::2] = low
        if "-" in digits:
            words[1::2] = array("q", [each >> 63 for each in low])
        return Made(nulls, [valid, words])

    def empty_too(values: Sequence[Any]) -> Made:
        return build(values) if values else Made(0, [None, b""])

    return empty_too


def days(text: str) -> int:
    """Days since 1970 of a date as PostgreSQL prints it; years BC and beyond 9999 too.

    >>> days("1970-01-02"), days("0044-03-15 BC"), days("10000-01-01")
    (1, -735160, 2932897)
    """
    try:
        return datetime.date.fromisoformat(text).toordinal() - _UNIX_ORDINAL
    except ValueError:
        pass  # Python's dates end at 9999, and begin with year 1
    if text.endswith("infinity"):
        raise NotRepresentable("infinity", "date")
    before = text.endswith(" BC")
    year, month, day = (text[:-3] if before else text).split("-")
    number = 1 - int(year) if before else int(year)
    # The calendar repeats after 400 years.
    cycles, within = divmod(number, 400)
    moved = datetime.date(within + 400, int(month), int(day)).toordinal()
    return moved - _UNIX_ORDINAL + (cycles - 1) * 146_097


def microseconds(text: str) -> int:
    """Microseconds since 1970 of a timestamp as PostgreSQL prints it, in UTC.

    >>> microseconds("1970-01-01 00:00:01.5+00"), microseconds("0001-01-01 00:00:00 BC")
    (1500000, -62167219200000000)
    """
    try:
        # Python's own reader: 0.4 µs, where the rest of this takes 2.
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        since = moment - (_UNIX if moment.tzinfo is None else _UNIX_UTC)
        return (since.days * 86_400 + since.seconds) * _MICROSECONDS + since.microseconds
    if text.endswith("infinity"):
        raise NotRepresentable("infinity", "timestamp")
    before = " BC" if text.endswith(" BC") else ""
    if before:
        text = text[:-3]
    date, _, clock = text.partition(" ")
    hour, minute, second = clock.removesuffix("+00").split(":")
    whole, _, fraction = second.partition(".")
    seconds = days(date + before) * 86_400 + int(hour) * 3_600 + int(minute) * 60 + int(whole)
    return seconds * _MICROSECONDS + int(fraction.ljust(6, "0"))


def moments(type: str) -> Build:
    """Timestamps: as text, or as the driver's count of microseconds since 2000."""
    shift = EPOCH_MICROSECONDS

    def build(values: Sequence[Any]) -> Made:
        try:
            try:
                made = [value + shift for value in values]
                nulls, valid = 0, None
            except TypeError:
                nulls, valid = _validity(values)
                made = [
                    0 if value is None
                    else microseconds(value) if isinstance(value, str)
                    else value + shift
                    for value in values
                ]  # fmt: skip
            # PostgreSQL's infinities are the ends of its 64 bits; the upper one overflows.
            if _MINUS_INFINITY in values:
                raise NotRepresentable("infinity", type)
            return Made(nulls, [valid, array("q", made)])
        except OverflowError:
            raise NotRepresentable("infinity", type) from None

    return build


def dates(values: Sequence[Any]) -> Made:
    """Dates: as text, or as the driver's count of days since 2000."""
    nulls, valid = _validity(values)
    first = next((value for value in values if value is not None), None)
    try:
        if isinstance(first, str):
            made = [0 if value is None else days(value) for value in values]
        else:
            made = [0 if value is None else value + _POSTGRES_EPOCH_DAYS for value in values]
        if made and min(made) <= -(1 << 31) + _POSTGRES_EPOCH_DAYS:
            raise NotRepresentable("infinity", "date")
        return Made(nulls, [valid, array("i", made)])
    except OverflowError:
        raise NotRepresentable("infinity", "date") from None


def _list(type: str, element: Build) -> Build:
    def build(values: Sequence[Any]) -> Made:
        nulls, valid = _validity(values)
        if nulls:
            values = [value or () for value in values]
        items = list(chain.from_iterable(values))
        if any(isinstance(item, list) for item in items):
            raise NotRepresentable("an array in several dimensions", type)
        return Made(nulls, [valid, offsets(map(len, values))], element(items), len(items))

    return build


class _Type(NamedTuple):
    schema: Any
    build: Build


def decimal_of(kind: Kind, typmod: int) -> tuple[int, int] | None:
    """Precision and scale of the decimal that holds a column; `None` if none does."""
    if kind is not Kind.NUMERIC or typmod < 4:
        return None
    # The modifier is (precision << 16 | scale) + 4, its scale of 11 bits and signed.
    precision, scale = (typmod - 4) >> 16 & 0xFFFF, (typmod - 4) & 0x7FF
    return (precision, scale) if precision <= 38 and scale <= precision else None


INTEGERS = {"int2": ("int16", "h"), "int4": ("int32", "i"), "oid": ("uint32", "I")}


def _scalar(name: str, kind: Kind, typmod: int) -> _Type:
    import nanoarrow as na

    if kind is Kind.INT:
        arrow, code = INTEGERS.get(name, ("int64", "q"))
        return _Type(getattr(na, arrow)(), _numbers(code))
    digits = decimal_of(kind, typmod)
    if digits is not None:
        return _Type(na.decimal128(*digits), decimal(name, *digits))
    if kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        zone = "UTC" if kind is Kind.TIMESTAMPTZ else None
        return _Type(na.timestamp("us", zone), moments(name))
    simple: dict[Kind, tuple[str, Build]] = {
        Kind.BOOL: ("bool_", _bools),
        Kind.FLOAT8: ("float64", _numbers("d")),
        Kind.FLOAT4: ("float32", _floats),
        Kind.BYTEA: ("binary", _binary),
        Kind.DATE: ("date32", dates),
    }
    arrow, build = simple.get(kind, ("string", _text))
    return _Type(getattr(na, arrow)(), build)


@lru_cache(maxsize=1024)
def _type(name: str, kind: Kind | ArrayKind, typmod: int) -> _Type:
    import nanoarrow as na

    if isinstance(kind, ArrayKind):
        if name in ("_int2vector", "_oidvector"):
            raise NotRepresentable("an array of arrays", name)
        element = {"int2vector": "int2", "oidvector": "oid"}.get(name, name.removeprefix("_"))
        inner = _scalar(element, kind.element, typmod)
        return _Type(na.list_(inner.schema), _list(name, inner.build))
    return _scalar(name, kind, typmod)


class _Sink:
    """What nanoarrow writes into; emptied after each batch."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: Any) -> int:
        """Keep a copy: the writer uses its memory again."""
        self._pieces.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


class Writer:
    """One stream: `head`, then `rows` for each batch, then `tail`."""

    def __init__(self, columns: Sequence[Column]) -> None:
        import nanoarrow as na
        from nanoarrow.ipc import StreamWriter

        self._na = na
        self._types = [_type(column.type, column.kind, column.typmod) for column in columns]
        # A list and not a mapping: two columns may have one name.
        self._fields = [
            na.c_schema(each.schema).modify(name=column.name)
            for column, each in zip(columns, self._types, strict=True)
        ]
        self._schema = na.c_schema(na.struct(self._fields, nullable=False))
        self._sink = _Sink()
        self._writer = StreamWriter.from_writable(self._sink)

    def head(self) -> bytes:
        """The schema."""
        empty = self._na.c_array_stream(self._batch([]))
        self._writer.write_stream(empty, write_schema=True)
        return self._sink.take()

    def rows(self, rows: Rows) -> bytes:
        """One record batch, or several if there are many rows."""
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS] if len(rows) > ROWS else rows
            self._writer.write_array(self._batch(part))
        return self._sink.take()

    def made(self, columns: Sequence[Made], length: int) -> bytes:
        """One record batch of columns that are built."""
        self._writer.write_array(self._array_of(columns, length))
        return self._sink.take()

    def tail(self) -> bytes:
        """The mark of the end; without it the stream is incomplete."""
        self._writer.close()
        return self._sink.take()

    def _batch(self, rows: Rows) -> Any:
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self._types)
        made = [each.build(values) for each, values in zip(self._types, columns, strict=True)]
        return self._array_of(made, len(rows))

    def _array_of(self, columns: Sequence[Made], length: int) -> Any:
        children = [
            self._array(field, made, length)
            for field, made in zip(self._fields, columns, strict=True)
        ]
        return self._na.c_array_from_buffers(
            self._schema, length, [None], null_count=0, children=children, move=True
        )

    def _array(self, schema: Any, made: Made, length: int) -> Any:
        children = []
        if made.child is not None:
            children = [self._array(schema.child(0), made.child, made.child_length)]
        return self._na.c_array_from_buffers(
            schema,
            length,
            made.buffers,
            null_count=made.nulls,
            children=children,
            validation_level="none",
            move=True,
        )
