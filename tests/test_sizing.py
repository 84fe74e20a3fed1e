"""The model of the sizing page: against textbooks, a simulation, and what was measured."""

from __future__ import annotations

import heapq
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bench_sizing
from benchmarks.sizing import Work, closed, erlang_c, little, needed, wait
from docs import make_sizing


@pytest.mark.parametrize(
    ("offered", "servers", "waits"),
    [(0.5, 1, 0.5), (1.0, 2, 1 / 3), (2.0, 3, 4 / 9), (3.0, 5, 0.2362), (4.0, 4, 1.0)],
)
def test_the_chance_to_wait_is_that_of_the_textbooks(
    offered: float, servers: int, waits: float
) -> None:
    assert erlang_c(offered, servers) == pytest.approx(waits, abs=1e-4)


def test_one_server_makes_callers_wait_as_the_simplest_queue_does() -> None:
    # M/M/1: busy / (1 - busy) times the service.
    assert wait(80.0, 0.01, 1) == pytest.approx(0.8 / 0.2 * 0.01)
    assert wait(100.0, 0.01, 1) == float("inf")


WORKS = st.builds(Work, cpu=st.floats(1e-5, 0.01), service=st.floats(1e-4, 0.1))


@settings(deadline=None, max_examples=50)
@given(
    callers=st.integers(1, 300),
    work=WORKS,
    connections=st.integers(1, 40),
    think=st.floats(0.0, 1.0),
)
def test_nothing_is_answered_faster_than_process_and_connections_can(
    callers: int, work: Work, connections: int, think: float
) -> None:
    found = closed(callers, work, connections=connections, think=think)
    most = min(1 / work.cpu, connections / work.service)
    assert found.per_second <= most * (1 + 1e-6)
    assert found.seconds >= (work.cpu + work.service) * (1 - 1e-6)
    # Who is not inside is thinking.
    inside = little(found.per_second, found.seconds)
    assert inside + little(found.per_second, think) == pytest.approx(callers)


def simulated(callers: int, work: Work, *, connections: int, think: float) -> float:
    """Answers a second, of 60,000 statements whose times are drawn at random."""
    chance = random.Random(7)

    def drawn(mean: float) -> float:
        return chance.expovariate(1 / mean) if mean else 0.0

    events = [(drawn(think), "ask", number) for number in range(callers)]
    heapq.heapify(events)
    free = {"cpu": 1, "connection": connections}
    lines: dict[str, list[int]] = {"cpu": [], "connection": []}
    means = {"cpu": work.cpu, "connection": work.service}
    now, answers = 0.0, 0

    def enter(place: str, number: int) -> None:
        if free[place]:
            free[place] -= 1
            heapq.heappush(events, (now + drawn(means[place]), place, number))
        else:
            lines[place].append(number)

    while answers < 60_000:
        now, what, number = heapq.heappop(events)
        if what == "ask":
            enter("cpu", number)
            continue
        free[what] += 1
        if lines[what]:
            enter(what, lines[what].pop(0))
        if what == "cpu":
            enter("connection", number)
        else:
            answers += 1
            heapq.heappush(events, (now + drawn(think), "ask", number))
    return answers / now


@pytest.mark.parametrize(
    ("callers", "connections", "think"), [(1, 8, 0.0), (6, 4, 0.0), (30, 8, 0.05), (100, 8, 0.05)]
)
def test_the_model_says_what_a_simulation_shows(
    callers: int, connections: int, think: float
) -> None:
    work = Work(cpu=0.001, service=0.01)
    model = closed(callers, work, connections=connections, think=think).per_second
    shown = simulated(callers, work, connections=connections, think=think)
    assert model == pytest.approx(shown, rel=0.03)


def test_the_model_says_what_was_measured() -> None:
    result = make_sizing._read("sizing.json")
    rows = [row for row in result["figures"] if not row["fitted"]]
    assert len(rows) == len(bench_sizing.CELLS) - len(bench_sizing.FITTED)
    off = [abs(row["predicted_per_second"] / row["per_second"] - 1) for row in rows]
    assert statistics.median(off) < 0.25


def test_the_predictions_are_those_of_the_model_for_the_measured_work() -> None:
    result = make_sizing._read("sizing.json")
    rates = {
        (row["statement"], row["callers"], row["think_ms"] / 1e3): row["per_second"]
        for row in result["figures"]
    }
    works = bench_sizing.fitted(rates)
    for row in result["figures"]:
        cell = row["statement"], row["callers"], row["think_ms"] / 1e3
        model = bench_sizing.predicted(works, cell)
        assert row["predicted_per_second"] == pytest.approx(model.per_second, rel=1e-3)


@settings(deadline=None, max_examples=50)
@given(callers=st.integers(1, 20_000), work=WORKS, think=st.floats(0.01, 10.0))
def test_what_a_house_needs_is_enough_and_not_twice_of_it(
    callers: int, work: Work, think: float
) -> None:
    house = needed(callers, work, think=think)
    assert little(house.per_second, work.cpu) <= 0.6 * house.nodes + 1e-9
    assert little(house.per_second, work.service) <= 0.9 * house.connections + 1e-9
    assert little(house.per_second, work.cpu) > 0.6 * (house.nodes - 1) - 1e-9


def test_prices_are_multiplied_as_the_page_says() -> None:
    assert make_sizing.of_proxy(1) == make_sizing.of_proxy(2) == pytest.approx(21.9)
    assert make_sizing.of_data_api(2e9) == pytest.approx(350 + 200)
    at = make_sizing.level() * make_sizing.HOURS * 3_600
    assert make_sizing.of_data_api(at) == pytest.approx(make_sizing.of_nodes(2))


def test_the_page_has_the_figures_of_the_committed_results() -> None:
    assert make_sizing.PAGE.read_text() == make_sizing.page(), "run python docs/make_sizing.py"
