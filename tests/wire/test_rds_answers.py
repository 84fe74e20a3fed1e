"""Answers and refusals of the Data API: their members, classes, headers and attempts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import botocore.exceptions
import httpx2
import pytest
from botocore.exceptions import ClientError

from tests.fix_gateway import RESOURCE, SECRET, Gateway, running, settings_for
from tests.fix_postgres import Database
from tests.wire.data_api import DataApi

pytestmark = pytest.mark.wire

NEVER_SENT = {
    # Of clusters that sleep, are being made, or have no endpoint for HTTP.
    "DatabaseNotFoundException",
    "DatabaseResumingException",
    "HttpEndpointNotEnabledException",
    "InvalidResourceStateException",
    # Said as AccessDeniedException and TransactionNotFoundException.
    "ForbiddenException",
    "NotFoundException",
}
"""Exceptions of the model that the gateway has no use for."""


@pytest.fixture(scope="module")
def answers(postgres: Any) -> Database:
    postgres.sql("create database answers strategy wal_log")
    database = Database(postgres, "answers")
    database.sql(
        "create table strict (id int constraint strict_key primary key deferrable,"
        " v text constraint \"żółty\nklucz\" check (v <> ''), n int not null default 0);"
        "grant all on strict to public;"
        "create procedure outs(inout n int) language sql as 'select n + 1';"
        "create table lines (n int); insert into lines select generate_series(1, 5);"
        "grant all on lines to public"
    )
    return database


@pytest.fixture(scope="module")
def answers_gateway(answers: Database) -> Iterator[Gateway]:
    with running(settings_for(answers), answers) as it:
        yield it


@pytest.fixture(scope="module")
def api(answers_gateway: Gateway) -> Iterator[DataApi]:
    found = DataApi(answers_gateway)
    yield found
    found.client.close()


def failure(call: Callable[[], Any]) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value


# -- which members there are --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "rows", "updated"),
    [
        ("select 1", 1, 0),
        ("select 1 where false", 0, 0),
        ("values (1), (2)", 2, 0),
        ("table lines", 5, 0),
        ("with a as (select 1) select * from a", 1, 0),
        ("show timezone", 1, 0),
        ("explain select 1", 1, 0),
        ("call outs(1)", 1, 0),
        ("update lines set n = n where n < 3 returning n", 2, 0),
        ("delete from lines where false returning n", 0, 0),
        ("update lines set n = n where n < 3", None, 2),
        ("delete from lines where false", None, 0),
        ("create temp table t1 as select 1 union select 2", None, 2),
        ("select n into temp t2 from lines", None, 5),
        ("create temp table t3 ()", None, 0),
        ("set timezone = 'UTC'", None, 0),
        ("do 'begin end'", None, 0),
        ("insert into lines select n from lines where false", None, 0),
    ],
)
def test_members_depend_on_whether_there_is_a_row_description(
    api: DataApi, sql: str, rows: int | None, updated: int
) -> None:
    answer = api.execute(sql, includeResultMetadata=True)
    assert answer["numberOfRecordsUpdated"] == updated
    if rows is None:
        assert "records" not in answer
        assert "columnMetadata" not in answer
        assert answer["generatedFields"] == []
    else:
        assert len(answer["records"]) == rows
        assert answer["columnMetadata"]
        assert "generatedFields" not in answer


@pytest.mark.parametrize(
    ("sql", "formatted"),
    [
        ("select 1 as id, 'Jane' as name union all select 2, null",
         '[{"id":1,"name":"Jane"},{"id":2,"name":null}]'),
        ("select 1 as id where false", "[]"),
        ("select 10.0::float8 as f, 1e300::float8 as g, 'NaN'::float8 as h",
         '[{"f":10.0,"g":1e300,"h":"NaN"}]'),
        ("select 1.50 as n, true as b, '\\xff'::bytea as c, array[1,null] as a",
         '[{"n":"1.50","b":true,"c":"/w==","a":[1,null]}]'),
        ("""select '{"a": 1}'::jsonb as j, E'a"b\\\\\\n\\tż' as t""",
         '[{"j":"{\\"a\\":1}","t":"a\\"b\\\\\\n\\tż"}]'),
        ("select now() - now() as span, timestamptz '2024-01-15 12:34:56+09' as at",
         '[{"span":"00:00:00","at":"2024-01-15 03:34:56"}]'),
    ],
)  # fmt: skip
def test_formatted_records_are_one_json_text(api: DataApi, sql: str, formatted: str) -> None:
    answer = api.execute(sql, formatRecordsAs="JSON", includeResultMetadata=True)
    assert answer["formattedRecords"] == formatted
    assert {"records", "columnMetadata"}.isdisjoint(answer)


def test_formatted_records_follow_the_options(api: DataApi) -> None:
    answer = api.execute(
        "select 9007199254740993 as i, 2.50 as n, 5::numeric as m, array[1.5] as a",
        formatRecordsAs="JSON",
        resultSetOptions={"decimalReturnType": "DOUBLE_OR_LONG", "longReturnType": "STRING"},
    )
    expected = '[{"i":"9007199254740993","n":2.5,"m":5,"a":[1.5]}]'
    assert answer["formattedRecords"] == expected


def test_equal_labels_are_refused_before_anything_is_written(api: DataApi) -> None:
    sql = "insert into lines values (99) returning n, n"
    for statement in (sql, "select 1 as n, 2 as n"):
        error = failure(
            lambda statement=statement: api.execute(statement, formatRecordsAs="JSON")
        ).response
        assert error["Error"]["Code"] == "ValidationException"
        assert "different label" in error["Error"]["Message"]
    assert api.one("select count(*) from lines where n = 99") == {"longValue": 0}


def test_commands_ignore_the_format(api: DataApi) -> None:
    answer = api.execute("update lines set n = n", formatRecordsAs="JSON")
    assert answer["numberOfRecordsUpdated"] == 5
    assert "formattedRecords" not in answer


# -- what is refused ----------------------------------------------------------------------------


def test_the_model_has_no_exception_that_is_not_accounted_for(api: DataApi) -> None:
    shown = {
        "AccessDeniedException",
        "BadRequestException",
        "DatabaseErrorException",
        "DatabaseUnavailableException",
        "InternalServerErrorException",
        "InvalidSecretException",
        "SecretsErrorException",
        "ServiceUnavailableError",
        "StatementTimeoutException",
        "TransactionNotFoundException",
        "UnsupportedResultException",
    }
    shapes = api.client.meta.service_model.error_shapes
    assert {shape.name for shape in shapes} == shown | NEVER_SENT


def test_a_database_that_is_away_is_unavailable(answers: Database) -> None:
    settings = settings_for(answers)
    target = replace(settings.targets["main"], hosts=(("127.0.0.1", 1),), statement_timeout=2.0)
    with running(replace(settings, targets={"main": target}), answers) as gateway:
        away = DataApi(gateway)
        error = failure(lambda: away.execute("select 1"))
        assert isinstance(error, away.errors.DatabaseUnavailableException)
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 504
        away.client.close()


def test_a_result_that_must_be_held_has_a_limit(answers: Database) -> None:
    settings = settings_for(answers)
    target = replace(settings.targets["main"], response_bytes=10_000)
    with running(replace(settings, targets={"main": target}), answers) as gateway:
        small = DataApi(gateway)
        sql = "insert into lines select 7 from generate_series(1, 9999) returning n, 'written'"
        error = failure(lambda: small.execute(sql))
        assert isinstance(error, small.errors.UnsupportedResultException)
        assert small.one("select count(*) from lines where n = 7") == {"longValue": 0}
        small.client.close()


def test_execute_sql_is_refused(api: DataApi) -> None:
    error = failure(
        lambda: api.client.execute_sql(
            dbClusterOrInstanceArn=RESOURCE, awsSecretStoreArn=SECRET, sqlStatements="select 1"
        )
    )
    assert isinstance(error, api.errors.BadRequestException)
    assert error.response["Error"]["Message"] == "ExecuteSql is not supported"


@pytest.mark.parametrize(
    ("sql", "sqlstate", "parts"),
    [
        ("insert into strict values (1), (1)", "23505",
         {"constraint": "strict_key", "table": "strict"}),
        ("insert into strict values (1, 'x', null)", "23502", {"table": "strict", "column": "n"}),
        ("insert into strict values (1, '')", "23514",
         {"table": "strict", "constraint": "%C5%BC%C3%B3%C5%82ty%0Aklucz"}),
        ("select 1/0", "22012", {}),
    ],
)  # fmt: skip
def test_headers_tell_the_parts_of_an_error(
    api: DataApi, sql: str, sqlstate: str, parts: dict[str, str]
) -> None:
    error = failure(lambda: api.execute(sql)).response
    headers = error["ResponseMetadata"]["HTTPHeaders"]
    told = {
        name: headers[f"x-gateway-{name}"]
        for name in ("constraint", "table", "column")
        if f"x-gateway-{name}" in headers
    }
    assert (headers["x-gateway-sqlstate"], told) == (sqlstate, parts)
    assert headers["x-gateway-outcome"] == "not_executed"
    assert "Detail" not in error["Error"]["Message"]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("do $$begin raise exception E'a\\nb; c' using hint = E'do\\nthis'; end$$",
         "ERROR: a b; c; Hint: do this; SQLState: P0001"),
        ("select 1 +", "ERROR: syntax error at end of input; Position: 11; SQLState: 42601"),
        ("select nope(1)",
         "ERROR: function nope(integer) does not exist; Hint: No function matches the given name"
         " and argument types. You might need to add explicit type casts.; Position: 8;"
         " SQLState: 42883"),
        ("insert into strict values (1, 'x', null)",
         'ERROR: null value in column "n" of relation "strict" violates not-null constraint;'
         " SQLState: 23502"),
    ],
)  # fmt: skip
def test_the_text_of_an_error_is_one_line_of_known_form(
    api: DataApi, answers: Database, sql: str, message: str
) -> None:
    found = failure(lambda: api.execute(sql)).response["Error"]["Message"]
    if "nope" in sql:  # PostgreSQL 18 says it in other words
        assert found.startswith("ERROR: function nope(integer) does not exist; Hint: ")
        assert found.endswith("; Position: 8; SQLState: 42883")
    else:
        assert found == message


def test_an_sql_error_is_sent_once_and_a_full_target_again(answers: Database) -> None:
    settings = settings_for(answers, max_connections=1)
    target = replace(settings.targets["main"], statement_timeout=1.0)
    with running(replace(settings, targets={"main": target}), answers) as gateway:
        api = DataApi(gateway, retries={"mode": "standard", "total_max_attempts": 2})
        sent: list[Any] = []
        api.client.meta.events.register("before-send.rds-data", lambda **each: sent.append(each))
        for sql in ("select nope", "select 1/0", "insert into strict values (1), (1)"):
            failure(lambda sql=sql: api.execute(sql))
            assert len(sent) == 1, sql
            sent.clear()
        transaction = api.begin()
        sent.clear()
        error = failure(lambda: api.execute("select 1"))
        assert isinstance(error, api.errors.ServiceUnavailableError)
        assert len(sent) == 2
        api.rollback(transaction)
        api.client.close()


def test_a_full_queue_is_throttling_and_tried_again_until_there_is_room(answers: Database) -> None:
    with running(settings_for(answers, max_connections=1, max_waiting=0), answers) as gateway:
        once, patient = (
            DataApi(gateway, retries={"mode": "standard", "total_max_attempts": attempts})
            for attempts in (1, 3)
        )
        transaction = once.begin()
        error = failure(lambda: once.execute("select 1"))
        assert error.response["Error"]["Code"] == "ThrottlingException"
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429
        sent: list[Any] = []

        def note(**call: Any) -> None:
            sent.append(call)
            if len(sent) == 2:
                once.rollback(transaction)

        patient.client.meta.events.register("before-send.rds-data.ExecuteStatement", note)
        assert patient.one("select 1") == {"longValue": 1}
        assert len(sent) >= 2
        once.client.close()
        patient.client.close()


def test_what_was_refused_at_commit_was_never_a_success(api: DataApi) -> None:
    sql = "insert into strict values (5), (5)"
    transaction = api.begin()
    api.execute("set constraints all deferred", transactionId=transaction)
    api.execute(sql, transactionId=transaction)
    error = failure(lambda: api.commit(transaction)).response
    assert error["Error"]["Code"] == "DatabaseErrorException"
    assert error["Error"]["Message"].endswith("SQLState: 23505")
    api.execute("create table late (n int primary key deferrable initially deferred)")
    error = failure(lambda: api.execute("insert into late values (1), (1) returning n")).response
    assert error["Error"]["Message"].endswith("SQLState: 23505")
    assert api.one("select count(*) from late") == {"longValue": 0}


@pytest.mark.parametrize("form", ["NONE", "JSON"])
@pytest.mark.parametrize("within", [False, True], ids=["alone", "in a transaction"])
def test_a_stream_that_breaks_is_never_taken_for_an_answer(
    api: DataApi, answers_gateway: Gateway, form: str, within: bool
) -> None:
    sql = "select 1 / (90000 - g) as n, repeat('x', 100) as t from generate_series(1, 100000) g"
    more: dict[str, Any] = {"transactionId": api.begin()} if within else {}
    with pytest.raises((botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)):
        api.execute(sql, formatRecordsAs=form, **more)
    if within:
        message = failure(lambda: api.execute("select 1", **more)).response["Error"]["Message"]
        assert message.endswith("SQLState: 25P02")
        assert api.rollback(more["transactionId"]) == "Rollback Complete"
        more = {"transactionId": api.begin()}
    # Byte for byte: it began well, and what came is no JSON and has no end.
    got = bytearray()
    body = {**api.arns, "database": "answers", "sql": sql, "formatRecordsAs": form, **more}
    with (
        answers_gateway.http() as client,
        pytest.raises(httpx2.RemoteProtocolError),
        client.stream("POST", "/Execute", json=body) as answer,
    ):
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            got += piece
    assert len(got) > 1_000_000
    with pytest.raises(json.JSONDecodeError):
        json.loads(bytes(got))
    if within:
        api.rollback(more["transactionId"])
    assert api.one("select 1") == {"longValue": 1}


# -- the wire -----------------------------------------------------------------------------------


def post(gateway: Gateway, path: str, /, headers: Any = None, **body: Any) -> httpx2.Response:
    with gateway.http() as client:
        whole = {"resourceArn": RESOURCE, "secretArn": SECRET, "database": "answers", **body}
        return client.post(path, content=json.dumps(whole), headers=headers)


def test_nothing_is_compressed(answers_gateway: Gateway) -> None:
    answer = post(
        answers_gateway,
        "/Execute",
        headers={"accept-encoding": "gzip, zstd, br"},
        sql="select repeat('x', 100000)",
    )
    assert "content-encoding" not in answer.headers
    assert len(answer.content) > 100_000


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/x-amz-json-1.1", "text/plain", ""]
)
def test_the_media_type_of_a_request_does_not_matter(
    answers_gateway: Gateway, content_type: str
) -> None:
    answer = post(
        answers_gateway, "/Execute", headers={"content-type": content_type}, sql="select 1"
    )
    assert answer.json()["records"] == [[{"longValue": 1}]]


def test_unknown_and_empty_members_are_ignored(answers_gateway: Gateway) -> None:
    answer = post(
        answers_gateway,
        "/Execute",
        sql="select :a",
        unknown={"x": [1]},
        schema=None,
        transactionId=None,
        resultSetOptions=None,
        parameters=[{"name": "a", "value": {"longValue": 1, "stringValue": None}, "more": 1}],
    )
    assert answer.json()["records"] == [[{"longValue": 1}]]
    begun = post(answers_gateway, "/BeginTransaction").json()["transactionId"]
    ended = post(answers_gateway, "/CommitTransaction", transactionId=begun)
    assert ended.json() == {"transactionStatus": "Transaction Committed"}


def test_a_path_or_method_that_is_no_operation(answers_gateway: Gateway) -> None:
    answer = post(answers_gateway, "/Execute/more")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    for method in ("GET", "PUT", "DELETE"):
        with answers_gateway.http() as client:
            answer = client.request(method, "/Execute")
        name = answer.headers["x-amzn-errortype"]
        assert (answer.status_code, name) == (405, "UnknownOperationException")
        assert answer.headers["allow"] == "POST"
        assert answer.headers["x-amzn-requestid"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "BadRequestException"),
        (b"[]", "ValidationException"),
        (b"{}", "ValidationException"),
        (b'{"resourceArn":1}', "ValidationException"),
        (b'{"resourceArn":"\xff"}', "BadRequestException"),
    ],
)
def test_a_body_that_cannot_be_read(answers_gateway: Gateway, body: bytes, code: str) -> None:
    with answers_gateway.http() as client:
        answer = client.post("/Execute", content=body)
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (400, code)
    assert answer.headers["x-amzn-requestid"]


# -- who is asked -------------------------------------------------------------------------------


def test_names_are_looked_up_and_patterns_are_allowed(answers: Database) -> None:
    settings = settings_for(answers)
    main = settings.targets["main"]
    login = replace(main.logins["app"], secrets=("arn:aws:secretsmanager:eu-west-1:1:secret:*",))
    target = replace(main, resources=("arn:aws:rds:eu-west-1:1:cluster:*",), logins={"app": login})
    with running(replace(settings, targets={"main": target}), answers) as gateway:
        api = DataApi(gateway)
        cluster, secret = "arn:aws:rds:eu-west-1:1:cluster:", "arn:aws:secretsmanager:eu-west-1:1"
        for resource, name, passes in (
            (f"{cluster}any", f"{secret}:secret:any-AbCdEf", True),
            (f"{cluster}other", f"{secret}:secret:other", True),
            ("arn:aws:rds:eu-west-1:2:cluster:any", f"{secret}:secret:any", False),
            (f"{cluster}any", f"{secret}:else:any", False),
            ("127.0.0.1:5432", f"{secret}:secret:any", False),
            ("postgresql://127.0.0.1/answers", f"{secret}:secret:any", False),
        ):
            call = {"resourceArn": resource, "secretArn": name, "sql": "select 1"}
            if passes:
                assert api.client.execute_statement(**call)["records"]
            else:
                error = failure(lambda call=call: api.client.execute_statement(**call))
                assert isinstance(error, api.errors.AccessDeniedException)
        api.client.close()
