"""The client for asyncio: the words of `sync`, awaited. Needs httpx2 (the extra `async`).

    async with AsyncClient() as db:                  # PGSLUICE_URL, PGSLUICE_TOKEN
        await db.execute("insert into notes (text) values (:t)", {"t": "hello"})
        async with db.transaction() as tx:
            left = await tx.scalar("select quantity from stock where id = $1 for update", [7])

What the words mean is in `_words`, what a call does in `_core`, as for `sync`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from ._core import (
    ClientShell,
    StatementsShell,
    StreamShell,
    TransactionFlows,
    TransactionShell,
    like,
)
from ._http import CONNECT_TIMEOUT, GRACE, MAX_IDLE, MAX_KEPT, NoAnswer, Origin
from ._protocol import Answer
from ._words import Flow, Flows, Send, Streaming
from .errors import Error

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Concatenate, ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")


class AsyncHttp:
    """Sends requests to one origin over connections that httpx2 keeps."""

    def __init__(self, origin: Origin, *, cafile: str | None = None) -> None:
        self._origin = origin
        self._cafile = cafile
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Any = None
        self._busy = 0
        self._last = time.time()

    async def send(self, what: Send) -> Answer:
        """Send one request and read its answer; of a stream only its head."""
        import httpx2

        left = None if what.timeout is None else max(0.0, what.timeout) + GRACE
        connect = CONNECT_TIMEOUT if left is None else min(CONNECT_TIMEOUT, left)
        body: Any = what.body
        if not isinstance(body, bytes) and not hasattr(body, "__aiter__"):
            body = _pieces(body)
        origin = self._origin
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        request = httpx2.Request(
            what.method,
            f"{'https' if origin.tls else 'http'}://{host}:{origin.port}{origin.prefix}{what.path}",
            headers=dict(what.headers),
            content=body,
            extensions={"timeout": {"connect": connect, "read": left, "write": left, "pool": left}},
        )
        self._busy += 1
        streams = False
        try:
            response = await (await self._open()).handle_async_request(request)
            headers = {name.lower(): value for name, value in response.headers.items()}
            streams = what.stream and 200 <= response.status_code < 300
            if streams:
                return Answer(response.status_code, headers, AsyncBody(response, self._ended))
            try:
                text = await response.aread()
            finally:
                await response.aclose()
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise NoAnswer(_reason(error), sent=False) from error
        except (httpx2.WriteError, httpx2.WriteTimeout) as error:
            raise NoAnswer(_reason(error), sent=False) from error
        except httpx2.TransportError as error:
            raise NoAnswer(_reason(error), sent=True) from error
        finally:
            if not streams:
                self._ended()
        return Answer(response.status_code, headers, text)

    async def close(self) -> None:
        """Close the connections."""
        transport, self._transport = self._transport, None
        if transport is not None and self._loop is asyncio.get_running_loop():
            await transport.aclose()

    def _ended(self) -> None:
        self._busy -= 1
        self._last = time.time()

    async def _open(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._busy == 1 and not 0 <= time.time() - self._last < MAX_IDLE:
            # The wall clock: it goes on while a function is frozen, that of httpx2 may not.
            await self.close()
        if self._transport is None or self._loop is not loop:
            import ssl

            import httpx2

            # Connections belong to their event loop; one of an earlier `asyncio.run` is lost.
            self._loop = loop
            self._transport = httpx2.AsyncHTTPTransport(
                verify=ssl.create_default_context(cafile=self._cafile)
                if self._origin.tls
                else False,
                limits=httpx2.Limits(
                    max_connections=None,
                    max_keepalive_connections=MAX_KEPT,
                    keepalive_expiry=MAX_IDLE,
                ),
            )
        return self._transport


class AsyncBody:
    """An answer's body, piece by piece."""

    def __init__(self, response: Any, ended: Callable[[], None]) -> None:
        self._response = response
        self._pieces = response.aiter_raw()
        self._ended: Callable[[], None] | None = ended

    async def read(self) -> bytes:
        """What has come, at least a byte; nothing at the end. NoAnswer if it broke off."""
        import httpx2

        try:
            data: bytes = await anext(self._pieces, b"")
        except httpx2.TransportError as error:
            await self.close()
            raise NoAnswer(_reason(error), sent=True) from error
        if not data:
            await self.close()
        return data

    async def close(self) -> None:
        """Want no more of it: the connection is closed, and the statement stopped."""
        ended, self._ended = self._ended, None
        try:
            await self._response.aclose()
        finally:
            if ended is not None:
                ended()


async def _pieces(body: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _awaited(
    flow: Callable[Concatenate[Any, P], Flow[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The method that runs *flow* to its end."""

    async def run(self: AsyncStatements, /, *args: P.args, **options: P.kwargs) -> T:
        return await self._run(flow(self._flows, *args, **options))

    return like(flow, run)


class AsyncStatements(StatementsShell["AsyncStream"]):
    """What a client and a transaction have in common: ways to run statements."""

    _http: AsyncHttp

    execute = _awaited(Flows.execute)
    query = _awaited(Flows.query)
    query_one = _awaited(Flows.query_one)
    scalar = _awaited(Flows.scalar)
    execute_many = _awaited(Flows.execute_many)
    batch = _awaited(Flows.batch)
    copy_in = _awaited(Flows.copy_in)

    def _stream(self, rows: Streaming) -> AsyncStream:
        return AsyncStream(self, rows)

    async def _run(self, flow: Flow[T]) -> T:
        told: Any = None
        try:
            asked = next(flow)
            while True:
                try:
                    if isinstance(asked, Send):
                        told = await self._http.send(asked)
                    elif callable(asked):
                        told = asked()
                        if hasattr(told, "__await__"):
                            told = await told
                    else:
                        await asyncio.sleep(asked)
                except NoAnswer as gone:
                    asked = flow.throw(gone)
                else:
                    asked = flow.send(told)
        except StopIteration as done:
            found: T = done.value
            return found

    async def _piece(self, rows: Streaming, body: AsyncBody) -> list[Any] | None:
        try:
            data = await body.read()
        except NoAnswer as gone:
            raise rows.cut(gone.reason) from gone
        return rows.piece(data)

    async def _stop(self, body: AsyncBody) -> None:
        await body.close()


class AsyncClient(ClientShell["str | Awaitable[str]", Any, "AsyncTransaction"], AsyncStatements):
    """Runs statements through one gateway; arguments as for `Client`.

    *token* and *credentials* may also be coroutine functions.
    """

    def _open(self) -> AsyncHttp:
        return AsyncHttp(self._core.origin, cafile=self._core.cafile)

    def _transaction(self, flows: TransactionFlows) -> AsyncTransaction:
        return AsyncTransaction(self._http, flows)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later statement opens a new one."""
        await self._http.close()


class AsyncTransaction(TransactionShell, AsyncStatements):
    """Statements that happen together or not at all. For one task at a time."""

    commit = _awaited(TransactionFlows.commit)
    rollback = _awaited(TransactionFlows.rollback)

    async def __aenter__(self) -> AsyncTransaction:
        await self._run(self._life.begin())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ending = asyncio.ensure_future(self._run(self._life.leave(failed=error is not None)))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            # Cancelled while it ends: the end is waited for all the same.
            await asyncio.wait([ending])
            raise

    async def run(self, work: Callable[[AsyncTransaction], Awaitable[T]]) -> T:
        """Begin, await *work* with this, commit; all of it again where that is safe."""
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self:
                    return await work(self)
            except Error as error:
                wait = self._life.again(error, attempt)
                if wait is None:
                    raise
            await asyncio.sleep(wait)


class AsyncStream(StreamShell):
    """The rows of one statement, as they come."""

    def __init__(self, statements: AsyncStatements, rows: Streaming) -> None:
        self._statements = statements
        self._rows = rows
        self._body: AsyncBody | None = None
        self._iterator: AsyncIterator[Any] | None = None

    async def __aenter__(self) -> AsyncStream:
        """Send it; the columns are known from here on."""
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        return await anext(await self._begin())

    async def close(self) -> None:
        """Want no more rows; the statement is stopped."""
        body, self._body = self._body, None
        if body is not None:
            await body.close()
        self._iterator = self._all(None)

    async def _begin(self) -> AsyncIterator[Any]:
        if self._iterator is None:
            self._body = (await self._statements._run(self._rows.open())).body
            first = await self._piece()
            while first is not None and not self._rows.columns and not self._rows.done:
                first = await self._piece()
            self._iterator = self._all(first)
        return self._iterator

    async def _all(self, rows: list[Any] | None) -> AsyncIterator[Any]:
        while rows is not None:
            for row in rows:
                yield row
            rows = await self._piece()

    async def _piece(self) -> list[Any] | None:
        if self._body is None:
            return None
        try:
            rows = await self._statements._piece(self._rows, self._body)
        except BaseException:
            await self.close()
            raise
        if rows is None:
            self._body = None
        return rows
