"""The async client: the same words, the same meaning, over httpx2."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pgsluice
import pytest
from pgsluice import aio, sync

from tests.fix_gateway import Gateway

PAIRS = [
    (sync.Client, aio.AsyncClient),
    (sync.Transaction, aio.AsyncTransaction),
    (sync.Stream, aio.AsyncStream),
]
ENDS = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__"}
ENDS["__next__"] = "__anext__"


def words(kind: type) -> dict[str, Any]:
    """Public methods, and those that `with` and `for` use."""
    return {
        name: each
        for name, each in inspect.getmembers(kind)
        if (not name.startswith("_") or name in ENDS or name in ENDS.values())
        and (inspect.isfunction(each) or isinstance(each, property))
    }


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(method, property):
        return []
    found = inspect.signature(method).parameters.values()
    return [(each.name, each.kind, each.default) for each in found]


@pytest.mark.parametrize(("ordinary", "awaited"), PAIRS, ids=lambda kind: kind.__name__)
def test_both_shells_have_the_same_words_with_the_same_parameters(
    ordinary: type, awaited: type
) -> None:
    one = {ENDS.get(name, name): parameters(method) for name, method in words(ordinary).items()}
    other = {name: parameters(method) for name, method in words(awaited).items()}
    assert one == other
    assert parameters(ordinary.__init__)[1:2] is not None
    if ordinary is sync.Client:
        assert parameters(ordinary.__init__) == parameters(awaited.__init__)


@pytest.mark.parametrize(("ordinary", "awaited"), PAIRS, ids=lambda kind: kind.__name__)
def test_both_shells_promise_the_same_types(ordinary: type, awaited: type) -> None:
    def said(method: Any) -> dict[str, str]:
        found = dict(getattr(method, "__annotations__", {}))
        for name in ("return", "token", "credentials", "work"):
            found.pop(name, None)
        return {name: str(text) for name, text in found.items()}

    mine, theirs = words(ordinary), words(awaited)
    for name, method in mine.items():
        assert said(method) == said(theirs[ENDS.get(name, name)]), name


def test_what_is_made_of_a_flow_looks_like_a_method_of_its_shell() -> None:
    for ordinary, awaited in PAIRS:
        for name, method in words(ordinary).items():
            other = words(awaited)[ENDS.get(name, name)]
            if name.startswith("_") or isinstance(method, property):
                continue
            assert inspect.getdoc(other) and inspect.getdoc(method), name
            assert method.__name__ == other.__name__ == name
            assert not inspect.iscoroutinefunction(method), name
            later = name in ("stream", "transaction")
            assert inspect.iscoroutinefunction(other) is not later, name
            for each in (method, other):
                assert "Flow" not in str(inspect.signature(each))
    assert inspect.signature(sync.Client.execute).return_annotation == "Result"
    assert inspect.getdoc(aio.AsyncClient.query) == inspect.getdoc(sync.Client.query)


@pytest.fixture
async def db(shared_gateway: Gateway) -> AsyncIterator[pgsluice.AsyncClient]:
    async with pgsluice.AsyncClient(
        shared_gateway.url, token=shared_gateway.token, timeout=30
    ) as client:
        yield client


@dataclass
class Row:
    n: int


@pytest.mark.anyio
async def test_every_word_works(db: pgsluice.AsyncClient) -> None:
    assert (await db.execute("select $1::int + 1", [1])).rows == [(2,)]
    assert await db.query("select 1 as n", into=Row, read_only=True) == [Row(1)]
    assert await db.query_one("select :n::int as n", {"n": 3}) == {"n": 3}
    assert await db.query_one("select 1 where false") is None
    assert await db.scalar("select 'x'") == "x"
    assert [r.scalar() for r in await db.batch(["select 1", ("select $1::int", [2])])] == [1, 2]
    async with db.transaction(isolation="serializable") as tx:
        await tx.execute("create temporary table aio_t (n int) on commit drop")
        done = await tx.execute_many("insert into aio_t values ($1)", [[1], [2]])
        assert [each.row_count for each in done] == [1, 1]
        assert await tx.query("select n from aio_t order by n", into=tuple) == [(1,), (2,)]
    with pytest.raises(pgsluice.TransactionGone):
        await tx.execute("select 1")


@pytest.mark.anyio
async def test_rows_stream_one_by_one(db: pgsluice.AsyncClient) -> None:
    count = 0
    async with db.stream("select n from generate_series(1, 50000) n", read_only=True) as rows:
        assert rows.columns[0].name == "n"
        async for (n,) in rows:
            count += 1
            assert n == count
    assert (count, rows.row_count, rows.command) == (50_000, 50_000, "SELECT")
    async for row in db.stream("select n from generate_series(1, 1000000) n", into=Row):
        assert row == Row(1)
        break
    assert await db.scalar("select 1") == 1


@pytest.mark.anyio
async def test_rows_are_copied_from_an_async_source(
    db: pgsluice.AsyncClient, shared_gateway: Gateway
) -> None:
    async def source() -> AsyncIterator[tuple[int, str | None]]:
        for n in range(100):
            yield n, None if n % 2 else f'"{n}", é\n'

    await db.execute("create table aio_copied (n int, t text)")
    try:
        assert await db.copy_in("aio_copied", source()) == 100
        assert await db.copy_in("aio_copied", [(1,)], columns=["n"]) == 1
        assert await db.scalar("select count(t) from aio_copied") == 50
        assert await db.scalar("select t from aio_copied where n = 2") == '"2", é\n'
    finally:
        await db.execute("drop table aio_copied")


@pytest.mark.anyio
async def test_a_transaction_that_lost_a_race_is_run_again(db: pgsluice.AsyncClient) -> None:
    await db.execute("create table aio_race (n int)")
    try:
        await db.execute("insert into aio_race values (0)")
        seen: list[int] = []

        async def work(tx: pgsluice.AsyncTransaction) -> int:
            n: int = await tx.scalar("select n from aio_race")
            seen.append(n)
            if len(seen) == 1:
                await db.execute("update aio_race set n = n + 10")
            await tx.execute("update aio_race set n = $1", [n + 1])
            return n + 1

        assert await db.transaction(isolation="serializable").run(work) == 11
        assert seen == [0, 10]
    finally:
        await db.execute("drop table aio_race")


@pytest.mark.anyio
async def test_many_tasks_share_a_client(db: pgsluice.AsyncClient) -> None:
    found = await asyncio.gather(*(db.scalar("select $1::int", [n]) for n in range(30)))
    assert found == list(range(30))


def test_a_client_outlives_its_event_loop(shared_gateway: Gateway) -> None:
    client = pgsluice.AsyncClient(shared_gateway.url, token=shared_gateway.token)

    async def ask() -> Any:
        found = await client.scalar("select 1")
        await client.close()
        return found

    assert [asyncio.run(ask()), asyncio.run(ask())] == [1, 1]


@pytest.mark.anyio
async def test_a_token_may_be_awaited(shared_gateway: Gateway) -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return shared_gateway.token

    async with pgsluice.AsyncClient(shared_gateway.url, token=token) as client:
        assert await client.scalar("select 1") == 1


@pytest.mark.anyio
@pytest.mark.parametrize("own", [True, False], ids=["own key", "no key"])
async def test_to_send_again_what_was_lost_is_called_safe_only_to_who_has_its_key(
    own: bool,
) -> None:
    asked: list[bytes] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The first is answered, by a gateway with a ledger; the others are lost.
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}")
        asked.append(head)
        if len(asked) == 1:
            body = b'{"columns":[],"rows":[],"row_count":1,"command":"INSERT 0 1"}'
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"x-gateway-idempotency: database\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with pgsluice.AsyncClient(f"http://127.0.0.1:{port}", token="t") as client:
        await client.execute("insert into t values (1)")
        with pytest.raises(pgsluice.OutcomeUnknown) as caught:
            await client.execute("insert into t values (2)", key="mine" if own else None)
    assert len(asked) == 4
    assert (caught.value.outcome, caught.value.retry) == ("unknown", "safe" if own else "unknown")
    assert f"idempotency-key: {caught.value.key}".encode() in asked[-1].lower()
    server.close()
    await server.wait_closed()


@pytest.mark.anyio
async def test_losses_are_told_apart_as_by_the_ordinary_client() -> None:
    asked: list[bytes] = []

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        await reader.readuntil(b"}")
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with pgsluice.AsyncClient(f"http://127.0.0.1:{port}", token="t") as client:
        with pytest.raises(pgsluice.OutcomeUnknown):
            await client.execute("call p()")
        assert len(asked) == 1
        with pytest.raises(pgsluice.ConnectionFailed):
            await client.execute("select 1", read_only=True)
        assert len(asked) == 4
    server.close()
    await server.wait_closed()
    async with pgsluice.AsyncClient(f"http://127.0.0.1:{port}", token="t") as client:
        with pytest.raises(pgsluice.ConnectionFailed) as caught:
            await client.execute("insert into t values (1)")
        assert (caught.value.outcome, caught.value.retry) == ("not_executed", "safe")
