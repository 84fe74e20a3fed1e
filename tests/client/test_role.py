"""The role that a function runs under, against the gateway and an STS that verifies."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pgsluice
import pytest

from tests.fix_gateway import running
from tests.fix_loopback import serving
from tests.fix_postgres import Database
from tests.wire.test_iam import AUDIENCE, KEYS, ROLE, Exchanging, iam_settings, sts

HOME = Path(pgsluice.__file__).parents[1]


@pytest.fixture
def exchanging(database: Database) -> Iterator[Exchanging]:
    with (
        serving(sts) as server,
        running(iam_settings(database, server.url), database) as gateway,
    ):
        yield Exchanging(gateway, server)


@pytest.fixture
def lambda_environment(monkeypatch: pytest.MonkeyPatch, exchanging: Exchanging) -> dict[str, str]:
    found = {
        "PGSLUICE_URL": exchanging.gateway.url,
        "PGSLUICE_IAM_AUDIENCE": AUDIENCE,
        "AWS_ACCESS_KEY_ID": str(KEYS.access_key),
        "AWS_SECRET_ACCESS_KEY": str(KEYS.secret_key),
        "AWS_SESSION_TOKEN": str(KEYS.token),
        "AWS_REGION": "eu-central-1",
    }
    for name in ("PGSLUICE_TOKEN", "PGSLUICE_ACCESS_KEY", "PGSLUICE_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, text in found.items():
        monkeypatch.setenv(name, text)
    return found


def test_the_role_of_a_function_is_its_identity(
    exchanging: Exchanging, lambda_environment: dict[str, str]
) -> None:
    with pgsluice.connect(timeout=30) as db:
        assert db.scalar("select 1") == 1
        # What the role may, not what a key may.
        with pytest.raises(pgsluice.DatabaseError) as caught:
            db.execute("create table x (a int)")
        assert caught.value.sqlstate == "25006"
        assert db.scalar("select 2") == 2
        held = db._core.identity._issued
    assert len(exchanging.sts.asked) == 1
    asked = exchanging.sts.asked[0]
    assert asked.headers["x-gateway-audience"] == AUDIENCE
    assert asked.headers["host"] == "sts.eu-central-1.amazonaws.com"
    assert held is not None
    with exchanging.gateway.http(held) as client:
        assert client.get("/whoami").json()["subject"] == ROLE


def test_two_that_sign_in_the_same_moment_both_get_in(
    exchanging: Exchanging, lambda_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = time.time()
    clock = SimpleNamespace(time=lambda: moment, monotonic=time.monotonic)
    monkeypatch.setattr("pgsluice._core.time", clock)
    monkeypatch.setattr("pgsluice._core.jitter", lambda: 0.25)
    with pgsluice.connect(timeout=30) as first, pgsluice.connect(timeout=30) as second:
        assert (first.scalar("select 1"), second.scalar("select 1")) == (1, 1)
    dates = [each.headers["x-amz-date"] for each in exchanging.sts.asked]
    assert len(set(dates)) == 2


def test_many_copies_of_a_function_start_at_once(
    exchanging: Exchanging, lambda_environment: dict[str, str]
) -> None:
    code = f"import sys; sys.path.insert(0, {str(HOME)!r}); import pgsluice\n"
    code += "print(pgsluice.connect(timeout=60).scalar('select 1'))"
    copies: list[Any] = [
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            env=lambda_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [copy.communicate(timeout=120) for copy in copies]
    assert [out for out, _ in said] == ["1\n"] * 4, said


def test_a_role_with_other_keys_stays_outside(
    exchanging: Exchanging, lambda_environment: dict[str, str]
) -> None:
    with (
        pgsluice.connect(
            timeout=30, credentials=lambda: (KEYS.access_key, "wrong", KEYS.token)
        ) as db,
        pytest.raises(pgsluice.Unauthenticated) as caught,
    ):
        db.execute("select 1")
    assert (caught.value.outcome, caught.value.retry) == ("not_executed", "never")
