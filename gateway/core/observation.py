"""What can happen, said once by whoever sees it; listeners in `observe/` count and log it.

What happens with every request is a method of `Observer`, because a call costs a tenth
of a microsecond and an object half of one. Everything rarer is an object, an
`Observation`, and comes through `happened`. Nothing here holds SQL, a value, a user
or a tenant, so that no listener can put one into a label.

Lengths are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """A connection to PostgreSQL is ready to be lent."""

    target: str
    took: float


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """An attempt to connect came to nothing."""

    target: str
    code: str
    """Of the error."""
    took: float


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A connection was closed by the gateway, or found closed."""

    target: str
    reason: str
    """Of `core/pool_policy.py`."""


@dataclass(frozen=True, slots=True)
class TransactionOpened:
    """A transaction that stays open across requests began."""

    target: str


@dataclass(frozen=True, slots=True)
class TransactionEnded:
    """One is over."""

    target: str
    reason: str
    """Of `core/transaction.py`."""
    lived: float


@dataclass(frozen=True, slots=True)
class StatementCancelled:
    """A statement was stopped before its end."""

    target: str
    reason: str
    """`deadline`, `hangup`, `request` (somebody asked for it) or `drain`."""


@dataclass(frozen=True, slots=True)
class IdempotencyFound:
    """It is known where a target's idempotency keys are remembered."""

    target: str
    where: str
    """`database` or `memory`."""


@dataclass(frozen=True, slots=True)
class PasswordCanChange:
    """Callers may run any statement with a login that has a password: also the one that changes
    it, and locks the gateway out."""

    target: str
    login: str
    """Its name in the settings."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """Something that surely was not executed was tried again."""

    target: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A COMMIT whose answer was lost was looked into."""

    target: str
    outcome: str
    """Of `core/errors.py`."""


@dataclass(frozen=True, slots=True)
class DrainBegan:
    """The node takes no new work."""

    running: int
    """Requests being served."""
    transactions: int
    """Open ones."""


@dataclass(frozen=True, slots=True)
class ConfigurationLoaded:
    """The configuration was read again and counts from now on."""

    changed: Sequence[str]
    """What changed, such as `policy` or `targets.main.pool`."""
    ignored: Sequence[str]
    """What changed and takes a restart."""


@dataclass(frozen=True, slots=True)
class ConfigurationRefused:
    """The configuration was read again and is no good; the one before stays."""

    problems: Sequence[str]
    """Every one of them, without secret values."""


@dataclass(frozen=True, slots=True)
class AuditFailed:
    """A line of the audit log could not be written."""

    reason: str
    """What the operating system says."""
    again: bool
    """Whether the one before could not either."""


Observation = (
    ConnectionOpened
    | ConnectFailed
    | ConnectionClosed
    | TransactionOpened
    | TransactionEnded
    | StatementCancelled
    | IdempotencyFound
    | PasswordCanChange
    | Repeated
    | Resolved
    | DrainBegan
    | ConfigurationLoaded
    | ConfigurationRefused
    | AuditFailed
)


class Observer:
    """Hears of everything and does nothing; a listener overrides what it cares for."""

    def happened(self, observation: Observation) -> None:
        """Something that does not happen with every request."""

    def turn_taken(self, target: str, waited: float) -> None:
        """A statement left the queue of *target* with a turn."""

    def turn_refused(self, target: str, waited: float, reason: str) -> None:
        """A statement left the queue without: `full`, `timeout`, `draining` or `hangup`."""

    def connection_reset(self, target: str) -> None:
        """A session was cleaned and is idle again."""

    def statement_finished(self, target: str, took: float) -> None:
        """PostgreSQL was done with what one request asked of it, well or badly.

        Of a streamed result *took* ends with the first rows.
        """

    def request_finished(
        self, operation: str, status: int, code: str | None, took: float, sent: int
    ) -> None:
        """A request is over.

        Args:
            operation: The dialect's own name of it, empty where there is none.
            status: 0 if the caller left before its answer.
            code: Of the error, `None` for a result.
            took: From the request's last byte to the answer's last byte.
            sent: Bytes of the answer's body.
        """


_OFTEN = ("turn_taken", "connection_reset", "statement_finished", "request_finished")


class Observers(Observer):
    """Tells each of several listeners what it listens to, and nothing else."""

    def __init__(self, listeners: Sequence[Observer]) -> None:
        self._happened = _who(listeners, "happened")
        self._turn_taken = _who(listeners, "turn_taken")
        self._turn_refused = _who(listeners, "turn_refused")
        self._connection_reset = _who(listeners, "connection_reset")
        self._statement_finished = _who(listeners, "statement_finished")
        self._request_finished = _who(listeners, "request_finished")
        for method in _OFTEN:
            # With one who listens there is nobody in between: a call less for each.
            told = _who(listeners, method)
            if len(told) == 1:
                setattr(self, method, told[0])

    def happened(self, observation: Observation) -> None:
        """See `Observer`."""
        for tell in self._happened:
            tell(observation)

    def turn_taken(self, target: str, waited: float) -> None:
        """See `Observer`."""
        for tell in self._turn_taken:
            tell(target, waited)

    def turn_refused(self, target: str, waited: float, reason: str) -> None:
        """See `Observer`."""
        for tell in self._turn_refused:
            tell(target, waited, reason)

    def connection_reset(self, target: str) -> None:
        """See `Observer`."""
        for tell in self._connection_reset:
            tell(target)

    def statement_finished(self, target: str, took: float) -> None:
        """See `Observer`."""
        for tell in self._statement_finished:
            tell(target, took)

    def request_finished(
        self, operation: str, status: int, code: str | None, took: float, sent: int
    ) -> None:
        """See `Observer`."""
        for tell in self._request_finished:
            tell(operation, status, code, took, sent)


def _who(listeners: Sequence[Observer], method: str) -> tuple[Callable[..., None], ...]:
    return tuple(
        getattr(each, method)
        for each in listeners
        if getattr(type(each), method) is not getattr(Observer, method)
    )
