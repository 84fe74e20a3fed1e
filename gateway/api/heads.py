"""Heads of requests that were read and judged before.

A caller that keeps its connection sends the same head again and again, and only the length
of the body differs. Whoever has read it once knows what it says: the same bytes mean the
same. So a head is found by its hash, without the number in `Content-Length`, and neither
the HTTP parser nor the judgement of its headers is needed: a tenth of what they cost.

Kept is what a head led to, and the names of its headers, never a value: the memory of a
process holds no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

Headers = list[tuple[bytes, bytes]]

KEPT = 4_096
MAX_HEAD = 4_096
"""Bytes of heads that are looked for: to hash a longer one costs more than to parse it."""
STRANGERS = 3
"""Heads that are new, one after the other, behind which a connection is looked at no more."""
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (\d{1,9})\r\n")


class KnownHead:
    """What is known of the requests that begin with one head."""

    __slots__ = ("handler", "names", "raw_path", "told")

    def __init__(
        self, handler: Callable[[Any], Awaitable[None]], raw_path: bytes, names: frozenset[bytes]
    ) -> None:
        self.handler = handler
        self.raw_path = raw_path
        self.names = names
        """Of its headers, in lower case."""
        self.told: Any = None
        """What the handler has made of them; it is its own, and so is how long that counts."""


Split = tuple[bytes, int]
"""A request that came in one piece: its key, and where its head ends, without the blank line."""


def split(data: bytes) -> Split | None:
    """*data* as one whole request, if it is one, and nothing else."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        return None
    length = _LENGTH.search(data, 0, end + 2)
    if length is None or len(data) - end - 4 != int(length[1]):
        return None
    start, stop = length.span(1)
    # No head holds a NUL: two that differ elsewhere cannot become one by this.
    return sha256(b"%b\0%b" % (data[:start], data[stop:end])).digest(), end


def read_headers(head: bytes) -> Headers:
    """The headers of a head that the parser has read like this before."""
    return [
        (name.lower(), value.strip(b" \t"))
        for name, _, value in [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    ]


class Heads:
    """Those that were seen lately."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownHead] = {}
        self.find = self._known.get
        """By key; `None` for a new one."""

    def keep(self, key: bytes, head: bytes, headers: Headers, known: KnownHead) -> bool:
        """Remember *known*; `False` if its headers could not be read again from *head*."""
        if read_headers(head) != headers:
            return False
        if len(self._known) >= KEPT:
            del self._known[next(iter(self._known))]
        self._known[key] = known
        return True
