"""The answer to a reset that travels behind a statement never reaches the driver."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.postgres.behind import ResetBehind, followed


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


READY = message(b"Z", b"I")
STATEMENT = message(b"2") + message(b"D", b"row") + message(b"C", b"SELECT 1\0") + READY
ROW = message(b"D", b"\0\1\0\0\0\1f")
RESET = (
    message(b"C", b"RESET\0")
    + message(b"T", b"\0\1name")
    + ROW
    + message(b"C", b"SELECT 1\0")
    + READY
)


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True


class Waiter:
    """The driver's future: done when it has a whole answer."""

    def __init__(self) -> None:
        self.over = False

    def done(self) -> bool:
        return self.over


class Driver:
    """Reads messages as the driver does, and knows the end of an answer by them alone."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.behind = ResetBehind(self.transport, self.hear, ROW)
        self.heard = b""
        self._rest = b""
        self.waiter = Waiter()
        self.ends = 0

    def ask(self) -> None:
        self.heard = b""
        self.waiter = Waiter()
        self.behind.begin(self.waiter, b"reset")
        self.behind.then = self._ended

    def hear(self, data: bytes) -> None:
        self.heard += data
        self._rest += data
        while len(self._rest) >= 5:
            size = 1 + int.from_bytes(self._rest[1:5], "big")
            if len(self._rest) < size:
                return
            if self._rest[:1] == b"Z":
                self.waiter.over = True
            self._rest = self._rest[size:]

    def _ended(self) -> None:
        self.ends += 1

    def take(self, *pieces: bytes) -> None:
        for piece in pieces:
            if piece:
                self.behind.take(piece)


def taught() -> Driver:
    """One that has seen a clean reset before."""
    driver = Driver()
    driver.ask()
    driver.take(STATEMENT + RESET)
    assert driver.behind.clean
    driver.ends = 0
    return driver


@pytest.mark.parametrize("make", [Driver, taught], ids=["the first", "one after it"])
def test_wherever_the_stream_is_cut_the_driver_hears_the_statement_alone(make: Any) -> None:
    whole = STATEMENT + RESET
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1, 3):
            driver = make()
            driver.ask()
            driver.take(whole[:first], whole[first:second], whole[second:])
            assert driver.heard == STATEMENT, (first, second)
            assert driver.behind.clean and not driver.behind.pending, (first, second)
            assert driver.ends == 1 and not driver.transport.aborted


def test_the_reset_is_written_once_behind_the_question() -> None:
    driver = Driver()
    driver.ask()
    assert driver.transport.written == [b"reset"]


def test_a_reset_by_itself_is_none_of_the_drivers_business() -> None:
    for cut in range(len(RESET)):
        for driver in (Driver(), taught()):
            driver.heard = b""
            driver.behind.alone(b"reset")
            driver.take(RESET[:cut], RESET[cut:])
            assert driver.heard == b"" and driver.behind.clean


def test_an_error_of_the_statement_is_the_drivers_and_the_reset_still_counts() -> None:
    failed = message(b"E", b"SERROR\0C22012\0\0") + READY
    driver = taught()
    driver.ask()
    driver.take(failed + RESET)
    assert driver.heard == failed
    assert driver.behind.clean


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(message(b"E", b"SERROR\0C22P02\0\0") + READY, id="an error"),
        pytest.param(RESET.replace(b"SELECT 1", b"SELECT 0"), id="no row, the canary is missing"),
        pytest.param(RESET.replace(b"\1f", b"\1t"), id="another row, a statement of somebody's"),
        pytest.param(RESET.replace(ROW, ROW + ROW), id="two rows under the tag of one"),
        pytest.param(RESET[:-1] + b"T", id="a transaction that is open"),
        pytest.param(RESET[:-1] + b"E", id="a transaction that failed"),
    ],
)
def test_whatever_else_is_answered_means_that_something_is_left(answer: bytes) -> None:
    driver = taught()
    driver.ask()
    driver.take(STATEMENT, answer)
    assert driver.heard == STATEMENT
    assert driver.ends == 1 and not driver.behind.clean


def test_a_setting_that_changes_back_is_told_to_the_driver_and_notices_are_not() -> None:
    setting = message(b"S", b"TimeZone\0UTC\0")
    odd = RESET.removesuffix(READY) + message(b"N", b"SNOTICE\0\0") + setting + READY
    for cut in range(len(STATEMENT + odd)):
        driver = taught()
        driver.ask()
        driver.take((STATEMENT + odd)[:cut], (STATEMENT + odd)[cut:])
        assert driver.heard == STATEMENT + setting
        assert driver.behind.clean


def test_a_reset_with_something_unusual_is_not_what_the_next_is_compared_with() -> None:
    odd = RESET.removesuffix(READY) + message(b"S", b"TimeZone\0UTC\0") + READY
    driver = Driver()
    for _ in range(2):
        driver.ask()
        driver.take(STATEMENT + odd)
        assert driver.heard.endswith(b"UTC\0")
    driver.ask()
    driver.take(STATEMENT + RESET)
    assert driver.heard == STATEMENT and driver.behind.clean


@pytest.mark.parametrize("inside", [RESET, READY, STATEMENT + RESET])
def test_a_value_that_looks_like_the_end_is_not_taken_for_it(inside: bytes) -> None:
    """The bytes of a value may be the very ones that are waited for, at the end of a piece."""
    row = message(b"D", b"begin" + inside + b"end")
    whole = row + STATEMENT + RESET
    for cut in range(len(whole)):
        driver = taught()
        driver.ask()
        driver.take(whole[:cut])
        if driver.transport.aborted:
            # Cut right behind the imitation: the connection goes, nothing is believed.
            assert not driver.behind.clean and driver.behind.pending
            continue
        driver.take(whole[cut:])
        assert driver.heard == row + STATEMENT, cut
        assert driver.behind.clean


def test_a_caller_who_gave_up_does_not_confuse_the_stream() -> None:
    """A cancelled question is done for the driver before its answer is here."""
    whole = STATEMENT + RESET
    for cut in range(len(whole)):
        driver = taught()
        driver.ask()
        driver.waiter.over = True
        driver.take(whole[:cut], whole[cut:])
        assert driver.heard == STATEMENT
        assert driver.behind.clean


def test_a_connection_that_is_lost_ends_the_reset_once() -> None:
    driver = taught()
    driver.ask()
    driver.take(STATEMENT)
    driver.behind.lost()
    driver.behind.lost()
    assert driver.ends == 1
    assert not driver.behind.clean and not driver.behind.pending


@pytest.mark.anyio
async def test_what_is_asked_is_answered_and_cancelled_as_without() -> None:
    loop = asyncio.get_running_loop()
    transport = Transport()
    behind = ResetBehind(transport, lambda data: None, ROW)
    waiter = loop.create_future()

    async def asking() -> str:
        transport.write(b"question")
        return str(await waiter)

    task = loop.create_task(_run(followed(asking(), behind, b"reset")))
    await asyncio.sleep(0)
    assert transport.written == [b"question", b"reset"]
    waiter.set_result("answer")
    assert await task == "answer"

    waiter = loop.create_future()
    task = loop.create_task(_run(followed(asking(), behind, b"reset")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiter.cancelled()


async def _run(awaitable: Any) -> Any:
    return await awaitable
