"""What a rule gives holds for every way to send a statement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.cli.token import token_for
from gateway.core.model import Limits
from gateway.core.policy import Rule
from tests.fix_gateway import MASTER, RESOURCE, SECRET, Gateway, running, settings_for
from tests.fix_postgres import Database

pytestmark = pytest.mark.wire
LISTED = "select a from open_table where a = $1"
RULES = (
    Rule(name="listed", principals=("listed",), statements="listed", listed=frozenset({LISTED})),
    Rule(
        name="guarded",
        principals=("guarded",),
        tables=("open_table", "public.open_table"),
        verbs=("select", "insert"),
    ),
    Rule(name="dml", principals=("dml",), statements="dml"),
    Rule(name="rate", principals=("rate-*",), limits=Limits(rps=0.01, burst=2)),
    Rule(name="few", principals=("few",), limits=Limits(concurrency=1)),
    Rule(name="reader", principals=("reader",), read_only=True),
)


@pytest.fixture(scope="module")
def gateway(postgres: Any) -> Iterator[Gateway]:
    postgres.sql("create database policy strategy wal_log")
    database = Database(postgres, "policy")
    database.sql(
        "create table open_table (a int); create table secret_table (a int);"
        "grant all on open_table, secret_table to public;"
        "create schema other; grant usage on schema other to public;"
        "create table other.open_table (a int); grant all on other.open_table to public"
    )
    with running(replace(settings_for(database), policy=RULES), database) as it:
        yield it


def send(gateway: Gateway, subject: str, path: str, **body: Any) -> Any:
    token = token_for(MASTER, subject=subject, lifetime=600)
    with gateway.http(token) as client:
        return client.post(path, json=body)


def roads(gateway: Gateway, subject: str, sql: str, **more: Any) -> list[tuple[int, str]]:
    """Status and code of *sql* on every road that takes one statement."""
    begun = send(gateway, subject, "/transactions").json()["transaction"]
    wire = {"resourceArn": RESOURCE, "secretArn": SECRET, "sql": sql}
    answers = [
        send(gateway, subject, "/execute", sql=sql, **more),
        send(gateway, subject, "/batch", statements=[{"sql": sql, **more}]),
        send(gateway, subject, "/execute", sql=sql, transaction=begun, **more),
        send(gateway, subject, "/batch", statements=[{"sql": sql, **more}], transaction=begun),
    ]
    if not more:
        answers.append(send(gateway, subject, "/Execute", **wire))
        answers.append(send(gateway, subject, "/BatchExecute", **wire, parameterSets=[[]]))
    send(gateway, subject, f"/transactions/{begun}/rollback")
    return [
        (each.status_code, each.json().get("code") or each.headers.get("x-amzn-errortype", ""))
        for each in answers
    ]


def refused(count: int) -> list[tuple[int, str]]:
    return [(403, "forbidden")] * 4 + [(403, "AccessDeniedException")] * (count - 4)


def test_only_listed_texts_run_whatever_their_values(gateway: Gateway) -> None:
    assert {each[0] for each in roads(gateway, "listed", LISTED, parameters=[1])} == {200}
    for sql in (LISTED + " ", LISTED.upper(), "select 1", "/* */" + LISTED):
        assert roads(gateway, "listed", sql) == refused(6), sql


@pytest.mark.parametrize(
    ("sql", "good"),
    [
        ("select * from open_table", True),
        ("select * from public.open_table", True),
        ("insert into open_table select 1", True),
        ("select * from secret_table", False),
        ("select * from open_table, secret_table", False),
        ("with x as (select * from secret_table) select * from x", False),
        ("select * from other.open_table", False),
        ("delete from open_table", False),
        ("update open_table set a = 1", False),
        ("set search_path = other", False),
        ("create table x (a int)", False),
        ("do $$ begin perform 1; end $$", False),
        ("select * from open_table where (", False),
    ],
)
def test_tables_and_verbs_hold_on_every_road(gateway: Gateway, sql: str, good: bool) -> None:
    if good:
        assert {each[0] for each in roads(gateway, "guarded", sql)} == {200}
    else:
        assert roads(gateway, "guarded", sql) == refused(6)


def test_a_schema_of_the_request_does_not_lead_around_the_list(gateway: Gateway) -> None:
    wire = {"resourceArn": RESOURCE, "secretArn": SECRET, "sql": "select * from open_table"}
    assert send(gateway, "guarded", "/Execute", **wire).status_code == 200
    done = send(gateway, "guarded", "/Execute", **wire, schema="other")
    assert done.headers["x-amzn-errortype"] == "AccessDeniedException"


def test_savepoints_name_no_table(gateway: Gateway) -> None:
    begun = send(gateway, "guarded", "/transactions").json()["transaction"]
    for sql in ("savepoint a", "insert into open_table values (7)", "rollback to savepoint a"):
        done = send(gateway, "guarded", "/execute", sql=sql, transaction=begun)
        assert done.status_code == 200, done.text
    send(gateway, "guarded", f"/transactions/{begun}/rollback")


def test_which_statement_of_a_batch_is_refused_is_told(gateway: Gateway) -> None:
    texts = ["select * from open_table", "select * from secret_table"]
    done = send(gateway, "guarded", "/batch", statements=[{"sql": sql} for sql in texts])
    assert (done.status_code, done.json()["statement"]) == (403, 1)
    assert "secret_table" not in done.text


def test_who_passes_their_rate_is_told_when_to_come_back(gateway: Gateway) -> None:
    codes = [send(gateway, "rate-a", "/execute", sql="select 1").status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    done = send(gateway, "rate-a", "/execute", sql="select 1")
    assert (done.json()["code"], done.json()["retry"]) == ("rate_limited", "safe")
    assert int(done.headers["retry-after"]) > 1
    wire = {"resourceArn": RESOURCE, "secretArn": SECRET, "sql": "select 1"}
    done = send(gateway, "rate-a", "/Execute", **wire)
    assert (done.status_code, done.headers["x-amzn-errortype"]) == (429, "ThrottlingException")
    # Another principal of the same rule has a rate of its own.
    assert send(gateway, "rate-b", "/execute", sql="select 1").status_code == 200


def test_no_more_are_under_way_than_the_rule_allows(gateway: Gateway) -> None:
    begun = send(gateway, "few", "/transactions")
    assert begun.status_code == 201
    done = send(gateway, "few", "/execute", sql="select 1")
    assert (done.status_code, done.json()["code"]) == (429, "rate_limited")
    send(gateway, "few", f"/transactions/{begun.json()['transaction']}/rollback")
    for _ in range(3):
        assert send(gateway, "few", "/execute", sql="select 1").status_code == 200


def test_dml_and_read_only_hold_on_every_road(gateway: Gateway) -> None:
    assert roads(gateway, "dml", "create table x (a int)") == refused(6)
    codes = [code for _, code in roads(gateway, "reader", "insert into open_table values (1)")]
    # The second statement of the open transaction meets the failure of the first.
    assert codes == ["database_error"] * 3 + ["transaction_failed"] + ["DatabaseErrorException"] * 2


def test_a_principal_without_a_rule_learns_nothing(gateway: Gateway) -> None:
    answers = {
        (done.status_code, done.json()["detail"])
        for done in (
            send(gateway, "nobody", "/execute", sql="select 1"),
            send(gateway, "nobody", "/execute", sql="select 1", target="main"),
            send(gateway, "nobody", "/execute", sql="select 1", target="nothing"),
            send(gateway, "nobody", "/execute", sql="select 1", database="policy"),
            send(gateway, "nobody", "/execute", sql="select 1", database="nothing"),
            send(gateway, "guarded", "/execute", sql="select 1", target="nothing"),
            send(gateway, "guarded", "/execute", sql="select 1", database="nothing"),
        )
    }
    assert len(answers) == 1
