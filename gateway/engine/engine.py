"""The order of things: what happens to a request between its reading and its answer.

A statement alone that may be a read goes out by itself on a connection whose
transactions are read-only: one flight. If PostgreSQL says that it would write,
nothing has happened, and it takes the write path: BEGIN READ WRITE, statement,
COMMIT alone. The result is fixed before the connection is reset behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.classify import Path
from ..core.errors import (
    DatabaseUnavailable,
    StatementRefused,
)
from ..core.model import (
    Call,
    Execute,
    ExecuteBatch,
    ExecuteMany,
    Principal,
    Result,
)
from ..core.sets import ForEach
from .alone import Alone
from .batch import Several
from .copy import Copies
from .outcomes import Outcomes
from .parts import deadline_of, plan_of, within_rows
from .reply import Reply
from .streams import Rows
from .told import after_failure

__all__ = ["Engine", "Reply", "Rows"]


class Engine(Alone, Copies, Several, Outcomes):
    """Runs what the dialects have read."""

    async def execute(self, principal: Principal, request: Execute, call: Call) -> Reply:
        """Run one statement, alone or in an open transaction."""
        if request.transaction is not None:
            return await self._execute_in(principal, request, call)
        grant, target = self._grant(principal, request.ask, call)
        if grant.limits.rows:
            request = within_rows(request, grant)
        plan = plan_of(target, grant, request.statement)
        call.statements = (plan,)
        if grant.tables or grant.verbs:
            await self._hold(grant, [plan], request.schema)
        if plan.classified.path is Path.SAVEPOINT:
            raise StatementRefused(
                f"{plan.classified.verb} means nothing outside a transaction",
                hint="begin a transaction first",
            )
        deadline = deadline_of(call, request.timeout, grant, target)
        work = None
        if call.keyed is not None and not (request.read_only or grant.read_only):
            work = self._work(call)
        try:
            if work is not None and plan.writes and not plan.bare:
                # Twins wait here, without a connection.
                await work.take(deadline)
            lease = await self._lease(target, grant, deadline, call)
            try:
                started = call.started
                reply, failed = None, None
                if plan.small and request.schema is None and not request.statement.strict:
                    try:
                        reply = await self._quick(lease, plan, request, grant, deadline)
                    except Exception as error:  # `_alone` knows what to do
                        failed = error
                if reply is None:
                    reply = await self._alone(
                        lease, plan, request, grant, call, work, deadline, failed
                    )
                call.running = self._time() - started
                return reply
            except BaseException as error:
                raise after_failure(lease, error, call) from None
        finally:
            if work is not None:
                work.leave()

    async def execute_batch(
        self, principal: Principal, request: ExecuteBatch, call: Call
    ) -> tuple[list[Result], Reply]:
        """Run several statements in one transaction, the caller's or their own."""
        return await self._several(principal, request, request.statements, call)

    async def execute_many(
        self, principal: Principal, request: ExecuteMany, call: Call
    ) -> tuple[list[Result], Reply]:
        """Run one statement for each set of parameters."""
        statements = ForEach(request.sql, request.sets, request.strict, request.verbatim)
        return await self._several(principal, request, statements, call)

    async def catalog(
        self, reply: Reply, sql: str, arguments: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Ask the catalog, with our own *sql*, on the connection that *reply* still holds."""
        connection = reply.connection
        if connection is None or connection.is_closed():
            raise DatabaseUnavailable("the connection was lost")
        described = await connection.describe(sql, 5.0)
        # Rows that are still to come may be in the portal without a name.
        portal = connection.portal_name() if reply.rows is not None else ""
        answer = await connection.run(
            described, arguments, timeout=5.0, budget=1 << 22, portal=portal
        )
        names = [column.name for column in described.columns or ()]
        return [dict(zip(names, row, strict=True)) for row in answer.rows]
