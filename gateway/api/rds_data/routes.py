"""The Data API's operations, as unmodified AWS SDKs call them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...core.errors import InvalidRequest
from ...core.model import Begin, Call, Column, End, Execute, ExecuteMany, Principal, Result
from ...engine.engine import Engine, Reply
from ..dialect import Dialect, Exchange, Headers, Operation, Route, Server, stream
from . import codec
from .metadata import (
    COLUMN_FACTS_SQL,
    TYPE_FACTS_SQL,
    column_facts,
    columns_metadata,
    type_facts,
)

_JSON: Headers = [(b"content-type", b"application/json")]
_FACTS_KEPT = 30.0
"""Seconds. DDL that goes through this gateway makes them void at once."""
_DML = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "WITH", "TABLE"})


class Asked(NamedTuple):
    """ExecuteStatement and how its answer is wanted."""

    request: Execute
    options: codec.ExecuteOptions


def _read_execute(body: bytes, path: Mapping[str, str]) -> Asked:
    return Asked(*codec.read_execute(body))


def _read_batch(body: bytes, path: Mapping[str, str]) -> ExecuteMany:
    batch = codec.read_batch(body)
    return ExecuteMany(
        batch.ask,
        batch.sql,
        batch.parameter_sets,
        batch.transaction,
        schema=batch.schema,
        counts=False,
    )


def _read_begin(body: bytes, path: Mapping[str, str]) -> Begin:
    return codec.read_begin(body)


def _read_commit(body: bytes, path: Mapping[str, str]) -> End:
    return codec.read_end(body, True)


def _read_rollback(body: bytes, path: Mapping[str, str]) -> End:
    return codec.read_end(body, False)


def _read_execute_sql(body: bytes, path: Mapping[str, str]) -> Execute:
    raise InvalidRequest("ExecuteSql is not supported")


async def _execute(engine: Engine, who: Principal, asked: Asked, call: Call) -> Reply:
    reply = await engine.execute(who, asked.request, call)
    if reply.result is not None and reply.result.command not in _DML:
        reply.target.column_facts.clear()
    return reply


async def _write_execute(exchange: Exchange, asked: Asked, reply: Reply) -> None:
    options = asked.options
    columns: Sequence[Column] = ()
    if reply.rows is not None:
        columns = reply.rows.columns
    elif reply.result is not None:
        columns = reply.result.columns
    metadata = None
    if options.include_metadata and columns and not options.format_json:
        metadata = await _metadata(exchange.server.engine, reply, columns)
    if reply.rows is None:
        assert reply.result is not None
        body = codec.write_execute(reply.result, options, metadata)
        await exchange.send(200, _JSON, body)
        return
    frame = codec.frame(columns, options, metadata)
    await stream(exchange, reply, _JSON, frame.head, frame.rows, lambda: frame.tail)


async def _metadata(engine: Engine, reply: Reply, columns: Sequence[Column]) -> Any:
    kept = reply.target.column_facts
    now = asyncio.get_running_loop().time()
    if kept.get("until", 0.0) < now:
        kept.clear()
        kept["until"] = now + _FACTS_KEPT
    where = (id(reply.connection.catalog) if reply.connection else 0,)
    facts = kept.setdefault((*where, "columns"), {})
    types = kept.setdefault((*where, "types"), {})
    wanted = {
        (column.table_oid, column.attribute)
        for column in columns
        if column.table_oid and column.attribute > 0
    } - facts.keys()
    if wanted:
        pairs = sorted(wanted)
        records = await engine.catalog(
            reply,
            COLUMN_FACTS_SQL,
            [[table for table, _ in pairs], [number for _, number in pairs]],
        )
        facts.update(map(column_facts, records))
    oids = {column.oid for column in columns} - types.keys()
    if oids:
        records = await engine.catalog(reply, TYPE_FACTS_SQL, [sorted(oids)])
        types.update(map(type_facts, records))
    return columns_metadata(columns, facts, types)


async def _batch(
    engine: Engine, who: Principal, request: ExecuteMany, call: Call
) -> tuple[list[Result], Reply]:
    return await engine.execute_many(who, request, call)


async def _write_batch(
    exchange: Exchange, request: ExecuteMany, done: tuple[list[Result], Reply]
) -> None:
    results, exchange.reply = done
    await exchange.send(200, _JSON, codec.write_batch(results))


async def _begin(engine: Engine, who: Principal, request: Begin, call: Call) -> Reply:
    return await engine.begin(who, request, call)


async def _write_begin(exchange: Exchange, request: Begin, reply: Reply) -> None:
    assert reply.transaction is not None
    await exchange.send(200, _JSON, codec.write_begin(reply.transaction.id))


async def _end(engine: Engine, who: Principal, request: End, call: Call) -> Reply:
    return await engine.end(who, request, call)


async def _write_end(exchange: Exchange, request: End, reply: Reply) -> None:
    body = codec.write_commit() if request.commit else codec.write_rollback()
    await exchange.send(200, _JSON, body)


async def _refused(engine: Engine, who: Principal, request: Execute, call: Call) -> None:
    raise InvalidRequest("ExecuteSql is not supported")


async def _write_nothing(exchange: Exchange, request: Execute, done: None) -> None:
    await exchange.send(200, _JSON, b"{}")


def rds_data(server: Server) -> Dialect:
    """The Data API over *server*."""
    routes = [
        Route("/Execute", Operation("ExecuteStatement", _read_execute, _execute, _write_execute)),
        Route(
            "/BatchExecute",
            Operation("BatchExecuteStatement", _read_batch, _batch, _write_batch),
        ),
        Route(
            "/BeginTransaction", Operation("BeginTransaction", _read_begin, _begin, _write_begin)
        ),
        Route("/CommitTransaction", Operation("CommitTransaction", _read_commit, _end, _write_end)),
        Route(
            "/RollbackTransaction",
            Operation("RollbackTransaction", _read_rollback, _end, _write_end),
        ),
        Route("/ExecuteSql", Operation("ExecuteSql", _read_execute_sql, _refused, _write_nothing)),
    ]
    return Dialect(server, routes, codec.write_error, b"x-amzn-requestid")
