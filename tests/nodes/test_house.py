"""Three nodes behind HAProxy, under load: one is killed, all are restarted, tenants compete.

`make test-nodes` runs this and shows the figures.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.fix_gateway import PATIENCE
from tests.fix_ledger import install_ledger
from tests.fix_postgres import Database
from tests.nodes.house import Callers, House, Sampler, house, house_database

BUDGET = 8
CALLERS = 12
SLOW = "with slept as (select pg_sleep(0.03)) insert into did select :key from slept"
"""What makes the connections scarce, and not the processors of a test machine."""

pytestmark = [pytest.mark.slow, pytest.mark.process]


def say(line: str) -> None:
    """A figure, for whoever runs `make test-nodes`."""
    sys.stdout.write(f"    {line}\n")


@pytest.fixture
def shared(database: Database) -> Database:
    """A database with a ledger and a table that shows every row that came twice."""
    mine = house_database(database)
    install_ledger(mine)
    mine.sql(f"create table did (what text); grant all on did to {mine.app_user}")
    return mine


@pytest.fixture
def three(shared: Database) -> Iterator[House]:
    # HAProxy takes three seconds to believe it, and this machine is busy.
    with house(shared, budget=BUDGET, proxy=True, SERVER__DRAIN_DELAY="6") as it:
        it.await_limits(3, 3, 2)
        yield it


def written(database: Database) -> tuple[int, int]:
    """Rows, and different ones."""
    rows, different = database.sql("select count(*), count(distinct what) from did").split("|")
    return int(rows), int(different)


def check_and_say(it: House, callers: Callers, sampler: Sampler, seconds: float) -> None:
    rows, different = written(it.database)
    say(f"load: {CALLERS} callers, keyed inserts, {callers.total / seconds:,.0f} a second")
    say(f"answered {callers.total:,}, failed {len(callers.failed)}, rows {rows:,}")
    repeated = ", ".join(f"{count} x {why}" for why, count in callers.repeated.most_common())
    say(f"sent again: {repeated or 'nothing'}")
    say(f"backends: {sampler.most} at most in {sampler.samples:,} samples, budget {BUDGET}")
    assert callers.failed == []
    assert rows == different == callers.total
    assert sampler.samples > 10
    assert sampler.over == []
    assert sampler.most <= BUDGET


class Holder(threading.Thread):
    """Opens transactions by way of HAProxy and uses each by way of every node."""

    def __init__(self, it: House, token: str) -> None:
        super().__init__()
        self._url = it.url
        self._token = token
        self.ended = 0
        self.gone: list[str] = []
        self.refused: list[str] = []
        """Transactions that never began."""
        self.strange: list[str] = []
        self.stop = threading.Event()
        self._one_more = threading.Semaphore(0)

    def __enter__(self) -> Holder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()

    def run(self) -> None:
        head = {"authorization": f"Bearer {self._token}"}
        while not self.stop.is_set():
            # A connection each: HAProxy sends each to another node.
            with httpx2.Client(base_url=self._url, headers=head, timeout=60) as client:
                try:
                    self._transaction(client)
                except httpx2.TransportError as error:
                    self.gone.append(type(error).__name__)

    def _transaction(self, client: httpx2.Client) -> None:
        begun = client.post("/transactions", json={})
        if begun.status_code != 201:
            # What a node that is to stop refuses did not begin: it begins on another one.
            if begun.json()["code"] != "draining":
                self.refused.append(begun.text)
            return
        transaction = begun.json()["transaction"]
        for _ in range(4):
            sql = {"sql": "select pg_sleep(0.01)", "transaction": transaction}
            if not self._is_fine(client.post("/execute", json=sql)):
                return
        if self._is_fine(client.post(f"/transactions/{transaction}/commit")):
            self.ended += 1
            self._one_more.release()

    def await_more(self, count: int) -> None:
        """Wait until so many more transactions were committed."""
        while self._one_more.acquire(blocking=False):
            pass
        for _ in range(count):
            found = self._one_more.acquire(timeout=PATIENCE)
            assert found, f"{self.gone} {self.strange} {self.refused}"

    def _is_fine(self, answer: httpx2.Response) -> bool:
        if answer.status_code == 200:
            return True
        if answer.status_code == 502:
            self.gone.append("502")
        elif answer.json()["code"] in ("transaction_gone", "outcome_unknown"):
            self.gone.append(answer.json()["detail"])
        else:
            self.strange.append(answer.text)
        return False


def test_a_node_killed_under_load_costs_its_transactions_and_no_statement(three: House) -> None:
    it, token = three, three.nodes[0].token()
    # A node that may hold two connections may hold one open transaction: this one would keep
    # all others from beginning there.
    limits = it.limits()
    doomed = limits.index(max(limits))
    with it.nodes[doomed].http() as client:
        held = client.post("/transactions", json={}).json()["transaction"]
    with (
        Sampler(it.database, BUDGET) as sampler,
        Callers(it.url, token, callers=CALLERS) as callers,
        Holder(it, token) as holder,
    ):
        begun = time.monotonic()
        callers.await_more(200)
        holder.await_more(5)
        it.kill(doomed)
        it.await_limits(4, 4)
        callers.await_more(300)
        holder.await_more(5)
    say("fault: SIGKILL of one of three nodes")
    check_and_say(it, callers, sampler, time.monotonic() - begun)
    say(f"transactions: {holder.ended:,} committed, {len(holder.gone)} ended by the fault")
    assert holder.strange == []
    # What it held is gone, and whoever is asked says so.
    for node in it.nodes.values():
        answer = node.execute("select 1", transaction=held)
        assert answer.status_code == 410
        assert answer.json()["code"] == "transaction_gone"
        assert "The node that held it is gone" in answer.json()["detail"]


def test_a_rolling_restart_fails_no_statement_and_breaks_no_transaction_that_hurries(
    three: House,
) -> None:
    it, token = three, three.nodes[0].token()
    with (
        Sampler(it.database, BUDGET) as sampler,
        Callers(it.url, token, callers=CALLERS) as callers,
        Holder(it, token) as holder,
    ):
        begun = time.monotonic()
        callers.await_more(200)
        holder.await_more(5)
        for number in range(3):
            it.nodes[number].signal(signal.SIGTERM)
            assert it.forget(number) == 0
            it.start(number)
            it.await_limits(3, 3, 2)
            callers.await_more(100)
    say("fault: each of three nodes stopped by SIGTERM and started again, one after the other")
    check_and_say(it, callers, sampler, time.monotonic() - begun)
    say(f"transactions: {holder.ended:,} committed, {len(holder.gone)} broken")
    # Hardly anything had to be sent again, and nothing that might have run.
    assert callers.repeated.keys() <= {"draining"}
    assert holder.strange == []
    assert holder.gone == []
    assert holder.refused == []


def test_a_quiet_tenant_gets_its_turns_on_all_nodes_beside_a_busy_one(three: House) -> None:
    it = three
    busy, quiet = it.nodes[0].token("busy"), it.nodes[0].token("quiet")
    with (
        Sampler(it.database, BUDGET) as sampler,
        Callers(it.url, busy, callers=24, sql=SLOW) as crowd,
        Callers(it.url, quiet, callers=4, sql=SLOW) as few,
    ):
        # The crowd was there first: what it got alone does not count.
        few.await_more(20)
        before = crowd.total, few.total
        few.await_more(200)
        shares = (crowd.total - before[0]) / 24, (few.total - before[1]) / 4
    say("load: 24 callers of one tenant, 4 of another one")
    say(
        f"turns of each caller: {shares[0]:,.0f} of the busy one, {shares[1]:,.0f} of the quiet one"
    )
    say(f"backends: {sampler.most} at most, budget {BUDGET}")
    assert crowd.failed == few.failed == []
    # Four callers against 24 would have an equal part each if nobody were fair. How much more
    # they get depends on how fast they come again, which is a matter of the processor.
    assert shares[1] > 1.4 * shares[0]
    assert sampler.over == []
    assert sampler.most <= BUDGET
