"""The fault programme.

    python -m tests.faults [--operations 200000] [--seed N] [--subjects pgsluice naive pgbouncer]

The other subjects get a tenth of the operations, 3,000 at least. Ends with 1 if anything was
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
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--operations", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", type=int, default=None)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    again = f"python -m tests.faults --operations {asked.operations} --seed {seed}"
    if asked.faults is not None:
        again += f" --faults {asked.faults}"
    _say(f"seed {seed}; again: {again} --subjects {' '.join(asked.subjects)}")
    reports = []
    for subject in asked.subjects:
        share = asked.operations if subject == "pgsluice" else max(3_000, asked.operations // 10)
        try:
            report = run(
                subject, share, seed, faults=asked.faults,
                tell=lambda text, subject=subject: _say(f"{subject:>9} {text}"),
            )  # fmt: skip
        except pytest.skip.Exception as missing:
            _say(f"{subject} is left out: {missing}")
            continue
        reports.append(report)
        for word, times in report.words.most_common(12):
            _say(f"{subject:>9} {times:>6} x {word}")
        for flaw in report.flaws[:20]:
            _say(f"{subject:>9} FLAW {flaw}")
    _say("\n" + table(reports) + f"\n\nseed {seed}; again: {again}")
    if asked.json is not None:
        asked.json.write_text(json.dumps([each.figures() for each in reports], indent=2) + "\n")
    ours = [each for each in reports if each.subject == "pgsluice"]
    naive = [each for each in reports if each.subject == "naive"]
    if any(not each.lost and not each.doubled for each in naive):
        _say("the naive handler came through: the programme is too mild")
        return 1
    return int(any(each.flaws for each in ours))


if __name__ == "__main__":
    sys.exit(main())
