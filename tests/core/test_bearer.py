"""A token is good if its issuer signed it for us, now, and says so in the expected shape."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import bearer
from gateway.core.bearer import Issuer
from gateway.core.errors import TokenExpired, Unauthenticated

NOW = 1_800_000_000
IDP = "https://idp.example"
SECRET = b"0123456789abcdef0123456789abcdef"
GATEWAY_KEY = bytes(range(32))

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()


def pem(private: Any) -> bytes:
    encoded: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def der(private: Any) -> bytes:
    encoded: bytes = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


KEYS: dict[str | None, Any] = {
    "rsa": bearer.public_key("RS256", pem(RSA)),
    "ec": bearer.public_key("ES256", pem(P256)),
    "ed": bearer.public_key("EdDSA", pem(ED25519)),
    "small": SMALL_RSA.public_key(),
    "p384": P384.public_key(),
}
PUBLIC = Issuer(issuer=IDP, audience="pgsluice", keys=KEYS)
SHARED = Issuer(issuer=IDP, audience="pgsluice", algorithms=("HS256",), keys={None: SECRET})
CLAIMS: dict[str, Any] = {
    "iss": IDP,
    "aud": "pgsluice",
    "sub": "user-1",
    "iat": NOW,
    "exp": NOW + 600,
}


def claims(**changes: Any) -> dict[str, Any]:
    """The usual claims with *changes*; `...` leaves one out."""
    return {name: value for name, value in {**CLAIMS, **changes}.items() if value is not ...}


def part(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(
    payload: bytes, header: Mapping[str, Any] | bytes | None = None, *, key: bytes = SECRET
) -> str:
    """A token with exactly this payload and header, signed HS256 with *key*."""
    if header is None:
        header = {"alg": "HS256", "typ": "JWT"}
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = f"{part(raw)}.{part(payload)}"
    return f"{signed}.{part(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def shared(header: Mapping[str, Any] | None = None, **changes: Any) -> str:
    return forged(json.dumps(claims(**changes)).encode(), header)


def verify(token: str | bytes, issuer: Issuer = SHARED, *, now: float = NOW) -> Any:
    return bearer.verify(token, {issuer.issuer: issuer}, now=now)


# ---- what is accepted ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("private", "algorithm", "kid"),
    [(RSA, "RS256", "rsa"), (P256, "ES256", "ec"), (ED25519, "EdDSA", "ed")],
)
def test_a_token_of_each_kind_of_public_key_is_accepted(
    private: Any, algorithm: str, kid: str
) -> None:
    token = jwt.encode(claims(groups=["a"]), private, algorithm, headers={"kid": kid})
    principal = verify(token, PUBLIC)
    assert principal.kind == "jwt"
    assert principal.subject == f"{IDP}|user-1"
    assert principal.issuer == IDP
    assert principal.claims["groups"] == ["a"]
    assert principal.expires_at == NOW + 600
    assert principal.key_id == kid


def test_a_token_of_a_shared_secret_is_accepted_with_and_without_a_key_id() -> None:
    assert verify(shared()).subject == f"{IDP}|user-1"
    assert verify(shared({"alg": "HS256", "kid": "any"})).subject == f"{IDP}|user-1"
    assert verify(shared().encode()).subject == f"{IDP}|user-1"


def test_an_audience_may_be_one_of_several() -> None:
    assert verify(shared(aud=["other", "pgsluice"]))
    both = Issuer(
        issuer=IDP, audience=("a", "pgsluice"), algorithms=("HS256",), keys={None: SECRET}
    )
    assert verify(shared(), both)


def test_a_token_that_names_its_own_key_is_checked_with_ours() -> None:
    header = {"alg": "HS256", "jku": "https://evil.example", "jwk": {"kty": "oct", "k": "AA"}}
    assert verify(shared(header))
    own = forged(json.dumps(CLAIMS).encode(), header, key=b"x" * 32)
    with pytest.raises(Unauthenticated):
        verify(own)


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(jwt.encode(CLAIMS, "", "none"), id="none"),
        pytest.param(shared({"alg": "none"}), id="none, signed"),
        pytest.param(shared({"alg": "nOnE"}), id="nOnE"),
        pytest.param(forged(json.dumps(CLAIMS).encode(), key=pem(RSA)), id="HS256 with our PEM"),
        pytest.param(forged(json.dumps(CLAIMS).encode(), key=der(RSA)), id="HS256 with our DER"),
        pytest.param(
            jwt.encode(CLAIMS, RSA, "RS512", headers={"kid": "rsa"}), id="RS512 is not allowed"
        ),
        pytest.param(
            jwt.encode(CLAIMS, OTHER_RSA, "RS256", headers={"kid": "rsa"}), id="another RSA key"
        ),
        pytest.param(
            jwt.encode(CLAIMS, RSA, "RS256", headers={"kid": "ec"}), id="RS256 with an EC key"
        ),
        pytest.param(
            jwt.encode(CLAIMS, P256, "ES256", headers={"kid": "rsa"}), id="ES256 with an RSA key"
        ),
        pytest.param(
            jwt.encode(CLAIMS, P256, "ES256", headers={"kid": "p384"}), id="ES256 and P-384"
        ),
        pytest.param(jwt.encode(CLAIMS, RSA, "RS256", headers={"kid": "new"}), id="unknown kid"),
        pytest.param(jwt.encode(CLAIMS, RSA, "RS256"), id="no kid"),
    ],
)
def test_confused_algorithms_and_keys_are_refused(token: str) -> None:
    with pytest.raises(Unauthenticated):
        verify(token, PUBLIC)


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_an_rsa_key_of_1024_bits_is_refused() -> None:
    token = jwt.encode(CLAIMS, SMALL_RSA, "RS256", headers={"kid": "small"})
    with pytest.raises(Unauthenticated) as caught:
        verify(token, PUBLIC)
    assert caught.value.reason == "InvalidKeyError"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=json.dumps(changes, default=lambda _: "absent"))
        for changes in [
            {"exp": ...},
            {"exp": None},
            {"exp": "9999999999"},
            {"exp": True},
            {"exp": [NOW + 600]},
            {"exp": 10**30},
            {"exp": 10**30, "iat": 10**30},
            {"exp": float("nan")},
            {"exp": float("inf")},
            {"exp": NOW + 86_401},
            {"iat": ...},
            {"iat": str(NOW)},
            {"iat": False},
            {"iat": NOW + 31, "exp": NOW + 600},
            {"nbf": NOW + 31},
            {"nbf": "0"},
            {"nbf": None},
            {"aud": ...},
            {"aud": None},
            {"aud": "other"},
            {"aud": []},
            {"aud": {"pgsluice": 1}},
            {"aud": "pgsluice2"},
            {"iss": ...},
            {"iss": IDP + "/"},
            {"iss": IDP[:-1]},
            {"iss": [IDP]},
            {"iss": "gateway"},
            {"sub": ...},
            {"sub": ""},
            {"sub": 7},
            {"sub": "a" * 256},
            {"sub": "a\0b"},
            {"tenant": "a\0b"},
            {"deep": {"a\0": 1}},
        ]
    ],
)
def test_odd_claims_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verify(shared(**changes))
    assert type(caught.value) is Unauthenticated
    assert caught.value.reason


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"alg": None},
        {"alg": ["HS256"]},
        {"alg": "HS512"},
        {"alg": "HS256", "crit": ["exp"]},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
        {"alg": "HS256", "b64": True},
        {"alg": "HS256", "kid": 1},
        {"alg": "HS256", "kid": "k" * 129},
        {"alg": "HS256", "x": "a" * 2048},
    ],
)
def test_odd_headers_are_refused(header: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        verify(shared(header))


GOOD = shared()
HEAD, BODY, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="empty"),
        pytest.param("a.b", id="two parts"),
        pytest.param(GOOD + ".a.b", id="five parts"),
        pytest.param(f"{HEAD}.{BODY}.", id="no signature"),
        pytest.param(f".{BODY}.{SIGNATURE}", id="no header"),
        pytest.param(f"{HEAD}..{SIGNATURE}", id="no payload"),
        pytest.param(GOOD + "=", id="padding"),
        pytest.param(GOOD + "==", id="more padding"),
        pytest.param(GOOD + "\n", id="newline at the end"),
        pytest.param(" " + GOOD, id="blank"),
        pytest.param(GOOD.replace(".", ". ", 1), id="blank inside"),
        pytest.param(f"{HEAD}.{BODY}.{SIGNATURE[:-1]}", id="signature cut"),
        pytest.param(f"{HEAD}.{BODY}.{'A' * len(SIGNATURE)}", id="signature of zeros"),
        pytest.param(f"{HEAD}.{BODY}é.{SIGNATURE}", id="not ASCII"),
        pytest.param(b"\xff" + GOOD.encode(), id="not text"),
        pytest.param("a" * (1 << 20), id="1 MiB"),
        pytest.param(shared(fill="a" * 8192), id="too long"),
        pytest.param("AAAAA.AAAAA.AAAAA", id="impossible lengths"),
        pytest.param(forged(b"[1]"), id="a list as payload"),
        pytest.param(forged(b"null"), id="null as payload"),
        pytest.param(forged(b"{"), id="not JSON"),
        pytest.param(forged(b"\xff"), id="not UTF-8"),
        pytest.param(forged(json.dumps(CLAIMS).encode(), b"[]"), id="a list as header"),
        pytest.param(forged(b'{"a":' * 1500 + b"1" + b"}" * 1500), id="deep payload"),
        pytest.param(
            forged(json.dumps(CLAIMS).encode(), b'{"alg":' + b"[" * 900 + b"]" * 900 + b"}"),
            id="deep header",
        ),
        pytest.param(
            forged(json.dumps(CLAIMS).encode()[:-1] + b',"exp":' + b"9" * 5000 + b"}"),
            id="a number of 5,000 digits",
        ),
        pytest.param(
            forged(json.dumps(CLAIMS).encode()[:-1] + b',"exp":1e309}'), id="1e309 as exp"
        ),
        pytest.param(forged(json.dumps(CLAIMS).encode(), key=b""), id="empty key"),
        pytest.param(forged(json.dumps(CLAIMS).encode(), key=SECRET[:5]), id="short key"),
    ],
)
def test_what_is_no_token_of_the_issuer_is_refused(token: str | bytes) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verify(token)
    assert type(caught.value) is Unauthenticated
    assert caught.value.message == "The security token included in the request is invalid."


def test_the_last_of_two_members_of_a_name_counts() -> None:
    twice = json.dumps(CLAIMS).encode()[:-1] + b',"exp":%d}' % (NOW + 60)
    assert verify(forged(twice)).expires_at == NOW + 60


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.binary(), st.from_regex(r"[\w-]{1,40}\.[\w-]{1,40}\.[\w-]{1,40}")))
def test_any_bytes_end_in_the_one_refusal(token: str | bytes) -> None:
    with pytest.raises(Unauthenticated):
        verify(token)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(["iss", "aud", "sub", "exp", "iat", "nbf", "jti"]), value=JSON)
def test_any_claim_is_either_good_or_refused(name: str, value: Any) -> None:
    payload = json.dumps({**CLAIMS, name: value}).encode()
    try:
        principal = verify(forged(payload))
    except Unauthenticated:
        return
    assert principal.subject.startswith(f"{IDP}|")
    assert principal.expires_at is not None
    assert NOW - 30 < principal.expires_at <= NOW + 86_400 + 30


# ---- times -----------------------------------------------------------------------------------


def test_a_token_is_good_until_its_leeway_is_over() -> None:
    verify(GOOD, now=NOW + 629)
    with pytest.raises(TokenExpired):
        verify(GOOD, now=NOW + 630)


def test_a_token_is_good_from_its_leeway_before() -> None:
    verify(GOOD, now=NOW - 30)
    with pytest.raises(Unauthenticated):
        verify(GOOD, now=NOW - 31)
    verify(shared(nbf=NOW + 30))


def test_a_forged_token_is_not_told_that_it_is_expired() -> None:
    with pytest.raises(Unauthenticated) as caught:
        verify(forged(json.dumps(claims(exp=NOW - 900, iat=NOW - 1800)).encode(), key=b"x" * 32))
    assert type(caught.value) is Unauthenticated


def test_tokens_issued_before_the_emergency_brake_are_refused() -> None:
    braked = bearer.gateway_issuer("gw", {"k": GATEWAY_KEY}, not_before=NOW + 1)
    with pytest.raises(Unauthenticated):
        verify(gateway_token(), braked)
    verify(gateway_token(now=NOW + 1), braked, now=NOW + 1)


def test_a_denied_subject_is_refused() -> None:
    denying = bearer.gateway_issuer("gw", {"k": GATEWAY_KEY}, denied_subjects=frozenset({"orders"}))
    with pytest.raises(Unauthenticated):
        verify(gateway_token(), denying)
    verify(gateway_token(subject="billing"), denying)


# ---- types, and the gateway's own ------------------------------------------------------------


def test_a_type_is_compared_as_a_media_type() -> None:
    typed = Issuer(
        issuer=IDP, audience="pgsluice", algorithms=("HS256",), keys={None: SECRET}, typ="at+jwt"
    )
    for good in ("at+jwt", "AT+JWT", "application/at+jwt"):
        verify(shared({"alg": "HS256", "typ": good}), typed)
    for bad in ("JWT", "", None, 7, "at+jwt2"):
        with pytest.raises(Unauthenticated):
            verify(shared({"alg": "HS256", "typ": bad}), typed)


OURS = bearer.gateway_issuer("gw", {"k": GATEWAY_KEY})


def gateway_token(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "key": GATEWAY_KEY,
        "kid": "k",
        "issuer": "gw",
        "subject": "orders",
        "audience": bearer.GATEWAY_AUDIENCE,
        "now": NOW,
        "ttl": 900,
        **changes,
    }
    return bearer.make_token(**arguments)


def test_a_token_of_the_gateway_speaks_for_its_subject() -> None:
    principal = verify(gateway_token(claims={"jti": "1", "tenant": "a", "sub": "evil"}), OURS)
    assert (principal.kind, principal.subject, principal.issuer) == ("gateway", "orders", "gateway")
    assert principal.claims["tenant"] == "a"
    assert principal.expires_at == NOW + 900
    assert jwt.get_unverified_header(gateway_token()) == {
        "alg": "HS256",
        "kid": "k",
        "typ": "gwt+jwt",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"audience": "gw/sigv4"},
        {"issuer": "other"},
        {"key": bytes(32)},
        {"kid": "old"},
        {"subject": ""},
        {"ttl": 86_401},
    ],
    ids=str,
)
def test_another_token_of_the_gateway_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        verify(gateway_token(**changes), OURS)


def test_a_plain_jwt_with_the_gateways_key_is_refused() -> None:
    payload = claims(iss="gw", aud="gw/bearer")
    with pytest.raises(Unauthenticated):
        verify(jwt.encode(payload, GATEWAY_KEY, "HS256", headers={"kid": "k"}), OURS)


def test_two_keys_are_good_while_one_replaces_the_other() -> None:
    both = bearer.gateway_issuer("gw", {"k": GATEWAY_KEY, "new": bytes(32)})
    verify(gateway_token(), both)
    verify(gateway_token(key=bytes(32), kid="new"), both)
    with pytest.raises(Unauthenticated):
        verify(gateway_token(kid="new"), both)


def test_each_issuer_is_held_to_its_own_keys() -> None:
    other = Issuer(
        issuer="https://b.example",
        audience="pgsluice",
        algorithms=("HS256",),
        keys={None: b"b" * 32},
    )
    issuers = {IDP: SHARED, other.issuer: other}
    assert bearer.verify(shared(), issuers, now=NOW)
    with pytest.raises(Unauthenticated):
        bearer.verify(shared(iss=other.issuer), issuers, now=NOW)


def test_reading_tells_which_key_to_fetch() -> None:
    token = jwt.encode(CLAIMS, RSA, "RS256", headers={"kid": "new"})
    assert bearer.read(token) == (IDP, "new", "RS256", "JWT")


# ---- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithms": ("HS256", "RS256")},
        {"algorithms": ("none",)},
        {"algorithms": ()},
        {"algorithms": ("HS256",), "keys": {None: b"short"}},
        {"algorithms": ("HS256",), "keys": {None: "text" * 8}},
        {"audience": ""},
        {"audience": ()},
        {"issuer": ""},
    ],
    ids=str,
)
def test_a_dangerous_issuer_cannot_be_configured(changes: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"issuer": IDP, "audience": "a", "keys": {}}
    Issuer(**usual)
    with pytest.raises(ValueError, match=r"issuer|algorithms|secret"):
        Issuer(**{**usual, **changes})


def test_keys_do_not_show_in_the_text_of_an_issuer() -> None:
    assert "0123456789" not in repr(SHARED)


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [("HS256", pem(RSA)), ("RS256", pem(P256)), ("ES256", pem(RSA)), ("RS256", b"nonsense")],
)
def test_a_public_key_must_fit_its_algorithm(algorithm: str, text: bytes) -> None:
    with pytest.raises(ValueError, match="public key"):
        bearer.public_key(algorithm, text)
