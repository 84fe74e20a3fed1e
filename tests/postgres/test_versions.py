"""The promises that lean on PostgreSQL hold on every version that is supported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import programs
from tests.fix_tools import postgresql

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MAJORS = (15, 16, 17, 18)
CLAIMS = (
    "tests/engine/test_claims.py",
    "tests/engine/test_escapes.py",
    "tests/engine/test_read_only.py",
    "tests/engine/test_rls_page.py",
)
SESSIONS = ("tests/postgres/test_isolation.py", "tests/postgres/test_poison.py")
STORES = ("tests/engine/test_ledger.py", "tests/cli/test_doctor.py", "tests/cli/test_sql.py")

WITHOUT = {16: "not dblink and not other_servers"}
"""What the package of a version lacks: 16's has neither dblink nor postgres_fdw."""


def run_tests(major: int, *files: str, marks: str = "") -> int:
    """How many tests of *files* passed on PostgreSQL *major*; all of them must."""
    bindir = postgresql(major)
    assert programs.find_binaries(bindir).major == major
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks,
            "-k", WITHOUT.get(major, ""), *files,
        ],
        cwd=ROOT,
        env={**os.environ, "PGSLUICE_TEST_BINDIR": str(bindir)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None and "skipped" not in done.stdout, done.stdout[-1000:]
    return int(found[1])


@pytest.mark.parametrize("major", MAJORS)
def test_sealed_claims_and_read_only_hold(major: int) -> None:
    assert run_tests(major, *CLAIMS) > 60


@pytest.mark.parametrize("major", MAJORS)
def test_sessions_are_clean(major: int) -> None:
    assert run_tests(major, *SESSIONS, marks="not slow") > 50


@pytest.mark.parametrize("major", MAJORS)
def test_the_ledger_and_the_doctor_work(major: int) -> None:
    assert run_tests(major, *STORES, marks="not slow") > 50
