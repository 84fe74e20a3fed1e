"""A TCP relay that holds every byte back for a while, in both directions: a network.

    python -m benchmarks.delay HOST PORT SECONDS

prints the port of 127.0.0.1 on which it listens. Loopback has no distance, and round trips
are what a caller feels.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop


class Half(asyncio.Protocol):
    """One side of a connection; what it receives goes out on the other side, later."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._early: list[bytes] = []
        self.other: Half | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        self.transport = transport

    def meet(self, other: Half) -> None:
        """From now on there is another side."""
        self.other = other
        for data in self._early:
            self._later(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        """Hold it back. Timers of one length fire in the order in which they were set."""
        if self.other is None:
            self._early.append(data)
        else:
            self._later(data)

    def _later(self, data: bytes) -> None:
        assert self.other is not None
        asyncio.get_running_loop().call_later(self._seconds, self.other.transport.write, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Both sides end."""
        if self.other is not None:
            self.other.transport.close()


async def serve(host: str, port: int, seconds: float) -> None:
    """Relay until the process is ended."""
    loop = asyncio.get_running_loop()
    dialling: set[asyncio.Task[None]] = set()

    async def dial(near: Half) -> None:
        _, far = await loop.create_connection(lambda: Half(seconds), host, port)
        far.meet(near)
        near.meet(far)

    def accept() -> Half:
        near = Half(seconds)
        task = loop.create_task(dial(near))
        dialling.add(task)
        task.add_done_callback(dialling.discard)
        return near

    server = await loop.create_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
