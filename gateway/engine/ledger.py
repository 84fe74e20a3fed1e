"""Keyed writes take effect once: what is remembered of them, where, and how a doubt is solved.

With the table `gw.ledger` in the database the answer to a write is recorded in the
transaction of the write, under a lock of its key: it is there if and only if the write is.
A twin waits for the lock and gets that answer. Without the table a process remembers for
ten minutes what it has done itself, and where a COMMIT was lost it asks PostgreSQL for the
state of the transaction, which can be believed as long as the cluster and its timeline
are the same.

Answers are kept as results, not as the bytes of a dialect: whatever wrote the first answer
writes the second from the same result, and so the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import NamedTuple
from weakref import WeakKeyDictionary

from ..core.errors import GatewayError, KeyInProgress, OutcomeUnknown
from ..core.gw_schema import INSTALLED_SQL
from ..core.idempotency import (
    Entry,
    Key,
    Keyed,
    Memory,
    ledger_key,
)
from ..core.model import TransactionMode
from ..core.observation import IdempotencyFound
from ..postgres.connection import Connection
from ..postgres.failures import lost, sqlstate
from ..postgres.pool import Pool
from .targets import Lease, Target

DATABASE = "database"
MEMORY = "memory"
NONE = "none"

_ASK_AGAIN = 30.0
"""Seconds for which a database without the table is taken to have none."""
_ANNOUNCE = 2.0
"""Seconds for the look at the start."""
_PURGE_EVERY = 60.0
"""Seconds between two looks for keys that have had their day."""
_PURGE_AFTER = 0.2
_PURGE_STEP = 500
DOUBT = 2.0
"""Seconds that a lost COMMIT may be looked into, beyond its caller's deadline."""
GONE = frozenset({"42883", "3F000", "42501", "42P01"})
"""The ledger is not there any more, or not for this login."""

_LOOKUP = "select request, answer, at from gw.lookup($1)"
_PURGE = "select gw.purge($1)"
_PLACE = "s.system_identifier::text, pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn())"
NUMBER = (
    f"select pg_catalog.pg_current_xact_id_if_assigned()::text, {_PLACE}"
    " from pg_catalog.pg_control_system() s"
)
_STATUS = (
    f"select pg_catalog.pg_xact_status($1::pg_catalog.xid8), {_PLACE}"
    " from pg_catalog.pg_control_system() s"
)
_IN_THE_FUTURE = "22023"


class Number(NamedTuple):
    """A transaction as PostgreSQL numbers it, and where that number means something."""

    xid: str
    system: str
    timeline: str


class Installed(NamedTuple):
    """Whether a login finds the ledger in its database."""

    there: bool
    until: float
    """Event-loop time until which this is believed."""


class Ledger:
    """What this process knows of keys, and where it finds the rest."""

    def __init__(
        self,
        *,
        master: bytes,
        previous: bytes | None = None,
        wall: Callable[[], float],
        memory: Memory | None = None,
    ) -> None:
        self.rotate(master, previous)
        self.wall = wall
        self.time = asyncio.get_running_loop().time
        self.memory = memory if memory is not None else Memory()
        self.doubtful: dict[Hashable, tuple[Entry, Number | None]] = {}
        """Writes of which this process does not know whether they took effect."""
        self._installed: WeakKeyDictionary[Pool, Installed] = WeakKeyDictionary()
        self._running: dict[Hashable, asyncio.Future[None]] = {}
        self._purged: WeakKeyDictionary[Pool, float] = WeakKeyDictionary()

    def rotate(self, master: bytes, previous: bytes | None) -> None:
        """From now on keys are filed under *master*; under *previous* as well while there is one.

        Under both, because other nodes may know the old one only, or the new one only.
        """
        self._secret = ledger_key(master)
        self._older = None if previous is None else ledger_key(previous)

    def key(self, keyed: Keyed) -> Key:
        """The key of a request."""
        return keyed.derive(self._secret, self._older)

    def kind(self, pool: Pool) -> str | None:
        """`database` or `memory`; `None` if nobody has looked yet."""
        known = self._installed.get(pool)
        return None if known is None else DATABASE if known.there else MEMORY

    async def look(self, lease: Lease, timeout: float) -> str:
        """As `kind`, and looks if it is not known. The connection must be able to answer."""
        return await self._look(lease.target, lease.pool, lease.connection, timeout)

    async def _look(
        self, target: Target, pool: Pool, connection: Connection, timeout: float
    ) -> str:
        known = self._installed.get(pool)
        now = self.time()
        if known is None or known.until <= now:
            described = await connection.describe(INSTALLED_SQL, timeout)
            answer = await connection.run(described, ["record"], timeout=timeout, budget=65_536)
            there = bool(answer.rows)
            known = Installed(there, float("inf") if there else now + _ASK_AGAIN)
            new = self._installed.get(pool)
            self._installed[pool] = known
            if new is None or new.there is not there:
                where = DATABASE if there else MEMORY
                target.observer.happened(IdempotencyFound(target.name, where))
        return DATABASE if known.there else MEMORY

    async def announce(self, target: Target) -> None:
        """Look once for what *target* has, so that it is known before a key comes."""
        login = next(iter(target.settings.logins), None)
        if login is None:
            return
        # Without a place in the queue: nobody shall wait for this.
        pool = target.pool(login, None)
        try:
            connection = await pool.take(self.time() + _ANNOUNCE)
        except GatewayError:
            return  # The first that brings a key will see.
        try:
            await self._look(target, pool, connection, 5.0)
        except Exception:
            connection.broken = True
        finally:
            await pool.give_back(connection)

    def state(self, target: Target) -> str:
        """Where keys of *target* are remembered, as far as that is known."""
        kinds = {self.kind(pool) for pool in target.pools.values()} - {None}
        return MEMORY if MEMORY in kinds else DATABASE if kinds else "unknown"

    def miss(self, pool: Pool) -> None:
        """The ledger is not there any more, or not for this login."""
        self._installed[pool] = Installed(False, self.time() + _ASK_AGAIN)

    async def turn(self, id: Hashable, deadline: float) -> asyncio.Future[None]:
        """Wait until no other request with the key runs here; then it is the caller's.

        Raises:
            KeyInProgress: One still runs at *deadline*.
        """
        while (other := self._running.get(id)) is not None:
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(other)
            except TimeoutError:
                raise KeyInProgress from None
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running[id] = mine
        return mine

    def end_turn(self, id: Hashable, mine: asyncio.Future[None]) -> None:
        """Let the next one with the key in."""
        del self._running[id]
        mine.set_result(None)

    async def find(self, connection: Connection, key: Key, timeout: float) -> Entry | None:
        """The entry of *key* in the database."""
        found = await _find(connection, key.token, timeout)
        if found is None and key.older is not None:
            found = await _find(connection, key.older, timeout)
        return found

    def purge(self, target: Target, pool: Pool) -> None:
        """Now and then, behind an answer: forget keys that have had their day."""
        now = self.time()
        if self._purged.get(pool, -_PURGE_EVERY) + _PURGE_EVERY > now:
            return
        self._purged[pool] = now
        # A little later: the connection of this answer is still being cleaned.
        loop = asyncio.get_running_loop()
        loop.call_later(_PURGE_AFTER, lambda: target.keep(self._purge(target, pool)))

    async def _purge(self, target: Target, pool: Pool) -> None:
        # In small steps, and only on a connection that nobody waits for.
        while True:
            try:
                ticket = target.admission.try_turn("", self.time())
            except GatewayError:
                return  # The node is shutting down.
            if ticket is None:
                self._purged.pop(pool, None)
                return
            connection = pool.take_idle(self.time())
            if connection is None:
                target.admission.release(ticket)
                self._purged.pop(pool, None)
                return
            lease = Lease(target, pool, ticket, connection)
            try:
                described = await connection.describe(_PURGE, 5.0)
                await connection.begin(TransactionMode(), 5.0)
                answer = await connection.run(described, [_PURGE_STEP], timeout=5.0, budget=65_536)
                await connection.script("COMMIT", 5.0)
            except Exception:
                connection.broken = True
                return
            finally:
                await lease.settle()
            if answer.rows[0][0] < _PURGE_STEP:
                return

    async def remembered(self, connection: Connection, key: Key, deadline: float) -> Entry | None:
        """What this process remembers of *key*; a doubt is solved if PostgreSQL can tell.

        Raises:
            OutcomeUnknown: It may have taken effect, and nobody can tell.
        """
        doubt = self.doubtful.get(key.whose)
        if doubt is not None:
            entry, number = doubt
            happened = await self.settle(connection, number, deadline)
            if happened is None:
                raise OutcomeUnknown(
                    "whether an earlier request with this key took effect is not known",
                    hint="read what it would have written",
                )
            del self.doubtful[key.whose]
            if happened:
                self.memory.put(key.whose, entry, self.time())
        return self.memory.get(key.whose, self.time())

    async def settle(
        self, connection: Connection, number: Number | None, deadline: float
    ) -> bool | None:
        """Whether transaction *number* committed; `None` if PostgreSQL cannot tell."""
        if number is None:
            return None
        while True:
            try:
                described = await connection.describe(_STATUS, self.left(deadline))
                answer = await connection.run(
                    described, [number.xid], timeout=self.left(deadline), budget=65_536
                )
            except Exception as error:
                if sqlstate(error) is None or lost(error):
                    raise
                # Its number was never given out: it went with the end of the crashed server.
                return False if sqlstate(error) == _IN_THE_FUTURE else None
            status, system, wal = answer.rows[0]
            if (system, wal[:8]) != (number.system, number.timeline) or status is None:
                return None
            if status != "in progress":
                return bool(status == "committed")
            await asyncio.sleep(min(0.05, self.left(deadline)))

    def left(self, deadline: float) -> float:
        """Seconds until *deadline*; TimeoutError if there are none."""
        seconds = deadline - self.time()
        if seconds <= 0:
            raise TimeoutError
        return seconds


async def _find(connection: Connection, token: bytes, timeout: float) -> Entry | None:
    described = await connection.describe(_LOOKUP, timeout)
    found = await connection.run(described, [as_bytea(token)], timeout=timeout, budget=1 << 22)
    if not found.rows:
        return None
    request, answer, at = found.rows[0]
    return Entry(_bytes(request), None if answer is None else _bytes(answer), float(at))


def as_bytea(raw: bytes) -> str:
    """A bytea as the driver takes it here: PostgreSQL's own text."""
    return "\\x" + raw.hex()


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def moment(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
