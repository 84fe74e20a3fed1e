"""Secrets and values of callers stay out of logs, metrics and foreign answers."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from gateway.cli.token import token_for
from tests.fix_postgres import Database

MASTER_KEY = "Q2FuYXJ5TWFzdGVyS2V5VGhhdE5vYm9keU1heVNlZSE="
PASSWORD = "canarypassword7151"
LITERAL = "canaryliteral7152"
PARAMETER = "canaryparameter7153"
WRONG = "canarywrongtoken7154"


@pytest.mark.process
def test_canaries_are_nowhere(database: Database) -> None:
    database.sql("create table t (n text primary key); grant all on t to public")
    url = database.app_tcp_dsn.replace("app_user@", f"app_user:{PASSWORD}@")
    assert PASSWORD in url
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=Path(__file__).parents[1],
        env={
            "DATABASE_URL": url + "?sslmode=disable",
            "PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY,
            "PGSLUICE_SERVER__ADMIN_PORT": "0",
            "PORT": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    token = token_for(MASTER_KEY.encode(), subject="tester", lifetime=60)
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            where, _, rest = line.partition("listens on ")[2].partition(", admin on ")
            bodies: list[str] = []
            insert = {"sql": "insert into t values ($1)", "parameters": [PARAMETER]}
            asks = [
                {"sql": f"select '{LITERAL}' where false"},
                {"sql": f"select '{LITERAL}' from nowhere"},
                {"sql": "select $1::text where false", "parameters": [PARAMETER]},
                insert,
                insert,  # unique violation: DETAIL holds the key
                {"sql": f"do $$ begin raise exception 'x' using detail = '{LITERAL}'; end $$"},
                {"sql": "select $1::uuid", "parameters": [{"a": PARAMETER}]},
            ]
            with httpx2.Client(base_url=where, timeout=30) as client:
                for ask in asks:
                    for bearer in (token, WRONG, token[:-4] + "AAAA"):
                        headers = {"authorization": f"Bearer {bearer}"}
                        answer = client.post("/execute", json=ask, headers=headers)
                        bodies.append(answer.text)
                        bodies.append(str(answer.headers))
                        assert answer.status_code == 401 or bearer == token
            metrics = httpx2.get(rest.strip() + "/metrics").text
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=30)
            assert process.returncode == 0
        finally:
            process.kill()
    everything = "\n".join([line, said, metrics, *bodies])
    for canary in (MASTER_KEY, PASSWORD, LITERAL, PARAMETER, WRONG, token, token[-20:]):
        assert canary not in everything
