"""A pooler between gateway and database is noticed, and nothing is done over it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.cli import embedded
from gateway.postgres.connect import _SESSION
from tests.fix_gateway import running, settings_for, until
from tests.fix_ledger import at_port, install_ledger, make_table
from tests.fix_postgres import APP_USER, Database
from tests.fix_tools import debian

pytestmark = pytest.mark.slow

SETTINGS = (*_SESSION, "statement_timeout", "idle_in_transaction_session_timeout")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that every account may read: pytest's own is closed to the one PgBouncer has."""
    with tempfile.TemporaryDirectory(prefix="pgsluice-pooler-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def pooler(database: Database, mode: str, home: Path, ignored: Sequence[str]) -> Iterator[int]:
    """The port of Debian's PgBouncer over *database*."""
    program, port = debian("pgbouncer"), embedded.free_port()
    config = home / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={database.server.port} user={APP_USER}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = 8\n"
        f"ignore_startup_parameters = {', '.join(ignored)}\n"
    )
    config.chmod(0o644)
    # It refuses to be root.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with subprocess.Popen([program, "-q", *user, str(config)], stderr=subprocess.DEVNULL) as child:
        try:
            until(lambda: not embedded.port_is_free(port), "PgBouncer does not listen")
            yield port
        finally:
            child.kill()


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("ignored", [True, False], ids=["settings dropped", "settings refused"])
def test_a_pooler_that_does_not_keep_a_sessions_settings_is_not_worked_over(
    database: Database, mode: str, ignored: bool, home: Path
) -> None:
    """Silently dropped, they would turn promises into wishes."""
    install_ledger(database)
    make_table(database)
    with (
        pooler(database, mode, home, SETTINGS if ignored else ()) as port,
        running(at_port(settings_for(database), port), database) as gateway,
        gateway.http() as client,
    ):
        body = {"sql": "insert into did values ('a')", "timeout": 2}
        answer = client.post("/execute", json=body, headers={"idempotency-key": "k"})
        document = answer.json()
        assert (answer.status_code, document["code"]) == (503, "database_unavailable")
        assert document["outcome"] == "not_executed"
        if ignored:
            assert "pooler" in document["hint"]
    assert database.sql("select count(*) from did") == "0"
