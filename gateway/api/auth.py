"""`POST /auth/iam`: an AWS identity for a token and a temporary key of the gateway's own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

from ..core.errors import GatewayError, InvalidRequest, MethodNotAllowed
from ..core.iam import read_exchange
from ..engine.exchange import IamExchange, Issued
from .exchange import Exchange, new_request_id
from .native.codec import JSON, write_error
from .server import Server
from .wire import AsgiWire, Receive, Scope, Send

PATH = "/auth/iam"
MAX_BODY = 16_384


def write_issued(issued: Issued) -> bytes:
    """*issued* as the body of the answer; the member names are those of AWS's own."""
    expires = datetime.fromtimestamp(issued.expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    body: dict[str, Any] = {
        "token": issued.token,
        "expires_at": expires,
        "credentials": {
            "AccessKeyId": issued.key_id,
            "SecretAccessKey": issued.secret,
            "SessionToken": issued.session_token,
            "Expiration": expires,
        },
        "subject": issued.subject,
    }
    return orjson.dumps(body)


class AuthRoutes:
    """The endpoint that nobody needs credentials for, because it makes them."""

    def __init__(self, server: Server, exchange: IamExchange) -> None:
        self._server = server
        self.exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request at `PATH`."""
        wire = AsgiWire(scope, receive, send)
        exchange = Exchange(self._server, "auth_iam", wire, write_error)
        call = exchange.call
        call.request_id = new_request_id()
        exchange.headers.append((b"x-gateway-request-id", call.request_id.encode("ascii")))
        # Credentials are in it: no cache may keep it.
        exchange.headers.append((b"cache-control", b"no-store"))
        try:
            await self._answer(exchange, wire)
        except GatewayError as error:
            await exchange.refuse(error)
        finally:
            self._server.observe(exchange)

    async def _answer(self, exchange: Exchange, wire: AsgiWire) -> None:
        if wire.method != "POST":
            exchange.headers.append((b"allow", b"POST"))
            raise MethodNotAllowed("use POST here")
        body = await wire.read(MAX_BODY)
        if body is None:
            return
        try:
            asked = orjson.loads(body)
        except ValueError:
            raise InvalidRequest("the body is not JSON") from None
        if not isinstance(asked, dict):
            raise InvalidRequest("the body is not a JSON object")
        issued = await self.exchange.exchange(read_exchange(asked), source=exchange.source)
        await exchange.send(200, JSON, write_issued(issued))
