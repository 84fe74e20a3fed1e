"""Only what PostgreSQL reads as code is rewritten, and positions find their way back."""

import re
from itertools import pairwise

import postgast
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import InvalidParameter
from gateway.core.lexer import tokens
from gateway.core.placeholders import (
    Place,
    Rewritten,
    caller_position,
    cast_positional,
    rewrite,
)


@pytest.mark.parametrize(
    ("sql", "expected", "names"),
    [
        pytest.param("select :a, :b, :a", "select $1, $2, $1", "ab", id="a name used twice is one"),
        pytest.param("select :b, :a", "select $1, $2", "ba", id="numbers follow the text"),
        pytest.param("select :a::int", "select $1::int", "a", id="a cast is kept"),
        pytest.param("select x::a", "select x::a", "", id="a cast to a type of that name"),
        pytest.param("f(a:=:a)", "f(a:=$1)", "a", id="an assignment is kept"),
        pytest.param("': :a' || :b", "': :a' || $1", "b", id="inside a string"),
        pytest.param("E'\\':a' || :b", "E'\\':a' || $1", "b", id="inside an E string"),
        pytest.param("U&':a' || :b", "U&':a' || $1", "b", id="inside a U& string"),
        pytest.param('":a" = :b', '":a" = $1', "b", id="inside a quoted identifier"),
        pytest.param("$$ :a $$ || :b", "$$ :a $$ || $1", "b", id="between dollar quotes"),
        pytest.param("$x$ $$:a $x$||:b", "$x$ $$:a $x$||$1", "b", id="between tagged quotes"),
        pytest.param("-- :a\n:b", "-- :a\n$1", "b", id="inside a line comment"),
        pytest.param("/* :a /* :b */ :c */:d", "/* :a /* :b */ :c */$1", "d", id="nested comment"),
        pytest.param(
            "t ? :a and t ?| :b", "t ? $1 and t ?| $2", "ab", id="question mark operators"
        ),
        pytest.param("x=:a", "x=$1", "a", id="directly after an operator"),
        pytest.param("x=-:a", "x=-$1", "a", id="directly after a sign"),
        pytest.param("x?:a", "x?$1", "a", id="directly after a question mark"),
        pytest.param("limit:a", "limit $1", "a", id="no identifier is made"),
        pytest.param("é:a", "é $1", "a", id="no identifier with other letters is made"),
        pytest.param("a$:a", "a$ $1", "a", id="no identifier with a dollar is made"),
        pytest.param("(:1, :2)", "($1, $2)", "12", id="digits are names"),
        pytest.param("(:2, :1, :0)", "($1, $2, $3)", "210", id="digits are names not numbers"),
        pytest.param("x[:a]", "x[$1]", "a", id="a subscript"),
        pytest.param("x[1:2]", "x[1:2]", "", id="a slice with a number somebody supplied"),
        pytest.param("x[i:2]", "x[i:2]", "", id="a slice from a column"),
        pytest.param("x[:1:2]", "x[$1:2]", "1", id="a slice from a placeholder"),
        pytest.param("x[f(1):2]", "x[f(1):2]", "", id="a slice from a call"),
        pytest.param("x[f(:1):2]", "x[f($1):2]", "1", id="a placeholder in a call in a slice"),
        pytest.param("x[:a: :b]", "x[$1: $2]", "ab", id="a slice of two placeholders"),
        pytest.param("x[1:z]", "x[1:z]", "", id="a slice to a column"),
        pytest.param("x[:z]", "x[:z]", "", id="a slice without lower bound"),
        pytest.param("x[1:2][1:z]", "x[1:2][1:z]", "", id="two slices"),
        pytest.param('"x"[1:z]', '"x"[1:z]', "", id="a slice of a quoted column"),
        pytest.param("f(x)[1:z]", "f(x)[1:z]", "", id="a slice of a call"),
        pytest.param(":a[1:z]", "$1[1:z]", "a", id="a slice of a placeholder"),
        pytest.param("values[1:z]", "values[1:z]", "", id="a slice of an oddly named column"),
        pytest.param("array[:a, :b]", "array[$1, $2]", "ab", id="an array is no slice"),
        pytest.param("array[[:1],[:2]]", "array[[$1],[$2]]", "12", id="an array of arrays"),
        pytest.param(
            "x[case when y then :1 else :2 end]",
            "x[case when y then $1 else $2 end]",
            "12",
            id="after a keyword inside a subscript",
        ),
        pytest.param("json_object('k':1)", "json_object('k':1)", "", id="key and value"),
        pytest.param("json_object('k':z)", "json_object('k':z)", "", id="key and column"),
        pytest.param("JSON_OBJECTAGG(k:z)", "JSON_OBJECTAGG(k:z)", "", id="aggregated"),
        pytest.param("json_object(:a: :b)", "json_object($1: $2)", "ab", id="placeholders in JSON"),
        pytest.param("select 1", "select 1", "", id="values nobody asked for are ignored"),
    ],
)
def test_rewrite_finds_placeholders_where_postgresql_would(
    sql: str, expected: str, names: str
) -> None:
    rewritten = rewrite(sql, set("abcd012"))
    assert (rewritten.sql, rewritten.names) == (expected, tuple(names))


@pytest.mark.parametrize(
    "sql",
    ["select :a, x[1:2], $1", "select ':a", ":a"],
    ids=["code", "open string", "nothing else"],
)
def test_without_parameters_nothing_is_touched(sql: str) -> None:
    assert rewrite(sql, ()) == Rewritten(sql, (), ())


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("select :zz", id="in plain code"),
        pytest.param("array[:zz]", id="in an array"),
        pytest.param("array[1, array[:zz]]", id="in an array of arrays"),
        pytest.param("x[f(:zz)]", id="in a call in a subscript"),
        pytest.param("json_object(:zz)", id="as the key of JSON"),
        pytest.param("json_object('k': :zz)", id="as the value of JSON"),
        pytest.param("s.json_object(1:zz)", id="in a function that is only named like JSON"),
    ],
)
def test_a_name_without_a_value_is_refused(sql: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^Cannot find parameter: zz$") as caught:
        rewrite(sql, {"a"})
    assert caught.value.field == "parameters"


def test_numbers_and_names_do_not_mix() -> None:
    with pytest.raises(InvalidParameter, match=r"\$1 cannot be used together"):
        rewrite("select :a, $1", {"a"})
    assert rewrite("select :a, '$1', a$1", {"a"}).sql == "select $1, '$1', a$1"


@pytest.mark.parametrize(
    ("sql", "casts", "expected"),
    [
        pytest.param("-:a", {"a": "int8"}, "-($1::int8)", id="a sign binds to the whole"),
        pytest.param(":a::text", {"a": "int8"}, "($1::int8)::text", id="before another cast"),
        pytest.param(":a+:b", {"b": "bool"}, "$1+($2::bool)", id="only those asked for"),
        pytest.param(":a+:a", {"a": "int8"}, "($1::int8)+($1::int8)", id="every occurrence"),
        pytest.param("limit:a", {"a": "int8"}, "limit ($1::int8)", id="after a word"),
        pytest.param(":a", {"a": "s.mood[]"}, "($1::s.mood[])", id="a type with schema"),
        pytest.param(":a", {"c": "int8"}, "$1", id="a name the text does not use"),
    ],
)
def test_casts_are_written_with_parentheses(sql: str, casts: dict[str, str], expected: str) -> None:
    assert rewrite(sql, {"a", "b", "c"}, casts).sql == expected


@pytest.mark.parametrize(
    ("sql", "casts", "expected"),
    [
        pytest.param("$1 + $2", {2: "int8"}, "$1 + ($2::int8)", id="only those asked for"),
        pytest.param("'$1' || $1", {1: "text"}, "'$1' || ($1::text)", id="not in strings"),
        pytest.param("a$1 + $1", {1: "text"}, "a$1 + ($1::text)", id="not in identifiers"),
        pytest.param("$1$2", {2: "text"}, "$1($2::text)", id="two that touch"),
        pytest.param("$" + "1" * 5000, {1: "text"}, "$" + "1" * 5000, id="a number beyond measure"),
        pytest.param("$1", {}, "$1", id="none"),
    ],
)
def test_casts_of_positional_parameters(sql: str, casts: dict[int, str], expected: str) -> None:
    rewritten = cast_positional(sql, casts)
    assert (rewritten.sql, rewritten.names) == (expected, ())


@pytest.mark.parametrize("kind", ["", "int8)", "int8; commit", "int8 -- ", "a'b", "1", "a b", "é"])
def test_what_is_no_type_name_is_not_written_into_sql(kind: str) -> None:
    with pytest.raises(InvalidParameter, match="name of a type"):
        rewrite("select :a", {"a"}, {"a": kind})
    with pytest.raises(InvalidParameter, match="name of a type"):
        cast_positional("select $1", {1: kind})


def test_a_position_in_a_replaced_stretch_is_that_of_the_placeholder() -> None:
    sql = "select :name, wrong, :other"
    rewritten = rewrite(sql, {"name", "other"}, {"name": "int8"})
    assert rewritten.sql == "select ($1::int8), wrong, $2"
    for within in ("($1", "$1", "int8"):
        assert caller_position(rewritten, rewritten.sql.index(within) + 1) == 8
    assert caller_position(rewritten, rewritten.sql.index("wrong") + 1) == sql.index("wrong") + 1
    assert caller_position(rewritten, rewritten.sql.index("$2") + 1) == sql.index(":other") + 1
    assert caller_position(rewritten, len(rewritten.sql) + 1) == len(sql) + 1


NAMES = ["a", "bb", "name_3", "7"]
CODE = st.sampled_from(
    re.split(
        r"\s+",
        r""":a :bb :name_3 :7 :a::int ::a := x y1 12 1.5 , ( ) ; + - = ? ?| @> <-> || select and é
        ':a' 'it''s:a' E'\':a' U&'d:a' B'1' ":a" "q"":a" $$:a$$ $t$:a$t$""",
    )
)
GAPS = st.sampled_from([" ", " ", "\n", "", "/*:a*/", "/*/*:a*/:a*/", "--:a '\n", "\t"])


def text_of(pieces: list[tuple[str, str]]) -> str:
    """The pieces in a row; what would grow together to another word is kept apart."""
    text = ""
    for code, gap in pieces:
        glued = re.search(r"[\w$]\Z", text) and re.match(r"[\w$]", code)
        text += (" " if glued else "") + code + gap
    return text


TEXTS = st.lists(st.tuples(CODE, GAPS), max_size=16).map(text_of)


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.booleans())
def test_everything_but_the_placeholders_comes_out_as_it_went_in(sql: str, cast: bool) -> None:
    rewritten = rewrite(sql, NAMES, dict.fromkeys(NAMES, "int8") if cast else {})
    done_new = done_old = 0
    for start, end, caller_start, caller_end in rewritten.shifts:
        assert rewritten.sql[done_new:start] == sql[done_old:caller_start]
        name = rewritten.names.index(sql[caller_start + 1 : caller_end]) + 1
        written = rewritten.sql[start:end].removeprefix(" ")
        assert written == (f"(${name}::int8)" if cast else f"${name}")
        done_new, done_old = end, caller_end
    assert rewritten.sql[done_new:] == sql[done_old:]


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_postgresql_sees_a_parameter_for_each_colon_it_saw_before_a_name(sql: str) -> None:
    try:
        before = postgast.scan(sql).tokens
    except postgast.PgQueryError:
        return
    raw = sql.encode()
    colons = sum(
        one.end == other.start
        and raw[one.start : one.end] == b":"
        and raw[one.start - 1] != 58
        and raw[other.start : other.end].decode() in NAMES
        for one, other in pairwise(before)
    )
    after = postgast.scan(rewrite(sql, NAMES).sql).tokens
    param = postgast.pg_query_pb2.Token.Value("PARAM")
    assert sum(token.token == param for token in after) == colons


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_positions_of_all_other_tokens_find_their_way_back(sql: str) -> None:
    rewritten = rewrite(sql, NAMES)
    for old, new in zip(tokens(sql), tokens(rewritten.sql), strict=True):
        assert caller_position(rewritten, new.start + 1) == old.start + 1


def test_tokens_may_be_handed_in() -> None:
    sql = "select :a"
    assert rewrite(sql, {"a"}, None, tokens(sql)) == rewrite(sql, {"a"})
    assert cast_positional("$1", {1: "int8"}, tokens("$1")) == cast_positional("$1", {1: "int8"})


def test_strict_gives_every_occurrence_its_own_number() -> None:
    rewritten = rewrite("select :a, :b, :a", {"a", "b"}, {"a": "text"}, strict=True)
    assert rewritten.sql == "select ($1::text), $2, ($3::text)"
    assert rewritten.names == ("a", "b", "a")


def test_strict_takes_slices_for_parameters() -> None:
    assert rewrite("select a[1:2], :b", {"b"}).names == ("b",)
    with pytest.raises(InvalidParameter, match="Cannot find parameter: 2"):
        rewrite("select a[1:2], :b", {"b"}, strict=True)


@pytest.mark.parametrize(
    ("places", "expected", "names"),
    [
        ([7], "select ($1::text), $2, $3, $2", "aab"),
        ([11], "select $1, ($2::text), $3, $1", "aab"),
        ([7, 19], "select ($1::text), $2, $3, ($4::text)", "aaba"),
        ([15], "select $1, $1, ($2::text), $1", "ab"),
        ([8], "select $1, $1, $2, $1", "ab"),
    ],
)
def test_one_occurrence_is_cast_by_itself_and_the_others_stay_one(
    places: list[int], expected: str, names: str
) -> None:
    sql = "select :a, :a, :b, :a"
    rewritten = rewrite(sql, {"a", "b"}, {Place(start): "text" for start in places})
    assert (rewritten.sql, "".join(rewritten.names)) == (expected, names)
    for shift in rewritten.shifts:
        assert caller_position(rewritten, shift.start + 1) == shift.caller_start + 1


def test_a_number_that_is_cast_in_one_place_gets_another_behind_the_rest() -> None:
    sql = "select $1 is null, $2, $1, $2"
    rewritten = cast_positional(sql, {Place(7): "int8", Place(27): "text", 1: "bool"}, count=2)
    assert rewritten.sql == "select ($3::int8) is null, $2, ($1::bool), ($4::text)"
    assert rewritten.repeated == (1, 2)
