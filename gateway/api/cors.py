"""Cross-origin requests of browsers, off unless origins are listed.

What lets a caller in is its token, never a cookie, so `Access-Control-Allow-Credentials`
is not sent: a page gets no further than the token that it holds.

Source: the Fetch standard, "CORS protocol".
"""

from __future__ import annotations

from collections.abc import Iterable

from ..settings import CorsSettings
from .wire import NO_TIMING

Headers = list[tuple[bytes, bytes]]

_METHODS = b"GET, POST, DELETE"
_ASKED = (
    b"authorization, content-type, accept, idempotency-key, traceparent, "
    b"x-gateway-deadline-ms, x-gateway-request-id"
)
_EXPOSED = (
    b"x-gateway-request-id, x-gateway-idempotency, x-gateway-replayed, x-gateway-outcome, "
    b"x-gateway-truncated, retry-after, server-timing, date"
)


class Cors:
    """What a browser is told."""

    def __init__(self, settings: CorsSettings) -> None:
        self._origins = frozenset(origin.encode("ascii") for origin in settings.origins)
        self._any = b"*" in self._origins
        self._max_age = b"%d" % settings.max_age

    def __bool__(self) -> bool:
        return bool(self._origins)

    def headers(self, request: Iterable[tuple[bytes, bytes]]) -> Headers:
        """What the answer to *request* has to carry; nothing for an origin that is not listed."""
        origin = next((value for name, value in request if name == b"origin"), None)
        if origin is None:
            return []
        # Caches must not give one origin's answer to another, allowed or not.
        vary = (b"vary", b"origin")
        if not self._any and origin not in self._origins:
            return [vary]
        allowed = b"*" if self._any else origin
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED),
            vary,
        ]

    def preflight(self, method: str, request: Iterable[tuple[bytes, bytes]]) -> Headers | None:
        """What answers an OPTIONS that a browser sends first; `None` if it is something else."""
        given = dict(request)
        if (
            method != "OPTIONS"
            or b"origin" not in given
            or b"access-control-request-method" not in given
        ):
            return None
        headers = self.headers(given.items())
        if len(headers) > 1:
            headers += [
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", _ASKED),
                (b"access-control-max-age", self._max_age),
            ]
        return [*headers, (b"server-timing", NO_TIMING), (b"content-length", b"0")]
