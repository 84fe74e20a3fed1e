r"""Named placeholders: `:name` in SQL text becomes `$n`, one number for each name.

PostgreSQL knows `$n` only; callers of the RDS Data API write `:name`. A name
used twice keeps one number, so that `group by :a` still means what `select :a`
means. Strings, quoted identifiers, comments, `::` and `:=` are left alone.

    >>> rewritten = rewrite("select :id::int where note <> ':id' or parent = :id", {"id"})
    >>> rewritten.sql
    "select $1::int where note <> ':id' or parent = $1"
    >>> rewritten.names
    ('id',)
    >>> rewrite("select :n", {"n"}, {"n": "int8"}).sql
    'select ($1::int8)'

A colon is also what PostgreSQL writes between the bounds of a slice, `a[1:2]`,
and between key and value in `json_object('k': 1)`. There a name nobody
supplied is no mistake, and a number behind an operand is no placeholder.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from .errors import InvalidParameter
from .lexer import Token, TokenKind, tokens

_WORD = TokenKind.WORD
_PUNCT = TokenKind.PUNCT
_PLACEHOLDER = TokenKind.PLACEHOLDER
_PARAM = TokenKind.PARAM

_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)?(?: precision)?(?:\[\])*")
_MOST_DIGITS = 6
_NOT_AN_OPERAND = re.compile(
    "all|and|any|array|as|asymmetric|both|case|cast|collate|distinct|else|except|fetch|for|from"
    "|group|having|ilike|in|intersect|is|leading|like|limit|not|notnull|offset|on|only|or|order"
    "|returning|select|similar|some|symmetric|then|to|trailing|union|using|variadic|when|where"
    "|window|with",
    re.ASCII | re.IGNORECASE,
)
"""Reserved words that no value ends with. A word that may name a column is not in it."""


class Shift(NamedTuple):
    """One replaced stretch; offsets count characters from 0, ends are exclusive."""

    start: int
    end: int
    caller_start: int
    caller_end: int


class Place(NamedTuple):
    """One occurrence of a placeholder, which is cast by itself and so has its own number."""

    start: int
    """Characters before it in the caller's text."""


class Rewritten(NamedTuple):
    """SQL as PostgreSQL reads it, and the way back to what the caller wrote."""

    sql: str
    names: tuple[str, ...] = ()
    """The name whose value is `$1`, then `$2` …; names the text does not use are not in it."""
    shifts: tuple[Shift, ...] = ()
    """In the order of the text; empty if nothing was replaced."""
    repeated: tuple[int, ...] = ()
    """Of a text with `$n`: whose values follow behind the caller's own."""


def rewrite(
    sql: str,
    names: Collection[str],
    casts: Mapping[str | Place, str] | None = None,
    toks: Sequence[Token] | None = None,
    *,
    strict: bool = False,
) -> Rewritten:
    """Replace each `:name` in code by its `$n`, or by `($n::type)` for a name in *casts*.

    A `Place` in *casts* gets a number of its own:

    >>> rewrite("select :n is null or id = :n", {"n"}, {Place(7): "text"}).sql
    'select ($1::text) is null or id = $2'

    *names* are those a value was supplied for; with none, the text is left as it is. If
    *strict*, every occurrence has a number of its own, and slices are not understood.
    `InvalidParameter` if a name has no value, or if the text mixes `$1` with names.
    """
    if not names or (":" not in sql and "$" not in sql):
        return Rewritten(sql)
    supplied = frozenset(names)
    written = {key: _cast("", kind)[1:] for key, kind in casts.items()} if casts else {}
    numbers: dict[str, int] = {}
    order: list[str] = []
    replaced: list[tuple[int, int, str]] = []
    brackets: list[str] = []
    before: Token | None = None
    earlier: Token | None = None
    for token in tokens(sql) if toks is None else toks:
        kind, start, end = token
        if kind is _PUNCT:
            char = sql[start]
            if (char == "[" or char == "(") and not strict:
                brackets.append(_opened(sql, char, before, earlier))
            elif (char == "]" or char == ")") and brackets:
                brackets.pop()
        elif kind is _PLACEHOLDER:
            name = sql[start + 1 : end]
            inside = brackets[-1] if brackets else ""
            if name not in supplied:
                if inside != "[" and not (inside == "{" and _is_operand(sql, before)):
                    raise InvalidParameter(f"Cannot find parameter: {name}", field="parameters")
            elif not (inside and name.isdigit() and _is_operand(sql, before)):
                cast = written.get(Place(start)) if written else None
                if strict or cast is not None:
                    number = len(order) + 1
                else:
                    number = numbers.setdefault(name, len(order) + 1)
                if number > len(order):
                    order.append(name)
                cast = cast or written.get(name)
                text = f"(${number}{cast}" if cast is not None else f"${number}"
                # "limit:n" must not become the identifier "limit$1".
                if before is not None and before.end == start and _glues(sql[start - 1]):
                    text = " " + text
                replaced.append((start, end, text))
        elif kind is _PARAM:
            raise InvalidParameter(
                f"{sql[start:end]} cannot be used together with named parameters",
                field="parameters",
                hint="name every parameter, or none",
            )
        earlier, before = before, token
    if not replaced:
        return Rewritten(sql)
    return _replace(sql, tuple(order), replaced)


def cast_positional(
    sql: str,
    casts: Mapping[int | Place, str],
    toks: Sequence[Token] | None = None,
    *,
    count: int = 0,
) -> Rewritten:
    """Write `($n::type)` for each `$n` in code whose number is in *casts*.

    A `Place` in *casts* gets a number behind the *count* that the caller gave values for.

    >>> cast_positional("select $1, '$1', $2", {1: "int8"}).sql
    "select ($1::int8), '$1', $2"
    >>> cast_positional("select $1 is null or id = $1", {Place(7): "text"}, count=1)[::3]
    ('select ($2::text) is null or id = $1', (1,))
    """
    if not casts or "$" not in sql:
        return Rewritten(sql)
    replaced = []
    repeated: list[int] = []
    for kind, start, end in tokens(sql) if toks is None else toks:
        if kind is _PARAM and end - start - 1 <= _MOST_DIGITS:
            number = int(sql[start + 1 : end])
            cast, text = casts.get(Place(start)), sql[start:end]
            if cast is not None:
                repeated.append(number)
                text = f"${count + len(repeated)}"
            else:
                cast = casts.get(number)
            if cast is not None:
                replaced.append((start, end, _cast(text, cast)))
    if not replaced:
        return Rewritten(sql)
    return _replace(sql, (), replaced)._replace(repeated=tuple(repeated))


def caller_position(rewritten: Rewritten, position: int) -> int:
    """Turn PostgreSQL's 1-based character position into one in the caller's own SQL.

    A position anywhere in what replaced a placeholder is that of the placeholder.

    >>> rewritten = rewrite("select :number + :wrong", {"number", "wrong"})
    >>> rewritten.sql
    'select $1 + $2'
    >>> caller_position(rewritten, 13)
    18
    """
    shifts = rewritten.shifts
    offset = position - 1
    nearest = bisect_right(shifts, offset, key=itemgetter(0)) - 1
    if nearest < 0:
        return position
    _, end, caller_start, caller_end = shifts[nearest]
    return (caller_start if offset < end else offset - end + caller_end) + 1


def _replace(sql: str, names: tuple[str, ...], replaced: list[tuple[int, int, str]]) -> Rewritten:
    pieces: list[str] = []
    shifts: list[Shift] = []
    done = length = 0
    for start, end, text in replaced:
        pieces += (sql[done:start], text)
        length += start - done
        shifts.append(Shift(length, length + len(text), start, end))
        length += len(text)
        done = end
    pieces.append(sql[done:])
    return Rewritten("".join(pieces), names, tuple(shifts))


def _cast(text: str, kind: str) -> str:
    if not _TYPE.fullmatch(kind):
        raise InvalidParameter("this is not the name of a type", field="parameters")
    return f"({text}::{kind})"


def _opened(sql: str, char: str, before: Token | None, earlier: Token | None) -> str:
    """What a bracket encloses: `[` a subscript, `{` keys and values of JSON, or nothing (``)."""
    if before is None:
        return ""
    if char == "[":
        return "[" if _is_operand(sql, before) else ""
    if before.kind is _WORD and before.end - before.start in (11, 14):
        called = sql[before.start : before.end].lower()
        # A schema before the name makes it a function like any other.
        schema = earlier is not None and sql[earlier.start] == "."
        return "{" if called in ("json_object", "json_objectagg") and not schema else ""
    return ""


def _is_operand(sql: str, before: Token | None) -> bool:
    """Whether a value can end with the token *before*, so that no new one can begin."""
    if before is None:
        return False
    kind = before.kind
    if kind is _WORD:
        return _NOT_AN_OPERAND.fullmatch(sql, before.start, before.end) is None
    if kind is _PUNCT:
        return sql[before.start] in ")]"
    return kind is not TokenKind.OPERATOR


def _glues(char: str) -> bool:
    return char == "_" or char == "$" or not char.isascii() or char.isalnum()
