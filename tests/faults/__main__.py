"""The fault programme.

    python -m tests.faults [--operations 200000] [--seed N] [--subjects pgsluice naive pgbouncer]

In rounds of 10,000 operations, each of which meets every fault once, on a server of its own.
The other subjects get a twentieth of the operations, 3,000 at least, in the same invocation.
Figures are written to a file after each round, so that a run that is cut off tells what it found.

Ends with 1 if anything was lost, doubled, torn, wrongly reported or left unknown by pgsluice, if
a round broke off, or if the naive handler came through unharmed: then the programme is too mild.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.fix_tools import ROOT

from .checker import Report
from .rounds import each, rounds, say
from .stage import SUBJECTS

_COLUMNS = {
    "operations": "operations",
    "in_flight": "in flight at a fault",
    "faults": "moments of a fault",
    "lost": "lost",
    "doubled": "doubled",
    "torn": "torn",
    "wrong": "wrongly reported",
    "unknown": "asked afterwards",
    "unresolved": "left unknown",
    "sums": "wrong sums",
    "seconds": "s",
}
RESULTS = ROOT / ".pgsluice" / "faults.json"


def table(reports: list[Report]) -> str:
    """The figures as a table of Markdown."""
    lines = ["| | " + " | ".join(_COLUMNS.values()) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for report in reports:
        figures = report.figures()
        row = " | ".join(f"{figures[name]:,}" for name in _COLUMNS)
        lines.append(f"| {report.subject} | {row} |")
    return "\n".join(lines)


def verdict(reports: list[Report], broken: list[str]) -> list[str]:
    """What is wrong with the figures as a whole; nothing if all is well."""
    found = [f"a round broke off: {text}" for text in broken]
    for report in reports:
        if report.subject == "pgsluice" and report.flaws:
            found.append(f"pgsluice: {len(report.flaws)} flaws")
        if report.subject == "naive" and not report.lost and not report.doubled:
            found.append("the naive handler came through: the programme is too mild")
    return found


def _until_interrupted(results: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from results
    except KeyboardInterrupt:
        say("interrupted")


def _write(file: Path, head: dict[str, Any], reports: list[Report], broken: list[str]) -> None:
    document = {**head, "now": datetime.now(UTC).isoformat(timespec="seconds")}
    document |= {"wrong": verdict(reports, broken), "subjects": [r.figures() for r in reports]}
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document, indent=2) + "\n")
    new.replace(file)


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
    parser.add_argument("--jobs", type=int, default=2, help="rounds at the same time")
    parser.add_argument("--minutes", type=float, default=None, help="begin no round after these")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    again = f"python -m tests.faults --operations {asked.operations} --seed {seed}"
    if asked.round != parser.get_default("round"):
        again += f" --round {asked.round}"
    if asked.subjects != list(SUBJECTS):
        again += f" --subjects {' '.join(asked.subjects)}"
    say(f"seed {seed}; again: {again}")
    planned = rounds(asked.operations, seed, asked.subjects, asked.round)
    until = float("inf") if asked.minutes is None else time.monotonic() + asked.minutes * 60
    head = {"command": again, "seed": seed, "began": datetime.now(UTC).isoformat("T", "seconds")}
    reports: dict[str, Report] = {}
    broken: list[str] = []
    ended = 0
    # `timeout` and CI end a run with SIGTERM; then, too, the figures are told.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for what, came in _until_interrupted(each(planned, asked.jobs, until)):
        ended += 1
        if isinstance(came, str):
            say(f"{what.subject} is left out: {came}")
            continue
        if isinstance(came, Exception):
            broken.append(f"{what.again}: {type(came).__name__}: {came}")
            say(f"{what.subject:>9} {what.number}/{what.of} BROKE OFF {broken[-1]}")
        else:
            for flaw in came.flaws[:20]:
                say(f"{what.subject:>9} {what.number}/{what.of} FLAW {flaw}")
            reports.setdefault(what.subject, Report(what.subject, seed)).add(came)
            say(f"{ended} of {len(planned)} rounds; the last one again: {what.again}")
            say(table([came, *reports.values()]))
        _write(asked.json, {**head, "rounds": f"{ended} of {len(planned)}"},
               list(reports.values()), broken)  # fmt: skip
    for report in reports.values():
        for word, times in report.words.most_common(12):
            say(f"{report.subject:>9} {times:>6} x {word}")
    say(f"\n{table(list(reports.values()))}\n\nseed {seed}; again: {again}\n{asked.json}")
    wrong = verdict(list(reports.values()), broken)
    if ended < len(planned):
        say(f"cut off: {ended} of {len(planned)} rounds")
    for text in wrong:
        say(text)
    return int(bool(wrong) or ended < len(planned))


if __name__ == "__main__":
    sys.exit(main())
