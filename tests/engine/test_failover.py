"""A database that goes away and comes back, or another in its place, is a pause."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import embedded, programs
from gateway.cli.main import main
from gateway.settings import Settings
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_ledger import LostCommit, Senders, install_ledger, make_table
from tests.fix_network import Proxy
from tests.fix_postgres import APP_USER, Database, memory_folder

pytestmark = pytest.mark.slow

INSERT = "insert into did (what) values ($1) returning what"


@dataclass
class Pair:
    """A primary and its streaming replica, each with a folder and a port of its own."""

    home: Path
    binaries: programs.PostgresBinaries
    primary: embedded.Embedded
    replica: embedded.Embedded

    @property
    def database(self) -> Database:
        """`app` on the primary."""
        return Database(self.primary, "app")

    @property
    def promoted(self) -> Database:
        """`app` on what was the replica."""
        return Database(self.replica, "app")

    def promote(self) -> None:
        """Make the replica a primary; return when it takes writes."""
        self.replica.sql("select pg_promote()")

    def caught_up(self) -> None:
        """Wait until the replica has everything."""
        until(
            lambda: self.primary.sql(
                "select count(*) from pg_stat_replication"
                " where replay_lsn = pg_current_wal_lsn()"
            ) == "1",
            "the replica does not follow",
        )  # fmt: skip

    def kill_primary(self) -> None:
        """SIGKILL: no goodbye to anybody."""
        os.kill(self.primary.pid, signal.SIGQUIT)
        self.primary.stop()

    def restart_primary(self) -> None:
        """Stop it in order, and start it again on the same port."""
        port = self.primary.port
        self.primary.stop()
        self.primary = _start(self.home / "primary", port, self.binaries)


def _start(
    data: Path, port: int, binaries: programs.PostgresBinaries, **settings: str
) -> embedded.Embedded:
    return embedded.start(
        data,
        port=port,
        max_connections=60,
        binaries=binaries,
        host_auth="trust",
        settings={"wal_level": "replica", "max_wal_senders": "4", "fsync": "off",
                  "hot_standby": "on", "wal_keep_size": "64MB", **settings},
    )  # fmt: skip


@pytest.fixture
def pair(postgres_binaries: programs.PostgresBinaries) -> Iterator[Pair]:
    basebackup = _basebackup(postgres_binaries)
    home = Path(tempfile.mkdtemp(prefix="pgsluice-pair-", dir=memory_folder()))
    home.chmod(0o711)
    primary = replica = None
    try:
        primary = _start(home / "primary", embedded.free_port(), postgres_binaries)
        primary.sql(f"create role {APP_USER} login; create role copier login replication")
        with (primary.data / "pg_hba.conf").open("a") as rules:
            rules.write("host replication copier 127.0.0.1/32 trust\n")
        primary.sql("select pg_reload_conf()")
        primary.sql("create database app")
        standby = home / "replica"
        subprocess.run(
            [basebackup, "-D", str(standby), "-R", "-X", "stream", "-c", "fast",
             "-h", "127.0.0.1", "-p", str(primary.port), "-U", "copier"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip
        owner = primary.data.stat()
        for path in (standby, *standby.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        standby.chmod(0o700)
        replica = _start(standby, embedded.free_port(), postgres_binaries)
        both = Pair(home, postgres_binaries, primary, replica)
        install_ledger(both.database)
        make_table(both.database)
        both.caught_up()
        yield both
        primary = both.primary
    finally:
        for server in (replica, primary):
            if server is not None:
                server.stop()
        shutil.rmtree(home, ignore_errors=True)


def _basebackup(binaries: programs.PostgresBinaries) -> str:
    own = binaries.program("pg_basebackup")
    if own.exists():
        return str(own)
    pytest.skip("this PostgreSQL has no pg_basebackup")


def settings_of(pair: Pair, *ports: int, statement_timeout: float = 45.0) -> Settings:
    settings = settings_for(pair.database, max_connections=4)
    chosen = ports or (pair.primary.port, pair.replica.port)
    target = replace(
        settings.targets["main"],
        hosts=tuple(("127.0.0.1", port) for port in chosen),
        statement_timeout=statement_timeout,
    )
    return replace(settings, targets={"main": target})


def write(gateway: Gateway, what: str, key: str | None = None) -> Any:
    with gateway.http() as client:
        return client.post(
            "/execute",
            json={"sql": INSERT, "parameters": [what]},
            headers={} if key is None else {"idempotency-key": key},
        )


def rows(database: Database, what: str = "%") -> int:
    return int(database.sql(f"select count(*) from did where what like '{what}'"))


@pytest.mark.parametrize("standby_first", [False, True])
def test_the_primary_is_found_wherever_it_is_listed(pair: Pair, standby_first: bool) -> None:
    ports = [pair.primary.port, pair.replica.port]
    if standby_first:
        ports.reverse()
    with running(settings_of(pair, *ports), pair.database) as gateway:
        assert write(gateway, "a").status_code == 200


def test_callers_wait_while_the_primary_is_away_and_none_fails(pair: Pair) -> None:
    with running(settings_of(pair), pair.database) as gateway:
        assert write(gateway, "before").status_code == 200
        pair.caught_up()
        pair.kill_primary()
        senders = Senders(gateway)
        for number in range(12):
            body = {"sql": INSERT, "parameters": [f"during {number}"]}
            senders.send("/execute", body, f"key {number}")
        with gateway.http() as client:
            until(
                lambda: client.get("/readyz").json()["targets"]["main"]["state"] == "waiting",
                "nobody noticed",
            )
        assert senders.answers == []
        pair.promote()
        answers = senders.join()
        assert [answer.status_code for answer in answers] == [200] * 12
        assert rows(pair.promoted, "during%") == 12


def test_a_host_that_says_nothing_does_not_hide_the_new_primary(pair: Pair) -> None:
    with Proxy(pair.primary.port) as proxy:
        settings = settings_of(pair, proxy.port, pair.replica.port)
        with running(settings, pair.database) as gateway:
            assert write(gateway, "before").status_code == 200
            pair.caught_up()
            # As a machine without power: connections stay, nothing is acknowledged.
            proxy.reset()
            proxy.lose(requests=True, replies=True)
            pair.promote()
            assert write(gateway, "after", "k").status_code == 200
            assert rows(pair.promoted, "after") == 1


def test_a_write_lost_with_the_old_primary_is_done_again_once(pair: Pair) -> None:
    """It was committed there and never came over: on the new timeline it has not happened."""
    with running(settings_of(pair), pair.database) as gateway:
        pair.caught_up()
        os.kill(pair.replica.pid, signal.SIGSTOP)  # it hears of nothing from here on
        walreceivers = "select pg_terminate_backend(pid) from pg_stat_replication"
        pair.primary.sql(walreceivers)
        pair.primary.sql("alter role copier nologin")
        first = write(gateway, "tail", "k")
        assert first.status_code == 200
        os.kill(pair.replica.pid, signal.SIGCONT)
        pair.kill_primary()
        pair.promote()
        with gateway.http() as client:
            assert client.get("/outcomes/k").json() == {"outcome": "not_executed"}
        again = write(gateway, "tail", "k")
        assert again.status_code == 200
        assert "x-gateway-replayed" not in again.headers
        assert rows(pair.promoted, "tail") == 1


@pytest.mark.parametrize("ledger", [True, False], ids=["with the table", "without"])
def test_a_commit_lost_together_with_its_server_is_not_believed_by_number(
    pair: Pair, ledger: bool
) -> None:
    """Another timeline gives the same numbers to other transactions."""
    if not ledger:
        pair.database.sql("drop schema gw cascade")
    with Proxy(pair.primary.port) as proxy, Proxy(pair.replica.port) as other:
        settings = settings_of(pair, proxy.port, other.port, statement_timeout=20.0)
        with running(settings, pair.database) as gateway:
            assert write(gateway, "before").status_code == 200
            pair.caught_up()
            pair.primary.sql(
                "alter role copier nologin;"
                "select pg_terminate_backend(pid) from pg_stat_replication"
            )
            lost = LostCommit(proxy, arrives=True)
            senders = Senders(gateway)
            senders.send("/execute", {"sql": INSERT, "parameters": ["x"]}, "k")
            assert lost.seen.wait(60)
            until(lambda: rows(pair.database, "x") == 1, "the COMMIT did not arrive")
            other.refuse_connections()
            pair.kill_primary()
            pair.promote()
            # Numbers that were given out on the old timeline are used again by others.
            for _ in range(20):
                pair.promoted.sql("insert into did values ('filler')")
            other.take_connections()
            lost.finish()
            (answer,) = senders.join()
            if ledger:
                # Looked up on the new timeline, where it never was, and done again there.
                assert answer.status_code == 200, answer.text
                assert rows(pair.promoted, "x") == 1
            else:
                assert answer.json()["outcome"] == "unknown"
                assert rows(pair.promoted, "x") == 0


def test_an_old_primary_that_became_a_standby_is_left(pair: Pair) -> None:
    """Behind one address: what the address leads to changes, and its sessions with it."""
    with (
        Proxy(pair.primary.port) as proxy,
        running(settings_of(pair, proxy.port), pair.database) as gateway,
    ):
        assert write(gateway, "before").status_code == 200
        pair.caught_up()
        proxy.target = pair.replica.port
        proxy.reset()
        # Sessions on the standby now: reads are answered, a write waits for a primary.
        assert gateway.execute("select pg_is_in_recovery()")["rows"] == [[True]]
        senders = Senders(gateway)
        senders.send("/execute", {"sql": INSERT, "parameters": ["after"]}, "k")
        with gateway.http() as client:
            assert client.get("/livez").status_code == 200
        pair.promote()
        (answer,) = senders.join()
        assert answer.status_code == 200, answer.text
        assert rows(pair.promoted, "after") == 1


def test_a_write_lost_on_the_old_primary_waits_on_the_standby_for_its_promotion(
    pair: Pair,
) -> None:
    """It is repeated once; that a standby lets nobody write is not another loss."""
    with (
        Proxy(pair.primary.port) as proxy,
        running(settings_of(pair, proxy.port), pair.database) as gateway,
    ):
        assert write(gateway, "before").status_code == 200
        pair.caught_up()
        senders = Senders(gateway)
        slow = "insert into did select $1 from (select pg_sleep(1)) s"
        senders.send("/execute", {"sql": slow, "parameters": ["after"]}, "k")
        running_ = "select count(*) from pg_stat_activity where query like '%pg_sleep(1)) s'"
        until(lambda: pair.primary.sql(running_) != "0", "it does not run")
        proxy.target = pair.replica.port
        proxy.reset()
        refused = "select count(*) from pg_stat_activity where application_name = 'pgsluice'"
        until(lambda: pair.replica.sql(refused) != "0", "nobody came to the standby")
        # A read that is answered there: the gateway has met the standby by now.
        assert gateway.execute("select pg_is_in_recovery()")["rows"] == [[True]]
        assert senders.answers == []
        pair.promote()
        (answer,) = senders.join()
        assert answer.status_code == 200, answer.text
        assert rows(pair.promoted, "after") == 1


def test_a_commit_lost_with_the_old_primary_is_looked_up_when_the_standby_is_promoted(
    pair: Pair,
) -> None:
    """Until then nobody can tell, and to call it unknown would be too early."""
    with (
        Proxy(pair.primary.port) as proxy,
        running(settings_of(pair, proxy.port), pair.database) as gateway,
    ):
        assert write(gateway, "before").status_code == 200
        lost = LostCommit(proxy, arrives=True)
        senders = Senders(gateway)
        senders.send("/execute", {"sql": INSERT, "parameters": ["after"]}, "k")
        assert lost.seen.wait(60)
        until(lambda: rows(pair.database, "after") == 1, "the COMMIT did not arrive")
        pair.caught_up()
        proxy.target = pair.replica.port
        lost.finish()
        came = "select count(*) from pg_stat_activity where application_name = 'pgsluice'"
        until(lambda: pair.replica.sql(came) != "0", "nobody came to the standby")

        def ask() -> None:
            with gateway.http() as client:
                senders.answers.append(client.get("/outcomes/k"))

        senders.run(ask)
        assert gateway.execute("select pg_is_in_recovery()")["rows"] == [[True]]
        assert senders.answers == []
        pair.kill_primary()
        pair.promote()
        answers = senders.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        assert {answer.json().get("outcome", "committed") for answer in answers} == {"committed"}
        assert rows(pair.promoted, "after") == 1


def test_a_target_that_never_was_a_primary_refuses_writes_at_once(pair: Pair) -> None:
    with running(settings_of(pair, pair.replica.port), pair.database) as gateway:
        assert gateway.execute("select 1")["rows"] == [[1]]
        answer = write(gateway, "a")
        assert (answer.status_code, answer.json()["outcome"]) == (400, "not_executed")


@pytest.mark.parametrize("how", ["pause", "killed"])
def test_a_restart_costs_no_statement(pair: Pair, how: str) -> None:
    """Under load all the time: in order with `pause` and `resume`, or without a word."""
    stop = threading.Event()
    failed: list[Any] = []
    done: list[str] = []

    with running(settings_of(pair, pair.primary.port), pair.database) as gateway:

        def work(name: int) -> None:
            with gateway.http() as client:
                number = 0
                while not stop.is_set():
                    number += 1
                    what = f"{name}/{number}"
                    answer = client.post(
                        "/execute",
                        json={"sql": INSERT, "parameters": [what]},
                        headers={"idempotency-key": what},
                    )
                    (done if answer.status_code == 200 else failed).append(what)

        workers = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for worker in workers:
            worker.start()
        try:
            until(lambda: len(done) > 100, "nothing runs")
            if how == "pause":
                paused = CliRunner().invoke(main, ["pause", "main", "--admin", gateway.admin_url])
                assert paused.exit_code == 0, paused.output
                assert "main paused, running 0" in paused.output
                before = len(done)
                assert pair.primary.sql(
                    "select count(*) from pg_stat_activity where application_name = 'pgsluice'"
                ) == "0"  # fmt: skip
                pair.restart_primary()
                assert len(done) == before
                resumed = CliRunner().invoke(main, ["resume", "main", "--admin", gateway.admin_url])
                assert resumed.exit_code == 0, resumed.output
            else:
                before = len(done)
                pair.kill_primary()
                pair.primary = _start(pair.home / "primary", pair.primary.port, pair.binaries)
            until(lambda: len(done) > before + 100, "nothing runs afterwards")
        finally:
            stop.set()
            for worker in workers:
                worker.join(60)
    assert failed == []
    assert rows(pair.database) == len(done)
    assert pair.database.sql("select count(distinct what) from did") == str(len(done))


def test_the_gap_beyond_the_databases_own_is_told(
    pair: Pair, record_property: Any, capsys: Any
) -> None:
    """Reports a figure; what is asserted is that nobody failed and nothing is there twice."""
    gaps: list[float] = []
    with running(settings_of(pair, pair.primary.port), pair.database) as gateway:
        for number in range(5):
            assert write(gateway, f"before {number}").status_code == 200
            pair.kill_primary()
            senders = Senders(gateway)
            for each in range(4):
                body = {"sql": INSERT, "parameters": [f"gap {number}/{each}"]}
                senders.send("/execute", body, f"{number}/{each}")
            pair.primary = _start(pair.home / "primary", pair.primary.port, pair.binaries)
            up = time.monotonic()
            answers = senders.join()
            gaps.append(time.monotonic() - up)
            assert [answer.status_code for answer in answers] == [200] * 4
    assert rows(pair.database, "gap%") == 20
    middle = sorted(gaps)[len(gaps) // 2]
    record_property("gap_p50_seconds", round(middle, 3))
    with capsys.disabled():
        sys.stdout.write(f"\nthose who waited had their answers {middle:.2f} s later (p50)\n")
