"""SQLAlchemy's own dialect suite, beside psycopg on the same server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pgsluice
import pytest

from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_postgres import Database
from tests.fix_tools import python_environment

HERE = Path(__file__).parent
CLIENT = Path(pgsluice.__file__).parents[1]
LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def python() -> Path:
    """The python of an environment with SQLAlchemy in it."""
    return python_environment(HERE / "requirements-sqlalchemy.txt")


@pytest.fixture
def shop(database: Database) -> Iterator[Gateway]:
    """A gateway with the schemas that the suite wants."""
    database.sql("create extension citext; create extension hstore")
    for schema in ("test_schema", "test_schema_2"):
        database.sql(f"create schema {schema} authorization {database.app_user}")
    with running(settings_for(database), database) as gateway:
        yield gateway


def url_of(gateway: Gateway) -> str:
    return f"postgresql+pgsluice://:{gateway.token}@{LOOPBACK}:{gateway.port}/?tls=false"


def outcomes(python: Path, folder: Path, uri: str) -> dict[str, str]:
    """Each test of the suite with what came of it over *uri*: passed, failed or skipped."""
    folder.mkdir()
    for source in (HERE / "sqlalchemy_suite").iterdir():
        if source.is_file():
            name = "conftest.py" if source.name == "plugin.py" else source.name
            shutil.copy(source, folder / name)
    report = folder / "report.xml"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--dburi", uri]
    done = subprocess.run(
        [*command, "--maxfail=100000", f"--junitxml={report}", "suite.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CLIENT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        # SQLAlchemy puts the driver into the names of its classes.
        name = f"{case.get('classname', '').partition('_postgresql')[0]}.{case.get('name')}"
        bad = case.find("failure") is not None or case.find("error") is not None
        state = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        found[name] = state
    return found
