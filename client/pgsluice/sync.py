"""The client for ordinary code: one call, one statement, one answer.

    with connect() as db:                            # PGSLUICE_URL, PGSLUICE_TOKEN
        db.execute("insert into notes (text) values (:t)", {"t": "hello"})
        with db.transaction() as tx:
            left = tx.scalar("select quantity from stock where id = $1 for update", [7])
            tx.execute("update stock set quantity = $1 where id = 7", [left - 1])

What to send and what an answer means is in `_protocol`, how bytes travel in `_http`.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import _protocol
from ._http import Http, NoAnswer, origin
from ._protocol import Defaults, Parameters, Request, Result
from .errors import Error, NotOneRow, OutcomeUnknown, TransactionGone

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Literal

    Isolation = Literal["read_committed", "repeatable_read", "serializable"]

T = TypeVar("T")


def connect(
    url: str | None = None,
    *,
    token: str | Callable[[], str] | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    target: str | None = None,
    database: str | None = None,
    timeout: float | None = None,
    cafile: str | None = None,
) -> Client:
    """A client of the gateway at *url*; nothing is sent before the first statement.

    Args:
        url: `https://host[:port][/prefix]`; else from `PGSLUICE_URL`.
        token: A Bearer token, or what returns one and is asked for each request; else
            from `PGSLUICE_TOKEN`.
        access_key: With *secret_key* signs each request (AWS Signature Version 4) instead;
            else from `PGSLUICE_ACCESS_KEY` and `PGSLUICE_SECRET_KEY`.
        target: Name of the target; else from `PGSLUICE_TARGET`, else the gateway's only one.
        database: Name of a database of that target.
        timeout: Seconds for each call, retries included; `None` leaves it to the gateway.
        cafile: Certificates to trust instead of the system's; else from `PGSLUICE_CAFILE`.

    Raises:
        ValueError: There is no URL, or only half of a key.
    """
    env = os.environ
    url = url or env.get("PGSLUICE_URL")
    if not url:
        raise ValueError("no gateway: pass url or set PGSLUICE_URL")
    if token is None and access_key is None and secret_key is None:
        token = env.get("PGSLUICE_TOKEN")
        if token is None:
            access_key = env.get("PGSLUICE_ACCESS_KEY")
            secret_key = env.get("PGSLUICE_SECRET_KEY")
    return Client(
        url,
        token=token,
        access_key=access_key,
        secret_key=secret_key,
        target=target or env.get("PGSLUICE_TARGET"),
        database=database,
        timeout=timeout,
        cafile=cafile or env.get("PGSLUICE_CAFILE"),
    )


class Statements(ABC):
    """What a client and a transaction have in common: ways to run statements."""

    @abstractmethod
    def execute(
        self, sql: str, params: Parameters = None, *, timeout: float | None = None
    ) -> Result:
        """Run one statement; return its rows and what it did."""

    @abstractmethod
    def execute_many(
        self,
        sql: str,
        sets: Iterable[Sequence[Any] | Mapping[str, Any]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Run one statement for each set of parameters, all or none; one result each."""

    @abstractmethod
    def batch(
        self,
        statements: Iterable[str | tuple[str, Parameters]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Run several statements in one request, all or none; one result each."""

    @overload
    def query(
        self, sql: str, params: Parameters = None, *, timeout: float | None = None
    ) -> list[dict[str, Any]]: ...
    @overload
    def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., T],
        timeout: float | None = None,
    ) -> list[T]: ...
    def query(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = dict,
        timeout: float | None = None,
    ) -> list[Any]:
        """The rows, each as `into(**columns)`: dicts, or a dataclass of yours."""
        return self.execute(sql, params, timeout=timeout).into(into)

    @overload
    def query_one(
        self, sql: str, params: Parameters = None, *, timeout: float | None = None
    ) -> dict[str, Any] | None: ...
    @overload
    def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., T],
        timeout: float | None = None,
    ) -> T | None: ...
    def query_one(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = dict,
        timeout: float | None = None,
    ) -> Any:
        """The only row as `into(**columns)`, `None` without one; NotOneRow if several."""
        rows = self.query(sql, params, into=into, timeout=timeout)
        if len(rows) > 1:
            raise NotOneRow(f"one row was expected, there are {len(rows)}")
        return rows[0] if rows else None

    def scalar(self, sql: str, params: Parameters = None, *, timeout: float | None = None) -> Any:
        """The first column of the first row; `None` without a row."""
        return self.execute(sql, params, timeout=timeout).scalar()


class Client(Statements):
    """Runs statements through one gateway. Threads may share it."""

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str] | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        target: str | None = None,
        database: str | None = None,
        timeout: float | None = None,
        cafile: str | None = None,
    ) -> None:
        if (access_key is None) != (secret_key is None):
            raise ValueError("access_key and secret_key come together")
        if token is not None and access_key is not None:
            raise ValueError("either a token or a key, not both")
        self._origin = origin(url)
        self._http = Http(self._origin, cafile=cafile)
        self._token = token
        self._key_pair = (access_key, secret_key) if access_key and secret_key else None
        self._defaults = Defaults(target, database)
        self._timeout = timeout

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pgsluice.Client {self._origin.header}>"

    def close(self) -> None:
        """Close the connections; a later statement opens a new one."""
        self._http.close()

    def execute(
        self,
        sql: str,
        params: Parameters = None,
        *,
        timeout: float | None = None,
        read_only: bool = False,
        key: str | None = None,
    ) -> Result:
        """Run one statement; return its rows and what it did.

        Args:
            params: A list for `$1 …`, a dict for `:name`.
            timeout: Seconds, retries included.
            read_only: PostgreSQL refuses a write then, and a lost answer is asked for again.
            key: Idempotency key; else a new one.
        """
        timeout = self._limit(timeout)
        request = _protocol.execute(
            self._defaults, sql, params, timeout=timeout, read_only=read_only, key=key or _key()
        )
        return _protocol.result(self._send(request, timeout))

    def execute_many(
        self,
        sql: str,
        sets: Iterable[Sequence[Any] | Mapping[str, Any]],
        *,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Result]:
        """Run one statement for each set of parameters, all or none; one result each."""
        sets = list(sets)
        if not sets:
            return []
        timeout = self._limit(timeout)
        request = _protocol.execute_many(
            self._defaults, sql, sets, timeout=timeout, key=key or _key()
        )
        return _protocol.results(self._send(request, timeout))

    def batch(
        self,
        statements: Iterable[str | tuple[str, Parameters]],
        *,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Result]:
        """Run several statements in one request, all or none; one result each."""
        statements = list(statements)
        if not statements:
            return []
        timeout = self._limit(timeout)
        request = _protocol.batch(self._defaults, statements, timeout=timeout, key=key or _key())
        return _protocol.results(self._send(request, timeout))

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        idle_timeout: float | None = None,
        timeout: float | None = None,
    ) -> Transaction:
        """A transaction over several calls, for `with`: commits at its end, rolls back on errors.

        Args:
            isolation: PostgreSQL's default (read committed) unless given.
            idle_timeout: Seconds without a statement after which the gateway rolls back.
            timeout: Seconds for all of it, counted from its begin.
        """
        request = _protocol.begin(
            self._defaults,
            isolation=isolation,
            read_only=read_only,
            deferrable=deferrable,
            idle_timeout=idle_timeout,
        )
        return Transaction(self, request, timeout)

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def _send(self, request: Request, timeout: float | None) -> Mapping[str, Any]:
        """The gateway's answer, after as many tries as are harmless and in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        while True:
            attempt += 1
            remaining = None if deadline is None else deadline - time.monotonic()
            try:
                return self._try(request, remaining)
            except Error as error:
                # A new token may be had from a source of tokens; nothing was executed.
                fresh = error.code == "token_expired" and callable(self._token) and attempt == 1
                left = None if deadline is None else deadline - time.monotonic()
                wait = (
                    0.0
                    if fresh
                    else _protocol.pause(
                        request, error, attempt=attempt, remaining=left, jitter=_jitter()
                    )
                )
                if wait is None:
                    raise
            time.sleep(wait)

    def _try(self, request: Request, remaining: float | None) -> Mapping[str, Any]:
        headers = _protocol.headers(request, host=self._origin.header, remaining=remaining)
        if self._key_pair is not None:
            from ._signing import sign

            access_key, secret_key = self._key_pair
            env = os.environ
            headers |= sign(
                "POST",
                self._origin.prefix + request.path,
                headers,
                request.body,
                access_key=access_key,
                secret_key=secret_key,
                region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
                now=time.time(),
            )
        elif self._token is not None:
            token = self._token() if callable(self._token) else self._token
            headers["Authorization"] = f"Bearer {token}"
        try:
            answer = self._http.post(request.path, headers, request.body, timeout=remaining)
        except NoAnswer as gone:
            raise _protocol.failure(request, gone.reason, sent=gone.sent) from gone
        return _protocol.read(request, answer)


class Transaction(Statements):
    """Statements that happen together or not at all. For one thread at a time.

    `with` begins it, commits at its end and rolls back when the block is left by an
    exception. `commit` and `rollback` may be called earlier; then the end does nothing.
    """

    def __init__(self, client: Client, begin: Request, timeout: float | None) -> None:
        self._client = client
        self._begin = begin
        self._timeout = timeout
        self._deadline: float | None = None
        self._id: str | None = None
        self._lost: OutcomeUnknown | None = None

    def __repr__(self) -> str:
        return f"<pgsluice.Transaction {'open' if self._id else 'not open'}>"

    def __enter__(self) -> Transaction:
        if self._id is not None:
            raise RuntimeError("this transaction has begun already")
        self._lost = None
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        answer = self._client._send(self._begin, self._remaining(None))
        self._id = answer["transaction"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._id is None:
            return
        if error is None:
            self.commit()
            return
        try:
            self.rollback()
        except Error:
            # The error that ended the block is the news. Unreachable, the gateway rolls
            # back by itself when the transaction has been idle for too long.
            self._id = None

    def execute(
        self, sql: str, params: Parameters = None, *, timeout: float | None = None
    ) -> Result:
        """Run one statement in the transaction."""
        transaction, timeout = self._open(), self._remaining(timeout)
        request = _protocol.execute(
            Defaults(), sql, params, transaction=transaction, timeout=timeout
        )
        return _protocol.result(self._send(request, timeout))

    def execute_many(
        self,
        sql: str,
        sets: Iterable[Sequence[Any] | Mapping[str, Any]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Run one statement for each set of parameters; one result each."""
        sets = list(sets)
        if not sets:
            return []
        transaction, timeout = self._open(), self._remaining(timeout)
        request = _protocol.execute_many(
            Defaults(), sql, sets, transaction=transaction, timeout=timeout
        )
        return _protocol.results(self._send(request, timeout))

    def batch(
        self,
        statements: Iterable[str | tuple[str, Parameters]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Run several statements in one request; one result each."""
        statements = list(statements)
        if not statements:
            return []
        transaction, timeout = self._open(), self._remaining(timeout)
        request = _protocol.batch(Defaults(), statements, transaction=transaction, timeout=timeout)
        return _protocol.results(self._send(request, timeout))

    def commit(self) -> None:
        """Make it permanent.

        Raises:
            OutcomeUnknown: The answer was lost, or that of a statement before was: then it
                is rolled back, for nobody knows what it holds.
        """
        transaction = self._open()
        if self._lost is not None:
            self.rollback()
            raise self._lost
        self._id = None
        self._client._send(_protocol.commit(transaction), self._remaining(None))

    def rollback(self) -> None:
        """Undo it; that it has ended already is no error."""
        transaction, self._id = self._open(), None
        with suppress(TransactionGone):
            # Not bound by the deadline, which is often why it is rolled back.
            self._client._send(_protocol.rollback(transaction), self._client._timeout)

    def _send(self, request: Request, timeout: float | None) -> Mapping[str, Any]:
        try:
            return self._client._send(request, timeout)
        except OutcomeUnknown as error:
            self._lost = error
            raise

    def _open(self) -> str:
        if self._id is None:
            raise TransactionGone(
                "the transaction is not open", hint="use it inside its with block"
            )
        return self._id

    def _remaining(self, timeout: float | None) -> float | None:
        timeout = self._client._limit(timeout)
        if self._deadline is None:
            return timeout
        left = max(0.001, self._deadline - time.monotonic())
        return left if timeout is None else min(left, timeout)


def _key() -> str:
    return _protocol.new_key(os.urandom(16))


def _jitter() -> float:
    # random would be imported for this alone; it takes longer than the rest of the package.
    return int.from_bytes(os.urandom(4), "big") / 2**32
