"""The fault programme.

    python -m tests.faults [--operations 200000] [--seed N] [--subjects pgsluice naive pgbouncer]

In rounds of 10,000 operations, each of which meets every fault once. The other subjects get a
tenth of the operations, 3,000 at least. Ends with 1 if anything was
lost, doubled, torn, wrongly reported or left unknown by pgsluice, or if the naive handler came
through unharmed: then the programme is too mild.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path

import pytest

from .checker import Report
from .programme import run
from .stage import SUBJECTS

_COLUMNS = {
    "operations": "operations",
    "in_flight": "in flight at a fault",
    "faults": "faults",
    "lost": "lost",
    "doubled": "doubled",
    "torn": "torn",
    "wrong": "wrongly reported",
    "unknown": "asked afterwards",
    "unresolved": "left unknown",
    "sums": "wrong sums",
    "seconds": "s",
}


def table(reports: list[Report]) -> str:
    """The figures as a table of Markdown."""
    lines = ["| | " + " | ".join(_COLUMNS.values()) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for report in reports:
        figures = report.figures()
        row = " | ".join(f"{figures[name]:,}" for name in _COLUMNS)
        lines.append(f"| {report.subject} | {row} |")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run, and tell."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--operations", type=int, default=200_000)
    parser.add_argument("--round", type=int, default=10_000, help="operations of one round")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    again = f"python -m tests.faults --operations {asked.operations} --seed {seed}"
    if asked.round != parser.get_default("round"):
        again += f" --round {asked.round}"
    _say(f"seed {seed}; again: {again} --subjects {' '.join(asked.subjects)}")
    reports: list[Report] = []
    for subject in asked.subjects:
        report = Report(subject, seed)
        share = asked.operations if subject == "pgsluice" else asked.operations // 10
        try:
            _rounds(report, max(share, 3_000), asked.round)
        except pytest.skip.Exception as missing:
            _say(f"{subject} is left out: {missing}")
            continue
        reports.append(report)
        for word, times in report.words.most_common(12):
            _say(f"{subject:>9} {times:>6} x {word}")
        if asked.json is not None:
            text = json.dumps([each.figures() for each in reports], indent=2)
            asked.json.write_text(text + "\n")
    _say(f"\n{table(reports)}\n\nseed {seed}; again: {again}")
    naive = [each for each in reports if each.subject == "naive"]
    if any(not each.lost and not each.doubled for each in naive):
        _say("the naive handler came through: the programme is too mild")
        return 1
    return int(any(each.flaws for each in reports if each.subject == "pgsluice"))


def _rounds(report: Report, operations: int, most: int) -> None:
    # Each with a seed and a stage of its own, so that one that failed can be repeated alone.
    subject, number = report.subject, 0
    while report.operations < operations:
        seed, count = report.seed + number, min(most, operations - report.operations)
        one = run(subject, count, seed, tell=lambda text: _say(f"{subject:>9} {text}"))
        for flaw in one.flaws[:20]:
            _say(f"{subject:>9} FLAW {flaw}")
        report.add(one)
        number += 1
        again = f"--operations {count} --round {count} --seed {seed} --subjects {subject}"
        _say(f"{subject:>9} round {number}: python -m tests.faults {again}\n{table([one, report])}")


if __name__ == "__main__":
    sys.exit(main())
