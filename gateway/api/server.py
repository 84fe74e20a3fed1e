"""What every exchange needs of the process that it happens in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..core.model import Principal
from ..core.observation import Observer
from ..core.proxies import Proxies
from ..engine.engine import Engine
from ..engine.identity import Identified, Identifier
from ..observe.traces import Traces
from ..settings import CorsSettings
from .cors import Cors
from .wire import Wire

if TYPE_CHECKING:
    from .exchange import Exchange


class Relaying(Protocol):
    """Passes requests on to other nodes; `api/relay.py` does."""

    def owner(self, request: Any) -> str | None:
        """The node that has to answer *request*, if it is not this one."""

    async def pass_on(self, exchange: Exchange, boot: str, request: Any, body: bytes) -> bool:
        """Have that node answer; `False` if it is gone."""

    async def cancel(self, principal: Principal, request_id: str) -> bool:
        """Have what runs elsewhere as *request_id* cancelled."""

    def prove(self, exchange: Exchange, nonce: str) -> None:
        """Make the answer prove that it is this node's."""


class Told(NamedTuple):
    """What a head has said, for the next request that begins with it.

    Only heads that say the same each time: under a token, and without any header that is
    another one for each request or is answered in the head of the answer.
    """

    identified: Identified
    epoch: object
    """The identifier's, under which that counts."""
    form: str
    text: bool


class Server:
    """What every exchange needs."""

    def __init__(
        self,
        *,
        engine: Engine,
        identifier: Identifier,
        wall: Callable[[], float],
        request_bytes: int,
        observer: Observer,
        observe: Callable[[Exchange], None] = lambda exchange: None,
        cors: Cors | None = None,
        require_signed_key: bool = False,
        proxies: Proxies | None = None,
    ) -> None:
        self.engine = engine
        self.identifier = identifier
        self.wall = wall
        self.request_bytes = request_bytes
        self.draining = False
        self.running: dict[tuple[str, str], Exchange] = {}
        """By principal's subject and request id."""
        self.observer = observer
        self.observe = observe
        self.cors = cors or Cors(CorsSettings())
        self.require_signed_key = require_signed_key
        """Whether a signed request may write only with a key that the signature covers."""
        self.relay: Relaying | None = None
        self.traces: Traces | None = None
        self.proxies = proxies or Proxies()
        """Whose word about the address of a caller counts."""
        self.comments = False
        """Whether some target's statements are to name the trace that they belong to."""
        self.active = 0
        self.clock = asyncio.get_running_loop().time
        """The event loop's."""
        self.quiet = asyncio.Event()

    def recall(self, wire: Wire) -> Told | None:
        """What the head of a request has said before, as far as that still counts."""
        known = wire.known
        if known is None:
            return None
        told: Told | None = known.told
        if (
            told is None
            or told.epoch is not self.identifier.epoch
            or told.identified.until <= self.wall()
        ):
            return None
        return told
