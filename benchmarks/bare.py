"""The reference handler: the least that puts SQL behind HTTP in Python.

ASGI, `asyncpg.Pool`, orjson, and nothing else: no identity, no policy, no limits,
no queue between tenants, no metrics, no log. `python -m benchmarks.bare DSN` serves
it on a free port of 127.0.0.1 with uvicorn, httptools and uvloop, and prints the port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import asyncpg
import orjson
import uvicorn
import uvloop

CONNECTIONS = 8
"""As many as the gateway's pool has by default."""


class Bare:
    """`POST /read` runs a statement; `POST /write` runs it in a transaction."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = orjson.loads(body)
        sql, parameters = request["sql"], request["parameters"]
        if scope["path"] == "/write":
            async with self._pool.acquire() as connection, connection.transaction():
                rows = await connection.fetch(sql, *parameters)
        else:
            rows = await self._pool.fetch(sql, *parameters)
        answer = orjson.dumps({"rows": [tuple(row) for row in rows]})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


async def serve(dsn: str) -> None:
    """Serve until the process is ended."""
    pool = await asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    config = uvicorn.Config(
        Bare(pool),
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        backlog=4096,
        timeout_keep_alive=600,
    )
    print(listener.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
