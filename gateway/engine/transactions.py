"""Transactions that stay open across requests: who holds them, until when.

The table of what can happen to one is `core/transaction.py`; here are the leases, the
timers, and the tasks that wait. An id is good for the principal, the target and the
login that it was made for. Whatever does not match is the same "not found". Calls on
one id run one after the other.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from typing import NamedTuple

from ..core.errors import InvalidRequest, QueueTimeout, TransactionGone
from ..core.fair_queue import Ticket
from ..core.model import Ask, Grant, OpenTransaction, Principal, TransactionMode
from ..core.observation import TransactionEnded, TransactionOpened
from ..core.transaction import (
    BOOT_BYTES,
    RANDOM_BYTES,
    Event,
    Limits,
    State,
    TransactionIds,
    is_end,
    move,
    told,
)
from .targets import Lease, Target

ENDED_KEPT = 10_000


class Ended(NamedTuple):
    """What is remembered of a transaction that is over."""

    subject: str
    event: Event


class Held:
    """One open transaction."""

    __slots__ = (
        "born", "database", "ending", "fresh", "grant", "id", "lease", "limits", "lock", "mode",
        "path", "room", "schema", "state", "subject", "target", "timer",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        *,
        subject: str,
        target: Target,
        grant: Grant,
        lease: Lease,
        room: Ticket,
        limits: Limits,
        born: float,
        mode: TransactionMode,
        schema: str | None,
    ) -> None:
        self.id = id
        self.subject = subject
        self.target = target
        self.grant = grant
        self.database = grant.database or target.settings.database
        self.lease = lease
        self.room = room
        self.lock = asyncio.Lock()
        self.limits = limits
        self.born = born
        self.mode = mode
        self.schema = schema
        """The search_path that it began with, if not the session's own."""
        self.path: str | None = None
        """The search_path that it had before a statement brought its own."""
        self.fresh = True
        """Nothing has run in it: to begin it anew is to lose nothing."""
        self.state = State.IDLE
        self.ending: Event | None = None
        """What ends it as soon as the call that runs is over."""
        self.timer: asyncio.TimerHandle | None = None


class Transactions:
    """The open transactions of this node."""

    def __init__(self, *, master: bytes, node: int = 0, worker: int = 0) -> None:
        boot = secrets.token_bytes(BOOT_BYTES)
        self.ids = TransactionIds(master, boot=boot, node=node, worker=worker)
        self.open: dict[str, Held] = {}
        self.none_open = asyncio.Event()
        """Set while no transaction is open."""
        self.none_open.set()
        self.asks_others = False
        """Whether the node that made an id is asked before it is looked for here."""
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._closing: tuple[float, float] | None = None

    def new_id(self) -> str:
        """A fresh id, 44 characters, base64url."""
        return self.ids.new(secrets.token_bytes(RANDOM_BYTES))

    async def room(self, target: Target, grant: Grant, deadline: float) -> Ticket:
        """Wait until one more transaction may be open on *target*, in a queue like any other.

        Raises:
            QueueFull: The tenant has too many waiting.
            QueueTimeout: None ended before *deadline* (event-loop time).
            Draining: The node is shutting down.
        """
        begins = target.begins
        return begins.try_turn(grant.tenant, deadline) or await begins.turn(
            grant.tenant, deadline, grant.limits.priority
        )

    def give_room(self, target: Target, room: Ticket) -> None:
        """A transaction that had *room* on *target* is over, or never began."""
        target.begins.release(room)
        target.tell_if_quiet()

    def add(
        self, *, principal: Principal, target: Target, grant: Grant, lease: Lease, room: Ticket,
        idle_timeout: float, mode: TransactionMode, schema: str | None,
    ) -> Held:  # fmt: skip
        """Take a transaction in that has just begun on *lease*; *room* was taken before."""
        now = asyncio.get_running_loop().time()
        limits = Limits(idle_timeout, now + target.settings.transactions.max_lifetime)
        if self._closing is not None:
            limits = limits.closed(idle=self._closing[0], ends=self._closing[1])
        held = Held(
            self.new_id(), subject=principal.subject, target=target, grant=grant, lease=lease,
            room=room, limits=limits, born=now, mode=mode, schema=schema,
        )  # fmt: skip
        self.open[held.id] = held
        self.none_open.clear()
        target.observer.happened(TransactionOpened(target.name))
        self._arm(held)
        return held

    def find(self, id: str, principal: Principal, ask: Ask) -> Held:
        """The open transaction *id* of *principal*.

        Raises:
            TransactionGone: It is over, or it is not this principal's.
        """
        held = self.open.get(id)
        if held is None or held.subject != principal.subject:
            ended = self._ended.get(id)
            if ended is not None and ended.subject == principal.subject:
                raise self._gone(id)
            made = self.ids.read(id)
            if made is None:
                # What was never an id of the house is not repeated.
                raise TransactionGone("Transaction is not found.")
            if self.asks_others and made.boot != self.ids.own.boot:
                raise TransactionGone(
                    f"Transaction {id} is not found. The node that held it is gone; "
                    "unless it was committed before, it was rolled back."
                )
            raise TransactionGone(f"Transaction {id} is not found.")
        if ask.database is not None and ask.database != held.database:
            raise InvalidRequest(
                f"the transaction is on database {held.database}, not on {ask.database}",
                field="database",
                hint="name the database when the transaction begins, or leave it out",
            )
        return held

    def is_busy(self, id: str, principal: Principal) -> bool:
        """Whether a call of *principal* runs in *id* at this moment."""
        held = self.open.get(id)
        return held is not None and held.subject == principal.subject and held.lock.locked()

    def _gone(self, id: str) -> TransactionGone:
        ended = self._ended.get(id)
        reason = f" {told(ended.event)}" if ended is not None else ""
        return TransactionGone(f"Transaction {id} is not found.{reason}")

    async def enter(self, held: Held, deadline: float) -> float:
        """Wait for the calls before on the same id; stop the idle timer.

        Returns:
            The earlier of *deadline* (event-loop time) and the transaction's own end.

        Raises:
            QueueTimeout: They took longer than *deadline*.
            TransactionGone: One of them ended the transaction.
        """
        loop = asyncio.get_running_loop()
        entered = loop.time()
        try:
            async with asyncio.timeout_at(deadline):
                await held.lock.acquire()
        except TimeoutError:
            raise QueueTimeout(waited=loop.time() - entered) from None
        if held.id not in self.open:
            held.lock.release()
            raise self._gone(held.id)
        held.state = move(held.state, Event.STARTED)
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        return min(deadline, held.limits.ends)

    def leave(self, held: Held, *, refused: bool = False) -> TransactionGone | None:
        """The call is over; the idle time begins anew.

        Args:
            refused: PostgreSQL refused what it ran.

        Returns:
            What the caller is told if the transaction was at its end and is over.
        """
        gone = None
        if held.id in self.open:
            now = asyncio.get_running_loop().time()
            ending = held.ending
            if ending is None and held.limits.ends <= now:
                ending = held.limits.over(now)
            if ending is not None:
                self.end(held, ending)
                gone = self._gone(held.id)
            else:
                event = Event.REFUSED if refused else Event.FINISHED
                held.state = move(held.state, event)
                self._arm(held)
        if held.lock.locked():
            held.lock.release()
        return gone

    def _arm(self, held: Held) -> None:
        loop = asyncio.get_running_loop()
        when = held.limits.expires(loop.time())
        if held.timer is not None:
            # Armed before, by limits that were longer: the pause goes on, it does not begin.
            when = min(when, held.timer.when())
            held.timer.cancel()
        held.timer = loop.call_at(when, self._expire, held, when)

    def _expire(self, held: Held, when: float) -> None:
        held.timer = None
        if held.id in self.open and not held.lock.locked():
            # A timer may fire a clock tick early; what was due at *when* is due.
            self.end(held, held.limits.over(when))

    def end(self, held: Held, event: Event) -> None:
        """Forget it; its connection is rolled back and cleaned behind the answer.

        Args:
            event: What ended it; later calls on the id are told.
        """
        if not is_end(event):
            raise ValueError(f"{event.value} ends no transaction")
        if self.open.pop(held.id, None) is None:
            return
        held.state = move(held.state, event)
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        self._ended[held.id] = Ended(held.subject, event)
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
        target = held.target
        lived = asyncio.get_running_loop().time() - held.born
        target.observer.happened(TransactionEnded(target.name, event.value, lived))
        self.give_room(target, held.room)
        held.lease.settle_soon()
        if not self.open:
            self.none_open.set()

    def view(self, held: Held, *, wall: float, now: float) -> OpenTransaction:
        """It as its owner sees it; *wall* seconds since the epoch, *now* event-loop time."""
        limits = held.limits
        return OpenTransaction(
            held.id, wall + limits.expires(now) - now, limits.idle, wall + limits.ends - now
        )

    def drain(self, *, idle: float, ends: float) -> None:
        """Leave those that are open a short time, for this node is to stop.

        Args:
            idle: Seconds without a call.
            ends: Event-loop time at which they are over whatever happens.
        """
        self._closing = (idle, ends)
        for held in self.open.values():
            held.limits = held.limits.closed(idle=idle, ends=ends)
            if not held.lock.locked():
                self._arm(held)

    def end_all(self, event: Event, target: Target | None = None) -> None:
        """End those of *target*, or all; where a call runs, as soon as it is over."""
        for held in list(self.open.values()):
            if target is not None and held.target is not target:
                continue
            if held.lock.locked():
                held.ending = event
            else:
                self.end(held, event)
