from __future__ import annotations

import pytest

from gateway.api.rds_data import compat
from gateway.core.errors import AwsCannot, InvalidParameter, ResultTooLarge
from gateway.core.model import (
    ArrayKind,
    Ask,
    Column,
    Execute,
    ExecuteMany,
    Kind,
    Statement,
    Typed,
)

ASK = Ask("arn:aws:rds:x", "arn:aws:sec:x")
UUID = Column("u", "uuid")


def execute(**values: object) -> Execute:
    return Execute(ASK, Statement("select 1", values or None))


@pytest.mark.parametrize(("rows", "fits"), [(24_800, True), (25_000, False)])
def test_rows_are_counted_as_users_of_aws_found_out(rows: int, fits: bool) -> None:
    count = compat.Count([UUID])
    some = [("6ba7b810-9dad-11d1-80b4-00c04fd430c8",)] * 200
    batches = [some] * (rows // 200)
    if fits:
        for batch in batches:
            count.add(batch)
    else:
        with pytest.raises(ResultTooLarge, match=r"The result exceeds the size limit 1 MB\."):
            for batch in batches:
                count.add(batch)


@pytest.mark.parametrize(
    ("column", "value", "size"),
    [
        (Column("a", "int4", kind=Kind.INT), -12, 3),
        (Column("a", "bool", kind=Kind.BOOL), True, 1),
        (Column("a", "text", kind=Kind.TEXT), "żółć", 8),
        (Column("a", "bytea", kind=Kind.BYTEA), "\\x00ff10", 3),
        (Column("a", "timestamp", kind=Kind.TIMESTAMP), "2024-01-15 03:34:56", 19),
        (Column("a", "text", kind=Kind.TEXT), None, 0),
        (Column("a", "_int4", kind=ArrayKind(Kind.INT)), [1, None, 22], 12),
    ],
)
def test_a_row_is_its_octets_and_two_and_four_a_field(
    column: Column, value: object, size: int
) -> None:
    rows, rest = divmod(compat.RESULT_BYTES, 2 + 4 + size)
    compat.Count([column]).add([(value,)] * rows)
    with pytest.raises(ResultTooLarge):
        compat.Count([column]).add([(value,)] * (rows + 1))
    assert rest < 6 + size


def test_what_is_within_the_limits_becomes_strict() -> None:
    request = compat.check_execute(execute(a="x", b=Typed(7, "int8"), c=None))
    assert request.statement.strict
    assert request.statement.parameters == {
        "a": Typed("x", "text"),
        "b": Typed(7, "int8"),
        "c": None,
    }


def test_a_list_in_a_batch_is_numbered() -> None:
    batch = ExecuteMany(ASK, "select :a", [{"a": 1}, {"a": Typed([1], "int8[]")}])
    with pytest.raises(InvalidParameter, match="Array parameters are not supported") as caught:
        compat.check_batch(batch)
    assert caught.value.statement == 1


@pytest.mark.parametrize(
    ("ask", "member"),
    [
        (ASK._replace(target="x" * 10), "resourceArn"),
        (ASK._replace(target="x" * 101), "resourceArn"),
        (ASK._replace(secret="x" * 10), "secretArn"),
        (ASK._replace(database="x" * 65), "database"),
    ],
)
def test_names_have_the_lengths_of_the_model(ask: Ask, member: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        compat.check_execute(Execute(ask, Statement("select 1")))
    assert caught.value.field == member


def test_enums_and_domains_of_listed_types_pass() -> None:
    mood, domain = Column("m", "mood", oid=99), Column("d", "int4")
    compat.check_columns([mood, domain, UUID], lambda oid: oid == 99)
    with pytest.raises(AwsCannot, match=r"unsupported data type mood\."):
        compat.check_columns([mood], lambda oid: False)
