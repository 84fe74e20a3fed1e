"""One run: a load, faults while it lasts, and the truth afterwards."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .checker import Report, Said, check, in_flight, read_stored
from .faults import FAULTS, schedule
from .operations import Operation, plan
from .stage import Stage

CALLERS = {"client": 24, "js": 24, "boto3": 16, "naive": 64, "psycopg": 64}
_SHARES = {"client": 4, "js": 4, "boto3": 2}
_STUCK = 180.0
"""Seconds without any operation being over after which a run is given up."""


class Load:
    """The senders of a run, and how far they are."""

    def __init__(self, stage: Stage, operations: list[Operation]) -> None:
        names = stage.subject.drivers
        total = sum(_SHARES.get(name, 1) for name in names)
        self._files: dict[str, Path] = {}
        self.senders: dict[str, subprocess.Popen[bytes]] = {}
        self._offsets: dict[str, int] = {}
        self.done = 0
        first = 0
        for number, name in enumerate(names):
            share = len(operations) * _SHARES.get(name, 1) // total
            last = len(operations) if number == len(names) - 1 else first + share
            results = stage.home / f"{name}.results"
            self._files[name] = results
            self.senders[name] = stage.drive(name, operations[first:last], CALLERS[name], results)
            first = last

    def look(self) -> int:
        """How many operations are over."""
        for name, file in self._files.items():
            with file.open("rb") as lines:
                lines.seek(self._offsets.get(name, 0))
                new = lines.read()
                self._offsets[name] = lines.tell()
            self.done += new.count(b"\n")
        return self.done

    @property
    def running(self) -> bool:
        """Whether a sender still sends; an error ends the run."""
        running = False
        for name, sender in self.senders.items():
            code = sender.poll()
            running |= code is None
            if code:
                said = self._files[name].with_suffix(".log").read_text(errors="replace")
                raise RuntimeError(f"the sender {name} failed: {said[-2000:]}")
        return running

    def wait(self, count: int) -> bool:
        """Until *count* operations are over; False if that is never."""
        last, since = self.look(), time.monotonic()
        while last < count:
            running = self.running
            now = self.look()
            if now != last:
                last, since = now, time.monotonic()
            elif not running:
                return False
            if time.monotonic() - since > _STUCK:
                raise RuntimeError(f"nothing moves any more after {now} operations")
            time.sleep(0.01)
        return True

    def sent(self) -> dict[str, int]:
        """How many operations each sender is through with."""
        return {name: file.read_bytes().count(b"\n") for name, file in self._files.items()}

    def said(self) -> list[Said]:
        """What every caller was told."""
        return [
            Said(**json.loads(line))
            for file in self._files.values()
            for line in file.read_text().splitlines()
        ]

    def stop(self) -> None:
        """End the senders."""
        for sender in self.senders.values():
            sender.kill()
            sender.wait()


def run(
    subject: str,
    operations: int,
    seed: int,
    *,
    faults: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Send *operations* to *subject* while *faults* happen; compare.

    Args:
        faults: How many; every kind once unless given.
        tell: Is told what happens.
    """
    count = len(FAULTS) if faults is None else faults
    planned = plan(operations, seed)
    report = Report(subject, seed)
    started = time.monotonic()
    with Stage(subject) as stage:
        load = Load(stage, planned)
        try:
            _strike(stage, load, report, schedule(count, seed), operations, seed, tell)
            load.wait(operations)
            while load.running:
                time.sleep(0.05)
            said = load.said()
            report.by_sender.update(load.sent())
        finally:
            load.stop()
        open_ = [each for each in said if each.said == "unknown" and each.keys]
        found = stage.subject.ask([each.keys[-1] for each in open_])
        outcomes = {each.op: outcome for each, outcome in zip(open_, found, strict=True)}
        stored = read_stored(stage.sql)
        report.in_flight = in_flight(said, stage.moments)
    check(report, planned, said, stored, outcomes)
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _strike(
    stage: Stage,
    load: Load,
    report: Report,
    names: list[str],
    operations: int,
    seed: int,
    tell: Callable[[str], None],
) -> None:
    # By progress and not by time: the same seed meets the same faults at the same places.
    rng = random.Random(f"details {seed}")
    for number, name in enumerate(names):
        if not load.wait((number + 1) * operations // (len(names) + 2)):
            return
        tell(f"{load.done:>7} operations over; {name}")
        before = len(stage.moments)
        FAULTS[name](stage, rng)
        report.faults += len(stage.moments) - before
        report.by_fault[name] += 1
