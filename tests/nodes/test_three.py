"""Three nodes behind HAProxy, in short: what `test_house.py` does for long, with figures."""

from __future__ import annotations

import httpx2
import pytest

from tests.fix_gateway import until
from tests.fix_postgres import Database
from tests.nodes.house import Callers, Sampler, house, house_database, metric

BUDGET = 6

pytestmark = pytest.mark.process


def test_three_nodes_share_one_budget_relay_transactions_and_survive_one_of_them(
    database: Database,
) -> None:
    mine = house_database(database)
    mine.sql(f"create table did (what text); grant all on did to {mine.app_user}")
    with (
        Sampler(mine, BUDGET) as sampler,
        house(mine, budget=BUDGET, proxy=True, together=True) as it,
    ):
        it.await_limits(2, 2, 2)
        token = it.nodes[0].token()
        with Callers(it.url, token, callers=6, sql="select :key::text") as callers:
            callers.await_more(30)
            # Begun on one, used by way of every one, ended by way of another.
            with it.nodes[0].http() as first, it.nodes[2].http() as last:
                transaction = first.post("/transactions", json={}).json()["transaction"]
                sql = {
                    "sql": "insert into did select 'once' returning pg_backend_pid()",
                    "transaction": transaction,
                }
                pids = {node.execute(**sql).json()["rows"][0][0] for node in it.nodes.values()}
                assert len(pids) == 1
                assert last.post(f"/transactions/{transaction}/commit").status_code == 200
                held = first.post("/transactions", json={}).json()["transaction"]
            relayed = 'pgsluice_relayed_total{result="answered"}'
            assert [metric(node, relayed) for _, node in sorted(it.nodes.items())] == [0, 1, 2]
            it.kill(0)
            callers.await_more(30)
            it.await_limits(3, 3)
            callers.await_more(30)
        for node in it.nodes.values():
            answer = node.execute("select 1", transaction=held)
            assert (answer.status_code, answer.json()["code"]) == (410, "transaction_gone")
        until(lambda: httpx2.get(it.url + "/readyz").status_code == 200, "nobody answers")
    assert mine.sql("select count(*) from did").strip() == "3"
    assert callers.failed == []
    assert sampler.over == []
    assert 1 < sampler.most <= BUDGET
