"""Tenant a tries everything its SQL can do; no row of tenant b ever reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fix_claims import LOGIN, OF_B, Tenant, claims_settings, tenants
from tests.fix_postgres import Database

B = '{"tenant":"b","sub":"user-of-b"}'
FORGED_SEAL = "x.9999999999." + "0" * 64

FORGE = [
    "set role none",
    "reset role",
    "set role tenants_role",
    "set local role tenants_role",
    "set session authorization default",
    "select set_config('role', 'tenants_role', true)",
    f"select set_config('gw.claims', '{B}', true)",
    f"select set_config('gw.claims', '{B}', false)",
    f"set gw.claims = '{B}'",
    f"set local gw.claims = '{B}'",
    f"""select U&"set\\005fconfig"('gw.claims', '{B}', false)""",
    f"select set_config('gw.seal', '{FORGED_SEAL}', true)",
    "set gw.seal = ''",
    "select set_config('request.jwt.claims', '{\"tenant_id\":\"b\"}', false)",
    "select set_config('mine.seal', current_setting('gw.seal', true), false)",
    "select set_config('gw.seal', current_setting('mine.seal', true), true)",
    "reset all",
    "reset gw.claims",
    "discard all",
    "discard plans",
    "deallocate all",
    'deallocate "pgsluice_canary"',
    "prepare pgsluice_canary (text, text) as select $1, $2",
    "prepare mine as select note from items",
    "set row_security = off",
    "set session_replication_role = replica",
    "set search_path = pg_temp, public, gw",
    "set transform_null_equals = on",
    "set plpgsql.extra_errors = 'all'",
    "set client_min_messages = debug5",
    "set debug_print_plan = on",
    "set debug_print_rewritten = on",
    "set min_parallel_table_scan_size = 0",
    "set parallel_setup_cost = 0",
    "set parallel_tuple_cost = 0",
    "select set_config(name, case name when 'debug_parallel_query' then 'regress' else 'on' end,"
    " false) from pg_settings where name in ('debug_parallel_query', 'force_parallel_mode')",
    "savepoint mine",
    "rollback to savepoint mine",
    "release savepoint mine",
    f"alter role current_user set gw.claims = '{B}'",
    "alter role current_user set row_security = off",
    "alter role current_user set role = 'tenants_role'",
    "alter table items disable row level security",
    "alter table items no force row level security",
    "alter table items owner to current_user",
    "drop policy own on items",
    "create policy mine on items using (true)",
    "create or replace function gw.claims() returns jsonb language sql"
    f" as $$ select '{B}'::jsonb $$",
    "alter function gw.claims() security invoker",
    "create schema tenants_app",
    "create function public.count_items() returns bigint language sql as 'select 1'",
    "create trigger mine before insert on items execute function tsvector_update_trigger()",
    "create rule mine as on select to items do instead select 1",
    "insert into gw.seal_key values ('mine', '\\x00', '\\x00')",
    "grant select on items to public",
    "create temporary table items (tenant text, note text)",
    "create temporary table seal_key (kid text, ipad bytea, opad bytea)",
    "create temporary view mine as select * from items",
    f"create function pg_temp.claims() returns jsonb language sql as $$ select '{B}'::jsonb $$",
    "create function pg_temp.heard(text) returns boolean language plpgsql cost 0.0000001"
    " as $$ begin raise notice 'heard %', $1; return true; end $$",
    "create function pg_temp.definer() returns setof text language sql security definer"
    " as $$ select note from items $$",
    "create function pg_temp.sha256(bytea) returns bytea language sql"
    " as $$ select '\\x00'::bytea $$",
    "create function pg_temp.same(text, text) returns boolean language plpgsql cost 0.0000001"
    " as $$ begin raise notice 'same % %', $1, $2; return true; end $$",
    "create operator pg_temp.= (leftarg = text, rightarg = text, function = pg_temp.same)",
    "declare c cursor for select note from items",
    "declare h cursor with hold for select note from items",
    "lock table items in share mode",
    "listen b",
    f"do $$ begin perform set_config('gw.claims', '{B}', false); end $$",
    f"do $$ begin set local gw.claims = '{B}'; end $$",
    "do $$ begin commit; end $$",
    "explain analyze select * from items",
    "begin",
    "commit",
    "rollback",
    "set transaction read write",
    "set transaction isolation level serializable",
    "prepare transaction 'mine'",
    "vacuum items",
    "load 'auto_explain'",
    "select pg_reload_conf()",
]
"""What might make a of somebody b."""

LOOK = [
    "select * from items",
    "table parts",
    "select note from all_items",
    "select count_items()",
    "select note from only items tablesample system (100)",
    "select i.note from items i join parts p on p.item = i.id",
    "select note from items where tenant = 'b'",
    "select note from items for update",
    "select note from parts where note >= 'only' and note < 'onlz'",
    "update items set n = n + 1 returning note, tenant",
    "delete from parts where item > 390 returning note, tenant",
    "insert into items (tenant, note) values ('b', 'planted') returning *",
    "insert into items (tenant, note) values ('a', 'own') returning *",
    "update items set tenant = 'b' where tenant = 'a'",
    "merge into items i using parts p on i.note = p.note when matched then update set n = 1",
    f"with f as materialized (select set_config('gw.claims', '{B}', true))"
    " select note from f, items",
    f"select note, set_config('gw.claims', '{B}', true) from items",
    f"select note from items where set_config('gw.claims', '{B}', true) is not null",
    "select note from items where pg_temp.heard(note)",
    "select note from parts where pg_temp.heard(note) limit 1000",
    "select note from items where note operator(pg_temp.=) 'x'",
    "select pg_temp.definer()",
    "select * from mine",
    "execute mine",
    "fetch all from c",
    "fetch all from h",
    "select note::int from items",
    "select note from parts where note::int > 0",
    "select 1 / (strpos(note, 'only') - 1) from items",
    "select cast(note as json) from parts",
    "do $$ declare r record; begin for r in select * from items loop raise notice '%', r; end loop;"
    " end $$",
    f"do $$ declare r record; begin perform set_config('gw.claims', '{B}', true);"
    " for r in select * from items loop raise notice '%', r; end loop; end $$",
    "do $$ declare t text; begin select string_agg(note, ',') into t from items;"
    " raise exception '%', t; end $$",
    "do $$ declare r record; begin for r in execute 'select * from parts limit 5000' loop"
    " raise notice '%', r; exit when random() < 0.01; end loop; end $$",
    "select query_to_xml('select * from items', true, true, '')",
    "select database_to_xml(true, true, '')",
    "select most_common_vals, histogram_bounds from pg_stats where schemaname = 'public'",
    "select * from pg_statistic",
    "select stxdmcv from pg_statistic_ext_data",
    "select query from pg_stat_activity",
    "select pg_stat_get_activity(null)",
    "select * from pg_prepared_statements",
    "select * from pg_cursors",
    "select * from gw.seal_key",
    "select name, setting from pg_settings where name ~ 'gw|claims'",
    "select setconfig from pg_db_role_setting",
    "select gw.claims()",
    "select pg_read_file('global/pg_control')",
    "select lo_import('/etc/passwd')",
    "select get_raw_page('items', 0)",
    "select * from pg_logical_slot_peek_changes('s', null, null)",
    "select * from dblink('dbname=postgres', 'select 1') as t(n int)",
    "explain (analyze, verbose) select note from items where note > 'only'",
    "copy items to stdout",
    "copy (select * from items) to program 'cat'",
    "select max(note), min(note), string_agg(note, ',') from items",
    "select string_agg(note, ',') from parts",
    "select note from items order by tenant desc limit 1",
    "select count(*) from items where note like 'only%'",
    "select currtid2('items', '(0,4)'::tid)",
    "select ctid, * from items where ctid = '(0,4)'",
]
"""What might show a row of b, were it so."""

_step = st.one_of(
    st.tuples(st.just("run"), st.sampled_from(FORGE)),
    st.tuples(st.just("run"), st.sampled_from(LOOK)),
    st.tuples(st.just("b"), st.just("")),
    st.tuples(st.just("batch"), st.tuples(st.sampled_from(FORGE), st.sampled_from(LOOK))),
)
_plan = st.lists(st.tuples(st.booleans(), st.lists(_step, min_size=1, max_size=8)), max_size=2)


@pytest.fixture(scope="module")
def pair(tenants_database: Database) -> Iterator[tuple[Tenant, Tenant]]:
    with tenants(claims_settings(tenants_database), tenants_database) as both:
        yield both


def _try(a: Tenant, b: Tenant, step: tuple[str, Any], inside: str | None) -> None:
    """One step; a failed one is undone, so that the transaction can go on."""
    kind, what = step
    more = {} if inside is None else {"transaction": inside}
    if kind == "b":
        # On whatever connection a has left behind; its value is nowhere in a text.
        found = b.rows("select note from items where note > $1 and tenant = 'b'", OF_B)
        assert len(found) == 3 and all(note.startswith(OF_B) for (note,) in found)
        assert b.rows("select distinct tenant from parts") == [["b"]]
        return
    if kind == "batch":
        answer = a.post("/batch", statements=[{"sql": sql} for sql in what], **more)
    else:
        answer = a.post("/execute", sql=what, **more)
    if inside is not None and answer.status_code >= 400:
        a.post("/execute", sql="rollback to savepoint start", **more)


def _attack(a: Tenant, b: Tenant, plan: Any) -> None:
    a.heard.clear()
    b.heard.clear()
    for transaction, steps in plan:
        inside = a.begin() if transaction else None
        if inside is not None:
            a.rows("savepoint start", transaction=inside)
        for step in steps:
            _try(a, b, step, inside)
        if inside is not None:
            a.end(inside, "commit")
    for sql in ("select * from items", "select string_agg(note, ',') from parts"):
        a.post("/execute", sql=sql)
    assert OF_B not in "".join(a.heard)
    _try(a, b, ("b", ""), None)


@pytest.mark.slow
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=_plan)
def test_no_sequence_of_escapes_shows_a_row_of_another_tenant(
    pair: tuple[Tenant, Tenant], tenants_database: Database, plan: Any
) -> None:
    _attack(*pair, plan)
    assert (
        tenants_database.sql(
            f"select (select count(*) from items where tenant = 'b' and note like '{OF_B}%'),"
            " (select count(*) from items where tenant = 'b' and note not like 'only%'),"
            " (select count(*) from parts where tenant = 'b')"
        )
        == "3|0|1200"
    )


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in one transaction"])
@pytest.mark.parametrize(
    "every",
    [pytest.param(5, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)],
)
def test_each_escape_and_then_a_look_shows_nothing(
    pair: tuple[Tenant, Tenant], inside: bool, every: int
) -> None:
    a, b = pair
    for number in range(0, len(FORGE), every):
        looks = [LOOK[(number + k * len(FORGE)) % len(LOOK)] for k in range(2)]
        steps = [("run", FORGE[number]), *(("run", look) for look in looks), ("run", LOOK[0])]
        _attack(a, b, [(inside, steps)])


def test_a_sees_its_own_rows_all_the_while(pair: tuple[Tenant, Tenant]) -> None:
    a, b = pair
    _attack(a, b, [(True, [("run", look) for look in LOOK])])
    assert "".join(a.heard).count("of a1") > 20


def test_a_row_of_another_tenant_would_be_noticed(
    pair: tuple[Tenant, Tenant], tenants_database: Database
) -> None:
    a, b = pair
    tenants_database.sql("create policy hole on items using (true)")
    try:
        with pytest.raises(AssertionError):
            _attack(a, b, [(False, [("run", LOOK[0])])])
    finally:
        tenants_database.sql("drop policy hole on items")
    assert LOGIN in tenants_database.sql("select usename from pg_stat_activity")
