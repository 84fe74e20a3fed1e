"""What all HTTP dialects share: read, run, write; errors; deadlines; hang-ups.

A dialect is a table of operations. Everything about a request's life stands
here once: its bytes are read, its sender identified, its body understood, its
work done under a deadline and under the eye of a watcher that cancels it when
the caller goes away; then the answer is written and the connection cleaned
behind it.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from ..core.errors import (
    Draining,
    GatewayError,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    OutcomeUnknown,
    StatementCancelled,
    TooLarge,
    UnsupportedMediaType,
)
from ..core.model import Call, Principal
from ..core.sigv4 import RawRequest
from ..engine.engine import Engine, Reply
from ..engine.identity import Identified, Identifier

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_WATCH_AFTER = 0.003
"""Seconds. A statement that ends sooner needs no watcher, which costs a task."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_GONE = "http.disconnect"
_ENDINGS = frozenset({"commit", "rollback", "CommitTransaction", "RollbackTransaction"})
"""Operations that a node which is shutting down still carries out: they end work."""


class Operation(NamedTuple):
    """One endpoint: `read` and the writing are pure, `run` calls the engine."""

    name: str
    read: Callable[[bytes, Mapping[str, str]], Any]
    """Body and path parameters → request."""
    run: Callable[[Engine, Principal, Any, Call], Awaitable[Any]]
    write: Callable[[Exchange, Any, Any], Awaitable[None]]
    """Exchange, request, what `run` returned."""
    method: str = "POST"


WriteError = Callable[[GatewayError, str], tuple[int, Headers, bytes]]


class Counts:
    """Requests and refusals since the start, for the metrics page."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        self.refusals: dict[str, int] = {}

    def add(self, operation: str, status: int, code: str | None) -> None:
        """One answer was sent."""
        key = (operation, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        if code is not None:
            self.refusals[code] = self.refusals.get(code, 0) + 1


class Server:
    """What every exchange needs."""

    def __init__(
        self,
        *,
        engine: Engine,
        identifier: Identifier,
        wall: Callable[[], float],
        request_bytes: int,
        observe: Callable[[Exchange], None] = lambda exchange: None,
    ) -> None:
        self.engine = engine
        self.identifier = identifier
        self.wall = wall
        self.request_bytes = request_bytes
        self.draining = False
        self.running: dict[tuple[str, str], Exchange] = {}
        """By principal's subject and request id."""
        self.counts = Counts()
        self.observe = observe
        self.active = 0
        self.quiet = asyncio.Event()


class HangUp:
    """Watches for the caller's departure and cancels its work."""

    __slots__ = ("_call", "_main", "_receive", "_task", "_timer", "gone")

    def __init__(self, receive: Receive, call: Call) -> None:
        self.gone = False
        self._receive = receive
        self._call = call
        self._main = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_WATCH_AFTER, self._start)

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != _GONE:
            pass
        self.gone = True
        # A COMMIT on its way is never cancelled: nobody could say what became of it.
        if not self._call.committing and self._main is not None:
            self._main.cancel()

    def stop(self) -> None:
        """The work is done; what the caller does now is its own affair."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_receive", "_send", "_write_error", "call", "code", "hangup", "headers", "identified",
        "operation", "raw", "reply", "server", "status", "task",
    )  # fmt: skip

    def __init__(
        self,
        server: Server,
        operation: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        write_error: WriteError,
    ) -> None:
        self.server = server
        self.operation = operation
        self.raw: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send
        self._write_error = write_error
        now = asyncio.get_running_loop().time()
        self.call = Call("", math.inf, now)
        self.headers: Headers = []
        """Of the answer, besides type and length."""
        self.identified: Identified | None = None
        self.hangup: HangUp | None = None
        self.reply: Reply | None = None
        self.status = 0
        self.code: str | None = None
        self.task: asyncio.Task[Any] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a request header, if the caller's signature lets it count."""
        for key, value in self.raw:
            if key == name:
                identified = self.identified
                if identified is not None and not identified.covers(name.decode("ascii")):
                    return None
                return value
        return None

    async def body(self) -> bytes | None:
        """The whole body; `None` if the caller left before its end.

        Raises:
            TooLarge: It is longer than the limit.
            UnsupportedMediaType: It is compressed.
        """
        for key, value in self.raw:
            if key == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise UnsupportedMediaType(
                    "the body is compressed", hint="send it as it is, without content-encoding"
                )
        most = self.server.request_bytes
        message = await self._receive()
        if message["type"] == _GONE:
            return None
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            pieces = [body]
            size = len(body)
            while message.get("more_body"):
                message = await self._receive()
                if message["type"] == _GONE:
                    return None
                piece = message.get("body", b"")
                size += len(piece)
                if size > most:
                    raise TooLarge(f"the body is larger than {most} bytes")
                pieces.append(piece)
            body = b"".join(pieces)
        if len(body) > most:
            raise TooLarge(f"the body is larger than {most} bytes")
        return body

    def read_head(self) -> None:
        """Request id and deadline, from headers that count."""
        given = self.header(b"x-gateway-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            self.call.request_id = given.decode("ascii")
        left = self.header(b"x-gateway-deadline-ms")
        if left is not None:
            try:
                milliseconds = int(left)
            except ValueError:
                milliseconds = 0
            if not 0 < milliseconds <= 86_400_000:
                raise InvalidRequest(
                    "x-gateway-deadline-ms is not a number of milliseconds",
                    field="x-gateway-deadline-ms",
                    hint="send what the caller has left, 1 to 86400000",
                )
            self.call.deadline = self.call.received + milliseconds / 1000

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of an answer whose length is not known."""
        self.status = status
        await self._send(
            {"type": "http.response.start", "status": status, "headers": headers + self.headers}
        )

    async def piece(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the answer; returns when the caller can take more."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        self.status = status
        head = [*headers, (b"content-length", b"%d" % len(body)), *self.headers]
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, error: GatewayError) -> None:
        """Send *error* in the dialect's words."""
        self.code = error.code
        error.request_id = self.call.request_id  # type: ignore[attr-defined]
        status, headers, body = self._write_error(error, self.operation)
        await self.send(status, headers, body)


async def serve(
    server: Server,
    operation: Operation,
    path: Mapping[str, str],
    scope: Scope,
    receive: Receive,
    send: Send,
    write_error: WriteError,
    id_header: bytes,
    check: Callable[[Exchange], None] | None = None,
) -> None:
    """Carry one request from its bytes to its answer.

    Args:
        path: Parameters found in the path.
        id_header: The header that carries the request id out.
        check: Refuses by the headers, once the sender is known.
    """
    exchange = Exchange(server, operation.name, scope, receive, send, write_error)
    call = exchange.call
    call.request_id = os.urandom(16).hex()
    server.active += 1
    try:
        try:
            body = await exchange.body()
            if body is None:
                return
            call.received = asyncio.get_running_loop().time()
            exchange.identified = identified = server.identifier.identify(
                RawRequest(
                    scope["method"],
                    scope["raw_path"],
                    scope["query_string"],
                    exchange.raw,
                    body,
                ),
                now=server.wall(),
            )
            exchange.read_head()
            if check is not None:
                check(exchange)
            if server.draining and operation.name not in _ENDINGS:
                raise Draining
            request = operation.read(body, path)
            key = (identified.principal.subject, call.request_id)
            exchange.task = asyncio.current_task()
            exchange.hangup = HangUp(receive, call)
            server.running[key] = exchange
            exchange.headers.append((id_header, call.request_id.encode("ascii")))
            if exchange.header(b"idempotency-key") is not None:
                # Nothing is remembered by key yet, and a caller that counts on it is told.
                exchange.headers.append((b"x-gateway-idempotency", b"none"))
            try:
                done = await operation.run(server.engine, identified.principal, request, call)
                exchange.headers.append((b"server-timing", _timing(call)))
                if isinstance(done, Reply):
                    exchange.reply = done
                await operation.write(exchange, request, done)
            finally:
                server.running.pop(key, None)
                exchange.hangup.stop()
        except GatewayError as error:
            if not exchange.headers:
                exchange.headers.append((id_header, call.request_id.encode("ascii")))
            await _refuse(exchange, error)
        except asyncio.CancelledError:
            await _cancelled(exchange, id_header)
        except Exception as error:  # noqa: BLE001  # a defect must answer, not hang the caller
            if not exchange.headers:
                exchange.headers.append((id_header, call.request_id.encode("ascii")))
            await _refuse(exchange, _unexpected(error, exchange))
    finally:
        try:
            if exchange.reply is not None:
                await exchange.reply.settle()
        finally:
            server.active -= 1
            if server.active == 0:
                server.quiet.set()
            server.counts.add(operation.name, exchange.status, exchange.code)
            server.observe(exchange)


def _unexpected(error: Exception, exchange: Exchange) -> GatewayError:
    # A defect of ours after the work was done must not be taken for "nothing happened".
    if exchange.reply is not None:
        return OutcomeUnknown(f"the answer could not be written ({type(error).__name__})")
    return Internal(f"unexpected {type(error).__name__}")


async def _refuse(exchange: Exchange, error: GatewayError) -> None:
    if exchange.status:
        # The head is out: leaving the body unfinished makes the server cut the connection,
        # so that nobody takes the answer for complete.
        exchange.code = error.code
        return
    await exchange.refuse(error)


async def _cancelled(exchange: Exchange, id_header: bytes) -> None:
    hangup = exchange.hangup
    task = asyncio.current_task()
    if hangup is not None and hangup.gone:
        exchange.code = "hangup"
    elif exchange.call.cancelled:
        if task is not None:
            task.uncancel()
        await _refuse(exchange, StatementCancelled("the statement was cancelled"))
        return
    else:
        raise asyncio.CancelledError
    if task is not None:
        task.uncancel()


def _timing(call: Call) -> bytes:
    return b"queue;dur=%.2f, db;dur=%.2f" % (call.queued * 1000, call.running * 1000)


class Route(NamedTuple):
    """Where an operation lives; `{name}` in the path is a parameter."""

    path: str
    operation: Operation


class Dialect:
    """A table of routes; the ones without parameters are found by one look-up."""

    def __init__(
        self,
        server: Server,
        routes: list[Route],
        write_error: WriteError,
        id_header: bytes,
        check: Callable[[Exchange], None] | None = None,
    ) -> None:
        self._check = check
        self._server = server
        self._write_error = write_error
        self._id_header = id_header
        self._exact: dict[str, dict[str, Operation]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Operation]]] = []
        patterns: dict[str, dict[str, Operation]] = {}
        for route in routes:
            table = self._exact if "{" not in route.path else patterns
            table.setdefault(route.path, {})[route.operation.method] = route.operation
        for path, operations in patterns.items():
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
            self._patterns.append((re.compile(pattern), operations))

    def find(self, path: str) -> tuple[dict[str, Operation], Mapping[str, str]] | None:
        """The operations at *path*, by method, and the path's parameters."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact, {}
        for pattern, operations in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return operations, match.groupdict()
        return None

    async def __call__(
        self,
        found: tuple[dict[str, Operation], Mapping[str, str]] | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve a request at what `find` found; `None` is refused as not found."""
        if found is not None:
            operation = found[0].get(scope["method"])
            if operation is not None:
                await serve(
                    self._server, operation, found[1], scope, receive, send,
                    self._write_error, self._id_header, self._check,
                )  # fmt: skip
                return
        exchange = Exchange(self._server, "", scope, receive, send, self._write_error)
        exchange.call.request_id = os.urandom(16).hex()
        exchange.headers.append((self._id_header, exchange.call.request_id.encode("ascii")))
        if found is None:
            await exchange.refuse(NotFound("there is nothing at this path"))
        else:
            allowed = ", ".join(sorted(found[0]))
            exchange.headers.append((b"allow", allowed.encode("ascii")))
            await exchange.refuse(MethodNotAllowed(f"use {allowed} here"))
        self._server.counts.add("", exchange.status, exchange.code)


async def stream(
    exchange: Exchange,
    reply: Reply,
    headers: Headers,
    head: bytes,
    encode: Callable[[Any], bytes],
    tail: Callable[[], bytes],
) -> None:
    """Send *reply*'s rows batch by batch; *encode* gives a batch without its brackets."""
    assert reply.rows is not None
    started = False
    async for batch in reply.rows.batches():
        part = encode(batch)
        if not started:
            await exchange.start(200, headers)
            await exchange.piece(head + part)
            started = True
        else:
            await exchange.piece(b"," + part)
    if not started:
        await exchange.start(200, headers)
        await exchange.piece(head)
    await exchange.piece(tail(), more=False)
