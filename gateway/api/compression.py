"""Answers packed as their caller accepts it: zstd, brotli or gzip.

For the native routes alone: the SDKs of AWS ask for `identity` or for nothing, and
cannot read anything else. The extra `compress` brings the library that does the work,
which is written for ASGI; here it is put around a `Wire`. Without the extra, answers go
out as they are. Small ones always do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.util import find_spec
from typing import Any

from .wire import Handler, Headers, Wire

SMALL = 1_024
"""Bytes up to which packing saves no packet."""
_STREAMED = ("application/x-ndjson", "application/vnd.apache.arrow.stream", "text/csv")
"""Types of which every piece is pressed out at once: its rows are of use before the next."""
Compress = Callable[[Handler, Wire], Awaitable[None]]


def compression() -> Compress | None:
    """What runs a handler and packs its answer; `None` without the extra."""
    if any(find_spec(name) is None for name in ("starlette_compress", "zstandard", "brotli")):
        return None
    from starlette_compress import CompressMiddleware, add_compress_type

    add_compress_type("application/problem+json")
    for each in _STREAMED:
        add_compress_type(each, streaming=True)

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        handler, wire = scope["pgsluice"]
        await handler(_Packed(wire, send))

    # The fast ends of their scales: on this side it is the event loop that packs.
    middleware = CompressMiddleware(
        inside, minimum_size=0, zstd_level=1, brotli_quality=4, gzip_level=1
    )

    def compress(handler: Handler, wire: Wire) -> Awaitable[None]:
        known = wire.known
        if known is not None:
            wanted = b"accept-encoding" in known.names
        else:
            wanted = any(name == b"accept-encoding" for name, _ in wire.headers)
        return packed(handler, wire) if wanted else handler(wire)

    async def packed(handler: Handler, wire: Wire) -> None:
        scope = {"type": "http", "headers": wire.headers, "pgsluice": (handler, wire)}
        await middleware(scope, _nothing, _Out(wire))

    return compress


async def _nothing() -> Any:
    raise AssertionError("the request is read from its wire")


class _Out:
    """An ASGI `send` that writes to a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._head: tuple[int, Headers] | None = None

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._head = message["status"], message["headers"]
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._head is None:
            await self._wire.piece(body, more=more)
            return
        (status, headers), self._head = self._head, None
        if not more and any(name == b"content-length" for name, _ in headers):
            await self._wire.send(status, headers, body)
            return
        await self._wire.start(status, headers)
        await self._wire.piece(body, more=more)


class _Packed:
    """The wire of a request, but for its answer, which goes another way."""

    def __init__(self, wire: Wire, send: Any) -> None:
        self.method = wire.method
        self.raw_path = wire.raw_path
        self.query = wire.query
        self.headers = wire.headers
        self.known = None
        self._wire = wire
        self._send = send

    @property
    def source(self) -> str:
        """The address of the other end."""
        return self._wire.source

    async def read(self, most: int) -> bytes | None:
        """The whole body."""
        return await self._wire.read(most)

    def pieces(self) -> AsyncIterator[bytes | None]:
        """The body as it arrives."""
        return self._wire.pieces()

    def watch(self, gone: Callable[[], None]) -> None:
        """Tell of the caller's departure."""
        self._wire.watch(gone)

    def unwatch(self) -> None:
        """Tell no more."""
        self._wire.unwatch()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )

    async def piece(self, body: bytes, *, more: bool) -> None:
        """Send a part."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all."""
        if len(body) <= SMALL:
            await self._wire.send(status, headers, body)
            return
        await self.start(status, headers)
        await self.piece(body, more=False)
