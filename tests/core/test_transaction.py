from __future__ import annotations

import base64
import doctest
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.core import transaction
from gateway.core.transaction import (
    Event,
    Limits,
    NotAMove,
    State,
    TransactionId,
    TransactionIds,
    is_end,
    move,
    told,
)

MASTER = b"test master key, 32 bytes or more"
ENDS_OF_A_CALL = {Event.COMMITTED, Event.ROLLED_BACK, Event.BROKEN, Event.HANGUP, Event.LOST}
ENDS_AT_ANY_TIME = {Event.OUTLIVED, Event.DRAINED, Event.REMOVED}


def test_the_examples_are_so() -> None:
    assert doctest.testmod(transaction) == (0, 4)


@pytest.mark.parametrize(
    ("state", "event"), [*itertools.product(State, Event)], ids=lambda each: each.name.lower()
)
def test_every_pair_of_state_and_event_moves_as_it_should(state: State, event: Event) -> None:
    """The promises about a transaction's life, said once more and in other words."""
    expected: State | None
    if state is State.ENDED:
        expected = None  # nothing happens to what is over
    elif event is Event.STARTED:
        expected = None if state is State.RUNNING else State.RUNNING  # one call at a time
    elif event in (Event.FINISHED, Event.REFUSED):
        after = State.IDLE if event is Event.FINISHED else State.FAILED
        expected = after if state is State.RUNNING else None
    elif event in ENDS_OF_A_CALL:
        expected = State.ENDED if state is State.RUNNING else None
    elif event is Event.EXPIRED:
        expected = None if state is State.RUNNING else State.ENDED  # the clock of pauses stands
    else:
        assert event in ENDS_AT_ANY_TIME
        expected = State.ENDED
    if expected is not None:
        assert move(state, event) is expected
    else:
        with pytest.raises(NotAMove, match=event.value):
            move(state, event)


def test_an_end_is_told_and_nothing_else_is() -> None:
    for event in Event:
        if is_end(event):
            assert told(event).endswith(".")
        else:
            with pytest.raises(KeyError):
                told(event)
    assert {event for event in Event if not is_end(event)} == {
        Event.STARTED,
        Event.FINISHED,
        Event.REFUSED,
    }


@pytest.mark.parametrize("event", [Event.EXPIRED, Event.OUTLIVED])
def test_who_comes_too_late_is_told_of_an_expiry_and_of_the_rollback(event: Event) -> None:
    assert told(event).startswith("Transaction may be expired.")
    assert "rolled back" in told(event)


class Life(RuleBasedStateMachine):
    """A holder with a timer, against a model that only looks at the clock when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state = State.IDLE
        self.limits = Limits(idle=5.0, ends=30.0)
        self.timer: float | None = self.limits.expires(0.0)
        self.called = 0.0
        self.ended: Event | None = None
        self.grace: tuple[float, float] | None = None
        self.told = 0.0

    def _end(self, event: Event) -> None:
        self.state = move(self.state, event)
        self.ended, self.timer = event, None

    @rule(seconds=st.floats(min_value=0.1, max_value=12.0))
    def time_passes(self, seconds: float) -> None:
        later = self.now + seconds
        if self.timer is not None and self.timer <= later:
            self.now = self.timer
            self._end(self.limits.over(self.now))
        self.now = later

    @precondition(lambda self: self.state in (State.IDLE, State.FAILED))
    @rule()
    def a_call_comes(self) -> None:
        self.state = move(self.state, Event.STARTED)
        self.timer = None

    @precondition(lambda self: self.state is State.RUNNING)
    @rule(refused=st.booleans())
    def the_call_is_over(self, refused: bool) -> None:
        self.called = self.now
        if self.limits.ends <= self.now:
            self._end(self.limits.over(self.now))
            return
        self.state = move(self.state, Event.REFUSED if refused else Event.FINISHED)
        self.timer = self.limits.expires(self.now)

    @precondition(lambda self: self.state is State.RUNNING)
    @rule(event=st.sampled_from(sorted(ENDS_OF_A_CALL, key=lambda event: event.value)))
    def the_call_ends_it(self, event: Event) -> None:
        self._end(event)

    @precondition(lambda self: self.state is not State.ENDED and self.grace is None)
    @rule(idle=st.floats(0.0, 10.0), grace=st.floats(0.0, 40.0))
    def the_node_is_told_to_stop(self, idle: float, grace: float) -> None:
        before = self.limits
        self.told = self.now
        self.grace = (idle, self.now + grace)
        self.limits = before.closed(idle=idle, ends=self.now + grace)
        assert self.limits.expires(self.now) <= before.expires(self.now)
        if self.timer is not None:
            self.timer = min(self.timer, self.limits.expires(self.now))

    @invariant()
    def nobody_waits_longer_than_the_limits_allow(self) -> None:
        if self.state in (State.IDLE, State.FAILED):
            assert self.now < self.called + 5.0
            assert self.now < 30.0
            if self.grace is not None:
                idle, ends = self.grace
                # Told to be quick at `told`, it may pause from then on, and not past the end.
                assert self.now <= max(self.called, self.told) + idle
                assert self.now <= max(self.told, ends)

    @invariant()
    def the_reason_is_the_true_one(self) -> None:
        if self.ended in (Event.EXPIRED, Event.OUTLIVED):
            assert self.grace is None
        if self.ended is Event.OUTLIVED:
            assert self.now >= 30.0
        if self.ended is Event.DRAINED:
            assert self.grace is not None
        assert (self.state is State.ENDED) == (self.ended is not None)

    @invariant()
    def a_timer_runs_exactly_between_two_calls(self) -> None:
        assert (self.timer is not None) == (self.state in (State.IDLE, State.FAILED))


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)


def ids(master: bytes = MASTER, node: int = 0, worker: int = 0) -> TransactionIds:
    return TransactionIds(master, boot=b"reboot", node=node, worker=worker)


@given(st.integers(0, 65_535), st.integers(0, 255), st.binary(min_size=12, max_size=12))
def test_an_id_says_which_node_and_worker_hold_it(node: int, worker: int, random: bytes) -> None:
    mine = ids(node=node, worker=worker)
    id = mine.new(random)
    assert len(id) == 44
    # Any node reads it, for they share the master key; and nobody takes it for his own.
    assert ids().read(id) == mine.own == TransactionId(b"reboot", node, worker)


@given(st.integers(0, 43), st.sampled_from("ABCabc012-_"))
def test_a_changed_id_is_nobodys(place: int, letter: str) -> None:
    mine = ids()
    id = mine.new(bytes(range(12)))
    changed = id[:place] + letter + id[place + 1 :]
    if changed != id:
        assert mine.read(changed) is None


@given(st.text(max_size=200) | st.binary(max_size=66).map(lambda raw: base64.b64encode(raw)))
def test_what_was_never_an_id_is_nobodys(id: str | bytes) -> None:
    text = id if isinstance(id, str) else id.decode("ascii")
    assert ids().read(text) is None


def test_an_id_of_another_master_key_is_nobodys() -> None:
    assert ids().read(ids(b"another master key, 32 bytes too").new(bytes(12))) is None


def test_ids_differ_by_their_random_part_alone() -> None:
    mine = ids()
    assert mine.new(bytes(12)) == mine.new(bytes(12)) != mine.new(bytes([*range(12)]))


@pytest.mark.parametrize("size", [0, 11, 13])
def test_too_few_random_bytes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="12 random bytes"):
        ids().new(bytes(size))


def test_a_short_boot_is_refused() -> None:
    with pytest.raises(ValueError, match="6 random bytes"):
        TransactionIds(MASTER, boot=b"x")
