"""A cold start: a fresh process from its beginning to the first row, with each client.

    python -m benchmarks.bench_client [--rounds 15]

PostgreSQL, the gateway and, in front of it, an end of TLS run beside each other on
loopback. Each client imports itself, connects and reads one row in a process of its
own; all take turns in every round. The figure is the median less that of an interpreter
that does nothing. boto3 and httpx talk to the gateway as pgsluice does, the drivers to
PostgreSQL itself. Drivers that are not installed here come from an environment of their
own, which the tests' list of packages makes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gateway.cli import embedded
from gateway.cli.token import token_for
from gateway.core.keys import derive_secret

RESULTS = Path(__file__).parent / "results"
ROUNDS = 15
_MASTER_KEY = "for this benchmark alone, of no use elsewhere"
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")
ROOT = Path(__file__).parents[1]
RESOURCE = "arn:aws:rds:us-east-1:123456789012:cluster:main"
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:main-AbCdEf"

_BOTO3 = f"""
import boto3, os
c = boto3.client("rds-data", endpoint_url=os.environ["URL"], region_name="us-east-1",
                 aws_access_key_id=os.environ["KEY"], aws_secret_access_key=os.environ["SECRET"],
                 verify=os.environ.get("CA") or None)
r = c.execute_statement(resourceArn={RESOURCE!r}, secretArn={SECRET!r}, sql="select 1")
assert r["records"] == [[{{"longValue": 1}}]]
"""
_PGSLUICE = """
import pgsluice
assert pgsluice.connect().scalar("select 1") == 1
"""
_HTTPX = """
import httpx, os, ssl
ca = os.environ.get("CA")
verify = ssl.create_default_context(cafile=ca) if ca else True
with httpx.Client(verify=verify, headers={"authorization": "Bearer " + os.environ["TOKEN"]}) as c:
    r = c.post(os.environ["URL"] + "/execute", json={"sql": "select 1"})
    assert r.json()["rows"] == [[1]]
"""
_PSYCOPG = """
import os, psycopg
with psycopg.connect(os.environ["DSN"]) as c:
    assert c.execute("select 1").fetchone() == (1,)
"""
_ASYNCPG = """
import asyncio, asyncpg, os
async def main():
    c = await asyncpg.connect(os.environ["DSN"])
    assert await c.fetchval("select 1") == 1
    await c.close()
asyncio.run(main())
"""
_PG8000 = """
import os, pg8000.dbapi
c = pg8000.dbapi.connect(user="bench", host="127.0.0.1", port=int(os.environ["PGPORT"]),
                         database="postgres")
k = c.cursor(); k.execute("select 1"); assert tuple(k.fetchone()) == (1,); c.close()
"""
_BARE = "bare interpreter"
_CLIENTS: dict[str, tuple[str, str]] = {
    _BARE: ("pass", "plain"),
    "pgsluice": (_PGSLUICE, "plain"),
    "boto3 rds-data": (_BOTO3, "plain"),
    "httpx": (_HTTPX, "plain"),
    "psycopg, direct": (_PSYCOPG, "plain"),
    "asyncpg, direct": (_ASYNCPG, "plain"),
    "pg8000, direct": (_PG8000, "plain"),
    "pgsluice, TLS": (_PGSLUICE, "tls"),
    "boto3 rds-data, TLS": (_BOTO3, "tls"),
    "httpx, TLS": (_HTTPX, "tls"),
}


def main() -> None:
    """Measure, print, and write `results/client.*`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--python", help="has the other clients installed; else one is made")
    given = parser.parse_args()
    rounds, python = given.rounds, given.python or _environment()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsluice-bench-")))
        home.chmod(0o711)
        environments = stack.enter_context(_surroundings(home))
        times = _measured(python, environments, rounds)
    figures = _figures(times)
    for line in _table(figures, rounds):
        print(line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "client.json").write_text(json.dumps({"rounds": rounds, **figures}, indent=2) + "\n")
    (RESULTS / "client.md").write_text("\n".join(_table(figures, rounds)) + "\n")


def _environment() -> str:
    from tests.fix_tools import python_environment

    os.environ["PGSLUICE_TEST_INSTALL"] = "1"
    return str(python_environment(Path(__file__).parent / "requirements-clients.txt"))


def _measured(
    python: str, environments: dict[str, dict[str, str]], rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    missing: set[str] = set()
    for turn in range(rounds + 1):
        for name, (code, kind) in _CLIENTS.items():
            if name in missing:
                continue
            start = f"import sys; sys.path.insert(0, {str(ROOT / 'client')!r})\n"
            began = time.perf_counter()
            done = subprocess.run(
                [python, "-I", "-c", start + code],
                env=environments[kind],
                capture_output=True,
                text=True,
                check=False,
            )
            took = (time.perf_counter() - began) * 1000
            if done.returncode:
                if "ModuleNotFoundError" not in done.stderr:
                    raise SystemExit(f"{name}:\n{done.stderr}")
                print(f"{name} is not installed for {python}", file=sys.stderr)
                missing.add(name)
            elif turn:  # the first round fills the caches of the file system
                times.setdefault(name, []).append(took)
    return times


def _figures(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    medians = {name: statistics.median(each) for name, each in times.items()}
    found = {}
    for name, median in medians.items():
        over = median - medians[_BARE]
        against = medians.get("boto3 rds-data, TLS" if name.endswith("TLS") else "boto3 rds-data")
        share = over / (against - medians[_BARE]) if against is not None else 0.0
        found[name] = {"ms": round(over, 1), "share of boto3": round(share, 3)}
    found[_BARE]["ms"] = round(medians[_BARE], 1)
    return found


def _table(figures: dict[str, dict[str, float]], rounds: int) -> list[str]:
    lines = [
        f"Fresh process to first row, median of {rounds}, over a bare interpreter of "
        f"{figures[_BARE]['ms']} ms:",
        "",
        "| client | ms | share of boto3 |",
        "|---|---:|---:|",
    ]
    for name, each in figures.items():
        if name != _BARE:
            share = f"{each['share of boto3']:.2f}" if each["share of boto3"] else ""
            lines.append(f"| {name} | {each['ms']} | {share} |")
    return lines


@contextmanager
def _surroundings(home: Path) -> Iterator[dict[str, dict[str, str]]]:
    """What the clients find in their environment, without TLS and with it."""
    port = embedded.free_port()
    with ExitStack() as stack:
        server = stack.enter_context(
            embedded.start(home / "postgres", port=port, host_auth="trust")
        )
        server.sql("create role bench login")
        dsn = server.dsn("postgres", "bench", tcp=True)
        key = "GWAKBENCHMARK0001"
        secret = derive_secret(_MASTER_KEY.encode(), key, 1)
        gateway = stack.enter_context(_gateway(home, dsn, key))
        certificate = _certificate(home)
        tls_port = stack.enter_context(_tls(certificate, int(gateway.rpartition(":")[2])))
        token = token_for(_MASTER_KEY.encode(), subject="bench", lifetime=3_600)
        plain = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(home),
            "DSN": dsn,
            "PGPORT": str(port),
            "KEY": key,
            "SECRET": secret,
            "TOKEN": token,
            "PGSLUICE_TOKEN": token,
            "URL": gateway,
            "PGSLUICE_URL": gateway,
        }
        url = f"https://localhost:{tls_port}"
        own = {"URL": url, "PGSLUICE_URL": url, "CA": str(certificate)}
        own |= {"PGSLUICE_CAFILE": str(certificate)}
        yield {"plain": plain, "tls": {**plain, **own}}


@contextmanager
def _gateway(home: Path, dsn: str, key: str) -> Iterator[str]:
    host, _, port = dsn.partition("@")[2].partition("/")[0].rpartition(":")
    config = home / "gateway.toml"
    config.write_text(
        f"""
[server]
port = 0
admin_port = 0
[auth]
master_key = "{_MASTER_KEY}"
[auth.keys.{key}]
principal = "bench"
[targets.main]
hosts = ["{host}:{port}"]
database = "postgres"
tls = "disable"
resources = ["{RESOURCE}"]
[targets.main.logins.app]
user = "bench"
secrets = ["{SECRET}"]
[[policy]]
name = "all"
resources = ["*"]
secrets = ["*"]
"""
    )
    environment = {name: text for name, text in os.environ.items() if "PGSLUICE" not in name}
    environment.pop("DATABASE_URL", None)
    environment["PORT"] = "0"
    log = home / "gateway.log"
    with log.open("w") as err:
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        process = subprocess.Popen(command, env=environment, stdout=err, stderr=err)
        try:
            while not (found := _LISTENS.search(log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(f"the gateway did not start:\n{log.read_text()}")
                time.sleep(0.02)
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait()


def _certificate(home: Path) -> Path:
    """A certificate and its key, for localhost, in one file."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = home / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextmanager
def _tls(certificate: Path, port: int) -> Iterator[int]:
    """An end of TLS in front of *port*, in a thread of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    ready: list[int] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ssl.SSLError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, inner[1]), pass_on(inner[0], writer))

    async def body() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        ready.append(server.sockets[0].getsockname()[1])
        started.set()

    def run() -> None:
        loop.run_until_complete(body())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


if __name__ == "__main__":
    main()
