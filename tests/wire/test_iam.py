"""An AWS identity becomes a token and temporary keys, with no secret shared with the gateway."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import botocore.session
import httpx2
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from gateway.core import sigv4
from gateway.core.policy import Rule
from gateway.settings import IamSettings, SigV4Settings
from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_loopback import Asked, Loopback, Page, closed_port, serving
from tests.fix_postgres import Database
from tests.fix_tools import python_environment

pytestmark = pytest.mark.wire
ACCOUNT = "123456789012"
AUDIENCE = "gw.example.com"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/orders-fn"
KEYS = Credentials("ASIAEXAMPLE000000001", "its/secret+key", "its/session+token==")
RULES = (
    Rule(name="keys", issuer="gateway"),
    Rule(name="orders", principals=(ROLE,), issuer=f"sts:{ACCOUNT}", read_only=True),
)


def answer(name: str = "orders-fn", account: str = ACCOUNT) -> bytes:
    return (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
        f"<GetCallerIdentityResult><Arn>arn:aws:sts::{account}:assumed-role/{name}/i-1</Arn>"
        f"<UserId>AROAEXAMPLE:i-1</UserId><Account>{account}</Account></GetCallerIdentityResult>"
        "<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>"
        "</GetCallerIdentityResponse>"
    ).encode()


def sts(asked: Asked) -> Page:
    """What STS does: verify the signature of the one caller that it knows."""
    pairs = [(name.encode(), value.encode()) for name, value in asked.headers.items()]
    request = sigv4.RawRequest(asked.method, asked.path.encode(), b"", pairs, asked.body)
    authorization = sigv4.parse_authorization(asked.headers["authorization"].encode())
    key = sigv4.signing_key(
        KEYS.secret_key, authorization.date, authorization.region, authorization.service
    )
    canonical = sigv4.canonical_request(request, authorization.signed_headers)
    text = sigv4.string_to_sign(asked.headers["x-amz-date"].encode(), authorization, canonical)
    good = (
        authorization.key_id == KEYS.access_key
        and asked.headers.get("x-amz-security-token") == KEYS.token
        and sigv4.is_signed([text], authorization.signature, key)
    )
    if not good:
        body = b"<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code></Error></ErrorResponse>"
        return Page(403, "text/xml", body)
    return Page(200, "text/xml", answer())


def iam_settings(database: Database, endpoint: str, **changes: Any) -> Any:
    iam = IamSettings(
        enabled=True,
        audience=AUDIENCE,
        accounts=(ACCOUNT,),
        regions=("us-east-1", "eu-central-1"),
        sts_endpoint=endpoint,
    )
    return replace(settings_for(database), policy=RULES, iam=replace(iam, **changes))


@dataclass
class Exchanging:
    """A gateway, and the STS that it asks."""

    gateway: Gateway
    sts: Loopback

    def ask(self, **body: Any) -> httpx2.Response:
        return httpx2.post(self.gateway.url + "/auth/iam", json=body, timeout=60)


@pytest.fixture(scope="module")
def shared(shared_database: Database) -> Iterator[Exchanging]:
    with ExitStack() as stack:
        server = stack.enter_context(serving(sts))
        gateway = stack.enter_context(
            running(iam_settings(shared_database, server.url), shared_database)
        )
        yield Exchanging(gateway, server)


@pytest.fixture
def exchanging(shared: Exchanging) -> Exchanging:
    shared.sts.page = sts
    shared.sts.asked.clear()
    return shared


_moments = iter(range(-100, 100))


def signed(
    keys: Credentials = KEYS,
    *,
    region: str = "us-east-1",
    audience: str = AUDIENCE,
    at: float | None = None,
) -> dict[str, str]:
    """The body of the request, signed by botocore; each at a second of its own."""
    request = AWSRequest(
        "POST",
        f"https://sts.{region}.amazonaws.com/",
        data=b"Action=GetCallerIdentity&Version=2011-06-15",
        headers={
            "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
            "X-Gateway-Audience": audience,
        },
    )
    moment = datetime.fromtimestamp(time.time() + next(_moments) if at is None else at, UTC)
    with patch("botocore.auth.get_current_datetime", return_value=moment.replace(tzinfo=None)):
        SigV4Auth(keys, "sts", region).add_auth(request)
    body = {
        "access_key_id": str(keys.access_key),
        "region": region,
        "amz_date": request.headers["X-Amz-Date"],
        "signature": request.headers["Authorization"].rpartition("Signature=")[2],
    }
    return body if keys.token is None else {**body, "security_token": keys.token}


def data_api(gateway: Gateway, credentials: dict[str, str]) -> Any:
    return boto3.client(
        "rds-data",
        endpoint_url=gateway.url,
        region_name="us-east-1",
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials.get("SessionToken"),
        config=Config(retries={"total_max_attempts": 1}),
    )


def test_a_role_gets_a_token_and_temporary_keys_that_both_work(exchanging: Exchanging) -> None:
    done = exchanging.ask(**signed())
    assert done.status_code == 200, done.text
    assert done.headers["cache-control"] == "no-store"
    body = done.json()
    assert body["subject"] == ROLE
    expires = datetime.fromisoformat(body["expires_at"]).timestamp()
    assert 0 < expires - time.time() <= 900
    assert body["credentials"]["Expiration"] == body["expires_at"]
    gateway = exchanging.gateway
    with gateway.http(body["token"]) as client:
        who = client.get("/whoami").json()
        assert who["subject"] == ROLE
        assert who["kind"] == "iam"
        assert client.post("/execute", json={"sql": "select 1"}).json()["rows"] == [[1]]
        # The rule of the role, not that of the keys:
        refused = client.post("/execute", json={"sql": "create table x (a int)"})
        assert refused.json()["sqlstate"] == "25006"
    client = data_api(gateway, body["credentials"])
    result = client.execute_statement(
        resourceArn=gateway.resource_arn, secretArn=gateway.secret_arn, sql="select 1"
    )
    assert result["records"] == [[{"longValue": 1}]]


def test_what_the_token_alone_lets_one_sign_is_nothing(exchanging: Exchanging) -> None:
    mine = exchanging.ask(**signed()).json()["credentials"]
    other = exchanging.ask(**signed()).json()["credentials"]
    gateway = exchanging.gateway
    for stolen in (
        {**mine, "SecretAccessKey": "guessed"},
        {**mine, "SessionToken": other["SessionToken"]},
        {**mine, "AccessKeyId": other["AccessKeyId"]},
    ):
        with pytest.raises(ClientError) as caught:
            data_api(gateway, stolen).execute_statement(
                resourceArn=gateway.resource_arn, secretArn=gateway.secret_arn, sql="select 1"
            )
        said = caught.value.response
        assert said["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert said["Error"]["Code"] in ("InvalidSignatureException", "UnrecognizedClientException")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(lambda: {}, 400, "invalid_request", id="nothing"),
        pytest.param(
            lambda: {**signed(), "url": "https://x"}, 400, "invalid_request", id="a member more"
        ),
        pytest.param(
            lambda: {**signed(), "region": "evil.example/"}, 400, "invalid_request", id="odd region"
        ),
        pytest.param(
            lambda: signed(region="us-west-2"), 400, "invalid_request", id="unlisted region"
        ),
        pytest.param(
            lambda: signed(at=time.time() - 150), 401, "unauthenticated", id="too old"
        ),
        pytest.param(
            lambda: signed(at=time.time() + 150), 401, "unauthenticated", id="of the future"
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_not_sent_to_sts(
    exchanging: Exchanging, body: Any, status: int, code: str
) -> None:
    done = exchanging.ask(**body())
    assert (done.status_code, done.json()["code"]) == (status, code)
    assert not exchanging.sts.asked


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda: signed(audience="other.example.com"), id="made for somebody else"),
        pytest.param(
            lambda: signed(Credentials(KEYS.access_key, "wrong", KEYS.token)), id="wrong secret"
        ),
        pytest.param(
            lambda: signed(Credentials("ASIAUNKNOWN000000001", "x", "y")), id="unknown key"
        ),
        pytest.param(lambda: {**signed(), "region": "eu-central-1"}, id="another region"),
        pytest.param(lambda: {**signed(), "security_token": "another"}, id="another token"),
        pytest.param(lambda: {**signed(), "signature": "0" * 64}, id="another signature"),
    ],
)
def test_what_sts_refuses_is_refused(exchanging: Exchanging, body: Any) -> None:
    done = exchanging.ask(**body())
    assert (done.status_code, done.json()["code"]) == (401, "unauthenticated")
    assert len(exchanging.sts.asked) == 1


def test_a_signature_is_good_once(exchanging: Exchanging) -> None:
    body = signed()
    assert exchanging.ask(**body).status_code == 200
    again = exchanging.ask(**body)
    assert (again.status_code, again.json()["code"]) == (401, "unauthenticated")
    assert len(exchanging.sts.asked) == 1


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(Page(200, "text/xml", answer("other-fn")), id="a role without a rule"),
        pytest.param(
            Page(200, "text/xml", answer(account="210987654321")), id="another account's role"
        ),
    ],
)
def test_a_role_that_no_rule_means_gets_nothing(exchanging: Exchanging, page: Page) -> None:
    exchanging.sts.page = lambda asked: page
    done = exchanging.ask(**signed())
    assert (done.status_code, done.json()["code"]) == (403, "forbidden")
    assert ACCOUNT not in done.text


def test_an_outage_of_sts_may_be_retried_with_the_same_signature(exchanging: Exchanging) -> None:
    exchanging.sts.page = lambda asked: Page(503)
    body = signed()
    done = exchanging.ask(**body)
    assert (done.status_code, done.json()["code"]) == (503, "auth_unavailable")
    assert done.json()["retry"] == "safe"
    assert int(done.headers["retry-after"]) >= 1
    exchanging.sts.page = sts
    assert exchanging.ask(**body).status_code == 200


def test_nobody_at_sts_address_is_an_outage(database: Database) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    with running(iam_settings(database, endpoint), database) as gateway:
        done = httpx2.post(gateway.url + "/auth/iam", json=signed(), timeout=60)
        assert done.status_code == 503


def test_without_the_setting_there_is_no_such_path(shared_gateway: Gateway) -> None:
    done = httpx2.post(shared_gateway.url + "/auth/iam", json=signed())
    assert (done.status_code, done.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("content", "status"), [(b"{", 400), (b"[]", 400), (b"{" + b" " * 16_384 + b"}", 413)]
)
def test_a_body_that_is_none_is_refused(
    exchanging: Exchanging, content: bytes, status: int
) -> None:
    done = httpx2.post(exchanging.gateway.url + "/auth/iam", content=content)
    assert done.status_code == status
    assert done.json()["request_id"] == done.headers["x-gateway-request-id"]
    get = httpx2.get(exchanging.gateway.url + "/auth/iam")
    assert (get.status_code, get.headers["allow"]) == (405, "POST")


def test_an_honest_caller_gets_through_between_many_forgeries(database: Database) -> None:
    with serving(sts) as server:
        settings = iam_settings(database, server.url)
        settings = replace(settings, auth=replace(settings.auth, failure_limit=3))
        with running(settings, database) as gateway:
            exchanging = Exchanging(gateway, server)
            codes = [
                exchanging.ask(**{**signed(), "signature": f"{n:064x}"}).json()["code"]
                for n in range(6)
            ]
            assert codes == ["unauthenticated"] * 3 + ["rate_limited"] * 3
            assert exchanging.ask(**signed()).status_code == 200


def test_the_command_line_prints_what_a_credential_process_must(exchanging: Exchanging) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "credentials", "--audience", AUDIENCE],
        env={
            "PGSLUICE_URL": exchanging.gateway.url,
            "AWS_ACCESS_KEY_ID": str(KEYS.access_key),
            "AWS_SECRET_ACCESS_KEY": str(KEYS.secret_key),
            "AWS_SESSION_TOKEN": str(KEYS.token),
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed.pop("Version") == 1
    assert printed.keys() == {"AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"}
    gateway = exchanging.gateway
    data_api(gateway, printed).execute_statement(
        resourceArn=gateway.resource_arn, secretArn=gateway.secret_arn, sql="select 1"
    )


def test_an_aws_sdk_runs_the_command_by_itself(
    exchanging: Exchanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = exchanging.gateway
    source = tmp_path / "source"
    source.write_text(
        f"[source]\naws_access_key_id = {KEYS.access_key}\n"
        f"aws_secret_access_key = {KEYS.secret_key}\naws_session_token = {KEYS.token}\n"
    )
    config = tmp_path / "config"
    config.write_text(
        "[profile gateway]\nregion = us-east-1\ncredential_process = "
        f"{sys.executable} -m gateway credentials --url {gateway.url} --audience {AUDIENCE} "
        "--source-profile source\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(source))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    session = boto3.Session(
        botocore_session=botocore.session.Session(profile="gateway"),
    )
    client = session.client("rds-data", endpoint_url=gateway.url)
    result = client.execute_statement(
        resourceArn=gateway.resource_arn, secretArn=gateway.secret_arn, sql="select 2"
    )
    assert result["records"] == [[{"longValue": 2}]]


def test_a_profile_that_would_run_itself_is_told_so(exchanging: Exchanging, tmp_path: Path) -> None:
    config = tmp_path / "config"
    command = [sys.executable, "-m", "gateway", "credentials", "--url", exchanging.gateway.url]
    config.write_text(f"[default]\ncredential_process = {' '.join(command)}\n")
    done = subprocess.run(
        command,
        env={"AWS_CONFIG_FILE": str(config), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode != 0
    assert "this very command" in done.stderr


def test_signatures_of_a_switched_off_gateway_are_refused(database: Database) -> None:
    settings = replace(settings_for(database), sigv4=SigV4Settings(enabled=False))
    with running(settings, database) as gateway, pytest.raises(ClientError) as caught:
        data_api(
            gateway,
            {
                "AccessKeyId": gateway.access_key,
                "SecretAccessKey": gateway.secret_key,
            },
        ).execute_statement(
            resourceArn=gateway.resource_arn, secretArn=gateway.secret_arn, sql="select 1"
        )
    assert caught.value.response["Error"]["Code"] == "UnrecognizedClientException"


# ---- moto's STS, which checks signatures -----------------------------------------------------

MOTO = Path(__file__).parent / "requirements-moto.txt"


@contextmanager
def moto() -> Iterator[str]:
    """The URL of moto's server, with signature checking switched off at first."""
    python = python_environment(MOTO)
    port = closed_port()
    process = subprocess.Popen(
        [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "AWS_DEFAULT_REGION": "us-east-1"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + 60
        while True:
            try:
                httpx2.get(url + "/moto-api/", timeout=5)
                break
            except httpx2.HTTPError:
                assert process.poll() is None and time.monotonic() < give_up, "moto did not start"
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_role_of_motos_gets_in_and_a_changed_request_does_not(database: Database) -> None:
    with moto() as url:
        keys = {"aws_access_key_id": "AKIAADMIN", "aws_secret_access_key": "x"}
        admin: dict[str, Any] = {"region_name": "us-east-1", "endpoint_url": url, **keys}
        boto3.client("iam", **admin).create_role(
            RoleName="orders-fn", Path="/svc/", AssumeRolePolicyDocument="{}"
        )
        assumed = boto3.client("sts", **admin).assume_role(
            RoleArn=f"arn:aws:iam::{ACCOUNT}:role/svc/orders-fn", RoleSessionName="i-1"
        )["Credentials"]
        role = Credentials(
            assumed["AccessKeyId"], assumed["SecretAccessKey"], assumed["SessionToken"]
        )
        # From here on moto verifies every signature.
        httpx2.post(url + "/moto-api/reset-auth", content=b"0").raise_for_status()
        with running(iam_settings(database, url), database) as gateway:
            exchanging = Exchanging(gateway, Loopback(url, sts))
            done = exchanging.ask(**signed(role))
            assert done.status_code == 200, done.text
            assert done.json()["subject"] == ROLE
            with gateway.http(done.json()["token"]) as client:
                assert client.post("/execute", json={"sql": "select 1"}).status_code == 200
            for bad in (
                signed(role, audience="other.example.com"),
                signed(Credentials(role.access_key, "wrong", role.token)),
                signed(Credentials("ASIAUNKNOWN000000001", "wrong", role.token)),
                {**signed(role), "region": "eu-central-1"},
            ):
                refused = exchanging.ask(**bad)
                assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        # What moto answers to a presigned GET, a list of buckets, is no identity.
        buckets = Page(200, "text/xml", httpx2.get(url + "/").content)
        with (
            serving(lambda asked: buckets) as other,
            running(iam_settings(database, other.url), database) as gateway,
        ):
            refused = httpx2.post(gateway.url + "/auth/iam", json=signed(role), timeout=60)
            assert refused.status_code == 401
