"""JSON values become what PostgreSQL takes for the same, or are refused with a reason."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import InvalidParameter
from gateway.core.values import Form, Target, encode_all, encoder, natural, target

BOOL, INT8, INT2, INT4, OID = 16, 20, 21, 23, 26
FLOAT4, FLOAT8, NUMERIC, TEXT, JSONB, BYTEA, UUID = 700, 701, 1700, 25, 3802, 17, 2950


def encode(oid: int, value: Any, name: str = "t") -> Any:
    return encoder(target(oid, name))(value)


def array(oid: int, value: Any) -> Any:
    return encoder(target(1, "_t", target(oid, "t")))(value)


def refused(oid: int, value: Any) -> InvalidParameter:
    with pytest.raises(InvalidParameter) as caught:
        encode(oid, value, "thetype")
    return caught.value


@pytest.mark.parametrize(
    ("oid", "value", "expected"),
    [
        (BOOL, True, True),
        (BOOL, " T ", True),
        (BOOL, "off", False),
        (INT4, 7, 7),
        (INT4, " -7 ", -7),
        (INT2, 32767, 32767),
        (INT8, "9223372036854775807", (1 << 63) - 1),
        (OID, (1 << 32) - 1, (1 << 32) - 1),
        (FLOAT8, 1, 1.0),
        (FLOAT8, "1e-3", 0.001),
        (FLOAT8, " .5 ", 0.5),
        (FLOAT8, "-Infinity", -math.inf),
        (FLOAT8, "0e-999", 0.0),
        (FLOAT8, "5e-324", 5e-324),
        (FLOAT4, 0.1, "0.1"),
        (NUMERIC, 19.9, "19.9"),
        (NUMERIC, 1e30, "1e+30"),
        (NUMERIC, 1 << 70, str(1 << 70)),
        (NUMERIC, "1e131072", "1e131072"),
        (NUMERIC, "NaN", "NaN"),
        (TEXT, "a'b", "a'b"),
        (UUID, "0" * 32, "0" * 32),
        (JSONB, {"a": [1, None]}, '{"a":[1,null]}'),
        (JSONB, '"text of JSON"', '"text of JSON"'),
        (JSONB, 1.5, "1.5"),
        (JSONB, False, "false"),
        (JSONB, {"big": 1 << 70}, f'{{"big":{1 << 70}}}'),
        (JSONB, {"ä": "€"}, '{"ä":"€"}'),
        (BYTEA, "AP8=", "\\x00ff"),
        (BYTEA, "\\x00FF", "\\x00ff"),
        (BYTEA, "", "\\x"),
    ],
)
def test_a_value_that_fits(oid: int, value: Any, expected: Any) -> None:
    found = encode(oid, value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("oid", "value", "words"),
    [
        (BOOL, 1, "a number was given for type bool"),
        (BOOL, "maybe", "a string was given for type bool"),
        (INT4, True, "a boolean was given for type thetype"),
        (INT4, 1.0, "a number was given for type thetype"),
        (INT4, "1.5", "a string was given"),
        (INT4, "1_000", "a string was given"),
        (INT4, "\u0661", "a string was given"),
        (INT4, "0x10", "a string was given"),
        (INT4, 1 << 31, "out of range for type thetype"),
        (INT4, -(1 << 31) - 1, "out of range"),
        (INT2, 32768, "out of range"),
        (INT8, "9223372036854775808", "out of range"),
        (INT8, "1" * 100, "a string was given"),
        (OID, -1, "out of range"),
        (FLOAT8, True, "a boolean was given for type float8"),
        (FLOAT8, "1e999", "out of range"),
        (FLOAT8, "1e-999", "out of range"),
        (FLOAT8, "0.0001e-999", "out of range"),
        (FLOAT8, 10**400, "out of range"),
        (FLOAT8, "x", "a string was given"),
        (NUMERIC, True, "a boolean was given"),
        (NUMERIC, [1], "an array was given"),
        (NUMERIC, "1\0", "U+0000"),
        (TEXT, 1, "a number was given"),
        (TEXT, "a\0b", "U+0000"),
        (UUID, {"a": 1}, "an object was given"),
        (JSONB, "\0", "U+0000"),
        (BYTEA, "not base64!", "not base64"),
        (BYTEA, "AP8", "not base64"),
        (BYTEA, "\\xabc", "hex digits"),
        (BYTEA, 5, "a number was given for type bytea"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_words(oid: int, value: Any, words: str) -> None:
    error = refused(oid, value)
    assert words in error.message
    assert (error.status, error.code) == (400, "invalid_parameter")


def test_a_number_of_more_digits_than_python_prints_is_refused() -> None:
    assert "too long" in refused(NUMERIC, 10**5000).message
    assert "too long" in refused(JSONB, [10**5000]).message


def test_a_refusal_does_not_repeat_the_value() -> None:
    for oid in (BOOL, INT4, FLOAT8, BYTEA):
        error = refused(oid, "s3cret!")
        assert "s3cret" not in error.message + (error.hint or "")


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_deep_json_passes_and_bottomless_json_is_refused() -> None:
    assert encode(JSONB, _nested(400)) == "[" * 401 + "]" * 401
    assert "nested too deeply" in refused(JSONB, _nested(100_000)).message


@pytest.mark.parametrize(
    ("oid", "value", "expected"),
    [
        (INT4, [], []),
        (INT4, [1, None, "3"], [1, None, 3]),
        (INT4, [[1, 2], [None, 4]], [[1, 2], [None, 4]]),
        (INT4, "{1,NULL,3}", [1, None, 3]),
        (INT4, "{{1,2},{3,4}}", [[1, 2], [3, 4]]),
        (BOOL, "{t,f}", [True, False]),
        (TEXT, '{a,"NULL",NULL,""}', ["a", "NULL", None, ""]),
        (NUMERIC, [1.5, "2.50"], ["1.5", "2.50"]),
        (NUMERIC, "[2:3]={1,2}", "[2:3]={1,2}"),
        (JSONB, [{"a": 1}, "2"], ['{"a":1}', "2"]),
        (BYTEA, ["AA=="], ["\\x00"]),
        (INT4, [[[[[[1]]]]]], [[[[[[1]]]]]]),
    ],
)
def test_an_array_that_fits(oid: int, value: Any, expected: Any) -> None:
    assert array(oid, value) == expected


@pytest.mark.parametrize(
    ("oid", "value", "words"),
    [
        (INT4, [1, [2]], "side by side"),
        (INT4, [[1], 2], "ragged"),
        (INT4, [[1], [2, 3]], "differ in length"),
        (INT4, [[1], None], "ragged"),
        (INT4, [[[[[[[1]]]]]]], "at most 6 dimensions"),
        (INT4, "{{{{{{{1}}}}}}}", "at most 6 dimensions"),
        (INT4, "[2:4]={1,2,3}", "lower bounds"),
        (INT4, "1,2", "not an array"),
        (INT4, "{1,2", "not an array"),
        (INT4, "{1}2", "not an array"),
        (INT4, "{x}", "a string was given"),
        (INT4, {"a": 1}, "an object was given for type t[]"),
        (INT4, 1, "a number was given for type t[]"),
        (INT4, [1 << 40], "out of range"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(oid: int, value: Any, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words.replace("[", r"\[")):
        array(oid, value)


@given(st.integers())
def test_integers_pass_whole_or_not_at_all(value: int) -> None:
    if -(1 << 63) <= value < 1 << 63:
        assert encode(INT8, value) == encode(INT8, str(value)) == value
        assert natural(value) == "int8"
    else:
        refused(INT8, value)
        assert natural(value) == "numeric"
    assert int(encode(NUMERIC, value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_every_bit(value: float) -> None:
    assert float(encode(FLOAT8, value)).hex() == value.hex()
    assert float(encode(FLOAT8, repr(value))).hex() == value.hex()
    assert float(encode(FLOAT4, value)).hex() == value.hex()


@given(st.binary())
def test_bytes_pass_in_either_spelling(value: bytes) -> None:
    expected = "\\x" + value.hex()
    assert encode(BYTEA, base64.b64encode(value).decode()) == expected
    assert encode(BYTEA, expected) == expected


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), inner
        )
    ),
)


@settings(max_examples=40, deadline=None)
@given(JSON_VALUES.filter(lambda value: not isinstance(value, str) and value is not None))
def test_json_is_the_same_value(value: Any) -> None:
    assert json.loads(encode(JSONB, value)) == value


@given(st.text())
def test_text_passes_as_it_is(value: str) -> None:
    if "\0" in value:
        refused(TEXT, value)
    else:
        assert encode(TEXT, value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "bool"), (1, "int8"), (1 << 63, "numeric"), (1.5, "float8"), ({}, "jsonb"),
     ("x", None), ([1], None), (None, None)],
)  # fmt: skip
def test_the_type_that_a_value_has_by_itself(value: Any, expected: str | None) -> None:
    assert natural(value) == expected


def test_a_target_is_known_by_its_oid() -> None:
    assert target(INT2, "int2") == Target("int2", Form.INT, 16)
    assert target(99_999, "mood") == Target("mood", Form.OTHER)


_ANY = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 65), 1 << 65), st.integers(-9, 9), st.floats(),
    st.text(), st.sampled_from(["1", " -7 ", "t", "AAE=", "x\0", "{1,2}"]), st.lists(st.integers()),
)  # fmt: skip


@given(
    st.sampled_from(
        [BOOL, INT8, INT2, INT4, OID, FLOAT4, FLOAT8, NUMERIC, TEXT, JSONB, BYTEA, UUID]
    ),
    st.booleans(),
    st.lists(_ANY, min_size=1, max_size=8) | st.lists(st.integers(-9, 9), min_size=1)
    | st.lists(st.none() | st.text(), min_size=1),
)  # fmt: skip
def test_many_values_become_what_each_of_them_does(oid: int, array: bool, values: Any) -> None:
    to = target(oid, "t")
    if array:
        to = target(1, "_t", to)
    one = encoder(to)
    try:
        expected = [None if value is None else one(value) for value in values]
    except InvalidParameter:
        with pytest.raises(InvalidParameter):
            encode_all(to, values)
    else:
        assert repr(list(encode_all(to, values))) == repr(expected)
