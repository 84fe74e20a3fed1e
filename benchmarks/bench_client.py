"""A cold start: a fresh process from its beginning to the first row, with each client.

    python -m benchmarks.bench_client [--rounds 15]

PostgreSQL, the gateway and, in front of either, an end of TLS run beside each other on
loopback. Each client imports itself, connects and reads one row in a process of its
own; all take turns in every round. The figure is the median less that of an interpreter
that does nothing. boto3 and httpx talk to the gateway as pgsluice does, the drivers to
PostgreSQL itself. The other clients come from an environment of their own, which their
list of packages makes. Writes `results/client.*` and the page on performance.
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
from typing import Any

from gateway.cli import embedded, programs
from gateway.cli.token import token_for
from gateway.core.keys import derive_secret

from . import plot
from .servers import describe, machine

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
ca = os.environ.get("CA")
tls = {"sslmode": "verify-full", "sslrootcert": ca} if ca else {}
with psycopg.connect(os.environ["DSN"], **tls) as c:
    assert c.execute("select 1").fetchone() == (1,)
"""
_ASYNCPG = """
import asyncio, asyncpg, os, ssl
ca = os.environ.get("CA")
async def main():
    tls = ssl.create_default_context(cafile=ca) if ca else None
    c = await asyncpg.connect(os.environ["DSN"], ssl=tls)
    assert await c.fetchval("select 1") == 1
    await c.close()
asyncio.run(main())
"""
_PG8000 = """
import os, pg8000.dbapi, ssl
ca = os.environ.get("CA")
c = pg8000.dbapi.connect(user="bench", host=os.environ["PGHOST"], port=int(os.environ["PGPORT"]),
                         database="postgres",
                         ssl_context=ssl.create_default_context(cafile=ca) if ca else None)
k = c.cursor(); k.execute("select 1"); assert tuple(k.fetchone()) == (1,); c.close()
"""
_LIBRARIES = ("boto3", "httpx", "psycopg", "asyncpg", "pg8000")
_BARE = "bare interpreter"
_CODE = {
    _BARE: "pass",
    "pgsluice": _PGSLUICE,
    "boto3 rds-data": _BOTO3,
    "httpx": _HTTPX,
    "psycopg, direct": _PSYCOPG,
    "asyncpg, direct": _ASYNCPG,
    "pg8000, direct": _PG8000,
}
_CLIENTS: dict[str, tuple[str, str]] = {
    **{name: (code, "plain") for name, code in _CODE.items()},
    **{f"{name}, TLS": (code, "tls") for name, code in _CODE.items() if name != _BARE},
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
    result = {"machine": _machine(python), **_result(times, rounds)}
    print(table(result), end="")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "client.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "client.md").write_text(table(result))
    plot.PAGE.write_text(plot.page(plot.PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def _environment() -> str:
    from tests.fix_tools import python_environment

    os.environ["PGSLUICE_TEST_INSTALL"] = "1"
    return str(python_environment(Path(__file__).parent / "requirements-clients.txt"))


def _machine(python: str) -> dict[str, Any]:
    """What it was measured on, and with which clients."""
    given = machine(programs.find_binaries().version)
    names = ("cpu", "cores", "system", "python", "postgresql")
    ask = "import json, sys; from importlib.metadata import version; "
    ask += "print(json.dumps([version(name) for name in sys.argv[1:]]))"
    command = [python, "-I", "-c", ask, *_LIBRARIES]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    versions = dict(zip(_LIBRARIES, json.loads(found.stdout), strict=True))
    return {**{name: given[name] for name in names}, **versions}


def _measured(
    python: str, environments: dict[str, dict[str, str]], rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, (code, kind) in _CLIENTS.items():
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
                raise SystemExit(f"{name}:\n{done.stderr}")
            if turn:  # the first round fills the caches of the file system
                times.setdefault(name, []).append(took)
    return times


def _result(times: dict[str, list[float]], rounds: int) -> dict[str, Any]:
    medians = {name: statistics.median(each) for name, each in times.items()}
    bare = medians.pop(_BARE)
    boto3 = {tls: medians[f"boto3 rds-data{tls}"] - bare for tls in ("", ", TLS")}
    clients = [
        {
            "name": name,
            "ms": round(median - bare, 1),
            "boto3_ratio": round((median - bare) / boto3[", TLS" * name.endswith(", TLS")], 3),
        }
        for name, median in medians.items()
    ]
    return {"rounds": rounds, "bare_ms": round(bare, 1), "clients": clients}


def table(result: dict[str, Any]) -> str:
    """*result* as a table of Markdown."""
    lines = [
        describe(result["machine"]),
        f"Fresh process to first row, median of {result['rounds']}, over a bare interpreter of "
        f"{result['bare_ms']} ms:",
        "",
        "| client | ms | of boto3's |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {each['name']} | {each['ms']} | {each['boto3_ratio']:.2f} |"
        for each in result["clients"]
    ]
    return "\n".join(lines) + "\n"


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
        pg_tls_port = stack.enter_context(_tls(certificate, port, asks=True))
        token = token_for(_MASTER_KEY.encode(), subject="bench", lifetime=3_600)
        plain = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(home),
            "DSN": dsn,
            "PGHOST": "127.0.0.1",
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
        own |= {"PGHOST": "localhost", "PGPORT": str(pg_tls_port)}
        own["DSN"] = f"postgresql://bench@localhost:{pg_tls_port}/postgres"
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
def _tls(certificate: Path, port: int, *, asks: bool = False) -> Iterator[int]:
    """An end of TLS in front of *port*, in a thread of its own, for clients that ask or do not."""
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
        if asks:
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(context)
        inner = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, inner[1]), pass_on(inner[0], writer))

    async def body() -> None:
        tls = None if asks else context
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
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
