"""What PostgreSQL refuses for want of room, or to end a race, has not happened, and says so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_ledger import Senders, install_ledger, make_table
from tests.fix_postgres import APP_USER, GATEWAYS, Database

LOCKED = "from pg_stat_activity where wait_event_type = 'Lock'"


@pytest.fixture
def kept(database: Database) -> Database:
    install_ledger(database)
    make_table(database)
    database.sql("insert into did values ('a', 0), ('b', 0)")
    return database


def told(answer: Any) -> tuple[str, str, str]:
    document = answer.json()
    return document["sqlstate"], document["outcome"], document["retry"]


def test_a_full_disk_for_temporary_files_is_told_and_nothing_is_kept(kept: Database) -> None:
    kept.sql(f"alter role {APP_USER} in database {kept.name} set temp_file_limit = '256kB'")
    sql = (
        "insert into did select repeat('x', 200), n from generate_series(1, 100000) n"
        " order by md5(n::text)"
    )
    with running(settings_for(kept), kept) as gateway:
        senders = Senders(gateway)
        senders.send("/execute", {"sql": sql}, "k")
        (answer,) = senders.join()
        assert told(answer) == ("53400", "not_executed", "never")
        # The next one with the key is free, and so is the connection.
        assert gateway.execute("insert into did values ('c')")["row_count"] == 1
    assert kept.sql("select count(*) from did") == "3"


def test_the_victim_of_a_deadlock_has_not_happened_and_may_be_sent_again(kept: Database) -> None:
    kept.sql("alter system set deadlock_timeout = '50ms'; select pg_reload_conf()")
    try:
        with running(settings_for(kept), kept) as gateway, gateway.http() as client:
            first, second = (
                client.post("/transactions", json={}).json()["transaction"] for _ in range(2)
            )

            def add(transaction: str, what: str) -> Any:
                body = {"sql": "update did set n = n + 1 where what = $1", "parameters": [what]}
                return client.post("/execute", json={**body, "transaction": transaction})

            assert add(first, "a").status_code == add(second, "b").status_code == 200
            senders = Senders(gateway)
            body = {"sql": "update did set n = n + 1 where what = 'b'", "transaction": first}
            senders.send_without_key("/execute", body)
            waits = f"select count(*) {LOCKED} and {GATEWAYS}"
            until(lambda: kept.sql(waits) == "1", "the first does not wait")
            answers = [add(second, "a"), *senders.join()]
            lost = [answer for answer in answers if answer.status_code != 200]
            assert [told(answer) for answer in lost] == [("40P01", "not_executed", "safe")]
            for transaction in (first, second):
                client.post(f"/transactions/{transaction}/commit", json={})
        assert kept.sql("select n from did order by what") == "1\n1"
    finally:
        kept.sql("alter system reset deadlock_timeout; select pg_reload_conf()")


def test_the_loser_of_a_race_between_serializable_writes_may_be_sent_again(
    kept: Database,
) -> None:
    body = {
        "statements": [
            {"sql": "select sum(n) from did"},
            {"sql": "select pg_sleep(0.3)"},
            {"sql": "insert into did select 'x', 1"},
        ],
        "isolation": "serializable",
    }
    with running(settings_for(kept), kept) as gateway:
        senders = Senders(gateway)
        for number in range(4):
            senders.send("/batch", body, f"k{number}")
        answers = senders.join()
        lost = [answer for answer in answers if answer.status_code != 200]
        assert lost, "nobody lost the race"
        assert {told(answer) for answer in lost} == {("40001", "not_executed", "safe")}
    assert int(kept.sql("select count(*) from did where what = 'x'")) == len(answers) - len(lost)


def test_a_database_that_takes_nobody_is_told_as_unavailable_and_taken_when_it_does(
    kept: Database,
) -> None:
    settings = settings_for(kept)
    with running(settings, kept) as gateway:
        kept.server.sql(f"alter database {kept.name} allow_connections false")
        kept.server.sql(
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{kept.name}'"
        )
        answer = _write(gateway)
        assert answer.status_code == 503
        assert answer.json()["outcome"] == "not_executed"
        kept.server.sql(f"alter database {kept.name} allow_connections true")
        until(lambda: _write(gateway).status_code == 200, "it is not taken again")
    assert kept.sql("select count(*) from did where what = 'x'") == "1"


def _write(gateway: Gateway) -> Any:
    with gateway.http() as client:
        return client.post(
            "/execute",
            json={"sql": "insert into did values ('x')", "timeout": 3},
            headers={"idempotency-key": "k"},
        )
