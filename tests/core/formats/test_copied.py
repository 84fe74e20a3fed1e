"""What is written from the text of COPY is what is written from the driver's values."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.rds_data.cells import Choices, cell_kinds, copied_cells, row_encoder
from gateway.core.formats import copied, json, ndjson
from gateway.core.formats.json import Shape
from gateway.core.model import Column, Kind

_NO_NUL = st.characters(exclude_characters="\0", exclude_categories=("Cs",))
_TEXTS = st.text(_NO_NUL, max_size=12)
_TRICKY = st.text(st.sampled_from('\\N"tnv\t\n\r\b\f\v\x01\x7f ü%{}[],+0'), max_size=8)
_FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e22, 1e-7, float("nan")]))
_JSONB = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | _TEXTS | _TRICKY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TRICKY, inner, max_size=3),
    max_leaves=6,
)


def _spaced(value: Any) -> str:
    """As PostgreSQL prints a jsonb."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_spaced, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{_spaced(key)}: {_spaced(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    return orjson.dumps(value).decode()


def _sampled(*texts: str) -> Any:
    return st.sampled_from(texts)


_COLUMNS: list[tuple[Column, Any]] = [
    (Column("b", "bool", kind=Kind.BOOL), st.booleans()),
    (Column("i", "int8", kind=Kind.INT), st.integers(-(2**63), 2**63 - 1)),
    (Column("f", "float8", kind=Kind.FLOAT8), _FLOATS),
    (Column("r", "float4", kind=Kind.FLOAT4), _sampled("1", "0.1", "1e+20", "NaN", "-Infinity")),
    (Column("n", "numeric", kind=Kind.NUMERIC), _sampled("1", "0.10", "NaN", "123456789012345678")),
    (Column('50% "x"', "text"), st.one_of(_TEXTS, _TRICKY)),
    (Column("j", "jsonb", kind=Kind.JSON), _JSONB.map(_spaced)),
    (
        Column("p", "json", kind=Kind.JSON),
        _sampled("{}", '{ "a" :\n"\\u0000" }', '"\\\\n"', "[1 ]"),
    ),
    (Column("y", "bytea", kind=Kind.BYTEA), st.binary(max_size=5).map(lambda b: "\\x" + b.hex())),
    (Column("d", "date", kind=Kind.DATE), _sampled("2024-01-31", "infinity", "0044-03-15 BC")),
    (
        Column("t", "timestamp", kind=Kind.TIMESTAMP),
        _sampled("2024-01-31 08:00:00.5", "-infinity", "12024-01-31 08:00:00"),
    ),
    (
        Column("z", "timestamptz", kind=Kind.TIMESTAMPTZ),
        _sampled(
            "2024-01-31 08:00:00.5+00",
            "0001-01-31 08:00:00+00",
            "0044-03-15 00:00:00+00 BC",
            "infinity",
            "12024-01-31 08:00:00+00",
            "2024-01-31 08:00:00+05:30",
        ),
    ),
    (Column("k", "timetz"), _sampled("08:00:00+00", "01:00:00+05:30")),
    (Column("o", "bit", typmod=1), _sampled("0", "1")),
]
_ESCAPES = str.maketrans(
    {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
)


def _copy_text(value: Any) -> str:
    """*value* as COPY writes it."""
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, float):
        text = repr(value).removesuffix(".0")
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)
    return str(value).translate(_ESCAPES)


def _copied(rows: list[tuple[Any, ...]]) -> bytes:
    return "".join("\t".join(map(_copy_text, row)) + "\n" for row in rows).encode()


def _in_pieces(write: copied.Rows, data: bytes, at: int) -> bytes:
    return write.feed(data[:at]) + write.feed(data[at:])


@st.composite
def _tables(draw: st.DrawFn) -> tuple[list[Column], list[tuple[Any, ...]], int]:
    chosen = draw(st.lists(st.sampled_from(range(len(_COLUMNS))), min_size=1, unique=True))
    columns = [_COLUMNS[index][0] for index in chosen]
    # Each column: no NULL, some, or any; with few rows a batch is often without escapes.
    values = [
        _COLUMNS[index][1] | st.none() if draw(st.booleans()) else _COLUMNS[index][1]
        for index in chosen
    ]
    rows = draw(st.lists(st.tuples(*values), max_size=4))
    return columns, rows, draw(st.integers(0, len(_copied(rows))))


@given(_tables(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=150)
def test_json_from_copy_is_json_from_the_drivers_rows(
    table: tuple[list[Column], list[tuple[Any, ...]], int], objects: bool, strings: bool
) -> None:
    columns, rows, at = table
    shape = Shape(objects, strings)
    written = _in_pieces(copied.json_rows(columns, shape), _copied(rows), at)
    assert b"[" + written + b"]" == json.encode(columns, rows, shape)
    lines = _in_pieces(copied.json_rows(columns, shape, lines=True), _copied(rows), at)
    assert lines == ndjson.lines(columns, shape)(rows)


@given(
    _tables(), st.sampled_from(["STRING", "DOUBLE_OR_LONG"]), st.sampled_from(["LONG", "STRING"])
)
@settings(deadline=None, max_examples=150)
def test_cells_from_copy_are_the_cells_of_the_drivers_rows(
    table: tuple[list[Column], list[tuple[Any, ...]], int], decimals: str, longs: str
) -> None:
    columns, rows, at = table
    choices = Choices(decimals, longs)
    write = copied.Rows(copied_cells(columns, choices), copied.ARRAYS)
    assert _in_pieces(write, _copied(rows), at) == row_encoder(cell_kinds(columns), choices)(rows)


def test_bytes_that_are_no_text_are_refused() -> None:
    write = copied.json_rows([Column("name", "text")], Shape())
    with pytest.raises(UnicodeDecodeError):
        write.feed(b"\xff\n")


def test_bytea_in_its_older_form_is_the_same_bytes() -> None:
    write = copied.json_rows([Column("y", "bytea", kind=Kind.BYTEA)], Shape())
    assert write.feed(b"a\\\\001\n\\\\x6101\n") == b'["YQE="],["YQE="]'
