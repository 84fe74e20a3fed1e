"""One Authorization header decides who calls, and every failure has its name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import jwt
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.core import bearer
from gateway.core.bearer import Issuer, gateway_issuer, make_token
from gateway.core.errors import (
    AuthUnavailable,
    IncompleteSignature,
    InvalidSignature,
    MissingCredentials,
    RateLimited,
    TokenExpired,
    Unauthenticated,
    UnsupportedMediaType,
)
from gateway.core.keys import StaticKey, derive_secret, token_key, token_key_id
from gateway.core.sigv4 import RawRequest
from gateway.engine import identity
from gateway.engine.dear import DearWork
from gateway.engine.exchange import Issued, issue
from gateway.engine.identity import Identified, Identifier
from gateway.engine.issuers import make_identifier
from gateway.providers import jwks
from gateway.providers.fetch import Fetcher
from gateway.providers.jwks import KeySet
from gateway.settings import AuthSettings, IssuerSettings, Settings, TokenSettings
from tests.fix_loopback import Loopback, Page, serving

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


# ---- temporary keys --------------------------------------------------------------------------

ROLE = "arn:aws:iam::123456789012:role/orders-fn"
IAM_CLAIMS = {"auth": "iam", "acct": "123456789012", "sid": "i-1", "role_id": "AROAEXAMPLE"}
OURS = {"gateway": gateway_issuer("gateway", {token_key_id(token_key(MASTER)): token_key(MASTER)})}


def temporary(**changes: Any) -> Identifier:
    keys = {token_key_id(token_key(each)): token_key(each) for each in (MASTER, OLD_MASTER)}
    options = changes.pop("signing", {})
    return identifier(
        issuers={"gateway": gateway_issuer("gateway", keys)},
        signing=gateway_issuer("gateway", keys, audience=bearer.SIGNING_AUDIENCE, **options),
        **changes,
    )


def issued(*, master: bytes = MASTER, now: float = NOW, ttl: int = 900, **claims: Any) -> Issued:
    return issue(master, ROLE, now=now, ttl=ttl, claims={**IAM_CLAIMS, **claims})


def signed_with(made: Issued, **changes: Any) -> RawRequest:
    return signed(
        changes.pop("key_id", made.key_id),
        **{"secret": made.secret, "token": made.session_token, **changes},
    )


def test_a_temporary_key_speaks_for_the_role_wherever_the_master_key_is() -> None:
    made = issued()
    for node in (temporary(), temporary()):
        caller = node.identify(signed_with(made), now=NOW)
        who = caller.principal
        assert (who.kind, who.subject, who.key_id) == ("temp-key", ROLE, made.key_id)
        assert (who.issuer, who.session) == ("sts:123456789012", "i-1")
        assert who.claims["role_id"] == "AROAEXAMPLE"
        assert who.expires_at == NOW + 900
        assert caller.signed is not None
        assert "x-amz-security-token" in caller.signed


def test_the_token_beside_it_speaks_for_the_same_role() -> None:
    made = issued()
    who = temporary().identify(plain(b"Bearer " + made.token.encode()), now=NOW).principal
    assert (who.kind, who.subject, who.issuer) == ("iam", ROLE, "sts:123456789012")


def test_neither_token_is_good_in_the_others_place() -> None:
    made = issued()
    with pytest.raises(Unauthenticated):
        temporary().identify(plain(b"Bearer " + made.session_token.encode()), now=NOW)
    with pytest.raises(Unauthenticated):
        temporary().identify(signed_with(made, token=made.token), now=NOW)


MADE, OTHER = issued(), issued()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(
            signed_with(MADE, secret="guess"), InvalidSignature, id="token without secret"
        ),
        pytest.param(
            signed_with(MADE, token=OTHER.session_token), Unauthenticated, id="another key's token"
        ),
        pytest.param(
            signed_with(MADE, key_id=OTHER.key_id), Unauthenticated, id="another key's id"
        ),
        pytest.param(
            signed_with(MADE, token=OTHER.session_token, key_id=OTHER.key_id),
            InvalidSignature,
            id="another key's secret",
        ),
        pytest.param(signed_with(MADE, token=None), Unauthenticated, id="no token"),
        pytest.param(signed_with(MADE, token="a.b.c"), Unauthenticated, id="no real token"),
        pytest.param(
            signed_with(issued(now=NOW - 1000)), TokenExpired, id="a key that has expired"
        ),
        pytest.param(
            signed_with(issued(master=bytes(b"x" * 32))), Unauthenticated, id="another gateway's"
        ),
        pytest.param(signed(MADE.key_id, secret=MADE.secret), Unauthenticated, id="token left out"),
        pytest.param(
            signed(token=MADE.session_token), Unauthenticated, id="its token on a static key"
        ),
    ],
)
def test_a_temporary_key_is_good_only_with_its_own_secret_and_token(
    request_: RawRequest, error: type[Unauthenticated]
) -> None:
    who = temporary()
    who.identify(signed_with(MADE), now=NOW)
    for _ in range(2):
        with pytest.raises(error) as caught:
            who.identify(request_, now=NOW)
        assert caught.value.aws_name == error.aws_name


def test_a_temporary_key_ends_on_time_although_it_is_remembered() -> None:
    who, made = temporary(), issued(ttl=60)
    who.identify(signed_with(made), now=NOW)
    late = signed_with(made, at=NOW + 66)
    with pytest.raises(TokenExpired):
        who.identify(late, now=NOW + 66)


def test_temporary_keys_outlive_a_change_of_the_master_key() -> None:
    made = issued(master=OLD_MASTER)
    assert temporary(previous_master=OLD_MASTER).identify(signed_with(made), now=NOW)
    with pytest.raises(Unauthenticated):
        temporary().identify(signed_with(made), now=NOW)


def test_the_emergency_brake_stops_tokens_and_temporary_keys() -> None:
    who = temporary(signing={"not_before": NOW + 1})
    with pytest.raises(Unauthenticated):
        who.identify(signed_with(MADE), now=NOW + 2)


@pytest.mark.parametrize(
    ("denied", "request_"),
    [
        (ROLE, signed_with(MADE)),
        (ROLE, plain(b"Bearer " + MADE.token.encode())),
        ("orders", signed()),
    ],
    ids=["temporary key", "token", "static key"],
)
def test_a_denied_subject_is_refused_whatever_it_proves(denied: str, request_: RawRequest) -> None:
    assert temporary().identify(request_, now=NOW).principal.subject == denied
    who = temporary(denied_subjects=frozenset({denied}))
    for _ in range(2):
        with pytest.raises(Unauthenticated) as caught:
            who.identify(request_, now=NOW)
        assert "denied" in caught.value.reason


def test_signatures_may_be_switched_off() -> None:
    with pytest.raises(Unauthenticated):
        identifier(signatures=False).identify(signed(), now=NOW)
    assert identifier(signatures=False).identify(plain(b"Bearer " + gateway_token()), now=NOW)


# ---- issuers whose keys are fetched ----------------------------------------------------------

PRIVATE = ec.generate_private_key(ec.SECP256R1())


def key_page(*names: str, key: Any = PRIVATE) -> Page:
    jwk = jwt.get_algorithm_by_name("ES256").to_jwk(key.public_key(), as_dict=True)
    return Page(body=json.dumps({"keys": [{**jwk, "kid": name} for name in names]}).encode())


def idp_token(key_id: str = "a", *, key: Any = PRIVATE, **claims: Any) -> RawRequest:
    said = {"iss": IDP, "aud": "a", "sub": "u", "iat": NOW, "exp": NOW + 600, **claims}
    return plain(b"Bearer " + jwt.encode(said, key, "ES256", {"kid": key_id}).encode())


@asynccontextmanager
async def fetching(limit: int = 0) -> AsyncIterator[tuple[Identifier, Loopback]]:
    fetcher = Fetcher()
    with serving(lambda asked: key_page("a")) as server:
        keys = KeySet(server.url, fetcher)
        issuer = Issuer(issuer=IDP, audience="a", algorithms=("ES256",), keys=keys.keys)
        who = identifier(issuers={IDP: issuer, **OURS}, key_sets={IDP: keys}, dear=DearWork(limit))
        yield who, server
    who.dear.close()
    fetcher.close()


async def authenticate(who: Identifier, request: RawRequest, after: float = 0.0) -> Identified:
    return await who.authenticate(request, wall=lambda: NOW + after)


@pytest.mark.anyio
async def test_keys_are_fetched_when_the_first_token_comes() -> None:
    async with fetching() as (who, server):
        found = await asyncio.gather(*(authenticate(who, idp_token()) for _ in range(100)))
        assert {each.principal.subject for each in found} == {f"{IDP}|u"}
        assert len(server.asked) == 1


@pytest.mark.anyio
async def test_a_token_of_an_unknown_key_is_refused_and_an_outage_is_told_apart() -> None:
    async with fetching() as (who, server):
        server.page = lambda asked: Page(503)
        with pytest.raises(AuthUnavailable):
            await authenticate(who, idp_token())
    async with fetching() as (who, server):
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                await authenticate(who, idp_token("b"))
        assert len(server.asked) == 1
        assert await authenticate(who, idp_token("a"))


@pytest.mark.anyio
async def test_tokens_of_a_removed_key_end_with_the_next_refresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fetching() as (who, server):
        request = idp_token("a")
        assert await authenticate(who, request)
        monkeypatch.setattr(jwks, "COOL_DOWN", 0.0)
        monkeypatch.setattr(jwks, "FRESH_FOR", 0.0)
        server.page = lambda asked: key_page("b")
        assert await authenticate(who, idp_token("b"))
        with pytest.raises(Unauthenticated):
            await authenticate(who, request)  # although it was remembered as good


@pytest.mark.anyio
async def test_a_claim_of_another_issuer_fetches_nothing() -> None:
    async with fetching() as (who, server):
        for claims in ({"iss": "https://evil.example"}, {"iss": IDP + "/"}):
            with pytest.raises(Unauthenticated):
                await authenticate(who, idp_token(**claims))
        assert not server.asked


# ---- many failures ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_request_that_verifies_is_never_refused_for_the_failures_of_others() -> None:
    async with fetching(limit=5) as (who, _):
        assert await authenticate(who, idp_token())
        forger = ec.generate_private_key(ec.SECP256R1())
        refusals = []
        for number in range(12):
            with pytest.raises((Unauthenticated, RateLimited)) as caught:
                await authenticate(who, idp_token(key=forger, jti=number))
            refusals.append(type(caught.value))
        assert refusals == [Unauthenticated] * 5 + [RateLimited] * 7
        # From the same address, all at once, between more forgeries:
        good = [idp_token(sub=f"u{number}") for number in range(20)]
        bad = [idp_token(key=forger, jti=f"b{number}") for number in range(20)]
        answers = await asyncio.gather(
            *(authenticate(who, each) for pair in zip(bad, good, strict=True) for each in pair),
            return_exceptions=True,
        )
        assert [type(each) for each in answers] == [RateLimited, Identified] * 20
        # What costs little is not limited at all.
        assert await authenticate(who, signed())
        assert await authenticate(who, plain(b"Bearer " + gateway_issued()))
        with pytest.raises(InvalidSignature):
            await authenticate(who, signed(secret="wrong"))


@pytest.mark.anyio
async def test_a_source_that_behaves_again_is_forgiven() -> None:
    async with fetching(limit=2) as (who, _):
        forger = ec.generate_private_key(ec.SECP256R1())
        for number in range(4):
            with pytest.raises((Unauthenticated, RateLimited)):
                await authenticate(who, idp_token(key=forger, jti=number))
        with pytest.raises(Unauthenticated):
            await authenticate(who, idp_token(key=forger, jti="later"), after=61)


def gateway_issued() -> bytes:
    return issued().token.encode()


@pytest.mark.anyio
async def test_fetched_keys_outlive_a_change_of_the_configuration() -> None:
    fetcher = Fetcher()
    with serving(lambda asked: key_page("a")) as server:
        issuer = IssuerSettings(issuer=IDP, audience="a", jwks_url=server.url)
        settings = Settings(auth=AuthSettings(master_key=MASTER, issuers=(issuer,)))
        before = make_identifier(settings, fetcher)
        assert await authenticate(before, idp_token())
        after = make_identifier(
            replace(settings, tokens=TokenSettings(denied_subjects=(f"{IDP}|v",))),
            fetcher,
            previous=before,
        )
        assert await authenticate(after, idp_token())
        with pytest.raises(Unauthenticated):
            await authenticate(after, idp_token(sub="v"))
        assert len(server.asked) == 1
        moved = replace(issuer, jwks_url=server.url + "/moved")
        settings = replace(settings, auth=replace(settings.auth, issuers=(moved,)))
        assert await authenticate(make_identifier(settings, fetcher, previous=after), idp_token())
        assert len(server.asked) == 2
    fetcher.close()
