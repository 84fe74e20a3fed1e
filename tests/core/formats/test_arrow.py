"""The stream as nanoarrow itself reads it back; other readers are asked in tests/wire."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from gateway.core.formats.arrow import NotRepresentable, Writer, days, microseconds
from gateway.core.model import ArrayKind, Column, Kind

na = pytest.importorskip("nanoarrow")


def _numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale) + 4


def _read(columns: tuple[Column, ...], *batches: Any) -> list[list[Any]]:
    writer = Writer(columns)
    data = writer.head() + b"".join(map(writer.rows, batches)) + writer.tail()
    stream = na.ArrayStream.from_readable(data)
    rows = []
    for batch in stream:
        columns_read = [batch.child(i).to_pylist() for i in range(batch.n_children)]
        rows += [list(row) for row in zip(*columns_read, strict=True)]
    return rows


def test_every_kind_and_null_come_back() -> None:
    columns = (
        Column("b", "bool", kind=Kind.BOOL),
        Column("i2", "int2", kind=Kind.INT),
        Column("i4", "int4", kind=Kind.INT),
        Column("i8", "int8", kind=Kind.INT),
        Column("o", "oid", kind=Kind.INT),
        Column("f4", "float4", kind=Kind.FLOAT4),
        Column("f8", "float8", kind=Kind.FLOAT8),
        Column("t", "text"),
        Column("x", "bytea", kind=Kind.BYTEA),
        Column("j", "jsonb", kind=Kind.JSON),
        Column("u", "numeric", kind=Kind.NUMERIC),
        Column("d", "date", kind=Kind.DATE),
        Column("a", "_int4", kind=ArrayKind(Kind.INT)),
        Column("s", "_text", kind=ArrayKind(Kind.TEXT)),
    )
    row = (
        True, -32768, -(1 << 31), (1 << 63) - 1, 4294967295, "0.5", 1e300, "é😀", "\\x00ff",
        '{"a": 1.10}', "1e400", "1970-01-02", [1, None, -3], ["a", ""],
    )  # fmt: skip
    null = (None,) * len(columns)
    expected = [
        True, -32768, -(1 << 31), (1 << 63) - 1, 4294967295, 0.5, 1e300, "é😀", b"\x00\xff",
        '{"a": 1.10}', "1e400", datetime.date(1970, 1, 2), [1, None, -3], ["a", ""],
    ]  # fmt: skip
    assert _read(columns, [row, null], [null], [row]) == [
        expected, list(null), list(null), expected,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("digits", "precision", "scale"),
    [
        ("0.00", 4, 2),
        ("-0.01", 4, 2),
        ("92233720368547758.08", 20, 2),
        ("-92233720368547758.09", 20, 2),
        ("99999999999999999999999999999999999999", 38, 0),
        ("-0." + "9" * 38, 38, 38),
    ],
)
def test_decimals_are_exact(digits: str, precision: int, scale: int) -> None:
    column = Column("n", "numeric", kind=Kind.NUMERIC, typmod=_numeric(precision, scale))
    writer = Writer((column,))
    data = writer.head() + writer.rows([(digits,), (None,), (digits,)]) + writer.tail()
    _, batch = list(na.ArrayStream.from_readable(data))
    view = batch.child(0).buffers[1]
    whole = int.from_bytes(bytes(view)[:16], "little", signed=True)
    assert whole == int(digits.replace(".", ""))
    assert bytes(view)[:16] == bytes(view)[32:48]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (Column("n", "numeric", kind=Kind.NUMERIC, typmod=_numeric(4, 2)), "NaN"),
        (Column("d", "date", kind=Kind.DATE), "infinity"),
        (Column("d", "date", kind=Kind.DATE), -(1 << 31)),
        (Column("d", "date", kind=Kind.DATE), (1 << 31) - 1),
        (Column("t", "timestamp", kind=Kind.TIMESTAMP), "-infinity"),
        (Column("t", "timestamptz", kind=Kind.TIMESTAMPTZ), (1 << 63) - 1),
        (Column("t", "timestamptz", kind=Kind.TIMESTAMPTZ), -(1 << 63)),
        (Column("a", "_int4", kind=ArrayKind(Kind.INT)), [[1], [2]]),
    ],
)
def test_what_does_not_fit_is_refused_and_never_changed(column: Column, value: Any) -> None:
    writer = Writer((column,))
    writer.head()
    with pytest.raises(NotRepresentable, match="does not fit"):
        writer.rows([(None,), (value,)])


def test_times_as_text_and_as_counts_are_the_same() -> None:
    column = Column("t", "timestamptz", kind=Kind.TIMESTAMPTZ)
    day = Column("d", "date", kind=Kind.DATE)
    as_text = Writer((column, day))
    as_count = Writer((column, day))
    as_text.head(), as_count.head()
    moment = (microseconds("2024-01-31 08:00:00.123456+00")) - 946_684_800_000_000
    assert as_text.rows([("2024-01-31 08:00:00.123456+00", "1999-12-31")]) == as_count.rows(
        [(moment, -1)]
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1970-01-01", 0), ("1969-12-31", -1), ("2000-02-29", 11_016), ("9999-12-31", 2_932_896),
        ("10000-01-01", 2_932_897), ("0001-01-01", -719_162), ("0001-12-31 BC", -719_163),
        ("4713-01-01 BC", -2_440_550), ("5874897-12-31", 2_145_042_905),
    ],
)  # fmt: skip
def test_days_of_years_that_python_does_not_have(text: str, number: int) -> None:
    assert days(text) == number


def test_columns_of_one_name_are_two_columns() -> None:
    columns = (Column("x", "int4", kind=Kind.INT), Column("x", "int4", kind=Kind.INT))
    assert _read(columns, [(1, 2)]) == [[1, 2]]


def test_no_rows_are_a_schema_and_an_end() -> None:
    assert _read((Column("t", "text"),)) == []
    assert _read((Column("t", "text"),), []) == []


def test_a_large_batch_is_several() -> None:
    column = Column("i", "int4", kind=Kind.INT)
    rows = [(i,) for i in range(10_000)]
    assert _read((column,), rows) == [[i] for i in range(10_000)]
