"""The dialect `postgresql+pgsluice://` of SQLAlchemy 2, for both of its engines.

    create_engine("postgresql+pgsluice://:TOKEN@gateway.example.com/shop")
    create_async_engine("postgresql+pgsluice://")      # PGSLUICE_URL, PGSLUICE_TOKEN

A password alone is a token, with a user it is a key pair. The query string takes what
`pgsluice.connect` takes, `tls=false` and `port`: `?target=main&timeout=10`. All
connections of an engine share one client, so a pool costs the gateway nothing; a
transaction begins with a connection's first statement.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import types, util
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    BYTEA,
    ENUM,
    INTERVAL,
    JSON,
    JSONB,
    OID,
    REGCLASS,
    REGCONFIG,
)
from sqlalchemy.dialects.postgresql import ranges as pg_ranges
from sqlalchemy.dialects.postgresql.base import PGDialect, PGExecutionContext
from sqlalchemy.dialects.postgresql.json import JSONPathType
from sqlalchemy.dialects.postgresql.pg_catalog import INT2VECTOR, OIDVECTOR
from sqlalchemy.util.concurrency import await_, in_greenlet

from . import dbapi
from ._values import Interval, Multirange, Range
from .errors import ConnectionFailed, TransactionGone

Processor = Callable[[Any], Any] | None


def _cast(kind: type[Any], **members: Any) -> type[Any]:
    """*kind* with its type named beside each parameter, so that PostgreSQL need not guess."""
    return type(f"Pgsluice{kind.__name__}", (kind,), {"render_bind_cast": True, **members})


def _number_results(self: Any, dialect: Any, kind: object) -> Processor:
    is_float = isinstance(kind, str) and kind.lstrip("_") in ("float4", "float8")
    if not self.asdecimal:
        return None if is_float else lambda value: value if value is None else float(value)
    if not is_float:
        return lambda value: Decimal(value) if isinstance(value, int) else value
    scale = self._effective_decimal_return_scale
    return lambda value: value if value is None else Decimal(f"{value:.{scale}f}")


def _no_bind(self: Any, dialect: Any) -> Processor:
    return None


def _json_results(self: Any, dialect: Any, kind: object) -> Processor:
    own = dialect._json_deserializer
    if own is None:
        return None
    import json

    return lambda value: value if value is None else own(json.dumps(value))


class _Interval(INTERVAL):
    render_bind_cast = True

    @classmethod
    def adapt_emulated_to_native(cls, interval: Any, **options: Any) -> Any:
        return cls(precision=interval.second_precision)

    def result_processor(self, dialect: Any, coltype: object) -> Processor:
        def read(value: Any) -> Any:
            if not isinstance(value, Interval):
                return value
            # As the other drivers count: a year is 365 days, a month 30.
            years, months = divmod(abs(value.months), 12)
            days = (365 * years + 30 * months) * (-1 if value.months < 0 else 1)
            return timedelta(days=days + value.days, microseconds=value.microseconds)

        return read


def _to_range(value: Any) -> Any:
    if isinstance(value, pg_ranges.Range):
        return Range(value.lower, value.upper, value.bounds, empty=value.empty)
    return value


def _from_range(value: Any) -> Any:
    if isinstance(value, Range):
        bounds: Any = "[)" if value.empty else value.bounds
        return pg_ranges.Range(value.lower, value.upper, bounds=bounds, empty=value.empty)
    return value


class _RangeType(pg_ranges.AbstractSingleRangeImpl):
    def bind_processor(self, dialect: Any) -> Processor:
        return _to_range

    def result_processor(self, dialect: Any, coltype: object) -> Processor:
        return _from_range


class _MultirangeType(pg_ranges.AbstractMultiRangeImpl):
    def bind_processor(self, dialect: Any) -> Processor:
        def write(value: Any) -> Any:
            if value is None or isinstance(value, (str, Multirange)):
                return value
            return Multirange(map(_to_range, value))

        return write

    def result_processor(self, dialect: Any, coltype: object) -> Processor:
        def read(value: Any) -> Any:
            return value if value is None else pg_ranges.MultiRange(map(_from_range, value))

        return read


class _Vector:
    def result_processor(self, dialect: Any, coltype: object) -> Processor:
        return lambda value: list(map(int, value.split())) if isinstance(value, str) else value


class _Int2Vector(_Vector, INT2VECTOR):
    cache_ok = True


class _OidVector(_Vector, OIDVECTOR):
    cache_ok = True


class _Context(PGExecutionContext):
    def create_server_side_cursor(self) -> Any:
        return self._dbapi_connection.cursor(stream=True)


_PLAIN = (
    types.String,
    types.Date,
    types.DateTime,
    types.Time,
    types.Integer,
    types.SmallInteger,
    types.BigInteger,
    types.Boolean,
    types.LargeBinary,
    REGCONFIG,
    REGCLASS,
    OID,
    BYTEA,
)


class Dialect(PGDialect):
    """PostgreSQL through the gateway."""

    driver = "pgsluice"
    supports_statement_cache = True
    supports_server_side_cursors = True
    supports_sane_multi_rowcount = True
    supports_native_json_deserialization = True
    dialect_injects_custom_json_deserializer = False
    default_paramstyle = "numeric_dollar"
    execution_ctx_cls = _Context

    colspecs = util.update_copy(
        PGDialect.colspecs,
        {
            **{kind: _cast(kind) for kind in _PLAIN},
            types.Numeric: _cast(
                types.Numeric, bind_processor=_no_bind, result_processor=_number_results
            ),
            types.Float: _cast(
                types.Float, bind_processor=_no_bind, result_processor=_number_results
            ),
            types.Interval: _Interval,
            INTERVAL: _Interval,
            types.Enum: _cast(ENUM),
            ENUM: _cast(ENUM),
            types.ARRAY: _cast(ARRAY),
            JSON: _cast(JSON, result_processor=_json_results),
            types.JSON: _cast(JSON, result_processor=_json_results),
            JSONB: _cast(JSONB, result_processor=_json_results),
            types.JSON.JSONPathType: JSONPathType,
            types.JSON.JSONIntIndexType: _cast(
                types.JSON.JSONIntIndexType, __visit_name__="json_int_index"
            ),
            types.JSON.JSONStrIndexType: _cast(
                types.JSON.JSONStrIndexType, __visit_name__="json_str_index"
            ),
            pg_ranges.AbstractSingleRange: _RangeType,
            pg_ranges.AbstractMultiRange: _MultirangeType,
            INT2VECTOR: _Int2Vector,
            OIDVECTOR: _OidVector,
        },
    )

    def __init__(self, **options: Any) -> None:
        # SQLAlchemy would take the module's own, and names may hold what `:name` cannot.
        super().__init__(**{"paramstyle": "numeric_dollar", **options})
        self._clients: dict[tuple[Any, ...], Any] = {}

    @classmethod
    def import_dbapi(cls) -> Any:
        """PEP 249's module."""
        return dbapi

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> Any:
        """For `create_async_engine`."""
        return AsyncDialect

    def create_connect_args(self, url: Any) -> Any:
        """What `connect` takes, from the URL of an engine."""
        options = dict(url.query)
        port, tls = options.pop("port", url.port), options.pop("tls", "true")
        if url.host:
            scheme = "https" if str(tls).lower() not in ("false", "off", "0") else "http"
            host = f"[{url.host}]" if ":" in url.host else url.host
            options["url"] = f"{scheme}://{host}" + (f":{port}" if port else "")
        if url.username and url.password:
            options |= {"access_key": url.username, "secret_key": str(url.password)}
        elif url.password:
            options["token"] = str(url.password)
        if url.database:
            options["database"] = url.database
        if "timeout" in options:
            options["timeout"] = float(options["timeout"])
        return [], options

    def connect(self, *arguments: Any, **options: Any) -> Any:
        """A connection; all with the same options share a client."""
        from .sync import Client

        return dbapi.Connection(self._client(Client, options))

    def _client(self, kind: Any, options: dict[str, Any]) -> Any:
        given = tuple(
            sorted(
                (name, id(value) if callable(value) else str(value))
                for name, value in options.items()
            )
        )
        client = options.pop("client", None) or self._clients.get(given)
        if client is None:
            client = self._clients.setdefault(given, kind(**options))
        return client

    def get_isolation_level_values(self, dbapi_connection: Any) -> Any:
        """What `isolation_level` may be."""
        levels = "READ COMMITTED", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE"
        return ("AUTOCOMMIT", *levels)

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        """Of the next transaction."""
        if dbapi_connection.in_transaction:
            dbapi_connection.rollback()
        dbapi_connection.autocommit = level == "AUTOCOMMIT"
        dbapi_connection.isolation_level = None if level == "AUTOCOMMIT" else level

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        """Of the transaction at hand."""
        began = dbapi_connection.in_transaction
        level = super().get_isolation_level(dbapi_connection)
        if not began:
            dbapi_connection.rollback()
        return level

    def detect_autocommit_setting(self, dbapi_connection: Any) -> bool:
        """Whether each statement is a transaction of its own."""
        return bool(dbapi_connection.autocommit)

    def set_readonly(self, connection: Any, value: bool) -> None:
        """Of the next transaction."""
        connection.read_only = value

    def get_readonly(self, connection: Any) -> Any:
        """Of the next transaction."""
        return connection.read_only

    def set_deferrable(self, connection: Any, value: bool) -> None:
        """Of the next transaction."""
        connection.deferrable = value

    def get_deferrable(self, connection: Any) -> Any:
        """Of the next transaction."""
        return connection.deferrable

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Whether the gateway answers; a transaction is not begun for it."""
        client = dbapi_connection.client
        client._run(client._core.execute("select 1", read_only=True))
        return True

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Whether the transaction is lost with the connection."""
        return isinstance(e, (ConnectionFailed, TransactionGone))


class _Waiting:
    """An `AsyncClient` for code that waits in a greenlet of SQLAlchemy's."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._core = client._core

    def _run(self, flow: Any) -> Any:
        return await_(self.client._run(flow))

    def _piece(self, rows: Any, body: Any) -> Any:
        return await_(self.client._piece(rows, body))

    def _stop(self, body: Any) -> None:
        await_(self.client._stop(body))


class _AsyncCursor(dbapi.Cursor):
    async def _async_soft_close(self) -> None:
        """Awaited when a result leaves the greenlet: its rows are all here already."""


class _AsyncConnection(dbapi.Connection):
    def cursor(self, *, stream: bool = False) -> dbapi.Cursor:
        """A new cursor."""
        self._check()
        return _AsyncCursor(self, stream=stream)

    @property
    def driver_connection(self) -> Any:
        """The `AsyncClient`."""
        return self.client.client

    def run_async(self, function: Callable[[Any], Any]) -> Any:
        """Wait for `function(driver_connection)`."""
        return await_(function(self.driver_connection))

    def terminate(self) -> None:
        """Give it up; outside of a greenlet the gateway ends what is open, when it is idle."""
        if in_greenlet():
            self.close()
        else:
            self._transaction, self.closed = None, True


class AsyncDialect(Dialect):
    """The same for `create_async_engine`."""

    is_async = True
    has_terminate = True
    supports_statement_cache = True

    def connect(self, *arguments: Any, **options: Any) -> Any:
        """A connection; all with the same options share a client."""
        from .aio import AsyncClient

        return _AsyncConnection(_Waiting(self._client(AsyncClient, options)))

    def get_driver_connection(self, connection: Any) -> Any:
        """The `AsyncClient`."""
        return connection.driver_connection

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Give the connection up."""
        dbapi_connection.terminate()
