"""What the policy decided lately.

Deciding is a pure function of the principal, what it asks for, the rules, and the names of
the targets. A caller's token or key gives the same principal object with every request, so
its second request finds the decision of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.model import Ask, Grant, Principal
from ..core.policy import Rule, TargetNames, authorise

KEPT = 10_000


class Decisions:
    """Remembers grants until the rules or the targets change. Refusals are decided anew."""

    def __init__(self) -> None:
        self._rules: Sequence[Rule] | None = None
        self._names: Mapping[str, TargetNames] | None = None
        # The principal is kept beside its grant: else its id could become another's.
        self._grants: dict[tuple[int, Ask], tuple[Principal, Grant]] = {}

    def grant(
        self,
        principal: Principal,
        ask: Ask,
        rules: Sequence[Rule],
        names: Mapping[str, TargetNames],
    ) -> Grant:
        """`authorise`, or what it returned before.

        Raises:
            Forbidden: The policy refuses.
        """
        if rules is not self._rules or names is not self._names:
            self._rules, self._names = rules, names
            self._grants.clear()
        key = (id(principal), ask)
        kept = self._grants.get(key)
        if kept is not None:
            return kept[1]
        grant = authorise(principal, ask, rules, names)
        if len(self._grants) >= KEPT:
            self._grants.clear()
        self._grants[key] = (principal, grant)
        return grant
