"""A long run in parts, each with a seed and a stage of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, NamedTuple

import pytest

from .checker import Report
from .programme import run

LEAST = 3_000
"""Operations of the subjects that are there for contrast."""


class Round(NamedTuple):
    """A part of the run with a seed of its own, which can be repeated alone."""

    subject: str
    operations: int
    seed: int
    number: int
    of: int

    @property
    def again(self) -> str:
        """The command that runs it alone."""
        count = self.operations
        return (
            f"python -m tests.faults --operations {count} --round {count} --seed {self.seed}"
            f" --subjects {self.subject}"
        )


def rounds(operations: int, seed: int, subjects: list[str], most: int) -> list[Round]:
    """What is to be run, in order: the subjects take turns, ours goes on alone at the end."""
    queues: list[deque[Round]] = []
    for subject in subjects:
        share = operations if subject == "pgsluice" else max(operations // 20, LEAST)
        parts = [min(most, share - first) for first in range(0, share, most)]
        queues.append(
            deque(
                Round(subject, part, seed + number, number + 1, len(parts))
                for number, part in enumerate(parts)
            )
        )
    ordered = []
    while any(queues):
        ordered += [queue.popleft() for queue in queues if queue]
    return ordered


_PR_SET_PDEATHSIG = 1


def say(text: str) -> None:
    """Tell whoever waits."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _one(what: Round) -> Report | str:
    """Run *what*, in a process of its own; why not, if it is left out."""

    def tell(text: str) -> None:
        say(f"{what.subject:>9} {what.number}/{what.of} {text}")

    try:
        return run(what.subject, what.operations, what.seed, tell=tell)
    except pytest.skip.Exception as missing:
        return str(missing)


def _end_in_order() -> None:
    # Ctrl-C reaches every process of the group: the first one decides, and asks the others to
    # end, who then take down what they have set up; so they do if it is gone without a word.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def each(
    planned: list[Round], jobs: int, until: float
) -> Iterator[tuple[Round, Report | str | Exception]]:
    """Run *planned*, so many at once, until *until* (monotonic); what came of each as it ends."""
    # One round has long pauses in which nobody works: two at once use two processors better.
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_end_in_order
    ) as pool:
        waiting, running = deque(planned), dict[Future[Any], Round]()
        try:
            while waiting or running:
                while waiting and len(running) < jobs and time.monotonic() < until:
                    what = waiting.popleft()
                    running[pool.submit(_one, what)] = what
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    yield running.pop(future), future.result() if error is None else error
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
