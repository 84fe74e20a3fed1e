"""Waiting for a turn: the fair queue, with futures and a clock.

    ticket = admission.try_turn(tenant) or await admission.turn(tenant, deadline)
    try:
        ...
    finally:
        admission.release(ticket)

The queue decides who goes next (core/fair_queue.py); here its decisions wake
tasks. One timer serves all that wait: the earliest deadline arms it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from ..core.errors import Draining, GatewayError, QueueTimeout
from ..core.fair_queue import FairQueue, Ticket


class Admission:
    """Lets as many in as the queue has places; the others wait, in its order.

    Belongs to the event loop that uses it first. Times are the loop's.
    """

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._places = queue.places
        self._paused = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._time: Callable[[], float] = self._first_time
        """The loop's clock, as soon as the loop is known."""

    @property
    def waiting(self) -> int:
        """Statements waiting for a turn."""
        return self._queue.waiting

    @property
    def in_use(self) -> int:
        """Turns taken and not given back."""
        return self._queue.in_use

    @property
    def places(self) -> int:
        """Turns that may be taken at once, when not paused."""
        return self._places

    @property
    def paused(self) -> bool:
        """Whether nobody is let in until `resume`."""
        return self._paused

    @property
    def queue(self) -> FairQueue:
        """The queue itself, to be looked at."""
        return self._queue

    def try_turn(self, tenant: str, deadline: float = math.inf) -> Ticket | None:
        """A turn, if one can be had without waiting.

        Raises:
            Draining: After `close`.
        """
        if self._closed:
            raise Draining
        queue = self._queue
        if queue.waiting or queue.in_use >= queue.places:
            return None
        return queue.try_enter(tenant, now=self._time(), deadline=deadline)

    async def turn(self, tenant: str, deadline: float, priority: str = "normal") -> Ticket:
        """Wait for a turn; it is the caller's until `release`.

        A caller cancelled while it waits leaves the queue, and gives its turn on if it
        had just been granted.

        Args:
            deadline: A moment of the loop's clock.
            priority: `"normal"` or `"batch"`.

        Raises:
            QueueFull: The tenant has too many waiting already.
            QueueTimeout: No turn before *deadline*, or none to be expected.
            Draining: After `close`.
        """
        if self._closed:
            raise Draining
        queue = self._queue
        ticket = queue.enter(tenant, now=self._time(), deadline=deadline, priority=priority)
        if ticket.granted:
            return ticket
        # The error is the future's result, not its exception: a waiter that is cancelled
        # in the same turn of the loop never looks, and asyncio would complain in the log.
        waiter: asyncio.Future[GatewayError | None] = self._running().create_future()
        ticket.waiter = waiter
        self._arm(deadline)
        try:
            error = await waiter
        except BaseException:
            self._wake(queue.leave(ticket, now=self._time()))
            raise
        finally:
            ticket.waiter = None
        if error is not None:
            raise error
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Give the turn to whoever is next. A second time changes nothing."""
        granted = self._queue.release(ticket, now=self._time())
        if granted:
            self._wake(granted)

    def set_places(self, places: int) -> None:
        """Allow so many turns at once from now on; none is taken away."""
        self._places = places
        if not self._paused:
            self._wake(self._queue.set_places(places, self._time()))

    def configure(self, places: int, max_waiting: int, share: float) -> None:
        """Change all limits; nobody who is in, or waits, is sent away."""
        self._queue.configure(max_waiting=max_waiting, share=share)
        if places != self._places:
            self.set_places(places)

    def pause(self) -> None:
        """Let nobody in until `resume`; those inside stay, those outside wait."""
        self._paused = True
        self._queue.set_places(0, self._time())

    def resume(self) -> None:
        """Let in again."""
        self._paused = False
        self._wake(self._queue.set_places(self._places, self._time()))

    def close(self) -> None:
        """Let nobody in any more, and send those away who wait. Turns taken stay good."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for ticket in self._queue.clear():
            _settle(ticket, Draining())

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _first_time(self) -> float:
        self._time = self._running().time
        return self._time()

    def _wake(self, granted: list[Ticket]) -> None:
        for ticket in granted:
            # A waiter that is already cancelled gives its turn on when its task runs.
            waiter: asyncio.Future[GatewayError | None] | None = ticket.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _arm(self, when: float) -> None:
        timer = self._timer
        if when == math.inf or (timer is not None and timer.when() <= when):
            return
        if timer is not None:
            timer.cancel()
        self._timer = self._running().call_at(when, self._expire, when)

    def _expire(self, when: float) -> None:
        self._timer = None
        # A timer may fire a clock tick early; what was due at *when* is due.
        now = max(when, self._time())
        for ticket in self._queue.expire(now):
            _settle(ticket, QueueTimeout(waited=now - ticket.entered))
        following = self._queue.next_deadline
        if following is not None:
            self._arm(following)


def _settle(ticket: Ticket, error: GatewayError | None) -> None:
    waiter: asyncio.Future[GatewayError | None] | None = ticket.waiter
    if waiter is not None and not waiter.done():
        waiter.set_result(error)
