from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest
from gateway.core.formats.upload import (
    MAX_HEADER,
    BadLine,
    EndMarks,
    Lines,
    Numbering,
    names,
    read_header,
    row_writer,
)
from gateway.core.model import ArrayKind, Kind


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(st.lists(st.sampled_from([b"a", b"", b" ", b"{}", b"bb\r"]), max_size=12), st.integers(1, 5))
def test_lines_are_whole_however_the_pieces_are_cut(parts: list[bytes], size: int) -> None:
    data = b"\n".join(parts)
    lines = Lines()
    found = [each for piece in _pieces(data, size) for each in lines.feed(piece)]
    rest = lines.rest()
    if rest is not None:
        found.append(rest)
    expected = [(n, part) for n, part in enumerate(data.split(b"\n"), 1) if part.strip()]
    assert found == expected


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"\\.\n", 1),
        (b"a\n\\.\nb\n", 2),
        (b"a\r\n\\.\r\nb", 2),
        (b"a\nb\nccccc\n\\.", 4),
        (b"a\\.\n\\.b\n\\\\.\n", 0),
        (b'"\\."\n', 0),
    ],
)
def test_an_end_mark_is_found_across_pieces(data: bytes, line: int, size: int) -> None:
    marks = EndMarks()
    pieces = _pieces(data, size)

    def feed() -> None:
        for piece in pieces[:-1]:
            marks.feed(piece)
        marks.feed(pieces[-1], last=True)

    if not line:
        feed()
        return
    with pytest.raises(BadLine) as caught:
        feed()
    assert caught.value.line == line


def test_a_header_may_have_line_ends_in_its_names() -> None:
    header = read_header(b'"a\r\nb",c\r\n1,2\r\n')
    assert header is not None
    assert (header.names, header.size) == (("a\r\nb", "c"), 10)


@pytest.mark.parametrize("data", [b"", b"a,b", b'"a\n'])
def test_half_a_header_is_none_yet(data: bytes) -> None:
    assert read_header(data) is None


@pytest.mark.parametrize("data", [b"a,,b\n", b'a,"b"c\n', b"\xff\n", b"a" * MAX_HEADER, b"\n"])
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(BadLine, match="line 1: the header"):
        read_header(data)


def test_names_in_quotes_keep_what_separates() -> None:
    assert names('a,"b,c", d ,"e""f"', ",", 9) == ("a", "b,c", "d", 'e"f')


@pytest.mark.parametrize("text", ["", ",", "a,", 'a"b', '""', "a b\0"])
def test_names_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        names(text, ",", 9)


def test_rows_keep_digits_and_json_text() -> None:
    kinds = (Kind.NUMERIC, Kind.JSON, ArrayKind(Kind.NUMERIC), ArrayKind(Kind.JSON), Kind.BYTEA)
    write = row_writer(tuple("njaxb"), kinds)
    row = {
        "n": b"1.500000000000000000001",
        "j": b'{"a": 1.10}',
        "a": b"[1.10, null, [2]]",
        "x": b'[{"a":1},[1]]',
        "b": b'"AP8="',
    }
    assert write(1, row) == (
        b'1.500000000000000000001\t{"a": 1.10}\t{"1.10",NULL,{"2"}}\t'
        b'{"{\\\\"a\\\\":1}","[1]"}\t\\\\x00ff\n'
    )


def test_text_cannot_leave_its_cell() -> None:
    write = row_writer(("a", "b"), (Kind.TEXT, Kind.TEXT))
    assert write(1, {"a": b'"\\\\.\\n\\t\\r"', "b": b'"\\\\N"'}) == b"\\\\.\\n\\t\\r\t\\\\N\n"


def test_rows_find_their_lines_past_blank_ones() -> None:
    numbering = Numbering()
    for line in (1, 2, 5, 6, 9):
        numbering.add(line)
    assert [numbering.line(row) for row in range(1, 6)] == [1, 2, 5, 6, 9]
