"""A polite caller beside 200 greedy ones, against the same caller alone.

    python -m benchmarks.bench_fairness [--rounds 5] [--seconds 3]

Both tenants ask for statements of the same length (20 ms, asleep in PostgreSQL, so that the
processor is not what they compete for) on 8 connections. The greedy tenant's 200 callers ask
without a pause; the polite one has one caller. Alone and beside in turn; ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from gateway.cli import embedded, programs
from gateway.cli.token import token_for

from .bare import CONNECTIONS
from .bench_fanin import Entry, Load
from .bench_http import RESULTS, request
from .servers import MASTER_KEY, describe, gateway, machine, process

BAR = 2.0
GREEDY = 200
STATEMENT = "select $1::int, pg_sleep(0.02)"


def run(rounds: int, seconds: float) -> dict[str, Any]:
    """All figures of one interleaved run."""
    alone: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    crowd: list[dict[str, Any]] = []
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsluice-bench-")))
        home.chmod(0o755)
        binaries = programs.find_binaries()
        database = stack.enter_context(embedded.start(home / "data", binaries=binaries))
        database.sql("create role bench login")
        port, pid = stack.enter_context(
            gateway(
                database.dsn(user="bench"),
                home / "gateway.log",
                PGSLUICE_TARGETS__MAIN__POOL__MAX_CONNECTIONS=str(CONNECTIONS),
            )
        )
        loads = []
        entries = []
        for name in ("polite", "greedy"):
            token = token_for(MASTER_KEY.encode(), subject=name, lifetime=7_200)
            texts = [request("/execute", STATEMENT, each, token) for each in range(100)]
            job = {"protocol": "http", "port": port, "requests": texts, "patience": 60.0}
            entries.append(Entry(name, job, pid))
            child = process(["benchmarks.fan_load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            loads.append(Load(stack.enter_context(child)))
        threads = stack.enter_context(ThreadPoolExecutor(1))
        (polite, greedy), (one, many) = loads, entries
        polite.run(one, kind="closed", callers=1, seconds=0.5)
        for _ in range(rounds):
            alone.append(polite.run(one, kind="closed", callers=1, seconds=seconds))
            # The crowd comes first and leaves last.
            noise = threads.submit(
                greedy.run, many, kind="closed", callers=GREEDY, seconds=seconds + 2
            )
            polite.run(one, kind="closed", callers=1, seconds=1.0)
            beside.append(polite.run(one, kind="closed", callers=1, seconds=seconds))
            crowd.append(noise.result())
    return {
        "machine": machine(binaries.version),
        "rounds": rounds,
        "seconds": seconds,
        "connections": CONNECTIONS,
        "greedy": GREEDY,
        "bar": BAR,
        "figures": [
            {"name": name, **{unit: _middle(figures, unit) for unit in _UNITS}}
            for name, figures in [
                ("polite, alone", alone), ("polite, beside", beside), ("greedy", crowd),
            ]
        ],
    }  # fmt: skip


_UNITS = ("per_second", "p50_ms", "p99_ms", "callers_failed")


def _middle(figures: list[dict[str, Any]], unit: str) -> float:
    return round(float(statistics.median(each[unit] for each in figures)), 3)


def table(result: dict[str, Any]) -> str:
    """*result* as a page of Markdown."""
    rows = result["figures"]
    first = rows[0]
    lines = [
        describe(result["machine"]),
        f"{result['rounds']} interleaved rounds of {result['seconds']} s; medians;"
        f" {result['connections']} connections, {result['greedy']} greedy callers, statements of"
        " 20 ms. The time of the polite caller alone is 1; the bar for its wait is"
        f" {result['bar']:.0f}.",
        "",
        "| who | p50 | p99 | callers that failed |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['name']} | {row['p50_ms'] / first['p50_ms']:.2f}"
        f" | {row['p99_ms'] / first['p99_ms']:.2f} | {row['callers_failed']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and print; with `--keep`, write `results/fairness.json` and `results/fairness.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/fairness.*")
    given = parser.parse_args()
    result = run(given.rounds, given.seconds)
    if given.keep:
        RESULTS.mkdir(exist_ok=True)
        text = orjson.dumps(result, option=orjson.OPT_INDENT_2)
        (RESULTS / "fairness.json").write_bytes(text + b"\n")
        (RESULTS / "fairness.md").write_text(table(result))
    print(table(result), end="")


if __name__ == "__main__":
    main()
