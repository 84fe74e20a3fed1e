"""Very many callers, eight connections: the gateway, PgBouncer, and PostgreSQL itself.

    python -m benchmarks.bench_fanin [--rounds 5] [--seconds 5] [--callers 1000 10000]

Three tables. *Crowd*: every caller keeps a connection and asks without a pause. *Waiting*:
how far the slowest are from the middle at 256 callers. *Storm*: 100 requests a second, then
2,000, each on a connection of its own, whether or not the earlier ones were answered.
PostgreSQL has max_connections = 100; gateway and PgBouncer have 8 connections to it. Callers
come over TCP without TLS, and PostgreSQL and PgBouncer trust them, which favours both.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import orjson

from gateway.cli import embedded, programs
from gateway.cli.token import token_for

from .bare import CONNECTIONS
from .bench_http import RESULTS, ROWS, STATEMENTS, TABLE, request
from .servers import MASTER_KEY, describe, gateway, machine, pgbouncer, process, resident

_IDS = [1 + i * 7_919 % ROWS for i in range(2_000)]
_WAITING = 256
_STORM = ((2.0, 100), (3.0, 2_000))
_BACKENDS = "select count(*) from pg_stat_activity where usename = $1"
_LOGINS = {"gateway": "bench", "pgbouncer": "pooled", "postgresql": "straight"}


class Entry(NamedTuple):
    """One way to the database."""

    name: str
    job: dict[str, Any]
    pid: int | None


class Load:
    """The load client's process."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def run(self, entry: Entry, **job: Any) -> dict[str, Any]:
        """Figures of one job."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(orjson.dumps({**entry.job, **job}).decode() + "\n")
        self._child.stdin.flush()
        answer: dict[str, Any] = orjson.loads(self._child.stdout.readline())
        return answer


class Watch:
    """Looks at the server over a connection of its own while a job runs."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._entry: Entry | None = None
        self._seen = {"backends": 0, "memory": 0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._look()))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    async def _look(self) -> None:
        connection = await asyncpg.connect(self._dsn)
        while not self._over.is_set():
            entry, seen = self._entry, self._seen
            if entry is not None:
                backends = await connection.fetchval(_BACKENDS, _LOGINS[entry.name])
                seen["backends"] = max(seen["backends"], backends)
                if entry.pid:
                    seen["memory"] = max(seen["memory"], resident(entry.pid))
            await asyncio.sleep(0.1)
        await connection.close()

    @contextmanager
    def on(self, entry: Entry) -> Iterator[dict[str, Any]]:
        """The most backends, and the most memory of a process, seen meanwhile."""
        before = resident(entry.pid) if entry.pid else 0
        self._seen = {"backends": 0, "memory": before}
        self._entry = entry
        result: dict[str, Any] = {}
        try:
            yield result
        finally:
            self._entry = None
            result["backends"] = self._seen["backends"]
            result["grown"] = self._seen["memory"] - before


def run(rounds: int, seconds: float, crowds: list[int]) -> dict[str, Any]:
    """All figures of one interleaved run."""
    samples: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsluice-bench-")))
        home.chmod(0o755)
        binaries = programs.find_binaries()
        port = embedded.free_port()
        database = stack.enter_context(
            embedded.start(
                home / "data",
                binaries=binaries,
                port=port,
                max_connections=100,
                host_auth="trust",
                settings={"listen_addresses": "127.0.0.1"},
            )
        )
        database.sql(TABLE)
        for login in ("pooled", "straight"):
            database.sql(f"create role {login} login; grant select, update on item to {login}")
        watch = stack.enter_context(Watch(database.dsn()))
        ours, our_pid = stack.enter_context(
            gateway(
                database.dsn(user="bench"),
                home / "gateway.log",
                PGSLUICE_SERVER__MAX_CALLERS="15000",
                PGSLUICE_TARGETS__MAIN__POOL__MAX_WAITING="15000",
            )
        )
        theirs, their_pid, version = stack.enter_context(
            pgbouncer(database.socket_dir, port, _LOGINS["pgbouncer"], home)
        )
        token = token_for(MASTER_KEY.encode(), subject="bench", lifetime=7_200)
        asked = {
            "protocol": "postgres", "user": "pooled", "database": "postgres",
            "sql": STATEMENTS["read"], "values": [str(each) for each in _IDS], "patience": 60.0,
        }  # fmt: skip
        texts = [request("/execute", STATEMENTS["read"], each, token) for each in _IDS]
        entries = [
            Entry(
                "gateway",
                {"protocol": "http", "port": ours, "requests": texts, "patience": 60.0},
                our_pid,
            ),
            Entry("pgbouncer", {**asked, "port": theirs}, their_pid),
            Entry("postgresql", {**asked, "port": port, "user": "straight"}, None),
        ]
        load = Load(
            stack.enter_context(
                process(["benchmarks.fan_load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
        )
        for entry in entries:
            load.run(entry, kind="closed", callers=32, seconds=1.0)
        for number in range(rounds):
            for entry in entries if number % 2 else reversed(entries):
                for callers in [*crowds, _WAITING]:
                    with watch.on(entry) as seen:
                        figures = load.run(entry, kind="closed", callers=callers, seconds=seconds)
                    figures["backends"] = seen["backends"]
                    grown = seen["grown"] / 1024 / callers
                    figures["kib_per_caller"] = grown if entry.pid else None
                    if figures["first_error"] and entry.pid:
                        print(f"{entry.name}, {callers}: {figures['first_error']}", file=sys.stderr)
                    samples.setdefault(("crowd", callers, entry.name), []).append(figures)
                with watch.on(entry) as seen:
                    figures = load.run(entry, kind="open", phases=_STORM)
                figures["backends"] = seen["backends"]
                samples.setdefault(("storm", 0, entry.name), []).append(figures)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return {
        "machine": {**machine(binaries.version), "pgbouncer": version.split()[-1]},
        "rounds": rounds,
        "seconds": seconds,
        "connections": CONNECTIONS,
        "figures": [_row(*key, figures) for key, figures in samples.items()],
    }


def _row(kind: str, callers: int, name: str, figures: list[dict[str, Any]]) -> dict[str, Any]:
    def middle(unit: str) -> float | None:
        values = [each[unit] for each in figures if each.get(unit) is not None]
        return round(statistics.median(values), 3) if values else None

    due = sum(int(seconds * rate) for seconds, rate in _STORM)
    answered = statistics.median(each["answered"] for each in figures)
    return {
        "kind": kind,
        "callers": callers,
        "name": name,
        **{unit: middle(unit) for unit in ("per_second", "p50_ms", "p99_ms", "max_ms")},
        "kib_per_caller": middle("kib_per_caller"),
        "errors": max(each["errors"] for each in figures),
        "callers_failed": max(each["callers_failed"] for each in figures),
        "backends": max(each["backends"] for each in figures),
        "answered_percent": round(answered / due * 100, 1) if kind == "storm" else None,
        "spread": round(
            statistics.median(each["p99_ms"] / max(each["p50_ms"], 1e-9) for each in figures), 2
        ),
    }


def table(result: dict[str, Any]) -> str:
    """*result* as a page of Markdown."""
    rows = result["figures"]
    rate = {
        (row["callers"], row["name"]): row["per_second"] for row in rows if row["kind"] == "crowd"
    }
    lines = [
        describe(result["machine"]),
        f"{result['rounds']} interleaved rounds of {result['seconds']} s; medians, and the worst"
        f" round for errors and backends; {result['connections']} connections behind gateway and"
        " PgBouncer, PostgreSQL with max_connections = 100.",
        "",
        "| callers | to | rate : PgBouncer | callers that failed | backends at most"
        " | KiB a caller | p50 ms | p99 ms | p99 : p50 |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda each: each["callers"]):
        if row["kind"] != "crowd":
            continue
        ratio = row["per_second"] / rate[row["callers"], "pgbouncer"]
        kib = "" if row["kib_per_caller"] is None else f"{row['kib_per_caller']:.1f}"
        lines.append(
            f"| {row['callers']:,} | {row['name']} | {ratio:.2f} | {row['callers_failed']:,}"
            f" | {row['backends']} | {kib} | {row['p50_ms']:,.1f} | {row['p99_ms']:,.1f}"
            f" | {row['spread']:.2f} |"
        )
    lines += [
        "",
        "| storm: 100/s, then 2,000/s, a connection each | answered % | p50 ms | p99 ms"
        " | max ms | backends at most |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['name']} | {row['answered_percent']} | {row['p50_ms']:.1f}"
        f" | {row['p99_ms']:.1f} | {row['max_ms']:.1f} | {row['backends']} |"
        for row in rows
        if row["kind"] == "storm"
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, and write `results/fanin.json` and `results/fanin.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--callers", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/fanin.*")
    given = parser.parse_args()
    result = run(given.rounds, given.seconds, given.callers)
    if given.keep:
        RESULTS.mkdir(exist_ok=True)
        text = orjson.dumps(result, option=orjson.OPT_INDENT_2)
        (RESULTS / "fanin.json").write_bytes(text + b"\n")
        (RESULTS / "fanin.md").write_text(table(result))
    print(table(result), end="")


if __name__ == "__main__":
    main()
