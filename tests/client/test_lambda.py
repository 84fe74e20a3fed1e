"""The manners of a function: its time, its identity, its layer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pgsluice
import pytest
from pgsluice._identity import Credentials, proof

from tests.client.test_sync import ONE, Gateway, Reply, answer, problem, reset, server

__all__ = ["server"]


class Context:
    def __init__(self, left: float) -> None:
        self.end = time.monotonic() + left

    def get_remaining_time_in_millis(self) -> int:
        return round((self.end - time.monotonic()) * 1000)


@pytest.fixture
def db(server: Gateway) -> Iterator[pgsluice.Client]:
    with pgsluice.connect(server.url, token="t") as client:
        yield client


def deadlines(server: Gateway) -> list[int | None]:
    found = [each.headers.get("x-gateway-deadline-ms") for each in server.seen]
    return [int(each) if each is not None else None for each in found]


def test_what_time_is_left_goes_with_each_call(server: Gateway, db: pgsluice.Client) -> None:
    with pgsluice.lambda_deadline(Context(10)):
        db.execute("select 1")
        db.execute("select 1", timeout=3)
        db.execute("select 1", timeout=60)
    db.execute("select 1")
    whole, own, longer, after = deadlines(server)
    assert whole is not None and own is not None and longer is not None and after is None
    assert 3000 < whole <= 9500
    assert own <= 3000
    assert 3000 < longer <= 9500


def test_when_no_time_is_left_nothing_is_sent(server: Gateway, db: pgsluice.Client) -> None:
    @pgsluice.lambda_handler
    def handler(event: dict[str, str], context: Context) -> Any:
        return db.scalar(event["sql"])

    assert handler({"sql": "select 1"}, Context(10)) == 1
    with pytest.raises(pgsluice.StatementTimeout) as caught:
        handler({"sql": "select 1"}, Context(0.4))
    assert (caught.value.outcome, caught.value.retry) == ("not_executed", "never")
    assert len(server.seen) == 1


def test_a_transaction_whose_time_is_up_is_rolled_back(
    server: Gateway, db: pgsluice.Client
) -> None:
    opened = answer({"transaction": "t1", "expires_at": "2026-01-01T00:00:00Z"}, 201)
    server.script(opened)
    with (
        pytest.raises(pgsluice.StatementTimeout),
        pgsluice.lambda_deadline(Context(0.6)),
        db.transaction() as tx,
    ):
        while True:
            tx.execute("select 1")
    assert server.seen[-1].path == "/transactions/t1/rollback"


def test_threads_take_the_deadline_along_when_told_to(server: Gateway, db: pgsluice.Client) -> None:
    import contextvars

    with pgsluice.lambda_deadline(Context(10)):
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(db.execute, "select 1"))
        thread.start()
        thread.join()
    assert deadlines(server)[0] is not None


def test_nothing_is_printed_or_logged(
    server: Gateway,
    db: pgsluice.Client,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    lost = problem(503, "Retry-After: 0\r\n", code="queue_timeout", retry="safe")
    server.script(lost, answer(ONE), problem(400, code="database_error", sqlstate="23505"), reset)
    with pgsluice.lambda_deadline(Context(10)):
        db.execute("select 1")
        with pytest.raises(pgsluice.UniqueViolation):
            db.execute("insert into t values (1)")
        with pytest.raises(pgsluice.OutcomeUnknown):
            db.execute("call p()")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# The role it runs under


def issued(token: str, seconds: float) -> Reply:
    end = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return answer({"token": token, "expires_at": end, "subject": "arn:aws:iam::1:role/r"})


@pytest.fixture
def role(
    server: Gateway, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], pgsluice.Client]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("PGSLUICE_IAM_AUDIENCE", "gateway.example.com")
    made: list[pgsluice.Client] = []

    def make() -> pgsluice.Client:
        made.append(pgsluice.connect(server.url))
        return made[-1]

    yield make
    for client in made:
        client.close()


def bearers(server: Gateway) -> list[tuple[str, str | None]]:
    return [(each.path, each.headers.get("authorization")) for each in server.seen]


def test_a_role_is_exchanged_once_for_a_token(
    server: Gateway, role: Callable[[], pgsluice.Client]
) -> None:
    server.script(issued("one", 900))
    db = role()
    db.execute("select 1")
    db.execute("select 1")
    assert bearers(server) == [
        ("/auth/iam", None),
        ("/execute", "Bearer one"),
        ("/execute", "Bearer one"),
    ]
    sent = server.seen[0].body
    assert set(sent) == {"access_key_id", "region", "amz_date", "security_token", "signature"}
    assert (sent["region"], sent["security_token"]) == ("eu-central-1", "session")
    assert "secret" not in str(sent.values())


def test_a_token_is_replaced_before_it_ends(
    server: Gateway, role: Callable[[], pgsluice.Client]
) -> None:
    server.script(issued("one", 59), answer(ONE), issued("two", 900))
    db = role()
    db.execute("select 1")
    db.execute("select 1")
    assert bearers(server)[2:] == [("/auth/iam", None), ("/execute", "Bearer two")]


def test_a_token_that_is_still_good_outlasts_a_failed_exchange(
    server: Gateway, role: Callable[[], pgsluice.Client]
) -> None:
    server.script(issued("one", 59), answer(ONE), problem(503, code="auth_unavailable"))
    db = role()
    for _ in range(3):
        assert db.scalar("select 1") == 1
    paths = [path for path, _ in bearers(server)]
    assert paths == ["/auth/iam", "/execute", "/auth/iam", "/execute", "/execute"]


def test_a_token_that_the_gateway_no_longer_takes_is_replaced(
    server: Gateway, role: Callable[[], pgsluice.Client]
) -> None:
    server.script(issued("one", 900), problem(401, code="token_expired"), issued("two", 900))
    assert role().scalar("select 1") == 1
    assert bearers(server)[-1] == ("/execute", "Bearer two")


def test_a_refused_role_is_an_error_that_executed_nothing(
    server: Gateway, role: Callable[[], pgsluice.Client]
) -> None:
    refused = problem(401, code="unauthenticated", retry="never")
    server.script(refused, refused)
    with pytest.raises(pgsluice.Unauthenticated):
        role().execute("insert into t values (1)")
    assert {path for path, _ in bearers(server)} == {"/auth/iam"}
    server.script(reset)
    with pytest.raises(pgsluice.ConnectionFailed) as caught:
        role().execute("insert into t values (1)")
    assert caught.value.outcome == "not_executed"


def test_credentials_may_come_from_a_function(server: Gateway) -> None:
    server.script(issued("one", 900))
    with pgsluice.connect(
        server.url, iam_audience="g", credentials=lambda: ("AKIAEXAMPLE000000000", "s", None)
    ) as db:
        db.execute("select 1")
    assert "security_token" not in server.seen[0].body


def test_the_proof_is_what_botocore_signs() -> None:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as BotoCredentials

    mine = proof(
        Credentials("AKIAEXAMPLE000000000", "secret", "session"), audience="g", now=1767323045.0
    )
    region = mine["region"]
    request = AWSRequest(
        "POST",
        f"https://sts.{region}.amazonaws.com/",
        data=b"Action=GetCallerIdentity&Version=2011-06-15",
        headers={
            "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
            "X-Gateway-Audience": "g",
            "X-Amz-Date": mine["amz_date"],
            "X-Amz-Security-Token": "session",
        },
    )
    request.context["timestamp"] = mine["amz_date"]
    signer = SigV4Auth(BotoCredentials("AKIAEXAMPLE000000000", "secret"), "sts", region)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    assert signer.signature(text, request) == mine["signature"]
