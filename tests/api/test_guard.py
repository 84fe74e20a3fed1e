from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from gateway.api.guard import GuardedProtocol, Phase, guarded
from gateway.api.limits import GuardLimits
from gateway.api.listening import listen

pytestmark = pytest.mark.anyio

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

HOST = b"host: a.example\r\n"
POST = b"POST /echo HTTP/1.1\r\n"
GET = b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n"
# Nothing that a test waits for takes so long: it ends a test that would hang.
HANGS = 20.0


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": request.param})


@dataclass
class App:
    """An application that notes what reaches it."""

    seen: list[Scope] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        path = scope["path"]
        if path == "/early":
            await self.answer(send, b"early")
            return
        if path == "/wait":
            self.started.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone.set()
            return
        if path == "/begin":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            self.started.set()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(bytes(body))
        if path == "/stream":
            await self.stream(send)
        elif path == "/pause":
            self.started.set()
            await self.go_on.wait()
            await self.answer(send, b"gone on")
        else:
            await self.answer(send, b"%d" % len(body))

    async def answer(self, send: Send, body: bytes) -> None:
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    async def stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.started.set()
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(1 << 18), "more_body": True})
            self.sent += 1 << 18
        self.gone.set()


class Caller:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def hang_up_half(self) -> None:
        self.writer.write_eof()

    async def answer(self) -> tuple[int, bytes]:
        """One answer with a content-length."""
        async with asyncio.timeout(HANGS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            return int(head.split()[1]), await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        received = bytearray()
        async with asyncio.timeout(HANGS):
            try:
                while data := await self.reader.read(1 << 16):
                    received += data
            except ConnectionError:
                pass
        return bytes(received)


class Guarded:
    """A server with the guard, on loopback."""

    def __init__(self, app: App, limits: GuardLimits) -> None:
        self.app = app
        self.protocol = guarded(limits)
        self.state = self.protocol.state
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        config = uvicorn.Config(
            app,
            http=self.protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        config.load()
        self.server = uvicorn.Server(config)
        self.server.lifespan = config.lifespan_class(config)
        self.callers: list[Caller] = []

    async def call(self, data: bytes = b"") -> Caller:
        caller = Caller(*await asyncio.open_connection(*self.address))
        self.callers.append(caller)
        if data:
            caller.send(data)
        return caller

    async def refused(self, data: bytes) -> tuple[int, dict[str, Any]]:
        """The one answer to *data*, after which the connection ends."""
        caller = await self.call(data)
        status, body = await caller.answer()
        assert await caller.rest() == b""
        problem = json.loads(body)
        assert problem["status"] == status
        return status, problem

    def connections(self) -> list[GuardedProtocol]:
        return [c for c in self.server.server_state.connections if isinstance(c, GuardedProtocol)]


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Guarded]:
    guard = Guarded(App(), GuardLimits(**limits))
    await guard.server.startup(sockets=[guard.listener])
    try:
        yield guard
    finally:
        # Not uvicorn's own shutdown: it sleeps.
        for server in guard.server.servers:
            server.close()
        for caller in guard.callers:
            caller.writer.transport.abort()
        guard.app.go_on.set()
        state = guard.server.server_state
        await until(lambda: not state.connections and not state.tasks)
        guard.listener.close()
    assert guard.state.bodies == 0


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until *condition* holds."""
    async with asyncio.timeout(HANGS):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


# -- requests that are served ----------------------------------------------------------


async def test_a_kept_connection_serves_one_request_after_another() -> None:
    async with serving() as guard:
        caller = await guard.call()
        for size in (0, 1, 100_000, 7):
            head = b"POST /echo HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n" % size
            caller.send(head + bytes(size))
            assert await caller.answer() == (200, b"%d" % size)
        assert guard.state.refused == {}


async def test_one_timer_serves_all_requests_of_a_connection() -> None:
    async with serving() as guard:
        caller = await guard.call(GET)
        await caller.answer()
        (connection,) = guard.connections()
        timer = connection._timer
        assert timer is not None
        for _ in range(20):
            caller.send(GET)
            await caller.answer()
        assert connection._timer is timer


async def test_a_chunked_body_arrives_whole_and_its_trailers_are_no_headers() -> None:
    async with serving() as guard:
        caller = await guard.call(
            b"POST /echo HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
            b"3;name=value\r\nabc\r\n2\r\nde\r\n0\r\nauthorization: forged\r\n\r\n"
        )
        assert await caller.answer() == (200, b"5")
        assert guard.app.bodies == [b"abcde"]
        assert b"authorization" not in dict(guard.app.seen[0]["headers"])


async def test_requests_in_single_bytes_are_served_like_any_other() -> None:
    async with serving() as guard:
        caller = await guard.call()
        for body in (b"abc", b""):
            head = POST + HOST + b"content-length: %d\r\n\r\n" % len(body)
            for number, byte in enumerate(head + body, 1):
                caller.send(bytes([byte]))
                await until(lambda number=number: _received(guard) >= number)  # type: ignore[misc]
            assert await caller.answer() == (200, b"%d" % len(body))


def _received(guard: Guarded) -> int:
    """Bytes of the present request that have arrived one by one."""
    return next((c._head + c._raw_body for c in guard.connections()), 0)


async def test_continue_is_sent_when_the_application_reads() -> None:
    async with serving() as guard:
        caller = await guard.call(
            b"POST /echo HTTP/1.1\r\n" + HOST + b"expect: 100-continue\r\ncontent-length: 3\r\n\r\n"
        )
        async with asyncio.timeout(HANGS):
            assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.send(b"abc")
        assert await caller.answer() == (200, b"3")


async def test_an_upgrade_that_is_not_taken_is_an_ordinary_request() -> None:
    async with serving() as guard:
        caller = await guard.call()
        for _ in range(2):
            caller.send(
                b"GET /echo HTTP/1.1\r\n" + HOST + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
            )
            assert await caller.answer() == (200, b"0")


async def test_empty_lines_between_requests_are_ignored() -> None:
    async with serving() as guard:
        caller = await guard.call()
        for _ in range(3):
            caller.send(GET + b"\r\n")
            assert (await caller.answer())[0] == 200


async def test_an_early_answer_leaves_the_connection_usable() -> None:
    async with serving() as guard:
        caller = await guard.call(
            b"POST /early HTTP/1.1\r\n" + HOST + b"content-length: 4\r\n\r\nab"
        )
        assert await caller.answer() == (200, b"early")
        caller.send(b"cd" + GET)
        assert await caller.answer() == (200, b"0")
        assert guard.state.bodies == 0


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with serving(keep_alive=0.05) as guard:
        caller = await guard.call(GET)
        assert (await caller.answer())[0] == 200
        assert await caller.rest() == b""


# -- slow ------------------------------------------------------------------------------


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serving(head_timeout=0.05) as guard:
        caller = await guard.call()
        assert await caller.rest() == b""
        assert guard.state.refused == {"silent": 1}


@pytest.mark.parametrize("kept", [False, True], ids=["first request", "kept connection"])
async def test_a_head_that_does_not_end_is_answered_408(kept: bool) -> None:
    async with serving(head_timeout=0.1) as guard:
        caller = await guard.call(GET if kept else b"")
        if kept:
            await caller.answer()
        caller.send(b"GET /echo HTTP/1.1\r\nhost:")
        status, body = await caller.answer()
        assert status == 408
        assert json.loads(body)["retry"] == "safe"
        assert await caller.rest() == b""
        assert len(guard.app.seen) == int(kept)


async def test_a_trickling_head_gains_no_time() -> None:
    async with serving(head_timeout=0.2) as guard:
        caller = await guard.call(b"GET /echo HTTP/1.1\r\n")
        await until(lambda: bool(guard.connections()))
        (connection,) = guard.connections()
        due = connection._due
        for number in range(20):
            caller.send(b"x-%d: y\r\n" % number)
            await asyncio.sleep(0)
        await until(lambda: connection._head > 100)
        assert connection._due == due
        assert (await caller.answer())[0] == 408


async def test_a_body_that_does_not_end_is_answered_408_and_the_application_told() -> None:
    async with serving(body_timeout=0.05) as guard:
        caller = await guard.call(
            b"POST /echo HTTP/1.1\r\n" + HOST + b"content-length: 9\r\n\r\nab"
        )
        assert (await caller.answer())[0] == 408
        assert await caller.rest() == b""
        await guard.app.gone.wait()
        assert guard.app.bodies == []


async def test_a_body_gains_time_by_what_it_brings() -> None:
    async with serving(body_timeout=0.05, body_rate=1) as guard:
        caller = await guard.call(
            b"POST /echo HTTP/1.1\r\n" + HOST + b"content-length: 9\r\n\r\nabcd"
        )
        await until(lambda: bool(guard.app.seen))
        (connection,) = guard.connections()
        connection._on_timer()
        connection._timer_at = connection._body_since + 1.0
        connection._on_timer()
        assert connection._phase is Phase.BODY
        assert connection._due == pytest.approx(connection._body_since + 4.05)
        caller.send(b"efghi")
        assert await caller.answer() == (200, b"9")


async def test_a_body_too_slow_after_its_answer_has_begun_cuts_the_connection() -> None:
    async with serving(body_timeout=0.05) as guard:
        caller = await guard.call(
            b"POST /begin HTTP/1.1\r\n" + HOST + b"content-length: 9\r\n\r\nab"
        )
        assert b"408" not in await caller.rest()
        await guard.app.gone.wait()


async def test_who_never_reads_is_cut_off() -> None:
    async with serving(write_stall=0.05) as guard:
        loop = asyncio.get_running_loop()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, guard.address)
            await loop.sock_sendall(deaf, GET.replace(b"/echo", b"/stream"))
            async with asyncio.timeout(HANGS):
                await guard.app.gone.wait()
            assert guard.state.refused == {"stalled": 1}
            await until(lambda: not guard.connections())


async def test_who_reads_slowly_but_steadily_is_not_cut_off() -> None:
    async with serving(write_stall=1e6) as guard:
        loop = asyncio.get_running_loop()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, guard.address)
            await loop.sock_sendall(deaf, GET.replace(b"/echo", b"/stream"))
            await until(lambda: any(c._stalled_due < 1e9 for c in guard.connections()))
            (connection,) = guard.connections()
            connection._stalled_size += guard.protocol.limits.write_progress
            connection._on_stall(loop.time())
            assert not connection.transport.is_closing()
            connection._on_stall(loop.time())
            assert connection.transport.is_closing()
            await guard.app.gone.wait()


# -- large -----------------------------------------------------------------------------


async def test_a_head_too_large_is_answered_431_in_one_piece_or_in_many() -> None:
    async with serving(max_head=4096) as guard:
        head = b"GET /echo HTTP/1.1\r\n" + HOST + b"x: " + b"y" * 5000
        assert (await guard.refused(head + b"\r\n\r\n"))[0] == 431
        assert (await guard.refused(head))[0] == 431, "and it need not be complete"
        assert (await guard.refused(b"GET /" + b"y" * 5000))[0] == 431
        assert guard.app.seen == []


async def test_a_small_head_in_front_of_a_large_body_is_not_too_large() -> None:
    async with serving(max_head=1024) as guard:
        caller = await guard.call(
            b"POST /echo HTTP/1.1\r\n" + HOST + b"content-length: 50000\r\n\r\n" + bytes(50_000)
        )
        assert await caller.answer() == (200, b"50000")


async def test_too_many_headers_are_answered_431() -> None:
    async with serving(max_headers=10) as guard:
        nine = b"".join(b"x-%d: y\r\n" % number for number in range(9))
        caller = await guard.call(GET[:-2] + nine + b"\r\n")
        assert (await caller.answer())[0] == 200
        assert (await guard.refused(GET[:-2] + nine + b"z: y\r\n\r\n"))[0] == 431
        assert len(guard.app.seen) == 1


async def test_a_body_announced_too_large_never_reaches_the_application() -> None:
    async with serving(max_body=1000) as guard:
        for length in (b"1001", b"9" * 18, b"0" * 30 + b"1"):
            head = b"POST /echo HTTP/1.1\r\n" + HOST + b"content-length: " + length + b"\r\n\r\n"
            assert (await guard.refused(head))[0] == 413
        assert guard.app.seen == []
        caller = await guard.call(
            b"POST /echo HTTP/1.1\r\n" + HOST + b"content-length: 1000\r\n\r\n" + bytes(1000)
        )
        assert await caller.answer() == (200, b"1000")


async def test_the_refusal_reaches_a_caller_that_is_still_sending() -> None:
    async with serving(max_body=1000) as guard:
        size = 3_000_000
        head = b"POST /echo HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n" % size
        assert (await guard.refused(head + bytes(size)))[0] == 413


async def test_a_chunked_body_is_counted_while_it_arrives() -> None:
    async with serving(max_body=1000) as guard:
        caller = await guard.call(
            b"POST /echo HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
        )
        caller.send(b"100\r\n" + bytes(256) + b"\r\n")
        await until(lambda: bool(guard.app.seen))
        for _ in range(4):
            caller.send(b"100\r\n" + bytes(256) + b"\r\n")
        assert (await caller.answer())[0] == 413
        assert await caller.rest() == b""
        await guard.app.gone.wait()
        assert guard.app.bodies == []


async def test_a_refusal_follows_even_when_continue_was_awaited() -> None:
    async with serving(max_body=10) as guard:
        status, _ = await guard.refused(
            b"POST /echo HTTP/1.1\r\n"
            + HOST
            + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\nff\r\n"
            + bytes(255)
        )
        assert status == 413
        await guard.app.gone.wait()


async def test_chunk_extensions_and_trailers_without_end_are_refused() -> None:
    async with serving(max_head=2000) as guard:
        head = b"POST /echo HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
        for start in (b"3;", b"3\r\nabc\r\n0\r\nx: "):
            caller = await guard.call(head)
            await until(lambda: any(c._phase is Phase.BODY for c in guard.connections()))
            caller.send(start + b"y" * 4000)
            assert (await caller.answer())[0] == 400
            assert await caller.rest() == b""


async def test_all_bodies_together_have_a_limit_and_it_is_given_back() -> None:
    async with serving(max_bodies=1000) as guard:
        big = b"POST /pause HTTP/1.1\r\n" + HOST + b"content-length: 600\r\n\r\n" + bytes(600)
        first = await guard.call(big)
        await guard.app.started.wait()
        status, problem = await guard.refused(big)
        assert (status, problem["retry"], problem["outcome"]) == (503, "safe", "not_executed")
        guard.app.go_on.set()
        assert (await first.answer())[0] == 200
        assert (await (await guard.call(big)).answer())[0] == 200


# -- odd -------------------------------------------------------------------------------

SMUGGLED = b"GET /echo?smuggled HTTP/1.1\r\n" + HOST + b"\r\n"

REFUSED = {
    "length and chunked": POST + HOST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n"
    b"0\r\n\r\n",
    "chunked and length": POST + HOST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n"
    b"0\r\n\r\n",
    "two lengths": POST + HOST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "two equal lengths": POST + HOST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "list of lengths": POST + HOST + b"content-length: 3, 3\r\n\r\nabc",
    "signed length": POST + HOST + b"content-length: +3\r\n\r\nabc",
    "negative length": POST + HOST + b"content-length: -3\r\n\r\nabc",
    "hexadecimal length": POST + HOST + b"content-length: 0x3\r\n\r\nabc",
    "no host": POST + b"\r\n",
    "two hosts": POST + HOST + b"host: b.example\r\n\r\n",
    "two equal hosts": POST + HOST + HOST + b"\r\n",
    "empty host": POST + b"host:\r\n\r\n",
    "list of hosts": POST + b"host: a.example, b.example\r\n\r\n",
    "host with a path": POST + b"host: a.example/b\r\n\r\n",
    "host with a user": POST + b"host: a@b.example\r\n\r\n",
    "absolute target": b"GET http://a.example/echo HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "connect": b"CONNECT a.example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "fragment": b"GET /echo#a HTTP/1.1\r\n" + HOST + b"\r\n",
    "target not ASCII": b"GET /\xe9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "bare line feeds": b"GET /echo HTTP/1.1\nhost: a.example\n\n",
    "bare line feed in the head": POST + b"host: a.example\nx: y\r\n\r\n",
    "NUL in a value": POST + HOST + b"x: a\0b\r\n\r\n",
    "NUL in a name": POST + HOST + b"x\0: a\r\n\r\n",
    "carriage return in a value": POST + HOST + b"x: a\rb: c\r\n\r\n",
    "folded header": POST + HOST + b"x: a\r\n b\r\n\r\n",
    "folded coding": POST + HOST + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": POST + HOST + b"content-length : 3\r\n\r\nabc",
    "space before a name": POST + b" host: a.example\r\n\r\n",
    "no name": POST + HOST + b": x\r\n\r\n",
    "no colon": POST + HOST + b"x\r\n\r\n",
    "coding xchunked": POST + HOST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding in quotes": POST + HOST + b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "coding identity": POST + HOST + b"transfer-encoding: identity\r\n\r\n",
    "coding gzip, chunked": POST + HOST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST
    + HOST
    + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding with a tab": POST + HOST + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /echo HTTP/1.0\r\n"
    + HOST
    + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/0.9": b"GET /echo\r\n\r\n",
    "HTTP/1.2": b"GET /echo HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    "unknown method": b"FETCH /echo HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_can_be_read_in_two_ways_is_read_in_none(name: str) -> None:
    async with serving() as guard:
        status, problem = await guard.refused(REFUSED[name])
        assert (status, problem["code"], problem["outcome"]) == (
            400,
            "invalid_request",
            "not_executed",
        )
        assert guard.app.seen == []


CHUNKED = POST + HOST + b"transfer-encoding: chunked\r\n\r\n"

BROKEN_BODIES = {
    "chunk size with a sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "chunk size with 0x": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size too large": CHUNKED + b"f" * 17 + b"\r\nabc",
    "no chunk size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk with bare line feeds": CHUNKED + b"3\nabc\n0\n\n",
    "extension with a bare line feed": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
    "extension with NUL": CHUNKED + b"3;a=\0\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_broken_body_is_answered_400_and_read_by_nobody(name: str) -> None:
    async with serving() as guard:
        status, _ = await guard.refused(BROKEN_BODIES[name])
        assert status == 400
        assert guard.app.bodies == []


# -- more than one request at a time ---------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [SMUGGLED, SMUGGLED[:1], b"\0", b"\r\n" + SMUGGLED],
    ids=["a request", "a byte", "rubbish", "a request after an empty line"],
)
@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "later"])
async def test_who_pipelines_is_cut_off_and_the_application_told(
    more: bytes, together: bool
) -> None:
    async with serving() as guard:
        first = GET.replace(b"/echo", b"/wait")
        caller = await guard.call(first + more if together else first)
        if not together:
            await guard.app.started.wait()
            caller.send(more)
        assert await caller.rest() == b""
        async with asyncio.timeout(HANGS):
            await guard.app.gone.wait()
        assert [scope["path"] for scope in guard.app.seen] == ["/wait"]
        assert guard.state.refused == {"pipelined": 1}


@pytest.mark.parametrize(
    "header",
    [b"connection: close\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n"],
    ids=["close", "upgrade"],
)
async def test_nothing_hides_behind_a_last_request(header: bytes) -> None:
    async with serving() as guard:
        caller = await guard.call(b"GET /wait HTTP/1.1\r\n" + HOST + header + b"\r\n" + SMUGGLED)
        assert await caller.rest() == b""
        await guard.app.gone.wait()
        assert len(guard.app.seen) == 1


async def test_bytes_beyond_the_length_are_not_a_second_answer() -> None:
    async with serving() as guard:
        caller = await guard.call(POST + HOST + b"content-length: 1\r\n\r\na" + SMUGGLED)
        assert (await caller.rest()).count(b"HTTP/1.1") == 0
        assert all(scope["query_string"] == b"" for scope in guard.app.seen)


# -- gone ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["half", "close", "reset"])
async def test_the_application_sees_a_hang_up_of_any_kind(how: str) -> None:
    async with serving() as guard:
        caller = await guard.call(GET.replace(b"/echo", b"/wait"))
        await guard.app.started.wait()
        if how == "half":
            caller.hang_up_half()
        elif how == "close":
            caller.writer.close()
        else:
            raw = caller.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            caller.writer.transport.abort()
        async with asyncio.timeout(HANGS):
            await guard.app.gone.wait()
        await until(lambda: not guard.connections())


async def test_a_hang_up_is_seen_behind_an_unread_stream() -> None:
    async with serving(write_stall=1e6) as guard:
        loop = asyncio.get_running_loop()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, guard.address)
            await loop.sock_sendall(deaf, GET.replace(b"/echo", b"/stream"))
            await until(lambda: any(c.flow.write_paused for c in guard.connections()))
            deaf.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(HANGS):
                await guard.app.gone.wait()
            assert guard.app.sent > 0


async def test_an_answer_that_is_complete_still_reaches_who_hung_up_half() -> None:
    async with serving() as guard:
        caller = await guard.call(GET)
        await until(lambda: bool(guard.app.bodies))
        await until(lambda: any(c._phase is Phase.IDLE and c.cycle for c in guard.connections()))
        caller.hang_up_half()
        assert b" 200 " in await caller.rest()


async def test_a_shutdown_closes_idle_connections_and_ends_busy_ones_after_their_answer() -> None:
    async with serving() as guard:
        idle = await guard.call(GET)
        await idle.answer()
        busy = await guard.call(GET.replace(b"/echo", b"/pause"))
        await guard.app.started.wait()
        for connection in guard.connections():
            connection.shutdown()
        assert await idle.rest() == b""
        guard.app.go_on.set()
        assert b"gone on" in await busy.rest()


# -- the listening socket --------------------------------------------------------------


async def test_connections_inherit_the_probes_of_the_listening_socket() -> None:
    async with serving() as guard:
        await (await guard.call(GET)).answer()
        (connection,) = guard.connections()
        raw = connection.transport.get_extra_info("socket")
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


def test_an_address_in_use_is_said_to_be_so() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", listener.getsockname()[1])


def test_two_guards_share_no_counters() -> None:
    one, other = guarded(GuardLimits()), guarded(GuardLimits(max_body=1))
    assert one.state is not other.state
    assert (one.limits.max_body, other.limits.max_body) == (4 << 20, 1)
