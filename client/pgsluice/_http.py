"""Kept HTTP/1.1 connections: send once, say whether it went out, never send again.

Whether a request may be repeated is for `_protocol` to decide. Connections are
shared by threads, one request at a time each; `http.client` and `ssl` are
imported with the first request.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ._protocol import Answer

if TYPE_CHECKING:
    import socket
    import ssl
    from http.client import HTTPConnection, HTTPResponse

    from ._words import Send

CONNECT_TIMEOUT = 10.0  # seconds
# The gateway answers at the deadline itself; only if it does not, we stop waiting.
GRACE = 1.0  # seconds
# Below the 75 s after which the gateway closes, so that it is not closed while we send.
MAX_IDLE = 60.0  # seconds
MAX_KEPT = 16  # connections
PIECE = 65_536  # bytes of a stream at a time


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

    def send(self, what: Send) -> Answer:
        """Send one request and read its answer; of a stream only its head.

        Raises:
            NoAnswer: In all other cases; nothing was tried twice.
        """
        from http.client import HTTPException

        timeout = what.timeout
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
            body = what.body
            connection.request(
                what.method,
                self._origin.prefix + what.path,
                body,
                dict(what.headers),
                encode_chunked=not isinstance(body, bytes),
            )
            sent = True
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            if what.stream and 200 <= response.status < 300:
                return Answer(response.status, headers, Body(self, connection, response))
            answer = Answer(response.status, headers, response.read())
        except (BrokenPipeError, ConnectionResetError) as error:
            # A gateway that refuses a body need not read all of it before it says so.
            early = None if sent else _early(connection)
            connection.close()
            if early is not None:
                return early
            raise NoAnswer(_reason(error), sent=sent) from error
        except (OSError, HTTPException) as error:
            connection.close()
            raise NoAnswer(_reason(error), sent=sent) from error
        except BaseException:
            # An interrupt in between: what is on the connection now is nobody's.
            connection.close()
            raise
        self.keep(connection, response)
        return answer

    def keep(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        """Have *connection* back, whose *response* was read to its end."""
        if not response.will_close and len(self._idle) < MAX_KEPT:
            self._idle.append((connection, time.time()))
        else:
            connection.close()

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
        import socket
        from http.client import HTTPConnection

        limit = CONNECT_TIMEOUT if timeout is None else max(0.001, min(CONNECT_TIMEOUT, timeout))
        host, port = self._origin.host, self._origin.port
        # Bytes are not looked at by `idna`, whose tables take a millisecond to import.
        name: Any = host.encode() if host.isascii() else host
        connection = HTTPConnection(host, port)
        connection.auto_open = 0  # never reconnect behind our back
        try:
            sock = connection.sock = socket.create_connection((name, port), limit)
            _tune(sock)
            if self._origin.tls:
                connection.sock = self._context().wrap_socket(sock, server_hostname=name)
        except OSError as error:
            connection.close()
            raise NoAnswer(_reason(error), sent=False) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            import ssl

            # A CA file of one's own is also the quick way: the system's takes 25 ms to read.
            self._tls = ssl.create_default_context(cafile=self._cafile)
        return self._tls


class Body:
    """An answer's body, piece by piece, on a connection of its own until it ends."""

    def __init__(self, http: Http, connection: HTTPConnection, response: HTTPResponse) -> None:
        self._http = http
        self._connection = connection
        self._response = response

    def read(self) -> bytes:
        """What has come, at least a byte; nothing at the end. NoAnswer if it broke off."""
        from http.client import HTTPException

        try:
            data = self._response.read1(PIECE)
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise NoAnswer(_reason(error), sent=True) from error
        if not data:
            whole = not self._response.length
            self._response.close()
            if whole:
                self._http.keep(self._connection, self._response)
            else:
                self._connection.close()
        return data

    def close(self) -> None:
        """Want no more of it: the gateway sees the connection close and stops the statement."""
        self._response.close()
        self._connection.close()


def _early(connection: HTTPConnection) -> Answer | None:
    """The refusal that came before all of the request was sent, if there is one."""
    from http.client import HTTPException, HTTPResponse

    if connection.sock is None:
        return None
    try:
        response = HTTPResponse(connection.sock, method="POST")
        response.begin()
        if response.status >= 400:
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
    except (OSError, HTTPException):
        pass
    return None


def _has_news(sock: socket.socket) -> bool:
    """Whether something came on an idle connection: the end of it, or bytes nobody asked for."""
    import select

    if hasattr(select, "poll"):  # select.select fails for the 1025th file
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLERR | select.POLLHUP)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])


def _tune(sock: socket.socket) -> None:
    """Notice within half a minute that the other machine is gone, however long the wait."""
    import socket

    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _reason(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
