"""What a statement names is read in full, or the statement is refused."""

from __future__ import annotations

import pytest

from gateway.core.relations import (
    MAX_TEXT,
    Unreadable,
    find_breach,
    read_relations,
)


@pytest.mark.parametrize(
    ("sql", "verbs", "tables"),
    [
        ("select 1", "select", ""),
        ("select * from orders", "select", "orders"),
        ("table orders", "select", "orders"),
        ("select * from Orders, APP.Log", "select", "app.log orders"),
        ('select * from "Orders" where "Orders".id = $1', "select", "Orders"),
        ("select * from only a.b for update", "select", "a.b"),
        ("select (select max(x) from u) from t where exists (table v)", "select", "t u v"),
        ("select * from t, lateral (select * from u) q", "select", "t u"),
        ("(select * from t) union all select * from u", "select", "t u"),
        ("values (1), ((select a from t))", "select", "t"),
        ("insert into t (a) values (:a) on conflict do nothing", "insert select", "t"),
        ("insert into t select * from u returning *", "insert select", "t u"),
        ("update t set a = b.c from b where b.id = t.id", "update", "b t"),
        ("delete from t using u where t.id = u.id", "delete", "t u"),
        (
            "merge into t using s on t.id = s.id when matched then delete",
            "merge",
            "s t",
        ),
        ("select * from generate_series(1, 2) g", "select", ""),
        ("select * from f(1)", "select", ""),
        # strings and comments are not code, whatever they hold
        ("select 'from secret', $$ from secret $$, E'\\' from secret' from t", "select", "t"),
        ("select 1 /* /* */ from secret */ from t -- , secret", "select", "t"),
        ("select 1 from t where a = 'x' -- '\n and b = 'from secret'", "select", "t"),
        # WITH
        ("with x as (select * from t) select * from x", "select", "t"),
        ("with x as (select * from t) select * from x, s.x", "select", "s.x t"),
        ("with t as (select * from t) select * from t", "select", "t"),
        ("with a as (select * from b), b as (select 1) select * from a, b", "select", "b"),
        ("with a as (select 1), b as (select * from a) select * from b", "select", ""),
        ("with recursive r as (select 1 union all select * from r) select * from r", "select", ""),
        ("select * from (with x as (select 1) select * from x) q, x", "select", "x"),
        ("with x as (delete from t returning *) select * from x", "delete select", "t"),
        ("with x as (select 1) insert into x select * from x", "insert select", "x"),
        ("with x as (select 1) delete from t where a in (select * from x)", "delete select", "t"),
    ],
)
def test_tables_and_verbs_are_those_that_postgresql_would_use(
    sql: str, verbs: str, tables: str
) -> None:
    named = read_relations(sql)
    assert named.verbs == set(verbs.split())
    assert named.tables == set(tables.split())


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "select 1; select 2",
        "selec 1",
        "select * into x from t",
        "create table x as select 1",
        "drop table t",
        "truncate t",
        "alter role app password 'x'",
        "set search_path = secret",
        "reset all",
        "discard all",
        "listen a",
        "notify a",
        "checkpoint",
        "deallocate all",
        "savepoint a",
        "lock table t",
        "call f()",
        "do $$ begin end $$",
        "explain select * from t",
        "copy t from stdin",
        "vacuum",
        "select * from a.b.c",
        'select * from "a.b"',
        'select * from U&"t"',
        "select 'a",
        "prepare p as select 1",
        "execute p",
        "show all",
        "grant select on t to x",
        "select " + "(" * 1000 + "1" + ")" * 1000,
        "select '" + "a" * MAX_TEXT + "'",
    ],
)
def test_what_cannot_be_read_in_full_is_refused(sql: str) -> None:
    with pytest.raises(Unreadable):
        read_relations(sql)


@pytest.mark.parametrize(
    ("sql", "tables", "verbs", "allowed"),
    [
        ("select * from orders", ("orders",), (), True),
        ("select * from orders", ("*",), (), True),
        ("select * from orders", ("ord*",), (), True),
        ("select * from orders", ("app.orders",), (), False),
        ("select * from app.orders", ("app.orders",), (), True),
        ("select * from app.orders", ("app.*",), (), True),
        ("select * from app.orders", ("orders",), (), False),
        ("select * from ordinary.secret", ("ord*",), (), False),
        ("select * from orders, secret", ("orders",), (), False),
        ("select 1", ("orders",), (), True),
        ("select * from orders", (), ("select",), True),
        ("delete from orders", (), ("select",), False),
        ("with x as (delete from orders returning *) table x", (), ("select",), False),
        ("update orders set a = 1", ("orders",), ("update",), True),
        ("update orders set a = (select b from c)", ("orders",), ("update", "select"), False),
    ],
)
def test_a_statement_is_held_against_tables_and_verbs(
    sql: str, tables: tuple[str, ...], verbs: tuple[str, ...], allowed: bool
) -> None:
    assert (find_breach(read_relations(sql), tables=tables, verbs=verbs) is None) is allowed


def test_a_schema_of_the_request_is_part_of_every_bare_name() -> None:
    named = read_relations("select * from orders")
    assert find_breach(named, tables=("orders",), verbs=(), schema="secret") is not None
    assert find_breach(named, tables=("app.orders",), verbs=(), schema="app") is None


def test_a_refusal_does_not_repeat_the_statement() -> None:
    breach = find_breach(read_relations("select * from canary"), tables=("a",), verbs=())
    assert breach is not None
    assert "canary" not in breach
