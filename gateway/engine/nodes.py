"""The other nodes while this one runs: asking them, being asked, and what follows.

Who lives and what each may hold is decided in `core/nodes.py`. Here are the rounds:
every `nodes.refresh` seconds each address of each peer is greeted, and tells its boot
and what it holds. A node that is greeted by one that it does not know shrinks at once
and begins a round itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from ..core import nodes
from ..core.errors import Unauthenticated
from ..core.iam import Seen
from ..core.model import Principal
from ..core.nodes import ENDED, NONCE_BYTES, PROOF, SKEW, VANISHED, Roster, Told
from ..core.sigv4 import RawRequest
from ..core.transaction import TransactionIds
from ..providers.node import Address, Answer, Lost, Unreachable, ask
from ..settings import Settings
from .identity import Identified
from .targets import Targets

_chance = random.Random()

PATH = "/nodes"
"""Where nodes greet each other."""
MAX_GREETING = 65_536
_CONNECT = 2.0
"""Seconds. Nodes are near each other; one that takes longer is not there."""
_GREETING = 4.0
_AGAIN = 0.1
"""Seconds to the next round while others have not yet made room."""
_FAREWELL = 1.0
_EVERYWHERE = ("0.0.0.0", "::")
_RECENT = 0.5
"""Seconds for which a node that was looked for in vain is not looked for again."""
_MISSED_KEPT = 1_000
_REST = 40.0
"""Seconds on top of the longest statement: a COMMIT has limits of its own."""


class Owner(NamedTuple):
    """A node, by its boot and where it answers."""

    boot: str
    address: Address


class Nodes:
    """This node among its peers.

    Args:
        ids: Of this node's transactions.
        wall: Seconds since the epoch.
    """

    def __init__(
        self, settings: Settings, targets: Targets, ids: TransactionIds, wall: Callable[[], float]
    ) -> None:
        auth = settings.auth
        masters = [each for each in (auth.master_key, auth.previous_master_key) if each]
        self._keys = [nodes.node_key(each) for each in masters]
        # Nodes change their master key one after the other.
        self._readers = [ids, *(TransactionIds(each, boot=bytes(6)) for each in masters[1:])]
        self._settings = settings.nodes
        self._own = settings.server.host, settings.server.port
        self._targets = targets
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self.boot = ids.own.boot.hex()
        self.roster = Roster(self.boot, forget=max(3.0, 3 * settings.nodes.refresh))
        self.draining = False
        self._careful = True
        """Not yet listening: others cannot ask this node."""
        self._myself: set[Address] = set()
        self._seen = Seen(keep=2 * SKEW, most=1_000_000)
        self._tls = _tls(settings)
        self._round: asyncio.Task[None] | None = None
        self._mute: dict[Address | str, float] = {}
        """Where nobody answers, nor says that nobody is there, since when: there may be a node
        that holds a lot. Addresses, and names that could not be looked up."""
        self._ended: dict[Address, float] = {}
        """Where somebody was silent and then gone, and until when its sessions count."""
        self._holds_nothing = False
        """It drained, and its sessions have ended."""
        self._missed: dict[str, float] = {}
        """Nodes that were looked for in vain, and when."""
        self._runner: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.patience = _REST + max(
            (each.statement_timeout for each in settings.targets.values()), default=0.0
        )
        """Seconds that another node may take until it answers."""

    # -- rounds ------------------------------------------------------------------------

    async def start(self) -> None:
        """Meet the others, and take one connection of each target where there is one left."""
        await self._look()

    def listens(self) -> None:
        """From now on the others can ask this node, so it may have its whole share."""
        self._careful = False
        self._runner = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """Tell the others that this node gives back what it holds."""
        self.draining = True
        if self._runner is not None:
            await self._look()

    async def leave(self) -> None:
        """Tell the others that this node's sessions have ended, so that they may have them."""
        self._holds_nothing = True
        if self._runner is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await self._look()

    def close(self) -> None:
        """Ask nobody any more."""
        for task in (self._runner, self._round):
            if task is not None:
                task.cancel()

    async def _run(self) -> None:
        while True:
            await self._look()
            pause = self._settings.refresh * _chance.uniform(0.8, 1.0)
            if self._waits_for_room():
                pause = min(pause, _AGAIN)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _look(self) -> None:
        """Ask all others, or wait until somebody who is asking them has done so."""
        if self._round is None or self._round.done():
            self._round = self._loop.create_task(self._ask_all())
        await asyncio.shield(self._round)

    async def _ask_all(self) -> None:
        addresses, unknown = await self._addresses()
        addresses = [each for each in addresses if not self._is_here(each)]
        await asyncio.gather(*(self._greet(each) for each in addresses))
        now = self._loop.time()
        self.roster.clear(now)
        asked = {*addresses, *unknown}
        self._mute = {each: since for each, since in self._mute.items() if each in asked}
        for name in unknown:
            self._mute.setdefault(name, now)
        self._ended = {each: until for each, until in self._ended.items() if until > now}
        silent = any(now <= since + VANISHED for since in self._mute.values())
        self._apply(grow=not silent and not self._ended)

    async def _addresses(self) -> tuple[list[Address], list[str]]:
        """Where nodes may be, and the names of which nobody could say."""
        found: dict[Address, None] = {}
        unknown = []
        for url in self._settings.peers:
            parts = urlsplit(url)
            name, port = parts.hostname or "", parts.port or 0
            try:
                async with asyncio.timeout(_GREETING):
                    known = await self._loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            except (OSError, TimeoutError) as error:
                if getattr(error, "errno", None) != socket.EAI_NONAME:
                    unknown.append(name)
                continue
            for *_, place in known:
                found[Address(str(place[0]), port, name, parts.scheme == "https")] = None
        # Also whom the name service has just dropped, such as one that is to stop.
        for each in self.others():
            found[each.address] = None
        return list(found), unknown

    def _is_here(self, address: Address) -> bool:
        """Whether this node listens there. It cannot ask itself before it answers anybody."""
        if address in self._myself:
            return True
        host, port = self._own
        here = address.port == port and (
            _is_of_this_machine(address.host) if host in _EVERYWHERE else address.host == host
        )
        if here:
            self._myself.add(address)
        return here

    async def _greet(self, address: Address) -> None:
        body = nodes.write_told(self._told())
        nonce = secrets.token_hex(NONCE_BYTES)
        headers = [
            (b"authorization", nodes.greet(self._keys[0], body, now=self._wall(), nonce=nonce)),
            (b"content-type", b"application/json"),
        ]
        try:
            async with (
                asyncio.timeout(_GREETING),
                ask(
                    address, "POST", PATH.encode("ascii"), headers, body, tls=self._tls,
                    connect_timeout=_CONNECT, patience=_GREETING,
                ) as answer,
            ):  # fmt: skip
                said = await answer.body(MAX_GREETING)
                proof = _header(answer, PROOF)
                if not nodes.is_greeted_back(self._keys, proof, said, nonce):
                    if answer.status < 500:
                        self._mute.pop(address, None)  # somebody else lives there
                        return
                    raise Lost("it has no time to answer, or what is in front of it has none")
        except Unreachable as error:
            if error.refused:
                now = self._loop.time()
                if self._mute.pop(address, None) is not None:
                    self._ended[address] = now + ENDED
                self.roster.silent(address, now)
                return
            self._mute.setdefault(address, self._loop.time())
            return
        except (Lost, TimeoutError):
            self._mute.setdefault(address, self._loop.time())
            return
        self._mute.pop(address, None)
        told = nodes.read_told(said)
        if told.boot == self.boot:
            self._myself.add(address)
        self.roster.heard(told, self._loop.time(), address)

    def greeted(self, value: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Answer a greeting: the proof and the body of the answer.

        Raises:
            Unauthenticated: No node of this house sent it.
        """
        now = self._wall()
        nonce = None
        if value.startswith(nodes.SCHEME):
            nonce = nodes.is_greeted(self._keys, value, body, now=now)
        if nonce is None:
            raise Unauthenticated(reason="not greeted by a node of this house")
        self._seen.claim(nonce, now=now)
        told = nodes.read_told(body)
        if self.roster.heard(told, self._loop.time()):
            self._wake.set()
        self._apply(grow=False)
        mine = nodes.write_told(self._told())
        return nodes.greet_back(self._keys[0], mine, nonce), mine

    # -- the budget --------------------------------------------------------------------

    def _told(self) -> Told:
        claims = {
            each.name: each.room.used if self._holds_nothing else max(each.limit, each.room.used)
            for each in self._targets.all()
        }
        return Told(self.boot, self.draining, claims)

    def counts(self) -> dict[str, int]:
        """The nodes by state, for the metrics."""
        sharing = len(self.roster.living(self._loop.time()))
        return {
            "sharing": sharing,
            "leaving": self.roster.count + 1 - sharing,
            "silent": len(self._mute),
        }

    def _apply(self, *, grow: bool) -> None:
        if self.draining:
            return
        now = self._loop.time()
        for target in self._targets.all():
            allowed, _ = self.roster.allowed(target.name, target.budget, now)
            if self._careful:
                allowed = min(allowed, 1)
            if grow or allowed < target.limit:
                target.set_limit(allowed)

    def _waits_for_room(self) -> bool:
        now = self._loop.time()
        return not self.draining and any(
            each.limit < self.roster.allowed(each.name, each.budget, now)[1]
            for each in self._targets.all()
        )

    # -- requests that are passed on ---------------------------------------------------

    def boot_of(self, transaction: str) -> str | None:
        """The node that made *transaction*, if it is of the house and another one."""
        for reader in self._readers:
            said = reader.read(transaction)
            if said is not None:
                boot = said.boot.hex()
                return boot if boot != self.boot else None
        return None

    async def find(self, boot: str) -> Owner | None:
        """Where the node *boot* answers; `None` if it is gone."""
        address = self.roster.find(boot)
        if address is None and self._missed.get(boot, -_RECENT) + _RECENT < self._loop.time():
            await self._look()
            address = self.roster.find(boot)
            if address is None:
                self._missed[boot] = self._loop.time()
                if len(self._missed) > _MISSED_KEPT:
                    self._missed.pop(next(iter(self._missed)))
        return Owner(boot, address) if isinstance(address, Address) else None

    def others(self) -> list[Owner]:
        """All nodes that are known, but for this one."""
        return [
            Owner(boot, address)
            for boot, address in self.roster.places()
            if isinstance(address, Address)
        ]

    @asynccontextmanager
    async def pass_on(
        self, owner: Owner, request: RawRequest, principal: Principal,
        signed: frozenset[str] | None,
    ) -> AsyncIterator[Answer]:  # fmt: skip
        """Send *request* of *principal* to *owner*; the answer, proved to be that node's.

        Args:
            signed: As in `Identified`.

        Raises:
            Unreachable: Nothing was sent.
            Lost: It was, and no answer came that can be believed.
        """
        nonce = secrets.token_hex(NONCE_BYTES)
        voucher = nodes.vouch(
            self._keys[0], request, principal, signed, to=owner.boot, now=self._wall(),
            nonce=nonce,
        )  # fmt: skip
        target = request.raw_path + (b"?" + request.raw_query if request.raw_query else b"")
        async with ask(
            owner.address, request.method, target,
            [*request.headers, (b"authorization", voucher)], request.body, tls=self._tls,
            connect_timeout=_CONNECT, patience=self.patience,
        ) as answer:  # fmt: skip
            if not nodes.is_proof(self._keys, _header(answer, PROOF), nonce, answer.status):
                raise Lost("the answer is not that of a node of this house")
            yield answer

    def gone(self, owner: Owner) -> None:
        """Nobody took a connection at *owner*'s address."""
        self.roster.silent(owner.address, self._loop.time())

    def believe(self, request: RawRequest, value: bytes, now: float) -> Identified:
        """The sender of a request that another node passes on; *value* is its voucher.

        Raises:
            Unauthenticated: No node of this house vouches for it, here and now.
        """
        vouched = nodes.believe(self._keys, value, request, own=self.boot, now=now)
        self._seen.claim(vouched.nonce, now=now)
        return Identified(vouched.principal, vouched.signed, vouched.nonce)

    def prove(self, nonce: str, status: int) -> bytes:
        """What shows the node that passed a request on whose answer it gets."""
        return nodes.prove(self._keys[0], nonce, status)


def _is_of_this_machine(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _header(answer: Answer, name: bytes) -> bytes:
    return next((value for key, value in answer.headers if key == name), b"")


def _tls(settings: Settings) -> ssl.SSLContext | None:
    own = settings.nodes
    if not any(url.startswith("https:") for url in own.peers):
        return None
    context = ssl.create_default_context(cafile=str(own.cafile) if own.cafile else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
