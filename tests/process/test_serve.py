"""`python -m gateway serve` as an operator meets it: a process, its output, signals."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from gateway.cli.main import main
from gateway.cli.token import token_for
from gateway.core.keys import derive_secret
from tests.fix_postgres import Database

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
MASTER_KEY = "Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZSE="
COMMAND = [sys.executable, "-m", "gateway", "serve"]
LISTENS = re.compile(r"listens on (\S+?), admin on (\S+)\n")


def environment(database_url: str, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": database_url,
        "PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY,
        "PGSLUICE_SERVER__ADMIN_PORT": "0",
        "PORT": "0",
        **more,
    }


class Serving:
    """A gateway that listens."""

    def __init__(self, process: subprocess.Popen[str], url: str, admin_url: str) -> None:
        self.process = process
        self.url = url
        self.admin_url = admin_url

    def get(self, path: str, *, admin: bool = False) -> tuple[int, bytes]:
        return self._ask("GET", path, None, admin=admin)

    def execute(self, sql: str) -> tuple[int, dict[str, object]]:
        token = token_for(MASTER_KEY.encode(), subject="tester", lifetime=60)
        status, body = self._ask("POST", "/execute", {"sql": sql}, token=token)
        return status, json.loads(body)

    def _ask(
        self, method: str, path: str, body: object, *, admin: bool = False, token: str = ""
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            urlsplit(self.admin_url if admin else self.url).netloc
        )
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                headers if token else {},
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said after it began to listen."""
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


@contextmanager
def serving(environ: dict[str, str]) -> Iterator[Serving]:
    process = subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = LISTENS.search(line)
            assert found, line + process.stderr.read()
            yield Serving(process, found[1], found[2])
        finally:
            process.kill()


def refused(environ: dict[str, str]) -> str:
    """What a gateway says that does not start."""
    done = subprocess.run(
        COMMAND, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def waits_for_lock(database: Database) -> bool:
    return database.sql("select count(*) from pg_locks where not granted").strip() == "1"


@contextmanager
def locked_table(database: Database) -> Iterator[subprocess.Popen[str]]:
    """A table `held` that nobody may read until standard input of the process is closed."""
    database.sql(f"create table held (id int); grant all on held to {database.app_user}")
    psql = [str(database.server.binaries.bindir / "psql"), "-XqAt", database.dsn]
    with subprocess.Popen(
        psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PGOPTIONS": ""}
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("begin; lock held; select 'locked';\n")
        process.stdin.flush()
        assert process.stdout.readline() == "locked\n"
        yield process


def test_a_database_url_and_a_master_key_serve(database: Database) -> None:
    with serving(environment(database.app_dsn)) as gateway:
        assert gateway.get("/livez")[0] == 200
        assert gateway.get("/metrics", admin=True)[0] == 200
        status, answer = gateway.execute("select current_user::text")
        assert (status, answer["rows"]) == (200, [[database.app_user]])
        gateway.signal(signal.SIGTERM)
        code, said = gateway.end()
        assert code == 0
        assert "Traceback" not in said


def test_sigterm_lets_a_running_statement_finish_and_takes_no_new_one(database: Database) -> None:
    with (
        serving(environment(database.app_dsn)) as gateway,
        locked_table(database) as lock,
        ThreadPoolExecutor() as threads,
    ):
        running = threads.submit(gateway.execute, "select count(*) from held")
        while not waits_for_lock(database):
            assert not running.done(), running.result()
        gateway.signal(signal.SIGTERM)
        while gateway.get("/readyz")[0] == 200:
            pass
        assert gateway.execute("select 1")[0] == 503
        assert not running.done()
        assert lock.stdin is not None
        lock.stdin.close()
        status, answer = running.result(30)
        assert (status, answer["rows"]) == (200, [[0]])
        assert gateway.end()[0] == 0


def test_a_second_signal_waits_for_nothing(database: Database) -> None:
    with (
        serving(environment(database.app_dsn)) as gateway,
        locked_table(database) as lock,
        ThreadPoolExecutor() as threads,
    ):
        running = threads.submit(gateway.execute, "select count(*) from held")
        while not waits_for_lock(database):
            assert not running.done(), running.result()
        gateway.signal(signal.SIGTERM)
        while gateway.get("/readyz")[0] == 200:
            pass
        gateway.signal(signal.SIGINT)
        assert gateway.end()[0] == 128 + signal.SIGINT
        with pytest.raises((http.client.HTTPException, OSError)):
            running.result(30)
        assert lock.stdin is not None
        lock.stdin.close()


@pytest.mark.parametrize("name", ["PORT", "PGSLUICE_SERVER__ADMIN_PORT"])
def test_a_port_in_use_is_one_clear_line(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(environment("postgresql://u@localhost/d", **{name: str(port)}))
    assert said.count("\n") == 1
    assert f"port {port} of 127.0.0.1 is in use" in said


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[server]\nhost = '0.0.0.0'\n[targets.main]\nhosts = []\n")
    said = refused(
        {"PATH": os.environ["PATH"], "PORT": "eighty", "PGSLUICE_CONFIG": str(file)},
    )
    assert "6 problems" in said.splitlines()[0]
    assert {line.split(":")[0].strip() for line in said.splitlines()[1:]} == {
        "server.port",
        "server.host",
        "auth.master_key",
        "targets.main.hosts",
        "targets.main.logins",
        "policy",
    }
    assert "(from PORT)" in said
    assert f"(from {file})" in said


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return write_certificate(tmp_path, serial=1)


def write_certificate(folder: Path, *, serial: int) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    cert.write_bytes(built.public_bytes(Encoding.PEM))
    return cert, private


def handshake(port: int, context: ssl.SSLContext, name: str | None = "localhost") -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port))
    try:
        return context.wrap_socket(raw, server_hostname=name)
    except BaseException:
        raw.close()
        raise


def serial_of(port: int, name: str | None = "localhost") -> int:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with handshake(port, context, name) as connection:
        seen = connection.getpeercert(binary_form=True)
    assert seen is not None
    return x509.load_der_x509_certificate(seen).serial_number


def test_tls_is_served_and_a_new_certificate_is_taken_on_sighup(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    environ = environment(
        "postgresql://u@localhost/d",
        PGSLUICE_SERVER__HOST="0.0.0.0",
        PGSLUICE_SERVER__TLS_CERT=str(cert),
        PGSLUICE_SERVER__TLS_KEY=str(key),
    )
    with serving(environ) as gateway:
        assert gateway.url.startswith("https://0.0.0.0:")
        port = int(gateway.url.rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(cert))
        with handshake(port, context) as connection:
            assert connection.version() == "TLSv1.3"
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4_096).startswith(b"HTTP/1.1 200")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with handshake(port, context) as connection:
            cipher = connection.cipher()
            assert cipher is not None
            assert cipher[0].startswith("ECDHE")
        assert serial_of(port) == 1
        # Handshakes go on meanwhile: none of them may see half of a pair.
        for serial in range(2, 22):
            write_certificate(tmp_path, serial=serial)
            gateway.signal(signal.SIGHUP)
            while serial_of(port, "localhost" if serial % 2 else None) == serial - 1:
                pass
            assert serial_of(port) == serial
        gateway.signal(signal.SIGTERM)
        assert gateway.end()[0] == 0


def test_a_key_of_another_certificate_is_one_clear_line(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    said = refused(
        environment(
            "postgresql://u@localhost/d",
            PGSLUICE_SERVER__TLS_CERT=str(certificate[0]),
            PGSLUICE_SERVER__TLS_KEY=str(write_certificate(other, serial=2)[1]),
        )
    )
    assert said.count("\n") == 1
    assert "server.tls_cert and server.tls_key cannot be used" in said


def test_a_new_key_works_when_its_lines_are_added(database: Database, tmp_path: Path) -> None:
    environ = environment(database.app_dsn)
    done = CliRunner().invoke(main, ["keys", "new", "--principal", 'o"rders'], env=environ)
    assert done.exit_code == 0, done.output
    found = dict(re.findall(r"^(AWS_\w+)=(\S+)$", done.output, re.M))
    key_id = found["AWS_ACCESS_KEY_ID"]
    assert found["AWS_SECRET_ACCESS_KEY"] == derive_secret(MASTER_KEY.encode(), key_id, 1)
    file = tmp_path / "gateway.toml"
    lines = re.search(r"^\[auth\.keys\..*?^$", done.output, re.M | re.S)
    assert lines
    file.write_text(lines[0])
    with serving({**environ, "PGSLUICE_CONFIG": str(file)}) as gateway:
        answer = subprocess.run(
            [
                str(Path(sys.executable).with_name("aws")),
                "rds-data",
                "execute-statement",
                "--resource-arn=arn:aws:rds:us-east-1:123456789012:cluster:any",
                "--secret-arn=arn:aws:secretsmanager:us-east-1:123456789012:secret:any",
                "--sql=select 1",
                f"--endpoint-url={gateway.url}",
            ],
            env={**found, "PATH": os.environ["PATH"], "AWS_DEFAULT_REGION": "us-east-1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["records"] == [[{"longValue": 1}]]


def test_a_token_is_printed_alone(database: Database) -> None:
    environ = environment(database.app_dsn)
    done = CliRunner().invoke(main, ["token", "--subject", "me", "--ttl", "1h"], env=environ)
    assert done.exit_code == 0
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", done.output)


@pytest.mark.parametrize(
    "arguments",
    [
        ["token", "--subject", "me", "--ttl", "2d"],
        ["token", "--subject", "me", "--ttl", "soon"],
        ["token", "--subject", ""],
        ["keys", "new", "--principal", " "],
    ],
)
def test_what_cannot_be_made_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments, env={"PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY})
    assert done.exit_code == 2


def test_nothing_is_made_without_a_master_key() -> None:
    done = CliRunner().invoke(main, ["token", "--subject", "me"], env={})
    assert done.exit_code == 1
    assert "auth.master_key: is required" in done.output
