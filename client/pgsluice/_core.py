"""What a call does, step by step, for the ordinary and the async client alike.

A flow is a generator. It yields what has to be waited for: a `Send`, a number of
seconds, or a function that has a token; it is told what came of it, and returns the
result. Retries, deadlines, identity and the life of a transaction are in here, once;
`sync` and `aio` only drive.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import _protocol
from ._http import NoAnswer, origin
from ._identity import Identity
from ._protocol import Answer, Defaults, Parameters, Request
from ._result import Column, Frames, Result, csv_lines, maker, result
from ._values import Types, copy_text
from .errors import (
    ConnectionFailed,
    Error,
    InterfaceError,
    NotOneRow,
    OutcomeUnknown,
    StatementTimeout,
    TransactionGone,
    problem,
)

if TYPE_CHECKING:
    from typing import Literal

    Isolation = Literal["read_committed", "repeatable_read", "serializable"]

T = TypeVar("T")
Flow = Generator[Any, Any, T]

ROLLBACK_TIMEOUT = 5.0  # seconds, however little time is left for everything else

invocation_deadline: ContextVar[float | None] = ContextVar("pgsluice_deadline", default=None)
"""The moment (of `time.monotonic`) at which the work at hand ends."""


class Send(NamedTuple):
    """One request of HTTP."""

    method: str
    path: str
    """Below the prefix of the origin."""
    headers: Mapping[str, str]
    body: bytes | Iterable[bytes]
    timeout: float | None
    """Seconds for all of it, `None` for as long as the gateway is there."""
    stream: bool = False
    """Whether a good answer's body is wanted piece by piece."""


class Flows(ABC):
    """Statements on their way; what a client and a transaction have in common."""

    types: Types
    exact: bool

    @abstractmethod
    def limit(self, timeout: float | None) -> float | None:
        """Seconds for one call."""

    @abstractmethod
    def scope(self, key: str | None, read_only: bool) -> tuple[Defaults, str | None, str | None]:
        """Defaults, transaction and idempotency key of one request."""

    @abstractmethod
    def send(self, request: Request, timeout: float | None, *, stream: bool = False) -> Flow[Any]:
        """The answer, after as many tries as are harmless and in time."""

    def execute(
        self,
        sql: str,
        params: Parameters,
        *,
        timeout: float | None,
        read_only: bool = False,
        max_rows: int | None = None,
        key: str | None = None,
    ) -> Flow[Result]:
        """One statement."""
        defaults, transaction, key = self.scope(key, read_only)
        timeout = self.limit(timeout)
        request = _protocol.execute(
            defaults,
            sql,
            params,
            transaction=transaction,
            timeout=timeout,
            read_only=read_only,
            max_rows=max_rows,
            key=key,
        )
        return result((yield from self.send(request, timeout)), self.types)

    def query(
        self,
        sql: str,
        params: Parameters,
        into: Callable[..., T],
        timeout: float | None,
        read_only: bool,
    ) -> Flow[list[T]]:
        """The rows of one statement, in the caller's form."""
        found = yield from self.execute(sql, params, timeout=timeout, read_only=read_only)
        return found.into(into)

    def query_one(
        self,
        sql: str,
        params: Parameters,
        into: Callable[..., T],
        timeout: float | None,
        read_only: bool,
    ) -> Flow[T | None]:
        """The only row of one statement."""
        found = yield from self.execute(sql, params, timeout=timeout, read_only=read_only)
        if len(found) > 1:
            raise NotOneRow(f"one row was expected, there are {len(found)}")
        return found.into(into)[0] if found.rows else None

    def scalar(
        self, sql: str, params: Parameters, timeout: float | None, read_only: bool
    ) -> Flow[Any]:
        """The first column of the first row."""
        found = yield from self.execute(sql, params, timeout=timeout, read_only=read_only)
        return found.scalar()

    def execute_many(
        self,
        sql: str,
        sets: Iterable[Sequence[Any] | Mapping[str, Any]],
        timeout: float | None,
        key: str | None,
    ) -> Flow[list[Result]]:
        """One statement with many sets."""
        sets = list(sets)
        if not sets:
            return []
        defaults, transaction, key = self.scope(key, False)
        timeout = self.limit(timeout)
        request = _protocol.execute_many(
            defaults, sql, sets, transaction=transaction, timeout=timeout, key=key
        )
        return self._results((yield from self.send(request, timeout)))

    def batch(
        self,
        statements: Iterable[str | tuple[str, Parameters]],
        isolation: str | None,
        read_only: bool,
        timeout: float | None,
        key: str | None,
    ) -> Flow[list[Result]]:
        """Several statements."""
        statements = list(statements)
        if not statements:
            return []
        defaults, transaction, key = self.scope(key, read_only or isolation is not None)
        timeout = self.limit(timeout)
        request = _protocol.batch(
            defaults,
            statements,
            transaction=transaction,
            isolation=isolation,
            read_only=read_only,
            timeout=timeout,
            key=key,
        )
        return self._results((yield from self.send(request, timeout)))

    def _results(self, document: Mapping[str, Any]) -> list[Result]:
        return [result(each, self.types) for each in document["results"]]

    def copy_in(
        self,
        table: str,
        rows: Any,
        columns: Sequence[str],
        timeout: float | None,
    ) -> Flow[int]:
        """Rows into a table."""
        defaults, transaction, key = self.scope(None, False)
        if transaction is not None:
            raise InterfaceError("rows are copied in a transaction of their own")
        timeout = self.limit(timeout)
        request = _protocol.copy_in(defaults, table, copy_body(rows), columns=columns, key=key)
        answer = yield from self.send(request, timeout)
        count: int = answer["row_count"]
        return count


class Core(Flows):
    """All that a client is but its connections."""

    def __init__(
        self,
        url: str | None,
        *,
        target: str | None,
        database: str | None,
        timeout: float | None,
        cafile: str | None,
        types: Types | None,
        exact_json: bool,
        **identity: Any,
    ) -> None:
        env = os.environ
        url = url or env.get("PGSLUICE_URL")
        if not url:
            raise ValueError("no gateway: pass url or set PGSLUICE_URL")
        self.origin = origin(url)
        self.identity = Identity(**identity)
        self.defaults = Defaults(
            target or env.get("PGSLUICE_TARGET"), database or env.get("PGSLUICE_DATABASE")
        )
        self.timeout = timeout
        self.cafile = cafile or env.get("PGSLUICE_CAFILE")
        self.types = types or {}
        self.exact = exact_json
        self.ledger = False
        """Whether the gateway has said that it keeps idempotency keys in the database."""

    def limit(self, timeout: float | None) -> float | None:
        """*timeout*, the client's own, what an invocation has left: the least of them."""
        timeout = self.timeout if timeout is None else timeout
        end = invocation_deadline.get()
        if end is None:
            return timeout
        left = end - time.monotonic()
        return left if timeout is None else min(left, timeout)

    def scope(self, key: str | None, read_only: bool) -> tuple[Defaults, str | None, str | None]:
        """The client's target, no transaction, a key of its own for each request."""
        return self.defaults, None, key or _protocol.new_key(os.urandom(16))

    def send(self, request: Request, timeout: float | None, *, stream: bool = False) -> Flow[Any]:
        """The gateway's answer: its JSON object, or the `Answer` itself if streamed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        doubt: OutcomeUnknown | None = None
        while True:
            attempt += 1
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise doubt or StatementTimeout("no time was left to send it", retry="never")
            try:
                return (yield from self._try(request, left, stream))
            except Error as error:
                if isinstance(error, OutcomeUnknown) and request.replayable and not self.ledger:
                    yield from self._look(request, error, left)
                if isinstance(error, OutcomeUnknown):
                    doubt = error
                # A new token may be had from where the last one came; nothing was executed.
                if error.code == "token_expired" and attempt == 1 and self.identity.renewed():
                    continue
                left = None if deadline is None else deadline - time.monotonic()
                wait = _protocol.pause(
                    request, error, attempt=attempt, remaining=left, jitter=jitter()
                )
                if wait is None:
                    if doubt is not None and _protocol.in_doubt(error):
                        raise doubt from error
                    raise
            yield wait

    def _try(self, request: Request, left: float | None, stream: bool) -> Flow[Any]:
        headers = _protocol.headers(request, host=self.origin.header, remaining=left)
        asking = self.identity.headers(
            request, headers, self.origin, now=time.time(), jitter=jitter()
        )
        told: Any = None
        try:
            asked = next(asking)
            while True:
                try:
                    told = (
                        (yield from self._exchange(asked, left))
                        if isinstance(asked, Request)
                        else (yield asked)
                    )
                except Error as error:
                    asked = asking.throw(error)
                else:
                    asked = asking.send(told)
        except StopIteration as done:
            headers |= done.value
        body = request.body
        if self.identity.signs and request.path.startswith("/copy/"):
            raise InterfaceError("an upload cannot be signed", hint="use a token")
        try:
            answer: Answer = yield Send(request.method, request.path, headers, body, left, stream)
        except NoAnswer as gone:
            raise _protocol.failure(
                request, gone.reason, sent=gone.sent, ledger=self.ledger
            ) from gone
        if request.key is not None and "x-gateway-idempotency" in answer.headers:
            # Only for good: a statement that cannot be recorded says nothing of the others.
            self.ledger |= answer.headers["x-gateway-idempotency"] == "database"
        if stream and not isinstance(answer.body, bytes):
            return answer
        return _protocol.read(request, answer, ledger=self.ledger, exact=self.exact)

    def _look(self, request: Request, error: Error, left: float | None) -> Flow[None]:
        """Ask what became of *request*; note it in *error*."""
        with suppress(Error):
            found = yield from self._try(_protocol.outcome(self.defaults, request), left, False)
            if self.ledger or found.get("outcome") == "not_executed":
                error.retry = "safe"
            elif found.get("outcome") == "committed":
                error.outcome, error.retry = "committed", "never"

    def _exchange(self, request: Request, left: float | None) -> Flow[Any]:
        headers = _protocol.headers(request, host=self.origin.header, remaining=left)
        try:
            answer = yield Send(request.method, request.path, headers, request.body, left)
        except NoAnswer as gone:
            raise _protocol.failure(request, gone.reason, sent=gone.sent) from gone
        return _protocol.read(request, answer)


class TransactionFlows(Flows):
    """One transaction's life: not begun, open, ended."""

    def __init__(
        self,
        core: Core,
        *,
        isolation: str | None,
        read_only: bool,
        deferrable: bool,
        idle_timeout: float | None,
        timeout: float | None,
        attempts: int,
    ) -> None:
        self._core = core
        self._begin = _protocol.begin(
            core.defaults,
            isolation=isolation,
            read_only=read_only,
            deferrable=deferrable,
            idle_timeout=idle_timeout,
        )
        self._timeout = timeout
        self._deadline: float | None = None
        self._lost: OutcomeUnknown | None = None
        self.types, self.exact = core.types, core.exact
        self.id: str | None = None
        self.attempts = attempts

    def limit(self, timeout: float | None) -> float | None:
        """The least of what the call, the client, the transaction and the invocation have."""
        timeout = self._core.limit(timeout)
        if self._deadline is None:
            return timeout
        left = self._deadline - time.monotonic()
        return left if timeout is None else min(left, timeout)

    def scope(self, key: str | None, read_only: bool) -> tuple[Defaults, str | None, str | None]:
        """The transaction; it has the target, and no keys."""
        if key is not None:
            raise ValueError("a key belongs to a statement outside of a transaction")
        if read_only:
            raise ValueError("isolation and read_only are said when the transaction begins")
        return Defaults(), self._open(), None

    def send(self, request: Request, timeout: float | None, *, stream: bool = False) -> Flow[Any]:
        """As the client does; an answer that is lost is remembered."""
        try:
            return (yield from self._core.send(request, timeout, stream=stream))
        except OutcomeUnknown as error:
            self._lost = error
            raise

    def begin(self) -> Flow[None]:
        """Open it."""
        if self.id is not None:
            raise RuntimeError("this transaction has begun already")
        self._lost = None
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        answer = yield from self._core.send(self._begin, self.limit(None))
        self.id = answer["transaction"]

    def commit(self) -> Flow[None]:
        """Make it permanent."""
        transaction = self._open()
        if self._lost is not None:
            yield from self.rollback()
            raise self._lost
        timeout = self.limit(None)
        if timeout is not None and timeout <= 0:
            yield from self.rollback()
            raise StatementTimeout("no time was left to commit it; it is rolled back")
        self.id = None
        key = _protocol.new_key(os.urandom(16))
        try:
            yield from self._core.send(_protocol.commit(transaction, key), timeout)
        except OutcomeUnknown as error:
            # To commit once more was harmless; to do all of it once more is not.
            error.retry = "unknown"
            raise

    def rollback(self) -> Flow[None]:
        """Undo it."""
        transaction, self.id = self._open(), None
        with suppress(TransactionGone):
            # Not bound by the deadline, which is often why it is rolled back.
            yield from self._core.send(_protocol.rollback(transaction), ROLLBACK_TIMEOUT)

    def leave(self, *, failed: bool) -> Flow[None]:
        """The end of a `with` block."""
        if self.id is None:
            return
        if not failed:
            yield from self.commit()
            return
        # The error that ended the block is the news. Unreachable, the gateway rolls
        # back by itself when the transaction has been idle for too long.
        with suppress(Error):
            yield from self.rollback()

    def again(self, error: Error, attempt: int) -> float | None:
        """Seconds to wait before all of it is done once more; `None` if it must not be."""
        if attempt >= self.attempts or error.retry != "safe" or self._lost is not None:
            return None
        wait = jitter() * min(_protocol.LONGEST_PAUSE, _protocol.FIRST_PAUSE * 2 ** (attempt - 1))
        left = self.limit(None)
        return wait if left is None or wait < left else None

    def _open(self) -> str:
        if self.id is None:
            raise TransactionGone(
                "the transaction is not open", hint="use it inside its with block"
            )
        return self.id


class Streaming:
    """The rows of one statement as they come; the shells bring the bytes."""

    def __init__(
        self,
        flows: Flows,
        sql: str,
        params: Parameters,
        into: Callable[..., Any],
        timeout: float | None,
        read_only: bool,
    ) -> None:
        self._flows = flows
        self._asked = (sql, params, timeout, read_only)
        self._into = into
        self._make: Callable[[Sequence[Any]], Any] | None = None
        self._frames = Frames(flows.types, exact=flows.exact)
        self._read_only = read_only
        self.row_count: int | None = None
        """Known at the end."""
        self.command: str | None = None
        """Known at the end."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Names and types; known when the first row is."""
        return self._frames.columns or ()

    def open(self) -> Flow[Answer]:
        """Send it; the answer's body is to be fed, piece by piece."""
        sql, params, timeout, read_only = self._asked
        defaults, transaction, key = self._flows.scope(None, read_only)
        timeout = self._flows.limit(timeout)
        request = _protocol.execute(
            defaults,
            sql,
            params,
            transaction=transaction,
            timeout=timeout,
            read_only=read_only,
            frames=True,
            key=key,
        )
        answer: Answer = yield from self._flows.send(request, timeout, stream=True)
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

    def finish(self) -> None:
        """The body has ended: raise if the last frame has not come."""
        if not self.done:
            raise self.cut("there was no last line")

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


def jitter() -> float:
    """A random number from 0 to 1."""
    # random would be imported for this alone; it takes longer than the rest of the package.
    return int.from_bytes(os.urandom(4), "big") / 2**32
