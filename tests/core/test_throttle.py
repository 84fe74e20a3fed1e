"""A token bucket gives what it promises, whatever the clock does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.throttle import Bucket, Buckets, take


def test_a_burst_is_had_at_once_and_the_rest_at_the_rate() -> None:
    buckets = Buckets(size=10)
    waits = [buckets.take("a", rate=2, burst=3, now=0.0) for _ in range(5)]
    assert waits == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert buckets.take("a", rate=2, burst=3, now=0.5) == 0.0
    assert buckets.take("a", rate=2, burst=3, now=0.5) == 0.5


def test_who_waited_as_told_gets_through() -> None:
    buckets = Buckets(size=10)
    now = 100.0
    for _ in range(50):
        wait = buckets.take("a", rate=3, burst=1, now=now)
        now += wait + 1e-9
    assert buckets.take("a", rate=3, burst=1, now=now + 1 / 3) == 0.0


def test_one_key_does_not_pay_for_another() -> None:
    buckets = Buckets(size=10)
    assert [buckets.take(key, rate=1, burst=1, now=0.0) for key in "aab"] == [0.0, 1.0, 0.0]


def test_asking_whether_it_is_empty_takes_nothing() -> None:
    buckets = Buckets(size=10)
    assert not buckets.is_empty("a", rate=1, burst=1, now=0.0)
    buckets.take("a", rate=1, burst=1, now=0.0)
    assert buckets.is_empty("a", rate=1, burst=1, now=0.5)
    assert not buckets.is_empty("a", rate=1, burst=1, now=1.0)


def test_no_more_keys_are_remembered_than_there_is_room_for() -> None:
    buckets = Buckets(size=2)
    for key in "abc":
        buckets.take(key, rate=1, burst=1, now=0.0)
    assert len(buckets) == 2
    assert buckets.take("a", rate=1, burst=1, now=0.0) == 0.0
    assert buckets.take("c", rate=1, burst=1, now=0.0) == 1.0


@given(
    rate=st.floats(0.1, 1000),
    burst=st.floats(1, 100),
    steps=st.lists(st.floats(-1, 10), min_size=1, max_size=60),
)
def test_never_more_than_burst_and_rate_allow(
    rate: float, burst: float, steps: list[float]
) -> None:
    bucket: Bucket | None = None
    now = forward = 0.0
    given_out = 0
    for step in steps:
        now += step
        forward += max(0.0, step)
        bucket, wait = take(bucket, rate=rate, burst=burst, now=now)
        given_out += wait == 0.0
        assert wait >= 0.0
    assert given_out <= burst + rate * forward + 1e-6
