"""What all HTTP dialects share: read, run, write; errors; deadlines; hang-ups.

Everything about a request's life stands here once: its bytes are read, its sender
identified, its body understood, its work done under a deadline and under the eye of a
watcher that cancels it when the caller goes away; then the answer is written and the
connection cleaned behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from ..core.errors import (
    GatewayError,
    Internal,
    InvalidRequest,
    Outcome,
    OutcomeUnknown,
    Retry,
    SlowRequest,
    StatementCancelled,
)
from ..core.model import Call, Principal
from ..core.sigv4 import RawRequest
from ..engine.engine import Engine, Reply
from .exchange import Exchange, HangUp, WriteError, new_request_id
from .server import Server, Told
from .wire import Wire

_KEYS = frozenset({"idempotency-key", "amz-sdk-invocation-id"})
_APART = frozenset(
    {
        b"accept-encoding", b"amz-sdk-invocation-id", b"content-encoding", b"idempotency-key",
        b"origin", b"traceparent", b"x-gateway-deadline-ms", b"x-gateway-request-id",
    }
)  # fmt: skip
"""Headers that mean something for the one request that they came with."""


class Operation(NamedTuple):
    """One endpoint: `read` and the writing are pure, `run` calls the engine."""

    name: str
    read: Callable[[bytes, Mapping[str, str]], Any]
    """Body and path parameters → request."""
    run: Callable[[Engine, Principal, Any, Call], Awaitable[Any]]
    write: Callable[[Exchange, Any, Any], Awaitable[None]]
    """Exchange, request, what `run` returned."""
    method: str = "POST"
    upload: Callable[[Exchange, Mapping[str, str]], Any] | None = None
    """In place of `read`, for a body of any size that `run` takes piece by piece."""


async def serve(
    server: Server,
    operation: Operation,
    path: Mapping[str, str],
    write_error: WriteError,
    id_header: bytes,
    check: Callable[[Exchange], None] | None,
    wire: Wire,
) -> None:
    """Carry one request from its bytes to its answer.

    Args:
        path: Parameters found in the path.
        id_header: The header that carries the request id out.
        check: Refuses by the headers, once the sender is known.
    """
    exchange = Exchange(server, operation.name, wire, write_error)
    call = exchange.call
    call.request_id = new_request_id()
    server.active += 1
    try:
        try:
            told = server.recall(wire)
            if told is None:
                met = await _meet(exchange, operation, path, check)
                if met is None:
                    return
                body, path = met
                identified = exchange.identified
                assert identified is not None
            else:
                # Nothing in this head that was not in one before: a third of the request.
                whole = await wire.read(server.request_bytes)
                if whole is None:
                    return
                body = whole
                call.received = exchange.clock()
                exchange.identified = identified = told.identified
                call.form, call.text = told.form, told.text
                if server.traces is not None or server.comments:
                    exchange.follow_trace()
            if operation.upload is None:
                request = operation.read(body, path)
            else:
                request = operation.upload(exchange, path)
            elsewhere = None
            if server.relay is not None and not call.passed_on:
                elsewhere = server.relay.owner(request)
            if elsewhere is None:
                body = b""  # It is read, may be large, and its statement may have to wait.
            key = (identified.principal.subject, call.request_id)
            exchange.task = task = asyncio.current_task()
            exchange.hangup = HangUp(call, task)
            if operation.upload is None:
                wire.watch(exchange.hangup)
            server.running[key] = exchange
            exchange.headers.append((id_header, call.request_id.encode("ascii")))
            try:
                if elsewhere is not None:
                    assert server.relay is not None
                    if operation.upload is not None:
                        body = await exchange.gather()
                    if await server.relay.pass_on(exchange, elsewhere, request, body):
                        return
                try:
                    done = await operation.run(server.engine, identified.principal, request, call)
                finally:
                    if call.target is not None:
                        if not call.running:
                            call.running = server.clock() - call.started
                        server.observer.statement_finished(call.target, call.running)
                    if call.keyed is not None:
                        exchange.note_key()
                call.done = time.perf_counter()
                if isinstance(done, Reply):
                    exchange.reply = done
                await operation.write(exchange, request, done)
            finally:
                server.running.pop(key, None)
                wire.unwatch()
        except GatewayError as error:
            if not exchange.headers:
                exchange.headers.append((id_header, call.request_id.encode("ascii")))
            await _refuse(exchange, _happened(error, exchange))
        except asyncio.CancelledError:
            await _cancelled(exchange, id_header)
        except Exception as error:  # noqa: BLE001  # a defect must answer, not hang the caller
            if not exchange.headers:
                exchange.headers.append((id_header, call.request_id.encode("ascii")))
            await _refuse(exchange, _unexpected(error, exchange))
    finally:
        try:
            if exchange.reply is not None and not exchange.reply.settle_at_once():
                await exchange.reply.settle()
        finally:
            server.active -= 1
            if server.draining and server.active == 0:
                server.quiet.set()
            server.observe(exchange)
            # Both hold this task, and it holds them: without this, every request would leave
            # a circle to the garbage collector.
            exchange.task = exchange.hangup = None


async def _meet(
    exchange: Exchange,
    operation: Operation,
    path: Mapping[str, str],
    check: Callable[[Exchange], None] | None,
) -> tuple[bytes, Mapping[str, str]] | None:
    """Learn who sends a request and what its head says; its body, and the path's parameters.

    `None` if the caller left before its end.
    """
    server, wire, call = exchange.server, exchange.wire, exchange.call
    if operation.upload is None or exchange.is_passed_on():
        body = await exchange.body()
        if body is None:
            return None
        exchange.whole = body if operation.upload is not None else None
    else:
        exchange.refuse_compressed()
        body = b""
    call.received = exchange.clock()
    epoch = server.identifier.epoch
    exchange.identified = identified = await server.identifier.authenticate(
        RawRequest(
            wire.method,
            wire.raw_path,
            wire.query,
            exchange.raw,
            body,
            operation.upload is not None and exchange.whole is None,
        ),
        wall=server.wall,
        source=exchange,
    )
    if identified.vouched is not None and server.relay is not None:
        call.passed_on = True
        server.relay.prove(exchange, identified.vouched)
    exchange.read_head()
    if server.traces is not None or server.comments:
        exchange.follow_trace()
    if check is not None:
        check(exchange)
    if wire.query:
        path = {**_arguments(wire.query), **path}
    exchange.read_key(body, path)
    if server.require_signed_key and identified.signed is not None:
        call.must_read = not _KEYS & identified.signed
    known = wire.known
    if known is not None and identified.until and _APART.isdisjoint(known.names):
        known.told = Told(identified, epoch, call.form, call.text)
    return body, path


def _arguments(query: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise InvalidRequest("the query of the URL cannot be read") from None


def _stopped(call: Call) -> GatewayError:
    if call.in_doubt:
        return OutcomeUnknown(
            "the statement was cancelled outside any transaction",
            hint="it may have taken effect in part; look before sending it again",
        )
    if call.cancel_reason != "drain":
        return StatementCancelled("the statement was cancelled")
    error = StatementCancelled(
        "this node is shutting down and the statement was cancelled",
        hint="nothing of it was kept; send it again",
    )
    error.retry = Retry.SAFE
    return error


def _unexpected(error: Exception, exchange: Exchange) -> GatewayError:
    # A defect of ours after the work was done must not be taken for "nothing happened".
    if exchange.reply is not None:
        message = f"the answer could not be written ({type(error).__name__})"
        return _happened(OutcomeUnknown(message), exchange)
    return Internal(f"unexpected {type(error).__name__}")


def _happened(error: GatewayError, exchange: Exchange) -> GatewayError:
    """*error*, which says so if it came after the work was committed."""
    if exchange.reply is not None and exchange.reply.wrote:
        error.outcome = Outcome.COMMITTED
        error.retry = Retry.NEVER
        if error.status >= 429:
            # What such a status says to SDKs is: nothing happened, send it again.
            error.status = 400
    return error


async def _refuse(exchange: Exchange, error: GatewayError) -> None:
    if exchange.status:
        # The head is out: leaving the body unfinished makes the server cut the connection,
        # so that nobody takes the answer for complete.
        exchange.note(error)
        if exchange.last_words is not None and not isinstance(error, SlowRequest):
            error.request_id = exchange.call.request_id
            await exchange.wire.piece(exchange.last_words(error), more=False)
        return
    await exchange.refuse(error)


async def _cancelled(exchange: Exchange, id_header: bytes) -> None:
    hangup = exchange.hangup
    task = asyncio.current_task()
    if hangup is not None and hangup.gone:
        exchange.code = "hangup"
        exchange.outcome = _left_behind(exchange).value
    elif exchange.call.cancelled:
        if task is not None:
            task.uncancel()
        await _refuse(exchange, _happened(_stopped(exchange.call), exchange))
        return
    else:
        raise asyncio.CancelledError
    if task is not None:
        task.uncancel()


def _left_behind(exchange: Exchange) -> Outcome:
    """What became of the work of a caller who left."""
    if exchange.reply is not None and exchange.reply.wrote:
        return Outcome.COMMITTED
    return Outcome.UNKNOWN if exchange.call.in_doubt else Outcome.NOT_EXECUTED
