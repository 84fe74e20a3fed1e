"""Reading alone: in one flight if the result is small, as a stream if it is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..core.classify import Path
from ..core.formats import arrow_copied
from ..core.model import Call, Execute, Grant, Kind, TransactionMode
from ..postgres.connection import Connection, OverBudget
from ..postgres.copy import Take, copy_of, copy_out, copy_query
from .binding import Bound, bind, bind_known
from .claims import goes_first
from .parts import Parts, left, stream_end
from .plans import Plan
from .reply import Reply, result_of
from .streams import Copied
from .targets import Lease, Target
from .told import keep_state, told, too_large

_NOTHING = TransactionMode()
SMALL = 16_384
"""Bytes of an answer behind which the reset is sent at once. The end of a larger one comes in
several pieces, and would have to be looked for message by message."""
_COPIES = frozenset({"SELECT", "VALUES", "TABLE", "WITH"})
_CSV, _TEXT = "FORMAT csv, HEADER true", "FORMAT text"
_BINARY = "\n--binary"
"""Marks a statement whose times come as numbers, so that it is prepared apart."""
_TIMED = frozenset({1082, 1182, 1114, 1115, 1184, 1185, 0})
"""date, timestamp, timestamptz and their arrays, which are sent as text; 0 may be made of them."""
_FIRST_OWN = 16_384
"""Oid from which on types are made by users."""


class Reads(Parts):
    """Runs one statement that is not known to write."""

    async def _read(
        self,
        lease: Lease,
        plan: Plan,
        request: Execute,
        grant: Grant,
        call: Call,
        deadline: float,
    ) -> Reply:
        """Run *request* on a connection on which it can write nothing.

        Raises:
            OverBudget: It is larger than it was believed to be; its connection is closed.
        """
        if plan.large:
            return await self._stream(lease, plan, request, grant, call, deadline)
        connection = lease.connection
        read_only = request.read_only or grant.read_only
        if goes_first(grant) or (read_only and connection.undoes_read_only):
            # It is never committed.
            await connection.begin(_NOTHING, left(deadline, self._time), write=False)
        await self._claim(lease, grant, deadline, plan)
        bound = bind_known(connection, plan, request.statement) or await bind(
            connection, plan, request.statement, left(deadline, self._time)
        )
        before = connection.counter.received
        try:
            answer = await connection.run(
                bound.described,
                bound.arguments,
                timeout=left(deadline, self._time),
                budget=lease.target.settings.read_budget,
                limit=request.max_rows + 1 if request.max_rows is not None else 0,
                last=plan.small,
            )
            plan.small = connection.counter.received - before < SMALL
        except TimeoutError:
            raise
        except Exception as error:
            keep_state(error, bound)
            raise
        return Reply(
            lease.target,
            result=result_of(connection, bound, answer, request.max_rows),
            after=lease.settle,
            at_once=lease.leave,
            connection=connection,
        )

    async def _quick(
        self, lease: Lease, plan: Plan, request: Execute, grant: Grant, deadline: float
    ) -> Reply | None:
        """What `_read` does with a statement whose last result was small, step by step there.

        `None` if it is not as simple as that; nothing has happened then.
        """
        if plan.writes or plan.large or plan.bare or grant.claims is not None:
            return None
        connection = lease.connection
        if (request.read_only or grant.read_only) and connection.undoes_read_only:
            return None
        bound = bind_known(connection, plan, request.statement)
        if bound is None:
            return None
        counter, most = connection.counter, request.max_rows
        before = counter.received
        try:
            answer = await connection.run(
                bound.described,
                bound.arguments,
                timeout=left(deadline, self._time),
                budget=lease.target.settings.read_budget,
                limit=0 if most is None else most + 1,
                last=True,
            )
        except TimeoutError:
            raise
        except Exception as error:
            keep_state(error, bound)
            raise
        plan.small = counter.received - before < SMALL
        return Reply(
            lease.target,
            result=result_of(connection, bound, answer, most),
            after=lease.settle,
            at_once=lease.leave,
            connection=connection,
        )

    async def _stream(
        self,
        lease: Lease,
        plan: Plan,
        request: Execute,
        grant: Grant,
        call: Call,
        deadline: float,
    ) -> Reply:
        await self._stream_place(lease, grant, call, deadline)
        connection, target = lease.connection, lease.target
        until = stream_end(call, request.timeout, grant, target, self._time())
        begun = goes_first(grant)
        if begun:
            await connection.begin(_NOTHING, left(deadline, self._time), write=False)
        await self._claim(lease, grant, deadline, plan, until=until)
        bound = await bind(connection, plan, request.statement, left(deadline, self._time))
        copied = (call.text or call.form == "csv") and request.max_rows is None
        if copied and _can_copy(plan, request, bound):
            query = _copying(plan, bound, call)
            milliseconds = max(1, int(left(until, self._time) * 1000))
            limit = f"SET LOCAL statement_timeout={milliseconds}"
            if begun:
                await connection.script(limit, left(deadline, self._time))
            else:
                await connection.begin(
                    _NOTHING, left(deadline, self._time), write=False, then=limit
                )
                await self._claim(lease, grant, deadline, plan, until=until, at_once=True)
            rows_copied = Copied(
                bound.described.columns or (),
                self._copied(connection, query, target, deadline, until),
                grant.limits,
            )
            return Reply(target, copied=rows_copied, after=lease.settle, connection=connection)
        if call.form == "arrow" and _TIMED.isdisjoint(map(_family, bound.described.parameters)):
            with connection.binary_times():
                bound = await bind(
                    connection, plan, request.statement, left(deadline, self._time), suffix=_BINARY
                )
        if not begun:
            await connection.begin(_NOTHING, left(deadline, self._time), write=False)
        portal = await connection.open_portal(
            bound.described, bound.arguments, timeout=left(deadline, self._time)
        )
        rows = await self._rows(
            connection, bound, portal, target, grant, (deadline, until), request.max_rows
        )
        return Reply(target, rows=rows, after=lease.settle, connection=connection)

    async def _stream_place(self, lease: Lease, grant: Grant, call: Call, deadline: float) -> None:
        """Have a place among the streams; wait for it without a connection, as anybody does."""
        if lease.place is not None:
            return
        share = lease.target.share
        place = share.try_stream(grant.tenant)
        if place is None:
            entered = self._time()
            await lease.stand_back()
            place = await share.stream(grant.tenant, deadline)
            try:
                await lease.step_in(grant, deadline)
                if grant.claims is not None:
                    await self.claims.check(lease, grant, left(deadline, self._time))
            except BaseException:
                place.give_back()
                raise
            call.queued += self._time() - entered
        lease.place = place

    def _copied(
        self, connection: Connection, sql: str, target: Target, deadline: float, until: float
    ) -> Callable[[Take], Awaitable[str]]:
        if connection.comment:
            sql = f"{sql}\n{connection.comment}"

        async def run(take: Take) -> str:
            try:
                return await copy_out(
                    connection,
                    sql,
                    take,
                    left(until, self._time),
                    budget=target.settings.response_bytes,
                    first=left(deadline, self._time),
                )
            except OverBudget:
                raise too_large(target) from None
            except Exception as error:
                said = told(error, connection)
                if hasattr(said, "position"):
                    said.position = None  # counted in our text
                raise said from error

        return run


def _family(oid: int) -> int:
    return oid if oid < _FIRST_OWN else 0


def _can_copy(plan: Plan, request: Execute, bound: Bound) -> bool:
    """Whether COPY writes of this statement exactly what its rows would be written as.

    It takes no parameters, and it alone shows the lower bounds of arrays.
    """
    columns = bound.described.columns
    return (
        not request.statement.parameters
        and plan.classified.path is Path.READ
        and plan.classified.verb in _COPIES
        and bound.variant.sql == plan.sql
        and bool(columns)
        and all(isinstance(column.kind, Kind) for column in columns or ())
    )


def _copying(plan: Plan, bound: Bound, call: Call) -> str:
    """The COPY for the form that the caller wants."""
    sql = _without_end(plan)
    if call.form == "csv":
        return copy_query(sql, _CSV)
    if call.form == "arrow":
        sql = copy_of(sql, arrow_copied.expressions(bound.described.columns or ()))
    return copy_query(sql, _TEXT)


def _without_end(plan: Plan) -> str:
    """The statement without the semicolons behind it."""
    end = len(plan.sql)
    for token in reversed(plan.toks):
        if plan.sql[token.start : token.end] != ";":
            break
        end = token.start
    return plan.sql[:end]
