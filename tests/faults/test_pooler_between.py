"""A pooler between gateway and database: what still holds, and what is said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from gateway.cli import embedded
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_ledger import Senders, at_port, install_ledger, make_table
from tests.fix_postgres import APP_USER, Database
from tests.fix_tools import debian

pytestmark = pytest.mark.slow


@contextmanager
def pooler(database: Database, mode: str, home: Path) -> Iterator[int]:
    """The port of Debian's PgBouncer over *database*."""
    program, port = debian("pgbouncer"), embedded.free_port()
    config = home / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={database.server.port} user={APP_USER}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = 8\n"
        "ignore_startup_parameters = extra_float_digits,default_transaction_read_only,client_connection_check_interval,search_path,statement_timeout,idle_in_transaction_session_timeout,idle_session_timeout,intervalstyle,bytea_output,jit,lc_messages,row_security,lock_timeout,options\n"
    )
    config.chmod(0o644)
    for folder in (home, *list(home.parents)[:3]):
        folder.chmod(0o755)
    # It refuses to be root.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with subprocess.Popen([program, "-q", *user, str(config)], stderr=subprocess.DEVNULL) as child:
        try:
            until(lambda: not embedded.port_is_free(port), "PgBouncer does not listen")
            yield port
        finally:
            child.kill()


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_x(database: Database, mode: str, tmp_path: Path) -> None:
    install_ledger(database)
    make_table(database)
    with pooler(database, mode, tmp_path) as port:
        with running(at_port(settings_for(database), port), database) as gateway:
            print(gateway.execute("select 1"))
            print(httpx2.get(gateway.url + "/readyz").text)
            senders = Senders(gateway)
            for _ in range(6):
                senders.send("/execute", {"sql": "insert into did values ($1)", "parameters": ["a"]}, "k")
            for a in senders.join():
                print(a.status_code, a.headers.get("x-gateway-idempotency"), a.text)
            print(database.sql("select count(*) from did"))
