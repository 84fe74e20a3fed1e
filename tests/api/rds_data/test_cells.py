from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.rds_data.cells import (
    CellKind,
    Choices,
    Special,
    SpecialArray,
    cell_kinds,
    compact_json,
    formatted_encoder,
    row_encoder,
    time_in_utc,
)
from gateway.core.model import ArrayKind, Column, Kind

STRINGS = Choices(long_return="STRING")
NUMBERS = Choices(decimal_return="DOUBLE_OR_LONG")


def cell(kind: CellKind, value: Any, choices: Choices = Choices()) -> Any:  # noqa: B008
    rows = json.loads(b"[" + row_encoder((kind,), choices)([(value,)]) + b"]")
    assert len(rows) == 1
    assert len(rows[0]) == 1
    assert len(rows[0][0]) == 1, "exactly one member"
    return rows[0][0]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Kind.BOOL, True, {"booleanValue": True}),
        (Kind.BOOL, False, {"booleanValue": False}),
        (Kind.INT, -(2**63), {"longValue": -(2**63)}),
        (Kind.FLOAT8, 1.5, {"doubleValue": 1.5}),
        (Kind.FLOAT8, math.nan, {"doubleValue": "NaN"}),
        (Kind.FLOAT8, math.inf, {"doubleValue": "Infinity"}),
        (Kind.FLOAT8, -math.inf, {"doubleValue": "-Infinity"}),
        (Kind.FLOAT4, "3.14", {"doubleValue": 3.14}),
        (Kind.FLOAT4, "1e+20", {"doubleValue": 1e20}),
        (Kind.FLOAT4, "NaN", {"doubleValue": "NaN"}),
        (Kind.FLOAT4, "-Infinity", {"doubleValue": "-Infinity"}),
        (Kind.NUMERIC, "19.90", {"stringValue": "19.90"}),
        (Kind.NUMERIC, "NaN", {"stringValue": "NaN"}),
        (Kind.TEXT, 'a"b\\c\n\x01ż😀', {"stringValue": 'a"b\\c\n\x01ż😀'}),
        (Kind.JSON, '{"a": [1, 2]}', {"stringValue": '{"a":[1,2]}'}),
        (Kind.BYTEA, "\\x00ff", {"blobValue": "AP8="}),
        (Kind.BYTEA, "\\x", {"blobValue": ""}),
        (Kind.DATE, "infinity", {"stringValue": "infinity"}),
        (Kind.TIMESTAMP, "2024-01-15 03:34:56.78", {"stringValue": "2024-01-15 03:34:56.78"}),
        (Kind.TIMESTAMPTZ, "2024-01-15 03:34:56+00", {"stringValue": "2024-01-15 03:34:56"}),
        (Kind.TIMESTAMPTZ, "0044-03-15 00:00:00+00 BC", {"stringValue": "0044-03-15 00:00:00 BC"}),
        (Kind.TIMESTAMPTZ, "-infinity", {"stringValue": "-infinity"}),
        (Special.BIT, "1", {"booleanValue": True}),
        (Special.BIT, "0", {"booleanValue": False}),
        (Special.TIMETZ, "15:30:00-08", {"stringValue": "23:30:00"}),
        (None, "x", {"stringValue": "x"}),
        (None, 5, {"longValue": 5}),
        (None, 2**63, {"stringValue": str(2**63)}),
        (None, True, {"booleanValue": True}),
        (None, math.nan, {"doubleValue": "NaN"}),
        (None, b"\0", {"blobValue": "AA=="}),
        (None, ["a", None], {"arrayValue": {"stringValues": ["a", None]}}),
    ],
)
def test_each_kind_has_its_member(kind: CellKind, value: Any, expected: Any) -> None:
    assert cell(kind, value) == expected


@pytest.mark.parametrize(
    "kind", [*Kind, *Special, ArrayKind(Kind.INT), SpecialArray(Special.TIMETZ), None]
)
def test_null_is_null_whatever_the_kind(kind: CellKind) -> None:
    for choices in (Choices(), STRINGS, NUMBERS):
        assert cell(kind, None, choices) == {"isNull": True}


def test_whole_float4_stays_a_double() -> None:
    assert row_encoder((Kind.FLOAT4,))([("5",)]) == b'[{"doubleValue":5.0}]'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5", {"longValue": 5}),
        ("-5", {"longValue": -5}),
        ("5.00", {"doubleValue": 5.0}),
        ("9223372036854775807", {"longValue": 2**63 - 1}),
        ("9223372036854775808", {"doubleValue": 2.0**63}),
        ("NaN", {"stringValue": "NaN"}),
        ("Infinity", {"stringValue": "Infinity"}),
        ("1" * 400, {"stringValue": "1" * 400}),
    ],
)
def test_decimals_as_numbers(value: str, expected: Any) -> None:
    assert cell(Kind.NUMERIC, value, NUMBERS) == expected


def test_longs_as_strings() -> None:
    assert cell(Kind.INT, 2**60, STRINGS) == {"stringValue": str(2**60)}
    assert cell(ArrayKind(Kind.INT), [1, None], STRINGS) == {
        "arrayValue": {"stringValues": ["1", None]}
    }


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Kind.INT, [1, None, 3], {"longValues": [1, None, 3]}),
        (Kind.INT, [], {"longValues": []}),
        (Kind.BOOL, [True, None], {"booleanValues": [True, None]}),
        (Kind.BOOL, [], {"booleanValues": []}),
        (Kind.FLOAT8, [1.5, math.nan], {"doubleValues": [1.5, "NaN"]}),
        (Kind.FLOAT4, ["3.14", None], {"doubleValues": [3.14, None]}),
        (Kind.FLOAT4, [], {"doubleValues": []}),
        (Kind.NUMERIC, ["1.50"], {"stringValues": ["1.50"]}),
        (Kind.TEXT, [], {"stringValues": []}),
        (Kind.TEXT, ["a", None], {"stringValues": ["a", None]}),
        (Kind.JSON, ['{"a": 1}'], {"stringValues": ['{"a":1}']}),
        (Kind.BYTEA, ["\\x00"], {"stringValues": ["\\x00"]}),
        (Kind.TIMESTAMPTZ, ["2024-01-15 03:34:56+00"], {"stringValues": ["2024-01-15 03:34:56"]}),
        (
            Kind.INT,
            [[1, None], [3, 4]],
            {"arrayValues": [{"longValues": [1, None]}, {"longValues": [3, 4]}]},
        ),
        (
            Kind.TEXT,
            [[["a"]]],
            {"arrayValues": [{"arrayValues": [{"stringValues": ["a"]}]}]},
        ),
    ],
)
def test_arrays(kind: Kind, value: Any, expected: Any) -> None:
    assert cell(ArrayKind(kind), value) == {"arrayValue": expected}


def test_arrays_of_decimals_are_of_one_variant() -> None:
    kind = ArrayKind(Kind.NUMERIC)
    assert cell(kind, ["1", "2.5", None, "NaN"], NUMBERS) == {
        "arrayValue": {"doubleValues": [1, 2.5, None, "NaN"]}
    }
    assert cell(kind, ["1", "9" * 400], NUMBERS) == {
        "arrayValue": {"stringValues": ["1", "9" * 400]}
    }
    assert cell(kind, [], NUMBERS) == {"arrayValue": {"doubleValues": []}}
    assert cell(kind, [["1"], ["2"]], NUMBERS)["arrayValue"]["arrayValues"][1] == {
        "doubleValues": [2]
    }


def test_the_widest_table_of_postgresql_can_be_written() -> None:
    row = tuple(range(1664))
    rows = json.loads(b"[" + row_encoder((Kind.INT,) * 1664)([row, row]) + b"]")
    assert [field["longValue"] for field in rows[1]] == list(row)


def test_no_rows_are_nothing() -> None:
    assert row_encoder((Kind.INT,))([]) == b""
    assert row_encoder(())([(), ()]) == b"[],[]"


def test_columns_that_need_a_turn_of_their_own_are_known_by_type() -> None:
    columns = [
        Column("a", "int4", kind=Kind.INT),
        Column("b", "bit", kind=Kind.TEXT, typmod=1),
        Column("c", "bit", kind=Kind.TEXT, typmod=3),
        Column("d", "timetz", kind=Kind.TEXT),
    ]
    assert cell_kinds(columns) == (Kind.INT, Special.BIT, Kind.TEXT, Special.TIMETZ)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15:30:00-08", "23:30:00"),
        ("23:30:00.25-08", "07:30:00.25"),
        ("01:00:00+05:30", "19:30:00"),
        ("00:00:00+00", "00:00:00"),
        ("00:00:10+00:00:20", "23:59:50"),
    ],
)
def test_a_time_with_zone_is_moved_to_utc(text: str, expected: str) -> None:
    assert time_in_utc(text) == expected


def test_json_is_compacted_without_being_read() -> None:
    number = "1" * 1000 + ".10"
    text = f'{{"a": {number}, "b" : "x , y : \\" z", "a": 1E+400}}'
    assert compact_json(text) == f'{{"a":{number},"b":"x , y : \\" z","a":1E+400}}'
    deep = "[" * 5000 + "]" * 5000
    assert compact_json(deep) == deep


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_json)
def test_compact_json_means_the_same(value: Any) -> None:
    assert compact_json(json.dumps(value)) == json.dumps(value, separators=(",", ":"))
    spread = json.dumps(value, ensure_ascii=False, indent=2)
    assert compact_json(spread) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


_int8 = st.integers(-(2**63), 2**63 - 1)
_texts = st.text(st.characters(codec="utf-8"))


@given(st.lists(st.tuples(st.none() | _int8, st.none() | _texts, st.none() | st.floats())))
def test_rows_arrive_as_they_were(rows: list[tuple[Any, ...]]) -> None:
    written = row_encoder((Kind.INT, Kind.TEXT, Kind.FLOAT8))(rows)
    read = [
        tuple(None if "isNull" in field else next(iter(field.values())) for field in row)
        for row in json.loads(b"[" + written + b"]")
    ]
    for (a, b, c), (d, e, f) in zip(rows, read, strict=True):
        assert (a, b) == (d, e)
        assert repr(c) == repr(None if f is None else float(f))


@given(st.binary())
def test_bytes_arrive_as_they_were(content: bytes) -> None:
    assert base64.b64decode(cell(Kind.BYTEA, "\\x" + content.hex())["blobValue"]) == content


def test_formatted_values() -> None:
    columns: list[tuple[CellKind, Any, Any]] = [
        (Kind.INT, 1, 1),
        (Kind.FLOAT8, 10.0, 10.0),
        (Kind.FLOAT8, math.nan, "NaN"),
        (Kind.FLOAT4, "3.14", 3.14),
        (Kind.NUMERIC, "1.50", "1.50"),
        (Kind.BOOL, True, True),
        (Kind.BYTEA, "\\x00ff", "AP8="),
        (Kind.JSON, '{"a": 1}', '{"a":1}'),
        (Kind.TIMESTAMPTZ, "2024-01-15 03:34:56+00", "2024-01-15 03:34:56"),
        (ArrayKind(Kind.INT), [[1, None]], [[1, None]]),
        (ArrayKind(Kind.TEXT), [], []),
        (Special.BIT, "1", True),
        (None, "x", "x"),
        (Kind.TEXT, None, None),
    ]
    kinds = [kind for kind, _, _ in columns]
    labels = [str(n) for n in range(len(columns))]
    escaped = formatted_encoder(labels, kinds)([[value for _, value, _ in columns]])
    text = json.loads(b'"' + escaped + b'"')
    assert list(json.loads(text).values()) == [expected for _, _, expected in columns]


def test_formatted_numbers_as_asked() -> None:
    both = Choices("DOUBLE_OR_LONG", "STRING")
    encode = formatted_encoder(["a", "b", "c"], [Kind.INT, Kind.NUMERIC, Kind.NUMERIC], both)
    assert json.loads(json.loads(b'"' + encode([(1, "2.5", "NaN")]) + b'"')) == {
        "a": "1",
        "b": 2.5,
        "c": "NaN",
    }
