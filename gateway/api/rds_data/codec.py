"""The Data API dialect: request bytes to the words of the house, answers and errors to bytes.

Pure functions without I/O. What is read and written is that of the service model
`rds-data/2018-08-01`; an unmodified AWS SDK is the other side. Members that the model does
not know are ignored in requests and added in errors, where SDKs pass them on or drop them.

    >>> execute, options = read_execute(
    ...     b'{"resourceArn":"main","secretArn":"app","sql":"select :a",'
    ...     b'"parameters":[{"name":"a","value":{"longValue":7}}]}')
    >>> execute.statement.parameters
    {'a': Typed(value=7, type='int8')}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from math import isfinite
from operator import is_
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import astuple

from ...core.errors import GatewayError, InvalidParameter, InvalidRequest
from ...core.model import Ask, Begin, Column, End, Execute, Result, Statement, Typed
from ...core.sets import Sets
from . import bulk
from .cells import Choices, Encode, cell_kinds, formatted_encoder, row_encoder
from .failures import write_error as write_error
from .hints import HINTS, hinted

ColumnMeta = Mapping[str, Any]
"""One `ColumnMetadata`, as `metadata.column_metadata` makes it."""

SetOfParameters = dict[str, Any] | None
"""Values by name; `None` where the caller gave none."""


class ExecuteOptions(NamedTuple):
    """How the caller of ExecuteStatement wants its answer."""

    include_metadata: bool = False
    decimal_return: str = "STRING"
    """`STRING` or `DOUBLE_OR_LONG`."""
    long_return: str = "LONG"
    """`LONG` or `STRING`."""
    format_json: bool = False
    """`formattedRecords`, one JSON text, in place of `records`."""
    continue_after_timeout: bool = False

    @property
    def choices(self) -> Choices:
        """The part that decides how a cell is written."""
        return Choices(self.decimal_return, self.long_return)


class BatchOfSets(NamedTuple):
    """BatchExecuteStatement: one statement, run once for each set."""

    ask: Ask
    sql: str
    parameter_sets: Sequence[SetOfParameters] | Sets
    """May be empty: then nothing runs."""
    transaction: str | None
    schema: str | None


# --- requests -------------------------------------------------------------------------------


class _ArrayValue(msgspec.Struct, gc=False):
    booleanValues: list[bool | None] | None = None
    longValues: list[int | None] | None = None
    doubleValues: list[float | str | None] | None = None
    stringValues: list[str | None] | None = None
    arrayValues: list[_ArrayValue] | None = None


class _Field(msgspec.Struct, gc=False):
    isNull: bool | None = None
    booleanValue: bool | None = None
    longValue: int | None = None
    doubleValue: float | str | None = None
    stringValue: str | None = None
    blobValue: bytes | None = None
    arrayValue: _ArrayValue | None = None


class _Parameter(msgspec.Struct, gc=False):
    name: str | None = None
    value: _Field | None = None
    typeHint: str | None = None


class _ResultSetOptions(msgspec.Struct, gc=False):
    decimalReturnType: str | None = None
    longReturnType: str | None = None


class _Request(msgspec.Struct, gc=False):
    resourceArn: str | None = None
    secretArn: str | None = None


class _Begin(_Request, gc=False):
    database: str | None = None
    schema: str | None = None


class _End(_Request, gc=False):
    transactionId: str | None = None


class _Execute(_Request, gc=False):
    sql: str | None = None
    database: str | None = None
    schema: str | None = None
    transactionId: str | None = None
    parameters: list[_Parameter] | None = None
    includeResultMetadata: bool | None = None
    continueAfterTimeout: bool | None = None
    resultSetOptions: _ResultSetOptions | None = None
    formatRecordsAs: str | None = None


class _Batch(_Request, gc=False):
    sql: str | None = None
    database: str | None = None
    schema: str | None = None
    transactionId: str | None = None
    parameterSets: list[list[_Parameter]] | None = None


_decode_execute = msgspec.json.Decoder(_Execute).decode
_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_set = msgspec.json.Decoder(list[_Parameter]).decode
_decode_begin = msgspec.json.Decoder(_Begin).decode
_decode_end = msgspec.json.Decoder(_End).decode

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_AT = re.compile(r" - at `\$\.?(.*)`$")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_T = TypeVar("_T")


def _decoded(decode: Callable[[bytes], _T], body: bytes) -> _T:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        at = _AT.search(text)
        what = (text[: at.start()] if at else text).replace("`", "")
        field = at.group(1) if at else None
        where = f"Value at '{field}'" if field else "The request body"
        raise InvalidParameter(
            f"1 validation error detected: {where} failed to satisfy constraint: {what}",
            field=field,
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("The request body is not valid JSON in UTF-8") from error
    except RecursionError as error:
        raise InvalidRequest("The request body is nested too deeply") from error


def _required(value: str | None, field: str) -> str:
    if value is None:
        raise InvalidParameter(
            f"1 validation error detected: Value null at '{field}' failed to satisfy "
            "constraint: Member must not be null",
            field=field,
        )
    return value


def _one_of(value: str | None, field: str, allowed: tuple[str, ...]) -> str:
    """*value*, or the first of *allowed* if there is none."""
    if value is None:
        return allowed[0]
    if value not in allowed:
        raise InvalidParameter(
            f"1 validation error detected: Value at '{field}' failed to satisfy constraint: "
            f"Member must satisfy enum value set: [{', '.join(allowed)}]",
            field=field,
        )
    return value


def _ask(request: _Request | bulk.Alike, database: str | None) -> Ask:
    return Ask(
        _required(request.resourceArn, "resourceArn"),
        _required(request.secretArn, "secretArn"),
        database or None,
    )


def _sql(sql: str | None) -> str:
    text = _required(sql, "sql")
    if "\0" in text:
        # It would end the text early in PostgreSQL's protocol.
        raise InvalidParameter("sql contains a NUL character", field="sql")
    return text


def read_execute(body: bytes) -> tuple[Execute, ExecuteOptions]:
    """An ExecuteStatement request, and how its answer is to be written.

    Raises:
        InvalidRequest: The body is not JSON.
        InvalidParameter: A member is missing, of a wrong type or malformed.
    """
    request = _decoded(_decode_execute, body)
    ask = _ask(request, request.database)
    statement = Statement(_sql(request.sql), _values(request.parameters), verbatim=True)
    numbers = request.resultSetOptions or _NO_OPTIONS
    options = ExecuteOptions(
        include_metadata=request.includeResultMetadata is True,
        decimal_return=_one_of(
            numbers.decimalReturnType,
            "resultSetOptions.decimalReturnType",
            ("STRING", "DOUBLE_OR_LONG"),
        ),
        long_return=_one_of(
            numbers.longReturnType, "resultSetOptions.longReturnType", ("LONG", "STRING")
        ),
        format_json=_one_of(request.formatRecordsAs, "formatRecordsAs", ("NONE", "JSON")) == "JSON",
        continue_after_timeout=request.continueAfterTimeout is True,
    )
    execute = Execute(
        ask, statement, transaction=request.transactionId, schema=request.schema or None
    )
    return execute, options


def read_batch(body: bytes) -> BatchOfSets:
    """A BatchExecuteStatement request.

    No `parameterSets` means no runs: AWS runs the statement once for each set.
    """
    alike = bulk.read_alike(body, _read_set) if len(body) >= bulk.LEAST else None
    request: bulk.Alike | _Batch = alike[0] if alike is not None else _decoded(_decode_batch, body)
    ask = _ask(request, request.database)
    sql = _sql(request.sql)
    if alike is not None:
        return BatchOfSets(ask, sql, alike[1], request.transactionId, request.schema or None)
    sets: list[SetOfParameters] = []
    names: set[str] = set()
    for index, parameters in enumerate(request.parameterSets or ()):
        try:
            sets.append(_values(parameters, names))
        except InvalidParameter as error:
            error.statement = index
            raise
    return BatchOfSets(ask, sql, sets, request.transactionId, request.schema or None)


def _read_set(text: bytes) -> SetOfParameters:
    try:
        return _values(_decode_set(text))
    except GatewayError as error:
        raise ValueError from error


def read_begin(body: bytes) -> Begin:
    """A BeginTransaction request."""
    request = _decoded(_decode_begin, body)
    return Begin(_ask(request, request.database), schema=request.schema or None)


def read_end(body: bytes, commit: bool) -> End:
    """A CommitTransaction or a RollbackTransaction request."""
    request = _decoded(_decode_end, body)
    ask = _ask(request, None)
    return End(_required(request.transactionId, "transactionId"), commit, ask)


_NO_OPTIONS = _ResultSetOptions()


def _values(parameters: list[_Parameter] | None, good: set[str] | None = None) -> SetOfParameters:
    """Values by name; no parameters at all are `None`, so that nothing is rewritten.

    Args:
        good: Names that were looked at before, of a request with many sets.
    """
    if not parameters:
        return None
    values: dict[str, Any] = {}
    for parameter in parameters:
        name = parameter.name
        if good is not None and name in good and parameter.typeHint is None:
            # What masses of values are: a string or a number, at a third of the price.
            field = parameter.value
            given = astuple(field) if field is not None and name not in values else ()
            if given.count(None) == 6:
                number, string = given[2], given[4]
                if string is not None:
                    values[name] = string
                    continue
                if number is not None and _INT64_MIN <= number <= _INT64_MAX:
                    values[name] = Typed(number, "int8")
                    continue
        if name is None:
            raise InvalidParameter("A parameter has no name", field="parameters.name")
        if good is None or name not in good:
            if not _NAME.fullmatch(name):
                raise InvalidParameter(
                    f"Named parameter syntax is invalid, input: {name[:100]}", field=name[:100]
                )
            if good is not None:
                good.add(name)
        if name in values:
            raise InvalidParameter(f'Parameter "{name}" is given more than once', field=name)
        values[name] = _value(name, parameter)
    return values


def _value(name: str, parameter: _Parameter) -> Any:
    field = parameter.value
    if field is None:
        raise InvalidParameter(f'Parameter "{name}" has no value', field=name)
    given = 7 - astuple(field).count(None)
    if given != 1 or field.isNull is False:
        problem = "no field set" if given == 0 else "more than one field set"
        if given == 1:
            problem = "isNull set to false and no other field"
        raise InvalidParameter(f'Parameter "{name}" has value with {problem}', field=name)
    hint = parameter.typeHint
    if hint is not None and hint not in HINTS:
        _one_of(hint, f"parameters.{name}.typeHint", tuple(HINTS))
    if field.stringValue is not None:
        return field.stringValue if hint is None else hinted(name, field.stringValue, hint)
    if field.longValue is not None:
        return Typed(_long(name, field.longValue), "int8")
    if field.isNull is not None:
        return None
    if field.booleanValue is not None:
        return Typed(field.booleanValue, "bool")
    if field.doubleValue is not None:
        return Typed(_double(name, field.doubleValue), "float8")
    if field.blobValue is not None:
        return Typed("\\x" + field.blobValue.hex(), "bytea")
    assert field.arrayValue is not None
    values = _array(name, field.arrayValue)
    return Typed(values, _array_type(field.arrayValue))


def _long(name: str, value: int) -> int:
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise InvalidParameter(f'Parameter "{name}": longValue exceeds 64 bits', field=name)
    return value


def _double(name: str, value: float | str) -> float | str:
    if isinstance(value, str):
        if value not in ("NaN", "Infinity", "-Infinity"):
            raise InvalidParameter(
                f'Parameter "{name}": doubleValue must be a number, '
                '"NaN", "Infinity" or "-Infinity"',
                field=name,
            )
        return value
    if not isfinite(value):
        raise InvalidParameter(f'Parameter "{name}": doubleValue is out of range', field=name)
    return value


def _array_type(value: _ArrayValue) -> str:
    """The type of an array for a place where PostgreSQL infers none."""
    while value.arrayValues:
        value = value.arrayValues[0]
    if value.longValues is not None:
        return "int8[]"
    if value.doubleValues is not None:
        return "float8[]"
    return "bool[]" if value.booleanValues is not None else "text[]"


def _array(name: str, value: _ArrayValue) -> list[Any]:
    """An `arrayValue` as a (nested) list of plain values."""
    members = (
        value.booleanValues,
        value.longValues,
        value.doubleValues,
        value.stringValues,
        value.arrayValues,
    )
    if members.count(None) != 4:
        problem = "no field set" if members.count(None) == 5 else "more than one field set"
        raise InvalidParameter(f'Parameter "{name}" has arrayValue with {problem}', field=name)
    if value.longValues is not None:
        return [None if item is None else _long(name, item) for item in value.longValues]
    if value.doubleValues is not None:
        return [None if item is None else _double(name, item) for item in value.doubleValues]
    if value.arrayValues is not None:
        return [_array(name, item) for item in value.arrayValues]
    return list(
        value.booleanValues if value.booleanValues is not None else value.stringValues or ()
    )


# --- answers --------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode


class Frame(NamedTuple):
    """An ExecuteStatement answer with rows, to be sent in pieces.

    `head`, then each batch that `rows` makes, with a comma between batches that are not
    empty, then `tail`.
    """

    head: bytes
    rows: Encode
    tail: bytes


def check_labels(columns: Sequence[Column]) -> list[str]:
    """The labels of *columns*, which must differ to be the keys of an object.

    Raises:
        InvalidParameter: Two of them are the same.
    """
    labels = [column.name for column in columns]
    if len(set(labels)) != len(labels):
        raise InvalidParameter(
            "formatRecordsAs JSON needs a different label for each column",
            field="formatRecordsAs",
        )
    return labels


def frame(
    columns: Sequence[Column],
    options: ExecuteOptions,
    metadata: Sequence[ColumnMeta] | None = None,
) -> Frame:
    """How a result of *columns* is written.

    Args:
        metadata: One entry for each column; used only where the caller asked for it.

    Raises:
        InvalidParameter: JSON was asked for, and two columns have the same label.
    """
    kinds = cell_kinds(columns)
    if options.format_json:
        labels = check_labels(columns)
        rows = formatted_encoder(labels, kinds, options.choices)
        return Frame(b'{"numberOfRecordsUpdated":0,"formattedRecords":"[', rows, b']"}')
    described = b""
    if options.include_metadata and metadata is not None:
        described = b'"columnMetadata":' + _encode(metadata) + b","
    head = b'{"numberOfRecordsUpdated":0,' + described + b'"records":['
    return Frame(head, row_encoder(kinds, options.choices), b"]}")


def write_execute(
    result: Result, options: ExecuteOptions, metadata: Sequence[ColumnMeta] | None = None
) -> bytes:
    """The answer to ExecuteStatement.

    Clients tell a query from a command by which members are there, so these depend on
    one thing alone: whether PostgreSQL described rows.
    """
    if not result.has_rows:
        return b'{"generatedFields":[],"numberOfRecordsUpdated":%d}' % result.row_count
    pieces = frame(result.columns, options, metadata)
    return pieces.head + pieces.rows(result.rows) + pieces.tail


def write_batch(results: Sequence[Result]) -> bytes:
    """The answer to BatchExecuteStatement, one entry for each set.

    Beyond AWS: the first row that a set returned is in `generatedFields`.
    """
    if results and all(map(is_, results, repeat(results[0]))):
        written = [_update_result(results[0])] * len(results)
    else:
        written = [_update_result(each) for each in results]
    return b'{"updateResults":[' + b",".join(written) + b"]}"


def _update_result(result: Result) -> bytes:
    # No counts: a batch runs as one pipeline, in which they are not known for each set.
    if not result.has_rows or not result.rows:
        return b'{"generatedFields":[]}'
    return b'{"generatedFields":%b}' % row_encoder(cell_kinds(result.columns))(result.rows[:1])


def write_begin(transaction: str) -> bytes:
    """The answer to BeginTransaction."""
    return _encode({"transactionId": transaction})


def write_commit() -> bytes:
    """The answer to CommitTransaction; drivers compare the text."""
    return b'{"transactionStatus":"Transaction Committed"}'


def write_rollback() -> bytes:
    """The answer to RollbackTransaction."""
    return b'{"transactionStatus":"Rollback Complete"}'
