"""Several statements in one transaction, the caller's or their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from operator import is_
from typing import Any

from ..core.classify import Path
from ..core.errors import (
    GatewayError,
    StatementRefused,
)
from ..core.model import (
    Call,
    ExecuteBatch,
    ExecuteMany,
    Grant,
    Parameters,
    Principal,
    Result,
    Statement,
    TransactionMode,
)
from ..core.sets import ForEach
from ..postgres.connection import Answer, Connection, OverBudget
from ..postgres.failures import (
    lost,
    sqlstate,
)
from .binding import Bound, bind
from .claims import goes_first
from .held import Opened
from .parts import check_key, deadline_of, left, plans_of, same_plan
from .plans import Plan
from .rebind import rebind_all, rebinder
from .reply import Reply, result_of
from .targets import Lease
from .told import after_failure, keep_state, told, too_large
from .work import Work

_COUNTED = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_MARK = "SAVEPOINT pgsluice_batch"


class Several(Opened):
    """Runs batches."""

    async def _several(
        self,
        principal: Principal,
        request: ExecuteBatch | ExecuteMany,
        statements: Sequence[Statement],
        call: Call,
    ) -> tuple[list[Result], Reply]:
        many = isinstance(request, ExecuteMany) and not request.counts
        planned = same_plan if isinstance(request, ExecuteMany) else plans_of
        if request.transaction is not None:
            held = self.transactions.find(request.transaction, principal, request.ask)
            self._same_grant(principal, held, request, call)
            call.statements = plans = planned(held.target, held.grant, statements)
            await self._hold(held.grant, plans, request.schema)
            deadline = deadline_of(call, request.timeout, held.grant, held.target)
            deadline = await self._enter(held, deadline, call)
            work = self._work(call)
            try:
                connection = held.lease.connection
                before = connection.counter.received
                if work is not None:
                    kept = work.recall()
                    if kept is not None:
                        results = kept
                        return results, self._reply_in(held)
                await connection.quiet(left(deadline, self._time))

                async def inside() -> list[Result]:
                    suffix = await self._path_in(held, request.schema, deadline)
                    return await self._each(
                        held.lease, held.grant, plans, statements, deadline, many, suffix
                    )

                results = await self._first(held, inside, deadline)
                if not many:
                    call.rows = sum(result.row_count for result in results)
                if work is not None:
                    work.keep_answer(results, connection.counter.received - before)
            except BaseException as error:
                raise self._failed_in(held, error, call) from None
            return results, self._reply_in(held)
        grant, target = self._grant(principal, request.ask, call)
        call.statements = plans = planned(target, grant, statements)
        await self._hold(grant, plans, request.schema)
        for index, plan in enumerate(plans[:1] if planned is same_plan else plans):
            if plan.bare or plan.classified.path is Path.SAVEPOINT:
                refused = StatementRefused(
                    f"{plan.classified.verb} cannot be part of a batch",
                    hint="send it alone",
                )
                refused.statement = index
                raise refused
        deadline = deadline_of(call, request.timeout, grant, target)
        if not statements:
            return [], Reply(target)
        mode = request.mode._replace(read_only=request.mode.read_only or grant.read_only)
        check_key(call, mode)
        work = None
        if call.keyed is not None and not mode.read_only:
            work = self._work(call)
        try:
            if work is not None:
                # Twins wait here, without a connection.
                await work.take(deadline)
            lease = await self._lease(target, grant, deadline, call)
            try:
                started = self._time()

                async def once() -> list[Result]:
                    return await self._one_transaction(
                        lease, grant, plans, statements, request, mode, call, work, deadline
                    )

                results = await self._attempts(lease, call, deadline, once)
                call.running = self._time() - started
                if not many:
                    call.rows = sum(result.row_count for result in results)
            except BaseException as error:
                raise after_failure(lease, error, call) from None
        finally:
            if work is not None:
                work.leave()
        return results, Reply(target, after=lease.settle, wrote=not mode.read_only)

    async def _one_transaction(
        self,
        lease: Lease,
        grant: Grant,
        plans: Sequence[Plan],
        statements: Sequence[Statement],
        request: ExecuteBatch | ExecuteMany,
        mode: TransactionMode,
        call: Call,
        work: Work | None,
        deadline: float,
    ) -> list[Result]:
        connection = lease.connection
        before = connection.counter.received
        # What is set for the transaction must survive the way back to the mark.
        marked = work is None and request.schema is None and _counted(plans)
        try:
            if work is None:
                early = request.schema is None and not goes_first(grant)
                if early and len(statements[0].parameters or ()):
                    await bind(connection, plans[0], statements[0], left(deadline, self._time))
                then = _MARK if marked else ""
                await connection.begin(mode, left(deadline, self._time), then=then)
            else:
                kept: list[Result] | None = await work.begin(lease, mode, deadline)
                if kept is not None:
                    return kept
            suffix = ""
            if request.schema is not None:
                suffix = await self._search_path(connection, request.schema, deadline)
            many = isinstance(request, ExecuteMany) and not request.counts
            results = await self._each(
                lease, grant, plans, statements, deadline, many, suffix, own=True, marked=marked
            )
            if work is not None:
                await self._take_off(lease, grant, deadline)
                await work.record(
                    connection, results, connection.counter.received - before, deadline
                )
        except Exception as error:
            kept = await self._done_by_twin(work, lease, error, deadline)
            if kept is None:
                raise
            return kept
        await self._conclude(lease, call, work, deadline)
        return results

    async def _each(
        self,
        lease: Lease,
        grant: Grant,
        plans: Sequence[Plan],
        statements: Sequence[Statement],
        deadline: float,
        many: bool,
        suffix: str,
        *,
        own: bool = False,
        marked: bool = False,
    ) -> list[Result]:
        """Run all, in the open transaction.

        Args:
            own: It ends with the last of them.
            marked: Its first savepoint is there.
        """
        connection, target = lease.connection, lease.target
        results: list[Result] = []
        room = target.settings.response_bytes
        try:
            if (many and len(statements) > 1) or _counted(plans):
                await self._claim(lease, grant, deadline, plans[0])
                done = await self._pipelined(
                    connection, plans[0], statements, deadline, suffix, not many, own, marked
                )
                if done is not None:
                    return done
            for plan, statement in zip(plans, statements, strict=True):
                await self._claim(lease, grant, deadline, plan)
                bound = await bind(
                    connection,
                    plan,
                    statement,
                    left(deadline, self._time),
                    suffix=suffix,
                    in_transaction=True,
                )
                before = connection.counter.received
                try:
                    answer = await connection.run(
                        bound.described,
                        bound.arguments,
                        timeout=left(deadline, self._time),
                        budget=room,
                    )
                except OverBudget:
                    raise too_large(target) from None
                except Exception as error:
                    keep_state(error, bound)
                    raise
                room -= connection.counter.received - before
                results.append(result_of(connection, bound, answer, None))
        except TimeoutError:
            raise
        except Exception as error:
            said = told(error, connection)
            if isinstance(said, GatewayError) and said.statement is None:
                said.statement = len(results)
            raise said from error
        return results

    async def _pipelined(
        self,
        connection: Connection,
        plan: Plan,
        statements: Sequence[Statement],
        deadline: float,
        suffix: str,
        counts: bool,
        own: bool,
        marked: bool,
    ) -> list[Result] | None:
        """Sets of a statement that returns no rows, in one flight; `None` if it returns some."""
        first = await bind(
            connection, plan, statements[0], left(deadline, self._time), suffix=suffix,
            in_transaction=True,
        )  # fmt: skip
        if first.described.columns is not None:
            return None
        given = _columns(connection, plan, first, statements, suffix)
        if given is None:
            given = _lazily(rebinder(connection, first, statements[0]), statements)
        if not marked:
            await connection.script(_MARK, left(deadline, self._time))
        tags: list[str] | None = None
        try:
            tags = await connection.run_many(
                first.described, given, timeout=left(deadline, self._time), tags=counts
            )
        except _OtherKind:
            pass
        except Exception as error:
            if sqlstate(error) is None or lost(error):
                raise
            # One by one from the start, to learn which set it is.
            await self._take_back(connection, deadline)
            return None
        if tags is None:
            await self._take_back(connection, deadline)
            sets = await self._bound(connection, plan, statements, first, deadline, suffix)
            if sets is None:
                return None
            await connection.script(_MARK, left(deadline, self._time))
            try:
                tags = await connection.run_many(
                    first.described, sets, timeout=left(deadline, self._time), tags=counts
                )
            except Exception as error:
                if sqlstate(error) is None or lost(error):
                    raise
                await self._take_back(connection, deadline)
                return None
        if not own:
            await connection.script(f"RELEASE {_MARK}", left(deadline, self._time))
        if counts:
            return _results(connection, first, tags)
        empty = Result((), (), 0, plan.classified.verb, False)
        return [empty] * len(statements)

    async def _take_back(self, connection: Connection, deadline: float) -> None:
        await connection.script(f"ROLLBACK TO {_MARK}", left(deadline, self._time))

    async def _bound(
        self,
        connection: Connection,
        plan: Plan,
        statements: Sequence[Statement],
        first: Bound,
        deadline: float,
        suffix: str,
    ) -> list[list[Any]] | None:
        """The arguments of all sets; `None` if one of them makes another statement of it."""
        sets = []
        again = rebinder(connection, first, statements[0])
        for index, statement in enumerate(statements):
            arguments = again(statement.parameters)
            if arguments is not None:
                sets.append(arguments)
                continue
            try:
                bound = await bind(
                    connection, plan, statement, left(deadline, self._time), suffix=suffix,
                    in_transaction=True,
                )  # fmt: skip
            except GatewayError as error:
                error.statement = index
                raise
            if bound.described is not first.described:
                return None
            sets.append(bound.arguments)
        return sets


class _OtherKind(Exception):
    """A set has values of other kinds than the first one."""


def _columns(
    connection: Connection,
    plan: Plan,
    first: Bound,
    statements: Sequence[Statement],
    suffix: str,
) -> Iterable[Sequence[Any]] | None:
    """The arguments of all *statements*, if all are bound as the first one."""
    if not isinstance(statements, ForEach) or statements.alike is None:
        return None
    columns = rebind_all(
        connection, plan, first, statements.alike, suffix, statements.strict, statements.verbatim
    )
    return None if columns is None else zip(*columns, strict=True)


def _results(connection: Connection, bound: Bound, tags: Sequence[str]) -> list[Result]:
    """One for each tag; the notices are with the first."""
    notices = connection.take_notices()
    # Most tags are the same, and so are their results.
    made = {tag: result_of(connection, bound, Answer((), tag, True), None) for tag in set(tags)}
    results = [made[tag] for tag in tags]
    if notices:
        results[0] = results[0]._replace(notices=notices)
    return results


def _lazily(
    again: Callable[[Parameters], list[Any] | None], statements: Sequence[Statement]
) -> Iterator[list[Any]]:
    for statement in statements:
        arguments = again(statement.parameters)
        if arguments is None:
            raise _OtherKind
        yield arguments


def _counted(plans: Sequence[Plan]) -> bool:
    """Whether one statement runs for several sets whose tags say all that there is to say."""
    if len(plans) < 2:
        return False
    first = plans[0]
    if first.classified.verb not in _COUNTED:
        return False
    return all(map(is_, plans, repeat(first)))
