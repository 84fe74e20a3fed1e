"""A load client for very many callers, in a process of its own.

Speaks HTTP and PostgreSQL's protocol with the same few lines of code, so that a gateway, a
pooler and the server itself are asked in the same way. Reads jobs from standard input, one
JSON object a line, and prints one line of figures for each.

`closed`: so many callers with a connection each; a caller asks again when it was answered.
`open`: requests are due at given moments, whether or not the earlier ones were answered;
each opens a connection of its own, and its time counts from the moment when it was due.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson
import uvloop

_LOST = "connection lost"


class Conversation(asyncio.Protocol):
    """One connection: knock, then ask and wait."""

    def __init__(self, job: dict[str, Any], number: int) -> None:
        self.request: bytes = job["encoded"][number % len(job["encoded"])]
        self.hello: bytes = job["hello"]
        self.waiting: asyncio.Future[str | None] | None = None
        self.buffer = b""
        self.error: str | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        self.transport = transport

    def exchange(self, data: bytes) -> asyncio.Future[str | None]:
        """Send *data*; the future's result is the error, `None` if there was none."""
        self.waiting = asyncio.get_running_loop().create_future()
        if self.error is not None:
            self.finish(self.error)
        else:
            self.transport.write(data)
        return self.waiting

    def finish(self, error: str | None) -> None:
        """The answer is here."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self.error = self.error or _LOST
        self.finish(self.error)


class Http(Conversation):
    """An answer ends with its content-length."""

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        self.buffer += data
        head, blank, body = self.buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) >= length:
            good = head[9:12] == b"200"
            error = None if good else self.buffer[:300].decode("ascii", "replace")
            self.buffer = b""
            self.finish(error)


class Postgres(Conversation):
    """An answer ends with ReadyForQuery."""

    def data_received(self, data: bytes) -> None:
        """Collect messages."""
        self.buffer += data
        while len(self.buffer) >= 5:
            size = struct.unpack_from("!I", self.buffer, 1)[0]
            if len(self.buffer) <= size:
                return
            kind = self.buffer[:1]
            if kind == b"E":
                self.error = self.buffer[5 : size + 1].decode("utf-8", "replace")
            self.buffer = self.buffer[size + 1 :]
            if kind == b"Z":
                self.finish(self.error)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def hello(user: str, database: str) -> bytes:
    """A startup message for a server that trusts everybody."""
    body = struct.pack("!I", 196_608) + f"user\0{user}\0database\0{database}\0\0".encode()
    return struct.pack("!I", len(body) + 4) + body


def query(sql: str, value: str) -> bytes:
    """Parse, Bind, Execute and Sync with one parameter, in text."""
    parse = _message(b"P", b"\0" + sql.encode() + b"\0\0\0")
    text = value.encode()
    bind = b"\0\0\0\0\0\1" + struct.pack("!I", len(text)) + text + b"\0\0"
    return parse + _message(b"B", bind) + _message(b"E", b"\0\0\0\0\0") + _message(b"S", b"")


def _prepare(job: dict[str, Any]) -> Callable[[int], Conversation]:
    if job["protocol"] == "http":
        job["hello"] = b""
        job["encoded"] = [text.encode() for text in job["requests"]]
        return lambda number: Http(job, number)
    job["hello"] = hello(job["user"], job["database"])
    job["encoded"] = [query(job["sql"], value) for value in job["values"]]
    return lambda number: Postgres(job, number)


async def _connect(
    job: dict[str, Any], make: Callable[[int], Conversation], number: int
) -> Conversation | str:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(job["patience"]):
            _, talk = await loop.create_connection(lambda: make(number), "127.0.0.1", job["port"])
            if talk.hello:
                error = await talk.exchange(talk.hello)
                if error is not None:
                    talk.transport.close()
                    return error
    except (OSError, TimeoutError) as error:
        return type(error).__name__
    return talk


async def closed(job: dict[str, Any]) -> dict[str, Any]:
    """So many callers, so many seconds from the moment when the last one has come."""
    make = _prepare(job)
    gate = asyncio.Semaphore(128)
    times: list[float] = []
    errors: list[str] = []
    coming = job["callers"]
    begun = until = float("inf")

    async def come(number: int) -> Conversation | str:
        nonlocal coming, begun, until
        async with gate:
            talk = await _connect(job, make, number)
        coming -= 1
        if coming == 0:
            begun = time.perf_counter()
            until = begun + job["seconds"]
        return talk

    async def ask(number: int) -> bool:
        talk = await come(number)
        if isinstance(talk, str):
            errors.append(talk)
            return False
        error = None
        while error is None and (sent := time.perf_counter()) < until:
            try:
                async with asyncio.timeout(job["patience"]):
                    error = await talk.exchange(talk.request)
            except TimeoutError:
                error = "no answer in time"
            if error is None and begun <= (now := time.perf_counter()) <= until:
                times.append(now - sent)
        talk.transport.close()
        if error is not None:
            errors.append(error)
        return error is None

    good = await asyncio.gather(*(ask(number) for number in range(job["callers"])))
    return _figures(times, errors, good.count(False), job["seconds"])


async def opened(job: dict[str, Any]) -> dict[str, Any]:
    """Requests at their moments: `phases` are pairs of seconds and requests a second."""
    make = _prepare(job)
    times: list[float] = []
    errors: list[str] = []
    begun = time.perf_counter() + 0.1
    due, at = [], begun
    for seconds, rate in job["phases"]:
        due += [at + index / rate for index in range(int(seconds * rate))]
        at += seconds

    async def one(number: int, moment: float) -> None:
        talk = await _connect(job, make, number)
        if isinstance(talk, str):
            errors.append(talk)
            return
        try:
            async with asyncio.timeout(job["patience"]):
                error = await talk.exchange(talk.request)
        except TimeoutError:
            error = "no answer in time"
        talk.transport.close()
        if error is None:
            times.append(time.perf_counter() - moment)
        else:
            errors.append(error)

    running = set()
    for number, moment in enumerate(due):
        wait = moment - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(number, moment))
        running.add(task)
        task.add_done_callback(running.discard)
    while running:
        await asyncio.wait(list(running))
    return _figures(times, errors, len(errors), time.perf_counter() - begun)


def _figures(times: list[float], errors: list[str], failed: int, took: float) -> dict[str, Any]:
    times.sort()
    return {
        "answered": len(times),
        "per_second": len(times) / took,
        "p50_ms": times[len(times) // 2] * 1000 if times else 0.0,
        "p99_ms": times[len(times) * 99 // 100] * 1000 if times else 0.0,
        "max_ms": times[-1] * 1000 if times else 0.0,
        "errors": len(errors),
        "callers_failed": failed,
        "first_error": errors[0][:300] if errors else None,
    }


def main() -> None:
    """Do what standard input asks for, until it ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            job = orjson.loads(line)
            answer = runner.run((closed if job["kind"] == "closed" else opened)(job))
            print(orjson.dumps(answer).decode(), flush=True)


if __name__ == "__main__":
    main()
