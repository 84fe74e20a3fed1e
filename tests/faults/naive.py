"""What is written in an afternoon: ASGI, `asyncpg.Pool`, a transaction, an error is a 500.

`python -m tests.faults.naive DSN` serves it on a free port of 127.0.0.1, and prints the port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import asyncpg
import orjson
import uvicorn

CONNECTIONS = 8


class Naive:
    """Runs the statements of a request in one transaction."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                rows = [
                    [tuple(row) for row in await connection.fetch(sql, *values)]
                    for sql, values in orjson.loads(body)
                ]
            status, answer = 200, orjson.dumps(rows)
        except Exception as error:  # noqa: BLE001
            status, answer = 500, type(error).__name__.encode()
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


async def serve(dsn: str) -> None:
    """Serve until the process is ended."""
    pool = await asyncpg.create_pool(dsn, min_size=0, max_size=CONNECTIONS)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        Naive(pool), lifespan="off", interface="asgi3", log_config=None, access_log=False
    )
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
