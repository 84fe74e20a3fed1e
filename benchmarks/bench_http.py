"""One statement per request over loopback: the gateway against a bare handler.

    python -m benchmarks.bench_http [--rounds 5] [--seconds 2]

Processes: PostgreSQL, the reference handler (`bare.py`), `pgsluice serve`, and the load
client: wrk where there is one, else `load.py`, which takes more of the machine. The two
servers take turns in every round, so that what else happens on the machine happens to both;
the figures are medians over the rounds, and ratios of medians. The gateway runs with
everything on: a bearer token with each request, policy, queue, reset of the session behind
each statement, metrics, access log. The driver alone, and both servers with a network of
1 ms to the database, are measured in the same rounds.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gateway.cli import embedded, programs
from gateway.cli.token import token_for

from .bare import CONNECTIONS
from .servers import (
    MASTER_KEY,
    bare,
    cpu_seconds,
    delayed,
    describe,
    gateway,
    machine,
    process,
)

CALLERS = (1, 32, 256)
FAR_CALLERS = (1, 32)
DELAY = 0.001
"""Seconds, there and back, of the network that is added to half of the runs."""
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
    pid: int


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


class Wrk:
    """wrk, with requests from a file of Lua."""

    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self._script = home / "requests.lua"

    def run(self, server: Server, kind: str, callers: int, seconds: float) -> dict[str, Any]:
        """Figures of one job; an error of any request ends the benchmark."""
        texts = ",".join(orjson.dumps(each).decode() for each in server.requests[kind])
        self._script.write_text(
            f"local texts, at = {{{texts}}}, 0\n"
            "function request() at = at % #texts + 1 return texts[at] end\n"
        )
        command = [self._program, "-t1", f"-c{callers}", f"-d{max(1, round(seconds))}s"]
        said = subprocess.run(
            [*command, "--latency", "-s", str(self._script), f"http://127.0.0.1:{server.port}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if "Non-2xx" in said or "Socket errors" in said:
            raise SystemExit(f"{server.name}, {kind}, {callers}: {said}")
        figures = {"per_second": float(re.findall(r"Requests/sec:\s+(\S+)", said)[0])}
        for percent, unit in ((50, "p50_ms"), (99, "p99_ms")):
            number, name = re.findall(rf"{percent}%\s+([\d.]+)(us|ms|s)", said)[0]
            figures[unit] = float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[name]
        return figures


class Load:
    """The load client's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self, server: Server, kind: str, callers: int, seconds: float, think: float = 0.0
    ) -> dict[str, Any]:
        """Figures of one job; an error of any request ends the benchmark."""
        job = {
            "think": think,
            "port": server.port,
            "requests": server.requests[kind],
            "callers": callers,
            "seconds": seconds,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(orjson.dumps(job).decode() + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer["errors"]:
            raise SystemExit(f"{server.name}, {kind}, {callers}: {answer['first_error']}")
        return answer

    def direct(self, dsn: str, seconds: float) -> float:
        """Median milliseconds of the driver alone."""
        assert self._process.stdin is not None
        ids = [1 + i * 7_919 % ROWS for i in range(2_000)]
        job = {"dsn": dsn, "sql": STATEMENTS["read"], "values": ids, "seconds": seconds}
        self._process.stdin.write(orjson.dumps(job).decode() + "\n")
        self._process.stdin.flush()
        return float(self._answer()["p50_ms"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = orjson.loads(self._process.stdout.readline())
        return answer


def run(rounds: int, seconds: float) -> dict[str, Any]:
    """All figures of one interleaved run."""
    samples: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsluice-bench-")))
        home.chmod(0o755)
        binaries = programs.find_binaries()
        port = embedded.free_port()
        database = stack.enter_context(
            embedded.start(home / "data", binaries=binaries, port=port, host_auth="trust")
        )
        database.sql(TABLE)
        dsn = database.dsn(user="bench")
        far = stack.enter_context(delayed(port, DELAY / 2))
        token = token_for(MASTER_KEY.encode(), subject="bench", lifetime=36_000)
        theirs = _requests({"read": "/read", "write": "/write"}, None)
        own = _requests({"read": "/execute", "write": "/execute"}, token)
        servers: dict[float, list[Server]] = {}
        for delay, where in ((0.0, dsn), (DELAY, f"postgresql://bench@127.0.0.1:{far}/postgres")):
            handler = stack.enter_context(bare(where))
            ours, pid = stack.enter_context(gateway(where, home / f"gateway-{delay}.log"))
            servers[delay] = [
                Server("bare", handler[0], theirs, handler[1]),
                Server("gateway", ours, own, pid),
            ]
        own_load = Load(
            stack.enter_context(
                process(["benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
        )
        program = shutil.which("wrk")
        load = Wrk(program, home) if program else own_load
        cells = [
            (delay, kind, callers)
            for delay, crowds in ((0.0, CALLERS), (DELAY, FAR_CALLERS))
            for kind in STATEMENTS
            for callers in crowds
        ]
        for pair in servers.values():
            for server in pair:
                for kind in STATEMENTS:
                    load.run(server, kind, 32, 1.0)  # connections opened, statements prepared
        direct = []
        for number in range(rounds):
            direct.append(own_load.direct(dsn, seconds))
            for delay, kind, callers in cells:
                # Who goes first changes, so that neither has it always warmer.
                pair = servers[delay]
                for server in pair if number % 2 else reversed(pair):
                    before = cpu_seconds(server.pid)
                    figures = load.run(server, kind, callers, seconds)
                    used = cpu_seconds(server.pid) - before
                    figures["cpu_us"] = used / (figures["per_second"] * seconds) * 1e6
                    samples.setdefault((delay, kind, callers, server.name), []).append(figures)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        rows = [_row(samples, *cell) for cell in cells]
        for row in rows:
            if (row["delay_ms"], row["statement"], row["callers"]) == (0.0, "read", 1):
                row["over_driver_ms"] = round(
                    row["gateway"]["p50_ms"] - statistics.median(direct), 3
                )
        return {
            "machine": machine(binaries.version),
            "load": "wrk" if program else "benchmarks.load",
            "rounds": rounds,
            "seconds": seconds,
            "connections": CONNECTIONS,
            "driver_p50_ms": round(statistics.median(direct), 3),
            "figures": rows,
        }


def _row(
    samples: Mapping[Any, list[dict[str, Any]]], delay: float, kind: str, callers: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"delay_ms": delay * 1e3, "statement": kind, "callers": callers}
    for name in ("bare", "gateway"):
        figures = samples[delay, kind, callers, name]
        row[name] = {
            unit: round(statistics.median(each[unit] for each in figures), 3)
            for unit in ("per_second", "p50_ms", "p99_ms", "cpu_us")
        }
    for ratio, unit in (("rate", "per_second"), ("p50", "p50_ms"), ("cpu", "cpu_us")):
        row[f"{ratio}_ratio"] = round(row["gateway"][unit] / row["bare"][unit], 2)
    return row


def table(result: Mapping[str, Any]) -> str:
    """*result* as a page of Markdown."""
    lines = [
        describe(result["machine"]),
        f"{result['rounds']} interleaved rounds of {result['seconds']} s for each cell, load by"
        f" {result['load']}; medians; {result['connections']} connections to PostgreSQL on both"
        " sides. Network: what lies between the server and PostgreSQL, there and back.",
        "",
        "| network ms | statement | callers | rate, gateway : bare | p50, gateway : bare"
        " | CPU a request, gateway : bare | bare p99 ms | gateway p99 ms |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["figures"]:
        lines.append(
            f"| {row['delay_ms']:.0f} | {row['statement']} | {row['callers']}"
            f" | {row['rate_ratio']:.2f} | {row['p50_ratio']:.2f} | {row['cpu_ratio']:.2f}"
            f" | {row['bare']['p99_ms']:.2f} | {row['gateway']['p99_ms']:.2f} |"
        )
        if "over_driver_ms" in row:
            over = row["over_driver_ms"]
    lines += ["", f"p50 of a read at one caller, over asyncpg alone: {over:.2f} ms."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, and write `results/http.json` and `results/http.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    result = run(given.rounds, given.seconds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "http.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    (RESULTS / "http.md").write_text(table(result))
    print(table(result), end="")


if __name__ == "__main__":
    main()
