"""`pgsluice.testing`, as a user's tests have it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pgsluice
import pytest

CLIENT = Path(pgsluice.__file__).parents[1]
TESTS = """
def test_a_fresh_database(pgsluice_client):
    pgsluice_client.execute("create table t (id int primary key)")
    assert pgsluice_client.execute("insert into t values (1)").row_count == 1

def test_the_same_gateway(pgsluice_gateway):
    with pgsluice_gateway.connect(timeout=30) as db:
        assert db.scalar("select count(*) from t") == 1
    assert pgsluice_gateway.token not in repr(pgsluice_gateway)
"""


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text('pytest_plugins = ["pgsluice.testing"]\n')
    (folder / "test_mine.py").write_text(TESTS)
    return subprocess.run(
        [sys.executable, *more, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CLIENT), str(CLIENT.parent)])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.process
def test_one_line_gives_a_running_gateway_with_a_database(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_without_the_gateway_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from pgsluice import testing

    monkeypatch.setitem(sys.modules, "gateway.cli", None)
    with pytest.raises(RuntimeError, match="pip install pgsluice-gateway"), testing.gateway():
        pass
