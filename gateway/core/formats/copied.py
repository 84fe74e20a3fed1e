r"""Rows as COPY writes them as text, made into rows of JSON column by column.

COPY comes without a round trip for each batch, and without an object of the driver
for each row. What its text needs to become JSON, most columns need not at all, and
the others need one call for all their values: so a row of six columns costs 0.6 µs
where the driver's rows cost 1.1 to JSON and 1.8 to the Data API's cells.

    >>> from ..model import Column, Kind
    >>> columns = (Column("id", "int4", kind=Kind.INT), Column("name", "text"))
    >>> write = json_rows(columns, Shape())
    >>> write.feed(b'1\ta "b"\n2\t\\N\n3'), write.feed(b'\t\\\\ \\t\n')
    (b'[1,"a \\"b\\""],[2,null]', b',[3,"\\\\ \\t"]')

The format is that of the manual, page "COPY", section "Text Format": a tab between
columns, `\N` for NULL, and a backslash before what would be taken for something else.
"""

from __future__ import annotations

import re
from binascii import a2b_hex, b2a_base64
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, cast

import orjson

from ..model import Column, Kind
from .json import Shape, converter

Values = list[bytes]
_Many = Callable[[Values, bool], Values | None]
"""All values of a column, escaped as COPY does it, and whether nothing in them is escaped;
`None` if they must be written one by one."""

NULL = rb"\N"
_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n")
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_fifth = itemgetter(4)


class Cell(NamedTuple):
    """How the values of a column are written."""

    before: bytes
    behind: bytes
    null: bytes
    many: _Many
    """What stands between `before` and `behind`, for all values."""
    one: Callable[[str], bytes]
    """One value as PostgreSQL prints it, whole."""
    sample: bytes = b""
    """A value that `many` can write; it stands for NULL."""


class Template(NamedTuple):
    """What stands before the first cell of a row, between cells, behind the last, and between
    rows."""

    begin: bytes
    between: bytes
    end: bytes
    comma: bytes = b","
    names: Sequence[bytes] = ()
    """What stands before each cell, if rows are objects."""


ARRAYS = Template(b"[", b",", b"]")


class Rows:
    """Pieces of COPY's text in, rows out."""

    def __init__(self, cells: Sequence[Cell], template: Template) -> None:
        self._cells = cells
        self._template = template
        self._names = template.names or [b""] * len(cells)
        self._begun = b""
        self._comma = b""

    def feed(self, piece: bytes | bytearray) -> bytes:
        """The rows that end in *piece*, with what stands between them and those before."""
        lines, self._begun = whole_lines(self._begun, piece)
        if not lines:
            return b""
        clear = b"\\" not in lines
        values = fields(lines)
        count = len(self._cells)
        template = self._template
        pattern = template.begin
        columns = []
        for index, cell in enumerate(self._cells):
            made, before, behind = _made(cell, values[index::count], clear)
            columns.append(made)
            between = template.between if index else b""
            before = between + self._names[index] + before
            pattern += before.replace(b"%", b"%%") + b"%b" + behind
        pattern += template.end
        rows = template.comma.join(map(pattern.__mod__, zip(*columns, strict=True)))
        written = self._comma + rows
        self._comma = template.comma
        return written


def _made(cell: Cell, values: Values, clear: bool) -> tuple[Values, bytes, bytes]:
    nulls = not clear and NULL in values
    present = [cell.sample if value == NULL else value for value in values] if nulls else values
    many = cell.many(present, clear)
    if many is None:
        one, null = cell.one, cell.null
        each = [null if value == NULL else one(unescaped(value).decode()) for value in values]
        return each, b"", b""
    if not nulls:
        return many, cell.before, cell.behind
    before, behind, null = cell.before, cell.behind, cell.null
    filled = [
        null if value == NULL else before + made + behind
        for value, made in zip(values, many, strict=True)
    ]
    return filled, b"", b""


def unescaped(value: bytes) -> bytes:
    """*value* as it was before COPY escaped it."""
    if b"\\" not in value:
        return value
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), value)


def whole_lines(begun: bytes, piece: bytes | bytearray) -> tuple[bytes, bytes]:
    """The lines that end in *piece*, of which *begun* came before, and the beginning of the next.

    Raises:
        UnicodeDecodeError: It is no text. PostgreSQL does not look at the bytes of a database
            in SQL_ASCII.
    """
    end = piece.rfind(b"\n") + 1
    if not end:
        return b"", begun + piece
    lines = b"".join((begun, memoryview(piece)[:end]))  # copied once
    if not lines.isascii():
        lines.decode()
    return lines, bytes(piece[end:])


def fields(lines: bytes) -> Values:
    """All values of *lines*, one row after another."""
    values = lines.replace(b"\n", b"\t").split(b"\t")
    values.pop()
    return values


# -- what writes all values of a column ----------------------------------------------------


def as_it_is(values: Values, clear: bool) -> Values:
    """Numbers and dates: nothing in them is ever escaped."""
    return values


def never(values: Values, clear: bool) -> None:
    """They are written one by one."""
    return None


def text(values: Values, clear: bool) -> Values | None:
    """The inside of a JSON string. COPY escapes as JSON does, but for quotes and some controls."""
    joined = b"\t".join(values)
    if len(joined.translate(None, _CONTROLS)) != len(joined) or (not clear and b"\\v" in joined):
        return None
    if b'"' not in joined:
        return values
    return joined.replace(b'"', b'\\"').split(b"\t")


def bare_json(values: Values, clear: bool) -> Values | None:
    """JSON as PostgreSQL prints it."""
    if clear:
        return values
    joined = b"\t".join(values)
    if b"\\" not in joined:
        return values
    undone = joined.replace(rb"\\", b"\0")
    if b"\\" in undone:
        return None  # the end of a line in a json
    return undone.replace(b"\0", b"\\").split(b"\t")


_WORDS = {b"t": b"true", b"f": b"false"}


def words(values: Values, clear: bool) -> Values:
    """Booleans."""
    return list(map(_WORDS.__getitem__, values))


def floats(dumps: Callable[[list[float]], bytes]) -> _Many:
    """Numbers as *dumps* spells them; it writes `null` for what is not finite."""

    def many(values: Values, clear: bool) -> Values | None:
        written = dumps(list(map(float, values)))[1:-1]
        return None if b"n" in written else written.split(b",")

    return many


def digits(values: Values, clear: bool) -> Values | None:
    """Numbers as PostgreSQL prints them, unless they are not finite."""
    joined = b"\t".join(values)
    return None if b"N" in joined or b"I" in joined else values


def base64(values: Values, clear: bool) -> Values | None:
    """Bytes; their `\\x` has its backslash doubled."""
    if not all(value.startswith(b"\\\\x") for value in values):
        return None  # bytea_output is escape
    return [b2a_base64(a2b_hex(value[3:]), newline=False) for value in values]


def is_plain_moments(values: Values, joined: bytes) -> bool:
    """Whether all are ISO timestamps of years from 1 to 9999; *joined* holds nothing else."""
    # An infinity has a letter where those have their first hyphen, and a year BC a second blank.
    return set(map(_fifth, values)) == {0x2D} and joined.count(b" ") == len(values)


def moments(values: Values, clear: bool) -> Values | None:
    """Timestamps, with a T."""
    joined = b"\t".join(values)
    if not is_plain_moments(values, joined):
        return None
    return joined.replace(b" ", b"T").split(b"\t")


def utc_moments(values: Values, clear: bool) -> Values | None:
    """Timestamps with the zone +00, with a T."""
    joined = b"\t".join(values)
    if joined.count(b"+00\t") != len(values) - 1 or not joined.endswith(b"+00"):
        return None
    if not is_plain_moments(values, joined):
        return None
    return joined.replace(b" ", b"T").split(b"\t")


# -- the cells of JSON ---------------------------------------------------------------------

_READ: dict[Kind, Callable[[str], Any]] = {
    Kind.BOOL: lambda value: value == "t",
    Kind.INT: int,
    Kind.FLOAT8: float,
}
"""What the driver gives for PostgreSQL's text, where that is not the text itself."""


def read_as_driver(kind: Kind) -> Callable[[str], Any]:
    """What makes of PostgreSQL's text of *kind* the value that the driver gives."""
    return _READ.get(kind, str)


_MANY: dict[Kind, tuple[bytes, bytes, _Many, bytes]] = {
    Kind.BOOL: (b"", b"", words, b"t"),
    Kind.INT: (b"", b"", as_it_is, b"0"),
    Kind.FLOAT8: (b"", b"", floats(orjson.dumps), b"0"),
    Kind.FLOAT4: (b"", b"", digits, b"0"),
    Kind.NUMERIC: (b'"', b'"', as_it_is, b""),
    Kind.JSON: (b"", b"", bare_json, b""),
    Kind.BYTEA: (b'"', b'"', base64, b"\\\\x"),
    Kind.DATE: (b'"', b'"', as_it_is, b""),
    Kind.TIMESTAMP: (b'"', b'"', moments, b"0000-00-00 00:00:00"),
    Kind.TIMESTAMPTZ: (b'"', b':00"', utc_moments, b"0000-00-00 00:00:00+00"),
}


def json_cell(kind: Kind, *, int8_as_string: bool = False) -> Cell:
    """How a value of *kind* is written in a row of JSON."""
    convert = converter(kind, int8_as_string=int8_as_string)
    read = read_as_driver(kind)

    def one(value: str) -> bytes:
        given = read(value)
        return orjson.dumps(given if convert is None else convert(given))

    before, behind, many, sample = _MANY.get(kind, (b'"', b'"', text, b""))
    if kind is Kind.INT and int8_as_string:
        before = behind = b'"'
    return Cell(before, behind, b"null", many, one, sample)


def json_rows(columns: Sequence[Column], shape: Shape, *, lines: bool = False) -> Rows:
    """What writes rows of JSON.

    Args:
        lines: Each row ends a line, in place of the comma between it and the next.
    """
    cells = [
        json_cell(
            cast(Kind, column.kind),
            int8_as_string=shape.int8_as_string and column.type == "int8",
        )
        for column in columns
    ]
    begin, end = (b"{", b"}") if shape.objects else (b"[", b"]")
    template = Template(begin, b",", end + b"\n", b"") if lines else Template(begin, b",", end)
    if shape.objects:
        names = [orjson.dumps(column.name) + b":" for column in columns]
        template = template._replace(names=names)
    return Rows(cells, template)
