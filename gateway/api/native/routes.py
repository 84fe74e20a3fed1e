"""The native dialect's endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ...core.errors import NotAcceptable, NotFound
from ...core.formats.json import maker
from ...core.model import Begin, Call, End, ExecuteMany, Principal, Result
from ...engine.engine import Engine, Reply
from ..dialect import Dialect, Exchange, Operation, Route, Server, stream
from . import codec


def _accepts_json(exchange: Exchange) -> None:
    for key, value in exchange.raw:
        if key == b"accept":
            ranges = [part.split(b";")[0].strip().lower() for part in value.split(b",")]
            if not {b"*/*", b"application/*", b"application/json", b""} & set(ranges):
                raise NotAcceptable(
                    "only application/json can be produced", hint="Accept: application/json"
                )


async def _execute(engine: Engine, who: Principal, asked: codec.ExecuteAs, call: Call) -> Reply:
    return await engine.execute(who, asked.request, call)


async def _write_execute(exchange: Exchange, asked: codec.ExecuteAs, reply: Reply) -> None:
    shape = asked.shape
    if reply.rows is None:
        assert reply.result is not None
        body = codec.write_result(reply.result, shape, reply.transaction)
        await exchange.send(200, codec.JSON, body)
        return
    rows = reply.rows
    make = maker(rows.columns, shape)

    def tail() -> bytes:
        return b"]" + codec.write_tail(
            rows.count, rows.command, truncated=rows.truncated, transaction=reply.transaction
        )

    head = codec.write_head(rows.columns, shape)
    await stream(
        exchange, reply, codec.JSON, head, lambda batch: orjson.dumps(make(batch))[1:-1], tail
    )


async def _batch(
    engine: Engine, who: Principal, asked: codec.BatchAs, call: Call
) -> tuple[list[Result], Reply]:
    request = asked.request
    if isinstance(request, ExecuteMany):
        return await engine.execute_many(who, request, call)
    return await engine.execute_batch(who, request, call)


async def _write_batch(
    exchange: Exchange, asked: codec.BatchAs, done: tuple[list[Result], Reply]
) -> None:
    results, exchange.reply = done
    body = codec.write_results(results, asked.shape, exchange.reply.transaction)
    await exchange.send(200, codec.JSON, body)


async def _begin(engine: Engine, who: Principal, request: Begin, call: Call) -> Reply:
    return await engine.begin(who, request, call)


async def _write_begin(exchange: Exchange, request: Begin, reply: Reply) -> None:
    assert reply.transaction is not None
    await exchange.send(201, codec.JSON, codec.write_begin(reply.transaction))


async def _end(engine: Engine, who: Principal, request: End, call: Call) -> Reply:
    return await engine.end(who, request, call)


async def _write_end(exchange: Exchange, request: End, reply: Reply) -> None:
    await exchange.send(200, codec.JSON, codec.write_end(request.commit))


def _read_nothing(body: bytes, path: Mapping[str, str]) -> Mapping[str, str]:
    return path


async def _whoami(engine: Engine, who: Principal, request: Any, call: Call) -> Principal:
    return who


async def _write_whoami(exchange: Exchange, request: Any, who: Principal) -> None:
    body = orjson.dumps({"kind": who.kind, "subject": who.subject, "issuer": who.issuer})
    await exchange.send(200, codec.JSON, body)


def native(server: Server) -> Dialect:
    """The native dialect over *server*."""

    async def cancel(engine: Engine, who: Principal, path: Mapping[str, str], call: Call) -> None:
        running = server.running.get((who.subject, path["id"]))
        if running is None or running.task is None:
            raise NotFound("no statement of that request id is running")
        if not running.call.committing:
            running.call.cancelled = True
            running.task.cancel()

    async def write_cancel(exchange: Exchange, path: Any, done: None) -> None:
        await exchange.send(202, codec.JSON, b'{"status":"cancelling"}')

    routes = [
        Route("/execute", Operation("execute", codec.read_execute, _execute, _write_execute)),
        Route("/batch", Operation("batch", codec.read_batch, _batch, _write_batch)),
        Route("/transactions", Operation("begin", codec.read_begin, _begin, _write_begin)),
        Route(
            "/transactions/{id}/commit",
            Operation("commit", codec.read_commit, _end, _write_end),
        ),
        Route(
            "/transactions/{id}/rollback",
            Operation("rollback", codec.read_rollback, _end, _write_end),
        ),
        Route(
            "/statements/{id}",
            Operation("cancel", _read_nothing, cancel, write_cancel, "DELETE"),
        ),
        Route("/whoami", Operation("whoami", _read_nothing, _whoami, _write_whoami, "GET")),
    ]
    return Dialect(server, routes, codec.write_error, b"x-gateway-request-id", _accepts_json)
