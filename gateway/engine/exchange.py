"""A signature of sts:GetCallerIdentity becomes a token of the gateway's own and a temporary key.

In this order, the cheap first: the region is one of ours, the clock fits, the signature is
new, STS says who it was, the account is one of ours, and some rule means that principal.
What comes back lives for a quarter of an hour and is stored nowhere: any node that has
the master key verifies it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..core import iam
from ..core.bearer import GATEWAY_AUDIENCE, GATEWAY_ISSUER, SIGNING_AUDIENCE, make_token
from ..core.errors import AuthUnavailable, Forbidden, InvalidRequest, NotFound, Unauthenticated
from ..core.iam import CallerIdentity, SignedIdentity
from ..core.keys import (
    KEY_ID_RANDOM_BYTES,
    derive_temporary_secret,
    new_temporary_key_id,
    token_key,
    token_key_id,
)
from ..core.model import Json, Principal
from ..core.policy import Rule, has_rule
from ..providers.sts import CallerIdentities
from ..settings import Settings
from .dear import DearWork


class Issued(NamedTuple):
    """What an exchange gave."""

    subject: str
    token: str
    key_id: str
    secret: str
    session_token: str
    expires_at: int
    """Seconds since the epoch."""


def issue(master: bytes, subject: str, *, now: float, ttl: int, claims: dict[str, Json]) -> Issued:
    """A bearer token and a temporary key for *subject*, good for *ttl* seconds."""
    key = token_key(master)
    key_id = new_temporary_key_id(secrets.token_bytes(KEY_ID_RANDOM_BYTES))
    token_id = secrets.token_urlsafe(12)

    def token(audience: str, more: dict[str, Json]) -> str:
        return make_token(
            key=key,
            kid=token_key_id(key),
            issuer=GATEWAY_ISSUER,
            subject=subject,
            audience=audience,
            now=int(now),
            ttl=ttl,
            claims={**claims, **more},
        )

    return Issued(
        subject,
        token(GATEWAY_AUDIENCE, {"jti": secrets.token_urlsafe(12)}),
        key_id,
        derive_temporary_secret(master, key_id, token_id),
        token(SIGNING_AUDIENCE, {"jti": token_id, "akid": key_id}),
        int(now) + ttl,
    )


class IamExchange:
    """Makes tokens for AWS principals.

    Args:
        settings: `iam`, `tokens`, the master key; the rules say who may come at all.
        wall: Seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        identities: CallerIdentities,
        dear: DearWork,
        wall: Callable[[], float],
        *,
        seen: iam.Seen | None = None,
    ) -> None:
        self._settings = settings
        self._identities = identities
        self._dear = dear
        self._wall = wall
        self.seen = seen or iam.Seen()
        """Signatures that were used; it outlives a change of the configuration."""

    @property
    def rules(self) -> Sequence[Rule]:
        """Who may come."""
        return self._settings.policy

    async def exchange(self, signed: SignedIdentity, *, source: str) -> Issued:
        """What the signer of *signed* gets.

        Args:
            source: The address that the request came from.

        Raises:
            NotFound: The exchange is not switched on.
            InvalidRequest: The region is not one of ours.
            Unauthenticated: Nobody that STS knows, too old, or used before.
            Forbidden: Known to STS, and none of ours.
            AuthUnavailable: STS cannot be asked; the same signature may be sent again.
            RateLimited: It was no good, and the source has sent many of those.
        """
        settings = self._settings.iam
        if not settings.enabled:
            raise NotFound("there is nothing at this path")
        if signed.region not in settings.regions:
            raise InvalidRequest("the region is not one of this gateway's", field="region")
        now = self._wall()
        iam.check_clock(signed, now=now)
        try:
            who = await self._dear.wait(source, lambda: self._identity(signed), now=now)
        except Unauthenticated as error:
            raise self._dear.failed(source, error, now=self._wall()) from error
        principal = self._principal(who)
        now = self._wall()
        claims: dict[str, Json] = {"auth": "iam", **principal.claims}
        if who.session is not None:
            claims["sid"] = who.session
        return issue(
            self._settings.auth.master_key,
            who.subject,
            now=now,
            ttl=self._settings.tokens.ttl,
            claims=claims,
        )

    async def _identity(self, signed: SignedIdentity) -> CallerIdentity:
        # Whoever sends it while STS is being asked shares the answer, nobody afterwards.
        if not self._identities.is_asking(signed):
            self.seen.claim(signed.signature, now=self._wall())
        try:
            return await self._identities.ask(signed)
        except AuthUnavailable:
            self.seen.forget(signed.signature)
            raise

    def _principal(self, who: CallerIdentity) -> Principal:
        if who.account not in self._settings.iam.accounts:
            raise Forbidden("not authorized", reason="account is not configured")
        if who.subject in self._settings.tokens.denied_subjects:
            raise Forbidden("not authorized", reason="subject is denied")
        claims: dict[str, Json] = {"acct": who.account}
        if who.role_id is not None:
            claims["role_id"] = who.role_id
        principal = Principal("iam", who.subject, f"sts:{who.account}", who.session, claims)
        if not has_rule(principal, self.rules):
            raise Forbidden("not authorized", reason="no rule for the principal")
        return principal
