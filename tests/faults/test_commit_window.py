"""What happens to a keyed write at each of its phases, by each fault: is its caller told the truth?

One matrix: phases of a write down, faults across. For each of its cells one request is sent,
held in its phase, and struck; what its caller was told, what `GET /outcomes/{key}` says
afterwards and what is stored have to agree.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.faults.stage import DATABASE, Ours, Stage
from tests.fix_gateway import until
from tests.fix_postgres import APP_USER

pytestmark = [pytest.mark.slow, pytest.mark.process]

_OURS = f"from pg_stat_activity where usename = '{APP_USER}' and backend_type = 'client backend'"
_SLOW = "insert into effects (op, part) select $1, 0 from (select pg_sleep($2::float8)) s"
_LATE = "insert into effects (op, part, late) values ($1, 0, $2::float8 > 0)"
_TRIGGER = """
create or replace function late() returns trigger language plpgsql as
  $$ begin perform pg_sleep(1); return null; end $$
"""

PHASES = ("statement", "commit runs", "commit is durable", "answer on its way")
"""The statement runs; COMMIT runs a deferred trigger; COMMIT is durable and waits for a standby;
COMMIT was answered, and the answer does not arrive."""
FAULTS = ("caller gone", "session ended", "connection cut", "gateway killed")


class Caller:
    """One keyed write in a thread, over a connection that can be cut."""

    def __init__(self, stage: Stage, key: str, sql: str, seconds: float) -> None:
        self.said = "nothing"
        ours = stage.subject
        assert isinstance(ours, Ours)
        self._client = httpx2.Client(
            base_url=f"http://127.0.0.1:{stage.near.port}",
            headers={"authorization": f"Bearer {ours.gateway.token()}", "idempotency-key": key},
            timeout=60,
        )
        self._body = {"sql": sql, "parameters": [key, seconds], "database": DATABASE}
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        try:
            answer = self._client.post("/execute", json=self._body)
        except httpx2.TransportError:
            return
        self.said = "committed" if answer.status_code == 200 else answer.json()["outcome"]

    def join(self) -> str:
        """What it was told."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "it was told nothing, and waits"
        self._client.close()
        return self.said


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage("pgsluice") as it:
        it.sql(_TRIGGER)
        yield it


def hold(stage: Stage, phase: str, key: str) -> tuple[Caller, Callable[[], None]]:
    """Send a write, return when it is in *phase*, with what ends that phase."""
    active = f"select count(*) {_OURS} and state = 'active'"

    def nothing() -> None:
        pass

    if phase == "statement":
        caller = Caller(stage, key, _SLOW, 1.0)
        until(lambda: stage.sql(f"{active} and query like '%pg_sleep%'") == "1", "it does not run")
        return caller, nothing
    if phase == "commit runs":
        caller = Caller(stage, key, _LATE, 1.0)
        where = f"{active} and query ilike 'commit%' and wait_event = 'PgSleep'"
        until(lambda: stage.sql(where) == "1", "COMMIT does not run")
        return caller, nothing
    if phase == "commit is durable":
        stage.sql("alter system set synchronous_standby_names = 'nobody'")
        stage.sql("select pg_reload_conf()")

        def release() -> None:
            stage.sql("alter system reset synchronous_standby_names")
            stage.sql("select pg_reload_conf()")

        caller = Caller(stage, key, _SLOW, 0.0)
        until(lambda: stage.sql(f"{active} and wait_event = 'SyncRep'") == "1", "nobody waits")
        return caller, release
    done, seen = threading.Event(), threading.Event()

    def watch_replies(piece: bytes) -> None:
        if b"INSERT 0 1\0" in piece:
            done.set()

    def watch(piece: bytes) -> None:
        # Others commit, too: what removes keys that had their day.
        if done.is_set() and b"COMMIT\0" in piece and not seen.is_set():
            stage.far.replies.swallow = True
            seen.set()

    stage.far.replies.watch = watch_replies
    stage.far.requests.watch = watch
    caller = Caller(stage, key, _SLOW, 0.0)
    assert seen.wait(60)
    until(lambda: stored(stage, key) == 1, "COMMIT did not arrive")
    stage.far.requests.watch = stage.far.replies.watch = None
    return caller, lambda: _arrives_again(stage)


def _arrives_again(stage: Stage) -> None:
    # What was swallowed stays swallowed: the connections it is missing from have to go.
    stage.far.reset()
    stage.far.heal()


def strike(stage: Stage, fault: str) -> None:
    """Let *fault* happen."""
    if fault == "caller gone":
        stage.near.reset()
    elif fault == "session ended":
        stage.sql(f"select count(pg_terminate_backend(pid)) {_OURS}")
    elif fault == "connection cut":
        stage.far.slow_connect = True
        stage.far.reset()
        stage.far.heal()
    else:
        stage.subject.kill()


def stored(stage: Stage, key: str) -> int:
    return int(stage.sql(f"select count(*) from effects where op = '{key}'"))


def outcome(stage: Stage, key: str) -> str:
    (found,) = stage.subject.ask([key])
    return found


def test_at_every_phase_of_a_commit_and_under_every_fault_what_is_told_is_the_truth(
    stage: Stage, capsys: Any, record_property: Any
) -> None:
    cells: dict[tuple[str, str], str] = {}
    wrong = []
    for phase in PHASES:
        for fault in FAULTS:
            key = f"{phase}-{fault}".replace(" ", "-")
            caller, end = hold(stage, phase, key)
            strike(stage, fault)
            time.sleep(0.05)  # a moment in which the fault can be noticed before the phase ends
            end()
            said = caller.join()
            # It waits for whoever still works on it; what is stored is final then.
            asked = outcome(stage, key)
            count = stored(stage, key)
            truth = {0: "not_executed", 1: "committed"}.get(count, f"{count} times")
            cells[phase, fault] = f"{said}, {asked}, {truth}"
            if said not in ("nothing", truth) or asked != truth:
                wrong.append(f"{phase}, {fault}: {cells[phase, fault]}")
    rows = [f"| {phase} | " + " | ".join(cells[phase, fault] for fault in FAULTS) + " |"
            for phase in PHASES]  # fmt: skip
    head = ["| told, asked, stored | " + " | ".join(FAULTS) + " |", "|---" * 5 + "|"]
    record_property("matrix", {"/".join(cell): text for cell, text in cells.items()})
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join([*head, *rows]) + "\n")
    assert wrong == []
    # The faults did what they are for: somebody was told nothing, or had to be asked about.
    assert {cells[phase, "gateway killed"].split(",")[0] for phase in PHASES} == {"nothing"}
    assert cells["commit is durable", "session ended"].endswith("committed")
