"""Requests for a transaction that another node holds: passed on, and the answer handed back.

Whoever gets such a request knows its sender, and reads enough of it to see whose it is.
The owner gets the same bytes, and the sender under the signature of a node; it decides
by its own policy, and by what the transaction is bound to. Its answer goes back as it
is, while it comes. A caller that hangs up takes the connection between the nodes with
it, and so the statement.

What is not known after a connection between nodes broke is told as such: a COMMIT that
was passed on and never answered is `outcome_unknown`, and anything else is a transaction
that is gone. Nothing is passed on twice.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from ..core.errors import GatewayError, MethodNotAllowed, OutcomeUnknown, TransactionGone
from ..core.model import End, Principal
from ..core.nodes import PROOF, passed_on
from ..core.sigv4 import RawRequest
from ..engine.nodes import MAX_GREETING, Nodes, Owner
from ..engine.nodes import PATH as PATH
from ..providers.node import Answer, Lost, Unreachable
from .exchange import Exchange, new_request_id
from .native.codec import write_error
from .server import Server
from .wire import AsgiWire, Headers, Receive, Scope, Send

_REQUEST_ID = b"x-gateway-request-id"
_DEADLINE = b"x-gateway-deadline-ms"
_CODE = b"x-gateway-node-code"
"""What the owner's log calls the outcome, for the log of the node in between."""
_NOT_BACK = frozenset({b"connection", b"date", b"keep-alive", b"transfer-encoding", PROOF, _CODE})
_MOST_WHOLE = 1 << 30


class Relay:
    """Passes requests on to the node that holds their transaction."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.results: dict[str, int] = {}
        """How often which of `observe.metrics.RELAYED` came of a request."""

    def _count(self, result: str) -> None:
        self.results[result] = self.results.get(result, 0) + 1

    def owner(self, request: Any) -> str | None:
        """The boot of the node that has to answer *request*, if it is not this one."""
        asked = getattr(request, "request", request)
        transaction = getattr(asked, "transaction", None)
        return None if transaction is None else self.nodes.boot_of(transaction)

    async def pass_on(self, exchange: Exchange, boot: str, request: Any, body: bytes) -> bool:
        """Have the node *boot* answer; `False` if it is gone, and with it what it held.

        Raises:
            OutcomeUnknown: It was to commit, and its answer was lost.
            TransactionGone: Its answer was lost.
        """
        owner = await self.nodes.find(boot)
        if owner is None:
            self._count("gone")
            return False
        identified, call = exchange.identified, exchange.call
        assert identified is not None
        signed = identified.signed
        if signed is not None:
            signed |= {_REQUEST_ID.decode(), _DEADLINE.decode()}
        call.elsewhere = True
        commits = isinstance(request, End) and request.commit
        call.committing = commits
        result = "hangup"
        try:
            async with self.nodes.pass_on(
                owner, self._request(exchange, body), identified.principal, signed
            ) as answer:
                await _hand_back(exchange, answer)
            result = "answered"
        except Unreachable as error:
            result = "gone"
            if error.refused:
                self.nodes.gone(owner)
            return False
        except Lost:
            result = "lost"
            raise _lost(exchange, commits) from None
        finally:
            call.committing = False
            self._count(result)
        return True

    def _request(self, exchange: Exchange, body: bytes) -> RawRequest:
        wire, call = exchange.wire, exchange.call
        headers = passed_on(wire.headers)
        headers.append((_REQUEST_ID, call.request_id.encode("ascii")))
        if call.deadline != math.inf:
            left = call.deadline - asyncio.get_running_loop().time()
            headers.append((_DEADLINE, b"%d" % max(1, left * 1000)))
        return RawRequest(wire.method, wire.raw_path, wire.query, headers, body)

    def prove(self, exchange: Exchange, nonce: str) -> None:
        """Make the answer to a request that was passed on prove that it is this node's."""
        exchange.wire = Proving(exchange, self.nodes, nonce)

    async def cancel(self, principal: Principal, request_id: str) -> bool:
        """Ask all nodes to cancel what runs for *principal* as *request_id*; whether one did."""
        path = b"/statements/" + request_id.encode("ascii")
        request = RawRequest("DELETE", path, b"", [], b"")

        async def ask(owner: Owner) -> bool:
            try:
                async with self.nodes.pass_on(owner, request, principal, None) as answer:
                    return answer.status == 202
            except (Unreachable, Lost):
                return False

        return any(await asyncio.gather(*map(ask, self.nodes.others())))


async def _hand_back(exchange: Exchange, answer: Answer) -> None:
    headers: Headers = []
    whole = False
    for name, value in answer.headers:
        if name == _CODE:
            code, _, outcome = value.decode("ascii").partition(" ")
            exchange.code, exchange.outcome = code, outcome
        elif name not in _NOT_BACK:
            headers.append((name, value))
            whole = whole or name == b"content-length"
    wire = exchange.wire
    if whole:
        # The owner had it in memory, too.
        body = await answer.body(_MOST_WHOLE)
        exchange.status, exchange.sent = answer.status, len(body)
        await wire.send(answer.status, headers, body)
        return
    exchange.status = answer.status
    await wire.start(answer.status, headers)
    async for piece in answer.pieces():
        exchange.sent += len(piece)
        await wire.piece(piece, more=True)
    await wire.piece(b"", more=False)


def _lost(exchange: Exchange, commits: bool) -> GatewayError:
    if not commits:
        return TransactionGone(
            "the connection to the node that holds the transaction was lost; "
            "unless it was committed before, it is rolled back there"
        )
    keyed = exchange.call.keyed
    error = OutcomeUnknown(
        "the connection to the node that holds the transaction was lost during COMMIT",
        hint="ask for the outcome with the idempotency key, or look"
        if keyed is not None
        else "look whether it took effect; an idempotency key makes it possible to ask",
    )
    if keyed is not None:
        error.key = keyed.text.decode("ascii")
    return error


class Proving:
    """The wire of a request that another node passed on: its answer is proved to be ours."""

    def __init__(self, exchange: Exchange, nodes: Nodes, nonce: str) -> None:
        wire = exchange.wire
        self.method = wire.method
        self.raw_path = wire.raw_path
        self.query = wire.query
        self.headers = wire.headers
        self.known = None
        self._exchange = exchange
        self._wire = wire
        self._nodes = nodes
        self._nonce = nonce
        self.source = wire.source
        self.read = wire.read
        self.pieces = wire.pieces
        self.watch = wire.watch
        self.unwatch = wire.unwatch
        self.piece = wire.piece

    def _head(self, status: int, headers: Headers) -> Headers:
        head = [*headers, (PROOF, self._nodes.prove(self._nonce, status))]
        exchange = self._exchange
        if exchange.code is not None:
            head.append((_CODE, f"{exchange.code} {exchange.outcome}".encode("ascii")))
        return head

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head, and the proof."""
        await self._wire.start(status, self._head(status, headers))

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all, and the proof."""
        await self._wire.send(status, self._head(status, headers), body)


class NodeRoutes:
    """`POST /nodes`: nodes greet each other."""

    def __init__(self, server: Server, nodes: Nodes) -> None:
        self._server = server
        self._nodes = nodes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request at `PATH`."""
        wire = AsgiWire(scope, receive, send)
        try:
            if wire.method != "POST":
                raise MethodNotAllowed("use POST here")
            body = await wire.read(MAX_GREETING)
            if body is None:
                return
            value = next((value for name, value in wire.headers if name == b"authorization"), b"")
            proof, answer = self._nodes.greeted(value, body)
        except GatewayError as error:
            exchange = Exchange(self._server, "nodes", wire, write_error)
            exchange.call.request_id = new_request_id()
            await exchange.refuse(error)
            self._server.observe(exchange)
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
            (PROOF, proof),
        ]
        await wire.send(200, headers, answer)
