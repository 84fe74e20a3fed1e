"""`columnMetadata`, with an unmodified boto3: what the PostgreSQL JDBC driver would say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_postgres import Database
from tests.wire.data_api import DataApi

pytestmark = pytest.mark.wire

SCHEMA = """
create type mood as enum ('sad', 'glad');
create type pair as (a int, b text);
create domain whole as int4 not null;
create table maker (id serial primary key, name varchar(40) not null, note text);
create table item (
  id bigint generated always as identity primary key,
  maker_id int references maker,
  price numeric(10,2) not null, size numeric, mood mood, data jsonb, tags text[] not null,
  codes varchar(5)[], made date, clock time(3), at timestamptz(0), changed timestamp,
  flag bool, raw bytea, key uuid, cost money, bits bit(3), vary varbit, span interval,
  letter "char", fixed char(4), small smallserial, whole whole, couple pair, home inet
);
create view cheap as select id, price, maker_id from item where price < 10;
grant all on maker, item, cheap to public;
"""


@pytest.fixture(scope="module")
def described(postgres: Any) -> Database:
    postgres.sql("create database described strategy wal_log")
    database = Database(postgres, "described")
    database.sql(SCHEMA)
    return database


@pytest.fixture(scope="module")
def metadata_gateway(described: Database) -> Iterator[Gateway]:
    with running(settings_for(described), described) as it:
        yield it


@pytest.fixture(scope="module")
def api(metadata_gateway: Gateway) -> Iterator[DataApi]:
    found = DataApi(metadata_gateway)
    yield found
    found.client.close()


def columns(api: DataApi, sql: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.execute(sql, includeResultMetadata=True, **more)[
        "columnMetadata"
    ]
    return found


def some(found: list[dict[str, Any]], *members: str) -> list[tuple[Any, ...]]:
    return [tuple(column[member] for member in members) for column in found]


def test_every_member_of_every_type(api: DataApi) -> None:
    found = columns(api, "select * from item")
    assert all(len(column) == 14 for column in found)
    assert {column["schemaName"] for column in found} == {""}
    assert {column["tableName"] for column in found} == {"item"}
    assert all(column["label"] == column["name"] for column in found)
    largest = 2147483647
    shapes = ("name", "typeName", "type", "precision", "scale", "isSigned", "isCaseSensitive")
    assert some(found, *shapes) == [
        ("id", "bigserial", -5, 19, 0, True, False),
        ("maker_id", "int4", 4, 10, 0, True, False),
        ("price", "numeric", 2, 10, 2, True, False),
        ("size", "numeric", 2, 0, 0, True, False),
        ("mood", "mood", 12, largest, 0, False, True),
        ("data", "jsonb", 1111, largest, 0, False, True),
        ("tags", "_text", 2003, largest, 0, False, True),
        ("codes", "_varchar", 2003, 5, 0, False, True),
        ("made", "date", 91, 13, 0, False, False),
        ("clock", "time", 92, 12, 3, False, False),
        ("at", "timestamptz", 93, 28, 0, False, False),
        ("changed", "timestamp", 93, 29, 6, False, False),
        ("flag", "bool", -7, 1, 0, False, False),
        ("raw", "bytea", -2, largest, 0, False, True),
        ("key", "uuid", 1111, largest, 0, False, True),
        ("cost", "money", 8, largest, 0, False, True),
        ("bits", "bit", -7, 3, 0, False, False),
        ("vary", "varbit", 1111, largest, 0, False, False),
        ("span", "interval", 1111, 49, 6, False, False),
        ("letter", "char", 1, 1, 0, False, True),
        ("fixed", "bpchar", 1, 4, 0, False, True),
        ("small", "smallserial", 5, 5, 0, True, False),
        ("whole", "int4", 4, 10, 0, True, False),
        ("couple", "pair", 2002, largest, 0, False, True),
        ("home", "inet", 1111, largest, 0, False, True),
    ]
    named = {column["name"]: column for column in found}
    assert [name for name, column in named.items() if column["isCurrency"]] == ["cost"]
    assert [name for name, column in named.items() if column["isAutoIncrement"]] == ["id", "small"]
    required = [name for name, column in named.items() if column["nullable"] == 0]
    assert required == ["id", "price", "tags", "small", "whole"]
    assert {column["nullable"] for column in found} == {0, 1}
    assert [c["arrayBaseColumnType"] for c in found if c["arrayBaseColumnType"]] == [12, 12]


def test_joins_expressions_and_aliases(api: DataApi) -> None:
    found = columns(
        api,
        "select i.id as item, m.id, m.name as maker, upper(m.name), 1, i.price * 2 as twice,"
        " (select max(price) from item) as top, null as nothing, m as whole_row"
        " from item i left join maker m on m.id = i.maker_id",
    )
    assert some(found, "label", "typeName", "tableName", "nullable", "isAutoIncrement") == [
        ("item", "bigserial", "item", 0, True),
        ("id", "serial", "maker", 0, True),
        ("maker", "varchar", "maker", 0, False),
        ("upper", "text", "", 2, False),
        ("?column?", "int4", "", 2, False),
        ("twice", "numeric", "", 2, False),
        ("top", "numeric", "", 2, False),
        ("nothing", "text", "", 2, False),
        ("whole_row", "maker", "", 2, False),
    ]
    assert found[2]["precision"] == 40


def test_a_view_is_the_table_of_its_columns(api: DataApi) -> None:
    found = columns(api, "select id, price from cheap where false")
    assert some(found, "name", "typeName", "tableName", "nullable", "isAutoIncrement") == [
        ("id", "int8", "cheap", 1, False),
        ("price", "numeric", "cheap", 1, False),
    ]
    assert (found[1]["precision"], found[1]["scale"]) == (10, 2)


@pytest.mark.parametrize(
    "sql",
    [
        "select name from maker where false",
        "with found as (select 1) select name from maker",
        "table maker",
        "insert into maker (name) select 'x' where false returning name, id, note",
        "update maker set note = '' where false returning name",
        "delete from maker where false returning name",
    ],
)
def test_whatever_returns_rows_is_described_also_when_there_are_none(
    api: DataApi, sql: str
) -> None:
    answer = api.execute(sql, includeResultMetadata=True)
    assert answer["records"] == []
    assert "name" in [column["name"] for column in answer["columnMetadata"]]


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("values (1, 'a')", "column1"),
        ("show timezone", "TimeZone"),
        ("explain select 1", "QUERY PLAN"),
    ],
)
def test_what_is_no_select_is_described_too(api: DataApi, sql: str, name: str) -> None:
    assert columns(api, sql)[0]["name"] == name


def test_metadata_is_left_out_unless_it_is_asked_for(api: DataApi) -> None:
    assert "columnMetadata" not in api.execute("select 1")
    assert "columnMetadata" not in api.execute(
        "select 1", includeResultMetadata=True, formatRecordsAs="JSON"
    )


def test_a_result_without_columns_has_records(api: DataApi) -> None:
    answer = api.execute("select from generate_series(1, 2)", includeResultMetadata=True)
    assert answer["records"] == [[], []]


def test_ddl_changes_what_is_said_at_once(api: DataApi) -> None:
    api.execute("create table changing (n int)")
    shape = ("name", "typeName", "nullable", "tableName")
    assert some(columns(api, "select * from changing"), *shape) == [("n", "int4", 1, "changing")]
    for sql, expected in (
        ("alter table changing alter n set not null", ("n", "int4", 0, "changing")),
        ("alter table changing alter n type bigint", ("n", "int8", 0, "changing")),
        ("alter table changing rename n to m", ("m", "int8", 0, "changing")),
    ):
        api.execute(sql)
        assert some(columns(api, "select * from changing"), *shape) == [expected]
    api.execute("alter table changing rename to changed")
    assert some(columns(api, "select * from changed"), *shape) == [("m", "int8", 0, "changed")]
    api.execute("drop table changed")


def test_ddl_of_a_transaction_counts_when_it_commits(api: DataApi) -> None:
    api.execute("create table later (n int)")
    transaction = api.begin()
    api.execute("alter table later rename to sooner", transactionId=transaction)
    within = columns(api, "select * from sooner", transactionId=transaction)
    assert some(within, "tableName", "nullable") == [("sooner", 1)]
    api.execute("savepoint s", transactionId=transaction)
    api.execute("alter table sooner alter n set not null", transactionId=transaction)
    api.execute("rollback to savepoint s", transactionId=transaction)
    api.commit(transaction)
    assert some(columns(api, "select * from sooner"), "tableName", "nullable") == [("sooner", 1)]
    api.execute("drop table sooner")


def test_ddl_behind_the_gateways_back_is_noticed(api: DataApi, described: Database) -> None:
    described.sql("create table elsewhere (n int); grant select on elsewhere to public")
    sql = "select * from elsewhere"
    assert columns(api, sql)[0]["nullable"] == 1
    described.sql("alter table elsewhere alter n set not null")
    until(lambda: columns(api, sql)[0]["nullable"] == 0, "the change is not noticed")
