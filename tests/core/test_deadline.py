from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import deadline
from gateway.core.deadline import NEVER, left, smallest

moments = st.floats(min_value=0, max_value=1e9)
lengths = st.none() | st.floats(min_value=0, max_value=1e6)


def test_the_examples_are_so() -> None:
    assert doctest.testmod(deadline) == (0, 3)


@given(moments, st.just(NEVER) | moments, st.lists(lengths, max_size=3))
def test_no_limit_is_passed_and_one_of_them_is_reached(
    received: float, caller: float, limits: list[float | None]
) -> None:
    ends = [caller, *(received + limit for limit in limits if limit is not None)]
    found = smallest(received, caller, *limits)
    assert all(found <= end for end in ends)
    assert found in ends


@given(moments, st.permutations([1.0, 2.0, None]))
def test_the_order_of_the_limits_does_not_matter(
    received: float, limits: list[float | None]
) -> None:
    assert smallest(received, NEVER, *limits) == received + 1.0


def test_who_names_no_limit_has_none() -> None:
    assert smallest(5.0, NEVER) == smallest(5.0, NEVER, None) == math.inf


@given(moments, moments)
def test_time_is_left_up_to_the_deadline_and_not_at_it(end: float, now: float) -> None:
    if now < end:
        assert left(end, now) == end - now > 0
    else:
        with pytest.raises(TimeoutError):
            left(end, now)
