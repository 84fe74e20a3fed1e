"""What every way through the engine needs: grants, deadlines, leases, rows, COMMIT."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ..core.classify import Path
from ..core.deadline import left as time_left
from ..core.deadline import smallest
from ..core.errors import (
    DatabaseError,
    DatabaseUnavailable,
    GatewayError,
    InvalidRequest,
    Outcome,
    OutcomeUnknown,
    RateLimited,
    TransactionFailed,
    TransactionGone,
)
from ..core.model import (
    Ask,
    Call,
    Execute,
    Grant,
    Principal,
    Statement,
    TransactionMode,
)
from ..core.observation import Repeated
from ..core.policy import Rule
from ..core.retries import pause
from ..core.sets import ForEach
from ..core.streams import FIRST_ROWS
from ..core.throttle import Buckets
from ..postgres.connection import Answer, Connection, OverBudget
from ..postgres.failures import (
    IN_RECOVERY,
    READ_ONLY,
    STALE,
    is_sign_of_ddl,
    lost,
    sqlstate,
    translate,
    unsent,
)
from .binding import Bound
from .claims import Claiming
from .decisions import Decisions
from .guard_rail import GuardRail
from .ledger import Ledger
from .plans import Plan, check_allowed, check_parameters
from .streams import Rows
from .targets import Lease, Target, Targets
from .told import RolledBack, after_failure, keep_state, told, too_large
from .transactions import Held, Transactions
from .work import Work

_chance = random.Random()

_T = TypeVar("_T")
RATES_KEPT = 10_000
"""Principals whose rate is counted; one that was not seen for long starts with a full bucket."""
COMMIT_TIMEOUT = 30.0
"""Seconds. A COMMIT is never cancelled for its caller's sake."""


class Parts:
    """What an engine is made of, and the steps that its ways share."""

    def __init__(
        self,
        *,
        targets: Targets,
        transactions: Transactions,
        rules: Sequence[Rule],
        ledger: Ledger,
        claims: Claiming,
        wall: Callable[[], float],
    ) -> None:
        self.targets = targets
        self.transactions = transactions
        self.rules = rules
        self._decisions = Decisions()
        self.ledger = ledger
        self.claims = claims
        self._wall = wall
        self._time = asyncio.get_running_loop().time
        self.guard_rail = GuardRail()
        self._rates = Buckets(size=RATES_KEPT)

    async def _rows(
        self,
        connection: Connection,
        bound: Bound,
        portal: str,
        target: Target,
        grant: Grant,
        deadlines: tuple[float, float],
        max_rows: int | None = None,
        first: tuple[Answer, int] | None = None,
    ) -> Rows:
        """The rows of an open portal.

        Args:
            deadlines: For the first rows, and for all of them.
            first: What was fetched already, and the bytes that it took.
        """
        budget = target.settings.response_bytes
        deadline, until = deadlines

        async def fetch(count: int) -> tuple[Answer, int]:
            before = connection.counter.received
            try:
                answer = await connection.fetch_portal(
                    bound.described, portal, count,
                    timeout=left(deadline, self._time), budget=budget,
                )  # fmt: skip
            except OverBudget:
                raise too_large(target) from None
            except Exception as error:
                keep_state(error, bound)
                raise
            return answer, connection.counter.received - before

        async def rest(count: int) -> tuple[Answer, int]:
            try:
                return await fetch(count)
            except Exception as error:
                raise told(error, connection) from error

        answer, received = first or await fetch(FIRST_ROWS)
        deadline = until
        return Rows(
            bound.described.columns or (), answer, rest, received=received,
            max_rows=max_rows, limits=grant.limits,
        )  # fmt: skip

    async def _search_path(self, connection: Connection, schema: str, deadline: float) -> str:
        """Set the search_path of the transaction; return what marks statements under it."""
        await self._set_path(connection, '"' + schema.replace('"', '""') + '"', deadline)
        return "\n--" + schema.encode().hex()

    async def _set_path(self, connection: Connection, path: str, deadline: float) -> None:
        described = await connection.describe(
            "select pg_catalog.set_config('search_path', $1, true)", left(deadline, self._time)
        )
        await connection.run(described, [path], timeout=left(deadline, self._time), budget=65_536)

    async def _claim(
        self,
        lease: Lease,
        grant: Grant,
        deadline: float,
        plan: Plan | None = None,
        *,
        until: float | None = None,
        at_once: bool = False,
    ) -> None:
        """Have the claims of *grant* in place for the next statement, which is *plan*."""
        if grant.claims is not None:
            await self.claims.put_on(
                lease.connection,
                lease.target,
                grant,
                left(deadline, self._time),
                until=deadline if until is None else until,
                plan=plan,
                at_once=at_once,
            )

    async def _take_off(self, lease: Lease, grant: Grant, deadline: float) -> None:
        """Be the login itself again, for the gateway's own statements."""
        if grant.claims is not None and grant.claims.role is not None:
            await lease.connection.script("SET LOCAL ROLE none", left(deadline, self._time))

    async def _commit(self, connection: Connection, call: Call) -> None:
        """COMMIT, alone in its message, so that an error can only be its own.

        Raises:
            TransactionFailed: PostgreSQL rolled back.
            DatabaseUnavailable: The connection was lost before COMMIT was sent.
            OutcomeUnknown: The connection was lost before PostgreSQL answered.
        """
        if connection.is_closed():
            raise RolledBack
        if connection.guarded:
            await self._check_read_only(connection)
        call.committing = True
        try:
            tag = await connection.script("COMMIT", COMMIT_TIMEOUT, last=True)
        except Exception as error:
            connection.broken = True
            if isinstance(error, TimeoutError) or lost(error):
                raise OutcomeUnknown(
                    "the connection was lost while the transaction was being committed",
                    hint="read whether it took effect; with an idempotency key we could tell",
                ) from error
            raise translate(error) from error
        finally:
            call.committing = False
        if tag != "COMMIT":
            raise TransactionFailed(
                "the transaction had failed and was rolled back", sqlstate="25P02"
            )

    async def _check_read_only(self, connection: Connection) -> None:
        """Roll back, and say so, if a read-only transaction has written all the same."""
        try:
            if not await connection.has_written(COMMIT_TIMEOUT):
                return
            await connection.script("ROLLBACK", COMMIT_TIMEOUT)
        except Exception as error:
            if sqlstate(error) == "25P02":
                return  # it has failed, as COMMIT will say
            raise translate(error) from error
        raise DatabaseError("cannot write in a read-only transaction", sqlstate=READ_ONLY)

    async def _conclude(
        self,
        lease: Lease,
        call: Call,
        work: Work | None,
        deadline: float,
    ) -> None:
        """COMMIT, and if its answer is lost and there is a key, find out whether it happened.

        Raises:
            RolledBack: The connection was lost, and nothing took effect.
            OutcomeUnknown: It was lost, and nobody can tell.
        """
        if work is None:
            await self._commit(lease.connection, call)
            return
        try:
            await self._commit(lease.connection, call)
        except OutcomeUnknown:
            call.committing = True
            try:
                if not await work.resolve(lease, deadline):
                    raise RolledBack from None
            finally:
                call.committing = False
        work.committed(lease)

    async def _done_by_twin(
        self, work: Work | None, lease: Lease, error: Exception, deadline: float
    ) -> Any:
        """What a twin was answered whose commit made this attempt fail with *error*.

        With a snapshot older than the twin's commit the look-up at the beginning could
        not see it.
        """
        cause = error.__cause__ if isinstance(error, GatewayError) else error
        if work is None or cause is None or sqlstate(cause) is None or lost(cause):
            return None
        return await work.again(lease, deadline)

    async def _attempts(
        self, lease: Lease, call: Call, deadline: float, once: Callable[[], Awaitable[_T]]
    ) -> _T:
        """*once*, and once more if what went wrong surely left nothing behind."""
        repeated = False
        while True:
            standby = lease.connection.in_recovery
            try:
                return await once()
            except Exception as error:
                cause = _undone(error, call)
                if cause is None:
                    raise
                # It may have been promoted since it refused.
                standby = standby or lease.connection.in_recovery
                if sqlstate(cause) in IN_RECOVERY and standby and lease.pool.connector.was_primary:
                    # It was not let in: to look for the primary is to wait, not to repeat.
                    await self._find_primary(lease, deadline)
                elif repeated or not await self._again(lease, cause, deadline):
                    raise
                else:
                    repeated = True

    async def _again(self, lease: Lease, cause: Exception, deadline: float) -> bool:
        """Whether a second attempt can help after *cause*, which left nothing behind."""
        connection = lease.connection
        if isinstance(cause, RolledBack) or lost(cause):
            # Nothing is committed but by COMMIT, and a COMMIT that was lost is not told so.
            target = lease.target
            if not target.retries.spend():
                return False
            target.observer.happened(Repeated(target.name))
            if not unsent(cause):
                await asyncio.sleep(min(pause(1, _chance.random()), left(deadline, self._time)))
            if connection.is_closed() or connection.broken or lost(cause):
                await lease.replace(deadline, "lost")
            return True
        state = sqlstate(cause)
        if state not in STALE and not is_sign_of_ddl(cause):
            return False
        # DDL under a prepared statement, or somebody's DEALLOCATE: prepare anew.
        if state == "26000":
            await lease.replace(deadline, "dirty")
        else:
            if connection.in_transaction:
                await connection.script("ROLLBACK", left(deadline, self._time))
            connection.forget()
        return True

    def behaves_as_aws(self, principal: Principal, ask: Ask) -> bool:
        """Whether the target that *ask* means has AWS's limits; refusals as for a statement."""
        if not self.targets.some_like_aws:
            return False
        return self._grant(principal, ask)[1].settings.compat == "aws"

    def answer_by(self, principal: Principal, ask: Ask, call: Call) -> tuple[float, Target]:
        """Event-loop time by which a caller is to have its answer, and the target it means."""
        grant, target = self._grant(principal, ask)
        return deadline_of(call, None, grant, target), target

    async def _leave_standby(self, lease: Lease, deadline: float) -> None:
        """Have a connection to a primary for what only a primary can tell."""
        if lease.connection.in_recovery and lease.pool.connector.was_primary:
            await self._find_primary(lease, deadline)

    async def _find_primary(self, lease: Lease, deadline: float) -> None:
        """The server turned out to be a standby now: leave it, and wait for one that writes.

        Raises:
            DatabaseUnavailable: There was none before *deadline*.
        """
        pool, attempt = lease.pool, 0
        while lease.connection.in_recovery:
            while pool.drop_idle():
                pass  # Their server is the same one.
            attempt += 1
            wait = pause(attempt, _chance.random())
            if self._time() + wait >= deadline:
                raise DatabaseUnavailable(
                    "the database takes no writes now", hint="it is a standby; send it again"
                )
            if attempt > 1:
                await asyncio.sleep(wait)
            await lease.replace(deadline, "lost")

    def _work(self, call: Call) -> Work | None:
        """The keyed work of *call*; `None` if it brought no key."""
        return Work(self.ledger, call, call.keyed) if call.keyed is not None else None

    def _grant(
        self, principal: Principal, ask: Any, call: Call | None = None
    ) -> tuple[Grant, Target]:
        if call is not None:
            call.asked = ask.target
        grant = self._decisions.grant(principal, ask, self.rules, self.targets.names)
        if call is not None:
            call.grant = grant
        if grant.limits.rps:
            self._check_rate(principal, grant)
        return grant, self.targets.by_name[grant.target]

    def _same_grant(self, principal: Principal, held: Held, request: Any, call: Call) -> None:
        """The policy is asked for every call, and must still give what the id was made for."""
        ask = request.ask
        call.asked = ask.target
        if ask.target is None:
            ask = ask._replace(target=held.target.name)
        if ask.database is None:
            ask = ask._replace(database=held.grant.database)
        grant = self._decisions.grant(principal, ask, self.rules, self.targets.names)
        if grant.target != held.grant.target or grant.login != held.grant.login:
            raise TransactionGone("Transaction is not found.")
        self._check_rate(principal, grant)
        # What was made narrower since the transaction began is narrower from now on.
        held.grant = call.grant = grant

    def _check_rate(self, principal: Principal, grant: Grant) -> None:
        rps = grant.limits.rps
        if rps:
            wait = self._rates.take(
                (principal.issuer, principal.subject, grant.target),
                rate=rps,
                burst=grant.limits.burst or max(1.0, rps),
                now=self._time(),
            )
            if wait:
                raise RateLimited(
                    "the rate of requests allowed by the policy is exceeded", retry_after=wait
                )

    async def _hold(self, grant: Grant, plans: Sequence[Plan], schema: str | None) -> None:
        """Hold *plans* against the tables and verbs of *grant*, if it limits any."""
        if grant.tables or grant.verbs:
            texts = [None if plan.classified.path is Path.SAVEPOINT else plan.sql for plan in plans]
            await self.guard_rail.check(grant, texts, schema)

    async def _lease(
        self, target: Target, grant: Grant, deadline: float, call: Call, *,
        long: bool = False, stream: bool = False,
    ) -> Lease:  # fmt: skip
        """A connection; *long* if it is for more than one statement, *stream* for a long one."""
        entered = self._time()
        place = None
        if long:
            place = await target.share.transaction(grant.tenant, deadline)
        elif stream:
            place = await target.share.stream(grant.tenant, deadline)
        try:
            lease = await target.lease(grant, deadline)
        except BaseException:
            if place is not None:
                place.give_back()
            raise
        lease.place = place
        target.retries.statements += 1
        call.started = started = self._time()
        granted = lease.granted
        call.connecting += started - granted
        call.queued += granted - entered
        call.target = target.name
        call.backend = lease.connection.pid
        if call.comment and target.settings.trace_comment:
            lease.comment = lease.connection.comment = call.comment
        if grant.claims is not None:
            try:
                await self.claims.check(lease, grant, left(deadline, self._time))
            except BaseException as error:
                raise after_failure(lease, error, call) from None
        return lease


def _undone(error: Exception, call: Call) -> Exception | None:
    """What *error* is about, if it surely left nothing behind; else `None`."""
    cause: BaseException | None = error
    if isinstance(error, GatewayError) and not isinstance(error, RolledBack):
        cause = error.__cause__ if error.outcome is Outcome.NOT_EXECUTED else None
    if not isinstance(cause, Exception):
        return None
    if call.in_doubt and not unsent(cause):
        return None  # It ran outside any transaction: a part of it may be there.
    return cause


def check_key(call: Call, mode: TransactionMode) -> None:
    """Refuse a write whose idempotency key anybody on the way could have changed."""
    if call.must_read and not mode.read_only:
        raise InvalidRequest(
            "a signed request that writes needs an idempotency key that is signed too",
            field="idempotency-key",
            hint="send the header Idempotency-Key and sign it",
        )


def plan_of(target: Target, grant: Grant, statement: Statement) -> Plan:
    """What is known of the statement, once *grant* allows it."""
    plan = target.plans.get(statement.sql)
    if grant.statements != "any":
        check_allowed(plan, grant)
    if type(statement.parameters) is not list:
        check_parameters(plan, statement.parameters, statement.strict)
    return plan


def same_plan(target: Target, grant: Grant, statements: Sequence[Statement]) -> list[Plan]:
    """As `plans_of`, for one text with many sets of values."""
    plan: Plan | None = None
    known: set[Any] = set()
    count = len(statements)
    if isinstance(statements, ForEach) and statements.alike is not None:
        statements = statements[:1]  # the others are alike
    for index, statement in enumerate(statements):
        values = statement.parameters
        names = tuple(values) if isinstance(values, dict) else type(values)
        if names in known:
            continue
        try:
            if plan is None:
                plan = plan_of(target, grant, statement)
            else:
                check_parameters(plan, values, statement.strict)
        except GatewayError as error:
            error.statement = index
            raise
        known.add(names)
    return [] if plan is None else [plan] * count


def plans_of(target: Target, grant: Grant, statements: Sequence[Statement]) -> list[Plan]:
    """As `plan_of`; a refusal says which of the statements it is about."""
    plans = []
    for index, statement in enumerate(statements):
        try:
            plans.append(plan_of(target, grant, statement))
        except GatewayError as error:
            error.statement = index
            raise
    return plans


def deadline_of(call: Call, timeout: float | None, grant: Grant, target: Target) -> float:
    """The smallest of the caller's, the statement's and the target's, in event-loop time."""
    if call.continues and grant.limits.statement >= target.settings.statement_timeout:
        # Its caller has an answer earlier. What the policy limits stays limited.
        return call.received + target.settings.continued_timeout
    return smallest(
        call.received, call.deadline, timeout, grant.limits.statement,
        target.settings.statement_timeout,
    )  # fmt: skip


def within_rows(request: Execute, grant: Grant) -> Execute:
    """*request* with no more rows than *grant* allows."""
    most = grant.limits.rows
    return request._replace(
        max_rows=most if request.max_rows is None else min(most, request.max_rows)
    )


def stream_end(
    call: Call, timeout: float | None, grant: Grant, target: Target, now: float
) -> float:
    """When a stream that begins now must be over; what its caller asked for holds for all of it."""
    end = min(call.deadline, now + min(grant.limits.stream, target.settings.stream_timeout))
    return end if timeout is None else min(end, call.received + timeout)


def left(deadline: float, clock: Callable[[], float]) -> float:
    """Seconds until *deadline*; TimeoutError if there are none."""
    return time_left(deadline, clock())
