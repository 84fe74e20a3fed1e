"""awswrangler's data_api.rds: frames of pandas in and out."""

import datetime
import decimal
import os
import uuid

import awswrangler as wr
import botocore.exceptions
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def connection():
    found = wr.data_api.rds.connect(
        os.environ["RESOURCE_ARN"], os.environ["DATABASE"], secret_arn=os.environ["SECRET_ARN"]
    )
    yield found
    found.close()


def test_a_query_gives_a_frame(connection):
    frame = wr.data_api.rds.read_sql_query(
        "select g as n, 'row ' || g as t, null as nothing, 1.50::numeric as d"
        " from generate_series(1, 3) g",
        con=connection,
    )
    assert list(frame.columns) == ["n", "t", "nothing", "d"]
    assert frame["n"].tolist() == [1, 2, 3]
    assert frame["t"].tolist() == ["row 1", "row 2", "row 3"]
    assert frame["d"].tolist() == ["1.50"] * 3


def test_a_query_takes_parameters(connection):
    frame = wr.data_api.rds.read_sql_query(
        "select :n::int + 1 as n where 'a' = :t",
        con=connection,
        parameters=[
            {"name": "n", "value": {"longValue": 1}},
            {"name": "t", "value": {"stringValue": "a"}},
        ],
    )
    assert frame.to_dict("records") == [{"n": 2}]


def test_no_rows_give_an_empty_frame(connection):
    frame = wr.data_api.rds.read_sql_query("select 1 as n where false", con=connection)
    assert frame.empty
    assert list(frame.columns) == ["n"]


def test_a_frame_is_written_and_read_back(connection):
    rows = [
        {
            "i": number,
            "f": number + 0.5,
            "b": number % 2 == 0,
            "t": f"row {number}",
            "d": datetime.date(2024, 2, 29),
            "s": datetime.datetime(2024, 1, 15, 3, 34, 56),
            "n": decimal.Decimal("19.90"),
            "u": str(uuid.UUID(int=number)),
        }
        for number in range(450)
    ]
    frame = pd.DataFrame(rows).astype({"b": object, "s": object})
    types = {
        "i": "int", "f": "float8", "b": "bool", "t": "text", "d": "date", "s": "timestamp",
        "n": "numeric(10,2)", "u": "uuid",
    }  # fmt: skip
    for mode, count in (("overwrite", 450), ("append", 900), ("overwrite", 450)):
        wr.data_api.rds.to_sql(
            frame,
            connection,
            table="written",
            database=os.environ["DATABASE"],
            mode=mode,
            dtype=types,
            use_column_names=True,
            sql_mode="ansi",
        )
        counted = wr.data_api.rds.read_sql_query("select count(*) as n from written", connection)
        assert counted["n"].tolist() == [count]
    found = wr.data_api.rds.read_sql_query("select * from written order by i limit 1", connection)
    assert found.to_dict("records") == [
        {
            "i": 0,
            "f": 0.5,
            "b": True,
            "t": "row 0",
            "d": "2024-02-29",
            "s": "2024-01-15 03:34:56",
            "n": "19.90",
            "u": str(uuid.UUID(int=0)),
        }
    ]


def test_a_frame_that_does_not_fit_leaves_nothing(connection):
    connection.execute("create table strict (i int primary key)")
    with pytest.raises(botocore.exceptions.ClientError, match="23505"):
        wr.data_api.rds.to_sql(
            pd.DataFrame({"i": [1, 1]}),
            connection,
            table="strict",
            database=os.environ["DATABASE"],
            use_column_names=True,
            sql_mode="ansi",
        )
    left = wr.data_api.rds.read_sql_query("select count(*) as n from strict", connection)
    assert left["n"].tolist() == [0]


def test_an_sql_error_is_not_tried_thirty_times(connection):
    calls = []
    events = connection.client.meta.events
    events.register("before-send.rds-data.ExecuteStatement", lambda **call: calls.append(call))
    with pytest.raises(connection.client.exceptions.DatabaseErrorException):
        wr.data_api.rds.read_sql_query("select nope", connection)
    assert len(calls) == 1
