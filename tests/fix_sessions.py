"""Callers of a gateway and sessions of PostgreSQL's own, to compare what they see."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple

import asyncpg

from tests.fix_gateway import PATIENCE, Gateway, until

REQUEST_ID = "0123456789abcdef0123456789abcdef"

PINNED = {
    "search_path": '"$user", public',
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
}
"""Settings that a session of the gateway begins with, where they may not be PostgreSQL's own.

It is also read-only until it is told to write, which its callers do not notice.
"""


class Seen(NamedTuple):
    """What a caller sees of one statement: its rows, or what went wrong."""

    rows: Any = None
    error: str | None = None
    """A SQLSTATE, or the gateway's own code where there is none."""

    @property
    def value(self) -> Any:
        """The only value of the only row."""
        assert self.error is None, self
        assert len(self.rows) == 1 and len(self.rows[0]) == 1, self
        return self.rows[0][0]


class Caller:
    """One principal on one kept HTTP connection: a request costs no more than it must."""

    def __init__(self, gateway: Gateway, token: str | None = None) -> None:
        self.gateway = gateway
        self._headers = {"authorization": f"Bearer {token or gateway.token}"}
        self._connection = HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        self._connection.connect()
        assert self._connection.sock is not None
        # http.client sends head and body apart; the kernel would hold the second back.
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close the HTTP connection."""
        self._connection.close()

    def send(
        self, path: str, body: Any = None, method: str = "POST", **headers: str
    ) -> tuple[int, Any]:
        """One request; its status and its parsed answer."""
        raw = json.dumps({} if body is None else body)
        self._connection.request(method, path, raw, {**self._headers, **headers})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def run(self, sql: str, parameters: Any = None, **more: Any) -> Seen:
        """`POST /execute`."""
        body = {"sql": sql, **more}
        if parameters is not None:
            body["parameters"] = parameters
        return seen(*self.send("/execute", body))

    def rows(self, sql: str, parameters: Any = None, **more: Any) -> Any:
        """As `run`, and it has to succeed."""
        answer = self.run(sql, parameters, **more)
        assert answer.error is None, (sql, answer)
        return answer.rows

    def begin(self, **mode: Any) -> str:
        """Open a transaction; its id."""
        status, answer = self.send("/transactions", mode)
        assert status == 201, answer
        return str(answer["transaction"])

    def end(self, transaction: str, how: str) -> tuple[int, Any]:
        """`commit` or `rollback`."""
        return self.send(f"/transactions/{transaction}/{how}")

    @contextmanager
    def during(self, when: Callable[[], bool], sql: str, **more: Any) -> Iterator[socket.socket]:
        """Send a request on a connection of its own; the block runs once *when* is so.

        At its end the caller hangs up.
        """
        raw = json.dumps({"sql": sql, **more}).encode()
        head = "".join(f"{name}: {value}\r\n" for name, value in self._headers.items())
        with socket.create_connection(("127.0.0.1", self.gateway.port), PATIENCE) as sock:
            sock.sendall(
                f"POST /execute HTTP/1.1\r\nhost: gateway\r\n{head}"
                f"x-gateway-request-id: {REQUEST_ID}\r\ncontent-length: {len(raw)}\r\n\r\n".encode()
                + raw
            )
            until(when, "the statement did not begin")
            yield sock

    def cancel(self) -> int:
        """Cancel what was sent by `during`; the status."""
        return self.send(f"/statements/{REQUEST_ID}", method="DELETE")[0]


def seen(status: int, answer: Any) -> Seen:
    """An answer of the gateway, reduced to what the caller can see of PostgreSQL."""
    if status < 300:
        if "results" in answer:
            return Seen([each["rows"] for each in answer["results"]])
        return Seen(answer.get("rows"))
    return Seen(error=answer.get("sqlstate") or answer["code"])


@contextmanager
def calling(gateway: Gateway, token: str | None = None) -> Iterator[Caller]:
    """A caller for as long as the block runs."""
    caller = Caller(gateway, token)
    try:
        yield caller
    finally:
        caller.close()


class Direct:
    """A session of PostgreSQL's own, with nothing in between."""

    def __init__(self, dsn: str, **settings: str) -> None:
        self._runner = asyncio.Runner()
        self._dsn = dsn
        self._settings = settings
        self._connection: Any = None

    def renew(self) -> None:
        """Begin a fresh session."""

        async def renew() -> None:
            if self._connection is not None:
                self._connection.terminate()
            self._connection = await asyncpg.connect(
                self._dsn, statement_cache_size=0, server_settings=self._settings
            )

        self._runner.run(renew())

    def run(self, sql: str, parameters: Sequence[Any] = (), timeout: float = PATIENCE) -> Seen:
        """Run one statement; asyncpg's values."""
        if self._connection is None:
            self.renew()
        try:
            rows = self._runner.run(self._within(timeout, self._fetch(sql, parameters)))
        except asyncpg.PostgresError as error:
            return Seen(error=error.sqlstate)
        except TimeoutError:
            return Seen(error="57014")
        except asyncpg.InterfaceError:
            assert self._connection.is_closed()
            return Seen(error="08003")
        return Seen([list(row) for row in rows])

    async def _within(self, seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
        # Not fetch(timeout=…): that would leave the end of the cancelled statement for later.
        async with asyncio.timeout(seconds):
            return await work

    async def _fetch(self, sql: str, parameters: Sequence[Any]) -> Any:
        return await self._connection.fetch(sql, *parameters)

    def value(self, sql: str, *parameters: Any) -> Any:
        """The only value of a statement that has to succeed."""
        return self.run(sql, parameters).value

    def close(self) -> None:
        """End the session."""
        if self._connection is not None:
            self._connection.terminate()
            # The transport is closed by the loop's next turn.
            self._runner.run(asyncio.sleep(0))
        self._runner.close()


@contextmanager
def direct(dsn: str, **settings: str) -> Iterator[Direct]:
    """A session of PostgreSQL's own for as long as the block runs."""
    session = Direct(dsn, **settings)
    try:
        yield session
    finally:
        session.close()
