"""Keys are made, listed, rotated and switched off without a server."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.keys import disabled_text
from gateway.cli.main import main
from gateway.core.keys import derive_secret

MASTER = "Zm9ydHktdHdvIGJ5dGVzIG9mIHJhbmRvbSBsb29raW5n"
FIRST, SECOND = "GWAKAAAAAAAAAAAAAAAA", "GWAKBBBBBBBBBBBBBBBB"
CONFIG = f"""
[auth.keys.{FIRST}]
principal = "orders-fn"   # the function
versions = [1, 2]
not_after = 2020-01-01T00:00:00Z

[auth . keys . "{SECOND}"]
principal = "reports"

[targets.main.logins.app]
user = "app"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG)
    path.chmod(0o640)
    return path


def run(*arguments: str, **environ: str) -> Result:
    env = {"PGSLUICE_AUTH__MASTER_KEY": MASTER, **environ}
    return CliRunner().invoke(main, ["keys", *arguments], env=env)


def test_a_list_shows_every_key_and_no_secret(file: Path) -> None:
    done = run("list", "--config", str(file))
    assert done.exit_code == 0, done.output
    lines = [re.split(r" {2,}", line) for line in done.output.splitlines()]
    assert lines[1] == [FIRST, "orders-fn", "1,2", "2020-01-01T00:00:00Z", "expired"]
    assert lines[2] == [SECOND, "reports", "1", "-", "active"]
    assert derive_secret(MASTER.encode(), FIRST, 1) not in done.output


def test_a_list_says_what_is_wrong_with_a_key(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[auth.keys.SHORT]\nprincipal = 'x'\n")
    done = run("list", "--config", str(path))
    assert done.exit_code == 1
    assert "auth.keys.SHORT" in done.output


def test_a_disabled_key_is_the_only_change_to_the_file(file: Path) -> None:
    for key_id in (SECOND, FIRST):
        before = tomllib.loads(file.read_text())
        done = run("disable", key_id, "--config", str(file))
        assert done.exit_code == 0, done.output
        before["auth"]["keys"][key_id]["disabled"] = True
        assert tomllib.loads(file.read_text()) == before
    assert "# the function" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert "disabled already" in run("disable", FIRST, "--config", str(file)).output


def test_a_key_that_is_not_in_the_file_is_not_disabled_there(file: Path) -> None:
    done = run("disable", "GWAKCCCCCCCCCCCCCCCC", "--config", str(file))
    assert done.exit_code == 1
    assert "is not configured" in done.output
    environ = {"PGSLUICE_AUTH__KEYS__GWAKCCCCCCCCCCCCCCCC__PRINCIPAL": "x"}
    done = run("disable", "GWAKCCCCCCCCCCCCCCCC", "--config", str(file), **environ)
    assert done.exit_code == 1
    assert "__DISABLED=true" in done.output
    assert file.read_text() == CONFIG


@pytest.mark.parametrize(
    "text",
    [
        f'[auth]\nkeys.{FIRST} = {{ principal = "x" }}\n',
        f'[auth.keys]\n{FIRST} = {{ principal = "x" }}\n',
    ],
)
def test_a_file_that_only_a_person_can_change_is_left_alone(text: str) -> None:
    with pytest.raises(Exception, match="yourself"):
        disabled_text(text, FIRST)


def test_disabled_false_becomes_true() -> None:
    text = f'[auth.keys.{FIRST}]\nprincipal = "x"\ndisabled = false\n[server]\nport = 1\n'
    changed = tomllib.loads(disabled_text(text, FIRST))
    assert changed["auth"]["keys"][FIRST] == {"principal": "x", "disabled": True}
    assert changed["server"] == {"port": 1}


def test_a_rotation_gives_the_next_version_and_says_how_to_let_both_in(file: Path) -> None:
    done = run("new", "--rotate", FIRST, "--config", str(file))
    assert done.exit_code == 0, done.output
    assert derive_secret(MASTER.encode(), FIRST, 3) in done.output
    assert "versions = [2, 3]" in done.output
    assert "versions = [3]" in done.output


@pytest.mark.parametrize(
    "arguments", [[], ["--principal", "a", "--rotate", FIRST], ["--rotate", "GWAKUNKNOWN"]]
)
def test_a_new_key_is_for_somebody_or_a_rotation(file: Path, arguments: list[str]) -> None:
    assert run("new", "--config", str(file), *arguments).exit_code != 0
