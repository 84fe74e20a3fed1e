"""A target: its settings, its connections, its queue, its memory of statements."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import Draining, Forbidden, QueueFull, QueueTimeout, RateLimited
from ..core.fair_queue import FairQueue, Ticket
from ..core.model import Grant
from ..core.observation import Observer, StatementCancelled
from ..core.policy import TargetNames
from ..core.pool_policy import Reason
from ..core.retries import RetryBudget
from ..postgres.connect import Connector
from ..postgres.connection import Connection
from ..postgres.pool import Pool, Room
from ..providers.secrets import make_credentials
from ..settings import PoolSettings, TargetSettings
from .admission import Admission
from .plans import Plans
from .streams import Place, Share


class Lease:
    """A place in the target and the connection that goes with it."""

    __slots__ = (
        "comment", "connection", "counted", "granted", "place", "pool", "settled", "target",
        "ticket",
    )  # fmt: skip

    def __init__(self, target: Target, pool: Pool, ticket: Ticket, connection: Connection) -> None:
        self.target = target
        self.pool = pool
        self.ticket = ticket
        self.connection = connection
        self.granted = ticket.since
        """Event-loop time of its turn."""
        self.counted: str | None = None
        """The tenant whose number of leases is limited."""
        self.place: Place | None = None
        """The right to keep it for long, for a stream or an open transaction."""
        self.comment = ""
        """What is written behind the statements of a request that is alone on it."""
        self.settled = False

    async def settle(self) -> None:
        """Clean the connection, keep it or close it, and give the place back. Once."""
        if self.settled or self.leave():
            return
        self.settled = True
        try:
            await self.pool.give_back(self.connection)
        finally:
            self._leave()

    def leave(self) -> bool:
        """As `settle`, if the connection is being cleaned already: nothing is waited for."""
        connection = self.connection
        if self.settled or not connection.is_leaving:
            return self.settled
        self.settled = True
        self.pool.expect(connection, self._leave)
        return True

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
        self._leave()

    async def replace(self, deadline: float, reason: str) -> None:
        """Close the connection and take another one for the same place."""
        self.pool.discard(self.connection, reason)
        try:
            # The login may have been configured anew since.
            self.pool = self.target.pool(self.pool.login, self.pool.database)
            if reason == Reason.LOST:
                self.connection = await self.pool.take(deadline, new=True)
            else:
                self.connection = await self.target.connection(self.pool, deadline)
            self.connection.comment = self.comment
        except BaseException:
            self.settled = True
            self._leave()
            raise

    async def stand_back(self) -> None:
        """Give connection and place back, to wait for something else; `step_in` takes others."""
        await self.settle()

    async def step_in(self, grant: Grant, deadline: float) -> None:
        """Wait for a turn anew."""
        fresh = await self.target.lease(grant, deadline)
        fresh.connection.comment = self.comment
        self.pool, self.ticket, self.connection = fresh.pool, fresh.ticket, fresh.connection
        self.counted = fresh.counted
        self.granted = fresh.granted
        self.settled = False

    def _leave(self) -> None:
        self.target.release(self.ticket)
        if self.counted is not None:
            self.target.count(self.counted, -1)
            self.counted = None
        if self.place is not None:
            self.place.give_back()
            self.place = None


class Target:
    """One database cluster as the engine uses it."""

    def __init__(
        self,
        settings: TargetSettings,
        observer: Observer | None = None,
        *,
        limit: int | None = None,
    ) -> None:
        self.settings = settings
        self._limit = limit
        """How many of the configured connections this node may hold; `None` is all."""
        self.name = settings.name
        self.observer = observer or Observer()
        self.plans = Plans()
        self.retries = RetryBudget()
        pool = self._own_pool()
        self.admission = Admission(
            FairQueue(places=pool.max_connections, max_waiting=pool.max_waiting, share=pool.share)
        )
        self.begins = Admission(
            FairQueue(places=_begins(pool), max_waiting=pool.max_waiting, share=pool.share)
        )
        """Turns to have a transaction open across requests; each then takes one of `admission`."""
        self.share = Share(pool)
        self._busy: dict[str, int] = {}
        self.pools: dict[tuple[str, str], Pool] = {}
        self.room = Room(pool.max_connections, self._spare)
        self.column_facts: dict[Any, Any] = {}
        self.on_quiet: Callable[[Target], None] | None = None
        """Called as soon as nobody uses it any more, once it is not configured any more."""
        self._retired: list[Pool] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, work: Any) -> None:
        """Run *work* in a task that is held until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def budget(self) -> int:
        """Connections that all nodes together may hold."""
        return self.settings.pool.max_connections

    @property
    def limit(self) -> int:
        """Connections that this node may hold."""
        return self.budget if self._limit is None else min(self._limit, self.budget)

    def set_limit(self, limit: int) -> None:
        """Hold so many connections from now on; those too many end when they are given back."""
        if limit != self._limit:
            self._limit = limit
            self._set_pool()

    def _own_pool(self) -> PoolSettings:
        """The settings of the pool, cut to this node's part of it."""
        pool, limit = self.settings.pool, self.limit
        if limit == pool.max_connections:
            return pool
        most = math.ceil(pool.max_open_transactions * limit / pool.max_connections)
        return replace(pool, max_connections=limit, max_open_transactions=most)

    def _set_pool(self) -> None:
        pool = self._own_pool()
        self.room.set_limit(pool.max_connections)
        self.admission.configure(pool.max_connections, pool.max_waiting, pool.share)
        self.begins.configure(_begins(pool), pool.max_waiting, pool.share)
        self.share.configure(pool)

    @property
    def size(self) -> int:
        """Open connections, of all logins and databases."""
        return sum(pool.size for pool in (*self.pools.values(), *self._retired))

    @property
    def is_quiet(self) -> bool:
        """Whether nobody uses it or waits for it."""
        return not (
            self.admission.in_use or self.admission.waiting
            or self.begins.in_use or self.begins.waiting or self.share.waiting
        )  # fmt: skip

    def cancelled(self, reason: str) -> None:
        """A statement was stopped before its end: `deadline`, `hangup`, `request`, `drain`."""
        self.observer.happened(StatementCancelled(self.name, reason))

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
            connector = Connector(
                self.settings, settings, key[1], make_credentials(settings, self.settings)
            )
            pool = Pool(connector, self.room, self.observer, login)
            self.pools[key] = pool
        return pool

    async def connection(self, pool: Pool, deadline: float) -> Connection:
        """A connection of *pool*; a place is held, so one is idle there or may be opened."""
        connection = pool.take_idle(asyncio.get_running_loop().time())
        if connection is not None:
            return connection
        return await pool.take(deadline)

    def _spare(self) -> bool:
        """Close an idle connection, for one of another login or database."""
        most = max(self.pools.values(), key=lambda pool: pool.idle, default=None)
        return most is not None and most.drop_idle()

    def lease(self, grant: Grant, deadline: float) -> Coroutine[Any, Any, Lease]:
        """Wait for a turn, then take a connection.

        Raises:
            RateLimited: The tenant has as many under way as its policy allows.
            QueueFull: The tenant has too many waiting.
            QueueTimeout: *deadline* passed in the queue.
            DatabaseUnavailable: The database took no connection in time.
        """
        if not grant.limits.concurrency:
            return self._lease(grant, deadline)
        return self._counted_lease(grant, deadline)

    async def _counted_lease(self, grant: Grant, deadline: float) -> Lease:
        most = grant.limits.concurrency
        if self._busy.get(grant.tenant, 0) >= most:
            raise RateLimited(
                "as many statements of this tenant are under way as the policy allows"
            )
        self.count(grant.tenant, 1)
        try:
            lease = await self._lease(grant, deadline)
        except BaseException:
            self.count(grant.tenant, -1)
            raise
        lease.counted = grant.tenant
        return lease

    def count(self, tenant: str, change: int) -> None:
        """One lease more or less of *tenant*, whose number is limited."""
        left = self._busy.get(tenant, 0) + change
        if left:
            self._busy[tenant] = left
        else:
            self._busy.pop(tenant, None)

    async def _lease(self, grant: Grant, deadline: float) -> Lease:
        pool = self.pool(grant.login, grant.database)
        admission = self.admission
        ticket = admission.try_turn(grant.tenant, deadline)
        if ticket is None:
            ticket = await self._turn(grant, deadline)
            # The login may have been configured anew while it waited.
            pool = self.pool(grant.login, grant.database)
        self.observer.turn_taken(self.name, ticket.since - ticket.entered)
        try:
            connection = pool.take_idle(ticket.since) or await pool.take(deadline)
        except BaseException:
            self.release(ticket)
            raise
        return Lease(self, pool, ticket, connection)

    def release(self, ticket: Ticket) -> None:
        """Give a turn back."""
        self.admission.release(ticket)
        if self.on_quiet is not None:
            self.tell_if_quiet()

    def tell_if_quiet(self) -> None:
        """Call `on_quiet` if that is what it is."""
        if self.on_quiet is not None and self.is_quiet:
            self.on_quiet(self)

    async def _turn(self, grant: Grant, deadline: float) -> Ticket:
        clock = asyncio.get_running_loop().time
        entered = clock()
        reason = "hangup"
        try:
            ticket = await self.admission.turn(grant.tenant, deadline, grant.limits.priority)
            reason = ""
            return ticket
        except QueueFull:
            reason = "full"
            raise
        except QueueTimeout as error:
            reason = "early" if error.early else "timeout"
            raise
        except Draining:
            reason = "draining"
            raise
        finally:
            if reason:
                self.observer.turn_refused(self.name, clock() - entered, reason)

    # -- a change of the configuration -------------------------------------------------

    def reconfigure(self, settings: TargetSettings) -> None:
        """Go on with *settings*; what runs and what waits does not notice.

        Connections that were opened otherwise are closed when they come back; new ones
        are opened within the same bound, so that both together never pass it.
        """
        old, self.settings = self.settings, settings
        elsewhere = _place(old) != _place(settings)
        for key, pool in list(self.pools.items()):
            login, database = key
            if (
                elsewhere
                or settings.logins.get(login) != old.logins.get(login)
                or database not in (settings.database, *settings.databases)
            ):
                del self.pools[key]
                pool.retire()
                self._retired.append(pool)
            else:
                pool.connector.target = settings
        self._retired = [pool for pool in self._retired if pool.size]
        if elsewhere:
            self.plans = Plans()
            self.column_facts = {}
        self._set_pool()

    async def pause(self, patience: float) -> bool:
        """Let nobody begin anything until `resume`; who comes waits in the queue.

        Returns when nothing runs and no connection is open any more, so that the database
        may be restarted; or after *patience* seconds, then with `False`.
        """
        self.admission.pause()
        clock = asyncio.get_running_loop().time
        until = clock() + patience
        while self.admission.paused:
            if not self.admission.in_use:
                for pool in (*self.pools.values(), *self._retired):
                    while pool.drop_idle():
                        pass
                return True
            if clock() >= until:
                return False
            await asyncio.sleep(0.02)
        return False

    def resume(self) -> None:
        """Let them in again, in their order."""
        self.admission.resume()

    def take_no_more(self) -> None:
        """Send away who waits and who comes; what runs may end."""
        self.admission.close()
        self.begins.close()
        self.share.close()

    async def close(self) -> None:
        """Close what is idle; what is lent is closed by its borrower."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5.0)
        for pool in (*self.pools.values(), *self._retired):
            await pool.close()


def _begins(pool: PoolSettings) -> int:
    """Transactions that may be open at once."""
    return max(1, min(pool.max_open_transactions, pool.max_connections))


def _place(settings: TargetSettings) -> TargetSettings:
    """*settings* without what may change under open connections."""
    return replace(
        settings,
        databases=(), resources=(), logins={}, pool=PoolSettings(),
        read_budget=0, response_bytes=0, compat="", trace_comment=False,
    )  # fmt: skip


class Targets:
    """All targets by name."""

    def __init__(
        self,
        settings: Mapping[str, TargetSettings],
        observer: Observer | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self._observer = observer or Observer()
        self._limit = 0 if shared else None
        """What a new target begins with: other nodes may hold all there is."""
        self.by_name = {name: self._new(each) for name, each in settings.items()}
        self.leaving: dict[str, Target] = {}
        """No longer configured, and not yet quiet."""
        self._closing: set[asyncio.Task[None]] = set()
        self.names = {name: each.names() for name, each in self.by_name.items()}

    def _new(self, settings: TargetSettings) -> Target:
        return Target(settings, self._observer, limit=self._limit)

    def get(self, name: str) -> Target:
        """The target of a grant."""
        return self.by_name[name]

    @property
    def some_like_aws(self) -> bool:
        """Whether any target has `compat = "aws"`."""
        return any(target.settings.compat == "aws" for target in self.by_name.values())

    def each(self, do: Callable[[Target], None]) -> None:
        """Call *do* with every target."""
        for target in self.all():
            do(target)

    def all(self) -> list[Target]:
        """Every target, those that are leaving included."""
        return [*self.by_name.values(), *self.leaving.values()]

    def reconfigure(self, settings: Mapping[str, TargetSettings]) -> list[Target]:
        """Have the targets of *settings* from now on; return those that are gone.

        What waits for one that is gone may still run; then it is closed.
        """
        by_name = {}
        for name, each in settings.items():
            target = self.by_name.get(name) or self.leaving.pop(name, None)
            if target is None:
                target = self._new(each)
            elif target.settings != each:
                target.reconfigure(each)
            target.on_quiet = None
            by_name[name] = target
        gone = [target for name, target in self.by_name.items() if name not in by_name]
        for target in gone:
            self.leaving[target.name] = target
            target.on_quiet = self._let_go
        self.by_name = by_name
        self.names = {name: each.names() for name, each in by_name.items()}
        return gone

    def _let_go(self, target: Target) -> None:
        target.on_quiet = None
        del self.leaving[target.name]
        task = asyncio.get_running_loop().create_task(target.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every target."""
        for target in self.all():
            await target.close()
        if self._closing:
            await asyncio.wait(list(self._closing))
