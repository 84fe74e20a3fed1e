"""Rows as the caller wants them: tuples, dicts, named tuples or a class of the caller's.

>>> answer = {"columns": [{"name": "n", "type": "numeric"}], "rows": [["1.50"]],
...           "row_count": 1, "command": "SELECT"}
>>> result(answer).rows
[(Decimal('1.50'),)]
>>> result(answer).into(dict)
[{'n': Decimal('1.50')}]
"""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ._values import Types, reader
from .errors import InterfaceError, NotOneRow

T = TypeVar("T")


class Column(NamedTuple):
    """One column of a result."""

    name: str
    type: str
    """PostgreSQL's name of the type: `int8`, `_text` (an array), `mood`."""


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
        return self.into(dict)

    def into(self, make: Callable[..., T]) -> list[T]:
        """Each row in the form of *make*: see `Client.query`."""
        return list(map(maker(self.columns, make), self.rows))

    def one(self) -> tuple[Any, ...]:
        """The only row; NotOneRow if there are none or several."""
        if len(self.rows) != 1:
            raise NotOneRow(f"one row was expected, there are {len(self.rows)}")
        return self.rows[0]

    def scalar(self) -> Any:
        """The first column of the first row; `None` if there is no row."""
        return self.rows[0][0] if self.rows and self.rows[0] else None


def maker(columns: Sequence[Column], make: Callable[..., T]) -> Callable[[Sequence[Any]], T]:
    """What turns one row of *columns* into the form of *make*.

    `tuple`, `dict`, `collections.namedtuple` (one named after the columns), or anything
    that is called with the columns as keywords: a dataclass, a NamedTuple.
    """
    form: Any = make
    kind: object = make
    names = [column.name for column in columns]
    if kind is tuple:
        return form  # type: ignore[no-any-return]
    if kind is namedtuple:
        return form("Row", names, rename=True)._make  # type: ignore[no-any-return]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InterfaceError(f"columns named twice: {', '.join(twice)}", hint="rename them with AS")
    return lambda row: make(**dict(zip(names, row)))  # noqa: B905 - the gateway's rows are whole


def parse(text: bytes, *, exact: bool = False) -> Any:
    """The JSON in *text*; *exact* reads numbers with a point as Decimal."""
    if exact:
        from decimal import Decimal

        return json.loads(text, parse_float=Decimal)
    return json.loads(text)


def result(document: Mapping[str, Any], types: Types | None = None) -> Result:
    """The rows of one answer as Python values."""
    columns = tuple(Column(each["name"], each["type"]) for each in document["columns"])
    return Result(
        columns,
        list(map(tuple, _read(columns, document["rows"], types))),
        document["row_count"],
        document["command"],
        tuple(document.get("notices", ())),
        document.get("truncated", False),
    )


def _read(columns: Sequence[Column], rows: list[Any], types: Types | None) -> list[Any]:
    readers = [(at, reader(column.type, types)) for at, column in enumerate(columns)]
    readings = [(at, read) for at, read in readers if read is not None]
    for row in rows if readings else ():
        for at, read in readings:
            if row[at] is not None:
                row[at] = read(row[at])
    return rows


class Frames:
    """Reads a stream of lines: the columns, rows, and at last how it ended.

    Bytes go in as they come; nothing is kept but the line that is not complete yet.
    """

    def __init__(self, types: Types | None = None, *, exact: bool = False) -> None:
        self.columns: tuple[Column, ...] | None = None
        self.end: Mapping[str, Any] | None = None
        """The last frame: `{"end": …}` or `{"error": …}`; without one it is incomplete."""
        self._types = types
        self._exact = exact
        self._rest: list[bytes] = []

    def feed(self, data: bytes) -> list[list[Any]]:
        """The rows that are complete with *data*, as Python values."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._rest.append(data)
            return []
        lines = [line for line in b"".join([*self._rest, data[:cut]]).split(b"\n") if line]
        self._rest = [data[cut:]] if cut < len(data) else []
        if self.columns is None and lines:
            head = parse(lines.pop(0))
            if "columns" not in head:
                self.end = head
                return []
            self.columns = tuple(Column(each["name"], each["type"]) for each in head["columns"])
        if lines and lines[-1].startswith(b"{"):
            self.end = parse(lines.pop())
        if not lines:
            return []
        # One document for all lines: reading them one by one takes twice as long.
        rows = parse(b"[" + b",".join(lines) + b"]", exact=self._exact)
        return _read(self.columns or (), rows, self._types)


def csv_lines(rows: Iterable[Sequence[Any]], text: Callable[[Any], str | None]) -> Iterator[bytes]:
    """*rows* as RFC 4180, about 64 KiB at a time: NULL is nothing, an empty string is `""`."""
    lines: list[str] = []
    size = 0
    for row in rows:
        fields = map(text, row)
        line = ",".join(
            ["" if field is None else '"' + field.replace('"', '""') + '"' for field in fields]
        )
        lines.append(line + "\n")
        size += len(line)
        if size > 65_536:
            yield "".join(lines).encode()
            lines, size = [], 0
    if lines:
        yield "".join(lines).encode()
