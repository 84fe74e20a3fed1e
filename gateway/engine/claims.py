"""Claims on their way to the database: sealed, right before the statement they are for.

Sealed claims cost no flight of their own: the two values are bound in the message of the
statement, within its transaction. A read alone so stays one flight, in an implicit
transaction that is read-only. In mode `guc`, where a role may have to be put on before
PostgreSQL looks at the text, they go first, in an open transaction.

A login that callers with different claims share must not be able to leave anything behind
that runs with the next one's claims, nor be above row-level security. It is looked at
before the first statement, and again from time to time; if it is, nothing runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from ..core.claims import MARGIN, SealKey, seal, seal_key
from ..core.classify import Path
from ..core.errors import ClaimsUnsafe, GatewayError
from ..core.model import Claims, Grant
from ..core.policy import Rule, sealed_logins
from ..postgres.connection import Connection
from ..postgres.failures import lost, sqlstate
from ..postgres.pool import Pool
from ..postgres.reset import SEAL_SQL
from ..postgres.rights import SHARED, ask
from .plans import Plan
from .targets import Lease, Target

_LOOK_AGAIN = 300.0
"""Seconds for which a login that was found fit is taken to be."""
_LOOK = 2.0
"""Seconds for the look at the start: it begins to listen also where nobody answers yet."""
_GUC_SQL = "select pg_catalog.set_config('request.jwt.claims', $1, true)"
_ROLE_SQL = _GUC_SQL + ", pg_catalog.set_config('role', $2, true)"
_HELD_SQL = SEAL_SQL.replace(", true)", ", false)")
_TRY_SQL = "select gw.claims() is not null"
_NOT_THERE = frozenset({"42883", "3F000", "42501", "42P01"})
_INVALID = "28000"


class Claiming:
    """Sends claims, and looks whether they can be relied on."""

    def __init__(self, *, master: bytes, wall: Callable[[], float]) -> None:
        self._master = master
        self._wall = wall
        self._time = asyncio.get_running_loop().time
        self._keys: dict[str, SealKey] = {}
        self._fit: WeakKeyDictionary[Pool, float] = WeakKeyDictionary()

    def _seal(self, connection: Connection, target: str, text: str, until: float) -> str:
        key = self._keys.get(target)
        if key is None:
            key = self._keys[target] = seal_key(self._master, target)
        return seal(
            key,
            text,
            pid=connection.get_server_pid(),
            database=connection.database,
            expires=int(self._wall() + max(0.0, until - self._time()) + MARGIN) + 1,
        )

    async def put_on(
        self,
        connection: Connection,
        target: Target,
        grant: Grant,
        timeout: float,
        *,
        until: float,
        plan: Plan | None = None,
        at_once: bool = False,
    ) -> None:
        """Have the claims of *grant*, if it has any, in place for the next statement.

        Args:
            until: Event-loop time by which the statement has begun its last part.
            plan: The statement; one that runs no query needs no claims.
            at_once: Not with the next statement, but now.
        """
        claims = grant.claims
        connection.first = None  # of a statement that was never run
        if claims is None or (plan is not None and _runs_no_query(plan)):
            return
        if claims.mode == "guc":
            await _set(connection, *_guc(claims), timeout)
            return
        made = self._seal(connection, target.name, claims.text, until)
        if at_once:
            await _set(connection, SEAL_SQL, [claims.text, made], timeout)
        else:
            connection.claim(claims.text, made)

    async def hold(
        self, connection: Connection, target: Target, grant: Grant, timeout: float, *, until: float
    ) -> None:
        """As `put_on`, for a statement outside any transaction; the connection ends with it."""
        claims = grant.claims
        if claims is None:
            return
        if claims.mode == "guc":
            sql, values = _guc(claims)
            await _set(connection, sql.replace(", true)", ", false)"), values, timeout)
            return
        made = self._seal(connection, target.name, claims.text, until)
        await _set(connection, _HELD_SQL, [claims.text, made], timeout)

    async def check(self, lease: Lease, grant: Grant, timeout: float) -> None:
        """Return if the login of *lease* may be trusted with sealed claims.

        Raises:
            ClaimsUnsafe: It may not.
        """
        if grant.claims is None or grant.claims.mode != "sealed":
            return
        if self._fit.get(lease.pool, 0.0) > self._time():
            return
        connection = lease.connection
        found = await ask(connection, SHARED, timeout)
        if found:
            raise ClaimsUnsafe(
                "the login of this target cannot be shared by callers with claims",
                reason="; ".join(each.said() for each in found),
            )
        await self.prove(connection, lease.target.name, timeout)
        self._fit[lease.pool] = self._time() + _LOOK_AGAIN

    async def prove(self, connection: Connection, target: str, timeout: float) -> None:
        """Return if the database believes a seal of ours.

        Raises:
            ClaimsUnsafe: It has no `gw.claims()`, or another key.
        """
        try:
            described = await connection.describe(_TRY_SQL, timeout)
            connection.claim("{}", self._seal(connection, target, "{}", self._time() + timeout))
            answer = await connection.run(described, [], timeout=timeout, budget=65_536)
        except Exception as error:
            state = sqlstate(error)
            if lost(error) or (state not in _NOT_THERE and state != _INVALID):
                raise
            reason = (
                "it does not accept our seal: the key is another one, the clocks differ, or"
                " something in between shares sessions"
                if state == _INVALID
                else "it has no gw.claims() for this login"
            )
            raise ClaimsUnsafe("the database cannot check sealed claims", reason=reason) from error
        if not answer.rows[0][0]:
            raise ClaimsUnsafe("the database cannot check sealed claims", reason="it found none")

    async def announce(self, rules: Iterable[Rule], targets: dict[str, Target]) -> None:
        """Look at each login that some rule shares, before anybody comes.

        A database that cannot be reached now is looked at by the first that comes.

        Raises:
            ClaimsUnsafe: One is unfit.
        """
        names = {name: target.names() for name, target in targets.items()}
        for name, login in sealed_logins(list(rules), names):
            target = targets[name]
            grant = Grant(name, login, claims=Claims("sealed", "{}"))
            try:
                lease = await target.lease(grant, self._time() + _LOOK)
            except GatewayError:
                continue
            try:
                await self.check(lease, grant, _LOOK)
            except ClaimsUnsafe as error:
                raise ClaimsUnsafe(
                    f"target {name}, login {login}: {error.message}",
                    hint=error.reason,
                    reason=error.reason,
                ) from error
            except Exception as error:
                if not (isinstance(error, TimeoutError) or lost(error)):
                    raise
                lease.connection.broken = True
            finally:
                lease.settle_soon()


def goes_first(grant: Grant) -> bool:
    """Whether claims must be in place before PostgreSQL is shown the statement's text."""
    return grant.claims is not None and grant.claims.mode == "guc"


def _runs_no_query(plan: Plan) -> bool:
    """Whether the statement must come before any query, or in a failed transaction."""
    return plan.classified.path is Path.SAVEPOINT or plan.classified.verb == "SET"


def _guc(claims: Claims) -> tuple[str, list[str]]:
    if claims.role is None:
        return _GUC_SQL, [claims.text]
    return _ROLE_SQL, [claims.text, claims.role]


async def _set(connection: Connection, sql: str, values: list[str], timeout: float) -> None:
    described = await connection.describe(sql, timeout)
    await connection.run(described, values, timeout=timeout, budget=65_536)
