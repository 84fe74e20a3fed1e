"""Few connections, many borrowers.

The fair queue in front hands out places; a place is the right to one
connection, so `take` never waits for another borrower: it returns an idle
connection or opens one. Connections are opened one at a time, with jitter after
a failure, and are believed by PostgreSQL's word only: after each use the
session is reset, and in doubt it is closed.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from ..core.errors import DatabaseUnavailable, GatewayError, QueueTimeout
from .connect import Connector
from .connection import Connection

_BACKOFF = (0.05, 5.0)
"""Seconds: the first and the longest pause after a failed connect, with full jitter."""
_RESET_TIMEOUT = 5.0


class Pool:
    """The connections of one login on one database."""

    def __init__(
        self,
        connector: Connector,
        *,
        on_connect: Callable[[], None] = lambda: None,
        on_discard: Callable[[str], None] = lambda reason: None,
        on_reset: Callable[[], None] = lambda: None,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        self.connector = connector
        self.size = 0
        """Open connections, lent and idle."""
        self._idle: deque[Connection] = deque()
        self._opening = asyncio.Lock()
        self._failures = 0
        self._on_connect = on_connect
        self._on_discard = on_discard
        self._on_reset = on_reset
        self._make_room = make_room
        self.healthy: bool | None = None
        """Whether the last attempt to connect succeeded; `None` before the first."""
        self.last_error: GatewayError | None = None

    @property
    def idle(self) -> int:
        """Open connections that nobody holds."""
        return len(self._idle)

    def take_idle(self, now: float) -> Connection | None:
        """An idle connection that is still good, at once."""
        idle = self._idle
        while idle:
            # The one used last: its caches are warm, and the others age and are closed.
            connection = idle.pop()
            if connection.is_closed():
                self._forget(connection, "lost")
            elif connection.expires <= now:
                self._forget(connection, "age")
            else:
                return connection
        return None

    async def take(self, deadline: float) -> Connection:
        """An idle connection, or a new one before *deadline* (event-loop time).

        Raises:
            DatabaseUnavailable: The database took no connection in time.
        """
        loop = asyncio.get_running_loop()
        entered = loop.time()
        while True:
            connection = self.take_idle(loop.time())
            if connection is not None:
                return connection
            try:
                async with asyncio.timeout_at(deadline):
                    async with self._opening:
                        # While waiting for the lock somebody may have given one back.
                        connection = self.take_idle(loop.time())
                        if connection is not None:
                            return connection
                        return await self._open(deadline - loop.time())
            except TimeoutError:
                raise self.last_error or QueueTimeout(waited=loop.time() - entered) from None
            except DatabaseUnavailable as error:
                self.last_error = error
                pause = random.uniform(
                    0, min(_BACKOFF[1], _BACKOFF[0] * 2 ** min(self._failures, 10))
                )
                if loop.time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)

    async def _open(self, left: float) -> Connection:
        # In the same turn of the loop as the counting: nobody else may take the room.
        self._make_room()
        self.size += 1
        try:
            connection = await self.connector.connect(
                min(left, self.connector.target.pool.connect_timeout)
            )
        except BaseException:
            self.size -= 1
            self._failures += 1
            self.healthy = False
            raise
        self._failures = 0
        self.healthy = True
        self.last_error = None
        self._on_connect()
        return connection

    def drop_idle(self, reason: str) -> bool:
        """Close the connection that was idle for longest, if there is one."""
        if not self._idle:
            return False
        self._forget(self._idle.popleft(), reason)
        return True

    def discard(self, connection: Connection, reason: str) -> None:
        """Close a lent connection for good."""
        self._forget(connection, reason)

    def _forget(self, connection: Connection, reason: str) -> None:
        self.size -= 1
        self._on_discard(reason)
        connection.abort()

    async def give_back(self, connection: Connection) -> None:
        """Reset a lent connection and keep it, or close it; never raises for its sake."""
        try:
            clean = await connection.clean(_RESET_TIMEOUT)
        except asyncio.CancelledError:
            self._forget(connection, "cancelled")
            raise
        except Exception:  # noqa: BLE001  # whatever it is, the work is done and this one goes
            clean = False
        if not clean:
            self._forget(connection, "broken" if connection.broken else "dirty")
            return
        self._on_reset()
        self._idle.append(connection)

    async def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            connection = self._idle.pop()
            self.size -= 1
            try:
                await connection.close(timeout=1.0)
            except Exception:  # noqa: BLE001  # going away either way
                connection.abort()
