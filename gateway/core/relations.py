"""Which tables a statement names, and what it does to them: a guard rail, not a boundary.

    >>> named = read_relations("insert into app.log select * from orders where id = $1")
    >>> sorted(named.verbs), sorted(named.tables)
    (['insert', 'select'], ['app.log', 'orders'])

What a login may do is decided by PostgreSQL. A rule may ask for less, and then a
statement runs only if it can be read here in full: anything that sqlglot does not
understand, or understands as something other than a query or a change of rows, is
refused. So this can refuse too much and permits nothing by itself. Views and functions
hide what they touch.

What is a string or a comment is decided by our own lexer, which agrees with
PostgreSQL's, before sqlglot sees the text. That one takes time that grows with the
text and can be driven into deep recursion: the text is capped, and callers run this off
the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import sqlglot
from sqlglot import expressions as exp

from .errors import GatewayError
from .lexer import TokenKind, tokens
from .policy import is_table

MAX_TEXT = 16_384  # characters

# It logs the text of what it cannot read.
sqlglot.logger.disabled = True

_VERBS: dict[type, str] = {
    exp.Insert: "insert",
    exp.Update: "update",
    exp.Delete: "delete",
    exp.Merge: "merge",
}
_ROOTS: tuple[type, ...] = (exp.Select, exp.SetOperation, exp.Values, exp.Subquery, *_VERBS)
_UNREADABLE = (exp.Command, exp.Into, exp.DDL)


class Named(NamedTuple):
    """What a statement names."""

    verbs: frozenset[str]
    tables: frozenset[str]
    """`schema.name`, or `name` where the statement leaves the schema open."""


class Unreadable(Exception):
    """The statement cannot be read with certainty."""


def read_relations(sql: str) -> Named:
    """The tables and verbs of *sql*; names of its own WITH clauses are no tables.

    Raises:
        Unreadable: It is too long, or not one statement that is understood in full.
    """
    if len(sql) > MAX_TEXT:
        raise Unreadable(f"longer than {MAX_TEXT} characters")
    try:
        parsed = sqlglot.parse(_plain(sql), dialect="postgres")
    except GatewayError as error:
        raise Unreadable("not a statement") from error
    # Parsers end in many ways; RecursionError at a few hundred parentheses.
    except Exception as error:
        raise Unreadable(type(error).__name__) from error
    statements = [each for each in parsed if each is not None]
    if len(statements) != 1 or not isinstance(statements[0], _ROOTS):
        raise Unreadable("not a query or a change of rows")
    root = statements[0]
    verbs: set[str] = set()
    names: set[str] = set()
    try:
        nodes = list(root.walk())
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    for node in nodes:
        if isinstance(node, _UNREADABLE) and type(node) not in _VERBS:
            raise Unreadable("holds what is no query")
        if type(node) in _VERBS:
            verbs.add(_VERBS[type(node)])
        elif isinstance(node, (exp.Query, exp.Values)):
            verbs.add("select")
        elif isinstance(node, exp.Table):
            name = _name(node)
            if name is not None:
                names.add(name)
    return Named(frozenset(verbs), frozenset(names))


def find_breach(
    named: Named, *, tables: Sequence[str], verbs: Sequence[str], schema: str | None = None
) -> str | None:
    """What of *named* is not allowed, in words that do not tell more than the caller knows.

    Args:
        schema: Where the caller asked for names without a schema to be looked up first.
    """
    if verbs and not named.verbs <= set(verbs):
        return f"may not {sorted(named.verbs - set(verbs))[0]}"
    if tables:
        for name in sorted(named.tables):
            whole = f"{schema}.{name}" if schema is not None and "." not in name else name
            if not any(is_table(whole, pattern) for pattern in tables):
                return "names a table that is not allowed"
    return None


def _plain(sql: str) -> str:
    """*sql* without comments, each string a short one: nothing to misread."""
    parts = []
    for token in tokens(sql):
        text = sql[token.start : token.end]
        if token.kind is TokenKind.STRING:
            text = "'x'"
        elif token.kind is TokenKind.QUOTED:
            if text[:1] != '"' or "." in text:
                raise Unreadable("holds a name of unusual form")
        elif token.kind is TokenKind.PLACEHOLDER:
            text = "$1"
        parts.append(text)
    return " ".join(parts)


def _name(table: exp.Table) -> str | None:
    """The table's name as PostgreSQL folds it; `None` for a function or a WITH clause."""
    if not isinstance(table.this, exp.Identifier):
        if isinstance(table.this, exp.Func):
            return None
        raise Unreadable("a table of unknown form")
    if table.catalog:
        raise Unreadable("names a database")
    name = _folded(table.this)
    schema = table.args.get("db")
    if isinstance(schema, exp.Identifier):
        return f"{_folded(schema)}.{name}"
    if _is_target(table):
        return name  # PostgreSQL writes to tables only, whatever a WITH clause is called
    return None if name in set(_visible(table)) else name


def _is_target(table: exp.Table) -> bool:
    node: exp.Expr = table
    if isinstance(node.parent, exp.Schema):
        node = node.parent
    return type(node.parent) in _VERBS and node.arg_key == "this"


def _folded(identifier: exp.Identifier) -> str:
    text = str(identifier.this)
    if "." in text:
        raise Unreadable("holds a name of unusual form")
    return text if identifier.args.get("quoted") else text.lower()


def _visible(table: exp.Table) -> Iterator[str]:
    """Names of WITH clauses that *table* could mean where it stands.

    Inside a clause that is not recursive only those before it count, so that
    `with t as (select * from t)` does name the table t.
    """
    below: exp.Expr = table
    inside: exp.Expr | None = None
    node = table.parent
    while node is not None:
        if isinstance(node, exp.CTE):
            inside = node
        elif isinstance(node, exp.With):
            clauses = node.expressions
            if node.args.get("recursive"):
                yield from (_alias(each) for each in clauses)
            else:
                for each in clauses:
                    if each is inside:
                        break
                    yield _alias(each)
        else:
            clause = node.args.get("with_") or node.args.get("with")
            if isinstance(clause, exp.With) and clause is not below:
                yield from (_alias(each) for each in clause.expressions)
        below, node = node, node.parent


def _alias(clause: exp.Expr) -> str:
    alias = clause.args.get("alias")
    this = alias.this if isinstance(alias, exp.TableAlias) else None
    if not isinstance(this, exp.Identifier):
        raise Unreadable("a WITH clause of unknown form")
    return _folded(this)
