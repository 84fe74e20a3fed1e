"""One statement by itself: read in one flight, written in three, or bare."""

from __future__ import annotations

from ..core.classify import Path
from ..core.errors import OutcomeUnknown
from ..core.model import (
    Call,
    Execute,
    Grant,
    Result,
    TransactionMode,
)
from ..postgres.connection import OverBudget
from ..postgres.failures import (
    INVALID_TERMINATION,
    NO_TRANSACTION_BLOCK,
    READ_ONLY,
    lost,
    sqlstate,
    translate,
)
from .binding import Bound, bind, bind_known
from .claims import goes_first
from .ledger import NONE
from .parts import check_key, left
from .plans import Plan
from .reading import Reads
from .reply import Reply, result_of
from .targets import Lease
from .told import keep_state, timed_out, too_large
from .work import Work


class Alone(Reads):
    """Runs one statement outside any transaction of the caller's."""

    async def _alone(
        self,
        lease: Lease,
        plan: Plan,
        request: Execute,
        grant: Grant,
        call: Call,
        work: Work | None,
        deadline: float,
        failed: Exception | None = None,
    ) -> Reply:
        """Run it; *failed* is what a read of it in the quick way has ended with just now."""
        read_only = request.read_only or grant.read_only
        mode = TransactionMode(read_only=read_only)

        async def once() -> Reply:
            nonlocal failed
            while True:
                if plan.bare and not read_only:
                    check_key(call, mode)
                    call.idempotency = NONE
                    call.in_doubt = True
                    return await self._bare(lease, plan, request, grant, deadline)
                # What is read-only and not a query goes into a transaction block: outside of
                # one DO and CALL may commit, and begin another that writes.
                reads = plan.classified.path is Path.READ if read_only else not plan.writes
                if reads and request.schema is None:
                    try:
                        if failed is not None:
                            error, failed = failed, None
                            raise error
                        return await self._read(lease, plan, request, grant, call, deadline)
                    except OverBudget:
                        plan.large = True
                        await lease.replace(deadline, "budget")
                        continue
                    except Exception as error:
                        if sqlstate(error) != READ_ONLY or read_only:
                            raise
                        plan.writes = True
                        if lease.connection.in_transaction:
                            await lease.connection.script("ROLLBACK", left(deadline, self._time))
                try:
                    return await self._write(
                        lease, plan, request, grant, mode, call, work, deadline
                    )
                except Exception as error:
                    state = sqlstate(error)
                    if state not in (NO_TRANSACTION_BLOCK, INVALID_TERMINATION) or read_only:
                        raise
                    plan.bare = True
                    await lease.connection.script("ROLLBACK", left(deadline, self._time))

        return await self._attempts(lease, call, deadline, once)

    async def _write(
        self,
        lease: Lease,
        plan: Plan,
        request: Execute,
        grant: Grant,
        mode: TransactionMode,
        call: Call,
        work: Work | None,
        deadline: float,
    ) -> Reply:
        check_key(call, mode)
        connection = lease.connection
        target = lease.target
        before = connection.counter.received
        bound: Bound | None = None
        try:
            if request.schema is None and work is None and not goes_first(grant):
                # Prepared before BEGIN: a failed Parse then aborts nothing.
                bound = bind_known(connection, plan, request.statement) or await bind(
                    connection, plan, request.statement, left(deadline, self._time)
                )
            if work is not None:
                kept = await work.begin(lease, mode, deadline)
                if kept is not None:
                    return self._replayed(lease, kept)
            elif bound is not None and not mode.read_only and connection.can_begin_ahead():
                connection.begin_ahead()
            else:
                await connection.begin(mode, left(deadline, self._time))
            suffix = ""
            if request.schema is not None:
                suffix = await self._search_path(connection, request.schema, deadline)
            if grant.claims is not None:
                await self._claim(lease, grant, deadline, plan)
            if bound is None:
                bound = await bind(
                    connection,
                    plan,
                    request.statement,
                    left(deadline, self._time),
                    suffix=suffix,
                    in_transaction=True,
                )
            answer = await connection.run(
                bound.described,
                bound.arguments,
                timeout=left(deadline, self._time),
                budget=min(target.settings.response_bytes, grant.limits.response_bytes),
            )
            if not connection.in_transaction:
                connection.abort()
                raise OutcomeUnknown("the statement ended its own transaction")
            result = result_of(connection, bound, answer, request.max_rows)
            if call.vet is not None:
                call.vet(connection, result)
            if work is not None:
                await self._take_off(lease, grant, deadline)
                size = connection.counter.received - before
                await work.record(connection, [result], size, deadline)
        except OverBudget:
            raise too_large(target) from None
        except Exception as error:
            kept = await self._done_by_twin(work, lease, error, deadline)
            if kept is not None:
                return self._replayed(lease, kept)
            if bound is not None:
                keep_state(error, bound)
            raise
        if work is None:
            await self._commit(lease.connection, call)
        else:
            await self._conclude(lease, call, work, deadline)
        return Reply(
            target, result=result, after=lease.settle, at_once=lease.leave,
            connection=lease.connection, wrote=True,
        )  # fmt: skip

    def _replayed(self, lease: Lease, kept: list[Result]) -> Reply:
        return Reply(
            lease.target,
            result=kept[0],
            after=lease.settle,
            connection=lease.connection,
            wrote=True,
        )

    async def _bare(
        self, lease: Lease, plan: Plan, request: Execute, grant: Grant, deadline: float
    ) -> Reply:
        """What cannot run in a transaction block runs alone, and its connection is closed."""
        connection = lease.connection
        await connection.script(
            "SET default_transaction_read_only = off", left(deadline, self._time)
        )
        connection.broken = True
        # For the session: what commits inside would lose what is set for a transaction.
        await self.claims.hold(
            connection, lease.target, grant, left(deadline, self._time), until=deadline
        )
        bound = await bind(connection, plan, request.statement, left(deadline, self._time))
        try:
            answer = await connection.run(
                bound.described,
                bound.arguments,
                timeout=left(deadline, self._time),
                budget=lease.target.settings.response_bytes,
            )
        except TimeoutError:
            timeout = timed_out(connection)
            timeout.outcome = OutcomeUnknown.outcome
            timeout.retry = OutcomeUnknown.retry
            raise timeout from None
        except Exception as error:
            if lost(error):
                raise translate(error, may_have_run=True) from error
            keep_state(error, bound)
            raise
        result = result_of(connection, bound, answer, request.max_rows)
        return Reply(
            lease.target, result=result, after=lease.settle, connection=connection, wrote=True
        )
