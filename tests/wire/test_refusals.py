"""Each way not to be let in, with its name and status, on the Data API and on native paths."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from unittest.mock import patch

import httpx2
import jwt
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from gateway.cli.token import token_for
from gateway.core.keys import StaticKey, derive_secret
from gateway.core.policy import Rule
from gateway.engine.exchange import issue
from gateway.settings import IssuerSettings, SigV4Settings, TokenSettings
from tests.fix_gateway import KEY_ID, MASTER, RESOURCE, SECRET, Gateway, running, settings_for
from tests.fix_loopback import closed_port
from tests.fix_postgres import Database

pytestmark = pytest.mark.wire
EXPIRED, DISABLED = "GWAKTESTEXPIRED00", "GWAKTESTDISABLED0"
IDP, DOWN = "https://idp.example", "https://down.example"
IDP_SECRET = "0123456789abcdef0123456789abcdef"
BODY = (f'{{"resourceArn": "{RESOURCE}", "secretArn": "{SECRET}", "sql": "select 1"}}').encode()
NATIVE_BODY = b'{"sql": "select 1"}'


@pytest.fixture(scope="module")
def gateway(shared_database: Database) -> Iterator[Gateway]:
    settings = settings_for(shared_database)
    auth = settings.auth
    keys = {
        **auth.keys,
        EXPIRED: (StaticKey(EXPIRED, "tester", 1, time.time() - 1, False),),
        DISABLED: (StaticKey(DISABLED, "tester", 1, None, True),),
    }
    issuers = (
        IssuerSettings(issuer=IDP, audience="gw", algorithms=("HS256",), secret=IDP_SECRET),
        IssuerSettings(
            issuer=DOWN, audience="gw", jwks_url=f"http://127.0.0.1:{closed_port()}/jwks"
        ),
    )
    settings = replace(
        settings,
        auth=replace(auth, keys=keys, issuers=issuers),
        sigv4=SigV4Settings(regions=("us-east-1",)),
        server=replace(settings.server, hosts=("127.0.0.1", "gw.example.com")),
        tokens=TokenSettings(denied_subjects=("denied",)),
        policy=(Rule(name="tester", principals=("tester",)),),
    )
    with running(settings, shared_database) as it:
        yield it


Headers = list[tuple[str, str]]


def signed(
    gateway: Gateway,
    path: str,
    body: bytes,
    *,
    key_id: str = KEY_ID,
    secret: str | None = None,
    token: str | None = None,
    shift: float = 0,
    service: str = "rds-data",
    region: str = "us-east-1",
    headers: dict[str, str] | None = None,
) -> Headers:
    request = AWSRequest("POST", gateway.url + path, data=body, headers=headers or {})
    credentials = Credentials(key_id, secret or derive_secret(MASTER, key_id, 1), token)
    moment = datetime.fromtimestamp(time.time() + shift, UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", return_value=moment):
        SigV4Auth(credentials, service, region).add_auth(request)
    return list(request.headers.items())


def bearer(token: str) -> Headers:
    return [("authorization", f"Bearer {token}")]


def token(subject: str = "tester", *, now: float | None = None, master: bytes = MASTER) -> str:
    return token_for(master, subject=subject, lifetime=60, now=now)


def idp(issuer: str = IDP, **claims: Any) -> str:
    now = int(time.time())
    said = {"iss": issuer, "aud": "gw", "sub": "tester", "iat": now, "exp": now + 60, **claims}
    return jwt.encode(said, IDP_SECRET, "HS256", {"kid": "k"})


def es256(issuer: str) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec

    now = int(time.time())
    said = {"iss": issuer, "aud": "gw", "sub": "tester", "iat": now, "exp": now + 60}
    return jwt.encode(said, ec.generate_private_key(ec.SECP256R1()), "ES256", {"kid": "k"})


def temporary(**more: Any) -> Any:
    return issue(MASTER, "tester", now=more.pop("now", time.time()), ttl=900, claims=more)


def dropped(headers: Headers, name: str) -> Headers:
    return [pair for pair in headers if pair[0].lower() != name]


def changed(headers: Headers, old: str, new: str) -> Headers:
    return [(name, value.replace(old, new)) for name, value in headers]


Make = Callable[[Gateway, str, bytes], Headers]
MISSING, INCOMPLETE = "MissingAuthenticationTokenException", "IncompleteSignatureException"
UNKNOWN, INVALID = "UnrecognizedClientException", "InvalidSignatureException"
ENDED = "ExpiredTokenException"

CASES: list[tuple[str, int, str, Make]] = [
    ("no credentials", 403, MISSING, lambda g, p, b: []),
    ("another scheme", 400, INCOMPLETE, lambda g, p, b: [("authorization", "Basic YTpi")]),
    (
        "two Authorization headers", 400, INCOMPLETE,
        lambda g, p, b: bearer(token()) + bearer(token()),
    ),
    ("no parts", 400, INCOMPLETE, lambda g, p, b: [("authorization", "AWS4-HMAC-SHA256 x")]),
    (
        "SigV4A", 400, INCOMPLETE,
        lambda g, p, b: changed(signed(g, p, b), "AWS4-HMAC", "AWS4-ECDSA-P256"),
    ),
    (
        "x-amz-date left out", 400, INCOMPLETE,
        lambda g, p, b: dropped(signed(g, p, b), "x-amz-date"),
    ),
    (
        "an x-amz-* header unsigned", 400, INCOMPLETE,
        lambda g, p, b: [*signed(g, p, b), ("x-amz-target", "x")],
    ),
    (
        "signature in upper case", 400, INCOMPLETE,
        lambda g, p, b: [
            (name, value[:-64] + value[-64:].upper() if name == "Authorization" else value)
            for name, value in signed(g, p, b)
        ],
    ),
    ("unknown key", 403, UNKNOWN, lambda g, p, b: signed(g, p, b, key_id="GWAKUNKNOWN000000")),
    ("AWS's own key", 403, UNKNOWN, lambda g, p, b: signed(g, p, b, key_id="AKIAEXAMPLE000000")),
    ("expired key", 403, UNKNOWN, lambda g, p, b: signed(g, p, b, key_id=EXPIRED)),
    ("disabled key", 403, UNKNOWN, lambda g, p, b: signed(g, p, b, key_id=DISABLED)),
    ("token on a static key", 403, UNKNOWN, lambda g, p, b: signed(g, p, b, token="x")),
    ("wrong secret", 403, INVALID, lambda g, p, b: signed(g, p, b, secret="x")),
    ("another body", 403, INVALID, lambda g, p, b: signed(g, p, b + b" ")),
    ("another path", 403, INVALID, lambda g, p, b: signed(g, p + "x", b)),
    ("another region", 403, INVALID, lambda g, p, b: signed(g, p, b, region="eu-west-1")),
    ("another service", 403, INVALID, lambda g, p, b: signed(g, p, b, service="s3")),
    ("clock behind", 403, INVALID, lambda g, p, b: signed(g, p, b, shift=-330)),
    ("clock ahead", 403, INVALID, lambda g, p, b: signed(g, p, b, shift=330)),
    (
        "UNSIGNED-PAYLOAD", 403, INVALID,
        lambda g, p, b: signed(g, p, b, headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}),
    ),
    (
        "another service's host", 403, INVALID,
        lambda g, p, b: [*dropped(signed(g, p, b), "host"), ("host", "other.example.com")],
    ),
    (
        "expired temporary key", 403, ENDED,
        lambda g, p, b: (
            lambda made: signed(
                g, p, b, key_id=made.key_id, secret=made.secret, token=made.session_token
            )
        )(temporary(now=time.time() - 1000)),
    ),
    (
        "temporary key without token", 403, UNKNOWN,
        lambda g, p, b: signed(g, p, b, key_id=temporary().key_id, secret="x"),
    ),
    ("expired token", 403, ENDED, lambda g, p, b: bearer(token(now=time.time() - 100))),
    ("token of the future", 403, UNKNOWN, lambda g, p, b: bearer(token(now=time.time() + 100))),
    ("another gateway's token", 403, UNKNOWN, lambda g, p, b: bearer(token(master=b"x" * 32))),
    ("no token at all", 403, UNKNOWN, lambda g, p, b: bearer("a.b.c")),
    ("expired JWT", 403, ENDED, lambda g, p, b: bearer(idp(exp=int(time.time()) - 60))),
    ("JWT for others", 403, UNKNOWN, lambda g, p, b: bearer(idp(aud="others"))),
    ("JWT of others", 403, UNKNOWN, lambda g, p, b: bearer(idp("https://other.example"))),
    ("denied subject", 403, UNKNOWN, lambda g, p, b: bearer(token("denied"))),
    (
        "issuer that cannot be asked", 503, "ServiceUnavailableError",
        lambda g, p, b: bearer(es256(DOWN)),
    ),
    ("no rule", 403, "AccessDeniedException", lambda g, p, b: bearer(token("stranger"))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "name", "make"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_data_api_says_it_in_awss_words(
    gateway: Gateway, status: int, name: str, make: Make
) -> None:
    done = httpx2.post(
        gateway.url + "/Execute", content=BODY, headers=make(gateway, "/Execute", BODY)
    )
    assert (done.status_code, done.headers["x-amzn-errortype"]) == (status, name)
    assert done.headers["x-amzn-requestid"]
    assert set(done.json()) >= {"message"}
    # A client whose clock is off corrects it by this.
    assert abs(parsedate_to_datetime(done.headers["date"]).timestamp() - time.time()) < 30
    assert ("retry-after" in done.headers) == (status == 503)
    assert not any(word in done.text for word in ("tester", "stranger", "denied", "idp.example"))


@pytest.mark.parametrize(
    ("status", "name", "make"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_native_paths_say_it_in_a_problem_document(
    gateway: Gateway, status: int, name: str, make: Make
) -> None:
    headers = make(gateway, "/execute", NATIVE_BODY)
    done = httpx2.post(gateway.url + "/execute", content=NATIVE_BODY, headers=headers)
    expected = {
        503: (503, "auth_unavailable"),
        "AccessDeniedException": (403, "forbidden"),
        ENDED: (401, "token_expired"),
    }
    wanted = expected.get(status) or expected.get(name) or (401, "unauthenticated")
    assert (done.status_code, done.json()["code"]) == wanted
    assert done.headers["content-type"] == "application/problem+json"
    assert ("www-authenticate" in done.headers) == (done.status_code == 401)
    assert done.json()["outcome"] == "not_executed"


def test_unknown_and_forbidden_are_one_answer(gateway: Gateway) -> None:
    answers = set()
    for resource, secret in (
        (RESOURCE, SECRET),
        ("arn:aws:rds:us-east-1:123456789012:cluster:nothing", SECRET),
        (RESOURCE, "arn:aws:secretsmanager:us-east-1:123456789012:secret:nothing"),
    ):
        body = {"resourceArn": resource, "secretArn": secret, "sql": "select 1"}
        done = httpx2.post(gateway.url + "/Execute", json=body, headers=bearer(token("stranger")))
        answers.add((done.status_code, done.headers["x-amzn-errortype"], done.text))
    assert len(answers) == 1


def test_what_is_good_gets_in(gateway: Gateway) -> None:
    made = temporary()
    for headers in (
        signed(gateway, "/Execute", BODY),
        signed(gateway, "/Execute", BODY, shift=-290),
        signed(gateway, "/Execute", BODY, shift=290),
        signed(
            gateway, "/Execute", BODY, key_id=made.key_id, secret=made.secret,
            token=made.session_token,
        ),
        bearer(token()),
    ):  # fmt: skip
        done = httpx2.post(gateway.url + "/Execute", content=BODY, headers=headers)
        assert done.status_code == 200, done.text


@pytest.mark.parametrize("path", ["/Execute/", "//Execute", "/./Execute", "/x/../Execute"])
def test_no_other_spelling_of_a_path_is_an_operation(gateway: Gateway, path: str) -> None:
    import http.client

    headers = dict(signed(gateway, path, BODY))
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        connection.request("POST", path, BODY, headers)
        answer = connection.getresponse()
        assert answer.status in (400, 403, 404)
        assert b"records" not in answer.read()
    finally:
        connection.close()


def test_writes_may_be_asked_to_carry_a_signed_key(shared_database: Database) -> None:
    settings = settings_for(shared_database)
    settings = replace(settings, sigv4=SigV4Settings(require_signed_key=True))
    write = BODY.replace(b"select 1", b"create temp table k (a int)")
    key, invocation = {"Idempotency-Key": "k-1"}, {"amz-sdk-invocation-id": "i-1"}
    with running(settings, shared_database) as gateway:

        def send(body: bytes, *, cover: dict[str, str], besides: dict[str, str]) -> tuple[int, str]:
            headers = signed(gateway, "/Execute", body, headers=cover) + list(besides.items())
            done = httpx2.post(gateway.url + "/Execute", content=body, headers=headers)
            return done.status_code, done.headers.get("x-amzn-errortype", "")

        assert send(BODY, cover={}, besides={})[0] == 200
        assert send(write, cover=key, besides={})[0] == 200
        assert send(write, cover=invocation, besides={})[0] == 200
        for besides in ({}, key, invocation):
            assert send(write, cover={}, besides=besides) == (400, "ValidationException")
        # A token covers nothing, and its headers count as they are sent.
        assert "rows" in gateway.execute("create temp table k (a int)")
