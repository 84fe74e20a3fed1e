"""Rows are written as JSON without a change of any value."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.formats.json import Shape, converter, encode, maker, read_bytea
from gateway.core.model import ArrayKind, Column, Kind

ARRAYS, OBJECTS = Shape(), Shape(objects=True)


def column(kind: Kind | ArrayKind, name: str = "c", type: str = "t") -> Column:
    return Column(name, type, 0, kind)


def written(kind: Kind | ArrayKind, value: Any, shape: Shape = ARRAYS, type: str = "t") -> bytes:
    """One value in one row, brackets taken off."""
    text = encode([column(kind, type=type)], [[value]], shape)
    assert text.startswith(b"[[") and text.endswith(b"]]")
    return text[2:-2]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Kind.BOOL, True, b"true"),
        (Kind.INT, (1 << 63) - 1, b"9223372036854775807"),
        (Kind.INT, -(1 << 63), b"-9223372036854775808"),
        (Kind.FLOAT8, 0.1, b"0.1"),
        (Kind.FLOAT8, -0.0, b"-0.0"),
        (Kind.FLOAT8, 5e-324, b"5e-324"),
        (Kind.FLOAT8, math.nan, b'"NaN"'),
        (Kind.FLOAT8, math.inf, b'"Infinity"'),
        (Kind.FLOAT8, -math.inf, b'"-Infinity"'),
        (Kind.FLOAT4, "0.1", b"0.1"),
        (Kind.FLOAT4, "1e+20", b"1e+20"),
        (Kind.FLOAT4, "NaN", b'"NaN"'),
        (Kind.FLOAT4, "-Infinity", b'"-Infinity"'),
        (Kind.NUMERIC, "19.90", b'"19.90"'),
        (Kind.NUMERIC, "1" * 40 + ".5", b'"' + b"1" * 40 + b'.5"'),
        (Kind.NUMERIC, "NaN", b'"NaN"'),
        (Kind.TEXT, 'a"\\\n\x00\u2028ä€\U0001f600', None),
        (Kind.TEXT, "24:00:00", b'"24:00:00"'),
        (Kind.TEXT, "1 mon 2 days", b'"1 mon 2 days"'),
        (Kind.JSON, '{"n": 1.50, "n": 12345678901234567890.10}',
         b'{"n": 1.50, "n": 12345678901234567890.10}'),
        (Kind.JSON, "null", b"null"),
        (Kind.BYTEA, "\\x00ff", b'"AP8="'),
        (Kind.BYTEA, "\\x", b'""'),
        (Kind.BYTEA, "\\000\\377A\\\\", b'"AP9BXA=="'),
        (Kind.DATE, "2024-01-31", b'"2024-01-31"'),
        (Kind.DATE, "infinity", b'"infinity"'),
        (Kind.DATE, "0044-03-15 BC", b'"0044-03-15 BC"'),
        (Kind.TIMESTAMP, "2024-01-31 08:00:00.5", b'"2024-01-31T08:00:00.5"'),
        (Kind.TIMESTAMP, "-infinity", b'"-infinity"'),
        (Kind.TIMESTAMP, "0044-03-15 00:00:00 BC", b'"0044-03-15 00:00:00 BC"'),
        (Kind.TIMESTAMP, "12024-01-31 08:00:00", b'"12024-01-31 08:00:00"'),
        (Kind.TIMESTAMP, "31.01.2024 08:00:00", b'"31.01.2024 08:00:00"'),
        (Kind.TIMESTAMP, "Wed Jan 31 08:00:00 2024", b'"Wed Jan 31 08:00:00 2024"'),
        (Kind.TIMESTAMPTZ, "2024-01-31 08:00:00+00", b'"2024-01-31T08:00:00+00:00"'),
        (Kind.TIMESTAMPTZ, "2024-01-31 08:00:00-03", b'"2024-01-31T08:00:00-03:00"'),
        (Kind.TIMESTAMPTZ, "2024-01-31 08:00:00+05:30", b'"2024-01-31T08:00:00+05:30"'),
        (Kind.TIMESTAMPTZ, "infinity", b'"infinity"'),
        (Kind.TIMESTAMPTZ, "0044-03-15 00:00:00+00 BC", b'"0044-03-15 00:00:00+00 BC"'),
        (Kind.TIMESTAMPTZ, "31.01.2024 08:00:00 UTC", b'"31.01.2024 08:00:00 UTC"'),
        (ArrayKind(Kind.INT), [1, None, [2]], b"[1,null,[2]]"),
        (ArrayKind(Kind.FLOAT8), [math.nan, None, [1.5]], b'["NaN",null,[1.5]]'),
        (ArrayKind(Kind.TIMESTAMPTZ), ["2024-01-31 08:00:00+00", None],
         b'["2024-01-31T08:00:00+00:00",null]'),
        (ArrayKind(Kind.TIMESTAMPTZ), ["2024-01-31 08:00:00+05:45"],
         b'["2024-01-31T08:00:00+05:45"]'),
        (ArrayKind(Kind.JSON), ['{"a":1}', None], b'[{"a":1},null]'),
        (ArrayKind(Kind.TEXT), ["NULL", None, ""], b'["NULL",null,""]'),
    ],
)  # fmt: skip
def test_a_value_is_written(kind: Kind | ArrayKind, value: Any, expected: bytes | None) -> None:
    found = written(kind, value)
    if expected is None:
        assert json.loads(found) == value
    else:
        assert found == expected


@pytest.mark.parametrize("kind", [*Kind, *map(ArrayKind, Kind)])
def test_null_is_null(kind: Kind | ArrayKind) -> None:
    assert written(kind, None) == b"null"


def test_int8_may_be_a_string_and_other_integers_are_not() -> None:
    shape = Shape(int8_as_string=True)
    assert written(Kind.INT, 9007199254740993, shape, "int8") == b'"9007199254740993"'
    assert written(Kind.INT, 7, shape, "int4") == b"7"
    assert written(Kind.INT, None, shape, "int8") == b"null"
    assert written(ArrayKind(Kind.INT), [1, None, [2]], shape, "_int8") == b'["1",null,["2"]]'
    assert written(Kind.INT, 7, ARRAYS, "int8") == b"7"


def test_rows_as_objects() -> None:
    columns = [column(Kind.INT, "a"), column(Kind.TIMESTAMP, "b c")]
    rows = [[1, None], [2, "2024-01-31 08:00:00"]]
    assert encode(columns, rows, OBJECTS) == (
        b'[{"a":1,"b c":null},{"a":2,"b c":"2024-01-31T08:00:00"}]'
    )


def test_no_rows_and_no_columns() -> None:
    assert encode([column(Kind.INT)], [], ARRAYS) == b"[]"
    assert encode([], [[], []], ARRAYS) == b"[[],[]]"


def test_as_many_columns_as_a_row_can_have() -> None:
    kinds = [Kind.INT, Kind.TIMESTAMPTZ, Kind.FLOAT8, Kind.BYTEA] * 416
    value = {
        Kind.INT: 1, Kind.TIMESTAMPTZ: "2024-01-31 08:00:00+00", Kind.FLOAT8: 1.5,
        Kind.BYTEA: "\\x00",
    }  # fmt: skip
    rows = [[value[kind] for kind in kinds]] * 2
    found = json.loads(encode([column(kind) for kind in kinds], rows, ARRAYS))
    assert found == [[1, "2024-01-31T08:00:00+00:00", 1.5, "AA=="] * 416] * 2


def test_what_orjson_writes_as_it_is_costs_no_call() -> None:
    for kind in (Kind.BOOL, Kind.INT, Kind.NUMERIC, Kind.TEXT, Kind.DATE):
        assert converter(kind) is None
        assert converter(ArrayKind(kind)) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_every_bit(value: float) -> None:
    assert float(json.loads(written(Kind.FLOAT8, value))).hex() == value.hex()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_is_the_same_text(value: str) -> None:
    assert json.loads(written(Kind.TEXT, value)) == value


def _escaped(value: bytes) -> str:
    """As PostgreSQL prints it under `bytea_output = escape`."""
    return "".join(
        "\\\\" if byte == 0x5C else chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}"
        for byte in value
    )


@given(st.binary())
def test_bytes_are_the_same_bytes(value: bytes) -> None:
    for text in ("\\x" + value.hex(), _escaped(value)):
        # A text that only looks like hex digits would be read as those: \x is never
        # printed by the escape format, which doubles its backslash.
        assert read_bytea(text) == value
        assert base64.b64decode(json.loads(written(Kind.BYTEA, text))) == value


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.none() | st.datetimes().map(lambda when: when)),
        max_size=5,
    )
)
def test_rows_are_independent(rows: list[tuple[int, Any]]) -> None:
    columns = [column(Kind.INT), column(Kind.TIMESTAMP)]
    given_rows = [[n, None if when is None else str(when)] for n, when in rows]
    found = maker(columns, ARRAYS)(given_rows)
    assert [list(row) for row in found] == [
        [n, None if when is None else str(when).replace(" ", "T")] for n, when in rows
    ]
