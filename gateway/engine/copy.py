"""Bulk in: a body of any size through COPY FROM STDIN, all or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec

from ..core.errors import (
    DatabaseError,
    GatewayError,
    OutcomeUnknown,
    StatementNotAllowed,
)
from ..core.formats.upload import (
    BOM,
    BadLine,
    EndMarks,
    Lines,
    Numbering,
    Raw,
    read_header,
    row_writer,
)
from ..core.model import Ask, Call, Grant, Principal, Result, TransactionMode
from ..core.policy import is_table
from ..postgres.connection import Connection
from ..postgres.copy import copy_in, copy_table, failed_line, quoted
from .parts import Parts, deadline_of, left, stream_end
from .reply import Reply
from .targets import Lease
from .told import after_failure, told

_END_MARKS_UNTIL = 18
"""PostgreSQL from this version on takes no line of a CSV for its end."""
_PIECE = 64 * 1024


class CopyIn(NamedTuple):
    """Put rows into a table."""

    ask: Ask
    table: tuple[str, ...]
    """Name, or schema and name."""
    columns: tuple[str, ...]
    """Empty for those that the data names."""
    form: str
    """`csv` or `ndjson`."""
    header: bool
    """Whether a CSV begins with a line of names."""
    body: AsyncIterator[bytes]
    timeout: float | None = None


class Copies(Parts):
    """Runs uploads."""

    async def copy(self, principal: Principal, request: CopyIn, call: Call) -> Reply:
        """Put every row of *request* into its table, or none."""
        grant, target = self._grant(principal, request.ask, call)
        _check(grant, request)
        deadline = deadline_of(call, None, grant, target)
        lease = await self._lease(target, grant, deadline, call, stream=True)
        until = stream_end(call, request.timeout, grant, target, self._time())
        try:
            started = self._time()
            connection = lease.connection
            count = await self._copy(lease, grant, request, deadline, until)
            await self._commit(connection, call)
            call.running = self._time() - started
        except BaseException as error:
            raise after_failure(lease, error, call) from None
        result = Result((), (), count, "COPY", False, connection.take_notices())
        return Reply(target, result=result, after=lease.settle, connection=connection, wrote=True)

    async def _copy(
        self, lease: Lease, grant: Grant, request: CopyIn, deadline: float, until: float
    ) -> int:
        connection = lease.connection
        if request.form == "csv":
            feed = await _from_csv(connection, request)
        else:
            feed = await self._from_json(connection, request, deadline)
        milliseconds = max(1, int(left(until, self._time) * 1000))
        await connection.begin(
            TransactionMode(),
            left(until, self._time),
            then=f"SET LOCAL statement_timeout={milliseconds}",
        )
        await self._claim(lease, grant, deadline, until=until, at_once=True)
        sql = copy_table(request.table, feed.columns, feed.options)
        try:
            count = await copy_in(connection, sql, feed.pieces, left(until, self._time))
        except GatewayError:
            raise
        except Exception as error:
            said = told(error, connection)
            line = failed_line(error)
            if line is not None and feed.numbering is not None:
                line = feed.numbering.line(line)
            raise _at(said, line) from error
        if not connection.in_transaction:
            connection.abort()
            raise OutcomeUnknown("the copy ended its own transaction")
        return count

    async def _from_json(self, connection: Connection, request: CopyIn, deadline: float) -> _Feed:
        objects = _objects(request.body)
        first = await anext(objects, None)
        columns = request.columns
        if first is not None and not columns:
            columns = tuple(first[1])
            if not columns:
                raise BadLine(first[0], "it names no column")
        kinds = []
        if columns:
            # PostgreSQL tells the types of the columns without any right to read them.
            where = ".".join(map(quoted, request.table))
            names = ", ".join(map(quoted, columns))
            values = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
            sql = f"INSERT INTO {where} ({names}) VALUES ({values})"
            try:
                described = await connection.describe(sql, left(deadline, self._time))
            except Exception as error:
                raise _at(told(error, connection), None) from error
            kinds = [connection.catalog.kind(oid) for oid in described.parameters]
        numbering = Numbering()
        rows = _rows(first, objects, row_writer(columns, kinds), numbering)
        return _Feed(rows, columns, "FORMAT text", numbering)


class _Feed(NamedTuple):
    pieces: AsyncIterator[bytes]
    columns: tuple[str, ...]
    options: str
    numbering: Numbering | None = None


def _at(said: BaseException, line: int | None) -> BaseException:
    """*said* about *line* of the upload, and about no place in our own text."""
    if isinstance(said, DatabaseError):
        said.position = None
        if line is not None:
            said.line = line  # type: ignore[attr-defined]
            said.message = f"line {line}: {said.message}"
    return said


async def _from_csv(connection: Connection, request: CopyIn) -> _Feed:
    body = aiter(request.body)
    begun = b""
    found = None
    async for piece in body:
        begun += piece
        if len(begun) < len(BOM) and BOM.startswith(begun):
            continue
        begun = begun.removeprefix(BOM)
        if not request.header:
            break
        found = read_header(begun)
        if found is not None:
            break
    if request.header and found is None:
        found = read_header(begun + b"\n") if begun else None  # a header and nothing else
        if found is None:
            raise BadLine(1, "there is no header", hint="or say text/csv; header=absent")
    columns = request.columns or (found.names if found is not None else ())
    version: int = connection.get_server_version().major
    marks = EndMarks() if version < _END_MARKS_UNTIL else None
    options = f"FORMAT csv, HEADER {'true' if request.header else 'false'}"
    return _Feed(_csv(begun, body, marks), columns, options)


def _check(grant: Grant, request: CopyIn) -> None:
    named = ".".join(request.table)
    if (
        grant.read_only
        or grant.statements != "any"
        or (grant.verbs and "insert" not in grant.verbs)
        or (grant.tables and not any(is_table(named, pattern) for pattern in grant.tables))
    ):
        raise StatementNotAllowed("this login may not copy into this table")


async def _csv(
    begun: bytes, body: AsyncIterator[bytes], marks: EndMarks | None
) -> AsyncIterator[bytes]:
    last = begun
    async for piece in body:
        if marks is not None:
            marks.feed(last)
        yield last
        last = piece
    if marks is not None:
        marks.feed(last, last=True)
    yield last


_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def _objects(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, Raw]]:
    lines = Lines()
    begun = True
    async for piece in body:
        if begun:
            piece, begun = piece.removeprefix(BOM), False
        for number, line in lines.feed(piece):
            yield number, _object(number, line)
    rest = lines.rest()
    if rest is not None:
        yield rest[0], _object(*rest)


def _object(number: int, line: bytes) -> Raw:
    try:
        return {name: bytes(raw) for name, raw in _decode(line).items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadLine(number, "it is not a JSON object") from None


async def _rows(
    first: tuple[int, Raw] | None,
    objects: AsyncIterator[tuple[int, Raw]],
    write: Callable[[int, Raw], bytes],
    numbering: Numbering,
) -> AsyncIterator[bytes]:
    if first is None:
        return
    pieces = [write(*first)]
    size = len(pieces[0])
    numbering.add(first[0])
    async for number, row in objects:
        made = write(number, row)
        numbering.add(number)
        pieces.append(made)
        size += len(made)
        if size >= _PIECE:
            yield b"".join(pieces)
            pieces.clear()
            size = 0
    if pieces:
        yield b"".join(pieces)
