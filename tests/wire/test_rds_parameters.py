"""Named parameters of the Data API, with an unmodified boto3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fix_gateway import Gateway
from tests.wire.data_api import DataApi, refused

pytestmark = pytest.mark.wire

KEY = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


@pytest.fixture(scope="module")
def api(shared_gateway: Gateway) -> Iterator[DataApi]:
    found = DataApi(shared_gateway)
    yield found
    found.client.close()


def long(value: int) -> dict[str, Any]:
    return {"longValue": value}


def text(value: str) -> dict[str, Any]:
    return {"stringValue": value}


@pytest.mark.parametrize(
    ("sql", "values", "expected"),
    [
        pytest.param("select :1::int + :2::int", {"1": long(1), "2": long(2)}, [long(3)],
                     id="names of digits alone"),
        pytest.param("select :0 as a, :10 as b", {"0": text("x"), "10": text("y")},
                     [text("x"), text("y")], id="a name of digits that begins another one"),
        pytest.param("select :a, :a, :A", {"a": long(1), "A": long(2)},
                     [long(1), long(1), long(2)], id="a name used twice, case matters"),
        pytest.param("select :a", {"a": long(1), "unused": long(2)}, [long(1)],
                     id="a value that nothing uses"),
        pytest.param("select ':a', :a", {"a": long(1)}, [text(":a"), long(1)],
                     id="inside a string"),
        pytest.param("select 'it''s :a', E'\\':a', U&'\\0041:a', :a", {"a": long(1)},
                     [text("it's :a"), text("':a"), text("A:a"), long(1)],
                     id="inside strings with escapes"),
        pytest.param("select $$:a$$, $tag$ :a $$ :a $tag$, :a", {"a": long(1)},
                     [text(":a"), text(" :a $$ :a "), long(1)], id="inside dollar quotes"),
        pytest.param('select 1 as ":a", :a', {"a": long(2)}, [long(1), long(2)],
                     id="inside a quoted identifier"),
        pytest.param("select /* :b /* :c */ :d */ :a -- :e", {"a": long(1)}, [long(1)],
                     id="inside comments"),
        pytest.param("select :a::text, cast(:a as text), (:a)::int2", {"a": long(1)},
                     [text("1"), text("1"), long(1)], id="casts"),
        pytest.param("select (array[1,2,3])[1:2], (array[1,2,3])[:a:3]", {"a": long(2)},
                     [{"arrayValue": {"longValues": [1, 2]}},
                      {"arrayValue": {"longValues": [2, 3]}}], id="slices"),
        pytest.param("select '{\"a\":1}'::jsonb ? :k, '{\"a\":1}'::jsonb ?| array[:k],"
                     " '[1]'::jsonb @> :j", {"k": text("a"), "j": text("1")},
                     [{"booleanValue": True}] * 3, id="operators with ? and @"),
        pytest.param("select @ -5, :a", {"a": long(1)}, [long(5), long(1)],
                     id="an operator of one sign"),
        pytest.param("select :a;", {"a": long(1)}, [long(1)], id="a semicolon at the end"),
        pytest.param("select :a; -- done", {"a": long(1)}, [long(1)],
                     id="a comment behind the semicolon"),
        pytest.param("select :lodz_1", {"lodz_1": long(1)},
                     [long(1)], id="underscores and digits"),
        pytest.param("select :n::int, :n is null", {"n": {"isNull": True}},
                     [{"isNull": True}, {"booleanValue": True}], id="NULL"),
        pytest.param("select :a || 'x' as v group by :a || 'x'", {"a": text("y")}, [text("yx")],
                     id="a repeated name is one value"),
    ],
)  # fmt: skip
def test_names_are_found_where_postgresql_would_find_them(
    api: DataApi, sql: str, values: dict[str, Any], expected: list[Any]
) -> None:
    assert api.run(sql, **values)["records"] == [expected]


@pytest.mark.parametrize("parameters", [None, []], ids=["no member", "an empty list"])
def test_a_name_without_any_value_is_named(api: DataApi, parameters: Any) -> None:
    more = {} if parameters is None else {"parameters": parameters}
    with pytest.raises(ClientError) as caught:
        api.execute("select 1 where :a = 1", **more)
    assert refused(caught) == ("ValidationException", "Cannot find parameter: a", 400)
    # What is no placeholder needs no value.
    sql = "select (array[1,2,3])[1:2], ':a', 1::text -- :a"
    assert len(api.execute(sql, **more)["records"][0]) == 3


@pytest.mark.parametrize("parameters", [None, {}])
def test_the_native_api_names_it_too(shared_gateway: Gateway, parameters: Any) -> None:
    answer = shared_gateway.execute("select 1 where :a = 1", parameters)
    assert (answer["code"], answer["detail"]) == (
        "invalid_parameter",
        "Cannot find parameter: a",
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([{"name": "a", "value": long(1)}] * 2, 'Parameter "a" is given more than once'),
        ([{"name": "a b", "value": long(1)}], "Named parameter syntax is invalid, input: a b"),
        ([{"value": long(1)}], "A parameter has no name"),
        ([{"name": "a"}], 'Parameter "a" has no value'),
        ([{"name": "a", "value": text("x"), "typeHint": "WRONG"}],
         "Member must satisfy enum value set"),
        ([{"name": "a", "value": text("a\0b")}], "U+0000"),
    ],
)  # fmt: skip
def test_parameters_that_make_no_sense_are_refused(
    api: DataApi, parameters: list[Any], message: str
) -> None:
    with pytest.raises(ClientError) as caught:
        api.execute("select :a", parameters=parameters)
    code, found, status = refused(caught)
    assert (code, status) == ("ValidationException", 400)
    assert message in found


@pytest.mark.parametrize(
    ("hint", "given", "type_name", "printed"),
    [
        ("DATE", "2024-02-29", "date", "2024-02-29"),
        ("DATE", "2024-02-29T00:00:00Z", "date", "2024-02-29"),
        ("DATE", "infinity", "date", "infinity"),
        ("DATE", "0044-03-15 BC", "date", "0044-03-15 BC"),
        ("TIME", "01:02:03", "time without time zone", "01:02:03"),
        ("TIME", "01:02:03.123", "time without time zone", "01:02:03.123"),
        ("TIME", "01:02:03.123456Z", "time without time zone", "01:02:03.123456"),
        ("TIME", "01:02:03+01:00", "time without time zone", "00:02:03"),
        ("TIMESTAMP", "2024-01-15 03:34:56", "timestamp without time zone", "2024-01-15 03:34:56"),
        ("TIMESTAMP", "2024-01-15 03:34:56.7", "timestamp without time zone",
         "2024-01-15 03:34:56.7"),
        ("TIMESTAMP", "2024-01-15T03:34:56.789Z", "timestamp without time zone",
         "2024-01-15 03:34:56.789"),
        ("TIMESTAMP", "2024-01-15T03:34:56.123456789+05:30", "timestamp without time zone",
         "2024-01-14 22:04:56.123457"),
        ("DECIMAL", "-19.900", "numeric", "-19.900"),
        ("DECIMAL", "1e3", "numeric", "1000"),
        ("UUID", KEY.upper(), "uuid", KEY),
        ("JSON", '{"b": [1, 2], "a": "ż"}', "jsonb", '{"a":"ż","b":[1,2]}'),
        ("JSON", "null", "jsonb", "null"),
    ],
)  # fmt: skip
def test_hints_take_all_documented_forms_and_more(
    api: DataApi, hint: str, given: str, type_name: str, printed: str
) -> None:
    parameter = {"name": "v", "value": text(given), "typeHint": hint}
    [row] = api.execute("select :v, pg_typeof(:v)::text", parameters=[parameter])["records"]
    assert row == [text(printed), text(type_name)]


@pytest.mark.parametrize(
    ("hint", "given", "message"),
    [
        ("DATE", "soon", 'Cannot parse date or time "soon"'),
        ("DATE", "2023-02-29", 'Cannot parse date or time "2023-02-29"'),
        ("TIME", "25:00:00", 'Cannot parse date or time "25:00:00"'),
        ("TIMESTAMP", "Sat, 15 Jul 2023 05:58:12 GMT", "Cannot parse date or time"),
        ("DECIMAL", "ten", 'Cannot parse number "ten"'),
        ("UUID", "x", 'Cannot parse UUID "x"'),
    ],
)
def test_what_a_hint_cannot_read_is_refused(
    api: DataApi, hint: str, given: str, message: str
) -> None:
    parameter = {"name": "v", "value": text(given), "typeHint": hint}
    with pytest.raises(ClientError) as caught:
        api.execute("select :v", parameters=[parameter])
    assert refused(caught)[0] == "ValidationException"
    assert message in refused(caught)[1]


def test_a_hinted_document_that_is_none_is_postgresqls_error(api: DataApi) -> None:
    parameter = {"name": "v", "value": text("{"), "typeHint": "JSON"}
    with pytest.raises(api.errors.DatabaseErrorException) as caught:
        api.execute("select :v", parameters=[parameter])
    assert refused(caught)[1].endswith("SQLState: 22P02")


def test_strings_need_no_cast(api: DataApi) -> None:
    transaction = api.begin()

    def run(sql: str, **values: dict[str, Any]) -> Any:
        parameters = [{"name": name, "value": value} for name, value in values.items()]
        return api.execute(sql, parameters=parameters, transactionId=transaction).get("records")

    for sql in (
        "create type mood as enum ('sad', 'glad')",
        "create temp table typed (u uuid, m mood, j jsonb, t timestamptz, i int4, n numeric,"
        " b bool, d date, p inet, r int4range, x bytea)",
    ):
        api.execute(sql, transactionId=transaction)
    values = {
        "u": text(KEY), "m": text("glad"), "j": text('{"a":1}'), "t": text("2024-01-15 03:34:56"),
        "i": text("42"), "n": text("1.50"), "b": text("t"), "d": text("2024-02-29"),
        "p": text("10.0.0.1"), "r": text("[1,3)"),
    }  # fmt: skip
    names = ", ".join(values)
    places = ", ".join(f":{name}" for name in values)
    run(f"insert into typed ({names}) values ({places})", **values)
    every = " and ".join(f"{name} = :{name}" for name in values)
    assert run(f"select count(*) from typed where {every}", **values) == [[long(1)]]
    assert run("select i from typed where j @> :j and u in (:u, :v)",
               j=text('{"a":1}'), u=text(KEY), v=text(KEY)) == [[long(42)]]  # fmt: skip
    assert run("select jsonb_build_object('k', :v)", v=text("x")) == [[text('{"k":"x"}')]]
    assert run("select array_length(:v, 1)", v={"arrayValue": {"longValues": [1, 2]}}) == [
        [long(2)]
    ]
    assert run("select concat(:a, :b), coalesce(:a, 'z'), :a || :b", a=text("x"), b=text("y")) == [
        [text("xy"), text("x"), text("xy")]
    ]
    assert run("select date '2024-01-01' + :n::int", n=long(1)) == [[text("2024-01-02")]]
    assert run("select 1 << :n, generate_subscripts('1 2'::int2vector, :n)", n=long(1)) == [
        [long(2), long(0)],
        [long(2), long(1)],
    ]
    api.rollback(transaction)


@pytest.mark.parametrize(
    ("sql", "number", "expected"),
    [
        ("select date '2024-01-01' + :n", 1, "2024-01-02"),
        ("select '[1,2]'::jsonb -> :n", 1, "2"),
        ("select substring(:s from :n for 2)", 2, "bc"),
        ("select :s || lpad('', :n, 'x')", 3, "abcxxx"),
    ],
)
def test_a_long_is_as_narrow_as_a_function_wants_it(
    api: DataApi, sql: str, number: int, expected: str
) -> None:
    for _ in range(2):
        assert api.one(sql, n=long(number), s=text("abc")) == text(expected)
    with pytest.raises(api.errors.DatabaseErrorException) as caught:
        api.one(sql, n=long(2**40), s=text("abc"))
    assert refused(caught)[1].endswith("SQLState: 42883")
    assert api.one(sql, n=long(number), s=text("abc")) == text(expected)
    transaction = api.begin()
    parameters = [{"name": "n", "value": long(number)}, {"name": "s", "value": text("abc")}]
    for again in (sql, sql + " -- not seen before"):
        answer = api.execute(again, parameters=parameters, transactionId=transaction)
        assert answer["records"] == [[text(expected)]]
    assert api.commit(transaction) == "Transaction Committed"


@pytest.mark.parametrize(
    "given", ["abcd", "", "AP8=", "\\x00ff", "\\x00 FF", "a\\\\b", "a\\000\\377b", "żółć"]
)
def test_a_string_for_bytea_is_postgresqls_text_of_it(api: DataApi, given: str) -> None:
    [[expected]] = api.execute(
        f"select E'{given}'::bytea".replace("\\", "\\\\")
    )["records"]  # fmt: skip
    assert isinstance(expected["blobValue"], bytes)
    assert api.one("select :v::bytea", v=text(given)) == expected
    assert api.one("select (:v::bytea[])[1]", v={"arrayValue": {"stringValues": [given]}}) == (
        expected
    )
    transaction = api.begin()
    more = {"transactionId": transaction}
    api.execute("create temp table raw (n serial, v bytea)", **more)
    sets = [{"v": text(given)}, {"v": {"isNull": True}}, {"v": {"blobValue": b"x"}}]
    for rows in (sets, sets[:1] * 3):
        api.batch("insert into raw (v) values (:v)", *rows, **more)
    found = api.execute("select v from raw order by n", **more)["records"]
    assert found == [
        [each] for each in (expected, {"isNull": True}, {"blobValue": b"x"}, *[expected] * 3)
    ]
    api.rollback(transaction)


def test_a_string_that_is_no_bytea_is_refused(shared_gateway: Gateway, api: DataApi) -> None:
    for given in ("a\\b", "\\9", "\\xzz"):
        with pytest.raises(ClientError) as caught:
            api.run("select :v::bytea", v=text(given))
        assert refused(caught)[0] == "ValidationException"
    # The native API takes base64 there, and says so.
    assert shared_gateway.execute("select $1::bytea", ["AP8="])["rows"] == [["AP8="]]


OPTIONAL = {
    "id": (long(1), "int4"),
    "u": (text(KEY), "uuid"),
    "at": (text("2024-01-15 03:34:56"), "timestamptz"),
    "n": ({"doubleValue": 1.5}, "numeric"),
    "name": (text("a"), "text"),
    "j": (text('{"a": 1}'), "jsonb"),
    "ids": ({"arrayValue": {"longValues": [1, 2]}}, "int4[]"),
}


@pytest.mark.parametrize("within", [False, True], ids=["alone", "in a transaction"])
@pytest.mark.parametrize("column", OPTIONAL)
def test_a_condition_may_be_left_out_by_null(api: DataApi, column: str, within: bool) -> None:
    """`(:v is null or column = :v)`: nothing tells the type of the first one."""
    value, kind = OPTIONAL[column]
    transaction = api.begin()
    more = {"transactionId": transaction} if within else {}
    source = f"(values (1, cast('{KEY}' as {kind})), (2, null)) as t (k, v)"
    if column != "u":
        [[printed]] = api.execute(
            f"select cast(:v as {kind})::text", parameters=[{"name": "v", "value": value}]
        )["records"]
        source = source.replace(KEY, printed["stringValue"])
    for condition in ("(:v is null or v = :v)", "(v = :v or :v is null)"):
        sql = f"select k from {source} where {condition} and :w is null order by k"
        for given, expected in ((value, [1]), ({"isNull": True}, [1, 2])):
            parameters = [
                {"name": "v", "value": given},
                {"name": "w", "value": {"isNull": True}},
            ]
            for _ in range(2):  # once found out, once remembered
                found = api.execute(sql, parameters=parameters, **more)["records"]
                assert [row[0]["longValue"] for row in found] == expected, (condition, given)
    api.rollback(transaction)


def test_a_cast_of_one_occurrence_changes_no_meaning(api: DataApi) -> None:
    # What does not compare with text does not do so because of an optional condition.
    for condition in ("(:v is null or v = :v)", "(v = :v or :v is null)"):
        sql = f"select 1 from (values ('a')) as t (v) where {condition}"
        with pytest.raises(api.errors.DatabaseErrorException) as caught:
            api.run(sql, v={"blobValue": b"a"})
        assert refused(caught)[1].endswith("SQLState: 42883")
        position = sql.index("= :v") + 1
        assert f"Position: {position};" in refused(caught)[1]


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ({"longValues": [1, 3]}, "int4", 2),
        ({"longValues": []}, "int4", 0),
        ({"longValues": [1, 3]}, "int8", 2),
        ({"stringValues": ["1", "3"]}, "int4", 2),
        ({"doubleValues": [1.0, 2.5]}, "float8", 1),
        ({"stringValues": ["1", "9"]}, "text", 1),
    ],
)
def test_any_of_a_list(api: DataApi, given: Any, wanted: str, expected: int) -> None:
    sql = f"select count(*) from generate_series(1, 5) g where g::{wanted} = any(:ids)"
    assert api.one(sql, ids={"arrayValue": given}) == long(expected)


def test_lists_with_nulls_and_nested_lists_bind(shared_gateway: Gateway, api: DataApi) -> None:
    nested = {"arrayValue": {"arrayValues": [{"longValues": [1, 2]}, {"longValues": [3, 4]}]}}
    assert api.one("select :v::int[]", v=nested) == nested
    assert api.one("select (:v::int[])[2][1]", v=nested) == long(3)
    # boto3 does not send null within a list; others do.
    with shared_gateway.http() as client:
        answer = client.post(
            "/Execute",
            json={
                **{"resourceArn": api.arns["resourceArn"], "secretArn": api.arns["secretArn"]},
                "database": shared_gateway.database,
                "sql": "select :v::int[], :w",
                "parameters": [
                    {"name": "v", "value": {"arrayValue": {"longValues": [1, None]}}},
                    {"name": "w", "value": {"arrayValue": {"stringValues": [None, "a"]}}},
                ],
            },
        )
    assert json.loads(answer.content)["records"] == [
        [{"arrayValue": {"longValues": [1, None]}}, {"arrayValue": {"stringValues": [None, "a"]}}]
    ]


def summed(api: DataApi, count: int) -> Any:
    values = {f"p{n}": long(n) for n in range(count)}
    places = "), (".join(f":{name}::int" for name in values)
    return api.run(f"select sum(n) from (values ({places})) as t (n)", **values)["records"]


@pytest.mark.slow
def test_a_statement_takes_as_many_values_as_the_driver(api: DataApi) -> None:
    assert summed(api, 32_767) == [[long(sum(range(32_767)))]]


def test_more_values_are_refused_and_a_list_is_one_value(api: DataApi) -> None:
    with pytest.raises(ClientError) as caught:
        summed(api, 32_768)
    expected = ("ValidationException", "32768 parameters are more than 32767", 400)
    assert refused(caught) == expected
    ids = {"arrayValue": {"longValues": list(range(100_000))}}
    assert api.one("select count(*) from unnest(:ids)", ids=ids) == long(100_000)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, 'Parameter "a" has value with no field set'),
        ({"unknown": 1}, 'Parameter "a" has value with no field set'),
        ({"isNull": False}, "isNull set to false and no other field"),
        ({"isNull": False, "stringValue": "x"}, "more than one field set"),
        ({"isNull": True, "longValue": 1}, "more than one field set"),
        ({"longValue": 1, "stringValue": "1"}, "more than one field set"),
        ({"longValue": "5"}, "parameters[0].value.longValue"),
        ({"longValue": 1.5}, "parameters[0].value.longValue"),
        ({"longValue": True}, "parameters[0].value.longValue"),
        ({"longValue": 2**63}, 'Parameter "a": longValue exceeds 64 bits'),
        ({"doubleValue": "1.5"}, 'Parameter "a": doubleValue must be a number'),
        ({"booleanValue": 1}, "parameters[0].value.booleanValue"),
        ({"stringValue": 1}, "parameters[0].value.stringValue"),
        ({"blobValue": "!!"}, "parameters[0].value.blobValue"),
        ({"arrayValue": {}}, 'Parameter "a" has arrayValue with no field set'),
        ({"arrayValue": {"longValues": [1], "stringValues": []}}, "more than one field set"),
        ({"arrayValue": {"longValues": [1.5]}}, "value.arrayValue.longValues[0]"),
        (None, 'Parameter "a" has no value'),
        (5, "parameters[0].value"),
    ],
    ids=str,
)
def test_a_value_is_one_thing_of_its_own_kind(
    shared_gateway: Gateway, api: DataApi, value: Any, message: str
) -> None:
    """What boto3 does not let through, and others do."""
    with shared_gateway.http() as client:
        answer = client.post(
            "/Execute",
            json={
                **api.arns,
                "database": shared_gateway.database,
                "sql": "select :a",
                "parameters": [{"name": "a", "value": value}],
            },
        )
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (400, "ValidationException")
    assert message in answer.json()["message"]


def test_a_ragged_list_is_refused(api: DataApi) -> None:
    ragged = {"arrayValue": {"arrayValues": [{"longValues": [1, 2]}, {"longValues": [3]}]}}
    with pytest.raises(ClientError) as caught:
        api.run("select :v::int[]", v=ragged)
    assert refused(caught)[0] == "ValidationException"
    assert "ragged" in refused(caught)[1]


@pytest.mark.parametrize(
    ("sql", "values", "position"),
    [
        ("select :a_long_name, nope", {"a_long_name": long(1)}, 22),
        ("select 'żółć', :a, nope", {"a": text("x")}, 20),
        ("select :a::int,\n  nope", {"a": long(1)}, 19),
        ("select :a + :b + nope", {"a": long(1), "b": long(2)}, 18),
    ],
)
def test_positions_are_those_of_the_callers_text(
    api: DataApi, sql: str, values: dict[str, Any], position: int
) -> None:
    assert sql[position - 1 :].startswith("nope")
    with pytest.raises(ClientError) as caught:
        api.run(sql, **values)
    assert f"; Position: {position}; SQLState: 42703" in refused(caught)[1]
