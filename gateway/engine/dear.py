"""Dear work for callers that nobody knows yet: public-key verification and questions to STS.

Whoever fails at it again and again, by address, gets it done in a slow lane: one after the
other, off the event loop, and a failure there is answered with "come later". A request
that verifies is never refused for the failures of others, because key ids are public and
a load balancer is one address; it only waits. Work that costs microseconds (signatures,
the gateway's own tokens, tokens seen before) is never limited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from ..core.errors import RateLimited, Unauthenticated
from ..core.throttle import Buckets

SOURCES_KEPT = 10_000
T = TypeVar("T")


class _Lane:
    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class DearWork:
    """Who may have dear work done at once, and who waits.

    Args:
        limit: Failures a minute from one source; 0 is no limit.
    """

    def __init__(self, limit: int) -> None:
        self._rate, self._burst = limit / 60, float(limit)
        self._failures = Buckets(size=SOURCES_KEPT)
        self._lanes: dict[str, _Lane] = {}
        self._thread: ThreadPoolExecutor | None = None

    def is_slow(self, source: str, *, now: float) -> bool:
        """Whether *source* has failed too often of late."""
        return self._burst > 0 and self._failures.is_empty(
            source, rate=self._rate, burst=self._burst, now=now
        )

    def failed(self, source: str, error: Unauthenticated, *, now: float) -> Exception:
        """Remember a failure of *source*; return what to answer."""
        if self._burst <= 0:
            return error
        wait = self._failures.take(source, rate=self._rate, burst=self._burst, now=now)
        return RateLimited(retry_after=wait) if wait > 0 else error

    async def run(self, source: str, work: Callable[[], T]) -> T:
        """*work* in the slow lane of *source*, in a thread."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="slow-lane")
        async with self.lane(source):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def wait(self, source: str, work: Callable[[], Awaitable[T]], *, now: float) -> T:
        """*work* at once, or in the slow lane if *source* is slow."""
        if not self.is_slow(source, now=now):
            return await work()
        async with self.lane(source):
            return await work()

    @asynccontextmanager
    async def lane(self, source: str) -> AsyncIterator[None]:
        """Alone among all of *source*, first come first served."""
        lane = self._lanes.setdefault(source, _Lane())
        lane.users += 1
        try:
            async with lane.lock:
                yield
        finally:
            lane.users -= 1
            if not lane.users:
                self._lanes.pop(source, None)

    def close(self) -> None:
        """Start nothing any more."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
