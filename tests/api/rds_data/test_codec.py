from __future__ import annotations

import base64
import json
import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.rds_data import codec
from gateway.core.errors import InvalidParameter, InvalidRequest
from gateway.core.model import Ask, Begin, Column, End, Kind, Result, Typed

RESOURCE = "arn:aws:rds:eu-west-1:123456789012:cluster:main"
SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:app"
ASK = Ask(RESOURCE, SECRET)


def request(**members: Any) -> bytes:
    return json.dumps({"resourceArn": RESOURCE, "secretArn": SECRET, **members}).encode()


def execute_value(value: dict[str, Any], hint: str | None = None) -> Any:
    parameter = {"name": "p", "value": value, "typeHint": hint}
    execute, _ = codec.read_execute(request(sql="select :p", parameters=[parameter]))
    assert isinstance(execute.statement.parameters, dict)
    return execute.statement.parameters["p"]


def test_a_full_request_is_read() -> None:
    execute, options = codec.read_execute(
        request(
            sql="select :a",
            database="shop",
            schema="sales",
            transactionId="t1",
            parameters=[{"name": "a", "value": {"longValue": 1}}],
            includeResultMetadata=True,
            continueAfterTimeout=True,
            resultSetOptions={"decimalReturnType": "DOUBLE_OR_LONG", "longReturnType": "STRING"},
            formatRecordsAs="JSON",
            somethingNew={"x": [1]},
        )
    )
    assert execute.ask == Ask(RESOURCE, SECRET, "shop")
    assert execute.statement.sql == "select :a"
    assert (execute.transaction, execute.schema) == ("t1", "sales")
    assert options == codec.ExecuteOptions(True, "DOUBLE_OR_LONG", "STRING", True, True)


def test_a_small_request_has_the_defaults_and_no_parameters() -> None:
    absent: list[dict[str, Any]] = [{}, {"parameters": []}, {"parameters": None}]
    for parameters in absent:
        execute, options = codec.read_execute(request(sql="select 1", **parameters))
        assert execute.statement.parameters is None
        assert options == codec.ExecuteOptions()


def test_transactions_are_read() -> None:
    assert codec.read_begin(request(database="d")) == Begin(ASK._replace(database="d"))
    assert codec.read_end(request(transactionId="t", database="d"), True) == End("t", True, ASK)
    assert codec.read_end(request(transactionId="t"), False) == End("t", False, ASK)


@pytest.mark.parametrize(
    ("read", "members", "missing"),
    [
        (codec.read_execute, {}, "sql"),
        (codec.read_batch, {}, "sql"),
        (lambda body: codec.read_end(body, True), {}, "transactionId"),
        (codec.read_begin, {"resourceArn": None}, "resourceArn"),
        (codec.read_execute, {"secretArn": None, "sql": "select 1"}, "secretArn"),
    ],
)
def test_a_missing_member_is_named(read: Any, members: dict[str, Any], missing: str) -> None:
    with pytest.raises(InvalidParameter, match=f"Value null at '{missing}'"):
        read(request(**members))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"sql":"\xff"}', b'{"sql":"\\ud800"}', b'{"a":' + b"[" * 200_000],
)
def test_what_is_not_json_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        codec.read_execute(body)
    assert not isinstance(caught.value, InvalidParameter)


@pytest.mark.parametrize(
    ("members", "at"),
    [
        ({"sql": 1}, "sql"),
        ({"sql": "s", "parameters": {}}, "parameters"),
        ({"sql": "s", "includeResultMetadata": "yes"}, "includeResultMetadata"),
        (
            {"sql": "s", "parameters": [{"name": "a", "value": {"longValue": "5"}}]},
            r"parameters\[0\].value.longValue",
        ),
        (
            {"sql": "s", "parameters": [{"name": "a", "value": {"longValue": 1.5}}]},
            r"parameters\[0\].value.longValue",
        ),
        (
            {"sql": "s", "parameters": [{"name": "a", "value": {"blobValue": "%"}}]},
            r"parameters\[0\].value.blobValue",
        ),
        ({"sql": "s", "formatRecordsAs": "XML"}, "formatRecordsAs"),
        ({"sql": "s", "resultSetOptions": {"longReturnType": "X"}}, "longReturnType"),
        ({"sql": "s", "resultSetOptions": {"decimalReturnType": "X"}}, "decimalReturnType"),
        (
            {
                "sql": "s",
                "parameters": [{"name": "a", "value": {"stringValue": ""}, "typeHint": "DAY"}],
            },
            "typeHint",
        ),
    ],
)
def test_a_member_of_the_wrong_form_is_named(members: dict[str, Any], at: str) -> None:
    with pytest.raises(InvalidParameter, match=at):
        codec.read_execute(request(**members))


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="Expected object, got array"):
        codec.read_execute(b"[]")


def test_sql_with_a_nul_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="NUL"):
        codec.read_execute(request(sql="select 1\0; drop table t"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"isNull": True}, None),
        ({"longValue": 7}, Typed(7, "int8")),
        ({"longValue": -(2**63)}, Typed(-(2**63), "int8")),
        ({"doubleValue": 1.5}, Typed(1.5, "float8")),
        ({"doubleValue": 2}, Typed(2.0, "float8")),
        ({"doubleValue": "NaN"}, Typed("NaN", "float8")),
        ({"doubleValue": "-Infinity"}, Typed("-Infinity", "float8")),
        ({"booleanValue": False}, Typed(False, "bool")),
        ({"blobValue": "AP8="}, Typed("\\x00ff", "bytea")),
        ({"blobValue": ""}, Typed("\\x", "bytea")),
        ({"stringValue": "żółć"}, "żółć"),
        ({"stringValue": ""}, ""),
        ({"longValue": 1, "stringValue": None}, Typed(1, "int8")),
        ({"arrayValue": {"longValues": [1, None, 3]}}, Typed([1, None, 3], "int8[]")),
        ({"arrayValue": {"longValues": []}}, Typed([], "int8[]")),
        ({"arrayValue": {"booleanValues": [True, None]}}, Typed([True, None], "bool[]")),
        (
            {"arrayValue": {"doubleValues": [1.5, "NaN", None]}},
            Typed([1.5, "NaN", None], "float8[]"),
        ),
        ({"arrayValue": {"stringValues": ["a", None]}}, Typed(["a", None], "text[]")),
        ({"arrayValue": {"stringValues": []}}, Typed([], "text[]")),
        (
            {"arrayValue": {"arrayValues": [{"longValues": [1]}, {"longValues": [None]}]}},
            Typed([[1], [None]], "int8[]"),
        ),
    ],
)
def test_each_member_becomes_its_type(value: dict[str, Any], expected: Any) -> None:
    assert execute_value(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"unknown": 1},
        {"isNull": False},
        {"longValue": 1, "isNull": False},
        {"longValue": 1, "stringValue": "1"},
        {"longValue": 2**63},
        {"doubleValue": "1.5"},
        {"doubleValue": "inf"},
        {"arrayValue": {}},
        {"arrayValue": {"longValues": [1], "stringValues": ["a"]}},
        {"arrayValue": {"longValues": [2**63]}},
        {"arrayValue": {"doubleValues": ["x"]}},
        {"arrayValue": {"arrayValues": [{}]}},
    ],
)
def test_a_value_that_is_not_exactly_one_thing_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match='"p"'):
        execute_value(value)


def test_names_are_given_once_and_are_plain() -> None:
    one = {"name": "a", "value": {"longValue": 1}}
    with pytest.raises(InvalidParameter, match="more than once"):
        codec.read_execute(request(sql="s", parameters=[one, one]))
    for name in ("a-b", "", "ä", "a b", ":a", "a\n"):
        with pytest.raises(InvalidParameter, match="Named parameter syntax is invalid, input: "):
            codec.read_execute(request(sql="s", parameters=[{**one, "name": name}]))
    with pytest.raises(InvalidParameter, match="no name"):
        codec.read_execute(request(sql="s", parameters=[{"value": {"longValue": 1}}]))
    with pytest.raises(InvalidParameter, match="no value"):
        codec.read_execute(request(sql="s", parameters=[{"name": "a"}]))


@pytest.mark.parametrize(
    ("hint", "text", "type_name", "sent"),
    [
        ("DATE", "2024-02-29", "date", "2024-02-29"),
        ("DATE", "2024-02-29T00:00:00.000Z", "date", "2024-02-29"),
        ("DATE", "12024-02-29", "date", "12024-02-29"),
        ("DATE", "0044-03-15 BC", "date", "0044-03-15 BC"),
        ("DATE", "0001-02-29 BC", "date", "0001-02-29 BC"),
        ("DATE", "infinity", "date", "infinity"),
        ("TIME", "01:02:03", "time", "01:02:03"),
        ("TIME", "01:02:03.000004", "time", "01:02:03.000004"),
        ("TIME", "24:00:00", "time", "24:00:00"),
        ("TIME", "01:02:03Z", "time", "01:02:03"),
        ("TIME", "01:02:03.5+02:30", "time", "22:32:03.5"),
        ("TIMESTAMP", "2024-01-15 12:34:56", "timestamp", "2024-01-15 12:34:56"),
        ("TIMESTAMP", "2024-01-15T12:34:56.7Z", "timestamp", "2024-01-15 12:34:56.7"),
        (
            "TIMESTAMP",
            "2024-01-15T12:34:56.123456789",
            "timestamp",
            "2024-01-15 12:34:56.123456789",
        ),
        ("TIMESTAMP", "2024-01-01 00:30:00+01", "timestamp", "2023-12-31 23:30:00"),
        ("TIMESTAMP", "2024-01-01 23:30:00.25-0130", "timestamp", "2024-01-02 01:00:00.25"),
        ("TIMESTAMP", "-infinity", "timestamp", "-infinity"),
        ("DECIMAL", "19.90", "numeric", "19.90"),
        ("DECIMAL", "-1e-10", "numeric", "-1e-10"),
        ("DECIMAL", "NaN", "numeric", "NaN"),
        ("UUID", "6BA7B810-9dad-11d1-80b4-00c04fd430c8", "uuid", None),
        ("JSON", '{"a": 1}', "jsonb", '{"a": 1}'),
    ],
)
def test_hints_fix_the_type(hint: str, text: str, type_name: str, sent: str | None) -> None:
    assert execute_value({"stringValue": text}, hint) == Typed(
        text if sent is None else sent, type_name
    )


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        ("DATE", "Sat, 15 Jul 2023 05:58:12 GMT"),
        ("DATE", "2023-02-29"),
        ("DATE", "2024-13-01"),
        ("DATE", "0002-02-29 BC"),
        ("DATE", "2024-01-15T12:00:00Z"),
        ("DATE", "٢٠٢٤-01-01"),
        ("TIME", "25:00:00"),
        ("TIME", "24:00:00.5"),
        ("TIME", "1:2:3"),
        ("TIME", "01:02:03.1234567890"),
        ("TIME", "infinity"),
        ("TIMESTAMP", "2024-01-15"),
        ("TIMESTAMP", "2024-01-15 12:61:00"),
        ("TIMESTAMP", "2024-01-15 12:34:56+25:00"),
        ("TIMESTAMP", "0001-01-01 00:00:00+01"),
        ("TIMESTAMP", "2024-01-15 12:34:56\n"),
    ],
)
def test_a_date_that_is_none_is_refused_in_the_known_words(hint: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match="Cannot parse date or time"):
        execute_value({"stringValue": text}, hint)


@pytest.mark.parametrize(
    ("hint", "text"), [("UUID", "x"), ("UUID", ""), ("DECIMAL", "1,5"), ("DECIMAL", "٣")]
)
def test_other_hinted_text_is_checked(hint: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match="Cannot parse"):
        execute_value({"stringValue": text}, hint)


def test_a_hint_beside_another_member_changes_nothing() -> None:
    assert execute_value({"longValue": 1}, "UUID") == Typed(1, "int8")
    assert execute_value({"isNull": True}, "DATE") is None


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), st.integers(-15 * 60, 15 * 60))
def test_any_offset_gives_the_same_instant(at: datetime, minutes: int) -> None:
    sign = "-" if minutes < 0 else "+"
    zone = f"{sign}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    sent = execute_value({"stringValue": f"{at.isoformat()}{zone}"}, "TIMESTAMP")
    assert datetime.fromisoformat(sent.value) == at - timedelta(minutes=minutes)


@given(st.dates(), st.times(), st.uuids(), st.decimals(allow_nan=False, allow_infinity=False))
def test_what_python_prints_is_accepted(day: date, time: Any, key: uuid.UUID, number: Any) -> None:
    assert execute_value({"stringValue": day.isoformat()}, "DATE").value == day.isoformat()
    assert execute_value({"stringValue": time.isoformat()}, "TIME").value == time.isoformat()
    assert execute_value({"stringValue": str(key)}, "UUID").value == str(key)
    assert execute_value({"stringValue": str(number)}, "DECIMAL").value == str(number)
    stamp = datetime.combine(day, time, UTC)
    sent = execute_value({"stringValue": stamp.isoformat()}, "TIMESTAMP").value
    assert datetime.fromisoformat(sent) == stamp.replace(tzinfo=None)


@given(st.binary())
def test_any_bytes_arrive(content: bytes) -> None:
    sent = execute_value({"blobValue": base64.b64encode(content).decode()})
    assert sent == Typed("\\x" + content.hex(), "bytea")


def test_a_batch_keeps_the_order_of_its_sets() -> None:
    sets = [[{"name": "a", "value": {"longValue": n}}] for n in range(3)]
    batch = codec.read_batch(request(sql="s", parameterSets=[*sets, []], transactionId="t"))
    assert batch == codec.BatchOfSets(
        ASK, "s", [*({"a": Typed(n, "int8")} for n in range(3)), None], "t", None
    )


def test_a_batch_without_sets_runs_nothing() -> None:
    assert codec.read_batch(request(sql="s")).parameter_sets == []


def test_a_bad_set_is_numbered() -> None:
    good = [{"name": "a", "value": {"longValue": 1}}]
    with pytest.raises(InvalidParameter) as caught:
        codec.read_batch(request(sql="s", parameterSets=[good, [{"name": "a", "value": {}}]]))
    assert caught.value.statement == 1


# --- answers


def result(*columns: tuple[str, Kind], rows: list[tuple[Any, ...]], command: str = "SELECT") -> Any:
    described = tuple(Column(name, kind.value, kind=kind) for name, kind in columns)
    return Result(described, rows, len(rows), command, True)


DONE = Result((), [], 3, "UPDATE", False)
OPTIONS = codec.ExecuteOptions()


def test_rows_without_metadata() -> None:
    answer = json.loads(codec.write_execute(result(("a", Kind.INT), rows=[(1,)]), OPTIONS, [{}]))
    assert answer == {"numberOfRecordsUpdated": 0, "records": [[{"longValue": 1}]]}


def test_no_rows_with_metadata() -> None:
    wanted = codec.ExecuteOptions(include_metadata=True)
    answer = json.loads(
        codec.write_execute(result(("a", Kind.INT), rows=[]), wanted, [{"name": "a"}])
    )
    assert answer == {
        "numberOfRecordsUpdated": 0,
        "records": [],
        "columnMetadata": [{"name": "a"}],
    }


def test_rows_of_no_columns() -> None:
    answer = json.loads(codec.write_execute(result(rows=[(), ()]), OPTIONS))
    assert answer["records"] == [[], []]


@pytest.mark.parametrize("options", [OPTIONS, codec.ExecuteOptions(True), OPTIONS])
def test_a_command_has_neither_records_nor_metadata(options: codec.ExecuteOptions) -> None:
    assert json.loads(codec.write_execute(DONE, options, [])) == {
        "generatedFields": [],
        "numberOfRecordsUpdated": 3,
    }


def test_formatted_records_are_one_text() -> None:
    wanted = codec.ExecuteOptions(include_metadata=True, format_json=True)
    rows = [(0, 'Jane "J" \\ \n ż'), (1, None)]
    answer = json.loads(
        codec.write_execute(
            result(("id", Kind.INT), ("name", Kind.TEXT), rows=rows), wanted, [{}, {}]
        )
    )
    assert set(answer) == {"numberOfRecordsUpdated", "formattedRecords"}
    text = answer["formattedRecords"]
    assert text == '[{"id":0,"name":"Jane \\"J\\" \\\\ \\n ż"},{"id":1,"name":null}]'
    empty = codec.write_execute(result(("id", Kind.INT), rows=[]), wanted)
    assert json.loads(empty)["formattedRecords"] == "[]"


def test_equal_labels_cannot_be_formatted() -> None:
    twice = [("a", Kind.INT), ("a", Kind.INT)]
    wanted = codec.ExecuteOptions(format_json=True)
    with pytest.raises(InvalidParameter):
        codec.write_execute(result(*twice, rows=[]), wanted)


def test_pieces_join_to_the_whole() -> None:
    many = result(("a", Kind.INT), rows=[(n,) for n in range(5)])
    for options in (OPTIONS, codec.ExecuteOptions(format_json=True)):
        pieces = codec.frame(many.columns, options)
        body = pieces.head + pieces.rows(many.rows[:2]) + b"," + pieces.rows(many.rows[2:])
        assert body + pieces.tail == codec.write_execute(many, options)
        assert pieces.rows([]) == b""


def test_a_batch_gives_returned_fields() -> None:
    returned = result(("id", Kind.INT), ("v", Kind.TEXT), rows=[(7, None)], command="INSERT")
    assert json.loads(codec.write_batch([DONE, returned])) == {
        "updateResults": [
            {"generatedFields": []},
            {"generatedFields": [{"longValue": 7}, {"isNull": True}]},
        ]
    }
    assert codec.write_batch([]) == b'{"updateResults":[]}'


def test_transactions_are_answered_in_the_known_words() -> None:
    assert codec.write_begin("a/b+c==") == b'{"transactionId":"a/b+c=="}'
    assert json.loads(codec.write_commit()) == {"transactionStatus": "Transaction Committed"}
    assert json.loads(codec.write_rollback()) == {"transactionStatus": "Rollback Complete"}
