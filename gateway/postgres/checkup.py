"""Measures a connection rather than the catalogs: TLS, clocks, what is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..core.gw_schema import PARTS
from ..settings import TargetSettings
from .connection import Connection

_CLOCK = "select extract(epoch from clock_timestamp())::float8"
_TLS = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
_PART = (
    "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
    " where n.nspname = 'gw' and has_schema_privilege(n.oid, 'usage')"
    " and has_function_privilege(p.oid, 'execute')"
)
_HAS_VERSIONS = (
    "select c.oid::int from pg_class c join pg_namespace n on n.oid = c.relnamespace"
    " where n.nspname = 'gw' and c.relname = 'part' and has_schema_privilege(n.oid, 'usage')"
    " and has_table_privilege(c.oid, 'select')"
)
_VERSION = "select version from gw.part where name = $1"


class Installed(NamedTuple):
    """What the login finds of one part."""

    functions: bool
    version: int | None
    """`None` if it cannot be read."""


async def skew(connection: Connection, wall: Callable[[], float], timeout: float) -> float:
    """Seconds by which the database's clock is ahead of ours, at least so many."""
    before = wall()
    theirs = float((await _rows(connection, _CLOCK, [], timeout))[0][0])
    after = wall()
    return theirs - after if theirs > after else min(0.0, theirs - before)


async def is_plain(connection: Connection, target: TargetSettings, timeout: float) -> bool:
    """Whether the connection goes over a network without TLS."""
    if all(host.startswith("/") for host, _ in target.hosts):
        return False
    return not (await _rows(connection, _TLS, [], timeout))[0][0]


async def installed(connection: Connection, part: str, timeout: float) -> Installed:
    """What there is of *part* of `core.gw_schema`."""
    found = {row[0] for row in await _rows(connection, _PART, [], timeout)}
    wanted = {each.replace(", ", ",") for each in PARTS[part].grants}
    version = None
    if await _rows(connection, _HAS_VERSIONS, [], timeout):
        rows = await _rows(connection, _VERSION, [part], timeout)
        version = rows[0][0] if rows else None
    return Installed(wanted <= found, version)


async def _rows(
    connection: Connection, sql: str, arguments: Sequence[Any], timeout: float
) -> Sequence[Sequence[Any]]:
    described = await connection.describe(sql, timeout)
    answer = await connection.run(described, arguments, timeout=timeout, budget=1 << 20)
    return answer.rows
