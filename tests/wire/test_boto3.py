"""The Data API with an unmodified boto3."""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_postgres import APP_USER, Database
from tests.wire.data_api import DataApi, refused

pytestmark = pytest.mark.wire

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def boto3_database(postgres: Any) -> Database:
    postgres.sql("create database boto3 strategy wal_log")
    return Database(postgres, "boto3")


@pytest.fixture(scope="module")
def gateway(boto3_database: Database) -> Iterator[Gateway]:
    with running(settings_for(boto3_database), boto3_database) as it:
        yield it


@pytest.fixture
def api(gateway: Gateway, boto3_database: Database) -> Iterator[DataApi]:
    found = DataApi(gateway)
    yield found
    found.client.close()
    boto3_database.sql(f"drop owned by {APP_USER}; grant create on schema public to {APP_USER}")


@pytest.fixture
def table(api: DataApi) -> Iterator[str]:
    name = f"wire_{next(_numbers)}"
    api.execute(f"create table {name} (id serial primary key, v text not null, n numeric(10,2))")
    yield name
    api.execute(f"drop table {name}")


def test_ddl_and_commands_have_no_records(api: DataApi, table: str) -> None:
    for sql, count in (
        (f"insert into {table} (v) values ('a'), ('b')", 2),
        (f"update {table} set v = 'c'", 2),
        (f"delete from {table} where false", 0),
        (f"create temp table {table}_t (a int)", 0),
    ):
        answer = api.execute(sql, includeResultMetadata=True)
        assert answer["numberOfRecordsUpdated"] == count
        assert answer["generatedFields"] == []
        assert "records" not in answer
        assert "columnMetadata" not in answer


def test_an_empty_select_has_empty_records(api: DataApi, table: str) -> None:
    answer = api.execute(f"select * from {table}")
    assert answer["records"] == []
    assert "columnMetadata" not in answer
    assert "generatedFields" not in answer


def test_returning_gives_records(api: DataApi, table: str) -> None:
    answer = api.run(
        f"insert into {table} (v, n) values (:v, :n) returning id, v, n",
        v={"stringValue": "a"},
        n={"longValue": 5},
    )
    assert answer["records"] == [[{"longValue": 1}, {"stringValue": "a"}, {"stringValue": "5.00"}]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"longValue": 2**63 - 1}, {"longValue": 2**63 - 1}),
        ({"doubleValue": 1.5}, {"doubleValue": 1.5}),
        ({"doubleValue": math.inf}, {"doubleValue": math.inf}),
        ({"booleanValue": True}, {"booleanValue": True}),
        ({"stringValue": "żółć 😀"}, {"stringValue": "żółć 😀"}),
        ({"stringValue": ""}, {"stringValue": ""}),
        ({"blobValue": b"\x00\xff"}, {"blobValue": b"\x00\xff"}),
        ({"isNull": True}, {"isNull": True}),
    ],
)
def test_a_value_comes_back_as_it_went(
    api: DataApi, value: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert api.one("select :v", v=value) == expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("1::int2", {"longValue": 1}),
        ("3.14::float4", {"doubleValue": 3.14}),
        ("19.90::numeric", {"stringValue": "19.90"}),
        ("'ab'::char(4)", {"stringValue": "ab  "}),
        ("""'{"a": 1}'::jsonb""", {"stringValue": '{"a":1}'}),
        ("'2024-01-15 12:34:56+09'::timestamptz", {"stringValue": "2024-01-15 03:34:56"}),
        ("'2024-01-15 12:34:56.5'::timestamp", {"stringValue": "2024-01-15 12:34:56.5"}),
        ("'infinity'::timestamptz", {"stringValue": "infinity"}),
        ("'15:30:00-08'::timetz", {"stringValue": "23:30:00"}),
        ("interval '1 mon 2 days'", {"stringValue": "1 mon 2 days"}),
        ("'pg_class'::regclass", {"stringValue": "pg_class"}),
        ("""'r'::"char\"""", {"stringValue": "r"}),
        ("int4range(1, 3)", {"stringValue": "[1,3)"}),
        ("row(1, 'x')", {"stringValue": "(1,x)"}),
        ("B'1'::bit(1)", {"booleanValue": True}),
        ("B'101'", {"stringValue": "101"}),
        ("inet '192.168.1.1'", {"stringValue": "192.168.1.1"}),
        ("array[1,null,3]", {"arrayValue": {"longValues": [1, None, 3]}}),
        ("array[]::int[]", {"arrayValue": {"longValues": []}}),
        ("array['a',null]", {"arrayValue": {"stringValues": ["a", None]}}),
        ("'{3.14,2.71}'::real[]", {"arrayValue": {"doubleValues": [3.14, 2.71]}}),
        ("array[true]", {"arrayValue": {"booleanValues": [True]}}),
        ("array[date '2024-01-01']", {"arrayValue": {"stringValues": ["2024-01-01"]}}),
        (
            "array[[1],[2]]",
            {"arrayValue": {"arrayValues": [{"longValues": [1]}, {"longValues": [2]}]}},
        ),
    ],
)
def test_postgresql_types_have_their_members(
    api: DataApi, sql: str, expected: dict[str, Any]
) -> None:
    assert api.one(f"select {sql}") == expected


def test_strings_need_no_casts_and_casts_do_no_harm(api: DataApi) -> None:
    key = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    for sql in (":v::uuid", "cast(:v as uuid)", "coalesce(null::uuid, :v)"):
        assert api.one(f"select {sql}", v={"stringValue": key}) == {"stringValue": key}


@pytest.mark.parametrize(
    ("hint", "text", "type_name", "expected"),
    [
        ("DATE", "2024-02-29", "date", "2024-02-29"),
        ("TIME", "01:02:03.000004", "time", "01:02:03.000004"),
        ("TIMESTAMP", "2024-01-15T12:34:56.5Z", "timestamp", "2024-01-15 12:34:56.5"),
        ("DECIMAL", "19.90", "numeric", "19.90"),
        ("UUID", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "uuid", None),
        ("JSON", '{"b": [1, 2]}', "jsonb", '{"b":[1,2]}'),
    ],
)
def test_hints_tell_the_type_where_nothing_else_does(
    api: DataApi, hint: str, text: str, type_name: str, expected: str | None
) -> None:
    parameter = {"name": "v", "value": {"stringValue": text}, "typeHint": hint}
    answer = api.execute("select :v as v", parameters=[parameter], includeResultMetadata=True)
    assert answer["records"] == [[{"stringValue": expected or text}]]
    assert answer["columnMetadata"][0]["typeName"] == type_name


@pytest.mark.parametrize(
    ("hint", "text", "wanted", "expected"),
    [
        ("TIMESTAMP", "2024-01-15T12:34:56.5Z", "timestamptz", "2024-01-15 12:34:56.5"),
        ("TIMESTAMP", "2024-01-15 12:34:56", "date", "2024-01-15"),
        ("JSON", '{"b":  1}', "json", '{"b":1}'),
        ("JSON", '{"b":  1}', "text", '{"b": 1}'),
        ("UUID", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "text", None),
        ("DATE", "2024-02-29", "timestamp", "2024-02-29 00:00:00"),
        ("DECIMAL", "19.6", "int4", {"longValue": 20}),
        ("DECIMAL", "19.90", "float8", {"doubleValue": 19.9}),
    ],
)
def test_a_hinted_value_goes_into_a_column_of_another_type(
    api: DataApi, hint: str, text: str, wanted: str, expected: Any
) -> None:
    parameter = {"name": "v", "value": {"stringValue": text}, "typeHint": hint}
    api.execute(f"create table hinted (v {wanted})")
    field = api.execute("insert into hinted values (:v) returning v", parameters=[parameter])
    wrapped = expected if isinstance(expected, dict) else {"stringValue": expected or text}
    assert field["records"] == [[wrapped]]


@pytest.mark.parametrize("wanted", ["int2", "int4", "int8", "oid", "numeric", "float8", "text"])
def test_a_long_goes_into_every_column_of_numbers(api: DataApi, wanted: str) -> None:
    api.execute(f"create table longs (v {wanted} primary key)")
    api.run("insert into longs values (:v)", v={"longValue": 7})
    assert api.one("select v::text from longs where v = :v", v={"stringValue": "7"}) == {
        "stringValue": "7"
    }
    if wanted != "text":
        assert api.one("select count(*) from longs where v = :v", v={"longValue": 7}) == {
            "longValue": 1
        }


def test_a_number_that_does_not_fit_a_column_is_compared_with_it(api: DataApi) -> None:
    api.execute("create table small (v int2)")
    api.run("insert into small values (:a), (:b)", a={"longValue": 1}, b={"doubleValue": 1.6})
    sql = "select count(*) from small where v < :limit"
    for limit, expected in (
        ({"doubleValue": 1.5}, 1),
        ({"longValue": 2}, 1),
        ({"longValue": 2**40}, 2),
        ({"doubleValue": math.inf}, 2),
        ({"longValue": 1}, 0),
    ):
        assert api.one(sql, limit=limit) == {"longValue": expected}
    for value, state in (({"longValue": 2**40}, "22003"), ({"booleanValue": True}, "42804")):
        with pytest.raises(api.client.exceptions.DatabaseErrorException) as caught:
            api.run("insert into small values (:v)", v=value)
        assert refused(caught)[1].endswith(f"SQLState: {state}")


def test_strings_become_what_the_column_wants(api: DataApi) -> None:
    api.execute("create type mood as enum ('sad', 'glad')")
    api.execute("create table typed (u uuid, m mood, j jsonb, t timestamptz, i int4, p inet)")
    sent = {
        "u": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "m": "glad",
        "j": '{"a":[1,2]}',
        "t": "2024-01-15 12:34:56",
        "i": "42",
        "p": "10.0.0.1",
    }
    values = {name: {"stringValue": text} for name, text in sent.items()}
    answer = api.run("insert into typed values (:u, :m, :j, :t, :i, :p) returning *", **values)
    returned: list[dict[str, Any]] = [{"stringValue": text} for text in sent.values()]
    returned[4] = {"longValue": 42}
    assert answer["records"] == [returned]
    found = api.one(
        "select count(*) from typed where u = :u and m = :m and j @> :j and t = :t"
        " and i = :i and p = :p",
        **values,
    )
    assert found == {"longValue": 1}


def test_a_list_goes_where_an_array_is_wanted(api: DataApi) -> None:
    for ids, expected in (([1, 3], 2), ([], 0)):
        field = api.one(
            "select count(*) from generate_series(1, 5) g where g = any(:ids)",
            ids={"arrayValue": {"longValues": ids}},
        )
        assert field == {"longValue": expected}
    for names in (
        {"arrayValue": {"stringValues": ["a", 'b"c,{}']}},
        {"arrayValue": {"longValues": [2**40]}},
        {"arrayValue": {"doubleValues": [1.5]}},
        {"arrayValue": {"booleanValues": [True, False]}},
        {"arrayValue": {"arrayValues": [{"longValues": [1, 2]}, {"longValues": [3, 4]}]}},
    ):
        assert api.one("select :names", names=names) == names
    rows = api.run("select unnest(:ids)", ids={"arrayValue": {"longValues": [1, 2]}})["records"]
    assert rows == [[{"longValue": 1}], [{"longValue": 2}]]
    keys = {"arrayValue": {"stringValues": ["6ba7b810-9dad-11d1-80b4-00c04fd430c8"]}}
    assert api.one("select gen_random_uuid() = any(:keys)", keys=keys) == {"booleanValue": False}


def test_numbers_are_given_as_asked(api: DataApi) -> None:
    answer = api.execute(
        "select 5::int8, 5::numeric, 2.50::numeric",
        resultSetOptions={"longReturnType": "STRING", "decimalReturnType": "DOUBLE_OR_LONG"},
    )
    assert answer["records"] == [[{"stringValue": "5"}, {"longValue": 5}, {"doubleValue": 2.5}]]


def test_metadata_is_that_of_jdbc(api: DataApi, table: str) -> None:
    answer = api.execute(
        f"select id, v as label, n, array[1] as a, now() from {table}", includeResultMetadata=True
    )
    found = [
        (c["label"], c["typeName"], c["type"], c["nullable"], c["tableName"], c["isAutoIncrement"])
        for c in answer["columnMetadata"]
    ]
    assert found == [
        ("id", "serial", 4, 0, table, True),
        ("label", "text", 12, 0, table, False),
        ("n", "numeric", 2, 1, table, False),
        ("a", "_int4", 2003, 2, "", False),
        ("now", "timestamptz", 93, 2, "", False),
    ]
    assert (answer["columnMetadata"][2]["precision"], answer["columnMetadata"][2]["scale"]) == (
        10,
        2,
    )
    assert all(len(column) == 14 for column in answer["columnMetadata"])


def test_records_as_json(api: DataApi) -> None:
    answer = api.execute(
        "select 1 as id, 'ż\"' as name, null as none, array[1,2] as list, 1.50::numeric as price",
        formatRecordsAs="JSON",
        includeResultMetadata=True,
    )
    assert "records" not in answer
    assert "columnMetadata" not in answer
    assert json.loads(answer["formattedRecords"]) == [
        {"id": 1, "name": 'ż"', "none": None, "list": [1, 2], "price": "1.50"}
    ]


def test_a_batch_runs_once_for_each_set(api: DataApi, table: str) -> None:
    sets = [{"v": {"stringValue": text}} for text in ("a", "b", "c")]
    answer = api.batch(f"insert into {table} (v) values (:v)", *sets)
    assert answer["updateResults"] == [{"generatedFields": []}] * 3
    answer = api.batch(f"insert into {table} (v) values (:v) returning id", *sets)
    assert answer["updateResults"] == [{"generatedFields": [{"longValue": n}]} for n in (4, 5, 6)]
    assert api.one(f"select count(*) from {table}") == {"longValue": 6}


def test_a_batch_is_all_or_nothing(api: DataApi, table: str) -> None:
    with pytest.raises(api.client.exceptions.DatabaseErrorException) as caught:
        api.batch(
            f"insert into {table} (v) values (:v)",
            {"v": {"stringValue": "a"}},
            {"v": {"isNull": True}},
        )
    assert refused(caught)[1].endswith("SQLState: 23502")
    assert api.one(f"select count(*) from {table}") == {"longValue": 0}


def test_a_transaction_is_committed(api: DataApi, table: str) -> None:
    transaction = api.begin()
    api.execute(f"insert into {table} (v) values ('a')", transactionId=transaction)
    assert api.one(f"select count(*) from {table}") == {"longValue": 0}
    assert api.commit(transaction) == "Transaction Committed"
    assert api.one(f"select count(*) from {table}") == {"longValue": 1}


def test_a_transaction_is_rolled_back(api: DataApi, table: str) -> None:
    transaction = api.begin()
    api.batch(
        f"insert into {table} (v) values (:v)",
        {"v": {"stringValue": "a"}},
        transactionId=transaction,
    )
    api.execute("savepoint s1", transactionId=transaction)
    api.execute("rollback to savepoint s1", transactionId=transaction)
    assert api.rollback(transaction) == "Rollback Complete"
    assert api.one(f"select count(*) from {table}") == {"longValue": 0}


def test_an_empty_transaction_ends_well(api: DataApi) -> None:
    assert api.commit(api.begin()) == "Transaction Committed"


def test_a_failed_transaction_can_only_be_rolled_back(api: DataApi) -> None:
    transaction = api.begin()
    for sql, state in (("select 1/0", "22012"), ("select 1", "25P02")):
        with pytest.raises(api.client.exceptions.DatabaseErrorException) as caught:
            api.execute(sql, transactionId=transaction)
        assert refused(caught)[1].endswith(f"SQLState: {state}")
    assert api.rollback(transaction) == "Rollback Complete"


def test_a_finished_transaction_is_not_found(api: DataApi) -> None:
    transaction = api.begin()
    api.commit(transaction)
    for call in (
        lambda: api.execute("select 1", transactionId=transaction),
        lambda: api.commit(transaction),
        lambda: api.rollback("never-was-one"),
    ):
        with pytest.raises(api.client.exceptions.TransactionNotFoundException) as caught:
            call()
        assert "is not found" in refused(caught)[1]
        assert refused(caught)[2] == 404


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "select * from no_such_table",
            'ERROR: relation "no_such_table" does not exist; Position: 15; SQLState: 42P01',
        ),
        ("SELEKT 1", 'ERROR: syntax error at or near "SELEKT"; Position: 1; SQLState: 42601'),
        ("select 1/0", "ERROR: division by zero; SQLState: 22012"),
    ],
)
def test_sql_errors_have_the_known_form(api: DataApi, sql: str, message: str) -> None:
    with pytest.raises(api.client.exceptions.DatabaseErrorException) as caught:
        api.execute(sql)
    assert refused(caught) == ("DatabaseErrorException", message, 400)
    headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-gateway-sqlstate"] == message[-5:]
    assert headers["x-gateway-outcome"] == "not_executed"


def test_the_position_is_that_of_the_text_sent(api: DataApi) -> None:
    with pytest.raises(ClientError) as caught:
        api.run("select :a_long_name, nope", a_long_name={"longValue": 1})
    assert "; Position: 22; SQLState: 42703" in refused(caught)[1]


@pytest.mark.parametrize(
    ("sql", "code", "message"),
    [
        ("select 1; select 2", "ValidationException", "Multistatements aren't supported."),
        ("  -- nothing", "ValidationException", "SQL is empty"),
    ],
)
def test_what_is_not_one_statement_is_refused(
    api: DataApi, sql: str, code: str, message: str
) -> None:
    with pytest.raises(ClientError) as caught:
        api.execute(sql)
    assert refused(caught) == (code, message, 400)


def test_a_missing_parameter_is_named(api: DataApi) -> None:
    with pytest.raises(ClientError) as caught:
        api.run("select :a, :b", a={"longValue": 1})
    code, message, _ = refused(caught)
    assert code == "ValidationException"
    assert "Cannot find parameter: b" in message


def test_an_unparsable_date_is_refused(api: DataApi) -> None:
    parameter = {"name": "v", "value": {"stringValue": "soon"}, "typeHint": "DATE"}
    with pytest.raises(ClientError) as caught:
        api.execute("select :v", parameters=[parameter])
    assert refused(caught)[0] == "ValidationException"
    assert "Cannot parse date or time" in refused(caught)[1]


@pytest.mark.parametrize(
    ("credentials", "code"),
    [
        ({"secret_key": "wrong"}, "InvalidSignatureException"),
        ({"access_key": "GWAKNOSUCHKEY0001"}, "UnrecognizedClientException"),
    ],
)
def test_who_is_not_known_is_refused(gateway: Any, credentials: dict[str, str], code: str) -> None:
    stranger = DataApi(gateway, **credentials)
    with pytest.raises(ClientError) as caught:
        stranger.execute("select 1")
    assert (refused(caught)[0], refused(caught)[2]) == (code, 403)
    stranger.client.close()


@pytest.mark.parametrize("arn", ["resourceArn", "secretArn"])
def test_a_foreign_arn_is_refused_before_the_database(gateway: Any, api: DataApi, arn: str) -> None:
    api.execute("create sequence touched")
    arns = {**api.arns, arn: api.arns[arn] + "-of-another"}
    with pytest.raises(api.client.exceptions.AccessDeniedException) as caught:
        api.client.execute_statement(sql="select nextval('touched')", **arns)
    code, message, status = refused(caught)
    assert (code, status) == ("AccessDeniedException", 403)
    assert gateway.dsn not in message
    assert api.one("select is_called from touched") == {"booleanValue": False}


def test_every_answer_has_a_request_id(api: DataApi) -> None:
    assert api.execute("select 1")["ResponseMetadata"]["RequestId"]
    with pytest.raises(ClientError) as caught:
        api.execute("select nope")
    assert caught.value.response["ResponseMetadata"]["RequestId"]


def test_a_large_blob_makes_the_round_trip(api: DataApi) -> None:
    content = bytes(range(256)) * 2000
    field = api.one("select :v::bytea", v={"blobValue": content})
    assert field == {"blobValue": content}
    assert base64.b64encode(field["blobValue"]) == base64.b64encode(content)


def test_many_rows_arrive_in_order(api: DataApi) -> None:
    records = api.execute("select g, 'row ' || g from generate_series(1, 20000) g")["records"]
    assert len(records) == 20_000
    assert records[-1] == [{"longValue": 20_000}, {"stringValue": "row 20000"}]


def test_a_result_of_many_megabytes_arrives_whole(api: DataApi) -> None:
    sql = "select g, repeat(md5(g::text), 40) from generate_series(1, 5000) g order by g"
    answer = api.execute(sql, includeResultMetadata=True)
    size = sum(len(row[1]["stringValue"]) for row in answer["records"])
    assert size == 5000 * 32 * 40 > 5 << 20
    assert [row[0]["longValue"] for row in answer["records"]] == list(range(1, 5001))
    assert [column["typeName"] for column in answer["columnMetadata"]] == ["int4", "text"]
    as_json = api.execute(sql, formatRecordsAs="JSON")
    assert len(json.loads(as_json["formattedRecords"])) == 5000


# -- the sample workload ------------------------------------------------------------------


@pytest.fixture
def shop(sample_gateway: Any) -> Iterator[DataApi]:
    found = DataApi(sample_gateway)
    yield found
    found.client.close()


def stock(shop: DataApi, product: int, warehouse: int) -> int:
    field = shop.one(
        "select quantity from inventory where product_id = :product and warehouse_id = :warehouse",
        product={"longValue": product},
        warehouse={"longValue": warehouse},
    )
    quantity: int = field["longValue"]
    return quantity


def test_sales_are_listed_by_channel(shop: DataApi) -> None:
    counts = shop.execute(
        "select channel, count(*), sum(quantity * unit_price) as turnover"
        " from sales group by channel order by channel",
        includeResultMetadata=True,
    )
    channels = [row[0]["stringValue"] for row in counts["records"]]
    assert channels == ["web", "store", "phone", "partner"]
    assert sum(row[1]["longValue"] for row in counts["records"]) == 100_000
    assert all("." in row[2]["stringValue"] for row in counts["records"])
    assert [column["typeName"] for column in counts["columnMetadata"]] == [
        "sales_channel",
        "int8",
        "numeric",
    ]
    latest = shop.run(
        "select id, channel, sold_at from sales where channel = :channel"
        " order by sold_at desc, id desc limit :count",
        channel={"stringValue": "web"},
        count={"longValue": 3},
    )
    assert [row[1] for row in latest["records"]] == [{"stringValue": "web"}] * 3


def test_a_product_is_found_in_its_warehouses(shop: DataApi) -> None:
    answer = shop.run(
        "select w.code, i.quantity from inventory i join warehouses w on w.id = i.warehouse_id"
        " where i.product_id = any(:products) order by w.code",
        products={"arrayValue": {"longValues": [7]}},
    )
    codes = [row[0]["stringValue"] for row in answer["records"]]
    assert codes == ["AMS", "BCN", "GDN", "LIS", "OSL"]
    tagged = shop.one(
        "select count(*) from products where tags @> :tags and attributes @> :attributes",
        tags={"arrayValue": {"stringValues": ["gift"]}},
        attributes={"stringValue": '{"colour": "red"}'},
    )
    assert tagged["longValue"] > 0


def test_the_columns_of_a_join_are_described(shop: DataApi) -> None:
    answer = shop.execute(
        "select s.id, p.name as product, p.price, s.channel, s.note, p.tags, s.sold_at, f.id,"
        " s.customer_email is not null as known"
        " from sales s join products p on p.id = s.product_id"
        " left join fulfilments f on f.sale_id = s.id where s.id = 1",
        includeResultMetadata=True,
    )
    found = [
        (c["label"], c["typeName"], c["type"], c["nullable"], c["tableName"])
        for c in answer["columnMetadata"]
    ]
    assert found == [
        ("id", "bigserial", -5, 0, "sales"),
        ("product", "text", 12, 0, "products"),
        ("price", "numeric", 2, 0, "products"),
        ("channel", "sales_channel", 12, 0, "sales"),
        ("note", "jsonb", 1111, 1, "sales"),
        ("tags", "_text", 2003, 0, "products"),
        ("sold_at", "timestamptz", 93, 0, "sales"),
        ("id", "uuid", 1111, 0, "fulfilments"),
        ("known", "bool", -7, 2, ""),
    ]
    price = answer["columnMetadata"][2]
    assert (price["precision"], price["scale"], price["isSigned"]) == (12, 2, True)
    assert [c["isAutoIncrement"] for c in answer["columnMetadata"]] == [True] + [False] * 8
    assert answer["columnMetadata"][5]["arrayBaseColumnType"] == 12


def fulfil(shop: DataApi, transaction: str, sale: int, product: int, quantity: int) -> str:
    """Create the fulfilment of a sale from warehouse 1 and take what it needs from stock."""
    within: dict[str, Any] = {"transactionId": transaction}
    created = shop.execute(
        "insert into fulfilments (sale_id, warehouse_id, status)"
        " values (:sale, :warehouse, :status) returning id, status, created_at",
        parameters=[
            {"name": "sale", "value": {"longValue": sale}},
            {"name": "warehouse", "value": {"longValue": 1}},
            {"name": "status", "value": {"stringValue": "picked"}},
        ],
        **within,
    )
    [[key, status, _]] = created["records"]
    assert status == {"stringValue": "picked"}
    shop.batch(
        "insert into fulfilment_items values (:fulfilment, :product, :quantity)",
        {"fulfilment": key, "product": {"longValue": product}, "quantity": {"longValue": quantity}},
        **within,
    )
    taken = shop.execute(
        "update inventory set quantity = quantity - :quantity"
        " where product_id = :product and warehouse_id = :warehouse",
        parameters=[
            {"name": "quantity", "value": {"longValue": quantity}},
            {"name": "product", "value": {"longValue": product}},
            {"name": "warehouse", "value": {"longValue": 1}},
        ],
        **within,
    )
    assert taken["numberOfRecordsUpdated"] == 1
    name: str = key["stringValue"]
    return name


def test_a_fulfilment_takes_stock(shop: DataApi) -> None:
    before = stock(shop, 11, 1)
    transaction = shop.begin()
    key = fulfil(shop, transaction, 90_001, 11, 1)
    assert stock(shop, 11, 1) == before
    assert shop.commit(transaction) == "Transaction Committed"
    assert stock(shop, 11, 1) == before - 1
    try:
        answer = shop.run(
            "select f.status, i.quantity from fulfilments f"
            " join fulfilment_items i on i.fulfilment_id = f.id where f.id = :key",
            key={"stringValue": key},
        )
        assert answer["records"] == [[{"stringValue": "picked"}, {"longValue": 1}]]
    finally:
        shop.run("delete from fulfilments where id = :key", key={"stringValue": key})
        shop.execute(
            "update inventory set quantity = quantity + 1"
            " where product_id = 11 and warehouse_id = 1"
        )


def test_a_fulfilment_beyond_the_stock_leaves_nothing(shop: DataApi) -> None:
    before = stock(shop, 12, 1)
    transaction = shop.begin()
    with pytest.raises(shop.client.exceptions.DatabaseErrorException) as caught:
        fulfil(shop, transaction, 90_002, 12, before + 1)
    message = refused(caught)[1]
    assert 'violates check constraint "inventory_quantity_check"' in message
    assert message.endswith("SQLState: 23514")
    assert shop.rollback(transaction) == "Rollback Complete"
    assert stock(shop, 12, 1) == before
    left = shop.one("select count(*) from fulfilments where sale_id = 90002")
    assert left == {"longValue": 0}
    with pytest.raises(shop.client.exceptions.TransactionNotFoundException):
        shop.execute("select 1", transactionId=transaction)


def test_a_batch_of_sales_gives_its_keys(shop: DataApi) -> None:
    transaction = shop.begin()
    answer = shop.batch(
        "insert into sales (product_id, quantity, unit_price, channel, sold_at, note)"
        " values (:product, :quantity, :price, :channel, :at, :note) returning id, channel",
        *(
            {
                "product": {"longValue": number},
                "quantity": {"longValue": 1},
                "price": {"doubleValue": 19.5},
                "channel": {"stringValue": channel},
                "at": {"stringValue": "2026-01-31T08:00:00+01:00"},
                "note": {"isNull": True} if number % 2 else {"stringValue": '{"gift": true}'},
            }
            for number, channel in enumerate(("web", "store", "phone", "partner"), 1)
        ),
        transactionId=transaction,
    )
    fields = [result["generatedFields"] for result in answer["updateResults"]]
    keys = [key["longValue"] for key, _ in fields]
    assert keys == list(range(keys[0], keys[0] + 4))
    assert [channel["stringValue"] for _, channel in fields] == [
        "web",
        "store",
        "phone",
        "partner",
    ]
    assert shop.rollback(transaction) == "Rollback Complete"
    left = shop.one("select count(*) from sales where id >= :first", first={"longValue": keys[0]})
    assert left == {"longValue": 0}
