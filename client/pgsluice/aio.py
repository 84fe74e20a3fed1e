"""The client for asyncio: the words of `sync`, awaited. Needs httpx2 (the extra `async`).

    async with AsyncClient() as db:                  # PGSLUICE_URL, PGSLUICE_TOKEN
        await db.execute("insert into notes (text) values (:t)", {"t": "hello"})
        async with db.transaction() as tx:
            left = await tx.scalar("select quantity from stock where id = $1 for update", [7])

What a call does is in `_core`, as for `sync`; the methods are described there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ._core import Core, Flow, Flows, Send, Streaming, TransactionFlows
from ._http import CONNECT_TIMEOUT, GRACE, MAX_IDLE, MAX_KEPT, NoAnswer, Origin
from ._protocol import Answer, Parameters
from ._result import Column, Result
from .errors import Error

if TYPE_CHECKING:
    from types import TracebackType

    from ._core import Isolation
    from ._values import Types

T = TypeVar("T")


class AsyncHttp:
    """Sends requests to one origin over connections that httpx2 keeps."""

    def __init__(self, origin: Origin, *, cafile: str | None = None) -> None:
        self._origin = origin
        self._cafile = cafile
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Any = None

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
        try:
            response = await self._open().handle_async_request(request)
            headers = {name.lower(): value for name, value in response.headers.items()}
            if what.stream and 200 <= response.status_code < 300:
                return Answer(response.status_code, headers, AsyncBody(response))
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
        return Answer(response.status_code, headers, text)

    async def close(self) -> None:
        """Close the connections."""
        transport, self._transport = self._transport, None
        if transport is not None and self._loop is asyncio.get_running_loop():
            await transport.aclose()

    def _open(self) -> Any:
        loop = asyncio.get_running_loop()
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

    def __init__(self, response: Any) -> None:
        self._response = response
        self._pieces = response.aiter_raw()

    async def read(self) -> bytes:
        """What has come, at least a byte; nothing at the end. NoAnswer if it broke off."""
        import httpx2

        try:
            data: bytes = await anext(self._pieces, b"")
        except httpx2.TransportError as error:
            raise NoAnswer(_reason(error), sent=True) from error
        if not data:
            await self._response.aclose()
        return data

    async def close(self) -> None:
        """Want no more of it: the connection is closed, and the statement stopped."""
        await self._response.aclose()


async def _pieces(body: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


class AsyncStatements:
    """What a client and a transaction have in common: ways to run statements."""

    _flows: Flows
    _http: AsyncHttp

    async def execute(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
        max_rows: int | None = None,
        key: str | None = None,
    ) -> Result:
        """Run one statement; return its rows and what it did."""
        return await self._run(
            self._flows.execute(
                sql, params, timeout=timeout, read_only=read_only, max_rows=max_rows, key=key
            )
        )

    @overload
    async def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> list[dict[str, Any]]: ...
    @overload
    async def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., T],
        timeout: float | None = None,
        read_only: bool = False,
    ) -> list[T]: ...
    async def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = dict,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> list[Any]:
        """The rows, each in the form of *into*."""
        return await self._run(self._flows.query(sql, params, into, timeout, read_only))

    @overload
    async def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> dict[str, Any] | None: ...
    @overload
    async def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., T],
        timeout: float | None = None,
        read_only: bool = False,
    ) -> T | None: ...
    async def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = dict,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> Any:
        """The only row in the form of *into*, `None` without one; NotOneRow if several."""
        return await self._run(self._flows.query_one(sql, params, into, timeout, read_only))

    async def scalar(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> Any:
        """The first column of the first row; `None` without a row."""
        return await self._run(self._flows.scalar(sql, params, timeout, read_only))

    async def execute_many(
        self,
        sql: str,
        sets: Iterable[Sequence[Any] | Mapping[str, Any]],
        *,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Result]:
        """Run one statement for each set of parameters, all or none; one result each."""
        return await self._run(self._flows.execute_many(sql, sets, timeout, key))

    async def batch(
        self,
        statements: Iterable[str | tuple[str, Parameters]],
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Result]:
        """Run several statements in one request, all or none; one result each."""
        return await self._run(self._flows.batch(statements, isolation, read_only, timeout, key))

    def stream(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = tuple,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> AsyncStream:
        """The rows as they come, however many: iterate, best in an `async with` block."""
        return AsyncStream(self, sql, params, into, timeout, read_only)

    async def copy_in(
        self,
        table: str,
        rows: Any,
        *,
        columns: Sequence[str] = (),
        timeout: float | None = None,
    ) -> int:
        """Fill *table* with *rows*, which may be an async iterable; how many there were."""
        return await self._run(self._flows.copy_in(table, rows, columns, timeout))

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
        if data:
            return rows.feed(data)
        rows.finish()
        return None

    async def _stop(self, body: AsyncBody) -> None:
        await body.close()


class AsyncClient(AsyncStatements):
    """Runs statements through one gateway; arguments as for `Client`.

    *token* and *credentials* may also be coroutine functions.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        iam_audience: str | None = None,
        credentials: Callable[[], Any] | None = None,
        target: str | None = None,
        database: str | None = None,
        timeout: float | None = None,
        cafile: str | None = None,
        types: Types | None = None,
        exact_json: bool = False,
    ) -> None:
        self._flows = self._core = Core(
            url,
            token=token,
            access_key=access_key,
            secret_key=secret_key,
            session_token=session_token,
            iam_audience=iam_audience,
            credentials=credentials,
            target=target,
            database=database,
            timeout=timeout,
            cafile=cafile,
            types=types,
            exact_json=exact_json,
        )
        self._http = AsyncHttp(self._core.origin, cafile=self._core.cafile)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<pgsluice.AsyncClient {self._core.origin.header}>"

    async def close(self) -> None:
        """Close the connections; a later statement opens a new one."""
        await self._http.close()

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        idle_timeout: float | None = None,
        timeout: float | None = None,
        attempts: int = 5,
    ) -> AsyncTransaction:
        """A transaction over several calls, for `async with`."""
        flows = TransactionFlows(
            self._core,
            isolation=isolation,
            read_only=read_only,
            deferrable=deferrable,
            idle_timeout=idle_timeout,
            timeout=timeout,
            attempts=attempts,
        )
        return AsyncTransaction(self, flows)


class AsyncTransaction(AsyncStatements):
    """Statements that happen together or not at all. For one task at a time."""

    def __init__(self, client: AsyncClient, flows: TransactionFlows) -> None:
        self._flows = self._life = flows
        self._http = client._http

    def __repr__(self) -> str:
        return f"<pgsluice.AsyncTransaction {'open' if self._life.id else 'not open'}>"

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

    async def commit(self) -> None:
        """Make it permanent."""
        await self._run(self._life.commit())

    async def rollback(self) -> None:
        """Undo it; that it has ended already is no error."""
        await self._run(self._life.rollback())

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


class AsyncStream:
    """The rows of one statement, as they come."""

    def __init__(
        self,
        statements: AsyncStatements,
        sql: str,
        params: Parameters,
        into: Callable[..., Any],
        timeout: float | None,
        read_only: bool,
    ) -> None:
        self._statements = statements
        self._rows = Streaming(statements._flows, sql, params, into, timeout, read_only)
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

    @property
    def columns(self) -> tuple[Column, ...]:
        """Names and types; known once it has begun."""
        return self._rows.columns

    @property
    def row_count(self) -> int | None:
        """How many rows there were; known at the end."""
        return self._rows.row_count

    @property
    def command(self) -> str | None:
        """`SELECT`, `INSERT` …; known at the end."""
        return self._rows.command

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
