"""Large answers: how many at a time, how fast at the least, how much at once.

A stream holds its connection for as long as its caller takes to read. So streams
get a share of the connections and no more, and a caller that hardly reads is
given up. Nothing here waits or looks at a clock.
"""

from __future__ import annotations

import math

BATCH_ROWS = 4_096
"""Rows fetched at a time at the most."""
BATCH_BYTES = 256 * 1024
"""Bytes of a batch aimed at; fat rows come in smaller batches."""
FIRST_ROWS = 8
"""Rows of the first batch, of whose size nothing is known."""
_GROWTH = 8


def stream_places(connections: int, share: float) -> int:
    """Streams that may run at once, of *connections*: a share of them, never all.

    >>> [stream_places(connections, 0.5) for connections in (1, 2, 3, 8)]
    [1, 1, 1, 4]
    >>> stream_places(4, 1.0)
    3
    """
    return max(1, min(math.floor(connections * share), connections - 1))


def long_places(connections: int) -> int:
    """Streams and open transactions together: one place is left for single statements.

    With one connection there is none to leave.
    """
    return max(1, connections - 1)


def next_rows(rows: int, received: int) -> int:
    """Rows to ask for after a batch of *rows* that took *received* bytes.

    >>> next_rows(8, 800), next_rows(64, 64 * 1024 * 1024), next_rows(4096, 4096 * 100)
    (64, 1, 2621)
    """
    if not rows:
        return FIRST_ROWS
    fitting = BATCH_BYTES * rows // max(1, received)
    return max(1, min(BATCH_ROWS, rows * _GROWTH, fitting))


class Pace:
    """How long a caller may take to read, told piece by piece.

    It starts with a window of credit. Reading earns what the pieces are worth at the
    slowest rate allowed, waiting costs; credit never passes the window, so a fast
    hour does not pay for a slow one.

    >>> pace = Pace(rate=1_000, window=10.0)
    >>> pace.allowed(5_000)
    15.0
    >>> pace.took(5_000, 12.0)
    >>> pace.allowed(1_000)
    4.0
    """

    def __init__(self, *, rate: float, window: float) -> None:
        """Begin.

        Args:
            rate: Bytes a second; 0 allows any pace.
            window: Seconds a caller may read nothing at all.
        """
        self._rate = rate
        self._window = window
        self._credit = window

    def allowed(self, size: int) -> float:
        """Seconds in which the caller must have taken *size* bytes; infinite without a rate."""
        return self._credit + size / self._rate if self._rate else math.inf

    def took(self, size: int, seconds: float) -> None:
        """The caller took *size* bytes, and *seconds* for it."""
        if self._rate:
            self._credit = min(self._window, self._credit + size / self._rate - seconds)
