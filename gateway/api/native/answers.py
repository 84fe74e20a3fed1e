"""An answer with rows, in the form that its caller asked for, whole or as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import orjson

from ...core.errors import GatewayError, NotAcceptable
from ...core.formats import arrow, arrow_copied, csv
from ...core.formats.accept import ALL, Form, negotiate
from ...core.formats.copied import json_rows as copied_rows
from ...core.formats.json import Rows, Shape, maker
from ...core.formats.ndjson import lines
from ...core.model import Column, OpenTransaction
from ...engine.engine import Reply
from ...engine.streams import cut_off
from ..exchange import Exchange
from ..streaming import stream_copied
from ..wire import Headers
from . import codec

_OFFERED = ALL if arrow.available() else tuple(form for form in ALL if form is not Form.ARROW)
_TYPES: dict[Form, Headers] = {
    Form.JSON: codec.JSON,
    Form.CSV: [(b"content-type", b"text/csv; charset=utf-8; header=present")],
    **{
        form: [(b"content-type", form.value.encode("ascii"))]
        for form in (Form.NDJSON, Form.FRAMES, Form.ARROW)
    },
}


def accept(exchange: Exchange) -> None:
    """Choose the form of the answer, before anything is done for it.

    Raises:
        NotAcceptable: Nothing the caller accepts can be produced.
    """
    asked = [value for name, value in exchange.raw if name == b"accept"]
    exchange.call.text = True
    if not asked:
        return
    text = b",".join(asked).decode("latin-1")
    offered = _OFFERED if exchange.operation == "execute" else (Form.JSON,)
    form = negotiate(text, offered)
    if form is None:
        hint = "Accept: " + ", ".join(each.value for each in offered)
        if Form.ARROW not in offered and negotiate(text) is Form.ARROW:
            hint += "; Arrow needs the extra `arrow` on the server"
        raise NotAcceptable("nothing that is accepted can be produced here", hint=hint)
    if form is not Form.JSON:
        exchange.call.form = form.name.lower()
        exchange.call.text = form is not Form.CSV


_SILENT = frozenset({Form.NDJSON, Form.CSV, Form.ARROW})
"""Forms whose streams have no place to say that rows were left out."""


class End(NamedTuple):
    """What is known of a result when its last row is written."""

    row_count: int
    command: str
    notices: Sequence[str] = ()
    truncated: bool = False
    transaction: OpenTransaction | None = None


class Writer(Protocol):
    """One answer: `head`, `rows` any number of times, `tail`."""

    def head(self) -> bytes:
        """What comes before the rows."""

    def rows(self, rows: Rows) -> bytes:
        """Some rows."""

    def tail(self, end: End) -> bytes:
        """What comes behind the rows; without it the answer is not complete."""


class _Json:
    def __init__(self, columns: Sequence[Column], shape: Shape) -> None:
        self._columns = columns
        self._shape = shape
        self._make = maker(columns, shape)
        self._comma = b""

    def head(self) -> bytes:
        return codec.write_head(self._columns, self._shape)

    def rows(self, rows: Rows) -> bytes:
        written = self._comma + orjson.dumps(self._make(rows))[1:-1]
        self._comma = b","
        return written

    def tail(self, end: End) -> bytes:
        return b"]" + codec.write_tail(
            end.row_count,
            end.command,
            notices=end.notices,
            truncated=end.truncated,
            transaction=end.transaction,
        )


class _Lines:
    def __init__(self, columns: Sequence[Column], shape: Shape) -> None:
        self._columns = columns
        self._shape = shape._replace(objects=True)
        self.rows = lines(columns, self._shape)

    def head(self) -> bytes:
        codec.write_columns(self._columns, self._shape)  # refuses two columns of one name
        return b""

    def tail(self, end: End) -> bytes:
        return b""


class _Frames:
    def __init__(self, columns: Sequence[Column], shape: Shape) -> None:
        self._columns = columns
        self._shape = shape._replace(objects=False)
        self.rows = lines(columns, self._shape)

    def head(self) -> bytes:
        return b'{"columns":%b}\n' % codec.write_columns(self._columns, self._shape)

    def tail(self, end: End) -> bytes:
        inner = codec.write_tail(
            end.row_count,
            end.command,
            notices=end.notices,
            truncated=end.truncated,
            transaction=end.transaction,
        )
        return b'{"end":{%b}\n' % inner.removeprefix(b",")


class _Csv:
    def __init__(self, columns: Sequence[Column], shape: Shape) -> None:
        self._columns = columns
        self.rows = csv.encoder(columns)

    def head(self) -> bytes:
        return csv.header(self._columns)

    def tail(self, end: End) -> bytes:
        return b""


class _Arrow:
    def __init__(self, columns: Sequence[Column], shape: Shape) -> None:
        self._writer = arrow.Writer(columns)
        self.head = self._writer.head
        self.rows = self._writer.rows

    def tail(self, end: End) -> bytes:
        return self._writer.tail()


_WRITERS: dict[Form, Any] = {
    Form.JSON: _Json,
    Form.NDJSON: _Lines,
    Form.FRAMES: _Frames,
    Form.CSV: _Csv,
    Form.ARROW: _Arrow,
}


async def write_answer(exchange: Exchange, asked: codec.ExecuteAs, reply: Reply) -> None:
    """Send what a statement gave."""
    if reply.result is not None and not exchange.call.form:
        body = codec.write_result(reply.result, asked.shape, reply.transaction)
        await exchange.send(200, codec.JSON, body)
        return
    form = Form[exchange.call.form.upper()] if exchange.call.form else Form.JSON
    headers, shape = _TYPES[form], asked.shape
    if reply.copied is not None:
        if form is Form.CSV:
            await _pass_on(exchange, reply, headers)
        else:
            await _write_copied(exchange, reply, form, shape)
        return
    result = reply.result
    if result is not None:
        if not result.has_rows and form in (Form.NDJSON, Form.CSV, Form.ARROW):
            # There is nothing to write, and not even a header to begin with.
            await exchange.send(200, headers, b"")
            return
        whole: Writer = _WRITERS[form](result.columns, shape)
        end = End(
            result.row_count, result.command, result.notices, result.truncated, reply.transaction
        )
        if result.truncated:
            exchange.headers.append((b"x-gateway-truncated", b"true"))
        await exchange.send(200, headers, whole.head() + whole.rows(result.rows) + whole.tail(end))
        return
    rows = reply.rows
    assert rows is not None
    writer: Writer = _WRITERS[form](rows.columns, shape)
    part = writer.head()
    if form is Form.FRAMES:
        exchange.last_words = _last_words
    exchange.begin_stream(reply)
    started = False
    async for batch in rows.batches():
        part += writer.rows(batch)
        if not started:
            await exchange.start(200, headers)
            started = True
        await exchange.piece(part)
        part = b""
    if not started:
        await exchange.start(200, headers)
    most = asked.request.max_rows
    if rows.truncated and form in _SILENT and (most is None or rows.count < most):
        raise cut_off()
    end = End(rows.count, rows.command, (), rows.truncated, reply.transaction)
    await exchange.piece(part + writer.tail(end), more=False)


async def _pass_on(exchange: Exchange, reply: Reply, headers: Headers) -> None:
    """CSV as PostgreSQL writes it, but for the ends of its lines."""
    assert reply.copied is not None
    ends = csv.LineEnds()
    exchange.begin_stream(reply)

    async def take(piece: bytes | bytearray) -> None:
        if not exchange.status:
            await exchange.start(200, headers)
        await exchange.piece(ends.feed(piece))

    await reply.copied.run(take)
    await exchange.piece(ends.rest(), more=False)


async def _write_copied(exchange: Exchange, reply: Reply, form: Form, shape: Shape) -> None:
    """JSON or Arrow of what PostgreSQL copies."""
    assert reply.copied is not None
    columns = reply.copied.columns
    if form is Form.ARROW:
        batches = arrow_copied.Writer(columns)
        head = batches.head()
        await stream_copied(exchange, reply, _TYPES[form], head, batches.feed, batches.tail)
        return
    writer: Writer = _WRITERS[form](columns, shape)
    if form is not Form.JSON:
        shape = shape._replace(objects=form is Form.NDJSON)
    rows = copied_rows(columns, shape, lines=form is not Form.JSON)
    head = writer.head()
    if form is Form.FRAMES:
        exchange.last_words = _last_words
    tail = partial(_tail_of_copied, writer, reply)
    await stream_copied(exchange, reply, _TYPES[form], head, rows.feed, tail)


def _tail_of_copied(writer: Writer, reply: Reply) -> bytes:
    assert reply.copied is not None
    return writer.tail(End(reply.copied.count, "SELECT", transaction=reply.transaction))


def _last_words(error: GatewayError) -> bytes:
    """The last line of a stream that broke."""
    return b'{"error":%b}\n' % codec.write_error(error, "")[2]
