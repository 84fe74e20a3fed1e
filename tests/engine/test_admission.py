from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.core.errors import Draining, QueueFull, QueueTimeout
from gateway.core.fair_queue import FairQueue, Ticket
from gateway.engine.admission import Admission

pytestmark = pytest.mark.anyio

NEVER = 1e12


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": request.param})


def admission(places: int = 1, max_waiting: int = 100) -> Admission:
    return Admission(FairQueue(places=places, max_waiting=max_waiting))


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until *condition* holds."""
    while not condition():  # noqa: ASYNC110 - to be run by turns is what it is for
        await asyncio.sleep(0)


async def waiters(one: Admission, count: int, tenant: str = "a") -> list[asyncio.Task[Ticket]]:
    tasks = []
    for _ in range(count):
        before = one.waiting
        tasks.append(asyncio.create_task(one.turn(tenant, NEVER)))
        await until(lambda before=before: one.waiting > before)  # type: ignore[misc]
    return tasks


async def test_a_free_turn_is_had_without_waiting() -> None:
    one = admission()
    first = one.try_turn("a")
    assert first is not None
    assert one.try_turn("a") is None
    one.release(first)
    assert (await one.turn("a", NEVER)).granted


async def test_turns_are_given_on_in_order_of_arrival() -> None:
    one = admission()
    ticket = await one.turn("a", NEVER)
    tasks = await waiters(one, 5)
    for task in tasks:
        assert not task.done()
        one.release(ticket)
        ticket = await task
    one.release(ticket)
    assert (one.in_use, one.waiting) == (0, 0)


async def test_a_waiter_is_told_at_its_deadline() -> None:
    one = admission()
    held = await one.turn("a", NEVER)
    loop = asyncio.get_running_loop()
    patient = asyncio.create_task(one.turn("a", NEVER))
    soon = [one.turn("a", loop.time() + seconds) for seconds in (0.03, 0.01, 0.02)]
    results = await asyncio.gather(*soon, return_exceptions=True)
    assert [type(result) for result in results] == [QueueTimeout] * 3
    assert one.waiting == 1
    one.release(held)
    assert (await patient).granted


async def test_a_full_line_is_refused() -> None:
    one = admission(max_waiting=1)
    await one.turn("a", NEVER)
    (task,) = await waiters(one, 1)
    with pytest.raises(QueueFull):
        await one.turn("a", NEVER)
    task.cancel()


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    one = admission()
    held = await one.turn("a", NEVER)
    first, second = await waiters(one, 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert one.waiting == 1
    one.release(held)
    assert (await second).granted


async def test_a_turn_granted_to_a_cancelled_waiter_is_given_on() -> None:
    one = admission()
    held = await one.turn("a", NEVER)
    first, second = await waiters(one, 2)
    one.release(held)  # Granted to the first, whose task has not run yet …
    first.cancel()  # … and now only will to be cancelled.
    with pytest.raises(asyncio.CancelledError):
        await first
    one.release(await second)
    assert (one.in_use, one.waiting) == (0, 0)


async def test_a_turn_granted_after_the_cancellation_is_given_on() -> None:
    one = admission()
    held = await one.turn("a", NEVER)
    first, second = await waiters(one, 2)
    first.cancel()
    one.release(held)
    with pytest.raises(asyncio.CancelledError):
        await first
    one.release(await second)
    assert (one.in_use, one.waiting) == (0, 0)


async def test_a_cancellation_at_the_deadline_leaves_no_error_behind() -> None:
    one = admission()
    await one.turn("a", NEVER)
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    (task,) = await waiters(one, 1)
    one.close()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    assert complaints == []
    loop.set_exception_handler(None)


async def test_a_pause_holds_everybody_and_resume_lets_them_in() -> None:
    one = admission(places=2)
    inside = await one.turn("a", NEVER)
    one.pause()
    assert one.try_turn("a") is None
    tasks = await waiters(one, 3)
    one.release(inside)
    assert one.in_use == 0
    one.set_places(3)
    assert not any(task.done() for task in tasks)
    one.resume()
    tickets = await asyncio.gather(*tasks)
    assert one.in_use == one.places == len(tickets) == 3


async def test_close_refuses_and_sends_away_but_turns_taken_stay_good() -> None:
    one = admission()
    held = await one.turn("a", NEVER)
    tasks = await waiters(one, 3)
    one.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Draining] * 3
    with pytest.raises(Draining):
        await one.turn("a", NEVER)
    with pytest.raises(Draining):
        one.try_turn("a")
    one.release(held)
    assert (one.in_use, one.waiting) == (0, 0)


async def test_a_thousand_callers_and_hang_ups_lose_no_turn() -> None:
    one = admission(places=3, max_waiting=2_000)
    most = 0

    async def caller(number: int) -> None:
        nonlocal most
        ticket = await one.turn(f"tenant {number % 7}", NEVER)
        most = max(most, one.in_use)
        try:
            await asyncio.sleep(0)
        finally:
            one.release(ticket)

    tasks = [asyncio.create_task(caller(number)) for number in range(1_000)]
    for number in range(0, 1_000, 3):
        await asyncio.sleep(0)
        tasks[number].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert (one.in_use, one.waiting) == (0, 0)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
