"""Packets of the database that get lost on their way back, while what is sent to it arrives."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from tests.fix_gateway import until
from tests.fix_ledger import Senders, behind_proxy
from tests.fix_network import Proxy
from tests.fix_postgres import GATEWAYS, Database

INSERT = "insert into did (what) values ($1) returning what"
OURS = f"from pg_stat_activity where {GATEWAYS}"


def rows(database: Database) -> int:
    return int(database.sql("select count(*) from did"))


def pids(database: Database) -> set[str]:
    return set(database.sql(f"select pid {OURS}").split())


def lose_replies_after(proxy: Proxy, said: bytes) -> None:
    """When the database has said this, nothing of it arrives any more."""

    def watch(piece: bytes) -> None:
        if said in piece:
            proxy.replies.watch = None
            proxy.lose(replies=True)

    proxy.replies.watch = watch


def lose_replies_to(proxy: Proxy, sent: bytes) -> None:
    """What is sent with these bytes in it arrives, and is answered in vain."""

    def watch(piece: bytes) -> None:
        if sent in piece:
            proxy.requests.watch = None
            proxy.lose(replies=True)

    proxy.requests.watch = watch


@pytest.mark.parametrize("key", ["k", None], ids=["with a key", "without"])
def test_a_write_that_is_done_but_never_answered_is_undone_at_its_deadline(
    ledger_database: Database, key: str | None, capsys: Any, record_property: Any
) -> None:
    timeout = 0.8
    with (
        behind_proxy(ledger_database, max_connections=2) as (gateway, proxy),
        gateway.http() as client,
    ):
        headers = {} if key is None else {"idempotency-key": key}
        body = {"sql": INSERT, "parameters": ["first"]}
        first = client.post("/execute", json=body, headers={**headers, "idempotency-key": "0"})
        assert first.status_code == 200
        old = pids(ledger_database)
        if key is None:
            lose_replies_to(proxy, b"BEGIN")
        else:
            # It was looked up; the statement that follows is done, and its answer lost.
            lose_replies_after(proxy, b"SELECT 0\0")
        began = time.monotonic()
        body = {"sql": INSERT, "parameters": ["second"], "timeout": timeout}
        answer = client.post("/execute", json=body, headers=headers)
        took = time.monotonic() - began
        assert (answer.json()["code"], answer.json()["outcome"]) == (
            "statement_timeout",
            "not_executed",
        )
        proxy.heal()
        # Nothing that was on its way takes effect later: its session ends without a COMMIT.
        proxy.reset()
        until(lambda: not (pids(ledger_database) & old), "the old session lives on")
        assert rows(ledger_database) == 1
        if key is not None:
            assert client.get(f"/outcomes/{key}").json()["outcome"] == "not_executed"
    record_property("beyond_the_deadline_seconds", round(took - timeout, 3))
    with capsys.disabled():
        sys.stdout.write(f"\nanswered {took - timeout:.3f} s after its deadline\n")


@pytest.mark.parametrize("then", ["arrives late", "is lost"])
@pytest.mark.parametrize("key", ["k", None], ids=["with a key", "without"])
def test_a_commit_whose_answer_is_held_up_is_told_as_it_is(
    ledger_database: Database, key: str | None, then: str
) -> None:
    with behind_proxy(ledger_database, max_connections=2) as (gateway, proxy):
        lose_replies_to(proxy, b"COMMIT\0")
        senders = Senders(gateway)
        body = {"sql": INSERT, "parameters": ["a"]}
        if key is None:
            senders.send_without_key("/execute", body)
        else:
            senders.send("/execute", body, key)
        until(lambda: rows(ledger_database) == 1, "the COMMIT did not arrive")
        assert senders.answers == []
        if then == "is lost":
            proxy.reset()
        # What was not acknowledged is sent again by the kernel of the database's machine.
        proxy.heal()
        (answer,) = senders.join()
        if key is None and then == "is lost":
            assert (answer.status_code, answer.json()["outcome"]) == (400, "unknown")
        else:
            assert answer.status_code == 200, answer.text
    assert rows(ledger_database) == 1
