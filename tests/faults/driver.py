"""What every sender of the load has in common: its list, and what it writes down.

A driver is called with a file of JSON: `operations`, `results` (a file, one line per
operation that is over), `callers`, and how to reach the subject.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

TRIES = 20
"""How often an operation is asked for, if each time nothing happened."""


class Told(NamedTuple):
    """What one call came to."""

    said: str
    key: str | None = None
    word: str = ""
    safe: bool = False
    """Whether it may be asked for anew."""


class Results:
    """The file that the programme reads."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("a", buffering=1)  # noqa: SIM115  # the process's own
        self._lock = threading.Lock()

    def write(self, operation: dict[str, Any], told: Told, start: float, tries: int) -> None:
        """One operation is over."""
        line = {
            "op": operation["op"], "said": told.said,
            "keys": [] if told.key is None else [told.key],
            "start": start, "end": time.time(), "word": told.word, "tries": tries,
        }  # fmt: skip
        with self._lock:
            self._file.write(json.dumps(line) + "\n")


def once_more(operation: dict[str, Any], told: Told, tries: int) -> float | None:
    """Seconds until the operation is asked for anew; `None` if it is over."""
    if told.said != "not_executed" or not told.safe or not operation["again"] or tries >= TRIES:
        return None
    return random.random() * min(1.0, 0.05 * 2**tries)


def verdict(attempts: list[tuple[str | None, str]], key: str | None, safe: bool) -> Told:
    """What a caller knows whose SDK has made *attempts*, none of which succeeded.

    An attempt without an answer (`None`) may have happened, whatever those after it were
    told: they speak of themselves.
    """
    word = attempts[-1][1] if attempts else "never sent"
    said = [outcome for outcome, _ in attempts]
    if said and said[-1] == "committed":
        return Told("committed", key, word)
    if None in said or "unknown" in said:
        return Told("unknown", key, word)
    return Told("not_executed", key, word, safe)


def in_threads(
    config: dict[str, Any], call: Callable[[dict[str, Any]], Told], callers: int
) -> None:
    """Send all operations, *callers* at a time."""
    results = Results(config["results"])
    waiting = iter(config["operations"])
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                operation = next(waiting, None)
            if operation is None:
                return
            start, tries = time.time(), 0
            while True:
                tries += 1
                told = call(operation)
                pause = once_more(operation, told, tries)
                if pause is None:
                    break
                time.sleep(pause)
            results.write(operation, told, start, tries)

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
