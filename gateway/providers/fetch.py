"""One small HTTP request to a party that is not trusted, off the event loop.

The standard library's client runs in a few threads of its own: a few requests an hour,
and asyncpg's look-ups of host names, which use the loop's threads, never wait for them.
Redirects are answers like any other, sizes are capped, and when the time is over the
socket is closed under the thread, however slowly the other side is talking.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urlsplit

THREADS = 8


class FetchError(Exception):
    """There is no answer; the text says why and is for the log."""


class Answer(NamedTuple):
    """What came back."""

    status: int
    content_type: str
    body: bytes


class Request(NamedTuple):
    """What to ask, and how long and how much to take."""

    url: str
    """`https://…`, or `http://…` where the caller has made sure of loopback."""
    method: str = "GET"
    headers: Sequence[tuple[str, str]] = ()
    """As they are sent, in this order; `host` only if it is not the one of `url`."""
    body: bytes | None = None
    connect_timeout: float = 2.0
    total_timeout: float = 5.0
    most: int = 65_536
    """Bytes of the answer's body; a longer one is no answer."""


class Fetcher:
    """Sends requests from threads of its own."""

    def __init__(self, *, cafile: str | None = None) -> None:
        self._cafile = cafile
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        self._tls: ssl.SSLContext | None = None

    async def fetch(self, request: Request) -> Answer:
        """The answer to *request*, whatever its status.

        Raises:
            FetchError: There was none in time, or it was too long.
        """
        job = _Job(request, self._context)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, job.run)
        try:
            async with asyncio.timeout(request.total_timeout):
                return await asyncio.shield(running)
        except TimeoutError as error:
            raise FetchError(f"no answer within {request.total_timeout:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(f"{type(error).__name__}") from error
        finally:
            if not running.done():
                job.give_up()
                running.add_done_callback(_ignore)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._cafile)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._tls

    def close(self) -> None:
        """Start nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _ignore(future: asyncio.Future[Answer]) -> None:
    if not future.cancelled():
        future.exception()


class _Job:
    """One request in a thread."""

    def __init__(self, request: Request, tls: object) -> None:
        self._request = request
        self._tls = tls
        self._connection: http.client.HTTPConnection | None = None
        self._given_up = False

    def run(self) -> Answer:
        request = self._request
        parts = urlsplit(request.url)
        host, port = parts.hostname or "", parts.port
        timeout = request.connect_timeout
        if parts.scheme == "https":
            context = self._tls() if callable(self._tls) else None
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=timeout, context=context
            )
        elif parts.scheme == "http":
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        else:
            raise FetchError("neither http nor https")
        self._connection = connection
        with contextlib.closing(connection):
            connection.connect()
            if self._given_up:
                raise TimeoutError
            connection.sock.settimeout(request.total_timeout)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            names = {name.lower() for name, _ in request.headers}
            connection.putrequest(
                request.method, path, skip_host="host" in names, skip_accept_encoding=True
            )
            for name, value in request.headers:
                connection.putheader(name, value)
            if request.body is not None:
                connection.putheader("content-length", str(len(request.body)))
            connection.endheaders(request.body)
            with contextlib.closing(connection.getresponse()) as answer:
                body = answer.read(request.most + 1)
                if len(body) > request.most:
                    raise FetchError(f"the answer is longer than {request.most} bytes")
                return Answer(answer.status, answer.getheader("content-type", ""), body)

    def give_up(self) -> None:
        """Close the socket under the thread, which then ends with an error."""
        self._given_up = True
        sock = self._connection.sock if self._connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
