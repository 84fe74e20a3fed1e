"""One HTTP request to another node, streamed back, on a connection of its own.

The words of HTTP are h11's. The connection serves one request: on one that was kept, a
request that met the closing could not be told from one whose answer was lost. Whoever
leaves the context before the answer's end closes it, and the other node notices.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import h11

_PIECE = 65_536


class Unreachable(Exception):
    """Nobody could be asked: nothing was sent."""

    def __init__(self, reason: str, *, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused
        """The machine is there and says that nobody listens."""


class Lost(Exception):
    """It was sent, and the answer did not come, or not to its end."""


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    """A number: names are looked up before."""
    port: int
    name: str
    """What `Host` and the certificate say."""
    tls: bool


class Answer:
    """What came back so far."""

    def __init__(self, line: _Line, head: h11.Response) -> None:
        self.status: int = head.status_code
        self.headers: list[tuple[bytes, bytes]] = list(head.headers)
        self._line = line

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises:
            Lost: It broke off.
        """
        while True:
            event = await self._line.next()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise Lost("the answer broke off")

    async def body(self, most: int) -> bytes:
        """The whole of it.

        Raises:
            Lost: It broke off, or is longer than *most* bytes.
        """
        collected = bytearray()
        async for piece in self.pieces():
            collected += piece
            if len(collected) > most:
                raise Lost(f"the answer is longer than {most} bytes")
        return bytes(collected)


class _Line:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._patience = patience
        self._http = h11.Connection(h11.CLIENT)

    async def send(self, request: h11.Request, body: bytes) -> None:
        http, writer = self._http, self._writer
        parts = [http.send(request)]
        if body:
            parts.append(http.send(h11.Data(data=body)))
        parts.append(http.send(h11.EndOfMessage()))
        try:
            writer.write(b"".join(part for part in parts if part))
            await writer.drain()
        except OSError:
            # It may have been refused without being read: the answer says so.
            return

    async def next(self) -> Any:
        http = self._http
        try:
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    async with asyncio.timeout(self._patience):
                        data = await self._reader.read(_PIECE)
                    http.receive_data(data)
                elif not isinstance(event, h11.InformationalResponse):
                    return event
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            raise Lost(type(error).__name__) from error


@asynccontextmanager
async def ask(
    address: Address,
    method: str,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    *,
    tls: ssl.SSLContext | None,
    connect_timeout: float,
    patience: float,
) -> AsyncIterator[Answer]:
    """Send a request to *address*; the answer's head, and its body as it comes.

    Args:
        target: Path and query, as they are sent.
        headers: Without those of the connection.
        patience: Seconds without a byte after which the answer is given up.

    Raises:
        Unreachable: Nobody took the connection.
        Lost: Somebody did, and the answer's head did not come.
    """
    try:
        async with asyncio.timeout(connect_timeout):
            reader, writer = await asyncio.open_connection(
                address.host,
                address.port,
                ssl=tls if address.tls else None,
                server_hostname=address.name if address.tls else None,
                limit=2 * _PIECE,
            )
    except (OSError, TimeoutError) as error:
        refused = isinstance(error, ConnectionRefusedError)
        raise Unreachable(type(error).__name__, refused=refused) from error
    try:
        _notice_vanishing(writer.get_extra_info("socket"))
        line = _Line(reader, writer, patience)
        host = f"[{address.name}]" if ":" in address.name else address.name
        head: list[tuple[bytes, bytes]] = [
            (b"host", f"{host}:{address.port}".encode("ascii")),
            *headers,
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await line.send(h11.Request(method=method, target=target, headers=head), body)
        event = await line.next()
        if not isinstance(event, h11.Response):
            raise Lost("no answer")
        yield Answer(line, event)
    finally:
        # At once, without a farewell: the other side is to notice now.
        writer.transport.abort()


def _notice_vanishing(sock: socket.socket | None) -> None:
    """Notice within half a minute that the other machine is gone without a word."""
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 25_000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
