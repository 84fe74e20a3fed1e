r"""PostgreSQL's tokens in linear time: where code ends and strings and comments begin.

Whoever looks for a placeholder, a first keyword or the end of a statement asks
here, so that text inside a string, a quoted identifier or a comment is never
taken for code. Comments and white space give no token.

    >>> sql = "select 'it''s :no', :id::int -- :no"
    >>> [(token.kind.name, sql[token.start : token.end]) for token in tokens(sql)[1:]]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('STRING', "'it''s :no'"), ('PUNCT', ','), ('PLACEHOLDER', ':id'),
     ('OPERATOR', '::'), ('WORD', 'int')]

The rules are those of PostgreSQL's manual, chapter "Lexical Structure", with
standard_conforming_strings on. Text that PostgreSQL would not accept may give
other tokens than PostgreSQL's own; text that it accepts never does, but for
two conveniences: `:name` is one token, and so is `N'...'`.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

from .errors import StatementRefused


class TokenKind(IntEnum):
    """What a token is, as far as the gateway has to know."""

    WORD = 1
    """A keyword or an identifier without quotes."""
    PUNCT = 2
    """One of `( ) [ ] , ; . :`, the pair `..`, or a character SQL has no use for."""
    PLACEHOLDER = 3
    """`:name`, the name made of ASCII letters, digits and underscores."""
    STRING = 4
    """Any string constant: plain, E, U&, B, X, N, or between dollar quotes."""
    NUMBER = 5
    """A number without its sign."""
    OPERATOR = 6
    """An operator; also `::` and `:=`."""
    PARAM = 7
    """`$1`."""
    QUOTED = 8
    """`"name"` or `U&"name"`."""


class Token(NamedTuple):
    """A stretch of the text; offsets count characters, `end` is exclusive."""

    kind: TokenKind
    start: int
    end: int


_SPACE = r"[ \t\n\r\f\v]"
_HEAD = r"[A-Za-z_\x80-\U0010ffff]"
_TAIL = r"[A-Za-z0-9_$\x80-\U0010ffff]"
_TAG = rf"\$(?:{_HEAD}[A-Za-z0-9_\x80-\U0010ffff]*+)?+\$"
_DIGITS = r"[0-9](?:_?[0-9])*+"

# Two literals on different lines are one string, and it goes on in the manner
# of its first part: after E'...' a backslash still escapes. Line comments may
# stand between the parts, block comments may not.
_GAP = r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\n\r\f\v]++|--[^\n\r]*+[\n\r])*+"
_QUOTE = rf"'(?:'|{_GAP}')"

# Everything is possessive or needs one character to decide, so no part of the
# text is looked at more often than a fixed number of times. What no regular
# expression can match (nested comments, dollar quotes) is left to _leap.
_SCAN = re.compile(
    rf"""
    (?:{_SPACE}++|--[^\n\r]*+|/\*(?:[^*/]++|\*(?!/)|/(?!\*))*+\*/)*+
    (?:
      ((?![eEbBxXnN]'|[uU]&['"]){_HEAD}{_TAIL}*+)                             # WORD
    | ([(),;\[\]]|\.\.|\.(?![0-9]))                                           # PUNCT
    | ((?<!:):(?![eEbBxXnN]')[A-Za-z0-9_]++(?![$\x80-\U0010ffff]))            # PLACEHOLDER
    | ((?:[nN]|[uU]&)?'[^']*+(?:{_QUOTE}[^']*+)*+'                            # STRING
      |[bBxX]'[^']*+(?:'{_GAP}'[^']*+)*+'
      |[eE]'[^'\\]*+(?:(?:\\.|{_QUOTE})[^'\\]*+)*+')
    | (0[xX](?:_?[0-9A-Fa-f])++|0[oO](?:_?[0-7])++|0[bB](?:_?[01])++          # NUMBER
      |(?:{_DIGITS}(?:\.(?!\.)(?:{_DIGITS})?+)?+|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?+)
    | ((?:[~!@\#^&|`?+*%<>=]|-(?!-)|/(?!\*))++|:[:=])                         # OPERATOR
    | (\$[0-9]++)                                                             # PARAM
    | ((?:[uU]&)?"[^"]*+(?:""[^"]*+)*+")                                      # QUOTED
    | ({_TAG}|.)                                                              # for _leap
    | \Z
    )
    """,
    re.VERBOSE | re.DOTALL,
)
_OTHER = 9
_KINDS = (TokenKind.PUNCT, *TokenKind)  # by number of the group
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_KEEPS_SIGN = re.compile(r"[~!@#^&|`?%]")


def tokens(sql: str) -> list[Token]:
    """Split *sql* into tokens; `StatementRefused` if a quote or a comment stays open."""
    if not sql.isascii():
        _refuse_surrogates(sql)
    if "\0" in sql:
        raise StatementRefused("SQL holds a NUL character")
    found: list[Token] = []
    append, new, kinds, operator = found.append, tuple.__new__, _KINDS, TokenKind.OPERATOR
    at: int | None = 0
    while at is not None:
        for match in _SCAN.finditer(sql, at):
            number = match.lastindex
            if number is None:
                return found
            start, end = match.span(number)
            if number == _OTHER:
                at = _leap(sql, start, end, found)
                break
            kind = kinds[number]
            if kind is operator and end - start > 1 and sql[end - 1] in "+-":
                _split_signs(sql, start, end, found)
            else:
                append(new(Token, (kind, start, end)))
    return found


def _leap(sql: str, start: int, end: int, found: list[Token]) -> int:
    """Read what the expression cannot; return where to go on."""
    char = sql[start]
    if end - start > 1 or sql.startswith("$$", start):
        close = sql.find(sql[start:end], end)
        if close < 0:
            raise StatementRefused("unterminated dollar-quoted string in SQL")
        close += end - start
        found.append(Token(TokenKind.STRING, start, close))
        return close
    if char == "/":
        depth = 0
        for edge in _COMMENT_EDGE.finditer(sql, start):
            depth += 1 if edge[0] == "/*" else -1
            if depth == 0:
                return edge.end()
        raise StatementRefused("unterminated comment in SQL")
    if char == '"' or (char in "uU" and sql.startswith('&"', start + 1)):
        raise StatementRefused("unterminated quoted identifier in SQL")
    if char in "'eEbBxXnNuU":
        raise StatementRefused("unterminated quoted string in SQL")
    found.append(Token(TokenKind.PUNCT, start, end))
    return end


def _split_signs(sql: str, start: int, end: int, found: list[Token]) -> None:
    """An operator ends in a sign only if it holds a character no standard operator has."""
    keep = end
    if not _KEEPS_SIGN.search(sql, start, end):
        keep = start + max(1, len(sql[start:end].rstrip("+-")))
    found.append(Token(TokenKind.OPERATOR, start, keep))
    found.extend(Token(TokenKind.OPERATOR, at, at + 1) for at in range(keep, end))


def _refuse_surrogates(sql: str) -> None:
    try:
        sql.encode()
    except UnicodeEncodeError:
        raise StatementRefused("SQL holds a lone surrogate, which is no character") from None
