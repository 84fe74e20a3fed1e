"""Wiring: settings in, one ASGI application out, and the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from .api.dialect import Exchange, Server
from .api.docs import render_docs
from .api.native.routes import native
from .api.operations import PUBLIC_PATHS, admin, public, read_document
from .api.rds_data.routes import rds_data
from .core.bearer import ASYMMETRIC, GATEWAY_ISSUER, Issuer, gateway_issuer, public_key
from .core.keys import token_key, token_key_id
from .engine.engine import Engine
from .engine.identity import Identifier
from .engine.targets import Targets
from .engine.transactions import Transactions
from .observe.logs import RequestLog
from .observe.metrics import Metric, Sample, render
from .settings import AuthSettings, Settings

_RDS_PATHS = frozenset(
    {
        "/Execute",
        "/BatchExecute",
        "/BeginTransaction",
        "/CommitTransaction",
        "/RollbackTransaction",
        "/ExecuteSql",
    }
)


class App:
    """The gateway as an ASGI application; `admin` is the one of the admin listener."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.targets = Targets(settings.targets)
        self.transactions = Transactions(master=settings.auth.master_key)
        self.log = RequestLog(settings.log_level)
        self.server = Server(
            engine=Engine(
                targets=self.targets,
                transactions=self.transactions,
                rules=settings.policy,
                wall=time.time,
            ),
            identifier=_identifier(settings.auth, settings.server.hosts),
            wall=time.time,
            request_bytes=settings.server.request_bytes,
            observe=self._observe,
        )
        self._native = native(self.server)
        self._rds_data = rds_data(self.server)
        self._public = public(
            self.targets, lambda: self.server.draining, lambda: render_docs(read_document)
        )
        self.admin = admin(lambda: render(self._metrics()))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Find the dialect by the path; Starlette serves only what is rare."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path in _RDS_PATHS:
            await self._rds_data(self._rds_data.find(path), scope, receive, send)
        elif path in PUBLIC_PATHS and scope["method"] in ("GET", "HEAD"):
            await self._public(scope, receive, send)
        else:
            await self._native(self._native.find(path), scope, receive, send)

    async def start(self) -> None:
        """Nothing is opened before it is asked for."""

    async def drain(self, grace: float) -> None:
        """Take no new work; return when what runs has ended, or after *grace* seconds."""
        server = self.server
        server.draining = True
        for target in self.targets.by_name.values():
            target.admission.close()
        try:
            async with asyncio.timeout(grace):
                while server.active:
                    server.quiet.clear()
                    await server.quiet.wait()
        except TimeoutError:
            for exchange in list(server.running.values()):
                if exchange.task is not None and not exchange.call.committing:
                    exchange.call.cancelled = True
                    exchange.task.cancel()
        self.transactions.end_all("drained", "The node was shut down; it was rolled back.")

    async def close(self) -> None:
        """Close every connection to PostgreSQL."""
        self.transactions.end_all("closed", "The node was shut down; it was rolled back.")
        for target in self.targets.by_name.values():
            await target.close()
        self.log.flush()

    def _observe(self, exchange: Exchange) -> None:
        identified = exchange.identified
        call = exchange.call
        self.log.request(
            operation=exchange.operation,
            request_id=call.request_id,
            subject=identified.principal.subject if identified is not None else None,
            status=exchange.status,
            code=exchange.code,
            queued=call.queued,
            running=call.running,
        )

    def _metrics(self) -> Iterable[Metric]:
        counts = self.server.counts
        yield Metric(
            "pgsluice_requests_total",
            "counter",
            "Answers sent, by operation and status.",
            [
                Sample({"operation": operation, "status": str(status)}, value)
                for (operation, status), value in counts.requests.items()
            ],
        )
        yield Metric(
            "pgsluice_refusals_total",
            "counter",
            "Answers other than results, by error code.",
            [Sample({"code": code}, value) for code, value in counts.refusals.items()],
        )
        yield Metric(
            "pgsluice_requests_active", "gauge", "Requests being served.",
            [Sample({}, self.server.active)],
        )  # fmt: skip
        targets = list(self.targets.by_name.values())
        for name, kind, help, value in _TARGET_METRICS:
            yield Metric(
                name, kind, help, [Sample({"target": each.name}, value(each)) for each in targets]
            )
        yield Metric(
            "pgsluice_transactions_open",
            "gauge",
            "Transactions open across requests.",
            [
                Sample(
                    {"target": each.name},
                    sum(held.target is each for held in self.transactions.open.values()),
                )
                for each in targets
            ],
        )
        for name, help, attribute in _BY_REASON:
            yield Metric(
                name,
                "counter",
                help,
                [
                    Sample({"target": each.name, "reason": reason}, value)
                    for each in targets
                    for reason, value in getattr(each.counters, attribute).items()
                ],
            )


_TARGET_METRICS: tuple[tuple[str, str, str, Any], ...] = (
    (
        "pgsluice_connections_limit", "gauge", "Connections the target may hold.",
        lambda each: each.settings.pool.max_connections,
    ),
    ("pgsluice_connections", "gauge", "Open connections.", lambda each: each.size),
    (
        "pgsluice_connections_in_use", "gauge", "Connections lent to statements.",
        lambda each: each.admission.in_use,
    ),
    (
        "pgsluice_queue_waiting", "gauge", "Statements waiting for a connection.",
        lambda each: each.admission.waiting,
    ),
    (
        "pgsluice_connects_total", "counter", "Connections opened.",
        lambda each: each.counters.connects,
    ),
    (
        "pgsluice_resets_total", "counter", "Sessions cleaned behind a statement.",
        lambda each: each.counters.resets,
    ),
    (
        "pgsluice_statements_total", "counter", "Turns given to statements and transactions.",
        lambda each: each.counters.statements,
    ),
    (
        "pgsluice_transactions_opened_total", "counter", "Transactions opened across requests.",
        lambda each: each.counters.transactions_opened,
    ),
)  # fmt: skip
_BY_REASON = (
    ("pgsluice_discards_total", "Connections closed, by reason.", "discards"),
    ("pgsluice_cancels_total", "Statements cancelled, by reason.", "cancels"),
    (
        "pgsluice_transactions_ended_total",
        "Transactions ended, by reason.",
        "transactions_ended",
    ),
)


def _identifier(auth: AuthSettings, hosts: tuple[str, ...]) -> Identifier:
    keys = {}
    for master in (auth.master_key, auth.previous_master_key):
        if master:
            key = token_key(master)
            keys[token_key_id(key)] = key
    issuers = {GATEWAY_ISSUER: gateway_issuer(GATEWAY_ISSUER, keys)}
    for each in auth.issuers:
        found: dict[str | None, Any] = {}
        if each.secret is not None:
            found[None] = each.secret.encode()
        for path in each.public_keys:
            name = None if len(each.public_keys) == 1 else path.stem
            found[name] = _public_key(path.read_bytes(), each.algorithms)
        issuers[each.issuer] = Issuer(
            issuer=each.issuer,
            audience=each.audience,
            algorithms=each.algorithms,
            keys=found,
            leeway=each.leeway,
            max_age=each.max_age,
        )
    return Identifier(
        master=auth.master_key,
        previous_master=auth.previous_master_key,
        keys=auth.keys,
        issuers=issuers,
        regions=frozenset(auth.regions) or None,
        hosts=frozenset(hosts) or None,
    )


def _public_key(pem: bytes, algorithms: tuple[str, ...]) -> Any:
    for algorithm in algorithms:
        if algorithm in ASYMMETRIC:
            try:
                return public_key(algorithm, pem)
            except ValueError:
                continue
    raise ValueError("a public key fits none of the algorithms of its issuer")


def create_app(settings: Settings) -> App:
    """The application; call it inside the event loop that will run it."""
    return App(settings)
