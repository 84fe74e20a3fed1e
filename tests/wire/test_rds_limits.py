"""`compat = "aws"`: what Amazon's service refuses is refused, in its words, with boto3.

Every test runs the same call against a gateway without the switch, where it works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fix_gateway import RESOURCE, SECRET, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database
from tests.wire.data_api import DataApi, refused

pytestmark = pytest.mark.wire

KEY = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
LONG = "arn:aws:of:a:long:name:"
UNSUPPORTED = "UnsupportedResultException"


@pytest.fixture(scope="module")
def limits_database(postgres: Any) -> Database:
    postgres.sql("create database limits strategy wal_log")
    database = Database(postgres, "limits")
    database.sql(
        "create type mood as enum ('sad', 'glad');"
        "create table typed (u uuid, m mood, j jsonb, i int4, t timestamptz, d date);"
        "create table lines (id serial, v text); grant all on typed, lines to public;"
        "grant usage on sequence lines_id_seq to public;"
        "create schema other; grant all on schema other to public"
    )
    return database


@pytest.fixture(scope="module")
def both(limits_database: Database) -> Iterator[tuple[DataApi, DataApi]]:
    """A client of a gateway that behaves like AWS, and one of a gateway that does not."""
    plain = settings_for(limits_database)
    target = plain.targets["main"]
    login = replace(target.logins["app"], secrets=(SECRET, LONG + "*"))
    target = replace(target, compat="aws", resources=(RESOURCE, LONG + "*"), logins={"app": login})
    like_aws = replace(plain, targets={"main": target})
    with running(like_aws, limits_database) as strict, running(plain, limits_database) as free:
        clients = DataApi(strict), DataApi(free)
        yield clients
        for client in clients:
            client.client.close()


@pytest.fixture
def aws(both: tuple[DataApi, DataApi]) -> DataApi:
    return both[0]


@pytest.fixture
def ours(both: tuple[DataApi, DataApi]) -> DataApi:
    return both[1]


def refusal(call: Callable[[], Any]) -> tuple[str, str, int]:
    with pytest.raises(ClientError) as caught:
        call()
    return refused(caught)


# -- results ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "passes"),
    [pytest.param(24_900, True, id="below"), pytest.param(25_000, False, id="above")],
)
def test_a_result_is_at_most_one_megabyte(
    aws: DataApi, ours: DataApi, rows: int, passes: bool
) -> None:
    sql = f"select gen_random_uuid() from generate_series(1, {rows})"
    assert len(ours.execute(sql)["records"]) == rows
    if passes:
        assert len(aws.execute(sql)["records"]) == rows
    else:
        found = refusal(lambda: aws.execute(sql))
        assert found == (UNSUPPORTED, "The result exceeds the size limit 1 MB.", 400)


def test_a_large_row_is_no_reason_to_refuse(aws: DataApi) -> None:
    assert len(aws.one("select repeat('x', 100000)")["stringValue"]) == 100_000
    assert len(aws.one("select decode(repeat('ab', 500000), 'hex')")["blobValue"]) == 500_000


def test_a_result_past_the_limit_leaves_the_transaction_alive(aws: DataApi) -> None:
    transaction = aws.begin()
    sql = "select repeat('x', 1000) from generate_series(1, 20000)"
    found = refusal(lambda: aws.execute(sql, transactionId=transaction))
    assert found[0] == UNSUPPORTED
    aws.execute(f"declare pages cursor for {sql}", transactionId=transaction)
    page = aws.execute("fetch 100 from pages", transactionId=transaction)
    assert len(page["records"]) == 100
    assert aws.commit(transaction) == "Transaction Committed"


def test_a_write_whose_result_is_refused_has_written_nothing(aws: DataApi, ours: DataApi) -> None:
    for sql, message in (
        ("insert into lines (v) select repeat('x', 1000) from generate_series(1, 2000)"
         " returning v", "exceeds the size limit 1 MB"),
        ("insert into lines (v) values ('x') returning interval '1 day'", "INTERVAL"),
    ):  # fmt: skip
        assert message in refusal(lambda sql=sql: aws.execute(sql))[1]
        assert aws.one("select count(*) from lines") == {"longValue": 0}
        transaction = ours.begin()
        assert ours.execute(sql, transactionId=transaction)["records"]
        ours.rollback(transaction)


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("interval '1 day'", "INTERVAL"),
        ("timetz '12:00+01'", "TIMETZ"),
        ("point '(1,2)'", "POINT"),
        ("money '1'", "money"),
        ("box '(1,1),(0,0)'", "box"),
        ("circle '<(0,0),1>'", "circle"),
        ("""'r'::"char\"""", '"CHAR"'),
        ("'pg_class'::regclass", "regclass"),
        ("array['int4'::regtype]", "_regtype"),
        ("macaddr '08:00:2b:01:02:03'", "macaddr"),
        ("int8range(1, 2)", "int8range"),
        ("daterange('2024-01-01', null)", "daterange"),
        ("tsrange(null, null)", "tsrange"),
        ("to_tsvector('simple', 'a')", "tsvector"),
        ("row(1, 'x')", "record"),
        ("array[now()]", "_timestamptz"),
        ("array['{}'::jsonb]", "_jsonb"),
        ("B'101'", "bit"),
    ],
)
def test_types_that_aws_cannot_return(
    aws: DataApi, ours: DataApi, expression: str, named: str
) -> None:
    found = refusal(lambda: aws.execute(f"select {expression}"))
    assert found == (UNSUPPORTED, f"The result contains the unsupported data type {named}.", 400)
    assert ours.one(f"select {expression}")


@pytest.mark.parametrize(
    "expression",
    [
        "true", "1::int2", "1", "1::int8", "1::oid", "1.5::float4", "1.5::float8", "1.5",
        "'t'::text", "'c'::char(3)", "'v'::varchar", "'n'::name", "'\\xff'::bytea",
        "date '2024-01-01'",
        "time '01:02'", "timestamp '2024-01-01 01:02'", "now()", "gen_random_uuid()", "'{}'::json",
        "'{}'::jsonb", "inet '10.0.0.1'", "cidr '10.0.0.0/8'", "'glad'::mood", "array[1]",
        "array[1.5]", "array['t']", "array[date '2024-01-01']", "array[true]", "array[B'1']",
        "array[gen_random_uuid()]", "array['{}'::json]", "int4range(1, 2)", "numrange(1, 2)",
    ],
)  # fmt: skip
def test_types_that_aws_returns(aws: DataApi, expression: str) -> None:
    assert aws.one(f"select {expression}")


def test_arrays_of_several_dimensions_are_refused(aws: DataApi, ours: DataApi) -> None:
    found = refusal(lambda: aws.execute("select array[[1],[2]]"))
    assert found == (UNSUPPORTED, "The result contains a multidimensional array", 400)
    assert "arrayValues" in ours.one("select array[[1],[2]]")["arrayValue"]


@pytest.mark.parametrize("expression", ["timestamptz 'infinity'", "date '-infinity'"])
def test_infinite_moments_fail_without_a_word(aws: DataApi, ours: DataApi, expression: str) -> None:
    assert refusal(lambda: aws.execute(f"select {expression}"))[:2] == ("InternalFailure", "")
    assert "infinity" in ours.one(f"select {expression}")["stringValue"]


def test_formatted_records_are_at_most_ten_megabytes(aws: DataApi, ours: DataApi) -> None:
    label = "a" * 63
    columns = ", ".join(f'1 as "{number:03}{label[:60]}"' for number in range(200))
    sql = f"select {columns} from generate_series(1, 1000)"
    found = refusal(lambda: aws.execute(sql, formatRecordsAs="JSON"))
    assert found[:2] == (UNSUPPORTED, "The formatted result exceeds the size limit 10 MB.")
    assert len(ours.execute(sql, formatRecordsAs="JSON")["formattedRecords"]) > 10 << 20


# -- requests -----------------------------------------------------------------------------


def test_arrays_are_no_parameters(aws: DataApi, ours: DataApi) -> None:
    ids = {"arrayValue": {"longValues": [1, 2]}}
    sql = "select count(*) from generate_series(1, 5) g where g = any(:ids)"
    expected = ("ValidationException", "Array parameters are not supported", 400)
    assert refusal(lambda: aws.run(sql, ids=ids)) == expected
    assert refusal(lambda: aws.batch("select :ids", {"ids": ids})) == expected
    assert ours.run(sql, ids=ids)["records"] == [[{"longValue": 2}]]


def test_the_schema_member_is_refused(aws: DataApi, ours: DataApi) -> None:
    expected = ("ValidationException", "The schema parameter isn't supported", 400)
    begin = {**aws.arns, "database": aws.database, "schema": "other"}
    assert refusal(lambda: aws.execute("select 1", schema="other")) == expected
    assert refusal(lambda: aws.batch("select 1", schema="other")) == expected
    assert refusal(lambda: aws.client.begin_transaction(**begin)) == expected
    found = ours.execute("select current_schemas(false)", schema="other")["records"]
    assert found == [[{"arrayValue": {"stringValues": ["other"]}}]]


def test_a_schema_is_that_of_its_statement_or_of_its_transaction(ours: DataApi) -> None:
    def path(transaction: str, **more: Any) -> str:
        found = ours.execute("show search_path", transactionId=transaction, **more)
        shown: str = found["records"][0][0]["stringValue"]
        return shown

    sets = [{"n": {"longValue": n}} for n in (1, 2)]
    ours.execute("create table other.put (n int)")
    ours.execute("create table put (n int)")
    transaction = ours.begin()
    for before in ('"$user", public', "pg_catalog, public"):
        assert path(transaction) == before
        assert path(transaction, schema='o"d,d') == '"o""d,d"'
        assert path(transaction, schema="other") == '"other"'
        ours.batch("insert into put values (:n)", *sets, schema="other", transactionId=transaction)
        assert path(transaction) == before
        ours.execute("set local search_path = pg_catalog, public", transactionId=transaction)
    counts = "select (select count(*) from put), (select count(*) from public.put)"
    both = ours.execute(counts, schema="other", transactionId=transaction)["records"]
    assert both == [[{"longValue": 4}, {"longValue": 0}]]
    # A savepoint is set, and goes back, whatever path there is.
    ours.execute("savepoint s", transactionId=transaction, schema="other")
    refusal(lambda: ours.execute("table nowhere", transactionId=transaction, schema="other"))
    ours.execute("rollback to savepoint s", transactionId=transaction)
    assert path(transaction) == "pg_catalog, public"
    ours.rollback(transaction)
    begin = {**ours.arns, "database": ours.database, "schema": "other"}
    transaction = ours.client.begin_transaction(**begin)["transactionId"]
    assert path(transaction) == '"other"'
    assert path(transaction, schema="public") == '"public"'
    assert path(transaction) == '"other"'
    ours.rollback(transaction)
    ours.batch("insert into put values (:n)", *sets, schema="other")
    both = ours.execute("select (select count(*) from other.put), count(*) from put")["records"]
    assert both == [[{"longValue": 2}, {"longValue": 0}]]
    ours.execute("drop table other.put, put")


def test_a_statement_is_at_most_65536_characters(aws: DataApi, ours: DataApi) -> None:
    for length, passes in ((65_536, True), (65_537, False)):
        sql = "select 1 --".ljust(length, "x")
        assert ours.one(sql) == {"longValue": 1}
        if passes:
            assert aws.one(sql) == {"longValue": 1}
        else:
            code, message, _ = refusal(lambda sql=sql: aws.execute(sql))
            assert code == "ValidationException"
            assert "Value at 'sql'" in message
            assert "less than or equal to 65536" in message


def test_names_have_the_lengths_of_the_model(aws: DataApi) -> None:
    def call(**changed: str) -> Any:
        return aws.client.execute_statement(sql="select 1", **{**aws.arns, **changed})

    assert call(resourceArn=LONG.ljust(100, "x"))["records"]
    for member, value in (
        ("resourceArn", LONG.ljust(101, "x")),
        ("secretArn", LONG.ljust(101, "x")),
        ("transactionId", "x" * 193),
    ):
        code, message, status = refusal(lambda member=member, value=value: call(**{member: value}))
        assert (code, status) == ("ValidationException", 400)
        assert f"Value at '{member}' failed to satisfy constraint" in message


@pytest.mark.parametrize("like_aws", [True, False])
def test_a_request_is_at_most_four_megabytes(both: tuple[DataApi, DataApi], like_aws: bool) -> None:
    api = both[0] if like_aws else both[1]
    text = {"stringValue": "x" * (4 << 20)}
    code, message, status = refusal(lambda: api.run("select :v", v=text))
    assert (code, status) == ("ValidationException", 413)
    assert "4194304 bytes" in message
    shorter = {"stringValue": "x" * ((4 << 20) - 1_000_000)}
    assert api.run("select length(:v)", v=shorter)["records"] == [[{"longValue": 3_194_304}]]


@pytest.mark.parametrize(
    ("sql", "value", "state"),
    [
        ("select count(*) from typed where u = :v", {"stringValue": KEY}, "42883"),
        ("select count(*) from typed where i = :v", {"stringValue": "1"}, "42883"),
        ("insert into typed (u) values (:v)", {"stringValue": KEY}, "42804"),
        ("insert into typed (m) values (:v)", {"stringValue": "glad"}, "42804"),
        ("insert into typed (j) values (:v)", {"stringValue": "{}"}, "42804"),
        ("insert into typed (t) values (:v)", {"stringValue": "2024-01-01"}, "42804"),
        ("select 1 << :v", {"longValue": 1}, "42883"),
    ],
)
def test_values_have_the_types_that_aws_binds(
    aws: DataApi, ours: DataApi, sql: str, value: dict[str, Any], state: str
) -> None:
    code, message, _ = refusal(lambda: aws.run(sql, v=value))
    assert code == "DatabaseErrorException"
    assert message.endswith(f"SQLState: {state}")
    transaction = ours.begin()
    ours.execute(sql, parameters=[{"name": "v", "value": value}], transactionId=transaction)
    ours.rollback(transaction)


def test_the_casts_and_hints_that_aws_needs_work(aws: DataApi) -> None:
    transaction = aws.begin()
    aws.execute(
        "insert into typed values (:u::uuid, cast(:m as mood), :j::jsonb, :i, :t::timestamptz, :d)",
        parameters=[
            {"name": "u", "value": {"stringValue": KEY}},
            {"name": "m", "value": {"stringValue": "glad"}},
            {"name": "j", "value": {"stringValue": "{}"}},
            {"name": "i", "value": {"longValue": 7}},
            {"name": "t", "value": {"stringValue": "2024-01-01"}},
            {"name": "d", "value": {"stringValue": "2024-01-01"}, "typeHint": "DATE"},
        ],
        transactionId=transaction,
    )
    found = aws.execute(
        "select i from typed where u = :u and d = :d and i = :i",
        parameters=[
            {"name": "u", "value": {"stringValue": KEY}, "typeHint": "UUID"},
            {"name": "d", "value": {"stringValue": "2024-01-01"}, "typeHint": "DATE"},
            {"name": "i", "value": {"longValue": 7}},
        ],
        transactionId=transaction,
    )
    assert found["records"] == [[{"longValue": 7}]]
    aws.rollback(transaction)


def test_each_occurrence_of_a_name_is_bound_by_itself(aws: DataApi, ours: DataApi) -> None:
    sql = "select :a || v, count(*) from lines group by :a || v"
    value = {"stringValue": "x"}
    assert refusal(lambda: aws.run(sql, a=value))[1].endswith("SQLState: 42803")
    assert ours.run(sql, a=value)["records"] == []
    assert aws.one("select :a || :a", a=value) == {"stringValue": "xx"}


def test_a_placeholder_of_postgresql_has_no_value(aws: DataApi, ours: DataApi) -> None:
    message = (
        "ERROR: bind message supplies 0 parameters, but prepared statement requires 1;"
        " SQLState: 08P01"
    )
    assert refusal(lambda: aws.execute("select $1")) == ("DatabaseErrorException", message, 400)
    for each in (aws, ours):
        code, message, _ = refusal(lambda each=each: each.run("select $1, :a", a={"longValue": 1}))
        assert code == "ValidationException"
        assert "$1 cannot be used together with named parameters" in message


def test_slices_are_taken_for_parameters(aws: DataApi, ours: DataApi) -> None:
    sql = "select (array[1,2,3])[1:2], :a"
    value = {"longValue": 1}
    expected = ("ValidationException", "Cannot find parameter: 2", 400)
    assert refusal(lambda: aws.run(sql, a=value)) == expected
    assert ours.run(sql, a=value)["records"][0][1] == value


# -- batches and transactions ---------------------------------------------------------------


def test_a_batch_returns_no_fields(aws: DataApi, ours: DataApi) -> None:
    sets = [{"v": {"stringValue": text}} for text in ("a", "b")]
    sql = "insert into lines (v) values (:v) returning v"
    transaction = aws.begin()
    found = aws.batch(sql, *sets, transactionId=transaction)
    assert found["updateResults"] == [{"generatedFields": []}] * 2
    aws.rollback(transaction)
    transaction = ours.begin()
    found = ours.batch(sql, *sets, transactionId=transaction)
    assert found["updateResults"][1] == {"generatedFields": [{"stringValue": "b"}]}
    ours.rollback(transaction)


def test_a_second_call_in_a_busy_transaction_is_refused_at_once(
    aws: DataApi, limits_database: Database
) -> None:
    transaction = aws.begin()
    [[backend]] = aws.execute("select pg_backend_pid()", transactionId=transaction)["records"]
    first = threading.Thread(
        target=lambda: refusal(
            lambda: aws.execute("select pg_sleep(600)", transactionId=transaction)
        )
    )
    first.start()
    sleeping = (
        f"select count(*) from pg_stat_activity where {GATEWAYS} and query like '%pg_sleep%'"
        f" and pid = {backend['longValue']} and state = 'active'"
    )
    try:
        until(lambda: limits_database.sql(sleeping).strip() == "1", "the first call does not run")
        for call in (
            lambda: aws.execute("select 1", transactionId=transaction),
            lambda: aws.batch("select 1", {}, transactionId=transaction),
            lambda: aws.commit(transaction),
        ):
            expected = ("DatabaseErrorException", "Transaction is still running a query", 400)
            assert refusal(call) == expected
    finally:
        limits_database.sql(f"select pg_cancel_backend({backend['longValue']})")
        first.join()
    assert aws.rollback(transaction) == "Rollback Complete"
