"""A load client in a process of its own: keep-alive, one request at a time for each caller.

Reads jobs from standard input, one JSON object a line, and prints one line of figures
for each. A caller sends its next request when the last was answered, never before, or `think`
seconds later if the job says so.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import Any

import asyncpg
import orjson
import uvloop


class Caller(asyncio.Protocol):
    """One connection that asks, waits, and asks again until the time is over."""

    def __init__(self, requests: list[bytes], first: int, stride: int, think: float) -> None:
        self._think = think
        self._requests = requests
        self._at = first
        self._stride = stride
        self._buffer = b""
        self._sent = 0.0
        self._until = 0.0
        self.times: list[float] = []
        self.errors: list[str] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        self._transport = transport

    def start(self, until: float) -> None:
        """Ask until *until*, a moment of the monotonic clock."""
        self._until = until
        if self._think:
            # Not all at once.
            asyncio.get_running_loop().call_later(random.uniform(0, self._think), self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        request = self._requests[self._at % len(self._requests)]
        self._at += self._stride
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collect an answer; at its end, ask again."""
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) < length:
            return
        now = time.perf_counter()
        if head[9:12] == b"200" and at >= 0:
            self.times.append(now - self._sent)
        else:
            self.errors.append(self._buffer[:200].decode("ascii", "replace"))
        self._buffer = b""
        if now + self._think < self._until:
            if self._think:
                asyncio.get_running_loop().call_later(self._think, self._ask)
            else:
                self._ask()
        elif not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        if not self.done.done():
            self.errors.append("connection lost")
            self.done.set_result(None)


async def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job: so many callers, so many seconds."""
    loop = asyncio.get_running_loop()
    requests = [text.encode() for text in job["requests"]]
    count = job["callers"]
    callers = []
    for index in range(count):
        _, caller = await loop.create_connection(
            lambda index=index: Caller(  # type: ignore[misc]  # mypy knows no default of a lambda
                requests, index, count, job.get("think", 0.0)
            ),
            "127.0.0.1",
            job["port"],
        )
        callers.append(caller)
    begun = time.perf_counter()
    for caller in callers:
        caller.start(begun + job["seconds"])
    await asyncio.gather(*(caller.done for caller in callers))
    took = time.perf_counter() - begun
    for caller in callers:
        caller._transport.close()
    times = sorted(each for caller in callers for each in caller.times)
    errors = [each for caller in callers for each in caller.errors]
    return {
        "per_second": len(times) / took,
        "mean_ms": sum(times) / len(times) * 1000 if times else None,
        "p50_ms": times[len(times) // 2] * 1000 if times else None,
        "p99_ms": times[len(times) * 99 // 100] * 1000 if times else None,
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
    }


async def direct(job: dict[str, Any]) -> dict[str, Any]:
    """The driver alone, on one connection: what no gateway can be faster than."""
    connection = await asyncpg.connect(job["dsn"])
    values, times = job["values"], []
    until = time.perf_counter() + job["seconds"]
    at = 0
    while (sent := time.perf_counter()) < until:
        await connection.fetch(job["sql"], values[at % len(values)])
        times.append(time.perf_counter() - sent)
        at += 1
    await connection.close()
    times.sort()
    return {"p50_ms": times[len(times) // 2] * 1000, "errors": 0}


def main() -> None:
    """Do what standard input asks for, until it ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            job = orjson.loads(line)
            answer = runner.run(direct(job) if "dsn" in job else measure(job))
            print(orjson.dumps(answer).decode(), flush=True)


if __name__ == "__main__":
    main()
