"""What PyJWT was seen to do with odd tokens, one case each, and that here each is refused.

Where PyJWT accepts what it should not, the test says so with PyJWT itself beside it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import warnings
from typing import Any

import jwt
import pytest

from gateway.core import bearer
from gateway.core.bearer import Issuer, PublicKey
from gateway.core.errors import TokenExpired, Unauthenticated
from tests.core.test_bearer import (
    CLAIMS,
    IDP,
    NOW,
    P256,
    P384,
    RSA,
    SECRET,
    SHARED,
    SMALL_RSA,
    claims,
    der,
    forged,
    part,
    pem,
    shared,
    verify,
)

MARKED = Issuer(
    issuer=IDP,
    audience="pgsluice",
    algorithms=("RS256", "RS512", "ES256"),
    keys={
        "rsa": PublicKey(RSA.public_key(), "RS256"),
        "p384": PublicKey(P384.public_key(), "ES256"),
        "p256": PublicKey(P256.public_key(), None),
        "small": PublicKey(SMALL_RSA.public_key(), "RS256"),
    },
)


def rsa_token(algorithm: str = "RS256", kid: str = "rsa", key: Any = RSA) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a key is weak is the point
        return jwt.encode(CLAIMS, key, algorithm, {"kid": kid})


def with_header(**header: Any) -> str:
    return forged(json.dumps(CLAIMS).encode(), {"alg": "HS256", **header})


def raw(header: bytes, payload: bytes) -> str:
    signed = f"{part(header)}.{part(payload)}"
    return f"{signed}.{part(hmac.digest(SECRET, signed.encode(), hashlib.sha256))}"


HEADER = b'{"alg":"HS256"}'
DEEP = b"[" * 100_000 + b"]" * 100_000
BODY = json.dumps(CLAIMS).encode()

TABLE: list[tuple[str, Issuer, str]] = [
    # Another algorithm, or a key of another kind.
    ("alg none", SHARED, jwt.encode(CLAIMS, None, "none")),
    ("alg nOnE", SHARED, with_header(alg="nOnE")),
    ("alg none where public keys are", MARKED, jwt.encode(CLAIMS, None, "none", {"kid": "rsa"})),
    ("HS256 with our PEM", MARKED, forged(BODY, {"alg": "HS256", "kid": "rsa"}, key=pem(RSA))),
    ("HS256 with our DER", MARKED, forged(BODY, {"alg": "HS256", "kid": "rsa"}, key=der(RSA))),
    ("RS512 with a key marked RS256", MARKED, rsa_token("RS512")),
    ("ES256 with a key of P-384", MARKED, jwt.encode(CLAIMS, P256, "ES256", {"kid": "p384"})),
    # Extensions that must be understood.
    ("crit that nobody knows", SHARED, with_header(crit=["x"], x=1)),
    ("crit that is known", SHARED, with_header(crit=["exp"])),
    ("b64", SHARED, with_header(b64=False, crit=["b64"])),
    # Times, names, and values that are none.
    ("no exp", SHARED, shared(exp=...)),
    ("exp is past", SHARED, shared(exp=NOW - 31, iat=NOW - 600)),
    ("nbf is to come", SHARED, shared(nbf=NOW + 31)),
    ("iat is to come", SHARED, shared(iat=NOW + 31)),
    ("no aud", SHARED, shared(aud=...)),
    ("another aud", SHARED, shared(aud="other")),
    ("aud is null", SHARED, shared(aud=None)),
    ("iss is a part of ours", SHARED, shared(iss=IDP[:-1])),
    ("iss with a slash", SHARED, shared(iss=IDP + "/")),
    ("sub is no string", SHARED, shared(sub=7)),
    ("exp is NaN", SHARED, raw(HEADER, BODY[:-1] + b',"exp":NaN}')),
    ("exp is Infinity", SHARED, raw(HEADER, BODY[:-1] + b',"exp":Infinity}')),
    ("exp is 1e309", SHARED, raw(HEADER, BODY[:-1] + b',"exp":1e309}')),
    # Shapes.
    ("a payload 100,000 deep", SHARED, raw(HEADER, b'{"iss":"%b","a":%b}' % (IDP.encode(), DEEP))),
    ("a header 100,000 deep", SHARED, raw(b'{"alg":"HS256","a":%b}' % DEEP, BODY)),
    (
        "a number of 100,000 digits", SHARED,
        raw(HEADER, BODY[:-1] + b',"exp":' + b"9" * 100_000 + b"}"),
    ),
    ("a payload that is no object", SHARED, raw(HEADER, b'"iss"')),
    ("five parts", SHARED, ".".join([part(HEADER)] * 5)),
    ("1 MB of garbage", SHARED, "x" * 1_000_000),
    # What was a TypeError in older versions of PyJWT.
    ("iss is a list", SHARED, shared(iss=[IDP])),
    # What PyJWT accepts.
    ("exp is a string", SHARED, shared(exp="9999999999")),
    ("exp is 10^30", SHARED, shared(exp=10**30)),
    ("= behind the signature", SHARED, shared() + "="),
    ("== behind the signature", SHARED, shared() + "=="),
    ("RSA of 1024 bits", MARKED, rsa_token(kid="small", key=SMALL_RSA)),
    # Secrets that are none.
    ("signed with an empty secret", SHARED, forged(BODY, key=b"")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("issuer", "token"), [case[1:] for case in TABLE], ids=[case[0] for case in TABLE]
)
def test_it_is_refused(issuer: Issuer, token: str) -> None:
    with pytest.raises((Unauthenticated, TokenExpired)):
        verify(token, issuer)


def test_the_same_without_the_fault_is_accepted() -> None:
    for issuer, token in (
        (SHARED, shared()),
        (SHARED, raw(HEADER, BODY)),
        (SHARED, with_header()),
        (MARKED, rsa_token()),
        (MARKED, jwt.encode(CLAIMS, P256, "ES256", {"kid": "p256"})),
    ):
        assert verify(token, issuer).subject == f"{IDP}|user-1"


def pyjwt(token: str, key: Any, algorithm: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jwt.decode(
            token, key, [algorithm], audience="pgsluice", issuer=IDP,
            options={"verify_iat": False, "verify_nbf": False},
        )  # fmt: skip


def test_pyjwt_alone_would_have_taken_some_of_them() -> None:
    by_name = {name: token for name, _, token in TABLE}
    for name in ("exp is a string", "exp is 10^30", "= behind the signature"):
        assert pyjwt(by_name[name], SECRET, "HS256")["sub"] == "user-1", name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unexpired = jwt.encode(claims(exp=9_999_999_999), SMALL_RSA, "RS256")
    assert pyjwt(unexpired, SMALL_RSA.public_key(), "RS256")["sub"] == "user-1"


def test_the_last_of_two_ends_counts_and_both_are_the_issuers() -> None:
    token = raw(HEADER, BODY[:-1] + b',"exp":%d}' % (NOW + 60))
    assert verify(token).expires_at == NOW + 60


@pytest.mark.parametrize("secret", [b"", b"12345"], ids=["empty", "5 bytes"])
def test_a_secret_that_is_none_cannot_be_configured(secret: bytes) -> None:
    with pytest.raises(ValueError, match="secret"):
        Issuer(issuer=IDP, audience="pgsluice", algorithms=("HS256",), keys={None: secret})


def test_no_token_is_looked_at_without_a_list_of_algorithms() -> None:
    with pytest.raises(ValueError, match="algorithms"):
        bearer.Issuer(issuer=IDP, audience="pgsluice", algorithms=(), keys={None: SECRET})
