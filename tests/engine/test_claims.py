"""Row-level security by claims: what tenants are told apart by, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from gateway.cli import serve
from gateway.core.claims import seal, seal_key
from gateway.core.policy import ClaimRef, Rule
from gateway.settings import Settings
from tests.fix_claims import (
    IDP,
    LOGIN,
    OF_B,
    Tenant,
    claims_settings,
    install_seal,
    tenants,
    token_of,
)
from tests.fix_gateway import MASTER, running
from tests.fix_postgres import Database

B = '{"sub":"user-of-b","tenant":"b"}'
ITEMS = "select distinct tenant from items"


def test_each_tenant_sees_its_own_rows_by_every_way(shared_login: Database) -> None:
    with tenants(claims_settings(shared_login), shared_login) as both:
        for who, tenant in zip(both, ("a", "b"), strict=True):
            assert who.rows(ITEMS) == [[tenant]]
            assert who.rows("select distinct tenant from parts") == [[tenant]]
            assert who.rows(
                "insert into items (tenant, note) values ($1, 'new') returning tenant", tenant
            ) == [[tenant]]
            batch = who.post("/batch", statements=[{"sql": ITEMS}, {"sql": ITEMS}]).json()
            assert [each["rows"] for each in batch["results"]] == [[[tenant]], [[tenant]]]
            many = who.post(
                "/batch",
                sql="insert into items (tenant, note) values ($1, $2)",
                parameter_sets=[[tenant, "1"], [tenant, "2"]],
            )
            assert many.status_code == 200, many.text
            inside = who.begin()
            for _ in range(2):
                assert who.rows(ITEMS, transaction=inside) == [[tenant]]
            assert who.end(inside, "commit").status_code == 200
            assert who.rows(ITEMS, read_only=True) == [[tenant]]
            # It commits inside, which takes what is set for a transaction away.
            looping = (
                f"do $$ begin for i in 1..2 loop insert into items (tenant, note)"
                f" values ('{tenant}', 'done'); commit; end loop; end $$"
            )
            assert who.post("/execute", sql=looping).status_code == 200
        assert shared_login.sql("select tenant, count(*) from items group by 1 order by 1") == (
            "a|8\nb|8"
        )


@pytest.mark.parametrize("form", ["text/csv", "application/x-ndjson"])
def test_a_large_result_is_the_tenants_own(shared_login: Database, form: str) -> None:
    shared_login.sql(
        "insert into parts select tenant, 0, repeat('x', 2000) from parts, generate_series(1, 2)"
    )
    with tenants(claims_settings(shared_login), shared_login) as (a, b):
        for who, other in ((a, "b"), (b, "a")):
            # Twice: the first time it is found to be large.
            for _ in range(2):
                answer = who.client.post(
                    "/execute",
                    json={"sql": "select tenant, note from parts"},
                    headers={"accept": form},
                )
                assert answer.status_code == 200
                assert len(answer.text) > 4_000_000
                assert f"\n{other}," not in answer.text
                assert f'["{other}"' not in answer.text
            # PostgreSQL has no COPY into a table under row-level security for anybody.
            upload = who.client.post(
                "/copy/items",
                content={"text/csv": "tenant,note\n", "application/x-ndjson": ""}[form],
                headers={"content-type": form},
            )
            problem = upload.json()
            assert problem["sqlstate"] == "0A000"
            assert "row-level security" in problem["detail"] and "POST /batch" in problem["hint"]


def test_an_upload_has_claims_for_what_the_table_fills_in_itself(shared_login: Database) -> None:
    shared_login.sql(
        "create table logged (note text, by text default gw.claims() ->> 'tenant');"
        f"grant select, insert on logged to {LOGIN}"
    )
    with tenants(claims_settings(shared_login), shared_login) as (_, b):
        csv = {"content-type": "text/csv"}
        answer = b.client.post("/copy/logged", content="note\nx\n", headers=csv)
        assert answer.status_code == 200, answer.text
        assert b.rows("select * from logged") == [["x", "b"]]


def test_claims_are_those_of_the_token_and_of_the_rule(shared_login: Database) -> None:
    settings = claims_settings(shared_login, claims_include=("role", "org.unit", "absent"))
    with running(settings, shared_login) as gateway:
        who = Tenant(gateway, token_of("a", role="clerk", org={"unit": [1, "é"]}, email="not sent"))
        ((said,),) = who.rows("select gw.claims()::text")
        assert json.loads(said) == {
            "sub": "user-of-a", "iss": IDP, "tenant": "a", "role": "clerk", "org.unit": [1, "é"],
        }  # fmt: skip
        assert "not sent" not in "".join(who.heard)
        who.client.close()


def test_values_of_claims_and_seals_stand_in_no_statement_text(shared_login: Database) -> None:
    with tenants(claims_settings(shared_login), shared_login) as (a, b):
        inside = b.begin()
        b.rows(ITEMS, transaction=inside)
        texts = shared_login.sql("select query from pg_stat_activity")
        assert "tenants_app" in shared_login.sql("select usename from pg_stat_activity")
        assert "user-of-b" not in texts
        assert "user-of-b" not in str(a.rows("select query from pg_stat_activity"))
        assert "user-of-b" not in str(a.rows("select statement from pg_prepared_statements"))
        b.end(inside)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        pytest.param({"gw.claims": B}, "not valid", id="other claims with the own seal"),
        pytest.param({"gw.seal": "a.b"}, "not sealed", id="no seal"),
        pytest.param({"gw.claims": B, "gw.seal": "x.9999999999.00"}, "not valid", id="made up"),
    ],
)
def test_forged_claims_are_an_error_not_rows(
    shared_login: Database, what: dict[str, str], says: str
) -> None:
    sets = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in what.items())
    with tenants(claims_settings(shared_login), shared_login) as (a, _):
        problem = a.failure(f"with f as materialized (select {sets}) select note from f, items")
        assert problem["sqlstate"] == "28000"
        assert says in problem["detail"]


def test_a_seal_is_for_one_backend_one_database_one_target_and_a_while(
    shared_login: Database,
) -> None:
    key, name = seal_key(MASTER, "main"), shared_login.name
    made = {
        "right": ("$pid", name, 2_000_000_000, key),
        "of another backend": ("$pid+1", name, 2_000_000_000, key),
        "of another database": ("$pid", "postgres", 2_000_000_000, key),
        "of another target": ("$pid", name, 2_000_000_000, seal_key(MASTER, "second")),
        "of yesterday": ("$pid", name, 1_000_000_000, key),
    }
    with tenants(claims_settings(shared_login), shared_login) as (a, _):
        found = {}
        for what, (pid, database, expires, by) in made.items():
            inside = a.begin()
            ((own,),) = a.rows("select pg_backend_pid()", transaction=inside)
            text = seal(by, B, pid=own + ("+1" in pid), database=database, expires=expires)
            answer = a.post(
                "/execute",
                sql="with f as materialized (select set_config('gw.claims', $1, true),"
                " set_config('gw.seal', $2, true)) select distinct tenant from f, items",
                parameters=[B, text],
                transaction=inside,
            ).json()
            found[what] = answer.get("rows") or answer["detail"]
            a.end(inside)
    assert found == {
        # So the others fail for what is wrong with them, and for nothing else.
        "right": [["b"]],
        "of another backend": "the seal of the claims is not valid",
        "of another database": "the seal of the claims is not valid",
        "of another target": "the seal of the claims is not valid",
        "of yesterday": "the seal of the claims has expired",
    }


def test_what_a_caller_sets_is_gone_with_its_next_statement(shared_login: Database) -> None:
    with tenants(claims_settings(shared_login), shared_login) as (a, _):
        inside = a.begin()
        a.rows("select set_config('gw.claims', '', true)", transaction=inside)
        assert a.rows(ITEMS, transaction=inside) == [["a"]]
        a.rows(f"select set_config('gw.claims', '{B}', false)", transaction=inside)
        assert a.rows(ITEMS, transaction=inside) == [["a"]]
        a.end(inside, "commit")
        assert a.rows(ITEMS) == [["a"]]


def test_a_narrower_token_counts_from_the_next_statement_of_a_transaction(
    shared_login: Database,
) -> None:
    settings = claims_settings(shared_login, claims_include=("role",))
    with running(settings, shared_login) as gateway:
        wide, narrow = (Tenant(gateway, token_of("a", role=role)) for role in ("admin", "clerk"))
        inside = wide.begin()
        sql = "select gw.claims() ->> 'role'"
        assert wide.rows(sql, transaction=inside) == [["admin"]]
        assert narrow.rows(sql, transaction=inside) == [["clerk"]]
        wide.end(inside)
        wide.client.close()
        narrow.client.close()


def test_set_transaction_and_savepoints_go_on_working(shared_login: Database) -> None:
    with tenants(claims_settings(shared_login), shared_login) as (a, _):
        inside = a.begin()
        a.rows("set transaction isolation level serializable", transaction=inside)
        a.rows("savepoint s", transaction=inside)
        assert a.rows("show transaction_isolation", transaction=inside) == [["serializable"]]
        assert a.failure("select 1/0", transaction=inside)["sqlstate"] == "22012"
        assert a.failure(ITEMS, transaction=inside)["sqlstate"] == "25P02"
        a.rows("rollback to savepoint s", transaction=inside)
        assert a.rows(ITEMS, transaction=inside) == [["a"]]
        a.end(inside)


def test_keyed_writes_take_effect_once_under_claims(shared_login: Database) -> None:
    with tenants(claims_settings(shared_login), shared_login) as (a, b):
        sql = "insert into items (tenant, note) values ($1, 'keyed') returning id"
        for who, tenant in ((a, "a"), (b, "b")):
            first, second = (
                who.client.post(
                    "/execute",
                    json={"sql": sql, "parameters": [tenant]},
                    headers={"idempotency-key": "k"},
                ).json()
                for _ in range(2)
            )
            assert first["rows"] == second["rows"]
    assert shared_login.sql("select count(*) from items where note = 'keyed'") == "2"


UNFIT = {
    "superuser": f"alter role {LOGIN} superuser",
    "bypassrls": f"alter role {LOGIN} bypassrls",
    "createrole": f"alter role {LOGIN} createrole",
    "replication": f"alter role {LOGIN} replication",
    "a role that reads all": f"grant pg_read_all_data to {LOGIN}",
    "a role above policies": f"alter role tenants_role bypassrls; grant tenants_role to {LOGIN}",
    "owner of a table": f"alter table items owner to {LOGIN}",
    "owner through a role": "alter table items owner to tenants_role",
    "owner of a function": f"alter function count_items() owner to {LOGIN}",
    "create in a schema": f"create schema s; grant create on schema s to {LOGIN}",
    "create for everybody": "grant create on schema public to public",
    "create schemas": "do $$ begin execute format("
    f"'grant create on database %I to {LOGIN}', current_database()); end $$",
    "trigger": f"grant trigger on items to {LOGIN}",
    "truncate": f"grant truncate on items to {LOGIN}",
    "the key of the seals": f"grant select on gw.seal_key to {LOGIN}",
    "no function": "drop function gw.claims() cascade",
    "no right to the function": "revoke execute on function gw.claims() from public",
    "another key": "delete from gw.seal_key",
}
MEND = f"""
alter role {LOGIN} nosuperuser nobypassrls nocreaterole noreplication;
alter role tenants_role nobypassrls; revoke pg_read_all_data from {LOGIN};
"""


def _may_be_superuser(settings: Settings) -> Settings:
    target = replace(settings.targets["main"], allow_superuser=True)
    return replace(settings, targets={"main": target})


@pytest.mark.parametrize("what", UNFIT)
def test_it_does_not_start_for_a_login_that_is_unfit_to_be_shared(
    shared_login: Database, what: str
) -> None:
    settings = _may_be_superuser(claims_settings(shared_login))
    try:
        shared_login.sql(UNFIT[what])
        assert serve.run(settings) == 1
    finally:
        shared_login.sql(MEND)


def test_nothing_runs_if_the_login_is_found_unfit_later(shared_login: Database) -> None:
    # It starts on a database that it cannot reach.
    name = shared_login.name
    shared_login.server.sql(f"alter database {name} allow_connections false")
    with running(claims_settings(shared_login), shared_login) as gateway:
        shared_login.server.sql(f"alter database {name} allow_connections true")
        shared_login.sql(UNFIT["trigger"])
        who = Tenant(gateway, token_of("a"))
        for path, body in (
            ("/execute", {"sql": "insert into items (tenant, note) values ('a', 'x')"}),
            ("/execute", {"sql": ITEMS}),
            ("/batch", {"statements": [{"sql": ITEMS}]}),
            ("/transactions", {}),
        ):
            answer = who.post(path, **body)
            assert (answer.status_code, answer.json()["code"]) == (503, "claims_unsafe")
        assert "items" not in "".join(who.heard)
        shared_login.sql(f"revoke trigger on items from {LOGIN}")
        assert who.rows(ITEMS) == [["a"]]
        who.client.close()


def test_why_it_does_not_start_is_said(
    shared_login: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    shared_login.sql(f"create schema s; grant create on schema s to {LOGIN}")
    assert serve.run(claims_settings(shared_login)) == 1
    said = capsys.readouterr().err
    assert "target main, login app" in said
    assert "may create in schema s" in said


def test_a_rotated_master_key_needs_no_pause(shared_login: Database) -> None:
    from gateway.core.claims import key_script

    new = b"another master key, 32 bytes or more"
    keys = [seal_key(new, "main"), seal_key(MASTER, "main")]
    shared_login.sql(key_script(keys))
    settings = claims_settings(shared_login)
    for master in (MASTER, new):
        auth = replace(settings.auth, master_key=master)
        with tenants(replace(settings, auth=auth), shared_login) as (a, _):
            assert a.rows(ITEMS) == [["a"]]
    shared_login.sql(key_script(keys[:1]))
    assert serve.run(settings) == 1


# ---- the other modes -------------------------------------------------------------------------

FORGE_GUC = (
    "with f as materialized (select set_config('request.jwt.claims',"
    ' \'{"tenant_id":"b"}\', true)) select distinct tenant from f, guc_items'
)
GUC_ITEMS = "select distinct tenant from guc_items"
FORGE_SEALED = f"with f as materialized (select set_config('gw.claims', '{B}', true)) " + (
    "select distinct tenant from f, items"
)


@pytest.mark.parametrize(
    ("mode", "more", "expected"),
    [
        pytest.param("sealed", {}, {ITEMS: [["a"]], FORGE_SEALED: "28000"}, id="sealed"),
        pytest.param(
            "guc",
            {"statements": "listed", "listed": frozenset({GUC_ITEMS})},
            {GUC_ITEMS: [["a"]], FORGE_GUC: "forbidden"},
            id="guc and listed: nothing else runs",
        ),
        pytest.param(
            "guc",
            {"i_trust_callers": True},
            {GUC_ITEMS: [["a"]], FORGE_GUC: [["b"]]},
            id="guc alone: callers must be trusted",
        ),
        pytest.param(
            "none",
            {},
            {ITEMS: [], GUC_ITEMS: [], FORGE_SEALED: [], FORGE_GUC: [["b"]]},
            id="none: no claims, no rows, and a setting protects nothing",
        ),
    ],
)
def test_what_each_mode_is_worth(
    shared_login: Database, mode: str, more: dict[str, Any], expected: dict[str, Any]
) -> None:
    with tenants(claims_settings(shared_login, mode, **more), shared_login) as (a, _):
        for sql, result in expected.items():
            for transaction in (False, True):
                inside = {"transaction": a.begin()} if transaction else {}
                answer = a.post("/execute", sql=sql, **inside).json()
                said = answer.get("rows", answer.get("sqlstate") or answer.get("code"))
                assert said == result, sql
                if transaction:
                    a.end(inside["transaction"])
        heard = "".join(a.heard)
        assert OF_B not in heard


def test_guc_puts_the_claims_and_the_role_on_as_postgrest_does(shared_login: Database) -> None:
    shared_login.sql("create table of_role (n int); grant all on of_role to tenants_role")
    settings = claims_settings(
        shared_login,
        "guc",
        i_trust_callers=True,
        claims_role=ClaimRef("role", allowed=("tenants_role",)),
    )
    with running(settings, shared_login) as gateway:
        who = Tenant(gateway, token_of("a", role="tenants_role", email="e@a.example"))
        sql = "select current_user, current_setting('request.jwt.claims', true)"
        inside = who.begin()
        for more in ({}, {"transaction": inside}):
            ((role, text),) = who.rows(sql, **more)
            claims = json.loads(text)
            assert (role, claims["sub"], claims["email"]) == (
                "tenants_role", "user-of-a", "e@a.example",
            )  # fmt: skip
            assert claims["role"] == "tenants_role"
        who.rows("set role none", transaction=inside)
        assert who.rows("select current_user", transaction=inside) == [["tenants_role"]]
        who.end(inside)
        assert who.rows("insert into of_role values (1) returning n") == [[1]]
        keyed = who.client.post(
            "/execute",
            json={"sql": "insert into of_role values (2)"},
            headers={"idempotency-key": "k"},
        )
        assert keyed.status_code == 200, keyed.text
        batch = who.post("/batch", statements=[{"sql": "insert into of_role values (3)"}])
        assert batch.status_code == 200, batch.text
        assert who.rows("select count(*) from of_role") == [[3]]
        other = Tenant(gateway, token_of("a", role="postgres"))
        assert other.failure("select 1")["code"] == "forbidden"
        for each in (who, other):
            each.client.close()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        pytest.param({"claims_mode": "guc"}, "claim to be anybody", id="guc"),
        pytest.param({"claims_mode": "jwt"}, "must be 'none'", id="no such mode"),
        pytest.param({"claims_role": "r"}, "is for claims_mode", id="a role without guc"),
        pytest.param({"claims_include": ("a",)}, "means nothing", id="claims without a mode"),
        pytest.param(
            {"claims_mode": "sealed", "claims_include": ("tenant",)}, "own", id="the own claim"
        ),
        pytest.param(
            {"claims_mode": "guc", "i_trust_callers": True, "claims_role": ClaimRef("r")},
            "allowed",
            id="any role",
        ),
    ],
)
def test_a_rule_that_would_not_protect_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Rule(name="r", **wrong)


def test_seals_of_another_target_are_installed_apart(shared_login: Database) -> None:
    install_seal(shared_login, target="second")
    assert serve.run(claims_settings(shared_login)) == 1


@pytest.mark.anyio
async def test_no_plan_shows_the_key_of_the_seals(shared_login: Database) -> None:
    key, heard = seal_key(MASTER, "main"), []
    # Directly: the gateway would leave out the details, in which the plans are.
    connection = await asyncpg.connect(shared_login.server.dsn(shared_login.name, LOGIN))
    try:
        connection.add_log_listener(lambda _, message: heard.append(str(message.as_dict())))
        made = seal(
            key, B, pid=connection.get_server_pid(), database=shared_login.name,
            expires=2_000_000_000,
        )  # fmt: skip
        await connection.execute(
            "set debug_print_plan = on; set debug_print_rewritten = on;"
            "set client_min_messages = debug5"
        )
        for _ in range(8):  # from the sixth on a plan may be generic
            async with connection.transaction():
                await connection.fetch(
                    "select set_config('gw.claims', $1, true), set_config('gw.seal', $2, true)",
                    B,
                    made,
                )
                assert await connection.fetchval("select gw.claims() ->> 'tenant'") == "b"
    finally:
        await connection.close()
    everything = "".join(heard)
    assert "seal_key" in everything and "PLANNEDSTMT" in everything
    for pad in (*key.pads, key.secret):
        # PostgreSQL prints the bytes of a constant as numbers with a sign.
        printed = " ".join(str(byte - 256 * (byte > 127)) for byte in pad[:8])
        assert printed not in everything and pad.hex() not in everything
    # Its own arguments are there, printed like this: so it would have been found.
    assert " ".join(str(byte) for byte in key.id.encode()) in everything


def test_the_key_of_the_seals_is_for_no_login(shared_login: Database) -> None:
    with tenants(claims_settings(shared_login), shared_login) as (a, _):
        for sql in ("select * from gw.seal_key", "update gw.seal_key set kid = 'x'"):
            assert a.failure(sql)["sqlstate"] == "42501"
