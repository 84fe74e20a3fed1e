"""The life of a transaction that stays open across requests, and the id it is known by.

    >>> move(State.IDLE, Event.STARTED)
    <State.RUNNING: 'running'>
    >>> move(State.ENDED, Event.STARTED)
    Traceback (most recent call last):
    gateway.core.transaction.NotAMove: an ended transaction cannot be started

Two limits bound it. The idle limit runs between two calls, the total limit always;
the earlier of both is when it ends if nobody calls. A node that shuts down makes both
short, and what ends then ends for that reason.

    >>> limits = Limits(idle=180.0, ends=1_000.0)
    >>> limits.expires(10.0), limits.expires(900.0), limits.over(1_000.0).name
    (190.0, 1000.0, 'OUTLIVED')

An id says which boot of which worker on which node made it, and is signed, so that any
node can tell an id of the house from an invented one, and whom to ask for it.
"""

from __future__ import annotations

import base64
import hmac
from enum import Enum
from hashlib import sha256
from typing import Final, NamedTuple

BOOT_BYTES: Final = 6
RANDOM_BYTES: Final = 12
_MAC_BYTES = 12
_RAW_BYTES = BOOT_BYTES + 2 + 1 + RANDOM_BYTES + _MAC_BYTES


class State(Enum):
    """Where a transaction stands between and during its calls."""

    IDLE = "idle"
    RUNNING = "running"
    """A call is on its connection."""
    FAILED = "failed"
    """PostgreSQL refused its last statement: it takes a rollback, also to a savepoint."""
    ENDED = "ended"


class Event(Enum):
    """What can happen to one; the values of those that end it are labels of a metric."""

    STARTED = "started"
    """A call has got its connection."""
    FINISHED = "finished"
    """The call is over and the transaction goes on."""
    REFUSED = "refused"
    """The call is over; PostgreSQL refused what it ran."""

    COMMITTED = "committed"
    """Its caller asked for it."""
    ROLLED_BACK = "rolled_back"
    """Its caller asked for it."""
    BROKEN = "failed"
    """Its end was asked for and went wrong."""
    HANGUP = "hangup"
    """The caller of a running statement went away."""
    LOST = "lost"
    """Its connection broke."""
    EXPIRED = "expired"
    """Nobody called for its idle limit."""
    OUTLIVED = "outlived"
    """It reached its total limit."""
    DRAINED = "drained"
    """Its node was shut down."""
    REMOVED = "removed"
    """Its target is no longer configured."""


_MOVES: dict[tuple[State, Event], State] = {
    (State.IDLE, Event.STARTED): State.RUNNING,
    (State.FAILED, Event.STARTED): State.RUNNING,
    (State.RUNNING, Event.FINISHED): State.IDLE,
    (State.RUNNING, Event.REFUSED): State.FAILED,
    # Its end is a call like any other.
    (State.RUNNING, Event.COMMITTED): State.ENDED,
    (State.RUNNING, Event.ROLLED_BACK): State.ENDED,
    (State.RUNNING, Event.BROKEN): State.ENDED,
    (State.RUNNING, Event.HANGUP): State.ENDED,
    (State.RUNNING, Event.LOST): State.ENDED,
    # The idle limit does not run during a call, so only the total one can end it there:
    # the statement is cancelled at that moment, then the transaction is rolled back.
    (State.IDLE, Event.EXPIRED): State.ENDED,
    (State.FAILED, Event.EXPIRED): State.ENDED,
    (State.IDLE, Event.OUTLIVED): State.ENDED,
    (State.FAILED, Event.OUTLIVED): State.ENDED,
    (State.RUNNING, Event.OUTLIVED): State.ENDED,
    # A call that runs is let finish, or cancelled at the end of the grace time; either
    # way it is over before the transaction is.
    (State.IDLE, Event.DRAINED): State.ENDED,
    (State.FAILED, Event.DRAINED): State.ENDED,
    (State.RUNNING, Event.DRAINED): State.ENDED,
    (State.IDLE, Event.REMOVED): State.ENDED,
    (State.FAILED, Event.REMOVED): State.ENDED,
    (State.RUNNING, Event.REMOVED): State.ENDED,
}


class NotAMove(Exception):
    """An event that cannot happen in that state: a defect of whoever reports it."""


def move(state: State, event: Event) -> State:
    """The state after *event*.

    Raises:
        NotAMove: It cannot happen in *state*.
    """
    following = _MOVES.get((state, event))
    if following is None:
        article = "an" if state.value[0] in "aeiou" else "a"
        raise NotAMove(f"{article} {state.value} transaction cannot be {event.value}")
    return following


_ENDS = frozenset(event for (_, event), state in _MOVES.items() if state is State.ENDED)


def is_end(event: Event) -> bool:
    """Whether the transaction is over with *event*."""
    return event in _ENDS


class Limits(NamedTuple):
    """Until when a transaction may stay open; moments and lengths of one clock, seconds."""

    idle: float
    """Without a call."""
    ends: float
    """The moment at which it is over, whatever happens."""
    closing: bool = False
    """Whether the node that holds it is being shut down."""

    def expires(self, now: float) -> float:
        """When it ends if nobody calls after *now*."""
        return min(now + self.idle, self.ends)

    def over(self, now: float) -> Event:
        """What it is that ends it at *now*, nobody having called."""
        if self.closing:
            return Event.DRAINED
        return Event.OUTLIVED if now >= self.ends else Event.EXPIRED

    def closed(self, *, idle: float, ends: float) -> Limits:
        """The same for a node that shuts down: never longer than they were."""
        return Limits(min(self.idle, idle), min(self.ends, ends), True)


_TOLD: dict[Event, str] = {
    Event.COMMITTED: "Transaction was committed.",
    Event.ROLLED_BACK: "Transaction was rolled back.",
    Event.BROKEN: "One previous call resulted in a termination of your transaction.",
    Event.HANGUP: "Its caller went away; it was rolled back.",
    Event.LOST: "One previous call resulted in a termination of your transaction.",
    # The first sentence is AWS's (Aurora User Guide, "Troubleshooting Amazon RDS Data API").
    Event.EXPIRED: "Transaction may be expired. No call came within its idle limit; "
    "it was rolled back.",
    Event.OUTLIVED: "Transaction may be expired. It reached its total limit; it was rolled back.",
    Event.DRAINED: "The node was shut down; it was rolled back.",
    Event.REMOVED: "Its target is no longer configured; it was rolled back.",
}


def told(event: Event) -> str:
    """What later calls on the id are told of the *event* that ended the transaction."""
    return _TOLD[event]


class TransactionId(NamedTuple):
    """What an id says to whoever can read its signature."""

    boot: bytes
    """Random for each start of a worker, 6 bytes: what an earlier one held is gone."""
    node: int
    worker: int


class TransactionIds:
    """Makes and reads the ids of one worker; all nodes of a house read each other's.

    Args:
        master: The master key, which all nodes share.
        boot: 6 random bytes.
        node: 0 to 65,535.
        worker: 0 to 255.
    """

    def __init__(self, master: bytes, *, boot: bytes, node: int = 0, worker: int = 0) -> None:
        if len(boot) != BOOT_BYTES:
            raise ValueError(f"a boot is {BOOT_BYTES} random bytes")
        self._key = hmac.digest(master, b"gw/transaction/v1", "sha256")
        self._prefix = boot + node.to_bytes(2, "big") + worker.to_bytes(1, "big")
        self.own = TransactionId(boot, node, worker)
        """What the ids made here say."""

    def _sign(self, raw: bytes) -> bytes:
        return hmac.digest(self._key, raw, sha256)[:_MAC_BYTES]

    def new(self, random: bytes) -> str:
        """An id from 12 random bytes: 44 characters, base64url."""
        if len(random) != RANDOM_BYTES:
            raise ValueError(f"an id is made of {RANDOM_BYTES} random bytes")
        raw = self._prefix + random
        return base64.urlsafe_b64encode(raw + self._sign(raw)).decode("ascii")

    def read(self, id: str) -> TransactionId | None:
        """What *id* says; `None` if it was not made with this master key."""
        if len(id) != _RAW_BYTES // 3 * 4:
            return None
        try:
            raw = base64.b64decode(id, altchars=b"-_", validate=True)
        except ValueError:
            return None
        signed, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not hmac.compare_digest(self._sign(signed), mac):
            return None
        node = int.from_bytes(signed[BOOT_BYTES : BOOT_BYTES + 2], "big")
        return TransactionId(signed[:BOOT_BYTES], node, signed[BOOT_BYTES + 2])
