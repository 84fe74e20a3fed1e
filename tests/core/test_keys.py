"""Every node derives the same secret, and no other."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.keys import StaticKey, derive_secret, new_key_id, token_key, token_key_id

MASTER = bytes(range(32))


def test_a_secret_is_two_hmacs_of_the_master_key() -> None:
    inner = hmac.new(MASTER, b"gw/sk/v1", hashlib.sha256).digest()
    expected = hmac.new(inner, b"GWAKX\n7", hashlib.sha256).digest()
    assert urlsafe_b64decode(derive_secret(MASTER, "GWAKX", 7) + "=") == expected


def test_a_secret_differs_by_master_id_and_version() -> None:
    secrets = {
        derive_secret(MASTER, "GWAKA", 1),
        derive_secret(MASTER, "GWAKA", 2),
        derive_secret(MASTER, "GWAKB", 1),
        derive_secret(bytes(32), "GWAKA", 1),
        derive_secret(MASTER, "GWAKA", 11),
    }
    assert len(secrets) == 5
    assert all(len(secret) == 43 and "=" not in secret for secret in secrets)


@given(st.binary(min_size=10, max_size=10))
def test_a_key_id_can_be_searched_for_and_signed_with(random: bytes) -> None:
    key_id = new_key_id(random)
    assert key_id.startswith("GWAK")
    assert len(key_id) == 20
    assert key_id.isalnum()
    assert key_id.isupper()


def test_a_key_id_needs_ten_random_bytes() -> None:
    with pytest.raises(ValueError, match="10"):
        new_key_id(bytes(9))


def test_the_token_key_is_not_the_master_key_nor_a_key_of_secrets() -> None:
    key = token_key(MASTER)
    assert len(key) == 32
    assert key not in (MASTER, hmac.new(MASTER, b"gw/sk/v1", hashlib.sha256).digest())
    assert token_key_id(key) != token_key_id(token_key(bytes(32)))


def test_a_key_is_good_for_ever_unless_told_otherwise() -> None:
    assert StaticKey("GWAKA", "orders") == ("GWAKA", "orders", 1, None, False)
