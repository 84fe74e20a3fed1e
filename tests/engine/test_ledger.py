"""Keyed writes take effect once, whoever sends them how often, and whatever is lost."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.token import token_for
from gateway.core.idempotency import KEPT_BYTES
from gateway.core.policy import Rule
from gateway.settings import Settings
from tests.fix_gateway import (
    MASTER,
    PROCESS_MASTER_KEY,
    Gateway,
    process,
    running,
    settings_for,
    until,
)
from tests.fix_ledger import LostCommit, Senders, behind_proxy, install_ledger, make_table
from tests.fix_postgres import APP_USER, GATEWAYS, Database

INSERT = "insert into did (what) values ($1) returning what, clock_timestamp()"


def post(gateway: Gateway, path: str, body: Any, key: str | None = None, **headers: str) -> Any:
    if key is not None:
        headers["idempotency-key"] = key
    with gateway.http() as client:
        return client.post(path, json=body, headers=headers)


def write(gateway: Gateway, what: str, key: str | None, sql: str = INSERT) -> Any:
    return post(gateway, "/execute", {"sql": sql, "parameters": [what]}, key)


def rows(database: Database, what: str = "%") -> int:
    return int(database.sql(f"select count(*) from did where what like '{what}'"))


def test_a_repeated_write_gets_the_first_answer_byte_for_byte_and_says_so(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    first = write(ledger_gateway, "a", "k")
    second = write(ledger_gateway, "a", "k")
    assert first.status_code == second.status_code == 200
    assert second.content == first.content
    assert first.headers["x-gateway-idempotency"] == "database"
    assert "x-gateway-replayed" not in first.headers
    assert second.headers["x-gateway-replayed"] == "true"
    assert rows(ledger_database) == 1


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(
            "insert into did select 'x'"
            " returning 'NaN'::float8, '-Infinity'::float4, 1.50::numeric",
            id="numbers that JSON has no word for",
        ),
        pytest.param(
            "insert into did select 'x' returning null::text, '\\x00ff'::bytea, '{1,null}'::int[],"
            " '{\"a\": 1.0}'::jsonb, 'ü'::text, timestamptz 'infinity', true, 9007199254740993",
            id="one of each kind",
        ),
        pytest.param("insert into did select 'x'", id="no rows"),
        pytest.param("create table made_x (a int)", id="a definition"),
    ],
)
def test_an_answer_of_any_types_is_repeated_byte_for_byte(
    ledger_gateway: Gateway, sql: str
) -> None:
    first, second = (post(ledger_gateway, "/execute", {"sql": sql}, "k") for _ in range(2))
    assert first.status_code == 200, first.text
    assert (second.content, second.headers["x-gateway-replayed"]) == (first.content, "true")


def test_twins_at_the_same_time_take_effect_once(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    senders = Senders(ledger_gateway)
    sql = "insert into did select $1 from pg_sleep(0.2) returning clock_timestamp()"
    for _ in range(6):
        senders.send("/execute", {"sql": sql, "parameters": ["a"]}, "k")
    answers = senders.join()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("x-gateway-replayed" in answer.headers for answer in answers) == 5
    assert rows(ledger_database) == 1


def test_twins_on_two_nodes_take_effect_once(ledger_database: Database) -> None:
    settings = settings_for(ledger_database)
    with (
        running(settings, ledger_database) as one,
        running(settings, ledger_database) as two,
        one.http() as client,
    ):
        begun = client.post("/transactions", json={}).json()["transaction"]
        # A lock of our own keeps the first one inside its statement.
        client.post(
            "/execute", json={"sql": "lock table did in exclusive mode", "transaction": begun}
        )
        first, second = Senders(one), Senders(two)
        body = {"sql": INSERT, "parameters": ["a"]}
        first.send("/execute", body, "k")
        waits = "select count(*) from pg_stat_activity where wait_event = {} and " + GATEWAYS
        until(lambda: ledger_database.sql(waits.format("'relation'")) == "1", "the first waits")
        second.send("/execute", body, "k")
        until(lambda: ledger_database.sql(waits.format("'advisory'")) == "1", "the twin waits")
        client.post(f"/transactions/{begun}/rollback")
        answers = first.join() + second.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    assert "x-gateway-replayed" in answers[1].headers
    assert rows(ledger_database) == 1


def test_a_write_is_remembered_over_a_restart(ledger_database: Database) -> None:
    settings = settings_for(ledger_database)
    with running(settings, ledger_database) as gateway:
        first = write(gateway, "a", "k")
    with running(settings, ledger_database) as gateway:
        second = write(gateway, "a", "k")
    assert (second.content, second.headers["x-gateway-replayed"]) == (first.content, "true")
    assert rows(ledger_database) == 1


OTHER = b"another master key, for tests only"


def under(settings: Settings, master: bytes, previous: bytes | None = None) -> Settings:
    """*settings* with these master keys."""
    auth = replace(settings.auth, master_key=master, previous_master_key=previous)
    return replace(settings, auth=auth)


def under_token(gateway: Gateway, master: bytes, what: str, key: str) -> Any:
    token = token_for(master, subject="tester", lifetime=600)
    with gateway.http(token) as client:
        body = {"sql": INSERT, "parameters": [what]}
        return client.post("/execute", json=body, headers={"idempotency-key": key})


def test_keys_are_known_by_every_node_while_the_master_key_is_replaced(
    ledger_database: Database,
) -> None:
    settings = settings_for(ledger_database)
    with (
        running(under(settings, MASTER), ledger_database) as old,
        running(under(settings, OTHER, MASTER), ledger_database) as both,
        running(under(settings, OTHER), ledger_database) as new,
    ):
        before = under_token(old, MASTER, "before", "k1")
        during = under_token(both, MASTER, "during", "k2")
        repeats = [
            (before, under_token(both, OTHER, "before", "k1")),
            (during, under_token(both, OTHER, "during", "k2")),
            (during, under_token(old, MASTER, "during", "k2")),
            (during, under_token(new, OTHER, "during", "k2")),
        ]
        with both.http() as client:
            assert client.get("/outcomes/k1").json()["outcome"] == "committed"
        # What the new key alone cannot know: why the previous one is kept for a day.
        with new.http(token_for(OTHER, subject="tester", lifetime=600)) as client:
            assert client.get("/outcomes/k1").json()["outcome"] == "not_executed"
    for first, second in repeats:
        assert second.headers.get("x-gateway-replayed") == "true", second.text
        assert second.content == first.content
    assert (rows(ledger_database, "before"), rows(ledger_database, "during")) == (1, 1)


@pytest.mark.parametrize("first", ["old", "both", "new"])
def test_twins_take_effect_once_while_the_master_key_is_replaced(
    ledger_database: Database, first: str
) -> None:
    settings = settings_for(ledger_database)
    with (
        running(under(settings, MASTER), ledger_database) as old,
        running(under(settings, OTHER, MASTER), ledger_database) as both,
        running(under(settings, OTHER), ledger_database) as new,
        old.http() as client,
    ):
        nodes = {"old": (old, MASTER), "both": (both, OTHER), "new": (new, OTHER)}
        other = nodes["both"] if first != "both" else nodes["new"]
        begun = client.post("/transactions", json={}).json()["transaction"]
        lock = {"sql": "lock table did in exclusive mode", "transaction": begun}
        assert client.post("/execute", json=lock).status_code == 200
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda each=each: answers.append(under_token(*each, "a", "k")))
            for each in (nodes[first], other)
        ]
        waits = "select count(*) from pg_stat_activity where wait_event = {} and " + GATEWAYS
        for thread, event in zip(threads, ("'relation'", "'advisory'"), strict=True):
            thread.start()
            until(lambda event=event: ledger_database.sql(waits.format(event)) == "1", "it waits")
        client.post(f"/transactions/{begun}/rollback")
        for thread in threads:
            thread.join(60)
    assert [answer.status_code for answer in answers] == [200, 200], answers
    assert answers[0].content == answers[1].content
    assert rows(ledger_database) == 1


def test_keys_are_known_after_the_master_key_was_replaced_by_a_reload(
    ledger_database: Database, tmp_path: Path
) -> None:
    config = tmp_path / "gateway.toml"

    def write_config(auth: str) -> None:
        server = ledger_database.server
        config.write_text(
            f'[auth]\n{auth}[targets.main]\nhosts = ["127.0.0.1:{server.port}"]\n'
            f'tls = "disable"\ndatabase = "{ledger_database.name}"\n'
            f'[targets.main.logins.app]\nuser = "{APP_USER}"\n'
            '[[policy]]\nname = "all"\nresources = ["*"]\nsecrets = ["*"]\n'
        )

    environ = {"AUTH__MASTER_KEY": ""}
    first_key, second_key = PROCESS_MASTER_KEY, PROCESS_MASTER_KEY.swapcase()
    write_config(f'master_key = "{first_key}"\n')
    with process(ledger_database, config, **environ) as gateway:

        def send(master: str) -> Any:
            token = token_for(master.encode(), subject="tester", lifetime=600)
            with gateway.http(token) as client:
                body = {"sql": INSERT, "parameters": ["a"]}
                return client.post("/execute", json=body, headers={"idempotency-key": "k"})

        first = send(first_key)
        assert first.status_code == 200, first.text
        assert send(second_key).status_code == 401
        write_config(f'master_key = "{second_key}"\nprevious_master_key = "{first_key}"\n')
        gateway.signal(signal.SIGHUP)
        until(lambda: send(second_key).status_code != 401, "the new key does not count")
        second = send(second_key)
    assert (second.content, second.headers["x-gateway-replayed"]) == (first.content, "true")
    assert rows(ledger_database) == 1


def test_a_key_with_another_body_is_refused_and_nothing_runs(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    write(ledger_gateway, "a", "k")
    other = write(ledger_gateway, "b", "k")
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    assert other.headers["x-gateway-outcome"] == "not_executed"
    assert rows(ledger_database) == 1


def test_the_same_key_of_two_principals_is_two_keys(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    from gateway.cli.token import token_for
    from tests.fix_gateway import MASTER

    write(ledger_gateway, "a", "k")
    with ledger_gateway.http(token_for(MASTER, subject="somebody else", lifetime=600)) as client:
        answer = client.post(
            "/execute",
            json={"sql": INSERT, "parameters": ["a"]},
            headers={"idempotency-key": "k"},
        )
    assert "x-gateway-replayed" not in answer.headers
    assert rows(ledger_database) == 2


def test_a_failed_write_leaves_its_key_free(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    ledger_database.sql("alter table did add constraint no_b check (what <> 'b')")
    refused = write(ledger_gateway, "b", "k")
    assert (refused.status_code, refused.json()["outcome"]) == (400, "not_executed")
    ledger_database.sql("alter table did drop constraint no_b")
    assert write(ledger_gateway, "b", "k").status_code == 200
    assert rows(ledger_database) == 1


def test_a_read_with_a_key_pays_nothing_and_is_not_remembered(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    sql = "select pg_backend_pid() is not null, clock_timestamp()"
    answers = [post(ledger_gateway, "/execute", {"sql": sql}, "k") for _ in range(2)]
    assert answers[0].content != answers[1].content
    assert [answer.headers["x-gateway-idempotency"] for answer in answers] == ["none", "none"]
    assert ledger_database.sql("select count(*) from gw.ledger") == "0"


def test_a_select_that_writes_is_remembered(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    ledger_database.sql(
        "create function note() returns int language sql as"
        " $$ insert into did values ('f') returning 7 $$"
    )
    answers = [post(ledger_gateway, "/execute", {"sql": "select note()"}, "k") for _ in range(2)]
    assert answers[0].json()["rows"] == answers[1].json()["rows"] == [[7]]
    assert answers[1].headers["x-gateway-replayed"] == "true"
    assert rows(ledger_database) == 1


def test_a_batch_is_remembered_as_one(ledger_gateway: Gateway, ledger_database: Database) -> None:
    many = {"sql": "insert into did values ($1)", "parameter_sets": [["a"], ["b"], ["c"]]}
    several = {
        "statements": [
            {"sql": "insert into did values ('d') returning what"},
            {"sql": "select count(*) from did"},
        ]
    }
    for key, body in (("k1", many), ("k2", several)):
        first, second = (post(ledger_gateway, "/batch", body, key) for _ in range(2))
        assert first.status_code == 200, first.text
        assert (second.content, second.headers["x-gateway-replayed"]) == (first.content, "true")
    assert rows(ledger_database) == 4


def test_a_large_batch_without_rows_is_remembered_in_few_bytes(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    body = {"sql": "insert into did values ($1)", "parameter_sets": [["x"]] * 5_000}
    first, second = (post(ledger_gateway, "/batch", body, "k") for _ in range(2))
    assert first.content == second.content
    assert rows(ledger_database) == 5_000
    assert int(ledger_database.sql("select max(length(answer)) from gw.ledger")) < 1_000


def test_a_repeat_whose_answer_was_too_large_is_told_that_it_happened(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    body = {"sql": f"insert into did select 'a' returning repeat('x', {2 * KEPT_BYTES})"}
    assert post(ledger_gateway, "/execute", body, "k").status_code == 200
    again = post(ledger_gateway, "/execute", body, "k")
    assert (again.status_code, again.json()["code"]) == (409, "result_not_kept")
    assert again.headers["x-gateway-outcome"] == "committed"
    assert rows(ledger_database) == 1


def test_a_twin_with_an_older_snapshot_gets_the_answer_too(ledger_database: Database) -> None:
    # Repeatable read: what the twin committed while we waited for its lock is not seen.
    settings = settings_for(ledger_database)
    body = {"sql": "insert into did values ($1)", "parameter_sets": [["a"]],
            "isolation": "repeatable_read"}  # fmt: skip
    with running(settings, ledger_database) as one, running(settings, ledger_database) as two:
        with one.http() as client:
            begun = client.post("/transactions", json={}).json()["transaction"]
            client.post(
                "/execute", json={"sql": "lock table did in exclusive mode", "transaction": begun}
            )
            first, second = Senders(one), Senders(two)
            first.send("/batch", body, "k")
            waits = "select count(*) from pg_stat_activity where wait_event = {} and " + GATEWAYS
            until(lambda: ledger_database.sql(waits.format("'relation'")) == "1", "it waits")
            second.send("/batch", body, "k")
            until(lambda: ledger_database.sql(waits.format("'advisory'")) == "1", "the twin waits")
            client.post(f"/transactions/{begun}/rollback")
        answers = first.join() + second.join()
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert answers[0].content == answers[1].content
    assert rows(ledger_database) == 1


# -- transactions -------------------------------------------------------------------------


def test_a_transaction_and_all_in_it_can_be_sent_twice(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    with ledger_gateway.http() as client:

        def twice(path: str, body: Any, key: str) -> Any:
            first, second = (
                client.post(path, json=body, headers={"idempotency-key": key}) for _ in range(2)
            )
            assert first.status_code == second.status_code, second.text
            assert second.headers["x-gateway-replayed"] == "true"
            one, two = first.json(), second.json()
            for each in (one, two):
                (each.get("transaction") or {}) if path == "/execute" else each.pop("expires_at", 0)
            return one, two

        begun, again = twice("/transactions", {}, "begin")
        id = begun["transaction"]
        assert again["transaction"] == id
        body = {"sql": INSERT, "parameters": ["a"], "transaction": id}
        one, two = twice("/execute", body, "execute")
        assert one["rows"] == two["rows"]
        many = {"sql": "insert into did values ($1)", "parameter_sets": [["b"]], "transaction": id}
        twice("/batch", many, "batch")
        one, two = twice(f"/transactions/{id}/commit", None, "commit")
        assert one == two == {"status": "committed"}
        begun, _ = twice("/transactions", {}, "begin 2")
        one, two = twice(f"/transactions/{begun['transaction']}/rollback", None, "rollback")
        assert one == two == {"status": "rolled_back"}
    assert rows(ledger_database) == 2


def test_a_repeated_commit_is_answered_by_another_node(ledger_database: Database) -> None:
    settings = settings_for(ledger_database)
    with running(settings, ledger_database) as one, running(settings, ledger_database) as two:
        id = post(one, "/transactions", {}).json()["transaction"]
        body = {"sql": INSERT, "parameters": ["a"], "transaction": id}
        assert post(one, "/execute", body).status_code == 200
        first = post(one, f"/transactions/{id}/commit", None, "k")
        again = post(two, f"/transactions/{id}/commit", None, "k")
        never = post(two, f"/transactions/{id}/commit", None, "other")
    assert first.json() == again.json() == {"status": "committed"}
    assert again.headers["x-gateway-replayed"] == "true"
    assert (never.status_code, never.json()["outcome"]) == (410, "not_executed")


def test_a_commit_is_recorded_though_its_caller_wears_a_role_that_may_not(
    database: Database,
) -> None:
    install_ledger(database, APP_USER)
    make_table(database)
    database.sql(f"create role plain_{database.name}; grant plain_{database.name} to {APP_USER}")
    try:
        with running(settings_for(database), database) as gateway:
            id = post(gateway, "/transactions", {}).json()["transaction"]
            for sql in ("insert into did values ('a')", f"set role plain_{database.name}"):
                assert post(gateway, "/execute", {"sql": sql, "transaction": id}).status_code == 200
            first = post(gateway, f"/transactions/{id}/commit", None, "k")
            assert first.json() == {"status": "committed"}
            assert first.headers["x-gateway-idempotency"] == "database"
        assert database.sql("select count(*) from gw.ledger") == "1"
    finally:
        database.sql(f"drop role plain_{database.name}")


# -- without the table --------------------------------------------------------------------


def test_without_the_table_a_process_remembers_and_says_so(database: Database) -> None:
    make_table(database)
    with running(settings_for(database), database) as gateway:
        first, second = write(gateway, "a", "k"), write(gateway, "a", "k")
        assert second.content == first.content
        assert first.headers["x-gateway-idempotency"] == "memory"
        assert second.headers["x-gateway-replayed"] == "true"
        assert write(gateway, "b", "k").status_code == 422
        with gateway.http() as client:
            target = client.get("/readyz").json()["targets"]["main"]
        assert target["idempotency"] == "memory"
        assert "idempotency: memory" in target["weakened"]
    assert rows(database) == 1


@pytest.mark.parametrize("there", [True, False], ids=["with the table", "without"])
def test_at_its_start_a_node_says_where_keys_are_kept(database: Database, there: bool) -> None:
    if there:
        install_ledger(database)
    with process(database) as gateway:
        until(lambda: '"event":"idempotency_found"' in gateway.said, "it says nothing")
        (line,) = [each for each in gateway.said.splitlines() if "idempotency_found" in each]
        told = json.loads(line)
    assert told["where"] == ("database" if there else "memory")
    # A promise that is weaker than it could be is no mere note.
    assert told["level"] == ("info" if there else "warning")


def test_a_node_tells_at_once_that_it_has_the_table(ledger_gateway: Gateway) -> None:
    with ledger_gateway.http() as client:

        def told() -> Any:
            return client.get("/readyz").json()["targets"]["main"]

        until(lambda: told()["idempotency"] == "database", "it never looked")
        assert told()["weakened"] == []


def test_a_table_that_comes_and_goes_is_noticed(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    from gateway.core import gw_schema

    assert write(ledger_gateway, "a", "1").headers["x-gateway-idempotency"] == "database"
    ledger_database.sql(gw_schema.uninstall())
    assert write(ledger_gateway, "b", "2").headers["x-gateway-idempotency"] == "memory"
    assert rows(ledger_database) == 2


def test_what_cannot_run_in_a_transaction_is_not_promised_anything(
    ledger_gateway: Gateway,
) -> None:
    answer = post(ledger_gateway, "/execute", {"sql": "vacuum"}, "k")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-gateway-idempotency"] == "none"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tkey"])
def test_a_key_that_is_none_is_refused(ledger_gateway: Gateway, key: str) -> None:
    answer = write(ledger_gateway, "a", key)
    assert (answer.status_code, answer.json()["field"]) == (400, "idempotency-key")


# -- what others may see ------------------------------------------------------------------


def test_no_session_can_read_the_ledger_or_find_an_answer(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    write(ledger_gateway, "secret", "k")
    for sql in ("select * from gw.ledger", "delete from gw.ledger", "truncate gw.ledger"):
        assert post(ledger_gateway, "/execute", {"sql": sql}).json()["sqlstate"] == "42501"
    # The id can be seen while a statement runs, and opens nothing.
    id = ledger_database.sql("select id from gw.ledger")
    found = post(
        ledger_gateway, "/execute", {"sql": "select * from gw.lookup($1::text::bytea)",
                                     "parameters": [id]},
    )  # fmt: skip
    assert found.json()["rows"] == []


def test_keys_that_had_their_day_go_in_small_steps(
    ledger_gateway: Gateway, ledger_database: Database
) -> None:
    ledger_database.sql(
        "insert into gw.ledger select sha256(i::text::bytea), '', '', now() - interval '25 hours'"
        " from generate_series(1, 1200) i;"
        "insert into gw.ledger select sha256(i::text::bytea), '', '', now() - interval '23 hours'"
        " from generate_series(-10, -1) i"
    )
    assert write(ledger_gateway, "a", "k").status_code == 200
    until(lambda: ledger_database.sql("select count(*) from gw.ledger") == "11", "they stay")


# -- lost COMMITs -------------------------------------------------------------------------


@pytest.mark.parametrize("ledger", [True, False], ids=["with the table", "without"])
@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "request lost"])
def test_a_lost_commit_is_looked_into_and_answered_truly(
    database: Database, ledger: bool, arrives: bool
) -> None:
    make_table(database)
    if ledger:
        install_ledger(database)
    with behind_proxy(database) as (gateway, proxy):
        lost = LostCommit(proxy, arrives=arrives)
        senders = Senders(gateway)
        senders.send("/execute", {"sql": INSERT, "parameters": ["a"]}, "k")
        lost.finish((lambda: rows(database) == 1) if arrives else (lambda: True))
        (answer,) = senders.join()
        assert answer.status_code == 200, answer.text
        again = write(gateway, "a", "k")
        assert again.content == answer.content
        assert again.headers["x-gateway-replayed"] == "true"
    assert rows(database) == 1


@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "request lost"])
def test_a_lost_commit_of_a_transaction_is_answered_truly(
    ledger_database: Database, arrives: bool
) -> None:
    with behind_proxy(ledger_database) as (gateway, proxy):
        id = post(gateway, "/transactions", {}).json()["transaction"]
        post(gateway, "/execute", {"sql": INSERT, "parameters": ["a"], "transaction": id}, "e")
        lost = LostCommit(proxy, arrives=arrives)
        senders = Senders(gateway)
        senders.send(f"/transactions/{id}/commit", None, "k")
        lost.finish((lambda: rows(ledger_database) == 1) if arrives else (lambda: True))
        (answer,) = senders.join()
        again = post(gateway, f"/transactions/{id}/commit", None, "k")
    if arrives:
        assert answer.json() == again.json() == {"status": "committed"}
        assert rows(ledger_database) == 1
    else:
        assert (answer.status_code, answer.json()["outcome"]) == (410, "not_executed")
        assert again.status_code == 410
        assert rows(ledger_database) == 0


@pytest.mark.slow
def test_as_many_rows_as_operations_whatever_is_lost(ledger_database: Database) -> None:
    """Each operation three times at once; replies get lost, backends are terminated."""
    operations = 120
    stop = threading.Event()

    def terminate() -> None:
        while not stop.wait(0.03):
            ledger_database.sql(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                f" where {GATEWAYS} and state <> 'idle' order by random() limit 1"
            )

    killer = threading.Thread(target=terminate)
    with behind_proxy(ledger_database, max_connections=6) as (gateway, proxy):
        replies = 0

        def lose(piece: bytes) -> None:
            nonlocal replies
            replies += 1
            proxy.replies.cut_after = 0 if replies % 97 == 0 else None

        proxy.replies.watch = lose
        killer.start()
        try:
            pending = [f"op {number}" for number in range(operations)]

            def work() -> None:
                while pending:
                    what = pending.pop()
                    for _ in range(50):
                        senders = Senders(gateway)
                        for _ in range(3):
                            senders.send("/execute", {"sql": INSERT, "parameters": [what]}, what)
                        answers = senders.join()
                        if any(each.status_code == 200 for each in answers):
                            break
                        words = {each.json()["outcome"] for each in answers}
                        assert words <= {"not_executed", "unknown"}, answers
                    else:
                        raise AssertionError(f"{what} was never answered")

            workers = [threading.Thread(target=work) for _ in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(300)
        finally:
            stop.set()
            killer.join()
    assert rows(ledger_database) == operations
    assert ledger_database.sql("select count(distinct what) from did") == str(operations)


# -- the Data API -------------------------------------------------------------------------


def test_boto3_retries_by_itself_and_takes_effect_once(
    ledger_gateway: Gateway, ledger_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from botocore.config import Config

    from tests.fix_network import Proxy

    # botocore waits up to a second before it tries again; nothing here depends on that.
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with Proxy(ledger_gateway.port) as proxy:
        client = boto3.client(
            "rds-data",
            endpoint_url=f"http://127.0.0.1:{proxy.port}",
            region_name="us-east-1",
            aws_access_key_id=ledger_gateway.access_key,
            aws_secret_access_key=ledger_gateway.secret_key,
            config=Config(retries={"mode": "standard", "max_attempts": 4}),
        )
        told = 0

        def lose(piece: bytes) -> None:
            nonlocal told
            lost = piece.startswith(b"HTTP/1.1 200")
            told += lost
            proxy.replies.cut_after = 0 if lost and told % 2 else None

        proxy.replies.watch = lose
        for number in range(20):
            answer = client.execute_statement(
                resourceArn=ledger_gateway.resource_arn,
                secretArn=ledger_gateway.secret_arn,
                sql="insert into did values (:what) returning what",
                parameters=[{"name": "what", "value": {"stringValue": f"b{number}"}}],
            )
            assert answer["records"] == [[{"stringValue": f"b{number}"}]]
            headers = answer["ResponseMetadata"]["HTTPHeaders"]
            assert headers["x-gateway-idempotency"] == "database"
            assert headers["x-gateway-replayed"] == "true"
            assert answer["ResponseMetadata"]["RetryAttempts"] == 1
        client.close()
    assert rows(ledger_database) == 20


def test_a_reused_key_is_a_bad_request_of_the_data_api(ledger_gateway: Gateway) -> None:
    from tests.wire.data_api import DataApi

    api = DataApi(ledger_gateway)

    def same_id(request: Any, **_: Any) -> None:
        request.headers["amz-sdk-invocation-id"] = "one and the same"

    api.client.meta.events.register("before-send.rds-data", same_id)
    first = api.execute("insert into did values ('a') returning what")
    again = api.execute("insert into did values ('a') returning what")
    assert again["records"] == first["records"]
    with pytest.raises(api.client.exceptions.BadRequestException):
        api.execute("insert into did values ('b') returning what")
    api.client.close()


def test_a_reader_has_no_keys(ledger_database: Database) -> None:
    settings = settings_for(ledger_database)
    rule = Rule(name="readers", resources=("*",), secrets=("*",), read_only=True)
    with running(replace(settings, policy=(rule,)), ledger_database) as gateway:
        refused = write(gateway, "a", "k")
        assert refused.json()["sqlstate"] == "25006"
        assert refused.headers["x-gateway-idempotency"] == "none"
