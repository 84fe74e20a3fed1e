"""Time limits and caps below ASGI: what uvicorn's HTTP protocol leaves open.

uvicorn waits without limit for a head or a body that never ends, and for a
reader that never reads; its parser takes heads of any size, several Host
headers and absolute targets. `guarded(limits)` is uvicorn's own protocol with
limits on all of it, to be given to `uvicorn.Config(http=...)`:

    limits = GuardLimits(max_body=1 << 20)
    config = uvicorn.Config(app, http=guarded(limits), ws="none", backlog=BACKLOG)
    await uvicorn.Server(config).serve(sockets=[listen("127.0.0.1", 8080)])

What is refused is answered 400, 408, 413, 431 or 503 and the connection closed,
before or in place of the application's answer. A request that has been handed
to the application is never answered by the guard once its answer has begun, or
once it is complete: then the connection is cut, and the application sees
`http.disconnect`.

Written against uvicorn 0.54 and httptools 0.9, whose private parts it uses.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..core.proxies import Proxies
from .heads import STRANGERS, Heads, KnownHead, Split, split
from .limits import GuardLimits, GuardState
from .refusals import CODES, problem
from .wire import DirectCycle, Handler

_NEVER = math.inf
# A target is sent as it is signed: no fragment, no other form, nothing outside ASCII.
_HOST_FORBIDDEN = b' \t,/@?#\\"<>'


class Phase(IntEnum):
    """What a connection is doing, as seen from its input."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    RUNNING = 3
    """The request is complete, its answer is not."""
    CLOSING = 4
    """Input is discarded; what is still to be sent, is."""


_IDLE, _HEAD, _BODY, _RUNNING, _CLOSING = Phase


class _Refusal(Exception):
    """Ends the parser's work on a connection. What to answer, the protocol remembers."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with an end to everything."""

    limits: ClassVar[GuardLimits] = GuardLimits()
    state: ClassVar[GuardState] = GuardState()
    direct: ClassVar[Mapping[bytes, Handler]] = {}
    proxies: ClassVar[Proxies | None] = None
    heads: ClassVar[Heads] = Heads()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn would drop what follows a request with `Connection: close` unseen; it is
        # a second request all the same.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self._phase = _IDLE
        self._fresh = True
        self._chunk = 0
        self._head = 0
        self._raw_body = 0
        self._body = 0
        self._held = 0
        self._unread = 0
        self._body_parts = 0
        self._body_since = 0.0
        self._upload = False
        self._verdict: tuple[int, str] | None = None
        self._data = b""
        self._split: Split | None = None
        self._strangers = 0
        # One timer a connection. `_due` moves with every request, the timer does not: it
        # looks when it fires, and is set again. Only an earlier moment replaces it.
        self._due = _NEVER
        self._stalled_due = _NEVER
        self._stalled_size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER

    # -- the connection ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Count the time to the first head from here."""
        super().connection_made(transport)
        if self.proxies is not None:
            peer = transport.get_extra_info("peername")
            if not self.proxies.admits(peer[0] if isinstance(peer, tuple) else ""):
                # Before a byte is read: what it would say, it would say in the clear.
                self.state.count("stranger")
                self._phase = _CLOSING
                transport.abort()
                return
        self._wait_until(self.loop.time() + self.limits.head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._phase = _CLOSING
        self._release_body()
        self._count_unread(0)
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Take half a hang-up for a whole one: who waits for an answer keeps its side open."""
        if self._is_answering():
            self._abandon()
        else:
            self._linger()

    def data_received(self, data: bytes) -> None:
        """Parse, and find out what the connection is waiting for now."""
        before = self._phase
        if before is _IDLE and self._strangers < STRANGERS and self._recognise(data):
            return
        if before is _CLOSING:
            return
        self._chunk = len(data)
        self._data = data
        if before is _HEAD:
            self._head += self._chunk
        elif before is _BODY:
            self._raw_body += self._chunk
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An upgrade not taken is an ordinary request, and what follows it is the next.
            if data[upgrade.args[0] :].strip(b"\r\n"):
                self._refuse(400, "nothing may follow a request before its answer")
                return
        except httptools.HttpParserError:
            self._refuse(*(self._verdict or (400, "the request is not valid HTTP/1.1")))
            return
        self._data = b""
        self._split = None
        phase = self._phase
        if phase is _HEAD:
            if self._head > self.limits.max_head:
                self._refuse(431, "the request head is too large")
            elif before is not _HEAD and not self._fresh:
                self._wait_until(self.loop.time() + self.limits.head_timeout)
        elif phase is _BODY:
            if self._upload:
                self._due = _NEVER
            elif not self._body_since:
                self._body_since = self.loop.time()
                self._wait_until(self._body_since + self.limits.body_timeout)
            # Not all that is sent is body: extensions of chunks, and trailers. A chunk's
            # size line may take 16 bytes.
            overhead = self._raw_body - self._body - 16 * self._body_parts
            if before is _BODY and overhead > self.limits.max_head:
                self._refuse(400, "too much around the chunks of the body")

    def _recognise(self, data: bytes) -> bool:
        """Take a request whose head was read before past the parser, which never sees it."""
        found = self._split = split(data) if self.direct else None
        if found is None:
            return False
        key, end = found
        known = self.heads.find(key)
        if known is None:
            self._strangers += 1
            return False
        state, limit = self.state, self.limit_concurrency
        size = len(data) - end - 4
        if (
            size > self.limits.max_body
            or state.bodies + size > self.limits.max_bodies
            or (limit is not None and max(len(self.connections), len(self.tasks)) >= limit)
        ):
            return False
        self._strangers = 0
        self._fresh = False
        state.bodies += size
        self._held = self._body = self._announced = size
        self._verdict = None
        self.cycle = cycle = DirectCycle(  # type: ignore[assignment]  # in place of its
            known.handler,
            raw_path=known.raw_path,
            headers=None,
            transport=self.transport,
            flow=self.flow,
            default_headers=self.server_state.default_headers,
            keep_alive=True,
            on_response=self.on_response_complete,
            known=known,
            head=data[:end],
            body=data[end + 4 :],
        )
        self._phase = _RUNNING
        self._due = _NEVER
        self._start(cycle)
        return True

    def _start(self, cycle: Any) -> None:
        # The cycle takes its task out of uvicorn's again: a callback would be another turn
        # of the loop.
        cycle.tasks = self.tasks
        cycle.task = task = self.loop.create_task(cycle.run())
        self.tasks.add(task)

    def shutdown(self) -> None:
        """Close when nothing is under way, else after the answer."""
        super().shutdown()
        if self.transport.is_closing():
            self._linger()

    def pause_writing(self) -> None:
        """The caller reads slower than it is answered: start to watch it."""
        super().pause_writing()
        self._watch_writing()
        self._count_unread(self.transport.get_write_buffer_size())
        if self.state.unread > self.limits.max_unread:
            self.state.count("unread")
            self._abandon()

    def resume_writing(self) -> None:
        """The caller has read enough."""
        super().resume_writing()
        self._count_unread(0)
        if self._phase is not _CLOSING:
            self._stalled_due = _NEVER

    def _count_unread(self, size: int) -> None:
        self.state.unread += size - self._unread
        self._unread = size

    # -- what the parser finds ---------------------------------------------------------

    def on_message_begin(self) -> None:
        """Refuse a request before the one before it is answered.

        Such bytes would also hide the end of the connection from us: who pipelines and
        hangs up could not be noticed.
        """
        if self._is_answering():
            raise _Refusal
        self._phase = _HEAD
        self._head = self._chunk
        self._body = self._announced = 0
        self._verdict = None
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; drop a trailer, which nobody may take for a header."""
        if self._phase is not _HEAD:
            return
        headers = self.headers
        if len(headers) >= self.limits.max_headers:
            self._reject(431, f"more than {self.limits.max_headers} headers")
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the head, and only then let the application see it."""
        self._judge_head()
        self._phase = _BODY
        self._fresh = False
        self._raw_body = self._body = self._body_parts = 0
        self._body_since = 0.0
        handler = self.direct.get(self.url)
        if handler is None or not self._begin_direct(handler):
            super().on_headers_complete()

    def _begin_direct(self, handler: Handler) -> bool:
        """Take the request past ASGI, if it is one of the ordinary kind."""
        parser, limit = self.parser, self.limit_concurrency
        if (
            parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
            or (limit is not None and max(len(self.connections), len(self.tasks)) >= limit)
        ):
            return False
        self.cycle = DirectCycle(  # type: ignore[assignment]  # in place of its
            handler,
            raw_path=self.url,
            headers=self.headers,
            transport=self.transport,
            flow=self.flow,
            default_headers=self.server_state.default_headers,
            keep_alive=parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self._split is not None and parser.should_keep_alive():
            self._remember(handler, self._split)
        return True

    def _remember(self, handler: Handler, found: Split) -> None:
        known = KnownHead(handler, self.url, frozenset([name for name, _ in self.headers]))
        # What of the head stands in the connection's first bytes is all that there is.
        key, end = found
        if self.heads.keep(key, self._data[:end], self.headers, known):
            self.cycle.known = known  # type: ignore[attr-defined]  # a DirectCycle

    def on_body(self, body: bytes) -> None:
        """Count the body while it arrives."""
        size = len(body)
        self._body += size
        self._body_parts += 1
        if self._body > self.limits.max_body and not self._upload:
            body = b""
            self._reject(413, f"the body is larger than {self.limits.max_body} bytes")
        if not self._is_answering():
            return  # Answered without it, and thrown away.
        state = self.state
        if not self._upload:
            state.bodies += size
            self._held += size
        if state.bodies > self.limits.max_bodies:
            # The parser keeps the error, and with it what this frame holds.
            body = b""
            self._reject(503, "too many request bodies are being received")
        cycle: Any = self.cycle
        if type(cycle) is DirectCycle:
            cycle.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The caller has done its part; from here on the application's limits hold."""
        cycle: Any = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
            self._phase = _RUNNING
            self._due = _NEVER
            if type(cycle) is DirectCycle:
                self._start(cycle)
        else:
            self._become_idle()

    def on_response_complete(self) -> None:
        """Wait for the next request, on the one timer there is."""
        # Replaces uvicorn's, which sets and cancels a timer for every request and looks
        # after pipelined ones.
        self.server_state.total_requests += 1
        self.state.bodies -= self._held
        self._held = 0
        if self.transport.is_closing():
            self._linger()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self._phase is _RUNNING:
            self._become_idle()
        elif self._phase is _BODY and self._upload:
            # The rest may be endless, and is of no use to anybody.
            self._phase = _CLOSING
            self._stop_sending()

    def _should_upgrade(self) -> bool:
        return False

    def _judge_head(self) -> None:
        headers = self.headers
        target: bytes = self.url
        if not target.startswith(b"/") or b"#" in target or not target.isascii():
            self._reject(400, "the request target must be a path")
        if self._head > self.limits.max_head:
            # The chunk may hold more than the head: count exactly.
            size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > self.limits.max_head:
                self._reject(431, "the request head is too large")
        values = dict(headers)
        # Counted only if some name comes twice.
        names = [name for name, _ in headers] if len(values) < len(headers) else []
        host = values.get(b"host")
        if not host or names.count(b"host") > 1 or host.translate(None, _HOST_FORBIDDEN) != host:
            self._reject(400, "there must be exactly one Host header")
        self._upload = target.startswith(self.limits.uploads)
        length = values.get(b"content-length")
        if length is not None:
            self._announced = min(int(length[:18]), self.limits.max_body)
            if len(length) > 18 or (int(length) > self.limits.max_body and not self._upload):
                self._reject(413, f"the body is larger than {self.limits.max_body} bytes")
        elif b"transfer-encoding" in values and (
            values[b"transfer-encoding"].lower() != b"chunked"
            or names.count(b"transfer-encoding") > 1
            or self.parser.get_http_version() != "1.1"
        ):
            self._reject(400, "the only transfer encoding is chunked, of HTTP/1.1")

    def _reject(self, status: int, detail: str) -> None:
        """Leave the parser; `data_received` answers."""
        self._verdict = (status, detail)
        raise _Refusal

    # -- how it ends -------------------------------------------------------------------

    def _is_answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete

    def _become_idle(self) -> None:
        self._phase = _IDLE
        self._wait_until(self.loop.time() + self.limits.keep_alive)

    def _release_body(self) -> None:
        self.state.bodies -= self._held
        self._held = 0

    def _tell_application(self) -> None:
        """Let the application see the end of the connection now, not when it is flushed."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            # Else the application's next receive() would ask for more.
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()
        self.flow.resume_writing()

    def _abandon(self) -> None:
        """Cut the connection: any answer of ours could be taken for the application's."""
        self._phase = _CLOSING
        self._tell_application()
        self.transport.abort()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer and close, if the answer cannot be taken for another one; else cut."""
        answering = self._is_answering()
        if self._phase is _RUNNING or (answering and self.cycle.response_started):
            self.state.count("pipelined" if self._phase is _RUNNING else CODES[status])
            self._abandon()
            return
        self.state.count(CODES[status])
        # Answered before its body was complete: there is nothing more to say.
        answered = self._phase is _BODY and not answering
        self._tell_application()
        self._release_body()
        # A thousand callers may be refused at once, and stay until they have heard of it.
        self._data = b""
        if answering:
            self.cycle.body = type(self.cycle.body)()
        self._phase = _CLOSING
        transport = self.transport
        if transport.is_closing():
            self._linger()
            return
        if not answered:
            transport.write(problem(status, detail))
        self._stop_sending()

    def _stop_sending(self) -> None:
        """Say no more; go on reading for a while, so that what was said is heard."""
        self._stalled_due = _NEVER
        transport = self.transport
        if not transport.can_write_eof():
            transport.close()
            self._linger()
            return
        # The end of our side now, the end of the connection when the caller has stopped
        # sending, or has had its time.
        transport.write_eof()
        self.flow.resume_reading()
        rest = max(0, self._announced - self._body) / self.limits.body_rate
        self._wait_until(self.loop.time() + self.limits.linger + rest)

    def _linger(self) -> None:
        """Close; give the caller the usual time to read what is left."""
        self._phase = _CLOSING
        self._due = _NEVER
        self.transport.close()
        self._watch_writing()

    def _watch_writing(self) -> None:
        self._stalled_size = self.transport.get_write_buffer_size()
        self._stalled_due = self.loop.time() + self.limits.write_stall
        self._arm(self._stalled_due)

    # -- time --------------------------------------------------------------------------

    def _wait_until(self, when: float) -> None:
        self._due = when
        if self._timer is None or self._timer_at > when:
            self._arm(when)

    def _arm(self, when: float) -> None:
        timer = self._timer
        if timer is not None:
            if self._timer_at <= when:
                return
            timer.cancel()
        self._timer_at = when
        self._timer = self.loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        # A timer may fire a clock tick early; what was due then is due.
        now = max(self.loop.time(), self._timer_at)
        if self._stalled_due <= now:
            self._on_stall(now)
        elif self._due <= now:
            self._on_due(now)
        following = min(self._due, self._stalled_due)
        if following != _NEVER and self._timer is None:
            self._arm(following)

    def _on_due(self, now: float) -> None:
        self._due = _NEVER
        if self._phase is _IDLE:
            # Also a connection that never sent a byte: nobody asked, nobody is answered.
            if self._fresh:
                self.state.count("silent")
            self._linger()
        elif self._phase is _HEAD:
            self._refuse(408, "the request head took too long")
        elif self._phase is _BODY:
            limits = self.limits
            due = self._body_since + limits.body_timeout + self._body / limits.body_rate
            if self.flow.read_paused:
                # It is the application that does not take what the caller sends.
                self._body_since = now
                due = now + limits.body_timeout
            if due > now:
                self._due = due
            else:
                self._refuse(408, "the request body took too long")
        elif self._phase is _CLOSING:
            self.transport.abort()

    def _on_stall(self, now: float) -> None:
        size = self.transport.get_write_buffer_size()
        if self._stalled_size - size >= self.limits.write_progress:
            self._stalled_size = size
            self._stalled_due = now + self.limits.write_stall
            return
        self._stalled_due = self._due = _NEVER
        if size:
            self.state.count("stalled")
        self._abandon()


def guarded(
    limits: GuardLimits,
    direct: Mapping[bytes, Handler] | None = None,
    proxies: Proxies | None = None,
) -> type[GuardedProtocol]:
    """The protocol with *limits* and counters of its own, for `uvicorn.Config(http=...)`.

    Args:
        direct: Who answers a POST to exactly that target without ASGI.
        proxies: The only ones to connect, beside this machine itself.
    """
    own = {
        "limits": limits,
        "state": GuardState(),
        "direct": direct or {},
        "proxies": proxies,
        "heads": Heads(),
    }
    return type("GuardedProtocol", (GuardedProtocol,), own)
