"""The policy explains itself to who runs the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import main

CONFIG = """
[[issuers]]
issuer = "https://idp.example"
audience = "gw"
secret = "0123456789abcdef0123456789abcdef"

[targets.orders]
hosts = ["127.0.0.1:5432"]
database = "orders"
resources = ["arn:aws:rds:us-east-1:123456789012:cluster:orders"]
[targets.orders.logins.app]
user = "app"
secrets = ["arn:aws:secretsmanager:us-east-1:123456789012:secret:orders-app-*"]
[targets.orders.logins.ro]
user = "ro"

[[policy]]
name = "functions"
principals = ["arn:aws:iam::123456789012:role/orders-*"]
resources = ["orders"]
login = "app"
statements = "dml"
tables = ["orders", "app.*"]
verbs = ["select", "insert"]
limits = { rps = 20, concurrency = 3 }

[[policy]]
name = "people"
issuer = "https://idp.example"
claims = { groups = "orders-*" }
resources = ["orders"]
login = { claim = "role", allowed = ["ro"] }
read_only = true

[[policy]]
name = "report"
principals = ["report"]
resources = ["orders"]
login = "ro"
statements = "listed"
listed = ["select count(*) from orders"]
"""
ROLE = "arn:aws:iam::123456789012:role/orders-fn"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG)
    return path


def explain(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main,
        ["policy", "explain", "--config", str(file), "--as", *arguments],
        env={"PGSLUICE_AUTH__MASTER_KEY": "Zm9ydHktdHdvIGJ5dGVzIG9mIHJhbmRvbSBsb29raW5n"},
    )


def test_the_rule_that_decides_is_named_with_what_it_gives(file: Path) -> None:
    done = explain(file, ROLE, "--resource", "orders", "--sql", "select * from orders")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        f"{ROLE} (issuer sts:123456789012)",
        "  -> functions: decides",
        "target: orders",
        "login: app",
        "database: orders",
        "read only: no",
        f"tenant: {ROLE}",
        "statements: dml",
        "limits: 45 s, 16777216 bytes held, normal, 20 requests/s, 3 at once",
        "tables: orders, app.*",
        "verbs: select, insert",
        "statement: allowed",
    ]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("drop table orders", "may not run DROP statements"),
        ("delete from orders", "may not delete"),
        ("select * from secret", "names a table that is not allowed"),
        ("select * from orders where (", "cannot be read for certain"),
    ],
)
def test_a_statement_that_is_refused_is_told_why(file: Path, sql: str, why: str) -> None:
    done = explain(file, ROLE, "--sql", sql)
    assert done.exit_code == 1
    assert why in done.output.splitlines()[-1]


def test_each_rule_that_does_not_fit_says_why(file: Path) -> None:
    user = "https://idp.example|u1"
    done = explain(file, user, "--claim", 'groups=["orders-readers"]', "--claim", "role=ro")
    assert done.exit_code == 0, done.output
    assert "     functions: does not list the principal" in done.output
    assert "  -> people: decides" in done.output
    assert "login: ro" in done.output
    done = explain(file, user)
    assert done.exit_code == 1
    assert "     people: asks for a claim groups that is absent or another" in done.output
    assert "     report: does not list the principal" in done.output
    assert done.output.splitlines()[-1] == "refused: no rule for the principal"


def test_a_rule_that_decides_and_refuses_says_so(file: Path) -> None:
    done = explain(
        file, "https://idp.example|u1", "--claim", "groups=orders-x", "--claim", "role=app"
    )
    assert done.exit_code == 1
    assert "people: decides, and refuses: claim role has a value that is not allowed" in done.output


def test_what_is_asked_for_besides_may_be_the_reason(file: Path) -> None:
    for arguments, why in (
        (["--resource", "nothing"], "refused: unknown target"),
        (["--database", "other"], "functions: does not list the database"),
        (["--secret", "ro"], "functions: does not list the secret"),
    ):
        done = explain(file, ROLE, *arguments)
        assert done.exit_code == 1
        assert why in done.output


def test_a_listed_statement_is_held_letter_for_letter(file: Path) -> None:
    assert explain(file, "report", "--sql", "select count(*) from orders").exit_code == 0
    done = explain(file, "report", "--sql", "select count(*) from  orders")
    assert done.exit_code == 1
    assert "listed" in done.output.splitlines()[-1]
