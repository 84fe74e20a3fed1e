"""Every type that a column can have, through boto3: scalars, arrays, NULL, extremes.

What psql prints for a value is the truth; `field` says which `Field` it has to become.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fix_gateway import running, settings_for
from tests.fix_postgres import Database
from tests.postgres.test_types import REFUSED, Type, psql, quoted, read_types, resolved, samples
from tests.wire.data_api import DataApi

pytestmark = pytest.mark.wire

LONGS = frozenset({"int2", "int4", "int8", "oid"})
DOUBLES = frozenset({"float4", "float8"})


@pytest.fixture(scope="module")
def typed_database(postgres: Any) -> Database:
    postgres.sql("create database data_api_types strategy wal_log")
    return Database(postgres, "data_api_types")


@pytest.fixture(scope="module")
def types(typed_database: Database) -> dict[int, Type]:
    return read_types(typed_database)


@pytest.fixture(scope="module")
def api(typed_database: Database, types: dict[int, Type]) -> Iterator[DataApi]:
    with running(settings_for(typed_database), typed_database) as gateway:
        found = DataApi(gateway)
        yield found
        found.client.close()


def compact(text: str) -> str:
    """JSON without the blanks outside its strings."""
    kept, inside, escaped = [], False, False
    for char in text:
        if inside or char not in " \t\r\n":
            kept.append(char)
        if char == '"' and not escaped:
            inside = not inside
        escaped = inside and char == "\\" and not escaped
    return "".join(kept)


def in_utc(text: str) -> str:
    """A timetz as a time in UTC."""
    at = max(text.rfind("+"), text.rfind("-"))
    clock, zone = text[:at], text[at:]
    hours, minutes, rest = clock.split(":")
    offset = [int(part) for part in zone[1:].split(":")] + [0]
    east = (offset[0] * 60 + offset[1]) * (-1 if zone[0] == "-" else 1)
    total = (int(hours) * 60 + int(minutes) - east) % 1440
    return f"{total // 60:02}:{total % 60:02}:{rest}"


def member(of: Type, types: dict[int, Type]) -> str:
    """The member of `Field` for a value of the type that is not NULL."""
    name = resolved(of, types).name
    if name == "bool":
        return "booleanValue"
    if name in LONGS:
        return "longValue"
    if name in DOUBLES:
        return "doubleValue"
    return "blobValue" if name == "bytea" else "stringValue"


def value(of: Type, printed: str, types: dict[int, Type]) -> Any:
    """What that member holds, for what psql *printed*."""
    name = resolved(of, types).name
    if name == "bool":
        return printed == "t"
    if name in LONGS:
        return int(printed)
    if name in DOUBLES:
        return float(printed)
    if name == "bytea":
        return bytes.fromhex(printed[2:])
    if name in ("json", "jsonb"):
        return compact(printed)
    if name == "timestamptz":
        return printed.replace("+00", "")
    return in_utc(printed) if name == "timetz" else printed


def field(of: Type, printed: str, types: dict[int, Type]) -> dict[str, Any]:
    base = resolved(of, types)
    if base.element:
        items = printed.strip("{}")
        assert types[base.element].name == "int4"
        return {
            "arrayValue": {
                "longValues": [
                    None if item == "NULL" else int(item)
                    for item in (items.split(",") if items else [])
                ]
            }
        }
    if base.name in ("int2vector", "oidvector"):
        return {"arrayValue": {"longValues": [int(part) for part in printed.split()]}}
    return {member(of, types): value(of, printed, types)}


def elements(of: Type, types: dict[int, Type]) -> str:
    """The member of `ArrayValue` for elements of the type."""
    found = member(of, types)
    return "stringValues" if found == "blobValue" else f"{found}s"


def element(of: Type, printed: str, types: dict[int, Type]) -> Any:
    if resolved(of, types).name == "bytea":
        return printed  # there is no list of blobs
    return value(of, printed, types)


def scalars(types: dict[int, Type]) -> list[Type]:
    return [it for it in types.values() if not it.element and it.name not in REFUSED]


def asked(api: DataApi, cases: list[tuple[Type, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The fields that come back for the values of *cases*, each cast to its type."""
    fields: list[dict[str, Any]] = []
    for start in range(0, len(cases), 300):
        some = cases[start : start + 300]
        places = ", ".join(f":p{n}::{it.sql}" for n, (it, _) in enumerate(some))
        values = {f"p{n}": given for n, (_, given) in enumerate(some)}
        [row] = api.run(f"select {places}", **values)["records"]
        fields += row
    return fields


def differences(
    cases: list[tuple[Type, dict[str, Any]]], got: list[Any], wanted: list[Any]
) -> list[str]:
    # repr: NaN equals nothing, and -0.0 equals 0.0.
    return [
        f"{it.sql} {str(given)[:80]}: {str(found)[:120]}, not {str(want)[:120]}"
        for (it, given), found, want in zip(cases, got, wanted, strict=True)
        if repr(found) != repr(want)
    ]


def test_every_scalar_is_the_field_that_is_documented(
    api: DataApi, typed_database: Database, types: dict[int, Type]
) -> None:
    cases = [
        (it, {"stringValue": text}, f"{quoted(text)}::{it.sql}")
        for it in scalars(types)
        for text in samples(it)
    ]
    printed = psql(typed_database, [literal for _, _, literal in cases])
    sent = [(it, given) for it, given, _ in cases]
    wanted = [field(it, text, types) for (it, _), text in zip(sent, printed, strict=True)]
    assert len(sent) > 200
    assert differences(sent, asked(api, sent), wanted) == []


def test_every_array_holds_its_elements_and_nulls(
    api: DataApi, typed_database: Database, types: dict[int, Type]
) -> None:
    cases, literals, of = [], [], []
    for it in types.values():
        inner = types.get(it.element)
        if inner is None or inner.name in REFUSED or resolved(inner, types).element:
            continue
        for text in samples(inner):
            escaped = text.replace("\\", "\\\\").replace('"', '\\"')
            delimiter = ";" if inner.name == "box" else ","
            cases.append((it, {"stringValue": f'{{"{escaped}"{delimiter}NULL}}'}))
            literals.append(f"{quoted(text)}::{inner.sql}")
            of.append(inner)
    wanted = [
        {"arrayValue": {elements(it, types): [element(it, text, types), None]}}
        for it, text in zip(of, psql(typed_database, literals), strict=True)
    ]
    assert len(cases) > 200
    assert differences(cases, asked(api, cases), wanted) == []


def test_a_list_of_strings_becomes_an_array_of_any_type(
    api: DataApi, typed_database: Database, types: dict[int, Type]
) -> None:
    cases, literals, of = [], [], []
    for it in types.values():
        inner = types.get(it.element)
        if inner is None or inner.name in REFUSED or resolved(inner, types).element:
            continue
        texts = [text for text in samples(inner) if text][:2]
        if texts:
            cases.append((it, {"arrayValue": {"stringValues": texts}}))
            literals += [f"{quoted(text)}::{inner.sql}" for text in texts]
            of.append((inner, len(texts)))
    printed = iter(psql(typed_database, literals))
    wanted = [
        {"arrayValue": {elements(it, types): [element(it, next(printed), types) for _ in range(n)]}}
        for it, n in of
    ]
    assert differences(cases, asked(api, cases), wanted) == []


def test_null_and_the_empty_array_of_every_type(api: DataApi, types: dict[int, Type]) -> None:
    cases = [(it, {"isNull": True}) for it in types.values()]
    wanted: list[Any] = [{"isNull": True}] * len(cases)
    assert differences(cases, asked(api, cases), wanted) == []
    arrays = [it for it in types.values() if it.element]
    cases = [(it, {"stringValue": "{}"}) for it in arrays]
    wanted = [
        {"arrayValue": {elements(types[it.element], types): []}}
        if it.element in types and not resolved(types[it.element], types).element
        else {"arrayValue": {"stringValues": []}}
        for it in arrays
    ]
    assert differences(cases, asked(api, cases), wanted) == []


@pytest.mark.parametrize(("decimals", "longs"), [("DOUBLE_OR_LONG", "STRING"), ("STRING", "LONG")])
def test_numbers_follow_the_result_set_options(api: DataApi, decimals: str, longs: str) -> None:
    answer = api.execute(
        "select 5::int2, 5::int4, 9223372036854775807, 5::oid, 5::numeric, 2.50,"
        " 0.10::numeric(4,2), 'NaN'::numeric, 1e400::numeric, 99999999999999999999::numeric,"
        " array[1, null], array[1.5, null], null::numeric, null::int8, 1.5::float8,"
        " array[array[1.5], array[2]]",
        resultSetOptions={"decimalReturnType": decimals, "longReturnType": longs},
    )
    huge = {"stringValue": "1" + "0" * 400}
    none = {"isNull": True}
    if longs == "STRING":
        expected = [
            *({"stringValue": text} for text in ("5", "5", "9223372036854775807", "5")),
            *({"longValue": 5}, {"doubleValue": 2.5}, {"doubleValue": 0.1}),
            *({"stringValue": "NaN"}, huge, {"doubleValue": 1e20}),
            {"arrayValue": {"stringValues": ["1", None]}},
            {"arrayValue": {"doubleValues": [1.5, None]}},
            *(none, none, {"doubleValue": 1.5}),
            {"arrayValue": {"arrayValues": [{"doubleValues": [1.5]}, {"doubleValues": [2.0]}]}},
        ]
    else:
        expected = [
            *({"longValue": number} for number in (5, 5, 9223372036854775807, 5)),
            *({"stringValue": text} for text in ("5", "2.50", "0.10", "NaN")),
            *(huge, {"stringValue": "99999999999999999999"}),
            {"arrayValue": {"longValues": [1, None]}},
            {"arrayValue": {"stringValues": ["1.5", None]}},
            *(none, none, {"doubleValue": 1.5}),
            {"arrayValue": {"arrayValues": [{"stringValues": ["1.5"]}, {"stringValues": ["2"]}]}},
        ]
    assert answer["records"] == [expected]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("pg_sleep(0)", {"stringValue": ""}),
        ("null", {"isNull": True}),
        ("'unknown'", {"stringValue": "unknown"}),
        ("'1'::bit(1)", {"booleanValue": True}),
        ("'{1,0,NULL}'::bit(1)[]", {"arrayValue": {"booleanValues": [True, False, None]}}),
        ("'{101}'::bit(3)[]", {"arrayValue": {"stringValues": ["101"]}}),
        ("'[2:3]={1,2}'::int[]", {"arrayValue": {"longValues": [1, 2]}}),
        ("array['1 2'::int2vector, null]", {"arrayValue": {"stringValues": ["1 2", None]}}),
        ("'{{\"1 2\"},{NULL}}'::int2vector[]",
         {"arrayValue": {"arrayValues": [{"stringValues": ["1 2"]}, {"stringValues": [None]}]}}),
        ("array[array[array[1]]]",
         {"arrayValue": {"arrayValues": [{"arrayValues": [{"longValues": [1]}]}]}}),
        ("array['\\x00ff'::bytea]", {"arrayValue": {"stringValues": ["\\x00ff"]}}),
    ],
)  # fmt: skip
def test_forms_that_no_column_has(api: DataApi, expression: str, expected: dict[str, Any]) -> None:
    assert api.one(f"select {expression}") == expected


def test_a_list_goes_into_a_domain_over_an_array(api: DataApi) -> None:
    api.execute("create table of_domains (a ids, b nested_ids)")
    ids = {"arrayValue": {"longValues": [1, 2]}}
    answer = api.run("insert into of_domains values (:a, :b) returning a, b", a=ids, b=ids)
    assert answer["records"] == [[ids, ids]]


def test_a_list_of_documents_goes_into_an_array_of_them(api: DataApi) -> None:
    documents = {"arrayValue": {"stringValues": ['{"a":[1,2]}', "[1,[2]]", "null"]}}
    assert api.one("select :v::jsonb[]", v=documents) == documents
