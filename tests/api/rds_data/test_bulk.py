"""Sets that are read by column are those that are read one by one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.api.rds_data import bulk, codec
from gateway.core.errors import GatewayError
from gateway.core.model import Typed
from gateway.core.sets import Sets


def request(sets: Any, **more: Any) -> bytes:
    return orjson.dumps(
        {"resourceArn": "a", "secretArn": "b", "sql": "s", **more, "parameterSets": sets}
    )


def read(body: bytes, least: int) -> Any:
    """What is read, or what is said against it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "LEAST", least)
        try:
            batch = codec.read_batch(body)
        except GatewayError as error:
            return type(error), error.message, error.statement, getattr(error, "field", None)
    return batch._replace(parameter_sets=list(batch.parameter_sets)), type(batch.parameter_sets)


def parameter(name: str, **value: Any) -> dict[str, Any]:
    return {"name": name, "value": value}


NULL = st.just({"isNull": True})
MEMBERS = {
    "longValue": st.integers(-(1 << 63), (1 << 63) - 1),
    "doubleValue": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
    "booleanValue": st.booleans(),
    "stringValue": st.text(),
}
ODD = st.sampled_from(
    [
        {},
        {"isNull": False},
        {"longValue": 1 << 63},
        {"longValue": 1, "stringValue": "x"},
        {"longValue": 1, "isNull": True},
        {"longValue": None, "stringValue": "x"},
        {"longValue": 1.5},
        {"longValue": "1"},
        {"doubleValue": "NaN"},
        {"doubleValue": "x"},
        {"stringValue": 1},
        {"blobValue": "AAE="},
        {"arrayValue": {"longValues": [1]}},
        {"unknown": 1},
        {"stringValue": "x", "unknown": 1},
        None,
    ]
)


@st.composite
def batches(draw: Any) -> Any:
    """Sets that are alike, but for what may be different in one of them."""
    members = draw(st.lists(st.sampled_from(sorted(MEMBERS)), min_size=1, max_size=3))
    nullable = draw(st.booleans())
    sets = []
    for _ in range(draw(st.integers(1, 12))):
        values = []
        for index, member in enumerate(members):
            value = MEMBERS[member].map(lambda each, member=member: {member: each})
            values.append({"name": f"p{index}", "value": draw(value | NULL if nullable else value)})
        sets.append(values)
    if draw(st.booleans()):
        one = draw(st.sampled_from(sets))
        change = draw(st.sampled_from(["value", "name", "hint", "order", "more", "less", "key"]))
        if change == "value":
            one[0]["value"] = draw(ODD)
        elif change == "name":
            one[0]["name"] = draw(st.sampled_from(["p1", "other", "", "a b", None]))
        elif change == "hint":
            one[0]["typeHint"] = draw(st.sampled_from(["UUID", "DATE", "NONE", None]))
        elif change == "order":
            one.reverse()
        elif change == "more":
            one.append(parameter("p9", longValue=1))
        elif change == "less":
            one.pop()
        else:
            one[0]["unknown"] = 1
    return sets


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(batches())
def test_any_sets_are_read_as_one_by_one(sets: Any) -> None:
    body = request(sets, transactionId="t", database="d", schema="c")
    by_column, one_by_one = read(body, 0), read(body, 1 << 30)
    assert by_column[0] == one_by_one[0]
    if not isinstance(by_column[0], type):
        # Equal is not the same: 1 is True, and 1.0.
        assert repr(by_column[0]) == repr(one_by_one[0])
        assert one_by_one[1] is list
    else:
        assert by_column == one_by_one


@pytest.mark.parametrize("nulls", [False, True])
def test_sets_alike_are_kept_by_column(nulls: bool) -> None:
    half: dict[str, Any] = {"doubleValue": 0.5}
    sets = [
        [
            parameter("id", longValue=number),
            parameter("at", **(half if number % 2 or not nulls else {"isNull": True})),
            parameter("ok", booleanValue=True),
            parameter("name", stringValue=f"name {number}"),
        ]
        for number in range(1_000)
    ]
    batch = codec.read_batch(request(sets))
    assert isinstance(batch.parameter_sets, Sets)
    assert len(batch.parameter_sets) == 1_000
    assert batch.parameter_sets[7] == {
        "id": Typed(7, "int8"), "at": Typed(0.5, "float8"), "ok": Typed(True, "bool"),
        "name": "name 7",
    }  # fmt: skip
    assert (batch.parameter_sets[8]["at"] is None) is nulls


def test_the_key_may_come_before_the_sets_and_be_spelt_otherwise() -> None:
    sets = [[parameter("a", stringValue='"parameterSets":[[]]')]] * 1_000
    body = request(sets, sql='"parameterSets":[[{"name":"b","value":{"longValue":1}}]]')
    assert list(codec.read_batch(body).parameter_sets) == [{"a": '"parameterSets":[[]]'}] * 1_000
    escaped = body.replace(b'"isNull"', b'"is\\u004eull"').replace(b'"stringValue"', b'"isNull"', 1)
    assert read(escaped, 0) == read(escaped, 1 << 30)


def test_null_is_null_however_its_key_is_spelt() -> None:
    sets = [[parameter("a", longValue=1)], [parameter("a", isNull=True)]]
    body = request(sets).replace(b'"isNull"', b'"is\\u004eull"')
    assert read(body, 0)[0].parameter_sets == [{"a": Typed(1, "int8")}, {"a": None}]


@pytest.mark.parametrize(
    "body",
    [
        request([]),
        request(None),
        request([[]] * 9),
        request([[parameter("a", longValue=1)]] * 9)[:-1],
        request([[parameter("a", longValue=1)]] * 9, resourceArn=None),
        request([[parameter("a", longValue=1)]] * 9, sql="\0"),
        request([[parameter("a", longValue=1)]] * 9) + b"x",
        request([[parameter("a", stringValue="x")]] * 9).replace(b"x", b"\xff"),
        b"[" * 5_000,
        b"",
    ],
)
def test_what_is_wrong_is_told_as_for_few_sets(body: bytes) -> None:
    assert read(body, 0) == read(body, 1 << 30)
