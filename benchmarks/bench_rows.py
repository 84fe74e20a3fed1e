"""Large answers and bulk writes over loopback: the gateway against what PostgreSQL's own tools do.

    python -m benchmarks.bench_rows [--rounds 5] [--rows 1000000] [--quick]

Rows: a table of six columns (int8, text, numeric, timestamptz, bool, jsonb) is read whole, as
`psql \\copy … to '/dev/null' csv`, and through the gateway in each of its forms. Sets:
BatchExecuteStatement with 10,000 sets of parameters against asyncpg's `executemany`. All take
turns in every round; figures are medians, and ratios of medians. The gateway runs with
everything on, and its memory is watched while it streams, to a caller that reads as fast as it
can and to one that takes 4 MB a second.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import uvloop

from gateway.cli import embedded, programs
from gateway.cli.token import token_for
from gateway.core.formats import arrow

from .servers import MASTER_KEY, describe, gateway, machine, resident

RESULTS = Path(__file__).parent / "results"
SETS = 10_000
SLOW = 4_000_000
"""Bytes a second that the slow caller reads."""
_TABLE = """
create role bench login;
create table big (id int8 primary key, name text not null, price numeric(12,2) not null,
    at timestamptz not null, ok boolean not null, extra jsonb not null);
insert into big select i, 'item number ' || i, i / 7.0, '2024-01-01'::timestamptz + i * interval
    '1.5 s', i %% 3 = 0, jsonb_build_object('n', i, 'tag', 'x') from generate_series(1, %d) i;
create table sink (id int primary key, name text not null);
grant select on big to bench;
grant select, insert, truncate on sink to bench;
vacuum analyze big;
"""
_SQL = "select * from big"
_FORMS = {
    "JSON": ("/execute", "application/json", {"sql": _SQL}),
    "NDJSON": ("/execute", "application/x-ndjson", {"sql": _SQL}),
    "NDJSON frames": ("/execute", "application/x-ndjson; frames=1", {"sql": _SQL}),
    "CSV": ("/execute", "text/csv", {"sql": _SQL}),
    "CSV, a parameter": (
        "/execute",
        "text/csv",
        {"sql": "select * from big where id > $1", "parameters": [0]},
    ),
    "Arrow": ("/execute", "application/vnd.apache.arrow.stream", {"sql": _SQL}),
    "Data API": (
        "/Execute",
        "application/json",
        {"sql": _SQL, "resourceArn": "a", "secretArn": "b"},
    ),
}
"""Path, Accept, body."""
_INSERT = "insert into sink values ({}, {})"
_BARS = {
    "JSON": ("B4", 0.6),
    "CSV": ("B5", 1.0),
    "Arrow": ("B5", 1.0),
    "Data API": ("B6", 0.4),
    "sets": ("B12", 0.8),
}


class Asker:
    """Sends one request at a time and reads its answer without looking at it."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._buffer = bytearray(1 << 20)

    def ask(
        self, path: str, accept: str, body: Any, *, rate: float = 0.0, most: float = 0.0
    ) -> tuple[float, int]:
        """Seconds and bytes of the answer.

        Args:
            rate: Bytes a second to read at the most; 0 is as fast as possible.
            most: Bytes after which to hang up; 0 reads to the end.
        """
        text = orjson.dumps(body)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._token}\r\nAccept: {accept}\r\n"
            f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        ).encode()
        begun = time.perf_counter()
        with socket.create_connection(("127.0.0.1", self._port)) as sock:
            sock.sendall(head + text)
            total, end, start = 0, b"", b""
            while count := sock.recv_into(self._buffer, 65_536 if rate else 0):
                if not start:
                    start = bytes(self._buffer[:2_000])
                end = (end + bytes(self._buffer[max(0, count - 8) : count]))[-8:]
                total += count
                if rate:
                    time.sleep(max(0.0, begun + total / rate - time.perf_counter()))
                if most and total >= most:
                    break
        took = time.perf_counter() - begun
        if not start.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{path}: {start.decode('latin-1')}")
        if b"chunked" in start and not most and not end.endswith(b"0\r\n\r\n"):
            raise SystemExit(f"{path} as {accept} broke off after {total} bytes")
        return took, total


@contextmanager
def _watched(pid: int) -> Iterator[Callable[[], int]]:
    """Bytes that the process grew by at the most since the beginning."""
    before = most = resident(pid)
    stop = threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.01):
            most = max(most, resident(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: most - before
    finally:
        stop.set()
        thread.join()


def _psql(database: embedded.Embedded, psql: str) -> float:
    command = [psql, "-X", "-q", database.dsn(user="bench"), "-c"]
    begun = time.perf_counter()
    subprocess.run([*command, f"\\copy ({_SQL}) to '/dev/null' csv"], check=True)
    return time.perf_counter() - begun


def _batch_body() -> Any:
    sets = [
        [
            {"name": "id", "value": {"longValue": number}},
            {"name": "name", "value": {"stringValue": f"name {number}"}},
        ]
        for number in range(SETS)
    ]
    sql = _INSERT.format(":id", ":name")
    return {"sql": sql, "parameterSets": sets, "resourceArn": "a", "secretArn": "b"}


async def _many(dsn: str) -> float:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("truncate sink")
        rows = [(number, f"name {number}") for number in range(SETS)]
        begun = time.perf_counter()
        await connection.executemany(_INSERT.format("$1", "$2"), rows)
        return time.perf_counter() - begun
    finally:
        await connection.close()


def run(rounds: int, rows: int) -> dict[str, Any]:
    """Measure everything, *rounds* times."""
    forms = {name: each for name, each in _FORMS.items() if name != "Arrow" or arrow.available()}
    samples: dict[str, list[float]] = {name: [] for name in ("psql", "executemany", "sets", *forms)}
    sizes: dict[str, int] = {}
    memory: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsluice-bench-")))
        home.chmod(0o755)
        binaries = programs.find_binaries()
        database = stack.enter_context(embedded.start(home / "data", binaries=binaries))
        database.sql(_TABLE % rows)
        dsn = database.dsn(user="bench")
        psql = str(database._psql())
        port, pid = stack.enter_context(gateway(dsn, home / "gateway.log"))
        token = token_for(MASTER_KEY.encode(), subject="bench", lifetime=86_000)
        asker = Asker(port, token)
        for name, (path, accept, body) in forms.items():
            # Its libraries are loaded and its statement is known to be large.
            asker.ask(path, accept, {**body, "sql": "select 1"} | {"parameters": []})
            asker.ask(path, accept, body, most=4_000_000)
            with _watched(pid) as grown:
                asker.ask(path, accept, body)
                memory[name] = {"fast": grown()}
            with _watched(pid) as grown:
                asker.ask(path, accept, body, rate=SLOW, most=4 * SLOW)
                memory[name]["slow"] = grown()
        batch = _batch_body()
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))

        def sets() -> float:
            database.sql("truncate sink")
            return asker.ask("/BatchExecute", "application/json", batch)[0]

        sets()
        for number in range(rounds):
            turns: list[tuple[str, Callable[[], float]]] = [
                ("psql", lambda: _psql(database, psql)),
                ("executemany", lambda: runner.run(_many(dsn))),
                ("sets", sets),
            ]
            for name, (path, accept, body) in forms.items():

                def ask(name: str = name, request: Any = (path, accept, body)) -> float:
                    took, sizes[name] = asker.ask(*request)
                    return took

                turns.append((name, ask))
            for name, turn in turns if number % 2 else reversed(turns):
                samples[name].append(turn())
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        return {
            "machine": machine(binaries.version),
            "rounds": rounds,
            "rows": rows,
            "sets": SETS,
            "figures": [
                _row(name, samples, sizes, memory)
                for name in ("psql", *forms, "executemany", "sets")
            ],
        }


def _row(
    name: str,
    samples: Mapping[str, list[float]],
    sizes: Mapping[str, int],
    memory: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    median = statistics.median(samples[name])
    reference = "executemany" if name in ("executemany", "sets") else "psql"
    bar, least = _BARS.get(name, ("", None))
    row: dict[str, Any] = {
        "what": name,
        "seconds": round(median, 4),
        "spread": [round(min(samples[name]), 4), round(max(samples[name]), 4)],
        "ratio": round(statistics.median(samples[reference]) / median, 2),
        "reference": reference,
        "bar": bar,
        "least": least,
    }
    if name in sizes:
        row["megabytes_per_second"] = round(sizes[name] / median / 1e6, 1)
    if name in memory:
        row["grown_mib"] = {
            caller: round(grown / (1 << 20), 1) for caller, grown in memory[name].items()
        }
    return row


def table(result: Mapping[str, Any]) -> str:
    """*result* as a page of Markdown."""
    lines = [
        describe(result["machine"]),
        f"{result['rows']:,} rows of 6 columns, {result['sets']:,} sets of 2 parameters;"
        f" {result['rounds']} interleaved rounds, medians. The speed of `psql \\copy` to CSV, and"
        " of asyncpg's `executemany`, is 1.",
        "",
        "| what | s | spread | MB/s | speed | bar | memory grows by, MiB: fast, slow caller |",
        "|---|---:|---|---:|---:|---|---|",
    ]
    for row in result["figures"]:
        low, high = row["spread"]
        rate = f"{row['megabytes_per_second']:.0f}" if "megabytes_per_second" in row else ""
        bar = f"{row['bar']}: {row['least']}" if row["bar"] else ""
        grown = row.get("grown_mib")
        memory = f"{grown['fast']:.1f}, {grown['slow']:.1f}" if grown else ""
        lines.append(
            f"| {row['what']} | {row['seconds']:.3f} | {low:.3f} to {high:.3f} | {rate}"
            f" | {row['ratio']:.2f} | {bar} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, and write `results/rows.json` and `results/rows.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--quick", action="store_true", help="one round of 100,000 rows; nothing is written"
    )
    given = parser.parse_args()
    if given.quick:
        print(table(run(1, 100_000)), end="")
        return
    result = run(given.rounds, given.rows)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rows.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    (RESULTS / "rows.md").write_text(table(result))
    print(table(result), end="")


if __name__ == "__main__":
    main()
