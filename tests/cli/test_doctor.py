"""`pgsluice doctor` finds each fault that is planted, says how to mend it, and changes nothing."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import main
from gateway.core import gw_schema
from gateway.core.claims import key_script, seal_key
from gateway.postgres import connect, rights
from tests.fix_claims import LOGIN, SCHEMA, clear_login
from tests.fix_postgres import Database

doctors = importlib.import_module("gateway.cli.doctor")
"""The module; `gateway.cli.main` knows the command by the same name."""

MASTER_KEY = "Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZSE="


@pytest.fixture
def place(database: Database) -> Iterator[Database]:
    """A database without a fault: ledger, seal, row-level security."""
    key = key_script([seal_key(MASTER_KEY.encode(), "main")])
    database.sql(
        "set client_min_messages = warning;\n" + gw_schema.install(["ledger", "seal"], more=key)
    )
    database.sql(SCHEMA)
    yield database
    clear_login(database)


def config(database: Database, folder: Path, *, mode: str = "sealed", **target: Any) -> Path:
    values = {
        "hosts": [str(database.server.socket_dir)],
        "port": database.server.port,
        "database": database.name,
        "tls": "disable",
        **target,
    }
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    file = folder / "gateway.toml"
    file.write_text(f"""
[auth]
master_key = "{MASTER_KEY}"
[targets.main]
{lines}
[targets.main.logins.app]
user = "{LOGIN}"
[[policy]]
claims_mode = "{mode}"
{"i_trust_callers = true" if mode == "guc" else ""}
""")
    return file


def run(file: Path, *more: str) -> Result:
    return CliRunner(env={"DATABASE_URL": None}).invoke(
        main, ["doctor", "--config", str(file), *more]
    )


def found(file: Path) -> dict[str, dict[str, Any]]:
    result = run(file, "--json")
    answer = json.loads(result.output)
    assert result.exit_code == (0 if answer["ok"] else 1)
    return {each["code"]: each for each in answer["findings"]}


ALWAYS = {
    # The server of the tests risks its data for speed, and lets transactions be prepared.
    "may_lose_data", "may_lose_commits", "no_autovacuum", "prepared_transactions",
    # What every fresh database has.
    "statement_texts", "signals", "password_can_change",
    # The tables of the tests: a role to put on.
    "role_membership",
}  # fmt: skip


def test_a_database_in_order_has_no_finding_of_its_own(place: Database, tmp_path: Path) -> None:
    assert set(found(config(place, tmp_path))) == ALWAYS


FAULTS = {
    "superuser": f"alter role {LOGIN} superuser",
    "bypassrls": f"alter role {LOGIN} bypassrls",
    "createrole": f"alter role {LOGIN} createrole",
    "replication": f"alter role {LOGIN} replication",
    "predefined_role": f"grant pg_monitor to {LOGIN}",
    "owns": f"alter table items owner to {LOGIN}",
    "create_in_schema": f"grant create on schema public to {LOGIN}",
    "create_schema": "do $$ begin execute format("
    f"'grant create on database %I to {LOGIN}', current_database()); end $$",
    "trigger": f"grant trigger on items to {LOGIN}",
    "truncate": f"grant truncate on items to {LOGIN}",
    "seal_key": f"grant select on gw.seal_key to {LOGIN}",
    "rls_off": "alter table items disable row level security",
    "rls_partition": "create table old_items () inherits (items);"
    f"grant select on old_items to {LOGIN}",
    "rls_view": f"create view past as select * from items; grant select on past to {LOGIN}",
    "definer_function": "create function past() returns bigint language sql security definer"
    " as 'select count(*) from items'",
    "other_servers": "create extension postgres_fdw",
    "role_settings": f"alter role {LOGIN} set work_mem = '1GB'",
    "few_connections": f"alter role {LOGIN} connection limit 1",
    "rls_none": f"create table plain (n int); grant select on plain to {LOGIN}",
    "large_objects": f"set role {LOGIN}; select lo_create(0)",
    "no_ledger": "drop function gw.lookup(bytea)",
    "old_ledger": "update gw.part set version = 0 where name = 'ledger'",
    "no_seal": "revoke execute on function gw.claims() from public",
    "seal_key_differs": "delete from gw.seal_key",
    "unreachable": f"alter role {LOGIN} nologin",
}
WITH = {"rls_off": ["rls_none"]}
"""Findings that cannot but come with others."""
MEND = f"""
alter role {LOGIN} login nosuperuser nobypassrls nocreaterole noreplication connection limit -1;
revoke pg_monitor from {LOGIN}; alter role {LOGIN} reset all;
"""


@pytest.mark.parametrize("code", FAULTS)
def test_a_planted_fault_is_found_with_its_fix(place: Database, tmp_path: Path, code: str) -> None:
    file = config(place, tmp_path)
    try:
        place.sql(FAULTS[code])
        findings = found(file)
    finally:
        place.sql(MEND)
    assert code in findings
    finding = findings[code]
    assert finding["fix"] and finding["message"] and "{" not in finding["message"]
    assert (finding["target"], finding["login"]) == ("main", "app")
    if code != "unreachable":
        usual = ALWAYS - {"role_membership"} if code == "superuser" else ALWAYS
        assert set(findings) == {code, *usual, *WITH.get(code, ())}


SETTINGS = {
    "values_in_log": "log_statement = 'all'",
    "weak_passwords": "password_encryption = 'md5'",
}


@pytest.mark.parametrize("code", SETTINGS)
def test_a_fault_of_the_server_is_found(place: Database, tmp_path: Path, code: str) -> None:
    file = config(place, tmp_path)
    place.sql(f"alter database {place.name} set {SETTINGS[code]}")
    assert found(file)[code]["severity"] == "warning"


def test_a_server_with_fewer_connections_than_the_pool(place: Database, tmp_path: Path) -> None:
    file = config(place, tmp_path)
    file.write_text(file.read_text() + "[targets.main.pool]\nmax_connections = 1000\n")
    assert "small_server" in found(file)


def test_what_can_be_switched_off_is_no_finding_any_more(place: Database, tmp_path: Path) -> None:
    place.sql(
        f"alter role {LOGIN} set track_activities = off;"
        "revoke execute on function pg_terminate_backend(int, bigint), pg_cancel_backend(int)"
        f" from public; revoke tenants_role from {LOGIN}"
    )
    try:
        findings = found(config(place, tmp_path))
    finally:
        place.sql(f"grant tenants_role to {LOGIN}")
    assert set(findings) == (ALWAYS - {"statement_texts", "signals", "role_membership"}) | {
        "role_settings"
    }


def test_a_login_without_claims_is_only_warned_of_what_it_may_create(
    place: Database, tmp_path: Path
) -> None:
    place.sql(f"grant create on schema public to {LOGIN}; drop function gw.claims() cascade")
    findings = found(config(place, tmp_path, mode="none"))
    assert findings["create_in_schema"]["severity"] == "warning"
    assert not {"no_seal", "statement_texts", "rls_none"} & set(findings)
    findings = found(config(place, tmp_path, mode="guc"))
    assert findings["create_in_schema"]["severity"] == "error"
    assert "no_seal" not in findings


def test_a_network_without_tls_and_a_clock_that_differs(
    place: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"127.0.0.1:{place.server.port}"
    # Loopback in another spelling stands for a network: nothing leaves this machine.
    file = config(place, tmp_path, hosts=[host], allow_plaintext=True)
    assert "no_tls" not in found(file)
    monkeypatch.setattr(doctors, "_is_near", lambda target: False)
    findings = found(file)
    assert findings["no_tls"]["severity"] == "error"
    assert "plaintext_allowed" in findings
    real = doctors.time.time
    for seconds, severity in ((10, "warning"), (-300, "error")):
        monkeypatch.setattr(doctors.time, "time", lambda seconds=seconds: real() + seconds)
        said = found(file)["clocks"]
        assert said["severity"] == severity
        assert ("behind" if seconds > 0 else "ahead of") in said["message"]
        monkeypatch.setattr(doctors.time, "time", real)


def test_the_report_for_people_has_the_errors_first_and_a_count(
    place: Database, tmp_path: Path
) -> None:
    result = run(config(place, tmp_path))
    lines = result.output.splitlines()
    assert lines[0] == "target main, login app"
    assert lines[1].split()[:2] == ["error", "may_lose_data:"]
    assert lines[2].startswith("          fix: ")
    assert lines[-1] == "1 error, 3 warnings, 4 advice"
    assert result.exit_code == 1


def test_it_changes_nothing_and_says_no_secret(place: Database, tmp_path: Path) -> None:
    before = place.sql("select xmin, * from pg_class order by oid")
    output = run(config(place, tmp_path)).output
    assert place.sql("select xmin, * from pg_class order by oid") == before
    assert MASTER_KEY not in output


def test_what_cannot_be_examined_is_said(tmp_path: Path, place: Database) -> None:
    file = config(place, tmp_path)
    assert run(file, "--target", "other").exit_code == 2
    file.write_text("[targets.main]\nnonsense = 1\n")
    wrong = run(file)
    assert wrong.exit_code == 2
    assert "nonsense" in wrong.output


def test_settings_that_the_server_refuses_are_named(
    place: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connect._SESSION, "tcp_user_timeout", "-5")
    finding = found(config(place, tmp_path))["weakened"]
    assert finding["severity"] == "warning" and "tcp_user_timeout" in finding["message"]


def test_a_server_that_is_too_old_is_named(
    place: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = [look._replace(sql=look.sql.replace("150000", "990000")) for look in rights.SERVER]
    monkeypatch.setattr(rights, "SERVER", tuple(newer))
    finding = found(config(place, tmp_path))["old_server"]
    assert finding["severity"] == "error" and "is older than" in finding["message"]


def test_every_finding_that_there_is_was_planted_here() -> None:
    codes = {
        look.code
        for looks in (rights.SHARED, rights.LOGIN, rights.SERVER, rights.CLAIMS)
        for look in looks
    }
    source = Path(doctors.__file__).read_text(encoding="utf-8")
    codes |= set(re.findall(r'_add\(\s*"(\w+)"', source))
    codes |= {f"no_{name}" for name in gw_schema.PARTS} | {"old_ledger"}
    assert len(codes) > 35
    mine = Path(__file__).read_text(encoding="utf-8")
    assert [code for code in sorted(codes) if f'"{code}"' not in mine] == []
