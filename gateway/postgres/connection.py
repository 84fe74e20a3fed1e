"""One connection to PostgreSQL, and what may be done on it.

A subclass of asyncpg's connection that keeps the driver's types in text form,
runs one prepared statement in one flight, counts the bytes that come back, and
is cleaned completely behind each request. It leans on private parts of
asyncpg 0.32, which is why that version is pinned; `tests/postgres` walks each.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import asyncpg
from asyncpg.connect_utils import _cancel as _send_cancel  # type: ignore[attr-defined]

from ..core.model import Column, Isolation, TransactionMode
from .behind import ResetBehind, followed
from .failures import is_sign_of_ddl
from .types import TypeCatalog

CANARY = "pgsluice_canary"
SEAL_SQL = (
    "select pg_catalog.set_config('gw.claims', $1, true),"
    " pg_catalog.set_config('gw.seal', $2, true)"
)
"""What is prepared as the canary; its values never stand in a text that others could read."""
NOTICES_KEPT = 20
_CHANGES_MEANING = ("CREATE", "SELECT", "ALTER", "DROP", "DISCARD", "DEALLOCATE")
"""How the tags of statements begin after which prepared ones may mean something else."""
_CHANGES_ROWS = ("ALTER", "DROP", "CREATE VIEW")
"""The same for those that were prepared on other connections."""
_FAREWELL = 2.0
"""Seconds that a session which was closed under its statement has to end."""

_RESET = (
    # A session's random() can be made predictable for the next one by setseed. The seed is
    # ours: to make one in SQL, of a random uuid, costs the server more than this whole line.
    "RESET SESSION AUTHORIZATION;RESET ALL;CLOSE ALL;UNLISTEN *;DISCARD SEQUENCES;SET seed=%.9f;"
    # A PREPARE inside a function survives all of the above, and could replace a statement of
    # ours under its own name: then another row comes, or one that says so. After a DEALLOCATE
    # ALL our canary is missing, and no row comes.
    "SELECT pg_catalog.pg_advisory_unlock_all(),from_sql,"
    # DISCARD TEMP leaves the schema of temporary objects, which can be seen; and with one
    # there already, a next temporary table does not stand before what prepared statements
    # mean by its name. So a session that had any goes, and they go with it.
    "pg_catalog.pg_my_temp_schema()"
    # An expression more in here costs the server several microseconds.
    " FROM pg_catalog.pg_prepared_statement()"
    f" WHERE from_sql OR name OPERATOR(pg_catalog.=) '{CANARY}'"
)
"""What makes a session as new, as one simple query."""
_CLEAN_ROW = b"D\0\0\0\x14\0\3" + b"\0\0\0\0" + b"\0\0\0\1f" + b"\0\0\0\0010"
"""The one row of it then: nothing, false, 0."""
_seeds = random.Random()
"""Of its own: what the shared generator gives is seen elsewhere, and tells what comes next."""


def _reset_message() -> tuple[bytes, bytes]:
    head, tail = (part.encode("ascii") for part in _RESET.split("%.9f"))
    size = 4 + len(head) + len("0.123456789") + len(tail) + 1
    return b"Q" + struct.pack("!i", size) + head, tail + b"\0"


_RESET_HEAD, _RESET_TAIL = _reset_message()


def reset_message() -> bytes:
    """The message that resets a session; `ResetBehind` hears how it ends."""
    return b"%b%.9f%b" % (_RESET_HEAD, _seeds.random(), _RESET_TAIL)


_ISOLATION = {
    Isolation.READ_COMMITTED: " ISOLATION LEVEL READ COMMITTED",
    Isolation.REPEATABLE_READ: " ISOLATION LEVEL REPEATABLE READ",
    Isolation.SERIALIZABLE: " ISOLATION LEVEL SERIALIZABLE",
}


_TIMES = ((1082, "date", "int4"), (1114, "timestamp", "int8"), (1184, "timestamptz", "int8"))


_GATHERED = 128 * 1024
"""Bytes of a COPY passed on at a time."""
_GATHER_FOR = 0.002
"""Seconds that a smaller piece waits for more."""
_BEGUN = b"1\0\0\0\x042\0\0\0\x04C\0\0\0\nBEGIN\0"
"""What PostgreSQL says to a BEGIN that is sent as a statement."""
_READY = b"Z\0\0\0\5"
"""How the last message of an answer begins; one byte follows."""
_READY_SIZE = len(_READY) + 1


class OverBudget(Exception):
    """A result passed the bytes that it may take; its connection is closed."""


class Answer(NamedTuple):
    """What one Execute message brought."""

    rows: Sequence[Sequence[Any]]
    tag: str
    complete: bool
    """Whether the portal ran to its end."""


class Described(NamedTuple):
    """A prepared statement and what PostgreSQL says of it."""

    state: Any
    parameters: tuple[int, ...]
    """Type oids of `$1 …`."""
    columns: tuple[Column, ...] | None
    """`None` without a row description."""


class _Counter(asyncio.Protocol):
    """Stands between the socket and the driver, and counts bytes received."""

    def __init__(self, inner: Any, transport: Any) -> None:
        self.inner = inner
        self.transport = transport
        self.left = 1 << 62
        self.received = 0
        self.exceeded = False
        self.line: socket.socket | None = None
        """The way to the server after the driver's end, to hear that it has ended too."""
        self.watched: bytearray | None = None
        """During COPY FROM STDIN: the beginning of a message whose end has not come yet."""
        self.refused = False
        """During COPY FROM STDIN: PostgreSQL has said that it fails."""
        self.hidden: bytearray | None = None
        """Until PostgreSQL has answered what the driver does not know that was sent: the
        beginning of a message whose end has not come yet."""
        self.hides = 0
        """How many commands of those PostgreSQL has not completed yet."""
        self.recorded: list[bytes] | None = None
        """While many sets run: what came, for their tags."""
        self.gathered: list[bytes] | None = None
        """During COPY TO STDOUT: what came since the driver was given something."""
        self.behind = ResetBehind(transport, inner.data_received, _CLEAN_ROW)
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        self.received += len(data)
        if self.hidden is not None:
            if self.hides == 1 and not self.hidden and data.startswith(_BEGUN):
                self.hidden = None  # what BEGIN alone is answered with, nearly always
                data = data[len(_BEGUN) :]
            else:
                data = self._without_hidden(self.hidden, data)
            if not data:
                return
        if self.left < 0:
            self.exceeded = True
            self.keep_line()
            self.transport.abort()
            return
        if self.behind.pending:
            self.behind.take(data)
            return
        if self.watched is not None:
            self._watch(self.watched, data)
        if self.recorded is not None:
            self.recorded.append(data)
        if self.gathered is not None:
            self._gather(self.gathered, data)
            return
        self.inner.data_received(data)

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Give the driver larger pieces meanwhile: of PostgreSQL's 8 KiB each has its price.

        The driver stops reading for every piece that it passes on, wakes a task, and begins
        to read again: without this, half of the time of a COPY.
        """
        self.gathered = []
        try:
            yield
        finally:
            self._pass_on()
            self.gathered = None

    def _gather(self, gathered: list[bytes], data: bytes) -> None:
        gathered.append(data)
        self._size += len(data)
        if self._size >= _GATHERED or data[-6:-1] == _READY:
            self._pass_on()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_GATHER_FOR, self._pass_on)

    def _pass_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.gathered:
            data = b"".join(self.gathered)
            self.gathered.clear()
            self._size = 0
            self.inner.data_received(data)

    def _watch(self, begun: bytearray, data: bytes) -> None:
        """Look for an error: one byte of type and four of length begin each message."""
        begun += data
        while len(begun) >= 5:
            size = 1 + int.from_bytes(begun[1:5], "big")
            if begun[0] == 0x45:
                self.refused = True
            if len(begun) < size:
                break
            del begun[:size]

    def _without_hidden(self, begun: bytearray, data: bytes) -> bytes:
        """*data* without the answers to what was sent in front: BEGIN, claims, or both.

        Parameters and notices that come in between are the driver's, and so is an error,
        after which PostgreSQL answers nothing before the Sync.
        """
        begun += data
        passed = bytearray()
        while len(begun) >= 5:
            size = 1 + int.from_bytes(begun[1:5], "big")
            if len(begun) < size:
                break
            kind = begun[0]
            if kind == 0x45:
                self.hidden = None
                break
            if kind not in b"12DC":
                passed += begun[:size]
            del begun[:size]
            if kind == 0x43:
                self.hides -= 1
                if not self.hides:
                    self.hidden = None
                    break
        if self.hidden is None:
            passed += begun
        return bytes(passed)

    def keep_line(self) -> None:
        """Keep the line open that is about to be closed, unless bytes of ours are on it."""
        sock = self.transport.get_extra_info("socket")
        if self.line is None and sock is not None and not self.transport.get_write_buffer_size():
            with contextlib.suppress(OSError):
                if not _unacknowledged(sock.fileno()):
                    self.line = socket.socket(fileno=os.dup(sock.fileno()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._pass_on()
        self.inner.connection_lost(exc)
        self.behind.lost()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def eof_received(self) -> Any:
        return self.inner.eof_received()


class Connection(asyncpg.Connection):
    """A clean session, lent to one request at a time."""

    __slots__ = (
        "behind",
        "born",
        "broken",
        "catalog",
        "changes",
        "clock",
        "comment",
        "commented",
        "counter",
        "described",
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
    _config: Any
    _drop_local_statement_cache: Any
    _stmts_to_close: Any
    _get_statement: Any
    _get_unique_id: Any
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
    described: dict[str, Described]
    changes: int
    """Those of the catalog when everything here was last forgotten."""
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
        self.changes = catalog.changes
        self.described = {}
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
        self.counter = _Counter(self._protocol, self._transport)
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

    async def _introspect_types(self, typeoids: Any, timeout: float | None) -> Any:
        missing = self.catalog.missing(typeoids)
        name = "kept"
        if missing:
            budget, self.counter.left = self.counter.left, 1 << 62
            rows, statement = await asyncpg.Connection._introspect_types(  # type: ignore[attr-defined]
                self, missing, timeout
            )
            self.counter.left = budget
            self.catalog.learn(rows)
            name = statement.name
        self.catalog.prepare_arrays(self._protocol.get_settings(), typeoids)
        # asyncpg looks at the name alone: an anonymous statement has replaced ours.
        return self.catalog.rows(typeoids), SimpleNamespace(name=name)

    async def means_otherwise(self, sql: str, described: Described, timeout: float) -> bool:
        """Whether *sql* would have parameters of other types than when it was *described*."""
        if self.behind.sent:
            await self._after_reset(timeout)
        self.unsynced = True
        state = await self._get_statement(sql, timeout, use_cache=False)
        parameters = tuple(parameter.oid for parameter in state._get_parameters() or ())
        return parameters != described.parameters

    def known(self, sql: str) -> Described | None:
        """What `describe` would return without asking the server."""
        if self.changes != self.catalog.changes:
            self.forget()
        kept = self.described.get(sql)
        # The driver closes statements for their age, or to make room for others.
        return None if kept is None or kept.state.closed else kept

    async def describe(self, sql: str, timeout: float) -> Described:
        """Prepare *sql*, or take it from the cache of this connection."""
        kept = self.known(sql)
        if kept is not None:
            return kept
        if self.behind.sent:
            await self._after_reset(timeout)
        self.unsynced = True
        state = await self._get_statement(sql, timeout, named=True)
        described = self._read_description(state)
        if len(self.described) >= 2 * self._config.statement_cache_size:
            self.described.clear()
        self.described[sql] = described
        return described

    async def with_comment(self, sql: str, described: Described, timeout: float) -> Described:
        """*described* prepared once more, with the comment in its text and for this time only.

        A comment is another one each time: kept among the others, it would push them out.
        """
        text = f"{sql}\n{self.comment}"
        kept = self.commented
        if kept is not None and kept[0] == text and not kept[1].state.closed:
            return kept[1]
        if self.behind.sent:
            await self._after_reset(timeout)
        self._drop_commented()
        self.unsynced = True
        # With a name: the one without is lost with the next simple query, such as BEGIN.
        state = await self._get_statement(text, timeout, named=True, use_cache=False)
        made = described._replace(state=state)
        self.commented = (text, made)
        return made

    def _drop_commented(self) -> None:
        """Let the driver close it, before it prepares the next statement."""
        if self.commented is not None:
            self._stmts_to_close.add(self.commented[1].state)
            self.commented = None

    def _read_description(self, state: Any) -> Described:
        catalog = self.catalog
        parameters = tuple(parameter.oid for parameter in state._get_parameters() or ())
        attributes = state._get_attributes()
        details = _row_description(state)
        if details is None and not attributes:
            return Described(state, parameters, None)
        columns = []
        for index, attribute in enumerate(attributes or ()):
            oid = attribute.type.oid
            facts = catalog.facts(oid)
            table, number, typmod = (0, 0, -1)
            if details is not None and index < len(details):
                table, number, typmod = details[index]
            columns.append(
                Column(attribute.name, facts.name, oid, catalog.kind(oid), table, number, typmod)
            )
        return Described(state, parameters, tuple(columns))

    @contextlib.contextmanager
    def binary_times(self) -> Iterator[None]:
        """Statements prepared meanwhile give dates and timestamps as PostgreSQL counts them.

        Days, or microseconds, since 2000-01-01: read by the driver in C, where a text has
        to be taken apart. They must have no parameters of those types.
        """
        settings = self._protocol.get_settings()
        for oid, name, alias in _TIMES:
            settings.set_builtin_type_codec(oid, name, "pg_catalog", "scalar", alias, "binary")
        try:
            yield
        finally:
            self.catalog.prepare_only(settings, [oid for oid, _, _ in _TIMES])

    def claim(self, claims: str, seal: str) -> None:
        """Set *claims* in the transaction of the next statement, right before it.

        They travel in one flight with it, and in its implicit transaction if there is no
        other. Both are values: nobody sees them in the text of the statement.
        """
        self.first = _bind_and_execute(CANARY, (claims, seal))

    async def _send_first(self, timeout: float) -> None:
        opening, self.opening = self.opening, None
        first, self.first = self.first, None
        if opening is None and first is None:
            return
        # The driver writes at once then, and nothing comes between.
        await self.quiet(timeout)
        if not self.is_closed():
            counter = self.counter
            counter.hidden = bytearray()
            counter.hides = (opening is not None) + (first is not None)
            self._transport.write((opening or b"") + (first or b""))

    async def run(
        self,
        described: Described,
        arguments: Sequence[Any],
        *,
        timeout: float,
        budget: int,
        limit: int = 0,
        portal: str = "",
        last: bool = False,
    ) -> Answer:
        """Bind and execute in one flight.

        Args:
            timeout: Seconds; at its end the backend is cancelled and TimeoutError raised.
            budget: Bytes that may come back; beyond, the connection is closed.
            limit: Rows at most, 0 for all.
            portal: Its name; with a name and a limit, `fetch_portal` gets the rest.
            last: Nothing follows as a rule: outside a transaction, the reset goes with it.

        Raises:
            OverBudget: More bytes came than *budget*.
        """
        counter = self.counter
        if self.behind.sent:
            await self._after_reset(timeout)
        if self.first is not None or self.opening is not None:
            await self._send_first(timeout)
        counter.left = budget
        self.unsynced = False
        protocol = self._protocol
        asking = protocol.bind_execute(described.state, arguments, portal, limit, True, timeout)
        if last and not protocol.is_in_transaction() and not protocol._is_cancelling():
            asking = followed(asking, self.behind, reset_message())
        try:
            rows, status, complete = await asking
        except Exception as error:
            if counter.hidden is not None and not isinstance(error, TimeoutError):
                self.broken = True  # the driver never sent its part, and PostgreSQL waits for it
            # Or somebody's DEALLOCATE, perhaps of others, too.
            if is_sign_of_ddl(error) or isinstance(error, asyncpg.InvalidSQLStatementNameError):
                self.forget()
            if counter.exceeded:
                self.broken = True
                raise OverBudget from error
            raise
        finally:
            counter.left = 1 << 62
        tag = (status or b"").decode("ascii", "replace")
        if described.columns is None and tag.startswith(_CHANGES_MEANING):
            # A temporary table may stand before one that other statements mean, and PostgreSQL
            # does not look again for those that are prepared; or their rows have new types,
            # which inside a transaction would be an error (0A000) and its end.
            if tag.startswith(_CHANGES_ROWS):
                self.catalog.changes += 1
            self.forget()
        return Answer(rows, tag, bool(complete))

    async def run_many(
        self, described: Described, sets: Iterable[Sequence[Any]], *, timeout: float, tags: bool
    ) -> list[str]:
        """Execute once for each of *sets*, pipelined; return their command tags, if asked for.

        A set is asked for when it can be sent, so PostgreSQL works meanwhile. What that raises
        is raised here. Rows are thrown away.
        """
        if self.behind.sent:
            await self._after_reset(timeout)
        await self._send_first(timeout)
        counter = self.counter
        came: list[bytes] = []
        counter.recorded = came if tags else None
        try:
            await self._protocol.bind_execute_many(described.state, sets, "", timeout, False)
        finally:
            counter.recorded = None
        return _tags(b"".join(came))

    def portal_name(self) -> str:
        """A fresh name for a portal."""
        return str(self._get_unique_id("portal"))

    async def open_portal(
        self, described: Described, arguments: Sequence[Any], *, timeout: float
    ) -> str:
        """A named portal inside the open transaction, to be read by `fetch_portal`."""
        name = self.portal_name()
        await self._send_first(timeout)
        await self._protocol.bind(described.state, arguments, name, timeout)
        return name

    async def fetch_portal(
        self, described: Described, portal: str, count: int, *, timeout: float, budget: int
    ) -> Answer:
        """The next *count* rows of *portal*."""
        counter = self.counter
        counter.left = budget
        try:
            rows, status, complete = await self._protocol.execute(
                described.state, portal, count, True, timeout
            )
        except Exception as error:
            if counter.exceeded:
                self.broken = True
                raise OverBudget from error
            raise
        finally:
            counter.left = 1 << 62
        tag = (status or b"").decode("ascii", "replace")
        return Answer(rows, tag, bool(complete) or len(rows) < count)

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
            await self._after_reset(timeout)
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

    def can_begin_ahead(self) -> bool:
        """Whether `begin_ahead` may be used now."""
        return not (self.unsynced or self.behind.sent or self.in_transaction)

    def begin_ahead(self) -> None:
        """Have the next statement, which is prepared, begin a transaction that may write.

        BEGIN travels in front of it, in one flight; if it fails, the statement does not run.
        """
        self.guarded = False
        self.opening = _BEGIN

    @property
    def undoes_read_only(self) -> bool:
        """Whether `RESET transaction_read_only` is obeyed where SET is not: until PostgreSQL 15."""
        return bool(self.get_server_version().major < 16)

    async def has_written(self, timeout: float) -> bool:
        """Whether the open transaction has a number: none that only reads gets one."""
        sql = "SELECT 1 WHERE pg_catalog.pg_current_xact_id_if_assigned() IS NULL"
        return await self.script(sql, timeout) != "SELECT 1"

    def forget(self) -> None:
        """Drop all prepared statements, after DDL or a sign of a foreign DEALLOCATE."""
        self._drop_local_statement_cache()
        self.described.clear()
        self.changes = self.catalog.changes

    async def _after_reset(self, timeout: float) -> None:
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
            self._drop_commented()
        return self.behind.clean and self.counter.hidden is None and not self.is_closed()

    async def clean(self, timeout: float) -> bool:
        """Reset the session; `False` if anything is left, then it must be closed."""
        protocol = self._protocol
        if self.broken or self.is_closed():
            return False
        await self.quiet(timeout)
        if self.behind.sent:
            await self._after_reset(timeout)
            return self.left()
        if self.counter.hidden is not None:
            return False
        if protocol.is_in_transaction():
            await self.script("ROLLBACK", timeout)
        self.unsynced = False
        self.behind.alone(reset_message())
        await self._after_reset(timeout)
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


def _tags(data: bytes) -> list[str]:
    """The command tags among whole messages, which the driver reads and forgets."""
    # Sets alike have answers alike, each of a BindComplete of five bytes and a tag: one
    # comparison of all, where message by message costs 0.3 µs a set.
    if data.startswith(b"2\0\0\0\4C"):
        unit = data[: 6 + int.from_bytes(data[6:10], "big")]
        count = (len(data) - _READY_SIZE) // len(unit)
        if data[:-_READY_SIZE] == unit * count:
            return [unit[10:-1].decode("ascii", "replace")] * count
    tags = []
    at, end = 0, len(data)
    while at < end:
        size = int.from_bytes(data[at + 1 : at + 5], "big")
        if data[at] == 0x43:
            tags.append(data[at + 5 : at + size].decode("ascii", "replace"))
        at += 1 + size
    return tags


def _bind_and_execute(statement: str, values: Sequence[str]) -> bytes:
    """The messages Bind and Execute, values and result as text. No Sync: more follows."""
    body = bytearray(b"\0" + statement.encode() + b"\0" + struct.pack("!HH", 0, len(values)))
    for value in values:
        raw = value.encode()
        body += struct.pack("!i", len(raw)) + raw
    body += struct.pack("!H", 0)
    execute = b"\0" + struct.pack("!i", 0)
    return b"".join(
        kind + struct.pack("!i", 4 + len(message)) + message
        for kind, message in ((b"B", bytes(body)), (b"E", execute))
    )


def _parse_and_execute(sql: str) -> bytes:
    """The messages Parse, Bind and Execute for *sql*, without names, values or rows."""
    parts = (b"\0" + sql.encode() + b"\0\0\0", b"\0\0\0\0\0\0\0\0", b"\0\0\0\0\0")
    return b"".join(
        kind + struct.pack("!i", 4 + len(message)) + message
        for kind, message in zip((b"P", b"B", b"E"), parts, strict=True)
    )


_BEGIN = _parse_and_execute("BEGIN READ WRITE")


def _unacknowledged(descriptor: int) -> int:
    """Bytes in the kernel's send queue that the other side has not taken."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


async def _end_of(line: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(line, 1 << 16):
            pass


def _row_description(state: Any) -> list[tuple[int, int, int]] | None:
    """Table oid, attribute number and typmod of each column.

    asyncpg decodes them and keeps them to itself; the garbage collector knows where.
    """
    import gc

    lists = [referent for referent in gc.get_referents(state) if isinstance(referent, list)]
    for each in lists:
        if each and isinstance(each[0], tuple) and len(each[0]) == 7:
            return [(entry[1], entry[2], entry[5]) for entry in each]
    # SELECT without columns: an empty list beside that of the parameters. A command that
    # returns no rows has that one alone.
    return [] if len(lists) == 2 else None
