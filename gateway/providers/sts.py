"""Asks AWS STS who signed.

The request is rebuilt from constants; the host is `sts.<region>.amazonaws.com`, made from
a region that the configuration lists. Only tests name another endpoint, and that one
gets the same Host header.
"""

from __future__ import annotations

import asyncio

from ..core.errors import AuthUnavailable
from ..core.iam import (
    BODY,
    MAX_ANSWER,
    CallerIdentity,
    SignedIdentity,
    read_answer,
    rebuild,
    sts_host,
)
from .fetch import Fetcher, FetchError, Request

CONNECT_TIMEOUT = 1.0
TOTAL_TIMEOUT = 3.0


class CallerIdentities:
    """Finds out who signed, by asking STS once for each signature.

    Args:
        audience: What the callers sign besides, so that their signatures are good here only.
        endpoint: Instead of AWS's, for tests.
    """

    def __init__(self, fetcher: Fetcher, *, audience: str, endpoint: str | None = None) -> None:
        self._fetcher = fetcher
        self._audience = audience
        self._endpoint = endpoint
        self._running: dict[SignedIdentity, asyncio.Task[CallerIdentity]] = {}
        self.calls = 0

    def is_asking(self, signed: SignedIdentity) -> bool:
        """Whether STS is being asked about *signed* right now."""
        return signed in self._running

    async def ask(self, signed: SignedIdentity) -> CallerIdentity:
        """Who made the signature *signed*; callers with the same one share the question.

        Raises:
            Unauthenticated: Nobody that STS knows.
            AuthUnavailable: STS cannot be reached, or is throttling.
        """
        running = self._running.get(signed)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._ask(signed))
            self._running[signed] = running
            running.add_done_callback(lambda task: self._answered(signed, task))
        return await asyncio.shield(running)

    def _answered(self, signed: SignedIdentity, task: asyncio.Task[CallerIdentity]) -> None:
        self._running.pop(signed, None)
        if not task.cancelled():
            task.exception()  # seen, even if every caller has left

    async def _ask(self, signed: SignedIdentity) -> CallerIdentity:
        self.calls += 1
        request = Request(
            self._endpoint or f"https://{sts_host(signed.region)}/",
            "POST",
            rebuild(signed, self._audience),
            BODY,
            connect_timeout=CONNECT_TIMEOUT,
            total_timeout=TOTAL_TIMEOUT,
            most=MAX_ANSWER,
        )
        try:
            answer = await self._fetcher.fetch(request)
        except FetchError as error:
            raise AuthUnavailable(reason=f"STS: {error}") from error
        return read_answer(*answer)
