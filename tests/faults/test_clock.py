"""The machine's clock jumps under a gateway that runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from gateway.cli.token import token_for
from tests.fix_gateway import _LISTENS, PROCESS_MASTER_KEY, Process, until
from tests.fix_ledger import install_ledger, make_table
from tests.fix_postgres import Database
from tests.fix_tools import ROOT, debian

pytestmark = [pytest.mark.slow, pytest.mark.process]


@contextmanager
def at_another_time(database: Database, clock: Path) -> Iterator[Process]:
    """`pgsluice serve`, whose clock is as far from ours as the file *clock* says."""
    debian("faketime")
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("libfaketime is not where Debian puts it")
    variables = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": database.app_tcp_dsn + "?sslmode=disable",
        "PORT": "0",
        "PGSLUICE_AUTH__MASTER_KEY": PROCESS_MASTER_KEY,
        "PGSLUICE_SERVER__ADMIN_PORT": "0",
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        # An adjusted clock moves the time of day, never the clock that timers use.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    command = [sys.executable, "-m", "gateway", "serve"]
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    ) as popen:  # fmt: skip
        try:
            assert popen.stderr is not None
            line = popen.stderr.readline()
            found = _LISTENS.search(line)
            assert found, line
            it = Process(popen, found[1], found[2] or "")
            yield it
            assert popen.poll() is None, it.said
        finally:
            popen.kill()


@pytest.mark.parametrize("jump", ["+3600", "-3600"], ids=["forwards", "backwards"])
def test_a_clock_that_jumps_by_an_hour_refuses_what_is_out_of_time_and_breaks_nothing(
    database: Database, tmp_path: Path, jump: str
) -> None:
    install_ledger(database)
    make_table(database)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    master = PROCESS_MASTER_KEY.encode()
    # Made long ago, it ends between the two times.
    forwards = jump == "+3600"
    end = 600 if forwards else -600
    edge = token_for(master, subject="tester", now=time.time() - 7_200, lifetime=7_200 + end)
    long = token_for(master, subject="tester", lifetime=20_000)
    before, after = (200, 401) if forwards else (401, 200)
    with at_another_time(database, clock) as gateway:

        def write(token: str, key: str) -> int:
            with gateway.http(token) as client:
                body = {"sql": "insert into did select 'a' from pg_sleep(0.01)", "timeout": 30}
                return client.post(
                    "/execute", json=body, headers={"idempotency-key": key}
                ).status_code

        assert (write(edge, "edge"), write(long, "1")) == (before, 200)
        clock.write_text(jump)
        until(lambda: write(edge, "edge") == after, "the clock did not jump")
        # Limits in seconds count on as before, the pool lends, and a new key is taken.
        assert write(long, "2") == 200
        # What was remembered is remembered: that is judged by the database's clock.
        assert write(long, "1") == 200
        clock.write_text("+0")
        until(lambda: write(edge, "edge") == before, "the clock did not come back")
        assert write(long, "3") == 200
        assert httpx2.get(gateway.url + "/readyz").status_code == 200
    # One for each key, whatever the clock said.
    assert database.sql("select count(*) from did") == "4"
