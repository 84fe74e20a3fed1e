"""The public keys of an issuer, fetched from its JWK set and kept.

They are fresh for five minutes, then fetched again in the background while the old ones
go on working; while the issuer is down they work for an hour. A failed fetch empties
nothing. A token with a key that is not known forces a fetch, one at a time and one in
thirty seconds, or anybody could make the gateway hammer the issuer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from ..core.bearer import MAX_JWKS, PublicKey, read_jwks
from ..core.errors import AuthUnavailable
from .fetch import Fetcher, FetchError, Request

_chance = random.Random()

FRESH_FOR = 300.0  # seconds
COOL_DOWN = 30.0  # seconds between two fetches for keys that are not known
RETRY_AFTER = (1.0, 30.0)  # seconds: the first and the longest pause after a failed fetch


class KeySet:
    """The keys of one issuer.

    Args:
        url: Of the JWK set; from the configuration alone.
        stale_for: Seconds that keys work after the last good fetch.
        on_change: Called when a key went away or was replaced: what it verified is void.
    """

    def __init__(
        self,
        url: str,
        fetcher: Fetcher,
        *,
        stale_for: float = 3_600.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.url = url
        self.stale_for = stale_for
        self.on_change = on_change
        self.keys: dict[str | None, PublicKey] = {}
        """By `kid`; always the same object, so that an `Issuer` may hold it."""
        self.fetches = 0
        self.failures = 0
        self._fetcher = fetcher
        self._fetched_at: float | None = None
        self._next_try = 0.0
        self._next_forced = 0.0
        self._running: asyncio.Task[bool] | None = None

    def touch(self) -> None:
        """Before the keys are used: fetch old ones again behind the scenes, drop dead ones."""
        if self._fetched_at is None:
            return
        now = asyncio.get_running_loop().time()
        age = now - self._fetched_at
        if age >= self.stale_for:
            self._replace({})
            self._fetched_at = None
        elif age >= FRESH_FOR and now >= self._next_try:
            self._fetch()

    async def obtain(self, key_id: str | None) -> bool:
        """Whether the key *key_id* is known, after a fetch if one may be made now.

        Raises:
            AuthUnavailable: The issuer cannot be asked, so nobody knows.
        """
        if key_id in self.keys:
            return True
        loop = asyncio.get_running_loop()
        running = self._running
        if running is None:
            now = loop.time()
            if self._fetched_at is None:
                if now < self._next_try:
                    raise AuthUnavailable(
                        retry_after=self._next_try - now, reason="no keys of the issuer yet"
                    )
            elif now < self._next_forced:
                return False
            self._next_forced = now + COOL_DOWN
            running = self._fetch()
        # Shielded: one of the waiters may leave, the others still want the answer.
        if not await asyncio.shield(running):
            raise AuthUnavailable(reason="the keys of the issuer cannot be fetched")
        return key_id in self.keys

    def _fetch(self) -> asyncio.Task[bool]:
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._refresh())
        return self._running

    async def _refresh(self) -> bool:
        loop = asyncio.get_running_loop()
        self.fetches += 1
        try:
            request = Request(self.url, headers=[("accept", "application/json")], most=MAX_JWKS)
            answer = await self._fetcher.fetch(request)
            if answer.status != 200:
                raise FetchError(f"status {answer.status}")
            found = read_jwks(answer.body)
            if not found:
                raise FetchError("no usable key")
        except (FetchError, ValueError):
            self.failures += 1
            low, high = RETRY_AFTER
            pause = min(high, low * 2 ** min(self.failures - 1, 10))
            self._next_try = loop.time() + pause * _chance.uniform(0.5, 1.0)
            return False
        finally:
            self._running = None
        self.failures = 0
        self._fetched_at = loop.time()
        self._next_try = 0.0
        self._replace(found)
        return True

    def _replace(self, found: dict[str | None, PublicKey]) -> None:
        gone = any(
            key_id not in found or found[key_id].key != key.key for key_id, key in self.keys.items()
        )
        self.keys.clear()
        self.keys.update(found)
        if gone:
            self.on_change()
