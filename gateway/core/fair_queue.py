"""Who goes next: a few places, many tenants, nobody starved.

Within a tenant first come is first served. Between tenants it is deficit round
robin by weight: a tenant with a thousand statements waiting delays one with a
single statement by a round, not by a thousand turns. The queue never waits and
never looks at a clock: it is told the time and returns the tickets to wake.

    >>> queue = FairQueue(places=1, max_waiting=10)
    >>> first = queue.enter("a", now=0.0, deadline=9.0)
    >>> second = queue.enter("a", now=0.1, deadline=9.0)
    >>> third = queue.enter("b", now=0.2, deadline=9.0)
    >>> first.granted, second.granted, third.granted
    (True, False, False)
    >>> [ticket.tenant for ticket in queue.release(first, now=1.0)]
    ['a']
    >>> queue.release(second, now=2.0) == [third]
    True

Deficit round robin is M. Shreedhar and G. Varghese, "Efficient Fair Queueing
Using Deficit Round Robin", 1995; a statement is a packet of length one.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Any, Final

from .errors import GatewayError, QueueFull, QueueTimeout

BATCH: Final = "batch"
"""The priority that yields to every other one, but for its share of turns."""

# An idle tenant is remembered, so that a busy one is not made anew for each statement;
# names may come from tokens, so there is an end to it.
_IDLE_TENANTS = 1_024
_SAMPLES_KNOWN = 8
_SAMPLES_WINDOW = 256
_LONGEST_RETRY = 60.0


class State(IntEnum):
    """Where a ticket stands."""

    WAITING = 0
    GRANTED = 1
    DONE = 2
    """Given back, or left before its turn."""
    EXPIRED = 3
    """Its deadline passed while it waited."""


# Read several times a turn; a member of an enum costs twice a global.
_WAITING, _GRANTED, _DONE, _EXPIRED = State


class Ticket:
    """One statement's claim to a place."""

    __slots__ = ("_line", "_tenant", "deadline", "entered", "granted", "since", "state", "waiter")

    def __init__(self, tenant: _Tenant, now: float, deadline: float) -> None:
        self._tenant = tenant
        self._line: _Line | None = None
        self.entered = now
        self.deadline = deadline
        self.state = _WAITING
        self.granted = False
        """Whether it holds a place now."""
        self.since = now
        """The moment its place was granted."""
        self.waiter: Any = None
        """For whoever waits; the queue never looks at it."""

    @property
    def tenant(self) -> str:
        """Who is charged for the turn."""
        return self._tenant.name

    @property
    def queued(self) -> float:
        """Seconds between entering and being granted."""
        return self.since - self.entered

    def __repr__(self) -> str:
        return f"<Ticket {self.tenant!r} {self.state.name.lower()}>"


class _Line:
    """The waiting tickets of one tenant in one priority."""

    __slots__ = ("credit", "live", "rank", "tickets")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.tickets: deque[Ticket] = deque()
        """In order of arrival; those that left are still in it until they are reached."""
        self.live = 0
        self.credit = 0.0

    def compact(self) -> None:
        """Forget tickets that left, once they are the greater part."""
        if not self.live:
            self.tickets.clear()
        elif len(self.tickets) > 2 * self.live + 16:
            self.tickets = deque(t for t in self.tickets if t.state is _WAITING)


class _Tenant:
    """What is known of one tenant."""

    __slots__ = ("in_use", "lines", "name", "quantum", "waiting")

    def __init__(self, name: str, quantum: float) -> None:
        self.name = name
        self.quantum = quantum
        self.in_use = 0
        self.waiting = 0
        self.lines: list[_Line | None] = [None, None]


# Keyed by tenant, because a line leaves from the middle when its last ticket does.
_Ring = OrderedDict[_Tenant, _Line]


class FairQueue:
    """Hands out `places`, one tenant after another; within a tenant, first come first served.

    Every call costs amortised constant time, whatever the number of waiting
    tickets (keeping their deadlines in order costs its logarithm).
    """

    def __init__(
        self,
        *,
        places: int,
        max_waiting: int,
        share: float = 0.75,
        weights: Mapping[str, float] | None = None,
        batch_every: int = 8,
    ) -> None:
        """Start empty.

        Args:
            places: Tickets that may be granted at once; 0 holds everybody.
            max_waiting: Tickets one tenant may have waiting.
            share: The part of the places, above 0 and up to 1, that a tenant may hold
                while a tenant below its own share waits; never less than one place.
            weights: Turns per round, 1 for tenants not named. The smallest weight
                gets one turn at a time, a tenant ten times as heavy ten in a row.
            batch_every: While both wait, one turn in so many goes to batch.
        """
        weights = dict(weights or {})
        if places < 0 or max_waiting < 0 or not 0.0 < share <= 1.0 or batch_every < 1:
            raise ValueError("places, max_waiting, share or batch_every is out of range")
        if any(not 0.0 < weight < math.inf for weight in weights.values()):
            raise ValueError("a weight must be a positive number")
        # At least one turn a visit, so that no visit is in vain and a turn costs O(1).
        smallest = min([1.0, *weights.values()])
        self._quanta = {name: weight / smallest for name, weight in weights.items()}
        self._quantum = 1.0 / smallest
        self._share = share
        self._batch_every = batch_every
        self._turns_since_batch = 0
        self._tenants: dict[str, _Tenant] = {}
        self._rings: tuple[_Ring, _Ring] = (OrderedDict(), OrderedDict())
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._entries = 0
        self._service = 0.0
        self._samples = 0
        self.max_waiting = max_waiting
        self.waiting = 0
        """Tickets waiting, of all tenants."""
        self.in_use = 0
        """Places granted and not given back."""
        self.places = places
        """May be less than `in_use` for a while after `set_places`."""
        self._cap = self._share_of(places)

    # -- coming and going --------------------------------------------------------------

    def try_enter(self, tenant: str, *, now: float, deadline: float = math.inf) -> Ticket | None:
        """A granted ticket if a place is free and nobody waits, else `None`."""
        if self.waiting or self.in_use >= self.places:
            return None
        ticket = Ticket(self._tenants.get(tenant) or self._tenant(tenant), now, deadline)
        self._grant(ticket, now)
        return ticket

    def enter(
        self, tenant: str, *, now: float, deadline: float, priority: str = "normal"
    ) -> Ticket:
        """A ticket, granted at once if a place is free and nobody waits.

        Args:
            deadline: The moment from which the ticket is of no use to its holder, on
                the same clock as *now*.
            priority: `"batch"` yields to everything else.

        Raises:
            QueueFull: The tenant has `max_waiting` tickets waiting.
            QueueTimeout: The deadline has passed, or a long queue is moving so slowly
                that it will have passed long before this ticket's turn.
        """
        if not self.waiting and self.in_use < self.places:
            ticket = self.try_enter(tenant, now=now, deadline=deadline)
            assert ticket is not None
            return ticket
        owner = self._tenant(tenant)
        try:
            if owner.waiting >= self.max_waiting:
                raise QueueFull(waiting=owner.waiting, retry_after=self._retry_after(owner))
            self._refuse_if_hopeless(owner, deadline - now)
        except GatewayError:
            self._forget_if_idle(owner)
            raise
        rank = 1 if priority == BATCH else 0
        line = owner.lines[rank]
        if line is None:
            line = owner.lines[rank] = _Line(rank)
        ticket = Ticket(owner, now, deadline)
        ticket._line = line
        if not line.live:
            line.credit = 0.0
            self._rings[rank][owner] = line
        line.tickets.append(ticket)
        line.live += 1
        owner.waiting += 1
        self.waiting += 1
        if deadline != math.inf:
            self._entries += 1
            heappush(self._deadlines, (deadline, self._entries, ticket))
        return ticket

    def release(self, ticket: Ticket, *, now: float) -> list[Ticket]:
        """Give a place back; return the tickets that were granted by it, to be woken.

        A ticket gives its place back once; again changes nothing.
        """
        if ticket.state is _GRANTED:
            if self._samples < _SAMPLES_WINDOW:
                self._samples += 1
            self._service += (now - ticket.since - self._service) / self._samples
        return self.leave(ticket, now=now)

    def leave(self, ticket: Ticket, *, now: float) -> list[Ticket]:
        """Give up waiting, or a place that was never used; return the tickets to be woken."""
        if ticket.state is _WAITING:
            self._stop_waiting(ticket, _DONE)
            return []
        if ticket.state is not _GRANTED:
            ticket.state = _DONE
            return []
        ticket.state = _DONE
        ticket.granted = False
        tenant = ticket._tenant
        tenant.in_use -= 1
        self.in_use -= 1
        if len(self._tenants) > _IDLE_TENANTS:
            self._forget_if_idle(tenant)
        return self._hand_out(now) if self.waiting else []

    def expire(self, now: float) -> list[Ticket]:
        """Drop the waiting tickets whose deadline has come; return them, to be told."""
        expired = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            ticket = heappop(deadlines)[2]
            if ticket.state is _WAITING:
                self._stop_waiting(ticket, _EXPIRED)
            if ticket.state is _EXPIRED:
                expired.append(ticket)
        return expired

    def clear(self) -> list[Ticket]:
        """Send every waiting ticket away; return them, to be told. Places in use stay so."""
        left = [t for ring in self._rings for line in ring.values() for t in line.tickets]
        left = [ticket for ticket in left if ticket.state is _WAITING]
        # Dropped by a turn that came too late, and not yet reported by `expire`.
        left += [entry[2] for entry in self._deadlines if entry[2].state is _EXPIRED]
        for ticket in left:
            if ticket.state is _WAITING:
                self._stop_waiting(ticket, _DONE)
            ticket.state = _DONE
        self._deadlines.clear()
        return left

    def set_places(self, places: int, now: float) -> list[Ticket]:
        """Have so many places from now on; return the tickets granted by new ones.

        Places in use are not taken away: with fewer than are in use, the next are
        granted when enough came back.
        """
        if places < 0:
            raise ValueError("places is out of range")
        self.places = places
        self._cap = self._share_of(places)
        return self._hand_out(now)

    def configure(self, *, max_waiting: int, share: float) -> None:
        """Change the limits of a tenant; those who wait already go on waiting."""
        if max_waiting < 0 or not 0.0 < share <= 1.0:
            raise ValueError("max_waiting or share is out of range")
        self.max_waiting = max_waiting
        self._share = share
        self._cap = self._share_of(self.places)

    # -- what is so --------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """The earliest moment at which `expire` has something to do; `None` if there is none."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2].state in (_GRANTED, _DONE):
            heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def waiting_of(self, tenant: str) -> int:
        """Tickets that *tenant* has waiting."""
        known = self._tenants.get(tenant)
        return known.waiting if known is not None else 0

    def in_use_of(self, tenant: str) -> int:
        """Places that *tenant* holds."""
        known = self._tenants.get(tenant)
        return known.in_use if known is not None else 0

    def estimated_wait(self, tenant: str) -> float | None:
        """Seconds a ticket entering now would wait, at the recent pace; `None` if unknown.

        Rather too short than too long: every other tenant is counted with one turn
        a round.
        """
        known = self._tenants.get(tenant)
        if self.waiting == 0 and self.in_use < self.places:
            return 0.0
        return self._estimate(known, known.waiting + 1 if known is not None else 1)

    # -- inside ------------------------------------------------------------------------

    def _share_of(self, places: int) -> int:
        return max(1, math.ceil(self._share * places))

    def _tenant(self, name: str) -> _Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = _Tenant(name, self._quanta.get(name, self._quantum))
            self._tenants[name] = tenant
        return tenant

    def _forget_if_idle(self, tenant: _Tenant) -> None:
        if (
            len(self._tenants) > _IDLE_TENANTS
            and not tenant.in_use
            and not tenant.waiting
            and self._tenants.get(tenant.name) is tenant
        ):
            del self._tenants[tenant.name]

    def _grant(self, ticket: Ticket, now: float) -> None:
        ticket.state = _GRANTED
        ticket.granted = True
        ticket.since = now
        ticket._tenant.in_use += 1
        self.in_use += 1

    def _stop_waiting(self, ticket: Ticket, state: State) -> None:
        """Count *ticket* out. It stays in its line, marked, until it is reached."""
        line = ticket._line
        assert line is not None, "a waiting ticket stands in a line"
        ticket.state = state
        tenant = ticket._tenant
        tenant.waiting -= 1
        self.waiting -= 1
        line.live -= 1
        if not line.live:
            del self._rings[line.rank][tenant]
            if state is not _GRANTED:
                self._forget_if_idle(tenant)
        if not line.live or len(line.tickets) > 2 * line.live + 16:
            line.compact()
        if len(self._deadlines) > 2 * self.waiting + 64:
            self._deadlines = [
                entry for entry in self._deadlines if entry[2].state in (_WAITING, _EXPIRED)
            ]
            heapify(self._deadlines)

    def _hand_out(self, now: float) -> list[Ticket]:
        granted = []
        while self.waiting and self.in_use < self.places:
            ticket = self._next(now)
            if ticket is None:
                break
            self._grant(ticket, now)
            granted.append(ticket)
        return granted

    def _next(self, now: float) -> Ticket | None:
        """The ticket whose turn it is, out of its line; `None` if all were too late."""
        normal, batch = self._rings
        if not batch:
            self._turns_since_batch = 0
            order: tuple[int, ...] = (0,)
        elif not normal:
            order = (1,)
        elif self._turns_since_batch >= self._batch_every - 1:
            order = (1, 0)
        else:
            order = (0, 1)
        # First those below their share. If all who wait are above it, the share protects
        # nobody, and an idle place would serve nobody either.
        alone = len(normal) + len(batch) == 1
        for cap in (math.inf,) if alone else (self._cap, math.inf):
            for rank in order:
                ticket = self._take(self._rings[rank], cap, now)
                if ticket is not None:
                    if rank:
                        self._turns_since_batch = 0
                    elif batch:
                        self._turns_since_batch += 1
                    return ticket
        return None

    def _take(self, ring: _Ring, cap: float, now: float) -> Ticket | None:
        """The next ticket of *ring* from a tenant that holds less than *cap* places."""
        # Passing over tenants is bounded: no more than 1/share of them can be at the cap.
        for _ in range(len(ring)):
            tenant, line = next(iter(ring.items()))
            if tenant.in_use >= cap:
                line.credit = 0.0
                ring.move_to_end(tenant)
                continue
            if line.credit < 1.0:
                line.credit += tenant.quantum
            ticket = self._pop(line, now)
            if ticket is None:
                continue  # All were too late, and the line left the ring with them.
            line.credit -= 1.0
            if line.live and line.credit < 1.0:
                ring.move_to_end(tenant)
            return ticket
        return None

    def _pop(self, line: _Line, now: float) -> Ticket | None:
        while line.live:
            ticket = line.tickets.popleft()
            if ticket.state is _WAITING:
                late = ticket.deadline <= now
                self._stop_waiting(ticket, _EXPIRED if late else _GRANTED)
                if not late:
                    return ticket
        return None

    def _estimate(self, tenant: _Tenant | None, position: int) -> float | None:
        if self._samples < _SAMPLES_KNOWN or not self.places:
            return None
        quantum = tenant.quantum if tenant is not None else self._quantum
        tenants = max(1, len(self._rings[0]) + len(self._rings[1]))
        turns = min(self.waiting + 1, math.ceil(position / quantum) * tenants)
        return max(turns, position) * self._service / self.places

    def _refuse_if_hopeless(self, tenant: _Tenant, remaining: float) -> None:
        if remaining <= 0.0:
            raise QueueTimeout(waited=0.0, retry_after=self._retry_after(tenant), left=remaining)
        if self.waiting < 4 * self.places:
            return
        # Twice, because the estimate is from the past: a wait in vain costs the caller
        # its time, but a refusal in error costs it its answer.
        estimate = self._estimate(tenant, tenant.waiting + 1)
        if estimate is not None and estimate > 2.0 * remaining:
            raise QueueTimeout(
                waited=0.0,
                retry_after=self._retry_after(tenant),
                left=remaining,
                expected=estimate,
            )

    def _retry_after(self, tenant: _Tenant) -> float:
        """Seconds until half of the tenant's line is gone; a second if the pace is unknown."""
        estimate = self._estimate(tenant, (tenant.waiting + 1) // 2)
        return 1.0 if estimate is None else min(max(estimate, 0.1), _LONGEST_RETRY)
