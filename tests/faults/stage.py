"""Where a run takes place: a PostgreSQL, a subject over it, a bad network on both sides.

    senders ── near ── subject ── far ── PostgreSQL

`near` and `far` are our fault proxy. The subject can be killed and started again, and the
server too; whoever connects keeps the address of the proxy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gateway.cli import embedded, programs
from gateway.cli.failing import EmbeddedError
from gateway.core import gw_schema
from gateway.core.keys import derive_secret
from tests.fix_gateway import KEY_ID, PROCESS_MASTER_KEY, RESOURCE, SECRET, Process, process
from tests.fix_network import Proxy
from tests.fix_postgres import APP_USER, Database, memory_folder
from tests.fix_tools import ROOT, debian, node_project, python_environment

from .operations import SCHEMA, STATEMENTS, Operation

DATABASE = "app"
CONNECTIONS = 8
MAIN = ("client", "js", "boto3")


class Subject(ABC):
    """What stands between the senders and the database, as a process."""

    drivers: tuple[str, ...] = ()
    """Who sends the load."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.stack = ExitStack()

    @abstractmethod
    def start(self) -> None:
        """Start it; senders are led to it."""

    def kill(self) -> None:
        """SIGKILL, and start it again."""
        # Who comes meanwhile is kept waiting, as a load balancer does.
        self.stage.near.slow_connect = True
        self.stack.close()
        self.start()
        self.stage.near.slow_connect = False

    def replace(self) -> None:
        """Another one takes over; SIGTERM to the old one, which may finish."""
        old, self.stack = self.stack, ExitStack()
        self.start()
        self.terminate(old)

    @abstractmethod
    def terminate(self, old: ExitStack) -> None:
        """End the process of *old* in order."""

    def stop(self) -> None:
        """The run is over."""
        self.stack.close()

    def ask(self, keys: list[str]) -> list[str]:
        """What became of calls whose callers do not know."""
        return ["unknown"] * len(keys)

    def reach(self) -> dict[str, Any]:
        """What drivers are told."""
        return {"url": f"http://127.0.0.1:{self.stage.near.port}"}


class Ours(Subject):
    """`pgsluice serve`, with the ledger in the database."""

    drivers = MAIN

    def start(self) -> None:
        """Start it, on a port of its own."""
        config = self.stage.home / "gateway.toml"
        config.write_text(
            f'[auth.keys.{KEY_ID}]\nprincipal = "tester"\n'
            f'[targets.main]\nhosts = ["127.0.0.1:{self.stage.far.port}"]\ntls = "disable"\n'
            f'database = "{DATABASE}"\nresources = ["{RESOURCE}"]\n'
            f"[targets.main.pool]\nmax_connections = {CONNECTIONS}\n"
            # Who lost its transaction leaves it open, with its locks.
            "[targets.main.transactions]\nidle_timeout = 5\n"
            f'[targets.main.logins.app]\nuser = "{APP_USER}"\nsecrets = ["{SECRET}"]\n'
            '[[policy]]\nname = "all"\nresources = ["*"]\nsecrets = ["*"]\n'
        )
        self.gateway: Process = self.stack.enter_context(
            process(self.stage.database, config, LOG_LEVEL="error", SERVER__DRAIN_TIMEOUT="5")
        )
        self.stage.near.target = self.gateway.port

    def terminate(self, old: ExitStack) -> None:
        """SIGTERM; it drains, and its open connections end when it does."""
        gateway = self._of(old)
        gateway.signal(signal.SIGTERM)
        gateway.end()
        old.close()

    def replace(self) -> None:
        """As a rolling restart does it."""
        self._old = self.gateway
        super().replace()

    def _of(self, _: ExitStack) -> Process:
        return self._old

    def ask(self, keys: list[str]) -> list[str]:
        """`GET /outcomes/{key}`."""
        with self.gateway.http() as client:
            answers = [client.get(f"/outcomes/{key}").json() for key in keys]
        return [answer.get("outcome", "unknown") for answer in answers]

    def reach(self) -> dict[str, Any]:
        """Address, token and signing key."""
        return {
            **super().reach(),
            "token": self.gateway.token(),
            "access_key": KEY_ID,
            "secret_key": derive_secret(PROCESS_MASTER_KEY.encode(), KEY_ID, 1),
            "resource": RESOURCE,
            "secret": SECRET,
            "database": DATABASE,
        }


class Naive(Subject):
    """`tests.faults.naive`."""

    drivers = ("naive",)

    def start(self) -> None:
        """Start it, on a port of its own."""
        dsn = f"postgresql://{APP_USER}@127.0.0.1:{self.stage.far.port}/{DATABASE}?sslmode=disable"
        self.process = self.stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.faults.naive", dsn],
                cwd=ROOT, stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        self.stack.callback(self.process.kill)
        assert self.process.stdout is not None
        self.stage.near.target = int(self.process.stdout.readline())

    def replace(self) -> None:
        """As a rolling restart does it."""
        self._old = self.process
        super().replace()

    def terminate(self, old: ExitStack) -> None:
        """SIGTERM; uvicorn finishes what runs."""
        self._old.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._old.wait(5)
        old.close()


class PgBouncer(Subject):
    """Debian's PgBouncer in transaction mode; its senders use psycopg."""

    drivers = ("psycopg",)

    def start(self) -> None:
        """Start it, on a port of its own."""
        program = debian("pgbouncer")
        port = embedded.free_port()
        config = self.stage.home / f"pgbouncer-{port}.ini"
        config.write_text(
            f"[databases]\n* = host=127.0.0.1 port={self.stage.far.port} user={APP_USER}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {CONNECTIONS}\n"
            "server_tls_sslmode = disable\nserver_login_retry = 0.5\n"
            "log_connections = 0\nlog_disconnections = 0\nlog_stats = 0\nlog_pooler_errors = 0\n"
        )
        config.chmod(0o644)
        # It refuses to be root.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        self.process = self.stack.enter_context(
            subprocess.Popen([program, "-q", *user, str(config)], stderr=subprocess.DEVNULL)
        )
        self.stack.callback(self.process.kill)
        self.stage.near.target = port

    def replace(self) -> None:
        """SIGINT lets transactions end; another one takes over."""
        self._old = self.process
        super().replace()

    def terminate(self, old: ExitStack) -> None:
        """Its safe shutdown."""
        self._old.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._old.wait(5)
        old.close()

    def reach(self) -> dict[str, Any]:
        """A URL for libpq."""
        port = self.stage.near.port
        dsn = f"postgresql://{APP_USER}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"
        return {"dsn": dsn}


SUBJECTS: dict[str, Callable[[Stage], Subject]] = {
    "pgsluice": Ours,
    "naive": Naive,
    "pgbouncer": PgBouncer,
}


class Stage:
    """A server, two proxies, a subject; a context manager."""

    def __init__(self, subject: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="pgsluice-faults-", dir=memory_folder()))
        self.home.chmod(0o711)
        self.binaries = programs.find_binaries()
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.home, ignore_errors=True)
        self._servers = 0
        self.moments: list[float] = []
        """When faults struck, seconds since the epoch."""
        try:
            self._open(subject)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, subject: str) -> None:
        self.server = self.start_server(self.next_data())
        self._stack.callback(lambda: self.server.stop())
        self.server.sql(f"create role {APP_USER} login; create role copier login replication")
        with (self.server.data / "pg_hba.conf").open("a") as rules:
            rules.write("host replication copier 127.0.0.1/32 trust\n")
        self.server.sql(f"select pg_reload_conf(); create database {DATABASE}")
        quiet = "set client_min_messages = warning;\n"
        self.sql(quiet + SCHEMA + gw_schema.install(["ledger"], ("public",)))
        self.far = self._stack.enter_context(Proxy(self.server.port))
        self.near = self._stack.enter_context(Proxy(1))
        self.subject = SUBJECTS[subject](self)
        self._stack.callback(lambda: self.subject.stop())
        self.subject.start()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def database(self) -> Database:
        """The database as fixtures know it; reached past the proxies."""
        return Database(self.server, DATABASE)

    def sql(self, script: str) -> str:
        """Run *script* past the proxies."""
        return self.server.sql(script, database=DATABASE)

    def strike(self) -> None:
        """A fault happens now."""
        self.moments.append(time.time())

    def next_data(self) -> Path:
        """A folder for another server."""
        self._servers += 1
        return self.home / f"server-{self._servers}"

    def start_server(self, data: Path, port: int | None = None) -> embedded.Embedded:
        """A server on *data*. What it has said is committed is kept, whatever is killed."""
        return embedded.start(
            data,
            port=port or embedded.free_port(),
            max_connections=100,
            binaries=self.binaries,
            host_auth="trust",
            settings={
                "wal_level": "replica",
                "max_wal_senders": "4",
                "hot_standby": "on",
                "wal_keep_size": "64MB",
                "max_wal_size": "512MB",
                "deadlock_timeout": "200ms",
                # Only the machine's own crash would need it, and nobody crashes that.
                "fsync": "off",
                "full_page_writes": "off",
            },
        )

    def restart_server(self, *, kill: bool) -> None:
        """Stop it, in order or by SIGKILL of the postmaster, and start it again."""
        old = self.server
        self.strike()
        if kill:
            os.kill(old.pid, signal.SIGKILL)
        old.stop()
        self.strike()
        self.server = self.start_again(old)

    def start_again(self, old: embedded.Embedded) -> embedded.Embedded:
        """A server that was stopped; the sessions of a killed one take a moment to notice."""
        end = time.monotonic() + 60
        while True:
            try:
                return self.start_server(old.data, old.port)
            except EmbeddedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    # -- the load ----------------------------------------------------------------------

    def drive(
        self, name: str, operations: list[Operation], callers: int, results: Path
    ) -> subprocess.Popen[bytes]:
        """Start a sender of *operations*."""
        results.touch()
        config = {
            **self.subject.reach(),
            "operations": [operation._asdict() for operation in operations],
            "statements": STATEMENTS,
            "results": str(results),
            "callers": callers,
        }
        file = results.with_suffix(".config")
        file.write_text(json.dumps(config))
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        folder = ROOT / "tests" / "faults"
        if name == "js":
            command = [debian("node", "nodejs"), "faults.mjs"]
            where = node_project(ROOT / "tests" / "wire" / "js")
        elif name == "psycopg":
            requirements = ROOT / "tests" / "client" / "requirements-sqlalchemy.txt"
            command = [str(python_environment(requirements)), str(folder / "drive_psycopg.py")]
            where = ROOT
        else:
            command, where = [sys.executable, "-m", f"tests.faults.drive_{name}"], ROOT
        log = results.with_suffix(".log").open("wb")
        with log:
            return subprocess.Popen([*command, str(file)], cwd=where, env=environment, stderr=log)
