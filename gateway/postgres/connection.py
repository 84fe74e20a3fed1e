"""One connection to PostgreSQL, and what may be done on it.

A session that runs one prepared statement in one flight. It leans on private parts of
asyncpg 0.32, as `session.py` and `counter.py` do, which is why that version is pinned;
`tests/postgres` walks each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import asyncpg

from .behind import followed
from .failures import is_sign_of_ddl
from .messages import BEGIN, bind_and_execute, command_tags
from .prepared import Described, read_description
from .reset import CANARY, reset_message
from .session import Session
from .types import TypeCatalog

_CHANGES_MEANING = ("CREATE", "SELECT", "ALTER", "DROP", "DISCARD", "DEALLOCATE")
"""How the tags of statements begin after which prepared ones may mean something else."""
_CHANGES_ROWS = ("ALTER", "DROP", "CREATE VIEW")
"""The same for those that were prepared on other connections."""
_TIMES = ((1082, "date", "int4"), (1114, "timestamp", "int8"), (1184, "timestamptz", "int8"))


class OverBudget(Exception):
    """A result passed the bytes that it may take; its connection is closed."""


class Answer(NamedTuple):
    """What one Execute message brought."""

    rows: Sequence[Sequence[Any]]
    tag: str
    complete: bool
    """Whether the portal ran to its end."""


class Connection(Session):
    """A clean session, lent to one request at a time."""

    __slots__ = ("changes", "described")
    # The driver's own, which its stubs leave out.
    _config: Any
    _drop_local_statement_cache: Any
    _get_statement: Any
    _get_unique_id: Any
    described: dict[str, Described]
    changes: int
    """Those of the catalog when everything here was last forgotten."""

    def set_up(self, catalog: TypeCatalog) -> None:
        """Take over a fresh connection, on which nothing is prepared."""
        self.changes = catalog.changes
        self.described = {}
        super().set_up(catalog)

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
            await self.after_reset(timeout)
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
            await self.after_reset(timeout)
        self.unsynced = True
        state = await self._get_statement(sql, timeout, named=True)
        described = read_description(state, self.catalog)
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
            await self.after_reset(timeout)
        self.drop_commented()
        self.unsynced = True
        # With a name: the one without is lost with the next simple query, such as BEGIN.
        state = await self._get_statement(text, timeout, named=True, use_cache=False)
        made = described._replace(state=state)
        self.commented = (text, made)
        return made

    def forget(self) -> None:
        """Drop all prepared statements, after DDL or a sign of a foreign DEALLOCATE."""
        self._drop_local_statement_cache()
        self.described.clear()
        self.changes = self.catalog.changes

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
        self.first = bind_and_execute(CANARY, (claims, seal))

    def can_begin_ahead(self) -> bool:
        """Whether `begin_ahead` may be used now."""
        return not (self.unsynced or self.behind.sent or self.in_transaction)

    def begin_ahead(self) -> None:
        """Have the next statement, which is prepared, begin a transaction that may write.

        BEGIN travels in front of it, in one flight; if it fails, the statement does not run.
        """
        self.guarded = False
        self.opening = BEGIN

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
            await self.after_reset(timeout)
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
            await self.after_reset(timeout)
        await self._send_first(timeout)
        counter = self.counter
        came: list[bytes] = []
        counter.recorded = came if tags else None
        try:
            await self._protocol.bind_execute_many(described.state, sets, "", timeout, False)
        finally:
            counter.recorded = None
        return command_tags(b"".join(came))

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
