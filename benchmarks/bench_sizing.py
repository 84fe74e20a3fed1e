"""Measure one node at several numbers of callers, beside what `sizing.py` predicts for them.

    python -m benchmarks.bench_sizing [--rounds 3] [--seconds 3]

Two figures are taken from measurements: the time of the node's process for a request, from
reads at 64 callers, and the time for which a connection is taken, for reads from one caller
and for statements that take PostgreSQL 10 ms from 32 callers on 8 connections. Everything
else is predicted, and measured beside it. `python docs/make_sizing.py` makes the page.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from gateway.cli import embedded, programs
from gateway.cli.token import token_for

from .bare import CONNECTIONS
from .bench_http import RESULTS, ROWS, STATEMENTS, TABLE, Load, Server, request
from .servers import MASTER_KEY, cpu_seconds, describe, gateway, machine, process
from .sizing import Steady, Work, closed

KINDS = {
    "read": STATEMENTS["read"],
    "10 ms": "select pg_sleep(0.01), $1::int",
}
READ, SLOW = KINDS
CELLS = (
    *((READ, callers, 0.0) for callers in (1, 8, 64, 256)),
    *((SLOW, callers, 0.0) for callers in (1, 4, 8, 32, 128, 512)),
    *((SLOW, callers, 0.1) for callers in (16, 64, 256)),
)
"""Statement, callers, and seconds that each does something else between two statements."""
FITTED = ((READ, 1, 0.0), (READ, 64, 0.0), (SLOW, 32, 0.0))
"""What the model is told; all other cells check it."""

Cell = tuple[str, int, float]


def fitted(rates: dict[Cell, float]) -> dict[str, Work]:
    """What a statement of each kind costs, from the measured *rates* of `FITTED`."""
    alone, many, slow = (rates[cell] for cell in FITTED)
    cpu = 1 / many
    # One caller waits for nobody: the process and the connection take turns.
    return {
        READ: Work(cpu, max(1 / alone - cpu, 1e-5)),
        SLOW: Work(cpu, CONNECTIONS / slow),
    }


def predicted(works: dict[str, Work], cell: Cell) -> Steady:
    """What the model says of *cell*."""
    kind, callers, think = cell
    return closed(callers, works[kind], connections=CONNECTIONS, think=think)


def run(rounds: int, seconds: float) -> dict[str, Any]:
    """All figures."""
    samples: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in CELLS}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsluice-bench-")))
        home.chmod(0o755)
        binaries = programs.find_binaries()
        database = stack.enter_context(
            embedded.start(
                home / "data", binaries=binaries, port=embedded.free_port(), host_auth="trust"
            )
        )
        database.sql(TABLE)
        port, pid = stack.enter_context(gateway(database.dsn(user="bench"), home / "log"))
        token = token_for(MASTER_KEY.encode(), subject="bench", lifetime=36_000)
        ids = [1 + i * 7_919 % ROWS for i in range(2_000)]
        requests = {
            kind: [request("/execute", sql, id, token) for id in ids] for kind, sql in KINDS.items()
        }
        server = Server("gateway", port, requests, pid)
        load = Load(
            stack.enter_context(
                process(["benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
        )
        for kind in KINDS:
            load.run(server, kind, 32, 1.0)  # connections opened, statements prepared
        for number in range(rounds):
            for cell in CELLS:
                kind, callers, think = cell
                before = cpu_seconds(pid)
                # Long enough for the slowest to be answered a few times.
                length = max(seconds, callers / 100)
                figures = load.run(server, kind, callers, length, think=think)
                figures["cpu_ms"] = (
                    (cpu_seconds(pid) - before) / (figures["per_second"] * length) * 1e3
                )
                samples[cell].append(figures)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    measured = {
        cell: {
            unit: statistics.median(each[unit] for each in figures)
            for unit in ("per_second", "mean_ms", "p50_ms", "p99_ms", "cpu_ms")
        }
        for cell, figures in samples.items()
    }
    works = fitted({cell: figures["per_second"] for cell, figures in measured.items()})
    return {
        "machine": machine(binaries.version),
        "rounds": rounds,
        "seconds": seconds,
        "connections": CONNECTIONS,
        "work": {
            kind: {"cpu_ms": round(work.cpu * 1e3, 4), "service_ms": round(work.service * 1e3, 4)}
            for kind, work in works.items()
        },
        "figures": [_row(works, cell, measured[cell]) for cell in CELLS],
    }


def _row(works: dict[str, Work], cell: Cell, measured: dict[str, float]) -> dict[str, Any]:
    kind, callers, think = cell
    model = predicted(works, cell)
    return {
        "statement": kind,
        "callers": callers,
        "think_ms": think * 1e3,
        "fitted": cell in FITTED,
        **{unit: round(value, 3) for unit, value in measured.items()},
        "predicted_per_second": round(model.per_second, 3),
        "predicted_ms": round(model.seconds * 1e3, 3),
    }


def table(result: dict[str, Any]) -> str:
    """*result* as a table of Markdown, what the model was told marked with a star."""
    lines = [
        "| statement | callers | pause ms | measured a second | predicted | off by | measured ms"
        " | predicted | off by |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["figures"]:
        rate, model = row["per_second"], row["predicted_per_second"]
        lines.append(
            f"| {row['statement']} | {row['callers']} | {row['think_ms']:.0f}"
            f" | {rate:,.0f}{'*' if row['fitted'] else ''} | {model:,.0f} | {model / rate - 1:+.0%}"
            f" | {row['mean_ms']:,.1f} | {row['predicted_ms']:,.1f}"
            f" | {row['predicted_ms'] / row['mean_ms'] - 1:+.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, and write `results/sizing.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    result = run(given.rounds, given.seconds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sizing.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    print(describe(result["machine"]))
    print(table(result), end="")


if __name__ == "__main__":
    main()
