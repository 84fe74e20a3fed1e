"""The native dialect's endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

import orjson

from ...core.errors import NotFound
from ...core.idempotency import is_key
from ...core.model import Ask, Begin, Call, End, ExecuteMany, Principal, Result
from ...engine.engine import Engine, Reply
from ...engine.ledger import moment
from ...engine.outcomes import Became
from ..compression import compression
from ..dialect import Dialect, Route
from ..exchange import Exchange
from ..server import Server
from ..serving import Operation
from . import codec
from .answers import accept, write_answer
from .upload import read_copy, run_copy, write_copy


def _execute(
    engine: Engine, who: Principal, asked: codec.ExecuteAs, call: Call
) -> Awaitable[Reply]:
    return engine.execute(who, asked.request, call)


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


async def _outcome(engine: Engine, who: Principal, path: Mapping[str, str], call: Call) -> Became:
    key = path["key"].encode()
    if not is_key(key):
        raise NotFound("there is no such key")
    ask = Ask(path.get("target") or None, None, path.get("database") or None)
    return await engine.outcome(who, key, ask, call)


async def _write_outcome(exchange: Exchange, request: Any, became: Became) -> None:
    told: dict[str, str] = {"outcome": became.outcome.value}
    if became.committed_at is not None:
        told["committed_at"] = moment(became.committed_at)
    await exchange.send(200, codec.JSON, orjson.dumps(told))


def native(server: Server) -> Dialect:
    """The native dialect over *server*."""

    async def cancel(engine: Engine, who: Principal, path: Mapping[str, str], call: Call) -> None:
        running = server.running.get((who.subject, path["id"]))
        if server.relay is not None and not call.passed_on:
            there = running is not None and running.call.elsewhere
            if (running is None or there) and await server.relay.cancel(who, path["id"]):
                return
        if running is None or running.task is None:
            raise NotFound("no statement of that request id is running")
        if not running.call.committing:
            running.call.cancelled = True
            running.task.cancel()

    async def write_cancel(exchange: Exchange, path: Any, done: None) -> None:
        await exchange.send(202, codec.JSON, b'{"status":"cancelling"}')

    routes = [
        Route("/execute", Operation("execute", codec.read_execute, _execute, write_answer)),
        Route("/batch", Operation("batch", codec.read_batch, _batch, _write_batch)),
        Route(
            "/copy/{table}",
            Operation("copy", _read_nothing, run_copy, write_copy, upload=read_copy),
        ),
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
        Route(
            "/outcomes/{key}",
            Operation("outcome", _read_nothing, _outcome, _write_outcome, "GET"),
        ),
        Route("/whoami", Operation("whoami", _read_nothing, _whoami, _write_whoami, "GET")),
    ]
    return Dialect(
        server, routes, codec.write_error, b"x-gateway-request-id", accept, compression()
    )
