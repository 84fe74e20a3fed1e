"""The house plan: imports point down, and each driver has one owner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]


def lint(cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LINT, "--no-cache"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(cwd), "PATH": "", "LC_ALL": "C.UTF-8"},
    )


def test_imports_point_down() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gateway/core/model.py", "import asyncpg"),
        ("gateway/core/model.py", "from ..settings import Settings"),
        ("gateway/core/keys.py", "import sqlglot"),
        ("gateway/core/keys.py", "import jwt"),
        ("gateway/core/keys.py", "import time"),
        ("gateway/engine/targets.py", "import asyncpg"),
        ("gateway/engine/targets.py", "import uvicorn"),
        ("gateway/postgres/pool.py", "from .. import observe"),
        ("gateway/settings/targets.py", "from ..engine import targets"),
    ],
)
def test_a_breach_of_the_plan_is_found(tmp_path: Path, module: str, line: str) -> None:
    copy(ROOT / "gateway", tmp_path / "gateway")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def copy(source: Path, target: Path) -> None:
    for file in source.rglob("*.py"):
        to = target / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(file.read_text())
