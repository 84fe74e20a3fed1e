"""Whatever callers do, each request finds what a session of its own would show it.

Two principals send random requests to a gateway of two connections: statements that fail,
sleep past their deadline, are left by their callers, leave things in their session; batches
and transactions; DDL under all of them. Beside it a twin of the database is asked the same
over PostgreSQL's own protocol, in a session that is opened for each request and closed
behind it. What callers see has to be the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from gateway.cli.embedded import Embedded
from gateway.cli.token import token_for
from tests.fix_gateway import MASTER, Gateway, running, settings_for, until
from tests.fix_postgres import APP_USER, Database
from tests.fix_sessions import PINNED, Caller, Direct, Seen, calling, direct

# The gateway runs in a thread of this process, and rolls dice while examples are made.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")

PEER = "fresh_peer"
SETUP = (
    "drop schema if exists public cascade",
    "create schema public",
    "grant all on schema public to public",
    "set role app_user",
    "create table t (n int, name text)",
    "insert into t values (1, 'one'), (2, 'two')",
    "create table u (id serial, n int)",
    "create sequence s cache 5",
    "create type mood as enum ('sad', 'ok')",
    "create function f() returns text language sql as 'select ''f'''",
    """create function attempt(sql text) returns text language plpgsql as
    $$ declare found text; begin
        execute sql into found; return coalesce(found, 'NULL');
    exception when others then return sqlstate; end $$""",
    """create function run(sql text) returns bool language plpgsql as
    $$ begin execute sql; return true; end $$""",
    "reset role",
)

STATE = """select current_user::text, current_setting('role'), current_setting('work_mem'),
    current_setting('search_path'), current_setting('timezone'), current_setting('datestyle'),
    current_setting('lock_timeout'), current_setting('row_security'),
    current_setting('client_min_messages'), nullif(current_setting('app.caller', true), ''),
    current_setting('transaction_isolation'),
    current_schemas(true)::text ~ 'pg_temp', pg_my_temp_schema() <> 0,
    (select count(*)::int from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'),
    (select count(*)::int from pg_listening_channels()),
    (select array_agg(name order by name)::text from pg_prepared_statements where from_sql),
    (select array_agg(name order by name)::text from pg_cursors where is_holdable),
    public.attempt('select lastval()'), public.attempt('select currval(''public.s'')'),
    public.attempt('execute p'), public.attempt('select x from tt'),
    public.attempt('select pg_temp.g()'), length('\\\\')"""

LEAVE = (
    "set work_mem = '1234kB'",
    "select set_config('work_mem', '2345kB', false)",
    "set local work_mem = '3456kB'",
    "set search_path = ''",
    "set search_path = pg_catalog, public",
    "set timezone = 'Asia/Tokyo'",
    "set datestyle = 'German'",
    "set lock_timeout = '7s'",
    "set row_security = off",
    "set client_min_messages = error",
    "set app.caller = 'mallory'",
    f"set role {PEER}",
    "reset role",
    "reset all",
    "set session characteristics as transaction isolation level serializable",
    "create temp table tt (x int)",
    "create temp table tt as select 7 as x",
    "create temp table t (n int, name text)",
    "create temp table u as select 1 as id, 5 as n",
    "create temp view t as select 9 as n, 'nine' as name",
    "create function pg_temp.g() returns text language sql as 'select ''g'''",
    "create type pg_temp.mood as enum ('mine')",
    "insert into tt values (1)",
    "drop table tt",
    "drop table pg_temp.t",
    "discard temp",
    "discard sequences",
    "discard plans",
    "select pg_advisory_lock(pg_backend_pid())::text",
    "select pg_advisory_lock_shared(2)::text",
    "select pg_advisory_unlock_all()::text",
    "listen gossip",
    "unlisten *",
    "notify gossip, 'psst'",
    "prepare p as select 'stolen'::text",
    "prepare p2(text) as select 'x'::text",
    "execute p",
    "deallocate p",
    "deallocate all",
    "declare c cursor with hold for select n::text from public.t",
    "fetch next from c",
    "close all",
    "select nextval('public.s')::int",
    "select currval('public.s')::int",
    "select setval('public.s', 100)::int",
    "select lastval()::int",
    "insert into public.u (n) values (1) returning id",
    "select setseed(0.5)::text",
)
LOOK = (
    STATE,
    STATE,
    STATE,
    "select * from t order by 1",
    "select n, name from t order by 1, 2",
    "select count(*)::int from t",
    "select max(id)::int, sum(n)::int from u",
    "select f()",
    "select mood::text from unnest(enum_range(null::mood)) mood",
    "select 'a\\b', 'ä€'",
    "select x from tt",
    "select pg_temp.g()",
    "show work_mem",
    "show search_path",
    "show role",
    "execute p",
    "fetch all from c",
    "select $1::int + 1",
    "select name from t where n = $1",
    "select count(*)::int from t where n > $1",
    "insert into t (n) values ($1) returning n",
    "insert into t (n, name) select n, 'more' from t where n = $1",
    "with x as (insert into u (n) values ($1) returning n) select n from x",
    "select $1::mood::text",
)
FAIL = (
    "select 1 / 0",
    "selec",
    "select nothing from t",
    "select * from nowhere",
    "insert into t (n) values ('x')",
    "do $$ begin raise exception 'no' using errcode = 'ZZ001'; end $$",
    "do $$ begin raise exception 'no' using errcode = '08006'; end $$",
    "do $$ begin raise exception 'no' using errcode = '26000'; end $$",
    "do $$ begin create temp table tt (x int); perform 1 / 0; end $$",
    "do $$ begin prepare p as select 1; perform 1 / 0; end $$",
    "do $$ begin perform pg_advisory_lock(pg_backend_pid()); perform 1 / 0; end $$",
    "do $$ begin perform nextval('public.s'); perform 1 / 0; end $$",
    "select pg_cancel_backend(pg_backend_pid())::text, pg_sleep(5)::text",
    "select pg_terminate_backend(pg_backend_pid())::text, pg_sleep(5)::text",
    "copy t from stdin",
)
DDL = (
    "alter table t add column more int default 3",
    "alter table t drop column more",
    "alter table t alter n type text",
    "alter table t alter n type int using 1",
    "alter table t alter n type int8 using 2",
    "alter table t rename name to title",
    "alter table t rename title to name",
    "drop table t",
    "create table t (n int, name text)",
    "create table t (n text, name text, more bool)",
    "alter type mood add value if not exists 'glad'",
    "drop type mood",
    "create type mood as enum ('new')",
    "drop function f()",
    "create function f() returns text language sql as 'select ''other'''",
    "create function f() returns int language sql as 'select 2'",
    "create view v as select 1",
    "drop view v",
    "truncate t",
    "vacuum t",
    "analyze t",
)
CONTROL = ("savepoint a", "rollback to a", "release a", "set transaction read only")

UNBEGUN = {"database_unavailable", "queue_timeout"}
"""The deadline came before there was a connection."""
GONE = {"57P01", "08003", "08006", "database_unavailable", "transaction_gone"}
"""The session ended under the statement, as one side or the other puts it."""
STALE = {"0A000", "26000", "42804", "42883", "XX000"}
"""A statement was prepared before DDL; outside a transaction the gateway prepares it anew."""
REFUSED = {"statement_refused"}
"""What the gateway does not let through, and PostgreSQL alone would have answered."""

VALUES = st.sampled_from(["1", "2", "7", "-1", "sad", "new", "x", ""])
STATEMENTS = st.one_of(
    st.sampled_from(LOOK), st.sampled_from(LEAVE), st.sampled_from(LOOK), st.sampled_from(FAIL)
)
LEFT = st.sampled_from(LEAVE)
WHO = st.integers(0, 1)


@dataclass
class World:
    """The gateway, its database, and the twin."""

    gateway: Gateway
    callers: Sequence[Caller]
    owners: Sequence[Direct]
    model: Direct
    """A session for one request."""
    held: Direct
    """The session of the open transaction."""
    steps: int = 0

    def begin_anew(self) -> None:
        """Put both databases back; the gateway's sessions stay as they are."""
        for owner in self.owners:
            for sql in SETUP:
                answer = owner.run(sql)
                assert answer.error is None, (sql, answer)

    def open_transactions(self) -> int:
        """As the gateway counts them."""
        page = httpx2.get(self.gateway.admin_url + "/metrics").text
        return sum(
            int(n) for n in re.findall(r"^pgsluice_transactions_open\{.*\} (\d+)$", page, re.M)
        )

    def asleep(self) -> bool:
        """Whether a statement of the gateway's sleeps."""
        sql = """select count(*) from pg_stat_activity
            where datname = current_database() and wait_event = 'PgSleep'"""
        return bool(self.owners[0].value(sql) == 1)


def literal(sql: str, value: str | None) -> str:
    """*sql* with its value in it, for PostgreSQL to find the type of as for a parameter."""
    return sql if value is None else sql.replace("$1", "'" + value.replace("'", "''") + "'")


def alike(gateway: Seen, model: Seen) -> bool:
    """Whether the caller sees the same."""
    if gateway.error is None or model.error is None:
        return gateway == model
    if gateway.error in GONE and model.error in GONE:
        return True
    if gateway.error == "invalid_parameter":
        # The gateway finds out before PostgreSQL that a value does not fit.
        return model.error[:2] == "22"
    return gateway.error == model.error


class Fresh(RuleBasedStateMachine):
    """Requests at random, and what became of each."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.transaction: tuple[int, str] | None = None

    @initialize()
    def begin_anew(self) -> None:
        self.world.begin_anew()

    # -- the two sides -----------------------------------------------------------------

    def _alone(self, sql: str) -> Seen:
        """*sql* in a session of its own."""
        model = self.world.model
        model.renew()
        answer = model.run(sql)
        # Its end is not waited for, but its locks must not be met by the next.
        model.run("select pg_advisory_unlock_all()")
        return answer

    def _same(self, asked: Any, gateway: Seen, model: Seen) -> None:
        self.world.steps += 1
        assert alike(gateway, model), (asked, "gateway", gateway, "fresh session", model)

    # -- single requests ---------------------------------------------------------------

    @rule(who=WHO, sql=STATEMENTS, value=VALUES)
    def statement(self, who: int, sql: str, value: str) -> None:
        caller = self.world.callers[who]
        if sql.startswith("copy"):
            assert caller.run(sql).error in REFUSED
            return
        given = value if "$1" in sql else None
        answer = caller.run(sql, None if given is None else [given])
        self._same((sql, given), answer, self._alone(literal(sql, given)))

    @rule(who=WHO, sql=LEFT)
    def in_a_function(self, who: int, sql: str) -> None:
        asked = f"select public.run($run${sql}$run$)"
        self._same(asked, self.world.callers[who].run(asked), self._alone(asked))

    @rule(who=WHO)
    def look(self, who: int) -> None:
        self._same(STATE, self.world.callers[who].run(STATE), self._alone(STATE))

    @rule(who=WHO, sql=st.sampled_from(DDL))
    def ddl(self, who: int, sql: str) -> None:
        self._end("rollback")
        self._same(sql, self.world.callers[who].run(sql), self._alone(sql))

    @rule(sql=st.sampled_from(DDL))
    def ddl_from_outside(self, sql: str) -> None:
        self._end("commit")
        for owner in self.world.owners:
            owner.run("set role app_user")
            owner.run(sql)
            owner.run("reset role")

    @rule(who=WHO, statements=st.lists(STATEMENTS, min_size=1, max_size=4), value=VALUES)
    def batch(self, who: int, statements: list[str], value: str) -> None:
        statements = [sql for sql in statements if not sql.startswith("copy")]
        body = [
            {"sql": sql, **({"parameters": [value]} if "$1" in sql else {})} for sql in statements
        ]
        status, answer = self.world.callers[who].send("/batch", {"statements": body})
        model = self.world.model
        model.renew()
        model.run("begin read write")
        rows = []
        for sql in statements:
            seen = model.run(literal(sql, value if "$1" in sql else None))
            if seen.error is not None:
                break
            rows.append(seen.rows)
        else:
            seen = Seen(rows)
        model.run("rollback" if seen.error else "commit")
        model.run("select pg_advisory_unlock_all()")
        found = (
            Seen([each["rows"] for each in answer["results"]])
            if status == 200
            else Seen(error=answer.get("sqlstate") or answer["code"])
        )
        self._same(statements, found, seen)

    def _quiet(self) -> None:
        until(lambda: not self.world.asleep(), "nobody stopped it")

    def _stopped(self, sql: str, then: str) -> str:
        return (
            f"do $do$ begin begin execute $run${sql}$run$; exception when others then null; end;"
            f" {then} end $do$"
        )

    @rule(who=WHO, sql=LEFT)
    def until_its_deadline(self, who: int, sql: str) -> None:
        asked = self._stopped(sql, "perform pg_sleep(60);")
        answer = self.world.callers[who].run(asked, timeout=0.1)
        while answer.error in UNBEGUN:
            answer = self.world.callers[who].run(asked, timeout=0.1)
        # What is not rolled back with the rest was done in both.
        same = self._stopped(sql, "raise exception using errcode = '57014';")
        self._same(asked, answer, self._alone(same))

    @rule(who=WHO, sql=LEFT)
    def left_by_its_caller(self, who: int, sql: str) -> None:
        asked = self._stopped(sql, "perform pg_sleep(60);")
        self._quiet()
        with self.world.callers[who].during(self.world.asleep, asked):
            pass
        self._quiet()
        self._alone(self._stopped(sql, "raise exception using errcode = '57014';"))

    # -- transactions ------------------------------------------------------------------

    @rule(who=WHO, serializable=st.booleans())
    def begin(self, who: int, serializable: bool) -> None:
        self._end("commit")
        self._begin(who, "serializable" if serializable else "read committed")

    def _begin(self, who: int, isolation: str = "read committed") -> tuple[Caller, str]:
        """The open transaction, or one that is begun now."""
        if self.transaction is None:
            id = self.world.callers[who].begin(isolation=isolation.replace(" ", "_"))
            self.transaction = who, id
            held = self.world.held
            held.renew()
            held.run("begin isolation level " + isolation)
        who, id = self.transaction
        return self.world.callers[who], id

    @rule(who=WHO, sql=st.one_of(STATEMENTS, STATEMENTS, st.sampled_from(CONTROL)), value=VALUES)
    def in_transaction(self, who: int, sql: str, value: str) -> None:
        caller, id = self._begin(who)
        if sql.startswith("copy"):
            return
        given = value if "$1" in sql else None
        answer = caller.run(sql, None if given is None else [given], transaction=id)
        model = self.world.held.run(literal(sql, given))
        if answer.error in STALE and model.error != answer.error:
            # Prepared before somebody's DDL: told as an error that ends the transaction.
            self._end("rollback")
            return
        self._same((sql, given, "in a transaction"), answer, model)
        if answer.error in GONE:
            self.transaction = None
            # A statement may raise such a code itself: then the transaction is still there.
            assert caller.end(id, "rollback")[0] in (200, 410)
        elif answer.error == "invalid_parameter":
            # Here the gateway is kinder: the transaction has not failed.
            self._end("rollback")

    @rule(who=WHO)
    def look_in_transaction(self, who: int) -> None:
        caller, id = self._begin(who)
        answer = caller.run(STATE, transaction=id)
        self._same((STATE, "in a transaction"), answer, self.world.held.run(STATE))

    @rule(who=WHO)
    def used_by_the_other(self, who: int) -> None:
        caller, id = self._begin(who)
        other = next(each for each in self.world.callers if each is not caller)
        assert other.run("select 1", transaction=id).error == "transaction_gone"
        assert other.end(id, "commit")[0] == 410

    @rule(how=st.sampled_from(["commit", "rollback"]))
    def end(self, how: str) -> None:
        self._end(how)

    def _end(self, how: str) -> None:
        if self.transaction is None:
            return
        who, id = self.transaction
        self.transaction = None
        held = self.world.held
        # PostgreSQL answers COMMIT of a failed transaction with ROLLBACK.
        failed = held.run("select 1").error == "25P02"
        status, answer = self.world.callers[who].end(id, how)
        assert held.run(how).error is None
        held.run("select pg_advisory_unlock_all()")
        held.renew()
        if failed and how == "commit":
            assert (status, answer["code"]) == (409, "transaction_failed"), answer
        else:
            assert status == 200, answer

    @rule(who=WHO, sql=LEFT)
    def left_in_transaction(self, who: int, sql: str) -> None:
        caller, id = self._begin(who)
        asked = self._stopped(sql, "perform pg_sleep(60);")
        if self.world.held.run("select 1").error == "25P02":
            assert caller.run(asked, transaction=id).error == "25P02"
            self._end("rollback")
            return
        self.world.held.run(self._stopped(sql, "raise exception using errcode = '57014';"))
        self._quiet()
        with caller.during(self.world.asleep, asked, transaction=id):
            self.transaction = None
        until(lambda: self.world.open_transactions() == 0, "nobody ended the transaction")
        self.world.held.renew()

    def teardown(self) -> None:
        if self.transaction is not None:
            who, id = self.transaction
            self.world.callers[who].end(id, "rollback")
        # The example ends with its session, and what that still holds.
        self.world.held.renew()
        self.world.model.renew()


@pytest.fixture(scope="module")
def world(postgres: Embedded) -> Iterator[World]:
    names = ("fresh", "fresh_twin")
    postgres.sql(f"create role {PEER}; grant {PEER} to {APP_USER}")
    for name in names:
        postgres.sql(f"create database {name} strategy wal_log")
    database, twin = (Database(postgres, name) for name in names)
    other = token_for(MASTER, subject="other", lifetime=86_000)
    limits = settings_for(database, max_connections=2, max_open_transactions=1)
    with (
        running(limits, database) as gateway,
        calling(gateway) as one,
        calling(gateway, other) as two,
        direct(database.dsn) as owner,
        direct(twin.dsn) as twins_owner,
        direct(twin.app_dsn, **PINNED) as model,
        direct(twin.app_dsn, **PINNED) as held,
    ):
        yield World(gateway, (one, two), (owner, twins_owner), model, held)
    for name in names:
        postgres.sql(f"drop database {name} with (force)")
    postgres.sql(f"drop role {PEER}")


def run_machine(world: World, **more: Any) -> None:
    class Machine(Fresh):
        pass

    Machine.world = world
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            # The steps of a failure are told as they were: to shrink them takes minutes.
            phases=(Phase.generate,),
            **more,
        ),
    )


def test_each_request_finds_a_fresh_session(world: World) -> None:
    run_machine(world, derandomize=True, max_examples=10, stateful_step_count=25)
    assert world.steps > 100


@pytest.mark.slow
def test_each_of_many_requests_finds_a_fresh_session(world: World) -> None:
    run_machine(world, max_examples=150, stateful_step_count=60, print_blob=True)
