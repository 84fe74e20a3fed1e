"""Tokens for callers, made from the master key alone: no server is asked."""

from __future__ import annotations

import secrets
import time

import click

from ..core.bearer import GATEWAY_AUDIENCE, GATEWAY_ISSUER, make_token
from ..core.keys import token_key, token_key_id

MAX_LIFETIME = 86_400
"""Seconds. A longer life is refused when the token comes back."""

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def read_lifetime(text: str) -> int:
    """Seconds from `900`, `900s`, `15m` or `12h`; a day at most.

    >>> read_lifetime("15m")
    900
    """
    unit = _UNITS.get(text[-1:], 0)
    number = text[:-1] if unit else text
    if not (number.isascii() and number.isdigit()):
        raise click.BadParameter("must be such as 900, 15m or 12h", param_hint="--ttl")
    seconds = int(number[:12]) * (unit or 1)
    if not 1 <= seconds <= MAX_LIFETIME:
        raise click.BadParameter("must be from 1s to 24h", param_hint="--ttl")
    return seconds


def token_for(master_key: bytes, *, subject: str, lifetime: int, now: float | None = None) -> str:
    """A bearer token of the gateway's own, for *subject*, good for *lifetime* seconds."""
    key = token_key(master_key)
    return make_token(
        key=key,
        kid=token_key_id(key),
        issuer=GATEWAY_ISSUER,
        subject=subject,
        audience=GATEWAY_AUDIENCE,
        now=int(time.time() if now is None else now),
        ttl=lifetime,
        claims={"jti": secrets.token_urlsafe(12)},
    )
