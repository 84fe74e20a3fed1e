"""The faults, each a function of the stage and a random generator; they leave all well again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from gateway.cli.failing import EmbeddedError
from tests.fix_network import Proxy
from tests.fix_postgres import APP_USER

from .stage import Stage

Fault = Callable[[Stage, random.Random], None]
FAULTS: dict[str, Fault] = {}
"""By name, in the order of the first cycle's shuffle."""

_SESSIONS = (
    f"from pg_stat_activity where usename = '{APP_USER}' and backend_type = 'client backend'"
)


def fault(function: Fault) -> Fault:
    """Add *function* to `FAULTS`."""
    FAULTS[function.__name__] = function
    return function


def schedule(count: int, seed: int) -> list[str]:
    """The names of *count* faults; all of them once in each cycle."""
    rng = random.Random(f"faults {seed}")
    chosen: list[str] = []
    while len(chosen) < count:
        cycle = list(FAULTS)
        rng.shuffle(cycle)
        chosen += cycle
    return chosen[:count]


# -- sessions of the database --------------------------------------------------------------


def _terminate(stage: Stage, rng: random.Random, shots: int, which: str) -> None:
    script = f"select setseed({rng.uniform(-1, 1):.6f}) is null;\n"
    for _ in range(shots):
        script += (
            f"select extract(epoch from clock_timestamp()), pg_terminate_backend(pid) {_SESSIONS}"
            f" and {which} order by random() limit 1;\n"
            f"select pg_sleep({rng.uniform(0.01, 0.04):.3f});\n"
        )
    for line in stage.sql(script).splitlines():
        moment, _, done = line.partition("|")
        if done == "t":
            stage.moments.append(float(moment))


@fault
def backends_terminated(stage: Stage, rng: random.Random) -> None:
    """Any session, again and again."""
    _terminate(stage, rng, 15, "true")


@fault
def backends_terminated_in_commit(stage: Stage, rng: random.Random) -> None:
    """Sessions that are just committing."""
    _terminate(stage, rng, 15, "state = 'active' and query ilike '%commit%'")


@fault
def backend_stopped(stage: Stage, rng: random.Random) -> None:
    """One session does not move for a while, in the middle of whatever it does."""
    found = stage.sql(f"select pid {_SESSIONS} and state <> 'idle' order by pid").split()
    if not found:
        return
    pid = int(rng.choice(found))
    with suppress(ProcessLookupError):
        stage.strike()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)


@fault
def commits_wait_for_a_standby_that_never_comes(stage: Stage, rng: random.Random) -> None:
    """Durable here, not acknowledged; then their sessions are ended."""
    stage.sql("alter system set synchronous_standby_names = 'nobody'")
    stage.sql("select pg_reload_conf()")
    time.sleep(rng.uniform(0.2, 0.4))
    stage.strike()
    stage.sql(f"select count(pg_terminate_backend(pid)) {_SESSIONS} and wait_event = 'SyncRep'")
    stage.sql("alter system reset synchronous_standby_names")
    stage.sql("select pg_reload_conf()")


@fault
def ddl_storm(stage: Stage, rng: random.Random) -> None:
    """Tables change under cached statements."""
    for _ in range(6):
        stage.strike()
        kind = rng.choice(["numeric", "bigint"])
        with suppress(EmbeddedError):  # the victim of a deadlock
            stage.sql(
                "set lock_timeout = '2s';"
                f"alter table accounts alter balance type {kind};"
                f"alter table counters alter value type {kind};"
                "alter table effects add column extra int default 7;"
                "alter table effects drop column extra;"
            )
        time.sleep(rng.uniform(0, 0.1))
    stage.sql("alter table accounts alter balance type bigint")
    stage.sql("alter table counters alter value type bigint")
    stage.sql("alter table effects drop column if exists extra")


# -- the network ---------------------------------------------------------------------------


@fault
def callers_cut_off(stage: Stage, _: random.Random) -> None:
    """Every connection of the senders is reset."""
    stage.strike()
    stage.near.reset()


@fault
def database_cut_off(stage: Stage, _: random.Random) -> None:
    """Every connection to the database is reset."""
    stage.strike()
    stage.far.reset()


def _break(proxy: Proxy) -> None:
    # What was swallowed stays swallowed: all is well for new connections only.
    proxy.slow_connect = True
    proxy.reset()
    proxy.heal()


def _lose(stage: Stage, rng: random.Random, side: str, direction: str) -> None:
    proxy = getattr(stage, side)
    stage.strike()
    getattr(proxy, direction).swallow = True
    time.sleep(rng.uniform(0.1, 0.4))
    stage.strike()
    _break(proxy)


@fault
def replies_to_callers_lost(stage: Stage, rng: random.Random) -> None:
    """What was answered never arrives."""
    _lose(stage, rng, "near", "replies")


@fault
def replies_of_the_database_lost(stage: Stage, rng: random.Random) -> None:
    """What was committed is not told."""
    _lose(stage, rng, "far", "replies")


@fault
def requests_to_the_database_lost(stage: Stage, rng: random.Random) -> None:
    """What was sent never arrives."""
    _lose(stage, rng, "far", "requests")


@fault
def answers_to_callers_cut_short(stage: Stage, _: random.Random) -> None:
    """Each connection of a sender breaks within its next answer."""
    stage.strike()
    stage.near.replies.cut_after = 1
    time.sleep(0.05)
    stage.near.heal()


@fault
def commits_lost(stage: Stage, rng: random.Random) -> None:
    """From a COMMIT on nothing comes back; then all connections break."""
    seen = threading.Event()

    def watch(piece: bytes) -> None:
        if b"COMMIT" in piece and not seen.is_set():
            stage.far.replies.swallow = True
            seen.set()

    for _ in range(3):
        seen.clear()
        stage.far.requests.watch = watch
        seen.wait(0.5)
        time.sleep(rng.uniform(0, 0.08))
        stage.strike()
        stage.far.requests.watch = None
        _break(stage.far)
        time.sleep(0.05)


@fault
def database_out_of_reach(stage: Stage, rng: random.Random) -> None:
    """A pulled cable for a second or so; nothing is reset."""
    stage.strike()
    stage.far.lose(requests=True, replies=True)
    time.sleep(rng.uniform(0.3, 1.2))
    stage.far.heal()


# -- processes -----------------------------------------------------------------------------


@fault
def postmaster_killed(stage: Stage, _: random.Random) -> None:
    """SIGKILL, and started again."""
    stage.restart_server(kill=True)


@fault
def database_restarted(stage: Stage, _: random.Random) -> None:
    """A fast shutdown, and started again."""
    stage.restart_server(kill=False)


@fault
def subject_killed(stage: Stage, _: random.Random) -> None:
    """SIGKILL of the gateway, and started again."""
    stage.strike()
    stage.subject.kill()


@fault
def subject_replaced(stage: Stage, _: random.Random) -> None:
    """A rolling restart: another one is started, then SIGTERM to the old one."""
    stage.strike()
    stage.subject.replace()


@fault
def replica_promoted(stage: Stage, _: random.Random) -> None:
    """A synchronous replica takes the place of its primary, which is killed.

    Synchronous, because what an asynchronous one has not got is lost for everybody.
    """
    old, data = stage.server, stage.next_data()
    subprocess.run(
        [str(stage.binaries.program("pg_basebackup")), "-D", str(data), "-R", "-X", "stream",
         "-c", "fast", "-h", "127.0.0.1", "-p", str(old.port), "-U", "copier"],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    owner = old.data.stat()
    for path in (data, *data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    data.chmod(0o700)
    new = stage.start_server(data)
    following = "select count(*) from pg_stat_replication where state = 'streaming'"
    _until(lambda: stage.sql(following) == "1")
    stage.sql("alter system set synchronous_standby_names = '*'")
    stage.sql("select pg_reload_conf()")
    time.sleep(0.2)
    here = stage.sql("select pg_current_wal_lsn()")
    caught_up = (
        "select count(*) from pg_stat_replication"
        f" where sync_state = 'sync' and flush_lsn >= '{here}'"
    )
    _until(lambda: stage.sql(caught_up) == "1")
    stage.strike()
    os.kill(old.pid, signal.SIGKILL)
    old.stop()
    stage.far.target = new.port
    stage.far.reset()
    stage.strike()
    new.sql("select pg_promote()")
    # The copy was made before it was set, but never mind who is right.
    new.sql("alter system reset synchronous_standby_names")
    new.sql("select pg_reload_conf()")
    stage.server = new
    shutil.rmtree(old.data, ignore_errors=True)


def _until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "the replica does not follow"
        time.sleep(0.02)
