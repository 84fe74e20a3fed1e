"""Rows and bytes on their way from PostgreSQL to a caller, one batch ahead of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from ..core.errors import DatabaseError, GatewayError, ResultTooLarge
from ..core.fair_queue import FairQueue, Ticket
from ..core.model import Column, Limits
from ..core.streams import long_places, next_rows, stream_places
from ..postgres.connection import Answer
from ..postgres.copy import Take
from ..settings import PoolSettings
from .admission import Admission

Fetch = Callable[[int], Coroutine[Any, Any, tuple[Answer, int]]]
"""So many rows; the answer and the bytes that it took."""


class Share:
    """The places of one target that may be held for long, by streams and open transactions.

    A stream needs one of the streams' share and one of those that both may hold; the
    rest is for single statements. So whoever streams waits like anybody, and nobody
    waits behind streams alone.
    """

    def __init__(self, pool: PoolSettings) -> None:
        self._share = pool.stream_share
        self._streams = Admission(
            FairQueue(
                places=stream_places(pool.max_connections, self._share),
                max_waiting=pool.max_waiting,
                share=pool.share,
            )
        )
        self._long = Admission(
            FairQueue(
                places=long_places(pool.max_connections), max_waiting=pool.max_waiting, share=1.0
            )
        )

    def configure(self, pool: PoolSettings) -> None:
        """Change all limits; nobody who is in, or waits, is sent away."""
        self._share = pool.stream_share
        self._streams.configure(
            stream_places(pool.max_connections, self._share), pool.max_waiting, pool.share
        )
        self._long.configure(long_places(pool.max_connections), pool.max_waiting, 1.0)

    @property
    def streams(self) -> int:
        """Streams under way."""
        return self._streams.in_use

    @property
    def waiting(self) -> int:
        """Streams waiting for a place."""
        return self._streams.waiting

    def try_stream(self, tenant: str) -> Place | None:
        """A place for a stream, if there is one at once."""
        ticket = self._streams.try_turn(tenant)
        if ticket is None:
            return None
        held = self._long.try_turn(tenant)
        if held is None:
            self._streams.release(ticket)
            return None
        return Place(self._streams, ticket, self._long, held)

    async def stream(self, tenant: str, deadline: float) -> Place:
        """Wait for a place for a stream.

        Raises:
            QueueFull: The tenant has too many waiting.
            QueueTimeout: None came free before *deadline* (event-loop time).
        """
        ticket = await self._streams.turn(tenant, deadline)
        try:
            held = await self._long.turn(tenant, deadline)
        except BaseException:
            self._streams.release(ticket)
            raise
        return Place(self._streams, ticket, self._long, held)

    async def transaction(self, tenant: str, deadline: float) -> Place:
        """Wait for a place for an open transaction; errors as for `stream`."""
        return Place(self._long, await self._long.turn(tenant, deadline))

    def close(self) -> None:
        """Send away who waits."""
        self._streams.close()
        self._long.close()


class Place:
    """The right to hold one connection for long."""

    __slots__ = ("_admission", "_held", "_long", "_ticket")

    def __init__(
        self,
        admission: Admission,
        ticket: Ticket,
        long: Admission | None = None,
        held: Ticket | None = None,
    ) -> None:
        self._admission = admission
        self._ticket = ticket
        self._long = long
        self._held = held

    def give_back(self) -> None:
        """It is over. A second time changes nothing."""
        self._admission.release(self._ticket)
        if self._long is not None and self._held is not None:
            self._long.release(self._held)


class Rows:
    """The rows of a large result, batch by batch, from an open portal."""

    def __init__(
        self,
        columns: tuple[Column, ...],
        first: Answer,
        fetch: Fetch | None,
        *,
        received: int = 0,
        max_rows: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Begin with the *first* batch, which took *received* bytes; *fetch* brings the rest."""
        self.columns = columns
        self.count = 0
        self.truncated = False
        self.finished = False
        """Whether the last batch was taken."""
        self.refused = False
        """Whether PostgreSQL refused to go on."""
        self.command = "SELECT"
        self._first = first
        self._fetch = fetch
        self._received = received
        self._max_rows = max_rows
        self._most = limits.stream_bytes if limits is not None else 0
        self._ahead: asyncio.Task[tuple[Answer, int]] | None = None

    async def batches(self) -> AsyncIterator[Sequence[Sequence[Any]]]:
        """Each batch once; PostgreSQL works on the next while the caller reads this one."""
        answer, received = self._first, self._received
        total = received
        while True:
            rows = answer.rows
            if self._max_rows is not None and self.count + len(rows) > self._max_rows:
                rows = rows[: self._max_rows - self.count]
                self.truncated = True
            last = answer.complete or self.truncated or self._fetch is None
            if not last:
                assert self._fetch is not None
                size = next_rows(len(answer.rows), received)
                self._ahead = asyncio.get_running_loop().create_task(self._fetch(size))
                # Twice: once for the task to begin, once for the loop to send what it wrote.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            self.count += len(rows)
            if rows:
                yield rows
            if last:
                self.finished = True
                return
            assert self._ahead is not None
            ahead, self._ahead = self._ahead, None
            try:
                answer, received = await ahead
            except asyncio.CancelledError:
                self._ahead = ahead
                raise
            except DatabaseError:
                self.refused = True
                raise
            total += received
            if self._most and total > self._most:
                raise past_limit(self._most)

    async def stop(self) -> None:
        """Take no more, and leave the transaction as it is: what is being fetched may end."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await asyncio.wait([ahead])
            if ahead.cancelled() or ahead.exception() is not None:
                return
        self.finished = True

    async def close(self) -> None:
        """Give up what is still being fetched; the connection is then cleaned."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()


class Copied:
    """Rows as COPY writes them, passed on as they come."""

    def __init__(
        self,
        columns: tuple[Column, ...],
        run: Callable[[Take], Awaitable[str]],
        limits: Limits,
    ) -> None:
        self.columns = columns
        self.count = 0
        """Rows, once PostgreSQL has said how many they were."""
        self._run = run
        self._most = limits.stream_bytes

    async def run(self, take: Take) -> None:
        """Hand every piece to *take*; return when PostgreSQL has said that it was all."""
        total = 0

        async def count(piece: bytes | bytearray) -> None:
            nonlocal total
            total += len(piece)
            if self._most and total > self._most:
                raise past_limit(self._most)
            await take(piece)

        tag = await self._run(count)
        number = tag.rpartition(" ")[2]
        self.count = int(number) if number.isdigit() else 0


def cut_off() -> GatewayError:
    """The policy allows fewer rows than there are, where an answer cannot say so."""
    return ResultTooLarge(
        "the result has more rows than the policy allows",
        hint="return fewer rows, or ask for a form that says where it was cut off",
    )


def past_limit(most: int) -> GatewayError:
    """A stream passed what its grant allows."""
    return ResultTooLarge(
        f"the result is larger than the {most} bytes that the policy allows",
        hint="return fewer rows or columns, or ask for max_rows",
    )
