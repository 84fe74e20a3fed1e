"""Any value of any type, sent by boto3 and read back, is the same value."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fix_gateway import Gateway
from tests.wire.data_api import DataApi

pytestmark = pytest.mark.wire

Field = dict[str, Any]


class Kind(NamedTuple):
    """A type: values of it, how one is sent, and what has to come back."""

    values: st.SearchStrategy[Any]
    field: Callable[[Any], Field]
    hint: str | None = None
    back: Callable[[Any], Field] | None = None
    """Where it differs from what was sent."""


def text_of(value: Any) -> Field:
    return {"stringValue": str(value)}


def moment(value: datetime.date | datetime.time) -> Field:
    """As PostgreSQL prints it: no T, and no zeros at the end of a fraction."""
    text = value.isoformat().replace("T", " ")
    return {"stringValue": text.rstrip("0") if "." in text else text}


def member(name: str) -> Callable[[Any], Field]:
    return lambda value: {name: value}


def plain(value: decimal.Decimal) -> Field:
    return {"stringValue": f"{value:f}"}


def shortest(value: float) -> Field:
    """The number of fewest digits that is this one among those of 32 bits."""
    for digits in range(1, 18):
        near = float(f"{value:.{digits}g}")
        if abs(near) < 3.5e38 and struct.pack("f", near) == struct.pack("f", value):
            return {"doubleValue": near}
    return {"doubleValue": value}


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def documents(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    )


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50)
whole = {bits: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (16, 32, 64)}
scaled = st.decimals(-(10**30), 10**30, places=6)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts
days = st.dates(datetime.date(1, 1, 1))
clocks = st.times()
moments = st.datetimes(datetime.datetime(1, 1, 1))
uuids = st.uuids()

KINDS: dict[str, Kind] = {
    "bool": Kind(st.booleans(), member("booleanValue")),
    "int2": Kind(whole[16], member("longValue")),
    "int4": Kind(whole[32], member("longValue")),
    "int8": Kind(whole[64], member("longValue")),
    "oid": Kind(st.integers(0, 2**32 - 1), member("longValue")),
    "float4": Kind(st.floats(width=32), member("doubleValue"), back=shortest),
    "float8": Kind(st.floats(), member("doubleValue")),
    "numeric": Kind(scaled, plain, "DECIMAL"),
    "text": Kind(texts, member("stringValue")),
    "varchar": Kind(texts, member("stringValue")),
    "bytea": Kind(st.binary(max_size=50), member("blobValue")),
    "uuid": Kind(uuids, text_of, "UUID"),
    "date": Kind(days, moment, "DATE"),
    "time": Kind(clocks, moment, "TIME"),
    "timestamp": Kind(moments, moment, "TIMESTAMP"),
    "timestamptz": Kind(moments, moment, "TIMESTAMP"),
    "json": Kind(documents(leaves), lambda value: {"stringValue": compact(value)}, "JSON"),
    "inet": Kind(st.ip_addresses(), text_of),
    "mood": Kind(st.sampled_from(["sad", "so so", 'q"\\,{']), member("stringValue")),
    "whole": Kind(st.integers(0, 2**31 - 1), member("longValue")),
    "int4range": Kind(
        st.tuples(st.integers(-1000, 0), st.integers(1, 1000)),
        lambda bounds: {"stringValue": f"[{bounds[0]},{bounds[1]})"},
    ),
    "int8[]": Kind(
        st.lists(whole[64], max_size=5), lambda items: {"arrayValue": {"longValues": items}}
    ),
    "float8[]": Kind(
        st.lists(st.floats(), max_size=5), lambda items: {"arrayValue": {"doubleValues": items}}
    ),
    "bool[]": Kind(
        st.lists(st.booleans(), max_size=5),
        lambda items: {"arrayValue": {"booleanValues": items}},
    ),
    "text[]": Kind(
        st.lists(texts, max_size=5), lambda items: {"arrayValue": {"stringValues": items}}
    ),
    "uuid[]": Kind(
        st.lists(uuids, max_size=5),
        lambda items: {"arrayValue": {"stringValues": [str(item) for item in items]}},
    ),
    "timestamp[]": Kind(
        st.lists(moments, max_size=5),
        lambda items: {"arrayValue": {"stringValues": [moment(i)["stringValue"] for i in items]}},
    ),
    "mood[]": Kind(
        st.lists(st.sampled_from(["sad", "so so", 'q"\\,{']), max_size=5),
        lambda items: {"arrayValue": {"stringValues": items}},
    ),
    "jsonb[]": Kind(
        st.lists(documents(st.none() | st.booleans() | texts), max_size=3),
        lambda items: {"arrayValue": {"stringValues": [compact(item) for item in items]}},
        back=lambda items: {"arrayValue": {"stringValues": [sorted_keys(item) for item in items]}},
    ),
    "int4[][]": Kind(
        st.integers(1, 3).flatmap(
            lambda width: st.lists(
                st.lists(whole[32], min_size=width, max_size=width), min_size=1, max_size=3
            )
        ),
        lambda rows: {"arrayValue": {"arrayValues": [{"longValues": row} for row in rows]}},
    ),
}


def sorted_keys(value: Any) -> str:
    """JSON as jsonb keeps it: keys by the length of their UTF-8, then by their bytes."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return "{" + ",".join(f"{compact(key)}:{sorted_keys(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(sorted_keys, value)) + "]"
    return compact(value)


def same(one: Any, other: Any) -> bool:
    """Equal in every bit that is printed: NaN is NaN, 0.0 is not -0.0, 1 is not True."""
    return repr(one) == repr(other)


@pytest.fixture(scope="module")
def api(shared_gateway: Gateway) -> Iterator[DataApi]:
    found = DataApi(shared_gateway)
    found.execute("create type mood as enum ('sad', 'so so', 'q\"\\,{')")
    found.execute("create domain whole as int4 check (value >= 0)")
    columns = ", ".join(f"c{number} {name}" for number, name in enumerate(KINDS))
    found.execute(f"create table anything (id serial, {columns})")
    yield found
    for what in ("table anything", "domain whole", "type mood"):
        found.execute(f"drop {what}")
    found.client.close()


_rows = st.fixed_dictionaries({name: st.none() | kind.values for name, kind in KINDS.items()})
_property = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_property
@given(_rows)
def test_a_row_of_any_values_is_written_and_read_back(api: DataApi, row: dict[str, Any]) -> None:
    parameters, expected = [], []
    for number, (name, kind) in enumerate(KINDS.items()):
        value = row[name]
        sent = {"isNull": True} if value is None else kind.field(value)
        parameter: dict[str, Any] = {"name": f"c{number}", "value": sent}
        if kind.hint and value is not None:
            parameter["typeHint"] = kind.hint
        parameters.append(parameter)
        expected.append(sent if value is None or kind.back is None else kind.back(value))
    places = ", ".join(f":c{number}" for number in range(len(KINDS)))
    written = api.execute(
        f"insert into anything values (default, {places}) returning *", parameters=parameters
    )
    [[key, *fields]] = written["records"]
    wrong = [
        f"{name}: {found!r}, not {wanted!r}"
        for name, found, wanted in zip(KINDS, fields, expected, strict=True)
        if not same(found, wanted)
    ]
    assert wrong == []
    read = api.run("select * from anything where id = :id", id=key)["records"]
    assert same(read, [[key, *fields]])


@_property
@given(
    number=whole[64],
    double=st.floats(),
    text=texts,
    content=st.binary(max_size=200),
    flag=st.booleans(),
    items=st.lists(texts, max_size=5),
)
def test_values_keep_their_kind_where_nothing_tells_the_type(
    api: DataApi,
    number: int,
    double: float,
    text: str,
    content: bytes,
    flag: bool,
    items: list[str],
) -> None:
    sent: dict[str, Field] = {
        "n": {"longValue": number},
        "d": {"doubleValue": double},
        "t": {"stringValue": text},
        "c": {"blobValue": content},
        "f": {"booleanValue": flag},
        "i": {"arrayValue": {"stringValues": items}},
    }
    [found] = api.run("select :n, :d, :t, :c, :f, :i", **sent)["records"]
    assert same(found, list(sent.values()))


@_property
@given(
    st.lists(
        st.fixed_dictionaries({"a": st.none() | whole[64], "b": st.none() | texts}), max_size=20
    )
)
def test_any_sets_of_a_batch_are_written(api: DataApi, rows: list[dict[str, Any]]) -> None:
    transaction = api.begin()
    sets = [
        {
            "a": {"isNull": True} if row["a"] is None else {"longValue": row["a"]},
            "b": {"isNull": True} if row["b"] is None else {"stringValue": row["b"]},
        }
        for row in rows
    ]
    api.execute("create temp table batched (n serial, a int8, b text)", transactionId=transaction)
    answer = api.batch(
        "insert into batched (a, b) values (:a, :b)", *sets, transactionId=transaction
    )
    assert len(answer["updateResults"]) == len(sets)
    found = api.execute("select a, b from batched order by n", transactionId=transaction)
    assert found["records"] == [[each["a"], each["b"]] for each in sets]
    api.rollback(transaction)


@_property
@given(
    st.fixed_dictionaries(
        {name: st.none() | KINDS[name].values for name in ("int4", "float8", "text", "bool")}
    )
)
def test_formatted_records_hold_the_same_values(api: DataApi, row: dict[str, Any]) -> None:
    values = {
        name: {"isNull": True} if value is None else KINDS[name].field(value)
        for name, value in row.items()
    }
    answer = api.execute(
        "select :int4::int4 as int4, :float8::float8 as float8, :text::text as text,"
        ' :bool::bool as "bool"',
        parameters=[{"name": name, "value": value} for name, value in values.items()],
        formatRecordsAs="JSON",
    )
    [found] = json.loads(answer["formattedRecords"])
    if isinstance(found["float8"], str):
        found["float8"] = float(found["float8"])
    if row["float8"] is not None and math.isnan(row["float8"]):
        assert math.isnan(found.pop("float8"))
        row.pop("float8")
    assert found == row
