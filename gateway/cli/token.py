"""Tokens and access keys for callers, made from the master key alone: no server is asked."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import click

from ..core.bearer import GATEWAY_AUDIENCE, GATEWAY_ISSUER, make_token
from ..core.keys import (
    KEY_ID_RANDOM_BYTES,
    derive_secret,
    new_key_id,
    token_key,
    token_key_id,
)

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


def new_key(master_key: bytes, principal: str, *, config: Path | None) -> str:
    """What to tell the operator about a new access key for *principal*."""
    key_id = new_key_id(secrets.token_bytes(KEY_ID_RANDOM_BYTES))
    secret = derive_secret(master_key, key_id, 1)
    where = "the configuration file" if config is None else str(config)
    return f"""\
AWS_ACCESS_KEY_ID={key_id}
AWS_SECRET_ACCESS_KEY={secret}

The secret is shown this once. Add to {where} and start the gateway again:

[auth.keys.{key_id}]
principal = {_toml(principal)}

or, without a file, set PGSLUICE_AUTH__KEYS__{key_id}__PRINCIPAL={principal}
"""


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
