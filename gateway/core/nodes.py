"""Several nodes, one house: who lives, who may hold how many connections, who vouches for whom.

Each node asks every other one, every other second, who it is and what it holds; here is
what follows from the answers. It is no consensus: PostgreSQL's own CONNECTION LIMIT of
the role is the bound that cannot be passed. This is what keeps everybody well below
being refused.

    >>> [share(8, place, 3) for place in range(3)]
    [3, 3, 2]

A node shrinks as soon as it hears of another one, and grows only after it has asked all
of them, and only by what they do not hold. So the sum stays within the budget while
nodes come and go, and one that is new begins with what is left.

    >>> allowance(8, own=3, others=[4, 2])
    2

What nodes say to each other is signed with a key that they derive from the master key
which they share. A request that is passed on carries the principal under that
signature, for one node, for a short time, and once.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

import orjson

from .errors import Unauthenticated
from .model import Principal

SCHEME: Final = b"Pgsluice-Node "
"""How the Authorization header of what one node says to another begins."""
PROOF: Final = b"x-gateway-node"
"""The header of an answer by which a node proves that it knows the key, too."""
SKEW: Final = 10.0
"""Seconds that the clocks of two nodes may differ, and a message be under way."""
NONCE_BYTES: Final = 16
ENDED: Final = 3.0
"""Seconds for which the connections of a node still count after its process ended: PostgreSQL
looks for its client every half second while a statement runs."""
VANISHED: Final = 30.0
"""The same for a node that says nothing any more: its machine may be gone without a word, and
PostgreSQL finds that out by keepalives."""
_OURS = frozenset(
    {
        b"accept-encoding", b"authorization", b"connection", b"content-length", b"cookie",
        b"expect", b"host", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"x-amz-security-token", b"x-forwarded-for", b"x-gateway-deadline-ms",
        b"x-gateway-request-id",
    }
)  # fmt: skip
"""Headers of a request that belong to one connection or one proof, and are not passed on."""
_UNSIGNED = frozenset({b"authorization", b"connection", b"content-length", b"host"})

Headers = Sequence[tuple[bytes, bytes]]


def node_key(master: bytes) -> bytes:
    """The key that the nodes of one master key sign with, 32 bytes."""
    return hmac.digest(master, b"gw/node/v1", "sha256")


# -- the budget ------------------------------------------------------------------------


def share(budget: int, place: int, count: int) -> int:
    """The part of *budget* that the node at *place* (from 0) of *count* may hold; 1 at least."""
    return max(1, budget // count + (1 if place < budget % count else 0))


def allowance(budget: int, *, own: int, others: Iterable[int]) -> int:
    """How many of *budget* a node may hold now.

    Args:
        own: Its share.
        others: What the other nodes hold, or may hold before they hear of a change.
    """
    return max(0, min(own, budget - sum(others)))


class Told(NamedTuple):
    """What a node says of itself."""

    boot: str
    """Random for each start, in hex: its name."""
    draining: bool
    """It stops: what it holds it gives back, and takes no more."""
    claims: Mapping[str, int]
    """By target: connections that it may hold, or more, if it still holds more."""


class Peer:
    """Another node, as far as it is known."""

    __slots__ = ("address", "heard", "refused", "told")

    def __init__(self, told: Told, heard: float) -> None:
        self.told = told
        self.heard = heard
        """When it spoke last; of the same clock as `Roster`."""
        self.address: object | None = None
        """Where it answered."""
        self.refused: float | None = None
        """Since when nobody answers at its address."""


class Roster:
    """The nodes that live, by what they said and when.

    Args:
        own: The boot of this node.
        forget: Seconds without a word after which a node has no share any more.
    """

    def __init__(self, own: str, *, forget: float) -> None:
        self.own = own
        self._forget = forget
        self._peers: dict[str, Peer] = {}

    def heard(self, told: Told, now: float, address: object | None = None) -> bool:
        """A node spoke, at *address* if it was asked there; whether it is new."""
        if told.boot == self.own:
            return False
        peer = self._peers.get(told.boot)
        new = peer is None
        if peer is None:
            peer = self._peers[told.boot] = Peer(told, now)
        peer.told = told
        peer.heard = now
        peer.refused = None
        if address is not None:
            for other in self._peers.values():
                if other is not peer and other.address == address and other.refused is None:
                    # Somebody else lives there now.
                    other.refused = now
            peer.address = address
        return new

    def silent(self, address: object, now: float) -> None:
        """Nobody listens at *address*."""
        for peer in self._peers.values():
            if peer.address == address and peer.refused is None:
                peer.refused = now

    def clear(self, now: float) -> None:
        """Forget who is gone."""
        for boot, peer in list(self._peers.items()):
            until = peer.heard + self._forget + VANISHED
            if peer.refused is not None:
                until = min(until, peer.refused + ENDED)
            if until <= now:
                del self._peers[boot]

    @property
    def count(self) -> int:
        """The others whose connections count."""
        return len(self._peers)

    def find(self, boot: str) -> object | None:
        """Where the node *boot* answers; `None` if it is gone or was never met."""
        peer = self._peers.get(boot)
        return None if peer is None or peer.refused is not None else peer.address

    def places(self) -> list[tuple[str, object]]:
        """The others that can be asked, and where they answer."""
        return [
            (boot, peer.address)
            for boot, peer in self._peers.items()
            if peer.address is not None and peer.refused is None
        ]

    def living(self, now: float) -> list[str]:
        """The boots that share the budget, this one's included, in the same order everywhere."""
        others = [
            boot
            for boot, peer in self._peers.items()
            if peer.refused is None and not peer.told.draining and now < peer.heard + self._forget
        ]
        return sorted([self.own, *others])

    def allowed(self, target: str, budget: int, now: float) -> tuple[int, int]:
        """Connections to *target* that this node may hold now, and its share of *budget*."""
        living = self.living(now)
        own = share(budget, living.index(self.own), len(living))
        others = [peer.told.claims.get(target, 0) for peer in self._peers.values()]
        return allowance(budget, own=own, others=others), own


# -- what is signed --------------------------------------------------------------------


class Request(Protocol):
    """A request as it was received; `core.sigv4.RawRequest` is one."""

    @property
    def method(self) -> str:
        """In capitals."""

    @property
    def raw_path(self) -> bytes:
        """Still percent-encoded, without the query."""

    @property
    def raw_query(self) -> bytes:
        """What follows the question mark."""

    @property
    def headers(self) -> Headers:
        """Names in lower case."""

    @property
    def body(self) -> bytes:
        """All of it."""


class Vouched(NamedTuple):
    """What a node says of the sender of a request that it passes on."""

    principal: Principal
    signed: frozenset[str] | None
    """The headers that count, as in `Identified`."""
    nonce: str


def passed_on(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Those of *headers* that a request keeps when it is passed on."""
    return [(name, value) for name, value in headers if name not in _OURS]


def vouch(
    key: bytes,
    request: Request,
    principal: Principal,
    signed: frozenset[str] | None,
    *,
    to: str,
    now: float,
    nonce: str,
) -> bytes:
    """The Authorization header with which *request* goes to the node *to*.

    Args:
        request: As it will be received, but for headers of the connection.
        now: Seconds since the epoch.
        nonce: Never used before.
    """
    payload = orjson.dumps(
        {
            "at": now,
            "nonce": nonce,
            "principal": {
                "kind": principal.kind,
                "subject": principal.subject,
                "issuer": principal.issuer,
                "session": principal.session,
                "claims": dict(principal.claims),
                "expires_at": principal.expires_at,
                "key_id": principal.key_id,
            },
            "signed": None if signed is None else sorted(signed),
            "to": to,
        }
    )
    text = base64.urlsafe_b64encode(payload)
    return SCHEME + text + b"." + _mac(key, text, request)


def believe(
    keys: Sequence[bytes], value: bytes, request: Request, *, own: str, now: float
) -> Vouched:
    """What the node that sent *request* says of its sender.

    Args:
        keys: Of the master keys in use.
        value: The Authorization header.
        own: The boot of this node.
        now: Seconds since the epoch.

    Raises:
        Unauthenticated: It is not signed so, not for this node, or not for now.
    """
    text, _, mac = value[len(SCHEME) :].partition(b".")
    if not any(hmac.compare_digest(_mac(key, text, request), mac) for key in keys):
        raise Unauthenticated(reason="not signed by a node of this house")
    said = orjson.loads(base64.urlsafe_b64decode(text))
    if said["to"] != own:
        raise Unauthenticated(reason="passed on to another node")
    if abs(now - said["at"]) > SKEW:
        raise Unauthenticated(reason="passed on too long ago")
    principal = Principal(**said["principal"])
    if principal.expires_at is not None and principal.expires_at <= now:
        raise Unauthenticated(reason="expired on its way")
    signed = said["signed"]
    return Vouched(principal, None if signed is None else frozenset(signed), said["nonce"])


def _mac(key: bytes, text: bytes, request: Request) -> bytes:
    lines = sorted(
        name + b":" + value.strip() for name, value in request.headers if name not in _UNSIGNED
    )
    signed = b"\n".join(
        [
            b"request",
            text,
            request.method.encode("ascii"),
            request.raw_path,
            request.raw_query,
            sha256(request.body).hexdigest().encode("ascii"),
            *lines,
        ]
    )
    return hmac.new(key, signed, sha256).hexdigest().encode("ascii")


def prove(key: bytes, nonce: str, status: int) -> bytes:
    """The `PROOF` in an answer to a request that was passed on."""
    signed = f"answer\n{nonce}\n{status}".encode("ascii")
    return hmac.new(key, signed, sha256).hexdigest().encode("ascii")


def is_proof(keys: Sequence[bytes], proof: bytes, nonce: str, status: int) -> bool:
    """Whether *proof* is that of a node of this house."""
    return any(hmac.compare_digest(prove(key, nonce, status), proof) for key in keys)


# -- who are you -----------------------------------------------------------------------


def write_told(told: Told) -> bytes:
    """*told* as the body of a greeting, or of the answer to one."""
    return orjson.dumps({"boot": told.boot, "draining": told.draining, "claims": dict(told.claims)})


def read_told(body: bytes) -> Told:
    """The body of a greeting whose signature was checked."""
    said = orjson.loads(body)
    return Told(said["boot"], said["draining"], said["claims"])


def greet(key: bytes, body: bytes, *, now: float, nonce: str) -> bytes:
    """The Authorization header of a greeting with *body*."""
    text = f"{now:.3f},{nonce}".encode("ascii")
    return SCHEME + text + b"." + _greeting(key, b"hello", text, body)


def is_greeted(keys: Sequence[bytes], value: bytes, body: bytes, *, now: float) -> str | None:
    """The nonce of a greeting, if a node of this house sent it just now."""
    text, _, mac = value[len(SCHEME) :].rpartition(b".")
    if not any(hmac.compare_digest(_greeting(key, b"hello", text, body), mac) for key in keys):
        return None
    at, _, nonce = text.decode("ascii").partition(",")
    return nonce if abs(now - float(at)) <= SKEW else None


def greet_back(key: bytes, body: bytes, nonce: str) -> bytes:
    """The `PROOF` in the answer to a greeting."""
    return _greeting(key, b"welcome", nonce.encode("ascii"), body)


def is_greeted_back(keys: Sequence[bytes], proof: bytes, body: bytes, nonce: str) -> bool:
    """Whether a node of this house answered the greeting with *nonce*."""
    return any(hmac.compare_digest(greet_back(key, body, nonce), proof) for key in keys)


def _greeting(key: bytes, what: bytes, text: bytes, body: bytes) -> bytes:
    return hmac.new(key, b"\n".join([what, text, body]), sha256).hexdigest().encode("ascii")
