"""How often the gateway itself may try again what surely was not executed.

One repetition helps when one connection was lost. When a database is in trouble,
repetitions are what keeps it there: so they are paid from a budget that statements
fill, a tenth of a repetition each.

    >>> budget = RetryBudget(cap=2.0)
    >>> [budget.spend() for _ in range(3)]
    [True, True, False]
    >>> budget.statements += 10
    >>> budget.spend(), budget.spend()
    (True, False)
"""

from __future__ import annotations


class RetryBudget:
    """A bucket of repetitions for one target."""

    __slots__ = ("_cap", "_ratio", "_seen", "_tokens", "statements")

    def __init__(self, *, cap: float = 10.0, ratio: float = 0.1) -> None:
        self.statements = 0
        """Counted up by whoever runs them; what they earn is reckoned when it is asked for."""
        self._cap = cap
        self._ratio = ratio
        self._tokens = cap
        self._seen = 0

    def spend(self) -> bool:
        """Whether one repetition may be made; then it is paid for."""
        earned = (self.statements - self._seen) * self._ratio
        self._tokens = min(self._cap, self._tokens + earned)
        self._seen = self.statements
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def pause(attempt: int, chance: float, *, base: float = 0.05, longest: float = 1.0) -> float:
    """Seconds before repetition *attempt*, full jitter; *chance* is random, 0 to 1.

    >>> pause(1, 0.5), pause(3, 1.0), pause(9, 1.0)
    (0.025, 0.2, 1.0)
    """
    return float(min(longest, base * 2 ** (attempt - 1)) * chance)
