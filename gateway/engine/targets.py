"""A target: its settings, its connections, its queue, its memory of statements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import Forbidden
from ..core.fair_queue import FairQueue, Ticket
from ..core.model import Grant
from ..core.policy import TargetNames
from ..postgres.connect import Connector
from ..postgres.connection import Connection
from ..postgres.pool import Pool
from ..settings import TargetSettings
from .admission import Admission
from .plans import Plans


@dataclass(slots=True)
class Counters:
    """What happened on one target since the start; read by the metrics page."""

    connects: int = 0
    resets: int = 0
    discards: dict[str, int] = field(default_factory=dict)
    cancels: dict[str, int] = field(default_factory=dict)
    statements: int = 0
    transactions_opened: int = 0
    transactions_ended: dict[str, int] = field(default_factory=dict)

    def discard(self, reason: str) -> None:
        """One connection was closed for *reason*."""
        self.discards[reason] = self.discards.get(reason, 0) + 1

    def cancel(self, reason: str) -> None:
        """One statement was cancelled for *reason*."""
        self.cancels[reason] = self.cancels.get(reason, 0) + 1

    def end(self, reason: str) -> None:
        """One transaction ended for *reason*."""
        self.transactions_ended[reason] = self.transactions_ended.get(reason, 0) + 1


class Lease:
    """A place in the target and the connection that goes with it."""

    __slots__ = ("connection", "pool", "settled", "target", "ticket")

    def __init__(self, target: Target, pool: Pool, ticket: Ticket, connection: Connection) -> None:
        self.target = target
        self.pool = pool
        self.ticket = ticket
        self.connection = connection
        self.settled = False

    async def settle(self) -> None:
        """Clean the connection, keep it or close it, and give the place back. Once."""
        if self.settled:
            return
        self.settled = True
        try:
            await self.pool.give_back(self.connection)
        finally:
            self.target.admission.release(self.ticket)

    def settle_soon(self) -> None:
        """`settle` in a task of its own, which no cancellation of the caller reaches."""
        if not self.settled:
            self.target.keep(self.settle())

    def discard(self, reason: str) -> None:
        """Close the connection and give the place back at once."""
        if self.settled:
            return
        self.settled = True
        self.pool.discard(self.connection, reason)
        self.target.admission.release(self.ticket)

    async def replace(self, deadline: float, reason: str) -> None:
        """Close the connection and take another one for the same place."""
        pool = self.pool
        pool.discard(self.connection, reason)
        try:
            self.connection = await self.target.connection(pool, deadline)
        except BaseException:
            self.settled = True
            self.target.admission.release(self.ticket)
            raise


class Target:
    """One database cluster as the engine uses it."""

    def __init__(self, settings: TargetSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.plans = Plans()
        self.counters = Counters()
        pool = settings.pool
        self.admission = Admission(
            FairQueue(places=pool.max_connections, max_waiting=pool.max_waiting, share=pool.share)
        )
        self.pools: dict[tuple[str, str], Pool] = {}
        self.column_facts: dict[Any, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, work: Any) -> None:
        """Run *work* in a task that is held until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def size(self) -> int:
        """Open connections, of all logins and databases."""
        return sum(pool.size for pool in self.pools.values())

    def names(self) -> TargetNames:
        """What the policy needs to know of it."""
        settings = self.settings
        return TargetNames(
            settings.name,
            settings.resources,
            settings.databases,
            {alias: login.secrets for alias, login in settings.logins.items()},
            settings.database,
        )

    def pool(self, login: str, database: str | None) -> Pool:
        """The connections of *login* on *database*."""
        key = (login, database or self.settings.database)
        pool = self.pools.get(key)
        if pool is None:
            settings = self.settings.logins.get(login)
            if settings is None:
                raise Forbidden(reason=f"login {login} is not configured")
            counters = self.counters
            pool = Pool(
                Connector(self.settings, settings, key[1]),
                on_connect=lambda: _add(counters, "connects"),
                on_discard=counters.discard,
                on_reset=lambda: _add(counters, "resets"),
                make_room=self._make_room,
            )
            self.pools[key] = pool
        return pool

    async def connection(self, pool: Pool, deadline: float) -> Connection:
        """A connection of *pool*; a place is held, so one is idle there or may be opened."""
        connection = pool.take_idle(asyncio.get_running_loop().time())
        if connection is not None:
            return connection
        return await pool.take(deadline)

    def _make_room(self) -> None:
        """Before a connection is opened: with all of them open, an idle one must go."""
        if self.size >= self.settings.pool.max_connections:
            for pool in self.pools.values():
                if pool.drop_idle("room"):
                    break

    async def lease(self, grant: Grant, deadline: float) -> Lease:
        """Wait for a turn, then take a connection.

        Raises:
            QueueFull: The tenant has too many waiting.
            QueueTimeout: *deadline* passed in the queue.
            DatabaseUnavailable: The database took no connection in time.
        """
        pool = self.pool(grant.login, grant.database)
        admission = self.admission
        ticket = admission.try_turn(grant.tenant, deadline)
        if ticket is None:
            ticket = await admission.turn(grant.tenant, deadline, grant.limits.priority)
        try:
            connection = await self.connection(pool, deadline)
        except BaseException:
            admission.release(ticket)
            raise
        return Lease(self, pool, ticket, connection)

    async def close(self) -> None:
        """Close what is idle; what is lent is closed by its borrower."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5.0)
        for pool in self.pools.values():
            await pool.close()


def _add(counters: Counters, name: str) -> None:
    setattr(counters, name, getattr(counters, name) + 1)


class Targets:
    """All targets by name."""

    def __init__(self, settings: Mapping[str, TargetSettings]) -> None:
        self.by_name = {name: Target(each) for name, each in settings.items()}
        self.names = {name: each.names() for name, each in self.by_name.items()}

    def get(self, name: str) -> Target:
        """The target of a grant."""
        return self.by_name[name]

    def each(self, do: Callable[[Target], None]) -> None:
        """Call *do* with every target."""
        for target in self.by_name.values():
            do(target)
