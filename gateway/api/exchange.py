"""One request and its answer: what was sent, who sent it, what is written back."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from hashlib import sha256
from typing import Any

from ..core.errors import (
    GatewayError,
    InvalidRequest,
    InvalidSignature,
    SlowRequest,
    TooLarge,
    UnsupportedMediaType,
)
from ..core.idempotency import MAX_KEY, Keyed, is_key
from ..core.model import Call
from ..core.nodes import SCHEME as NODE_SCHEME
from ..core.streams import Pace
from ..core.trace import read_traceparent, sql_comment
from ..engine.engine import Reply
from ..engine.identity import Identified
from ..observe.traces import Trace
from .server import Server
from .wire import Headers, Wire

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_NONE: Headers = []
_ids = random.Random()
WriteError = Callable[[GatewayError, str], tuple[int, Headers, bytes]]


def new_request_id() -> str:
    """128 random bits in hexadecimal. Who may use it is checked; it need not be a secret."""
    return f"{_ids.getrandbits(128):032x}"


def timing(call: Call) -> tuple[bytes, bytes]:
    """Where the time went until the head of the answer: milliseconds, as browsers show them."""
    encoding = time.perf_counter() - call.done if call.done else 0.0
    value = b"queue;dur=%.2f, connect;dur=%.2f, db;dur=%.2f, encode;dur=%.2f" % (
        call.queued * 1000, call.connecting * 1000, call.running * 1000, encoding * 1000,
    )  # fmt: skip
    return b"server-timing", value


class HangUp:
    """Cancels the work of a caller that left."""

    __slots__ = ("_call", "_main", "gone")

    def __init__(self, call: Call, task: asyncio.Task[Any] | None) -> None:
        self.gone = False
        self._call = call
        self._main = task

    def __call__(self) -> None:
        """The caller left."""
        self.gone = True
        # A COMMIT on its way is never cancelled: nobody could say what became of it.
        if not self._call.committing and self._main is not None:
            self._main.cancel()


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_pace", "_write_error", "call", "clock", "code", "hangup", "headers", "identified",
        "last_words", "operation", "outcome", "reason", "reply", "sent", "server", "shared",
        "sqlstate", "status", "task", "trace", "whole", "wire",
    )  # fmt: skip

    def __init__(
        self,
        server: Server,
        operation: str,
        wire: Wire,
        write_error: WriteError,
    ) -> None:
        self.server = server
        self.operation = operation
        self.wire = wire
        self._write_error = write_error
        self.clock = clock = server.clock
        self.call = Call("", math.inf, clock())
        self.headers: Headers = []
        """Of the answer, besides type and length."""
        self.shared: Headers = server.cors.headers(wire.headers) if server.cors else _NONE
        """What a browser needs to hand the answer to its page."""
        if server.draining:
            # A load balancer that keeps the connection would go on sending here.
            self.shared = [*self.shared, (b"connection", b"close")]
        self.identified: Identified | None = None
        self.hangup: HangUp | None = None
        self.reply: Reply | None = None
        self.status = 0
        self.sent = 0
        """Bytes of the answer's body."""
        self.code: str | None = None
        self.outcome = "ok"
        self.sqlstate: str | None = None
        self.reason: str | None = None
        """Why it was refused, for the log alone."""
        self.trace: Trace | None = None
        self.task: asyncio.Task[Any] | None = None
        self.last_words: Callable[[GatewayError], bytes] | None = None
        """What ends a stream that broke, where the form of the answer has a place for it."""
        self._pace: Pace | None = None
        self.whole: bytes | None = None
        """The body of an upload that another node passed on: in one piece."""

    @property
    def raw(self) -> Headers:
        """The headers of the request."""
        return self.wire.headers

    @property
    def source(self) -> str:
        """The caller's address, as far as proxies that are named tell it."""
        return self.server.proxies.origin(self.wire.source, self.wire.headers)

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
        self.refuse_compressed()
        return await self.wire.read(self.server.request_bytes)

    def refuse_compressed(self) -> None:
        """Take no body that has to be unpacked.

        Raises:
            UnsupportedMediaType: It is compressed.
        """
        for key, value in self.raw:
            if key == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise UnsupportedMediaType(
                    "the body is compressed", hint="send it as it is, without content-encoding"
                )

    async def upload(self) -> AsyncIterator[bytes]:
        """The body as it arrives; each piece is taken when the one before is done with.

        A caller that leaves before the end cancels the work, as any other.

        Raises:
            InvalidSignature: It is not the body that was signed; said before its end is.
            SlowRequest: It is sent slower than a stream may be.
        """
        assert self.hangup is not None
        assert self.identified is not None
        if self.whole is not None:
            self.wire.watch(self.hangup)
            if self.whole:
                yield self.whole
            return
        pace = None
        if self.call.target is not None:
            settings = self.server.engine.targets.get(self.call.target).settings
            if settings.stream_rate:
                pace = Pace(rate=settings.stream_rate, window=settings.stream_window)
        digest = sha256() if self.identified.signed is not None else None
        pieces = self.wire.pieces()
        clock = asyncio.get_running_loop().time
        while True:
            begun = clock()
            limit = asyncio.timeout(pace.allowed(0) if pace is not None else None)
            try:
                async with limit:
                    piece = await anext(pieces, b"")
            except TimeoutError:
                raise SlowRequest("the body was sent too slowly") from None
            if piece is None:
                self.hangup()
                await asyncio.Event().wait()
            if not piece:
                break
            if pace is not None:
                pace.took(len(piece), clock() - begun)
            if digest is not None:
                digest.update(piece)
            yield piece
        if digest is not None:
            claimed = (self.header(b"x-amz-content-sha256") or b"").strip()
            if claimed != digest.hexdigest().encode():
                raise InvalidSignature(
                    "The provided x-amz-content-sha256 header does not match what was computed.",
                    reason="payload hash",
                )
        self.wire.watch(self.hangup)

    def is_passed_on(self) -> bool:
        """Whether another node sent this on, whose word is over the whole of it."""
        return self.server.relay is not None and any(
            name == b"authorization" and value.startswith(NODE_SCHEME) for name, value in self.raw
        )

    async def gather(self) -> bytes:
        """An upload as a whole, for the node that holds its transaction.

        Raises:
            TooLarge: It is longer than the limit of other requests.
        """
        most = self.server.request_bytes
        pieces: list[bytes] = []
        async for piece in self.upload():
            pieces.append(piece)
            most -= len(piece)
            if most < 0:
                raise TooLarge(
                    "the transaction is held by another node, which takes no more than"
                    f" {self.server.request_bytes} bytes at a time",
                    hint="upload in smaller parts, or to the node that began the transaction",
                )
        return b"".join(pieces)

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

    def follow_trace(self) -> None:
        """Go on with the caller's trace, if it brings one; a signature need not cover that."""
        server = self.server
        given = next((value for name, value in self.raw if name == b"traceparent"), None)
        parent = read_traceparent(given) if given is not None else None
        comment = sql_comment(parent)
        if server.traces is not None:
            ago = asyncio.get_running_loop().time() - self.call.received
            self.trace = server.traces.begin(self.operation, self.raw, ago)
            if comment:
                comment = sql_comment(self.trace.traceparent)
        if server.comments:
            self.call.comment = comment

    def note(self, error: GatewayError) -> None:
        """Keep of *error* what is told of it."""
        self.code = error.code
        self.outcome = error.outcome.value
        self.sqlstate = getattr(error, "sqlstate", None)
        self.reason = getattr(error, "reason", None)

    def read_key(self, body: bytes, path: Mapping[str, str]) -> None:
        """The idempotency key: the caller's own, else the one that AWS SDKs send by themselves.

        What an SDK sends with each attempt of one call counts although not all of them
        sign it. Whoever could change it on its way could as well drop the request.
        """
        identified = self.identified
        if identified is None:
            return
        key: bytes | None = None
        explicit = True
        for name, value in self.raw:
            if name == b"idempotency-key" and identified.covers("idempotency-key"):
                if not is_key(value):
                    raise InvalidRequest(
                        f"an idempotency key is 1 to {MAX_KEY} printable ASCII characters",
                        field="idempotency-key",
                    )
                key, explicit = value, True
                break
            if name == b"amz-sdk-invocation-id" and identified.signed is not None and is_key(value):
                key, explicit = value, False
        if key is not None:
            what = "\0".join([self.operation, *(f"{name}={path[name]}" for name in sorted(path))])
            self.call.keyed = Keyed(
                identified.principal.subject, key, what.encode(), body, explicit
            )

    def note_key(self) -> None:
        """Tell the caller what its key was worth."""
        call = self.call
        if call.idempotency is not None:
            worth = call.idempotency.encode("ascii")
            self.headers.append((b"x-gateway-idempotency", worth))
        elif call.keyed is not None and call.keyed.explicit:
            # A read, or something that runs outside transactions: it is not remembered.
            self.headers.append((b"x-gateway-idempotency", b"none"))
        if call.replayed:
            self.headers.append((b"x-gateway-replayed", b"true"))

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of an answer whose length is not known."""
        self.status = status
        head = [*headers, timing(self.call), *self.headers, *self.shared]
        await self.wire.start(status, head)

    def begin_stream(self, reply: Reply) -> None:
        """Hold the caller to a pace from now on: *reply* holds a connection while it reads."""
        settings = reply.target.settings
        if settings.stream_rate:
            self._pace = Pace(rate=settings.stream_rate, window=settings.stream_window)

    async def piece(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the answer; returns when the caller can take more.

        Raises:
            SlowRequest: The caller reads slower than a stream may be read.
        """
        self.sent += len(body)
        pace = self._pace
        if pace is None:
            await self.wire.piece(body, more=more)
            return
        clock = asyncio.get_running_loop().time
        begun = clock()
        limit = asyncio.timeout(pace.allowed(len(body)))
        try:
            async with limit:
                await self.wire.piece(body, more=more)
        except TimeoutError:
            if not limit.expired():
                raise
            if self.reply is not None:
                self.reply.target.cancelled("slow_reader")
            raise SlowRequest("the answer was read too slowly") from None
        pace.took(len(body), clock() - begun)

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        self.status = status
        self.sent = len(body)
        length = (b"content-length", b"%d" % len(body))
        head = [*headers, length, timing(self.call), *self.headers, *self.shared]
        await self.wire.send(status, head, body)

    async def refuse(self, error: GatewayError) -> None:
        """Send *error* in the dialect's words."""
        self.note(error)
        error.request_id = self.call.request_id
        status, headers, body = self._write_error(error, self.operation)
        await self.send(status, headers, body)
