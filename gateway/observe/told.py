"""What one request was and how it ended: the words that log, audit and traces share."""

from __future__ import annotations

from typing import NamedTuple

from ..core.model import Call, Principal

_FINGERPRINTS = 8
"""Of a batch so many are told, each once; the number of statements is told besides."""


class Ended(NamedTuple):
    """A request that is over."""

    operation: str
    """The dialect's own name of it, empty where there is none."""
    call: Call
    principal: Principal | None
    """`None` if nobody proved who they are."""
    status: int
    """0 if the caller left before its answer."""
    code: str | None
    """Of the error, `None` for a result."""
    outcome: str
    """`ok`, or of the error: `not_executed`, `committed`, `unknown`."""
    rows: int | None
    """Returned or changed, where they are counted."""
    sent: int
    """Bytes of the answer's body."""
    received: float
    """Event-loop time at which the request was complete."""
    ended: float
    """Event-loop time of its end."""
    streamed: bool = False
    """Whether rows were sent while PostgreSQL still made more of them."""
    source: str = ""
    """Address that it came from; of a proxy, if there is one in between."""
    sqlstate: str | None = None
    """Of PostgreSQL's error."""
    reason: str | None = None
    """What a refusal does not say to the caller, in the gateway's words, without a value."""


def fingerprints(call: Call) -> str | list[str] | None:
    """The fingerprint of its statement, or those of a batch."""
    statements = call.statements
    if not statements:
        return None
    if len(statements) == 1:
        return statements[0].fingerprint
    found: dict[str, None] = {}
    for each in statements:
        found[each.fingerprint] = None
        if len(found) == _FINGERPRINTS:
            break
    return next(iter(found)) if len(found) == 1 else list(found)
