"""Transactions, timeouts and batches of the Data API, with an unmodified boto3."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import botocore.exceptions
import httpx2
import pytest
from botocore.exceptions import ClientError

from gateway.settings import TargetSettings, TransactionSettings
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database
from tests.wire.data_api import DataApi

pytestmark = pytest.mark.wire

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def api_database(postgres: Any) -> Database:
    postgres.sql("create database transactions strategy wal_log")
    return Database(postgres, "transactions")


@pytest.fixture(scope="module")
def api_gateway(api_database: Database) -> Iterator[Gateway]:
    with running(settings_for(api_database), api_database) as it:
        yield it


@pytest.fixture
def api(api_gateway: Gateway) -> Iterator[DataApi]:
    found = DataApi(api_gateway)
    yield found
    found.client.close()


@pytest.fixture
def table(api: DataApi) -> Iterator[str]:
    name = f"lines_{next(_numbers)}"
    api.execute(f"create table {name} (n int, v text not null default '')")
    yield name
    api.execute(f"drop table {name}")


@contextmanager
def another(database: Database, **changed: Any) -> Iterator[DataApi]:
    """A client of a gateway of its own, whose target differs as *changed* says."""
    settings = settings_for(database)
    target = replace(settings.targets["main"], **changed)
    with running(replace(settings, targets={"main": target}), database) as gateway:
        found = DataApi(gateway)
        yield found
        found.client.close()


@contextmanager
def hurried(api: DataApi, milliseconds: int) -> Iterator[None]:
    """Callers inside must have their answer after so many milliseconds."""

    def add(request: Any, **_: Any) -> None:
        request.headers["x-gateway-deadline-ms"] = str(milliseconds)

    events = api.client.meta.events
    events.register("before-sign.rds-data.ExecuteStatement", add)
    try:
        yield
    finally:
        events.unregister("before-sign.rds-data.ExecuteStatement", add)


def failure(call: Callable[[], Any]) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value


def count(api: DataApi, table: str, **more: Any) -> int:
    [[field]] = api.execute(f"select count(*) from {table}", **more)["records"]
    found: int = field["longValue"]
    return found


def active(database: Database, words: str) -> int:
    """Statements under way in *database* that hold *words*."""
    return int(
        database.sql(
            f"select count(*) from pg_stat_activity where {GATEWAYS} and state = 'active'"
            f" and query like '%{words}%'"
        )
    )


def under_way(gateway: Gateway) -> int:
    """Requests that the gateway has begun and not answered."""
    page = httpx2.get(f"{gateway.admin_url}/metrics").text
    found = re.search(r"^pgsluice_requests_active (\d+)", page, re.MULTILINE)
    assert found, page
    return int(found[1])


# -- the life of a transaction ----------------------------------------------------------------


def test_the_limits_are_those_of_aws_unless_they_are_configured() -> None:
    limits = TransactionSettings()
    assert (limits.idle_timeout, limits.max_lifetime) == (180.0, 86_400.0)
    assert TargetSettings(name="main", hosts=(("localhost", 5432),)).statement_timeout == 45.0


@pytest.mark.parametrize("limit", ["idle_timeout", "max_lifetime"])
def test_a_transaction_past_its_limit_is_rolled_back_and_not_found(
    api: DataApi, api_database: Database, table: str, limit: str
) -> None:
    changed = TransactionSettings(**{limit: 0.5})
    with another(api_database, transactions=changed) as limited:
        transaction = limited.begin()
        limited.execute(f"insert into {table} values (1)", transactionId=transaction)
        open_ones = (
            f"select count(*) from pg_stat_activity where {GATEWAYS}"
            " and state like 'idle in transaction%'"
        )
        until(lambda: api_database.sql(open_ones).strip() == "0", "it is still open")
        for call in (
            lambda: limited.execute("select 1", transactionId=transaction),
            lambda: limited.commit(transaction),
            lambda: limited.rollback(transaction),
        ):
            error = failure(call).response
            assert error["Error"]["Code"] == "TransactionNotFoundException"
            assert f"Transaction {transaction} is not found" in error["Error"]["Message"]
    assert count(api, table) == 0


def test_a_failed_transaction_refuses_all_but_its_rollback(api: DataApi, table: str) -> None:
    transaction = api.begin()
    api.execute(f"insert into {table} values (1)", transactionId=transaction)
    failure(lambda: api.execute("select 1/0", transactionId=transaction))
    for call in (
        lambda: api.execute("select 1", transactionId=transaction),
        lambda: api.batch("select 1", {}, transactionId=transaction),
    ):
        message = failure(call).response["Error"]["Message"]
        assert message == (
            "ERROR: current transaction is aborted, commands ignored until end of transaction "
            "block; SQLState: 25P02"
        )
    assert api.rollback(transaction) == "Rollback Complete"
    assert count(api, table) == 0


def test_the_commit_of_a_failed_transaction_is_no_success(api: DataApi, table: str) -> None:
    transaction = api.begin()
    api.execute(f"insert into {table} values (1)", transactionId=transaction)
    failure(lambda: api.execute("select 1/0", transactionId=transaction))
    error = failure(lambda: api.commit(transaction)).response
    assert error["Error"]["Code"] == "DatabaseErrorException"
    assert error["Error"]["Message"].endswith("SQLState: 25P02")
    assert count(api, table) == 0
    gone = failure(lambda: api.rollback(transaction)).response["Error"]["Code"]
    assert gone == "TransactionNotFoundException"


def test_a_savepoint_saves_a_failed_transaction(api: DataApi, table: str) -> None:
    transaction = api.begin()
    for sql in (
        f"insert into {table} values (1)",
        "savepoint sp1",
        f"insert into {table} values (2)",
        "savepoint sp2",
        "release savepoint sp2",
    ):
        api.execute(sql, transactionId=transaction)
    failure(lambda: api.execute("select 1/0", transactionId=transaction))
    api.execute("rollback to savepoint sp1", transactionId=transaction)
    assert count(api, table, transactionId=transaction) == 1
    assert api.commit(transaction) == "Transaction Committed"
    assert count(api, table) == 1


def test_a_cursor_pages_forwards_and_backwards(api: DataApi) -> None:
    transaction = api.begin()

    def run(sql: str) -> dict[str, Any]:
        return api.execute(sql, transactionId=transaction, includeResultMetadata=True)

    declared = run(
        "declare page scroll cursor for select g, 'row ' || g from generate_series(1, 9) g"
    )
    assert "records" not in declared
    first = run("fetch 4 from page")
    assert [row[0]["longValue"] for row in first["records"]] == [1, 2, 3, 4]
    assert [column["typeName"] for column in first["columnMetadata"]] == ["int4", "text"]
    moved = run("move absolute 7 from page")
    assert (moved["numberOfRecordsUpdated"], "records" in moved) == (1, False)
    assert [row[0]["longValue"] for row in run("fetch 4 from page")["records"]] == [8, 9]
    assert run("fetch 4 from page")["records"] == []
    run("close page")
    api.rollback(transaction)


def test_session_state_lasts_for_the_transaction_alone(api: DataApi) -> None:
    transaction = api.begin()
    for sql in (
        "set local statement_timeout = '7s'",
        "set timezone = 'Asia/Tokyo'",
        "create temp table scratch (n int)",
        "prepare once as select 1",
    ):
        api.execute(sql, transactionId=transaction)
    found = api.execute("show statement_timeout", transactionId=transaction)["records"]
    assert found == [[{"stringValue": "7s"}]]
    assert api.execute("execute once", transactionId=transaction)["records"] == [[{"longValue": 1}]]
    api.commit(transaction)
    assert api.one("show timezone") == {"stringValue": "UTC"}
    for sql, state in (("execute once", "26000"), ("select * from scratch", "42P01")):
        assert (
            failure(lambda sql=sql: api.execute(sql)).response["Error"]["Message"].endswith(state)
        )


@pytest.mark.parametrize(
    "zone", ["Asia/Tokyo", "America/St_Johns", "Africa/Monrovia", "UTC", "-15:59"]
)
def test_moments_are_in_utc_whatever_zone_the_transaction_has(api: DataApi, zone: str) -> None:
    moments = [
        *("2024-01-15 03:34:56", "2024-12-31 23:59:59.999999", "2024-03-01 00:00:00.5"),
        *("0001-01-01 00:00:00", "0044-03-15 12:00:00 BC", "0001-12-31 23:59:59 BC"),
        *("9999-12-31 23:59:59", "123456-02-29 00:00:00", "1900-01-01 00:00:00", "infinity"),
    ]
    transaction = api.begin()
    api.execute(f"set local timezone = '{zone}'", transactionId=transaction)
    literals = ", ".join(
        f"'{text.removesuffix(' BC')}{'' if 'inf' in text else '+00'}{text[-3:] * ('BC' in text)}'"
        for text in moments
    )
    for sql, more in (
        (f"select array[{literals}]::timestamptz[]", {}),
        (f"select unnest(array[{literals}]::timestamptz[])", {}),
        (f"select unnest(array[{literals}]::timestamptz[]) as m", {"formatRecordsAs": "JSON"}),
    ):
        answer = api.execute(sql, transactionId=transaction, **more)
        if more:
            assert [row["m"] for row in json.loads(answer["formattedRecords"])] == moments
        elif "unnest" in sql:
            assert [row[0]["stringValue"] for row in answer["records"]] == moments
        else:
            assert answer["records"] == [[{"arrayValue": {"stringValues": moments}}]]
    api.rollback(transaction)


def test_isolation_is_set_as_sql(api: DataApi) -> None:
    transaction = api.begin()
    api.execute(
        "set transaction isolation level serializable, read only", transactionId=transaction
    )
    [[level]] = api.execute("show transaction_isolation", transactionId=transaction)["records"]
    assert level == {"stringValue": "serializable"}
    message = failure(
        lambda: api.execute("create table nope ()", transactionId=transaction)
    ).response["Error"]["Message"]
    assert message.endswith("SQLState: 25006")
    api.rollback(transaction)


def test_ddl_in_a_transaction_is_rolled_back(api: DataApi) -> None:
    transaction = api.begin()
    api.execute("create table undone (n int)", transactionId=transaction)
    api.execute("insert into undone values (1)", transactionId=transaction)
    api.rollback(transaction)
    assert api.one("select to_regclass('undone')") == {"isNull": True}


def test_what_cannot_run_in_a_transaction_block_runs_alone(api: DataApi, table: str) -> None:
    for sql in (f"vacuum {table}", f"create index concurrently {table}_n on {table} (n)"):
        assert api.execute(sql)["numberOfRecordsUpdated"] == 0
    transaction = api.begin()
    message = failure(lambda: api.execute(f"vacuum {table}", transactionId=transaction))
    assert "SQLState: 25001" in message.response["Error"]["Message"]
    api.rollback(transaction)


@pytest.mark.parametrize("sql", ["begin", "commit", "rollback", "start transaction", "end"])
def test_transaction_control_as_sql_is_refused(api: DataApi, table: str, sql: str) -> None:
    transaction = api.begin()
    api.execute(f"insert into {table} values (1)", transactionId=transaction)
    for more in ({}, {"transactionId": transaction}):
        error = failure(lambda more=more: api.execute(sql, **more)).response["Error"]
        assert error["Code"] == "ValidationException"
        assert "controls transactions" in error["Message"]
    # It is neither ended nor harmed by what was refused.
    assert count(api, table) == 0
    assert api.commit(transaction) == "Transaction Committed"
    assert count(api, table) == 1


@pytest.mark.parametrize(
    "sql", ["copy {} to stdout", "copy {} from stdin", "COPY (table {}) TO '/x'"]
)
def test_copy_as_sql_is_refused_and_harms_no_transaction(
    api: DataApi, table: str, sql: str
) -> None:
    transaction = api.begin()
    for more in ({}, {"transactionId": transaction}):
        error = failure(lambda more=more: api.execute(sql.format(table), **more)).response["Error"]
        assert error["Code"] == "ValidationException"
        assert "COPY is not supported" in error["Message"]
    assert api.commit(transaction) == "Transaction Committed"


def test_another_database_than_that_of_the_transaction_is_named(api: DataApi) -> None:
    answer = api.client.begin_transaction(database="postgres", **api.arns)
    error = failure(lambda: api.execute("select 1", transactionId=answer["transactionId"]))
    assert error.response["Error"]["Code"] == "ValidationException"
    assert "on database postgres, not on transactions" in error.response["Error"]["Message"]
    api.rollback(answer["transactionId"])


def test_calls_on_one_transaction_run_in_the_order_of_their_arrival(
    api_gateway: Gateway, api: DataApi, api_database: Database, table: str
) -> None:
    holder, transaction = api.begin(), api.begin()
    api.execute("select pg_advisory_xact_lock(11)", transactionId=holder)

    def insert(number: int, wait: bool) -> None:
        more = "from (select pg_advisory_xact_lock(11)) as waited" if wait else ""
        api.execute(f"insert into {table} select {number} {more}", transactionId=transaction)

    threads = [threading.Thread(target=insert, args=(0, True))]
    threads[0].start()
    until(lambda: active(api_database, "advisory") == 1, "the first call does not wait")
    for number in range(1, 6):
        before = under_way(api_gateway)
        threads.append(threading.Thread(target=insert, args=(number, False)))
        threads[-1].start()
        until(lambda before=before: under_way(api_gateway) > before, "the call did not arrive")
    api.rollback(holder)
    for thread in threads:
        thread.join()
    ids = api.execute(f"select n from {table} order by ctid", transactionId=transaction)["records"]
    assert [row[0]["longValue"] for row in ids] == [0, 1, 2, 3, 4, 5]
    api.rollback(transaction)


# -- timeouts ---------------------------------------------------------------------------------


def test_a_timeout_cancels_and_keeps_nothing(
    api: DataApi, api_database: Database, table: str
) -> None:
    sql = f"insert into {table} select 1 from (select pg_sleep(600)) as s"
    with hurried(api, 300):
        error = failure(lambda: api.execute(sql)).response
    assert error["Error"]["Code"] == "StatementTimeoutException"
    assert "canceling statement due to statement timeout" in error["Error"]["Message"]
    assert error["dbConnectionId"] > 0
    until(lambda: active(api_database, "pg_sleep") == 0, "it still runs")
    assert count(api, table) == 0


def test_a_timeout_in_a_transaction_leaves_it_failed(api: DataApi) -> None:
    transaction = api.begin()
    with hurried(api, 300):
        failure(lambda: api.execute("select pg_sleep(600)", transactionId=transaction))
    error = failure(lambda: api.execute("select 1", transactionId=transaction)).response
    assert error["Error"]["Message"].endswith("SQLState: 25P02")
    assert api.rollback(transaction) == "Rollback Complete"


def test_a_statement_may_continue_after_the_timeout(
    api: DataApi, api_database: Database, table: str
) -> None:
    holder = api.begin()
    api.execute("select pg_advisory_xact_lock(12)", transactionId=holder)
    sql = f"insert into {table} select 1 from (select pg_advisory_xact_lock(12)) as s"
    with hurried(api, 300):
        error = failure(lambda: api.execute(sql, continueAfterTimeout=True)).response
    assert error["Error"]["Code"] == "StatementTimeoutException"
    headers = error["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-gateway-outcome"] == "unknown"
    working = f"select count(*) from pg_stat_activity where pid = {error['dbConnectionId']}"
    assert api_database.sql(f"{working} and query like '%advisory%'").strip() == "1"
    api.rollback(holder)
    until(lambda: count(api, table) == 1, "it did not go on")


def test_a_later_call_in_the_transaction_sees_what_continued(
    api: DataApi, api_database: Database, table: str
) -> None:
    holder, transaction = api.begin(), api.begin()
    api.execute("select pg_advisory_xact_lock(13)", transactionId=holder)
    sql = f"insert into {table} select 1 from (select pg_advisory_xact_lock(13)) as s"
    more = {"transactionId": transaction, "continueAfterTimeout": True}
    with hurried(api, 300):
        failure(lambda: api.execute(sql, **more))
        # Its turn comes behind the statement that goes on.
        error = failure(lambda: api.execute("select 1", transactionId=transaction)).response
    assert error["Error"]["Code"] == "ServiceUnavailableError"
    api.rollback(holder)
    assert count(api, table, transactionId=transaction) == 1
    assert api.commit(transaction) == "Transaction Committed"
    assert count(api, table) == 1


def test_a_large_result_that_came_too_late_leaves_the_transaction_open(
    api: DataApi, api_database: Database
) -> None:
    holder, transaction = api.begin(), api.begin()
    api.execute("select pg_advisory_xact_lock(14)", transactionId=holder)
    sql = (
        "select g, repeat('x', 100) from (select pg_advisory_xact_lock(14)) as s,"
        " generate_series(1, 50000) g"
    )
    more = {"transactionId": transaction, "continueAfterTimeout": True}
    with hurried(api, 300):
        failure(lambda: api.execute(sql, **more))
    api.rollback(holder)
    assert api.execute("select 1", transactionId=transaction)["records"] == [[{"longValue": 1}]]
    assert api.commit(transaction) == "Transaction Committed"


def test_what_continues_can_be_cancelled_by_its_backend(
    api: DataApi, api_database: Database, table: str
) -> None:
    sql = f"insert into {table} select 1 from (select pg_sleep(600)) as s"
    with hurried(api, 300):
        error = failure(lambda: api.execute(sql, continueAfterTimeout=True)).response
    assert active(api_database, "pg_sleep") == 1
    backend = {"longValue": error["dbConnectionId"]}
    assert api.one("select pg_cancel_backend(:pid::int)", pid=backend) == {"booleanValue": True}
    until(lambda: active(api_database, "pg_sleep") == 0, "it still runs")
    assert count(api, table) == 0


def test_what_continues_ends_at_the_limit_of_the_target(
    api: DataApi, api_database: Database, table: str
) -> None:
    with another(api_database, continued_timeout=1.0) as limited:
        sql = f"insert into {table} select 1 from (select pg_sleep(600)) as s"
        with hurried(limited, 300):
            failure(lambda: limited.execute(sql, continueAfterTimeout=True))
        until(lambda: active(api_database, "pg_sleep") == 0, "it still runs")
    with another(api_database, continued_timeout=0.0) as forbidden:
        with hurried(forbidden, 300):
            failure(lambda: forbidden.execute(sql, continueAfterTimeout=True))
        until(lambda: active(api_database, "pg_sleep") == 0, "it still runs")
    assert count(api, table) == 0


def test_a_statement_that_continues_survives_the_departure_of_its_caller(
    api_gateway: Gateway, api: DataApi, api_database: Database, table: str
) -> None:
    holder = api.begin()
    api.execute("select pg_advisory_xact_lock(15)", transactionId=holder)
    sql = f"insert into {table} select 1 from (select pg_advisory_xact_lock(15)) as s"

    impatient = DataApi(api_gateway, read_timeout=1)
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        impatient.execute(sql, continueAfterTimeout=True)
    impatient.client.close()
    assert active(api_database, "advisory") == 1
    api.rollback(holder)
    until(lambda: count(api, table) == 1, "it did not go on")


def test_a_statement_that_found_no_connection_does_not_continue(
    api: DataApi, api_database: Database, table: str
) -> None:
    pool = replace(settings_for(api_database).targets["main"].pool, max_connections=1)
    with another(api_database, pool=pool) as narrow:
        transaction = narrow.begin()
        with hurried(narrow, 300):
            sql = f"insert into {table} values (1)"
            error = failure(lambda: narrow.execute(sql, continueAfterTimeout=True)).response
        assert error["Error"]["Code"] == "ServiceUnavailableError"
        narrow.rollback(transaction)
        assert count(narrow, table) == 0


# -- batches ----------------------------------------------------------------------------------


def test_a_batch_says_which_set_failed(api: DataApi, table: str) -> None:
    good, bad = {"v": {"stringValue": "a"}}, {"v": {"isNull": True}}
    for transaction in (None, api.begin()):
        more = {"transactionId": transaction} if transaction else {}
        sql = f"insert into {table} (v) values (:v)"
        error = failure(lambda sql=sql, more=more: api.batch(sql, good, good, bad, good, **more))
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
        assert headers["x-gateway-statement"] == "2"
        assert headers["x-gateway-column"] == "v"
        assert headers["x-gateway-table"] == table
    assert transaction is not None
    api.rollback(transaction)
    assert count(api, table) == 0


def test_a_batch_names_the_set_whose_value_does_not_fit(api: DataApi, table: str) -> None:
    sets = [{"n": {"longValue": 1}}, {"n": {"stringValue": "x"}}]
    error = failure(lambda: api.batch(f"insert into {table} (n) values (:n)", *sets)).response
    assert error["ResponseMetadata"]["HTTPHeaders"]["x-gateway-statement"] == "1"
    assert error["Error"]["Code"] == "ValidationException"
    missing = failure(
        lambda: api.batch("select :a", {"a": {"longValue": 1}}, {"b": {"longValue": 1}})
    )
    assert missing.response["ResponseMetadata"]["HTTPHeaders"]["x-gateway-statement"] == "1"
    assert "Cannot find parameter: a" in missing.response["Error"]["Message"]


def test_sets_may_differ_in_type_and_hint(api: DataApi, table: str) -> None:
    sets = [
        {"n": {"longValue": 1}, "v": {"stringValue": "a"}},
        {"n": {"isNull": True}, "v": {"stringValue": ""}},
        {"n": {"stringValue": "3"}, "v": {"stringValue": "c"}},
    ]
    answer = api.batch(f"insert into {table} values (:n, :v) returning n, v", *sets)
    assert [each["generatedFields"] for each in answer["updateResults"]] == [
        [{"longValue": 1}, {"stringValue": "a"}],
        [{"isNull": True}, {"stringValue": ""}],
        [{"longValue": 3}, {"stringValue": "c"}],
    ]


def test_no_sets_run_nothing_and_an_empty_set_runs_once(api: DataApi, table: str) -> None:
    sql = f"insert into {table} values (1)"
    for more in ({}, {"parameterSets": []}):
        answer = api.client.batch_execute_statement(
            sql=sql, database=api.database, **api.arns, **more
        )
        assert answer["updateResults"] == []
    assert api.batch(sql, {}, {})["updateResults"] == [{"generatedFields": []}] * 2
    assert count(api, table) == 2


def test_a_large_batch_goes_in_whole(api: DataApi, table: str) -> None:
    sets = [{"n": {"longValue": number}, "v": {"stringValue": "x"}} for number in range(10_000)]
    answer = api.batch(f"insert into {table} values (:n, :v)", *sets)
    assert len(answer["updateResults"]) == 10_000
    assert api.one(f"select sum(n) from {table}") == {"longValue": sum(range(10_000))}
