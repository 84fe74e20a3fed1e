"""The page on row-level security: its own commands, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli.main import main
from gateway.settings import load
from tests.fix_claims import IDP_SECRET, Tenant, token_of
from tests.fix_gateway import Gateway, running
from tests.fix_postgres import Database

PAGE = Path(__file__).parents[2] / "docs/how-to/row-level-security.md"
BLOCK = re.compile(r"```(sql|sh|toml)\n(.*?)```", re.DOTALL)
MASTER_KEY = "Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZSE="


@pytest.mark.process
def test_what_the_page_says_works(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    sql = [text.replace("database shop ", f"database {database.name} ") for kind, text in blocks
           if kind == "sql"]  # fmt: skip
    tables = [text for kind, text in blocks if kind == "toml"]
    commands = [text.strip() for kind, text in blocks if kind == "sh"]
    secret = tables[0].replace(
        'jwks_url = "https://idp.example/jwks.json"',
        f'secret = "{IDP_SECRET}"\nalgorithms = ["HS256"]',
    ).replace('audience = "shop"', 'audience = "gw"')  # fmt: skip
    assert "HS256" in secret
    file = tmp_path / "gateway.toml"
    file.write_text(f"""
[server]
port = 0
admin_port = 0
[targets.main]
hosts = ["{database.server.socket_dir}"]
port = {database.server.port}
database = "{database.name}"
[targets.main.logins.app]
user = "shop_app"
{secret}""")
    # What the page tells of the other mode is at least a rule.
    (tmp_path / "guc.toml").write_text(file.read_text() + tables[1])
    monkeypatch.setenv("PGSLUICE_AUTH__MASTER_KEY", MASTER_KEY)
    load(tmp_path / "guc.toml", os.environ)

    def run(command: str) -> str:
        words = shlex.split(command.replace("$OWNER_URL", database.dsn))
        assert words[0] == "pgsluice"
        environ = {"PGSLUICE_CONFIG": str(file), "DATABASE_URL": None}
        result = CliRunner(env=environ).invoke(main, words[1:])
        assert result.exit_code == 0 or "doctor" in command, result.output
        return result.output

    try:
        for text in sql[:2]:
            database.sql(text)
        run(commands[0])
        database.sql(sql[2])
        said = run(commands[1])
        # The server of the tests is careless with its data; the login has no fault.
        assert {line.split()[1] for line in said.splitlines() if line.startswith("  error")} == {
            "may_lose_data:"
        }
        settings = load(file, {**os.environ})
        with running(settings, database) as gateway:
            _use(gateway)
        assert database.sql("select tenant, note from shop.orders order by 1") == "a|of a\nb|of b"
    finally:
        database.sql("drop schema if exists shop cascade; drop schema if exists gw cascade")
        database.sql("drop owned by shop_app; drop owned by shop_owner")
        database.sql("drop role shop_app; drop role shop_owner")


def _use(gateway: Gateway) -> None:
    for tenant in ("a", "b"):
        who = Tenant(gateway, token_of(tenant))
        try:
            insert = "insert into shop.orders (tenant, note) values ($1, $2)"
            who.rows(insert, tenant, f"of {tenant}")
            assert who.failure(insert, "other", "x")["sqlstate"] == "42501"
            assert who.rows("select note from shop.orders") == [[f"of {tenant}"]]
        finally:
            who.client.close()
