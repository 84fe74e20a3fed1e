r"""Bulk input made fit for COPY FROM: CSV as it is, NDJSON as lines of COPY's text format.

>>> head = read_header(b'id,"a ""b""\nc"\r\n1,x\r\n')
>>> head.names, head.size
(('id', 'a "b"\nc'), 16)
>>> names("app.orders"), names('"My.Schema".t')
(('app', 'orders'), ('My.Schema', 't'))
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import orjson

from ..arrays import write_array
from ..errors import GatewayError, InvalidRequest
from ..model import ArrayKind, Kind

MAX_HEADER = 64 * 1024
"""Bytes of a CSV header."""
MAX_LINE = 16 * 1024 * 1024
"""Bytes of one NDJSON object."""
BOM = b"\xef\xbb\xbf"

Raw = Mapping[str, bytes]
"""One object: the JSON text of each member."""


class BadLine(GatewayError):
    """A line of an upload cannot be taken; nothing of the upload was kept."""

    code = "invalid_request"
    status = 400

    def __init__(self, line: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"line {line}: {message}", hint=hint)
        self.line = line


# ---- names -----------------------------------------------------------------------------------

_NAME = re.compile(r'"((?:[^"]|"")+)"|([^".,]+)')


def names(text: str, separator: str = ".", most: int = 2) -> tuple[str, ...]:
    """The names in *text*, as they are written; one that holds a separator stands in quotes.

    Raises:
        InvalidRequest: It is empty, has more parts than *most*, or cannot be read.
    """
    parts: list[str] = []
    at = 0
    while at <= len(text):
        match = _NAME.match(text, at)
        if match is None or "\0" in match[0]:
            break
        parts.append(match[1].replace('""', '"') if match[1] else match[2].strip())
        at = match.end()
        if at == len(text) and all(parts) and len(parts) <= most:
            return tuple(parts)
        if text[at : at + 1] != separator:
            break
        at += 1
    raise InvalidRequest(
        "a name cannot be read",
        hint='write schema.table, and "…" around a name with a dot or comma',
    )


# ---- CSV -------------------------------------------------------------------------------------


class Header(NamedTuple):
    """The first record of a CSV."""

    names: tuple[str, ...]
    size: int
    """Bytes, with the line end."""


def read_header(data: bytes) -> Header | None:
    """The header at the beginning of *data*; `None` if its end is not there yet.

    Raises:
        BadLine: It is not CSV, or longer than MAX_HEADER.
    """
    inside = False
    for at, byte in enumerate(data[:MAX_HEADER]):
        if byte == 0x22:
            inside = not inside
        elif byte == 0x0A and not inside:
            line = data[:at].removesuffix(b"\r")
            try:
                return Header(tuple(_cells(line.decode())), at + 1)
            except (UnicodeDecodeError, ValueError):
                raise BadLine(1, "the header is not CSV in UTF-8") from None
    if len(data) >= MAX_HEADER:
        raise BadLine(1, f"the header is longer than {MAX_HEADER} bytes")
    return None


_CELL = re.compile(r'(?:"((?:[^"]|"")*)"|([^",]*))(,|\Z)')


def _cells(line: str) -> Iterator[str]:
    at = 0
    while True:
        match = _CELL.match(line, at)
        if match is None:
            raise ValueError
        name = match[1].replace('""', '"') if match[1] is not None else match[2]
        if not name or "\0" in name:
            raise ValueError
        yield name
        at = match.end()
        if not match[3]:
            return


class EndMarks:
    r"""Finds lines of `\.` alone in pieces of CSV.

    PostgreSQL before 18 takes such a line for the end of the data, also inside quotes,
    and says nothing about what follows: it would be lost.
    """

    def __init__(self) -> None:
        self._line = 1
        self._tail = b"\n"

    def feed(self, piece: bytes, *, last: bool = False) -> None:
        """Look at the next piece.

        Raises:
            BadLine: There is such a line.
        """
        text = self._tail + piece
        if b"\\." in text:
            found = _MARK.search(text) or (_LAST_MARK.search(text) if last else None)
            if found is not None:
                line = self._line + text.count(b"\n", 1, found.start() + 1)
                raise BadLine(
                    line,
                    r"\. alone on a line means the end of the data to this PostgreSQL",
                    hint=r'write it as "\.", or send NDJSON',
                )
        self._tail = text[-4:]
        self._line += text.count(b"\n", 1, len(text) - len(self._tail) + 1)


_MARK = re.compile(rb"\n\\\.\r?\n")
_LAST_MARK = re.compile(rb"\n\\\.\r?\Z")


# ---- NDJSON ----------------------------------------------------------------------------------


class Lines:
    r"""Pieces of any cut to whole lines.

    >>> lines = Lines()
    >>> list(lines.feed(b'{"a":1}\n{"a"')), list(lines.feed(b":2}")), lines.rest()
    ([(1, b'{"a":1}')], [], (2, b'{"a":2}'))
    """

    def __init__(self) -> None:
        self.number = 0
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """The lines that end in *piece*, each with its number; blank ones are left out."""
        *ended, begun = piece.split(b"\n")
        for line in ended:
            self.number += 1
            if self._begun:
                line = b"".join([*self._begun, line])
                self._begun.clear()
                self._size = 0
            if line and not line.isspace():
                yield self.number, line
        if begun:
            self._begun.append(begun)
            self._size += len(begun)
            if self._size > MAX_LINE:
                raise BadLine(self.number + 1, f"it is longer than {MAX_LINE} bytes")

    def rest(self) -> tuple[int, bytes] | None:
        """The last line, if it has no end."""
        line = b"".join(self._begun)
        return (self.number + 1, line) if line and not line.isspace() else None


def row_writer(
    columns: Sequence[str], kinds: Sequence[Kind | ArrayKind]
) -> Callable[[int, Raw], bytes]:
    r"""What makes of an object one line of COPY's text format.

    A member that is left out is NULL. Numbers keep their digits, json and jsonb their text.

    >>> row_writer(("a", "b", "c"), (Kind.TEXT, Kind.NUMERIC, Kind.TEXT))(
    ...     1, {"a": b'"x\\ty"', "b": b"1.50"})
    b'x\\ty\t1.50\t\\N\n'
    """
    wanted = dict(zip(columns, map(_text_of, kinds), strict=True))
    known = frozenset(columns)

    def write(number: int, row: Raw) -> bytes:
        if not known.issuperset(row):
            unknown = next(name for name in row if name not in known)
            raise BadLine(number, f"it has a member {unknown!r}, which is no column of the upload")
        cells = []
        for name, text_of in wanted.items():
            raw = row.get(name)
            if raw is None or raw == b"null":
                cells.append("\\N")
                continue
            try:
                text = text_of(raw)
            except (ValueError, binascii.Error):
                raise BadLine(number, f"the value of {name!r} does not fit its column") from None
            cells.append(text.translate(_ESCAPES))
        return "\t".join(cells).encode() + b"\n"

    return write


_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


class Numbering:
    """Which line of the upload a row of COPY was: rows are counted, lines may be blank.

    Remembered for as long as PostgreSQL may still complain, which is about a thousand rows.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._jumps: deque[tuple[int, int]] = deque([(1, 0)], maxlen=10_000)

    def add(self, line: int) -> None:
        """The next row stood on *line*."""
        self._rows += 1
        blank = line - self._rows
        if blank != self._jumps[-1][1]:
            self._jumps.append((self._rows, blank))

    def line(self, row: int) -> int | None:
        """The line of the row that COPY calls *row*; `None` if it is forgotten."""
        for first, blank in reversed(self._jumps):
            if first <= row:
                return row + blank
        return None


def _text_of(kind: Kind | ArrayKind) -> Callable[[bytes], str]:
    if isinstance(kind, ArrayKind):
        return _array_text_of(kind.element)
    if kind is Kind.JSON:
        return bytes.decode
    return _bytea_text if kind is Kind.BYTEA else _plain_text


def _plain_text(raw: bytes) -> str:
    """PostgreSQL reads the rest itself: numbers, `true`, and what is in a string."""
    if raw[:1] == b'"':
        text: str = orjson.loads(raw)
        return text
    return raw.decode()


def _bytea_text(raw: bytes) -> str:
    text = _plain_text(raw)
    return text if text.startswith("\\x") else "\\x" + base64.b64decode(text, validate=True).hex()


def _array_text_of(element: Kind) -> Callable[[bytes], str]:
    def item(value: object) -> object:
        if isinstance(value, list) and element is not Kind.JSON:
            return list(map(item, value))
        if value is None:
            return None
        if element is Kind.JSON:
            return orjson.dumps(value).decode()
        if isinstance(value, bool):
            return "t" if value else "f"
        if element is Kind.BYTEA:
            return _bytea_text(orjson.dumps(value))
        return value

    def text_of(raw: bytes) -> str:
        if raw[:1] != b"[":
            return _plain_text(raw)
        # Numbers as they are written: no float stands between.
        exact = element is not Kind.JSON
        value = json.loads(raw, parse_float=str, parse_int=str) if exact else json.loads(raw)
        return write_array([item(each) for each in value])

    return text_of
