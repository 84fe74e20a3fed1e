"""Claims for row-level security: what of a caller's identity its statements can see.

In a database with `gw.claims()` installed the gateway sends them sealed: the function
gives them only if their seal was made with the key in its private table, for this very
backend and database, not long ago. A caller's own SQL can read the seal it was given; it
cannot make one, nor use that of another backend.

    >>> key = seal_key(bytes(32), "main")
    >>> text = canonical({"tenant": "a", "sub": "u"})
    >>> text
    '{"sub":"u","tenant":"a"}'
    >>> seal(key, text, pid=4711, database="shop", expires=1_700_000_000)[:28]
    '-cda9SaR.1700000000.55af349a'

The seal is HMAC-SHA256 (RFC 2104), which PostgreSQL computes from its built-in sha256 and
the two pads of the key; so it needs no extension.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

import orjson

from .errors import Forbidden
from .model import Claims, Json, Principal

MODES = ("none", "sealed", "guc")
MAX_BYTES = 8_192
"""Claims are sent with every statement; a token with more of them is not for this."""
MARGIN = 30.0
"""Seconds that a seal outlives the statement it was made for: for clocks that differ."""
_BLOCK = 64


class SealKey(NamedTuple):
    """What seals are made with for one target."""

    id: str
    """Tells two keys apart and gives neither away."""
    secret: bytes

    @property
    def pads(self) -> tuple[bytes, bytes]:
        """The key XOR 0x36… and XOR 0x5c…, as HMAC begins its two hashes."""
        padded = self.secret.ljust(_BLOCK, b"\0")
        return bytes(each ^ 0x36 for each in padded), bytes(each ^ 0x5C for each in padded)


def seal_key(master: bytes, target: str) -> SealKey:
    """The key of *target*: no other target's, so that a seal from one means nothing on another."""
    secrets = hmac.digest(master, b"gw/seal/v1", "sha256")
    secret = hmac.digest(secrets, target.encode(), "sha256")
    id = urlsafe_b64encode(sha256(b"gw/seal-kid/v1" + secret).digest()[:6]).decode()
    return SealKey(id, secret)


def canonical(claims: Mapping[str, Json]) -> str:
    """*claims* as JSON, the same text for the same claims.

    Raises:
        ValueError: PostgreSQL could not take them as jsonb, or they are too long.
    """
    try:
        text = orjson.dumps(claims, option=orjson.OPT_SORT_KEYS).decode()
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise ValueError("the claims cannot be written as JSON") from error
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(f"the claims take more than {MAX_BYTES} bytes")
    if "\\u0000" in text:
        raise ValueError("the claims hold a NUL, which jsonb cannot")
    return text


def seal(key: SealKey, text: str, *, pid: int, database: str, expires: int) -> str:
    """The seal of the claims *text* for one backend.

    Args:
        pid: Process id of the backend.
        expires: Seconds since the epoch; a statement that begins later finds it void.
    """
    message = message_of(text, pid=pid, database=database, expires=expires)
    return f"{key.id}.{expires}.{hmac.digest(key.secret, message, 'sha256').hex()}"


def message_of(text: str, *, pid: int, database: str, expires: int) -> bytes:
    """What is sealed. The length keeps a database's name and the claims apart."""
    name = database.encode()
    return b"%d.%d.%d.%s.%s" % (pid, expires, len(name), name, text.encode())


def claims_for(
    principal: Principal,
    *,
    mode: str,
    tenant: str,
    include: Sequence[tuple[str, Json]],
    role: str | None = None,
) -> Claims | None:
    """What is sent for *principal*; `None` if nothing is.

    Sealed claims are `sub`, `iss`, `tenant` and what is included. In mode `guc` they are
    those of the token, or only what is included, as PostgREST has them.

    Args:
        include: Names and values, from the token.

    Raises:
        Forbidden: They cannot be sent.
    """
    if mode == "none":
        return None
    if mode == "guc" and not include and principal.claims:
        found: dict[str, Json] = dict(principal.claims)
    else:
        found = {name: value for name, value in include if value is not None}
        subject = principal.claims.get("sub")
        found["sub"] = subject if isinstance(subject, str) else principal.subject
        found["iss"] = principal.issuer
        if mode == "sealed":
            found["tenant"] = tenant
    if mode == "guc" and role is not None:
        found["role"] = role
    try:
        return Claims(mode, canonical(found), role)
    except ValueError as error:
        raise Forbidden(reason=str(error)) from error


def key_script(keys: Sequence[SealKey]) -> str:
    """SQL that makes *keys* the only ones that `gw.claims()` accepts. It holds secrets."""
    rows = []
    for key in keys:
        inner, outer = key.pads
        rows.append(f"('{key.id}', '\\x{inner.hex()}', '\\x{outer.hex()}')")
    listed = ", ".join(f"'{key.id}'" for key in keys)
    return (
        "-- What follows is secret: with it claims can be sealed.\n"
        f"delete from gw.seal_key where kid not in ({listed});\n"
        f"insert into gw.seal_key (kid, ipad, opad) values {', '.join(rows)}\n"
        "  on conflict (kid) do nothing;\n"
    )
