from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.core.errors import QueueFull, QueueTimeout
from gateway.core.fair_queue import FairQueue, State, Ticket


def queue(places: int = 1, max_waiting: int = 1_000, **more: object) -> FairQueue:
    return FairQueue(places=places, max_waiting=max_waiting, **more)  # type: ignore[arg-type]


def wait(q: FairQueue, tenant: str, deadline: float = 1e9, priority: str = "normal") -> Ticket:
    return q.enter(tenant, now=0.0, deadline=deadline, priority=priority)


def turns(q: FairQueue, running: list[Ticket], count: int) -> list[Ticket]:
    """The next *count* tickets in the order of their turns, each given back when its turn ends."""
    order: list[Ticket] = []
    while len(order) < count:
        granted = q.release(running.pop(0), now=1.0)
        running += granted
        order += granted
    return order


def test_a_free_place_is_granted_at_once_and_the_next_one_waits() -> None:
    q = queue(places=2)
    assert [wait(q, "a").granted for _ in range(3)] == [True, True, False]
    assert (q.in_use, q.waiting) == (2, 1)


def test_a_ticket_without_waiting_is_refused_while_others_wait() -> None:
    q = queue(places=1)
    first = q.try_enter("a", now=0.0)
    assert first is not None
    assert q.try_enter("b", now=0.0) is None
    waiting = wait(q, "c")
    q.leave(first, now=0.0)
    assert waiting.granted
    assert q.try_enter("b", now=0.0) is None


def test_within_a_tenant_first_come_is_first_served() -> None:
    q = queue()
    running = [wait(q, "a")]
    waiting = [wait(q, "a") for _ in range(20)]
    assert turns(q, running, 20) == waiting


def test_a_busy_tenant_does_not_delay_a_quiet_one() -> None:
    q = queue()
    running = [wait(q, "greedy")]
    for _ in range(500):
        wait(q, "greedy")
    polite = wait(q, "polite")
    assert polite in turns(q, running, 2)


def test_turns_follow_the_weights() -> None:
    q = queue(weights={"heavy": 3.0, "light": 0.5})
    running = [wait(q, "normal")]
    for name in ("heavy", "normal", "light"):
        for _ in range(100):
            wait(q, name)
    names = [ticket.tenant for ticket in turns(q, running, 90)]
    assert {name: names.count(name) for name in names} == {"heavy": 60, "normal": 20, "light": 10}


def test_batch_yields_but_is_never_starved() -> None:
    q = queue()
    running = [wait(q, "a")]
    for _ in range(100):
        wait(q, "a")
        wait(q, "b", priority="batch")
    batch = [ticket.tenant == "b" for ticket in turns(q, running, 80)]
    assert batch.count(True) == 10
    assert all(True in batch[start : start + 8] for start in range(72))


def test_batch_has_every_turn_when_nothing_else_waits() -> None:
    q = queue()
    running = [wait(q, "a")]
    waiting = [wait(q, "a", priority="batch") for _ in range(5)]
    assert turns(q, running, 5) == waiting


def test_a_tenant_holds_no_more_than_its_share_while_another_waits() -> None:
    q = queue(places=8)
    held = [wait(q, "greedy") for _ in range(8)]
    assert q.in_use_of("greedy") == 8, "alone it may have everything"
    for _ in range(50):
        wait(q, "greedy")
    polite = [wait(q, "polite") for _ in range(50)]
    for ticket in held:
        q.release(ticket, now=1.0)
    assert q.in_use_of("greedy") <= 6
    assert q.in_use_of("polite") >= 2
    assert q.in_use == 8
    assert polite[0].granted


def test_places_do_not_lie_idle_because_everybody_has_its_share() -> None:
    q = queue(places=10, share=0.2)
    held = [wait(q, "other") for _ in range(10)]
    for _ in range(20):
        wait(q, "a")
        wait(q, "b")
    for ticket in held:
        q.release(ticket, now=1.0)
    assert q.in_use == 10


def test_a_full_line_is_refused_and_others_are_not() -> None:
    q = queue(max_waiting=2)
    wait(q, "a")
    wait(q, "a")
    wait(q, "a")
    with pytest.raises(QueueFull) as refused:
        wait(q, "a")
    assert refused.value.retry_after == 1.0, "the pace is not known yet"
    assert not wait(q, "b").granted


def test_retry_after_follows_the_pace_of_the_queue() -> None:
    q = queue(max_waiting=100)
    running = [wait(q, "a")]
    for _ in range(20):
        wait(q, "a")
    now = 0.0
    for _ in range(20):  # Two seconds a statement.
        now += 2.0
        running = q.release(running[0], now=now)
    for _ in range(10):
        q.enter("a", now=now, deadline=1e9)
    assert q.estimated_wait("a") == pytest.approx(22.0, rel=0.2)
    q.max_waiting = 10
    with pytest.raises(QueueFull) as refused:
        wait(q, "a")
    assert refused.value.retry_after == pytest.approx(10.0, rel=0.2)


def test_a_hopeless_wait_is_refused_early_and_a_possible_one_is_not() -> None:
    q = queue()
    running = [wait(q, "a")]
    for _ in range(40):
        wait(q, "a")
    now = 0.0
    for _ in range(20):
        now += 1.0
        running = q.release(running[0], now=now)
    assert q.waiting == 20
    with pytest.raises(QueueTimeout):
        q.enter("a", now=now, deadline=now + 5.0)
    assert not q.enter("a", now=now, deadline=now + 20.0).granted
    assert not q.enter("quiet", now=now, deadline=now + 5.0).granted, "its turn comes next round"


def test_a_deadline_in_the_past_does_not_wait() -> None:
    q = queue()
    wait(q, "a")
    with pytest.raises(QueueTimeout):
        q.enter("a", now=5.0, deadline=5.0)


def test_waiters_past_their_deadline_are_dropped_once() -> None:
    q = queue()
    wait(q, "a")
    late, later = wait(q, "a", deadline=3.0), wait(q, "b", deadline=4.0)
    assert q.next_deadline == 3.0
    assert q.expire(2.0) == []
    assert q.expire(3.0) == [late]
    assert q.expire(3.0) == []
    assert (q.next_deadline, q.waiting) == (4.0, 1)
    assert q.expire(9.0) == [later]
    assert q.next_deadline is None


def test_a_turn_is_not_given_to_a_ticket_that_is_too_late() -> None:
    q = queue()
    first = wait(q, "a")
    late, good = wait(q, "a", deadline=3.0), wait(q, "a", deadline=9.0)
    assert q.release(first, now=4.0) == [good]
    assert q.expire(4.0) == [late], "and it is told when the clock says so"


def test_a_waiter_that_leaves_is_passed_over() -> None:
    q = queue()
    first = wait(q, "a")
    second, third = wait(q, "a"), wait(q, "a")
    assert q.leave(second, now=1.0) == []
    assert q.release(first, now=1.0) == [third]
    assert q.leave(second, now=1.0) == []
    assert (q.waiting, q.in_use) == (0, 1)


def test_a_place_given_back_twice_is_one_place() -> None:
    q = queue()
    first = wait(q, "a")
    second, third = wait(q, "a"), wait(q, "a")
    assert q.release(first, now=1.0) == [second]
    assert q.release(first, now=1.0) == []
    assert not third.granted


def test_more_places_wake_waiters_and_fewer_take_nothing_away() -> None:
    q = queue(places=0)
    waiting = [wait(q, "a") for _ in range(4)]
    assert q.set_places(3, 1.0) == waiting[:3]
    assert q.set_places(1, 1.0) == []
    assert q.in_use == 3
    assert q.release(waiting[0], now=1.0) == []
    assert q.release(waiting[1], now=1.0) == []
    assert q.release(waiting[2], now=1.0) == [waiting[3]]


def test_clear_sends_away_who_waits_and_nobody_else() -> None:
    q = queue()
    first = wait(q, "a")
    waiting = [wait(q, "a"), wait(q, "b", priority="batch")]
    assert set(q.clear()) == set(waiting)
    assert (q.waiting, q.in_use, q.next_deadline) == (0, 1, None)
    assert q.release(first, now=1.0) == []


def test_names_that_come_once_are_not_kept_for_ever() -> None:
    q = queue(max_waiting=1)
    first = wait(q, "first")
    for number in range(5_000):
        ticket = wait(q, f"tenant {number}")
        q.leave(ticket, now=0.0)
    q.release(first, now=0.0)
    for number in range(5_000):
        q.release(wait(q, f"other {number}"), now=0.0)
    assert len(q._tenants) < 1_100
    assert len(q._deadlines) < 200


def test_a_tenant_served_while_it_is_forgotten_is_still_counted() -> None:
    q = queue(places=2)
    for number in range(2_000):
        q.release(wait(q, f"tenant {number}"), now=0.0)
    held = [wait(q, "x"), wait(q, "x")]
    new = wait(q, "new")
    q.release(held[0], now=0.0)
    assert new.granted
    assert q.in_use_of("new") == 1


def test_a_line_does_not_grow_by_tickets_that_left() -> None:
    q = queue()
    wait(q, "a")
    stays = wait(q, "a")
    for _ in range(5_000):
        q.leave(wait(q, "a"), now=0.0)
    line = stays._line
    assert line is not None
    assert len(line.tickets) < 50


@pytest.mark.parametrize(
    "wrong",
    [{"places": -1}, {"share": 0.0}, {"share": 1.5}, {"weights": {"a": 0.0}}, {"batch_every": 0}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        FairQueue(**{"places": 1, "max_waiting": 1} | wrong)  # type: ignore[arg-type]


TENANTS = ("a", "b", "c", "d")
MAX_WAITING = 6
BATCH_EVERY = 8


class Model(RuleBasedStateMachine):
    """The queue against a list of who came when."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = FairQueue(
            places=3, max_waiting=MAX_WAITING, weights={"d": 2.0}, batch_every=BATCH_EVERY
        )
        self.lines: dict[tuple[str, str], list[Ticket]] = defaultdict(list)
        self.running: list[Ticket] = []
        self.overtaken: dict[Ticket, int] = {}

    def waiting(self) -> list[Ticket]:
        return [ticket for line in self.lines.values() for ticket in line]

    def woken(self, granted: list[Ticket]) -> None:
        for ticket in granted:
            held = sum(other.tenant == ticket.tenant for other in self.running)
            key = next(key for key, line in self.lines.items() if ticket in line)
            line = self.lines[key]
            # FIFO, but for those that are too late and only not told yet.
            ahead = line[: line.index(ticket)]
            assert all(other.deadline <= self.now for other in ahead)
            line.remove(ticket)
            cap = max(1, math.ceil(0.75 * self.queue.places))
            if held >= cap:
                for other in self.waiting():
                    if other not in granted and other.state is State.WAITING:
                        others = sum(each.tenant == other.tenant for each in self.running)
                        assert other.tenant == ticket.tenant or others >= cap
            self.running.append(ticket)
            self.overtaken.pop(ticket, None)
            for tenant in TENANTS:
                if not (line := self.lines[tenant, "normal"]):
                    continue
                if sum(other.tenant == tenant for other in self.running) >= cap:
                    self.overtaken.pop(line[0], None)
                elif tenant != ticket.tenant:
                    self.overtaken[line[0]] = self.overtaken.get(line[0], 0) + 1
        # The others' quanta in one round, and batch every 8th turn.
        assert all(count <= 6 for count in self.overtaken.values())

    @rule(
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from(["normal", "batch"]),
        patience=st.sampled_from([2.0, 10.0, 1e6]),
    )
    def enter(self, tenant: str, priority: str, patience: float) -> None:
        mine = self.queue.waiting_of(tenant)
        free = self.queue.in_use < self.queue.places and not self.queue.waiting
        try:
            ticket = self.queue.enter(
                tenant, now=self.now, deadline=self.now + patience, priority=priority
            )
        except QueueFull as refused:
            assert mine >= MAX_WAITING
            assert not free
            assert refused.retry_after is not None
            assert refused.retry_after > 0
        except QueueTimeout:
            assert self.queue.waiting >= 4 * self.queue.places
        else:
            assert ticket.granted == free
            if ticket.granted:
                self.running.append(ticket)
            else:
                self.lines[tenant, priority].append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), used=st.booleans())
    def give_back(self, data: st.DataObject, used: bool) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        back = self.queue.release if used else self.queue.leave
        self.woken(back(ticket, now=self.now))

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting()))
        self.lines[ticket.tenant, self.priority(ticket)].remove(ticket)
        self.overtaken.pop(ticket, None)
        assert self.queue.leave(ticket, now=self.now) == []

    def priority(self, ticket: Ticket) -> str:
        return next(key[1] for key, line in self.lines.items() if ticket in line)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        expired = self.queue.expire(self.now)
        assert set(expired) == {t for t in self.waiting() if t.deadline <= self.now}
        for ticket in expired:
            self.lines[ticket.tenant, self.priority(ticket)].remove(ticket)
            self.overtaken.pop(ticket, None)

    @rule(places=st.integers(0, 5))
    def resize(self, places: int) -> None:
        self.woken(self.queue.set_places(places, self.now))

    @rule()
    def everybody_waiting_is_served_in_the_end(self) -> None:
        self.woken(self.queue.set_places(max(1, self.queue.places), self.now))
        due = [ticket for ticket in self.waiting() if ticket.deadline > self.now]
        for _ in range(len(self.running) + len(due)):
            if self.running:
                self.woken(self.queue.release(self.running.pop(0), now=self.now))
        assert all(ticket.state is State.DONE for ticket in due)
        assert self.queue.in_use == 0

    @invariant()
    def no_place_is_lost_or_made(self) -> None:
        assert self.queue.in_use == len(self.running)
        alive = [ticket for ticket in self.waiting() if ticket.state is State.WAITING]
        assert self.queue.waiting == len(alive)
        if self.queue.waiting:
            assert self.queue.in_use >= self.queue.places, "a place is free and somebody waits"
        for tenant in TENANTS:
            assert self.queue.in_use_of(tenant) == sum(t.tenant == tenant for t in self.running)
            assert self.queue.waiting_of(tenant) == sum(t.tenant == tenant for t in alive)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_an_early_refusal_says_that_it_was_early_and_why() -> None:
    queue = FairQueue(places=1, max_waiting=100)
    for turn in range(20):
        queue.release(queue.enter("a", now=turn, deadline=1e9), now=turn + 1.0)
    held = queue.enter("a", now=100.0, deadline=1e9)
    with pytest.raises(QueueTimeout, match="deadline had passed") as passed:
        queue.enter("a", now=100.0, deadline=100.0)
    for _ in range(10):
        queue.enter("a", now=100.0, deadline=1e9)
    expected = r"expected to come free in 11\.0 s, and its deadline is in 2\.0 s"
    with pytest.raises(QueueTimeout, match=expected) as hopeless:
        queue.enter("a", now=100.0, deadline=102.0)
    for refusal in (passed, hopeless):
        assert refusal.value.early
        assert "within" not in refusal.value.message
    assert held.granted
    assert not QueueTimeout(waited=1.0).early


def test_limits_may_change_under_those_who_wait() -> None:
    queue = FairQueue(places=4, max_waiting=1, share=1.0)
    held = [queue.enter("a", now=0.0, deadline=9.0) for _ in range(4)]
    queue.enter("a", now=0.0, deadline=9.0)
    with pytest.raises(QueueFull):
        queue.enter("a", now=0.0, deadline=9.0)
    queue.configure(max_waiting=3, share=0.5)
    mine = [queue.enter("a", now=0.0, deadline=9.0) for _ in range(2)]
    other = queue.enter("b", now=0.0, deadline=9.0)
    # The share counts from now on: with three places held, the tenant is above it.
    assert queue.release(held[0], now=1.0) == [other]
    assert not mine[0].granted
    with pytest.raises(ValueError, match="out of range"):
        queue.configure(max_waiting=-1, share=0.5)
