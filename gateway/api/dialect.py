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
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from ..core.errors import (
    GatewayError,
    Internal,
    InvalidRequest,
    InvalidSignature,
    MethodNotAllowed,
    NotFound,
    Outcome,
    OutcomeUnknown,
    Retry,
    SlowRequest,
    StatementCancelled,
    TooLarge,
    UnsupportedMediaType,
)
from ..core.idempotency import MAX_KEY, Keyed, is_key
from ..core.model import Call, Principal
from ..core.nodes import SCHEME as NODE_SCHEME
from ..core.observation import Observer
from ..core.proxies import Proxies
from ..core.sigv4 import RawRequest
from ..core.streams import Pace
from ..core.trace import read_traceparent, sql_comment
from ..engine.engine import Engine, Reply
from ..engine.identity import Identified, Identifier
from ..observe.traces import Trace, Traces
from ..settings import CorsSettings
from .compression import Compress
from .cors import Cors
from .wire import AsgiWire, Handler, Headers, Receive, Scope, Send, Wire

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


_ids = random.Random()


def new_request_id() -> str:
    """128 random bits in hexadecimal. Who may use it is checked; it need not be a secret."""
    return f"{_ids.getrandbits(128):032x}"


_KEYS = frozenset({"idempotency-key", "amz-sdk-invocation-id"})


class Operation(NamedTuple):
    """One endpoint: `read` and the writing are pure, `run` calls the engine."""

    name: str
    read: Callable[[bytes, Mapping[str, str]], Any]
    """Body and path parameters → request."""
    run: Callable[[Engine, Principal, Any, Call], Awaitable[Any]]
    write: Callable[[Exchange, Any, Any], Awaitable[None]]
    """Exchange, request, what `run` returned."""
    method: str = "POST"
    upload: Callable[[Exchange, Mapping[str, str]], Any] | None = None
    """In place of `read`, for a body of any size that `run` takes piece by piece."""


WriteError = Callable[[GatewayError, str], tuple[int, Headers, bytes]]


class Relaying(Protocol):
    """Passes requests on to other nodes; `api/relay.py` does."""

    def owner(self, request: Any) -> str | None:
        """The node that has to answer *request*, if it is not this one."""

    async def pass_on(self, exchange: Exchange, boot: str, request: Any, body: bytes) -> bool:
        """Have that node answer; `False` if it is gone."""

    async def cancel(self, principal: Principal, request_id: str) -> bool:
        """Have what runs elsewhere as *request_id* cancelled."""

    def prove(self, exchange: Exchange, nonce: str) -> None:
        """Make the answer prove that it is this node's."""


class Server:
    """What every exchange needs."""

    def __init__(
        self,
        *,
        engine: Engine,
        identifier: Identifier,
        wall: Callable[[], float],
        request_bytes: int,
        observer: Observer,
        observe: Callable[[Exchange], None] = lambda exchange: None,
        cors: Cors | None = None,
        require_signed_key: bool = False,
        proxies: Proxies | None = None,
    ) -> None:
        self.engine = engine
        self.identifier = identifier
        self.wall = wall
        self.request_bytes = request_bytes
        self.draining = False
        self.running: dict[tuple[str, str], Exchange] = {}
        """By principal's subject and request id."""
        self.observer = observer
        self.observe = observe
        self.cors = cors or Cors(CorsSettings())
        self.require_signed_key = require_signed_key
        """Whether a signed request may write only with a key that the signature covers."""
        self.relay: Relaying | None = None
        self.traces: Traces | None = None
        self.proxies = proxies or Proxies()
        """Whose word about the address of a caller counts."""
        self.comments = False
        """Whether some target's statements are to name the trace that they belong to."""
        self.active = 0
        self.clock = asyncio.get_running_loop().time
        """The event loop's."""
        self.quiet = asyncio.Event()

    def recall(self, wire: Wire) -> Told | None:
        """What the head of a request has said before, as far as that still counts."""
        known = wire.known
        if known is None:
            return None
        told: Told | None = known.told
        if (
            told is None
            or told.epoch is not self.identifier.epoch
            or told.identified.until <= self.wall()
        ):
            return None
        return told


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


_NONE: Headers = []


class Told(NamedTuple):
    """What a head has said, for the next request that begins with it.

    Only heads that say the same each time: under a token, and without any header that is
    another one for each request or is answered in the head of the answer.
    """

    identified: Identified
    epoch: object
    """The identifier's, under which that counts."""
    form: str
    text: bool


_APART = frozenset(
    {
        b"accept-encoding", b"amz-sdk-invocation-id", b"content-encoding", b"idempotency-key",
        b"origin", b"traceparent", b"x-gateway-deadline-ms", b"x-gateway-request-id",
    }
)  # fmt: skip
"""Headers that mean something for the one request that they came with."""


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
        error.request_id = self.call.request_id  # type: ignore[attr-defined]
        status, headers, body = self._write_error(error, self.operation)
        await self.send(status, headers, body)


async def serve(
    server: Server,
    operation: Operation,
    path: Mapping[str, str],
    write_error: WriteError,
    id_header: bytes,
    check: Callable[[Exchange], None] | None,
    wire: Wire,
) -> None:
    """Carry one request from its bytes to its answer.

    Args:
        path: Parameters found in the path.
        id_header: The header that carries the request id out.
        check: Refuses by the headers, once the sender is known.
    """
    exchange = Exchange(server, operation.name, wire, write_error)
    call = exchange.call
    call.request_id = new_request_id()
    server.active += 1
    try:
        try:
            told = server.recall(wire)
            if told is None:
                met = await _meet(exchange, operation, path, check)
                if met is None:
                    return
                body, path = met
                identified = exchange.identified
                assert identified is not None
            else:
                # Nothing in this head that was not in one before: a third of the request.
                whole = await wire.read(server.request_bytes)
                if whole is None:
                    return
                body = whole
                call.received = exchange.clock()
                exchange.identified = identified = told.identified
                call.form, call.text = told.form, told.text
                if server.traces is not None or server.comments:
                    exchange.follow_trace()
            if operation.upload is None:
                request = operation.read(body, path)
            else:
                request = operation.upload(exchange, path)
            elsewhere = None
            if server.relay is not None and not call.passed_on:
                elsewhere = server.relay.owner(request)
            if elsewhere is None:
                body = b""  # It is read, may be large, and its statement may have to wait.
            key = (identified.principal.subject, call.request_id)
            exchange.task = task = asyncio.current_task()
            exchange.hangup = HangUp(call, task)
            if operation.upload is None:
                wire.watch(exchange.hangup)
            server.running[key] = exchange
            exchange.headers.append((id_header, call.request_id.encode("ascii")))
            try:
                if elsewhere is not None:
                    assert server.relay is not None
                    if operation.upload is not None:
                        body = await exchange.gather()
                    if await server.relay.pass_on(exchange, elsewhere, request, body):
                        return
                try:
                    done = await operation.run(server.engine, identified.principal, request, call)
                finally:
                    if call.target is not None:
                        if not call.running:
                            call.running = server.clock() - call.started
                        server.observer.statement_finished(call.target, call.running)
                    if call.keyed is not None:
                        exchange.note_key()
                call.done = time.perf_counter()
                if isinstance(done, Reply):
                    exchange.reply = done
                await operation.write(exchange, request, done)
            finally:
                server.running.pop(key, None)
                wire.unwatch()
        except GatewayError as error:
            if not exchange.headers:
                exchange.headers.append((id_header, call.request_id.encode("ascii")))
            await _refuse(exchange, _happened(error, exchange))
        except asyncio.CancelledError:
            await _cancelled(exchange, id_header)
        except Exception as error:  # noqa: BLE001  # a defect must answer, not hang the caller
            if not exchange.headers:
                exchange.headers.append((id_header, call.request_id.encode("ascii")))
            await _refuse(exchange, _unexpected(error, exchange))
    finally:
        try:
            if exchange.reply is not None and not exchange.reply.settle_at_once():
                await exchange.reply.settle()
        finally:
            server.active -= 1
            if server.draining and server.active == 0:
                server.quiet.set()
            server.observe(exchange)
            # Both hold this task, and it holds them: without this, every request would leave
            # a circle to the garbage collector.
            exchange.task = exchange.hangup = None


async def _meet(
    exchange: Exchange,
    operation: Operation,
    path: Mapping[str, str],
    check: Callable[[Exchange], None] | None,
) -> tuple[bytes, Mapping[str, str]] | None:
    """Learn who sends a request and what its head says; its body, and the path's parameters.

    `None` if the caller left before its end.
    """
    server, wire, call = exchange.server, exchange.wire, exchange.call
    if operation.upload is None or exchange.is_passed_on():
        body = await exchange.body()
        if body is None:
            return None
        exchange.whole = body if operation.upload is not None else None
    else:
        exchange.refuse_compressed()
        body = b""
    call.received = exchange.clock()
    epoch = server.identifier.epoch
    exchange.identified = identified = await server.identifier.authenticate(
        RawRequest(
            wire.method,
            wire.raw_path,
            wire.query,
            exchange.raw,
            body,
            operation.upload is not None and exchange.whole is None,
        ),
        wall=server.wall,
        source=exchange,
    )
    if identified.vouched is not None and server.relay is not None:
        call.passed_on = True
        server.relay.prove(exchange, identified.vouched)
    exchange.read_head()
    if server.traces is not None or server.comments:
        exchange.follow_trace()
    if check is not None:
        check(exchange)
    if wire.query:
        path = {**_arguments(wire.query), **path}
    exchange.read_key(body, path)
    if server.require_signed_key and identified.signed is not None:
        call.must_read = not _KEYS & identified.signed
    known = wire.known
    if known is not None and identified.until and _APART.isdisjoint(known.names):
        known.told = Told(identified, epoch, call.form, call.text)
    return body, path


def _stopped(call: Call) -> GatewayError:
    if call.in_doubt:
        return OutcomeUnknown(
            "the statement was cancelled outside any transaction",
            hint="it may have taken effect in part; look before sending it again",
        )
    if call.cancel_reason != "drain":
        return StatementCancelled("the statement was cancelled")
    error = StatementCancelled(
        "this node is shutting down and the statement was cancelled",
        hint="nothing of it was kept; send it again",
    )
    error.retry = Retry.SAFE
    return error


def _unexpected(error: Exception, exchange: Exchange) -> GatewayError:
    # A defect of ours after the work was done must not be taken for "nothing happened".
    if exchange.reply is not None:
        message = f"the answer could not be written ({type(error).__name__})"
        return _happened(OutcomeUnknown(message), exchange)
    return Internal(f"unexpected {type(error).__name__}")


def _happened(error: GatewayError, exchange: Exchange) -> GatewayError:
    """*error*, which says so if it came after the work was committed."""
    if exchange.reply is not None and exchange.reply.wrote:
        error.outcome = Outcome.COMMITTED
        error.retry = Retry.NEVER
        if error.status >= 429:
            # What such a status says to SDKs is: nothing happened, send it again.
            error.status = 400
    return error


def _arguments(query: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise InvalidRequest("the query of the URL cannot be read") from None


async def _refuse(exchange: Exchange, error: GatewayError) -> None:
    if exchange.status:
        # The head is out: leaving the body unfinished makes the server cut the connection,
        # so that nobody takes the answer for complete.
        exchange.note(error)
        if exchange.last_words is not None and not isinstance(error, SlowRequest):
            error.request_id = exchange.call.request_id  # type: ignore[attr-defined]
            await exchange.wire.piece(exchange.last_words(error), more=False)
        return
    await exchange.refuse(error)


async def _cancelled(exchange: Exchange, id_header: bytes) -> None:
    hangup = exchange.hangup
    task = asyncio.current_task()
    if hangup is not None and hangup.gone:
        exchange.code = "hangup"
        exchange.outcome = _left_behind(exchange).value
    elif exchange.call.cancelled:
        if task is not None:
            task.uncancel()
        await _refuse(exchange, _happened(_stopped(exchange.call), exchange))
        return
    else:
        raise asyncio.CancelledError
    if task is not None:
        task.uncancel()


def _left_behind(exchange: Exchange) -> Outcome:
    """What became of the work of a caller who left."""
    if exchange.reply is not None and exchange.reply.wrote:
        return Outcome.COMMITTED
    return Outcome.UNKNOWN if exchange.call.in_doubt else Outcome.NOT_EXECUTED


def timing(call: Call) -> tuple[bytes, bytes]:
    """Where the time went until the head of the answer: milliseconds, as browsers show them."""
    encoding = time.perf_counter() - call.done if call.done else 0.0
    value = b"queue;dur=%.2f, connect;dur=%.2f, db;dur=%.2f, encode;dur=%.2f" % (
        call.queued * 1000, call.connecting * 1000, call.running * 1000, encoding * 1000,
    )  # fmt: skip
    return b"server-timing", value


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
        compress: Compress | None = None,
    ) -> None:
        self._check = check
        self._compress = compress
        self._server = server
        self._write_error = write_error
        self._id_header = id_header
        self._exact: dict[str, dict[str, Operation]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Operation]]] = []
        patterns: dict[str, dict[str, Operation]] = {}
        self._routes = routes
        for route in routes:
            table = self._exact if "{" not in route.path else patterns
            table.setdefault(route.path, {})[route.operation.method] = route.operation
        for path, operations in patterns.items():
            # Whatever stands last is taken whole: a key may hold a slash.
            pattern = re.sub(r"\{(\w+)\}$", r"(?P<\1>.+)", path)
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
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

    def routes(self) -> Iterator[tuple[str, str]]:
        """Every path, and a method that is served there."""
        for route in self._routes:
            yield route.path, route.operation.method

    def direct(self) -> Iterator[tuple[bytes, Handler]]:
        """What can be answered without ASGI: POST to paths without parameters."""
        for path, operations in self._exact.items():
            operation = operations.get("POST")
            if operation is not None:
                handler: Handler = partial(
                    serve, self._server, operation, {}, self._write_error, self._id_header,
                    self._check,
                )  # fmt: skip
                if self._compress is not None:
                    handler = partial(self._compress, handler)
                yield path.encode("ascii"), handler

    async def __call__(
        self,
        found: tuple[dict[str, Operation], Mapping[str, str]] | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve a request at what `find` found; `None` is refused as not found."""
        wire = AsgiWire(scope, receive, send)
        if found is not None:
            operation = found[0].get(wire.method)
            if operation is not None:
                handler: Handler = partial(
                    serve, self._server, operation, found[1], self._write_error, self._id_header,
                    self._check,
                )  # fmt: skip
                if self._compress is None:
                    await handler(wire)
                else:
                    await self._compress(handler, wire)
                return
        exchange = Exchange(self._server, "", wire, self._write_error)
        exchange.call.request_id = new_request_id()
        exchange.headers.append((self._id_header, exchange.call.request_id.encode("ascii")))
        if found is None:
            await exchange.refuse(NotFound("there is nothing at this path"))
        else:
            allowed = ", ".join(sorted(found[0]))
            exchange.headers.append((b"allow", allowed.encode("ascii")))
            await exchange.refuse(MethodNotAllowed(f"use {allowed} here"))
        self._server.observe(exchange)


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
    exchange.begin_stream(reply)
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


async def stream_copied(
    exchange: Exchange,
    reply: Reply,
    headers: Headers,
    head: bytes,
    encode: Callable[[bytes | bytearray], bytes],
    tail: Callable[[], bytes],
) -> None:
    """Send what *encode* makes of what PostgreSQL copies; *tail* is asked when it is over."""
    assert reply.copied is not None
    exchange.begin_stream(reply)

    async def take(piece: bytes | bytearray) -> None:
        part = encode(piece)
        if not exchange.status:
            part = head + part
            await exchange.start(200, headers)
        await exchange.piece(part)

    await reply.copied.run(take)
    part = tail()
    if not exchange.status:
        part = head + part
        await exchange.start(200, headers)
    await exchange.piece(part, more=False)
