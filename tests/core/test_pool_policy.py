from __future__ import annotations

import doctest
import itertools
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.core import pool_policy
from gateway.core.pool_policy import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Reason,
    Seats,
    backoff,
    expiry,
    lend,
    next_sweep,
    on_return,
    sweep,
)


class One:
    """A connection as far as the policy looks at it."""

    def __init__(self, expires: float, closed: bool = False) -> None:
        self.expires = expires
        self.closed = closed

    def is_closed(self) -> bool:
        return self.closed


ones = st.lists(st.builds(One, st.floats(0, 20), st.booleans()), max_size=8)
chances = st.floats(0, 1, exclude_max=True)


def test_the_examples_are_so() -> None:
    assert doctest.testmod(pool_policy) == (0, 5)


@given(ones, st.floats(0, 20))
def test_the_last_good_one_is_lent_and_those_behind_it_are_closed(
    given: list[One], now: float
) -> None:
    def is_good(one: One) -> bool:
        return not one.closed and one.expires > now

    idle = deque(given)
    lent = lend(idle, now)
    good = [index for index, one in enumerate(given) if is_good(one)]
    last = good[-1] if good else -1
    assert lent.connection is (given[last] if good else None)
    assert [one for one, _ in lent.closed] == given[last + 1 :][::-1]
    assert list(idle) == given[: max(last, 0)]
    for one, reason in lent.closed:
        assert reason is (Reason.LOST if one.closed else Reason.AGE)


@given(ones, st.floats(0, 20))
def test_a_sweep_leaves_the_good_ones_in_their_order(given: list[One], now: float) -> None:
    idle = deque(given)
    closed = sweep(idle, now)
    assert list(idle) == [one for one in given if not one.closed and one.expires > now]
    assert [one for one, _ in closed] == [one for one in given if one not in idle]
    following = next_sweep(idle)
    assert following is None if not idle else following == min(one.expires for one in idle)
    if following is not None:
        assert following > now
        assert sweep(idle, following)


@pytest.mark.parametrize(
    "facts", [*itertools.product([False, True], repeat=5)], ids=lambda facts: str(facts)
)
def test_a_connection_is_kept_only_if_nothing_speaks_against_it(facts: tuple[bool, ...]) -> None:
    clean, broken, retired, surplus, old = facts
    reason = on_return(
        clean=clean,
        broken=broken,
        retired=retired,
        surplus=surplus,
        expires=5.0,
        now=5.0 if old else 4.9,
    )
    against = [
        why
        for why, so in (
            (Reason.BROKEN, broken),
            (Reason.DIRTY, not clean),
            (Reason.CONFIG, retired),
            (Reason.ROOM, surplus),
            (Reason.AGE, old),
        )
        if so
    ]
    assert reason is (against[0] if against else None)


@given(st.floats(0, 1e6), st.floats(1, 1e6), chances)
def test_a_lifetime_loses_a_tenth_at_the_most(
    opened: float, lifetime: float, chance: float
) -> None:
    expires = expiry(opened, lifetime, chance)
    assert opened + 0.9 * lifetime - 1e-6 <= expires <= opened + lifetime


def test_those_opened_together_are_not_closed_together() -> None:
    assert len({expiry(0.0, 3_600.0, chance / 8) for chance in range(8)}) == 8


@given(st.integers(0, 10_000), chances)
def test_a_pause_is_anything_up_to_its_bound(failures: int, chance: float) -> None:
    pause = backoff(failures, chance)
    assert 0.0 <= pause <= LONGEST_PAUSE
    assert pause <= backoff(failures + 1, chance)
    assert backoff(failures, 0.0) == 0.0


def test_pauses_double_from_the_first_up_to_the_longest() -> None:
    whole = [backoff(failures, 1.0) for failures in range(8)]
    assert whole == [0.0, FIRST_PAUSE, 0.1, 0.2, 0.4, 0.8, LONGEST_PAUSE, LONGEST_PAUSE]


class Sessions(RuleBasedStateMachine):
    """`Seats`, against sessions in a list and a line of those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seats = Seats(3)
        self.open = 0
        self.idle = 0
        self.closing = 0
        self.waiting = 0

    def _seated(self, count: int) -> None:
        assert 0 <= count <= self.waiting
        self.waiting -= count
        self.open += count

    def _spare(self) -> None:
        """As a pool does it: close idle ones, as long as it is said to, and there are some."""
        while self.seats.to_spare and self.idle:
            self.idle -= 1
            self.open -= 1
            self.closing += 1
            self.seats.closing += 1

    @rule()
    def one_is_wanted(self) -> None:
        if self.seats.enter():
            self.open += 1
        else:
            self.waiting += 1
            self._spare()

    @precondition(lambda self: self.open > self.idle)
    @rule()
    def one_becomes_idle(self) -> None:
        self.idle += 1
        self._spare()

    @precondition(lambda self: self.idle)
    @rule()
    def one_is_lent(self) -> None:
        self.idle -= 1

    @precondition(lambda self: self.open > self.idle)
    @rule()
    def one_is_closed(self) -> None:
        self.open -= 1
        self.closing += 1
        self.seats.closing += 1

    @precondition(lambda self: self.closing)
    @rule()
    def one_has_ended(self) -> None:
        self.closing -= 1
        self.seats.closing -= 1
        self._seated(self.seats.leave())

    @precondition(lambda self: self.open > self.idle)
    @rule()
    def a_login_fails(self) -> None:
        self.open -= 1
        self._seated(self.seats.leave())

    @precondition(lambda self: self.waiting)
    @rule()
    def one_waits_no_more(self) -> None:
        self.waiting -= 1
        self.seats.give_up()

    @rule(limit=st.integers(1, 6))
    def the_limit_changes(self, limit: int) -> None:
        before = self.open + self.closing
        self._seated(self.seats.set_limit(limit))
        self._spare()
        # A change opens nothing beyond the new limit.
        assert self.open + self.closing <= max(before, limit)

    @invariant()
    def everybody_is_counted(self) -> None:
        assert self.seats.used == self.open + self.closing
        assert self.seats.waiting == self.waiting
        assert self.seats.closing == self.closing

    @invariant()
    def nobody_waits_beside_a_free_seat(self) -> None:
        assert not self.waiting or self.seats.used >= self.seats.limit

    @invariant()
    def nothing_is_idle_while_somebody_waits_in_vain(self) -> None:
        over = max(0, self.seats.used - self.seats.limit)
        assert not self.idle or self.waiting + over <= self.closing


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class Bound(RuleBasedStateMachine):
    """With a limit that stays, there are never more sessions than seats."""

    def __init__(self) -> None:
        super().__init__()
        self.seats = Seats(2)

    @rule()
    def enter(self) -> None:
        self.seats.enter()

    @precondition(lambda self: self.seats.used)
    @rule()
    def leave(self) -> None:
        self.seats.leave()

    @invariant()
    def the_limit_holds(self) -> None:
        assert 0 <= self.seats.used <= 2


TestBound = Bound.TestCase
TestBound.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
