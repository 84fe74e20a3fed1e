"""One Authorization header decides who calls, and every failure has its name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import jwt
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from gateway.core import bearer
from gateway.core.bearer import Issuer, gateway_issuer, make_token
from gateway.core.errors import (
    IncompleteSignature,
    InvalidSignature,
    MissingCredentials,
    TokenExpired,
    Unauthenticated,
    UnsupportedMediaType,
)
from gateway.core.keys import StaticKey, derive_secret, token_key
from gateway.core.sigv4 import RawRequest
from gateway.engine import identity
from gateway.engine.identity import Identifier

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
MASTER, OLD_MASTER = bytes(range(32)), bytes(32)
KEY = "GWAKAAAAAAAAAAAAAAAA"
IDP = "https://idp.example"
SECRET = b"0123456789abcdef0123456789abcdef"


def identifier(**changes: Any) -> Identifier:
    arguments: dict[str, Any] = {
        "master": MASTER,
        "keys": {
            KEY: (StaticKey(KEY, "orders"), StaticKey(KEY, "orders", version=2)),
            "GWAKDISABLED": (StaticKey("GWAKDISABLED", "orders", disabled=True),),
            "GWAKEXPIRING": (StaticKey("GWAKEXPIRING", "orders", not_after=NOW + 10),),
        },
        "issuers": {
            "gw": gateway_issuer("gw", {"k": token_key(MASTER)}),
            IDP: Issuer(issuer=IDP, audience="a", algorithms=("HS256",), keys={None: SECRET}),
        },
        "hosts": frozenset({"GW.example.com"}),
        **changes,
    }
    return Identifier(**arguments)


def signed(
    key_id: str = KEY,
    *,
    secret: str | None = None,
    version: int = 1,
    master: bytes = MASTER,
    at: float = NOW,
    token: str | None = None,
    region: str = "us-east-1",
    host: str = "gw.example.com",
    headers: dict[str, str] | None = None,
) -> RawRequest:
    request = AWSRequest("POST", f"https://{host}/Execute", data=b"{}", headers=headers or {})
    credentials = Credentials(key_id, secret or derive_secret(master, key_id, version), token)
    moment = datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", return_value=moment):
        SigV4Auth(credentials, "rds-data", region).add_auth(request)
    pairs = [(b"host", host.encode()), (b"user-agent", b"test")]
    pairs += [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
    return RawRequest("POST", b"/Execute", b"", pairs, b"{}")


def plain(*values: bytes, query: bytes = b"") -> RawRequest:
    pairs = [(b"host", b"gw.example.com")] + [(b"authorization", value) for value in values]
    return RawRequest("POST", b"/Execute", query, pairs, b"{}")


def gateway_token(*, subject: str = "orders", now: float = NOW, ttl: int = 900) -> bytes:
    return make_token(
        key=token_key(MASTER),
        kid="k",
        issuer="gw",
        subject=subject,
        audience=bearer.GATEWAY_AUDIENCE,
        now=int(now),
        ttl=ttl,
    ).encode()


# ---- signatures ------------------------------------------------------------------------------


def test_a_signature_speaks_for_the_principal_of_its_key() -> None:
    caller = identifier().identify(signed(headers={"Idempotency-Key": "k"}), now=NOW)
    assert (caller.principal.kind, caller.principal.subject) == ("key", "orders")
    assert caller.principal.issuer == "gateway"
    assert caller.principal.key_id == KEY
    assert caller.signed == frozenset({"host", "idempotency-key", "x-amz-date"})
    assert caller.covers("idempotency-key")
    assert not caller.covers("user-agent")


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_a_key_work_while_it_is_rotated(version: int) -> None:
    assert identifier().identify(signed(version=version), now=NOW).principal.subject == "orders"


def test_a_version_that_is_not_listed_does_not_work() -> None:
    with pytest.raises(InvalidSignature):
        identifier().identify(signed(version=3), now=NOW)


def test_secrets_of_the_previous_master_key_work_while_it_is_replaced() -> None:
    request = signed(master=OLD_MASTER)
    with pytest.raises(InvalidSignature):
        identifier().identify(request, now=NOW)
    assert identifier(previous_master=OLD_MASTER).identify(request, now=NOW)
    assert identifier(previous_master=OLD_MASTER).identify(signed(), now=NOW)


def test_a_key_works_until_its_last_moment() -> None:
    who = identifier()
    caller = who.identify(signed("GWAKEXPIRING"), now=NOW + 9)
    assert caller.principal.expires_at == NOW + 10
    with pytest.raises(Unauthenticated) as caught:
        who.identify(signed("GWAKEXPIRING"), now=NOW + 10)
    assert type(caught.value) is Unauthenticated


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(signed("GWAKUNKNOWN"), Unauthenticated, id="unknown key"),
        pytest.param(signed("AKIAIOSFODNN7EXAMPLE"), Unauthenticated, id="AWS's own key"),
        pytest.param(signed("GWAKDISABLED"), Unauthenticated, id="disabled key"),
        pytest.param(signed(token="t"), Unauthenticated, id="token on a static key"),
        pytest.param(signed(secret="wrong"), InvalidSignature, id="wrong secret"),
        pytest.param(signed(at=NOW + 301), InvalidSignature, id="clock ahead"),
        pytest.param(signed(at=NOW - 301), InvalidSignature, id="clock behind"),
        pytest.param(signed(host="other.example.com"), InvalidSignature, id="another host"),
        pytest.param(signed()._replace(body=b"{ }"), InvalidSignature, id="another body"),
        pytest.param(
            signed(headers={"Content-Encoding": "gzip"}), UnsupportedMediaType, id="encoded body"
        ),
        pytest.param(plain(), MissingCredentials, id="no header"),
        pytest.param(plain(query=b"a=1"), MissingCredentials, id="no header, a query"),
        pytest.param(plain(query=b"X-Amz-Signature=0"), IncompleteSignature, id="presigned"),
        pytest.param(plain(b""), IncompleteSignature, id="empty header"),
        pytest.param(plain(b"Basic YTpi"), IncompleteSignature, id="Basic"),
        pytest.param(plain(b"AWS4-HMAC-SHA256"), IncompleteSignature, id="no parts"),
        pytest.param(plain(b"AWS4-ECDSA-P256-SHA256 a"), IncompleteSignature, id="SigV4A"),
        pytest.param(plain(b"a" * (1 << 20)), IncompleteSignature, id="1 MiB"),
        pytest.param(plain(b"Bearer " + b"a" * (1 << 20)), IncompleteSignature, id="1 MiB token"),
        pytest.param(
            plain(b"Bearer a", b"Bearer a"), IncompleteSignature, id="two Authorization headers"
        ),
        pytest.param(plain(b"Bearer"), IncompleteSignature, id="Bearer and nothing"),
        pytest.param(plain(b"Bearer "), IncompleteSignature, id="Bearer and a blank"),
        pytest.param(plain(b"Bearer a.b.c"), Unauthenticated, id="no token"),
        pytest.param(plain(b"Bearer \xff\0"), Unauthenticated, id="not text"),
        pytest.param(plain(b"Bearer k8s-aws-v1.aHR0cHM"), Unauthenticated, id="STS token"),
        pytest.param(
            plain(b"Bearer " + gateway_token(now=NOW - 1000)), TokenExpired, id="expired token"
        ),
        pytest.param(
            plain(b"Bearer " + gateway_token(now=NOW + 100)), Unauthenticated, id="future token"
        ),
    ],
)
def test_each_failure_has_its_name(request_: RawRequest, error: type[Exception]) -> None:
    who = identifier()
    for _ in range(2):  # the second time with whatever the first has left in memory
        with pytest.raises(error) as caught:
            who.identify(request_, now=NOW)
        assert type(caught.value) is error


def test_the_log_learns_that_a_caller_used_aws_credentials() -> None:
    with pytest.raises(Unauthenticated) as caught:
        identifier().identify(signed("ASIAIOSFODNN7EXAMPLE"), now=NOW)
    assert "AWS" in caught.value.reason
    assert "AWS" not in caught.value.message


def test_a_region_is_a_label_unless_regions_are_configured() -> None:
    request = signed(region="anywhere-1")
    assert identifier().identify(request, now=NOW)
    with pytest.raises(InvalidSignature):
        identifier(regions=frozenset({"us-east-1"})).identify(request, now=NOW)


def test_a_proxy_that_rewrites_host_needs_an_alias() -> None:
    request = signed(host="public.example.com")
    rewritten = request._replace(headers=[(b"host", b"gw.example.com"), *request.headers[1:]])
    with pytest.raises(InvalidSignature):
        identifier().identify(rewritten, now=NOW)
    assert identifier(host_aliases=("public.example.com",)).identify(rewritten, now=NOW)


def test_a_signing_key_is_derived_once_a_day_and_region(monkeypatch: pytest.MonkeyPatch) -> None:
    derived: list[str] = []

    def counting(master: bytes, key_id: str, version: int) -> str:
        derived.append(key_id)
        return derive_secret(master, key_id, version)

    monkeypatch.setattr(identity, "derive_secret", counting)
    who = identifier(keys={KEY: (StaticKey(KEY, "orders"),)})
    for _ in range(3):
        who.identify(signed(), now=NOW)
    assert len(derived) == 1
    who.identify(signed(region="eu-west-1"), now=NOW)
    who.identify(signed(at=NOW + 86_400), now=NOW + 86_400)
    assert len(derived) == 3


def test_who_cannot_sign_leaves_nothing_in_memory() -> None:
    who = identifier()
    for region in ("a-1", "a-2", "a-3"):
        with pytest.raises(InvalidSignature):
            who.identify(signed(secret="wrong", region=region), now=NOW)
    with pytest.raises(Unauthenticated):
        who.identify(plain(b"Bearer a.b.c"), now=NOW)
    assert len(who._signing_keys) == len(who._tokens) == 0


# ---- tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"  Bearer   "])
def test_a_token_of_the_gateway_speaks_for_its_subject(scheme: bytes) -> None:
    caller = identifier().identify(plain(scheme + gateway_token() + b" "), now=NOW)
    assert (caller.principal.kind, caller.principal.subject) == ("gateway", "orders")
    assert caller.signed is None
    assert caller.covers("idempotency-key")


def test_a_token_of_an_issuer_speaks_for_its_subject_there() -> None:
    claims = {"iss": IDP, "aud": "a", "sub": "u", "iat": NOW, "exp": NOW + 60}
    caller = identifier().identify(
        plain(b"Bearer " + jwt.encode(claims, SECRET, "HS256").encode()), now=NOW
    )
    assert (caller.principal.kind, caller.principal.subject) == ("jwt", f"{IDP}|u")


def counting_verifications(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments at which tokens were verified and not remembered."""
    moments: list[float] = []
    real = bearer.verify

    def counting(token: str | bytes, issuers: Any, *, now: float) -> Any:
        moments.append(now)
        return real(token, issuers, now=now)

    monkeypatch.setattr(bearer, "verify", counting)
    return moments


def test_a_verified_token_is_remembered_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = counting_verifications(monkeypatch)
    who, request = identifier(), plain(b"Bearer " + gateway_token())
    for after in (0, 1, 59, 60, 61):
        who.identify(request, now=NOW + after)
    assert moments == [NOW, NOW + 60]


def test_a_remembered_token_expires_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = counting_verifications(monkeypatch)
    who, request = identifier(), plain(b"Bearer " + gateway_token(ttl=30))
    who.identify(request, now=NOW)
    who.identify(request, now=NOW + 29)
    who.identify(request, now=NOW + 31)  # within the leeway, and verified again
    with pytest.raises(TokenExpired):
        who.identify(request, now=NOW + 36)
    assert moments == [NOW, NOW + 31, NOW + 36]


def test_no_more_tokens_are_remembered_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity, "TOKENS_KEPT", 2)
    moments = counting_verifications(monkeypatch)
    who = identifier()
    a, b, c = (plain(b"Bearer " + gateway_token(subject=name)) for name in "abc")
    for request in (a, b, a, c):  # c pushes out b, which was used longest ago
        who.identify(request, now=NOW)
    assert len(moments) == 3
    assert len(who._tokens) == 2
    who.identify(a, now=NOW)
    assert len(moments) == 3
    who.identify(b, now=NOW)
    assert len(moments) == 4
