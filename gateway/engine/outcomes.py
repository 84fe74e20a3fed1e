"""What became of a keyed write, asked afterwards."""

from __future__ import annotations

from typing import NamedTuple

from ..core.errors import KeyInProgress, Outcome, OutcomeUnknown
from ..core.idempotency import Keyed
from ..core.model import Ask, Call, Principal, TransactionMode
from .ledger import DATABASE
from .parts import Parts, deadline_of, left
from .told import after_failure


class Became(NamedTuple):
    """What can be said of a key."""

    outcome: Outcome
    committed_at: float | None = None
    """Seconds since the epoch."""


class Outcomes(Parts):
    """Answers questions about keys."""

    async def outcome(self, principal: Principal, text: bytes, ask: Ask, call: Call) -> Became:
        """What became of the write that *principal* sent with the key *text*.

        A write that still runs is waited for. With the ledger in the database the answer
        is certain, for there it stands beside the work; without, this process tells what
        it remembers.
        """
        grant, target = self._grant(principal, ask, call)
        deadline = deadline_of(call, None, grant, target)
        key = self.ledger.key(Keyed(principal.subject, text, b""))
        try:
            mine = await self.ledger.turn(key.whose, deadline)
        except KeyInProgress:
            return Became(Outcome.UNKNOWN)
        try:
            lease = await self._lease(target, grant, deadline, call)
            try:
                await self._leave_standby(lease, deadline)
                connection = lease.connection
                kind = await self.ledger.look(lease, left(deadline, self._time))
                call.idempotency = kind
                if kind == DATABASE:
                    try:
                        await connection.begin(
                            TransactionMode(), left(deadline, self._time), then=key.enter
                        )
                    except TimeoutError:
                        return Became(Outcome.UNKNOWN)
                    entry = await self.ledger.find(connection, key, left(deadline, self._time))
                    absent = Outcome.NOT_EXECUTED
                else:
                    # Of a doubt that was solved just now the answer is known, of nothing else.
                    doubted = key.whose in self.ledger.doubtful
                    entry = await self.ledger.remembered(connection, key, deadline)
                    absent = Outcome.NOT_EXECUTED if doubted else Outcome.UNKNOWN
            except OutcomeUnknown:
                return Became(Outcome.UNKNOWN)
            except BaseException as error:
                raise after_failure(lease, error, call) from None
            finally:
                lease.settle_soon()
        finally:
            self.ledger.end_turn(key.whose, mine)
        if entry is None:
            # It may have been one that leaves nothing behind, if this process knows it.
            known = self.ledger.memory.get(key.whose, self._time())
            return Became(Outcome.COMMITTED, known.at) if known is not None else Became(absent)
        return Became(Outcome.COMMITTED, entry.at)
