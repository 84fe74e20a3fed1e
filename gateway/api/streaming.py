"""How a result that is still coming is sent: piece by piece, as it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.engine import Reply
from .exchange import Exchange
from .wire import Headers


async def stream(
    exchange: Exchange,
    reply: Reply,
    headers: Headers,
    head: bytes,
    encode: Callable[[Any], bytes],
    tail: Callable[[], bytes],
) -> None:
    """Send *reply*'s rows batch by batch; *encode* gives a batch without its brackets."""
    assert reply.rows is not None
    exchange.begin_stream(reply)
    started = False
    async for batch in reply.rows.batches():
        part = encode(batch)
        if not started:
            await exchange.start(200, headers)
            await exchange.piece(head + part)
            started = True
        else:
            await exchange.piece(b"," + part)
    if not started:
        await exchange.start(200, headers)
        await exchange.piece(head)
    await exchange.piece(tail(), more=False)


async def stream_copied(
    exchange: Exchange,
    reply: Reply,
    headers: Headers,
    head: bytes,
    encode: Callable[[bytes | bytearray], bytes],
    tail: Callable[[], bytes],
) -> None:
    """Send what *encode* makes of what PostgreSQL copies; *tail* is asked when it is over."""
    assert reply.copied is not None
    exchange.begin_stream(reply)

    async def take(piece: bytes | bytearray) -> None:
        part = encode(piece)
        if not exchange.status:
            part = head + part
            await exchange.start(200, headers)
        await exchange.piece(part)

    await reply.copied.run(take)
    part = tail()
    if not exchange.status:
        part = head + part
        await exchange.start(200, headers)
    await exchange.piece(part, more=False)
