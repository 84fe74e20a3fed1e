"""A network that misbehaves on demand: a TCP proxy of our own, and packets that get lost.

    with Proxy(port) as proxy:                  # proxy.port leads to 127.0.0.1:port
        proxy.replies.delay = 0.05              # each piece that comes back is late
        proxy.requests.cut_after = 100          # reset after so many bytes
        proxy.lose(requests=True)               # as a pulled cable: nothing is acknowledged
        proxy.heal()

`requests` are the bytes from whoever connects, `replies` those to them. What `Wire` does
happens to bytes; the kernels on both sides see a healthy connection. `lose` happens to
packets: a socket filter of Linux drops them before they are acknowledged, so that the
sender's kernel sends again and again. It needs no rights, and disturbs nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_RESET = struct.pack("ii", 1, 0)
_PIECE = 65_536


class _Filter:
    """A packet filter of one instruction: return 0, keep nothing."""

    _code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(_code))


def lose_packets(sock: socket.socket) -> None:
    """Drop every packet that arrives at *sock* from now on; none is acknowledged.

    On a listening socket no connection comes about any more. The peer cannot tell this
    from a machine that lost its power. Skips the test where the system cannot do it.
    """
    if sys.platform != "linux":
        pytest.skip("packets can be dropped at one socket on Linux only")
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _Filter.program)


def find_packets(sock: socket.socket) -> None:
    """End `lose_packets`; what the peer's kernel still sends arrives."""
    with contextlib.suppress(OSError):  # there was no filter
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


@dataclass
class Wire:
    """What happens to the bytes of one direction; counts for every connection."""

    delay: float = 0.0
    """Seconds before each piece is passed on."""
    piece: int = _PIECE
    """Bytes passed on at once at the most; with `delay`, a slow line."""
    cut_after: int | None = None
    """The connection is reset when it has passed on so many bytes."""
    swallow: bool = False
    """Read and thrown away."""
    hold: bool = False
    """Not even read: the sender's buffers fill."""
    passed: int = 0
    """Bytes passed on, all connections together."""
    watch: Callable[[bytes], None] | None = None
    """Called with each piece before it is passed on, in the proxy's thread."""


@dataclass(eq=False)
class Link:
    """One connection through the proxy."""

    near: socket.socket
    """To whoever connected."""
    far: socket.socket | None = None
    """To the server."""
    passed: dict[str, int] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    forgotten: bool = False


class Proxy:
    """Leads from a port of its own to *port* of 127.0.0.1; a context manager."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.requests = Wire()
        self.replies = Wire()
        self.slow_connect = False
        """Take connections, and never lead them anywhere."""
        self.unknown_setting: bytes | None = None
        """As an old server: refuse a PostgreSQL login that brings this setting."""
        self.accepted = 0
        """Connections taken since the start."""
        self._losing = {"requests": False, "replies": False}
        self._links: set[Link] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._accepting: asyncio.Task[None] | None = None

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.take_connections()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse_connections()
        self._do(self._close_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        if threading.current_thread() is not self._thread:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
            return
        # From a `watch`: nothing here waits, so it can be done on the spot.
        with contextlib.suppress(StopIteration):
            work.send(None)

    # -- faults ------------------------------------------------------------------------

    def refuse_connections(self) -> None:
        """Stop listening: who connects is refused. What is connected stays."""

        async def close() -> None:
            if self._listener is not None and self._accepting is not None:
                self._accepting.cancel()
                self._listener.close()
                self._listener = None

        self._do(close())

    def take_connections(self) -> None:
        """Listen again, on the same port."""

        async def listen() -> None:
            if self._listener is None:
                self._listener = socket.create_server(("127.0.0.1", self.port))
                self._listener.setblocking(False)
                self.port = self._listener.getsockname()[1]
                self._apply_losses()
                self._accepting = self._loop.create_task(self._accept(self._listener))

        self._do(listen())

    def lose(self, *, requests: bool = False, replies: bool = False) -> None:
        """Lose every packet of these directions, those of new connections too."""

        async def lose() -> None:
            self._losing = {"requests": requests, "replies": replies}
            self._apply_losses()

        self._do(lose())

    def forget(self) -> None:
        """Lose what comes on connections that exist; new ones are well. As some firewalls do."""

        async def forget() -> None:
            for link in self._links:
                lose_packets(link.near)
                link.forgotten = True

        self._do(forget())

    def bury(self) -> None:
        """End the forgotten connections on the server's side too, as its own probes would."""

        async def bury() -> None:
            for link in [link for link in self._links if link.forgotten]:
                await self._close(link, reset=True)

        self._do(bury())

    def heal(self) -> None:
        """Everything arrives again: packets, and bytes of both directions."""

        async def heal() -> None:
            self._losing = {"requests": False, "replies": False}
            self._apply_losses()

        self.requests.__init__()  # type: ignore[misc]
        self.replies.__init__()  # type: ignore[misc]
        self.slow_connect = False
        self.unknown_setting = None
        self._do(heal())

    def reset(self) -> None:
        """Reset every connection, on both sides."""

        async def reset() -> None:
            for link in list(self._links):
                await self._close(link, reset=True)

        self._do(reset())

    def end_replies(self) -> None:
        """Half-close: whoever connected reads an end, and may go on sending."""

        async def end() -> None:
            for link in list(self._links):
                with contextlib.suppress(OSError):
                    link.near.shutdown(socket.SHUT_WR)

        self._do(end())

    @property
    def links(self) -> int:
        """Connections that are open."""
        return len(self._links)

    # -- in the proxy's thread ---------------------------------------------------------

    def _apply_losses(self) -> None:
        near = [link.near for link in self._links if not link.forgotten]
        if self._listener is not None:
            near.append(self._listener)
        far = [link.far for link in self._links if link.far is not None]
        for socks, direction in ((near, "requests"), (far, "replies")):
            for sock in socks:
                (lose_packets if self._losing[direction] else find_packets)(sock)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            near, _ = await self._loop.sock_accept(listener)
            near.setblocking(False)
            self.accepted += 1
            link = Link(near)
            self._links.add(link)
            link.tasks.append(self._loop.create_task(self._serve(link)))

    async def _serve(self, link: Link) -> None:
        while self.slow_connect:  # noqa: ASYNC110  # set from another thread
            await asyncio.sleep(0.005)
        if self.unknown_setting is not None and await self._refuse_login(link):
            return
        link.far = far = socket.socket()
        far.setblocking(False)
        try:
            await self._loop.sock_connect(far, ("127.0.0.1", self.target))
            for sock in (link.near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            await self._close(link, reset=True)
            return
        self._apply_losses()
        for source, sink, name in ((link.near, far, "requests"), (far, link.near, "replies")):
            link.tasks.append(self._loop.create_task(self._pump(link, source, sink, name)))

    async def _refuse_login(self, link: Link) -> bool:
        name = self.unknown_setting
        assert name is not None
        length = int.from_bytes(await self._peek(link, 4), "big")
        if name not in await self._peek(link, length):
            return False
        await self._loop.sock_recv(link.near, length)
        fields = b'SFATAL\0VFATAL\0C42704\0Munrecognized configuration parameter "%s"\0\0' % name
        refusal = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields
        await self._loop.sock_sendall(link.near, refusal)
        await self._close(link, reset=False)
        return True

    async def _peek(self, link: Link, size: int) -> bytes:
        """The first *size* bytes from whoever connected, left where they are."""
        data = b""
        while len(data) < size:
            with contextlib.suppress(BlockingIOError):
                data = link.near.recv(size, socket.MSG_PEEK)
                if not data:
                    return b""
            await asyncio.sleep(0)
        return data

    async def _pump(
        self, link: Link, source: socket.socket, sink: socket.socket, name: str
    ) -> None:
        loop = self._loop
        try:
            while True:
                wire: Wire = getattr(self, name)
                while wire.hold:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                data = await loop.sock_recv(source, wire.piece)
                if not data:
                    break
                if wire.delay:
                    await asyncio.sleep(wire.delay)
                if wire.watch is not None:
                    wire.watch(data)
                if wire.swallow:
                    continue
                passed = link.passed.get(name, 0)
                if wire.cut_after is not None and passed + len(data) >= wire.cut_after:
                    await loop.sock_sendall(sink, data[: wire.cut_after - passed])
                    await self._close(link, reset=True)
                    return
                await loop.sock_sendall(sink, data)
                link.passed[name] = passed + len(data)
                wire.passed += len(data)
            # Half a hang-up is passed on as one.
            sink.shutdown(socket.SHUT_WR)
            link.passed[name + " ended"] = 1
            if len([key for key in link.passed if key.endswith("ended")]) == 2:
                await self._close(link, reset=False)
        except OSError:
            await self._close(link, reset=True)

    async def _close(self, link: Link, *, reset: bool) -> None:
        if link not in self._links:
            return
        self._links.discard(link)
        others = [task for task in link.tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for sock in (link.near, link.far):
            if sock is not None:
                if reset:
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()

    async def _close_all(self) -> None:
        for link in list(self._links):
            await self._close(link, reset=True)
