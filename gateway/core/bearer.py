"""Bearer tokens: JSON Web Tokens of configured issuers and of the gateway itself.

What a token says of itself (`iss`, `kid`, `alg`) only chooses what it is checked
against; that check then decides. The clock is an argument, so PyJWT verifies
signature, audience and issuer here and the times are ours.

    >>> ours = gateway_issuer("gw.example.com", {"k1": bytes(32)})
    >>> token = make_token(key=bytes(32), kid="k1", issuer="gw.example.com", subject="orders",
    ...                    audience=GATEWAY_AUDIENCE, now=1_000, ttl=900)
    >>> verify(token, {"gw.example.com": ours}, now=1_001).subject
    'orders'

Source: RFC 7519, and RFC 8725, "JSON Web Token Best Current Practices". PyJWT
accepts more than we do: an `exp` that is a string, padding, weak keys.
"""

from __future__ import annotations

import math
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jwt
import orjson

from .errors import TokenExpired, Unauthenticated
from .model import Json, Principal

GATEWAY_AUDIENCE = "gw/bearer"
SIGNING_AUDIENCE = "gw/sigv4"
"""Of session tokens: good beside a signature by their key, never alone."""
GATEWAY_ISSUER = "gateway"
GATEWAY_TYPE = "gwt+jwt"

SYMMETRIC = frozenset({"HS256", "HS384", "HS512"})
ASYMMETRIC = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
MIN_SECRET = 32  # bytes, RFC 7518 section 3.2 for HS256
MAX_TOKEN = 8192  # bytes
MAX_HEADER = 2048  # bytes of JSON
MAX_KEY_ID = 128
MAX_SUBJECT = 255
MAX_JWKS = 65_536  # bytes
MAX_JWKS_KEYS = 50
MIN_RSA = 2048  # bits, RFC 7518 section 3.3

_JWT = jwt.PyJWT(options={"enforce_minimum_key_length": True})
# Without padding and without blanks: one spelling of a token only.
_COMPACT = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One issuer whose tokens are accepted, and under which conditions."""

    issuer: str
    """`iss`, compared as it is: a trailing slash makes another issuer."""
    audience: str | tuple[str, ...]
    """`aud` must hold one of these."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    keys: Mapping[str | None, Any] = field(repr=False)
    """By `kid`; the one under `None` is for tokens whose `kid` is absent or not listed.

    Bytes for HS*, else what `public_key` or `read_jwks` gives (PEM text works and is parsed
    each time). It may change while the issuer is in use.
    """
    kind: str = "jwt"
    """`jwt`, or `gateway` for the gateway's own: there `sub` alone is the subject."""
    leeway: float = 30.0
    """Seconds that the issuer's clock may differ from ours."""
    max_age: float = 86_400.0
    """Seconds; a token that is to live longer (`exp` less `iat`) is refused."""
    required: tuple[str, ...] = ("exp", "iat", "aud", "iss", "sub")
    typ: str | None = None
    """The header's `typ`, such as `at+jwt`, if tokens of other types must be refused."""
    not_before: float = 0.0
    """Seconds since the epoch; tokens issued earlier are refused: the emergency brake."""
    denied_subjects: frozenset[str] = frozenset()
    """Values of `sub` that are refused."""

    def __post_init__(self) -> None:
        families = {name in SYMMETRIC for name in self.algorithms}
        unknown = set(self.algorithms) - SYMMETRIC - ASYMMETRIC
        if not self.issuer or not self.audience:
            raise ValueError("an issuer needs a name and an audience")
        if unknown or not self.algorithms:
            raise ValueError(f"algorithms of {self.issuer}: {sorted(unknown) or 'none given'}")
        if len(families) > 1:
            # A public key, taken for a shared secret, would let anyone sign.
            raise ValueError(f"algorithms of {self.issuer} mix HS* with public keys")
        if families == {True}:
            for secret in self.keys.values():
                if not isinstance(secret, bytes) or len(secret) < MIN_SECRET:
                    raise ValueError(f"a secret of {self.issuer} needs {MIN_SECRET} bytes or more")


class PublicKey(NamedTuple):
    """One key of a JWK set."""

    key: Any
    algorithm: str | None
    """The only algorithm it is for, if the set names one."""


class UnknownKey(Unauthenticated):
    """The token is signed with a key of its issuer that is not known here (yet)."""

    def __init__(self, issuer: str, key_id: str | None) -> None:
        super().__init__(reason="unknown key id")
        self.issuer = issuer
        self.key_id = key_id


class Unverified(NamedTuple):
    """What a token says of itself: good for choosing a key, for nothing else."""

    issuer: str
    key_id: str | None
    algorithm: str
    typ: str | None


def gateway_issuer(
    name: str,
    keys: Mapping[str, bytes],
    *,
    audience: str = GATEWAY_AUDIENCE,
    max_age: float = 86_400.0,
    not_before: float = 0.0,
    denied_subjects: frozenset[str] = frozenset(),
) -> Issuer:
    """The gateway as an issuer named *name*, with its token keys by `kid`."""
    return Issuer(
        issuer=name,
        audience=audience,
        algorithms=("HS256",),
        keys=dict[str | None, Any](keys.items()),
        kind="gateway",
        leeway=5.0,  # every node keeps time, and there is no other party
        max_age=max_age,
        typ=GATEWAY_TYPE,
        not_before=not_before,
        denied_subjects=denied_subjects,
    )


def public_key(algorithm: str, pem: str | bytes) -> Any:
    """The public key in *pem*, parsed once and fit for *algorithm*.

    Raises:
        ValueError: It is no such key.
    """
    if algorithm not in ASYMMETRIC:
        raise ValueError(f"{algorithm} has no public keys")
    try:
        return jwt.get_algorithm_by_name(algorithm).prepare_key(pem)
    except Exception as error:
        raise ValueError(f"not a public key for {algorithm}") from error


def read_jwks(document: bytes) -> dict[str | None, PublicKey]:
    """The public keys of a JWK set by their `kid`; what cannot be used is left out.

    Left out are keys for encryption, shared secrets, private keys, RSA keys of less than
    2048 bits, and whatever PyJWT cannot read. Of two keys with one `kid` the first counts.

    Raises:
        ValueError: It is no JWK set, or too large.

    Source: RFC 7517.
    """
    if len(document) > MAX_JWKS:
        raise ValueError(f"larger than {MAX_JWKS} bytes")
    parsed = orjson.loads(document)
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list):
        raise ValueError("holds no list of keys")
    if len(listed) > MAX_JWKS_KEYS:
        raise ValueError(f"holds more than {MAX_JWKS_KEYS} keys")
    keys: dict[str | None, PublicKey] = {}
    for each in listed:
        if not isinstance(each, dict) or each.get("use", "sig") != "sig":
            continue
        key_id, algorithm = each.get("kid"), each.get("alg")
        if each.get("kty") not in ("RSA", "EC", "OKP") or "d" in each:
            continue
        if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= MAX_KEY_ID):
            continue
        if key_id in keys:
            continue
        if algorithm is not None and not (isinstance(algorithm, str) and algorithm in ASYMMETRIC):
            continue
        try:
            key = jwt.PyJWK.from_dict(each).key
        # Odd members end in every kind of error.
        except Exception:  # noqa: BLE001
            continue
        if each["kty"] == "RSA" and key.key_size < MIN_RSA:
            continue
        keys[key_id] = PublicKey(key, algorithm)
    return keys


def make_token(
    *,
    key: bytes,
    kid: str,
    issuer: str,
    subject: str,
    audience: str,
    now: int,
    ttl: int,
    claims: Mapping[str, Json] | None = None,
) -> str:
    """A token of the gateway's own, signed with *key* and good for *ttl* seconds.

    Args:
        now: Seconds since the epoch.
        claims: More claims, such as `jti`; those that the other arguments set win.
    """
    payload = {
        **(claims or {}),
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "iat": now,
        "nbf": now,
        "exp": now + ttl,
    }
    return _JWT.encode(payload, key, "HS256", headers={"kid": kid, "typ": GATEWAY_TYPE})


def read(token: str | bytes) -> Unverified:
    """What *token* says of its issuer and key, unverified.

    Raises:
        Unauthenticated: It does not have the form of a token.
    """
    return _parse(token)[0]


def verify(token: str | bytes, issuers: Mapping[str, Issuer], *, now: float) -> Principal:
    """Whom *token* speaks for.

    Args:
        issuers: By their `iss`.
        now: Seconds since the epoch.

    Raises:
        Unauthenticated: It is not a token, or not one of ours, or not for us.
        TokenExpired: Everything about it is right but the time.
    """
    said, raw_payload = _parse(token)
    issuer = issuers.get(said.issuer)
    if issuer is None:
        raise Unauthenticated(reason="unknown issuer")
    if said.algorithm not in issuer.algorithms:
        raise Unauthenticated(reason="algorithm not allowed")
    if issuer.typ is not None and not _is_type(said.typ, issuer.typ):
        raise Unauthenticated(reason="wrong type of token")
    key = issuer.keys.get(said.key_id)
    if key is None:
        key = issuer.keys.get(None)
    if key is None:
        raise UnknownKey(said.issuer, said.key_id)
    if isinstance(key, PublicKey):
        if key.algorithm not in (None, said.algorithm):
            raise Unauthenticated(reason="the key is for another algorithm")
        key = key.key
    try:
        claims = _JWT.decode(
            token,
            key,
            algorithms=[said.algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            options={
                "require": list(issuer.required),
                "strict_aud": False,
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    # Not only PyJWTError: odd claims and odd keys end in TypeError and others.
    except Exception as error:
        raise Unauthenticated(reason=type(error).__name__) from error
    # JSON text cannot hold NUL any other way. PostgreSQL could not store it, and C code would
    # read less than was matched.
    if rb"\u0000" in raw_payload:
        raise Unauthenticated(reason="NUL in a claim")
    expires_at = _check_times(claims, issuer, now)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT:
        raise Unauthenticated(reason="sub is empty or too long")
    if subject in issuer.denied_subjects:
        raise Unauthenticated(reason="subject is denied")
    if issuer.kind == "gateway":
        return _of_the_gateway(subject, claims, expires_at)
    return Principal(
        kind=issuer.kind,
        subject=f"{issuer.issuer}|{subject}",
        issuer=issuer.issuer,
        claims=claims,
        expires_at=expires_at,
        key_id=said.key_id,
    )


def _of_the_gateway(subject: str, claims: Mapping[str, Json], expires_at: float) -> Principal:
    account = claims.get("acct")
    if claims.get("auth") == "iam" and isinstance(account, str):
        session = claims.get("sid")
        return Principal(
            kind="iam",
            subject=subject,
            # Whose word it is: no rule for the gateway's own subjects means a role by accident.
            issuer=f"sts:{account}",
            session=session if isinstance(session, str) else None,
            claims=claims,
            expires_at=expires_at,
        )
    return Principal(kind="gateway", subject=subject, claims=claims, expires_at=expires_at)


def _check_times(claims: Mapping[str, Json], issuer: Issuer, now: float) -> float:
    """`exp`, if *now* is a moment at which a token with these times is good."""
    expires = _moment(claims, "exp")
    issued = _moment(claims, "iat")
    if expires - issued > issuer.max_age:
        raise Unauthenticated(reason="lives too long")
    if issued > now + issuer.leeway:
        raise Unauthenticated(reason="issued in the future")
    if "nbf" in claims and _moment(claims, "nbf") > now + issuer.leeway:
        raise Unauthenticated(reason="not yet good")
    if issued < issuer.not_before:
        raise Unauthenticated(reason="issued before tokens.not_before")
    if expires <= now - issuer.leeway:
        raise TokenExpired(reason=f"{now - expires:.0f} s ago")
    return expires


def _moment(claims: Mapping[str, Json], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthenticated(reason=f"{name} is not a number")
    # Also keeps an int of 4,000 digits from overflowing a float.
    if not (-1e15 < value < 1e15) or not math.isfinite(value):
        raise Unauthenticated(reason=f"{name} is out of range")
    return float(value)


def _parse(token: str | bytes) -> tuple[Unverified, bytes]:
    """Issuer, key and algorithm as the token says, and the JSON of its payload."""
    try:
        raw = token.encode("ascii") if isinstance(token, str) else token
    except UnicodeEncodeError as error:
        raise Unauthenticated(reason="token is not ASCII") from error
    if len(raw) > MAX_TOKEN:
        raise Unauthenticated(reason="token is too long")
    match = _COMPACT.fullmatch(raw)
    if match is None:
        raise Unauthenticated(reason="not three base64url parts")
    try:
        raw_header, raw_payload = _decoded(match[1]), _decoded(match[2])
        if len(raw_header) > MAX_HEADER:
            raise Unauthenticated(reason="header is too long")
        header, payload = orjson.loads(raw_header), orjson.loads(raw_payload)
    except ValueError as error:
        raise Unauthenticated(reason="not JSON") from error
    if not isinstance(header, dict) or not isinstance(payload, dict):
        raise Unauthenticated(reason="not JSON objects")
    if "crit" in header or "b64" in header:
        raise Unauthenticated(reason="crit or b64 in the header")
    # jku, x5u, jwk and x5c, by which a token would bring its own key, are never looked at.
    algorithm, key_id, issuer = header.get("alg"), header.get("kid"), payload.get("iss")
    if not isinstance(algorithm, str) or not isinstance(issuer, str):
        raise Unauthenticated(reason="alg or iss is not a string")
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= MAX_KEY_ID):
        raise Unauthenticated(reason="kid is not a short string")
    typ = header.get("typ")
    return Unverified(issuer, key_id, algorithm, typ if isinstance(typ, str) else None), raw_payload


def _decoded(part: bytes) -> bytes:
    return urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def _is_type(said: str | None, expected: str) -> bool:
    """RFC 7515, section 4.1.9: a media type, in any case, `application/` may be left out."""
    return said is not None and said.lower().removeprefix("application/") == expected.lower()
