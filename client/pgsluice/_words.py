"""The words of a client, with their parameters and what they mean, for both shells.

A word is a flow: a generator that yields what has to be waited for (a `Send`, a number of
seconds, or a function to be called), is told what came of it, and returns the result.
`_core` has what they stand on; `sync` and `aio` make methods of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from . import _protocol
from ._protocol import Answer, Parameters, Request, Scope, Seconds
from ._result import Column, Frames, Result, csv_lines, maker, result
from ._values import Types, copy_text
from .errors import ConnectionFailed, Error, InterfaceError, NotOneRow, OutcomeUnknown, problem

if TYPE_CHECKING:
    from typing import Literal

    Isolation = Literal["read_committed", "repeatable_read", "serializable"]

T = TypeVar("T")
Flow = Generator[Any, Any, T]


class Send(NamedTuple):
    """One request of HTTP."""

    method: str
    path: str
    """Below the prefix of the origin."""
    headers: Mapping[str, str]
    body: bytes | Iterable[bytes]
    timeout: Seconds
    """Seconds for all of it, `None` for as long as the gateway is there."""
    stream: bool = False
    """Whether a good answer's body is wanted piece by piece."""


class Flows(ABC):
    """The words that a client and a transaction have in common, as flows."""

    types: Types | None
    exact: bool

    @abstractmethod
    def limit(self, timeout: Seconds) -> float | None:
        """Seconds for one call."""

    @abstractmethod
    def scope(
        self, timeout: Seconds = None, key: str | None = None, read_only: bool = False
    ) -> Scope:
        """Where one request belongs; the *timeout* in it is what `limit` makes of this one."""

    @abstractmethod
    def send(self, request: Request, timeout: Seconds, *, stream: bool = False) -> Flow[Any]:
        """The answer, after as many tries as are harmless and in time."""

    def execute(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: Seconds = None,
        read_only: bool = False,
        max_rows: int | None = None,
        key: str | None = None,
    ) -> Flow[Result]:
        """Run one statement; return its rows and what it did.

        Args:
            params: A list for `$1 …`, a dict for `:name`.
            timeout: Seconds, retries included.
            read_only: PostgreSQL refuses a write then, and a lost answer is asked for again.
            max_rows: Rows after which the result is cut off, and says so in `truncated`.
            key: Idempotency key; else a new one. Not in a transaction.
        """
        scope = self.scope(timeout, key, read_only=read_only)
        request = _protocol.execute(scope, sql, params, read_only=read_only, max_rows=max_rows)
        return result((yield from self.send(request, scope.timeout)), self.types)

    @overload
    def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: Seconds = None,
        read_only: bool = False,
    ) -> Flow[list[dict[str, Any]]]: ...
    @overload
    def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., T],
        timeout: Seconds = None,
        read_only: bool = False,
    ) -> Flow[list[T]]: ...
    def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = dict,
        timeout: Seconds = None,
        read_only: bool = False,
    ) -> Flow[list[Any]]:
        """The rows, each in the form of *into*.

        Args:
            into: `dict`, `tuple`, `collections.namedtuple` (named after the columns), or a
                class of yours that takes the columns as keywords: a dataclass, a NamedTuple.
        """
        found = yield from self.execute(sql, params, timeout=timeout, read_only=read_only)
        return found.into(into)

    @overload
    def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: Seconds = None,
        read_only: bool = False,
    ) -> Flow[dict[str, Any] | None]: ...
    @overload
    def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., T],
        timeout: Seconds = None,
        read_only: bool = False,
    ) -> Flow[T | None]: ...
    def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = dict,
        timeout: Seconds = None,
        read_only: bool = False,
    ) -> Flow[Any]:
        """The only row in the form of *into*, `None` without one; NotOneRow if several."""
        found = yield from self.execute(sql, params, timeout=timeout, read_only=read_only)
        if len(found) > 1:
            raise NotOneRow(f"one row was expected, there are {len(found)}")
        return found.into(into)[0] if found.rows else None

    def scalar(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: Seconds = None,
        read_only: bool = False,
    ) -> Flow[Any]:
        """The first column of the first row; `None` without a row."""
        found = yield from self.execute(sql, params, timeout=timeout, read_only=read_only)
        return found.scalar()

    def execute_many(
        self,
        sql: str,
        sets: Iterable[Sequence[Any] | Mapping[str, Any]],
        *,
        timeout: Seconds = None,
        key: str | None = None,
    ) -> Flow[list[Result]]:
        """Run one statement for each set of parameters, all or none; one result each."""
        sets = list(sets)
        if not sets:
            return []
        scope = self.scope(timeout, key)
        answer = yield from self.send(_protocol.execute_many(scope, sql, sets), scope.timeout)
        return [result(each, self.types) for each in answer["results"]]

    def batch(
        self,
        statements: Iterable[str | tuple[str, Parameters]],
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        timeout: Seconds = None,
        key: str | None = None,
    ) -> Flow[list[Result]]:
        """Run several statements in one request, all or none; one result each."""
        statements = list(statements)
        if not statements:
            return []
        scope = self.scope(timeout, key, read_only=read_only or isolation is not None)
        request = _protocol.batch(scope, statements, isolation=isolation, read_only=read_only)
        answer = yield from self.send(request, scope.timeout)
        return [result(each, self.types) for each in answer["results"]]

    def copy_in(
        self,
        table: str,
        rows: Any,
        *,
        columns: Sequence[str] = (),
        timeout: Seconds = None,
    ) -> Flow[int]:
        """Fill *table* with *rows*, all or none; how many there were.

        Args:
            rows: Sequences of values, sent as they are iterated, by the async client from
                async iterables too; or CSV without a header line: bytes, text or a file
                that is open for reading.
            columns: Which columns they are; else all of the table, in its order.
        """
        scope = self.scope(timeout)
        if scope.transaction is not None:
            raise InterfaceError("rows are copied in a transaction of their own")
        request = _protocol.copy_in(scope, table, copy_body(rows), columns=columns)
        answer = yield from self.send(request, scope.timeout)
        count: int = answer["row_count"]
        return count


class Streaming:
    """The rows of one statement as they come; the shells bring the bytes."""

    def __init__(
        self,
        flows: Flows,
        sql: str,
        params: Parameters,
        into: Callable[..., Any],
        timeout: Seconds,
        read_only: bool,
    ) -> None:
        self._flows = flows
        self._asked = (sql, params, timeout, read_only)
        self._into = into
        self._make: Callable[[Sequence[Any]], Any] | None = None
        self._frames = Frames(flows.types, exact=flows.exact)
        self._read_only = read_only
        self.row_count: int | None = None
        self.command: str | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Names and types; known when the first row is."""
        return self._frames.columns or ()

    def open(self) -> Flow[Answer]:
        """Send it; the answer's body is to be fed, piece by piece."""
        sql, params, timeout, read_only = self._asked
        scope = self._flows.scope(timeout, read_only=read_only)
        request = _protocol.execute(scope, sql, params, read_only=read_only, frames=True)
        answer: Answer = yield from self._flows.send(request, scope.timeout, stream=True)
        return answer

    def feed(self, data: bytes) -> list[Any]:
        """The rows that are complete with *data*, in the caller's form."""
        frames = self._frames
        rows = frames.feed(data)
        if self._make is None and frames.columns is not None:
            self._make = maker(frames.columns, self._into)
        if frames.end is not None:
            self._ended(frames.end)
        return list(map(self._make, rows)) if self._make is not None else []

    def _ended(self, frame: Mapping[str, Any]) -> None:
        end = frame.get("end")
        if end is None:
            document = frame["error"]
            raise problem(int(document.get("status", 0)), document)
        self.row_count, self.command = end["row_count"], end["command"]

    @property
    def done(self) -> bool:
        """Whether the last frame has come."""
        return self.row_count is not None

    def piece(self, data: bytes) -> list[Any] | None:
        """The rows that are complete with *data*, of which nothing is the end: then `None`."""
        if data:
            return self.feed(data)
        if not self.done:
            raise self.cut("there was no last line")
        return None

    def cut(self, reason: str) -> Error:
        """The error for a stream that ended before its last frame."""
        if self._read_only:
            return ConnectionFailed(f"the rows broke off: {reason}")
        return OutcomeUnknown(
            f"the rows broke off: {reason}", hint="read_only=True says that nothing was written"
        )


def copy_body(rows: Any) -> Any:
    """What goes out for *rows*: CSV as it is, or made of sequences of values."""
    if isinstance(rows, (bytes, bytearray, memoryview)):
        return bytes(rows)
    if isinstance(rows, str):
        return rows.encode()
    if hasattr(rows, "read"):
        return iter(lambda: _bytes(rows.read(65_536)), b"")
    if hasattr(rows, "__aiter__"):
        return _csv_of_async(rows)
    return csv_lines(rows, copy_text)


async def _csv_of_async(rows: Any) -> Any:
    async for row in rows:
        for piece in csv_lines([row], copy_text):
            yield piece


def _bytes(data: Any) -> bytes:
    return data if isinstance(data, bytes) else data.encode()
