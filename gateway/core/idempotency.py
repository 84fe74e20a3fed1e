"""Idempotency keys: whose they are, what they stand for, what a second use of one means.

A caller's key is never stored. It is mixed with the caller's identity under a
key of the gateway, so that nobody, with whatever SQL, can read or guess the
answers to another's keys:

    token = HMAC(ledger key, principal, caller's key)    needed to read or to write an entry
    id    = SHA-256(token)                               enough to ask whether there is one

    >>> key = Keyed("tester", b"order-7", b"execute", b"{}").derive(ledger_key(bytes(32)))
    >>> key.id.hex()[:16], key.request.hex()[:16]
    ('b58b78b28ee83722', '0d9b152fb5d4a564')
    >>> judge(Entry(key.request, None, 0.0), key)
    <Verdict.NOT_KEPT: 'not_kept'>
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum
from hashlib import sha256
from typing import Any, NamedTuple

MAX_KEY = 255
"""Characters of a caller's key."""
KEPT_BYTES = 64 * 1024
"""A larger answer is not kept: the entry then says only that the work is done."""


class Key(NamedTuple):
    """An idempotency key as it is looked up."""

    token: bytes
    id: bytes
    request: bytes
    """SHA-256 of what was asked: the same key with another request is a mistake."""
    whose: tuple[str, bytes]
    """The principal and its key as they came: what a process remembers is filed under it."""
    older: bytes | None = None
    """The token under the master key before, while that still counts."""

    @property
    def enter(self) -> str:
        """SQL that waits for twins in the database and then says whether there is an entry.

        Its text can be seen by sessions of the same login: it holds the id alone, which
        is good for nothing but asking.
        """
        enter = f"SELECT FROM gw.enter('\\x{self.id.hex()}')"
        if self.older is None:
            return enter
        # Always in this order, so that no two wait for each other.
        return f"SELECT FROM gw.enter('\\x{sha256(self.older).hexdigest()}') UNION ALL {enter}"


class Keyed(NamedTuple):
    """What a request brings; a key is computed of it only where one is needed."""

    subject: str
    """Of the principal."""
    text: bytes
    """The key as its caller wrote it."""
    operation: bytes
    """What is asked for, besides the body."""
    body: bytes = b""
    explicit: bool = True
    """Whether the caller asked for it, rather than the SDK on its own."""

    def derive(self, secret: bytes, older: bytes | None = None) -> Key:
        """The key under the gateway's own *secret*, and the *older* one if that still counts."""
        token = token_of(secret, self.subject, self.text)
        return Key(
            token,
            sha256(token).digest(),
            self.asked(self.body).digest(),
            (self.subject, self.text),
            None if older is None else token_of(older, self.subject, self.text),
        )

    def asked(self, body: bytes = b"") -> Any:
        """The hash of what is asked for, to be updated with the rest of its body."""
        return sha256(b"%d:%b%b" % (len(self.operation), self.operation, body))


class Entry(NamedTuple):
    """What is kept of a request that took effect."""

    request: bytes
    answer: Any
    """Whatever the keeper can answer with; `None` if it was too large to be kept."""
    at: float
    """Seconds since the epoch."""


class Verdict(Enum):
    """What to do with a request whose key is known."""

    RUN = "run"
    REPLAY = "replay"
    NOT_KEPT = "not_kept"
    """It took effect, but its answer was too large to be kept."""
    REUSED = "reused"
    """The key belongs to another request."""


def ledger_key(master: bytes) -> bytes:
    """The key that callers' keys are mixed with, 32 bytes."""
    return hmac.digest(master, b"gw/ledger/v1", "sha256")


def token_of(secret: bytes, subject: str, text: bytes) -> bytes:
    """The token of the key *text* of *subject*, 32 bytes."""
    whose = subject.encode()
    # With its length in front, no subject and key can be taken for another pair.
    return hmac.digest(secret, b"%d:%b%b" % (len(whose), whose, text), "sha256")


def is_key(text: bytes) -> bool:
    """Whether *text* can be an idempotency key: 1 to 255 printable ASCII characters."""
    return 0 < len(text) <= MAX_KEY and text.isascii() and text.decode("ascii").isprintable()


def judge(entry: Entry | None, key: Key) -> Verdict:
    """What the entry that was found, if any, means for a request with *key*."""
    if entry is None:
        return Verdict.RUN
    if not hmac.compare_digest(entry.request, key.request):
        return Verdict.REUSED
    return Verdict.NOT_KEPT if entry.answer is None else Verdict.REPLAY


class Memory:
    """Entries of one process, for a while: what there is without the table.

    Least recently used ones are forgotten first, so that its size has an end.
    """

    def __init__(
        self, *, entries: int = 10_000, size: int = 32 * 1024 * 1024, lifetime: float = 600.0
    ) -> None:
        self._most = entries
        self._most_bytes = size
        self._lifetime = lifetime
        self._entries: OrderedDict[Hashable, tuple[Entry, float, int]] = OrderedDict()
        self.size = 0
        """Bytes of all answers kept."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, id: Hashable, now: float) -> Entry | None:
        """The entry of *id*; *now* is of any clock that only goes forward."""
        found = self._entries.get(id)
        if found is None:
            return None
        entry, until, _ = found
        if until <= now:
            self.drop(id)
            return None
        self._entries.move_to_end(id)
        return entry

    def put(self, id: Hashable, entry: Entry, now: float, size: int = 0) -> None:
        """Keep *entry*, of *size* bytes, as the one of *id*."""
        self.drop(id)
        self._entries[id] = (entry, now + self._lifetime, size)
        self.size += size
        while len(self._entries) > self._most or self.size > self._most_bytes:
            oldest, _ = next(iter(self._entries.items()))
            self.drop(oldest)

    def drop(self, id: Hashable) -> None:
        """Forget the entry of *id*, if there is one."""
        found = self._entries.pop(id, None)
        if found is not None:
            self.size -= found[2]
