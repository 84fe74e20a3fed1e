"""How long callers wait after a failover, beyond what the database itself takes.

    python -m benchmarks.bench_failover [--promotions 12] [--callers 16] [--outage 0.2 8]

A primary, a streaming replica, the gateway in front, callers who write without a pause, each
write with a key. The primary is killed; after a random time, as whoever watches over it would
take, the replica is promoted. The gap is the time from the first moment at which the new
primary takes a write directly (tried every millisecond) to the first write that succeeds
through the gateway; `all` is the time to the answer of the last caller who waited. Then the
old primary is made a replica of the new one, and it begins again. In one table the gateway
knows both hosts; in the other it knows one address, which is moved to the replica just before
the promotion. Ends with 1 if a write failed or was stored twice, or p50 is above a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx2
import orjson

from gateway.cli import embedded, programs
from gateway.cli.token import token_for
from gateway.core import gw_schema

from .bench_http import RESULTS
from .servers import MASTER_KEY, describe, gateway, machine

BAR = 1.0
"""Seconds that p50 may be."""
_SETTINGS = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on"}
_INSERT = "insert into did (key, at) values ($1, clock_timestamp()) returning key"


class Gap(NamedTuple):
    """One promotion."""

    outage: float
    """Seconds from the kill to the new primary's first write."""
    first: float
    all: float
    waiting: int
    """Callers who had no answer when the new primary took its first write."""


class Pair:
    """A primary and its replica, on two ports that stay."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._binaries = programs.find_binaries()
        self._made = 0
        self.primary = self._start(home / "first", embedded.free_port())
        self.primary.sql("create role bench login; create role copier login replication")
        with (self.primary.data / "pg_hba.conf").open("a") as rules:
            rules.write("host replication copier 127.0.0.1/32 trust\n")
        self.primary.sql("select pg_reload_conf(); create database app")
        self.primary.sql(
            "create table did (key text, at timestamptz); grant all on did to public;"
            + gw_schema.install(["ledger"], ("public",)),
            database="app",
        )
        self.replica = self._copy(embedded.free_port())

    @property
    def ports(self) -> tuple[int, int]:
        """Where they listen."""
        return self.primary.port, self.replica.port

    def kill(self) -> None:
        """The primary is gone, without a word."""
        os.kill(self.primary.pid, signal.SIGKILL)
        self.primary.stop()

    def swap(self) -> None:
        """The replica was promoted: what was the primary becomes a replica, on its port."""
        old, self.primary = self.primary, self.replica
        shutil.rmtree(old.data)
        self.replica = self._copy(old.port)

    def stop(self) -> None:
        """End both."""
        self.replica.stop()
        self.primary.stop()

    def _copy(self, port: int) -> embedded.Embedded:
        self._made += 1
        data = self._home / f"copy-{self._made}"
        subprocess.run(
            [str(self._binaries.program("pg_basebackup")), "-D", str(data), "-R", "-X", "stream",
             "-c", "fast", "-h", "127.0.0.1", "-p", str(self.primary.port), "-U", "copier"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip
        owner = self.primary.data.stat()
        for path in (data, *data.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        data.chmod(0o700)
        return self._start(data, port)

    def _start(self, data: Path, port: int) -> embedded.Embedded:
        return embedded.start(
            data, port=port, max_connections=60, binaries=self._binaries, host_auth="trust",
            settings=_SETTINGS,
        )  # fmt: skip


class Address:
    """One port that leads to whichever server it is told."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    def move(self, target: int) -> None:
        """Lead elsewhere; what is connected is cut off."""
        self.target = target
        for writer in list(self._open):
            writer.transport.abort()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Address]:
        """Serve."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.move(0)
            server.close()
            while self._open:  # noqa: ASYNC110  # those cut off are about to end
                await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, back}
        self._open |= pair
        pumps = [
            asyncio.create_task(_pump(reader, back)),
            asyncio.create_task(_pump(there, writer)),
        ]
        try:
            await asyncio.wait(pumps)
        finally:
            self._open -= pair
            for each in pair:
                each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


class Callers:
    """Write all the time; what they are told, and when."""

    def __init__(self, port: int, count: int) -> None:
        token = token_for(MASTER_KEY.encode(), subject="bench", lifetime=7_200)
        self._client = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {token}"},
            timeout=60,
            limits=httpx2.Limits(max_connections=None),
        )
        self._count = count
        self._loop = asyncio.get_running_loop()
        self.done: list[tuple[float, float]] = []
        """Beginning and end of each write that succeeded, by the clock of the event loop."""
        self.failed: list[str] = []
        self.keys: list[str] = []
        self._stop = False

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Callers]:
        """Begin; at the end every one of them has its answer."""
        tasks = [asyncio.create_task(self._write()) for _ in range(self._count)]
        try:
            yield self
        finally:
            self._stop = True
            await asyncio.gather(*tasks)
            await self._client.aclose()

    async def _write(self) -> None:
        while not self._stop:
            key = uuid.uuid4().hex
            began = self._loop.time()
            answer = await self._client.post(
                "/execute",
                json={"sql": _INSERT, "parameters": [key]},
                headers={"idempotency-key": key},
            )
            if answer.status_code == 200:
                self.done.append((began, self._loop.time()))
                self.keys.append(key)
            else:
                self.failed.append(answer.text)

    async def more(self, count: int) -> None:
        """Wait until so many more have succeeded."""
        wanted = len(self.done) + count
        while len(self.done) < wanted:  # noqa: ASYNC110  # counted by others
            await asyncio.sleep(0.01)


async def _first_write(port: int) -> float:
    """Event-loop time at which the server on *port* has taken a write."""
    connection = await asyncpg.connect(
        host="127.0.0.1", port=port, user="bench", database="app", ssl=False
    )
    try:
        while True:
            try:
                await connection.execute("insert into did values (null, clock_timestamp())")
            except asyncpg.ReadOnlySQLTransactionError:
                await asyncio.sleep(0.001)
            else:
                return asyncio.get_running_loop().time()
    finally:
        await connection.close()


async def promotion(pair: Pair, callers: Callers, outage: float, address: Address | None) -> Gap:
    """Kill, wait, promote; how long it took until callers were served again."""
    loop = asyncio.get_running_loop()
    await callers.more(100)
    killed = loop.time()
    await asyncio.to_thread(pair.kill)
    await asyncio.sleep(outage)
    if address is not None:
        address.move(pair.replica.port)
    asked = loop.time()
    writes = asyncio.create_task(_first_write(pair.replica.port))
    await asyncio.to_thread(pair.replica.sql, "select pg_promote()")
    up = await writes
    # Each of them waits for one answer at the most: so many more, and nobody waits any longer.
    await callers.more(2 * callers._count)
    after = [(began, end) for began, end in callers.done if end > asked]
    waited = [end for began, end in after if began < up]
    first = min(end for _, end in after)
    await asyncio.to_thread(pair.swap)
    return Gap(up - killed, first - up, max(waited, default=first) - up, len(waited))


async def measure(
    promotions: int, count: int, outages: tuple[float, float], moving: bool, seed: int
) -> dict[str, Any]:
    """All promotions of one kind."""
    rng = random.Random(seed)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsluice-failover-")))
        await asyncio.to_thread(home.chmod, 0o711)
        pair = await asyncio.to_thread(Pair, home)
        stack.callback(lambda: pair.stop())
        async with Address(pair.primary.port).listening() as address:
            ports = [address.port] if moving else list(pair.ports)
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            dsn = f"postgresql://bench@{hosts}/app?sslmode=disable"
            port, _ = stack.enter_context(gateway(dsn, home / "gateway.log"))
            gaps = []
            async with Callers(port, count).writing() as callers:
                for number in range(promotions):
                    outage = rng.uniform(*outages)
                    gap = await promotion(pair, callers, outage, address if moving else None)
                    gaps.append(gap)
                    sys.stdout.write(
                        f"{'one address' if moving else 'two hosts':<12} {number + 1:>2}: away"
                        f" {gap.outage:5.2f} s, first {gap.first:6.3f} s, all {gap.all:6.3f} s,"
                        f" {gap.waiting} waited, {len(callers.failed)} failed\n"
                    )
                    sys.stdout.flush()
            script = (
                "select key, count(*) from did where key is not null group by 1 having count(*) > 1"
            )
            doubled = pair.primary.sql(script, database="app").splitlines()
            return {
                "hosts": "one address" if moving else "two hosts",
                "promotions": len(gaps),
                "writes": len(callers.done),
                "failed": len(callers.failed),
                "doubled": len(doubled),
                **_figures("first", [gap.first for gap in gaps]),
                **_figures("all", [gap.all for gap in gaps]),
                "waited": sum(gap.waiting for gap in gaps),
                "errors": callers.failed[:5],
            }


def _figures(name: str, values: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50": round(statistics.median(values), 3),
        f"{name}_max": round(max(values), 3),
    }


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "| | promotions | gap p50 | gap max | last caller p50 | max | callers who waited"
        " | writes | failed | doubled |",
        "|---" * 10 + "|",
    ]
    lines += [
        f"| {row['hosts']} | {row['promotions']} | {row['first_p50']:.2f} s |"
        f" {row['first_max']:.2f} s | {row['all_p50']:.2f} s | {row['all_max']:.2f} s |"
        f" {row['waited']} | {row['writes']:,} | {row['failed']} | {row['doubled']} |"
        for row in result["rows"]
    ]
    return "\n".join([*lines, "", describe(result["machine"]), ""])


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--promotions", type=int, default=12)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--outage", type=float, nargs=2, default=(0.2, 8.0), metavar=("FROM", "TO"))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rows = [
        asyncio.run(
            measure(given.promotions, given.callers, tuple(given.outage), moving, given.seed)
        )
        for moving in (False, True)
    ]
    version = subprocess.run(
        [str(programs.find_binaries().program("postgres")), "--version"],
        check=True, capture_output=True, text=True,
    ).stdout.split()[-1]  # fmt: skip
    result = {"machine": machine(version), "rows": rows}
    if given.promotions >= 10:
        RESULTS.mkdir(exist_ok=True)
        options = orjson.OPT_INDENT_2
        (RESULTS / "failover.json").write_bytes(orjson.dumps(result, option=options) + b"\n")
        (RESULTS / "failover.md").write_text(table(result))
    print(table(result), end="")
    bad = [row for row in rows if row["failed"] or row["doubled"] or row["first_p50"] > BAR]
    for row in rows:
        print(*row["errors"], sep="\n", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
