"""The order of things: what happens to a request between its reading and its answer.

A statement alone that may be a read goes out by itself on a connection whose
transactions are read-only: one flight. If PostgreSQL says that it would write,
nothing has happened, and it takes the write path: BEGIN READ WRITE, statement,
COMMIT alone. The result is fixed before the connection is reset behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from ..core.classify import Path
from ..core.errors import (
    DatabaseUnavailable,
    GatewayError,
    OutcomeUnknown,
    ResultTooLarge,
    StatementRefused,
    StatementTimeout,
    TransactionFailed,
    TransactionGone,
)
from ..core.model import (
    Begin,
    Call,
    Column,
    End,
    Execute,
    ExecuteBatch,
    ExecuteMany,
    Grant,
    OpenTransaction,
    Principal,
    Result,
    Statement,
    TransactionMode,
)
from ..core.policy import Rule, authorise
from ..postgres.connection import Answer, Connection, OverBudget
from ..postgres.failures import (
    INVALID_TERMINATION,
    NO_TRANSACTION_BLOCK,
    READ_ONLY,
    STALE,
    lost,
    sqlstate,
    translate,
    unsent,
)
from .plans import Bound, Plan, bind, check_allowed, check_parameters, located
from .targets import Lease, Target, Targets
from .transactions import Held, Transactions

COMMIT_TIMEOUT = 30.0
"""Seconds. A COMMIT is never cancelled for its caller's sake."""
_STREAM_BATCH = 1_000
"""Rows fetched at a time at the most."""
_STREAM_BYTES = 256 * 1024
"""Bytes of a batch aimed at; fat rows come in smaller batches."""
_NOTHING = TransactionMode()


class Rows:
    """The rows of a large result, batch by batch, from an open portal."""

    def __init__(
        self,
        columns: tuple[Column, ...],
        first: Answer,
        more: Callable[[int], Awaitable[Answer]] | None,
        max_rows: int | None = None,
    ) -> None:
        self.columns = columns
        self.count = 0
        self.truncated = False
        self.finished = False
        """Whether the last batch was taken."""
        self.command = "SELECT"
        self._first = first
        self._more = more
        self._max_rows = max_rows

    async def batches(self) -> AsyncIterator[Sequence[Sequence[Any]]]:
        """Each batch once; the next is fetched when the last has been sent."""
        answer = self._first
        size = _STREAM_BATCH // 4
        while True:
            rows = answer.rows
            if self._max_rows is not None and self.count + len(rows) > self._max_rows:
                rows = rows[: self._max_rows - self.count]
                self.truncated = True
            self.count += len(rows)
            if rows:
                yield rows
            if answer.complete or self.truncated or self._more is None:
                self.finished = True
                return
            size = min(_STREAM_BATCH, size * 2)
            answer = await self._more(size)


class Reply:
    """An answer, and what is left to do once it has been sent."""

    __slots__ = ("_after", "connection", "result", "rows", "target", "transaction")

    def __init__(
        self,
        target: Target,
        *,
        result: Result | None = None,
        rows: Rows | None = None,
        transaction: OpenTransaction | None = None,
        after: Callable[[], Awaitable[None]] | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.target = target
        self.connection = connection
        """Still held, for questions to the catalog about the result."""
        self.result = result
        self.rows = rows
        self.transaction = transaction
        self._after = after

    async def settle(self) -> None:
        """Clean up behind the answer; call it exactly once, whatever happened to the answer."""
        if self._after is not None:
            after, self._after = self._after, None
            await after()


class Engine:
    """Runs what the dialects have read."""

    def __init__(
        self,
        *,
        targets: Targets,
        transactions: Transactions,
        rules: Sequence[Rule],
        wall: Callable[[], float],
    ) -> None:
        self.targets = targets
        self.transactions = transactions
        self.rules = rules
        self._wall = wall
        self._time = asyncio.get_running_loop().time

    # -- one statement -----------------------------------------------------------------

    async def execute(self, principal: Principal, request: Execute, call: Call) -> Reply:
        """Run one statement, alone or in an open transaction."""
        if request.transaction is not None:
            return await self._execute_in(principal, request, call)
        grant, target = self._grant(principal, request.ask)
        plan = _plan(target, grant, request.statement)
        if plan.classified.path is Path.SAVEPOINT:
            raise StatementRefused(
                f"{plan.classified.verb} means nothing outside a transaction",
                hint="begin a transaction first",
            )
        deadline = _deadline(call, request.timeout, grant, target)
        lease = await self._lease(target, grant, deadline, call)
        try:
            started = self._time()
            reply = await self._alone(lease, plan, request, grant, call, deadline)
            call.running = self._time() - started
            return reply
        except BaseException as error:
            raise _after_failure(lease, error, call) from None

    async def _alone(
        self, lease: Lease, plan: Plan, request: Execute, grant: Grant, call: Call, deadline: float
    ) -> Reply:
        read_only = request.read_only or grant.read_only
        target = lease.target
        again = True
        while True:
            try:
                if plan.bare and not read_only:
                    return await self._bare(lease, plan, request, deadline)
                if (read_only or not plan.writes) and request.schema is None:
                    try:
                        return await self._read(lease, plan, request, target, deadline)
                    except OverBudget:
                        plan.large = True
                        await lease.replace(deadline, "budget")
                        continue
                    except Exception as error:
                        if sqlstate(error) == READ_ONLY and not read_only:
                            plan.writes = True
                            continue
                        raise
                try:
                    mode = TransactionMode(read_only=read_only)
                    return await self._write(lease, plan, request, grant, mode, call, deadline)
                except Exception as error:
                    state = sqlstate(error)
                    if state in (NO_TRANSACTION_BLOCK, INVALID_TERMINATION) and not read_only:
                        plan.bare = True
                        await lease.connection.script("ROLLBACK", _left(deadline, self._time))
                        continue
                    raise
            except GatewayError:
                raise
            except Exception as error:
                if again and not plan.bare and await self._again(lease, error, call, deadline):
                    again = False
                    continue
                raise

    async def _again(self, lease: Lease, error: Exception, call: Call, deadline: float) -> bool:
        """Whether *error* surely left nothing behind and a second attempt can help."""
        if call.committing:
            return False
        if unsent(error):
            await lease.replace(deadline, "lost")
            return True
        state = sqlstate(error)
        if state in STALE or (state in ("42883", "42804") and lease.connection.described):
            # DDL under a prepared statement, or somebody's DEALLOCATE: prepare anew.
            connection = lease.connection
            if state == "26000":
                await lease.replace(deadline, "dirty")
            else:
                if connection.in_transaction:
                    await connection.script("ROLLBACK", _left(deadline, self._time))
                connection.forget()
            return True
        return False

    async def _read(
        self, lease: Lease, plan: Plan, request: Execute, target: Target, deadline: float
    ) -> Reply:
        if plan.large and request.max_rows is None:
            return await self._stream(lease, plan, request, deadline)
        connection = lease.connection
        bound = await bind(connection, plan, request.statement, _left(deadline, self._time))
        limit = request.max_rows + 1 if request.max_rows is not None else 0
        try:
            answer = await connection.run(
                bound.described,
                bound.arguments,
                timeout=_left(deadline, self._time),
                budget=target.settings.read_budget if not limit else target.settings.response_bytes,
                limit=limit,
            )
        except OverBudget:
            if limit:
                raise _too_large(target) from None
            raise
        except TimeoutError:
            raise
        except Exception as error:
            _keep_state(error, bound)
            raise
        return Reply(
            target,
            result=_result(connection, bound, answer, request.max_rows),
            after=lease.settle,
            connection=connection,
        )

    async def _stream(self, lease: Lease, plan: Plan, request: Execute, deadline: float) -> Reply:
        connection = lease.connection
        target = lease.target
        bound = await bind(connection, plan, request.statement, _left(deadline, self._time))
        await connection.begin(_NOTHING, _left(deadline, self._time), write=False)
        portal = await connection.open_portal(
            bound.described, bound.arguments, timeout=_left(deadline, self._time)
        )
        rows = await self._rows(connection, bound, portal, target, deadline)
        return Reply(target, rows=rows, after=lease.settle, connection=connection)

    async def _rows(
        self,
        connection: Connection,
        bound: Bound,
        portal: str,
        target: Target,
        deadline: float,
        first: Answer | None = None,
    ) -> Rows:
        budget = target.settings.response_bytes

        async def more(count: int) -> Answer:
            try:
                return await connection.fetch_portal(
                    bound.described,
                    portal,
                    count,
                    timeout=_left(deadline, self._time),
                    budget=budget,
                )
            except OverBudget:
                raise _too_large(target) from None

        return Rows(bound.described.columns or (), first or await more(_STREAM_BATCH // 4), more)

    async def _write(
        self,
        lease: Lease,
        plan: Plan,
        request: Execute,
        grant: Grant,
        mode: TransactionMode,
        call: Call,
        deadline: float,
    ) -> Reply:
        connection = lease.connection
        target = lease.target
        suffix = ""
        if request.schema is None:
            # Prepared before BEGIN: a failed Parse then aborts nothing.
            bound = await bind(connection, plan, request.statement, _left(deadline, self._time))
            await connection.begin(mode, _left(deadline, self._time))
        else:
            await connection.begin(mode, _left(deadline, self._time))
            suffix = await self._search_path(connection, request.schema, deadline)
            bound = await bind(
                connection,
                plan,
                request.statement,
                _left(deadline, self._time),
                suffix=suffix,
                in_transaction=True,
            )
        try:
            answer = await connection.run(
                bound.described,
                bound.arguments,
                timeout=_left(deadline, self._time),
                budget=min(target.settings.response_bytes, grant.limits.response_bytes),
            )
        except OverBudget:
            raise _too_large(target) from None
        except Exception as error:
            _keep_state(error, bound)
            raise
        if not connection.in_transaction:
            connection.abort()
            raise OutcomeUnknown("the statement ended its own transaction")
        result = _result(connection, bound, answer, request.max_rows)
        await self._commit(connection, call)
        return Reply(target, result=result, after=lease.settle, connection=connection)

    async def _search_path(self, connection: Connection, schema: str, deadline: float) -> str:
        """Set the search_path of the transaction; return what marks statements under it."""
        described = await connection.describe(
            "select pg_catalog.set_config('search_path', $1, true)", _left(deadline, self._time)
        )
        quoted = '"' + schema.replace('"', '""') + '"'
        await connection.run(
            described, [quoted], timeout=_left(deadline, self._time), budget=65_536
        )
        return "\n--" + schema.encode().hex()

    async def _bare(self, lease: Lease, plan: Plan, request: Execute, deadline: float) -> Reply:
        """What cannot run in a transaction block runs alone, and its connection is closed."""
        connection = lease.connection
        await connection.script(
            "SET default_transaction_read_only = off", _left(deadline, self._time)
        )
        connection.broken = True
        bound = await bind(connection, plan, request.statement, _left(deadline, self._time))
        try:
            answer = await connection.run(
                bound.described,
                bound.arguments,
                timeout=_left(deadline, self._time),
                budget=lease.target.settings.response_bytes,
            )
        except TimeoutError:
            timeout = _timed_out(connection)
            timeout.outcome = OutcomeUnknown.outcome
            timeout.retry = OutcomeUnknown.retry
            raise timeout from None
        except Exception as error:
            if lost(error):
                raise translate(error, may_have_run=True) from error
            _keep_state(error, bound)
            raise
        result = _result(connection, bound, answer, request.max_rows)
        return Reply(lease.target, result=result, after=lease.settle, connection=connection)

    async def _commit(self, connection: Connection, call: Call) -> None:
        """COMMIT, alone in its message, so that an error can only be its own.

        Raises:
            TransactionFailed: PostgreSQL rolled back.
            DatabaseUnavailable: The connection was lost before COMMIT was sent.
            OutcomeUnknown: The connection was lost before PostgreSQL answered.
        """
        if connection.is_closed():
            raise DatabaseUnavailable("the connection was lost before the commit")
        call.committing = True
        try:
            tag = await connection.script("COMMIT", COMMIT_TIMEOUT)
        except Exception as error:
            connection.broken = True
            if isinstance(error, TimeoutError) or lost(error):
                raise OutcomeUnknown(
                    "the connection was lost while the transaction was being committed",
                    hint="it may have taken effect; read before sending it again",
                ) from error
            raise translate(error) from error
        finally:
            call.committing = False
        if tag != "COMMIT":
            raise TransactionFailed(
                "the transaction had failed and was rolled back", sqlstate="25P02"
            )

    # -- several statements ------------------------------------------------------------

    async def execute_batch(
        self, principal: Principal, request: ExecuteBatch, call: Call
    ) -> tuple[list[Result], Reply]:
        """Run several statements in one transaction, the caller's or their own."""
        return await self._several(principal, request, request.statements, call)

    async def execute_many(
        self, principal: Principal, request: ExecuteMany, call: Call
    ) -> tuple[list[Result], Reply]:
        """Run one statement for each set of parameters."""
        statements = [Statement(request.sql, each) for each in request.sets]
        return await self._several(principal, request, statements, call)

    async def _several(
        self,
        principal: Principal,
        request: ExecuteBatch | ExecuteMany,
        statements: Sequence[Statement],
        call: Call,
    ) -> tuple[list[Result], Reply]:
        many = isinstance(request, ExecuteMany) and not request.counts
        if request.transaction is not None:
            held = self.transactions.find(request.transaction, principal, request.ask)
            self._same_grant(principal, held, request)
            plans = _plans(held.target, held.grant, statements)
            deadline = _deadline(call, request.timeout, held.grant, held.target)
            await self._enter(held, deadline, call)
            try:
                connection = held.lease.connection
                await connection.quiet(_left(deadline, self._time))
                suffix = ""
                if request.schema is not None:
                    suffix = await self._search_path(connection, request.schema, deadline)
                results = await self._each(
                    connection, held.target, plans, statements, deadline, many, suffix
                )
            except BaseException as error:
                raise self._failed_in(held, error, call) from None
            return results, self._reply_in(held)
        grant, target = self._grant(principal, request.ask)
        plans = _plans(target, grant, statements)
        for index, plan in enumerate(plans):
            if plan.bare or plan.classified.path is Path.SAVEPOINT:
                refused = StatementRefused(
                    f"{plan.classified.verb} cannot be part of a batch",
                    hint="send it alone",
                )
                refused.statement = index
                raise refused
        deadline = _deadline(call, request.timeout, grant, target)
        if not statements:
            return [], Reply(target)
        lease = await self._lease(target, grant, deadline, call)
        try:
            started = self._time()
            mode = request.mode._replace(read_only=request.mode.read_only or grant.read_only)
            connection = lease.connection
            if request.schema is None and len(statements[0].parameters or ()):
                await bind(connection, plans[0], statements[0], _left(deadline, self._time))
            await connection.begin(mode, _left(deadline, self._time))
            suffix = ""
            if request.schema is not None:
                suffix = await self._search_path(connection, request.schema, deadline)
            results = await self._each(
                connection, target, plans, statements, deadline, many, suffix
            )
            await self._commit(connection, call)
            call.running = self._time() - started
        except BaseException as error:
            raise _after_failure(lease, error, call) from None
        return results, Reply(target, after=lease.settle)

    async def _each(
        self,
        connection: Connection,
        target: Target,
        plans: Sequence[Plan],
        statements: Sequence[Statement],
        deadline: float,
        many: bool,
        suffix: str,
    ) -> list[Result]:
        results: list[Result] = []
        left = target.settings.response_bytes
        try:
            if many and len(statements) > 1:
                done = await self._pipelined(connection, plans[0], statements, deadline, suffix)
                if done is not None:
                    return done
            for plan, statement in zip(plans, statements, strict=True):
                bound = await bind(
                    connection,
                    plan,
                    statement,
                    _left(deadline, self._time),
                    suffix=suffix,
                    in_transaction=True,
                )
                before = connection.counter.received
                try:
                    answer = await connection.run(
                        bound.described,
                        bound.arguments,
                        timeout=_left(deadline, self._time),
                        budget=left,
                    )
                except OverBudget:
                    raise _too_large(target) from None
                except Exception as error:
                    _keep_state(error, bound)
                    raise
                left -= connection.counter.received - before
                results.append(_result(connection, bound, answer, None))
        except TimeoutError:
            raise
        except Exception as error:
            told = _told(error, connection)
            if isinstance(told, GatewayError) and told.statement is None:
                told.statement = len(results)
            raise told from error
        return results

    async def _pipelined(
        self,
        connection: Connection,
        plan: Plan,
        statements: Sequence[Statement],
        deadline: float,
        suffix: str,
    ) -> list[Result] | None:
        """Sets of a statement that returns no rows, in one flight; `None` if it returns some."""
        first = await bind(
            connection, plan, statements[0], _left(deadline, self._time), suffix=suffix,
            in_transaction=True,
        )  # fmt: skip
        if first.described.columns is not None:
            return None
        sets = []
        for index, statement in enumerate(statements):
            try:
                bound = await bind(
                    connection, plan, statement, _left(deadline, self._time), suffix=suffix,
                    in_transaction=True,
                )  # fmt: skip
            except GatewayError as error:
                error.statement = index
                raise
            if bound.described is not first.described:
                return None
            sets.append(bound.arguments)
        await connection.script("SAVEPOINT pgsluice_batch", _left(deadline, self._time))
        try:
            await connection.run_many(first.described, sets, timeout=_left(deadline, self._time))
        except Exception as error:
            if sqlstate(error) is None or lost(error):
                raise
            # One by one from the start, to learn which set it is.
            await connection.script(
                "ROLLBACK TO SAVEPOINT pgsluice_batch", _left(deadline, self._time)
            )
            return None
        await connection.script("RELEASE SAVEPOINT pgsluice_batch", _left(deadline, self._time))
        empty = Result((), (), 0, plan.classified.verb, False)
        return [empty] * len(statements)

    # -- transactions ------------------------------------------------------------------

    async def begin(self, principal: Principal, request: Begin, call: Call) -> Reply:
        """Open a transaction that lives across requests."""
        grant, target = self._grant(principal, request.ask)
        settings = target.settings.transactions
        idle = min(request.idle_timeout or settings.idle_timeout, settings.idle_timeout)
        deadline = _deadline(call, None, grant, target)
        await self.transactions.room(target, deadline)
        try:
            lease = await self._lease(target, grant, deadline, call)
        except BaseException:
            self.transactions.give_room(target)
            raise
        try:
            mode = request.mode._replace(read_only=request.mode.read_only or grant.read_only)
            for attempt in (1, 2):
                try:
                    await lease.connection.begin(mode, _left(deadline, self._time))
                    break
                except Exception as error:
                    if attempt == 2 or not lost(error):
                        raise
                    await lease.replace(deadline, "lost")
            if request.schema is not None:
                await self._search_path(lease.connection, request.schema, deadline)
        except BaseException as error:
            self.transactions.give_room(target)
            raise _after_failure(lease, error, call) from None
        held = self.transactions.add(
            principal=principal, target=target, grant=grant, lease=lease, idle_timeout=idle
        )
        return Reply(target, transaction=self._view(held))

    async def end(self, principal: Principal, request: End, call: Call) -> Reply:
        """Commit or roll back an open transaction."""
        held = self.transactions.find(request.transaction, principal, request.ask)
        self._same_grant(principal, held, request)
        deadline = _deadline(call, None, held.grant, held.target)
        await self._enter(held, deadline, call)
        try:
            connection = held.lease.connection
            await connection.quiet(_left(deadline, self._time))
            if request.commit:
                await self._commit(connection, call)
            else:
                await connection.script("ROLLBACK", _left(deadline, self._time))
        except BaseException as error:
            told = "One previous call resulted in a termination of your transaction."
            self.transactions.end(held, "failed", told)
            self.transactions.leave(held)
            if not request.commit and isinstance(error, Exception) and lost(error):
                return Reply(held.target)  # gone is rolled back
            if isinstance(error, DatabaseUnavailable):
                raise _connection_lost() from error
            raise _told(error, held.lease.connection) from error
        self.transactions.end(
            held,
            "committed" if request.commit else "rolled_back",
            "Transaction was committed." if request.commit else "Transaction was rolled back.",
        )
        self.transactions.leave(held)
        return Reply(held.target)

    async def _execute_in(self, principal: Principal, request: Execute, call: Call) -> Reply:
        assert request.transaction is not None
        held = self.transactions.find(request.transaction, principal, request.ask)
        self._same_grant(principal, held, request)
        target = held.target
        plan = _plan(target, held.grant, request.statement)
        deadline = _deadline(call, request.timeout, held.grant, target)
        await self._enter(held, deadline, call)
        connection = held.lease.connection
        started = self._time()
        try:
            await connection.quiet(_left(deadline, self._time))
            suffix = ""
            if request.schema is not None:
                suffix = await self._search_path(connection, request.schema, deadline)
            bound = await bind(
                connection,
                plan,
                request.statement,
                _left(deadline, self._time),
                suffix=suffix,
                in_transaction=True,
            )
            limit = 0
            if bound.described.columns is not None and request.max_rows is not None:
                limit = request.max_rows + 1
            elif bound.described.columns is not None and plan.classified.path is Path.READ:
                limit = _STREAM_BATCH
            portal = connection.portal_name() if limit else ""
            try:
                answer = await connection.run(
                    bound.described,
                    bound.arguments,
                    timeout=_left(deadline, self._time),
                    budget=target.settings.response_bytes,
                    limit=limit,
                    portal=portal,
                )
            except OverBudget:
                raise _too_large(target) from None
            except Exception as error:
                _keep_state(error, bound)
                raise
            if not connection.in_transaction:
                connection.abort()
                raise TransactionGone("the statement ended its own transaction")
            call.running = self._time() - started
            if not answer.complete and request.max_rows is None and limit:
                rows = await self._rows(connection, bound, portal, target, deadline, answer)
                return self._reply_in(held, rows=rows)
            result = _result(connection, bound, answer, request.max_rows)
        except BaseException as error:
            raise self._failed_in(held, error, call) from None
        return self._reply_in(held, result=result)

    def _reply_in(
        self, held: Held, *, result: Result | None = None, rows: Rows | None = None
    ) -> Reply:
        async def after() -> None:
            if rows is not None and held.lease.connection.is_closed():
                self.transactions.end(held, "lost", "The connection was lost.")
            elif rows is not None and not rows.finished:
                self.transactions.end(held, "hangup", "Its caller went away; it was rolled back.")
            self.transactions.leave(held)

        return Reply(
            held.target,
            result=result,
            rows=rows,
            transaction=self._view(held),
            after=after,
            connection=held.lease.connection,
        )

    async def _enter(self, held: Held, deadline: float, call: Call) -> None:
        entered = self._time()
        await self.transactions.enter(held, deadline)
        call.queued = self._time() - entered

    def _failed_in(self, held: Held, error: BaseException, call: Call) -> BaseException:
        """Decide what becomes of the transaction; return what the caller is told."""
        connection = held.lease.connection
        if isinstance(error, asyncio.CancelledError) and not call.cancelled:
            held.target.counters.cancel("hangup")
            self.transactions.end(held, "hangup", "Its caller went away; it was rolled back.")
        elif connection.is_closed() or connection.broken:
            self.transactions.end(
                held, "lost", "One previous call resulted in a termination of your transaction."
            )
            if isinstance(error, DatabaseUnavailable) or not isinstance(
                error, GatewayError | asyncio.CancelledError | TimeoutError
            ):
                error = _connection_lost()
        self.transactions.leave(held)
        return _told(error, connection)

    async def catalog(
        self, reply: Reply, sql: str, arguments: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Ask the catalog, with our own *sql*, on the connection that *reply* still holds."""
        connection = reply.connection
        if connection is None or connection.is_closed():
            raise DatabaseUnavailable("the connection was lost")
        described = await connection.describe(sql, 5.0)
        answer = await connection.run(described, arguments, timeout=5.0, budget=1 << 22)
        names = [column.name for column in described.columns or ()]
        return [dict(zip(names, row, strict=True)) for row in answer.rows]

    def _view(self, held: Held) -> OpenTransaction:
        return self.transactions.view(held, wall=self._wall(), now=self._time())

    # -- parts -------------------------------------------------------------------------

    def _grant(self, principal: Principal, ask: Any) -> tuple[Grant, Target]:
        grant = authorise(principal, ask, self.rules, self.targets.names)
        return grant, self.targets.get(grant.target)

    def _same_grant(self, principal: Principal, held: Held, request: Any) -> None:
        """The policy is asked for every call, and must still give what the id was made for."""
        ask = request.ask
        if ask.target is None:
            ask = ask._replace(target=held.target.name)
        if ask.database is None:
            ask = ask._replace(database=held.grant.database)
        grant = authorise(principal, ask, self.rules, self.targets.names)
        if grant.target != held.grant.target or grant.login != held.grant.login:
            raise TransactionGone("Transaction is not found.")

    async def _lease(self, target: Target, grant: Grant, deadline: float, call: Call) -> Lease:
        entered = self._time()
        lease = await target.lease(grant, deadline)
        call.queued = self._time() - entered
        target.counters.statements += 1
        return lease


def _plan(target: Target, grant: Grant, statement: Statement) -> Plan:
    plan = target.plans.get(statement.sql)
    check_allowed(plan, grant)
    check_parameters(plan, statement.parameters)
    return plan


def _plans(target: Target, grant: Grant, statements: Sequence[Statement]) -> list[Plan]:
    plans = []
    for index, statement in enumerate(statements):
        try:
            plans.append(_plan(target, grant, statement))
        except GatewayError as error:
            error.statement = index
            raise
    return plans


def _deadline(call: Call, timeout: float | None, grant: Grant, target: Target) -> float:
    """The smallest of the caller's, the statement's and the target's, in event-loop time."""
    longest = min(grant.limits.statement, target.settings.statement_timeout)
    if timeout is not None:
        longest = min(longest, timeout)
    return min(call.deadline, call.received + longest)


def _left(deadline: float, clock: Callable[[], float]) -> float:
    left = deadline - clock()
    if left <= 0:
        raise TimeoutError
    return left


def _timed_out(connection: Connection) -> StatementTimeout:
    return StatementTimeout(
        "canceling statement due to statement timeout",
        hint="raise its timeout, or make it faster; nothing of it was kept",
        backend=connection.get_server_pid(),
    )


def _connection_lost() -> TransactionGone:
    return TransactionGone("the connection of the transaction was lost; it was rolled back")


def _too_large(target: Target) -> ResultTooLarge:
    return ResultTooLarge(
        f"the result is larger than {target.settings.response_bytes} bytes",
        hint="return fewer rows or columns, or raise response_bytes",
    )


def _keep_state(error: Exception, bound: Bound) -> None:
    """Give a PostgreSQL error its position in the caller's text, keeping its SQLSTATE."""
    error._bound = bound  # type: ignore[attr-defined]


def _told(error: BaseException, connection: Connection) -> BaseException:
    if isinstance(error, GatewayError | asyncio.CancelledError):
        return error
    if isinstance(error, TimeoutError):
        return _timed_out(connection)
    bound = getattr(error, "_bound", None)
    if bound is not None:
        return located(error, bound.variant)
    return translate(error)


def _after_failure(lease: Lease, error: BaseException, call: Call) -> BaseException:
    """Send the connection to be cleaned; return what the caller is told."""
    told = _told(error, lease.connection)
    counters = lease.target.counters
    if isinstance(told, StatementTimeout):
        counters.cancel("deadline")
    elif isinstance(error, asyncio.CancelledError):
        counters.cancel("request" if call.cancelled else "hangup")
    if isinstance(told, DatabaseUnavailable | OutcomeUnknown):
        lease.connection.broken = True
    lease.settle_soon()
    return told


def _result(connection: Connection, bound: Bound, answer: Answer, max_rows: int | None) -> Result:
    columns = bound.described.columns
    command, count = _tag(answer.tag)
    rows = answer.rows
    truncated = max_rows is not None and len(rows) > max_rows
    if truncated:
        rows = rows[:max_rows]
        command, count = command or "SELECT", len(rows)
    return Result(
        columns or (),
        rows,
        count,
        command,
        columns is not None,
        connection.take_notices(),
        truncated,
    )


def _tag(tag: str) -> tuple[str, int]:
    """`INSERT 0 5` → (`INSERT`, 5); `CREATE TABLE` → (`CREATE TABLE`, 0)."""
    words = tag.split(" ")
    count = 0
    if words and words[-1].isdigit():
        count = int(words.pop())
        if words[0] == "INSERT":
            words = words[:1]
    return " ".join(words), count
