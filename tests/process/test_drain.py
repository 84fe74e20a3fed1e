"""SIGTERM: what runs is finished, what is open is rolled back, nobody new is let in."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from gateway.cli.token import token_for
from tests.fix_gateway import until
from tests.fix_postgres import GATEWAYS, Database

pytestmark = pytest.mark.process
MASTER_KEY = "Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZSE="
OURS = f"select count(*) from pg_stat_activity where {GATEWAYS}"


def test_terminated_gateway_finishes_what_runs(database: Database) -> None:
    database.sql("create table t (n int); grant all on t to public")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=Path(__file__).parents[2],
        env={
            "DATABASE_URL": database.app_tcp_dsn + "?sslmode=disable",
            "PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY,
            "PGSLUICE_SERVER__ADMIN_PORT": "0",
            "PORT": "0",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process, ThreadPoolExecutor(1) as thread:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().partition("listens on ")[2].partition(",")[0]
            token = token_for(MASTER_KEY.encode(), subject="tester", lifetime=60)
            headers = {"authorization": f"Bearer {token}"}
            with httpx2.Client(base_url=url, headers=headers, timeout=30) as client:
                transaction = client.post("/transactions", json={}).json()["transaction"]
                insert = {"sql": "insert into t values (1)", "transaction": transaction}
                assert client.post("/execute", json=insert).status_code == 200
                sql = (
                    "with w as (insert into t values (2) returning n) select n, pg_sleep(1) from w"
                )
                running = thread.submit(
                    httpx2.post, url + "/execute", json={"sql": sql}, headers=headers, timeout=30
                )
                until(
                    lambda: database.sql(OURS + " and wait_event = 'PgSleep'").strip() == "1",
                    "it never ran",
                )
                process.send_signal(signal.SIGTERM)
                codes: list[int] = []

                def refused() -> bool:
                    try:
                        codes.append(client.post("/execute", json={"sql": "select 1"}).status_code)
                    except httpx2.TransportError:
                        return True
                    return codes[-1] == 503

                until(refused, "new work is still taken")
                answer = running.result()
            assert (answer.status_code, answer.json()["rows"][0][0]) == (200, 2)
            process.communicate(timeout=30)
            assert process.returncode == 0
        finally:
            process.kill()
    until(lambda: database.sql(OURS).strip() == "0", "connections were left behind")
    assert database.sql("select n from t").split() == ["2"]
