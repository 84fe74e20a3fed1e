"""What one caller leaves in a session, the next one must not find.

Every way to change the state of a session, sent in every way a statement can run or
end, over HTTP to a gateway that has one single connection. Then everything that could
tell of it is asked, and has to be what a session says that was opened just now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.cli.embedded import Embedded
from gateway.cli.token import token_for
from tests.fix_gateway import MASTER, Gateway, running, settings_for, until
from tests.fix_postgres import APP_USER, Database
from tests.fix_sessions import PINNED, Caller, Direct, Seen, calling, direct

PEER = "isolation_peer"
"""A role that the gateway's login is a member of."""

OBJECTS = """
create table shared (n int); insert into shared values (1), (2), (3);
create table inbox (n int, id serial);
create table fired (sql text); create table deferred (sql text);
create sequence plain; create sequence cached cache 10; create sequence ran;
create schema evil; create table evil.shared (n int);
create function evil.lower(text) returns text language sql as $$ select 'evil' $$;
create function run(sql text) returns bool language plpgsql as
    $$ begin execute sql; return true; end $$;
create function run_and_fail(sql text) returns bool language plpgsql as
    $$ begin execute sql; raise exception using errcode = 'ZZ001'; end $$;
create function run_and_undo(sql text) returns bool language plpgsql as
    $$ begin
        begin execute sql; raise exception using errcode = 'ZZ001';
        exception when sqlstate 'ZZ001' then null; end;
        return true;
    end $$;
create function run_as_owner(sql text) returns bool language plpgsql security definer as
    $$ begin execute sql; return true; end $$;
create procedure run_in_procedure(sql text) language plpgsql as $$ begin execute sql; end $$;
create procedure run_and_commit(sql text) language plpgsql as
    $$ begin execute sql; commit; perform 1; end $$;
create function fire() returns trigger language plpgsql as
    $$ begin execute new.sql; return new; end $$;
create trigger fire after insert on fired for each row execute function fire();
create constraint trigger fire after insert on deferred initially deferred
    for each row execute function fire();
create view viewed as select run('set work_mem = ''1234kB''') as done;
create function attempt(sql text) returns text language plpgsql as
    $$ declare found text; begin
        execute sql into found; return coalesce(found, 'NULL');
    exception when others then return sqlstate; end $$;
grant all on all tables in schema public, evil to public;
grant all on all sequences in schema public to public;
grant all on schema evil to public;
"""


# -- what is done ----------------------------------------------------------------------


@dataclass(frozen=True)
class Setter:
    """A statement that leaves something in its session."""

    name: str
    sql: str
    leaks: bool = True
    """Whether PostgreSQL alone keeps it for the next statement."""
    since: int = 15
    kind: str = "setting"


def _settings() -> Iterator[Setter]:
    values = {
        "work_mem": "1234kB",
        "search_path": "evil, pg_catalog",
        "timezone": "Asia/Tokyo",
        "datestyle": "German, DMY",
        "intervalstyle": "iso_8601",
        "bytea_output": "escape",
        "extra_float_digits": "-10",
        "client_encoding": "latin1",
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "off",
        "default_transaction_deferrable": "on",
        "statement_timeout": "1",
        "lock_timeout": "1",
        "idle_in_transaction_session_timeout": "1",
        "idle_session_timeout": "3600000",
        "row_security": "off",
        "standard_conforming_strings": "off",
        "backslash_quote": "on",
        "array_nulls": "off",
        "xmloption": "document",
        "check_function_bodies": "off",
        "application_name": "someone else",
        "lc_monetary": "C",
        "client_min_messages": "error",
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        "synchronous_commit": "local",
        "session_replication_role": "replica",
        "password_encryption": "md5",
        "client_connection_check_interval": "700",
        "transform_null_equals": "on",
        "max_parallel_workers_per_gather": "9",
        "debug_print_plan": "on",
        "role": PEER,
        "app.caller": "mallory",
    }
    for name, value in values.items():
        quoted = value if "," in value else f"'{value}'"
        # That a session begins read-only is the gateway's doing, not PostgreSQL's.
        leaks = name != "default_transaction_read_only"
        yield Setter(f"set {name}", f"set {name} = {quoted}", leaks)
    for name in ("work_mem", "search_path", "role", "app.caller", "timezone"):
        yield Setter(f"set_config {name}", f"select set_config('{name}', '{values[name]}', false)")
    yield Setter("set transaction_timeout", "set transaction_timeout = '1h'", since=17)


SETTERS = [
    *_settings(),
    Setter("set local", "set local work_mem = '1234kB'", leaks=False),
    Setter("set names", "set names 'latin1'"),
    Setter("set seed", "set seed to 0.25", kind="seed"),
    Setter("update pg_settings", "update pg_settings set setting = 1234 where name = 'work_mem'"),
    Setter("session characteristics",
           "set session characteristics as transaction isolation level serializable"),
    Setter("session authorization", f"set session authorization {PEER}", leaks=False),
    Setter("own session authorization", f"set session authorization {APP_USER}", leaks=False),
    Setter("session_preload_libraries", "set session_preload_libraries = 'auto_explain'",
           leaks=False),
    Setter("load", "load 'auto_explain'", leaks=False),
    Setter("constraints", "set constraints all deferred", leaks=False),
    Setter("temp table", "create temp table leaked (n int)", kind="temp"),
    Setter("temp table in the way", "create temp table inbox (n int, id serial)", kind="temp"),
    Setter("temp table on commit drop", "create temp table leaked (n int) on commit drop",
           kind="temp"),
    Setter("temp table as", "create temp table leaked as select 1 as n", kind="temp"),
    Setter("select into temp", "select 1 as n into temp leaked", kind="temp"),
    Setter("temp view", "create temp view leaked as select 1 as n", kind="temp"),
    Setter("temp sequence", "create temp sequence leaked", kind="temp"),
    Setter("temp type", "create type pg_temp.leaked as (a int)", kind="temp"),
    Setter("temp enum", "create type pg_temp.leaked as enum ('a')", kind="temp"),
    Setter("temp domain", "create domain pg_temp.leaked as int", kind="temp"),
    Setter("temp function",
           "create function pg_temp.leaked() returns text language sql as 'select ''leaked'''",
           kind="temp"),
    Setter("temp operator", "create operator pg_temp.=== "
           "(leftarg = int, rightarg = int, function = int4eq)", kind="temp"),
    Setter("advisory lock", "select pg_advisory_lock(1)", kind="lock"),
    Setter("advisory lock, shared", "select pg_advisory_lock_shared(1)", kind="lock"),
    Setter("advisory lock, two keys", "select pg_advisory_lock(0, 1)", kind="lock"),
    Setter("advisory lock, often",
           "select pg_advisory_lock(n) from generate_series(1, 3) n, generate_series(1, 3)",
           kind="lock"),
    Setter("advisory lock, tried", "select pg_try_advisory_lock(1)", kind="lock"),
    Setter("advisory lock of the transaction", "select pg_advisory_xact_lock(1)", leaks=False),
    Setter("listen", "listen gossip", kind="listen"),
    Setter("notify", "notify gossip, 'psst'", leaks=False),
    Setter("prepare", "prepare leaked as select 'stolen'", kind="prepare"),
    Setter("prepare with parameters", "prepare leaked(text) as select $1", kind="prepare"),
    Setter("prepare under a driver's name", "prepare __asyncpg_stmt_1__ as select 'stolen'",
           kind="prepare"),
    Setter("cursor", "declare leaked cursor with hold for select 'held' from generate_series(1, 9)",
           kind="cursor"),
    Setter("cursor to scroll", "declare leaked scroll cursor with hold for select 'held'",
           kind="cursor"),
    Setter("nextval", "select nextval('plain')", kind="sequence"),
    Setter("nextval, cached", "select nextval('cached')", kind="sequence"),
    Setter("setval", "select setval('plain', 100)", kind="sequence"),
    Setter("serial", "insert into inbox (n) values (1)", kind="sequence"),
    Setter("setseed", "select setseed(0.25)", kind="seed"),
    Setter("large object", "select lo_from_bytea(0, 'x')", leaks=False),
    Setter("view that sets", "select * from viewed"),
    Setter("analyzed", "explain analyze select set_config('work_mem', '1234kB', false)"),
    Setter("in a block of its own",
           "do $x$ begin perform set_config('work_mem', '1234kB', false); end $x$"),
    Setter("discard", "discard plans", leaks=False),
    Setter("reset", "reset all", leaks=False),
]  # fmt: skip
Way = Callable[[Caller, str], object]
"""Sends a statement in a certain way."""


def _quoted(sql: str) -> str:
    return f"$leak${sql}$leak$"


def _block(sql: str, then: str = "") -> str:
    return f"do $block$ begin execute {_quoted(sql)}; {then} end $block$"


IN_SQL: dict[str, Callable[[str], str]] = {
    "plain": lambda sql: sql,
    "in a comment's company": lambda sql: f"/* x; */ -- y\n;;{sql} ;; -- z",
    "in a function": lambda sql: f"select run({_quoted(sql)})",
    "in a function that the planner runs": lambda sql: (
        f"select 1 where run({_quoted(sql)}) is not null"
    ),
    "in a function of its owner": lambda sql: f"select run_as_owner({_quoted(sql)})",
    "in a common table": lambda sql: (
        f"with x as materialized (select run({_quoted(sql)})) select * from x"
    ),
    "under explain analyze": lambda sql: f"explain analyze select run({_quoted(sql)})",
    "in a block": _block,
    "in a procedure": lambda sql: f"call run_in_procedure({_quoted(sql)})",
    "in a procedure that commits": lambda sql: f"call run_and_commit({_quoted(sql)})",
    "in a trigger": lambda sql: f"insert into fired values ({_quoted(sql)})",
    "in a trigger at commit": lambda sql: f"insert into deferred values ({_quoted(sql)})",
    "in a subtransaction that is undone": lambda sql: f"select run_and_undo({_quoted(sql)})",
    "in a statement that fails": lambda sql: f"select run_and_fail({_quoted(sql)})",
    "in a block that fails": lambda sql: _block(sql, "perform 1 / 0;"),
}
"""Ways that are SQL alone, and so can be tried on PostgreSQL without a gateway."""


def _sql_way(wrap: Callable[[str], str]) -> Way:
    return lambda caller, sql: caller.run(wrap(sql))


def _with_a_parameter(caller: Caller, sql: str) -> None:
    caller.run("select run($1)", [sql])


def _with_few_rows(caller: Caller, sql: str) -> None:
    """The caller wants fewer rows than there are: the portal is left before its end."""
    caller.run(f"select run({_quoted(sql)}) from generate_series(1, 9)", max_rows=1)


def _read_only(caller: Caller, sql: str) -> None:
    caller.run(sql, read_only=True)


def _in_a_batch(caller: Caller, sql: str) -> None:
    caller.send("/batch", {"statements": [{"sql": sql}, {"sql": "select 1"}]})


def _in_a_batch_that_fails(caller: Caller, sql: str) -> None:
    caller.send("/batch", {"statements": [{"sql": sql}, {"sql": "select 1 / 0"}]})


def _in_a_transaction(how: str, *before: str) -> Way:
    def way(caller: Caller, sql: str) -> None:
        transaction = caller.begin()
        for each in (sql, *before):
            caller.run(each, transaction=transaction)
        caller.end(transaction, how)

    return way


def _in_a_transaction_to_expire(caller: Caller, sql: str) -> None:
    transaction = caller.begin(idle_timeout=0.03)
    caller.run(sql, transaction=transaction)
    # Nothing is waited for: the only connection is lent again when the transaction is over.


def _then_sleep(sql: str) -> str:
    """A block that leaves something, if it may, and sleeps until it is stopped."""
    return (
        f"do $block$ begin begin execute {_quoted(sql)}; exception when others then null; end;"
        " perform pg_sleep(60); end $block$"
    )


def _until_its_deadline(caller: Caller, sql: str) -> None:
    assert caller.run(_then_sleep(sql), timeout=0.06).error == "57014"


def _until_its_deadline_in_a_transaction(caller: Caller, sql: str) -> None:
    transaction = caller.begin()
    answer = caller.run(_then_sleep(sql), transaction=transaction, timeout=0.06)
    assert answer.error == "57014"
    caller.end(transaction, "rollback")


# -- what is asked ---------------------------------------------------------------------

STATE = """select json_build_object(
    'settings', (select json_object_agg(name, setting order by name) from pg_settings
        where name not in
            ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')),
    'users', (current_user || ' ' || session_user || ' ' || current_setting('role')),
    'own setting', current_setting('app.caller', true),
    'path', current_schemas(false)::text,
    'path with temp', (select array_agg(regexp_replace(schema, '[0-9]+$', ''))::text
        from unnest(current_schemas(true)) schema),
    'temp schema', pg_my_temp_schema() <> 0,
    'temp relations', (select count(*) from pg_class where relnamespace = pg_my_temp_schema()),
    'temp types', (select count(*) from pg_type where typnamespace = pg_my_temp_schema()),
    'temp functions', (select count(*) from pg_proc where pronamespace = pg_my_temp_schema()),
    'temp operators', (select count(*) from pg_operator where oprnamespace = pg_my_temp_schema()),
    'locks', (select count(*) from pg_locks where pid = pg_backend_pid()
        and locktype = 'advisory'),
    'heard', (select count(*) from pg_listening_channels()),
    'prepared', (select count(*) from pg_prepared_statements where from_sql),
    'cursors', (select count(*) from pg_cursors where name <> '' and name not like '%asyncpg%'),
    'transaction', pg_current_xact_id_if_assigned()::text,
    'string', length('\\\\'), 'text', convert_to('ä€', 'UTF8')::text,
    'shared', (select array_agg(n order by n)::text from shared),
    'lower', lower('X'), 'lastval', attempt('select lastval()'),
    'currval', attempt('select currval(''plain'')'),
    'currval of a serial', attempt('select currval(''inbox_id_seq'')'),
    'executed', attempt('execute leaked'), 'executed with one', attempt('execute leaked(''x'')'),
    'called', attempt('select pg_temp.leaked()'), 'read', attempt('select n from leaked'),
    'cast', attempt('select null::leaked'),
    'isolation', current_setting('transaction_isolation')
)"""

PROBES: dict[str, str] = {
    "execute": "execute leaked",
    "execute with one": "execute leaked('x')",
    "execute a driver's": "execute __asyncpg_stmt_1__",
    "deallocate": "deallocate leaked",
    "fetch": "fetch all from leaked",
    "close": "close leaked",
    "lastval": "select lastval()",
    "currval": "select currval('plain')",
    "temp function": "select pg_temp.leaked()",
    "temp relation": "select * from leaked",
    "temp operator": "select 1 operator(pg_temp.===) 1",
    "in the way": "with gone as (insert into inbox (n) values (0) returning tableoid)"
    " select (select tableoid::regclass::text from gone)",
    "unlock": "select pg_advisory_unlock(1)",
    "own setting, shown": "show app.caller",
    "show role": "show role",
    "show session_authorization": "show session_authorization",
    "show isolation": "show transaction_isolation",
    "values": "select timestamptz '2024-01-31 08:00:00+02', interval '1 mon 2 days 3 hours',"
    " '\\x00ff'::bytea, 0.1::float8, 1e-5::float4, date '2024-01-31', array[1, null], 'ä€'",
    "strings": r"select 'a\nb', length('\\')",
    "pushed": "with x as (insert into inbox (n) values (1) returning n) select n from x",
    "own role": "create table made (n int)",
}


class State:
    """Asks a session for all that could tell of the one before, part by part."""

    def __init__(self, run: Callable[[str], Seen], owner: Direct) -> None:
        self.run = run
        self.owner = owner

    def main(self, run: Callable[[str], Seen] | None = None) -> dict[str, Any]:
        """What one SELECT shows."""
        answer = (run or self.run)(STATE)
        if answer.error is not None:
            return {"error": answer.error}
        value = answer.value
        return dict(json.loads(value) if isinstance(value, str) else value)

    def probe(self, name: str) -> Any:
        """What the statement *name* shows."""
        if name == "main":
            return self.main()
        if name == "cached":
            # A session takes ten numbers at once; a fresh one begins with the next ten.
            before = self.owner.value("select last_value + is_called::int from cached")
            answer = self.run("select nextval('cached')")
            return answer.error or answer.value - before
        if name == "random":
            answer = self.run("select random()")
            return answer.error or round(answer.value, 9) in self._seeded()
        if name == "lock from outside":
            # The only connection is lent once it is reset.
            assert self.run("select 1").error is None
            return [
                self.owner.value("select count(*) from pg_locks where locktype = 'advisory'"
                                 " and database = (select oid from pg_database"
                                 " where datname = current_database())"),
            ]  # fmt: skip
        answer = self.run(PROBES[name])
        if name == "own role" and answer.error is None:
            owner = self.owner.value("select tableowner from pg_tables where tablename = 'made'")
            self.owner.run("drop table made")
            return owner
        return str(answer)

    def _seeded(self) -> set[float]:
        sql = "select setseed(0.25), array(select random() from generate_series(1, 9))"
        answer = self.owner.run(sql)
        return {round(number, 9) for number in answer.rows[0][1]}


ASKED = ["main", *PROBES, "cached", "random", "lock from outside"]
"""Names that `State.probe` knows."""


def differences(found: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """What is not as in a fresh session, and what it is there."""
    wrong: dict[str, Any] = {}
    for name in found.keys() | fresh.keys():
        one, other = found.get(name), fresh.get(name)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                wrong |= differences(one, other)
            else:
                wrong[name] = (one, other)
    return wrong


# -- the gateway -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(postgres: Embedded) -> Iterator[Database]:
    """A database with everything that the setters and the probes use."""
    postgres.sql(
        f"create role {PEER}; grant {PEER} to {APP_USER};"
        f"grant set on parameter session_replication_role to {APP_USER};"
        "create database isolation strategy wal_log"
    )
    database = Database(postgres, "isolation")
    database.sql(OBJECTS)
    yield database
    postgres.sql(
        f"drop database isolation with (force); drop role {PEER};"
        f"revoke set on parameter session_replication_role from {APP_USER}"
    )


@pytest.fixture(scope="module")
def owner(place: Database) -> Iterator[Direct]:
    """A superuser's session, to look from outside."""
    with direct(place.dsn) as session:
        yield session


@dataclass
class Scene:
    """A gateway with one connection, a caller, and what a fresh session says."""

    caller: Caller
    """Sends the setters."""
    state: State
    """What another principal finds."""
    owner: Direct
    fresh: dict[str, Any]

    def renew(self) -> None:
        """Make the gateway open a fresh session for the next request."""
        asked = "select pg_backend_pid()"
        before = self.caller.run(asked).value
        self.owner.value("select pg_terminate_backend($1)", before)
        # Who is too early meets it on its way out, and is told to try again.
        until(lambda: self.caller.run(asked) != Seen([[before]]), "the backend did not end")
        until(lambda: self.caller.run(asked).error is None, "no fresh session was opened")

    def leaks(self, names: list[str]) -> dict[str, Any]:
        """What is not as in a fresh session."""
        found = {name: self.state.probe(name) for name in names}
        return differences(found, {name: self.fresh[name] for name in found})


@contextmanager
def scene(gateway: Gateway, owner: Direct) -> Iterator[Scene]:
    other_token = token_for(MASTER, subject="other", lifetime=86_000)
    with calling(gateway) as caller, calling(gateway, other_token) as other:
        state = State(other.run, owner)
        it = Scene(caller, state, owner, {})
        for name in ASKED:
            it.renew()
            it.fresh[name] = state.probe(name)
        yield it


@pytest.fixture(scope="module")
def stage(place: Database, owner: Direct) -> Iterator[Scene]:
    settings = settings_for(place, max_connections=1, max_open_transactions=1)
    with running(settings, place) as gateway, scene(gateway, owner) as it:
        yield it


@pytest.fixture(scope="module")
def setters(place: Database) -> list[Setter]:
    """Those that this PostgreSQL knows."""
    version = int(place.sql("show server_version_num")) // 10000
    return [setter for setter in SETTERS if setter.since <= version]


RESIDUE: dict[str, tuple[Any, Any]] = {
    "own setting": ("", None),
    "own setting, shown": ("Seen(rows=[['']], error=None)", "Seen(rows=None, error='42704')"),
}
"""What no reset reaches, and docs/how-to/isolation.md tells of: that somebody used a
setting of their own, and not its value."""


def run_matrix(
    stage: Scene, setters: list[Setter], way: Way, ask: Callable[[int], list[str]]
) -> None:
    """Send each setter in this way; the next requests have to find a fresh session."""
    found: dict[str, Any] = {}
    for index, setter in enumerate(setters):
        way(stage.caller, setter.sql)
        leaks = stage.leaks(ask(index))
        wrong = {
            name: each
            for name, each in leaks.items()
            # A library stays loaded, with its settings; it takes a superuser's function.
            if each != RESIDUE.get(name) and not name.startswith("auto_explain.")
        }
        if wrong:
            found[setter.name] = wrong
        if leaks:
            stage.renew()
    assert found == {}


def _some(index: int) -> list[str]:
    """What one SELECT shows and one more, each in its turn."""
    return ["main", ASKED[1 + index % (len(ASKED) - 1)]]


def one_of_each_kind(setters: list[Setter]) -> list[Setter]:
    """Kinds of state are what a reset can forget."""
    return list({setter.kind: setter for setter in setters if setter.leaks}.values())


def a_few(setters: list[Setter]) -> list[Setter]:
    """One of each kind, and settings that are not like the others."""
    names = ("search_path", "role", "app.caller", "client_encoding", "statement_timeout")
    special = [f"set {name}" for name in names]
    return one_of_each_kind(setters) + [it for it in setters if it.name in special]


THOROUGH = ("plain", "in a function", "in a statement that fails", "in a transaction")
"""Ways in which every setter is tried each time; in the others, a few."""


@pytest.mark.parametrize("name", IN_SQL)
def test_nothing_is_left_by_a_statement(stage: Scene, setters: list[Setter], name: str) -> None:
    chosen = setters if name in THOROUGH else a_few(setters)
    run_matrix(stage, chosen, _sql_way(IN_SQL[name]), _some)


OVER_HTTP: dict[str, Way] = {
    "with a parameter": _with_a_parameter,
    "with few rows": _with_few_rows,
    "read only": _read_only,
    "in a batch": _in_a_batch,
    "in a batch that fails": _in_a_batch_that_fails,
    "in a transaction": _in_a_transaction("commit"),
    "in a transaction that is rolled back": _in_a_transaction("rollback"),
    "in a transaction that fails": _in_a_transaction("commit", "select 1 / 0"),
    "in a transaction that is saved": _in_a_transaction(
        "commit", "savepoint s", "select 1 / 0", "rollback to s"
    ),
}


@pytest.mark.parametrize("name", OVER_HTTP)
def test_nothing_is_left_by_a_request(stage: Scene, setters: list[Setter], name: str) -> None:
    chosen = setters if name in THOROUGH else a_few(setters)
    run_matrix(stage, chosen, OVER_HTTP[name], _some)


WITH_WAITING: dict[str, Way] = {
    "until its deadline": _until_its_deadline,
    "until its deadline in a transaction": _until_its_deadline_in_a_transaction,
    "in a transaction that expires": _in_a_transaction_to_expire,
}


@pytest.mark.parametrize("name", WITH_WAITING)
def test_nothing_is_left_by_what_ends_in_time(
    stage: Scene, setters: list[Setter], name: str
) -> None:
    run_matrix(stage, one_of_each_kind(setters), WITH_WAITING[name], _some)


def _all(index: int) -> list[str]:
    return ASKED[index % len(ASKED) :] + ASKED[: index % len(ASKED)]


@pytest.mark.parametrize("how", ["cancelled", "left", "left in a transaction"])
def test_nothing_is_left_by_what_is_stopped(
    stage: Scene, setters: list[Setter], owner: Direct, how: str
) -> None:
    def asleep() -> bool:
        sql = """select count(*) from pg_stat_activity
            where datname = current_database() and wait_event = 'PgSleep'"""
        return bool(owner.value(sql) == 1)

    def way(caller: Caller, sql: str) -> None:
        more = {"transaction": caller.begin()} if how == "left in a transaction" else {}
        with caller.during(asleep, _then_sleep(sql), **more) as sock:
            if how == "cancelled":
                assert caller.cancel() == 202
                assert sock.recv(12) == b"HTTP/1.1 400"

    run_matrix(stage, a_few(setters), way, _some)


def test_nothing_is_left_by_a_large_result_whose_caller_leaves(
    stage: Scene, setters: list[Setter]
) -> None:
    def way(caller: Caller, sql: str) -> None:
        large = (
            f"select n, case n when 1 then run({_quoted(sql)}) end, repeat('x', 1000)"
            " from generate_series(1, 100000) n"
        )
        with caller.during(lambda: True, large) as sock:
            assert sock.recv(12) == b"HTTP/1.1 200"

    # What writes is never streamed.
    reads = [it for it in one_of_each_kind(setters) if it.kind not in ("temp", "sequence")]
    run_matrix(stage, reads, way, _some)


EVERY_WAY: dict[str, Way] = {
    **{name: _sql_way(wrap) for name, wrap in IN_SQL.items()},
    **OVER_HTTP,
    **WITH_WAITING,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EVERY_WAY))
def test_nothing_at_all_is_left(stage: Scene, setters: list[Setter], name: str) -> None:
    run_matrix(stage, setters, EVERY_WAY[name], _all)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", ["plain", "in a function", "in a statement that fails"])
def test_no_pair_of_statements_tells(
    stage: Scene, setters: list[Setter], name: str, asked: str
) -> None:
    """As the very next request, with nothing between that could have cleaned up for it."""
    if name != "plain":
        setters = a_few(setters)
    run_matrix(stage, setters, _sql_way(IN_SQL[name]), lambda _: [asked])


SUPERUSERS = [
    Setter("session authorization", f"set session authorization {PEER}"),
    Setter("session authorization by function",
           f"select set_config('session_authorization', '{PEER}', false)"),
    Setter("role", f"set role {PEER}"),
    Setter("session_replication_role", "set session_replication_role = replica"),
    Setter("log_statement", "set log_statement = 'all'"),
    Setter("log_min_duration_statement", "set log_min_duration_statement = 0"),
    Setter("zero_damaged_pages", "set zero_damaged_pages = on"),
    Setter("temp_file_limit", "set temp_file_limit = '1MB'"),
    Setter("session_preload_libraries", "set session_preload_libraries = 'auto_explain'",
           leaks=False),
]  # fmt: skip


@pytest.fixture(scope="module")
def superusers_stage(place: Database, owner: Direct) -> Iterator[Scene]:
    settings = settings_for(place, user="postgres", max_connections=1, max_open_transactions=1)
    target = replace(settings.targets["main"], allow_superuser=True)
    with (
        running(replace(settings, targets={"main": target}), place) as gateway,
        scene(gateway, owner) as it,
    ):
        yield it


@pytest.mark.parametrize("name", ["plain", "in a function", "in a statement that fails"])
def test_nothing_is_left_by_a_superuser(superusers_stage: Scene, name: str) -> None:
    run_matrix(superusers_stage, SUPERUSERS, _sql_way(IN_SQL[name]), _some)


# -- what no reset reaches: docs/how-to/isolation.md ------------------------------------


def test_a_setting_of_ones_own_is_empty_afterwards_and_not_unknown(stage: Scene) -> None:
    stage.renew()
    asked = "select current_setting('app.secret', true)"
    assert stage.state.run(asked).value is None
    stage.caller.rows("set app.secret = 'mallory'")
    assert stage.state.run(asked).value in ("", None)
    stage.caller.rows("select set_config('app.secret', 'mallory', true)")
    assert stage.state.run(asked).value in ("", None)
    stage.renew()


def test_dblink_keeps_its_sessions(stage: Scene, place: Database) -> None:
    place.sql("create extension dblink; grant execute on function dblink_connect_u(text, text)"
              f" to {APP_USER}")  # fmt: skip
    try:
        stage.renew()
        assert stage.state.run("select dblink_get_connections()").value is None
        where = f"host={place.server.socket_dir} port={place.server.port} dbname=isolation"
        stage.caller.rows("select dblink_connect_u('leaked', $1)", [f"{where} user={APP_USER}"])
        assert stage.state.run("select dblink_get_connections()").value == ["leaked"]
    finally:
        stage.renew()
        place.sql("drop extension dblink")


def test_texts_of_earlier_statements_can_be_read_by_the_same_login(stage: Scene) -> None:
    stage.caller.rows("select 'text of mine', $1::int", [424242])
    texts = str(stage.state.run("select array_agg(statement) from pg_prepared_statements").value)
    assert "text of mine" in texts
    # Values never are among them.
    assert "424242" not in texts


def test_what_alter_role_sets_is_outranked_where_it_matters(stage: Scene) -> None:
    settings = {
        "search_path": "evil",
        "standard_conforming_strings": "off",
        "transform_null_equals": "on",
        "idle_session_timeout": "1",
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "off",
        "timezone": "Asia/Tokyo",
        "datestyle": "German",
        "statement_timeout": "1",
        "row_security": "off",
        "role": PEER,
        "client_encoding": "latin1",
    }
    try:
        for name, value in settings.items():
            stage.caller.rows(f"alter role {APP_USER} set {name} = '{value}'")
        stage.renew()
        assert stage.leaks(ASKED) == {}
        stage.caller.rows(f"alter role {APP_USER} set work_mem = '1234kB'")
        stage.renew()
        work_mem = stage.fresh["main"]["settings"]["work_mem"]
        assert stage.leaks(["main"]) == {"work_mem": ("1234", work_mem)}
    finally:
        stage.owner.run(f"alter role {APP_USER} reset all")
        stage.renew()


# -- the tests themselves --------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(place: Database, owner: Direct) -> Iterator[tuple[Direct, State, dict[str, Any]]]:
    """A session without a gateway, nobody resets it; and what it says when it is fresh."""
    with direct(place.app_dsn, **PINNED) as session:
        state = State(session.run, owner)
        fresh: dict[str, Any] = {}
        for name in ASKED:
            session.renew()
            fresh[name] = state.probe(name)
        yield session, state, fresh


def _left(bare: tuple[Direct, State, dict[str, Any]], sql: str, asked: list[str]) -> dict[str, Any]:
    session, state, fresh = bare
    session.renew()
    session.run(sql)
    found = {name: state.probe(name) for name in asked}
    return differences(found, {name: fresh[name] for name in asked})


def test_without_a_gateway_the_questions_find_every_one_of_them(
    bare: tuple[Direct, State, dict[str, Any]], setters: list[Setter]
) -> None:
    asked = ["main", "cached", "random", "temp operator", "execute with one"]
    found = {}
    for setter in setters:
        left = _left(bare, setter.sql, asked)
        found[setter.name] = bool(left)
    assert found == {setter.name: setter.leaks for setter in setters}


@pytest.mark.parametrize("name", IN_SQL)
def test_without_a_gateway_each_way_leaves_something(
    bare: tuple[Direct, State, dict[str, Any]], setters: list[Setter], name: str
) -> None:
    left = {
        setter.kind
        for setter in one_of_each_kind(setters)
        if _left(bare, IN_SQL[name](setter.sql), ["main", "cached", "random"])
    }
    undone = {"lock", "prepare", "seed", "sequence"}
    every = {setter.kind for setter in setters}
    assert left == (undone if name in UNDONE else every)


UNDONE = (
    "in a subtransaction that is undone", "in a statement that fails", "in a block that fails",
)  # fmt: skip
"""Ways that roll back what they did; some things do not obey."""
