"""Suites that run in the vendors' own environment: Node's, or a Python's of their own.

A suite asserts with the vendor's code as its users call it; each of its tests is reported
by name. `js/*.test.mjs` are run by Node's test runner, `python/suite_*.py` by pytest.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gateway.cli import embedded
from tests import fix_tools
from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_postgres import APP_USER, Database

HERE = Path(__file__).parent


class Suite(NamedTuple):
    """A file of tests in another environment."""

    path: Path
    requirements: Path | None = None
    """Of a suite in Python: what it needs, with hashes."""

    @property
    def promises(self) -> list[str]:
        """The names of its tests, read without running it."""
        named = r"^def (test_\w+)" if self.requirements else r'^test\("(.+)",'
        return re.findall(named, self.path.read_text(), re.MULTILINE)


def javascript(name: str) -> Suite:
    """`js/NAME.test.mjs`."""
    return Suite(HERE / "js" / f"{name}.test.mjs")


def python(name: str, requirements: str) -> Suite:
    """`python/suite_NAME.py` with `requirements-REQUIREMENTS.txt`."""
    return Suite(HERE / "python" / f"suite_{name}.py", HERE / f"requirements-{requirements}.txt")


def results(suite: Suite, server: embedded.Embedded, *, compat: str = "none") -> dict[str, str]:
    """Run *suite* over a fresh database: by name of its tests, what went wrong or nothing."""
    if suite.requirements is None:
        place = fix_tools.node_project(suite.path.parent)
        command = [
            fix_tools.debian("node", "nodejs"), "--test-reporter=tap", str(place / suite.path.name),
        ]  # fmt: skip
    else:
        place = suite.path.parent
        interpreter = fix_tools.python_environment(suite.requirements)
        command = [
            str(interpreter), "-B", "-m", "pytest", "-c", os.devnull, "--noconftest", "-p",
            "no:cacheprovider", "-rA", "--tb=short", str(suite.path),
        ]  # fmt: skip
    name = f"vendor_{suite.path.name.partition('.')[0]}_{compat}"
    server.sql(f"create database {name} strategy wal_log")
    server.sql(f"grant create on database {name} to {APP_USER}")
    database = Database(server, name)
    settings = settings_for(database)
    # Short, because a suite may wait for it; nothing else in them comes near.
    target = replace(settings.targets["main"], statement_timeout=2.0, compat=compat)
    with running(replace(settings, targets={"main": target}), database) as gateway:
        said = _run(command, place, gateway)
    return _by_node(said) if suite.requirements is None else _by_pytest(said)


def _run(command: list[str], place: Path, gateway: Gateway) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "PYTEST_", "PYTHON"))
    }
    environment |= {
        "AWS_ACCESS_KEY_ID": gateway.access_key,
        "AWS_SECRET_ACCESS_KEY": gateway.secret_key,
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL_RDS_DATA": gateway.url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SDK_JS_SUPPRESS_MAINTENANCE_MODE_MESSAGE": "1",
        "RESOURCE_ARN": gateway.resource_arn,
        "SECRET_ARN": gateway.secret_arn,
        "DATABASE": gateway.database,
        "TZ": "UTC",
    }
    done = subprocess.run(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout


def _by_node(said: str) -> dict[str, str]:
    found = list(re.finditer(r"^(ok|not ok) \d+ - (.+?)(?: # .*)?$", said, re.MULTILINE))
    assert found, said
    ends = [match.start() for match in found[1:]] + [len(said)]
    return {
        match[2]: "" if match[1] == "ok" else said[match.end() : end]
        for match, end in zip(found, ends, strict=True)
    }


def _by_pytest(said: str) -> dict[str, str]:
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S+::(test_\w+)", said, re.MULTILINE)
    assert found, said
    return {name: "" if outcome == "PASSED" else said for outcome, name in found}
