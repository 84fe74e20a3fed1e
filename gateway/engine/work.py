"""One keyed request from its beginning to its end: begin, record, commit, resolve, remember."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ..core.errors import (
    DatabaseUnavailable,
    GatewayError,
    KeyInProgress,
    KeyReused,
    Outcome,
    OutcomeUnknown,
    ResultNotKept,
)
from ..core.idempotency import KEPT_BYTES, Entry, Key, Keyed, Verdict, judge
from ..core.model import Call, Result, TransactionMode
from ..core.observation import Resolved
from ..postgres.connection import Connection
from ..postgres.failures import lost, sqlstate
from .answers import read_answer, write_answer
from .ledger import DATABASE, DOUBT, GONE, MEMORY, NONE, NUMBER, Ledger, Number, as_bytea, moment
from .targets import Lease

_STANDBY_PAUSE = 0.1
"""Seconds before a lost COMMIT is asked about again, where a standby was found."""
_RECORD = "select gw.record($1, $2, $3)"
_THERE = "23505"
_OUTCOMES = {None: Outcome.UNKNOWN, True: Outcome.COMMITTED, False: Outcome.NOT_EXECUTED}


class Unread(Exception):
    """There is an entry; whether it is of this request is not known before its body is read."""

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry = entry


class Work:
    """One request that brought a key, from its beginning to its end."""

    __slots__ = (
        "_call", "_in_database", "_key", "_keyed", "_ledger", "_mine", "_number", "_recorded",
        "_size", "kind", "unread",
    )  # fmt: skip

    def __init__(self, ledger: Ledger, call: Call, keyed: Keyed) -> None:
        self._ledger = ledger
        self._call = call
        self._keyed = keyed
        self._key: Key | None = None
        self.kind = NONE
        self._mine: asyncio.Future[None] | None = None
        self._recorded: Entry | None = None
        self._number: Number | None = None
        self._size = 0
        self._in_database = False
        self.unread = False
        """The body is still to come: `read` has to be told of it before `record`."""

    def read(self, request: bytes) -> None:
        """The body is there: what is asked for has the hash *request*."""
        self._key = self.key._replace(request=request)
        self.unread = False

    @property
    def key(self) -> Key:
        """Computed when it is needed: a read needs none."""
        if self._key is None:
            self._key = self._ledger.key(self._keyed)
        return self._key

    async def take(self, deadline: float) -> None:
        """Become the only request with this key in this process.

        Raises:
            KeyInProgress: Another one still runs at *deadline*.
        """
        if self._mine is None:
            self._mine = await self._ledger.turn(self.key.whose, deadline)

    def leave(self) -> None:
        """It is over, however it ended."""
        if self._mine is not None:
            self._ledger.end_turn(self.key.whose, self._mine)
            self._mine = None

    async def begin(self, lease: Lease, mode: TransactionMode, deadline: float) -> Any:
        """Open the transaction of the work, or return what an earlier request was answered.

        Whoever has not taken its turn before, because it only now turns out to write, must
        not wait for it here, where it holds a connection: twins meet in the database.

        Raises:
            KeyInProgress: Another request with the key still runs at *deadline*.
            KeyReused: The key belongs to another request.
            ResultNotKept: It took effect before; what it was answered is not there.
            OutcomeUnknown: It may have taken effect before, and nobody can tell.
        """
        ledger, connection = self._ledger, lease.connection
        self.kind = await ledger.look(lease, self._left(deadline))
        self._call.idempotency = self.kind
        if self.kind == MEMORY:
            await self.take(deadline)
            kept = self._judged(await ledger.remembered(connection, self.key, deadline))
            if kept is None:
                await connection.begin(mode, self._left(deadline))
            return kept
        try:
            tag = await connection.begin(mode, self._left(deadline), then=self.key.enter)
        except TimeoutError:
            raise KeyInProgress from None
        except Exception as error:
            if sqlstate(error) not in GONE:
                raise
            await connection.script("ROLLBACK", self._left(deadline))
            ledger.miss(lease.pool)
            return await self.begin(lease, mode, deadline)
        if tag == "SELECT 0":
            return None
        return await self._kept(connection, deadline)

    async def again(self, lease: Lease, deadline: float) -> Any:
        """After an error in the transaction: end it, and see whether a twin has done the work."""
        connection = lease.connection
        if self.kind != DATABASE or connection.broken or connection.is_closed():
            return None
        if connection.in_transaction:
            await connection.script("ROLLBACK", self._left(deadline))
        return await self._kept(connection, deadline)

    async def _kept(self, connection: Connection, deadline: float) -> Any:
        entry = await self._ledger.find(connection, self.key, self._left(deadline))
        if connection.in_transaction:
            await connection.script("ROLLBACK", self._left(deadline))
        return self._judged(entry)

    def _judged(self, entry: Entry | None) -> Any:
        if entry is not None and self.unread:
            raise Unread(entry)
        return self.judged(entry)

    def judged(self, entry: Entry | None) -> Any:
        """The answer that *entry* holds; `None` if there is none.

        Raises:
            KeyReused: It is another request's.
            ResultNotKept: It is of this one; the answer is not there.
        """
        verdict = judge(entry, self.key)
        if verdict is Verdict.RUN:
            return None
        assert entry is not None
        if verdict is Verdict.REUSED:
            raise KeyReused
        if verdict is Verdict.NOT_KEPT:
            raise ResultNotKept(moment(entry.at))
        self._call.replayed = True
        answer = entry.answer
        return read_answer(answer) if isinstance(answer, bytes) else answer

    async def record(
        self, connection: Connection, results: Sequence[Result], size: int, deadline: float
    ) -> None:
        """Before COMMIT: put the answer where the work is.

        Args:
            size: Bytes that PostgreSQL sent for it; far too many are not even tried.
        """
        ledger, key = self._ledger, self.key
        timeout = self._left(deadline)
        self._size = size
        self._recorded = Entry(
            key.request, list(results) if size <= KEPT_BYTES else None, ledger.wall()
        )
        if self.kind == DATABASE:
            answer = write_answer(results) if size <= 4 * KEPT_BYTES else None
            if answer is not None and len(answer) > KEPT_BYTES:
                answer = None
            described = await connection.describe(_RECORD, timeout)
            kept = None if answer is None else as_bytea(answer)
            for token in (key.token,) if key.older is None else (key.older, key.token):
                found = await connection.run(
                    described,
                    [as_bytea(token), as_bytea(key.request), kept],
                    timeout=timeout,
                    budget=65_536,
                )
            self._in_database = bool(found.rows[0][0])
            return
        # Without the table, the number of the transaction is what can be asked for later.
        described = await connection.describe(NUMBER, timeout)
        found = await connection.run(described, [], timeout=timeout, budget=65_536)
        xid, system, wal = found.rows[0]
        self._number = None if xid is None else Number(xid, system, wal[:8])

    def committed(self, lease: Lease) -> None:
        """COMMIT has been answered."""
        ledger = self._ledger
        if self._in_database:
            ledger.purge(lease.target, lease.pool)
        elif self._number is not None:
            self.keep()

    @property
    def in_database(self) -> bool:
        """Whether the answer was recorded beside the work."""
        return self._in_database

    async def record_inside(self, lease: Lease, deadline: float) -> bool:
        """As `record`, in a transaction of the caller's, which it leaves usable.

        `False` if the transaction has failed, so that there will be nothing to remember.
        """
        connection = lease.connection
        try:
            await connection.script("SAVEPOINT pgsluice_ledger", self._left(deadline))
        except Exception as error:
            if sqlstate(error) != "25P02":
                raise
            return False
        self.kind = await self._ledger.look(lease, self._left(deadline))
        self._call.idempotency = self.kind
        try:
            await self.record(connection, [], 0, deadline)
        except Exception as error:
            if sqlstate(error) == _THERE:
                await connection.script(
                    "ROLLBACK TO SAVEPOINT pgsluice_ledger", self._left(deadline)
                )
                raise KeyReused from None
            if sqlstate(error) not in GONE:
                raise
            # The caller has put on a role that may not.
            await connection.script(
                "ROLLBACK TO SAVEPOINT pgsluice_ledger;SET LOCAL ROLE none", self._left(deadline)
            )
            await self.record(connection, [], 0, deadline)
        return True

    def keep(self) -> None:
        """Remember the answer in this process."""
        if self._call.idempotency is None:
            self._call.idempotency = MEMORY
        if self._recorded is not None:
            ledger = self._ledger
            ledger.memory.put(self.key.whose, self._recorded, ledger.time(), self._size)

    def keep_answer(self, answer: Any, size: int = 0) -> None:
        """Remember *answer*, of so many bytes, in this process; it is whatever `recall` gives."""
        kept = None if size > KEPT_BYTES else answer
        self._recorded = Entry(self.key.request, kept, self._ledger.wall())
        self._size = size
        self.keep()

    def recall(self) -> Any:
        """What this process remembers as the answer; `None` if nothing.

        Raises:
            KeyReused: The key belongs to another request.
            ResultNotKept: It was answered before; the answer is not there.
        """
        self.kind = self._call.idempotency = MEMORY
        ledger = self._ledger
        return self._judged(ledger.memory.get(self.key.whose, ledger.time()))

    async def find(self, lease: Lease, deadline: float) -> Any:
        """What the database holds, once nobody else can still be at work on it."""
        ledger = self._ledger
        self.kind = await ledger.look(lease, self._left(deadline))
        if self.kind == MEMORY:
            return None
        self._call.idempotency = DATABASE
        try:
            await lease.connection.begin(
                TransactionMode(), self._left(deadline), then=self.key.enter
            )
        except TimeoutError:
            raise KeyInProgress from None
        return await self._kept(lease.connection, deadline)

    async def resolve(self, lease: Lease, deadline: float) -> bool:
        """Whether a COMMIT that was not answered took effect. Leaves a fresh connection.

        Raises:
            OutcomeUnknown: Nobody can tell, now or at all.
        """
        ledger = self._ledger
        if self.kind == MEMORY and self._number is None:
            return False  # Nothing was written that could be there or not.
        deadline = max(deadline, ledger.time() + DOUBT)
        try:
            while True:
                await lease.replace(deadline, "lost")
                connection = lease.connection
                if connection.in_recovery:
                    # A standby cannot tell. It will be the primary, or another server is.
                    await asyncio.sleep(min(_STANDBY_PAUSE, self._left(deadline)))
                    continue
                try:
                    if self.kind == MEMORY:
                        known = await ledger.settle(connection, self._number, deadline)
                        break
                    # The lock is the lost transaction's own: it is over when we get it.
                    tag = await connection.begin(
                        TransactionMode(), self._left(deadline), then=self.key.enter
                    )
                    await connection.script("ROLLBACK", self._left(deadline))
                    known = tag != "SELECT 0"
                    break
                except Exception as error:
                    if not lost(error):
                        raise
        except Exception as error:
            if isinstance(error, GatewayError) and not isinstance(error, DatabaseUnavailable):
                raise
            known = None
        outcome = _OUTCOMES[known]
        lease.target.observer.happened(Resolved(lease.target.name, outcome.value))
        if known is None:
            assert self._recorded is not None
            if self.kind == MEMORY:
                ledger.doubtful[self.key.whose] = (self._recorded, self._number)
            raise self._unknown()
        return known

    def _unknown(self) -> OutcomeUnknown:
        error = OutcomeUnknown(
            "the connection was lost while the transaction was being committed",
            hint="ask GET /outcomes/{key} what became of it, or send it again with the same key",
        )
        error.key = self._keyed.text.decode("ascii")
        return error

    def _left(self, deadline: float) -> float:
        return self._ledger.left(deadline)
