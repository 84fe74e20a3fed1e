"""Kept HTTP/1.1 connections: send once, say whether it went out, never send again.

Whether a request may be repeated is for `_protocol` to decide. Connections are
shared by threads, one request at a time each; `http.client` and `ssl` are
imported with the first request.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from ._protocol import Answer

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Mapping
    from http.client import HTTPConnection

CONNECT_TIMEOUT = 10.0  # seconds
# The gateway answers at the deadline itself; only if it does not, we stop waiting.
GRACE = 1.0  # seconds
# Below the 75 s after which the gateway closes, so that it is not closed while we send.
MAX_IDLE = 60.0  # seconds
MAX_KEPT = 16  # connections


class NoAnswer(Exception):
    """There is no complete answer. `sent` tells whether all of the request went out."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class Origin(NamedTuple):
    """Where the gateway is."""

    tls: bool
    host: str
    port: int
    prefix: str
    """Path in front of all paths, without a slash at its end."""

    @property
    def header(self) -> str:
        """The value of `Host`."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}"


def origin(url: str) -> Origin:
    """Read *url*; ValueError if it is none of a gateway."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL of a gateway is http://host[:port] or https://host[:port]")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("the URL of a gateway has no user, no query and no fragment")
    tls = parts.scheme == "https"
    return Origin(tls, parts.hostname, parts.port or (443 if tls else 80), parts.path.rstrip("/"))


class Http:
    """Sends requests to one origin over connections that it keeps."""

    def __init__(self, origin: Origin, *, cafile: str | None = None) -> None:
        self._origin = origin
        self._cafile = cafile
        self._tls: ssl.SSLContext | None = None
        # The last used first; appending and popping are atomic, so threads need no lock.
        self._idle: list[tuple[HTTPConnection, float]] = []
        self._process = os.getpid()

    def post(
        self, path: str, headers: Mapping[str, str], body: bytes, *, timeout: float | None
    ) -> Answer:
        """Send one request and read its answer.

        Args:
            path: Below the prefix of the origin.
            timeout: Seconds for all of it, `None` for as long as the gateway is there.

        Raises:
            NoAnswer: In all other cases; nothing was tried twice.
        """
        from http.client import HTTPException

        started = time.monotonic()
        connection = self._kept() or self._connect(timeout)
        sent = False
        try:
            assert connection.sock is not None
            if timeout is not None:
                left = timeout - (time.monotonic() - started)
                connection.sock.settimeout(max(0.0, left) + GRACE)
            else:
                connection.sock.settimeout(None)
            connection.request("POST", self._origin.prefix + path, body, dict(headers))
            sent = True
            response = connection.getresponse()
            answer = Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )
            keep = not response.will_close
        except (OSError, HTTPException) as error:
            connection.close()
            raise NoAnswer(_reason(error), sent=sent) from error
        except BaseException:
            # An interrupt in between: what is on the connection now is nobody's.
            connection.close()
            raise
        if keep and len(self._idle) < MAX_KEPT:
            self._idle.append((connection, time.time()))
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close the idle connections; those in use are closed by nobody but their user."""
        while self._idle:
            self._idle.pop()[0].close()

    def _kept(self) -> HTTPConnection | None:
        if self._process != os.getpid():
            # After a fork the connections are the parent's: forget them, do not close TLS.
            self._idle = []
            self._process = os.getpid()
        while self._idle:
            try:
                connection, since = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            # The wall clock: it goes on while a function is frozen between two calls.
            age = time.time() - since
            if connection.sock and 0 <= age < MAX_IDLE and not _has_news(connection.sock):
                return connection
            connection.close()
        return None

    def _connect(self, timeout: float | None) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPException, HTTPSConnection

        limit = CONNECT_TIMEOUT if timeout is None else max(0.001, min(CONNECT_TIMEOUT, timeout))
        host, port = self._origin.host, self._origin.port
        connection: HTTPConnection
        if self._origin.tls:
            connection = HTTPSConnection(host, port, timeout=limit, context=self._context())
        else:
            connection = HTTPConnection(host, port, timeout=limit)
        try:
            connection.connect()
        except (OSError, HTTPException) as error:
            connection.close()
            raise NoAnswer(_reason(error), sent=False) from error
        connection.auto_open = 0  # never reconnect behind our back
        _keep_alive(connection.sock)
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            import ssl

            # A CA file of one's own is also the quick way: the system's takes 25 ms to read.
            self._tls = ssl.create_default_context(cafile=self._cafile)
        return self._tls


def _has_news(sock: socket.socket) -> bool:
    """Whether something came on an idle connection: the end of it, or bytes nobody asked for."""
    import select

    if hasattr(select, "poll"):  # select.select fails for the 1025th file
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLERR | select.POLLHUP)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])


def _keep_alive(sock: socket.socket) -> None:
    """Notice within half a minute that the other machine is gone, however long the wait."""
    import socket

    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _reason(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
