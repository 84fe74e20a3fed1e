"""What to do with connections: which to lend, close, keep, and when another may be opened.

Plain decisions over plain facts; `postgres/pool.py` holds the connections and the
clock. The one used last is lent first: its caches are warm, and those left over age
and are closed.

    >>> from collections import deque
    >>> class Held:
    ...     def __init__(self, name, expires): self.name, self.expires = name, expires
    ...     def is_closed(self): return False
    ...     def __repr__(self): return self.name
    >>> idle = deque([Held("young", 99.0), Held("old", 9.0)])
    >>> lend(idle, now=10.0)
    Lent(connection=young, closed=[(old, <Reason.AGE: 'age'>)])
    >>> backoff(failures=3, chance=0.5)
    0.1
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
"""Seconds. A database that is back, or a replica that was promoted, is to be found within a
second; a knock a second from each pool does not keep it from coming back."""
_DOUBLINGS = 10
_JITTER = 0.1


class Reason(StrEnum):
    """Why a connection is closed: labels of a metric."""

    AGE = "age"
    """It reached its time."""
    LOST = "lost"
    """PostgreSQL or the network had closed it."""
    BROKEN = "broken"
    """Nobody can say what state it is in."""
    DIRTY = "dirty"
    """The reset behind a statement left something, or failed."""
    ROOM = "room"
    """Another login or database needs its place, or there are fewer places now."""
    CONFIG = "config"
    """Its login or host is no longer configured so."""
    BUDGET = "budget"
    """A result passed the bytes that it may take."""
    CANCELLED = "cancelled"
    """Its reset was interrupted."""
    CLOSED = "closed"
    """The gateway stops."""


class Kept(Protocol):
    """What has to be known of an idle connection."""

    expires: float
    """The moment from which it is not lent again."""

    def is_closed(self) -> bool:
        """Whether its socket is closed."""


_C = TypeVar("_C", bound=Kept)


class Lent(NamedTuple, Generic[_C]):
    """Which connection to lend, if any, and which to close on the way."""

    connection: _C | None
    closed: Sequence[tuple[_C, Reason]] = ()


def lend(idle: deque[_C], now: float) -> Lent[_C]:
    """Take the connection to lend out of *idle*, and those before it that are no good."""
    if not idle:
        return Lent(None)
    connection = idle.pop()
    reason = _fault(connection, now)
    if reason is None:
        return Lent(connection)
    closed = [(connection, reason)]
    while idle:
        connection = idle.pop()
        reason = _fault(connection, now)
        if reason is None:
            return Lent(connection, closed)
        closed.append((connection, reason))
    return Lent(None, closed)


def sweep(idle: deque[_C], now: float) -> list[tuple[_C, Reason]]:
    """Take those out of *idle* that are no good any more, and leave the rest in order."""
    closed = []
    for _ in range(len(idle)):
        connection = idle.popleft()
        reason = _fault(connection, now)
        if reason is None:
            idle.append(connection)
        else:
            closed.append((connection, reason))
    return closed


def next_sweep(idle: deque[_C]) -> float | None:
    """The moment at which the first of *idle* reaches its time; `None` if there is none."""
    return min((each.expires for each in idle), default=None)


def _fault(connection: Kept, now: float) -> Reason | None:
    if connection.is_closed():
        return Reason.LOST
    return Reason.AGE if connection.expires <= now else None


def on_return(
    *, clean: bool, broken: bool, retired: bool, surplus: bool, expires: float, now: float
) -> Reason | None:
    """Why a connection that comes back is closed; `None` if it is kept.

    Args:
        clean: Its reset succeeded and found nothing left.
        broken: It must not be used again, whatever its reset said.
        retired: Its pool takes nothing back.
        surplus: More connections are open than there may be.
    """
    if broken:
        return Reason.BROKEN
    if not clean:
        return Reason.DIRTY
    if retired:
        return Reason.CONFIG
    if surplus:
        return Reason.ROOM
    return Reason.AGE if expires <= now else None


def expiry(opened: float, lifetime: float, chance: float) -> float:
    """When a connection opened at *opened* is to be closed.

    Up to a tenth before *lifetime* is over, by *chance* (0 up to 1), so that a pool
    that was opened at once is not closed at once.
    """
    return opened + lifetime * (1.0 - _JITTER * chance)


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait before connecting after so many *failures* in a row.

    Full jitter: anything from none to the whole, by *chance* (0 up to 1). See M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if failures <= 0:
        return 0.0
    return chance * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, _DOUBLINGS))


class Seats:
    """How many sessions PostgreSQL may have for one target, and who waits for one.

    A session takes its seat from the start of its login until PostgreSQL has ended it: one
    that was closed in the middle of a statement lives on for a moment, and counts.
    """

    __slots__ = ("closing", "limit", "used", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        """Seats taken; more than `limit` for a while after it was lowered."""
        self.closing = 0
        """Of those, sessions that are being closed."""
        self.waiting = 0
        """Sessions that are to be opened as soon as there is a seat."""

    def enter(self) -> bool:
        """Whether a session may be opened at once; if not, it waits."""
        if self.used < self.limit and not self.waiting:
            self.used += 1
            return True
        self.waiting += 1
        return False

    def give_up(self) -> None:
        """One that waited waits no more."""
        self.waiting -= 1

    def leave(self) -> int:
        """A session has ended, or was never opened; how many that waited may be opened."""
        self.used -= 1
        return self._seat()

    def set_limit(self, limit: int) -> int:
        """Have so many seats from now on; how many that waited may be opened."""
        self.limit = limit
        return self._seat()

    def _seat(self) -> int:
        seated = max(0, min(self.waiting, self.limit - self.used))
        self.waiting -= seated
        self.used += seated
        return seated

    @property
    def to_spare(self) -> int:
        """How many idle connections have to go.

        One for each session that waits and that nobody on the way out makes room for;
        more, if there are more sessions than seats.
        """
        over = max(0, self.used - self.limit)
        return max(0, self.waiting + over - self.closing)
