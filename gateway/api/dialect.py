"""A dialect: the table of its operations, and the way from a path to one of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from ..core.errors import MethodNotAllowed, NotFound
from .compression import Compress
from .exchange import Exchange, WriteError, new_request_id
from .server import Server
from .serving import Operation, serve
from .wire import AsgiWire, Handler, Receive, Scope, Send


class Route(NamedTuple):
    """Where an operation lives; `{name}` in the path is a parameter."""

    path: str
    operation: Operation


class Dialect:
    """A table of routes; the ones without parameters are found by one look-up."""

    def __init__(
        self,
        server: Server,
        routes: list[Route],
        write_error: WriteError,
        id_header: bytes,
        check: Callable[[Exchange], None] | None = None,
        compress: Compress | None = None,
    ) -> None:
        self._check = check
        self._compress = compress
        self._server = server
        self._write_error = write_error
        self._id_header = id_header
        self._exact: dict[str, dict[str, Operation]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Operation]]] = []
        patterns: dict[str, dict[str, Operation]] = {}
        self._routes = routes
        for route in routes:
            table = self._exact if "{" not in route.path else patterns
            table.setdefault(route.path, {})[route.operation.method] = route.operation
        for path, operations in patterns.items():
            # Whatever stands last is taken whole: a key may hold a slash.
            pattern = re.sub(r"\{(\w+)\}$", r"(?P<\1>.+)", path)
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
            self._patterns.append((re.compile(pattern), operations))

    def find(self, path: str) -> tuple[dict[str, Operation], Mapping[str, str]] | None:
        """The operations at *path*, by method, and the path's parameters."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact, {}
        for pattern, operations in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return operations, match.groupdict()
        return None

    def routes(self) -> Iterator[tuple[str, str]]:
        """Every path, and a method that is served there."""
        for route in self._routes:
            yield route.path, route.operation.method

    def direct(self) -> Iterator[tuple[bytes, Handler]]:
        """What can be answered without ASGI: POST to paths without parameters."""
        for path, operations in self._exact.items():
            operation = operations.get("POST")
            if operation is not None:
                handler: Handler = partial(
                    serve, self._server, operation, {}, self._write_error, self._id_header,
                    self._check,
                )  # fmt: skip
                if self._compress is not None:
                    handler = partial(self._compress, handler)
                yield path.encode("ascii"), handler

    async def __call__(
        self,
        found: tuple[dict[str, Operation], Mapping[str, str]] | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve a request at what `find` found; `None` is refused as not found."""
        wire = AsgiWire(scope, receive, send)
        if found is not None:
            operation = found[0].get(wire.method)
            if operation is not None:
                handler: Handler = partial(
                    serve, self._server, operation, found[1], self._write_error, self._id_header,
                    self._check,
                )  # fmt: skip
                if self._compress is None:
                    await handler(wire)
                else:
                    await self._compress(handler, wire)
                return
        exchange = Exchange(self._server, "", wire, self._write_error)
        exchange.call.request_id = new_request_id()
        exchange.headers.append((self._id_header, exchange.call.request_id.encode("ascii")))
        if found is None:
            await exchange.refuse(NotFound("there is nothing at this path"))
        else:
            allowed = ", ".join(sorted(found[0]))
            exchange.headers.append((b"allow", allowed.encode("ascii")))
            await exchange.refuse(MethodNotAllowed(f"use {allowed} here"))
        self._server.observe(exchange)
