"""For tests of yours: a running gateway with a PostgreSQL of its own, in one line.

    pytest_plugins = ["pgsluice.testing"]            # in conftest.py

    def test_orders(pgsluice_gateway):               # one for the whole run
        db = pgsluice_gateway.connect()

The database `app` belongs to the login that the gateway uses and starts empty. Needs the
gateway: `pip install pgsluice-gateway[local]`.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .sync import Client

_LISTENS = re.compile(r"listens on (http://127\.0\.0\.1:\d+)")
_PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class TestGateway:
    """Where it is and how to be let in."""

    __test__ = False

    url: str
    token: str = field(repr=False)
    dsn: str
    """Of the database behind it, for what has to go around the gateway."""

    def connect(self, **options: Any) -> Client:
        """A client; *options* are those of `Client`."""
        return Client(self.url, **{"token": self.token, **options})


@contextmanager
def gateway(**environment: str) -> Iterator[TestGateway]:
    """A gateway and a PostgreSQL, both gone at the end; call it in the main thread.

    Args:
        environment: Settings of the gateway, as its environment has them.
    """
    try:
        from gateway.cli import embedded
        from gateway.cli.token import token_for
    except ImportError as missing:
        raise RuntimeError(
            "pgsluice.testing needs the gateway: pip install pgsluice-gateway[local]"
        ) from missing
    # PostgreSQL's own user has to get in when root runs the tests.
    with tempfile.TemporaryDirectory(prefix="pgsluice-") as home:
        Path(home).chmod(0o711)
        port, master = embedded.free_port(), secrets.token_hex(32)
        fast = {"fsync": "off", "full_page_writes": "off"}
        with embedded.start(
            Path(home) / "data", port=port, host_auth="trust", settings=fast
        ) as server:
            server.sql("create role app login")
            server.sql("create database app owner app")
            dsn = server.dsn("app", "app", tcp=True)
            settings = {name: text for name, text in os.environ.items() if "PGSLUICE" not in name}
            settings |= {
                "DATABASE_URL": dsn,
                "PORT": "0",
                "PGSLUICE_SERVER__ADMIN_PORT": "0",
                "PGSLUICE_AUTH__MASTER_KEY": master,
                **environment,
            }
            with _served(settings, Path(home) / "gateway.log") as url:
                token = token_for(master.encode(), subject="test", lifetime=86_000)
                yield TestGateway(url, token, dsn)


@contextmanager
def _served(settings: dict[str, str], log: Path) -> Iterator[str]:
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve"],
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        end = time.monotonic() + _PATIENCE
        while not (found := _LISTENS.search(log.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the gateway did not start:\n{log.read_text()}")
            time.sleep(0.02)
        yield found[1]
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def pgsluice_gateway() -> Iterator[TestGateway]:
    """A running gateway with an embedded database, for the whole run."""
    with gateway() as running:
        yield running


@pytest.fixture
def pgsluice_client(pgsluice_gateway: TestGateway) -> Iterator[Client]:
    """A client of `pgsluice_gateway`."""
    with pgsluice_gateway.connect() as client:
        yield client
