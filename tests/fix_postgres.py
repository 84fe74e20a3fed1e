"""A real PostgreSQL for tests: one server per test process, a fresh database per test.

`PGSLUICE_TEST_BINDIR` names the bin directory of another PostgreSQL to test against.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.cli import embedded, programs, sample

APP_USER = "app_user"
"""A login that is no superuser and owns nothing; it may create in `public`."""

GATEWAYS = "application_name = 'pgsluice' and datname like current_database() || '%'"
"""Backends of the test's own gateway in pg_stat_activity, not of those that tests share."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Database:
    """A database of the test server."""

    server: embedded.Embedded
    name: str
    app_user: str = APP_USER

    @property
    def dsn(self) -> str:
        """As superuser, over the unix socket."""
        return self.server.dsn(self.name)

    @property
    def app_dsn(self) -> str:
        """As the ordinary login, over the unix socket."""
        return self.server.dsn(self.name, self.app_user)

    @property
    def tcp_dsn(self) -> str:
        """As superuser, over TCP."""
        return self.server.dsn(self.name, tcp=True)

    @property
    def app_tcp_dsn(self) -> str:
        """As the ordinary login, over TCP."""
        return self.server.dsn(self.name, self.app_user, tcp=True)

    def sql(self, script: str, *, user: str = embedded.SUPERUSER) -> str:
        """Run *script* with psql; what it prints, unaligned, without headers."""
        return self.server.sql(script, database=self.name, user=user)


@pytest.fixture(scope="session")
def postgres_binaries() -> programs.PostgresBinaries:
    """The PostgreSQL that is tested against."""
    chosen = os.environ.get("PGSLUICE_TEST_BINDIR")
    return programs.find_binaries(Path(chosen) if chosen else None)


@pytest.fixture(scope="session")
def postgres(postgres_binaries: programs.PostgresBinaries) -> Iterator[embedded.Embedded]:
    """A server for this test process, on a unix socket and a TCP port, trusting everybody."""
    # Not pytest's own directory: that one is closed to the user that root runs PostgreSQL as.
    home = Path(tempfile.mkdtemp(prefix="pgsluice-test-", dir=memory_folder()))
    home.chmod(0o711)
    try:
        with embedded.start(
            home / "data",
            port=embedded.free_port(),
            max_connections=200,
            binaries=postgres_binaries,
            host_auth="trust",
            settings={
                "fsync": "off",
                "synchronous_commit": "off",
                "full_page_writes": "off",
                "autovacuum": "off",
                "max_prepared_transactions": "10",
                "max_wal_size": "256MB",
            },
        ) as server:
            server.sql(f"create role {APP_USER} login")
            server.sql(f"grant create on schema public to {APP_USER}", database="template1")
            yield server
    finally:
        shutil.rmtree(home, ignore_errors=True)


def memory_folder() -> Path | None:
    """A directory in memory with room for a server, if there is one.

    A database is made there in 0.025 s, on the disk of a virtual machine in 0.25 s.
    """
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30:
        return memory
    return None


@pytest.fixture
def database(postgres: embedded.Embedded) -> Iterator[Database]:
    """A fresh, empty database."""
    name = f"test_{next(_numbers)}"
    postgres.sql(f"create database {name} strategy wal_log")
    yield Database(postgres, name)
    postgres.sql(f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def sample_database(postgres: embedded.Embedded) -> Database:
    """The order fulfilment sample, shared: read it, or write and put back."""
    sample.load(postgres, "shop")
    return Database(postgres, "shop", app_user=sample.APP_ROLE)
