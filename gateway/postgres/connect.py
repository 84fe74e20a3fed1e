"""Open one connection: addresses, TLS, credential, session settings."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from ..core.errors import DatabaseUnavailable, GatewayError
from ..core.pool_policy import expiry
from ..settings import LoginSettings, TargetSettings
from .connection import Connection
from .failures import translate_connect
from .types import TypeCatalog

_chance = random.Random()

# What a caller's session may have changed for good by ALTER ROLE … SET is outranked by the
# startup packet, and is what RESET ALL returns to.
_SESSION = {
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "search_path": '"$user", public',
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "role": "none",
    "row_security": "on",
    # What a text means: the lexer reads it as these say.
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "xmloption": "content",
    "idle_session_timeout": "0",
    "lock_timeout": "0",
    "client_min_messages": "notice",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "client_connection_check_interval": "500",
}
OPTIONAL = ("client_connection_check_interval", "tcp_user_timeout")
"""Settings that an older server or a pooler in between may refuse; then they are left out."""


class Credentials(Protocol):
    """Where a login's credentials come from, if not from the settings."""

    on_change: Callable[[], None]

    async def current(self) -> Any:
        """What to log in with now: has `user` and `password`."""

    async def alternatives(self, refused: Any) -> Sequence[Any]:
        """What else might be right, if PostgreSQL has refused *refused*."""

    def worked(self, credential: Any) -> None:
        """An alternative was accepted."""


_STAGGER = 0.25
"""Seconds after which the next host is tried beside one that has not answered."""
_NEXT_HOST = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.TargetServerAttributeNotMatched,
)
"""What one host may say while another is the primary."""


def _hang_up(task: asyncio.Task[Connection]) -> None:
    """A host that was dialled in vain has answered after all."""
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()


class Connector:
    """Opens clean connections for one login on one database of one target."""

    def __init__(
        self,
        target: TargetSettings,
        login: LoginSettings,
        database: str,
        credentials: Credentials | None = None,
    ) -> None:
        self.target = target
        self._credentials = credentials
        self._opened: WeakSet[Connection] = WeakSet()
        if credentials is not None and login.revoke_on_rotate:
            credentials.on_change = self._revoke
        self.login = login
        self.database = database
        self.catalog = TypeCatalog()
        self.weakened: set[str] = set()
        """Session settings that the server refused."""
        self._tls = _tls(target, login)
        self._primary: tuple[str, int] | None = None
        self._proven: str | None = None
        """The password of the settings that was accepted last."""
        self.was_primary = False
        """A connection of ours was to a server that took writes."""

    def _password(self) -> str | None:
        login = self.login
        if login.password_file is not None:
            return login.password_file.read_text().strip()
        if login.password_env is not None:
            return os.environ.get(login.password_env)
        return login.password

    def _settings(self) -> dict[str, str]:
        settings = {**_SESSION, "application_name": "pgsluice"}
        for name in self.weakened:
            settings.pop(name, None)
        # Our own timer is the authority; the server's is for the day that we are gone.
        margin = int((self.target.statement_timeout + 5) * 1000)
        settings["statement_timeout"] = str(margin)
        idle = int((self.target.transactions.idle_timeout + 30) * 1000)
        settings["idle_in_transaction_session_timeout"] = str(idle)
        return settings

    async def connect(self, timeout: float) -> Connection:
        """A connection, set up and warm.

        Raises:
            DatabaseUnavailable: No host of the target took the login in time.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._connect(timeout)
        except GatewayError:
            raise
        except Exception as error:
            raise translate_connect(error) from error

    async def _connect(self, timeout: float) -> Connection:
        for _attempt in range(len(OPTIONAL) + 1):
            try:
                connection = await self._open(timeout)
            except asyncpg.PostgresError as error:
                refused = [name for name in OPTIONAL if name in str(error)]
                if not refused or refused[0] in self.weakened:
                    raise
                self.weakened.add(refused[0])
                continue
            try:
                return await self._set_up(connection)
            except BaseException:
                connection.terminate()
                raise
        raise DatabaseUnavailable

    async def _set_up(self, connection: Connection) -> Connection:
        if connection.get_settings().is_superuser == "on" and not self.target.allow_superuser:
            raise DatabaseUnavailable(
                "the login of this target is a superuser",
                hint="log in as an ordinary role, or set allow_superuser",
            )
        if not connection.reads_only:
            # Then nothing tells a read from a write, and RESET ALL undoes what it should keep.
            raise DatabaseUnavailable(
                "what answers does not keep the settings of a session",
                hint="a pooler in between drops them: connect to PostgreSQL itself",
            )
        connection.set_up(self.catalog)
        self.was_primary = self.was_primary or not connection.in_recovery
        _harden(connection)
        await connection.plant_canary()
        now = asyncio.get_running_loop().time()
        connection.born = now
        connection.expires = expiry(now, self.target.pool.max_lifetime, _chance.random())
        return connection

    async def _open(self, timeout: float) -> Connection:
        credentials = self._credentials
        if credentials is None:
            return await self._log_in_plainly(timeout)
        credential = await credentials.current()
        try:
            return await self._log_in(credential.user, credential.password, timeout)
        except asyncpg.InvalidAuthorizationSpecificationError:
            # Each once and no more: wrong passwords in numbers lock accounts.
            for other in await credentials.alternatives(credential):
                try:
                    connection = await self._log_in(other.user, other.password, timeout)
                except asyncpg.InvalidAuthorizationSpecificationError:
                    continue
                credentials.worked(other)
                return connection
            raise

    async def _log_in_plainly(self, timeout: float) -> Connection:
        user, password = self.login.user, self._password()
        try:
            connection = await self._log_in(user, password, timeout)
        except asyncpg.InvalidAuthorizationSpecificationError:
            # A file is replaced a moment before the database gets the new password.
            if self._proven in (None, password):
                raise
            return await self._log_in(user, self._proven, timeout)
        self._proven = password
        return connection

    def _revoke(self) -> None:
        """Lend nothing again that was opened with credentials that are no longer the right ones."""
        for connection in self._opened:
            connection.expires = 0.0

    async def _log_in(self, user: str, password: str | None, timeout: float) -> Connection:
        hosts = self.target.hosts
        if len(hosts) == 1:
            return await self._dial(hosts[0], user, password, timeout)
        # The one that was primary last comes first.
        ordered = sorted(hosts, key=lambda host: host != self._primary)
        waiting = iter(ordered)
        dialled: dict[asyncio.Task[Connection], tuple[str, int]] = {}
        failure: BaseException = DatabaseUnavailable()
        try:
            while True:
                host = next(waiting, None)
                if host is not None:
                    task = asyncio.create_task(self._dial(host, user, password, timeout))
                    dialled[task] = host
                elif not dialled:
                    raise failure
                # A host that says nothing must not use up the time of the others.
                done, _ = await asyncio.wait(
                    dialled,
                    timeout=_STAGGER if host is not None else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    host = dialled.pop(task)
                    error = task.exception()
                    if error is None:
                        self._primary = host
                        return task.result()
                    if not isinstance(error, _NEXT_HOST):
                        raise error
                    failure = error
        finally:
            for task in dialled:
                task.cancel()
                task.add_done_callback(_hang_up)

    async def _dial(
        self, host: tuple[str, int], user: str, password: str | None, timeout: float
    ) -> Connection:
        connection = await asyncpg.connect(
            host=host[0],
            port=host[1],
            user=user,
            password=password,
            database=self.database,
            timeout=timeout,
            ssl=self._tls,
            server_settings=self._settings(),
            connection_class=Connection,
            statement_cache_size=self.target.pool.statement_cache,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=1 << 20,
            target_session_attrs=SessionAttribute.primary
            if len(self.target.hosts) > 1
            else SessionAttribute.any,
        )
        assert isinstance(connection, Connection)
        if self.login.revoke_on_rotate:
            self._opened.add(connection)
        return connection


def _tls(target: TargetSettings, login: LoginSettings) -> Any:
    if target.tls == "disable" or all(host.startswith("/") for host, _ in target.hosts):
        return False
    context = ssl.create_default_context(
        cafile=str(target.cafile) if target.cafile is not None else None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if login.client_cert is not None:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(login.client_cert, login.client_key, password="")
    return context


def _harden(connection: Connection) -> None:
    """Nothing that is queued for a dead network may arrive after we gave up on it."""
    sock = connection._transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    options: list[tuple[int, int, Any]] = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
    ]
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 5_000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            options.append((socket.IPPROTO_TCP, option, value))
    set_option: Callable[..., None] = sock.setsockopt
    for level, option, value in options:
        set_option(level, option, value)
