"""Where AWS stops: its limits and refusals, for targets with `compat = "aws"`.

A gateway in CI has to fail where production would. Without this switch none of it
applies. What is refused, and in which words, is that of Aurora PostgreSQL's Data API as
its users recorded it; where nobody has seen the words, the refusal is ours alone.

    >>> check_execute(Execute(Ask(), Statement("select 1"), schema="other"))
    Traceback (most recent call last):
    ...
    gateway.core.errors.InvalidParameter: The schema parameter isn't supported

Source: Amazon Aurora User Guide, "Limitations for the Amazon RDS Data API" and
"Comparison of RDS Data API for Aurora Serverless v2 and provisioned".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.errors import AwsCannot, InvalidParameter, ResultTooLarge
from ...core.model import (
    ArrayKind,
    Ask,
    Begin,
    Column,
    End,
    Execute,
    ExecuteMany,
    Kind,
    Parameters,
    Statement,
    Typed,
)

RESULT_BYTES = 1 << 20
"""Octets of all fields, 2 for each row, and 4 for each field."""
FORMATTED_BYTES = 10 << 20
"""Of the string `formattedRecords`."""
SQL_CHARACTERS = 65_536
_ARN_CHARACTERS = (11, 100)
_DATABASE_CHARACTERS = 64
_TRANSACTION_CHARACTERS = 192

IsEnum = Callable[[int], bool]
"""Whether the type of this oid is an enum."""

SCALARS = frozenset({
    "bool", "bytea", "date", "cidr", "numeric", "float8", "inet", "int2", "int4", "int8", "json",
    "jsonb", "float4", "text", "bpchar", "varchar", "name", "time", "timestamp", "uuid", "vector",
    # Not listed by AWS, and yet seen in answers of its service.
    "timestamptz", "oid", "int4range", "numrange", "void",
})  # fmt: skip
"""Types that a result may hold; enums besides."""
ELEMENTS = frozenset({
    "bool", "bit", "date", "numeric", "float8", "int2", "int4", "int8", "json", "float4", "text",
    "bpchar", "varchar", "name", "time", "timestamp", "uuid",
})  # fmt: skip
"""Types of which a result may hold arrays."""

_SPELT = {"char": '"CHAR"', "interval": "INTERVAL", "timetz": "TIMETZ", "point": "POINT"}
_MOMENTS = frozenset({Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ})
_INFINITE = frozenset({"infinity", "-infinity"})


def _length(value: str | None, member: str, least: int, most: int) -> None:
    if value is not None and not least <= len(value) <= most:
        side = (
            f"less than or equal to {most}"
            if len(value) > most
            else f"greater than or equal to {least}"
        )
        raise InvalidParameter(
            f"1 validation error detected: Value at '{member}' failed to satisfy constraint: "
            f"Member must have length {side}",
            field=member,
        )


def _check(
    ask: Ask, schema: str | None = None, transaction: str | None = None, sql: str | None = None
) -> None:
    _length(ask.target, "resourceArn", *_ARN_CHARACTERS)
    _length(ask.secret, "secretArn", *_ARN_CHARACTERS)
    _length(ask.database, "database", 0, _DATABASE_CHARACTERS)
    _length(transaction, "transactionId", 0, _TRANSACTION_CHARACTERS)
    _length(sql, "sql", 0, SQL_CHARACTERS)
    if schema is not None:
        raise InvalidParameter("The schema parameter isn't supported", field="schema")


def _as_bound(parameters: Parameters, index: int | None = None) -> Parameters:
    """*parameters* with the types that AWS gives them, whatever the statement would want."""
    if not isinstance(parameters, Mapping):
        return parameters
    typed: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, Typed) and value.type.endswith("[]"):
            refused = InvalidParameter("Array parameters are not supported", field=name)
            refused.statement = index
            raise refused
        typed[name] = Typed(value, "text") if isinstance(value, str) else value
    return typed


def check_execute(request: Execute) -> Execute:
    """The request as AWS would run it.

    Raises:
        InvalidParameter: AWS would refuse it.
    """
    statement = request.statement
    _check(request.ask, request.schema, request.transaction, statement.sql)
    parameters = _as_bound(statement.parameters)
    return request._replace(statement=Statement(statement.sql, parameters, strict=True))


def check_batch(request: ExecuteMany) -> ExecuteMany:
    """As `check_execute`, for a batch."""
    _check(request.ask, request.schema, request.transaction, request.sql)
    sets = [_as_bound(each, index) for index, each in enumerate(request.sets)]
    return request._replace(sets=sets, strict=True)


def check_begin(request: Begin) -> None:
    """As `check_execute`, for the begin of a transaction."""
    _check(request.ask, request.schema)


def check_end(request: End) -> None:
    """As `check_execute`, for the end of a transaction."""
    _check(request.ask, transaction=request.transaction)


def check_columns(columns: Sequence[Column], is_enum: IsEnum) -> None:
    """Refuse types that AWS cannot return.

    Raises:
        AwsCannot: There is one among *columns*.
    """
    for column in columns:
        name = column.type
        if isinstance(column.kind, ArrayKind) and name.startswith("_"):
            allowed = name[1:] in ELEMENTS
        else:
            allowed = name in SCALARS or is_enum(column.oid)
        if not allowed:
            spelt = _SPELT.get(name, name)
            raise AwsCannot(f"The result contains the unsupported data type {spelt}.")


class Count:
    """What the rows of one result come to, checked as they arrive."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._sizes = [_size_of(column) for column in columns]
        self._each = 2 + 4 * len(columns)
        self._total = 0

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Take *rows* in.

        Raises:
            ResultTooLarge: All of them are more than AWS returns.
            AwsCannot: There is a value that AWS cannot return.
        """
        total = self._total
        for row in rows:
            total += self._each
            for size, value in zip(self._sizes, row, strict=True):
                if value is not None:
                    total += size(value)
            if total > RESULT_BYTES:
                raise ResultTooLarge("The result exceeds the size limit 1 MB.")
        self._total = total


def _size_of(column: Column) -> Callable[[Any], int]:
    kind = column.kind
    if isinstance(kind, ArrayKind):
        return _array
    if kind is Kind.BYTEA:
        return lambda value: len(value) // 2 - 1
    return _moment if kind in _MOMENTS else _text


def _text(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    return 1 if isinstance(value, bool) else len(str(value))


def _moment(value: str) -> int:
    if value in _INFINITE:
        raise AwsCannot("", aws_name="InternalFailure")
    return len(value)


def _array(values: Sequence[Any]) -> int:
    total = 2
    for value in values:
        if isinstance(value, (list, tuple)):
            raise AwsCannot("The result contains a multidimensional array")
        total += 1 + (4 if value is None else _text(value))
    return total


def check_formatted(size: int) -> None:
    """Refuse a `formattedRecords` of more bytes than AWS returns."""
    if size > FORMATTED_BYTES:
        raise ResultTooLarge("The formatted result exceeds the size limit 10 MB.")
