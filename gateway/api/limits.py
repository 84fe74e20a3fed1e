"""How slow, large and odd a request below ASGI may be, and the counts of who was not let in."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLimits:
    """How slow, how large and how odd a request may be. Seconds and bytes."""

    head_timeout: float = 5.0
    """From the connection, or from the first byte on one that was kept, to the end of the head."""

    body_timeout: float = 10.0
    """From the end of the head to the end of the body …"""

    body_rate: int = 512 * 1024
    """… and a second more for so many bytes received."""

    keep_alive: float = 75.0
    """How long a connection may be idle. Longer than clients keep theirs, so that they close
    first: a request sent into a closing connection fails."""

    write_stall: float = 5.0
    """How long a caller may leave an answer unread …"""

    write_progress: int = 64 * 1024
    """… unless it read at least so many bytes of a larger one in that time."""

    linger: float = 2.0
    """How long a refused caller may go on sending, beside what the rest of its body may take
    at `body_rate`. Closed at once, its kernel would discard the answer with the connection."""

    max_head: int = 32 * 1024
    """Request line and headers together."""

    max_headers: int = 100
    """Headers in a request."""

    max_body: int = 4 * 1024 * 1024
    """One body, counted while it arrives. AWS takes 4 MiB too."""

    uploads: bytes = b"/copy/"
    """How the targets begin whose bodies have any size: the application takes them piece by
    piece, and gives up a caller that is too slow."""

    max_bodies: int = 64 * 1024 * 1024
    """All bodies of requests that are not answered yet, in this process."""

    max_unread: int = 256 * 1024 * 1024
    """All parts of answers that callers have not read yet, in this process, where they are
    too large for the sockets' own buffers. Who passes it is cut off."""


@dataclass(slots=True)
class GuardState:
    """What the connections of one guard share, and what a metric may want to know."""

    bodies: int = 0
    """Bytes of bodies received and not answered yet."""
    unread: int = 0
    """Bytes of answers written and not read yet, of callers that are behind."""
    refused: dict[str, int] = field(default_factory=dict)
    """How many connections were ended, by reason."""

    def count(self, reason: str) -> None:
        """Count one refusal."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
