"""Who is calling: from the Authorization header to a `Principal`.

One header decides the scheme: a signature (`AWS4-HMAC-SHA256`) or a token
(`Bearer`). No database is asked and nothing is awaited. Two things are kept,
because computing them is most of the cost: signing keys, which change once a day,
and verified tokens, for a minute at most.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Generic, NamedTuple, TypeVar

from ..core import bearer, sigv4
from ..core.bearer import Issuer
from ..core.errors import (
    IncompleteSignature,
    InvalidSignature,
    MissingCredentials,
    Unauthenticated,
)
from ..core.keys import StaticKey, derive_secret
from ..core.model import Principal
from ..core.sigv4 import Authorization, RawRequest

TOKENS_KEPT = 10_000
TOKEN_KEPT_FOR = 60.0  # seconds: how long a token outlives a change of the issuer's keys
SIGNING_KEYS_KEPT = 4_096


class Identified(NamedTuple):
    """A caller, and how much of the request is known to be its own words."""

    principal: Principal
    signed: frozenset[str] | None = None
    """Names of the headers that the signature covers; `None` under Bearer, which covers none."""

    def covers(self, header: str) -> bool:
        """Whether *header* counts: it is signed, or no header of this scheme can be."""
        return self.signed is None or header in self.signed


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Recent(Generic[_Key, _Value]):
    """The last *size* values used."""

    __slots__ = ("_size", "_values")

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: _Key, value: _Value) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def drop(self, key: _Key) -> None:
        self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)


class _Candidate(NamedTuple):
    """One secret that a key id may be signing with."""

    key: StaticKey
    master: bytes
    principal: Principal


class Identifier:
    """Finds out who sent a request.

    Args:
        master: The key that access keys are derived from.
        previous_master: The one before, while it is being replaced.
        keys: Every version of every access key, by key id.
        issuers: Whose tokens are accepted, by `iss`; the gateway itself among them.
        regions: Regions a signature may name; `None` is any.
        hosts: The gateway's own names, lower case; `None` is any.
        host_aliases: Names that clients dial while a proxy puts another one into Host.
    """

    def __init__(
        self,
        *,
        master: bytes,
        previous_master: bytes | None = None,
        keys: Mapping[str, tuple[StaticKey, ...]],
        issuers: Mapping[str, Issuer],
        regions: frozenset[str] | None = None,
        hosts: frozenset[str] | None = None,
        host_aliases: Sequence[str] = (),
    ) -> None:
        masters = [master] if previous_master is None else [master, previous_master]
        self._candidates = {
            key_id: [
                _Candidate(key, each, _principal_of(key)) for each in masters for key in versions
            ]
            for key_id, versions in keys.items()
        }
        self._issuers = dict(issuers)
        self._regions = regions
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._host_aliases = tuple(host_aliases)
        self._signing_keys: _Recent[tuple[bytes, str, int, str, str], bytes] = _Recent(
            SIGNING_KEYS_KEPT
        )
        self._tokens: _Recent[bytes, tuple[Principal, float]] = _Recent(TOKENS_KEPT)

    def identify(self, request: RawRequest, *, now: float) -> Identified:
        """The sender of *request*, at *now* seconds since the epoch.

        Raises:
            MissingCredentials: There is no Authorization header.
            IncompleteSignature: There are several, or it cannot be read, or the signature
                leaves out what must be signed.
            InvalidSignature: The signature, or something it covers, is wrong.
            TokenExpired: The token was good once.
            Unauthenticated: Unknown, disabled or expired key; any other fault of a token.
            UnsupportedMediaType: The signed body is encoded.
        """
        value: bytes | None = None
        for name, each in request.headers:
            if name == b"authorization":
                if value is not None:
                    raise IncompleteSignature("The header authorization occurs more than once.")
                value = each
        if value is None:
            if sigv4.is_presigned(request.raw_query):
                raise IncompleteSignature(
                    "Presigned URLs are not accepted, they put SQL into access logs; use the "
                    "Authorization header with a signature or a Bearer token."
                )
            raise MissingCredentials
        if len(value) > bearer.MAX_TOKEN + 16:
            raise IncompleteSignature("The Authorization header is too long.")
        value = value.strip(b" \t")
        if value.startswith(b"AWS4-"):
            return self._by_signature(request, sigv4.parse_authorization(value), now)
        # The name of a scheme is case-insensitive: RFC 9110, section 11.1.
        if value[:7].lower() == b"bearer ":
            return Identified(self._by_token(value[7:].lstrip(b" "), now))
        raise IncompleteSignature(
            "The Authorization header must begin with AWS4-HMAC-SHA256 or Bearer."
        )

    def _by_token(self, token: bytes, now: float) -> Principal:
        # By hash, so that the memory of a process holds no tokens.
        digest = sha256(token).digest()
        kept = self._tokens.get(digest)
        if kept is not None:
            principal, until = kept
            if now < until:
                return principal
            self._tokens.drop(digest)
        principal = bearer.verify(token, self._issuers, now=now)
        expires_at = principal.expires_at
        until = (
            now + TOKEN_KEPT_FOR if expires_at is None else min(expires_at, now + TOKEN_KEPT_FOR)
        )
        if now < until:
            self._tokens.put(digest, (principal, until))
        return principal

    def _by_signature(
        self, request: RawRequest, authorization: Authorization, now: float
    ) -> Identified:
        examined = sigv4.examine(
            request, authorization, now=now, regions=self._regions, hosts=self._hosts
        )
        candidates = self._candidates.get(authorization.key_id)
        if candidates is None:
            raise Unauthenticated(
                reason="an AWS access key; the gateway has its own"
                if authorization.key_id.startswith(("AKIA", "ASIA"))
                else "unknown key id"
            )
        usable = [each for each in candidates if _is_usable(each.key, now)]
        if not usable:
            raise Unauthenticated(reason="key is disabled or expired")
        if examined.facts.token is not None:
            raise Unauthenticated(reason="security token with a static key")
        texts = sigv4.texts_to_sign(examined, host_aliases=self._host_aliases)
        day, region = authorization.date, authorization.region
        for candidate in usable:
            key = candidate.key
            place = (candidate.master, key.key_id, key.version, day, region)
            known = self._signing_keys.get(place)
            signing_key = known or sigv4.signing_key(
                derive_secret(candidate.master, key.key_id, key.version),
                day,
                region,
                authorization.service,
            )
            if sigv4.is_signed(texts, authorization.signature, signing_key):
                # Kept only now: whoever cannot sign cannot push out what others use.
                if known is None:
                    self._signing_keys.put(place, signing_key)
                return Identified(candidate.principal, examined.facts.signed)
        raise InvalidSignature(reason="signature")


def _principal_of(key: StaticKey) -> Principal:
    return Principal(kind="key", subject=key.principal, expires_at=key.not_after, key_id=key.key_id)


def _is_usable(key: StaticKey, now: float) -> bool:
    return not key.disabled and (key.not_after is None or now < key.not_after)
