from __future__ import annotations

import json

from gateway.core.formats.json import Shape
from gateway.core.formats.ndjson import lines
from gateway.core.model import ArrayKind, Column, Kind

COLUMNS = (
    Column("id", "int8", kind=Kind.INT),
    Column('n"ame', "text"),
    Column("j", "jsonb", kind=Kind.JSON),
    Column("a", "_float8", kind=ArrayKind(Kind.FLOAT8)),
)
ROWS = [
    (9007199254740993, "line\nline", '{"n": 1.10}', [1.5, float("nan"), None]),
    (None, None, None, None),
]


def test_every_row_is_one_line_of_its_own() -> None:
    written = lines(COLUMNS, Shape(objects=True))(ROWS)
    assert written.count(b"\n") == 2
    first, second = map(json.loads, written.splitlines())
    assert first == {
        "id": 9007199254740993, 'n"ame': "line\nline", "j": {"n": 1.1}, "a": [1.5, "NaN", None],
    }  # fmt: skip
    assert set(second.values()) == {None}
    assert b'{"n": 1.10}' in written


def test_arrays_keep_columns_of_one_name_apart() -> None:
    columns = (Column("x", "int4", kind=Kind.INT), Column("x", "int4", kind=Kind.INT))
    assert lines(columns, Shape())([(1, 2), (3, 4)]) == b"[1,2]\n[3,4]\n"


def test_int8_as_strings_if_asked() -> None:
    shape = Shape(objects=True, int8_as_string=True)
    assert lines(COLUMNS[:1], shape)([(7,)]) == b'{"id":"7"}\n'


def test_rows_of_no_columns_and_no_rows() -> None:
    assert lines((), Shape(objects=True))([(), ()]) == b"{}\n{}\n"
    assert lines((), Shape())([()]) == b"[]\n"
    assert lines(COLUMNS, Shape(objects=True))([]) == b""
