"""Plain HTTP is for proxies that are named, and only they are believed about a caller's address."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.cli import serve
from gateway.core.proxies import Proxies
from gateway.settings import ConfigurationError, load
from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_loopback import serving
from tests.fix_postgres import Database
from tests.wire.test_iam import iam_settings, signed, sts

pytestmark = pytest.mark.wire
ALICE, MALLORY = "203.0.113.7", "198.51.100.9"


def audited(database: Database, path: Path, *proxies: str) -> Any:
    settings = settings_for(database)
    return replace(
        settings,
        server=replace(settings.server, proxies=proxies),
        observe=replace(settings.observe, audit_file=path),
    )


@pytest.mark.parametrize(
    ("proxies", "source"),
    [
        pytest.param((), "127.0.0.1", id="none is named"),
        pytest.param(("192.0.2.1",), "127.0.0.1", id="another is named"),
        pytest.param(("127.0.0.0/8",), ALICE, id="this one is named"),
    ],
)
@pytest.mark.parametrize("path", ["/execute", "/whoami"], ids=["past ASGI", "through ASGI"])
def test_the_audit_has_the_address_that_a_named_proxy_tells(
    shared_database: Database, tmp_path: Path, proxies: tuple[str, ...], source: str, path: str
) -> None:
    file = tmp_path / "audit"
    with running(audited(shared_database, file, *proxies), shared_database) as gateway:
        headers = {"x-forwarded-for": f"6.6.6.6, {ALICE}"}
        with gateway.http() as client:
            if path == "/execute":
                client.post(path, json={"sql": "select 1"}, headers=headers)
            else:
                client.get(path, headers=headers)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["source"] for line in lines if line.get("operation")] == [source]


def test_who_fails_behind_a_proxy_fails_for_itself_alone(database: Database) -> None:
    with serving(sts) as server:
        settings = iam_settings(database, server.url)
        settings = replace(
            settings,
            auth=replace(settings.auth, failure_limit=2),
            server=replace(settings.server, proxies=("127.0.0.1",)),
        )
        with running(settings, database) as gateway:

            def ask(number: int, source: str) -> str:
                body = {**signed(), "signature": f"{number:064x}"}
                headers = {"x-forwarded-for": source}
                done = httpx2.post(gateway.url + "/auth/iam", json=body, headers=headers)
                return str(done.json()["code"])

            codes = [ask(n, MALLORY) for n in range(4)]
            assert codes == ["unauthenticated"] * 2 + ["rate_limited"] * 2
            assert ask(5, ALICE) == "unauthenticated"
            # What it puts before the proxy's own word makes it nobody else.
            assert ask(6, f"{ALICE}, {MALLORY}") == "rate_limited"


@pytest.fixture
def exposed(
    shared_database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Gateway, int]]:
    """A gateway that listens everywhere without TLS, and one address that is a proxy's."""
    # Tests have loopback only, and this machine may always ask itself: so not here.
    monkeypatch.setattr(Proxies, "admits", Proxies.trusts)
    settings = settings_for(shared_database)
    server = replace(
        settings.server, host="0.0.0.0", behind_proxy=True, proxies=("127.0.0.2", "127.0.0.64/26")
    )
    with running(replace(settings, server=server), shared_database) as gateway:
        yield gateway, gateway.port


def answered(port: int, source: str) -> bytes:
    """What comes back to a request from *source*."""
    address, own = ("127.0.0.1", port), (source, 0)
    with socket.create_connection(address, timeout=60, source_address=own) as connection:
        try:
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            return b"".join(iter(lambda: connection.recv(4096), b""))
        except ConnectionError:
            return b""


def test_plain_http_off_loopback_is_for_named_proxies_alone(exposed: tuple[Gateway, int]) -> None:
    _, port = exposed
    for proxy in ("127.0.0.2", "127.0.0.65"):
        assert answered(port, proxy).startswith(b"HTTP/1.1 200"), proxy
    for stranger in ("127.0.0.1", "127.0.0.3", "127.0.0.129"):
        assert answered(port, stranger) == b"", stranger


def test_a_unix_socket_is_listened_on_and_what_was_left_of_one_is_taken(
    shared_database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, file = tmp_path / "s", tmp_path / "audit"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(place))
    left.close()
    settings = audited(shared_database, file, "10.0.0.0/8")
    settings = replace(settings, server=replace(settings.server, host=str(place)))
    with running(settings, shared_database) as gateway:
        assert gateway.url == f"http+unix://{place}"
        assert place.stat().st_mode & 0o777 == 0o660
        # Whoever answers there keeps it.
        assert serve.run(settings) == 1
        assert f"{place} is in use" in capsys.readouterr().err
        transport = httpx2.HTTPTransport(uds=str(place))
        with httpx2.Client(transport=transport, base_url="http://localhost") as client:
            headers = {"authorization": f"Bearer {gateway.token}", "x-forwarded-for": ALICE}
            for path in ("/execute", "/batch"):
                body = {"sql": "select 1"} if path == "/execute" else {"statements": []}
                client.post(path, json=body, headers=headers)
            answer = client.post("/execute", json={"sql": "select 1"}, headers=headers)
            assert answer.json()["rows"] == [[1]]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["source"] for line in lines if line.get("operation")} == {ALICE}


@pytest.mark.parametrize(
    ("more", "good"),
    [
        ({}, False),
        ({"BEHIND_PROXY": "true"}, False),
        ({"PROXIES": "10.0.0.0/8"}, False),
        ({"BEHIND_PROXY": "true", "PROXIES": "10.0.0.0/8, 192.0.2.1"}, True),
        ({"BEHIND_PROXY": "true", "PROXIES": "*"}, False),
        ({"BEHIND_PROXY": "true", "PROXIES": "proxy.example"}, False),
    ],
    ids=str,
)
def test_it_does_not_listen_off_loopback_before_a_proxy_is_named(
    more: dict[str, str], good: bool
) -> None:
    environ = {
        "PGSLUICE_AUTH__MASTER_KEY": "Zm9ydHktdHdvIGJ5dGVzIG9mIHJhbmRvbSBsb29raW5n",
        "DATABASE_URL": "postgresql://u@localhost/d",
        "PGSLUICE_SERVER__HOST": "0.0.0.0",
        **{f"PGSLUICE_SERVER__{name}": value for name, value in more.items()},
    }
    if good:
        assert load(None, environ).server.proxies == ("10.0.0.0/8", "192.0.2.1")
        return
    with pytest.raises(ConfigurationError) as caught:
        load(None, environ)
    assert any("server." in str(problem) for problem in caught.value.problems)
    local = {**environ, "PGSLUICE_SERVER__HOST": "127.0.0.1"}
    if "PROXIES" not in more or "/" in more["PROXIES"]:
        assert load(None, local)
