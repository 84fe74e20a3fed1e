"""How an exchange reads its request and writes its answer: through ASGI, or without it.

`AsgiWire` works under any ASGI server. `DirectCycle` is what the guard puts in place of
uvicorn's own cycle for the endpoints that are asked most: the request is complete
before a task is made for it, the answer is one write, and the caller's departure is
told, not waited for. It halves what HTTP costs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any, Protocol

from ..core.errors import TooLarge
from .heads import KnownHead, read_headers

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

NO_TIMING = b"queue;dur=0.00, connect;dur=0.00, db;dur=0.00, encode;dur=0.00"
"""`Server-Timing` of an answer for which nothing was done."""
_WATCH_AFTER = 0.003
"""Seconds. A statement that ends sooner needs no watcher, which costs a task."""
_GONE = "http.disconnect"
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class Wire(Protocol):
    """One request and the way back."""

    method: str
    raw_path: bytes
    query: bytes

    @property
    def headers(self) -> Headers:
        """Name, in lower case, and value of each header."""

    @property
    def known(self) -> KnownHead | None:
        """What was made of the same head before; `None` if nobody remembers."""

    @property
    def source(self) -> str:
        """The address that the request came from; of a proxy, if there is one in between."""

    async def read(self, most: int) -> bytes | None:
        """The whole body; `None` if the caller left before its end.

        Raises:
            TooLarge: It is longer than *most* bytes.
        """

    def pieces(self) -> AsyncIterator[bytes | None]:
        """The body as it arrives; `None` last, if the caller left before its end."""

    def watch(self, gone: Callable[[], None]) -> None:
        """Call *gone* once if the caller leaves before `unwatch`."""

    def unwatch(self) -> None:
        """What the caller does now is its own affair."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of an answer whose length is not known."""

    async def piece(self, body: bytes, *, more: bool) -> None:
        """Send a part of it; returns when the caller can take more."""

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer; *headers* hold its length."""


class AsgiWire:
    """A request that an ASGI server brought."""

    __slots__ = ("_gone", "_receive", "_send", "_timer", "_watcher", "headers", "known", "method",
                 "query", "raw_path", "source")  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.known = None
        self.source = str((scope.get("client") or ("",))[0])
        self._receive = receive
        self._send = send
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._gone: Callable[[], None] | None = None

    async def pieces(self) -> AsyncIterator[bytes | None]:
        """The body as it arrives."""
        while True:
            message = await self._receive()
            if message["type"] == _GONE:
                yield None
                return
            piece: bytes = message.get("body", b"")
            if piece:
                yield piece
            if not message.get("more_body"):
                return

    async def read(self, most: int) -> bytes | None:
        """The whole body."""
        collected = []
        size = 0
        async for piece in self.pieces():
            if piece is None:
                return None
            size += len(piece)
            if size > most:
                raise TooLarge(f"the body is larger than {most} bytes")
            collected.append(piece)
        return b"".join(collected)

    def watch(self, gone: Callable[[], None]) -> None:
        """Listen for the caller's departure, if there is time for one."""
        self._gone = gone
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._listen)

    def unwatch(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _listen(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != _GONE:
            pass
        if self._gone is not None:
            self._gone()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes, *, more: bool) -> None:
        """Send a part."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all."""
        await self.start(status, headers)
        await self.piece(body, more=False)


Handler = Callable[[Wire], Awaitable[None]]


class DirectCycle:
    """A request that is answered under the protocol itself.

    It has the attributes of uvicorn's RequestResponseCycle that the protocol uses. uvicorn
    tells its cycle by an event that something changed; here the cycle is that event.
    """

    __slots__ = (
        "_flow", "_gone", "_handler", "_head_bytes", "_headers", "_on_response", "_transport",
        "body", "default_headers", "disconnected", "keep_alive", "known", "more_body", "raw_path",
        "response_complete", "response_started", "task", "tasks", "waiting_for_100_continue",
    )  # fmt: skip

    method = "POST"
    query = b""

    def __init__(
        self,
        handler: Handler,
        *,
        raw_path: bytes,
        headers: Headers | None,
        transport: Any,
        flow: Any,
        default_headers: Headers,
        keep_alive: bool,
        on_response: Callable[[], None],
        known: KnownHead | None = None,
        head: bytes = b"",
        body: bytes | None = None,
    ) -> None:
        """Begin.

        Args:
            headers: `None` if the head is *known*; *head* is its bytes then.
            body: All of it, if it is here already.
        """
        self.raw_path = raw_path
        self.known = known
        self._headers = headers
        self._head_bytes = head
        self.body: bytes | bytearray = bytearray() if body is None else body
        self.more_body = body is None
        self.keep_alive = keep_alive
        self.default_headers = default_headers
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self.waiting_for_100_continue = False
        self._handler = handler
        self._transport = transport
        self._flow = flow
        self._on_response = on_response
        self._gone: Callable[[], None] | None = None
        self.task: asyncio.Task[Any] | None = None
        """What runs this."""
        self.tasks: set[asyncio.Task[Any]] = set()
        """Where it is, for whoever waits for all of them."""

    @property
    def message_event(self) -> DirectCycle:
        """What the protocol sets when something changed: this."""
        return self

    def set(self) -> None:
        """Something changed; what matters here is whether the caller left."""
        if self.disconnected and self._gone is not None:
            gone, self._gone = self._gone, None
            gone()

    @property
    def headers(self) -> Headers:
        """Name and value of each header."""
        if self._headers is None:
            self._headers = read_headers(self._head_bytes)
        return self._headers

    async def run(self) -> None:
        """Answer the request, which is complete."""
        try:
            await self._handler(self)
        except Exception:
            logging.getLogger("uvicorn.error").exception("Exception in the gateway")
            if not self.response_started:
                self.keep_alive = False
                await self.send(500, [(b"content-length", b"0")], b"")
        finally:
            if self.task is not None:
                self.tasks.discard(self.task)
                self.task = None  # it holds this: no circle is left to the garbage collector
            if not self.response_complete and not self.disconnected:
                # Nobody may take half an answer for a whole one.
                self._transport.close()

    # -- the request -------------------------------------------------------------------

    @property
    def source(self) -> str:
        """The address of the other end."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, (tuple, list)) and peer else ""

    async def read(self, most: int) -> bytes | None:
        """The whole body, which is here."""
        return self.take(most)

    def take(self, most: int) -> bytes | None:
        """As `read`, without waiting."""
        if self.disconnected:
            return None
        if len(self.body) > most:
            raise TooLarge(f"the body is larger than {most} bytes")
        # A statement may wait for long, and one copy of its text is enough until then.
        body, self.body = bytes(self.body), b""
        return body

    async def pieces(self) -> AsyncIterator[bytes | None]:
        """The whole body in one piece."""
        yield None if self.disconnected else bytes(self.body)

    def watch(self, gone: Callable[[], None]) -> None:
        """Remember whom to tell."""
        self._gone = gone
        self.set()

    def unwatch(self) -> None:
        """Tell nobody."""
        self._gone = None

    # -- the answer --------------------------------------------------------------------

    def _head(self, status: int, headers: Headers) -> bytes:
        head = [_STATUS_LINES[status]]
        for name, value in self.default_headers:
            head += (name, b": ", value, b"\r\n")
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            head.append(b"connection: close\r\n")
        whole = b"".join(head)
        lines = 1 + len(self.default_headers) + len(headers) + (not self.keep_alive)
        if whole.count(b"\n") != lines or whole.count(b"\r") != lines or b"\0" in whole:
            raise ValueError("a header holds the end of a line")
        self.response_started = True
        return whole

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all in one write."""
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected:
            return
        self._transport.write(b"%b\r\n%b" % (self._head(status, headers), body))
        self._end()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of a chunked answer."""
        if self.disconnected:
            return
        head = self._head(status, headers)
        self._transport.write(head + b"transfer-encoding: chunked\r\n\r\n")

    async def piece(self, body: bytes, *, more: bool) -> None:
        """Send a chunk, when the caller has read enough of those before."""
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected:
            return
        if body:
            self._transport.writelines([b"%x\r\n" % len(body), body, b"\r\n"])
        if not more:
            self._transport.write(b"0\r\n\r\n")
            self._end()

    def _end(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        self._on_response()
