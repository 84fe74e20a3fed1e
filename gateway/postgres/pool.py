"""Few connections, many borrowers.

The fair queue in front hands out places; a place is the right to one
connection, so whoever asks `take` gets an idle connection, the next one that is
given back, or a new one. Connections are opened one at a time, with jitter after
a failure, and are believed by PostgreSQL's word only: after each use the
session is reset, and in doubt it is closed. How many sessions there are is
counted by `Room`, until PostgreSQL itself has ended them.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import Callable
from functools import partial

from ..core.errors import (
    DatabaseUnavailable,
    GatewayError,
    LoginRefused,
    QueueTimeout,
    SecretInvalid,
)
from ..core.observation import ConnectFailed, ConnectionClosed, ConnectionOpened, Observer
from ..core.pool_policy import Reason, Seats, backoff, lend, next_sweep, on_return, sweep
from .connect import Connector
from .connection import Connection

_chance = random.Random()

_RESET_TIMEOUT = 5.0
_CLOSE_TIMEOUT = 1.0
_LASTING = (LoginRefused, SecretInvalid)
"""What waiting does not mend: somebody has to change a credential."""
_REFUSED_FOR = 5.0
"""Seconds for which such an answer stands; wrong passwords in numbers lock accounts."""


class Room:
    """The sessions that PostgreSQL may have for one target, whatever they are doing.

    `core/pool_policy.py` counts the seats; here are the tasks that wait for one.
    """

    def __init__(self, limit: int, spare: Callable[[], bool]) -> None:
        self._seats = Seats(limit)
        self._spare = spare
        """Closes an idle connection of any pool; whether there was one."""
        self._waiting: deque[tuple[asyncio.Future[bool], Callable[[], bool]]] = deque()
        """Who waits for a seat, and whether they still want one."""

    @property
    def used(self) -> int:
        """Sessions that are being opened, open, or being closed."""
        return self._seats.used

    @property
    def surplus(self) -> bool:
        """Whether there are more sessions than there may be, those on their way out aside."""
        seats = self._seats
        return seats.used - seats.closing > seats.limit

    async def enter(self, wanted: Callable[[], bool]) -> bool:
        """Wait until one more session may be opened, and take the room for it.

        Args:
            wanted: Whether there is still a reason to wait.

        Returns:
            Whether there is room; if not, nobody wants it any more, and none was taken.
        """
        seats = self._seats
        if seats.enter():
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry = (waiter, wanted)
        self._waiting.append(entry)
        self.offer()
        try:
            return await waiter
        except BaseException:
            if entry in self._waiting:
                self._waiting.remove(entry)
                seats.give_up()
            elif not waiter.cancelled() and waiter.result():
                self.leave()
            raise

    def offer(self) -> None:
        """A connection became idle, or somebody waits for room: then an idle one has to go."""
        if not self._waiting and not self.surplus:
            return
        for entry in [each for each in self._waiting if not each[1]()]:
            # Served by a connection that came back: no good one is closed for nobody.
            self._waiting.remove(entry)
            self._seats.give_up()
            if not entry[0].done():
                entry[0].set_result(False)
        while self._seats.to_spare and self._spare():
            pass

    def leave(self) -> None:
        """A session has ended, or was never opened."""
        self._wake(self._seats.leave())

    def set_limit(self, limit: int) -> None:
        """Allow so many sessions from now on; those too many end when they are given back."""
        self._wake(self._seats.set_limit(limit))
        self.offer()

    def close(self) -> None:
        """A session is being closed; `closed` follows."""
        self._seats.closing += 1

    def closed(self) -> None:
        """A session that was being closed has ended."""
        self._seats.closing -= 1
        self.leave()

    def _wake(self, seated: int) -> None:
        while seated:
            seated -= 1
            waiter, _ = self._waiting.popleft()
            if waiter.done():
                # Cancelled, and its task has not run yet: its seat goes on.
                seated += self._seats.leave()
            else:
                waiter.set_result(True)


class Pool:
    """The connections of one login on one database."""

    def __init__(
        self,
        connector: Connector,
        room: Room,
        observer: Observer,
        login: str,
    ) -> None:
        self.connector = connector
        self.login = login
        """Its name in the settings."""
        self.database = connector.database
        self._target = connector.target.name
        self.size = 0
        """Open connections, lent and idle, and the one that is being opened."""
        self._room = room
        self._idle: deque[Connection] = deque()
        self._waiting: deque[asyncio.Future[Connection]] = deque()
        self._wary: set[asyncio.Future[Connection]] = set()
        """Those of `_waiting` who want a new one."""
        self._opener: asyncio.Task[None] | None = None
        self._connecting = False
        self._closing: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._observer = observer
        self._retired = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._expected: dict[Connection, float] = {}
        """Connections that come back when their reset has ended, and by when they must."""
        self._emptied: asyncio.Future[None] | None = None
        self._looker: asyncio.TimerHandle | None = None
        self.healthy: bool | None = None
        """Whether the last attempt to connect succeeded; `None` before the first."""
        self.last_error: GatewayError | None = None
        self._refused_until = 0.0
        """Until when an answer of `_LASTING` stands."""

    @property
    def idle(self) -> int:
        """Open connections that nobody holds."""
        return len(self._idle)

    def take_idle(self, now: float) -> Connection | None:
        """An idle connection that is still good, at once."""
        idle = self._idle
        if not idle:
            return None
        if idle[-1].expires > now and not idle[-1].is_closed():
            return idle.pop()  # as `lend` has it, nearly always
        lent = lend(self._idle, now)
        for connection, reason in lent.closed:
            self._forget(connection, reason)
        return lent.connection

    async def take(self, deadline: float, *, new: bool = False) -> Connection:
        """An idle connection, or the next to be given back or opened before *deadline*.

        Args:
            deadline: A moment of the event loop's clock.
            new: Only one that is opened from now on. Who has just lost one knows nothing of
                the others: their server may be on its way out.

        Raises:
            DatabaseUnavailable: The database took no connection in time.
            LoginRefused: It refuses the login, and no connection is open.
            SecretInvalid: Nobody knows what to log in with, and no connection is open.
            QueueTimeout: None came free in time.
        """
        loop = asyncio.get_running_loop()
        entered = loop.time()
        connection = None if new else self.take_idle(entered)
        if connection is not None:
            return connection
        if entered < self._refused_until and not self.size:
            raise self._why_none(0.0)
        waiter: asyncio.Future[Connection] = loop.create_future()
        self._waiting.append(waiter)
        if new:
            self._wary.add(waiter)
        if self._opener is None or self._opener.done():
            self._opener = loop.create_task(self._open_while_wanted())
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except TimeoutError:
            self._leave(waiter)
            raise self._why_none(loop.time() - entered) from None
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            self._wary.discard(waiter)

    def _leave(self, waiter: asyncio.Future[Connection]) -> None:
        """The one who waited is gone; a connection that it was just given goes on."""
        if not waiter.done() or waiter.cancelled():
            waiter.cancel()
        elif waiter.exception() is None:
            self._keep(waiter.result(), new=waiter in self._wary)

    def _why_none(self, waited: float) -> GatewayError:
        if self.last_error is not None:
            # A copy each: what an answer adds to it belongs to one request.
            return copy.copy(self.last_error)
        if self._connecting:
            return DatabaseUnavailable("the database did not answer in time")
        return QueueTimeout(waited=waited)

    def _wanted(self) -> bool:
        waiting = self._waiting
        while waiting and waiting[0].done():
            waiting.popleft()
        return bool(waiting)

    async def _open_while_wanted(self) -> None:
        while self._wanted():
            if not await self._room.enter(self._wanted):
                continue
            if not self._wanted():
                self._room.leave()
                return
            try:
                connection = await self._open()
            except GatewayError as error:
                self.last_error = error
                if isinstance(error, _LASTING) and not self.size:
                    self._refuse_all()
                    return
                await asyncio.sleep(backoff(self._failures, _chance.random()))
            else:
                self._keep(connection, new=True)

    def _refuse_all(self) -> None:
        """Nobody will get a connection: there is none, and none can be opened."""
        self._refused_until = asyncio.get_running_loop().time() + _REFUSED_FOR
        while self._wanted():
            self._waiting.popleft().set_exception(self._why_none(0.0))

    async def _open(self) -> Connection:
        """A new connection; room has been taken for it, and is given up if it fails."""
        clock = asyncio.get_running_loop().time
        began = clock()
        self.size += 1
        self._connecting = True
        try:
            connection = await self.connector.connect(self.connector.target.pool.connect_timeout)
        except BaseException as error:
            self.size -= 1
            self._failures += 1
            self.healthy = False
            self._room.leave()
            if isinstance(error, GatewayError):
                self._observer.happened(ConnectFailed(self._target, error.code, clock() - began))
            raise
        finally:
            self._connecting = False
        self._failures = 0
        self.healthy = True
        self.last_error = None
        self._observer.happened(ConnectionOpened(self._target, clock() - began))
        return connection

    def _keep(self, connection: Connection, *, new: bool = False) -> None:
        """Give a clean connection to whoever waits for one, or lay it aside."""
        if self._wanted():
            for waiter in self._waiting:
                if not waiter.done() and (new or waiter not in self._wary):
                    self._waiting.remove(waiter)
                    waiter.set_result(connection)
                    return
        if self._retired:
            self._forget(connection, Reason.CONFIG)
            return
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweep_at(connection.expires)
        self._room.offer()

    def _sweep_at(self, when: float) -> None:
        self._sweeper = asyncio.get_running_loop().call_at(when, self._sweep, when)

    def _sweep(self, when: float) -> None:
        """Close those that reached their time, or were closed, while nobody wanted them."""
        self._sweeper = None
        # A timer may fire a clock tick early; what was due at *when* is due.
        for connection, reason in sweep(self._idle, when):
            self._forget(connection, reason)
        following = next_sweep(self._idle)
        if following is not None:
            self._sweep_at(following)

    def drop_idle(self) -> bool:
        """Close the connection that was idle for longest, if there is one, to make room."""
        if not self._idle:
            return False
        self._forget(self._idle.popleft(), Reason.ROOM)
        return True

    def retire(self) -> None:
        """Close what is idle, and keep nothing that is given back: another pool takes over."""
        self._retired = True
        while self._idle:
            self._forget(self._idle.popleft(), Reason.CONFIG)

    def discard(self, connection: Connection, reason: str) -> None:
        """Close a lent connection for good.

        Args:
            reason: One of `Reason`.
        """
        self._forget(connection, reason)

    def _forget(self, connection: Connection, reason: str) -> None:
        self.size -= 1
        self._observer.happened(ConnectionClosed(self._target, reason))
        self._room.close()
        line = connection.hang_up()
        if line is None:
            self._room.closed()
            return
        task = asyncio.get_running_loop().create_task(connection.see_off(line))
        self._closing.add(task)
        task.add_done_callback(self._seen_off)

    def _seen_off(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._room.closed()

    async def give_back(self, connection: Connection) -> None:
        """Reset a lent connection and keep it, or close it; never raises for its sake."""
        try:
            clean = await connection.clean(_RESET_TIMEOUT)
        except asyncio.CancelledError:
            self._forget(connection, Reason.CANCELLED)
            raise
        except Exception:  # noqa: BLE001  # whatever it is, the work is done and this one goes
            clean = False
        self._take_back(connection, clean)

    def expect(self, connection: Connection, then: Callable[[], None]) -> None:
        """As `give_back`, for one whose reset is on its way: nobody waits, *then* is called."""
        behind = connection.behind
        if not behind.pending:
            self._came(connection, then)
            return
        behind.then = partial(self._came, connection, then)
        # One timer for all, which finds nothing as a rule: one for each would cost more.
        self._expected[connection] = connection.clock() + _RESET_TIMEOUT
        if self._looker is None:
            self._looker = asyncio.get_running_loop().call_later(_RESET_TIMEOUT, self._look)

    def _came(self, connection: Connection, then: Callable[[], None]) -> None:
        self._expected.pop(connection, None)
        if self._emptied is not None and not self._expected and not self._emptied.done():
            self._emptied.set_result(None)
        try:
            self._take_back(connection, connection.left())
        finally:
            then()

    def _look(self) -> None:
        """Close the connections whose reset takes too long."""
        self._looker = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection, until in list(self._expected.items()):
            if until <= now:
                connection.abort()
        if self._expected:
            following = min(self._expected.values())
            self._looker = loop.call_at(max(following, now + 0.1), self._look)

    def _take_back(self, connection: Connection, clean: bool) -> None:
        """Keep a connection that was reset, or close it."""
        if clean:
            self._observer.connection_reset(self._target)
            now = connection.clock()
            if (
                not connection.broken
                and not self._retired
                and connection.expires > now
                and not self._room.surplus
            ):
                self._keep(connection)  # as `on_return` has it, nearly always
                return
        reason = on_return(
            clean=clean,
            broken=connection.broken,
            retired=self._retired,
            surplus=self._room.surplus,
            expires=connection.expires,
            now=asyncio.get_running_loop().time(),
        )
        if reason is not None:
            self._forget(connection, reason)
            return
        self._keep(connection)

    async def close(self) -> None:
        """Close every idle connection, and open no more."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._opener is not None:
            self._opener.cancel()
            await asyncio.wait([self._opener])
        if self._expected:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied], timeout=_CLOSE_TIMEOUT)
            for connection in list(self._expected):
                connection.abort()
        if self._looker is not None:
            self._looker.cancel()
            self._looker = None
        while self._idle:
            connection = self._idle.pop()
            self.size -= 1
            self._observer.happened(ConnectionClosed(self._target, Reason.CLOSED))
            try:
                await connection.close(timeout=_CLOSE_TIMEOUT)
            except Exception:  # noqa: BLE001  # going away either way
                line = connection.hang_up()
                if line is not None:
                    line.close()
            self._room.leave()
        if self._closing:
            _, late = await asyncio.wait(self._closing, timeout=_CLOSE_TIMEOUT)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
