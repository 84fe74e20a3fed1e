"""PostgreSQL's own scanner is the oracle; it speaks through postgast."""

import re
from re import _parser

import postgast
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.core.errors import StatementRefused
from gateway.core.lexer import _SCAN, TokenKind, tokens

_KIND_OF = {
    "PARAM": TokenKind.PARAM,
    "UIDENT": TokenKind.QUOTED,
    "Op": TokenKind.OPERATOR,
    "TYPECAST": TokenKind.OPERATOR,
    "COLON_EQUALS": TokenKind.OPERATOR,
    "EQUALS_GREATER": TokenKind.OPERATOR,
    "LESS_EQUALS": TokenKind.OPERATOR,
    "GREATER_EQUALS": TokenKind.OPERATOR,
    "NOT_EQUALS": TokenKind.OPERATOR,
    "DOT_DOT": TokenKind.PUNCT,
    "ICONST": TokenKind.NUMBER,
    "FCONST": TokenKind.NUMBER,
    "SCONST": TokenKind.STRING,
    "USCONST": TokenKind.STRING,
    "BCONST": TokenKind.STRING,
    "XCONST": TokenKind.STRING,
}


def ours(sql: str) -> list[tuple[TokenKind, str]]:
    """Our tokens, `:name` taken apart as PostgreSQL does."""
    found: list[tuple[TokenKind, str]] = []
    for kind, start, end in tokens(sql):
        if kind is TokenKind.PLACEHOLDER:
            found.append((TokenKind.PUNCT, ":"))
            name = sql[start + 1 : end]
            start, kind = start + 1, TokenKind.NUMBER if name[0].isdigit() else TokenKind.WORD
        found.append((kind, sql[start:end]))
    return found


def postgresqls(sql: str) -> list[tuple[TokenKind | None, str]]:
    found: list[tuple[TokenKind | None, str]] = []
    raw = sql.encode()
    for token in postgast.scan(sql).tokens:
        number = token.token
        name = f"ASCII_{number}" if number < 128 else postgast.pg_query_pb2.Token.Name(number)
        text = raw[token.start : token.end].decode()
        if name in ("SQL_COMMENT", "C_COMMENT"):
            continue
        if found and found[-1][0] is None:
            found[-1] = (TokenKind.STRING, found[-1][1] + text)
            continue
        kind: TokenKind | None
        if name == "NCHAR" and text in ("n", "N"):
            kind = None  # one token for us, two for PostgreSQL
        elif name in _KIND_OF:
            kind = _KIND_OF[name]
        elif name.startswith("ASCII_"):
            kind = TokenKind.OPERATOR if text in "+-*/<>=%^" else TokenKind.PUNCT
        else:
            kind = TokenKind.QUOTED if text.startswith('"') else TokenKind.WORD
        found.append((kind, text))
    return found


# Where the oracle itself is not PostgreSQL, and where `:name` is deliberately one token:
# a line comment between the parts of one string; a colon glued to a number or a U& literal.
_NOT_COMPARABLE = re.compile(
    r"""'[ \t\r\n\f\v]*--|:[0-9_A-Za-z]*[0-9_]\.|:[0-9_]+[eE][+-]|:[uU]&['"]|:[0-9]+[A-Za-z_]"""
)


def agree(sql: str) -> None:
    assume(not _NOT_COMPARABLE.search(sql))
    try:
        expected = postgresqls(sql)
    except postgast.PgQueryError as error:
        if "unterminated" in str(error) and "zero-length" not in str(error):
            with pytest.raises(StatementRefused, match="unterminated"):
                tokens(sql)
        return
    assert ours(sql) == expected


FRAGMENTS = st.one_of(
    st.sampled_from(
        re.split(
            r"\s+",
            r"""select a $1 $12 :name :n1 ::int ::text := ; , ( ) [ ] . .. 1 1.5 .5 1e5 1..2
            1_000 0x1F 'x' 'it''s' '' 'a:b' E'a\'b' e'\\' E'\n' U&'d\0061' u&"d" B'01' x'1f' N'n'
            n'm' "q" "a:b" "a""b" $$d:x$$ $t$ $$ :no $t$ $é$ü$é$ a$b a$$b $ -- /* /**/ /*:c*/
            /*/*n*/:c*/ /*/**/*/ ?| ?& ? @> <@ #- #>> -> ->> <-> =- *- @- |/ ||/ !~* <= >= <> != =>
            ~~ ^ % & = + - * / < > é größe naïve_1 _x \ { } ~ ` end begin atomic""",
        )
    ),
    st.sampled_from(
        [" ", "\n", "\t", "\r", "\f", "\v", "--c\n", "--c\r", "-- it's\n", "/* ' */", "'a'\n'b'"]
    ),
    st.text("'\"$*/-:\\", min_size=1, max_size=3),
)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(FRAGMENTS, st.sampled_from(["", " ", " ", "\n"])), max_size=14))
def test_fragments_in_any_order_are_split_as_postgresql_splits_them(
    pieces: list[tuple[str, str]],
) -> None:
    agree("".join(fragment + gap for fragment, gap in pieces))


@settings(max_examples=1500, deadline=None)
@given(st.text("'\"$/*-+:;\\eEnuU&ab1._ \n\r()[]=@?é", max_size=24))
@example("$a$ $b$a$")
@example("/*/ */")
@example("/* **/")
@example("/*/*/ */ */")
@example("//*x*/")
@example("+--\n-")
@example("$a b$ $1$ $1$")
@example("'a'\r'b' 'c'")
@example("'a'\n \n'b'")
@example("=-+-1@-+")
@example("a$$b$$")
@example(':&"1"')
@example('"a"$$b$$')
def test_character_soup_is_split_as_postgresql_splits_it(sql: str) -> None:
    agree(sql)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        pytest.param("'a' --c\n'b'", ["'a' --c\n'b'"], id="a comment inside a continued string"),
        pytest.param(
            "E'a' --c'\n --d\n'b\\'c'",
            ["E'a' --c'\n --d\n'b\\'c'"],
            id="a continued E string goes on escaping",
        ),
        pytest.param("'a' /**/\n'b'", ["'a'", "'b'"], id="a block comment ends a string for good"),
        pytest.param("B'0''1'", ["B'0'", "'1'"], id="a bit string has no doubled quotes"),
        pytest.param("X'0'\n'1'", ["X'0'\n'1'"], id="a bit string may be continued"),
        pytest.param("'a' 'b'", ["'a'", "'b'"], id="two strings on one line are two"),
        pytest.param("'a\\'", ["'a\\'"], id="a backslash escapes nothing in a plain string"),
        pytest.param("x::int", ["x", "::", "int"], id="a cast is no placeholder"),
        pytest.param("f(a:=b)", ["f", "(", "a", ":=", "b", ")"], id="an assignment is none"),
        pytest.param(":a:b", [":a", ":b"], id="placeholders may touch"),
        pytest.param(": a", [":", "a"], id="a lone colon is none"),
        pytest.param(":é", [":", "é"], id="a name is ASCII"),
        pytest.param(":aé", [":", "aé"], id="no part of an identifier is a name"),
        pytest.param(":E'\\''", [":", "E'\\''"], id="a prefix belongs to its string"),
        pytest.param("a[:1:2]", ["a", "[", ":1", ":2", "]"], id="digits may be a name"),
        pytest.param("--x\rcommit", ["commit"], id="a carriage return ends a comment"),
        pytest.param("--x\u2028commit", [], id="a Unicode line separator does not"),
        pytest.param("a\u00a0b", ["a\u00a0b"], id="a no-break space is a letter to PostgreSQL"),
    ],
)
def test_tokens_are(sql: str, expected: list[str]) -> None:
    assert [sql[start:end] for _, start, end in tokens(sql)] == expected


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        pytest.param("select 'a", "string", id="plain string"),
        pytest.param("select E'a\\'", "string", id="E string"),
        pytest.param("select E'a'\n'b\\'", "string", id="second part of an E string"),
        pytest.param("select u&'", "string", id="U& string"),
        pytest.param('select "a', "identifier", id="quoted identifier"),
        pytest.param('select U&"a""', "identifier", id="U& identifier"),
        pytest.param("select $$a$", "dollar-quoted", id="dollar quote"),
        pytest.param("select $a$ $b$ $A$", "dollar-quoted", id="tags differ in case"),
        pytest.param("/* /* */ commit", "comment", id="nested comment"),
    ],
)
def test_what_stays_open_is_named(sql: str, what: str) -> None:
    with pytest.raises(StatementRefused, match=f"unterminated .*{what}"):
        tokens(sql)


@pytest.mark.parametrize("sql", ["select '\0'", "\0", "select '\ud800'", "--\udfff"])
def test_what_postgresql_has_no_character_for_is_refused(sql: str) -> None:
    with pytest.raises(StatementRefused):
        tokens(sql)


@pytest.mark.parametrize(
    "unit",
    [
        "''",
        "+-",
        "/*x*/ ",
        "1_",
        "\\'",
        "'a'--c\n",
        "$a",
        "$a$",
        ":",
        "::",
        '""',
        "U&",
        "$",
        "*/",
        "é",
    ],
)
def test_long_repetitions_make_a_token_list_no_longer_than_the_text(unit: str) -> None:
    for sql in (unit * 20_000, "'" + unit * 20_000 + "'", "E'" + unit * 20_000 + "'"):
        try:
            found = tokens(sql)
        except StatementRefused:
            continue
        assert len(found) <= len(sql)
        ends = [0] + [token.end for token in found]
        assert all(
            before <= token.start < token.end for before, token in zip(ends, found, strict=False)
        )


def test_comments_nested_as_deep_as_the_text_is_long_are_read() -> None:
    assert tokens("/*" * 100_000 + "*/" * 100_000) == []


def repeats(node: object) -> list[object]:
    """Names of the repetitions in a parsed expression that may match more than once."""
    if isinstance(node, tuple) and node and "REPEAT" in str(node[0]) and node[1][1] > 1:
        return [str(node[0]), *repeats(node[1][2])]
    if isinstance(node, tuple | list | _parser.SubPattern):
        return [name for part in node for name in repeats(part)]
    return []


def test_no_repetition_in_the_expression_can_be_undone() -> None:
    # What cannot be undone is not tried twice: this is what keeps the scanner linear.
    found = repeats(_parser.parse(_SCAN.pattern, _SCAN.flags & ~re.UNICODE))
    assert set(found) == {"POSSESSIVE_REPEAT"}
    assert len(found) > 20
