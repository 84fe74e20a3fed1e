"""Browsers get answers for pages of listed origins, and nobody does by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest

from gateway.settings import CorsSettings
from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_postgres import Database

pytestmark = pytest.mark.wire
PAGE, OTHER = "https://app.example.com", "https://evil.example.com"
ASK = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}


@pytest.fixture(scope="module")
def listed(shared_database: Database) -> Iterator[Gateway]:
    settings = settings_for(shared_database)
    with running(replace(settings, cors=CorsSettings(origins=(PAGE,))), shared_database) as it:
        yield it


def preflight(gateway: Gateway, origin: str, path: str = "/execute") -> httpx2.Response:
    return httpx2.options(gateway.url + path, headers={"origin": origin, **ASK})


@pytest.mark.parametrize("path", ["/execute", "/transactions/x/commit", "/auth/iam", "/Execute"])
def test_a_listed_origin_may_ask_and_read(listed: Gateway, path: str) -> None:
    first = preflight(listed, PAGE, path)
    assert first.status_code == 204
    assert first.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in first.headers["access-control-allow-headers"]
    assert "POST" in first.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in first.headers


@pytest.mark.parametrize(("token", "status"), [(None, 200), ("a.b.c", 401)])
def test_answers_and_refusals_can_be_read(listed: Gateway, token: str | None, status: int) -> None:
    with listed.http(token) as client:
        done = client.post("/execute", json={"sql": "select 1"}, headers={"origin": PAGE})
    assert done.status_code == status
    assert done.headers["access-control-allow-origin"] == PAGE
    assert "x-gateway-request-id" in done.headers["access-control-expose-headers"]
    assert done.headers["vary"] == "origin"


def test_streams_can_be_read(listed: Gateway) -> None:
    with listed.http() as client:
        done = client.post(
            "/execute",
            json={"sql": "select repeat('x', 1000) from generate_series(1, 3000)"},
            headers={"origin": PAGE},
        )
    assert len(done.json()["rows"]) == 3000
    assert done.headers["access-control-allow-origin"] == PAGE


def test_another_origin_gets_nothing(listed: Gateway) -> None:
    first = preflight(listed, OTHER)
    assert not any(name.startswith("access-control") for name in first.headers)
    with listed.http() as client:
        done = client.post("/execute", json={"sql": "select 1"}, headers={"origin": OTHER})
    assert "access-control-allow-origin" not in done.headers
    assert done.headers["vary"] == "origin"


def test_an_ordinary_client_sees_no_difference(listed: Gateway) -> None:
    with listed.http() as client:
        done = client.post("/execute", json={"sql": "select 1"})
    assert "vary" not in done.headers
    assert httpx2.options(listed.url + "/execute").status_code == 405


def test_it_is_off_by_default(shared_gateway: Gateway) -> None:
    assert preflight(shared_gateway, PAGE).status_code == 405
    with shared_gateway.http() as client:
        done = client.post("/execute", json={"sql": "select 1"}, headers={"origin": PAGE})
    assert not any(name.startswith("access-control") for name in done.headers)
