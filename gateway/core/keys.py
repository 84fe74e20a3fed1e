"""Keys made from one master key: nothing secret is stored but that.

The secret of an access key is computed from the master key, the key's id and
its version whenever it is needed. So a configuration lists ids alone, every
node knows every key, and raising the version rotates one key while the old
version still works.

    >>> derive_secret(bytes(32), "GWAKEXAMPLE", 1)[:12]
    'gKTJTbGkb3qe'
    >>> derive_secret(bytes(32), "GWAKEXAMPLE", 2)[:12]
    'DDRsmdhDdfEM'

Ids begin with GWAK, those of temporary keys with GWTA, so that one that leaks into a
log or a repository is found by a search. They are not secret; secrets are.
"""

from __future__ import annotations

import hmac
from base64 import b32encode, urlsafe_b64encode
from hashlib import sha256
from typing import NamedTuple

MASTER_KEY_BYTES = 32
KEY_ID_RANDOM_BYTES = 10
TEMPORARY_PREFIX = "GWTA"


class StaticKey(NamedTuple):
    """One version of one access key, as the configuration lists it."""

    key_id: str
    principal: str
    """The subject that this key speaks for."""
    version: int = 1
    not_after: float | None = None
    """Seconds since the epoch; refused from then on."""
    disabled: bool = False


def derive_secret(master: bytes, key_id: str, version: int) -> str:
    """The secret of version *version* of *key_id*: 43 characters, safe in URLs."""
    secrets = hmac.digest(master, b"gw/sk/v1", "sha256")
    return _text(hmac.digest(secrets, f"{key_id}\n{version}".encode(), "sha256"))


def new_key_id(random: bytes) -> str:
    """An access key id from 10 random bytes.

    >>> new_key_id(bytes(10))
    'GWAKAAAAAAAAAAAAAAAA'
    """
    if len(random) != KEY_ID_RANDOM_BYTES:
        raise ValueError(f"a key id is made of {KEY_ID_RANDOM_BYTES} random bytes")
    return "GWAK" + b32encode(random).decode()


def new_temporary_key_id(random: bytes) -> str:
    """The id of a temporary key from 10 random bytes.

    >>> new_temporary_key_id(bytes(10))
    'GWTAAAAAAAAAAAAAAAAA'
    """
    if len(random) != KEY_ID_RANDOM_BYTES:
        raise ValueError(f"a key id is made of {KEY_ID_RANDOM_BYTES} random bytes")
    return TEMPORARY_PREFIX + b32encode(random).decode()


def derive_temporary_secret(master: bytes, key_id: str, token_id: str) -> str:
    """The secret of the temporary key *key_id*, whose session token has the id *token_id*.

    Every node derives it from the token that comes with a request, so nothing is stored,
    and the token alone, which travels, lets nobody sign.
    """
    secrets = hmac.digest(master, b"gw/sk-temp/v1", "sha256")
    return _text(hmac.digest(secrets, f"{key_id}\n{token_id}".encode(), "sha256"))


def token_key(master: bytes) -> bytes:
    """The key that the gateway signs its own bearer tokens with, 32 bytes."""
    return hmac.digest(master, b"gw/token/v1", "sha256")


def token_key_id(key: bytes) -> str:
    """A `kid` for a token key: tells two master keys apart and gives neither away.

    >>> token_key_id(token_key(bytes(32)))
    '4JxNOw18'
    """
    return _text(sha256(b"gw/kid/v1" + key).digest()[:6])


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
