"""Transactions that stay open across requests: who holds them, until when.

An id says which boot of which node made it, and is signed; it is good for the
principal, the target and the login that it was made for. Whatever does not
match is the same "not found". Calls on one id run one after the other.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import secrets
from collections import OrderedDict
from hashlib import sha256
from typing import NamedTuple

from ..core.errors import InvalidRequest, QueueTimeout, TransactionGone
from ..core.model import Ask, Grant, OpenTransaction, Principal
from .targets import Lease, Target

ENDED_KEPT = 10_000
_NOT_FOUND = "is not found"


class Ended(NamedTuple):
    """What is remembered of a transaction that is over."""

    subject: str
    reason: str


class Held:
    """One open transaction."""

    __slots__ = (
        "database", "died", "expires", "grant", "id", "idle_timeout", "lease", "lock",
        "subject", "target", "timer",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        *,
        subject: str,
        target: Target,
        grant: Grant,
        lease: Lease,
        idle_timeout: float,
        dies: float,
    ) -> None:
        self.id = id
        self.subject = subject
        self.target = target
        self.grant = grant
        self.database = grant.database or target.settings.database
        self.lease = lease
        self.lock = asyncio.Lock()
        self.idle_timeout = idle_timeout
        self.died = dies
        """Event-loop time at which it ends whatever happens."""
        self.expires = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Transactions:
    """The open transactions of this node."""

    def __init__(self, *, master: bytes, node: int = 0, worker: int = 0) -> None:
        self._key = hmac.digest(master, b"gw/transaction/v1", "sha256")
        self._prefix = secrets.token_bytes(6) + node.to_bytes(2, "big") + worker.to_bytes(1, "big")
        self.open: dict[str, Held] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._room: dict[str, asyncio.Semaphore] = {}

    def _sign(self, raw: bytes) -> bytes:
        return hmac.digest(self._key, raw, sha256)[:12]

    def new_id(self) -> str:
        """A fresh id, 44 characters, base64url."""
        raw = self._prefix + secrets.token_bytes(12)
        return base64.urlsafe_b64encode(raw + self._sign(raw)).decode("ascii")

    def _is_ours(self, id: str) -> bool:
        try:
            raw = base64.b64decode(id, altchars=b"-_", validate=True)
        except ValueError:
            return False
        return len(raw) == 33 and hmac.compare_digest(self._sign(raw[:-12]), raw[-12:])

    async def room(self, target: Target, deadline: float) -> None:
        """Wait until one more transaction may be open on *target*.

        Raises:
            QueueTimeout: None ended before *deadline* (event-loop time).
        """
        room = self._room.get(target.name)
        if room is None:
            most = min(
                target.settings.pool.max_open_transactions, target.settings.pool.max_connections
            )
            room = self._room[target.name] = asyncio.Semaphore(max(1, most))
        loop = asyncio.get_running_loop()
        entered = loop.time()
        try:
            async with asyncio.timeout_at(deadline):
                await room.acquire()
        except TimeoutError:
            raise QueueTimeout(waited=loop.time() - entered) from None

    def give_room(self, target: Target) -> None:
        """A transaction that had room on *target* is over, or never began."""
        self._room[target.name].release()

    def add(
        self, *, principal: Principal, target: Target, grant: Grant, lease: Lease,
        idle_timeout: float,
    ) -> Held:  # fmt: skip
        """Take a transaction in that has just begun on *lease*; room was taken before."""
        now = asyncio.get_running_loop().time()
        held = Held(
            self.new_id(),
            subject=principal.subject,
            target=target,
            grant=grant,
            lease=lease,
            idle_timeout=idle_timeout,
            dies=now + target.settings.transactions.max_lifetime,
        )
        self.open[held.id] = held
        target.counters.transactions_opened += 1
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
                raise TransactionGone(f"Transaction {id} {_NOT_FOUND}. {ended.reason}")
            if len(id) > 192 or not self._is_ours(id):
                raise TransactionGone(f"Transaction {_NOT_FOUND}.")
            raise TransactionGone(f"Transaction {id} {_NOT_FOUND}.")
        if ask.database is not None and ask.database != held.database:
            raise InvalidRequest(
                f"the transaction is on database {held.database}, not on {ask.database}",
                field="database",
                hint="name the database when the transaction begins, or leave it out",
            )
        return held

    async def enter(self, held: Held, deadline: float) -> None:
        """Wait for the calls before on the same id; stop the idle timer.

        Raises:
            QueueTimeout: They took longer than *deadline* (event-loop time).
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
            ended = self._ended.get(held.id)
            reason = f" {ended.reason}" if ended is not None else ""
            raise TransactionGone(f"Transaction {held.id} {_NOT_FOUND}.{reason}")
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None

    def leave(self, held: Held) -> None:
        """The call is over; the idle time begins anew."""
        if held.id in self.open:
            self._arm(held)
        if held.lock.locked():
            held.lock.release()

    def _arm(self, held: Held) -> None:
        loop = asyncio.get_running_loop()
        held.expires = min(loop.time() + held.idle_timeout, held.died)
        held.timer = loop.call_at(held.expires, self._expire, held)

    def _expire(self, held: Held) -> None:
        if held.id in self.open and not held.lock.locked():
            self.end(held, "expired", "Transaction may be expired.")

    def end(self, held: Held, reason: str, told: str) -> None:
        """Forget it; its connection is rolled back and cleaned behind the answer.

        Args:
            reason: For the counters.
            told: What a later call on the id is told.
        """
        if self.open.pop(held.id, None) is None:
            return
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        self._ended[held.id] = Ended(held.subject, told)
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
        held.target.counters.end(reason)
        self.give_room(held.target)
        held.lease.settle_soon()

    def view(self, held: Held, *, wall: float, now: float) -> OpenTransaction:
        """It as its owner sees it; *wall* seconds since the epoch, *now* event-loop time."""
        left = min(held.idle_timeout, held.died - now)
        return OpenTransaction(held.id, wall + left, held.idle_timeout)

    def end_all(self, reason: str, told: str) -> None:
        """End every open transaction that no call is using."""
        for held in list(self.open.values()):
            if not held.lock.locked():
                self.end(held, reason, told)
