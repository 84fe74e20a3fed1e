"""COPY, out and in: bytes pass through the driver as they are.

PostgreSQL's own text is neither parsed nor built here; what is copied is named by
quoted identifiers, or is a statement that PostgreSQL has already prepared as one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import asyncpg

from .connection import Connection, OverBudget

Take = Callable[[bytes | bytearray], Awaitable[None]]

_PIECE = 64 * 1024
"""Bytes passed on at a time: PostgreSQL sends 8 KiB, and each step has its price. What the
driver gives is as long as a rule, and is not copied to be joined with the next."""
_LINE = re.compile(r"^COPY .*?, line (\d+)", re.MULTILINE)


def quoted(name: str) -> str:
    """*name* as an identifier, exactly as it is written."""
    return '"' + name.replace('"', '""') + '"'


def copy_query(sql: str, options: str) -> str:
    """COPY of the rows of *sql*; *options* are the gateway's own.

    *sql* must have been prepared by itself before: so it is one statement, with nothing
    open at its end, and stays inside the parentheses.
    """
    return f"COPY (\n{sql}\n) TO STDOUT ({options})"


def copy_of(sql: str, expressions: Sequence[str]) -> str:
    """A query of *expressions* of `c0, c1, …`, the columns of *sql*; as `copy_query` has it."""
    names = ",".join(f"c{index}" for index in range(len(expressions)))
    return f"SELECT {','.join(expressions)} FROM (\n{sql}\n) AS pgsluice({names})"


def copy_table(table: Sequence[str], columns: Sequence[str], options: str) -> str:
    """COPY into *table*, its name in parts; *options* are the gateway's own."""
    names = f" ({', '.join(map(quoted, columns))})" if columns else ""
    where = ".".join(map(quoted, table))
    return f"COPY {where}{names} FROM STDIN ({options})"


async def copy_out(
    connection: Connection,
    sql: str,
    take: Take,
    timeout: float,
    *,
    budget: int,
    first: float | None = None,
) -> str:
    """Hand what *sql* copies to *take*, piece by piece; return the command tag.

    PostgreSQL waits while *take* does. If *take* raises, the copy is cancelled.

    Args:
        timeout: Seconds until it must be over.
        budget: Bytes that one row may take; the driver holds a row until it is whole.
        first: Seconds until the first piece must be there.

    Raises:
        OverBudget: A row is larger than *budget*; the connection is closed.
    """
    counter = connection.counter
    pieces: list[bytearray] = []
    size = 0
    end = asyncio.get_running_loop().time() + timeout
    # Not the driver's own timeout, which makes a task for every piece.
    limit = asyncio.timeout(timeout if first is None else min(first, timeout))
    waiting = first is not None

    async def collect(piece: bytearray) -> None:
        nonlocal size, waiting
        counter.left = budget
        if waiting:
            waiting = False
            limit.reschedule(end)
        if not pieces and len(piece) >= _PIECE:
            await take(piece)
            return
        pieces.append(piece)
        size += len(piece)
        if size >= _PIECE:
            whole = b"".join(pieces)
            pieces.clear()
            size = 0
            await take(whole)

    connection.unsynced = False
    counter.left = budget
    try:
        async with limit:
            with counter.gathering():
                tag = await connection._protocol.copy_out(sql, collect, None)
    except Exception as error:
        if counter.exceeded:
            connection.broken = True
            raise OverBudget from error
        raise
    finally:
        counter.left = 1 << 62
    if pieces:
        await take(b"".join(pieces))
    return str(tag)


async def copy_in(
    connection: Connection, sql: str, pieces: AsyncIterator[bytes], timeout: float
) -> int:
    """Feed *pieces* to *sql*; return the number of rows.

    Each piece is asked for when PostgreSQL can take it. As soon as PostgreSQL refuses,
    no more is asked for. If *pieces* raises, the copy fails and so does its transaction.
    """
    counter = connection.counter
    counter.refused = False
    counter.watched = bytearray()

    async def feed() -> AsyncIterator[bytes]:
        async for piece in pieces:
            if counter.refused:
                return  # what follows an error is thrown away by PostgreSQL
            yield piece

    connection.unsynced = False
    try:
        async with asyncio.timeout(timeout):
            tag = await connection._protocol.copy_in(sql, feed(), None, None, None, None)
    finally:
        counter.watched = None
    return int(str(tag).rpartition(" ")[2])


def failed_line(error: BaseException) -> int | None:
    """The line of the input that a failed COPY complains about, from 1."""
    context = getattr(error, "context", None) if isinstance(error, asyncpg.PostgresError) else None
    found = _LINE.search(context) if context else None
    return int(found[1]) if found else None
