"""Bulk in: a body of any size through COPY FROM STDIN, all or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

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
from .held import Opened
from .parts import check_key, deadline_of, left, stream_end
from .reply import Reply
from .targets import Lease
from .told import after_failure, told
from .work import Unread, Work

_END_MARKS_UNTIL = 18
"""PostgreSQL from this version on takes no line of a CSV for its end."""
_PIECE = 64 * 1024
_MODE = TransactionMode()
_TIMEOUT = """\
SELECT setting, setting = reset_val FROM pg_catalog.pg_settings WHERE name = 'statement_timeout'"""
_NOT_SUPPORTED = "0A000"
_UNDER_POLICIES = "COPY FROM not supported with row-level security"


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
    transaction: str | None = None


class Copies(Opened):
    """Runs uploads."""

    async def copy(self, principal: Principal, request: CopyIn, call: Call) -> Reply:
        """Put every row of *request* into its table, or none."""
        if request.transaction is not None:
            return await self._copy_within(principal, request, call)
        grant, target = self._grant(principal, request.ask, call)
        _check(grant, request)
        check_key(call, _MODE)
        deadline = deadline_of(call, None, grant, target)
        work, request, asked = self._unread(call, request)
        try:
            if work is not None:
                # Twins wait here, without a connection.
                await work.take(deadline)
            lease = await self._lease(target, grant, deadline, call, stream=True)
            until = stream_end(call, request.timeout, grant, target, self._time())
            try:
                started = self._time()
                result = await self._alone_copied(
                    lease, grant, request, call, work, asked, (deadline, until)
                )
                call.running = self._time() - started
            except BaseException as error:
                raise after_failure(lease, error, call) from None
        finally:
            if work is not None:
                work.leave()
        return Reply(
            target, result=result, after=lease.settle, connection=lease.connection, wrote=True
        )

    async def _alone_copied(
        self, lease: Lease, grant: Grant, request: CopyIn, call: Call, work: Work | None,
        asked: Any, deadlines: tuple[float, float],
    ) -> Result:  # fmt: skip
        """All of it in a transaction of its own, or what an earlier request was answered."""
        connection = lease.connection
        deadline, until = deadlines
        if work is None:
            # What cannot be read is found out before there is a transaction.
            feed = await self._feed(connection, request, deadline)
            await connection.begin(_MODE, left(until, self._time), then=self._limit(until))
        else:
            try:
                await work.begin(lease, _MODE, deadline)
            except Unread as known:
                return await _compared(work, known, request, asked)
            await connection.script(self._limit(until), left(until, self._time))
            feed = await self._feed(connection, request, deadline)
        count = await self._fed(lease, grant, request, feed, deadline, until)
        result = Result((), (), count, "COPY", False, connection.take_notices())
        if work is not None:
            work.read(asked.digest())
            await self._take_off(lease, grant, until)
            await work.record(connection, [result], 0, until)
        await self._conclude(lease, call, work, until)
        return result

    async def _copy_within(self, principal: Principal, request: CopyIn, call: Call) -> Reply:
        """Put every row of *request* into its table, if the caller's transaction commits."""
        assert request.transaction is not None
        held = self.transactions.find(request.transaction, principal, request.ask)
        self._same_grant(principal, held, request, call)
        grant, target = held.grant, held.target
        _check(grant, request)
        deadline = deadline_of(call, None, grant, target)
        deadline = await self._enter(held, deadline, call)
        started = self._time()
        until = min(stream_end(call, request.timeout, grant, target, started), held.limits.ends)
        held.fresh = False
        connection = held.lease.connection
        work, request, asked = self._unread(call, request)
        try:
            if work is not None:
                try:
                    work.recall()
                except Unread as known:
                    kept = await _compared(work, known, request, asked)
                    return self._reply_in(held, result=kept)
            await connection.quiet(left(deadline, self._time))
            await self._path_in(held, None, deadline)
            feed = await self._feed(connection, request, deadline)
            before = await self._longer(connection, until)
            count = await self._fed(held.lease, grant, request, feed, deadline, until)
            if before is not None:
                again = f"SET LOCAL statement_timeout={before}"
                await connection.script(again, left(until, self._time))
            call.running = self._time() - started
            result = Result((), (), count, "COPY", False, connection.take_notices())
            if work is not None:
                work.read(asked.digest())
                work.keep_answer([result])
        except BaseException as error:
            raise self._failed_in(held, error, call) from None
        return self._reply_in(held, result=result)

    def _unread(self, call: Call, request: CopyIn) -> tuple[Work | None, CopyIn, Any]:
        """The keyed work of *call*, if it brought a key, and the hash of what is asked for.

        It is complete when the body of the returned request has been read.
        """
        work = self._work(call)
        if work is None or call.keyed is None:
            return None, request, None
        work.unread, asked = True, call.keyed.asked()
        return work, request._replace(body=_hashed(request.body, asked)), asked

    async def _longer(self, connection: Connection, until: float) -> int | None:
        """Let a statement of the open transaction take until *until*, if its caller set no limit.

        Returns:
            What the limit was, in milliseconds; `None` if it is the caller's.
        """
        described = await connection.describe(_TIMEOUT, left(until, self._time))
        found = await connection.run(described, [], timeout=left(until, self._time), budget=65_536)
        setting, ours = found.rows[0]
        if not ours:
            return None
        await connection.script(self._limit(until), left(until, self._time))
        return int(setting)

    def _limit(self, until: float) -> str:
        return f"SET LOCAL statement_timeout={max(1, int(left(until, self._time) * 1000))}"

    async def _feed(self, connection: Connection, request: CopyIn, deadline: float) -> _Feed:
        if request.form == "csv":
            return await _from_csv(connection, request)
        return await self._from_json(connection, request, deadline)

    async def _fed(
        self, lease: Lease, grant: Grant, request: CopyIn, feed: _Feed, deadline: float,
        until: float,
    ) -> int:  # fmt: skip
        connection = lease.connection
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


async def _compared(work: Work, known: Unread, request: CopyIn, asked: Any) -> Result:
    """What an earlier upload under the key was answered, if this one is the same to its end."""
    async for _ in request.body:
        pass
    work.read(asked.digest())
    kept: Result = work.judged(known.entry)[0]
    return kept


async def _hashed(body: AsyncIterator[bytes], into: Any) -> AsyncIterator[bytes]:
    async for piece in body:
        into.update(piece)
        yield piece


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
        if said.sqlstate == _NOT_SUPPORTED and said.message == _UNDER_POLICIES:
            said.hint = (
                "PostgreSQL has no bulk upload into a table under row-level security: send INSERT"
                " with many parameter_sets to POST /batch, or upload as a login that the policies"
                " do not hold for"
            )
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
