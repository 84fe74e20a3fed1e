"""PostgreSQL's text of arrays goes both ways without a change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.arrays import array_text, read_array, write_array
from gateway.core.errors import InvalidParameter
from tests.fix_gateway import Gateway
from tests.fix_sessions import calling

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
TRICKY = st.text(st.sampled_from('a{}",\\; \t\nNULL'), max_size=6)
ITEM = st.none() | TEXT | TRICKY


def even(depth: int) -> st.SearchStrategy[list[Any]]:
    """Nested lists that are as long as their neighbours."""

    def of(sizes: list[int]) -> st.SearchStrategy[list[Any]]:
        inner: st.SearchStrategy[Any] = ITEM
        for size in sizes:
            inner = st.lists(inner, min_size=size, max_size=size)
        return inner

    return st.lists(st.integers(1, 3), min_size=depth, max_size=depth).flatmap(of)


ARRAYS = st.integers(1, 3).flatmap(even)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("{}", []),
        (" { } ", []),
        ("{a}", ["a"]),
        ("{a,b}", ["a", "b"]),
        ("{ a , b }", ["a", "b"]),
        ("{a b}", ["a b"]),
        ("{NULL,null,nUlL}", [None, None, None]),
        ('{"NULL"}', ["NULL"]),
        ('{""}', [""]),
        ('{"",a,""}', ["", "a", ""]),
        (r'{"a\"b","c\\d"}', ['a"b', "c\\d"]),
        (r"{a\,b}", ["a,b"]),
        (r"{\{}", ["{"]),
        (r"{a\ }", ["a "]),
        (r"{a\\ }", ["a\\"]),
        (r"{N\ULL}", ["NULL"]),
        ("{\u00a0a\u3000}", ["\u00a0a\u3000"]),
        ('{"a,b","{c}"}', ["a,b", "{c}"]),
        ("{{a,b},{c,d}}", [["a", "b"], ["c", "d"]]),
        ("{{{a}},{{NULL}}}", [[["a"]], [[None]]]),
        ("[2:3]={a,b}", ["a", "b"]),
        ("[1:1][-2:-1]={{a,b}}", [["a", "b"]]),
        ('{"line\nbreak"}', ["line\nbreak"]),
        ("{é€}", ["é€"]),
    ],
)
def test_text_is_read_as_postgresql_means_it(text: str, items: list[Any]) -> None:
    assert read_array(text) == items


@pytest.mark.parametrize(
    "text",
    ["", " ", "a", "1,2", "{", "}", "{a", "a}", "{a}}", "{a}b", "{a,}", "{,a}", '{"a}', '{"a"b}',
     '{a"b"}', "{a,,b}", "{{a}", "{a b}c", "[1:2]", "[1:2]=", "{a;b", "{{{{{{{a}}}}}}}"],
)  # fmt: skip
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        read_array(text)


def test_another_delimiter() -> None:
    assert read_array("{(1,1),(0,0);(2,2),(1,1)}", ";") == ["(1,1),(0,0)", "(2,2),(1,1)"]
    assert write_array(["(1,1),(0,0)", None], ";") == '{"(1,1),(0,0)";NULL}'
    assert array_text(["(1,1),(0,0)", "a;b"], str, ";") == '{(1,1),(0,0);"a;b"}'


@given(ARRAYS)
def test_what_was_written_is_read_back(items: list[Any]) -> None:
    assert read_array(write_array(items)) == items
    assert read_array(array_text(items, str)) == items
    assert read_array(write_array(items, ";"), ";") == items


# The gateway runs in a thread of this process, and rolls dice while examples are made.
@pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")
@settings(max_examples=10, deadline=None)
@given(lists=st.lists(ARRAYS, min_size=10, max_size=20))
def test_postgresql_reads_and_prints_the_same(
    shared_gateway: Gateway, lists: list[list[Any]]
) -> None:
    # As text on the way there and on the way back: the gateway's own reading is not in it.
    with calling(shared_gateway) as caller:
        for items in lists:
            written, printed = caller.rows(
                "select array_to_json($1::text::text[])::text, $1::text[]::text",
                [write_array(items)],
            )[0]
            assert json.loads(written) == items
            assert read_array(printed) == items
            assert printed == array_text(items, str)
