from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.formats.csv import LineEnds, encoder, float_text, header
from gateway.core.model import ArrayKind, Column, Kind

TEXT = Column("t", "text")
TWO = (Column("a", "text"), Column("b", "text"))
texts = st.text(st.sampled_from('ab",\r\n \\.é\x00'.replace("\x00", "")), max_size=6)


@given(st.lists(st.tuples(texts.filter(bool), texts.filter(bool)), max_size=20))
def test_a_reader_of_rfc_4180_finds_every_value(rows: list[tuple[str, str]]) -> None:
    written = (header(TWO) + encoder(TWO)(rows)).decode()
    assert list(csv.reader(io.StringIO(written, newline=""), strict=True)) == [
        ["a", "b"], *map(list, rows),
    ]  # fmt: skip


def test_null_is_nothing_and_an_empty_string_is_quoted() -> None:
    assert encoder(TWO)([(None, ""), ("", None), ("x", None)]) == b',""\r\n"",\r\nx,\r\n'
    assert encoder((TEXT,))([(None,), ("",)]) == b'\r\n""\r\n'


def test_a_lone_end_mark_is_quoted() -> None:
    assert encoder((TEXT,))([("\\.",)]) == b'"\\."\r\n'
    assert encoder(TWO)([("\\.", "x")]) == b"\\.,x\r\n"


@pytest.mark.parametrize(
    ("type", "kind", "value", "cell"),
    [
        ("bool", Kind.BOOL, True, "t"),
        ("bool", Kind.BOOL, False, "f"),
        ("int8", Kind.INT, 9007199254740993, "9007199254740993"),
        ("numeric", Kind.NUMERIC, "1.50", "1.50"),
        ("bytea", Kind.BYTEA, "\\x00ff", "\\x00ff"),
        ("timestamptz", Kind.TIMESTAMPTZ, "2024-01-31 08:00:00+00", "2024-01-31 08:00:00+00"),
        ("jsonb", Kind.JSON, '{"a": 1}', '"{""a"": 1}"'),
        ("_int4", ArrayKind(Kind.INT), [1, None, [2]], '"{1,NULL,{2}}"'),
        ("_bool", ArrayKind(Kind.BOOL), [True, False], '"{t,f}"'),
        ("_text", ArrayKind(Kind.TEXT), ["a b", "", "NULL", 'q"\\'], None),
        ("_box", ArrayKind(Kind.TEXT), ["(1,1),(0,0)", "(2,2),(0,0)"], None),
        ("int2vector", ArrayKind(Kind.INT), [1, 2], "1 2"),
    ],
)
def test_values_are_postgresqls_own_text(type: str, kind: Any, value: Any, cell: str) -> None:
    expected = {
        "_text": '"{""a b"","""",""NULL"",""q\\""\\\\""}"',
        "_box": '"{(1,1),(0,0);(2,2),(0,0)}"',
    }
    columns = (Column("c", type, kind=kind), Column("d", "int4", kind=Kind.INT))
    written = encoder(columns)([(value, 1)]).decode()
    assert written == f"{cell or expected[type]},1\r\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "-0"), (1.5, "1.5"), (0.1, "0.1"), (1e-4, "0.0001"), (1e-5, "1e-05"),
        (123456789012345.0, "123456789012345"), (1e15, "1e+15"), (1234567890123456.0,
        "1.234567890123456e+15"), (-1234567890123456.8, "-1.2345678901234568e+15"),
        (1e16, "1e+16"), (1e300, "1e+300"), (float("nan"), "NaN"), (float("-inf"), "-Infinity"),
    ],
)  # fmt: skip
def test_floats_have_postgresqls_digits(value: float, text: str) -> None:
    assert float_text(value) == text


@given(st.lists(st.lists(texts, min_size=2, max_size=2), max_size=8), st.integers(1, 7))
def test_line_ends_change_outside_quotes_alone_wherever_the_pieces_are_cut(
    rows: list[list[str]], size: int
) -> None:
    def written(end: str) -> bytes:
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
        return out.getvalue().encode()

    data = written("\n")
    ends = LineEnds()
    fed = b"".join(ends.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert fed + ends.rest() == written("\r\n")


def test_no_columns_and_no_rows() -> None:
    assert header(()) == b""
    assert encoder(TWO)([]) == b""
