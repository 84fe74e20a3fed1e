"""How long something may still take: the smallest of all limits, and what is left of it.

A deadline is a moment of the event loop's clock, in seconds; a limit is a length. What
a caller grants itself (`x-gateway-deadline-ms`), what a statement asks for, and what
policy and target allow are all said to the same moment, and the earliest counts for
the queue, the connect and the run together.

    >>> smallest(100.0, 103.0, 5.0, None, 45.0)
    103.0
    >>> smallest(100.0, NEVER, 5.0, None, 45.0)
    105.0
    >>> left(105.0, 101.5)
    3.5
"""

from __future__ import annotations

import math

NEVER = math.inf
"""The deadline of somebody who did not name one."""


def smallest(received: float, caller: float, *limits: float | None) -> float:
    """The deadline of a request.

    Args:
        received: The moment at which the request was complete.
        caller: The moment by which the caller must have its answer; `NEVER` if it did
            not say.
        limits: Lengths from *received* on; `None` is no limit.
    """
    deadline = caller
    for limit in limits:
        if limit is not None and received + limit < deadline:
            deadline = received + limit
    return deadline


def left(deadline: float, now: float) -> float:
    """Seconds until *deadline*, more than none.

    Raises:
        TimeoutError: It has passed.
    """
    seconds = deadline - now
    if seconds > 0.0:
        return seconds
    raise TimeoutError
