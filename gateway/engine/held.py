"""Transactions that stay open across requests: begin, statements inside, the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..core.classify import Path
from ..core.errors import (
    DatabaseUnavailable,
    GatewayError,
    KeyReused,
    TransactionGone,
)
from ..core.model import (
    Begin,
    Call,
    End,
    Execute,
    Grant,
    OpenTransaction,
    Principal,
    Result,
)
from ..core.transaction import Event, State
from ..postgres.connection import Answer, OverBudget
from ..postgres.failures import (
    STALE,
    is_sign_of_ddl,
    lost,
    sqlstate,
)
from .binding import Bound, bind
from .parts import COMMIT_TIMEOUT, Parts, deadline_of, left, plan_of, stream_end, within_rows
from .plans import Plan
from .reply import Reply, result_of
from .streams import Rows
from .targets import Target
from .told import (
    after_failure,
    cancel_reason,
    connection_lost,
    keep_state,
    told,
    too_large,
)
from .transactions import Held
from .work import Work

_AT_ONCE = 1_000
"""Rows of a read that are fetched in one flight; the rest is streamed."""
_PORTAL = ""
"""Without a name: the next statement closes it. One that stays open, also at its end, keeps its
tables in use, and ALTER TABLE would be refused (55006)."""

_PATH = "select pg_catalog.current_setting('search_path')"

_T = TypeVar("_T")


class Opened(Parts):
    """Runs what belongs to a transaction of the caller's."""

    async def begin(self, principal: Principal, request: Begin, call: Call) -> Reply:
        """Open a transaction that lives across requests."""
        grant, target = self._grant(principal, request.ask, call)
        deadline = deadline_of(call, None, grant, target)
        work = self._work(call)
        if work is None:
            return await self._begin(principal, request, grant, target, call, deadline)
        # A repeated BEGIN would leave the first one open, for nobody.
        try:
            await work.take(deadline)
            known = self.transactions.open.get(work.recall() or "")
            if known is not None:
                return Reply(target, transaction=self._view(known))
            call.replayed = False
            reply = await self._begin(principal, request, grant, target, call, deadline)
            assert reply.transaction is not None
            work.keep_answer(reply.transaction.id)
            return reply
        finally:
            work.leave()

    async def _begin(
        self, principal: Principal, request: Begin, grant: Grant, target: Target, call: Call,
        deadline: float,
    ) -> Reply:  # fmt: skip
        settings = target.settings.transactions
        idle = min(request.idle_timeout or settings.idle_timeout, settings.idle_timeout)
        room = await self.transactions.room(target, grant, deadline)
        try:
            lease = await self._lease(target, grant, deadline, call, long=True)
        except BaseException:
            self.transactions.give_room(target, room)
            raise
        try:
            mode = request.mode._replace(read_only=request.mode.read_only or grant.read_only)

            async def once() -> str:
                return await lease.connection.begin(mode, left(deadline, self._time))

            await self._attempts(lease, call, deadline, once)
            if request.schema is not None:
                await self._search_path(lease.connection, request.schema, deadline)
        except BaseException as error:
            self.transactions.give_room(target, room)
            raise after_failure(lease, error, call) from None
        held = self.transactions.add(
            principal=principal, target=target, grant=grant, lease=lease, room=room,
            idle_timeout=idle, mode=mode, schema=request.schema,
        )  # fmt: skip
        return Reply(target, transaction=self._view(held))

    async def end(self, principal: Principal, request: End, call: Call) -> Reply:
        """Commit or roll back an open transaction."""
        work = self._work(call)
        if work is None:
            return await self._end(principal, request, call, None)
        try:
            await work.take(min(call.deadline, self._time() + COMMIT_TIMEOUT))
            return await self._end(principal, request, call, work)
        except TransactionGone as gone:
            before = await self._ended_before(principal, request, call, work, gone)
            if before is None:
                raise
            return before
        finally:
            work.leave()

    async def _ended_before(
        self, principal: Principal, request: End, call: Call, work: Work, gone: TransactionGone
    ) -> Reply | None:
        """The answer that this end of a transaction was given before, here or on another node."""
        try:
            grant, target = self._grant(principal, request.ask, call)
        except GatewayError:
            return None
        if work.recall() is not None:
            return Reply(target)
        if not request.commit:
            return None
        deadline = deadline_of(call, None, grant, target)
        lease = await self._lease(target, grant, deadline, call)
        try:
            await self._leave_standby(lease, deadline)
            found = await work.find(lease, deadline)
        except BaseException as error:
            raise after_failure(lease, error, call) from None
        lease.settle_soon()
        return None if found is None else Reply(target)

    async def _end(
        self, principal: Principal, request: End, call: Call, work: Work | None
    ) -> Reply:
        held = self.transactions.find(request.transaction, principal, request.ask)
        self._same_grant(principal, held, request, call)
        deadline = deadline_of(call, None, held.grant, held.target)
        deadline = await self._enter(held, deadline, call)
        try:
            connection = held.lease.connection
            await connection.quiet(left(deadline, self._time))
            if request.commit:
                if work is not None and not await work.record_inside(held.lease, deadline):
                    work = None
                await self._conclude(held.lease, call, work, deadline)
            else:
                await connection.script("ROLLBACK", left(deadline, self._time))
        except KeyReused:
            self.transactions.leave(held)
            raise
        except BaseException as error:
            self.transactions.end(held, Event.BROKEN)
            self.transactions.leave(held)
            if not request.commit and isinstance(error, Exception) and lost(error):
                return Reply(held.target)  # gone is rolled back
            if isinstance(error, DatabaseUnavailable):
                raise connection_lost() from error
            raise told(error, held.lease.connection) from error
        self.transactions.end(held, Event.COMMITTED if request.commit else Event.ROLLED_BACK)
        self.transactions.leave(held)
        if work is not None and not work.in_database:
            work.keep_answer([])
        return Reply(held.target, wrote=request.commit)

    async def _execute_in(self, principal: Principal, request: Execute, call: Call) -> Reply:
        assert request.transaction is not None
        held = self.transactions.find(request.transaction, principal, request.ask)
        self._same_grant(principal, held, request, call)
        target = held.target
        if held.grant.limits.rows:
            request = within_rows(request, held.grant)
        plan = plan_of(target, held.grant, request.statement)
        call.statements = (plan,)
        await self._hold(held.grant, [plan], request.schema)
        deadline = deadline_of(call, request.timeout, held.grant, target)
        deadline = await self._enter(held, deadline, call)
        connection = held.lease.connection
        started = self._time()
        work = self._work(call)
        before = connection.counter.received
        try:
            if work is not None:
                kept = work.recall()
                if kept is not None:
                    return self._reply_in(held, result=kept[0])
            await connection.quiet(left(deadline, self._time))
            until = stream_end(call, request.timeout, held.grant, target, self._time())

            async def once() -> tuple[Bound, Answer, int, int]:
                return await self._run_in(held, plan, request, deadline, until)

            bound, answer, limit, before = await self._first(held, once, deadline)
            if not connection.in_transaction:
                connection.abort()
                raise TransactionGone("the statement ended its own transaction")
            call.running = self._time() - started
            most = request.max_rows
            if not answer.complete and limit and (most is None or len(answer.rows) <= most):
                until = stream_end(call, request.timeout, held.grant, target, self._time())
                first = answer, connection.counter.received - before
                rows = await self._rows(
                    connection, bound, _PORTAL, target, held.grant, (deadline, until), most, first
                )
                return self._reply_in(held, rows=rows)
            result = result_of(connection, bound, answer, request.max_rows)
            if work is not None:
                work.keep_answer([result], connection.counter.received - before)
        except BaseException as error:
            raise self._failed_in(held, error, call) from None
        return self._reply_in(held, result=result)

    async def _run_in(
        self, held: Held, plan: Plan, request: Execute, deadline: float, until: float
    ) -> tuple[Bound, Answer, int, int]:
        """One statement; its answer, most rows of it, and the bytes received before."""
        connection, target = held.lease.connection, held.target
        suffix = ""
        if plan.classified.path is not Path.SAVEPOINT:
            suffix = await self._path_in(held, request.schema, deadline)
        await self._claim(held.lease, held.grant, deadline, plan, until=until)
        bound = await bind(
            connection,
            plan,
            request.statement,
            left(deadline, self._time),
            suffix=suffix,
            in_transaction=True,
        )
        limit = 0
        if bound.described.columns is not None and plan.classified.path is Path.READ:
            limit = _AT_ONCE
            if request.max_rows is not None:
                limit = min(limit, request.max_rows + 1)
        elif bound.described.columns is not None and request.max_rows is not None:
            limit = request.max_rows + 1
        before = connection.counter.received
        try:
            answer = await connection.run(
                bound.described,
                bound.arguments,
                timeout=left(deadline, self._time),
                budget=target.settings.response_bytes,
                limit=limit,
                portal=_PORTAL,
            )
        except OverBudget:
            raise too_large(target) from None
        except Exception as error:
            keep_state(error, bound)
            raise
        return bound, answer, limit, before

    async def _path_in(self, held: Held, schema: str | None, deadline: float) -> str:
        """Have *schema* for the next statement alone; what it was is put back before the one
        after. Not right behind it, for its rows may still be on their way.
        """
        connection = held.lease.connection
        if schema is None:
            if held.path is not None:
                await self._set_path(connection, held.path, deadline)
                held.path = None
            return ""
        if held.path is None:
            described = await connection.describe(_PATH, left(deadline, self._time))
            found = await connection.run(
                described, [], timeout=left(deadline, self._time), budget=65_536
            )
            held.path = str(found.rows[0][0])
        return await self._search_path(connection, schema, deadline)

    async def _first(self, held: Held, once: Callable[[], Awaitable[_T]], deadline: float) -> _T:
        """*once*; if it is the first and met a plan from before somebody's DDL, once more.

        Such an error ends a transaction, but of this one nothing is lost: it is begun anew.
        """
        fresh, held.fresh = held.fresh, False
        try:
            return await once()
        except Exception as error:
            connection = held.lease.connection
            cause = error.__cause__ if isinstance(error, GatewayError) else error
            stale = cause is not None and (sqlstate(cause) in STALE or is_sign_of_ddl(cause))
            if not fresh or not stale or not connection.in_transaction:
                raise
        await connection.script("ROLLBACK", left(deadline, self._time))
        connection.forget()
        await connection.begin(held.mode, left(deadline, self._time))
        if held.schema is not None:
            await self._search_path(connection, held.schema, deadline)
        return await once()

    def _reply_in(
        self, held: Held, *, result: Result | None = None, rows: Rows | None = None
    ) -> Reply:
        async def after() -> None:
            if rows is not None and held.lease.connection.is_closed():
                self.transactions.end(held, Event.LOST)
            elif rows is not None and not rows.finished and not rows.refused:
                self.transactions.end(held, Event.HANGUP)
            self.transactions.leave(held, refused=rows is not None and rows.refused)

        return Reply(
            held.target,
            result=result,
            rows=rows,
            transaction=self._view(held),
            after=after,
            connection=held.lease.connection,
        )

    async def _enter(self, held: Held, deadline: float, call: Call) -> float:
        """Wait for the calls before; return the deadline, not later than the total limit."""
        entered = self._time()
        deadline = await self.transactions.enter(held, deadline)
        call.started = self._time()
        call.queued = call.started - entered
        call.target = held.target.name
        call.backend = held.lease.connection.get_server_pid()
        commented = held.target.settings.trace_comment
        held.lease.connection.comment = call.comment if commented else ""
        return deadline

    def _failed_in(self, held: Held, error: BaseException, call: Call) -> BaseException:
        """Decide what becomes of the transaction; return what the caller is told."""
        connection = held.lease.connection
        reason = cancel_reason(error, call)
        if reason is not None:
            held.target.cancelled(reason)
        if reason == "hangup":
            self.transactions.end(held, Event.HANGUP)
        elif connection.is_closed() or connection.broken:
            self.transactions.end(held, Event.LOST)
            if isinstance(error, DatabaseUnavailable) or not isinstance(
                error, GatewayError | asyncio.CancelledError | TimeoutError
            ):
                error = connection_lost()
        gone = self.transactions.leave(held, refused=sqlstate(error) is not None)
        if gone is not None and isinstance(error, TimeoutError):
            return gone
        said = told(error, connection)
        if held.state is not State.ENDED and isinstance(said, GatewayError):
            said.transaction = self._view(held)
        return said

    def _view(self, held: Held) -> OpenTransaction:
        return self.transactions.view(held, wall=self._wall(), now=self._time())
