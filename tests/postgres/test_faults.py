"""The database, the way to it, or both break; the pool comes back and nobody is lied to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from gateway.cli import embedded, programs
from gateway.cli.failing import EmbeddedError
from gateway.core.model import TransactionMode
from gateway.postgres.connect import Connector
from gateway.settings import LoginSettings, Settings
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_network import Proxy
from tests.fix_postgres import GATEWAYS, Database

OURS = f"from pg_stat_activity where {GATEWAYS}"
GATE = 7_001
"""An advisory lock that statements of `is_whole` wait for."""
PASSWORD = "a password of the tests"


_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Watch:
    """Counts the gateway's backends in a thread of its own, again and again."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="watch")
        self.counts: list[int] = []

    async def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection = await asyncpg.connect(self._dsn, timeout=5)
            except _AWAY:
                await asyncio.sleep(0.01)  # the server is away, which is what is tested
                continue
            try:
                while not self._stop.is_set():
                    self.counts.append(await connection.fetchval(f"select count(*) {OURS}"))
                    await asyncio.sleep(0.002)  # or it would take a core for itself
            except _AWAY:
                pass
            finally:
                connection.terminate()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def most(self) -> int:
        return max(self.counts)


def ask(gateway: Gateway, sql: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    """`POST /execute` on a connection of its own; the parsed answer, whatever its status."""
    connection = HTTPConnection("127.0.0.1", gateway.port)
    body = {"sql": sql, "parameters": parameters, **more}
    try:
        headers = {"authorization": f"Bearer {gateway.token}"}
        connection.request("POST", "/execute", json.dumps(body), headers)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def number(database: Database, where: str = "true") -> int:
    return int(database.sql(f"select count(*) {OURS} and {where}"))


def pids(database: Database) -> set[int]:
    return set(map(int, database.sql(f"select pid {OURS}").split()))


def metric(gateway: Gateway, line: str) -> int:
    for each in httpx2.get(gateway.admin_url + "/metrics").text.splitlines():
        if each.startswith(line):
            return int(float(each.rpartition(" ")[2]))
    return 0


def in_use(gateway: Gateway) -> int:
    return metric(gateway, "pgsluice_connections_in_use")


def is_whole(gateway: Gateway, database: Database) -> None:
    """Every place of the pool can be used at the same time, and is given back."""
    places = gateway.settings.targets["main"].pool.max_connections
    psql = [str(database.server.binaries.program("psql")), "-XqAt", database.dsn]
    with ThreadPoolExecutor(places) as threads, held(psql, GATE) as release:
        answers = [
            threads.submit(ask, gateway, f"select pg_advisory_xact_lock_shared({GATE})")
            for _ in range(places)
        ]
        until(lambda: number(database, "wait_event = 'advisory'") == places, "a place is lost")
        release()
        assert all("rows" in each.result() for each in answers)
    until(lambda: in_use(gateway) == 0, "a place was not given back")
    assert metric(gateway, "pgsluice_queue_waiting") == 0
    until(lambda: number(database) <= places, "there are too many sessions")


def is_alone(gateway: Gateway, database: Database) -> None:
    """The gateway has no session left, and its next statement needs a new one."""
    until(lambda: in_use(gateway) == 0, "somebody is at work")
    database.sql(f"select pg_terminate_backend(pid, 5000) {OURS}")
    until(lambda: number(database) == 0, "there are sessions")


@contextlib.contextmanager
def held(psql: list[str], lock: int) -> Iterator[Callable[[], None]]:
    """Hold an advisory lock until the function is called."""
    with subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write(f"select pg_advisory_lock({lock}) is null; \\echo held\n")
        holder.stdin.flush()
        while holder.stdout.readline().strip() != "held":
            pass

        def release() -> None:
            assert holder.stdin is not None
            if not holder.stdin.closed:
                holder.stdin.write("\\q\n")
                holder.stdin.close()
                holder.wait()

        try:
            yield release
        finally:
            release()


def over_tcp(settings: Settings, port: int, **target: Any) -> Settings:
    """*settings* with the target at *port* of 127.0.0.1."""
    main = replace(settings.targets["main"], hosts=(("127.0.0.1", port),), **target)
    return replace(settings, targets={"main": main})


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Between the gateway and the shared server."""
    assert database.server.port is not None
    with Proxy(database.server.port) as it:
        yield it


@pytest.fixture
def table(database: Database) -> None:
    database.sql("create table t (n int); grant all on t to public")


def rows(database: Database) -> list[int]:
    return sorted(map(int, database.sql("select n from t").split()))


# -- the server ------------------------------------------------------------------------


class Machine:
    """A PostgreSQL of its own, that may be killed."""

    def __init__(self, home: Path, binaries: programs.PostgresBinaries) -> None:
        self._home = home
        self._binaries = binaries
        self._port = embedded.free_port()
        self.start()
        self.server.sql(f"create role app login password '{PASSWORD}'")
        self.server.sql("create table t (n int); grant all on t to app")

    def start(self) -> None:
        self.server = embedded.start(
            self._home / "data",
            port=self._port,
            max_connections=16,
            binaries=self._binaries,
            settings={"fsync": "off", "full_page_writes": "off", "autovacuum": "off"},
        )

    @property
    def database(self) -> Database:
        return Database(self.server, "postgres", app_user="app")

    def kill(self) -> None:
        """As a crash of the machine: no backend says goodbye."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()

    def signal(self, number: int) -> None:
        os.kill(self.server.pid, number)

    def settings(self, **pool: Any) -> Settings:
        settings = over_tcp(settings_for(self.database, **pool), self._port)
        login = LoginSettings(user="app", password=PASSWORD, secrets=("*",))
        main = replace(settings.targets["main"], logins={"app": login}, databases=())
        return replace(settings, targets={"main": main})


@pytest.fixture(scope="module")
def own(postgres_binaries: programs.PostgresBinaries) -> Iterator[Machine]:
    home = Path(tempfile.mkdtemp(prefix="pgsluice-faults-"))
    home.chmod(0o711)
    machine = Machine(home, postgres_binaries)
    try:
        yield machine
    finally:
        machine.server.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def machine(own: Machine) -> Machine:
    own.server.sql("truncate t")
    return own


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_no_write_is_lost_or_doubled_when_the_server_goes(machine: Machine, how: str) -> None:
    callers, each = 12, 12
    committed: set[int] = set()
    unknown: set[int] = set()
    odd: list[Any] = []
    with (
        running(machine.settings(max_connections=3), machine.database) as gateway,
        Watch(machine.server.dsn("postgres")) as watch,
        ThreadPoolExecutor(callers) as threads,
    ):

        def insert(number: int) -> None:
            answer = ask(gateway, "insert into t values ($1)", [number])
            while answer.get("retry") == "safe":
                assert answer["outcome"] == "not_executed"
                answer = ask(gateway, "insert into t values ($1)", [number])
            if "rows" in answer or answer.get("command") == "INSERT":
                committed.add(number)
            elif answer["outcome"] == "unknown":
                unknown.add(number)
            else:
                odd.append(answer)

        work = [threads.submit(insert, number) for number in range(callers * each // 2)]
        until(lambda: len(committed) > callers, "nobody got anywhere")
        if how == "killed":
            machine.kill()
        else:
            machine.server.stop()
        work += [
            threads.submit(insert, number) for number in range(callers * each // 2, callers * each)
        ]
        machine.start()
        for one in work:
            one.result()
        assert odd == []
        is_whole(gateway, machine.database)
        assert watch.most <= 3
    found = rows(machine.database)
    assert len(found) == len(set(found)), "a write was done twice"
    assert committed <= set(found) <= committed | unknown
    assert committed | unknown == set(range(callers * each))


def test_what_is_connected_works_on_while_the_server_takes_nobody(machine: Machine) -> None:
    with running(machine.settings(max_connections=2), machine.database) as gateway:
        assert ask(gateway, "select 1")["rows"] == [[1]]
        # A smart shutdown waits for sessions, and refuses new ones with 57P03.
        machine.signal(signal.SIGTERM)
        with pytest.raises(EmbeddedError, match="shutting down"):
            while True:
                machine.database.sql("select 1")
        for _ in range(20):
            assert ask(gateway, "select 1")["rows"] == [[1]]
        machine.server.stop()
        machine.start()
        is_whole(gateway, machine.database)


def test_a_stopped_server_costs_a_caller_its_deadline_and_no_more(machine: Machine) -> None:
    with running(machine.settings(max_connections=2), machine.database) as gateway:
        is_alone(gateway, machine.database)
        machine.signal(signal.SIGSTOP)
        try:
            answer = ask(gateway, "insert into t values (1)", timeout=0.3)
        finally:
            machine.signal(signal.SIGCONT)
        assert (answer["code"], answer["status"]) == ("database_unavailable", 503)
        assert (answer["outcome"], answer["retry"]) == ("not_executed", "safe")
        is_whole(gateway, machine.database)
    assert rows(machine.database) == []


def test_a_full_server_is_waited_for(machine: Machine) -> None:
    database = machine.database
    psql = [str(machine.server.binaries.program("psql")), "-XqAt", database.dsn]
    with (
        running(machine.settings(max_connections=2), database) as gateway,
        ThreadPoolExecutor(1) as threads,
        contextlib.ExitStack() as others,
    ):
        is_alone(gateway, database)
        free = [others.enter_context(held(psql, 100 + count)) for count in range(13)]
        refused = ask(gateway, "select 1", timeout=0.3)
        assert (refused["code"], refused["outcome"]) == ("database_unavailable", "not_executed")
        waiting = threads.submit(ask, gateway, "select 1")
        until(lambda: in_use(gateway) == 1, "it does not wait")
        for release in free:
            release()
        assert waiting.result()["rows"] == [[1]]
        is_whole(gateway, database)


def test_a_password_changed_on_the_way_spoils_no_connection_and_is_named(machine: Machine) -> None:
    database = machine.database
    with running(machine.settings(max_connections=2), database) as gateway:
        assert ask(gateway, "select 1")["rows"] == [[1]]
        database.sql("alter role app password 'another'")
        try:
            assert ask(gateway, "select 1")["rows"] == [[1]], "the open session was given up"
            database.sql(f"select pg_terminate_backend(pid, 5000) {OURS}")
            answer = ask(gateway, "select 1")
        finally:
            database.sql(f"alter role app password '{PASSWORD}'")
        assert (answer["code"], answer["outcome"]) == ("login_refused", "not_executed")
        assert "login" in answer["detail"] and PASSWORD not in str(answer)
        until(lambda: ask(gateway, "select 1").get("rows") == [[1]], "it never tries again")
        is_whole(gateway, database)


def test_a_role_with_too_few_connections_starves_nobody(database: Database) -> None:
    database.sql("create role few login connection limit 2")
    try:
        with (
            running(settings_for(database, max_connections=4, user="few"), database) as gateway,
            Watch(database.dsn) as watch,
            ThreadPoolExecutor(16) as threads,
        ):
            answers = list(
                threads.map(
                    lambda _: ask(gateway, "select pg_sleep(0.005)", timeout=20), range(100)
                )
            )
            assert [each for each in answers if "rows" not in each] == []
            assert watch.most <= 2
            database.sql("alter role few connection limit 4")
            is_whole(gateway, database)
    finally:
        database.sql("drop role few")


# -- backends --------------------------------------------------------------------------


def test_the_bound_holds_while_sessions_are_closed_under_their_statements(
    database: Database,
) -> None:
    # More than a flight's budget comes at once, and then the backend is busy for a while.
    busy = """select case when n < 1100 then repeat('x', 1000) else pg_sleep(0.3)::text end
        from generate_series(1, 1100) n where %d > 0"""
    with (
        running(settings_for(database, max_connections=3), database) as gateway,
        Watch(database.dsn) as watch,
        ThreadPoolExecutor(12) as threads,
    ):
        answers = [threads.submit(ask, gateway, busy % count) for count in range(1, 7)]
        assert all(len(each.result()["rows"]) == 1100 for each in answers)
        # Each text was found out to be large on a connection that was closed for it.
        assert metric(gateway, 'pgsluice_discards_total{target="main",reason="budget"}') == 6
        assert watch.most == 3
        is_whole(gateway, database)


def test_the_bound_holds_while_backends_are_terminated_in_a_storm(database: Database) -> None:
    with (
        running(settings_for(database, max_connections=3), database) as gateway,
        Watch(database.dsn) as watch,
        ThreadPoolExecutor(40) as threads,
    ):
        work: list[Future[Any]] = [
            threads.submit(ask, gateway, "select $1::int, pg_sleep(0.004)", [count])
            for count in range(150)
        ]
        while not all(each.done() for each in work):
            database.sql(f"select pg_terminate_backend(pid) {OURS} and random() < 0.5")
        for count, each in enumerate(work):
            answer = each.result()
            if "rows" in answer:
                assert answer["rows"][0][0] == count
            else:
                assert (answer["code"], answer["outcome"], answer["retry"]) == (
                    "database_unavailable",
                    "not_executed",
                    "safe",
                )
        assert watch.most <= 3
        is_whole(gateway, database)


@pytest.mark.parametrize("how", ["terminated", "cut"])
def test_a_session_lost_while_it_is_reset_takes_nothing_back(
    database: Database, proxy: Proxy, table: None, how: str
) -> None:
    lost: list[str] = []
    # The reset travels right behind COMMIT. What it has to release makes it take a while, so
    # that the answer to COMMIT comes by itself, now and then.
    insert = (
        "insert into t select $1::int"
        " where (select count(pg_advisory_lock(i)) from generate_series(1, 1500) i) > 0"
    )

    def lose(data: bytes) -> None:
        committed, reset = b"COMMIT\0" in data, b"RESET\0" in data
        if committed == reset:
            return
        if how == "cut" and reset:
            lost.append(how)
            raise ConnectionResetError
        if how == "terminated" and committed:
            lost.append(how)
            database.sql(f"select pg_terminate_backend(pid, 5000) {OURS}")

    with running(
        over_tcp(settings_for(database, max_connections=2), proxy.port), database
    ) as gateway:
        proxy.replies.watch = lose
        count = 0
        while len(lost) < 5 and count < 300:
            assert "code" not in ask(gateway, insert, [count])
            count += 1
        assert lost
        proxy.heal()
        is_whole(gateway, database)
    assert rows(database) == list(range(count))


@pytest.mark.slow
def test_a_stopped_backend_costs_one_caller_its_deadline(database: Database, table: None) -> None:
    with running(settings_for(database, max_connections=2), database) as gateway:
        # The connection used last is the next to be lent, once its reset is over.
        resets = "pgsluice_resets_total"
        until(lambda: metric(gateway, resets) == 1, "the gateway's own look is not over")
        pid = ask(gateway, "select pg_backend_pid()")["rows"][0][0]
        until(lambda: metric(gateway, resets) == 2, "it is not given back")
        os.kill(pid, signal.SIGSTOP)
        try:
            answer = ask(gateway, "insert into t values (1)", timeout=0.5)
            assert (answer["code"], answer["outcome"]) == ("statement_timeout", "not_executed")
            # The others go on at once, and the place comes back while the backend still hangs.
            for count in range(20):
                assert "code" not in ask(gateway, "insert into t values ($1)", [count + 2])
            until(lambda: in_use(gateway) == 0, "the place is lost")
            assert all("code" not in ask(gateway, "select 1") for _ in range(5))
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: pid not in pids(database), "it lives on")
        is_whole(gateway, database)
    assert 1 not in rows(database)


# -- the way there ---------------------------------------------------------------------


def test_whoever_waits_is_served_when_the_way_is_free_again(
    database: Database, proxy: Proxy
) -> None:
    proxy.refuse_connections()
    settings = over_tcp(settings_for(database, max_connections=3), proxy.port)
    with running(settings, database) as gateway, ThreadPoolExecutor(12) as threads:
        refused = ask(gateway, "select 1", timeout=0.3)
        assert (refused["code"], refused["outcome"]) == ("database_unavailable", "not_executed")
        waiting = [threads.submit(ask, gateway, "select 1") for _ in range(12)]
        until(lambda: metric(gateway, "pgsluice_queue_waiting") == 9, "they do not wait")
        proxy.take_connections()
        assert all(each.result()["rows"] == [[1]] for each in waiting)
        is_whole(gateway, database)


def test_one_connection_is_opened_at_a_time(database: Database, proxy: Proxy) -> None:
    proxy.slow_connect = True
    settings = over_tcp(settings_for(database, max_connections=3), proxy.port)
    with running(settings, database) as gateway, ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(ask, gateway, "select 1") for _ in range(12)]
        until(lambda: metric(gateway, "pgsluice_queue_waiting") == 9, "they do not wait")
        late = ask(gateway, "select 1", timeout=0.3)
        assert (late["code"], late["outcome"], late["retry"]) == (
            "queue_timeout",
            "not_executed",
            "safe",
        )
        assert proxy.accepted == 1, "three wait for a connection, and one is being opened"
        proxy.heal()
        assert all(each.result()["rows"] == [[1]] for each in waiting)
        is_whole(gateway, database)


def test_who_leaves_while_a_connection_is_opened_leaves_it_to_the_next(
    database: Database, proxy: Proxy
) -> None:
    proxy.slow_connect = True
    settings = over_tcp(settings_for(database, max_connections=1), proxy.port)
    with running(settings, database) as gateway:
        with gateway.http() as client, contextlib.suppress(httpx2.TimeoutException):
            client.post("/execute", json={"sql": "select 1"}, timeout=0.2)
        until(lambda: in_use(gateway) == 0, "a place was not given back")
        proxy.slow_connect = False
        assert ask(gateway, "select 1")["rows"] == [[1]]
        assert proxy.accepted == 1
        is_whole(gateway, database)


@pytest.mark.parametrize(
    ("where", "kept"), [("request", []), ("answer", [1])], ids=["on its way", "on its way back"]
)
def test_a_lost_commit_is_never_called_a_failure(
    database: Database, proxy: Proxy, table: None, where: str, kept: list[int]
) -> None:
    def lose(data: bytes) -> None:
        if b"COMMIT\0" in data:
            raise ConnectionResetError

    with running(
        over_tcp(settings_for(database, max_connections=2), proxy.port), database
    ) as gateway:
        assert ask(gateway, "select 1")["rows"] == [[1]]
        (proxy.requests if where == "request" else proxy.replies).watch = lose
        answer = ask(gateway, "insert into t values (1)")
        assert (answer["code"], answer["outcome"]) == ("outcome_unknown", "unknown")
        assert (answer["status"], answer["retry"]) == (400, "unknown")
        proxy.heal()
        until(lambda: number(database, "state = 'idle in transaction'") == 0, "it hangs")
        assert rows(database) == kept
        is_whole(gateway, database)


def test_a_write_that_timed_out_in_a_dead_network_never_arrives(
    database: Database, proxy: Proxy, table: None
) -> None:
    # It commits inside, so it runs outside any transaction: what arrives of it, counts.
    database.sql("""
        create procedure put(x int) language plpgsql as
        $$ begin insert into t values (x); commit; end $$""")
    with running(
        over_tcp(settings_for(database, max_connections=2), proxy.port), database
    ) as gateway:
        assert "code" not in ask(gateway, "call put(1)")

        def cut_off(data: bytes) -> None:
            # The session is ready for the statement, and with this answer the cable is out.
            if b"SET\0" in data:
                proxy.lose(requests=True)

        proxy.replies.watch = cut_off
        before = pids(database)
        answer = ask(gateway, "call put(2)", timeout=0.6)
        assert (answer["code"], answer["outcome"]) == ("statement_timeout", "unknown")
        until(lambda: in_use(gateway) == 0, "the place is held")
        assert queued(proxy.port) == 0, "the kernel still sends it"
        proxy.heal()
        assert "code" not in ask(gateway, "call put(3)")
        # The server's side of the dead connection ends; then all that ever came has been done.
        proxy.reset()
        until(lambda: not (pids(database) & before), "the old session lives on")
        assert rows(database) == [1, 3]
        is_whole(gateway, database)


def queued(port: int) -> int:
    """Bytes that the kernel has yet to deliver to *port* of 127.0.0.1."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2] == f"0100007F:{port:04X}":
            total += int(fields[4].partition(":")[0], 16)
    return total


@pytest.mark.slow
def test_a_commit_lost_in_a_dead_network_is_unknown_and_never_arrives(
    database: Database, proxy: Proxy, table: None
) -> None:
    with running(
        over_tcp(settings_for(database, max_connections=2), proxy.port), database
    ) as gateway:
        assert ask(gateway, "select 1")["rows"] == [[1]]
        before = pids(database)

        def cut_off(data: bytes) -> None:
            if b"INSERT 0 1" in data:
                proxy.lose(requests=True)

        proxy.replies.watch = cut_off
        answer = ask(gateway, "insert into t values (1)")
        assert (answer["code"], answer["outcome"]) == ("outcome_unknown", "unknown")
        assert queued(proxy.port) == 0
        proxy.heal()
        assert ask(gateway, "select 1")["rows"] == [[1]]
        proxy.reset()
        until(lambda: not (pids(database) & before), "the old session lives on")
        assert rows(database) == []
        is_whole(gateway, database)


@pytest.mark.slow
def test_connections_that_died_silently_are_noticed_and_nobody_sees_an_error(
    database: Database, proxy: Proxy, table: None
) -> None:
    settings = over_tcp(settings_for(database, max_connections=2), proxy.port)
    for sql in ("select 1", "insert into t values (1)"):
        with running(settings, database) as gateway:
            is_whole(gateway, database)
            old = pids(database)
            assert len(old) == 2
            proxy.forget()
            with ThreadPoolExecutor(6) as threads:
                answers = list(threads.map(lambda _, s=sql: ask(gateway, s), range(6)))
            assert [each for each in answers if "code" in each] == []
            assert not pids(database) <= old, "it was not the old connections that served"
            proxy.bury()
            until(lambda o=old: not (pids(database) & o), "the old sessions live on")
            is_whole(gateway, database)
    assert rows(database) == [1] * 6


# -- deadlines -------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["header", "statement", "target"])
def test_the_smallest_deadline_counts_and_says_that_nothing_happened(
    database: Database, table: None, whose: str
) -> None:
    settings = settings_for(database, max_connections=1)
    main = replace(settings.targets["main"], statement_timeout=0.3 if whose == "target" else 45.0)
    body: dict[str, Any] = {
        "sql": "with w as (insert into t values (1) returning n) select n, pg_sleep(60) from w",
        "timeout": 0.3 if whose == "statement" else 40.0,
    }
    headers = {"x-gateway-deadline-ms": "300" if whose == "header" else "50000"}
    with running(replace(settings, targets={"main": main}), database) as gateway:
        assert ask(gateway, "select 1")["rows"] == [[1]]
        with gateway.http() as client:
            answer = client.post("/execute", json=body, headers=headers).json()
        assert (answer["code"], answer["outcome"]) == ("statement_timeout", "not_executed")
        # Its backend was cancelled, not left to sleep on.
        until(lambda: number(database, "state <> 'idle'") == 0, "the statement runs on")
        assert rows(database) == []
        is_whole(gateway, database)


def test_the_deadline_covers_the_queue(database: Database, table: None) -> None:
    psql = [str(database.server.binaries.program("psql")), "-XqAt", database.dsn]
    with (
        running(settings_for(database, max_connections=1), database) as gateway,
        ThreadPoolExecutor(1) as threads,
        held(psql, GATE) as release,
    ):
        first = threads.submit(ask, gateway, f"select pg_advisory_xact_lock_shared({GATE})")
        until(lambda: number(database, "wait_event = 'advisory'") == 1, "it never ran")
        with gateway.http() as client:
            late = client.post(
                "/execute",
                json={"sql": "insert into t values (1)"},
                headers={"x-gateway-deadline-ms": "300"},
            )
        assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
        answer = late.json()
        assert (answer["code"], answer["outcome"]) == ("queue_timeout", "not_executed")
        release()
        assert "rows" in first.result()
        is_whole(gateway, database)
    assert rows(database) == []


def test_the_deadline_covers_connecting(database: Database, proxy: Proxy) -> None:
    proxy.slow_connect = True
    settings = over_tcp(settings_for(database, max_connections=2), proxy.port)
    with running(settings, database) as gateway:
        answer = ask(gateway, "select 1", timeout=0.3)
        assert (answer["code"], answer["outcome"]) == ("database_unavailable", "not_executed")
        assert answer["detail"] == "the database did not answer in time"
        proxy.heal()
        is_whole(gateway, database)


# -- one connection --------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_connection_is_warm_before_it_is_lent(database: Database) -> None:
    target = settings_for(database).targets["main"]
    connection = await Connector(target, target.logins["app"], database.name).connect(5.0)
    try:
        prepared = await connection.describe("select name from pg_prepared_statements", 5.0)
        answer = await connection.run(prepared, [], timeout=5.0, budget=1 << 20)
        assert ("pgsluice_canary",) in [tuple(row) for row in answer.rows]
        # Types come as PostgreSQL writes them from the first statement on.
        number = await connection.describe("select 1.50::numeric, '24:00'::time", 5.0)
        answer = await connection.run(number, [], timeout=5.0, budget=1 << 20)
        assert tuple(answer.rows[0]) == ("1.50", "24:00:00")
        await connection.begin(TransactionMode(), 5.0)
        assert connection.in_transaction
        assert await connection.clean(5.0)
    finally:
        await connection.close()


@pytest.mark.anyio
async def test_connections_opened_together_do_not_grow_old_together(database: Database) -> None:
    target = settings_for(database, max_lifetime=1000.0).targets["main"]
    connector = Connector(target, target.logins["app"], database.name)
    ages = []
    for _ in range(6):
        connection = await connector.connect(5.0)
        ages.append(connection.expires - connection.born)
        await connection.close()
    assert all(900 <= age <= 1000 for age in ages)
    assert len(set(ages)) == 6


def test_an_old_connection_is_replaced_unnoticed(database: Database) -> None:
    with running(settings_for(database, max_connections=1, max_lifetime=0.1), database) as gateway:
        first = ask(gateway, "select pg_backend_pid()")["rows"]
        until(
            lambda: ask(gateway, "select pg_backend_pid()")["rows"] != first,
            "it is never replaced",
        )
        until(
            lambda: metric(gateway, 'pgsluice_discards_total{target="main",reason="age"}') >= 1,
            "it is not counted",
        )
        is_whole(gateway, database)


def test_a_setting_that_the_server_refuses_is_announced(database: Database, proxy: Proxy) -> None:
    proxy.unknown_setting = b"client_connection_check_interval"
    settings = over_tcp(settings_for(database, max_connections=2), proxy.port)
    with running(settings, database) as gateway:
        assert ask(gateway, "select 1")["rows"] == [[1]]
        target = httpx2.get(gateway.url + "/readyz").json()["targets"]["main"]
        assert "client_connection_check_interval" in target["weakened"]
        is_whole(gateway, database)
