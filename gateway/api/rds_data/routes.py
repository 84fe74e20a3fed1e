"""The Data API's operations, as unmodified AWS SDKs call them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from ...core.errors import GatewayError, InvalidRequest, TransactionBusy
from ...core.formats import copied
from ...core.model import Begin, Call, Column, End, Execute, ExecuteMany, Principal, Result
from ...engine.engine import Engine, Reply
from ...engine.streams import cut_off
from ...engine.targets import Target
from ..dialect import Dialect, Route
from ..exchange import Exchange
from ..server import Server
from ..serving import Operation
from ..streaming import stream, stream_copied
from ..wire import Headers
from . import codec, compat
from .cells import copied_cells
from .continued import continued
from .metadata import (
    COLUMN_FACTS_SQL,
    TYPE_FACTS_SQL,
    column_facts,
    columns_metadata,
    type_facts,
)

_JSON: Headers = [(b"content-type", b"application/json")]
_FACTS_KEPT = 1.0
"""Seconds. DDL of this dialect's callers makes them void at once."""
_UNTIL = "until"
_CHANGING = "changing"
"""Ids of open transactions that ran DDL."""
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
        verbatim=True,
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
    request, options = asked
    aws = engine.behaves_as_aws(who, request.ask)
    if aws:
        request = compat.check_execute(request)
        _check_idle(engine, who, request.transaction)
    call.text = not aws and not options.format_json
    call.vet = partial(_vet, options, aws) if aws or options.format_json else _check_whole

    async def run() -> Reply:
        reply = await engine.execute(who, request, call)
        if reply.result is not None and reply.result.command not in _DML:
            _described_anew(engine, reply.target, request.transaction)
        return reply

    if options.continue_after_timeout:
        return await continued(engine, who, request.ask, call, run)
    return await run()


def _check_idle(engine: Engine, who: Principal, transaction: str | None) -> None:
    if transaction is not None and engine.transactions.is_busy(transaction, who):
        raise TransactionBusy


def _described_anew(engine: Engine, target: Target, transaction: str | None) -> None:
    """What is known of columns is void after DDL: now, and when its transaction commits."""
    facts = target.column_facts
    changing = facts.get(_CHANGING, set()) & engine.transactions.open.keys()
    facts.clear()
    if transaction is not None:
        changing.add(transaction)
    if changing:
        facts[_CHANGING] = changing


def _vet(options: codec.ExecuteOptions, aws: bool, connection: Any, result: Result) -> None:
    """Refuse a result that cannot be written, before what made it is committed."""
    if not result.has_rows:
        return
    _check_whole(connection, result)
    if options.format_json:
        codec.check_labels(result.columns)
    if aws:
        _check_types(connection, result.columns)
        compat.Count(result.columns).add(result.rows)
        if options.format_json:
            _check_formatted(codec.write_execute(result, options))


def _check_whole(connection: Any, result: Result) -> None:
    """Refuse rows that the policy has cut: no member of the answer could say that it did."""
    if result.truncated:
        raise cut_off()


def _check_types(connection: Any, columns: Sequence[Column]) -> None:
    compat.check_columns(columns, lambda oid: connection.catalog.facts(oid).kind == "e")


def _check_formatted(answer: bytes) -> None:
    if len(answer) > compat.FORMATTED_BYTES:
        compat.check_formatted(len(msgspec.json.decode(answer)["formattedRecords"].encode()))


async def _like_aws(options: codec.ExecuteOptions, reply: Reply) -> Result:
    """The rows of *reply*, complete, or what AWS would say of them."""
    if reply.rows is None:
        assert reply.result is not None
        if not reply.wrote:
            _vet(options, True, reply.connection, reply.result)
        return reply.result
    rows = reply.rows
    kept: list[Sequence[Any]] = []
    count = compat.Count(rows.columns)
    try:
        _check_types(reply.connection, rows.columns)
        async for batch in rows.batches():
            count.add(batch)
            kept.extend(batch)
        if rows.truncated:
            raise cut_off()
    except GatewayError:
        # The transaction goes on, so that its caller can page.
        await rows.stop()
        raise
    result = Result(rows.columns, kept, len(kept), rows.command, True)
    if options.format_json:
        _check_formatted(codec.write_execute(result, options))
    return result


async def _write_execute(exchange: Exchange, asked: Asked, reply: Reply) -> None:
    options = asked.options
    result = reply.result
    if reply.target.settings.compat == "aws":
        result = await _like_aws(options, reply)
    columns: Sequence[Column] = ()
    if result is not None:
        columns = result.columns
    elif reply.rows is not None:
        columns = reply.rows.columns
    elif reply.copied is not None:
        columns = reply.copied.columns
    metadata = None
    if options.include_metadata and columns and not options.format_json:
        metadata = await _metadata(exchange.server.engine, reply, columns)
    if result is not None:
        _check_whole(None, result)
        body = codec.write_execute(result, options, metadata)
        await exchange.send(200, _JSON, body)
        return
    frame = codec.frame(columns, options, metadata)
    if reply.copied is not None:
        rows = copied.Rows(copied_cells(columns, options.choices), copied.ARRAYS)
        await stream_copied(exchange, reply, _JSON, frame.head, rows.feed, lambda: frame.tail)
        return
    await stream(exchange, reply, _JSON, frame.head, frame.rows, partial(_tail, frame, reply))


def _tail(frame: codec.Frame, reply: Reply) -> bytes:
    assert reply.rows is not None
    if reply.rows.truncated:
        raise cut_off()
    return frame.tail


async def _metadata(engine: Engine, reply: Reply, columns: Sequence[Column]) -> Any:
    kept = reply.target.column_facts
    now = asyncio.get_running_loop().time()
    if kept.get(_UNTIL, 0.0) < now:
        changing = kept.get(_CHANGING)
        kept.clear()
        kept[_UNTIL] = now + _FACTS_KEPT
        if changing:
            kept[_CHANGING] = changing
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
    if engine.behaves_as_aws(who, request.ask):
        request = compat.check_batch(request)
        _check_idle(engine, who, request.transaction)
    return await engine.execute_many(who, request, call)


async def _write_batch(
    exchange: Exchange, request: ExecuteMany, done: tuple[list[Result], Reply]
) -> None:
    results, exchange.reply = done
    if exchange.reply.target.settings.compat == "aws":
        results = [each._replace(rows=()) for each in results]
    await exchange.send(200, _JSON, codec.write_batch(results))


async def _begin(engine: Engine, who: Principal, request: Begin, call: Call) -> Reply:
    if engine.behaves_as_aws(who, request.ask):
        compat.check_begin(request)
    return await engine.begin(who, request, call)


async def _write_begin(exchange: Exchange, request: Begin, reply: Reply) -> None:
    assert reply.transaction is not None
    await exchange.send(200, _JSON, codec.write_begin(reply.transaction.id))


async def _end(engine: Engine, who: Principal, request: End, call: Call) -> Reply:
    if engine.behaves_as_aws(who, request.ask):
        compat.check_end(request)
        _check_idle(engine, who, request.transaction)
    reply = await engine.end(who, request, call)
    facts = reply.target.column_facts
    changing = facts.get(_CHANGING)
    if changing and request.transaction in changing:
        # Others may have asked meanwhile, and kept what was so before the commit.
        changing.discard(request.transaction)
        facts.clear()
        if changing:
            facts[_CHANGING] = changing
    return reply


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
