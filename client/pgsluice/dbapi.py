"""PEP 249 over the gateway: a connection is a transaction that begins with its first statement.

    import pgsluice.dbapi

    with pgsluice.dbapi.connect("https://gateway.example.com", token="…") as connection:
        cursor = connection.cursor()
        cursor.execute("select name from products where id = :id", {"id": 7})
        name, = cursor.fetchone()

Parameters are a dict for `:name` or a list for `$1 …`. Connections cost nothing: one
HTTP connection carries them all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date as Date
from datetime import datetime as Timestamp
from datetime import time as Time
from typing import TYPE_CHECKING, Any

from . import _protocol
from ._core import TransactionFlows
from ._words import Flows, Streaming
from .errors import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from .sync import Client

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "Binary",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "threadsafety",
]

apilevel = "2.0"
threadsafety = 1
paramstyle = "named"

SETS = 5_000
"""Sets of parameters that go into one request, where several requests are one transaction."""

_COUNTED = {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "FETCH", "MOVE"}


class Warning(Exception):
    """Never raised: notices are in `Result.notices`."""


class _Kind(frozenset[str]):
    """Equal to each of the types that it stands for."""

    def __eq__(self, other: object) -> bool:
        return other in self if isinstance(other, str) else super().__eq__(other)

    __hash__ = frozenset.__hash__


STRING = _Kind({"text", "varchar", "bpchar", "name", "char"})
BINARY = _Kind({"bytea"})
NUMBER = _Kind({"int2", "int4", "int8", "float4", "float8", "numeric"})
DATETIME = _Kind({"date", "time", "timetz", "timestamp", "timestamptz", "interval"})
ROWID = _Kind({"oid"})
Binary = bytes


def DateFromTicks(ticks: float) -> Date:
    """The day of *ticks* seconds since the epoch, local time."""
    return Date(*time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> Time:
    """The time of day of *ticks* seconds since the epoch, local time."""
    return Time(*time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> Timestamp:
    """The moment of *ticks* seconds since the epoch, local time."""
    return Timestamp(*time.localtime(ticks)[:6])


def connect(url: str | None = None, *, client: Any = None, **options: Any) -> Connection:
    """A connection through the gateway at *url*.

    Args:
        client: A `Client` to share; else one is made of *url* and *options*, see `Client`,
            and closed with the connection.
    """
    return Connection(client or Client(url, **options), owned=client is None)


class Connection:
    """A session in PEP 249's sense: statements, then commit or rollback."""

    Warning = Warning
    Error = Error
    InterfaceError = InterfaceError
    DatabaseError = DatabaseError
    DataError = DataError
    OperationalError = OperationalError
    IntegrityError = IntegrityError
    InternalError = InternalError
    ProgrammingError = ProgrammingError
    NotSupportedError = NotSupportedError

    def __init__(self, client: Any, *, owned: bool = False) -> None:
        self.client = client
        self.closed = False
        self.isolation_level: str | None = None
        """As PostgreSQL says it; of the next transaction."""
        self.read_only = False
        """Of the next transaction."""
        self.deferrable = False
        """Of the next transaction."""
        self._owned = owned
        self._autocommit = False
        self._transaction: TransactionFlows | None = None
        self._reading: Cursor | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.commit() if error is None else self.rollback()
        finally:
            self.close()

    @property
    def autocommit(self) -> bool:
        """Whether each statement is a transaction of its own."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if self._transaction is not None:
            raise ProgrammingError("autocommit cannot change inside a transaction")
        self._autocommit = value

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun."""
        return self._transaction is not None

    def cursor(self, *, stream: bool = False) -> Cursor:
        """A new cursor; *stream* fetches rows when they are asked for, however many."""
        self._check()
        return Cursor(self, stream=stream)

    def commit(self) -> None:
        """Make what was done permanent."""
        self._check()
        self._settle()
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            self.client._run(transaction.commit())

    def rollback(self) -> None:
        """Undo what was done."""
        self._check()
        if self._reading is not None:
            self._reading._drop()
        transaction, self._transaction = self._transaction, None
        if transaction is not None and transaction.id is not None:
            self.client._run(transaction.rollback())

    def close(self) -> None:
        """Undo what was not committed, and end."""
        if self.closed:
            raise InterfaceError("the connection is closed already")
        try:
            self.rollback()
        finally:
            self.closed = True
            if self._owned:
                self.client.close()

    def _check(self) -> None:
        if self.closed:
            raise InterfaceError("the connection is closed")

    def _settle(self) -> None:
        """Fetch what a stream still has to say: a transaction does one thing at a time."""
        if self._reading is not None:
            self._reading._keep()

    def _ready(self) -> Flows:
        self._check()
        self._settle()
        if self._autocommit:
            flows: Flows = self.client._core
            return flows
        if self._transaction is None:
            level = (self.isolation_level or "").upper().replace("_", " ") or None
            # PostgreSQL treats it as read committed and shows it as what it was called.
            uncommitted = level == "READ UNCOMMITTED"
            core = self.client._core
            begin = _protocol.begin(
                core.place,
                isolation=None if uncommitted else level,
                read_only=self.read_only,
                deferrable=self.deferrable,
            )
            transaction = TransactionFlows(core, begin)
            self.client._run(transaction.begin())
            self._transaction = transaction
            if uncommitted:
                word = f"set transaction isolation level {level}"
                self.client._run(transaction.execute(word))
        return self._transaction


class Cursor:
    """Runs statements of its connection and holds the rows of the last one."""

    def __init__(self, connection: Connection, *, stream: bool = False) -> None:
        self.connection = connection
        self.arraysize = 1
        self.description: tuple[tuple[Any, ...], ...] | None = None
        self.rowcount = -1
        self.lastrowid = None
        self.streams = stream
        self._rows: deque[tuple[Any, ...]] | None = None
        self._more: Callable[[], list[Any] | None] | None = None
        self._body: Any = None
        self._closed = False

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchone, None)

    def close(self) -> None:
        """Forget the rows."""
        self._drop()
        self._rows, self.description, self._closed = None, None, True

    def execute(
        self, operation: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> Cursor:
        """Run one statement."""
        flows = self._begin()
        if self.streams:
            self._open(Streaming(flows, operation, parameters, tuple, None, False))
            return self
        result = self.connection.client._run(flows.execute(operation, parameters))
        if result.columns:
            self._describe(result.columns)
            self._rows = deque(result.rows)
        counted = result.command.partition(" ")[0] in _COUNTED
        self.rowcount = result.row_count if counted else -1
        return self

    def executemany(
        self, operation: str, sets: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> Cursor:
        """Run one statement for each set of parameters; rows are not kept."""
        sets = list(sets)
        flows = self._begin()
        size = len(sets) or 1 if self.connection.autocommit else SETS
        count = 0
        for at in range(0, len(sets), size):
            part = flows.execute_many(operation, sets[at : at + size])
            count += sum(each.row_count for each in self.connection.client._run(part))
        self.rowcount = count
        return self

    def callproc(self, procname: str, parameters: Sequence[Any] = ()) -> Sequence[Any]:
        """Call the function *procname*; its rows can be fetched."""
        name = ".".join('"' + part.replace('"', '""') + '"' for part in procname.split("."))
        places = ", ".join(f"${number}" for number in range(1, len(parameters) + 1))
        self.execute(f"select * from {name}({places})", list(parameters))
        return parameters

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or `None`."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """The next *size* rows, or `arraysize`."""
        rows, size = self._held(), self.arraysize if size is None else size
        while self._more is not None and len(rows) < size:
            self._fill()
        return [rows.popleft() for _ in range(min(size, len(rows)))]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        rows = self._held()
        self._keep()
        found = list(rows)
        rows.clear()
        return found

    def nextset(self) -> None:
        """There is one result only."""

    def setinputsizes(self, sizes: Any) -> None:
        """PostgreSQL knows the types."""

    def setoutputsize(self, size: Any, column: Any = None) -> None:
        """There is no limit."""

    def _begin(self) -> Flows:
        if self._closed:
            raise InterfaceError("the cursor is closed")
        self._drop()
        self._rows, self.description, self.rowcount = None, None, -1
        return self.connection._ready()

    def _describe(self, columns: Iterable[Any]) -> None:
        self.description = tuple(
            (column.name, column.type, None, None, None, None, None) for column in columns
        )

    def _held(self) -> deque[tuple[Any, ...]]:
        if self._rows is None:
            raise InterfaceError(
                "the cursor is closed" if self._closed else "the last statement gave no rows"
            )
        return self._rows

    def _open(self, rows: Streaming) -> None:
        client = self.connection.client
        answer = client._run(rows.open())
        self._body = answer.body

        def more() -> list[Any] | None:
            found: list[Any] | None = client._piece(rows, answer.body)
            return found

        self._rows, self._more, self.connection._reading = deque(), more, self
        while self._more is not None and not rows.columns:
            self._fill()
        if rows.columns:
            self._describe(rows.columns)
        else:
            self._rows = None

    def _fill(self) -> None:
        assert self._more is not None and self._rows is not None
        try:
            found = self._more()
        except BaseException:
            self._drop()
            raise
        if found is None:
            self._ended()
        else:
            self._rows.extend(found)

    def _keep(self) -> None:
        while self._more is not None:
            self._fill()

    def _drop(self) -> None:
        if self._more is not None:
            self.connection.client._stop(self._body)
            self._ended()

    def _ended(self) -> None:
        self._more = self._body = None
        if self.connection._reading is self:
            self.connection._reading = None
