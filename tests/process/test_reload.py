"""SIGHUP: the configuration is read again, and nobody who is being served notices."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import httpx2
import pytest

from gateway.core.keys import derive_secret
from tests.fix_gateway import (
    PATIENCE,
    PROCESS_MASTER_KEY,
    RESOURCE,
    SECRET,
    Process,
    process,
    until,
)
from tests.fix_postgres import GATEWAYS, Database

pytestmark = pytest.mark.process
OURS = f"from pg_stat_activity where {GATEWAYS}"
FIRST, SECOND = "GWAKFIRSTKEY000001", "GWAKSECONDKEY00002"


class Configuration:
    """The file that a gateway reads."""

    def __init__(self, file: Path, database: Database) -> None:
        self.file = file
        self.database = database
        self.user = database.app_user
        self.pool: dict[str, int] = {"max_connections": 2}
        self.keys: dict[str, str] = {FIRST: "one"}
        self.targets = ["main"]
        self.extra = ""
        self.policy = '[[policy]]\nname = "all"\nresources = ["*"]\nsecrets = ["*"]\n'

    def write(self) -> None:
        server = self.database.server
        lines = [self.extra]
        for id, principal in self.keys.items():
            lines.append(f'[auth.keys.{id}]\nprincipal = "{principal}"\n')
        for target in self.targets:
            lines.append(
                f'[targets.{target}]\nhosts = ["127.0.0.1:{server.port}"]\ntls = "disable"\n'
                f'database = "{self.database.name}"\n'
                f'resources = ["{RESOURCE}"]\n[targets.{target}.pool]'
            )
            lines += [f"{name} = {value}" for name, value in self.pool.items()]
            lines.append(
                f'[targets.{target}.logins.app]\nuser = "{self.user}"\nsecrets = ["{SECRET}"]\n'
            )
        self.file.write_text("\n".join(lines) + self.policy)


@pytest.fixture
def configuration(database: Database, tmp_path: Path) -> Configuration:
    database.sql("create table t (n int); grant all on t to public")
    it = Configuration(tmp_path / "gateway.toml", database)
    it.write()
    return it


@pytest.fixture
def gateway(configuration: Configuration, database: Database) -> Iterator[Process]:
    with process(database, configuration.file) as it:
        yield it


LOADED = 'pgsluice_config_reloads_total{outcome="loaded"}'
REFUSED = 'pgsluice_config_reloads_total{outcome="refused"}'


def reload(gateway: Process, series: str = LOADED) -> None:
    before = gateway.metric(series)
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.metric(series) == before + 1, "it was not read again")


def events(gateway: Process, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in gateway.said.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == event]


def by_key(gateway: Process, id: str) -> Any:
    client = boto3.client(
        "rds-data",
        endpoint_url=gateway.url,
        region_name="us-east-1",
        aws_access_key_id=id,
        aws_secret_access_key=derive_secret(PROCESS_MASTER_KEY.encode(), id, 1),
        config=botocore.config.Config(retries={"max_attempts": 0}),
    )
    try:
        return client.execute_statement(resourceArn=RESOURCE, secretArn=SECRET, sql="select 1")
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    finally:
        client.close()


class Load:
    """Callers that ask on and on: reads, writes, and transactions of two calls."""

    def __init__(self, gateway: Process, callers: int) -> None:
        self._gateway = gateway
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(callers)
        self._running = [self._threads.submit(self._ask, number) for number in range(callers)]
        self.answered = 0
        self.written = 0
        self._lock = threading.Lock()

    def _count(self, answer: httpx2.Response, written: int = 0) -> Any:
        assert answer.status_code in (200, 201), answer.text
        with self._lock:
            self.answered += 1
            self.written += written
        return answer.json()

    def _ask(self, number: int) -> None:
        write = {"sql": "insert into t values ($1::int)", "parameters": [number]}
        with self._gateway.http() as client:
            while not self._over.is_set():
                if number % 3 == 0:
                    self._count(client.post("/execute", json={"sql": "select pg_sleep(0.002)"}))
                elif number % 3 == 1:
                    self._count(client.post("/execute", json=write), 1)
                else:
                    begun = self._count(client.post("/transactions", json={}))
                    inside = {**write, "transaction": begun["transaction"]}
                    self._count(client.post("/execute", json=inside))
                    end = f"/transactions/{begun['transaction']}/commit"
                    self._count(client.post(end), 1)

    def goes_on(self) -> None:
        """Wait until some more has been answered than before the call."""
        before = self.answered
        until(
            lambda: self.answered > before + 20 or any(each.done() for each in self._running),
            "nobody is answered",
        )

    def stop(self) -> None:
        self._over.set()
        for each in self._running:
            each.result(PATIENCE)
        self._threads.shutdown()


@contextmanager
def load(gateway: Process, callers: int = 6) -> Iterator[Load]:
    it = Load(gateway, callers)
    try:
        yield it
    finally:
        it.stop()


def test_load_loses_nothing_while_everything_changes(
    gateway: Process, configuration: Configuration, database: Database
) -> None:
    server = database.server
    server.sql("create role another_user login")
    database.sql("grant all on t to another_user")
    backends = f"select count(*) {OURS}"
    try:
        with load(gateway) as callers:
            for connections, user in ((5, "app_user"), (3, "another_user"), (1, "app_user")):
                configuration.pool = {"max_connections": connections}
                configuration.user = user
                configuration.keys[SECOND] = "two"
                configuration.write()
                reload(gateway)
                callers.goes_on()
                limit = 'pgsluice_connections_limit{target="main"}'
                assert gateway.metric(limit) == connections
                # Whoever held a connection before has given it back by now, or will.
                until(
                    lambda most=connections: int(database.sql(backends)) <= most,  # type: ignore[misc]
                    "there are more connections than allowed",
                )
                callers.goes_on()
                for _ in range(5):
                    assert int(database.sql(backends)) <= connections
                others = f"select count(*) {OURS} and usename <> '{user}'"
                until(
                    lambda sql=others: int(database.sql(sql)) == 0,  # type: ignore[misc]
                    "connections of the former login live on",
                )
            # Several in a row, as an eager supervisor may send them.
            for _ in range(20):
                gateway.signal(signal.SIGHUP)
            callers.goes_on()
        assert int(database.sql("select count(*) from t")) == callers.written > 0
        assert gateway.metric("pgsluice_config_last_reload_successful") == 1
        assert gateway.metric('pgsluice_discards_total{target="main",reason="config"}') > 0
    finally:
        gateway.process.kill()
        gateway.end()
        database.sql("drop owned by another_user")
        server.sql("drop role another_user")


def test_new_key_works_and_a_removed_one_is_refused(
    gateway: Process, configuration: Configuration
) -> None:
    assert by_key(gateway, FIRST)["records"] == [[{"longValue": 1}]]
    assert by_key(gateway, SECOND) == "UnrecognizedClientException"
    configuration.keys = {SECOND: "two"}
    configuration.write()
    reload(gateway)
    assert by_key(gateway, SECOND)["records"] == [[{"longValue": 1}]]
    assert by_key(gateway, FIRST) == "UnrecognizedClientException"
    (told,) = events(gateway, "configuration_loaded")
    assert told["changed"] == ["auth.keys"]
    assert FIRST not in gateway.said and SECOND not in gateway.said


def test_configuration_with_faults_is_refused_with_all_of_them_and_the_old_one_stays(
    gateway: Process, configuration: Configuration
) -> None:
    configuration.pool = {"max_connections": 0, "max_waiting": -1}
    configuration.keys = {SECOND: ""}
    configuration.policy = ""
    configuration.write()
    reload(gateway, REFUSED)
    assert gateway.execute("select 1").json()["rows"] == [[1]]
    assert by_key(gateway, FIRST)["records"] == [[{"longValue": 1}]]
    assert gateway.metric("pgsluice_config_last_reload_successful") == 0
    (told,) = events(gateway, "configuration_refused")
    assert told["level"] == "error"
    for key in (
        "targets.main.pool.max_connections",
        "targets.main.pool.max_waiting",
        f"auth.keys.{SECOND}.principal",
        "policy",
    ):
        assert [each for each in told["problems"] if each.startswith(f"{key}: ")], told
    configuration.file.write_text("is this TOML?")
    reload(gateway, REFUSED)
    configuration.file.unlink()
    reload(gateway, REFUSED)
    assert gateway.execute("select 1").json()["rows"] == [[1]]
    configuration.__init__(configuration.file, configuration.database)  # type: ignore[misc]
    configuration.write()
    reload(gateway)
    assert gateway.metric("pgsluice_config_last_reload_successful") == 1


def test_policy_counts_from_the_next_request_on(
    gateway: Process, configuration: Configuration
) -> None:
    with gateway.http() as client:
        transaction = client.post("/transactions", json={}).json()["transaction"]
        configuration.policy = '[[policy]]\nname = "none"\nprincipals = ["nobody"]\n'
        configuration.write()
        reload(gateway)
        for body in ({"sql": "select 1"}, {"sql": "select 1", "transaction": transaction}):
            assert client.post("/execute", json=body).status_code == 403
        assert client.post(f"/transactions/{transaction}/commit").status_code == 403


def test_target_that_is_new_serves_and_one_that_is_gone_ends(
    gateway: Process, configuration: Configuration, database: Database
) -> None:
    with gateway.http() as client:
        assert client.post("/execute", json={"sql": "select 1"}).status_code == 200
        transaction = client.post("/transactions", json={}).json()["transaction"]
        insert = {"sql": "insert into t values (1)", "transaction": transaction}
        assert client.post("/execute", json=insert).status_code == 200
        configuration.targets = ["other"]
        configuration.write()
        reload(gateway)
        asked = {"sql": "select 1", "target": "other"}
        assert client.post("/execute", json=asked).json()["rows"] == [[1]]
        gone = client.post("/execute", json={"sql": "select 1", "target": "main"})
        assert gone.status_code == 403
        answer = client.post(f"/transactions/{transaction}/commit")
        assert answer.status_code == 410
        assert "no longer configured; it was rolled back" in answer.json()["detail"]
        # The next one finds the connections of the target that left closed.
        until(lambda: int(database.sql(f"select count(*) {OURS}")) == 1, "it holds on to them")
        configuration.targets = ["main", "other"]
        configuration.write()
        reload(gateway)
        assert client.post("/execute", json={**asked, "target": "main"}).status_code == 200
    assert int(database.sql("select count(*) from t")) == 0


def test_open_transaction_outlives_a_change_of_the_pool_and_of_the_login(
    gateway: Process, configuration: Configuration, database: Database
) -> None:
    with gateway.http() as client:
        transaction = client.post("/transactions", json={}).json()["transaction"]
        insert = {"sql": "insert into t values (1)", "transaction": transaction}
        assert client.post("/execute", json=insert).status_code == 200
        configuration.pool = {"max_connections": 1, "max_lifetime": 60}
        configuration.extra = "[server]\nport = 0\nadmin_port = 0\nkeep_alive = 99\n"
        configuration.write()
        reload(gateway)
        assert client.post("/execute", json=insert).status_code == 200
        assert client.post(f"/transactions/{transaction}/commit").status_code == 200
        assert client.post("/execute", json={"sql": "select 1"}).status_code == 200
    assert int(database.sql("select count(*) from t")) == 2
    assert int(database.sql(f"select count(*) {OURS}")) == 1
    (told,) = events(gateway, "configuration_loaded")
    assert told["takes_a_restart"] == ["server.keep_alive"]
    assert "targets.main.pool.max_connections" in told["changed"]
