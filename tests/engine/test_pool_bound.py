"""Never more connections than allowed, and every caller served, on a real PostgreSQL."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import httpx2

from gateway.settings import LoginSettings
from tests.fix_gateway import SECRET, Gateway, running, settings_for
from tests.fix_postgres import GATEWAYS, Database

CALLERS = 200
PLACES = 3
OURS = f"select pid from pg_stat_activity where {GATEWAYS}"


def ask(gateway: Gateway, body: dict[str, Any]) -> tuple[int, Any]:
    """One request on a connection of its own."""
    connection = HTTPConnection("127.0.0.1", gateway.port)
    try:
        headers = {"authorization": f"Bearer {gateway.token}"}
        connection.request("POST", "/execute", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def metric(gateway: Gateway, name: str) -> int:
    """A gauge of the target from the metrics page."""
    for line in httpx2.get(gateway.admin_url + "/metrics").text.splitlines():
        if line.startswith(name + "{"):
            return int(float(line.rpartition(" ")[2]))
    raise AssertionError(f"no metric {name}")


class Sampler:
    """Looks at the backends of the gateway, again and again."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = threading.Event()
        self.samples: list[set[int]] = []
        self.killed: set[int] = set()
        self.kill = False

    def look(self) -> set[int]:
        found = {int(line) for line in self._database.sql(OURS).split()}
        self.samples.append(found)
        return found

    def _run(self) -> None:
        while not self._stop.is_set():
            found = self.look()
            if self.kill and len(self.samples) % 3 == 0 and found:
                victim = sorted(found)[len(self.samples) % len(found)]
                # Written down first: it stays in the list until it has gone.
                self.killed.add(victim)
                self._database.sql(f"select pg_terminate_backend({victim})")

    @contextmanager
    def sampling(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def load(gateway: Gateway, bodies: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    with ThreadPoolExecutor(CALLERS) as threads:
        return list(threads.map(lambda body: ask(gateway, body), bodies))


def test_many_callers_never_take_more_connections_than_allowed(database: Database) -> None:
    sampler = Sampler(database)
    with running(settings_for(database, max_connections=PLACES), database) as gateway:
        bodies = [
            {"sql": "select $1::int, pg_sleep(0.005)", "parameters": [number]}
            for number in range(CALLERS * 3)
        ]
        with sampler.sampling():
            answers = load(gateway, bodies)
        assert [status for status, _ in answers] == [200] * len(bodies)
        # Nobody got another one's row.
        assert [answer["rows"][0][0] for _, answer in answers] == list(range(len(bodies)))
        assert metric(gateway, "pgsluice_connections_in_use") == 0
        assert metric(gateway, "pgsluice_connections") == PLACES
        # Nor was one closed for somebody whom another had served meanwhile.
        assert metric(gateway, "pgsluice_connects_total") == PLACES
        assert len(sampler.look()) == PLACES
    assert max(map(len, sampler.samples)) == PLACES
    assert sampler.look() == set(), "connections were left behind"


def test_terminated_backends_lose_no_place_and_no_bound(database: Database) -> None:
    sampler = Sampler(database)
    sampler.kill = True
    with running(settings_for(database, max_connections=PLACES), database) as gateway:
        bodies = [
            {"sql": "select $1::int, pg_sleep(0.005)", "parameters": [number]}
            for number in range(CALLERS * 3)
        ]
        with sampler.sampling():
            answers = load(gateway, bodies)
        assert sampler.killed
        assert max(len(sample - sampler.killed) for sample in sampler.samples) <= PLACES
        for number, (status, answer) in enumerate(answers):
            if status == 200:
                assert answer["rows"][0][0] == number
            else:
                # Its own backend was terminated under it: it is told that it may go again.
                assert (status, answer["code"]) == (503, "database_unavailable")
                assert (answer["outcome"], answer["retry"]) == ("not_executed", "safe")
        failed = sum(status != 200 for status, _ in answers)
        assert failed <= len(sampler.killed)
        give_up = time.monotonic() + 60
        while sampler.look() & sampler.killed:
            assert time.monotonic() < give_up, "a terminated backend did not go"
        # A termination may have met the last connection on its way out: the first to borrow
        # that one is told; then there is nothing left of it.
        load(gateway, [{"sql": "select 1"}] * 30)
        again = load(gateway, [{"sql": "select pg_sleep(0.01)"}] * 30)
        assert [status for status, _ in again] == [200] * 30
        assert metric(gateway, "pgsluice_connections_in_use") == 0
        assert metric(gateway, "pgsluice_connections") == len(sampler.look() - sampler.killed)


def test_idle_connections_die_unnoticed_by_callers(database: Database) -> None:
    with running(settings_for(database, max_connections=PLACES), database) as gateway:
        load(gateway, [{"sql": "select pg_sleep(0.01)"}] * 20)
        database.sql(f"select pg_terminate_backend(pid, 5000) from ({OURS}) as ours")
        answers = load(gateway, [{"sql": "select 1"}] * 20)
        assert [status for status, _ in answers] == [200] * 20
        database.sql("create table t (n int); grant all on t to public")
        database.sql(f"select pg_terminate_backend(pid, 5000) from ({OURS}) as ours")
        answers = load(gateway, [{"sql": "insert into t values (1)"}] * 20)
        assert [status for status, _ in answers] == [200] * 20
        assert database.sql("select count(*) from t").strip() == "20"


def test_the_bound_is_one_for_all_databases_of_a_target(database: Database) -> None:
    settings = settings_for(database, max_connections=PLACES)
    names = [database.name, database.name + "_b", database.name + "_c", database.name + "_d"]
    for name in names[1:]:
        database.sql(f"create database {name} strategy wal_log")
    try:
        target = replace(
            settings.targets["main"],
            databases=tuple(names[1:]),
            logins={"app": LoginSettings(user=database.app_user, secrets=(SECRET,))},
        )
        settings = replace(settings, targets={"main": target})
        sizes: list[int] = []
        done = threading.Event()

        with running(settings, database) as gateway:

            def watch() -> None:
                while not done.is_set():
                    sizes.append(metric(gateway, "pgsluice_connections"))

            watcher = threading.Thread(target=watch)
            watcher.start()
            bodies = [
                {"sql": "select current_database()", "database": names[number % len(names)]}
                for number in range(CALLERS)
            ]
            answers = load(gateway, bodies)
            done.set()
            watcher.join()
            assert [status for status, _ in answers] == [200] * len(bodies)
            found = [answer["rows"][0][0] for _, answer in answers]
            assert found == [body["database"] for body in bodies]
            assert max(sizes) <= PLACES
    finally:
        for name in names[1:]:
            database.sql(f"drop database {name} with (force)")
