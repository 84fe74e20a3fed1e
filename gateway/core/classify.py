r"""What a statement does, told from its first words: read, write, or neither.

The answer chooses the way a statement takes; it is never a promise. That a
`select` writes nothing is PostgreSQL's to say, on a read-only connection. What
is a promise: COPY and the beginning and end of transactions never pass, however
they are wrapped in comments, parentheses and semicolons.

    >>> classify("/* all */ (select 1) union select 2;")
    Classified(verb='SELECT', path=<Path.READ: 'read'>)
    >>> classify("with gone as (delete from t returning *) select * from gone").path
    <Path.WRITE: 'write'>
    >>> classify("create index concurrently i on t (a)").path
    <Path.BARE: 'bare'>
    >>> fingerprint("select * from t where id in (1, 2, 3)")
    '5b28884c2058f536'

Keywords are those of PostgreSQL's grammar; what cannot run in a transaction
block is listed in the manual page of each command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

from .errors import EmptyStatement, SeveralStatements, StatementRefused
from .lexer import Token, TokenKind, tokens

_WORD = TokenKind.WORD
_PUNCT = TokenKind.PUNCT


class Path(Enum):
    """The way a statement takes to PostgreSQL."""

    READ = "read"
    """Alone on a read-only connection; PostgreSQL refuses it there if it writes."""
    WRITE = "write"
    """In a read-write transaction of its own, or in the caller's."""
    BARE = "bare"
    """Outside any transaction block: PostgreSQL refuses it inside one."""
    SAVEPOINT = "savepoint"
    """SAVEPOINT, RELEASE, ROLLBACK TO, SET TRANSACTION: only in the caller's transaction."""


class Classified(NamedTuple):
    """What is known of a statement before it is run."""

    verb: str
    """First keyword in upper case; empty if the text does not begin with a word."""
    path: Path


_READS = frozenset({"SELECT", "VALUES", "TABLE", "SHOW"})
_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_DML = (_READS - {"SHOW"}) | _WRITES | {"WITH", "EXPLAIN"}
_COPY_HINT = "read with a large-result format, write with a batch of parameters"
_CONTROL_HINT = "begin, commit and roll back with the gateway's own transaction operations"


def is_dml(verb: str) -> bool:
    """Whether a statement with this first keyword reads or changes rows, or explains that."""
    return verb in _DML


def classify(sql: str, toks: Sequence[Token] | None = None) -> Classified:
    """Say which way *sql* has to take.

    `EmptyStatement` or `SeveralStatements` if it is not exactly one statement,
    `StatementRefused` for COPY and for transaction control.
    """
    if toks is None:
        toks = tokens(sql)
    first = _first(sql, toks)
    if ";" in sql:
        _refuse_several(sql, toks, first)
    verb = _word(sql, toks[first]) if toks[first].kind is _WORD else ""
    if verb in _READS:
        return Classified(verb, Path.READ)
    decide = _DECIDE.get(verb)
    if decide is None:
        return Classified(verb, Path.WRITE)
    return Classified(verb, decide([_word(sql, token) for token in toks[first:]]))


def fingerprint(sql: str, toks: Sequence[Token] | None = None) -> str:
    """Sixteen hex digits that are the same for statements that differ in values only.

    Case, comments, layout, and the length of a list of values make no difference.

    >>> fingerprint("SELECT 'a' FROM t -- x") == fingerprint("select :b from t;")
    True
    """
    parts: list[str] = []
    for kind, start, end in tokens(sql) if toks is None else toks:
        if kind is _WORD:
            parts.append(sql[start:end].lower())
        elif kind in _VALUES:
            parts.append("?")
        else:
            parts.append(sql[start:end])
    text = _SIGN.sub("", " ".join(parts).strip(" ;"))
    text = _ROWS.sub("( ? )", _LIST.sub("( ? )", text))
    return blake2b(text.encode(), digest_size=8).hexdigest()


_VALUES = frozenset({TokenKind.STRING, TokenKind.NUMBER, TokenKind.PARAM, TokenKind.PLACEHOLDER})
_SIGN = re.compile(r"(?<=[(,=] )[-+] (?=\?)")
_LIST = re.compile(r"\( \?(?: , \?)++ \)")
_ROWS = re.compile(r"\( \? \)(?: , \( \? \))++")


def _first(sql: str, toks: Sequence[Token]) -> int:
    """Index of the token the statement begins with; PostgreSQL ignores what is skipped."""
    wrapped: int | None = None
    for index, (kind, start, _) in enumerate(toks):
        if kind is not _PUNCT or sql[start] not in ";(":
            return index
        if sql[start] == "(":
            wrapped = index
    if wrapped is None:
        raise EmptyStatement("SQL is empty")
    return wrapped


def _word(sql: str, token: Token) -> str:
    """A keyword in upper case, other tokens as they are; PostgreSQL folds ASCII only."""
    text = sql[token.start : token.end]
    return text.upper() if token.kind is _WORD and text.isascii() else text


def _refuse_several(sql: str, toks: Sequence[Token], first: int) -> None:
    """Refuse a semicolon with code on both sides of it, except where one statement has them.

    One statement has them between the parentheses of CREATE RULE and in the body of a
    function, from BEGIN ATOMIC to an END that itself follows a semicolon: the END of a CASE
    cannot. Bodies do not nest.
    """
    bodies = 1 if _makes_function(sql, toks, first) else 0
    depth = 0
    in_body = ended = False
    before = ""
    for token in toks[first:]:
        kind = token.kind
        if kind is _PUNCT:
            before = _word(sql, token)
            if before == ";":
                ended = ended or (depth == 0 and not in_body)
                continue
            if before == "(":
                depth += 1
            elif before == ")":
                depth = max(0, depth - 1)
        elif bodies and depth == 0 and kind is _WORD:
            word = _word(sql, token)
            if word == "ATOMIC" and before == "BEGIN":
                in_body, bodies = True, 0
            before = word
        elif in_body and depth == 0 and kind is _WORD:
            word = _word(sql, token)
            if word == "END" and before in (";", "ATOMIC"):
                in_body = False
            before = word
        else:
            before = ""
        if ended:
            raise SeveralStatements(
                "Multistatements aren't supported.", hint="send each statement by itself"
            )


def _makes_function(sql: str, toks: Sequence[Token], first: int) -> bool:
    words = [_word(sql, token) for token in toks[first : first + 4]]
    if words[:1] != ["CREATE"]:
        return False
    made = words[3:] if words[1:3] == ["OR", "REPLACE"] else words[1:2]
    return made[:1] == ["FUNCTION"] or made[:1] == ["PROCEDURE"]


# Each of these is told all words of a statement, its verb first.


def _refuse_copy(_: list[str]) -> Path:
    raise StatementRefused("COPY is not supported", hint=_COPY_HINT)


def _refuse_control(words: list[str]) -> Path:
    raise StatementRefused(
        f"{words[0]} cannot be sent as a statement: it controls transactions", hint=_CONTROL_HINT
    )


def _rollback(words: list[str]) -> Path:
    to = 2 if words[1:2] in (["WORK"], ["TRANSACTION"]) else 1
    return Path.SAVEPOINT if words[to : to + 1] == ["TO"] else _refuse_control(words)


def _prepare(words: list[str]) -> Path:
    return _refuse_control(words) if words[1:2] == ["TRANSACTION"] else Path.WRITE


def _savepoint(_: list[str]) -> Path:
    return Path.SAVEPOINT


def _set(words: list[str]) -> Path:
    named = words[2:3] if words[1:2] in (["LOCAL"], ["SESSION"]) else words[1:2]
    return Path.SAVEPOINT if named == ["TRANSACTION"] else Path.WRITE


def _with(words: list[str]) -> Path:
    return Path.READ if _WRITES.isdisjoint(words) else Path.WRITE


def _explain(words: list[str]) -> Path:
    """ANALYZE runs what it explains; an option may also be quoted."""
    inner = 1
    runs = False
    if words[1:2] == ["("]:
        inner = words.index(")") + 1 if ")" in words else len(words)
        options = words[1:inner]
        runs = any(option in _RUNS or option[-1:] == '"' for option in options)
    else:
        while words[inner : inner + 1] and (words[inner] in _RUNS or words[inner] == "VERBOSE"):
            runs = runs or words[inner] in _RUNS
            inner += 1
    while words[inner : inner + 1] == ["("]:
        inner += 1
    if not runs or words[inner : inner + 1] in (["SELECT"], ["VALUES"], ["TABLE"]):
        return Path.READ
    return _with(words) if words[inner : inner + 1] == ["WITH"] else Path.WRITE


def _bare(_: list[str]) -> Path:
    return Path.BARE


def _create_or_drop(words: list[str]) -> Path:
    if words[1:2] and words[1] in ("DATABASE", "TABLESPACE", "SUBSCRIPTION"):
        return Path.BARE
    index = 2 if words[1:2] == ["UNIQUE"] else 1
    return Path.BARE if words[index : index + 2] == ["INDEX", "CONCURRENTLY"] else Path.WRITE


def _alter(words: list[str]) -> Path:
    if words[1:2] == ["SYSTEM"]:
        return Path.BARE
    if words[1:2] == ["DATABASE"] and words[3:5] == ["SET", "TABLESPACE"]:
        return Path.BARE
    if words[1:2] == ["TABLE"] and "DETACH" in words and "CONCURRENTLY" in words:
        return Path.BARE
    return Path.WRITE


def _reindex(words: list[str]) -> Path:
    options = words.index(")") if words[1:2] == ["("] and ")" in words else 0
    if "CONCURRENTLY" in words:
        return Path.BARE
    wide = (["DATABASE"], ["SYSTEM"], ["SCHEMA"])
    return Path.BARE if words[options + 1 : options + 2] in wide else Path.WRITE


def _cluster(words: list[str]) -> Path:
    """Without a table it is all tables, each in a transaction of its own."""
    options = words.index(")") if words[1:2] == ["("] and ")" in words else 0
    rest = [word for word in words[options + 1 :] if word not in (";", "VERBOSE")]
    return Path.WRITE if rest else Path.BARE


def _discard(words: list[str]) -> Path:
    return Path.BARE if words[1:2] == ["ALL"] else Path.WRITE


_RUNS = frozenset({"ANALYZE", "ANALYSE"})
_DECIDE: dict[str, Callable[[list[str]], Path]] = {
    "ABORT": _refuse_control,
    "ALTER": _alter,
    "BEGIN": _refuse_control,
    "CLUSTER": _cluster,
    "COMMIT": _refuse_control,
    "COPY": _refuse_copy,
    "CREATE": _create_or_drop,
    "DISCARD": _discard,
    "DROP": _create_or_drop,
    "END": _refuse_control,
    "EXPLAIN": _explain,
    "PREPARE": _prepare,
    "REINDEX": _reindex,
    "RELEASE": _savepoint,
    "ROLLBACK": _rollback,
    "SAVEPOINT": _savepoint,
    "SET": _set,
    "START": _refuse_control,
    "VACUUM": _bare,
    "WITH": _with,
}
