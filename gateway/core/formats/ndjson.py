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


@lru_cache(maxsize=1024)
def _object_maker(count: int) -> Callable[[Sequence[str], Rows], list[Any]]:
    """`names, rows -> [{n0: r[0], …}, …]`: a dict display costs half of `dict(zip(…))`."""
    cells = ", ".join(f"n{index}: c{index}" for index in range(count))
    names = "".join(f"n{index}, " for index in range(count))
    row = "".join(f"c{index}, " for index in range(count))
    source = (
        f"def objects(names, rows):\n ({names}) = names\n return [{{{cells}}} for ({row}) in rows]"
    )
    scope: dict[str, Any] = {}
    exec(compile(source, "<object maker>", "exec"), scope)
    made: Callable[[Sequence[str], Rows], list[Any]] = scope["objects"]
    return made


def lines(columns: Sequence[Column], shape: Shape) -> Callable[[Rows], bytes]:
    """What writes each row as one line, its newline included."""
    make = maker(columns, shape._replace(objects=False))
    if not shape.objects:
        return lambda rows: b"".join(map(_line, make(rows)))
    if not columns:
        return lambda rows: b"{}\n" * len(rows)
    names = tuple(column.name for column in columns)
    objects = _object_maker(len(names))
    return lambda rows: b"".join(map(_line, objects(names, make(rows))))
