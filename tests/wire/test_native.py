"""The native API over real HTTP, on a real PostgreSQL."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from gateway.cli.token import token_for
from tests.fix_gateway import MASTER, running, settings_for, settled, until
from tests.fix_postgres import Database

pytestmark = pytest.mark.wire


def _metric(gateway: Any, name: str) -> int:
    text = httpx2.get(gateway.admin_url + "/metrics").text
    return sum(int(n) for n in re.findall(rf"^{name}(?:\{{.*\}})? (\d+)$", text, re.M))


def _post(gateway: Any, path: str, body: Any = None, **headers: str) -> httpx2.Response:
    with gateway.http() as client:
        answer: httpx2.Response = client.post(path, json=body or {}, headers=headers)
    return answer


def _sql(gateway: Any, sql: str, parameters: Any = None, **more: Any) -> Any:
    answer = gateway.execute(sql, parameters, **more)
    assert "code" not in answer, answer
    return answer


def _value(gateway: Any, sql: str, parameters: Any = None, **more: Any) -> Any:
    return _sql(gateway, sql, parameters, **more)["rows"][0][0]


def _begin(gateway: Any, **members: Any) -> str:
    answer = _post(gateway, "/transactions", members)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["transaction"])


class TestParameters:
    def test_values_are_found_by_position(self, shared_gateway: Any) -> None:
        assert _sql(shared_gateway, "select $2::int, $1::text", ["a", 2])["rows"] == [[2, "a"]]

    def test_by_name_as_often_as_it_stands(self, shared_gateway: Any) -> None:
        assert _sql(shared_gateway, "select :a::int, :a + 1", {"a": 1})["rows"] == [[1, 2]]

    def test_what_only_looks_like_a_name_is_none(self, shared_gateway: Any) -> None:
        sql = "select ':x', $$:y$$, /* :z */ :a::text, (array[1,2])[1:2]"
        assert _sql(shared_gateway, sql, {"a": "v"})["rows"] == [[":x", ":y", "v", [1, 2]]]

    @pytest.mark.parametrize(
        ("type", "value", "back"),
        [
            ("uuid", "00000000-0000-0000-0000-000000000001", None),
            ("numeric", "12345678901234567890.10", None),
            ("int8", "9007199254740993", 9007199254740993),
            ("bool", True, None),
            ("float8", 2.5, None),
            ("date", "2024-01-31", None),
            ("bytea", "AAH/", None),
            ("jsonb", {"a": [1, None, "x"]}, None),
            ("int4[]", [[1, None], [3, 4]], None),
            ("text[]", ["a", None, 'q"{}'], None),
            ("text", None, None),
        ],
    )
    def test_a_value_comes_back_as_it_went(
        self, shared_gateway: Any, type: str, value: Any, back: Any
    ) -> None:
        assert _value(shared_gateway, f"select $1::{type}", [value]) == (
            value if back is None else back
        )

    def test_where_nothing_tells_the_type_it_is_that_of_the_value(
        self, shared_gateway: Any
    ) -> None:
        sql = "select jsonb_build_object('k', :a)"
        assert _value(shared_gateway, sql, {"a": "v"}) == {"k": "v"}
        assert _value(shared_gateway, "select $1", ["v"]) == "v"
        assert _value(shared_gateway, "select $1 || 'x'", ["v"]) == "vx"

    @pytest.mark.parametrize("place", [":v", "$1"])
    @pytest.mark.parametrize(
        ("type", "value"),
        [("int4", 1), ("uuid", "00000000-0000-0000-0000-000000000001"), ("date", "2024-01-31")],
    )
    def test_a_condition_may_be_left_out_by_null(
        self, shared_gateway: Any, place: str, type: str, value: Any
    ) -> None:
        sql = f"select k from (values (1, '{value}'::{type}), (2, null)) t (k, v)"
        sql += f" where ({place} is null or v = {place}) order by k"
        for given, rows in ((value, [[1]]), (None, [[1], [2]]), (value, [[1]])):
            parameters = [given] if place == "$1" else {"v": given}
            assert _sql(shared_gateway, sql, parameters)["rows"] == rows
        sets = [[each] if place == "$1" else {"v": each} for each in (value, None)]
        body = {"sql": sql, "parameter_sets": sets}
        results = _post(shared_gateway, "/batch", body).json()["results"]
        assert [each["rows"] for each in results] == [[[1]], [[1], [2]]]

    @pytest.mark.parametrize(
        ("sql", "parameters", "code"),
        [
            ("select :a, :b", {"a": 1}, "invalid_parameter"),
            ("select :a", {}, "invalid_parameter"),
            ("select $1::int", [], "invalid_parameter"),
            ("select $1::int", ["x"], "invalid_parameter"),
            ("select $1::int", [{"a": 1}], "invalid_parameter"),
        ],
    )
    def test_what_does_not_fit_is_the_callers_fault(
        self, shared_gateway: Any, sql: str, parameters: Any, code: str
    ) -> None:
        answer = _post(shared_gateway, "/execute", {"sql": sql, "parameters": parameters})
        assert (answer.status_code, answer.headers["content-type"]) == (
            400, "application/problem+json",
        )  # fmt: skip
        assert answer.json()["code"] == code


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"{", "invalid_request"),
            (b'{"sql": "select 1", "surprise": 1}', "invalid_request"),
            (b'{"sql": ""}', "statement_refused"),
            (b'{"sql": "-- nothing"}', "statement_refused"),
            (b'{"sql": "select 1; select 2"}', "statement_refused"),
            (b'{"sql": "copy t to stdout"}', "statement_refused"),
            (b'{"sql": "begin"}', "statement_refused"),
            (b'{"sql": "/* x */ commit"}', "statement_refused"),
            (b'{"sql": "prepare transaction \'x\'"}', "statement_refused"),
            (b'{"sql": "savepoint s"}', "statement_refused"),
            (b'{"sql": "select :a", "parameters": {"b": 1}}', "invalid_parameter"),
        ],
    )
    def test_before_a_connection_is_taken(
        self, shared_gateway: Any, body: bytes, code: str
    ) -> None:
        before = _metric(shared_gateway, "pgsluice_statements_total")
        with shared_gateway.http() as client:
            answer = client.post("/execute", content=body)
        assert (answer.status_code, answer.json()["code"]) == (400, code)
        assert answer.json()["outcome"] == answer.headers["x-gateway-outcome"] == "not_executed"
        assert answer.json()["request_id"] == answer.headers["x-gateway-request-id"]
        assert _metric(shared_gateway, "pgsluice_statements_total") == before

    def test_a_refusal_connects_to_nothing(self, gateway: Any) -> None:
        settled(gateway)
        opened = _metric(gateway, "pgsluice_connects_total")
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": "Basic eDp5"}):
            answer = httpx2.post(gateway.url + "/execute", json={"sql": "x"}, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["code"] == "unauthenticated"
            assert answer.headers["www-authenticate"].startswith("Bearer")
        expired = token_for(MASTER, subject="tester", lifetime=-3_600)
        with gateway.http(expired) as client:
            answer = client.post("/execute", json={"sql": "select 1"})
        assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")
        assert gateway.execute("copy t from stdin")["code"] == "statement_refused"
        assert gateway.execute("select 1", target="other")["code"] == "forbidden"
        assert gateway.execute("select 1", database="other")["code"] == "forbidden"
        assert _metric(gateway, "pgsluice_connects_total") == opened

    @pytest.mark.parametrize(
        ("method", "path", "headers", "status"),
        [
            ("GET", "/nowhere", {}, 404),
            ("GET", "/execute", {}, 405),
            ("DELETE", "/whoami", {}, 405),
            ("DELETE", "/statements/unknown", {}, 404),
            ("POST", "/execute", {"accept": "image/png"}, 406),
            ("POST", "/execute", {"content-encoding": "gzip"}, 415),
            ("POST", "/execute", {"x-gateway-deadline-ms": "soon"}, 400),
        ],
    )
    def test_by_the_head(
        self, shared_gateway: Any, method: str, path: str, headers: dict[str, str], status: int
    ) -> None:
        content = b'{"sql": "select 1"}' if method == "POST" else None
        with shared_gateway.http() as client:
            answer = client.request(method, path, headers=headers, content=content)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
        if status == 405:
            assert answer.headers["allow"] in ("POST", "GET")

    def test_a_body_over_the_limit(self, shared_gateway: Any) -> None:
        size = shared_gateway.settings.server.request_bytes
        with shared_gateway.http() as client:
            answer = client.post("/execute", content=b" " * (size + 1))
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


class TestPaths:
    def test_what_a_select_writes_is_kept(self, gateway: Any) -> None:
        _sql(gateway, "create table t (n int)")
        _sql(
            gateway,
            "create function put() returns int language sql as"
            " 'insert into t values (1) returning n'",
        )
        for _ in range(2):
            assert _value(gateway, "select put()") == 1
        assert _value(gateway, "select count(*) from t") == 2

    def test_what_a_read_may_not_do_is_done_as_a_write(self, gateway: Any) -> None:
        _sql(gateway, "create sequence s")
        assert [_value(gateway, "select nextval('s')") for _ in range(3)] == [1, 2, 3]
        _sql(gateway, "create table t as select 1 as n")
        assert _value(gateway, "select n from t for update") == 1

    def test_read_only_writes_nothing(self, gateway: Any) -> None:
        _sql(gateway, "create table t (n int)")
        answer = gateway.execute("insert into t values (1)", read_only=True)
        assert (answer["sqlstate"], answer["outcome"]) == ("25006", "not_executed")
        assert _value(gateway, "select count(*) from t") == 0

    def test_returning_gives_rows_and_a_plain_write_a_count(self, gateway: Any) -> None:
        _sql(gateway, "create table t (id serial, n int)")
        answer = _sql(gateway, "insert into t (n) values (1), (2) returning id")
        assert (answer["rows"], answer["row_count"], answer["command"]) == (
            [[1], [2]], 2, "INSERT",
        )  # fmt: skip
        answer = _sql(gateway, "update t set n = 3")
        assert (answer["columns"], answer["rows"], answer["row_count"]) == ([], [], 2)

    @pytest.mark.parametrize(
        "sql",
        [
            "vacuum t",
            "create index concurrently i on t (n)",
            "call twice()",
            "do $$begin insert into t values (3); commit; end$$",
        ],
    )
    def test_what_no_transaction_block_takes(self, gateway: Any, sql: str) -> None:
        _sql(gateway, "create table t (n int)")
        _sql(
            gateway,
            "create procedure twice() language plpgsql as"
            " $$begin insert into t values (1); commit; insert into t values (2); end$$",
        )
        _sql(gateway, sql)
        counts = {"call twice()": 2, "vacuum t": 0, "create index concurrently i on t (n)": 0}
        assert _value(gateway, "select count(*) from t") == counts.get(sql, 1)

    def test_create_database_reaches_postgresql(self, gateway: Any) -> None:
        # The login may not, and only PostgreSQL can know.
        assert gateway.execute("create database nobodys")["sqlstate"] == "42501"


class TestRows:
    @pytest.mark.parametrize("rows", ["arrays", "objects"])
    def test_a_large_read_is_the_same_the_first_and_the_second_time(
        self, shared_gateway: Any, rows: str
    ) -> None:
        sql = "select n, repeat('x', 200) as x from generate_series(1, $1::int) n"
        answers = [_sql(shared_gateway, sql, [20_000], rows=rows) for _ in range(2)]
        assert answers[0] == answers[1]
        assert answers[0]["row_count"] == len(answers[0]["rows"]) == 20_000
        last = answers[0]["rows"][-1]
        assert list(last.values() if rows == "objects" else last) == [20_000, "x" * 200]

    def test_max_rows_leaves_rows_out_and_says_so(self, shared_gateway: Any) -> None:
        sql = "select generate_series(1, 5)"
        answer = _sql(shared_gateway, sql, max_rows=2)
        assert (answer["rows"], answer["truncated"]) == ([[1], [2]], True)
        assert "truncated" not in _sql(shared_gateway, sql, max_rows=5)

    def test_rows_are_objects_on_request_unless_two_names_are_one(
        self, shared_gateway: Any
    ) -> None:
        assert _sql(shared_gateway, "select 1 as a, 2 as b", rows="objects")["rows"] == [
            {"a": 1, "b": 2}
        ]
        twice = shared_gateway.execute("select 1 as a, 2 as a", rows="objects")
        assert (twice["code"], twice["field"]) == ("invalid_request", "rows")
        assert _sql(shared_gateway, "select 1 as a, 2 as a")["rows"] == [[1, 2]]

    def test_int8_keeps_all_digits_and_is_a_string_on_request(self, shared_gateway: Any) -> None:
        sql = "select 9007199254740993"
        assert _value(shared_gateway, sql + "::int8") == 9007199254740993
        assert _value(shared_gateway, sql + "::int8", int8="string") == "9007199254740993"
        assert _value(shared_gateway, "select array[1::int8]", int8="string") == ["1"]

    def test_notices_are_passed_on(self, shared_gateway: Any) -> None:
        answer = _sql(shared_gateway, "do $$begin raise notice 'told'; end$$")
        assert any("told" in notice for notice in answer["notices"])
        assert "notices" not in _sql(shared_gateway, "select 1")

    def test_types_have_postgresqls_names(self, gateway: Any) -> None:
        _sql(gateway, "create type mood as enum ('sad')")
        answer = _sql(gateway, "select 'sad'::mood as m, array['a'] as a, 1::int8 as i")
        assert answer["columns"] == [
            {"name": "m", "type": "mood"}, {"name": "a", "type": "_text"},
            {"name": "i", "type": "int8"},
        ]  # fmt: skip


class TestErrors:
    def test_position_is_that_of_the_callers_own_text(self, shared_gateway: Any) -> None:
        sql = "select :first::int, 'é', nowhere"
        answer = shared_gateway.execute(sql, {"first": 1})
        assert (answer["sqlstate"], answer["position"]) == ("42703", sql.index("nowhere") + 1)

    def test_a_broken_constraint_is_named(self, gateway: Any) -> None:
        _sql(gateway, "create table t (n int constraint one_only unique)")
        _sql(gateway, "insert into t values (1)")
        answer = gateway.execute("insert into t values (1)")
        expected = {
            "status": 400, "code": "database_error", "sqlstate": "23505",
            "constraint": "one_only", "table": "t", "retry": "never", "outcome": "not_executed",
        }  # fmt: skip
        assert expected.items() <= answer.items()

    def test_tables_may_change_under_prepared_statements(self, gateway: Any) -> None:
        _sql(gateway, "create table t as select 1 as n")
        for type, value in (("int8", 1), ("text", "1"), ("numeric", "1")):
            _sql(gateway, f"alter table t alter n type {type} using n::{type}")
            assert _value(gateway, "select * from t") == value
            _sql(gateway, "update t set n = n where n is distinct from $1", [None])

    def test_a_timeout_or_a_deadline_cancels_the_statement(self, shared_gateway: Any) -> None:
        answer = shared_gateway.execute("select pg_sleep(60)", timeout=0.1)
        assert (answer["code"], answer["sqlstate"]) == ("statement_timeout", "57014")
        late = _post(
            shared_gateway, "/execute", {"sql": "select pg_sleep(60)"},
            **{"x-gateway-deadline-ms": "100"},
        )  # fmt: skip
        assert (late.status_code, late.json()["code"]) == (400, "statement_timeout")

    def test_the_callers_request_id_is_kept(self, shared_gateway: Any) -> None:
        answer = _post(
            shared_gateway, "/execute", {"sql": "select 1"}, **{"x-gateway-request-id": "mine:1"}
        )
        assert answer.headers["x-gateway-request-id"] == "mine:1"
        assert answer.headers["server-timing"].startswith("queue;dur=")

    def test_a_running_statement_is_cancelled(self, gateway: Any) -> None:
        answers: list[httpx2.Response] = []

        def sleep() -> None:
            headers = {"x-gateway-request-id": "sleeper"}
            answers.append(_post(gateway, "/execute", {"sql": "select pg_sleep(60)"}, **headers))

        thread = threading.Thread(target=sleep)
        thread.start()
        running = "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)'"
        until(lambda: _value(gateway, running) > 0, "the statement never ran")
        with gateway.http(token_for(MASTER, subject="other", lifetime=60)) as client:
            assert client.delete("/statements/sleeper").status_code == 404
        with gateway.http() as client:
            assert client.delete("/statements/sleeper").status_code == 202
        thread.join(30)
        assert (answers[0].status_code, answers[0].json()["sqlstate"]) == (400, "57014")


class TestBatch:
    def test_statements_are_one_transaction(self, gateway: Any) -> None:
        answer = _post(
            gateway, "/batch",
            {"statements": [
                {"sql": "create table t (n int unique)"},
                {"sql": "insert into t values ($1)", "parameters": [1]},
                {"sql": "select n from t where n = :n", "parameters": {"n": 1}},
            ]},
        )  # fmt: skip
        assert [each["rows"] for each in answer.json()["results"]] == [[], [], [[1]]]
        failed = _post(
            gateway, "/batch",
            {"statements": [{"sql": f"insert into t values ({n})"} for n in (2, 3, 1)]},
        ).json()  # fmt: skip
        assert (failed["sqlstate"], failed["statement"]) == ("23505", 2)
        assert _value(gateway, "select count(*) from t") == 1

    def test_a_statement_runs_once_for_each_set(self, gateway: Any) -> None:
        _sql(gateway, "create table t (n int)")
        answer = _post(
            gateway, "/batch",
            {"sql": "insert into t values (:n) returning n",
             "parameter_sets": [{"n": 1}, {"n": 2}]},
        )  # fmt: skip
        assert [each["rows"] for each in answer.json()["results"]] == [[[1]], [[2]]]
        assert _value(gateway, "select sum(n) from t") == 3

    def test_mode(self, shared_gateway: Any) -> None:
        names = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
        answer = _post(
            shared_gateway, "/batch",
            {"statements": [{"sql": f"show {name}"} for name in names],
             "isolation": "serializable", "read_only": True, "deferrable": True},
        )  # fmt: skip
        shown = [each["rows"][0][0] for each in answer.json()["results"]]
        assert shown == ["serializable", "on", "on"]

    def test_nothing_gives_nothing(self, shared_gateway: Any) -> None:
        assert _post(shared_gateway, "/batch", {"statements": []}).json() == {"results": []}


class TestTransactions:
    def test_what_is_committed_is_there(self, gateway: Any) -> None:
        _sql(gateway, "create table t (n int)")
        id = _begin(gateway)
        answer = _sql(gateway, "insert into t values (1)", transaction=id)
        assert answer["transaction"]["id"] == id
        assert _value(gateway, "select count(*) from t") == 0
        committed = _post(gateway, f"/transactions/{id}/commit")
        assert (committed.status_code, committed.json()) == (200, {"status": "committed"})
        assert _value(gateway, "select count(*) from t") == 1
        gone = gateway.execute("select 1", transaction=id)
        assert (gone["status"], gone["code"]) == (410, "transaction_gone")
        assert "committed" in gone["detail"]

    def test_what_is_rolled_back_is_not(self, gateway: Any) -> None:
        _sql(gateway, "create table t (n int)")
        id = _begin(gateway)
        _sql(gateway, "insert into t values (1)", transaction=id)
        assert _post(gateway, f"/transactions/{id}/rollback").json() == {"status": "rolled_back"}
        assert _value(gateway, "select count(*) from t") == 0
        assert "rolled back" in gateway.execute("select 1", transaction=id)["detail"]

    def test_mode(self, shared_gateway: Any) -> None:
        id = _begin(shared_gateway, isolation="repeatable_read", read_only=True, deferrable=True)
        for name, value in (("isolation", "repeatable read"), ("read_only", "on")):
            assert _value(shared_gateway, f"show transaction_{name}", transaction=id) == value
        _post(shared_gateway, f"/transactions/{id}/rollback")

    def test_a_failed_one_cannot_be_committed(self, gateway: Any) -> None:
        _sql(gateway, "create table t (n int)")
        id = _begin(gateway)
        _sql(gateway, "insert into t values (1)", transaction=id)
        assert gateway.execute("select 1 / 0", transaction=id)["sqlstate"] == "22012"
        failed = gateway.execute("select 1", transaction=id)
        assert (failed["status"], failed["code"]) == (409, "transaction_failed")
        commit = _post(gateway, f"/transactions/{id}/commit").json()
        assert (commit["code"], commit["outcome"]) == ("transaction_failed", "not_executed")
        assert _value(gateway, "select count(*) from t") == 0

    def test_a_savepoint_saves_a_failed_transaction(self, gateway: Any) -> None:
        id = _begin(gateway)
        for sql in ("create table t (n int)", "savepoint s"):
            _sql(gateway, sql, transaction=id)
        assert gateway.execute("insert into nowhere values (1)", transaction=id)["sqlstate"]
        _sql(gateway, "rollback to s", transaction=id)
        assert gateway.execute("commit", transaction=id)["code"] == "statement_refused"
        _post(gateway, f"/transactions/{id}/commit")
        assert _value(gateway, "select count(*) from t") == 0

    def test_another_principal_does_not_find_it(self, gateway: Any) -> None:
        id = _begin(gateway)
        body = {"sql": "select 1", "transaction": id}
        with gateway.http(token_for(MASTER, subject="other", lifetime=60)) as client:
            other = client.post("/execute", json=body).json()
            commit = client.post(f"/transactions/{id}/commit").json()
        never = gateway.execute("select 1", transaction="never")
        assert other["code"] == commit["code"] == never["code"] == "transaction_gone"
        assert other["detail"] == commit["detail"]
        assert _value(gateway, "select 1", transaction=id) == 1
        _post(gateway, f"/transactions/{id}/rollback")

    def test_an_idle_one_expires(self, gateway: Any) -> None:
        id = _begin(gateway, idle_timeout=0.05)
        until(lambda: not _metric(gateway, "pgsluice_transactions_open"), "it never expired")
        gone = gateway.execute("select 1", transaction=id)
        assert (gone["code"], "expired" in gone["detail"]) == ("transaction_gone", True)


def test_health_and_documents_need_no_credentials(shared_gateway: Any) -> None:
    get = {
        path: httpx2.get(shared_gateway.url + path)
        for path in ("/livez", "/readyz", "/openapi.yaml", "/docs")
    }
    assert {answer.status_code for answer in get.values()} == {200}
    assert get["/livez"].json() == {"status": "alive"}
    assert get["/readyz"].json()["targets"]["main"]["state"] == "ready"
    assert get["/openapi.yaml"].text.startswith("openapi: 3.1")
    assert "/execute" in get["/docs"].text


def test_who_asks_is_told_who_it_is(shared_gateway: Any) -> None:
    with shared_gateway.http() as client:
        told = client.get("/whoami").json()
    assert (told["kind"], told["subject"]) == ("gateway", "tester")


def test_concurrent_callers_see_their_own_rows(shared_gateway: Any) -> None:
    wrong: list[Any] = []
    right: list[int] = []

    def ask(number: int) -> None:
        with shared_gateway.http() as client:
            for n in range(number, number + 20):
                body = json.dumps({"sql": "select $1::int", "parameters": [n]}).encode()
                answer = client.post("/execute", content=body).json()
                if answer.get("rows") == [[n]]:
                    right.append(n)
                else:
                    wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(each * 100,)) for each in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(right) == 16 * 20


def test_a_superuser_login_is_refused(database: Database) -> None:
    settings = settings_for(database, user="postgres")
    with running(settings, database) as gateway:
        answer = gateway.execute("select 1")
    assert (answer["status"], answer["code"]) == (503, "database_unavailable")
    assert "superuser" in answer["detail"]


def test_a_dead_database_is_a_clear_503_and_is_found_again(database: Database) -> None:
    settings = settings_for(database)
    target = settings.targets["main"]
    dead = replace(target, hosts=(("127.0.0.1", 1),), statement_timeout=1.0)
    with running(replace(settings, targets={"main": dead}), database) as gateway:
        answer = _post(gateway, "/execute", {"sql": "select 1"})
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert (answer.json()["outcome"], answer.json()["retry"]) == ("not_executed", "safe")
        assert int(answer.headers["retry-after"]) >= 1
        assert _metric(gateway, "pgsluice_connections_in_use") == 0
        ready = httpx2.get(gateway.url + "/readyz")
        assert (ready.status_code, ready.json()["targets"]["main"]["state"]) == (200, "waiting")


def test_a_full_queue_is_an_early_429_and_loses_no_place(database: Database) -> None:
    settings = settings_for(database, max_connections=1, max_open_transactions=1, max_waiting=0)
    with running(settings, database) as gateway:
        id = _begin(gateway)
        answer = _post(gateway, "/execute", {"sql": "select 1"})
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert (answer.json()["outcome"], answer.json()["retry"]) == ("not_executed", "safe")
        assert int(answer.headers["retry-after"]) >= 1
        _post(gateway, f"/transactions/{id}/rollback")
        until(lambda: not _metric(gateway, "pgsluice_connections_in_use"), "the place is lost")
        assert _value(gateway, "select 1") == 1
