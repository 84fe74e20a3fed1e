"""aurora-data-api: a DB-API over boto3 that its users point nowhere but at an endpoint."""

import datetime
import decimal
import os
import uuid

import aurora_data_api
import pytest
from aurora_data_api.exceptions import DatabaseError


def connect(**more):
    return aurora_data_api.connect(
        os.environ["RESOURCE_ARN"],
        os.environ["SECRET_ARN"],
        database=os.environ["DATABASE"],
        **more,
    )


@pytest.fixture
def cursor():
    connection = connect()
    with connection.cursor() as cursor:
        yield cursor
    connection.rollback()


def one(cursor, sql, parameters=None):
    cursor.execute(sql, parameters)
    [[value]] = cursor.fetchall()
    return value


def test_values_are_of_the_python_type_of_their_column(cursor):
    cursor.execute(
        "select 1::int4 as i, 1.5::float8 as f, 19.90::numeric as n, true as b, 'x'::text as t,"
        " date '2024-02-29' as d, time '01:02:03.000004' as h,"
        " timestamp '2024-01-15 03:34:56.78' as s, bytea '\\x00ff' as c, null as nothing,"
        " array[1,null] as a, '{\"a\": 1}'::jsonb as j"
    )
    assert cursor.fetchall() == [
        (
            1,
            1.5,
            decimal.Decimal("19.90"),
            True,
            "x",
            datetime.date(2024, 2, 29),
            datetime.time(1, 2, 3, 4),
            datetime.datetime(2024, 1, 15, 3, 34, 56, 780000),
            b"\x00\xff",
            None,
            [1, None],
            '{"a":1}',
        )
    ]
    assert [column.name for column in cursor.description] == [
        *"ifnbtdhsc",
        "nothing",
        *"aj",
    ]
    assert cursor.description[2].type_code is decimal.Decimal


def test_parameters_of_every_python_type_go_in(cursor):
    cursor.execute(
        "create temp table taken (i int, f float8, n numeric, b bool, t text, d date, h time,"
        " s timestamp, z timestamptz, c bytea, u uuid, x int)"
    )
    values = {
        "i": 1,
        "f": 1.5,
        "n": decimal.Decimal("19.90"),
        "b": True,
        "t": "żółć :x 'quoted'",
        "d": datetime.date(2024, 2, 29),
        "h": datetime.time(1, 2, 3, 4),
        "s": datetime.datetime(2024, 1, 15, 3, 34, 56, 789012),
        "z": datetime.datetime(2024, 1, 15, 3, 34, 56, 789012),
        "c": b"\x00\xff",
        "u": uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        "x": None,
    }
    places = ", ".join(f":{name}" for name in values)
    cursor.execute(f"insert into taken values ({places})", values)
    assert cursor.rowcount == 1
    cursor.execute("select * from taken")
    [row] = cursor.fetchall()
    expected = {**values, "u": str(values["u"]), "z": "2024-01-15 03:34:56.789012"}
    assert row == tuple(expected.values())


def test_commit_keeps_and_an_exception_undoes(cursor):
    with connect() as connection, connection.cursor() as inside:
        inside.execute("create table if not exists kept (v int)")
        inside.execute("insert into kept values (1)")
    with pytest.raises(ZeroDivisionError), connect() as connection:
        with connection.cursor() as inside:
            inside.execute("insert into kept values (2)")
        raise ZeroDivisionError
    assert one(cursor, "select array_agg(v) from kept") == [1]


def test_many_sets_go_in_batches(cursor):
    cursor.execute("create temp table many (n int, t text)")
    cursor.executemany(
        "insert into many values (:n, :t)", [{"n": n, "t": f"row {n}"} for n in range(2500)]
    )
    assert one(cursor, "select sum(n) from many") == sum(range(2500))
    cursor.execute("select n from many order by n")
    assert [cursor.fetchone(), cursor.fetchmany(2)] == [(0,), [(1,), (2,)]]
    assert len(cursor.fetchall()) == 2497


def test_errors_have_their_class_and_code():
    with connect().cursor() as cursor, pytest.raises(DatabaseError) as caught:
        cursor.execute("select * from nowhere")
    assert type(caught.value).__name__ == "ER_UNDEF_TABLE"
    assert caught.value.response["Error"]["Code"] == "DatabaseErrorException"


def test_an_error_with_a_hint_keeps_its_class():
    with connect().cursor() as cursor, pytest.raises(DatabaseError) as caught:
        cursor.execute("select nope(1)")
    assert type(caught.value).__name__ == "ER_UNDEF_FUNC"


def test_a_constraint_is_a_database_error_and_rollback_works():
    connection = connect()
    with connection.cursor() as cursor:
        cursor.execute("create temp table unique_rows (id int primary key)")
        cursor.execute("insert into unique_rows values (1)")
        with pytest.raises(DatabaseError, match="SQLState: 23505"):
            cursor.execute("insert into unique_rows values (1)")
        with pytest.raises(DatabaseError, match="25P02"):
            cursor.execute("select 1")
    connection.rollback()


def test_a_result_of_several_megabytes_needs_no_paging(cursor):
    cursor.execute("select g, repeat('x', 1000) from generate_series(1, 5000) g")
    assert len(cursor.fetchall()) == 5000


def test_cursors_page_when_they_are_asked_to(cursor):
    arguments = cursor._prepare_execute_args("select * from generate_series(1, 25) g")
    cursor._start_paginated_query(arguments, records_per_page=10)
    assert [value for (value,) in cursor] == list(range(1, 26))
    cursor.scroll(-26)
    cursor.scroll(20)
    assert [value for (value,) in cursor] == list(range(21, 26))


def test_a_statement_continues_after_the_timeout():
    connection = connect(continue_after_timeout=True)
    with connection.cursor() as cursor:
        cursor.execute("create temp table outlived (t text)")
        with pytest.raises(connection._client.exceptions.StatementTimeoutException):
            cursor.execute("insert into outlived select 'done' from (select pg_sleep(3)) as s")
        # Waits for its turn behind the statement that goes on.
        give_up = 20
        while give_up:
            try:
                cursor.execute("select count(*) from outlived")
                break
            except connection._client.exceptions.ClientError:
                give_up -= 1
        assert cursor.fetchall() == [(1,)]
    connection.rollback()


def test_a_statement_without_it_is_cancelled_and_the_transaction_failed():
    connection = connect(continue_after_timeout=False)
    with connection.cursor() as cursor:
        with pytest.raises(connection._client.exceptions.StatementTimeoutException):
            cursor.execute("select pg_sleep(100)")
        with pytest.raises(DatabaseError, match="25P02"):
            cursor.execute("select 1")
    connection.rollback()
