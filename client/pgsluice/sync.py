"""The client for ordinary code: one call, one statement, one answer.

    with connect() as db:                            # PGSLUICE_URL, PGSLUICE_TOKEN
        db.execute("insert into notes (text) values (:t)", {"t": "hello"})
        with db.transaction() as tx:
            left = tx.scalar("select quantity from stock where id = $1 for update", [7])
            tx.execute("update stock set quantity = $1 where id = 7", [left - 1])

What the words mean is in `_words`, what a call does in `_core`, how bytes travel in `_http`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ._core import (
    ClientShell,
    StatementsShell,
    StreamShell,
    TransactionFlows,
    TransactionShell,
    like,
)
from ._http import Http, NoAnswer
from ._words import Flow, Flows, Send, Streaming
from .errors import Error

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Concatenate, ParamSpec

    from ._http import Body

    P = ParamSpec("P")

T = TypeVar("T")


def _done(flow: Callable[Concatenate[Any, P], Flow[T]]) -> Callable[Concatenate[Any, P], T]:
    """The method that runs *flow* to its end."""

    def run(self: Statements, /, *args: P.args, **options: P.kwargs) -> T:
        return self._run(flow(self._flows, *args, **options))

    return like(flow, run)


class Statements(StatementsShell["Stream"]):
    """What a client and a transaction have in common: ways to run statements."""

    _http: Http

    execute = _done(Flows.execute)
    query = _done(Flows.query)
    query_one = _done(Flows.query_one)
    scalar = _done(Flows.scalar)
    execute_many = _done(Flows.execute_many)
    batch = _done(Flows.batch)
    copy_in = _done(Flows.copy_in)

    def _stream(self, rows: Streaming) -> Stream:
        return Stream(self, rows)

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
        return rows.piece(data)

    def _stop(self, body: Body) -> None:
        body.close()


class Client(ClientShell[str, "tuple[str, str, str | None]", "Transaction"], Statements):
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

    def _open(self) -> Http:
        return Http(self._core.origin, cafile=self._core.cafile)

    def _transaction(self, flows: TransactionFlows) -> Transaction:
        return Transaction(self._http, flows)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a later statement opens a new one."""
        self._http.close()


connect = Client


class Transaction(TransactionShell, Statements):
    """Statements that happen together or not at all. For one thread at a time.

    `with` begins it, commits at its end and rolls back when the block is left by an
    exception. `commit` and `rollback` may be called earlier; then the end does nothing.
    """

    commit = _done(TransactionFlows.commit)
    rollback = _done(TransactionFlows.rollback)

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


class Stream(StreamShell):
    """The rows of one statement, as they come."""

    def __init__(self, statements: Statements, rows: Streaming) -> None:
        self._statements = statements
        self._rows = rows
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
