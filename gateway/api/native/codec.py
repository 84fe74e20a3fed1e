"""The native dialect's JSON: requests in, answers and problems out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
import orjson

from ...core.errors import GatewayError, InvalidParameter, InvalidRequest, OutcomeUnknown
from ...core.formats.json import Rows, Shape, encode, maker
from ...core.model import (
    Ask,
    Begin,
    Column,
    End,
    Execute,
    ExecuteBatch,
    ExecuteMany,
    Isolation,
    OpenTransaction,
    Parameters,
    Result,
    Statement,
    TransactionMode,
)
from ...core.sets import Sets

Headers = list[tuple[bytes, bytes]]
JSON: Headers = [(b"content-type", b"application/json")]
PROBLEM: Headers = [(b"content-type", b"application/problem+json")]
MAX_PARAMETERS = 32_767
"""The driver's limit."""
_MAX_SETS = 100_000
_MANY_SETS = 64
"""From here on sets are worth a look at whether they are alike."""

_Seconds = Annotated[float, msgspec.Meta(ge=0.001, le=86_400)]
_Values = list[Any] | dict[str, Any] | None
_T = TypeVar("_T")


class _Execute(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    sql: str
    parameters: _Values = None
    target: str | None = None
    database: str | None = None
    transaction: str | None = None
    timeout: _Seconds | None = None
    read_only: bool = False
    rows: Literal["arrays", "objects"] = "arrays"
    max_rows: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] | None = None
    int8: Literal["number", "string"] = "number"


class _Statement(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    sql: str
    parameters: _Values = None


_Level = Literal["read_committed", "repeatable_read", "serializable"]


class _Batch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    statements: list[_Statement] | None = None
    sql: str | None = None
    parameter_sets: list[_Values] | None = None
    target: str | None = None
    database: str | None = None
    transaction: str | None = None
    timeout: _Seconds | None = None
    isolation: _Level | None = None
    read_only: bool = False
    deferrable: bool = False
    rows: Literal["arrays", "objects"] = "arrays"
    int8: Literal["number", "string"] = "number"


class _Begin(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    target: str | None = None
    database: str | None = None
    isolation: _Level | None = None
    read_only: bool = False
    deferrable: bool = False
    idle_timeout: _Seconds | None = None


class ExecuteAs(NamedTuple):
    """A request and how its rows are wanted."""

    request: Execute
    shape: Shape


class BatchAs(NamedTuple):
    """As `ExecuteAs`, for several statements."""

    request: ExecuteBatch | ExecuteMany
    shape: Shape


_read_execute = msgspec.json.Decoder(_Execute).decode
_read_batch = msgspec.json.Decoder(_Batch).decode
_read_begin = msgspec.json.Decoder(_Begin).decode


def _decoded(decode: Callable[[bytes], _T], body: bytes) -> _T:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        field = where.rstrip("`").lstrip(".") or None
        raise InvalidRequest(f"the request does not fit: {reason}", field=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not valid JSON") from None


def _parameters(values: _Values, field: str = "parameters") -> Parameters:
    if values is not None and len(values) > MAX_PARAMETERS:
        raise InvalidParameter(
            f"{len(values)} parameters are more than {MAX_PARAMETERS}", field=field
        )
    return values or None


def _statement(sql: str, values: _Values, field: str = "parameters") -> Statement:
    if "\0" in sql:
        raise InvalidRequest("the SQL text holds the character U+0000", field="sql")
    return Statement(sql, _parameters(values, field))


_PLAIN = Shape()


def _shape(given: _Execute | _Batch) -> Shape:
    if given.rows == "arrays" and given.int8 == "number":
        return _PLAIN
    return Shape(given.rows == "objects", given.int8 == "string")


def read_execute(body: bytes, path: Mapping[str, str]) -> ExecuteAs:
    """`POST /execute`."""
    given = _decoded(_read_execute, body)
    request = Execute(
        Ask(given.target, None, given.database),
        _statement(given.sql, given.parameters),
        given.transaction,
        given.timeout,
        given.read_only,
        given.max_rows,
    )
    return ExecuteAs(request, _shape(given))


def read_batch(body: bytes, path: Mapping[str, str]) -> BatchAs:
    """`POST /batch`."""
    given = _decoded(_read_batch, body)
    ask = Ask(given.target, None, given.database)
    mode = _mode(given)
    if given.transaction is not None and mode != TransactionMode():
        raise InvalidRequest(
            "isolation, read_only and deferrable belong to the transaction",
            field="transaction",
            hint="give them when it begins",
        )
    if given.statements is not None:
        if given.sql is not None or given.parameter_sets is not None:
            raise InvalidRequest(
                "give either statements, or sql and parameter_sets", field="statements"
            )
        statements = [
            _statement(each.sql, each.parameters, f"statements[{index}].parameters")
            for index, each in enumerate(given.statements)
        ]
        request: ExecuteBatch | ExecuteMany = ExecuteBatch(
            ask, statements, given.transaction, given.timeout, mode
        )
    else:
        if given.sql is None or given.parameter_sets is None:
            raise InvalidRequest(
                "give either statements, or sql and parameter_sets", field="statements"
            )
        if len(given.parameter_sets) > _MAX_SETS:
            raise InvalidRequest(f"more than {_MAX_SETS} parameter sets", field="parameter_sets")
        sets: Sequence[Parameters] | None = _alike(given.parameter_sets)
        if sets is None:
            sets = [
                _parameters(each, f"parameter_sets[{index}]")
                for index, each in enumerate(given.parameter_sets)
            ]
        sql = _statement(given.sql, None).sql
        request = ExecuteMany(ask, sql, sets, given.transaction, given.timeout, mode)
    return BatchAs(request, _shape(given))


def _alike(sets: list[_Values]) -> Sets | None:
    """Many *sets* by column, if they have the same names and types of values."""
    first = sets[0] if len(sets) >= _MANY_SETS else None
    if not first or len(first) > MAX_PARAMETERS or set(map(type, sets)) != {type(first)}:
        return None
    names = None
    if isinstance(first, dict):
        names = tuple(first)
        if not all(map(names.__eq__, map(tuple, sets))):  # type: ignore[arg-type]  # all dicts
            return None
        columns = tuple(zip(*map(dict.values, sets), strict=True))  # type: ignore[arg-type]  # likewise
    elif set(map(len, sets)) == {len(first)}:  # type: ignore[arg-type]  # all lists
        columns = tuple(zip(*sets, strict=True))
    else:
        return None
    if any(len(set(map(type, column)) - {NoneType}) > 1 for column in columns):
        return None
    return Sets(names, (None,) * len(columns), columns)


def _mode(given: _Batch | _Begin) -> TransactionMode:
    isolation = Isolation(given.isolation) if given.isolation is not None else None
    return TransactionMode(isolation, given.read_only, given.deferrable)


def read_begin(body: bytes, path: Mapping[str, str]) -> Begin:
    """`POST /transactions`; an empty body asks for the defaults."""
    given = _decoded(_read_begin, body or b"{}")
    return Begin(Ask(given.target, None, given.database), _mode(given), given.idle_timeout)


def read_commit(body: bytes, path: Mapping[str, str]) -> End:
    """`POST /transactions/{id}/commit`."""
    return End(path["id"], True)


def read_rollback(body: bytes, path: Mapping[str, str]) -> End:
    """`POST /transactions/{id}/rollback`."""
    return End(path["id"], False)


def write_columns(columns: Sequence[Column], shape: Shape) -> bytes:
    """Names and types, as a JSON array."""
    if shape.objects and len({column.name for column in columns}) != len(columns):
        raise InvalidRequest(
            "two columns have the same name, which an object cannot hold",
            field="rows",
            hint='ask for "arrays", or name the columns apart with AS',
        )
    return orjson.dumps([{"name": column.name, "type": column.type} for column in columns])


def _transaction(transaction: OpenTransaction | None) -> bytes:
    if transaction is None:
        return b""
    return b',"transaction":' + orjson.dumps(write_open(transaction))


def write_open(transaction: OpenTransaction) -> dict[str, Any]:
    """A transaction that stays open, as every answer from inside it tells of it."""
    return {"id": transaction.id, **_limits(transaction)}


def _limits(transaction: OpenTransaction) -> dict[str, Any]:
    """Until when it stays open: every answer says it."""
    return {
        "expires_at": _moment(transaction.expires_at),
        "idle_timeout": transaction.idle_timeout,
        "ends_at": _moment(transaction.ends_at),
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


class _Form(NamedTuple):
    """How results of the same columns are written."""

    columns: Sequence[Column]
    """Kept, so that their id stays theirs."""
    shape: Shape
    head: bytes
    make: Callable[[Rows], list[Any]]


_forms: dict[int, _Form] = {}
"""By the id of the columns: those of a prepared statement are the same object each time."""
_FORMS_KEPT = 4_096


def _form(columns: Sequence[Column], shape: Shape) -> _Form:
    form = _forms.get(id(columns))
    if form is None or form.columns is not columns or form.shape != shape:
        head = b'{"columns":%b,"rows":' % write_columns(columns, shape)
        form = _Form(columns, shape, head, maker(columns, shape))
        if len(_forms) >= _FORMS_KEPT:
            _forms.clear()
        _forms[id(columns)] = form
    return form


def write_result(result: Result, shape: Shape, transaction: OpenTransaction | None = None) -> bytes:
    """A complete result as one JSON object."""
    if result.columns and not result.notices and not result.truncated and transaction is None:
        # Nearly all are like this: names and types are written once for a statement.
        form = _form(result.columns, shape)
        return b'%b%b,"row_count":%d,"command":%b}' % (
            form.head,
            orjson.dumps(form.make(result.rows)),
            result.row_count,
            orjson.dumps(result.command),
        )
    if not result.columns:
        head = b'{"columns":[],"rows":' + (
            orjson.dumps([{} if shape.objects else [] for _ in result.rows])
        )
    else:
        head = b'{"columns":%b,"rows":%b' % (
            write_columns(result.columns, shape),
            encode(result.columns, result.rows, shape),
        )
    return head + write_tail(
        result.row_count,
        result.command,
        notices=result.notices,
        truncated=result.truncated,
        transaction=transaction,
    )


def write_head(columns: Sequence[Column], shape: Shape) -> bytes:
    """The beginning of a streamed result, up to and with the bracket of its rows."""
    return b'{"columns":%b,"rows":[' % write_columns(columns, shape)


def write_tail(
    row_count: int,
    command: str,
    *,
    notices: Sequence[str] = (),
    truncated: bool = False,
    transaction: OpenTransaction | None = None,
) -> bytes:
    """What follows the rows, their closing bracket not included."""
    tail = b',"row_count":%d,"command":%b' % (row_count, orjson.dumps(command))
    if notices:
        tail += b',"notices":' + orjson.dumps(list(notices))
    if truncated:
        tail += b',"truncated":true'
    return tail + _transaction(transaction) + b"}"


def write_results(
    results: Sequence[Result], shape: Shape, transaction: OpenTransaction | None = None
) -> bytes:
    """The answer to a batch: one result for each statement or set."""
    # Sets alike have results alike, as a rule one and the same.
    written = {id(result): write_result(result, shape) for result in _different(results)}
    parts = b",".join([written[id(result)] for result in results])
    return b'{"results":[' + parts + b"]" + _transaction(transaction) + b"}"


def _different(results: Sequence[Result]) -> Iterable[Result]:
    return dict(zip(map(id, results), results, strict=True)).values()


def write_begin(transaction: OpenTransaction) -> bytes:
    """The answer to `POST /transactions`."""
    return orjson.dumps({"transaction": transaction.id, **_limits(transaction)})


def write_end(commit: bool) -> bytes:
    """The answer to commit and rollback."""
    return b'{"status":"committed"}' if commit else b'{"status":"rolled_back"}'


_EXTRA = (
    "sqlstate", "position", "hint", "constraint", "table", "column", "statement", "line", "field",
)  # fmt: skip


def write_error(error: GatewayError, operation: str) -> tuple[int, Headers, bytes]:
    """*error* as status, headers and an RFC 9457 problem document."""
    problem: dict[str, Any] = {
        "type": f"/docs#{error.code}",
        "title": error.code.replace("_", " "),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
    }
    for name in _EXTRA:
        value = getattr(error, name, None)
        if value is not None:
            problem[name] = value
    if error.transaction is not None:
        problem["transaction"] = write_open(error.transaction)
    if isinstance(error, OutcomeUnknown) and error.key is not None:
        problem["outcome_url"] = "/outcomes/" + quote(error.key, safe="")
    problem["retry"] = error.retry.value
    problem["outcome"] = error.outcome.value
    problem["request_id"] = getattr(error, "request_id", "")
    headers = [*PROBLEM, (b"x-gateway-outcome", error.outcome.value.encode("ascii"))]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="pgsluice"'))
    return error.status, headers, orjson.dumps(problem)
