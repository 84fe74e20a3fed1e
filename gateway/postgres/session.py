"""A session of PostgreSQL's: set up, asked by the gateway itself, cleaned, and ended.

A subclass of asyncpg's connection that keeps the driver's types in text form,
counts the bytes that come back, and is cleaned completely behind each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg.connect_utils import _cancel as _send_cancel  # type: ignore[attr-defined]

from ..core.model import Isolation, TransactionMode
from .behind import ResetBehind, followed
from .counter import Counter
from .prepared import Described
from .reset import CANARY, SEAL_SQL, reset_message
from .types import TypeCatalog

NOTICES_KEPT = 20
_FAREWELL = 2.0
"""Seconds that a session which was closed under its statement has to end."""
_ISOLATION = {
    Isolation.READ_COMMITTED: " ISOLATION LEVEL READ COMMITTED",
    Isolation.REPEATABLE_READ: " ISOLATION LEVEL REPEATABLE READ",
    Isolation.SERIALIZABLE: " ISOLATION LEVEL SERIALIZABLE",
}


class Session(asyncpg.Connection):
    """What is true of a session whatever is asked on it: its beginning, its reset, its end."""

    __slots__ = (
        "behind",
        "born",
        "broken",
        "catalog",
        "clock",
        "comment",
        "commented",
        "counter",
        "expires",
        "first",
        "guarded",
        "notices",
        "opening",
        "pid",
        "unsynced",
    )
    # The driver's own, which its stubs leave out.
    _protocol: Any
    _transport: Any
    _addr: Any
    _params: Any
    _stmts_to_close: Any
    behind: ResetBehind
    """The reset that was sent behind a statement, if one was."""
    born: float
    """Event-loop time at which it was opened."""
    expires: float
    """Event-loop time from which it is not lent again."""
    broken: bool
    """It must be closed instead of lent again."""
    clock: Callable[[], float]
    """That of its event loop."""
    pid: int
    """Of its backend."""
    guarded: bool
    """The open transaction must not write, and PostgreSQL alone does not see to it."""
    first: bytes | None
    """Messages to be sent in front of the next statement, in the same flight."""
    opening: bytes | None
    """The same, and before those: what opens a transaction."""
    comment: str
    """What is written behind each statement of the borrower's; nothing as a rule."""
    commented: tuple[str, Described] | None
    """The last statement that was prepared with such a comment, and the whole text of it."""

    def set_up(self, catalog: TypeCatalog) -> None:
        """Take over a fresh connection: text codecs, byte counter."""
        self.clock = asyncio.get_running_loop().time
        self.pid = self.get_server_pid()
        self.catalog = catalog
        self.comment = ""
        self.commented = None
        self.broken = False
        self.first = None
        self.opening = None
        self.guarded = False
        self.unsynced = False
        """Something was prepared: asyncpg sends Flush, so an implicit transaction is open."""
        self.notices: list[str] = []
        catalog.prepare(self._protocol.get_settings())
        self.counter = Counter(self._protocol, self._transport)
        self._transport.set_protocol(self.counter)
        self.behind = self.counter.behind

    def _process_log_message(self, fields: dict[str, str], last_query: str) -> None:
        if len(self.notices) < NOTICES_KEPT:
            self.notices.append(f"{fields.get('S', 'NOTICE')}: {fields.get('M', '')}")

    def take_notices(self) -> tuple[str, ...]:
        """What the server said beside the result, since the last call."""
        if not self.notices:
            return ()
        notices = tuple(self.notices)
        self.notices.clear()
        return notices

    async def plant_canary(self) -> None:
        """Prepare the statement whose absence tells of DEALLOCATE ALL, and which sets claims."""
        self.unsynced = True
        await self._protocol.prepare(
            CANARY, SEAL_SQL, 5.0, record_class=asyncpg.Record, ignore_custom_codec=True
        )
        # Nobody may be waiting for it any more: it must not idle in an open transaction,
        # whose snapshot keeps VACUUM from its work and whose time limit would end it.
        await self._protocol.query("SELECT 1", 5.0)
        self.unsynced = False

    async def quiet(self, timeout: float) -> None:
        """Wait until a statement that was cancelled has really ended."""
        if self._protocol._is_cancelling():
            async with asyncio.timeout(timeout):
                await self._protocol._wait_for_cancellation()

    @property
    def in_transaction(self) -> bool:
        """Whether PostgreSQL says that a transaction block is open, also a failed one."""
        return bool(self._protocol.is_in_transaction())

    @property
    def database(self) -> str:
        """The name of its database."""
        return str(self._params.database)

    @property
    def in_recovery(self) -> bool:
        """Whether the server is a standby; it tells its sessions as soon as that changes."""
        return getattr(self.get_settings(), "in_hot_standby", "off") == "on"

    @property
    def reads_only(self) -> bool:
        """Whether transactions only read unless they say otherwise; PostgreSQL 14 tells it."""
        return getattr(self.get_settings(), "default_transaction_read_only", "off") == "on"

    async def script(self, sql: str, timeout: float, *, last: bool = False) -> str:
        """Run the gateway's own *sql* as a simple query; return the last command tag.

        Args:
            last: It ends what the borrower does: the reset goes right behind it, as a message
                of its own, whose fate is not that of *sql*.
        """
        if self.behind.sent:
            await self.after_reset(timeout)
        if self.unsynced and not self._protocol.is_in_transaction():
            # BEGIN inside that implicit transaction could no longer choose its mode.
            await self._protocol.query("SELECT 1", timeout)
        self.unsynced = False
        asking = self._protocol.query(sql, timeout)
        if last and not self._protocol._is_cancelling():
            asking = followed(asking, self.behind, reset_message())
        tag = await asking
        return tag.decode("ascii", "replace") if isinstance(tag, bytes) else str(tag)

    async def begin(
        self, mode: TransactionMode, timeout: float, *, write: bool = True, then: str = ""
    ) -> str:
        """Open a transaction; READ ONLY if *mode* says so or nothing is to be written.

        Args:
            then: The gateway's own SQL to go in the same message; its tag is returned.
        """
        access = "READ ONLY" if mode.read_only or not write else "READ WRITE"
        level = _ISOLATION[mode.isolation] if mode.isolation else ""
        deferrable = " DEFERRABLE" if mode.deferrable else ""
        self.guarded = mode.read_only and self.undoes_read_only
        # With a snapshot taken, the caller can no longer make it READ WRITE.
        pin = ";SELECT 1" if mode.read_only else ""
        if then:
            then = ";" + then
        return await self.script(f"BEGIN{level} {access}{deferrable}{pin}{then}", timeout)

    @property
    def undoes_read_only(self) -> bool:
        """Whether `RESET transaction_read_only` is obeyed where SET is not: until PostgreSQL 15."""
        return bool(self.get_server_version().major < 16)

    async def has_written(self, timeout: float) -> bool:
        """Whether the open transaction has a number: none that only reads gets one."""
        sql = "SELECT 1 WHERE pg_catalog.pg_current_xact_id_if_assigned() IS NULL"
        return await self.script(sql, timeout) != "SELECT 1"

    def drop_commented(self) -> None:
        """Let the driver close it, before it prepares the next statement."""
        if self.commented is not None:
            self._stmts_to_close.add(self.commented[1].state)
            self.commented = None

    async def after_reset(self, timeout: float) -> None:
        """Wait until the reset that was sent has ended: the session is used once more."""
        await self.quiet(timeout)
        behind = self.behind
        if behind.pending:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            behind.then = lambda: None if ended.done() else ended.set_result(None)
            async with asyncio.timeout(timeout):
                await ended
        behind.sent = False

    @property
    def is_leaving(self) -> bool:
        """Whether its reset is on its way already, and nothing else."""
        return self.behind.sent and not self._protocol._is_cancelling()

    def left(self) -> bool:
        """Whether the reset that was sent has left a clean session, now that it has ended."""
        self.behind.sent = False
        self.notices.clear()
        self.first = self.opening = None
        self.comment = ""
        if self.commented is not None:
            self.drop_commented()
        return self.behind.clean and self.counter.hidden is None and not self.is_closed()

    async def clean(self, timeout: float) -> bool:
        """Reset the session; `False` if anything is left, then it must be closed."""
        protocol = self._protocol
        if self.broken or self.is_closed():
            return False
        await self.quiet(timeout)
        if self.behind.sent:
            await self.after_reset(timeout)
            return self.left()
        if self.counter.hidden is not None:
            return False
        if protocol.is_in_transaction():
            await self.script("ROLLBACK", timeout)
        self.unsynced = False
        self.behind.alone(reset_message())
        await self.after_reset(timeout)
        return self.left()

    def abort(self) -> None:
        """Close at once, without a goodbye."""
        self.broken = True
        if not self.is_closed():
            self.counter.keep_line()
            self.terminate()

    def hang_up(self) -> socket.socket | None:
        """Close at once; return the line on which `see_off` hears PostgreSQL end the session.

        `None`: there is no line any more, or bytes of ours are still on their way. Those
        must not arrive after we gave up on them, so the socket is reset.
        """
        self.abort()
        line, self.counter.line = self.counter.line, None
        return line

    async def see_off(self, line: socket.socket) -> None:
        """Return when PostgreSQL has ended the session behind *line*, or does not say so."""
        try:
            line.setblocking(False)
            line.shutdown(socket.SHUT_WR)
            ended = asyncio.get_running_loop().create_task(_end_of(line))
            try:
                # An idle session ends at the end of its input; a busy one must be told.
                if self.counter.exceeded or not (await asyncio.wait([ended], timeout=0.05))[0]:
                    await self._cancel_session()
                await asyncio.wait([ended], timeout=_FAREWELL)
            finally:
                ended.cancel()
                await asyncio.wait([ended])
        except OSError:
            pass  # reset: it has ended
        finally:
            line.close()

    async def _cancel_session(self) -> None:
        # The connection itself forgets its protocol when it is aborted.
        protocol = self.counter.inner
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with asyncio.timeout(_FAREWELL):
                await _send_cancel(
                    loop=asyncio.get_running_loop(),
                    addr=self._addr,
                    params=self._params,
                    backend_pid=protocol.backend_pid,
                    backend_secret=protocol.backend_secret,
                )


async def _end_of(line: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(line, 1 << 16):
            pass
