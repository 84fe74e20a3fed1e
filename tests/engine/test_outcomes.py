"""Every failure says whether it happened, and what is not known can be asked for later."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from gateway.cli.token import token_for
from tests.fix_gateway import MASTER, Gateway, running, settings_for, until
from tests.fix_ledger import LostCommit, Senders, behind_proxy, install_ledger, make_table
from tests.fix_postgres import APP_USER, GATEWAYS, Database

INSERT = "insert into did (what) values ($1) returning what"


def write(gateway: Gateway, what: str, key: str | None, **more: Any) -> Any:
    headers = {} if key is None else {"idempotency-key": key}
    with gateway.http() as client:
        body = {"sql": INSERT, "parameters": [what], **more}
        return client.post("/execute", json=body, headers=headers)


def outcome(gateway: Gateway, key: str, subject: str = "tester") -> Any:
    with gateway.http(token_for(MASTER, subject=subject, lifetime=600)) as client:
        answer = client.get(f"/outcomes/{key}")
        assert answer.status_code == 200, answer.text
        return answer.json()


def rows(database: Database) -> int:
    return int(database.sql("select count(*) from did"))


def test_what_became_of_a_key_can_be_asked(ledger_gateway: Gateway) -> None:
    write(ledger_gateway, "a", "done")
    write(ledger_gateway, "a", "refused", max_rows=-1)
    told = outcome(ledger_gateway, "done")
    assert told["outcome"] == "committed"
    assert told["committed_at"].endswith("+00:00")
    assert outcome(ledger_gateway, "refused") == {"outcome": "not_executed"}
    assert outcome(ledger_gateway, "never%20sent") == {"outcome": "not_executed"}


def test_nobody_is_told_of_anothers_keys(ledger_gateway: Gateway) -> None:
    write(ledger_gateway, "a", "k")
    assert outcome(ledger_gateway, "k", "somebody else") == {"outcome": "not_executed"}


def test_whoever_asks_while_it_runs_waits_for_the_truth(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    with ledger_gateway.http() as client:
        id = client.post("/transactions", json={}).json()["transaction"]
        client.post("/execute", json={"sql": "lock table did in exclusive mode", "transaction": id})
        senders = Senders(ledger_gateway)
        senders.send("/execute", {"sql": INSERT, "parameters": ["a"]}, "k")
        until(
            lambda: ledger_database.sql(
                "select count(*) from pg_stat_activity"
                f" where wait_event = 'relation' and {GATEWAYS}"
            ) == "1",
            "it never waited",
        )  # fmt: skip
        brief = client.get("/outcomes/k", headers={"x-gateway-deadline-ms": "50"})
        assert brief.json() == {"outcome": "unknown"}
        client.post(f"/transactions/{id}/rollback")
        assert outcome(ledger_gateway, "k")["outcome"] == "committed"
        senders.join()


def test_without_the_table_only_what_is_remembered_is_told(database: Database) -> None:
    from tests.fix_gateway import running, settings_for

    make_table(database)
    with running(settings_for(database), database) as gateway:
        write(gateway, "a", "k")
        assert outcome(gateway, "k")["outcome"] == "committed"
        assert outcome(gateway, "other") == {"outcome": "unknown"}


def test_a_transaction_that_wrote_nothing_is_remembered_where_it_ended(
    ledger_gateway: Gateway,
) -> None:
    with ledger_gateway.http() as client:
        id = client.post("/transactions", json={}).json()["transaction"]
        client.post(f"/transactions/{id}/commit", headers={"idempotency-key": "k"})
    assert outcome(ledger_gateway, "k")["outcome"] == "committed"


# -- errors -------------------------------------------------------------------------------


def test_a_statement_that_fails_at_its_commit_was_not_executed(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    ledger_database.sql(
        "create table parent (a int primary key);"
        "create table child (a int references parent deferrable initially deferred);"
        f"grant all on parent, child to {APP_USER}"
    )
    with ledger_gateway.http() as client:
        answer = client.post(
            "/execute",
            json={"sql": "insert into child values (1)"},
            headers={"idempotency-key": "k"},
        )
    assert (answer.status_code, answer.json()["sqlstate"]) == (400, "23503")
    assert answer.json()["outcome"] == answer.headers["x-gateway-outcome"] == "not_executed"
    assert outcome(ledger_gateway, "k") == {"outcome": "not_executed"}


def test_an_answer_that_cannot_be_written_says_that_the_work_is_done(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    body = {"sql": "insert into did values ('a') returning what as x, n as x", "rows": "objects"}
    with ledger_gateway.http() as client:
        for _ in range(2):
            answer = client.post("/execute", json=body, headers={"idempotency-key": "k"})
            assert answer.status_code == 400
            assert answer.json()["outcome"] == "committed"
            assert answer.json()["retry"] == "never"
    assert rows(ledger_database) == 1


def test_a_lost_commit_without_a_key_is_unknown_and_never_a_5xx(database: Database) -> None:
    make_table(database)
    install_ledger(database)
    with behind_proxy(database) as (gateway, proxy):
        lost = LostCommit(proxy, arrives=True)
        answers: list[Any] = []
        senders = Senders(gateway)
        senders.send_without_key("/execute", {"sql": INSERT, "parameters": ["a"]})
        lost.finish(lambda: rows(database) == 1)
        answers = senders.join()
    (answer,) = answers
    assert (answer.status_code, answer.json()["code"]) == (400, "outcome_unknown")
    assert (answer.json()["outcome"], answer.json()["retry"]) == ("unknown", "unknown")
    assert answer.json()["sqlstate"] == "08007"
    assert rows(database) == 1


@pytest.mark.parametrize("ledger", [True, False], ids=["with the table", "without"])
@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "request lost"])
def test_what_could_not_be_resolved_at_once_is_told_when_the_database_is_back(
    database: Database, ledger: bool, arrives: bool
) -> None:
    make_table(database)
    if ledger:
        install_ledger(database)
    with behind_proxy(database) as (gateway, proxy):
        lost = LostCommit(proxy, arrives=arrives)
        senders = Senders(gateway)
        senders.send("/execute", {"sql": INSERT, "parameters": ["a"], "timeout": 1.0}, "a/b c")
        assert lost.seen.wait(60)
        if arrives:
            until(lambda: rows(database) == 1, "the COMMIT did not arrive")
        proxy.refuse_connections()
        lost.finish()
        (answer,) = senders.join()
        assert (answer.status_code, answer.json()["outcome"]) == (400, "unknown"), answer.text
        assert answer.json()["outcome_url"] == "/outcomes/a%2Fb%20c"
        proxy.take_connections()
        with gateway.http() as client:
            told = client.get(answer.json()["outcome_url"]).json()
        assert told["outcome"] == ("committed" if arrives else "not_executed")
        # Sent again it is done, once.
        again = write(gateway, "a", "a/b c", timeout=1.0)
        assert again.status_code == 200, again.text
        assert ("x-gateway-replayed" in again.headers) is arrives
    assert rows(database) == 1


def test_an_aws_sdk_is_told_where_to_ask(database: Database) -> None:
    from tests.wire.data_api import DataApi

    make_table(database)
    install_ledger(database)
    with behind_proxy(database, statement_timeout=1.0) as (gateway, proxy):
        api = DataApi(gateway)
        ids: list[str] = []

        def note(request: Any, **_: Any) -> None:
            ids.append(request.headers["amz-sdk-invocation-id"].decode())

        api.client.meta.events.register("before-send.rds-data", note)
        lost = LostCommit(proxy, arrives=True)
        caught: list[Any] = []

        def work() -> None:
            try:
                api.execute("insert into did values ('a')")
            except api.client.exceptions.DatabaseErrorException as error:
                caught.append(error)

        senders = Senders(gateway)
        senders.run(work)
        assert lost.seen.wait(60)
        until(lambda: rows(database) == 1, "the COMMIT did not arrive")
        proxy.refuse_connections()
        lost.finish()
        senders.join()
        proxy.take_connections()
        (error,) = caught
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
        assert headers["x-gateway-outcome"] == "unknown"
        assert headers["x-gateway-outcome-url"] == f"/outcomes/{ids[0]}"
        assert "SQLState: 08007" in error.response["message"]
        assert outcome(gateway, ids[0])["outcome"] == "committed"
        api.client.close()


# -- retries inside -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "key"),
    [
        pytest.param("select 7, pg_sleep(0.5)", None, id="a read"),
        pytest.param("insert into did select 'a' from pg_sleep(0.5)", None, id="a write"),
        pytest.param("insert into did select 'a' from pg_sleep(0.5)", "k", id="a keyed write"),
    ],
)
def test_a_statement_whose_backend_is_killed_is_run_again_once(
    ledger_gateway: Gateway, ledger_database: Database, sql: str, key: str | None
) -> None:
    senders = Senders(ledger_gateway)
    if key is None:
        senders.send_without_key("/execute", {"sql": sql})
    else:
        senders.send("/execute", {"sql": sql}, key)
    kill = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        f" where wait_event = 'PgSleep' and {GATEWAYS}"
    )
    until(lambda: ledger_database.sql(kill) == "1", "it never ran")
    (answer,) = senders.join()
    assert answer.status_code == 200, answer.text
    assert rows(ledger_database) == ("insert" in sql)


def test_a_statement_that_kills_its_backend_is_not_run_for_ever(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    ledger_database.sql(f"create sequence tried; grant all on sequence tried to {APP_USER}")
    with ledger_gateway.http() as client:
        answer = client.post(
            "/execute",
            json={
                "sql": "insert into did select nextval('tried')::text"
                " from (select pg_terminate_backend(pg_backend_pid())) t"
            },
        )
    assert (answer.status_code, answer.json()["outcome"]) == (503, "not_executed")
    assert int(ledger_database.sql("select last_value from tried")) <= 2
    assert rows(ledger_database) == 0


def test_who_lost_a_connection_is_given_a_new_one_and_none_of_the_same_dying_server(
    ledger_database: Database,
) -> None:
    """What else is open may be about to go as well, and a repetition is had only once."""
    ledger_database.sql("create table away (n int); grant select on away to public")
    ours = f"from pg_stat_activity where application_name = 'pgsluice' and {GATEWAYS}"
    settings = settings_for(ledger_database, max_connections=2)
    slow = {
        "sql": "insert into did select $1 from"
        " (select pg_sleep(case when exists (select from away) then 0 else 60 end)) s",
        "parameters": ["a"],
    }
    stopped: list[int] = []
    with running(settings, ledger_database) as gateway:
        senders = Senders(gateway)
        for number in range(2):
            senders.send("/execute", slow | {"parameters": [f"{number}"]}, f"k{number}")
        busy = f"select pid {ours} and query like '%pg_sleep%' and state = 'active'"
        until(lambda: len(ledger_database.sql(busy).split()) == 2, "two do not run")
        first, second = map(int, ledger_database.sql(busy).split())
        try:
            # The second one will be idle, and then as good as dead.
            ledger_database.sql(f"select pg_cancel_backend({second})")
            idle = f"select count(*) {ours} and pid = {second} and query like 'RESET%'"
            idle += " and state = 'idle'"
            until(lambda: ledger_database.sql(idle) == "1", "it is not idle")
            os.kill(second, signal.SIGSTOP)
            stopped.append(second)
            ledger_database.sql(
                f"insert into away values (1); select pg_terminate_backend({first})"
            )
            answers = senders.join()
            states = sorted(answer.status_code for answer in answers)
            assert states == [200, 400], [answer.text for answer in answers]
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
    assert rows(ledger_database) == 1


def test_a_refused_write_on_a_primary_is_not_taken_for_a_failover(
    ledger_database: Database,
) -> None:
    """25006 comes of standbys and of read-only transactions: the server is asked which it is."""
    ours = f"select pid from pg_stat_activity where application_name = 'pgsluice' and {GATEWAYS}"
    with running(settings_for(ledger_database, max_connections=1), ledger_database) as gateway:
        assert write(gateway, "a", None).status_code == 200
        before = ledger_database.sql(ours).split()
        with gateway.http() as client:
            for _ in range(2):
                body = {"sql": INSERT, "parameters": ["b"], "read_only": True}
                answer = client.post("/execute", json=body)
                assert (answer.status_code, answer.json()["sqlstate"]) == (400, "25006")
                assert answer.json()["outcome"] == "not_executed"
        # A write that reads first: refused, and sent again on its own way, on the same session.
        ledger_database.sql(
            "create function put() returns int language sql security definer as"
            " $$ insert into did values ('c') returning 1 $$"
        )
        assert gateway.execute("select put()")["rows"] == [[1]]
        assert ledger_database.sql(ours).split() == before
    assert rows(ledger_database) == 2


def test_ddl_under_a_batch_is_not_the_callers_error(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    body = {"statements": [{"sql": "select * from did"}, {"sql": "insert into did values ('a')"}]}
    with ledger_gateway.http() as client:
        assert client.post("/batch", json=body).status_code == 200
        ledger_database.sql("alter table did add column more text default 'm'")
        answer = client.post("/batch", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["rows"] == [["a", 0, "m"]]


def _begun(client: Any, **members: Any) -> str:
    answer = client.post("/transactions", json=members)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["transaction"])


@pytest.mark.parametrize(
    ("change", "last"),
    [
        ("alter table did add column more text default 'm'", ["a", "m"]),
        ("alter table did alter what type varchar(9)", ["a"]),
        ("drop table did; create table did (n int, what text); insert into did values (1, 'a');"
         " grant all on did to public",
         [1, "a"]),
    ],
    ids=["a column more", "another type", "another table"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["execute", "batch"])
def test_ddl_under_the_first_statement_of_a_transaction_is_not_the_callers_error(
    database: Database, change: str, last: list[Any], how: str
) -> None:
    database.sql("create table did (what text); insert into did values ('a')")
    database.sql("grant all on did to public")
    sql = "select * from did"
    body: Any = {"sql": sql} if how == "execute" else {"statements": [{"sql": sql}]}
    # One connection, so that the statement is surely known there.
    settings = settings_for(database, max_connections=1)
    with running(settings, database) as gateway, gateway.http() as client:
        for rows_wanted in (["a"], last):
            mode = {"isolation": "repeatable_read"}
            body["transaction"] = _begun(client, **mode)
            answer = client.post(f"/{how}", json=body)
            assert answer.status_code == 200, answer.text
            result = answer.json() if how == "execute" else answer.json()["results"][0]
            assert result["rows"] == [rows_wanted]
            # It is still the transaction that was asked for.
            asked = {"sql": "show transaction_isolation", "transaction": body["transaction"]}
            level = client.post("/execute", json=asked).json()["rows"]
            assert level == [["repeatable read"]]
            address = f"/transactions/{body['transaction']}/commit"
            assert client.post(address, json={}).status_code == 200
            if rows_wanted == ["a"]:
                database.sql(change)


def test_ddl_under_a_later_statement_of_a_transaction_ends_it_and_loses_nothing_silently(
    database: Database,
) -> None:
    database.sql("create table did (what text); grant all on did to public")
    settings = settings_for(database, max_connections=1)
    with running(settings, database) as gateway, gateway.http() as client:
        assert client.post("/execute", json={"sql": "select * from did"}).status_code == 200
        transaction = _begun(client)
        seen = client.post("/execute", json={"sql": "select 1", "transaction": transaction})
        assert seen.status_code == 200
        database.sql("alter table did add column more text")
        asked = {"sql": "select * from did", "transaction": transaction}
        refused = client.post("/execute", json=asked)
        # What it has read before may have been acted upon: nobody may begin it anew unasked.
        assert (refused.status_code, refused.json()["sqlstate"]) == (400, "0A000")
        assert refused.json()["outcome"] == "not_executed"
        assert client.post("/execute", json=asked).json()["sqlstate"] == "25P02"


def test_only_what_surely_was_not_executed_is_answered_with_what_sdks_send_again() -> None:
    from gateway.core.errors import GatewayError, Outcome, Retry

    kinds = [GatewayError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    # SDKs repeat 5xx and 429 without asking.
    repeated = {kind for kind in kinds[1:] if kind.status >= 500 or kind.status == 429}
    assert len(repeated) > 5
    for kind in repeated:
        assert (kind.outcome, kind.retry) == (Outcome.NOT_EXECUTED, Retry.SAFE), kind
