"""Keys of an issuer: one fetch for many, old ones in an outage, and no way to make us hammer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.core.bearer import read_jwks
from gateway.core.errors import AuthUnavailable
from gateway.providers import jwks
from gateway.providers.fetch import Fetcher
from gateway.providers.jwks import KeySet
from tests.fix_loopback import Loopback, Page, serving

EC_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key_id: str | None, key: Any = EC_KEY, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = jwt.get_algorithm_by_name("ES256").to_jwk(key.public_key(), as_dict=True)
    return {**made, **({} if key_id is None else {"kid": key_id}), **more}


def page(*keys: dict[str, Any]) -> Page:
    return Page(body=json.dumps({"keys": keys}).encode())


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher()
    yield fetcher
    fetcher.close()


@pytest.fixture
def issuer() -> Iterator[Loopback]:
    with serving(lambda asked: page(jwk("a"))) as server:
        yield server


@pytest.mark.anyio
async def test_a_thousand_tokens_of_a_new_key_cost_one_fetch(
    fetcher: Fetcher, issuer: Loopback
) -> None:
    keys = KeySet(issuer.url, fetcher)
    found = await asyncio.gather(*(keys.obtain("a") for _ in range(1_000)))
    assert all(found)
    assert len(issuer.asked) == 1


@pytest.mark.anyio
async def test_a_thousand_unknown_keys_cost_one_fetch_in_the_cool_down(
    fetcher: Fetcher, issuer: Loopback
) -> None:
    keys = KeySet(issuer.url, fetcher)
    found = await asyncio.gather(*(keys.obtain(f"unknown-{n}") for n in range(1_000)))
    assert not any(found)
    assert not await keys.obtain("another")
    assert len(issuer.asked) == 1


@pytest.mark.anyio
async def test_a_key_that_was_added_is_found_after_the_cool_down(
    fetcher: Fetcher, issuer: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "COOL_DOWN", 0.0)
    keys = KeySet(issuer.url, fetcher)
    assert await keys.obtain("a")
    issuer.page = lambda asked: page(jwk("a"), jwk("b"))
    assert await keys.obtain("b")
    assert set(keys.keys) == {"a", "b"}


@pytest.mark.anyio
async def test_old_keys_are_fetched_again_behind_the_scenes(
    fetcher: Fetcher, issuer: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[bool] = []
    keys = KeySet(issuer.url, fetcher, on_change=lambda: changed.append(True))
    assert await keys.obtain("a")
    keys.touch()
    assert keys.fetches == 1
    monkeypatch.setattr(jwks, "FRESH_FOR", 0.0)
    issuer.page = lambda asked: page(jwk("b"))
    keys.touch()
    keys.touch()
    assert set(keys.keys) == {"a"}, "the old key works while the new ones are on their way"
    assert await keys.obtain("b")
    assert set(keys.keys) == {"b"}
    assert changed == [True]
    assert len(issuer.asked) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    "broken",
    [
        Page(500),
        Page(302, headers={"location": "/elsewhere"}),
        Page(body=b"no json"),
        Page(body=b"[]"),
        Page(body=b'{"keys": 1}'),
        Page(body=b'{"keys": []}'),
        Page(body=b'{"keys": [' + b"0," * 50 + b"0]}"),
        Page(body=b'{"keys": []' + b" " * 65_536 + b"}"),
    ],
    ids=["500", "redirect", "text", "list", "number", "empty", "51 keys", "64 KiB"],
)
async def test_keys_outlive_an_outage_of_their_issuer(
    fetcher: Fetcher, issuer: Loopback, monkeypatch: pytest.MonkeyPatch, broken: Page
) -> None:
    monkeypatch.setattr(jwks, "FRESH_FOR", 0.0)
    monkeypatch.setattr(jwks, "COOL_DOWN", 0.0)
    keys = KeySet(issuer.url, fetcher)
    assert await keys.obtain("a")
    issuer.page = lambda asked: broken
    with pytest.raises(AuthUnavailable):
        await keys.obtain("b")  # nobody can tell whether it exists
    keys.touch()
    assert await keys.obtain("a")
    keys.stale_for = 0.0
    keys.touch()
    assert not keys.keys, "after that time they are gone"
    with pytest.raises(AuthUnavailable) as caught:
        await keys.obtain("a")
    assert caught.value.retry_after is not None


@pytest.mark.anyio
async def test_an_issuer_that_never_answered_is_not_asked_at_every_request(
    fetcher: Fetcher, issuer: Loopback
) -> None:
    issuer.page = lambda asked: Page(503)
    keys = KeySet(issuer.url, fetcher)
    for _ in range(10):
        with pytest.raises(AuthUnavailable):
            await keys.obtain("a")
    assert len(issuer.asked) == 1


@pytest.mark.anyio
async def test_one_of_the_waiters_may_leave(fetcher: Fetcher, issuer: Loopback) -> None:
    keys = KeySet(issuer.url, fetcher)
    leaving = asyncio.ensure_future(keys.obtain("a"))
    staying = asyncio.ensure_future(keys.obtain("a"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying
    assert leaving.cancelled() or leaving.cancelling()


RSA_1024 = jwt.get_algorithm_by_name("RS256").to_jwk(
    rsa.generate_private_key(public_exponent=65_537, key_size=1_024).public_key(), as_dict=True
)
ED = jwt.get_algorithm_by_name("EdDSA").to_jwk(
    ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True
)
PRIVATE = jwt.get_algorithm_by_name("ES256").to_jwk(EC_KEY, as_dict=True)


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        ([jwk("a")], {"a"}),
        ([jwk("a", use="sig", alg="ES256"), {**ED, "kid": "b"}], {"a", "b"}),
        ([jwk(None)], {None}),
        ([jwk("a", use="enc")], set()),
        ([jwk("a", alg="HS256")], set()),
        ([jwk("a", alg=["ES256"])], set()),
        ([jwk("a", kty="oct", k="c2VjcmV0")], set()),
        ([{**PRIVATE, "kid": "a"}], set()),
        ([{**RSA_1024, "kid": "a"}], set()),
        ([jwk("a", x="!")], set()),
        ([jwk("a", crv="P-999")], set()),
        ([jwk("k" * 129)], set()),
        ([{**jwk(None), "kid": 7}], set()),
        ([7, None, "x", [], {}, jwk("a")], {"a"}),
    ],
)
def test_what_cannot_be_used_of_a_key_set_is_left_out(listed: list[Any], kept: set[Any]) -> None:
    assert set(read_jwks(json.dumps({"keys": listed}).encode())) == kept


def test_the_first_of_two_keys_of_one_name_counts() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    keys = read_jwks(json.dumps({"keys": [jwk("a"), jwk("a", other)]}).encode())
    assert keys["a"].key.public_numbers() == EC_KEY.public_key().public_numbers()


@pytest.mark.anyio
@pytest.mark.parametrize(("age", "good"), [(3_599.0, True), (3_601.0, False)])
async def test_keys_work_for_an_hour_without_their_issuer(
    fetcher: Fetcher, issuer: Loopback, age: float, good: bool
) -> None:
    keys = KeySet(issuer.url, fetcher)
    assert await keys.obtain("a")
    issuer.page = lambda asked: Page(503)
    assert keys._fetched_at is not None
    keys._fetched_at -= age
    keys.touch()
    while keys._running is not None:
        await asyncio.wait([keys._running])
    assert ("a" in keys.keys) is good
    assert len(issuer.asked) == 1 + good, "fresh for five minutes, and asked for behind the scenes"
