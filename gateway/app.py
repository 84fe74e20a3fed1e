"""Wiring: settings in, one ASGI application out, and the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from .api.auth import PATH as AUTH_PATH
from .api.auth import AuthRoutes
from .api.cors import Cors
from .api.docs import render_docs
from .api.exchange import Exchange
from .api.native.routes import native
from .api.operations import PUBLIC_PATHS, admin, public, read_document
from .api.rds_data.routes import rds_data
from .api.relay import PATH as NODES_PATH
from .api.relay import NodeRoutes, Relay
from .api.server import Server
from .core.iam import Seen
from .core.observation import (
    ConfigurationLoaded,
    ConfigurationRefused,
    DrainBegan,
    Observer,
    Observers,
    PasswordCanChange,
)
from .core.policy import free_logins
from .core.proxies import Proxies
from .core.transaction import Event
from .engine.claims import Claiming
from .engine.engine import Engine
from .engine.exchange import IamExchange
from .engine.issuers import make_identifier
from .engine.ledger import Ledger
from .engine.nodes import Nodes
from .engine.targets import Target, Targets
from .engine.transactions import Transactions
from .observe.audit import AuditLog
from .observe.logs import RequestLog
from .observe.metrics import Metrics, NodeState, TargetState
from .observe.told import Ended
from .observe.traces import Traces
from .providers.fetch import Fetcher
from .providers.sts import CallerIdentities
from .settings import ConfigurationError, Problem, Settings

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
        self._announcing: asyncio.Task[None] | None = None
        self.callers: Callable[[], int] = lambda: 0
        """Counts the open connections of callers; the server that listens knows."""
        self.guarded: Callable[[], tuple[Mapping[str, int], int, int]] = lambda: ({}, 0, 0)
        """Connections ended below HTTP, by reason; bytes of bodies held; bytes unread."""
        self.log = RequestLog(
            settings.log_level,
            slow=settings.observe.slow_statement,
            later=asyncio.get_running_loop().call_later,
        )
        self.metrics = Metrics(self._state)
        self.observer: Observer = Observers([self.metrics, self.log])
        self.audit = self._open_audit(settings)
        self.targets = Targets(settings.targets, self.observer, shared=bool(settings.nodes.peers))
        self.transactions = Transactions(master=settings.auth.master_key)
        self.nodes: Nodes | None = None
        if settings.nodes.peers:
            self.nodes = Nodes(settings, self.targets, self.transactions.ids, time.time)
        self.fetcher = Fetcher()
        self.server = Server(
            engine=Engine(
                targets=self.targets,
                transactions=self.transactions,
                rules=settings.policy,
                ledger=Ledger(
                    master=settings.auth.master_key,
                    previous=settings.auth.previous_master_key,
                    wall=time.time,
                ),
                claims=Claiming(master=settings.auth.master_key, wall=time.time),
                wall=time.time,
            ),
            identifier=make_identifier(settings, self.fetcher),
            wall=time.time,
            request_bytes=settings.server.request_bytes,
            observer=self.observer,
            observe=self._observe,
            cors=Cors(settings.cors),
            proxies=Proxies(settings.server.proxies),
            require_signed_key=settings.sigv4.require_signed_key,
        )
        self.server.traces = Traces(settings.observe) if settings.observe.traces else None
        self._follow(settings)
        self._auth = AuthRoutes(self.server, self._iam_exchange(settings))
        self._greeted: NodeRoutes | None = None
        if self.nodes is not None:
            self.server.relay = Relay(self.nodes)
            self.transactions.asks_others = True
            self.server.identifier.believe = self.nodes.believe
            self._greeted = NodeRoutes(self.server, self.nodes)
        self._native = native(self.server)
        self._rds_data = rds_data(self.server)
        self.direct = dict([*self._native.direct(), *self._rds_data.direct()])
        """What the protocol may answer without ASGI, by target."""
        self._public = public(
            self.targets,
            lambda: self.server.draining,
            lambda: render_docs(read_document),
            self.server.engine.ledger.state,
        )
        self.admin = admin(self.metrics.render, self.targets)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Find the dialect by the path; Starlette serves only what is rare."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if self.server.cors and scope["method"] == "OPTIONS":
            headers = self.server.cors.preflight("OPTIONS", scope["headers"])
            if headers is not None:
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
        if path in _RDS_PATHS:
            await self._rds_data(self._rds_data.find(path), scope, receive, send)
        elif path == AUTH_PATH:
            await self._auth(scope, receive, send)
        elif path == NODES_PATH and self._greeted is not None:
            await self._greeted(scope, receive, send)
        elif path in PUBLIC_PATHS and scope["method"] in ("GET", "HEAD"):
            await self._public(scope, receive, send)
        else:
            await self._native(self._native.find(path), scope, receive, send)

    async def start(self) -> None:
        """Whatever has to be sure before the first request.

        Raises:
            ClaimsUnsafe: A login that callers with sealed claims share is not fit for it.
        """
        if self.nodes is not None:
            await self.nodes.start()
        await self.server.engine.claims.announce(self.settings.policy, self.targets.by_name)

    def listens(self) -> None:
        """The listeners answer; called once, after `start`.

        Now is looked where each target remembers idempotency keys; nobody waits for that.
        """
        self._announcing = asyncio.create_task(self._announce())
        if self.nodes is not None:
            self.nodes.listens()

    async def _announce(self) -> None:
        ledger = self.server.engine.ledger
        names = {name: target.names() for name, target in self.targets.by_name.items()}
        for name, alias in free_logins(self.settings.policy, names):
            if self.settings.targets[name].logins[alias].has_password:
                self.observer.happened(PasswordCanChange(name, alias))
        await asyncio.gather(*(ledger.announce(each) for each in self.targets.all()))

    async def drain(self, grace: float) -> None:
        """Take no new work; return when what runs has ended, or was stopped after *grace* seconds.

        Open transactions may go on meanwhile, if their callers make haste. A COMMIT that is
        on its way is never stopped.
        """
        server, transactions = self.server, self.transactions
        server.draining = True
        if self.settings.server.drain_delay:
            await asyncio.sleep(self.settings.server.drain_delay)
        now = asyncio.get_running_loop().time()
        self.observer.happened(DrainBegan(server.active, len(transactions.open)))
        self.targets.each(Target.take_no_more)
        transactions.drain(idle=self.settings.server.drain_idle, ends=now + grace)
        if self.nodes is not None:
            await self.nodes.stop()
        try:
            async with asyncio.timeout(grace):
                await self._quiet()
        except TimeoutError:
            self._stop_what_runs()
        transactions.end_all(Event.DRAINED)
        # What was stopped is cleaned and answered; a COMMIT ends, by its own limit at last.
        while any(each.call.committing for each in server.running.values()):
            server.quiet.clear()
            await server.quiet.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self._quiet()
        if self.nodes is not None:
            # While this node still answers: the others take one that is silent for gone.
            await self.targets.close()
            await self.nodes.leave()

    async def _quiet(self) -> None:
        """Wait until no transaction is open and no request is being served."""
        server, transactions = self.server, self.transactions
        while server.active or transactions.open:
            await transactions.none_open.wait()
            if server.active:
                server.quiet.clear()
                await server.quiet.wait()

    def _stop_what_runs(self) -> None:
        for exchange in list(self.server.running.values()):
            call = exchange.call
            if exchange.task is not None and not call.committing:
                call.cancelled = True
                call.cancel_reason = "drain"
                exchange.task.cancel()

    async def close(self) -> None:
        """Close every connection to PostgreSQL."""
        self.transactions.end_all(Event.DRAINED)
        if self._announcing is not None:
            self._announcing.cancel()
        if self.nodes is not None:
            self.nodes.close()
        await self.targets.close()
        self.fetcher.close()
        self.server.identifier.dear.close()
        if self.server.traces is not None:
            await asyncio.to_thread(self.server.traces.close)
        if self.audit is not None:
            self.audit.close()
        self.log.flush()

    def _iam_exchange(self, settings: Settings, seen: Seen | None = None) -> IamExchange:
        identities = CallerIdentities(
            self.fetcher, audience=settings.iam.audience, endpoint=settings.iam.sts_endpoint
        )
        dear = self.server.identifier.dear
        return IamExchange(settings, identities, dear, time.time, seen=seen)

    # -- a new configuration -----------------------------------------------------------

    def reconfigure(self, settings: Settings) -> None:
        """Go on with *settings* as far as that can be without a restart.

        Everything that can fail comes first; then all changes count from one moment on.
        Requests that are being served keep what they were given.
        """
        identifier = make_identifier(settings, self.fetcher, previous=self.server.identifier)
        if self.nodes is not None:
            identifier.believe = self.nodes.believe
        self._reopen_audit(settings)
        changed = differences(self.settings, settings)
        kept = {name: getattr(self.settings.server, name) for name in _FIXED}
        observe = replace(
            settings.observe, **{name: getattr(self.settings.observe, name) for name in _TRACED}
        )
        self.settings = replace(
            settings, server=replace(settings.server, **kept), observe=observe,
            nodes=self.settings.nodes,
        )  # fmt: skip
        self.server.identifier.dear.close()
        self.server.identifier = identifier
        self.server.cors = Cors(settings.cors)
        self.server.require_signed_key = settings.sigv4.require_signed_key
        seen = self._auth.exchange.seen  # a signature stays used
        self._auth = AuthRoutes(self.server, self._iam_exchange(settings, seen))
        auth = settings.auth
        self.server.engine.ledger.rotate(auth.master_key, auth.previous_master_key)
        self.server.engine.rules = settings.policy
        self.log.set_level(settings.log_level)
        self.log.slow = settings.observe.slow_statement
        self._follow(settings)
        for gone in self.targets.reconfigure(settings.targets):
            self.transactions.end_all(Event.REMOVED, gone)
            gone.tell_if_quiet()
        fixed = [f"server.{name}" for name in _FIXED] + [f"observe.{name}" for name in _TRACED]
        fixed += [f"nodes.{item.name}" for item in fields(settings.nodes)]
        self.observer.happened(
            ConfigurationLoaded(
                [name for name in changed if name not in fixed],
                [name for name in changed if name in fixed],
            )
        )

    def refuse(self, problems: list[str]) -> None:
        """A configuration was read that is no good; the one before stays."""
        self.observer.happened(ConfigurationRefused(problems))

    # -- what happens ------------------------------------------------------------------

    def _observe(self, exchange: Exchange) -> None:
        identified, call, reply = exchange.identified, exchange.call, exchange.reply
        now = exchange.clock()
        self.observer.request_finished(
            exchange.operation, exchange.status, exchange.code, now - call.received, exchange.sent
        )
        ended = Ended(
            exchange.operation,
            call,
            identified.principal if identified is not None else None,
            exchange.status,
            exchange.code,
            exchange.outcome,
            call.rows if reply is None or call.rows is not None else reply.count,
            exchange.sent,
            call.received,
            now,
            reply is not None and reply.result is None,
            exchange.source if self.audit is not None else "",
            exchange.sqlstate,
            exchange.reason,
        )
        self.log.request(ended)
        if self.audit is not None:
            self.audit.write(ended)
        traces = self.server.traces
        if traces is not None:
            if exchange.trace is None:
                exchange.trace = traces.begin(exchange.operation, exchange.raw, now - call.received)
            traces.finish(exchange.trace, ended, exchange.wire.method)

    def _follow(self, settings: Settings) -> None:
        self.server.comments = any(each.trace_comment for each in settings.targets.values())

    def _open_audit(self, settings: Settings) -> AuditLog | None:
        path = settings.observe.audit_file
        if path is None:
            return None
        try:
            return AuditLog(path, self.observer, time.time)
        except OSError as error:
            raise _unusable(error) from None

    def _reopen_audit(self, settings: Settings) -> None:
        path, audit = settings.observe.audit_file, self.audit
        if audit is None or path is None:
            self.audit = self._open_audit(settings)
            if audit is not None:
                audit.close()
            return
        try:
            audit.reopen(path)
        except OSError as error:
            raise _unusable(error) from None

    def _state(self) -> NodeState:
        refused, bodies, unread = self.guarded()
        held = [each.target for each in self.transactions.open.values()]
        return NodeState(
            active=self.server.active,
            callers=self.callers(),
            draining=self.server.draining,
            refused=refused,
            bodies=bodies,
            unread=unread,
            **self._house(),
            targets={
                each.name: TargetState(
                    limit=each.limit,
                    size=each.size,
                    in_use=each.admission.in_use,
                    waiting=each.admission.waiting,
                    transactions_open=held.count(each),
                    transactions_waiting=each.begins.waiting,
                    budget=each.budget,
                )
                for each in self.targets.all()
            },
        )

    def _house(self) -> dict[str, Mapping[str, int]]:
        relay = self.server.relay
        if self.nodes is None or not isinstance(relay, Relay):
            return {}
        return {"nodes": self.nodes.counts(), "relayed": relay.results}


_TRACED = ("traces", "traces_endpoint", "traces_sampled", "service_name")
"""Settings of the traces, which take a restart too."""
_LAST_WORDS = 1.0
"""Seconds for what was stopped to be cleaned, and to be answered."""
_FIXED = (
    "host", "port", "admin_host", "admin_port", "behind_proxy", "proxies", "request_bytes",
    "inflight_bytes", "keep_alive", "max_callers",
)  # fmt: skip
"""Settings of the server that take a restart: what listens was made of them."""


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The names of what differs between two settings, such as `targets.main.pool.share`."""
    if old == new:
        return []
    if is_dataclass(old) and type(old) is type(new):
        names = [item.name for item in fields(old)]
        pairs = [(name, getattr(old, name), getattr(new, name)) for name in names]
    elif isinstance(old, dict) and isinstance(new, dict) and path in _NAMED:
        names = [*old, *(name for name in new if name not in old)]
        pairs = [(name, old.get(name), new.get(name)) for name in names]
    else:
        return [path]
    return [
        found
        for name, before, after in pairs
        for found in differences(before, after, f"{path}.{name}" if path else name)
    ]


_NAMED = frozenset({"targets"})
"""Tables whose names are told; those of keys and logins are nobody's business in a log."""


def _unusable(error: OSError) -> ConfigurationError:
    reason = (error.strerror or str(error)).lower()
    message = f"cannot be written to: {reason}"
    return ConfigurationError([Problem("observe.audit_file", "the configuration", message)])


def create_app(settings: Settings) -> App:
    """The application; call it inside the event loop that will run it."""
    return App(settings)
