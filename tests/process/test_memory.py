"""However much is asked or sent at once, the process stays small and says why it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.cli.token import token_for
from tests.fix_postgres import Database

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
MASTER_KEY = "Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZSE="
MIB = 1 << 20
RESOURCE = "arn:aws:rds:us-east-1:123456789012:cluster:main"
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:main-AbCdEf"
BODY = 4 * MIB
BODIES = 64 * MIB
"""What all bodies in flight may take, by default."""
RESPONSE = 16 * MIB
"""What one result that has to be held may take, by default."""
SLACK = 16 * MIB
"""What an allocator may keep, and a first use load, beside what is asked for."""


class Process:
    """A gateway in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.address = urlsplit(url).hostname or "", urlsplit(url).port or 0
        token = token_for(MASTER_KEY.encode(), subject="tester", lifetime=600)
        self.head = {"content-type": "application/json", "authorization": f"Bearer {token}"}

    def memory(self, what: str) -> int:
        """Bytes; `VmRSS` is what it holds, `VmHWM` the most that it ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.M)
        assert found
        return int(found[1]) * 1024

    def reset_peak(self) -> int:
        """Make the peak what is held now, and return it."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.memory("VmHWM")

    @contextmanager
    def asked(self, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(*self.address)
        try:
            connection.request("POST", path, json.dumps(body), self.head)
            yield connection.getresponse()
        finally:
            connection.close()

    def execute(self, sql: str) -> dict[str, Any]:
        with self.asked("/execute", {"sql": sql}) as response:
            answer: dict[str, Any] = json.loads(response.read())
            return answer

    def data_api(self, sql: str) -> tuple[int, dict[str, Any]]:
        body = {"resourceArn": RESOURCE, "secretArn": SECRET, "sql": sql}
        with self.asked("/Execute", body) as response:
            return response.status, json.loads(response.read())

    def is_well(self) -> bool:
        return self.process.poll() is None and self.execute("select 1")["rows"] == [[1]]


@contextmanager
def serving(database: Database, **more: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "gateway", "serve"]
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": database.app_tcp_dsn + "?sslmode=disable",
        "PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY,
        "PGSLUICE_SERVER__ADMIN_PORT": "-1",
        "PGSLUICE_LOG_LEVEL": "off",
        "PORT": "0",
        **more,
    }
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"listens on (\S+?)[,\s]", line)
            assert found, line
            served = Process(process, found[1])
            # Whatever is loaded on first use is loaded now.
            assert served.is_well()
            assert served.data_api("select 1")[0] == 200
            yield served
        finally:
            process.kill()


@pytest.mark.slow
def test_a_cell_of_256_mb_is_refused_and_takes_no_room(database: Database) -> None:
    with serving(database) as gateway:
        before = gateway.reset_peak()
        answer = gateway.execute("select repeat('x', 256 * 1024 * 1024)")
        assert answer["code"] == "result_too_large"
        status, answer = gateway.data_api("select repeat('x', 256 * 1024 * 1024)")
        assert status == 400, answer
        # One connection at a time fills its budget, and its input stands beside what was read.
        assert gateway.memory("VmHWM") - before <= 2 * RESPONSE + SLACK
        assert gateway.is_well()


def drain(response: http.client.HTTPResponse) -> tuple[int, int, bytes]:
    """Brackets that close, bytes, and the end of an answer that is not kept."""
    brackets = size = 0
    tail = b""
    while piece := response.read(1 << 16):
        brackets += piece.count(b"]")
        size += len(piece)
        tail = (tail + piece)[-200:]
    return brackets, size, tail


ROWS = 3_000_000
MANY = f"select n, n::text from generate_series(1, {ROWS}) n"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/execute", "/Execute"])
def test_three_million_rows_arrive_whole_through_a_small_process(
    database: Database, path: str
) -> None:
    body = {"sql": MANY}
    if path == "/Execute":
        body |= {"resourceArn": RESOURCE, "secretArn": SECRET}
    with serving(database) as gateway:
        before = gateway.reset_peak()
        with gateway.asked(path, body) as response:
            assert response.status == 200
            brackets, size, tail = drain(response)
        # Every row has one bracket, for the rows hold numbers alone; a few lists stand beside.
        assert 0 <= brackets - ROWS <= 8
        assert size > 40 * MIB
        assert tail.rstrip().endswith(b"}")
        assert gateway.memory("VmHWM") - before <= SLACK
        assert gateway.is_well()


@pytest.mark.slow
def test_three_million_rows_are_refused_where_aws_refuses_them(database: Database) -> None:
    with serving(database, PGSLUICE_TARGETS__MAIN__COMPAT="aws") as gateway:
        before = gateway.reset_peak()
        status, answer = gateway.data_api(MANY)
        assert status == 400
        assert answer["message"] == ("The result exceeds the size limit 1 MB.")
        assert gateway.memory("VmHWM") - before <= SLACK
        assert gateway.is_well()


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length
        return int(head.split()[1]), head, await reader.readexactly(int(length[1]))
    except (ConnectionError, asyncio.IncompleteReadError):
        return 0, b"", b""


async def send(gateway: Process, body: bytes, ready: asyncio.Barrier) -> tuple[int, bytes, bytes]:
    """Send a head, and *body* when all have sent theirs: status, head and body of the answer."""
    reader, writer = await asyncio.open_connection(*gateway.address)
    try:
        lines = "".join(f"{name}: {value}\r\n" for name, value in gateway.head.items())
        head = f"POST /execute HTTP/1.1\r\nhost: gateway\r\n{lines}content-length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n")
        answer = asyncio.create_task(read(reader))
        await ready.wait()
        with contextlib.suppress(ConnectionError):  # refused in the middle, and read below
            for start in range(0, len(body), 1 << 18):
                writer.write(body[start : start + (1 << 18)])
                await writer.drain()
                if answer.done():
                    break
        return await answer
    finally:
        writer.close()


async def send_all(gateway: Process, bodies: list[bytes]) -> list[tuple[int, bytes, bytes]]:
    ready = asyncio.Barrier(len(bodies))
    return await asyncio.gather(*[send(gateway, body, ready) for body in bodies])


@pytest.mark.slow
def test_a_thousand_large_bodies_at_once_are_served_or_sent_away(database: Database) -> None:
    text = json.dumps({"sql": "select length($1)", "parameters": ["x" * (BODY - 200)]}).encode()
    assert len(text) <= BODY
    with serving(database) as gateway:
        before = gateway.reset_peak()
        answers = asyncio.run(send_all(gateway, [text] * 1000))
        statuses = Counter(status for status, _, _ in answers)
        # Served, refused because there are too many, or too slow in this crowd; all are told.
        assert set(statuses) <= {200, 503, 408}, statuses
        assert statuses[200] >= BODIES // BODY - 1, statuses
        for status, head, body in answers:
            if status == 200:
                assert json.loads(body)["rows"] == [[BODY - 200]]
            else:
                problem = json.loads(body)
                assert status == 408 or b"retry-after: " in head
                assert (problem["outcome"], problem["retry"]) == ("not_executed", "safe")
        # Each body as it came and as text, eight of them three times more on their way to
        # PostgreSQL; those who were refused hold nothing while they hear of it.
        assert gateway.memory("VmHWM") - before <= 2 * BODIES + 8 * 3 * BODY
        assert gateway.memory("VmRSS") - before <= BODIES
        assert gateway.is_well()


HOSTILE = {
    "empty objects": b'{"sql": "select 1", "parameters": [' + b"{}," * (BODY // 3 - 40) + b"{}]}",
    "empty lists": b'{"sql": "select 1", "parameter_sets": [' + b"[]," * (BODY // 3 - 40) + b"[]]}",
    "numbers": b'{"sql": "select 1", "parameters": [' + b"1," * (BODY // 2 - 40) + b"1]}",
    "names": b'{"sql": "select 1", "parameters": {'
    + b",".join(b'"a%d":0' % count for count in range(BODY // 12))
    + b"}}",
    "depth": b'{"sql": "select 1", "parameters": ' + b"[" * (BODY // 2 - 40) + b"]" * (BODY // 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_a_body_that_grows_when_it_is_read_is_refused_and_forgotten(
    database: Database, what: str
) -> None:
    body = HOSTILE[what]
    assert BODY * 0.8 < len(body) <= BODY
    with serving(database) as gateway:
        before = gateway.reset_peak()
        answers = asyncio.run(send_all(gateway, [body] * 16))
        for status, _, answer in answers:
            assert status in (400, 503), answer
            assert json.loads(answer)["outcome"] == "not_executed"
        # All of them as they came, and one at a time as objects, which take up to 32 times more.
        assert gateway.memory("VmHWM") - before <= 2 * BODIES + 32 * BODY + SLACK
        assert gateway.is_well()
