"""A secret is read seldom, kept in an outage, and looked for once when PostgreSQL refuses it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from gateway.core.errors import SecretInvalid, SecretUnavailable
from gateway.providers import secrets
from gateway.providers.secrets import Credential, Secret, SecretsManager, read_secret

Stages = dict[str, Secret | Exception]


def secret(user: str, password: str, version: str) -> Secret:
    return Secret(json.dumps({"username": user, "password": password}), version)


def reader(stages: Stages) -> Callable[[str], Secret | None]:
    def read(stage: str) -> Secret | None:
        found = stages.get(stage)
        if isinstance(found, Exception):
            raise found
        return found

    return read


A = Credential("app", "one", "v1")
CURRENT, PENDING, PREVIOUS = secrets.CURRENT, secrets.PENDING, secrets.PREVIOUS


@pytest.mark.anyio
async def test_a_hundred_connections_cost_one_reading() -> None:
    source = SecretsManager(reader({CURRENT: secret(*A)}))
    assert set(await asyncio.gather(*(source.current() for _ in range(100)))) == {A}
    assert source.reads == 1


@pytest.mark.anyio
async def test_an_old_secret_is_read_again_behind_the_scenes_and_kept_in_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets, "KEPT_FOR", 0.0)
    stages: Stages = {CURRENT: secret(*A)}
    source = SecretsManager(reader(stages))
    changes: list[int] = []
    source.on_change = lambda: changes.append(1)
    assert await source.current() == A
    stages[CURRENT] = SecretUnavailable(reason="down")
    assert await source.current() == A
    assert await until_read(source, 2) == A
    monkeypatch.setattr(secrets, "NOT_BEFORE", 0.0)
    source._until = 0.0  # the pause after a failure is over
    stages[CURRENT] = secret("app", "two", "v2")
    assert await source.current() == A
    assert await until_read(source, 3) == Credential("app", "two", "v2")
    assert changes == [1]


async def until_read(source: SecretsManager, count: int) -> Credential:
    refreshing = source._refreshing
    assert refreshing is not None
    await asyncio.wait([refreshing])
    assert source.reads == count
    assert source._kept is not None
    return source._kept


@pytest.mark.anyio
async def test_a_refused_secret_that_has_changed_is_the_only_alternative() -> None:
    stages: Stages = {CURRENT: secret(*A)}
    source = SecretsManager(reader(stages))
    await source.current()
    stages.update({CURRENT: secret("app", "two", "v2"), PREVIOUS: secret(*A)})
    assert await source.alternatives(A) == (Credential("app", "two", "v2"),)
    # Others that were refused meanwhile share the answer, without another reading.
    reads = source.reads
    assert await source.alternatives(A) == (Credential("app", "two", "v2"),)
    assert source.reads == reads


@pytest.mark.anyio
async def test_half_way_through_a_rotation_pending_and_previous_are_alternatives() -> None:
    stages: Stages = {
        CURRENT: secret(*A),
        PENDING: secret("app", "two", "v2"),
        PREVIOUS: secret("app", "zero", "v0"),
    }
    source = SecretsManager(reader(stages))
    await source.current()
    found = await source.alternatives(A)
    assert found == (Credential("app", "two", "v2"), Credential("app", "zero", "v0"))
    source.worked(found[0])
    assert await source.current() == found[0]


@pytest.mark.anyio
async def test_a_storm_of_refusals_reads_once_in_five_seconds() -> None:
    source = SecretsManager(reader({CURRENT: secret(*A), PENDING: Secret("{}", "v2")}))
    await source.current()
    for _ in range(50):
        assert await source.alternatives(A) == ()
    assert source.reads == 4  # at first, and once each of current, pending, previous


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("found", "error"),
    [
        (SecretUnavailable(reason="AccessDeniedException"), SecretUnavailable),
        (None, SecretInvalid),
        (Secret("canary no JSON", "v"), SecretInvalid),
    ],
)
async def test_without_a_secret_there_is_an_error_that_does_not_repeat_it(
    found: Secret | Exception | None, error: type[Exception]
) -> None:
    source = SecretsManager(reader({} if found is None else {CURRENT: found}))
    with pytest.raises(error) as caught:
        await source.current()
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "canary" not in str(chain)
        chain = chain.__cause__ or chain.__context__


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"a"',
        "{}",
        '{"username": "a"}',
        '{"username": "", "password": "b"}',
        '{"username": "a", "password": null}',
        '{"username": 1, "password": "b"}',
    ],
)
def test_a_secret_without_user_and_password_is_no_good(text: str) -> None:
    with pytest.raises(SecretInvalid):
        read_secret(Secret(text, "v"))


def test_where_the_database_is_is_not_for_the_secret_to_say() -> None:
    text = '{"username": "a", "password": "b", "host": "evil.example", "port": 1, "dbname": "x"}'
    assert read_secret(Secret(text, "v")) == Credential("a", "b", "v")
