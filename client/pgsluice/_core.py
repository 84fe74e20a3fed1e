"""What a call does, step by step: retries, deadlines, identity, the life of a transaction.

All of it as flows, see `_words`, once for the ordinary and the async client; what both have
beside is at the end.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import update_wrapper
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _protocol
from ._http import NoAnswer, origin
from ._identity import Identity
from ._protocol import Answer, Parameters, Request, Scope, Seconds
from ._result import Column
from ._words import Flow, Flows, Send, Streaming
from .errors import Error, InterfaceError, OutcomeUnknown, StatementTimeout, TransactionGone

if TYPE_CHECKING:
    from ._values import Types
    from ._words import Isolation

Run = TypeVar("Run", bound=Callable[..., Any])
TokenT = TypeVar("TokenT")
KeysT = TypeVar("KeysT")
StreamT = TypeVar("StreamT")
TransactionT = TypeVar("TransactionT")

ROLLBACK_TIMEOUT = 5.0  # seconds, however little time is left for everything else

invocation_deadline: ContextVar[float | None] = ContextVar("pgsluice_deadline", default=None)
"""The moment (of `time.monotonic`) at which the work at hand ends."""


class Core(Flows):
    """All that a client is but its connections."""

    def __init__(
        self,
        url: str | None,
        identity: Identity,
        place: Scope,
        timeout: Seconds,
        cafile: str | None,
        types: Types | None,
        exact: bool,
    ) -> None:
        env = os.environ
        url = url or env.get("PGSLUICE_URL")
        if not url:
            raise ValueError("no gateway: pass url or set PGSLUICE_URL")
        self.origin = origin(url)
        self.identity = identity
        self.place = Scope(
            place.target or env.get("PGSLUICE_TARGET"),
            place.database or env.get("PGSLUICE_DATABASE"),
        )
        self.timeout = timeout
        self.cafile = cafile or env.get("PGSLUICE_CAFILE")
        self.types = types
        self.exact = exact
        self.ledger = False
        """Whether the gateway has said that it keeps idempotency keys in the database."""

    def limit(self, timeout: Seconds) -> float | None:
        """*timeout*, the client's own, what an invocation has left: the least of them."""
        timeout = self.timeout if timeout is None else timeout
        end = invocation_deadline.get()
        if end is None:
            return timeout
        left = end - time.monotonic()
        return left if timeout is None else min(left, timeout)

    def scope(
        self, timeout: Seconds = None, key: str | None = None, read_only: bool = False
    ) -> Scope:
        """The client's target, no transaction, a key of its own for each request."""
        chosen = key is not None
        key = key if chosen else _protocol.new_key(os.urandom(16))
        return self.place._replace(timeout=self.limit(timeout), key=key, chosen=chosen)

    def send(self, request: Request, timeout: Seconds, *, stream: bool = False) -> Flow[Any]:
        """The gateway's answer: its JSON object, or the `Answer` itself if streamed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        doubt: OutcomeUnknown | None = None
        while True:
            attempt += 1
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                if doubt is not None:
                    _protocol.last_word(request, doubt)
                    raise doubt
                raise StatementTimeout("no time was left to send it", retry="never")
            try:
                return (yield from self._try(request, left, stream))
            except Error as error:
                if isinstance(error, OutcomeUnknown):
                    doubt = error
                    # The gateway does not say again what it was sent.
                    error.key = error.key or request.key
                    if request.replayable and self.ledger:
                        error.retry = "safe"
                    elif request.replayable:
                        yield from self._look(request, error, left)
                # A new token may be had from where the last one came; nothing was executed.
                if error.code == "token_expired" and attempt == 1 and self.identity.renewed():
                    continue
                left = None if deadline is None else deadline - time.monotonic()
                wait = _protocol.pause(
                    request, error, attempt=attempt, remaining=left, jitter=jitter()
                )
                if wait is None:
                    if doubt is not None and _protocol.in_doubt(error):
                        _protocol.last_word(request, doubt)
                        raise doubt from error
                    _protocol.last_word(request, error)
                    raise
            yield wait

    def _try(self, request: Request, left: Seconds, stream: bool) -> Flow[Any]:
        headers = _protocol.headers(request, host=self.origin.header, remaining=left)
        headers |= yield from self.identity.headers(
            request,
            headers,
            self.origin,
            now=time.time(),
            jitter=jitter(),
            exchange=lambda proof: self._exchange(proof, left),
        )
        if self.identity.signs and request.path.startswith("/copy/"):
            raise InterfaceError("an upload cannot be signed", hint="use a token")
        answer = yield from self._ask(request, headers, left, stream)
        if request.key is not None and "x-gateway-idempotency" in answer.headers:
            # Only for good: a statement that cannot be recorded says nothing of the others.
            self.ledger |= answer.headers["x-gateway-idempotency"] == "database"
        if stream and not isinstance(answer.body, bytes):
            return answer
        return _protocol.read(request, answer, ledger=self.ledger, exact=self.exact)

    def _exchange(self, proof: Request, left: Seconds) -> Flow[Any]:
        headers = _protocol.headers(proof, host=self.origin.header, remaining=left)
        return _protocol.read(proof, (yield from self._ask(proof, headers, left)))

    def _ask(
        self,
        request: Request,
        headers: Mapping[str, str],
        left: Seconds,
        stream: bool = False,
    ) -> Flow[Answer]:
        method, path, body = request.method, request.path, request.body
        try:
            answer: Answer = yield Send(method, path, headers, body, left, stream)
        except NoAnswer as gone:
            raise _protocol.failure(
                request, gone.reason, sent=gone.sent, ledger=self.ledger
            ) from gone
        return answer

    def _look(self, request: Request, error: Error, left: Seconds) -> Flow[None]:
        """Ask what became of *request*; note it in *error*."""
        with suppress(Error):
            found = yield from self._try(_protocol.outcome(self.place, request), left, False)
            if self.ledger or found.get("outcome") == "not_executed":
                error.retry = "safe"
            elif found.get("outcome") == "committed":
                error.outcome, error.retry = "committed", "never"


class TransactionFlows(Flows):
    """One transaction's life: not begun, open, ended."""

    def __init__(
        self, core: Core, begin: Request, timeout: Seconds = None, attempts: int = 1
    ) -> None:
        self._core = core
        self._begin = begin
        self._timeout = timeout
        self._deadline: Seconds = None
        self._lost: OutcomeUnknown | None = None
        self.types, self.exact = core.types, core.exact
        self.id: str | None = None
        self.attempts = attempts

    def limit(self, timeout: Seconds) -> float | None:
        """The least of what the call, the client, the transaction and the invocation have."""
        timeout = self._core.limit(timeout)
        if self._deadline is None:
            return timeout
        left = self._deadline - time.monotonic()
        return left if timeout is None else min(left, timeout)

    def scope(
        self, timeout: Seconds = None, key: str | None = None, read_only: bool = False
    ) -> Scope:
        """The transaction; it has the target, and no keys."""
        if key is not None:
            raise ValueError("a key belongs to a statement outside of a transaction")
        if read_only:
            raise ValueError("isolation and read_only are said when the transaction begins")
        return Scope(timeout=self.limit(timeout), transaction=self._open())

    def send(self, request: Request, timeout: Seconds, *, stream: bool = False) -> Flow[Any]:
        """As the client does; an answer that is lost is remembered."""
        try:
            return (yield from self._core.send(request, timeout, stream=stream))
        except OutcomeUnknown as error:
            self._lost = error
            raise

    def begin(self) -> Flow[None]:
        """Open it."""
        if self.id is not None:
            raise RuntimeError("this transaction has begun already")
        self._lost = None
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        answer = yield from self._core.send(self._begin, self.limit(None))
        self.id = answer["transaction"]

    def commit(self) -> Flow[None]:
        """Make it permanent.

        Raises:
            OutcomeUnknown: The answer was lost, or that of a statement before was: then it
                is rolled back, for nobody knows what it holds.
        """
        transaction = self._open()
        if self._lost is not None:
            yield from self.rollback()
            raise self._lost
        timeout = self.limit(None)
        if timeout is not None and timeout <= 0:
            yield from self.rollback()
            raise StatementTimeout("no time was left to commit it; it is rolled back")
        self.id = None
        key = _protocol.new_key(os.urandom(16))
        try:
            yield from self._core.send(_protocol.commit(transaction, key), timeout)
        except OutcomeUnknown as error:
            # To commit once more was harmless; to do all of it once more is not.
            error.retry = "unknown"
            raise

    def rollback(self) -> Flow[None]:
        """Undo it; that it has ended already is no error."""
        transaction, self.id = self._open(), None
        with suppress(TransactionGone):
            # Not bound by the deadline, which is often why it is rolled back.
            yield from self._core.send(_protocol.rollback(transaction), ROLLBACK_TIMEOUT)

    def leave(self, *, failed: bool) -> Flow[None]:
        """The end of a `with` block."""
        if self.id is None:
            return
        if not failed:
            yield from self.commit()
            return
        # The error that ended the block is the news. Unreachable, the gateway rolls
        # back by itself when the transaction has been idle for too long.
        with suppress(Error):
            yield from self.rollback()

    def again(self, error: Error, attempt: int) -> float | None:
        """Seconds to wait before all of it is done once more; `None` if it must not be."""
        if attempt >= self.attempts or error.retry != "safe" or self._lost is not None:
            return None
        wait = jitter() * min(_protocol.LONGEST_PAUSE, _protocol.FIRST_PAUSE * 2 ** (attempt - 1))
        left = self.limit(None)
        return wait if left is None or wait < left else None

    def _open(self) -> str:
        if self.id is None:
            raise TransactionGone(
                "the transaction is not open", hint="use it inside its with block"
            )
        return self.id


class StatementsShell(Generic[StreamT], ABC):
    """What a client and a transaction have in common, in both shells."""

    _flows: Flows

    @abstractmethod
    def _stream(self, rows: Streaming) -> StreamT: ...

    def stream(
        self,
        sql: str,
        params: Parameters = None,
        *,
        into: Callable[..., Any] = tuple,
        timeout: Seconds = None,
        read_only: bool = False,
    ) -> StreamT:
        """The rows as they come, however many: iterate, best in a `with` block.

        Args:
            into: As for `query`.
            timeout: Seconds for all of it, what you do with the rows included.
        """
        return self._stream(Streaming(self._flows, sql, params, into, timeout, read_only))


class ClientShell(Generic[TokenT, KeysT, TransactionT], ABC):
    """What a client is in both shells."""

    _flows: Flows

    @abstractmethod
    def _open(self) -> Any:
        """What sends."""

    @abstractmethod
    def _transaction(self, flows: TransactionFlows) -> TransactionT: ...

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | Callable[[], TokenT] | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        iam_audience: str | None = None,
        credentials: Callable[[], KeysT] | None = None,
        target: str | None = None,
        database: str | None = None,
        timeout: Seconds = None,
        cafile: str | None = None,
        types: Types | None = None,
        exact_json: bool = False,
    ) -> None:
        key = access_key, secret_key, session_token
        identity = Identity(token, key, iam_audience, credentials)
        place = Scope(target, database)
        self._flows = self._core = Core(url, identity, place, timeout, cafile, types, exact_json)
        self._http = self._open()

    def __repr__(self) -> str:
        return f"<pgsluice.{type(self).__name__} {self._core.origin.header}>"

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        idle_timeout: Seconds = None,
        timeout: Seconds = None,
        attempts: int = 5,
    ) -> TransactionT:
        """A transaction over several calls, for `with`: commits at its end, rolls back on errors.

        Args:
            isolation: PostgreSQL's default (read committed) unless given.
            idle_timeout: Seconds without a statement after which the gateway rolls back.
            timeout: Seconds for all of it, counted from its begin.
            attempts: How often `run` runs it at most.
        """
        begin = _protocol.begin(
            self._core.place,
            isolation=isolation,
            read_only=read_only,
            deferrable=deferrable,
            idle_timeout=idle_timeout,
        )
        return self._transaction(TransactionFlows(self._core, begin, timeout, attempts))


class TransactionShell:
    """What a transaction is in both shells."""

    _flows: Flows

    def __init__(self, http: Any, flows: TransactionFlows) -> None:
        self._flows = self._life = flows
        self._http = http

    def __repr__(self) -> str:
        return f"<pgsluice.{type(self).__name__} {'open' if self._life.id else 'not open'}>"


class StreamShell:
    """What a stream is in both shells."""

    _rows: Streaming

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


def like(flow: Callable[..., Any], run: Run) -> Run:
    """*run*, that runs *flow*, with its name, docstring and signature but for the `Flow` in it."""
    told = FunctionType(flow.__code__, flow.__globals__, argdefs=flow.__defaults__)
    told.__doc__, told.__kwdefaults__ = flow.__doc__, flow.__kwdefaults__
    told.__qualname__ = flow.__name__
    returned = str(flow.__annotations__["return"]).removeprefix("Flow[").removesuffix("]")
    told.__annotations__ = {**flow.__annotations__, "return": returned}
    update_wrapper(run, told)
    return run


def jitter() -> float:
    """A random number from 0 to 1."""
    # random would be imported for this alone; it takes longer than the rest of the package.
    return int.from_bytes(os.urandom(4), "big") / 2**32
