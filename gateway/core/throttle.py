"""How often somebody may: token buckets, told the time.

A bucket holds up to *burst* tokens and gains *rate* of them a second. Whoever finds
one takes it; whoever does not is told when there will be one.

    >>> buckets = Buckets(size=100)
    >>> [buckets.take("a", rate=1, burst=2, now=0.0) for _ in range(3)]
    [0.0, 0.0, 1.0]
    >>> buckets.take("a", rate=1, burst=2, now=1.0)
    0.0
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple


class Bucket(NamedTuple):
    """What a bucket held, and when."""

    tokens: float
    at: float


def take(bucket: Bucket | None, *, rate: float, burst: float, now: float) -> tuple[Bucket, float]:
    """Take one token; return what is left and 0, or the seconds until there is one.

    Args:
        bucket: `None` is a full one.
        now: Seconds on any clock that does not go back; if it does, nothing is gained.
    """
    held = burst if bucket is None else bucket.tokens
    if bucket is not None:
        held = min(burst, held + max(0.0, now - bucket.at) * rate)
    if held >= 1.0:
        return Bucket(held - 1.0, now), 0.0
    return Bucket(held, now), (1.0 - held) / rate


class Buckets:
    """The last *size* buckets used; one that was pushed out is full again."""

    __slots__ = ("_buckets", "_size")

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def take(self, key: Hashable, *, rate: float, burst: float, now: float) -> float:
        """Take a token of *key*; 0, or the seconds until there is one."""
        bucket, wait = take(self._buckets.get(key), rate=rate, burst=burst, now=now)
        self._buckets[key] = bucket
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        return wait

    def is_empty(self, key: Hashable, *, rate: float, burst: float, now: float) -> bool:
        """Whether *key* would find no token; nothing is taken."""
        bucket = self._buckets.get(key)
        return bucket is not None and take(bucket, rate=rate, burst=burst, now=now)[1] > 0.0

    def __len__(self) -> int:
        return len(self._buckets)
