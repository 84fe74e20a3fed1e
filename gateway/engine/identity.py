"""Who is calling: from the Authorization header to a `Principal`.

One header decides the scheme: a signature (`AWS4-HMAC-SHA256`) or a token
(`Bearer`). No database is asked. Two things are kept, because computing them is most
of the cost: signing keys, which change once a day, and verified tokens, for a minute at
most. `identify` decides with what is at hand; `authenticate` also waits for the keys of
an issuer, and for the slow lane if the sender's address has failed too often.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import NamedTuple, Protocol, TypeVar

from ..core import bearer, sigv4
from ..core.bearer import ASYMMETRIC, Issuer
from ..core.errors import (
    IncompleteSignature,
    InvalidSignature,
    MissingCredentials,
    Unauthenticated,
)
from ..core.keys import (
    TEMPORARY_PREFIX,
    StaticKey,
    derive_secret,
    derive_temporary_secret,
    token_key,
    token_key_id,
)
from ..core.model import Principal
from ..core.nodes import SCHEME as NODE_SCHEME
from ..core.sigv4 import Authorization, Examined, RawRequest
from ..providers.jwks import KeySet
from .dear import DearWork

_LONGEST = bearer.MAX_TOKEN + 16
"""Bytes of an Authorization header that is looked at."""

TOKENS_KEPT = 10_000
TOKEN_KEPT_FOR = 60.0  # seconds: how long a token outlives a change of the issuer's keys
SIGNING_KEYS_KEPT = 4_096


class Identified(NamedTuple):
    """A caller, and how much of the request is known to be its own words."""

    principal: Principal
    signed: frozenset[str] | None = None
    """Names of the headers that the signature covers; `None` under Bearer, which covers none."""
    vouched: str | None = None
    """Given if another node passed the request on and vouches for its sender: the nonce."""
    until: float = 0.0
    """Seconds since the epoch: how long the same token is known to be this sender's. Only as
    long as the `epoch` of whoever says so is the same; 0 if it is to be asked each time."""

    def covers(self, header: str) -> bool:
        """Whether *header* counts: it is signed, or no header of this scheme can be."""
        return self.signed is None or header in self.signed


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Recent(OrderedDict[_Key, _Value]):
    """The last *size* values used."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def find(self, key: _Key) -> _Value | None:
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value

    def put(self, key: _Key, value: _Value) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._size:
            self.popitem(last=False)

    def drop(self, key: _Key) -> None:
        self.pop(key, None)


class _Candidate(NamedTuple):
    """One secret that a key id may be signing with."""

    key: StaticKey
    master: bytes
    principal: Principal


class Source(Protocol):
    """Where a request came from."""

    @property
    def source(self) -> str:
        """The address of the other end."""


class _Nowhere:
    source = ""


NOWHERE: Source = _Nowhere()


class _Session(NamedTuple):
    """What a verified session token says of its temporary key."""

    principal: Principal
    secret: str
    token_id: str
    until: float
    """Seconds since the epoch: when it is verified again."""


class _Slow(Exception):
    """A token has to be verified for a source that has failed too often."""

    def __init__(self, token: bytes, digest: bytes) -> None:
        super().__init__()
        self.token = token
        self.digest = digest


class Identifier:
    """Finds out who sent a request.

    Args:
        master: The key that access keys are derived from.
        previous_master: The one before, while it is being replaced.
        keys: Every version of every access key, by key id.
        issuers: Whose tokens are accepted, by `iss`; the gateway itself among them.
        signing: The gateway as the issuer of session tokens, which come with temporary keys.
        key_sets: Where keys of issuers come from that are not in the configuration, by `iss`.
        denied_subjects: Principals that are refused, whatever they prove.
        signatures: Whether signed requests are accepted at all.
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
        signing: Issuer | None = None,
        key_sets: Mapping[str, KeySet] | None = None,
        denied_subjects: frozenset[str] = frozenset(),
        signatures: bool = True,
        dear: DearWork | None = None,
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
        self._signing = {} if signing is None else {signing.issuer: signing}
        self._masters = {token_key_id(token_key(each)): each for each in masters}
        self.key_sets = dict(key_sets or {})
        for key_set in self.key_sets.values():
            key_set.on_change = self.forget_tokens
        self._denied = denied_subjects
        self._signatures = signatures
        self.dear = dear or DearWork(0)
        self._regions = regions
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._host_aliases = tuple(host_aliases)
        self._signing_keys: _Recent[tuple[bytes, str, str, str, str], bytes] = _Recent(
            SIGNING_KEYS_KEPT
        )
        self._tokens: _Recent[bytes, Identified] = _Recent(TOKENS_KEPT)
        self.epoch = object()
        """Another one as soon as a token that was good may not be good any more."""
        self._sessions: _Recent[bytes, _Session] = _Recent(TOKENS_KEPT)
        self.believe: Callable[[RawRequest, bytes, float], Identified] | None = None
        """Reads what another node of the house says of a sender, if there are any."""

    def forget_tokens(self) -> None:
        """Verify every token again: a key that one was signed with is no longer good."""
        self._tokens = _Recent(TOKENS_KEPT)
        self.epoch = object()

    async def authenticate(
        self, request: RawRequest, *, wall: Callable[[], float], source: Source = NOWHERE
    ) -> Identified:
        """The sender of *request*, once all that is needed to know it is at hand.

        Args:
            wall: Seconds since the epoch.
            source: What knows the address that the request came from; asked only if it counts.

        Raises:
            AuthUnavailable: The issuer of the token cannot be asked for its keys.
            RateLimited: The token is no good, and the source has sent many of those.
            Unauthenticated: And the others, as for `identify`.
        """
        now = wall()
        try:
            return self.identify(request, now=now, source=source)
        except bearer.UnknownKey as error:
            key_set = self.key_sets.get(error.issuer)
            if key_set is None:
                raise
            known = await key_set.obtain(error.key_id)
            if not known:
                raise self.dear.failed(source.source, error, now=wall()) from None
            return await self.authenticate(request, wall=wall, source=source)
        except _Slow as slow:
            token, digest = slow.token, slow.digest
        try:
            principal = await self.dear.run(
                source.source, lambda: bearer.verify(token, self._issuers, now=wall())
            )
        except Unauthenticated as error:
            raise self.dear.failed(source.source, error, now=wall()) from error
        return self._keep_token(digest, principal, wall())

    def identify(self, request: RawRequest, *, now: float, source: Source = NOWHERE) -> Identified:
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
        value = None
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
        digest = b""
        if value[:1] in b"Bb" and len(value) <= _LONGEST:
            # By hash, so that the memory of a process holds no tokens.
            digest = sha256(value).digest()
            tokens = self._tokens
            kept = tokens.get(digest)
            if kept is not None:
                if now < kept.until:
                    tokens.move_to_end(digest)
                    return kept
                tokens.drop(digest)
        elif self.believe is not None and value.startswith(NODE_SCHEME):
            identified = self.believe(request, value, now)
            if identified.principal.subject in self._denied:
                raise Unauthenticated(reason="subject is denied")
            return identified
        elif len(value) > _LONGEST:
            raise IncompleteSignature("The Authorization header is too long.")
        value = value.strip(b" \t")
        if value.startswith(b"AWS4-"):
            return self._by_signature(request, sigv4.parse_authorization(value), now)
        # The name of a scheme is case-insensitive: RFC 9110, section 11.1.
        if value[:7].lower() == b"bearer ":
            return self._by_token(value[7:].lstrip(b" "), digest, now, source)
        raise IncompleteSignature(
            "The Authorization header must begin with AWS4-HMAC-SHA256 or Bearer."
        )

    def _by_token(self, token: bytes, digest: bytes, now: float, source: Source) -> Identified:
        said = bearer.read(token)
        key_set = self.key_sets.get(said.issuer)
        if key_set is not None:
            key_set.touch()
        is_dear = said.algorithm in ASYMMETRIC
        if is_dear and self.dear.is_slow(source.source, now=now):
            issuer = self._issuers.get(said.issuer)
            if issuer is not None and (said.key_id in issuer.keys or None in issuer.keys):
                raise _Slow(token, digest)
        try:
            principal = bearer.verify(token, self._issuers, now=now)
        except bearer.UnknownKey:
            raise
        except Unauthenticated as error:
            if is_dear:
                raise self.dear.failed(source.source, error, now=now) from error
            raise
        return self._keep_token(digest, principal, now)

    def _keep_token(self, digest: bytes, principal: Principal, now: float) -> Identified:
        if principal.subject in self._denied:
            raise Unauthenticated(reason="subject is denied")
        until = _kept_until(principal, now)
        if not digest or now >= until:
            return Identified(principal)
        identified = Identified(principal, until=until)
        self._tokens.put(digest, identified)
        return identified

    def _by_signature(
        self, request: RawRequest, authorization: Authorization, now: float
    ) -> Identified:
        if not self._signatures:
            raise Unauthenticated(reason="signatures are switched off")
        examined = sigv4.examine(
            request, authorization, now=now, regions=self._regions, hosts=self._hosts
        )
        if authorization.key_id.startswith(TEMPORARY_PREFIX):
            return self._by_temporary_key(examined, now)
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
        if usable[0].principal.subject in self._denied:
            raise Unauthenticated(reason="subject is denied")
        texts = sigv4.texts_to_sign(examined, host_aliases=self._host_aliases)
        for candidate in usable:
            key, master = candidate.key, candidate.master
            place = (master, key.key_id, str(key.version))
            make = partial(derive_secret, master, key.key_id, key.version)
            if self._is_signed(examined, texts, place, make):
                return Identified(candidate.principal, examined.facts.signed)
        raise InvalidSignature(reason="signature")

    def _is_signed(
        self,
        examined: Examined,
        texts: Sequence[bytes],
        secret_of: tuple[bytes, str, str],
        secret: Callable[[], str],
    ) -> bool:
        """Whether the request is signed with *secret*, which is made only if it must be."""
        authorization = examined.authorization
        place = (*secret_of, authorization.date, authorization.region)
        known = self._signing_keys.find(place)
        signing_key = known or sigv4.signing_key(
            secret(), authorization.date, authorization.region, authorization.service
        )
        if not sigv4.is_signed(texts, authorization.signature, signing_key):
            return False
        # Kept only now: whoever cannot sign cannot push out what others use.
        if known is None:
            self._signing_keys.put(place, signing_key)
        return True

    def _by_temporary_key(self, examined: Examined, now: float) -> Identified:
        """The token first, then that it is this key's, then the signature by its secret."""
        token, key_id = examined.facts.token, examined.authorization.key_id
        if token is None:
            raise Unauthenticated(reason="a temporary key without its session token")
        session = self._session(token, now)
        if session.principal.key_id != key_id:
            raise Unauthenticated(reason="the session token of another key")
        texts = sigv4.texts_to_sign(examined, host_aliases=self._host_aliases)
        if not self._is_signed(
            examined, texts, (b"", key_id, session.token_id), lambda: session.secret
        ):
            raise InvalidSignature(reason="signature")
        return Identified(session.principal, examined.facts.signed)

    def _session(self, token: bytes, now: float) -> _Session:
        digest = sha256(token).digest()
        kept = self._sessions.find(digest)
        if kept is not None:
            if now < kept.until:
                return kept
            self._sessions.drop(digest)
        said = bearer.read(token)
        principal = bearer.verify(token, self._signing, now=now)
        key_id, token_id = principal.claims.get("akid"), principal.claims.get("jti")
        master = self._masters.get(said.key_id or "")
        if not isinstance(key_id, str) or not isinstance(token_id, str) or master is None:
            raise Unauthenticated(reason="a session token that names no key")
        if principal.subject in self._denied:
            raise Unauthenticated(reason="subject is denied")
        session = _Session(
            replace(principal, kind="temp-key", key_id=key_id),
            derive_temporary_secret(master, key_id, token_id),
            token_id,
            _kept_until(principal, now),
        )
        if now < session.until:
            self._sessions.put(digest, session)
        return session


def _principal_of(key: StaticKey) -> Principal:
    return Principal(kind="key", subject=key.principal, expires_at=key.not_after, key_id=key.key_id)


def _is_usable(key: StaticKey, now: float) -> bool:
    return not key.disabled and (key.not_after is None or now < key.not_after)


def _kept_until(principal: Principal, now: float) -> float:
    """Until when the result of a verification stands."""
    latest = now + TOKEN_KEPT_FOR
    return latest if principal.expires_at is None else min(principal.expires_at, latest)
