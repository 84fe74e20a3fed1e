"""How long a statement outlives its caller: from the hang-up until PostgreSQL has stopped.

    python -m benchmarks.bench_hangup [--rounds 200]

A gateway and a PostgreSQL of their own. The caller leaves while its statement waits in
the queue, while it runs, and while its rows are sent; by FIN and by RST in turn. The end
is when the backend is idle again as pg_stat_activity sees it, or when the queue is empty
as the metrics page sees it: both are asked over and over on an open connection, so a
figure is too large by one question at the most.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from gateway.cli import embedded
from gateway.cli.token import token_for

MASTER_KEY = "a master key for benchmarks, nothing else"
BAR = 50.0
"""Milliseconds, p99."""
SLEEP = "select pg_sleep(60)"
STREAM = "select repeat('x', 1000) from generate_series(1, 100000)"


@contextmanager
def serving(server: embedded.Embedded, connections: int) -> Iterator[tuple[int, int]]:
    """A gateway as a process; its port and that of its metrics."""
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": server.dsn("postgres", "bench"),
        "PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY,
        "PGSLUICE_SERVER__ADMIN_PORT": "0",
        "PGSLUICE_TARGETS__MAIN__POOL__MAX_CONNECTIONS": str(connections),
        "PGSLUICE_LOG_LEVEL": "off",
        "PORT": "0",
    }
    command = [sys.executable, "-m", "gateway", "serve"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.search(r"listens on (\S+?), admin on (\S+)", said)
            if found is None:
                raise SystemExit(said + process.stderr.read())
            yield urlsplit(found[1]).port or 0, urlsplit(found[2]).port or 0
        finally:
            process.kill()


def request(port: int, token: str, sql: str) -> socket.socket:
    """Send one statement; nobody reads its answer yet."""
    body = json.dumps({"sql": sql}).encode()
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(
        b"POST /execute HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer "
        + token.encode()
        + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
        + body
    )
    return sock


def leave(sock: socket.socket, *, reset: bool) -> float:
    """Hang up; return when."""
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    now = time.perf_counter()
    sock.close()
    return now


class Metrics:
    """The metrics page, asked again and again on one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def waiting(self) -> int:
        """Statements in the queue."""
        self._connection.request("GET", "/metrics")
        page = self._connection.getresponse().read().decode()
        found = re.search(r"^pgsluice_queue_waiting\{.*?\} (\S+)$", page, re.M)
        assert found
        return int(float(found[1]))


async def until_busy(watch: asyncpg.Connection, what: str, busy: bool) -> float:
    """Ask until a backend of the gateway is in state *what*, or none is; return when."""
    sql = f"select 1 from pg_stat_activity where application_name = 'pgsluice' and {what} limit 1"
    statement = await watch.prepare(sql)
    while (await statement.fetchval() is not None) is not busy:
        pass
    return time.perf_counter()


def until(what: Callable[[], bool]) -> float:
    """Ask until *what* is so; return when."""
    while not what():
        pass
    return time.perf_counter()


async def measure(server: embedded.Embedded, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, by phase."""
    token = token_for(MASTER_KEY.encode(), subject="bench", lifetime=3600)
    watch = await asyncpg.connect(server.dsn("postgres"))
    times: dict[str, list[float]] = {"queue": [], "running": [], "streaming": []}
    with serving(server, 1) as (port, admin):
        metrics = Metrics(admin)
        with request(port, token, SLEEP) as busy:
            await until_busy(watch, "wait_event = 'PgSleep'", True)
            for count in range(rounds):
                if count % 200 == 199:
                    break  # the one that sleeps has a deadline too
                sock = request(port, token, "select 1")
                until(lambda: metrics.waiting() == 1)
                began = leave(sock, reset=count % 2 == 1)
                times["queue"].append((until(lambda: metrics.waiting() == 0) - began) * 1000)
            busy.close()
    with serving(server, 4) as (port, _):
        for count in range(rounds):
            sock = request(port, token, SLEEP)
            await until_busy(watch, "wait_event = 'PgSleep'", True)
            began = leave(sock, reset=count % 2 == 1)
            times["running"].append(
                (await until_busy(watch, "state <> 'idle'", False) - began) * 1e3
            )
        for count in range(rounds):
            sock = request(port, token, STREAM)
            sock.recv(1 << 16)
            began = leave(sock, reset=count % 2 == 1)
            ended = await until_busy(watch, "state <> 'idle'", False)
            times["streaming"].append((ended - began) * 1e3)
    await watch.close()
    return times


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    home = Path(tempfile.mkdtemp(prefix="pgsluice-bench-"))
    home.chmod(0o711)
    try:
        with embedded.start(home / "data", settings={"fsync": "off"}) as server:
            server.sql("create role bench login")
            times = asyncio.run(measure(server, rounds))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print("phase      rounds   median ms   p99 ms    bar")
    for phase, all_of_them in times.items():
        p99 = statistics.quantiles(all_of_them, n=100, method="inclusive")[98]
        verdict = "met" if p99 <= BAR else "missed"
        print(
            f"{phase:<10} {len(all_of_them):>6}  {statistics.median(all_of_them):>10.2f}"
            f"  {p99:>7.2f}    {BAR:.0f} ms {verdict}"
        )


if __name__ == "__main__":
    main()
