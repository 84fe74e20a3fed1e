"""The client for ordinary code: one call, one statement, one answer.

    with connect() as db:                            # PGSLUICE_URL, PGSLUICE_TOKEN
        db.execute("insert into notes (text) values (:t)", {"t": "hello"})
        with db.transaction() as tx:
            left = tx.scalar("select quantity from stock where id = $1 for update", [7])
            tx.execute("update stock set quantity = $1 where id = 7", [left - 1])

What a call does is in `_core`, how bytes travel in `_http`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ._core import Core, Flow, Flows, Send, Streaming, TransactionFlows
from ._http import Http, NoAnswer
from ._protocol import Parameters
from ._result import Column, Result
from .errors import Error

if TYPE_CHECKING:
    from types import TracebackType

    from ._core import Isolation
    from ._http import Body
    from ._values import Types

T = TypeVar("T")


class Statements:
    """What a client and a transaction have in common: ways to run statements."""

    _flows: Flows
    _http: Http

    def execute(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
        max_rows: int | None = None,
        key: str | None = None,
    ) -> Result:
        """Run one statement; return its rows and what it did.

        Args:
            params: A list for `$1 …`, a dict for `:name`.
            timeout: Seconds, retries included.
            read_only: PostgreSQL refuses a write then, and a lost answer is asked for again.
            max_rows: Rows after which the result is cut off, and says so in `truncated`.
            key: Idempotency key; else a new one. Not in a transaction.
        """
        return self._run(
            self._flows.execute(
                sql, params, timeout=timeout, read_only=read_only, max_rows=max_rows, key=key
            )
        )

    @overload
    def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> list[dict[str, Any]]: ...
    @overload
    def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., T],
        timeout: float | None = None,
        read_only: bool = False,
    ) -> list[T]: ...
    def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = dict,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> list[Any]:
        """The rows, each in the form of *into*.

        Args:
            into: `dict`, `tuple`, `collections.namedtuple` (named after the columns), or a
                class of yours that takes the columns as keywords: a dataclass, a NamedTuple.
        """
        return self._run(self._flows.query(sql, params, into, timeout, read_only))

    @overload
    def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> dict[str, Any] | None: ...
    @overload
    def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., T],
        timeout: float | None = None,
        read_only: bool = False,
    ) -> T | None: ...
    def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = dict,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> Any:
        """The only row in the form of *into*, `None` without one; NotOneRow if several."""
        return self._run(self._flows.query_one(sql, params, into, timeout, read_only))

    def scalar(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> Any:
        """The first column of the first row; `None` without a row."""
        return self._run(self._flows.scalar(sql, params, timeout, read_only))

    def execute_many(
        self,
        sql: str,
        sets: Iterable[Sequence[Any] | Mapping[str, Any]],
        *,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Result]:
        """Run one statement for each set of parameters, all or none; one result each."""
        return self._run(self._flows.execute_many(sql, sets, timeout, key))

    def batch(
        self,
        statements: Iterable[str | tuple[str, Parameters]],
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Result]:
        """Run several statements in one request, all or none; one result each."""
        return self._run(self._flows.batch(statements, isolation, read_only, timeout, key))

    def stream(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = tuple,
        timeout: float | None = None,
        read_only: bool = False,
    ) -> Stream:
        """The rows as they come, however many: iterate, best in a `with` block.

        Args:
            into: As for `query`.
            timeout: Seconds for all of it, what you do with the rows included.
        """
        return Stream(self, sql, params, into, timeout, read_only)

    def copy_in(
        self,
        table: str,
        rows: Any,
        *,
        columns: Sequence[str] = (),
        timeout: float | None = None,
    ) -> int:
        """Fill *table* with *rows*, all or none; how many there were.

        Args:
            rows: Sequences of values, sent as they are iterated; or CSV without a header
                line: bytes, text or a file that is open for reading.
            columns: Which columns they are; else all of the table, in its order.
        """
        return self._run(self._flows.copy_in(table, rows, columns, timeout))

    def _run(self, flow: Flow[T]) -> T:
        told: Any = None
        try:
            asked = next(flow)
            while True:
                try:
                    if isinstance(asked, Send):
                        told = self._http.send(asked)
                    elif callable(asked):
                        told = asked()
                    else:
                        time.sleep(asked)
                except NoAnswer as gone:
                    asked = flow.throw(gone)
                else:
                    asked = flow.send(told)
        except StopIteration as done:
            found: T = done.value
            return found

    def _piece(self, rows: Streaming, body: Body) -> list[Any] | None:
        """The rows that came next; `None` after the last."""
        try:
            data = body.read()
        except NoAnswer as gone:
            raise rows.cut(gone.reason) from gone
        if data:
            return rows.feed(data)
        rows.finish()
        return None

    def _stop(self, body: Body) -> None:
        body.close()


class Client(Statements):
    """Runs statements through one gateway. Threads may share it.

    Nothing is sent before the first statement.

    Args:
        url: `https://host[:port][/prefix]`; else from `PGSLUICE_URL`.
        token: A Bearer token, or what returns one and is asked for each request; else
            from `PGSLUICE_TOKEN`.
        access_key: With *secret_key* signs each request (AWS Signature Version 4) instead;
            else from `PGSLUICE_ACCESS_KEY` and `PGSLUICE_SECRET_KEY`.
        session_token: Of a temporary key.
        iam_audience: What the gateway calls itself: the role this runs under is exchanged
            for a token, which is replaced before it ends; else from `PGSLUICE_IAM_AUDIENCE`.
        credentials: Returns key, secret and session token of the role; else from the
            environment, where Lambda puts them.
        target: Name of the target; else from `PGSLUICE_TARGET`, else the gateway's only one.
        database: Name of a database of that target; else from `PGSLUICE_DATABASE`.
        timeout: Seconds for each call, retries included; `None` leaves it to the gateway.
        cafile: Certificates to trust instead of the system's; else from `PGSLUICE_CAFILE`.
        types: By PostgreSQL's name of a type, what makes its values: `{"mood": Mood}`.
        exact_json: Numbers in JSON with a point come as Decimal, not as float.

    Raises:
        ValueError: There is no URL, or identities are mixed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | Callable[[], str] | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        iam_audience: str | None = None,
        credentials: Callable[[], tuple[str, str, str | None]] | None = None,
        target: str | None = None,
        database: str | None = None,
        timeout: float | None = None,
        cafile: str | None = None,
        types: Types | None = None,
        exact_json: bool = False,
    ) -> None:
        self._flows = self._core = Core(
            url,
            token=token,
            access_key=access_key,
            secret_key=secret_key,
            session_token=session_token,
            iam_audience=iam_audience,
            credentials=credentials,
            target=target,
            database=database,
            timeout=timeout,
            cafile=cafile,
            types=types,
            exact_json=exact_json,
        )
        self._http = Http(self._core.origin, cafile=self._core.cafile)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pgsluice.Client {self._core.origin.header}>"

    def close(self) -> None:
        """Close the connections; a later statement opens a new one."""
        self._http.close()

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        idle_timeout: float | None = None,
        timeout: float | None = None,
        attempts: int = 5,
    ) -> Transaction:
        """A transaction over several calls, for `with`: commits at its end, rolls back on errors.

        Args:
            isolation: PostgreSQL's default (read committed) unless given.
            idle_timeout: Seconds without a statement after which the gateway rolls back.
            timeout: Seconds for all of it, counted from its begin.
            attempts: How often `run` runs it at most.
        """
        flows = TransactionFlows(
            self._core,
            isolation=isolation,
            read_only=read_only,
            deferrable=deferrable,
            idle_timeout=idle_timeout,
            timeout=timeout,
            attempts=attempts,
        )
        return Transaction(self, flows)


connect = Client


class Transaction(Statements):
    """Statements that happen together or not at all. For one thread at a time.

    `with` begins it, commits at its end and rolls back when the block is left by an
    exception. `commit` and `rollback` may be called earlier; then the end does nothing.
    """

    def __init__(self, client: Client, flows: TransactionFlows) -> None:
        self._flows = self._life = flows
        self._http = client._http

    def __repr__(self) -> str:
        return f"<pgsluice.Transaction {'open' if self._life.id else 'not open'}>"

    def __enter__(self) -> Transaction:
        self._run(self._life.begin())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self._life.leave(failed=error is not None))

    def commit(self) -> None:
        """Make it permanent.

        Raises:
            OutcomeUnknown: The answer was lost, or that of a statement before was: then it
                is rolled back, for nobody knows what it holds.
        """
        self._run(self._life.commit())

    def rollback(self) -> None:
        """Undo it; that it has ended already is no error."""
        self._run(self._life.rollback())

    def run(self, work: Callable[[Transaction], T]) -> T:
        """Begin, call *work* with this, commit, and return what *work* returned.

        After a serialization failure, a deadlock or anything else that is safe to repeat
        all of it is done again, so *work* should do nothing but work in the transaction.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                with self:
                    return work(self)
            except Error as error:
                wait = self._life.again(error, attempt)
                if wait is None:
                    raise
            time.sleep(wait)


class Stream:
    """The rows of one statement, as they come."""

    def __init__(
        self,
        statements: Statements,
        sql: str,
        params: Parameters,
        into: Callable[..., Any],
        timeout: float | None,
        read_only: bool,
    ) -> None:
        self._statements = statements
        self._rows = Streaming(statements._flows, sql, params, into, timeout, read_only)
        self._body: Body | None = None
        self._iterator: Iterator[Any] | None = None

    def __enter__(self) -> Stream:
        """Send it; the columns are known from here on."""
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return self._begin()

    def __next__(self) -> Any:
        return next(self._begin())

    @property
    def columns(self) -> tuple[Column, ...]:
        """Names and types; known once it has begun."""
        return self._rows.columns

    @property
    def row_count(self) -> int | None:
        """How many rows there were; known at the end."""
        return self._rows.row_count

    @property
    def command(self) -> str | None:
        """`SELECT`, `INSERT` …; known at the end."""
        return self._rows.command

    def close(self) -> None:
        """Want no more rows; the statement is stopped."""
        if self._body is not None:
            self._body.close()
            self._body = None
        self._iterator = iter(())

    def _begin(self) -> Iterator[Any]:
        if self._iterator is None:
            self._body = self._statements._run(self._rows.open()).body
            first = self._piece()
            while first is not None and not self._rows.columns and not self._rows.done:
                first = self._piece()
            self._iterator = self._all(first)
        return self._iterator

    def _all(self, rows: list[Any] | None) -> Iterator[Any]:
        while rows is not None:
            yield from rows
            rows = self._piece()

    def _piece(self) -> list[Any] | None:
        if self._body is None:
            return None
        try:
            rows = self._statements._piece(self._rows, self._body)
        except BaseException:
            self.close()
            raise
        if rows is None:
            self._body = None
        return rows
