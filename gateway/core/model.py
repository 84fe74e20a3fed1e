"""The words of the house: statement, parameter, column, result, principal, grant.

Every dialect reads its requests into these types and writes its answers from
them; the engine and the drivers speak nothing else.

    >>> Statement("select :id::int", {"id": 7}).parameters
    {'id': 7}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from .idempotency import Keyed

Json = Any
"""A value as `orjson.loads` gives it."""


class Typed(NamedTuple):
    """A parameter value of which the caller says what type it is.

    `type` is a type name such as `int8`, `float8`, `bool`, `bytea`, `uuid`. The type that
    PostgreSQL infers comes first, if the value fits it: so a timestamp goes into a
    timestamptz, and an int8 into an int4. Where it infers text or none, `type` counts.
    """

    value: Json
    type: str


Parameters = Sequence[Any] | Mapping[str, Any] | None
"""A sequence for `$1 …`, a mapping for `:name`, `None` for neither.

A value is JSON (`None`, bool, int, float, str, list, dict) or `Typed`.
"""


class Statement(NamedTuple):
    """One SQL statement as the caller wrote it, and its values."""

    # NamedTuple, not a frozen dataclass: made for every request, 0.25 µs against 0.58 µs.
    sql: str
    parameters: Parameters = None
    strict: bool = False
    """Values keep the types they are given with, each occurrence of a name is bound by
    itself, and nothing is inferred: as AWS binds named parameters."""
    verbatim: bool = False
    """Strings for bytea are in PostgreSQL's own syntax, not base64."""


class Kind(Enum):
    """How the driver hands a value over, and so how an encoder must treat it."""

    BOOL = "bool"  # Python bool
    INT = "int"  # Python int: int2, int4, int8, oid
    FLOAT8 = "float8"  # Python float
    FLOAT4 = "float4"  # str, shortest digits, also NaN and Infinity
    NUMERIC = "numeric"  # str, scale kept
    TEXT = "text"  # str, PostgreSQL's own text
    JSON = "json"  # str holding JSON
    BYTEA = "bytea"  # str: \x and hex digits
    DATE = "date"  # str, ISO
    TIMESTAMP = "timestamp"  # str, ISO, a blank between date and time
    TIMESTAMPTZ = "timestamptz"  # str, as TIMESTAMP and +00


class ArrayKind(NamedTuple):
    """An array of *element*; values are (nested) lists of what the element gives."""

    element: Kind


class Column(NamedTuple):
    """One column of a result, as PostgreSQL describes it."""

    name: str
    type: str
    """`pg_type.typname`: `int8`, `_text`, `mood`; a domain is its base type."""
    oid: int = 0
    """`pg_type.oid` of that type."""
    kind: Kind | ArrayKind = Kind.TEXT
    table_oid: int = 0
    """`pg_class.oid` of the table a plain column comes from, else 0."""
    attribute: int = 0
    """`pg_attribute.attnum` in that table, else 0."""
    typmod: int = -1


class Result(NamedTuple):
    """What one statement gave, complete in memory."""

    columns: tuple[Column, ...]
    """Empty if PostgreSQL sent no row description."""
    rows: Sequence[Sequence[Any]]
    """Values as the `Kind` of their column says; `None` is SQL NULL."""
    row_count: int
    """From the command tag; 0 where it holds no number."""
    command: str
    """The first words of the command tag: `SELECT`, `INSERT`, `CREATE TABLE`."""
    has_rows: bool
    """Whether PostgreSQL sent a row description (also of zero columns)."""
    notices: tuple[str, ...] = ()
    truncated: bool = False


class Isolation(Enum):
    """Transaction isolation levels of PostgreSQL, by their wire name."""

    READ_COMMITTED = "read_committed"
    REPEATABLE_READ = "repeatable_read"
    SERIALIZABLE = "serializable"


class TransactionMode(NamedTuple):
    """How a transaction begins."""

    isolation: Isolation | None = None
    read_only: bool = False
    deferrable: bool = False


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, proved by a signature or a token."""

    kind: str
    """`key`, `temp-key`, `iam`, `jwt`, or `gateway`."""
    subject: str
    """Stable id: key name, role ARN, or issuer and subject."""
    issuer: str = "gateway"
    session: str | None = None
    """For logs only, never for authorisation."""
    claims: Mapping[str, Json] = field(default_factory=dict)
    expires_at: float | None = None
    """Seconds since the epoch."""
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one grant may use."""

    statement: float = 45.0
    """Seconds one statement may take, queue included."""
    response_bytes: int = 16 * 1024 * 1024
    """Bytes of a result that must be held in memory, such as RETURNING of a write."""
    rows: int = 0
    """Rows of one result, the rest is left out and the answer says so; 0 is any number."""
    stream: float = 3_600.0
    """Seconds one stream may take, from its first rows on."""
    stream_bytes: int = 0
    """Bytes of one streamed result, as PostgreSQL sends them; 0 is any number."""
    priority: str = "normal"
    """`normal` or `batch`: what is batch waits while others want a turn."""
    rps: float = 0.0
    """Requests one principal may send each second; 0 is any number."""
    burst: float = 0.0
    """Requests at once on top of a pause; 0 is as many as in one second."""
    concurrency: int = 0
    """Statements and transactions of one tenant under way at once; 0 is any number."""


class Claims(NamedTuple):
    """What of a caller's identity its statements can see in the database."""

    mode: str
    """`sealed`, or `guc` as PostgREST has them."""
    text: str
    """A JSON object."""
    role: str | None = None
    """With `guc`: a role to put on."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a principal may do on one target, decided by the policy."""

    target: str
    login: str
    database: str | None = None
    read_only: bool = False
    tenant: str = ""
    """Who is charged for a turn in the queue."""
    statements: str = "any"
    """`any`, `dml` or `listed`."""
    limits: Limits = field(default_factory=Limits)
    listed: frozenset[str] = frozenset()
    """With `listed`: SHA-256 of each text that may run, in hex."""
    tables: tuple[str, ...] = ()
    """Tables that statements may name, if any are listed."""
    verbs: tuple[str, ...] = ()
    """What statements may do, if anything is listed."""
    claims: Claims | None = None
    """What is sent with each statement, for row-level security."""


class Ask(NamedTuple):
    """What a caller names before anything is known of it: looked up, never dialled."""

    target: str | None = None
    """A target's name or its resource ARN; `None` is the only or the default one."""
    secret: str | None = None
    """A login's name or its secret ARN; `None` is the policy's."""
    database: str | None = None


class Execute(NamedTuple):
    """Run one statement."""

    ask: Ask
    statement: Statement
    transaction: str | None = None
    timeout: float | None = None
    """Seconds, the caller's own limit for the statement."""
    read_only: bool = False
    max_rows: int | None = None
    schema: str | None = None
    """A search_path for this statement alone."""


class ExecuteBatch(NamedTuple):
    """Run several statements in one transaction: all or nothing."""

    ask: Ask
    statements: Sequence[Statement]
    transaction: str | None = None
    timeout: float | None = None
    mode: TransactionMode = TransactionMode()
    schema: str | None = None


class ExecuteMany(NamedTuple):
    """Run one statement once for each set of parameters, in one transaction."""

    ask: Ask
    sql: str
    sets: Sequence[Parameters]
    transaction: str | None = None
    timeout: float | None = None
    mode: TransactionMode = TransactionMode()
    schema: str | None = None
    counts: bool = True
    """Whether the caller wants the row count of each set; without, they are pipelined."""
    strict: bool = False
    """As in `Statement`."""
    verbatim: bool = False
    """As in `Statement`."""


class Begin(NamedTuple):
    """Open a transaction that lives across requests."""

    ask: Ask
    mode: TransactionMode = TransactionMode()
    idle_timeout: float | None = None
    """Seconds without a call after which it is rolled back."""
    schema: str | None = None


class End(NamedTuple):
    """Commit or roll back."""

    transaction: str
    commit: bool
    ask: Ask = Ask()


class OpenTransaction(NamedTuple):
    """An open transaction as its owner sees it."""

    id: str
    expires_at: float
    """Seconds since the epoch: when it is rolled back if nobody calls."""
    idle_timeout: float
    """Seconds that may pass between two calls."""
    ends_at: float
    """Seconds since the epoch: when it is rolled back whatever happens."""


class Known(Protocol):
    """What is known of a statement's text."""

    @property
    def fingerprint(self) -> str:
        """Hash of the statement without its values."""
        ...


@dataclass(slots=True)
class Call:
    """The circumstances of one request, besides what it asks for."""

    request_id: str
    deadline: float
    """Event-loop time by which the caller must have an answer."""
    received: float
    """Event-loop time at which the request was complete."""
    committing: bool = False
    """COMMIT is on its way: nothing may interrupt the call now."""
    continues: bool = False
    """Its statement may go on after its caller was told of a timeout."""
    backend: int | None = None
    """Process id of the backend that works for it, once there is one."""
    vet: Callable[[Any, Result], None] | None = None
    """Sees the connection and the result of a write before it is committed; what it raises
    undoes the write."""
    cancelled: bool = False
    """Somebody asked for its end."""
    passed_on: bool = False
    """Another node passed it on to this one, which passes it on to nobody."""
    elsewhere: bool = False
    """It runs on another node, to which this one passed it on."""
    cancel_reason: str = "request"
    """Who it was: its principal by a request, or `drain`."""
    in_doubt: bool = False
    """What runs may take effect in part even if it is stopped."""
    target: str | None = None
    """Whose connection it was given."""
    started: float = 0.0
    """Event-loop time at which it had its connection."""
    queued: float = 0.0
    """Seconds spent waiting for a turn and a connection."""
    connecting: float = 0.0
    """Seconds spent waiting for a connection once it had its turn."""
    running: float = 0.0
    """Seconds spent in the database."""
    done: float = 0.0
    """Time of a finer clock, `perf_counter`, at which the answer could be written."""
    form: str = ""
    """What rows are wanted as, where PostgreSQL itself can help: `csv`, `arrow`, or nothing."""
    text: bool = False
    """Rows can be written from the text of COPY as well."""
    keyed: Keyed | None = None
    """The caller's idempotency key, if it sent one."""
    must_read: bool = False
    """It is signed, its idempotency key is not, and the gateway asks for that of writes."""
    idempotency: str | None = None
    """What the key was worth: `database`, `memory` or `none`."""
    replayed: bool = False
    """The answer is that of an earlier request with the same key."""
    asked: str | None = None
    """The target that it named, in the caller's words."""
    grant: Grant | None = None
    """What its principal may do where it went; `None` until that is known."""
    statements: Sequence[Known] = ()
    """What it was asked to run, as far as it was allowed to."""
    rows: int | None = None
    """Rows that its statements returned or changed, where they are counted."""
    comment: str = ""
    """A comment that names the caller's trace, for targets whose statements are to carry it."""
