"""A running gateway: the real server on a loopback socket, in a thread with its own event loop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import pytest

from gateway.cli import serve
from gateway.cli.token import token_for
from gateway.core.keys import StaticKey, derive_secret
from gateway.core.policy import Rule
from gateway.observe.logs import RequestLog
from gateway.settings import (
    AuthSettings,
    LoginSettings,
    PoolSettings,
    ServerSettings,
    Settings,
    TargetSettings,
)
from tests.fix_canary import Overheard
from tests.fix_postgres import Database

MASTER = b"test master key, 32 bytes or more"
KEY_ID = "GWAKTESTKEY000001"
OTHER_KEY_ID = "GWAKTESTKEY000002"
RESOURCE = "arn:aws:rds:us-east-1:123456789012:cluster:main"
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:main-AbCdEf"


PATIENCE = 60.0
"""Seconds after which waiting for something is given up; nothing is measured."""


def until(what: Callable[[], bool], why: str) -> None:
    """Ask again and again until *what* is so."""
    give_up = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < give_up, why


@dataclass
class Gateway:
    """Where it is and how to be let in."""

    url: str
    admin_url: str
    database: str
    dsn: str
    settings: Settings
    token: str = field(repr=False)
    access_key: str = KEY_ID
    secret_key: str = field(default_factory=lambda: derive_secret(MASTER, KEY_ID, 1), repr=False)
    resource_arn: str = RESOURCE
    secret_arn: str = SECRET
    stop: Callable[[], None] = field(default=lambda: None, repr=False)
    """Tell it to stop, as SIGTERM does."""
    overheard: Overheard | None = field(default=None, repr=False)

    @property
    def port(self) -> int:
        """The port of `url`."""
        return int(self.url.rpartition(":")[2])

    @contextmanager
    def http(self, token: str | None = None) -> Iterator[httpx2.Client]:
        """An HTTP client with the token of this gateway."""
        headers = {"authorization": f"Bearer {token or self.token}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=60) as client:
            if self.overheard is not None:
                client.event_hooks["request"].append(self.overheard.was_sent)
            yield client

    def execute(self, sql: str, parameters: Any = None, **more: Any) -> Any:
        """`POST /execute`; the parsed answer, whatever its status."""
        body = {"sql": sql, **more}
        if parameters is not None:
            body["parameters"] = parameters
        with self.http() as client:
            return client.post("/execute", json=body).json()


def settings_for(database: Database, *, user: str | None = None, **pool: Any) -> Settings:
    """One target `main` on *database*, one key, everything allowed."""
    target = TargetSettings(
        name="main",
        hosts=((str(database.server.socket_dir), database.server.port or 5432),),
        database=database.name,
        databases=("postgres",),
        tls="disable",
        resources=(RESOURCE,),
        logins={"app": LoginSettings(user=user or database.app_user, secrets=(SECRET,))},
        pool=PoolSettings(**pool),
    )
    return Settings(
        server=ServerSettings(port=0, admin_port=0, drain_timeout=5.0),
        auth=AuthSettings(
            master_key=MASTER,
            keys={
                KEY_ID: (StaticKey(KEY_ID, "tester", 1, None, False),),
                OTHER_KEY_ID: (StaticKey(OTHER_KEY_ID, "other", 1, None, False),),
            },
        ),
        targets={"main": target},
        policy=(Rule(name="all", resources=("*",), secrets=("*",)),),
        log_level="off",
    )


@contextmanager
def running(settings: Settings, database: Database) -> Iterator[Gateway]:
    """The gateway of *settings*, stopped at the end."""
    ready = threading.Event()
    bound: list[serve.Bound] = []
    stops: list[Any] = []
    overheard = Overheard(MASTER, KEY_ID, OTHER_KEY_ID)
    log: Any = RequestLog
    if settings.log_level == "off":
        settings = replace(settings, log_level="debug")
        log = partial(RequestLog, out=overheard)

    def tell(where: serve.Bound) -> None:
        bound.append(where)
        ready.set()

    def body() -> None:
        try:
            serve.run(settings, ready=tell, stopper=stops.append)
        finally:
            ready.set()

    thread = threading.Thread(target=body, name="gateway")
    try:
        with patch("gateway.app.RequestLog", log):
            thread.start()
            assert ready.wait(30) and bound, "the gateway did not start"
        yield Gateway(
            bound[0].url,
            bound[0].admin_url or "",
            database.name,
            database.dsn,
            settings,
            token=token_for(MASTER, subject="tester", lifetime=86_000),
            stop=stops[0],
            overheard=overheard,
        )
    finally:
        if bound and bound[0].admin_url:
            with suppress(httpx2.HTTPError):
                overheard.write(httpx2.get(bound[0].admin_url + "/metrics").content)
        if stops:
            stops[0]()
        thread.join(30)
        assert not thread.is_alive()
        overheard.check()


PROCESS_MASTER_KEY = "Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZSE="
_LISTENS = re.compile(r"listens on (\S+?)(?:, admin on (\S+))?\n")


class Process:
    """A gateway as an operator runs it: a process of its own, with signals."""

    def __init__(self, process: subprocess.Popen[str], url: str, admin_url: str) -> None:
        self.process = process
        self.url = url
        self.admin_url = admin_url
        self._said: list[str] = []
        # Read all the time: a pipe that is full would stop the gateway.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said.append(line)

    @property
    def said(self) -> str:
        """What it has said on standard error since it began to listen."""
        return "".join(self._said)

    @property
    def port(self) -> int:
        """The port of `url`."""
        return int(self.url.rpartition(":")[2])

    def token(self, subject: str = "tester") -> str:
        """A token that it accepts."""
        return token_for(PROCESS_MASTER_KEY.encode(), subject=subject, lifetime=3_600)

    @contextmanager
    def http(self, token: str | None = None) -> Iterator[httpx2.Client]:
        """An HTTP client with a token."""
        headers = {"authorization": f"Bearer {token or self.token()}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=60) as client:
            yield client

    def execute(self, sql: str, **more: Any) -> httpx2.Response:
        """`POST /execute` on a connection of its own."""
        with self.http() as client:
            return client.post("/execute", json={"sql": sql, **more})

    def metric(self, line: str) -> float:
        """The value of the series that begins with *line*; 0 if there is none."""
        page = httpx2.get(self.admin_url + "/metrics", timeout=60).text
        found = [each for each in page.splitlines() if each.startswith(line)]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def drain(self) -> None:
        """SIGTERM; returns when it takes no new work."""
        self.signal(signal.SIGTERM)
        until(lambda: httpx2.get(self.url + "/readyz").status_code == 503, "it is not draining")

    def end(self) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


@contextmanager
def process(database: Database, config: Path | None = None, **environ: str) -> Iterator[Process]:
    """`pgsluice serve` on *database*, or as *config* says, killed at the end.

    Args:
        environ: Further settings, such as `SERVER__DRAIN_TIMEOUT="1"`; `AUTH__MASTER_KEY=""`
            for none.
    """
    variables = {
        "PATH": os.environ["PATH"],
        "PGSLUICE_AUTH__MASTER_KEY": PROCESS_MASTER_KEY,
        "PGSLUICE_SERVER__ADMIN_PORT": "0",
        "PORT": environ.pop("SERVER__PORT", "0"),
        **{f"PGSLUICE_{name}": value for name, value in environ.items()},
    }
    if not variables["PGSLUICE_AUTH__MASTER_KEY"]:
        del variables["PGSLUICE_AUTH__MASTER_KEY"]  # *config* has it
    if config is None:
        variables["DATABASE_URL"] = database.app_tcp_dsn + "?sslmode=disable"
    else:
        variables["PGSLUICE_CONFIG"] = str(config)
    popen = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=Path(__file__).parents[1],
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with popen:
        try:
            assert popen.stderr is not None
            line = popen.stderr.readline()
            found = _LISTENS.search(line)
            assert found, line + popen.stderr.read()
            it = Process(popen, found[1], found[2] or "")
            try:
                yield it
            finally:
                popen.kill()
                it.end()
        finally:
            popen.kill()


def settled(gateway: Gateway) -> None:
    """Wait until a gateway that has just started has had its look at the database."""

    def known() -> bool:
        targets = httpx2.get(f"{gateway.url}/readyz").json()["targets"]
        return all(each["idempotency"] != "unknown" for each in targets.values())

    until(known, "the gateway never looked")


@pytest.fixture
def gateway(database: Database) -> Iterator[Gateway]:
    """A gateway over a fresh database."""
    with running(settings_for(database), database) as it:
        yield it


@pytest.fixture(scope="session")
def sample_gateway(sample_database: Database) -> Iterator[Gateway]:
    """A gateway over the shared sample database."""
    with running(settings_for(sample_database), sample_database) as it:
        yield it


@pytest.fixture(scope="session")
def shared_database(postgres: Any) -> Database:
    """A database for tests that read, or clean up behind themselves."""
    postgres.sql("create database shared strategy wal_log")
    return Database(postgres, "shared")


@pytest.fixture(scope="session")
def shared_gateway(shared_database: Database) -> Iterator[Gateway]:
    """One gateway for many tests that read only: starting one costs more than such a test."""
    with running(settings_for(shared_database), shared_database) as it:
        yield it


__all__ = ["Gateway", "Path", "Process", "process", "replace", "running", "settings_for"]
