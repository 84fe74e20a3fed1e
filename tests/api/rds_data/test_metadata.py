from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.rds_data.metadata import (
    COLUMN_FACTS_SQL,
    TYPE_FACTS_SQL,
    ColumnFacts,
    TypeFacts,
    column_facts,
    column_metadata,
    columns_metadata,
    type_facts,
)
from gateway.core.model import Column
from tests.fix_postgres import Database


def described(name: str, typmod: int = -1, **facts: Any) -> dict[str, Any]:
    return column_metadata(Column("c", name, typmod=typmod), **facts)


def numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


@pytest.mark.parametrize(
    ("name", "typmod", "code", "precision", "scale", "signed", "case"),
    [
        ("bool", -1, -7, 1, 0, False, False),
        ("int2", -1, 5, 5, 0, True, False),
        ("int4", -1, 4, 10, 0, True, False),
        ("int8", -1, -5, 19, 0, True, False),
        ("oid", -1, -5, 10, 0, False, False),
        ("float4", -1, 7, 8, 8, True, False),
        ("float8", -1, 8, 17, 17, True, False),
        ("numeric", -1, 2, 0, 0, True, False),
        ("numeric", numeric(10, 2), 2, 10, 2, True, False),
        ("numeric", numeric(3, -2), 2, 3, -2, True, False),
        ("money", -1, 8, 2147483647, 0, False, True),
        ("text", -1, 12, 2147483647, 0, False, True),
        ("varchar", 24, 12, 20, 0, False, True),
        ("bpchar", 7, 1, 3, 0, False, True),
        ("char", -1, 1, 1, 0, False, True),
        ("bytea", -1, -2, 2147483647, 0, False, True),
        ("date", -1, 91, 13, 0, False, False),
        ("time", -1, 92, 15, 6, False, False),
        ("time", 0, 92, 8, 0, False, False),
        ("time", 1, 92, 11, 1, False, False),
        ("time", 4, 92, 13, 4, False, False),
        ("timetz", 3, 92, 18, 3, False, False),
        ("timestamp", 3, 93, 26, 3, False, False),
        ("timestamp", 1, 93, 25, 1, False, False),
        ("timestamptz", -1, 93, 35, 6, False, False),
        ("timestamptz", 0, 93, 28, 0, False, False),
        ("interval", -1, 1111, 49, 6, False, False),
        ("interval", 0x7FFF0003, 1111, 49, 3, False, False),
        ("interval", 0x0004FFFF, 1111, 49, 6, False, False),
        ("bit", 3, -7, 3, 0, False, False),
        ("varbit", 9, 1111, 9, 0, False, False),
        ("varbit", -1, 1111, 2147483647, 0, False, False),
        ("xml", -1, 2009, 2147483647, 0, False, True),
        ("uuid", -1, 1111, 2147483647, 0, False, True),
        ("jsonb", -1, 1111, 2147483647, 0, False, True),
        ("int4range", -1, 1111, 2147483647, 0, False, True),
        ("vector", 7, 1111, 2147483647, 0, False, True),
    ],
)
def test_types_have_the_codes_of_jdbc(
    name: str, typmod: int, code: int, precision: int, scale: int, signed: bool, case: bool
) -> None:
    found = described(name, typmod)
    assert (found["type"], found["precision"], found["scale"]) == (code, precision, scale)
    assert (found["isSigned"], found["isCaseSensitive"]) == (signed, case)
    array = described(f"_{name}", typmod)
    assert (array["type"], array["arrayBaseColumnType"]) == (2003, code)
    assert (array["precision"], array["scale"]) == (precision, scale)


def test_an_expression_is_of_no_table() -> None:
    assert column_metadata(Column("?column?", "int4")) == {
        "arrayBaseColumnType": 0,
        "isAutoIncrement": False,
        "isCaseSensitive": False,
        "isCurrency": False,
        "isSigned": True,
        "label": "?column?",
        "name": "?column?",
        "nullable": 2,
        "precision": 10,
        "scale": 0,
        "schemaName": "",
        "tableName": "",
        "type": 4,
        "typeName": "int4",
    }


def test_a_serial_column_is_called_serial() -> None:
    facts = ColumnFacts(0, "item", True)
    found = described("int8", facts=facts)
    assert (found["typeName"], found["isAutoIncrement"]) == ("bigserial", True)
    assert (found["tableName"], found["nullable"]) == ("item", 0)


def test_money_is_a_currency() -> None:
    assert described("money")["isCurrency"]
    assert not described("numeric")["isCurrency"]


def test_user_types_are_told_apart_by_the_catalog() -> None:
    assert described("mood", type_facts=TypeFacts("mood", "e"))["type"] == 12
    assert described("pair", type_facts=TypeFacts("pair", "c"))["type"] == 2002
    assert described("span", type_facts=TypeFacts("span", "r"))["type"] == 1111
    array = described("_mood", type_facts=TypeFacts("_mood", "b", TypeFacts("mood", "e")))
    assert (array["type"], array["arrayBaseColumnType"]) == (2003, 12)
    # A type of a user that merely is called like a built-in one.
    assert described("date", type_facts=TypeFacts("date", "e"))["type"] == 12
    assert described("_odd", type_facts=TypeFacts("_odd", "c"))["type"] == 2002


def test_the_catalog_answers_as_expected(database: Database) -> None:
    database.sql(
        """
        create type mood as enum ('sad', 'ok');
        create domain must as text not null;
        create table item (
          id serial primary key, plain int, here must, sized varchar(20) not null,
          big bigint generated always as identity, feel mood, feels mood[],
          gone int, dflt int default 7);
        alter table item drop column gone;
        create view seen as select id, plain from item;
        """
    )

    def rows(query: str, arguments: str) -> list[dict[str, Any]]:
        out = database.sql(
            f"prepare q as {query}; create temp table answer as execute q({arguments}); "
            "select json_agg(answer) from answer"
        )
        found: list[dict[str, Any]] = json.loads(out[out.index("[") :])
        # JSON spells oids as strings; the driver gives numbers.
        return [
            {name: int(v) if name in ("oid", "attrelid") else v for name, v in row.items()}
            for row in found
        ]

    numbers = "array[1,2,3,4,5,6,9]::int2[]"
    oids = "array_fill('item'::regclass::oid, array[7])"
    facts = dict(column_facts(row) for row in rows(COLUMN_FACTS_SQL, f"{oids}, {numbers}"))
    by_number = {
        number: (fact.nullable, fact.auto_increment) for (_, number), fact in facts.items()
    }
    assert by_number == {
        1: (0, True),
        2: (1, False),
        3: (0, False),
        4: (0, False),
        5: (0, True),
        6: (1, False),
        9: (1, False),
    }
    assert {fact.table_name for fact in facts.values()} == {"item"}

    seen = dict(
        column_facts(row)
        for row in rows(COLUMN_FACTS_SQL, "array['seen'::regclass::oid], array[1]::int2[]")
    )
    assert list(seen.values()) == [ColumnFacts(1, "seen", False)]

    wanted = "array['mood'::regtype, 'mood[]'::regtype, 'item'::regtype, 'int2vector'::regtype]"
    types = dict(type_facts(row) for row in rows(TYPE_FACTS_SQL, f"{wanted}::oid[]"))
    assert sorted(types.values()) == [
        TypeFacts("_mood", "b", TypeFacts("mood", "e")),
        TypeFacts("int2vector", "b"),
        TypeFacts("item", "c"),
        TypeFacts("mood", "e"),
    ]

    table = next(oid for oid, _ in facts)
    mood = next(oid for oid, fact in types.items() if fact.name == "mood")
    columns = [
        Column("id", "int4", 23, table_oid=table, attribute=1),
        Column("feel", "mood", mood, table_oid=table, attribute=6),
    ]
    first, second = columns_metadata(columns, facts, types)
    assert (first["typeName"], first["nullable"], first["tableName"]) == ("serial", 0, "item")
    assert (second["typeName"], second["type"]) == ("mood", 12)
