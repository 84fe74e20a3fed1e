"""Rows as lines of JSON: objects, or arrays between a line of columns and one for the end.

>>> from ..model import Column, Kind
>>> columns = (Column("id", "int4", kind=Kind.INT), Column("name", "text"))
>>> lines(columns, Shape(objects=True))([(1, "a"), (2, None)])
b'{"id":1,"name":"a"}\\n{"id":2,"name":null}\\n'
>>> lines(columns, Shape())([(1, "a")])
b'[1,"a"]\\n'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import orjson

from ..model import Column
from .json import Rows, Shape, maker

_line = partial(orjson.dumps, option=orjson.OPT_APPEND_NEWLINE)


_END = "\0"
"""Stands behind each row while a batch is written at once. No text of PostgreSQL holds it, and
its JSON stands nowhere else: quotes inside strings are escaped, and jsonb refuses it."""
_ARRAY_ENDS = b',"\\u0000"],['
_OBJECT_ENDS = b',"":"\\u0000"},{'


@lru_cache(maxsize=1024)
def _makers(count: int) -> tuple[Any, Any]:
    """`rows -> [[c0, …, end], …]`, and the same with objects of given names."""
    row = "".join(f"c{index}, " for index in range(count))
    names = "".join(f"n{index}, " for index in range(count))
    cells = "".join(f"n{index}: c{index}, " for index in range(count))
    source = (
        f"def arrays(rows):\n return [({row}end) for ({row}) in rows]\n"
        f"def objects(names, rows):\n ({names}) = names\n"
        f" return [{{{cells}'': end}} for ({row}) in rows]\n"
    )
    scope: dict[str, Any] = {"end": _END}
    exec(compile(source, "<line makers>", "exec"), scope)
    return scope["arrays"], scope["objects"]


def lines(columns: Sequence[Column], shape: Shape) -> Callable[[Rows], bytes]:
    """What writes each row as one line, its newline included."""
    make = maker(columns, shape._replace(objects=False))
    if not columns:
        empty = b"{}\n" if shape.objects else b"[]\n"
        return lambda rows: empty * len(rows)
    names = tuple(column.name for column in columns)
    if any(column.type in ("json", "_json") for column in columns):
        # Its text is embedded as it is, and may hold anything: row by row, at a third of the
        # speed.
        if shape.objects:
            return lambda rows: b"".join(
                [_line(dict(zip(names, row, strict=True))) for row in make(rows)]
            )
        return lambda rows: b"".join(map(_line, make(rows)))
    arrays, objects = _makers(len(columns))

    def write_arrays(rows: Rows) -> bytes:
        written = orjson.dumps(arrays(make(rows)))
        return written[1:-11].replace(_ARRAY_ENDS, b"]\n[") + b"]\n" if rows else b""

    def write_objects(rows: Rows) -> bytes:
        written = orjson.dumps(objects(names, make(rows)))
        return written[1:-14].replace(_OBJECT_ENDS, b"}\n{") + b"}\n" if rows else b""

    return write_objects if shape.objects else write_arrays
