"""Open one connection: addresses, TLS, credential, session settings."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from ..core.errors import DatabaseUnavailable, GatewayError
from ..settings import LoginSettings, TargetSettings
from .connection import Connection
from .failures import translate_connect
from .types import TypeCatalog

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


class Connector:
    """Opens clean connections for one login on one database of one target."""

    def __init__(self, target: TargetSettings, login: LoginSettings, database: str) -> None:
        self.target = target
        self.login = login
        self.database = database
        self.catalog = TypeCatalog()
        self.weakened: set[str] = set()
        """Session settings that the server refused."""
        self._tls = _tls(target)

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
            if connection.get_settings().is_superuser == "on" and not self.target.allow_superuser:
                connection.terminate()
                raise DatabaseUnavailable(
                    "the login of this target is a superuser",
                    hint="log in as an ordinary role, or set allow_superuser",
                )
            connection.set_up(self.catalog)
            _harden(connection)
            await connection.plant_canary()
            now = asyncio.get_running_loop().time()
            connection.born = now
            connection.expires = now + self.target.pool.max_lifetime * random.uniform(0.9, 1.0)
            return connection
        raise DatabaseUnavailable

    async def _open(self, timeout: float) -> Connection:
        hosts = self.target.hosts
        connection = await asyncpg.connect(
            host=[host for host, _ in hosts],
            port=[port for _, port in hosts],
            user=self.login.user,
            password=self._password(),
            database=self.database,
            timeout=timeout,
            ssl=self._tls,
            server_settings=self._settings(),
            connection_class=Connection,
            statement_cache_size=self.target.pool.statement_cache,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=1 << 20,
            target_session_attrs=SessionAttribute.primary
            if len(hosts) > 1
            else SessionAttribute.any,
        )
        assert isinstance(connection, Connection)
        return connection


def _tls(target: TargetSettings) -> Any:
    if target.tls == "disable" or all(host.startswith("/") for host, _ in target.hosts):
        return False
    context = ssl.create_default_context(
        cafile=str(target.cafile) if target.cafile is not None else None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
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
