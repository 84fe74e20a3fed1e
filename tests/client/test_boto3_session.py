"""boto3 with keys of the gateway that renew themselves, made from a role of AWS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pgsluice
import pytest
from botocore.exceptions import ClientError

from tests.fix_gateway import running
from tests.fix_loopback import serving
from tests.fix_postgres import Database
from tests.wire.test_iam import AUDIENCE, KEYS, Exchanging, iam_settings, sts

pytestmark = pytest.mark.wire


@pytest.fixture(scope="module")
def exchanging(shared_database: Database) -> Iterator[Exchanging]:
    with (
        serving(sts) as server,
        running(iam_settings(shared_database, server.url), shared_database) as gateway,
    ):
        yield Exchanging(gateway, server)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, exchanging: Exchanging) -> None:
    exchanging.sts.asked.clear()
    for name, text in {
        "AWS_ACCESS_KEY_ID": KEYS.access_key,
        "AWS_SECRET_ACCESS_KEY": KEYS.secret_key,
        "AWS_SESSION_TOKEN": KEYS.token,
        "AWS_REGION": "us-east-1",
        "PGSLUICE_URL": exchanging.gateway.url,
        "PGSLUICE_IAM_AUDIENCE": AUDIENCE,
    }.items():
        monkeypatch.setenv(name, str(text))
    for name in ("AWS_PROFILE", "PGSLUICE_TOKEN", "PGSLUICE_ACCESS_KEY", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)


def ask(session: Any, exchanging: Exchanging, sql: str = "select 1") -> Any:
    gateway = exchanging.gateway
    where = {"resourceArn": gateway.resource_arn, "secretArn": gateway.secret_arn}
    with closing(session.client("rds-data")) as client:
        return client.execute_statement(sql=sql, **where)["records"]


def test_the_session_speaks_to_the_gateway_as_the_role(exchanging: Exchanging) -> None:
    session = pgsluice.boto3_session()
    assert ask(session, exchanging) == [[{"longValue": 1}]]
    assert ask(session, exchanging) == [[{"longValue": 1}]]
    assert len(exchanging.sts.asked) == 1
    # What the role may, not what a key may.
    with pytest.raises(ClientError) as caught:
        ask(session, exchanging, "create table x (a int)")
    assert "25006" in str(caught.value)
    keys = session.get_credentials()
    assert keys.get_frozen_credentials().access_key.startswith("GWTA")


def test_keys_are_renewed_before_they_end(exchanging: Exchanging) -> None:
    session = pgsluice.boto3_session()
    ask(session, exchanging)
    keys = session.get_credentials()
    first = keys.get_frozen_credentials()
    assert keys.get_frozen_credentials() == first, "a quarter of an hour is long enough"
    keys._expiry_time -= timedelta(seconds=850)
    assert ask(session, exchanging) == [[{"longValue": 1}]]
    assert keys.get_frozen_credentials() != first
    assert len(exchanging.sts.asked) == 2


def test_the_role_may_be_given(exchanging: Exchanging, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    mine = (str(KEYS.access_key), str(KEYS.secret_key), KEYS.token)
    session = pgsluice.boto3_session(credentials=lambda: mine)
    assert ask(session, exchanging) == [[{"longValue": 1}]]
    wrong = pgsluice.boto3_session(credentials=lambda: (mine[0], "wrong", mine[2]))
    with pytest.raises(pgsluice.Unauthenticated):
        ask(wrong, exchanging)


def test_two_that_sign_the_same_both_get_in(
    exchanging: Exchanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([0.5, 0.5, 0.25])
    monkeypatch.setattr("pgsluice._boto3.random", lambda: next(moments))
    now = time.time() + 100  # away from the moments of the tests before
    monkeypatch.setattr("pgsluice._boto3.time", lambda: now)
    for _ in range(2):
        assert ask(pgsluice.boto3_session(), exchanging) == [[{"longValue": 1}]]


def test_an_audience_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGSLUICE_IAM_AUDIENCE")
    with pytest.raises(ValueError, match="iam_audience"):
        pgsluice.boto3_session()
