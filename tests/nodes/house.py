"""A house of several nodes behind HAProxy, all on loopback, all processes of their own."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from tests.fix_gateway import PATIENCE, Gateway, Process, process, until
from tests.fix_postgres import Database
from tests.fix_tools import debian

ROOT = Path(__file__).parents[2]
__all__ = ["House", "Sampler", "house", "house_database"]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def metric(gateway: Gateway | Process, series: str) -> float:
    """What a series of the gateway's metrics says now."""
    page = httpx2.get(gateway.admin_url + "/metrics", timeout=60).text
    [value] = [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(series)]
    return float(value)


def house_database(database: Database, *, limit: int = -1) -> Database:
    """*database* with a login of its own, so that its backends can be counted.

    Args:
        limit: The CONNECTION LIMIT of that login.
    """
    role = f"house_{database.name}"
    database.sql(
        f"create role {role} login connection limit {limit};grant create on schema public to {role}"
    )
    return Database(database.server, database.name, role)


class House:
    """Nodes that know each other, and what is in front of them."""

    def __init__(self, database: Database, ports: list[int], settings: dict[str, str]) -> None:
        self.database = database
        self.ports = ports
        self._settings = settings
        self._running: dict[int, ExitStack] = {}
        self.nodes: dict[int, Process] = {}
        self.url = ""
        """Where HAProxy listens."""

    def start(self, number: int) -> Process:
        """Start the node *number*, on its own port again."""
        stack = ExitStack()
        node = stack.enter_context(
            process(self.database, **{**self._settings, "SERVER__PORT": str(self.ports[number])})
        )
        self._running[number] = stack
        self.nodes[number] = node
        return node

    def kill(self, number: int) -> None:
        """End a node as a power cut does."""
        self.nodes[number].signal(signal.SIGKILL)
        self.forget(number)

    def forget(self, number: int) -> int:
        """Wait for the end of a node; its exit code."""
        code = self.nodes.pop(number).end()
        self._running.pop(number).close()
        return code

    def limits(self) -> list[int]:
        """How many connections each node may hold now."""
        return [
            httpx2.get(node.url + "/readyz").json()["targets"]["main"]["max_connections"]
            for _, node in sorted(self.nodes.items())
        ]

    def await_limits(self, *expected: int) -> None:
        """Wait until the nodes share the budget so, in any order."""
        until(
            lambda: sorted(self.limits()) == sorted(expected),
            f"the nodes never shared the budget as {expected}",
        )

    def close(self) -> None:
        """Stop everything."""
        for stack in self._running.values():
            stack.close()


@contextmanager
def house(
    database: Database,
    *,
    budget: int,
    nodes: int = 3,
    proxy: bool = False,
    together: bool = False,
    **settings: str,
) -> Iterator[House]:
    """*nodes* nodes that share *budget* connections; behind HAProxy with *proxy*.

    Args:
        together: Start all at the same moment, not one after the other.
    """
    ports = free_ports(nodes + 1)
    front = ports.pop()
    common = {
        "NODES__PEERS": ",".join(f"http://127.0.0.1:{port}" for port in ports),
        "NODES__REFRESH": "0.5",
        "TARGETS__MAIN__POOL__MAX_CONNECTIONS": str(budget),
        **settings,
    }
    it = House(database, ports, common)
    try:
        with ThreadPoolExecutor(nodes if together else 1) as threads:
            list(threads.map(it.start, range(nodes)))
        if not proxy:
            yield it
            return
        with _haproxy(front, ports):
            it.url = f"http://127.0.0.1:{front}"
            yield it
    finally:
        it.close()


@contextmanager
def _haproxy(port: int, nodes: list[int]) -> Iterator[None]:
    """HAProxy with the configuration of `deploy/`, but for TLS and addresses."""
    program = debian("haproxy")
    # So many connections need more open files than a test may have.
    text = (ROOT / "deploy" / "haproxy.cfg").read_text().replace("maxconn 20000", "maxconn 500")
    lines = []
    for line in text.splitlines():
        if line.strip().startswith("bind "):
            line = f"    bind 127.0.0.1:{port}"
        if line.strip().startswith("server "):
            for number, node in enumerate(nodes):
                lines.append(f"    server node{number} 127.0.0.1:{node}")
            continue
        lines.append(line)
    with (
        tempfile.NamedTemporaryFile("w", suffix=".cfg") as config,
        subprocess.Popen([program, "-db", "-q", "-f", _write(config, lines)]) as running,
    ):
        try:
            url = f"http://127.0.0.1:{port}/readyz"
            until(lambda: _answers(url) or running.poll() is not None, "HAProxy does not answer")
            assert running.poll() is None, "HAProxy did not start"
            yield
        finally:
            running.kill()


def _write(config: Any, lines: list[str]) -> str:
    config.write("\n".join(lines) + "\n")
    config.flush()
    return str(config.name)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


class Sampler:
    """Counts the backends of a login all the time.

    Args:
        budget: How many there may be; of samples with more it is kept who they were.
    """

    def __init__(self, database: Database, budget: int | None = None) -> None:
        self._database = database
        self._budget = budget
        self.most = 0
        self.over: list[str] = []
        """The backends of samples that had too many."""
        self.samples = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._body)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _body(self) -> None:
        import asyncio

        asyncio.run(self._count())

    async def _count(self) -> None:
        import asyncio

        connection = await asyncpg.connect(self._database.tcp_dsn)
        sql = "select count(*) from pg_stat_activity where usename = $1"
        while not self._stop.is_set():
            found = await connection.fetchval(sql, self._database.app_user)
            self.most = max(self.most, found)
            self.samples += 1
            if self._budget is not None and found > self._budget and len(self.over) < 20:
                rows = await connection.fetch(
                    "select pid, client_port, backend_type, state, left(query, 40) query,"
                    " backend_start, now() from pg_stat_activity where usename = $1",
                    self._database.app_user,
                )
                self.over.append("\n".join(str(dict(row)) for row in rows))
            await asyncio.sleep(0.005)
        await connection.close()


class Callers:
    """Callers that each send one request after the other, through HAProxy or to nodes.

    They do what any client does: what was refused as safe to repeat they send again.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        callers: int,
        sql: str = "insert into did values (:key)",
    ) -> None:
        self.url = url
        self.total = 0
        """Statements answered."""
        self.failed: list[str] = []
        self.repeated: Counter[str] = Counter()
        self._token = token
        self._sql = sql
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._threads = [
            threading.Thread(target=self._body, args=(number,)) for number in range(callers)
        ]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _body(self, number: int) -> None:
        count = 0
        with httpx2.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self._token}"}, timeout=60
        ) as client:
            while not self._stop.is_set():
                count += 1
                key = f"{id(self)}-{number}-{count}"
                if self._one(client, key):
                    with self._progress:
                        self.total += 1
                        self._progress.notify_all()

    def await_more(self, count: int) -> None:
        """Wait until so many more statements were answered."""
        with self._progress:
            enough = self.total + count
            assert self._progress.wait_for(lambda: self.total >= enough, PATIENCE), (
                f"the load does not go on: {self.failed[-3:]} {self.repeated}"
            )

    def _one(self, client: httpx2.Client, key: str) -> bool:
        body = {"sql": self._sql, "parameters": {"key": key}}
        give_up = time.monotonic() + 30
        why = ""
        while time.monotonic() < give_up:
            try:
                answer = client.post("/execute", json=body, headers={"idempotency-key": key})
            except httpx2.TransportError as error:
                self.repeated[type(error).__name__] += 1
                continue
            if answer.status_code == 200:
                return True
            why = answer.text
            if answer.status_code == 502:
                # HAProxy's own: the node went. The key makes it safe to ask again.
                self.repeated["502"] += 1
                continue
            problem = answer.json()
            if problem["retry"] not in ("safe", "unknown"):
                break
            self.repeated[problem["code"]] += 1
            time.sleep(0.02)
        self.failed.append(why)
        return False
