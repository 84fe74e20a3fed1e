"""Rows as JSON, by the kinds of their columns.

One function is made for each tuple of kinds and kept: columns that orjson
writes as they are cost nothing, the others one call each.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from ..model import ArrayKind, Column, Kind

Rows = Sequence[Sequence[Any]]
Encode = Callable[[Rows], bytes]


class Shape(NamedTuple):
    """How the caller wants rows written."""

    objects: bool = False
    int8_as_string: bool = False


def _float8(value: float) -> Any:
    if math.isfinite(value):
        return value
    return "NaN" if value != value else ("Infinity" if value > 0 else "-Infinity")


def _float4(value: str) -> Any:
    return value if value in ("NaN", "Infinity", "-Infinity") else orjson.Fragment(value)


def _bytea(value: str) -> str:
    return base64.b64encode(read_bytea(value)).decode("ascii")


_OCTAL = re.compile(rb"\\(\\|[0-7]{3})")


def read_bytea(text: str) -> bytes:
    r"""The bytes of a bytea as PostgreSQL prints it, also under `bytea_output = escape`.

    >>> read_bytea(r"\x00ff41"), read_bytea(r"\000\377A\\")
    (b'\x00\xffA', b'\x00\xffA\\')
    """
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    return _OCTAL.sub(
        lambda match: b"\\" if match[1] == b"\\" else bytes([int(match[1], 8)]), text.encode()
    )


def _iso(value: str) -> bool:
    # 2024-01-31 08:00:00…: what RFC 3339 cannot say (infinity, BC, a five-digit year)
    # is left as PostgreSQL wrote it, and so is another DateStyle.
    return value[4:11:6] == "- " and value[-1] != "C"


def _timestamp(value: str) -> str:
    return value[:10] + "T" + value[11:] if _iso(value) else value


def _timestamptz(value: str) -> str:
    if not _iso(value):
        return value
    # +00, unless the caller set another zone for its own transaction: +05:30 is whole.
    return value[:10] + "T" + value[11:] + (":00" if value[-3] in "+-" else "")


_CONVERT: dict[Kind, Callable[[Any], Any]] = {
    Kind.FLOAT8: _float8,
    Kind.FLOAT4: _float4,
    Kind.JSON: orjson.Fragment,
    Kind.BYTEA: _bytea,
    Kind.TIMESTAMP: _timestamp,
    Kind.TIMESTAMPTZ: _timestamptz,
}


def _nested(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def each(value: Any) -> Any:
        return [
            None if item is None else each(item) if isinstance(item, list) else convert(item)
            for item in value
        ]

    return each


def converter(
    kind: Kind | ArrayKind, *, int8_as_string: bool = False
) -> Callable[[Any], Any] | None:
    """What makes a value of *kind* fit for orjson; `None` if it fits as it is."""
    element = kind.element if isinstance(kind, ArrayKind) else kind
    convert = str if int8_as_string and element is Kind.INT else _CONVERT.get(element)
    if convert is None:
        return None
    return _nested(convert) if isinstance(kind, ArrayKind) else convert


# In place of calls, for the kinds that come in masses: half the price of a row.
_INLINE: dict[Any, str] = {
    _timestamp: "{c}[:10] + 'T' + {c}[11:] if {c}[4:11:6] == '- ' and {c}[-1] != 'C' else {c}",
    _timestamptz: (
        "{c}[:10] + 'T' + {c}[11:] + ':00' if {c}[4:11:6] == '- ' and {c}[-3:] == '+00'"
        " else {f}({c})"
    ),
}


@lru_cache(maxsize=1024)
def _row_maker(converts: tuple[Callable[[Any], Any] | None, ...]) -> Callable[[Rows], list[Any]]:
    """`rows -> [(c0, f1(c1), …), …]`, compiled once for each tuple of kinds."""
    if not any(converts):
        # orjson does not know asyncpg's records; a tuple of one is a plain copy.
        return lambda rows: list(map(tuple, rows))
    cells = []
    for index, convert in enumerate(converts):
        cell = f"c{index}"
        if convert is not None:
            made = _INLINE.get(convert, "{f}({c})").format(c=cell, f=f"f{index}")
            cell = f"None if {cell} is None else {made}"
        cells.append(cell)
    scope: dict[str, Any] = {f"f{index}": convert for index, convert in enumerate(converts)}
    row = "".join(f"c{index}, " for index in range(len(converts)))
    source = f"lambda rows: [({', '.join(cells)},) for ({row}) in rows]"
    maker: Callable[[Rows], list[Any]] = eval(source, scope)
    return maker


@lru_cache(maxsize=1024)
def _converts(
    kinds: tuple[Kind | ArrayKind, ...], int8: tuple[bool, ...]
) -> tuple[Callable[[Any], Any] | None, ...]:
    return tuple(
        converter(kind, int8_as_string=as_string)
        for kind, as_string in zip(kinds, int8, strict=True)
    )


def maker(columns: Sequence[Column], shape: Shape) -> Callable[[Rows], list[Any]]:
    """The function from driver rows to rows that orjson can write."""
    kinds = tuple(column.kind for column in columns)
    int8 = tuple(shape.int8_as_string and column.type in ("int8", "_int8") for column in columns)
    make = _row_maker(_converts(kinds, int8))
    if not shape.objects:
        return make
    names = [column.name for column in columns]
    return lambda rows: [dict(zip(names, row, strict=True)) for row in make(rows)]


def encode(columns: Sequence[Column], rows: Rows, shape: Shape) -> bytes:
    """*rows* as a JSON array, brackets included."""
    return orjson.dumps(maker(columns, shape)(rows))
