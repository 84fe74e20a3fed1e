"""One serving process: sockets first, then the application, then signals, then a drain.

SIGTERM or SIGINT   no new work; what runs may finish within `server.drain_timeout`
the same once more  exit at once
SIGHUP              read the configuration and the certificate again; no request is dropped
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import click
import uvicorn

from ..api.guard import guarded
from ..api.limits import GuardLimits, GuardState
from ..api.listening import BACKLOG, listen
from ..app import App, create_app
from ..core.errors import GatewayError
from ..core.proxies import Proxies
from ..settings import ConfigurationError, ServerSettings, Settings, is_exposed, is_loopback

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has nothing else."""

_M_MMAP_THRESHOLD = -3
"""As in malloc.h."""

_LINGER = 1.0
"""Seconds that callers get to read their answers when the time to drain is over."""


class Bound(NamedTuple):
    """Where the gateway listens, with the ports that it really got."""

    url: str
    admin_url: str | None


class CannotServe(click.ClickException):
    """One line that says why the gateway cannot start."""


def run(
    settings: Settings,
    *,
    ready: Callable[[Bound], None] | None = None,
    stopper: Callable[[Callable[[], None]], None] | None = None,
    read: Callable[[], Settings] | None = None,
) -> int:
    """Serve until told to stop; return the exit code of the process.

    Args:
        ready: Called once, when both listeners answer.
        stopper: Called before that with a function that does what SIGTERM does, from any
            thread. Outside the main thread there are no signals, so it is the only way.
        read: Reads the configuration again; without it, only the certificate is.

    Raises:
        SystemExit: A second signal came, and nothing was waited for.
    """
    try:
        with _listeners(settings.server) as (listener, admin, certificate):
            serving = _Serving(settings, listener, admin, certificate, ready, read)
            return _run(serving, stopper)
    except (CannotServe, GatewayError) as error:
        hint = getattr(error, "hint", None)
        click.echo(f"pgsluice: {error}" + (f" ({hint})" if hint else ""), err=True)
        return 1


class _Certificate:
    """The context for TLS, with the certificate and key that were read last."""

    def __init__(self, settings: ServerSettings) -> None:
        self._current = self._loaded(settings)
        self.context = self._loaded(settings)
        self.context.sni_callback = self._choose

    def load(self, settings: ServerSettings) -> None:
        """Read certificate and key again; new connections get the new ones.

        Raises:
            CannotServe: They cannot be read, or do not belong together; the old ones stay.
        """
        # One assignment: a handshake that is under way sees the old pair or the new one, never
        # the new certificate with the old key, as it would if a context in use were loaded.
        self._current = self._loaded(settings)

    def _choose(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        """Called by OpenSSL for every client hello, with a server name or without."""
        connection.context = self._current

    def _loaded(self, settings: ServerSettings) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        self._load(context, settings)
        return context

    def _load(self, context: ssl.SSLContext, settings: ServerSettings) -> None:
        assert settings.tls_cert is not None
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise CannotServe(
                f"server.tls_cert and server.tls_key cannot be used: {reason}"
            ) from error


@contextmanager
def _listeners(
    settings: ServerSettings,
) -> Iterator[tuple[socket.socket, socket.socket | None, _Certificate | None]]:
    if is_exposed(settings):
        raise CannotServe(f"will not listen on {settings.host} without TLS")
    certificate = _Certificate(settings) if settings.tls_cert else None
    with contextlib.ExitStack() as stack:
        listener = _listen(settings.host, settings.port, "server.port or PORT")
        stack.enter_context(contextlib.closing(listener))
        admin = None
        if settings.admin_port >= 0:
            admin = _listen(settings.admin_host, settings.admin_port, "server.admin_port")
            stack.enter_context(contextlib.closing(admin))
        yield listener, admin, certificate


def _listen(host: str, port: int, knob: str) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        place = host if host.startswith("/") else f"port {port} of {host}"
        if error.errno == errno.EADDRINUSE:
            raise CannotServe(
                f"{place} is in use; stop what listens there, or set {knob}"
            ) from error
        reason = (error.strerror or str(error)).lower()
        raise CannotServe(f"cannot listen on {place}: {reason}") from error


def _run(serving: _Serving, stopper: Callable[[Callable[[], None]], None] | None) -> int:
    loop = _new_loop()

    def stop() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
            loop.call_soon_threadsafe(serving.stop)

    if stopper is not None:
        stopper(stop)
    try:
        loop.run_until_complete(serving.serve())
        loop.run_until_complete(_finish())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        # What a second signal left behind is nobody's concern any more.
        loop.set_exception_handler(lambda *_: None)
        loop.close()
    return 0


async def _finish() -> None:
    """End what still runs, such as an attempt to connect, and let transports close."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.sleep(0)


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


class _Server(uvicorn.Server):
    """uvicorn's server, with its signals left to us, that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: two servers share this process."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.listening.set()


class _Serving:
    """What runs between the first signal and the last."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        admin: socket.socket | None,
        certificate: _Certificate | None,
        ready: Callable[[Bound], None] | None,
        read: Callable[[], Settings] | None,
    ) -> None:
        self._settings = settings
        self._read = read
        self._app: App | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._again = False
        """The configuration changed once more while it was being read."""
        self._listener = listener
        self._admin = admin
        self._certificate = certificate
        self._ready = ready
        self._stop = asyncio.Event()
        self._started = False
        self._main: asyncio.Task[Any] | None = None
        self.abandoned = False
        """A second signal came."""

    async def serve(self) -> None:
        """Start, serve, drain, stop."""
        self._main = asyncio.current_task()
        self._watch_signals()
        app = create_app(self._settings)
        try:
            await app.start()
            self._app = app
            self._started = True
            await self._serve(app)
        except asyncio.CancelledError:
            # Only a signal cancels, and only before there is anything to drain.
            if self._started or not self._stop.is_set():
                raise
        finally:
            if not self.abandoned:
                await app.close()

    async def _serve(self, app: App) -> None:
        loop = asyncio.get_running_loop()
        public = _Server(self._config(app, self._certificate))
        app.callers = lambda: len(public.server_state.connections)
        guard: GuardState = public.config.http.state  # type: ignore[union-attr]
        app.guarded = lambda: (guard.refused, guard.bodies, guard.unread)
        servers = [(public, self._listener)]
        if self._admin is not None:
            servers.append((_Server(self._config(app.admin, None)), self._admin))
        running = [loop.create_task(each.serve(sockets=[sock])) for each, sock in servers]
        for (each, _), task in zip(servers, running, strict=True):
            listening = loop.create_task(each.listening.wait())
            await asyncio.wait([listening, task], return_when=asyncio.FIRST_COMPLETED)
        _raise_if_ended(running)
        if _in_main_thread():
            _return_large_pieces()
            # What lives now lives for ever: no collection needs to look at it again.
            gc.collect()
            gc.freeze()
            # A request leaves no circles: to look for them every 700 objects is for nothing.
            gc.set_threshold(20_000, 20, 20)
        if self._ready is not None:
            # First of all: the first line of the log says where.
            self._ready(self._bound())
        app.listens()
        stopping = loop.create_task(self._stop.wait())
        await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
        _raise_if_ended(running)
        grace = app.settings.server.drain_timeout
        until = loop.time() + grace
        await app.drain(grace)
        for (each, _), task in zip(servers, running, strict=True):
            # The admin listener goes last: it answers probes until there is nothing to probe.
            each.config.timeout_graceful_shutdown = max(_LINGER, until - loop.time())  # type: ignore[assignment]
            each.should_exit = True
            await task

    def _config(self, app: Any, certificate: _Certificate | None) -> uvicorn.Config:
        server = self._settings.server
        limits = GuardLimits(
            keep_alive=server.keep_alive,
            max_body=server.request_bytes,
            max_bodies=server.inflight_bytes,
        )
        # Whoever can get at a port without TLS could also read what others send to it.
        is_plain = certificate is None and not is_loopback(server.host)
        public = app is self._app
        proxies = Proxies(server.proxies) if is_plain and public else None
        return uvicorn.Config(
            app,
            http=guarded(limits, getattr(app, "direct", None), proxies),
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=server.max_callers,
            backlog=BACKLOG,
            # The guard closes idle connections; uvicorn's own clock must not come first.
            timeout_keep_alive=int(server.keep_alive) + 60,
            ssl_context_factory=(
                None if certificate is None else lambda _config, _default: certificate.context
            ),
        )

    def _bound(self) -> Bound:
        server = self._settings.server
        scheme = "http" if self._certificate is None else "https"
        return Bound(
            _url(scheme, server.host, self._listener),
            None if self._admin is None else _url("http", server.admin_host, self._admin),
        )

    def stop(self) -> None:
        """Drain, then end. Called in the loop."""
        self._stop.set()
        if not self._started and self._main is not None:
            self._main.cancel()

    def _watch_signals(self) -> None:
        if not _in_main_thread():
            return
        loop = asyncio.get_running_loop()
        endings = [signal.SIGTERM, signal.SIGINT]
        if self._read is None and self._certificate is None:
            # Nothing to read again: it is what it was at first, the terminal was closed.
            endings.append(signal.SIGHUP)
        else:
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        for number in endings:
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_hangup(self) -> None:
        self._again = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        while self._again and self._app is not None and not self._stop.is_set():
            self._again = False
            await self._reload_once(self._app)

    async def _reload_once(self, app: App) -> None:
        try:
            # In a thread: what is being served does not wait for files to be read.
            settings = await asyncio.to_thread(self._read) if self._read else app.settings
            certificate = self._certificate
            if (settings.server.tls_cert is None) != (certificate is None):
                raise CannotServe("server.tls_cert: TLS is switched on or off by a restart only")
            if certificate is not None:
                await asyncio.to_thread(certificate.load, settings.server)
            app.reconfigure(settings)
        except ConfigurationError as error:
            app.refuse([str(problem) for problem in error.problems])
        except (CannotServe, GatewayError, OSError, ValueError) as error:
            app.refuse([str(error)])

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            self._abandon(number)
        self.stop()

    def _abandon(self, number: int) -> NoReturn:
        self.abandoned = True
        raise SystemExit(128 + number)


def _return_large_pieces() -> None:
    """Have glibc take pieces of 1 MiB and more from the system, and give them back to it.

    By itself it learns from the first large body that is freed to keep such pieces: of what a
    thousand bodies of 4 MiB took, a sixth to two thirds stayed with the process afterwards.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library keeps its ways
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _raise_if_ended(running: list[asyncio.Task[None]]) -> None:
    """A server ends when it is told to; if it did by itself, say why."""
    for task in running:
        if task.done():
            task.result()
            raise CannotServe("a listener ended by itself")


def _url(scheme: str, host: str, listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"{scheme}+unix://{host}"
    port = listener.getsockname()[1]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
