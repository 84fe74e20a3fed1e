"""Results as bytes and back: what the ledger keeps of an answer.

A result has a form of its own here, not that of a dialect, so that whatever wrote the
first answer writes the second from the same result, and so the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..core.model import ArrayKind, Column, Kind, Result

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_FORM = 1


def write_answer(results: Sequence[Result]) -> bytes:
    """*results* as bytes: what follows one another and is equal is written once."""
    runs: list[list[Any]] = []
    last: Result | None = None
    for result in results:
        if last is not None and (result is last or (not result.rows and result == last)):
            runs[-1][0] += 1
            continue
        last = result
        runs.append([1, _packed(result)])
    return _encode([_FORM, runs])


def read_answer(answer: bytes) -> list[Result]:
    """What `write_answer` was given."""
    form, runs = _decode(answer)
    if form != _FORM:
        raise ValueError(f"an answer of form {form}")
    return [result for count, packed in runs for result in [_unpacked(packed)] * count]


def _packed(result: Result) -> list[Any]:
    columns = [
        [
            column.name,
            column.type,
            column.oid,
            column.kind.element.value + "[]"
            if isinstance(column.kind, ArrayKind)
            else column.kind.value,
            column.table_oid,
            column.attribute,
            column.typmod,
        ]
        for column in result.columns
    ]
    rows = [list(row) for row in result.rows]
    return [
        columns, rows, result.row_count, result.command, result.has_rows, list(result.notices),
        result.truncated,
    ]  # fmt: skip


def _unpacked(packed: list[Any]) -> Result:
    columns, rows, row_count, command, has_rows, notices, truncated = packed
    return Result(
        tuple(
            Column(name, type, oid, _kind(kind), *rest) for name, type, oid, kind, *rest in columns
        ),
        rows,
        row_count,
        command,
        has_rows,
        tuple(notices),
        truncated,
    )


def _kind(text: str) -> Kind | ArrayKind:
    return ArrayKind(Kind(text[:-2])) if text.endswith("[]") else Kind(text)
