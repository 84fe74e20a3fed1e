"""Every type that a column can have: in as text, out by the documented mapping.

What psql prints for a value is the truth; `expected` says what JSON it has to become.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from gateway.cli.failing import EmbeddedError
from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_postgres import Database

BYTES = "\\x" + bytes(range(256)).hex()
UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"

SAMPLES: dict[str, tuple[str, ...]] = {
    "bool": ("t", "f", "yes"),
    "bytea": (BYTES, "\\x", "\\x00"),
    "char": ("a", ""),
    "name": ("a name", ""),
    "int8": ("-9223372036854775808", "9223372036854775807", "9007199254740993", "0"),
    "int2": ("-32768", "32767"),
    "int4": ("-2147483648", "2147483647"),
    "oid": ("0", "4294967295"),
    "text": ("", "a'b\"c\\d {e},NULL", "line\nline\ttab \U0001f600" * 500, "\x01\x7f\u2028"),
    "varchar": ("", "\U0001f468\u200d\U0001f469"),
    "bpchar": ("a  ", ""),
    "json": ('{"a": 1.50, "a": [1e400, null]}', "null", '"\U0001f600"', "12345678901234567890.10"),
    "jsonb": (
        '{"b": [1, {"c": null}], "n": 1.500}',
        "null",
        "[]",
        "123456789012345678901234567890",
    ),
    "jsonpath": ("$.a[*] ? (@ > 1)",),
    "xml": ("<a>b</a>",),
    "float4": ("0.1", "NaN", "Infinity", "-Infinity", "3.4028235e+38", "1e-45", "-0", "16777216"),
    "float8": (
        *("0.1", "NaN", "Infinity", "-Infinity", "1.7976931348623157e+308", "5e-324", "-0"),
        *("0.30000000000000004", "1234567890.123456", "1e15", "100000"),
    ),
    "numeric": (
        *("0", "-0.00", "NaN", "Infinity", "-Infinity", "1.500", "9" * 1000, "1e131071"),
        *("1e-16383", "123456789012345678901234567890.123456789"),
    ),
    "money": ("-12.34", "92233720368547758.07"),
    "date": ("infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "2024-02-29", "0001-01-01"),
    "time": ("00:00", "24:00", "23:59:59.999999", "08:00:00.1"),
    "timetz": ("00:00+00", "24:00-15:59", "23:59:59.999999+05:30"),
    "timestamp": (
        *("infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999"),
        *("2024-01-31 08:00:00.123456", "2024-01-31 08:00", "9999-12-31 23:59:59.999999"),
        *("10000-01-01 00:00", "0001-01-01 00:00", "0044-03-15 12:00 BC"),
    ),
    "timestamptz": (
        *("infinity", "-infinity", "4713-01-01 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00"),
        *("2024-01-31 08:00:00.123456+05:30", "2024-06-30 08:00 Europe/Berlin"),
        *("9999-12-31 23:59:59+00", "10000-01-01 00:00+00", "0044-03-15 12:00:00.5+00 BC"),
    ),
    "interval": (
        *("1 mon 2 days", "-1 year 2 mons -3 days 04:05:06.789", "0", "178000000 years"),
        *("-00:00:00.000001", "P1Y2M3DT4H5M6S", "1 day -00:01"),
    ),
    "uuid": (UUID, "00000000-0000-0000-0000-000000000000"),
    "inet": ("192.168.0.1/24", "::1", "10.0.0.1"),
    "cidr": ("10.0.0.0/8", "2001:db8::/32"),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "bit": ("1", "0"),
    "varbit": ("10110", ""),
    "tsvector": ("'a':1A 'b':2", "'it''s'"),
    "tsquery": ("'a' & !'b' | 'c':*",),
    "point": ("(1.5,-2)",),
    "lseg": ("[(0,0),(1,1)]",),
    "path": ("[(0,0),(1,1)]", "((0,0),(1,1),(2,0))"),
    "box": ("(2,2),(0,0)",),
    "polygon": ("((0,0),(1,1),(1,0))",),
    "line": ("{1,-1,0}",),
    "circle": ("<(0,0),1.5>",),
    "int2vector": ("1 -2 3", ""),
    "oidvector": ("1 4294967295", ""),
    "regproc": ("now",),
    "regprocedure": ("abs(integer)",),
    "regoper": ("||/",),
    "regoperator": ("+(integer,integer)",),
    "regclass": ("pg_class", "pg_catalog.pg_type"),
    "regcollation": ('"C"',),
    "regtype": ("integer", "timestamp with time zone"),
    "regrole": ("app_user",),
    "regnamespace": ("pg_catalog",),
    "regconfig": ("english",),
    "regdictionary": ("simple",),
    "regdatabase": ("postgres",),
    "tid": ("(0,1)", "(4294967295,65535)"),
    "xid": ("0", "4294967295"),
    "xid8": ("18446744073709551615",),
    "cid": ("7",),
    "oid8": ("18446744073709551615",),
    "pg_lsn": ("16/B374D848", "FFFFFFFF/FFFFFFFF"),
    "pg_snapshot": ("10:20:10,14,15",),
    "txid_snapshot": ("10:20:10,14,15",),
    "refcursor": ("a cursor",),
    "aclitem": ("app_user=r/app_user",),
    "int4range": ("[1,5)", "empty", "(,)", "[-2147483648,)"),
    "int8range": ("[1,9223372036854775807)", "empty"),
    "numrange": ("(1.50,1e100]", "empty"),
    "daterange": ("[2024-01-01,infinity)", "(,2024-01-01)"),
    "tsrange": ('["2024-01-01 00:00:00","2024-01-02 00:00:00")', "(-infinity,infinity)"),
    "tstzrange": ('["2024-01-01 00:00:00+02",)',),
    "int4multirange": ("{[1,3),[5,8)}", "{}"),
    "int8multirange": ("{[1,3)}",),
    "nummultirange": ("{[1.50,3),(5,)}",),
    "datemultirange": ("{[2024-01-01,2024-02-01)}",),
    "tsmultirange": ('{["2024-01-01 00:00:00",)}',),
    "tstzmultirange": ('{["2024-01-01 00:00:00+00",)}',),
    # Of `TYPES` below, and of information_schema.
    "mood": ("sad", "so so", 'q"\\,{'),
    "whole": ("0", "42"),
    "stamp": ("2024-01-31 08:00+02", "infinity"),
    "raw": ("\\x00ff",),
    "ids": ("{1,NULL,3}", "{}"),
    "nested_ids": ("{1,NULL,3}",),
    "pair": ('(1,"a ""b"", c")', "(,)", '(-1,"")'),
    "pairs": ('("{""(1,a)"",NULL}","{1,2}")',),
    "floats": ("[0.1,1e+300)", "empty"),
    "floats_multi": ("{[0.1,0.5),[1,2]}",),
    "bare": ("()",),
    "cardinal_number": ("0", "2147483647"),
    "character_data": ("text",),
    "sql_identifier": ("a name",),
    "time_stamp": ("2024-01-31 08:00:00.12+00",),
    "yes_or_no": ("YES",),
}

REFUSED = {
    "gtsvector": "the signature of an index",
    "pg_node_tree": "made by the parser alone",
    "pg_ndistinct": "made by ANALYZE alone",
    "pg_dependencies": "made by ANALYZE alone",
    "pg_mcv_list": "made by ANALYZE alone",
    "pg_brin_bloom_summary": "the summary of an index",
    "pg_brin_minmax_multi_summary": "the summary of an index",
}
"""Types whose input function takes nothing; only NULL can be sent."""

TYPES = r"""
create type mood as enum ('sad', 'so so', 'q"\,{');
create domain whole as int4 check (value >= 0);
create domain stamp as timestamptz;
create domain raw as bytea;
create domain ids as int4[];
create domain nested_ids as ids;
create type pair as (n int, word text);
create type pairs as (items pair[], numbers int[]);
create type bare as ();
create type floats as range (subtype = float8, multirange_type_name = floats_multi);
create table rows_of_a_table (a int, gone int, b text);
alter table rows_of_a_table drop column gone;
"""

ALL_TYPES = r"""
set client_min_messages = error;
create temp table able (id oid);
do $$
declare it record;
begin
  for it in select t.oid, format('%I.%I', nspname, typname) as name from pg_type t
      join pg_namespace n on n.oid = typnamespace
      where typtype <> 'p' and typisdefined and nspname !~ '^pg_(toast|temp)' loop
    begin
      execute format('create temp table attempt (c %s)', it.name);
      insert into able values (it.oid);
      drop table attempt;
    exception when invalid_table_definition then null;
    end;
  end loop;
end $$;
select json_agg(json_build_object(
  'oid', t.oid::int8, 'name', typname, 'sql', format('%I.%I', nspname, typname),
  'kind', typtype, 'base', typbasetype::int8,
  'element', case when exists (select from pg_type e where e.typarray = t.oid)
             then typelem::int8 else 0 end,
  'attributes', (select count(*) from pg_attribute
                 where attrelid = typrelid and attnum > 0 and not attisdropped)
) order by t.oid)
from pg_type t join pg_namespace n on n.oid = typnamespace join able on id = t.oid
"""


class Type(NamedTuple):
    oid: int
    name: str
    sql: str
    kind: str
    base: int
    element: int
    attributes: int


class Case(NamedTuple):
    type: Type
    given: Any
    literal: str
    """The same as an expression for psql."""


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def read_types(database: Database) -> dict[int, Type]:
    database.sql(TYPES)
    listed = database.sql(ALL_TYPES)
    types = {row["oid"]: Type(**row) for row in json.loads(listed[listed.index("[") :])}
    try:
        database.sql("select '<a/>'::xml")
    except EmbeddedError:  # a server built without libxml refuses every value
        types = {oid: it for oid, it in types.items() if it.name not in ("xml", "_xml")}
    # The driver knows oid 210 as a type of old, so the array of pg_type is PostgreSQL's text.
    return {oid: it for oid, it in types.items() if it.name != "_pg_type"}


def samples(of: Type) -> tuple[str, ...]:
    if of.kind == "c" and of.name not in SAMPLES:
        return ("(" + "," * (of.attributes - 1) + ")",)
    return SAMPLES.get(of.name, ())


def resolved(of: Type, types: dict[int, Type]) -> Type:
    while of.base:
        of = types[of.base]
    return of


def expected(of: Type, printed: str, types: dict[int, Type]) -> Any:
    """What psql printed, as the JSON that it must have become."""
    base = resolved(of, types)
    name = base.name
    if base.element:
        items = printed.strip("{}")
        element = types[base.element]
        return [
            None if item == "NULL" else expected(element, item, types)
            for item in (items.split(",") if items else [])
        ]
    if name in ("int2vector", "oidvector"):
        return [int(part) for part in printed.split()]
    if name == "bool":
        return printed == "t"
    if name in ("int2", "int4", "int8", "oid"):
        return int(printed)
    if name in ("float4", "float8"):
        read = float if name == "float8" else json.loads
        return printed if printed.lstrip("-")[0] in "NI" else read(printed)
    if name in ("json", "jsonb"):
        return json.loads(printed)
    if name == "bytea":
        return base64.b64encode(bytes.fromhex(printed[2:])).decode()
    if name in ("timestamp", "timestamptz"):
        day, _, time = printed.partition(" ")
        if len(day) != 10 or printed.endswith("BC") or day.strip(string.digits + "-"):
            return printed
        return f"{day}T{time}" if name == "timestamp" else f"{day}T{time}:00"
    return printed


def psql(database: Database, literals: list[str]) -> list[str]:
    end = "=== end ==="
    script = "\n".join(f"select {literal};\n\\echo '{end}'" for literal in literals)
    output = database.sql(f"set timezone to 'UTC';\nset datestyle to 'ISO';\n{script}")
    printed = output.split(f"\n{end}\n" if output.endswith("\n") else f"\n{end}")
    first = [text.removeprefix("SET\nSET\n").removeprefix("\n") for text in printed]
    return first[: len(literals)]


def answers(gateway: Gateway, cases: list[Case]) -> list[Any]:
    """What comes back for each of *cases*, asked for many at a time."""
    values: list[Any] = []
    with gateway.http() as client:
        for start in range(0, len(cases), 400):
            some = cases[start : start + 400]
            places = ", ".join(f"${n}::{case.type.sql}" for n, case in enumerate(some, 1))
            answer = client.post(
                "/execute",
                json={"sql": f"select {places}", "parameters": [case.given for case in some]},
            )
            assert answer.status_code == 200, answer.text
            values += answer.json()["rows"][0]
    return values


def differences(cases: list[Case], values: list[Any], wanted: list[Any]) -> list[str]:
    return [
        f"{case.type.sql} {str(case.given)[:80]!r}: {str(got)[:80]!r}, not {str(want)[:80]!r}"
        for case, got, want in zip(cases, values, wanted, strict=True)
        if repr(got) != repr(want)
    ]


@pytest.fixture(scope="module")
def typed_database(postgres: Any) -> Database:
    postgres.sql("create database typed strategy wal_log")
    return Database(postgres, "typed")


@pytest.fixture(scope="module")
def types(typed_database: Database) -> dict[int, Type]:
    return read_types(typed_database)


@pytest.fixture(scope="module")
def typed_gateway(typed_database: Database, types: dict[int, Type]) -> Iterator[Gateway]:
    with running(settings_for(typed_database), typed_database) as it:
        yield it


def scalars(types: dict[int, Type]) -> list[Type]:
    return [it for it in types.values() if not it.element and it.name not in REFUSED]


def test_every_type_that_a_column_can_have_has_a_sample(types: dict[int, Type]) -> None:
    assert len(types) > 200
    missing = [it.sql for it in scalars(types) if not samples(it)]
    assert missing == []


def test_scalars_equal_what_psql_prints(
    typed_gateway: Gateway, typed_database: Database, types: dict[int, Type]
) -> None:
    cases = [
        Case(it, text, f"{quoted(text)}::{it.sql}") for it in scalars(types) for text in samples(it)
    ]
    printed = psql(typed_database, [case.literal for case in cases])
    wanted = [expected(case.type, text, types) for case, text in zip(cases, printed, strict=True)]
    assert differences(cases, answers(typed_gateway, cases), wanted) == []


@pytest.mark.parametrize("form", ["list", "text"])
def test_arrays_hold_what_their_elements_are_and_nulls(
    typed_gateway: Gateway, typed_database: Database, types: dict[int, Type], form: str
) -> None:
    cases, literals, elements = [], [], []
    for it in types.values():
        element = types.get(it.element)
        if element is None or element.name in REFUSED or not samples(element):
            continue
        if resolved(element, types).element or (element.name == "box" and form == "text"):
            continue
        for text in samples(element):
            escaped = text.replace("\\", "\\\\").replace('"', '\\"')
            delimiter = ";" if element.name == "box" else ","
            written = f'{{"{escaped}"{delimiter}NULL}}'
            cases.append(Case(it, [text, None] if form == "list" else written, ""))
            literals.append(f"{quoted(text)}::{element.sql}")
            elements.append(element)
    wanted = [
        [expected(element, text, types), None]
        for element, text in zip(elements, psql(typed_database, literals), strict=True)
    ]
    assert differences(cases, answers(typed_gateway, cases), wanted) == []


def test_null_and_the_empty_array_of_every_type(
    typed_gateway: Gateway, types: dict[int, Type]
) -> None:
    cases = [Case(it, None, "") for it in types.values()]
    assert set(answers(typed_gateway, cases)) == {None}
    arrays = [it for it in types.values() if it.element]
    empties: tuple[Any, ...] = ([], "{}")
    for given in empties:
        cases = [Case(it, given, "") for it in arrays]
        assert differences(cases, answers(typed_gateway, cases), [[]] * len(cases)) == []
    cases = [Case(it, [None, None], "") for it in arrays]
    assert differences(cases, answers(typed_gateway, cases), [[None, None]] * len(cases)) == []


def test_types_without_an_input_refuse_a_value(
    typed_gateway: Gateway, types: dict[int, Type]
) -> None:
    refused = [it for it in types.values() if it.name in REFUSED]
    assert refused
    for it in refused:
        answer = typed_gateway.execute(f"select $1::{it.sql}", ["x"])
        assert answer["sqlstate"] == "0A000", it.name


def test_values_in_tables_travel_both_ways(
    typed_gateway: Gateway, typed_database: Database, types: dict[int, Type]
) -> None:
    chosen = [it for it in scalars(types) if it.kind != "c"]
    columns = ", ".join(f"c{n} {it.sql}" for n, it in enumerate(chosen))
    typed_database.sql(f"create table every ({columns}); grant all on every to public")
    places = ", ".join(f"${n}" for n in range(1, len(chosen) + 1))
    given = [samples(it)[0] for it in chosen]
    answer = typed_gateway.execute(f"insert into every values ({places}) returning *", given)
    assert answer.get("row_count") == 1, answer
    cases = [Case(it, text, "") for it, text in zip(chosen, given, strict=True)]
    literals = [f"{quoted(text)}::{it.sql}" for it, text in zip(chosen, given, strict=True)]
    printed = psql(typed_database, literals)
    wanted = [expected(it, text, types) for it, text in zip(chosen, printed, strict=True)]
    assert differences(cases, answer["rows"][0], wanted) == []
    assert typed_gateway.execute("select * from every")["rows"] == answer["rows"]


def test_multidimensional_arrays_and_lower_bounds(typed_gateway: Gateway) -> None:
    answer = typed_gateway.execute(
        "select $1::int4[], $2::text[], '[2:3]={1,2}'::int4[], $3::jsonb[]",
        [[[1, None], [3, 4]], '{{a,"b c"},{NULL,"NULL"}}', [{"a": 1}, None, "[1]", "2"]],
    )
    assert answer["rows"] == [
        [[[1, None], [3, 4]], [["a", "b c"], [None, "NULL"]], [1, 2], [{"a": 1}, None, [1], 2]]
    ]


def test_digits_survive_on_the_wire(typed_gateway: Gateway) -> None:
    with typed_gateway.http() as client:
        sql = (
            "select 9007199254740993::int8, 0.1::float4, 1e400::numeric,"
            """ '{"n": 1.50, "n": 12345678901234567890.10}'::json"""
        )
        text = client.post("/execute", json={"sql": sql}).text
    assert '[9007199254740993,0.1,"1' in text
    assert '{"n": 1.50, "n": 12345678901234567890.10}' in text


def test_numbers_beyond_numeric_are_refused_not_stored_as_something_else(
    typed_gateway: Gateway,
) -> None:
    for text in ("1e131072", "1e262143", "1e-16384"):
        answer = typed_gateway.execute("select $1::numeric", [text])
        assert answer.get("sqlstate") == "22003" or answer["rows"][0][0].startswith("0.000"), text
    for name, text in (("int4", "2147483648"), ("int8", "9223372036854775808"), ("int2", "x")):
        answer = typed_gateway.execute(f"select $1::{name}", [text])
        assert answer["code"] == "invalid_parameter", answer
