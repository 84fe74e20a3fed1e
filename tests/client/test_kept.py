"""Connections kept from one invocation to the next, plain and with TLS, by both clients."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pgsluice
import pytest

from tests.client.test_sync import ONE, Gateway, answer
from tests.deploy.test_proxies import make_certificate

WRITE = "insert into t values (1)"


class Caller:
    """Either client, one call at a time, in an event loop that lasts."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        make: Any = pgsluice.Client if kind == "ordinary" else pgsluice.AsyncClient
        self.client = make(url, token="t", **options)

    def done(self, found: Any) -> Any:
        return self.loop.run_until_complete(found) if asyncio.iscoroutine(found) else found

    def execute(self, sql: str, **options: Any) -> Any:
        return self.done(self.client.execute(sql, **options))

    def close(self) -> None:
        self.done(self.client.close())
        self.loop.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=["plain", "TLS"])
def server(request: pytest.FixtureRequest, certificate: tuple[Path, Path]) -> Iterator[Gateway]:
    gateway = Gateway()
    with socket.create_server(("127.0.0.1", 0)) as plain:
        listener, scheme = plain, "http"
        if request.param == "TLS":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            listener, scheme = context.wrap_socket(plain, server_side=True), "https"
        gateway.url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=gateway.serve, args=(listener,), daemon=True)
        thread.start()
        yield gateway
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    thread.join()


@pytest.fixture(params=["ordinary", "async"])
def call(request: pytest.FixtureRequest) -> Iterator[Callable[..., Caller]]:
    made: list[Caller] = []

    def make(url: str, **options: Any) -> Caller:
        made.append(Caller(request.param, url, **options))
        return made[-1]

    yield make
    for caller in made:
        caller.close()


def connections(server: Gateway) -> list[int]:
    return [each.connection for each in server.seen]


def test_a_connection_serves_one_invocation_after_the_other(
    server: Gateway, call: Callable[..., Caller], certificate: tuple[Path, Path]
) -> None:
    db = call(server.url, cafile=str(certificate[0]))
    for _ in range(5):
        assert db.execute(WRITE).scalar() == 1
    assert connections(server) == [1] * 5


def test_one_that_was_closed_while_the_function_was_frozen_is_replaced_and_a_write_sent_once(
    server: Gateway, call: Callable[..., Caller], certificate: tuple[Path, Path]
) -> None:
    db = call(server.url, cafile=str(certificate[0]))
    send, tries = db.client._http.send, []

    def counted(what: Any) -> Any:
        tries.append(what)
        return send(what)

    db.client._http.send = counted
    server.script(answer(ONE, close_after=True))
    db.execute(WRITE, key="first")
    assert server.closed[0].wait(5)
    db.execute(WRITE, key="second")
    # Noticed before anything was sent on it: not one try failed.
    assert len(tries) == 2
    assert connections(server) == [1, 2]
    keys = [each.headers["idempotency-key"] for each in server.seen]
    assert keys == ["first", "second"]


def test_one_that_only_looks_open_after_a_long_freeze_is_not_used(
    server: Gateway,
    call: Callable[..., Caller],
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The machine stood still: the wall clock went on, the monotonic one did not.
    frozen = 0.0
    clock = SimpleNamespace(
        time=lambda: time.time() + frozen, monotonic=time.monotonic, sleep=time.sleep
    )
    monkeypatch.setattr("pgsluice._http.time", clock)
    monkeypatch.setattr("pgsluice.aio.time", clock)
    db = call(server.url, cafile=str(certificate[0]))
    db.execute(WRITE)
    frozen = 50.0
    db.execute(WRITE)
    frozen = 120.0
    db.execute(WRITE)
    db.execute(WRITE)
    assert connections(server) == [1, 1, 2, 2]
    # A clock that was set back tells nothing of an age.
    frozen = 0.0
    db.execute(WRITE)
    assert connections(server)[-1] == 3


@pytest.mark.parametrize("server", ["TLS"], indirect=True)
def test_whoever_is_not_trusted_is_told_nothing(
    server: Gateway, call: Callable[..., Caller]
) -> None:
    db = call(server.url)
    with pytest.raises(pgsluice.ConnectionFailed, match="CERTIFICATE_VERIFY_FAILED") as caught:
        db.execute(WRITE, timeout=5)
    assert (caught.value.outcome, server.seen) == ("not_executed", [])


@pytest.mark.parametrize("server", ["TLS"], indirect=True)
def test_a_certificate_of_another_name_is_not_trusted(
    server: Gateway, call: Callable[..., Caller], certificate: tuple[Path, Path]
) -> None:
    db = call(server.url.replace("127.0.0.1", "localhost"), cafile=str(certificate[0]))
    with pytest.raises(pgsluice.ConnectionFailed, match="CERTIFICATE_VERIFY_FAILED"):
        db.execute(WRITE, timeout=5)
    assert server.seen == []
