"""No request can spoil a pooled connection for the next one.

Each of these harms a session, or tries to. Over HTTP, to a gateway with one single
connection: whatever becomes of the request itself, the very next ones must succeed,
with the right result, those among them whose statements are prepared already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.cli.embedded import Embedded
from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_postgres import APP_USER, Database
from tests.fix_sessions import Caller, Direct, calling, direct

OBJECTS = """
create table kept (id int primary key, name text, at timestamptz default '2024-01-31 08:00+00');
insert into kept values (1, 'one'), (2, 'two');
create table log (n int);
create function run(sql text) returns bool language plpgsql as
    $$ begin execute sql; return true; end $$;
create function at_commit() returns trigger language plpgsql as
    $$ begin execute new.sql; return null; end $$;
create table later (sql text);
create constraint trigger at_commit after insert on later deferrable initially deferred
    for each row execute function at_commit();
grant all on all tables in schema public to public;
"""


@pytest.fixture(scope="module")
def place(postgres: Embedded) -> Iterator[Database]:
    postgres.sql(
        "create database poison strategy wal_log;"
        f"grant set on parameter session_replication_role to {APP_USER}"
    )
    database = Database(postgres, "poison")
    database.sql(OBJECTS)
    yield database
    postgres.sql(
        "drop database poison with (force);"
        f"revoke set on parameter session_replication_role from {APP_USER}"
    )


@pytest.fixture(scope="module")
def owner(place: Database) -> Iterator[Direct]:
    """A superuser's session, to look and change from outside."""
    with direct(place.dsn) as session:
        yield session


@pytest.fixture(scope="module")
def gateway(place: Database) -> Iterator[Gateway]:
    settings = settings_for(place, max_connections=1, max_open_transactions=1)
    with running(settings, place) as it:
        with calling(it) as caller:
            is_well(caller)
        yield it


@pytest.fixture
def caller(gateway: Gateway) -> Iterator[Caller]:
    with calling(gateway) as it:
        yield it


def is_well(caller: Caller) -> None:
    """Reads, writes and transactions work, on statements that were prepared before."""
    assert caller.rows("select 41 + 1") == [[42]]
    assert caller.rows("select id, name, at from kept where id = $1", [2]) == [
        [2, "two", "2024-01-31T08:00:00+00:00"]
    ]
    assert caller.rows("select $1::text, length($1)", ["ä€\\"]) == [["ä€\\", 3]]
    count = caller.rows("select count(*) from log")[0][0]
    assert caller.rows("insert into log values ($1) returning n", [7]) == [[7]]
    assert caller.rows("select count(*) from log") == [[count + 1]]
    transaction = caller.begin()
    assert caller.rows("select name from kept where id = :id", {"id": 1}, transaction=transaction)
    assert caller.end(transaction, "commit") == (200, {"status": "committed"})


# -- one statement ---------------------------------------------------------------------

EVIL: dict[str, str] = {
    "deallocate all": "deallocate all",
    "deallocate all in a block": "do $$ begin deallocate all; end $$",
    "deallocate all in a function": "select run('deallocate all')",
    "deallocate all at commit": "insert into later values ('deallocate all')",
    "deallocate all and fail": "do $$ begin deallocate all; perform 1 / 0; end $$",
    "deallocate prepare all": "deallocate prepare all",
    "deallocate one of the driver's": "do $$ declare it text; begin"
    " for it in select name from pg_prepared_statements where not from_sql loop"
    " execute format('deallocate %I', it); end loop; end $$",
    "deallocate every other of the driver's": "do $$ declare it text; begin for it in"
    " select name from (select name, row_number() over () n from pg_prepared_statements) x"
    " where n % 2 = 0 loop execute format('deallocate %I', it); end loop; end $$",
    "discard all": "discard all",
    "discard all in a block": "do $$ begin discard all; end $$",
    "discard plans": "discard plans",
    "discard temp": "discard temp",
    "discard sequences": "discard sequences",
    "copy in": "copy log from stdin",
    "copy out": "copy log to stdout",
    "copy, commented": "/* x /* y */ */ CoPy\n-- z\nlog from stdin",
    "copy, behind semicolons": ";; copy log from stdin;",
    "copy a query": "copy (select 1) to stdout",
    "copy, old": "copy binary log from stdin",
    "copy, explained": "explain analyze copy log from stdin",
    "copy, prepared": "prepare x as copy log from stdin",
    "copy in a block": "do $$ begin copy log from stdin; end $$",
    "copy in a function": "select run('copy log from stdin')",
    "copy out in a function": "select run('copy log to stdout')",
    "copy at commit": "insert into later values ('copy log from stdin')",
    "copy, in parentheses": "(copy log from stdin)",
    "copy in a common table": "with x as (copy log from stdin) select 1",
    "commit": "commit",
    "commit, and on": "commit and chain",
    "rollback": "rollback",
    "begin": "begin",
    "start transaction": "start transaction",
    "end": "end",
    "abort": "abort",
    "prepare transaction": "prepare transaction 'x'",
    "commit prepared": "commit prepared 'x'",
    "savepoint": "savepoint s",
    "commit in a block": "do $$ begin perform 1; commit; perform 2; end $$",
    "rollback in a block": "do $$ begin perform 1; rollback; perform 2; end $$",
    "commit in a block, then fail": "do $$ begin commit; perform 1 / 0; end $$",
    "commit in a function": "select run('commit')",
    "prepare transaction in a function": "select run('prepare transaction ''x''')",
    "begin in a function": "select run('begin')",
    "set transaction": "set transaction read only",
    "client_encoding": "set client_encoding = 'latin1'",
    "client_encoding in a function": "select set_config('client_encoding', 'sjis', false)",
    "client_encoding at commit": "insert into later values ('set client_encoding = ''latin1''')",
    "names": "set names 'win1252'",
    "standard_conforming_strings": "set standard_conforming_strings = off",
    "read only": "set default_transaction_read_only = on",
    "session characteristics": "set session characteristics as transaction read only, deferrable",
    "session_replication_role": "set session_replication_role = replica",
    "statement_timeout": "set statement_timeout = 1",
    "statement_timeout in a function": "select set_config('statement_timeout', '1', false)",
    "lock_timeout": "set lock_timeout = 1",
    "idle_in_transaction_session_timeout": "set idle_in_transaction_session_timeout = 1",
    "idle_session_timeout": "set idle_session_timeout = 1",
    "transaction_timeout": "set transaction_timeout = 1",
    "client_connection_check_interval": "set client_connection_check_interval = 0",
    "client_min_messages": "set client_min_messages = debug5",
    "search_path": "set search_path = nowhere",
    "role": "set role none",
    "row_security": "set row_security = off",
    "work_mem": "set work_mem = '64kB'",
    "plan_cache_mode": "set plan_cache_mode = force_generic_plan",
    "bytea_output": "set bytea_output = 'escape'",
    "prepare": "prepare mine as select 1",
    "prepare one of the driver's": "prepare __asyncpg_stmt_5__ as select 'mine'",
    "prepare the next of the driver's": "do $$ begin for n in 1..999 loop begin"
    " execute format('prepare \"__asyncpg_stmt_%s__\" as select 1', to_hex(n));"
    " exception when duplicate_prepared_statement then null; end; end loop; end $$",
    "prepare the gateway's own": "prepare pgsluice_canary as select 1",
    "a canary of one's own": "do $$ begin deallocate all; prepare pgsluice_canary as select 1;"
    " end $$",
    "a cursor": "declare mine cursor with hold for select generate_series(1, 1000)",
    "a driver's cursor": "declare __asyncpg_portal_1__ cursor with hold for select 1",
    "close all": "close all",
    "a lock": "select pg_advisory_lock(1)",
    "unlock all": "select pg_advisory_unlock_all()",
    "listen": "listen gossip",
    "a flood of notifications": "do $$ begin listen gossip; for n in 1..2000 loop"
    " perform pg_notify('gossip', repeat('x', 1000) || n); end loop; end $$",
    "a flood of notices": "do $$ begin for n in 1..20000 loop raise notice '% %', n,"
    " repeat('x', 100); end loop; end $$",
    "a huge notice": "do $$ begin raise notice '%', repeat('x', 10000000); end $$",
    "a notice and a failure": "do $$ begin raise warning 'w'; perform 1 / 0; end $$",
    "a huge error": "do $$ begin raise exception '%', repeat('x', 10000000); end $$",
    "an error of its own state": "do $$ begin raise exception using errcode = '25006'; end $$",
    "an error like the driver's": "do $$ begin raise exception using errcode = '26000'; end $$",
    "an error like a stale plan": "do $$ begin raise exception using errcode = '0A000'; end $$",
    "an error like a lost connection": "do $$ begin raise exception using errcode = '08006';"
    " end $$",
    "an error like a shutdown": "do $$ begin raise exception using errcode = '57P01'; end $$",
    "an error like a transaction's": "do $$ begin raise exception using errcode = '25001'; end $$",
    "an error like a termination": "do $$ begin raise exception using errcode = '2D000'; end $$",
    "an error like a cancel": "do $$ begin raise exception using errcode = '57014'; end $$",
    "terminate itself": "select pg_terminate_backend(pg_backend_pid())",
    "terminate itself while writing": "insert into log select pg_terminate_backend("
    "pg_backend_pid())::int",
    "terminate itself at commit": "insert into later values ("
    "'select pg_terminate_backend(pg_backend_pid())')",
    "cancel itself": "select pg_cancel_backend(pg_backend_pid()), pg_sleep(1)",
    "cancel itself late": "select pg_cancel_backend(pg_backend_pid())",
    "deep parentheses": f"select {'(' * 10_000}1{')' * 10_000}",
    "deep expressions": f"select {'1 + ' * 10_000}1",
    "deep json": f"select '{'[' * 20_000}'::jsonb",
    "deep arrays": f"select {'array[' * 50}1{']' * 50}",
    "1664 columns": f"select {', '.join(['1'] * 1664)}",
    "1665 columns": f"select {', '.join(['1'] * 1665)}",
    "one column often": f"select {', '.join(['*'] * 100)} from kept",
    "no columns": "select from kept",
    "endless recursion": "with recursive x as (select 1 union all select 1 from x)"
    " select count(*) from x",
    "recursion of a function": "create function down() returns int language plpgsql as"
    " $$ begin return down(); end $$",
    "recursion, called": "select down()",
    "a huge number": "select 1e131071",
    "a number too huge": "select 1e131072::numeric",
    "a huge cell": "select repeat('x', 30000000)",
    "a cell too huge": "select repeat('x', 1000000000) || repeat('x', 1000000000)",
    "no text in the encoding": "select chr(0)",
    "bytes that are no text": r"select convert_from('\xff', 'UTF8')",
    "a bad escape": r"select E'\xff'",
    "an unknown type": "select null::nowhere.nothing",
    "a pseudo type": "select null::record, row(1, 'a'), 'x'::cstring",
    "an open string": "select 'x",
    "an open comment": "select 1 /* x",
    "an open dollar quote": "select $x$ x",
    "only a comment": "-- nothing",
    "only semicolons": " ; ;; ",
    "nothing": "",
    "several": "select 1; select 2",
    "a syntax error": "selec 1",
    "vacuum": "vacuum kept",
    "an index, concurrently": "create index concurrently on log (n)",
    "a database": "create database nowhere_to_go",
    "lock": "lock table log in access exclusive mode",
    "lock forever": "do $$ begin lock table kept in access exclusive mode; perform pg_sleep(60);"
    " end $$",
    "large objects": "select lo_open(lo_from_bytea(0, 'x'), 131072)",
    "a snapshot": "select pg_export_snapshot()",
    "setseed": "select setseed(0)",
    "load": "load 'nothing'",
    "reset all": "reset all",
    "reset session authorization": "reset session authorization",
    "alter its own settings": "alter role current_user set work_mem = '1MB'",
    "alter them back": "alter role current_user reset all",
    "a rule on its own tables": "create rule r as on insert to log do also select 1",
    "explain everything": "explain (analyze, verbose, buffers, format json) select * from kept",
    "fetch from nothing": "fetch all from nothing",
    "execute nothing": "execute nothing",
}


@pytest.mark.parametrize("name", EVIL)
def test_the_next_request_succeeds(caller: Caller, name: str) -> None:
    # A deadline of its own for what would never end.
    status, answer = caller.send("/execute", {"sql": EVIL[name], "timeout": 0.3})
    assert status < 500 or answer["outcome"] == "not_executed", answer
    is_well(caller)


def _and_the_rest(names: list[str]) -> list[Any]:
    """The worst of them each time, the others when there is time."""
    worst = ("deallocate", "discard", "copy", "commit", "prepare", "terminate", "an error like")
    slow = pytest.mark.slow
    return [
        pytest.param(name, marks=() if name.startswith(worst) else slow, id=name) for name in names
    ]


@pytest.mark.parametrize("name", _and_the_rest(list(EVIL)))
def test_the_next_request_succeeds_behind_a_transaction(caller: Caller, name: str) -> None:
    transaction = caller.begin(idle_timeout=5)
    body = {"sql": EVIL[name], "timeout": 0.3, "transaction": transaction}
    status, answer = caller.send("/execute", body)
    assert status < 500, answer
    caller.run("select id, name, at from kept where id = $1", [2], transaction=transaction)
    caller.end(transaction, "rollback")
    is_well(caller)


@pytest.mark.parametrize("name", _and_the_rest(list(EVIL)))
def test_the_next_request_succeeds_behind_a_batch(caller: Caller, name: str) -> None:
    statements: list[Any] = [{"sql": "select 1"}, {"sql": EVIL[name]}]
    statements.append({"sql": "select $1::int", "parameters": [1]})
    status, answer = caller.send("/batch", {"statements": statements, "timeout": 0.3})
    assert status < 500 or answer["outcome"] == "not_executed", answer
    is_well(caller)


@pytest.mark.parametrize("name", [name for name in EVIL if name.startswith(("deall", "discard"))])
def test_a_transaction_finds_its_statements_prepared_or_prepares_them(
    caller: Caller, name: str
) -> None:
    """In an open transaction there is no second attempt, so the session has to be sound."""
    sql = "select id, name, at from kept where id = $1"
    assert caller.run(sql, [1]).error is None
    caller.send("/execute", {"sql": EVIL[name]})
    answers = []
    for _ in range(2):
        transaction = caller.begin()
        answers.append(caller.run(sql, [1], transaction=transaction))
        caller.end(transaction, "rollback")
    good = [answer.error is None for answer in answers]
    if name == "deallocate every other of the driver's":
        # Whoever picks single ones costs the next transaction one attempt.
        good = good[1:]
    assert all(good), answers


# -- values that are too much ----------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"sql": "select $1", "parameters": [1] * 32_768}, 400, "invalid_parameter"),
        ({"sql": "select $32768::int"}, 400, None),
        ({"sql": "select $65536::int", "parameters": [1]}, 400, None),
        ({"sql": "select 'a\0b'"}, 400, "invalid_request"),
        ({"sql": "select $1::text", "parameters": ["a\0b"]}, 400, "invalid_parameter"),
        ({"sql": "select $1::jsonb", "parameters": [{"a": "\0"}]}, 400, "database_error"),
        ({"sql": "select $1::numeric", "parameters": ["1e131072"]}, 400, "database_error"),
        ({"sql": "select $1::numeric", "parameters": ["1e262143"]}, 400, "database_error"),
        ({"sql": "select $1::numeric", "parameters": ["1" * 200_000]}, 400, "database_error"),
        ({"sql": "select $1::int8", "parameters": [1 << 63]}, 400, "invalid_parameter"),
        ({"sql": "select $1::int4", "parameters": ["x"]}, 400, "invalid_parameter"),
        ({"sql": "select $1::jsonb", "parameters": ["{"]}, 400, "database_error"),
        ({"sql": "select $1::int4[]", "parameters": [[[1], [1, 2]]]}, 400, "invalid_parameter"),
        ({"sql": "select $1::nowhere", "parameters": ["x"]}, 400, "database_error"),
        ({"sql": "x" * 100_000}, 400, "database_error"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_what_is_too_much_is_refused_and_forgotten(
    caller: Caller, body: dict[str, Any], status: int, code: str | None
) -> None:
    found, answer = caller.send("/execute", body)
    assert found == status, answer
    assert code is None or answer["code"] == code, answer
    is_well(caller)


def test_as_many_parameters_as_the_protocol_allows(caller: Caller) -> None:
    places = ", ".join(f"${n}::int" for n in range(1, 32_768))
    sql = f"select cardinality(array[{places}])"
    assert caller.rows(sql, list(range(32_767))) == [[32_767]]
    is_well(caller)


def test_a_result_that_does_not_fit_in_memory(caller: Caller) -> None:
    sql = "select repeat('x', 1000000) from generate_series(1, 40)"
    assert [len(row[0]) for row in caller.rows(sql)] == [1_000_000] * 40
    is_well(caller)


def test_a_flood_of_notices_does_not_reach_the_next_caller(caller: Caller) -> None:
    caller.run("do $$ begin for n in 1..5000 loop raise notice 'mine %', n; end loop; end $$")
    status, answer = caller.send("/execute", {"sql": "select 1"})
    assert (status, answer.get("notices")) == (200, None)


def test_a_notification_does_not_reach_the_next_caller(caller: Caller, owner: Direct) -> None:
    caller.rows("listen gossip")
    assert owner.run("select pg_notify('gossip', 'psst')").error is None
    assert caller.rows("select count(*) from pg_listening_channels()") == [[0]]
    is_well(caller)


def test_the_end_of_the_own_session_is_told_and_costs_the_next_caller_nothing(
    caller: Caller,
) -> None:
    for sql in ("select pg_terminate_backend(pg_backend_pid())",
                "insert into log select 1 where pg_terminate_backend(pg_backend_pid())",
                ):  # fmt: skip
        status, answer = caller.send("/execute", {"sql": sql})
        assert (status, answer["outcome"]) == (503, "not_executed"), answer
        assert caller.rows("select 1") == [[1]]


def test_a_state_that_a_function_makes_up_is_an_error_of_the_statement(caller: Caller) -> None:
    for state in ("08006", "57P01", "26000", "0A000", "25001", "2D000", "25006", "42883"):
        sql = f"do $$ begin raise exception 'made up' using errcode = '{state}'; end $$"
        status, answer = caller.send("/execute", {"sql": sql})
        assert (status, answer.get("sqlstate")) == (400, state), answer
        transaction = caller.begin()
        status, answer = caller.send("/execute", {"sql": sql, "transaction": transaction})
        assert (status, answer.get("sqlstate")) == (400, state), answer
        assert caller.end(transaction, "rollback")[0] == 200


# -- changes under statements that are prepared ----------------------------------------


class Change:
    """Something that is used, changed, and used again: from the same session or another one."""

    def __init__(self, make: str, use: str, changes: str, *cases: tuple[Any, Any]) -> None:
        self.make = make
        self.use = use
        self.changes = changes
        self.cases = cases
        """Parameters and rows: before the change, after it."""


CHANGES = {
    "a column is added": Change(
        "create table t (a int); insert into t values (1)", "select * from t where a = $1",
        "alter table t add b text default 'new'", ([1], [[1]]), ([1], [[1, "new"]])),
    "a column is dropped": Change(
        "create table t (a int, b int); insert into t values (1, 2)", "select * from t",
        "alter table t drop b", (None, [[1, 2]]), (None, [[1]])),
    "a column is renamed": Change(
        "create table t (a int); insert into t values (1)", "select t.* from t where $1",
        "alter table t rename a to b", ([True], [[1]]), ([True], [[1]])),
    "a selected column gets another type": Change(
        "create table t (a int); insert into t values (1)", "select a from t",
        "alter table t alter a type text", (None, [[1]]), (None, [["1"]])),
    "a compared column gets another type": Change(
        "create table t (a int); insert into t values (1)", "select a from t where a = $1",
        "alter table t alter a type text", ([1], [[1]]), (["1"], [["1"]])),
    "a compared column gets another type, and values only it knows": Change(
        "create table t (a int); insert into t values (1)", "select count(*) from t where a = $1",
        "alter table t alter a type text", ([1], [[1]]), (["x"], [[0]])),
    "a compared column gets a wider type": Change(
        "create table t (a int); insert into t values (1)", "select a from t where a = $1",
        "alter table t alter a type int8", ([1], [[1]]), ([1], [[1]])),
    "a compared column gets a wider type, and values only it knows": Change(
        "create table t (a int2); insert into t values (1)", "select a from t where a >= $1",
        "alter table t alter a type int8; insert into t values (1099511627776)",
        ([1], [[1]]), ([1 << 40], [[1 << 40]])),
    "a written column gets another type": Change(
        "create table t (a int)", "insert into t values ($1) returning a",
        "alter table t alter a type text", ([1], [[1]]), (["x"], [["x"]])),
    "a written column gets another type, without returning": Change(
        "create table t (a int)", "insert into t values ($1)",
        "alter table t alter a type uuid using null", ([1], []),
        (["00000000-0000-0000-0000-000000000001"], [])),
    "a table is made anew": Change(
        "create table t (a int); insert into t values (1)", "select * from t",
        "drop table t; create table t (b text, c bool); insert into t values ('x', true)",
        (None, [[1]]), (None, [["x", True]])),
    "a table is made anew as it was": Change(
        "create table t (a int); insert into t values (1)", "update t set a = $1 returning a",
        "drop table t; create table t (a int); insert into t values (5)",
        ([1], [[1]]), ([2], [[2]])),
    "a table takes another's place": Change(
        "create table t (a int); create table u (a text); insert into u values ('u')",
        "select a from t", "alter table t rename to v; alter table u rename to t",
        (None, []), (None, [["u"]])),
    "a label is added": Change(
        "create type mood as enum ('sad')", "select $1::mood",
        "alter type mood add value 'glad'", (["sad"], [["sad"]]), (["glad"], [["glad"]])),
    "a label is renamed": Change(
        "create type mood as enum ('sad'); create table t (m mood); insert into t values ('sad')",
        "select m from t where m = $1", "alter type mood rename value 'sad' to 'blue'",
        (["sad"], [["sad"]]), (["blue"], [["blue"]])),
    "an enum is made anew": Change(
        "create type mood as enum ('sad')", "select $1::mood, array[$1::mood]",
        "drop type mood; create type mood as enum ('glad')",
        (["sad"], [["sad", ["sad"]]]), (["glad"], [["glad", ["glad"]]])),
    "an enum becomes a composite": Change(
        "create type mood as enum ('sad')", "select $1::mood",
        "drop type mood; create type mood as (a int, b text)",
        (["sad"], [["sad"]]), (["(1,x)"], [["(1,x)"]])),
    "a composite gets a field": Change(
        "create type pair as (a int)", "select $1::pair, array[$1::pair]",
        "alter type pair add attribute b text",
        (["(1)"], [["(1)", ["(1)"]]]), (["(1,x)"], [["(1,x)", ["(1,x)"]]])),
    "a composite's field gets another type": Change(
        "create type pair as (a int)", "select $1::pair",
        "alter type pair alter attribute a type text", (["(1)"], [["(1)"]]), (["(x)"], [["(x)"]])),
    "the row of a table gets a field": Change(
        "create table t (a int); insert into t values (1)", "select t from t",
        "alter table t add b int default 2", (None, [["(1)"]]), (None, [["(1,2)"]])),
    "a domain gets another base": Change(
        "create domain code as int", "select $1::code",
        "drop domain code; create domain code as text", ([1], [[1]]), (["x"], [["x"]])),
    "a domain gets a constraint": Change(
        "create domain code as int", "select $1::code",
        "alter domain code add check (value > 0)", ([1], [[1]]), ([2], [[2]])),
    "a function returns something else": Change(
        "create function f() returns int language sql as 'select 1'", "select f()",
        "drop function f(); create function f() returns text language sql as 'select ''x'''",
        (None, [[1]]), (None, [["x"]])),
    "a function takes something else": Change(
        "create function f(int) returns text language sql as 'select ''int'''",
        "select f($1)",
        "drop function f(int); create function f(text) returns text language sql as"
        " 'select $1'",
        ([1], [["int"]]), (["x"], [["x"]])),
    "a view shows something else": Change(
        "create view v as select 1 as a", "select * from v",
        "drop view v; create view v as select 'x'::text as a, 2 as b",
        (None, [[1]]), (None, [["x", 2]])),
    "a range is made anew": Change(
        "create type span as range (subtype = int4)", "select $1::span",
        "drop type span; create type span as range (subtype = float8)",
        (["[1,3)"], [["[1,3)"]]), (["[0.5,1.5)"], [["[0.5,1.5)"]])),
    "statistics are gathered": Change(
        "create table t (a int primary key)", "select a from t where a = $1",
        "insert into t select generate_series(1, 1000); analyze t", ([1], []), ([5], [[5]])),
}  # fmt: skip


@pytest.fixture(scope="module")
def maker(place: Database) -> Iterator[Direct]:
    """A session of the gateway's login, without a gateway."""
    with direct(place.app_dsn) as session:
        yield session


def _run(session: Direct, script: str) -> None:
    for statement in script.split("; "):
        answer = session.run(statement)
        assert answer.error is None, (statement, answer)


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest, owner: Direct, maker: Direct) -> Iterator[Change]:
    it = CHANGES[request.param]
    # First in the login's search_path; with it goes whatever was made.
    _run(owner, f"create schema {APP_USER} authorization {APP_USER}")
    _run(maker, it.make)
    yield it
    _run(owner, f"drop schema {APP_USER} cascade")


def _change(caller: Caller, maker: Direct, sql: str, *, through: bool) -> None:
    if not through:
        _run(maker, sql)
        return
    for statement in sql.split("; "):
        caller.rows(statement)


@pytest.mark.parametrize("through", [True, False], ids=["by the gateway", "by another session"])
def test_a_change_is_seen_by_the_next_request(
    caller: Caller, maker: Direct, change: Change, through: bool
) -> None:
    for parameters, rows in change.cases[:1] * 2:
        assert caller.rows(change.use, parameters) == rows
    _change(caller, maker, change.changes, through=through)
    for parameters, rows in change.cases[1:] * 3:
        found = caller.rows(change.use, parameters)
        assert found[: len(rows)] == rows
    is_well(caller)


def test_a_change_is_seen_by_the_next_transaction(
    caller: Caller, maker: Direct, change: Change
) -> None:
    """In an open transaction a stale plan may cost one attempt, never a wrong answer."""
    parameters, rows = change.cases[0]
    assert caller.rows(change.use, parameters) == rows
    _change(caller, maker, change.changes, through=False)
    parameters, rows = change.cases[1]
    answers = []
    for _ in range(3):
        transaction = caller.begin()
        answers.append(caller.run(change.use, parameters, transaction=transaction))
        caller.end(transaction, "rollback")
    found = [answer.error or answer.rows == rows for answer in answers]
    assert found[1:] == [True, True], answers
    is_well(caller)


def test_a_change_is_seen_by_the_next_batch(caller: Caller, maker: Direct, change: Change) -> None:
    """So in a batch, which is a transaction of its own: nothing of it has happened then."""
    parameters, rows = change.cases[0]
    assert caller.rows(change.use, parameters) == rows
    _change(caller, maker, change.changes, through=False)
    parameters, rows = change.cases[1]
    statement: dict[str, Any] = {"sql": change.use}
    if parameters is not None:
        statement["parameters"] = parameters
    body = {"statements": [{"sql": "select 1"}, statement]}
    answers = [caller.send("/batch", body) for _ in range(3)]
    for status, answer in answers[1:]:
        assert status == 200, answers
        assert answer["results"][1]["rows"][: len(rows)] == rows
    is_well(caller)


def test_a_temporary_table_stands_in_the_way_within_its_transaction_only(caller: Caller) -> None:
    caller.rows("create table shadowed (n int)")
    caller.rows("insert into shadowed values (1)")
    assert caller.rows("select n from shadowed") == [[1]]
    for number in (2, 3):
        transaction = caller.begin()
        caller.rows("create temp table shadowed (n int)", transaction=transaction)
        caller.rows(f"insert into shadowed values ({number})", transaction=transaction)
        assert caller.rows("select n from shadowed", transaction=transaction) == [[number]]
        caller.end(transaction, "commit")
        assert caller.rows("select n from shadowed") == [[1]]
    # Not only if the caller's own statement makes it.
    for number in (4, 5):
        transaction = caller.begin()
        making = f"create temp table shadowed as select {number} as n"
        caller.rows("select run($1)", [making], transaction=transaction)
        assert caller.rows("select n from shadowed", transaction=transaction) == [[number]]
        caller.end(transaction, "commit")
    assert caller.rows("select n from shadowed") == [[1]]
    caller.rows("drop table shadowed")


def test_the_second_temporary_table_of_a_transaction_stands_in_the_way_too(caller: Caller) -> None:
    caller.rows("create table behind (n int)")
    transaction = caller.begin()
    caller.rows("create temp table first (n int)", transaction=transaction)
    assert caller.rows("select n from behind", transaction=transaction) == []
    caller.rows("select 2 as n into temp behind", transaction=transaction)
    assert caller.rows("select n from behind", transaction=transaction) == [[2]]
    caller.end(transaction, "rollback")
    body = {"statements": [{"sql": sql} for sql in (
        "create temp table first (n int)", "select n from behind",
        "create temp table behind as select 3 as n", "select n from behind",
    )]}  # fmt: skip
    status, answer = caller.send("/batch", body)
    assert status == 200, answer
    assert [each["rows"] for each in answer["results"]] == [[], [], [], [[3]]]
    caller.rows("drop table behind")
