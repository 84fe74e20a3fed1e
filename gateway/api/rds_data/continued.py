"""`continueAfterTimeout`: a statement that outlives the answer to its caller.

The statement runs in a task of its own. When its caller's time is over, the caller is
told of a timeout, and the statement goes on: outside a transaction it commits by itself,
inside one the transaction stays busy with it, and the next call waits for its turn. It
is bounded by the target's `continued_timeout`, and does not outlive the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ...core.errors import GatewayError, Outcome, QueueTimeout, Retry, StatementTimeout
from ...core.model import Ask, Call, Principal
from ...engine.engine import Engine, Reply
from ...engine.targets import Target


async def continued(
    engine: Engine, who: Principal, ask: Ask, call: Call, run: Callable[[], Awaitable[Reply]]
) -> Reply:
    """What *run* returns, or a timeout while it goes on.

    Raises:
        StatementTimeout: The caller's time was over.
        QueueTimeout: It was over before there was a connection; nothing goes on.
    """
    until, target = engine.answer_by(who, ask, call)
    if not target.settings.continued_timeout:
        return await run()
    call.continues = True
    loop = asyncio.get_running_loop()
    work = loop.create_task(_awaited(run))
    try:
        await asyncio.wait([work], timeout=max(0.0, until - loop.time()))
    except asyncio.CancelledError:
        # A caller that hangs up wanted this to go on; one that cancels did not.
        if call.cancelled or call.backend is None:
            work.cancel()
        _leave(target, work)
        raise
    if work.done():
        return work.result()
    backend = call.backend
    if backend is None:
        work.cancel()
        _leave(target, work)
        raise QueueTimeout(waited=loop.time() - call.received)
    _leave(target, work)
    timeout = StatementTimeout(
        "Request timed out", hint="the statement goes on running", backend=backend
    )
    timeout.outcome = Outcome.UNKNOWN
    timeout.retry = Retry.UNKNOWN
    raise timeout


async def _awaited(run: Callable[[], Awaitable[Reply]]) -> Reply:
    return await run()


def _leave(target: Target, work: asyncio.Task[Reply]) -> None:
    """Let *work* end behind the answer, and clean up behind it."""

    async def end() -> None:
        try:
            reply = await work
        except (GatewayError, asyncio.CancelledError):
            return  # its caller is gone; the engine has seen to the connection
        if reply.rows is not None:
            await reply.rows.stop()
        await reply.settle()

    target.keep(end())
