from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.streams import (
    BATCH_BYTES,
    BATCH_ROWS,
    Pace,
    long_places,
    next_rows,
    stream_places,
)


@given(st.integers(2, 1_000), st.floats(0.01, 1.0))
def test_streams_get_a_share_and_leave_a_place(connections: int, share: float) -> None:
    places = stream_places(connections, share)
    assert 1 <= places < connections
    assert places <= max(1, connections * share)
    assert long_places(connections) == connections - 1


def test_with_one_connection_a_stream_may_have_it() -> None:
    assert stream_places(1, 0.5) == long_places(1) == 1


@given(st.integers(1, BATCH_ROWS), st.integers(0, 1 << 30))
def test_a_batch_grows_slowly_and_never_past_its_bytes(rows: int, received: int) -> None:
    size = next_rows(rows, received)
    assert 1 <= size <= min(BATCH_ROWS, 8 * rows)
    assert size == 1 or size * received / rows <= BATCH_BYTES


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 100)), max_size=30))
def test_a_caller_has_never_more_than_the_window_to_stand_still(
    pieces: list[tuple[int, float]],
) -> None:
    pace = Pace(rate=1_000, window=10.0)
    for size, seconds in pieces:
        pace.took(size, seconds)
        assert pace.allowed(0) <= 10.0


def test_a_caller_at_the_rate_goes_on_for_ever() -> None:
    pace = Pace(rate=1_000, window=1.0)
    for _ in range(1_000):
        assert pace.allowed(500) > 0.5
        pace.took(500, 0.5)


def test_without_a_rate_any_pace_will_do() -> None:
    pace = Pace(rate=0, window=1.0)
    pace.took(1, 1e9)
    assert pace.allowed(1) == float("inf")
