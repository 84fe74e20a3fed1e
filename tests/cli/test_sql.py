"""What the gateway keeps in a database can be looked at, installed, upgraded and removed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import main
from gateway.core import gw_schema
from tests.fix_postgres import APP_USER, Database

OBJECTS = """
select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = relnamespace
where nspname = 'gw' union
select 'gw.' || proname || '()' from pg_proc where pronamespace::regnamespace::text = 'gw' union
select 'schema' from pg_namespace where nspname = 'gw' order by 1"""


def run(*arguments: str, url: str | None = None) -> Result:
    more = [] if url is None else ["--url", url]
    return CliRunner(env={"DATABASE_URL": None}).invoke(main, ["sql", *arguments, *more])


def test_it_prints_a_script_and_touches_nothing_by_default(database: Database) -> None:
    printed = run("install", "--ledger", url=database.dsn)
    assert (printed.exit_code, printed.output) == (0, gw_schema.install(["ledger"]))
    assert database.sql(OBJECTS) == ""
    assert run("install", "--ledger", "--print").output == printed.output


def test_what_is_printed_can_be_run_with_psql_and_run_again(database: Database) -> None:
    script = run("install", "--ledger").output
    for _ in range(2):
        database.sql("set client_min_messages = warning;\n" + script)
    assert database.sql("select name, version from gw.part") == "ledger|1"


def test_it_is_applied_and_taken_away(database: Database) -> None:
    assert run("install", "--ledger", "--apply", url=database.dsn).exit_code == 0
    assert "gw.ledger" in database.sql(OBJECTS).split("\n")
    assert run("uninstall", "--apply", url=database.dsn).exit_code == 0
    assert database.sql(OBJECTS) == ""
    assert run("uninstall", "--apply", url=database.dsn).exit_code == 0


def test_one_part_goes_and_the_schema_stays(database: Database) -> None:
    run("install", "--ledger", "--apply", url=database.dsn)
    run("uninstall", "--ledger", "--apply", url=database.dsn)
    assert database.sql("select count(*) from gw.part") == "0"
    assert "gw.ledger" not in database.sql(OBJECTS)


def test_an_installation_keeps_what_the_ledger_holds(database: Database) -> None:
    run("install", "--ledger", "--apply", url=database.dsn)
    database.sql("insert into gw.ledger values ('a', 'b', 'c')")
    run("install", "--ledger", "--apply", url=database.dsn)
    run("upgrade", "--apply", url=database.dsn)
    assert database.sql("select count(*) from gw.ledger") == "1"


def test_an_upgrade_runs_each_step_that_is_missing_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("install", "--ledger", "--apply", url=database.dsn)
    part = gw_schema.PARTS["ledger"]
    more = part._replace(
        steps=(
            *part.steps,
            "alter table gw.ledger add column second integer;\n",
            "alter table gw.ledger add column third integer;\n",
        )
    )
    monkeypatch.setattr(gw_schema, "PARTS", {"ledger": more})
    for _ in range(2):
        assert run("upgrade", "--apply", url=database.dsn).exit_code == 0
    assert database.sql("select version from gw.part") == "3"
    # A fresh installation ends where the upgrade did.
    run("uninstall", "--apply", url=database.dsn)
    run("install", "--ledger", "--apply", url=database.dsn)
    assert database.sql("select version from gw.part") == "3"
    assert database.sql("select count(second), count(third) from gw.ledger") == "0|0"


def test_an_upgrade_installs_nothing_new(database: Database) -> None:
    run("install", "--ledger", "--apply", url=database.dsn)
    run("uninstall", "--ledger", "--apply", url=database.dsn)
    assert run("upgrade", "--apply", url=database.dsn).exit_code == 0
    assert "gw.ledger" not in database.sql(OBJECTS)


def test_roles_get_the_functions_and_nothing_else(database: Database) -> None:
    run("install", "--ledger", "--to", APP_USER, "--apply", url=database.dsn)
    rights = database.sql(
        f"select has_schema_privilege('{APP_USER}', 'gw', 'usage'),"
        f" has_schema_privilege('{APP_USER}', 'gw', 'create'),"
        f" has_table_privilege('{APP_USER}', 'gw.ledger', 'select, insert, update, delete'),"
        f" has_function_privilege('{APP_USER}', 'gw.record(bytea, bytea, bytea)', 'execute'),"
        " (select bool_or(has_function_privilege('pg_monitor', oid, 'execute'))"
        "  from pg_proc where pronamespace::regnamespace::text = 'gw')"
    )
    assert rights == "t|f|f|t|f"


def test_the_functions_are_not_led_astray_by_the_callers_search_path(database: Database) -> None:
    run("install", "--ledger", "--apply", url=database.dsn)
    settings = database.sql(
        "select distinct prosecdef, proconfig::text from pg_proc"
        " where pronamespace::regnamespace::text = 'gw'"
    )
    assert settings == 't|{"search_path=pg_catalog, pg_temp"}'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("install",), "say what to install", id="nothing"),
        pytest.param(("install", "--ledger", "--apply"), "--apply needs --url", id="nowhere"),
    ],
)
def test_what_is_missing_is_said(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_database_that_refuses_is_told_of_in_one_line(database: Database) -> None:
    refused = run("install", "--ledger", "--apply", url=database.app_dsn)
    assert refused.exit_code == 1
    assert "permission denied" in refused.output
    assert len(refused.output.splitlines()) == 1
    nobody = run("install", "--ledger", "--apply", url="postgresql://a@127.0.0.1:1/x")
    assert nobody.exit_code == 1
    assert "cannot connect" in nobody.output
