"""What Arrow gets from the text of COPY is what it gets from the driver's values."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.formats import arrow, arrow_copied
from gateway.core.model import Column, Kind

nanoarrow = pytest.importorskip("nanoarrow")

_TEXT = st.text(st.sampled_from("\\Nxyz\t\n\r\b\f\v ü{}"), max_size=6)
_SCALED = st.sampled_from(["0.00", "0.05", "-0.05", "-0.50", "0.10", "7.00", "1000.00", "-100.01"])
_MICROSECONDS = st.integers(-(1 << 62), 1 << 62) | st.integers(0, 10**15)


def _numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale) + 4


_COLUMNS: list[tuple[Column, Any]] = [
    (Column("b", "bool", kind=Kind.BOOL), st.booleans()),
    (Column("s", "int2", kind=Kind.INT), st.integers(-(2**15), 2**15 - 1)),
    (Column("i", "int8", kind=Kind.INT), st.integers(-(2**63), 2**63 - 1)),
    (Column("o", "oid", kind=Kind.INT), st.integers(0, 2**32 - 1)),
    (Column("t", "text"), _TEXT),
    (Column("t", "jsonb", kind=Kind.JSON), st.sampled_from(['{"a": "\\\\n"}', "null"])),
    (Column("n", "numeric", kind=Kind.NUMERIC), st.sampled_from(["NaN", "1.50"])),
    (Column("d", "numeric", kind=Kind.NUMERIC, typmod=_numeric(12, 2)), _SCALED),
    (Column("w", "numeric", kind=Kind.NUMERIC, typmod=_numeric(30, 2)), _SCALED),
    (
        Column("w", "numeric", kind=Kind.NUMERIC, typmod=_numeric(18, 0)),
        st.sampled_from(["0", "-7"]),
    ),
    (Column("y", "bytea", kind=Kind.BYTEA), st.binary(max_size=4).map(lambda b: "\\x" + b.hex())),
    (Column("f", "float8", kind=Kind.FLOAT8), st.floats(allow_nan=False)),
    (Column("z", "timestamptz", kind=Kind.TIMESTAMPTZ), _MICROSECONDS),
    (Column("u", "timestamp", kind=Kind.TIMESTAMP), _MICROSECONDS),
    (Column("a", "date", kind=Kind.DATE), st.integers(-(2**30), 2**30)),
]
_ESCAPES = str.maketrans(
    {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
)


def _sent(column: Column, value: Any) -> str:
    """What COPY writes of *value*, in the form that is asked for."""
    if value is None:
        return "\\N"
    if column.kind is Kind.BOOL:
        return "t" if value else "f"
    if column.kind is Kind.FLOAT8:
        return "\\\\x" + struct.pack(">d", value).hex()
    if column.kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        return "\\\\x" + value.to_bytes(8, "big", signed=True).hex()
    if column.kind is Kind.DATE:
        return "\\\\x" + value.to_bytes(4, "big", signed=True).hex()
    return str(value).translate(_ESCAPES)


def _read(stream: bytes) -> list[Any]:
    array = nanoarrow.ArrayStream.from_readable(stream).read_all()
    return [_cells(child) for child in array.iter_children()]


def _cells(child: Any) -> Any:
    if child.schema.type in (nanoarrow.Type.TIMESTAMP, nanoarrow.Type.DATE32):
        # Python's own dates end at the year 9999.
        return b"".join([bytes(chunk.buffer(1)) for chunk in child.iter_chunks()])
    return child.to_pylist()


@st.composite
def _tables(draw: st.DrawFn) -> tuple[list[Column], list[tuple[Any, ...]], int]:
    chosen = draw(st.lists(st.sampled_from(range(len(_COLUMNS))), min_size=1, unique=True))
    columns = [_COLUMNS[index][0] for index in chosen]
    values = []
    for index in chosen:
        column, made = _COLUMNS[index]
        times = column.kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ, Kind.DATE)
        # What stands in the place of a NULL is nobody's concern, and yet part of the buffer.
        values.append(made if times or draw(st.booleans()) else made | st.none())
    rows = draw(st.lists(st.tuples(*values), max_size=12))
    return columns, rows, draw(st.integers(0, 400))


@given(_tables())
@settings(deadline=None, max_examples=150)
def test_arrow_from_copy_is_arrow_from_the_drivers_rows(
    table: tuple[list[Column], list[tuple[Any, ...]], int],
) -> None:
    columns, rows, at = table
    data = "".join("\t".join(map(_sent, columns, row)) + "\n" for row in rows).encode()
    copied, driver = arrow_copied.Writer(columns), arrow.Writer(columns)
    stream = copied.head() + copied.feed(data[:at]) + copied.feed(data[at:]) + copied.tail()
    assert _read(stream) == _read(driver.head() + driver.rows(rows) + driver.tail())


@pytest.mark.parametrize("kind", [Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ])
@pytest.mark.parametrize("sign", ["7f", "80"])
def test_an_infinity_is_refused(kind: Kind, sign: str) -> None:
    size = 4 if kind is Kind.DATE else 8
    rest = "ff" if sign == "7f" else "00"
    writer = arrow_copied.Writer([Column("at", kind.value, kind=kind)])
    with pytest.raises(arrow.NotRepresentable):
        writer.feed(f"\\\\x{sign}{rest * (size - 1)}\n".encode())
        writer.tail()


def test_the_place_of_a_null_time_is_marked() -> None:
    writer = arrow_copied.Writer([Column("at", "date", kind=Kind.DATE)])
    stream = writer.head() + writer.feed(b"\\\\x00000001\n\\N\n") + writer.tail()
    array = nanoarrow.ArrayStream.from_readable(stream).read_all()
    assert [str(row["at"]) for row in array.to_pylist()] == ["2000-01-02", "None"]
