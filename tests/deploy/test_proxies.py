"""The committed configurations of nginx and HAProxy, run in front of a running gateway."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.settings import ServerSettings, TargetSettings
from tests.fix_gateway import PATIENCE, Gateway, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database
from tests.fix_tools import ROOT, debian

NGINX = ROOT / "deploy" / "nginx.conf"
HAPROXY = ROOT / "deploy" / "haproxy.cfg"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    crt, pem = folder / "tls.crt", folder / "tls.key"
    crt.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return crt, pem


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def put(text: str, *pairs: tuple[str, str]) -> str:
    """*text* with each first string in place of which the second stands; it is there once."""
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@dataclass
class Front:
    """A proxy in front of a gateway."""

    url: str
    port: int
    certificate: Path
    gateway: Gateway

    @contextmanager
    def http(self, **more: Any) -> Iterator[httpx2.Client]:
        trust = ssl.create_default_context(cafile=str(self.certificate))
        headers = {"authorization": f"Bearer {self.gateway.token}"}
        with httpx2.Client(
            base_url=self.url, headers=headers, timeout=PATIENCE, verify=trust, **more
        ) as client:
            yield client

    def connect(self) -> ssl.SSLSocket:
        trust = ssl.create_default_context(cafile=str(self.certificate))
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        return trust.wrap_socket(sock, server_hostname="127.0.0.1")


def nginx(folder: Path, port: int, backend: int) -> list[str]:
    program = debian("nginx", "nginx-light")
    crt, key = make_certificate(folder)
    config = folder / "nginx.conf"
    config.write_text(
        f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\ndaemon off;\n"
        + ("user root;\n" if os.geteuid() == 0 else "")
        + put(
            NGINX.read_text(),
            ("/etc/pgsluice/tls.crt", str(crt)),
            ("/etc/pgsluice/tls.key", str(key)),
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("server 127.0.0.1:8080;", f"server 127.0.0.1:{backend};"),
        )
    )
    command = [program, "-p", str(folder), "-c", str(config), "-e", f"{folder}/error.log"]
    done = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr, done.stderr
    return command


def haproxy(folder: Path, port: int, backend: int) -> list[str]:
    program = debian("haproxy")
    crt, key = make_certificate(folder)
    pem = folder / "tls.pem"
    pem.write_bytes(crt.read_bytes() + key.read_bytes())
    config = folder / "haproxy.cfg"
    config.write_text(
        put(
            HAPROXY.read_text(),
            ("/etc/pgsluice/tls.pem", str(pem)),
            # So many need more open files than a test may have.
            ("maxconn 20000", "maxconn 500"),
            ("bind :443 ssl", f"bind 127.0.0.1:{port} ssl"),
            ("server node1 127.0.0.1:8080", f"server node1 127.0.0.1:{backend}"),
        )
    )
    command = [program, "-f", str(config)]
    done = subprocess.run([*command, "-c"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return [*command, "-db"]


@contextmanager
def standing(make: Callable[[Path, int, int], list[str]], folder: Path, gateway: Gateway) -> Any:
    port = free_port()
    command = make(folder, port, gateway.port)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            front = Front(f"https://127.0.0.1:{port}", port, folder / "tls.crt", gateway)

            def answers() -> bool:
                assert process.poll() is None, process.stderr and process.stderr.read()
                try:
                    with front.http() as client:
                        return bool(client.get("/livez").status_code == 200)
                except httpx2.TransportError:
                    return False

            until(answers, "the proxy never answered")
            yield front
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                process.kill()


@pytest.fixture(scope="module", params=[nginx, haproxy], ids=["nginx", "haproxy"])
def front(
    request: pytest.FixtureRequest,
    shared_database: Database,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    settings = settings_for(shared_database)
    target = replace(settings.targets["main"], read_budget=64 * 1024)
    settings = replace(
        settings,
        targets={"main": target},
        server=replace(settings.server, behind_proxy=True),
    )
    with (
        running(settings, shared_database) as gateway,
        standing(request.param, folder, gateway) as it,
    ):
        yield it


def active(database: Database, mark: str) -> int:
    sql = (
        f"select count(*) from pg_stat_activity where {GATEWAYS}"
        f" and state = 'active' and query like '%{mark}%'"
    )
    return int(database.sql(sql))


@contextmanager
def locked(gateway: Gateway, number: int) -> Iterator[Callable[[], None]]:
    """An advisory lock that somebody else holds, until the function is called."""
    with gateway.http() as client:
        transaction = client.post("/transactions", json={}).json()["transaction"]
        lock = {"sql": f"select pg_advisory_xact_lock({number})", "transaction": transaction}
        assert client.post("/execute", json=lock).status_code == 200

        def release() -> None:
            client.post(f"/transactions/{transaction}/rollback")

        try:
            yield release
        finally:
            release()


def waits_at(row: int, lock: int) -> str:
    """Rows of which one comes only when nobody holds *lock* any more."""
    return (
        f"select n, case when n = {row} then pg_advisory_lock_shared({lock})::text end, "
        "repeat('x', 100) from generate_series(1, 3000) n"
    )


LINES = {"accept": "application/x-ndjson"}
"""Rows that are of use one by one: where they are packed, each piece is pressed out."""


def request(front: Front, sql: str) -> bytes:
    body = json.dumps({"sql": sql}).encode()
    head = (
        f"POST /execute HTTP/1.1\r\nhost: 127.0.0.1:{front.port}\r\n"
        f"authorization: Bearer {front.gateway.token}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_rows_arrive_before_the_statement_has_ended(
    front: Front, shared_database: Database
) -> None:
    sql = waits_at(1_500, 4711)
    with (
        locked(front.gateway, 4711) as release,
        front.http() as client,
        client.stream("POST", "/execute", json={"sql": sql}, headers=LINES) as answer,
    ):
        pieces = answer.iter_bytes()
        begun = next(pieces)
        # The statement still waits for the lock: nobody has the last row yet. What is before
        # it fits the buffers on the way, though nobody reads on.
        until(lambda: active(shared_database, "4711") == 1, "it does not wait")
        release()
        whole = begun + b"".join(pieces)
    assert [json.loads(line)["n"] for line in whole.splitlines()] == list(range(1, 3_001))


def test_a_caller_who_hangs_up_takes_its_statement_with_it(
    front: Front, shared_database: Database
) -> None:
    with front.connect() as sock:
        sock.sendall(request(front, "select pg_sleep(600), 'waits-for-it'"))
        until(lambda: active(shared_database, "waits-for-it") == 1, "it never ran")
    until(lambda: active(shared_database, "waits-for-it") == 0, "the statement runs on")


def test_a_caller_who_hangs_up_in_the_middle_of_its_rows_ends_them(
    front: Front, shared_database: Database
) -> None:
    with locked(front.gateway, 4712):
        with front.connect() as sock:
            sock.sendall(request(front, waits_at(1_500, 4712)))
            assert sock.recv(65_536).startswith(b"HTTP/1.1 200")
            until(lambda: active(shared_database, "4712") == 1, "it does not wait")
        until(lambda: active(shared_database, "4712") == 0, "the statement runs on")


def test_what_boto3_signs_is_accepted(front: Front) -> None:
    gateway = front.gateway
    client = boto3.client(
        "rds-data",
        endpoint_url=front.url,
        verify=str(front.certificate),
        region_name="us-east-1",
        aws_access_key_id=gateway.access_key,
        aws_secret_access_key=gateway.secret_key,
        config=Config(retries={"max_attempts": 1}),
    )
    where = {"resourceArn": gateway.resource_arn, "secretArn": gateway.secret_arn}
    parameters = [{"name": "a", "value": {"stringValue": "ä // ?&"}}]
    answer = client.execute_statement(sql="select :a", parameters=parameters, **where)
    assert answer["records"] == [[{"stringValue": "ä // ?&"}]]
    transaction = client.begin_transaction(**where)["transactionId"]
    client.execute_statement(sql="select 1", transactionId=transaction, **where)
    client.commit_transaction(transactionId=transaction, **{
        name: where[name] for name in ("resourceArn", "secretArn")
    })  # fmt: skip


def test_a_large_body_gets_through_both_ways(front: Front) -> None:
    value = "x" * 3_500_000
    with front.http() as client:
        asked = {"sql": "select $1::text", "parameters": [value]}
        assert client.post("/execute", json=asked).json()["rows"] == [[value]]
        too_large = {"sql": "select $1::text", "parameters": ["x" * 5_000_000]}
        refused = client.post("/execute", json=too_large)
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")


def test_an_upload_of_any_size_is_passed_on_while_it_is_sent(
    front: Front, shared_database: Database
) -> None:
    table = f"uploaded_{front.port}"
    shared_database.sql(f"create table {table} (n int, s text); grant all on {table} to public")

    def body() -> Iterator[bytes]:
        yield b"n,s\n"
        for n in range(100):
            yield f"{n},{'x' * 100_000}\n".encode()
            if n == 50:
                # The first rows have reached PostgreSQL before the last are sent.
                until(lambda: active(shared_database, f"COPY%{table}") == 1, "it was held back")

    with front.http() as client:
        answer = client.post(f"/copy/{table}", content=body(), headers={"content-type": "text/csv"})
    assert answer.json() == {"row_count": 100}


def test_connections_are_kept_on_both_sides(front: Front) -> None:
    def callers() -> int:
        page = httpx2.get(front.gateway.admin_url + "/metrics").text
        found = re.search(r"^pgsluice_caller_connections (\d+)$", page, re.MULTILINE)
        assert found is not None
        return int(found[1])

    with front.http() as client:
        for number in range(30):
            answer = client.post("/execute", json={"sql": f"select {number}"})
            assert answer.json()["rows"] == [[number]]
        # Checks of HAProxy come and go besides.
        until(lambda: callers() < 10, "each request left a connection behind")


def test_a_refusal_keeps_its_status_its_body_and_its_headers(front: Front) -> None:
    with front.http() as client:
        head = {"x-gateway-request-id": "refusal-1"}
        refused = client.post("/execute", json={"sql": "select 1 / 0"}, headers=head)
        direct = httpx2.post(
            front.gateway.url + "/execute",
            json={"sql": "select 1 / 0"},
            headers={**head, "authorization": f"Bearer {front.gateway.token}"},
        )
        assert refused.status_code == direct.status_code == 400
        assert refused.json() == direct.json()
        for name in ("content-type", "x-gateway-request-id"):
            assert refused.headers[name] == direct.headers[name]


# -- what the files say, without the programs ----------------------------------------------


SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0}


def seconds(text: str, pattern: str) -> float:
    found = re.search(rf"^\s*{pattern}\s+(\d+)(ms|s|m|h)\b", text, re.MULTILINE)
    assert found is not None, pattern
    return int(found[1]) * SECONDS[found[2]]


LONGEST = max(
    TargetSettings.__dataclass_fields__[name].default
    for name in ("statement_timeout", "stream_timeout", "continued_timeout")
)
KEEP_ALIVE = ServerSettings().keep_alive


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        (NGINX, "proxy_read_timeout"),
        (NGINX, "proxy_send_timeout"),
        (HAPROXY, "timeout client"),
        (HAPROXY, "timeout server"),
    ],
)
def test_the_proxy_waits_longer_than_the_gateway_works(file: Path, pattern: str) -> None:
    assert seconds(file.read_text(), pattern) > LONGEST


@pytest.mark.parametrize(
    ("file", "pattern"),
    [(NGINX, r"upstream pgsluice \{[^}]*keepalive_timeout"), (HAPROXY, ".*pool-purge-delay")],
)
def test_the_proxy_closes_idle_connections_before_the_gateway_does(
    file: Path, pattern: str
) -> None:
    assert seconds(file.read_text(), pattern) < KEEP_ALIVE
