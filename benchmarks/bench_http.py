"""One statement per request over loopback: the gateway against a bare handler.

    python -m benchmarks.bench_http [--rounds 5] [--seconds 1.5]

Four processes: PostgreSQL, the reference handler (`bare.py`), `gateway serve`, and the
load client. The two servers take turns in every round, so that what else happens on the
machine happens to both; the figures are medians over the rounds, and ratios of medians.
The gateway runs with everything on: a bearer token with each request, policy, queue,
reset of the session behind each statement, metrics, access log.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gateway.cli import embedded
from gateway.cli.token import token_for

from .bare import CONNECTIONS
from .servers import MASTER_KEY, bare, describe, gateway, machine, process

CALLERS = (1, 32, 256)
RESULTS = Path(__file__).parent / "results"
ROWS = 10_000
TABLE = f"""
create role bench login;
create table item (id int primary key, name text not null, price numeric(12,2) not null, n int);
insert into item select i, 'item ' || i, i / 7.0, 0 from generate_series(1, {ROWS}) i;
grant select, update on item to bench;
analyze item;
"""
STATEMENTS = {
    "read": "select id, name, price::text from item where id = $1",
    "write": "update item set n = n + 1 where id = $1",
}


class Server(NamedTuple):
    """One of the two that are compared."""

    name: str
    port: int
    requests: Mapping[str, list[str]]
    """By kind of statement: complete HTTP requests, one for each of many rows."""


def request(path: str, sql: str, id: int, token: str | None) -> str:
    """A complete HTTP request."""
    body = orjson.dumps({"sql": sql, "parameters": [id]}).decode()
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"{authorization}Content-Length: {len(body)}\r\n\r\n{body}"
    )


def _requests(paths: Mapping[str, str], token: str | None) -> dict[str, list[str]]:
    # 7,919 is prime: neighbours in the list are far apart in the table.
    ids = [1 + i * 7_919 % ROWS for i in range(2_000)]
    return {
        kind: [request(paths[kind], sql, id, token) for id in ids]
        for kind, sql in STATEMENTS.items()
    }


class Load:
    """The load client's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, server: Server, kind: str, callers: int, seconds: float) -> dict[str, Any]:
        """Figures of one job; an error of any request ends the benchmark."""
        job = {
            "port": server.port,
            "requests": server.requests[kind],
            "callers": callers,
            "seconds": seconds,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(orjson.dumps(job).decode() + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = orjson.loads(self._process.stdout.readline())
        if answer["errors"]:
            raise SystemExit(f"{server.name}, {kind}, {callers}: {answer['first_error']}")
        return answer


def run(rounds: int, seconds: float) -> dict[str, Any]:
    """All figures of one interleaved run."""
    samples: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsluice-bench-")))
        home.chmod(0o755)
        binaries = embedded.find_binaries()
        database = stack.enter_context(embedded.start(home / "data", binaries=binaries))
        database.sql(TABLE)
        dsn = database.dsn(user="bench")
        token = token_for(MASTER_KEY.encode(), subject="bench", lifetime=3_600)
        handler = stack.enter_context(bare(dsn))
        ours, _ = stack.enter_context(gateway(dsn, home / "gateway.log"))
        servers = [
            Server("bare", handler, _requests({"read": "/read", "write": "/write"}, None)),
            Server("gateway", ours, _requests({"read": "/execute", "write": "/execute"}, token)),
        ]
        load = Load(
            stack.enter_context(
                process(["benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
        )
        for server in servers:
            for kind in STATEMENTS:
                load.run(server, kind, 32, 1.0)  # connections opened, statements prepared
        for number in range(rounds):
            for kind in STATEMENTS:
                for callers in CALLERS:
                    # Who goes first changes, so that neither has it always warmer.
                    for server in servers if number % 2 else reversed(servers):
                        figures = load.run(server, kind, callers, seconds)
                        samples.setdefault((kind, callers, server.name), []).append(figures)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        return {
            "machine": machine(binaries.version),
            "rounds": rounds,
            "seconds": seconds,
            "connections": CONNECTIONS,
            "figures": [_row(samples, kind, count) for kind in STATEMENTS for count in CALLERS],
        }


def _row(samples: Mapping[Any, list[dict[str, Any]]], kind: str, callers: int) -> dict[str, Any]:
    row: dict[str, Any] = {"statement": kind, "callers": callers}
    for name in ("bare", "gateway"):
        figures = samples[kind, callers, name]
        row[name] = {
            unit: round(statistics.median(each[unit] for each in figures), 3)
            for unit in ("per_second", "p50_ms", "p99_ms")
        }
    row["rate_ratio"] = round(row["gateway"]["per_second"] / row["bare"]["per_second"], 2)
    row["p50_ratio"] = round(row["gateway"]["p50_ms"] / row["bare"]["p50_ms"], 2)
    return row


def table(result: Mapping[str, Any]) -> str:
    """*result* as a page of Markdown."""
    lines = [
        describe(result["machine"]),
        f"{result['rounds']} interleaved rounds of {result['seconds']} s for each cell; medians;"
        f" {result['connections']} connections to PostgreSQL on both sides.",
        "",
        "| statement | callers | bare /s | gateway /s | rate, gateway : bare"
        " | bare p50 ms | gateway p50 ms | p50, gateway : bare | bare p99 ms | gateway p99 ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["figures"]:
        bare, ours = row["bare"], row["gateway"]
        lines.append(
            f"| {row['statement']} | {row['callers']} | {bare['per_second']:,.0f}"
            f" | {ours['per_second']:,.0f} | {row['rate_ratio']:.2f}"
            f" | {bare['p50_ms']:.2f} | {ours['p50_ms']:.2f} | {row['p50_ratio']:.2f}"
            f" | {bare['p99_ms']:.2f} | {ours['p99_ms']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, and write `results/http.json` and `results/http.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    given = parser.parse_args()
    result = run(given.rounds, given.seconds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "http.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    (RESULTS / "http.md").write_text(table(result))
    print(table(result), end="")


if __name__ == "__main__":
    main()
