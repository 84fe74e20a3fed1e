"""What happens, counted: the listener behind `GET /metrics`, and every metric's definition.

The hot path adds to integers and lists of ours; the text is made when somebody asks
for it. Labels never hold SQL, a user or a tenant, and each takes few values: a
target's name, an operation, a status, a code, a reason.

A histogram is a list of counts and the bisection of its bounds: 0.2 microseconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from ..core.observation import (
    AuditFailed,
    ConfigurationLoaded,
    ConfigurationRefused,
    ConnectFailed,
    ConnectionClosed,
    ConnectionOpened,
    Observation,
    Observer,
    StatementCancelled,
    TransactionEnded,
    TransactionOpened,
)

SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Bounds for what takes from a flight on loopback to the longest statement."""
LIFETIMES: Final = (0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 3_600.0, 86_400.0)
"""Bounds for transactions: the idle limit and the total limit are among them."""
SIZES: Final = (256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0,
                4_194_304.0, 16_777_216.0, 67_108_864.0, 268_435_456.0)  # fmt: skip
"""Bounds for answers: AWS's limit of 1 MiB and the budget of held results are among them."""


class Definition(NamedTuple):
    """What a metric is."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    labels: tuple[str, ...]
    help: str
    beside: str = ""
    """What RDS Proxy (CloudWatch) and PgBouncer (its console) call the nearest thing."""


_T = ("target",)
DEFINITIONS: Final = (
    Definition(
        "pgsluice_requests_total", "counter", ("operation", "status"),
        "Answers sent, by operation and status; 0 is a caller who left before its answer.",
        "QueryRequests; SHOW STATS total_query_count",
    ),
    Definition(
        "pgsluice_refusals_total", "counter", ("code",),
        "Answers other than results, by error code.",
    ),
    Definition(
        "pgsluice_request_seconds", "histogram", ("operation",),
        "From a request's last byte to its answer's last byte.",
        "QueryResponseLatency",
    ),
    Definition(
        "pgsluice_response_bytes", "histogram", (),
        "Size of an answer's body.",
        "SHOW STATS total_sent",
    ),
    Definition(
        "pgsluice_requests_active", "gauge", (),
        "Requests being served.",
        "SHOW POOLS cl_active and cl_waiting",
    ),
    Definition(
        "pgsluice_caller_connections", "gauge", (),
        "Open connections of callers.",
        "ClientConnections; SHOW LISTS used_clients",
    ),
    Definition(
        "pgsluice_caller_connections_refused_total", "counter", ("reason",),
        "Connections of callers that were ended before their request was served, by reason.",
    ),
    Definition(
        "pgsluice_request_bytes_held", "gauge", (),
        "Bytes of bodies of requests that are not answered yet.",
    ),
    Definition(
        "pgsluice_response_bytes_unread", "gauge", (),
        "Bytes of answers that callers are behind with.",
    ),
    Definition(
        "pgsluice_connections_limit", "gauge", _T,
        "Connections to PostgreSQL that the target may hold.",
        "MaxDatabaseConnectionsAllowed; SHOW DATABASES pool_size",
    ),
    Definition(
        "pgsluice_connections_budget", "gauge", _T,
        "Connections to PostgreSQL that all nodes together may hold.",
    ),
    Definition(
        "pgsluice_connections", "gauge", _T,
        "Open connections to PostgreSQL.",
        "DatabaseConnections; SHOW POOLS sv_*",
    ),
    Definition(
        "pgsluice_connections_in_use", "gauge", _T,
        "Connections lent to statements and transactions.",
        "DatabaseConnectionsCurrentlyBorrowed; SHOW POOLS sv_active",
    ),
    Definition(
        "pgsluice_queue_waiting", "gauge", _T,
        "Statements waiting for a connection.",
        "SHOW POOLS cl_waiting",
    ),
    Definition(
        "pgsluice_transactions_waiting", "gauge", _T,
        "Transactions waiting to begin because as many are open as may be.",
    ),
    Definition(
        "pgsluice_queue_wait_seconds", "histogram", _T,
        "Time in the queue until a turn was given, nothing where one was free.",
        "DatabaseConnectionsBorrowLatency; SHOW STATS total_wait_time",
    ),
    Definition(
        "pgsluice_queue_refusals_total", "counter", ("target", "reason"),
        "Statements that left the queue without a turn, by reason.",
    ),
    Definition(
        "pgsluice_connects_total", "counter", _T,
        "Connections opened.",
        "DatabaseConnectionsSetupSucceeded",
    ),
    Definition(
        "pgsluice_connect_failures_total", "counter", ("target", "code"),
        "Attempts to connect that came to nothing, by error code.",
        "DatabaseConnectionsSetupFailed",
    ),
    Definition(
        "pgsluice_connect_seconds", "histogram", _T,
        "Time to open a connection and make it ready.",
    ),
    Definition(
        "pgsluice_resets_total", "counter", _T,
        "Sessions cleaned behind a statement.",
    ),
    Definition(
        "pgsluice_discards_total", "counter", ("target", "reason"),
        "Connections closed, by reason.",
        "DatabaseConnectionsClosed",
    ),
    Definition(
        "pgsluice_statements_total", "counter", _T,
        "Requests that reached PostgreSQL: single statements, batches, and those in transactions.",
        "SHOW STATS total_query_count",
    ),
    Definition(
        "pgsluice_statement_seconds", "histogram", _T,
        "Time that PostgreSQL took for them; of a streamed result until its first rows.",
        "QueryDatabaseResponseLatency; SHOW STATS total_query_time",
    ),
    Definition(
        "pgsluice_cancels_total", "counter", ("target", "reason"),
        "Statements cancelled, by reason.",
    ),
    Definition(
        "pgsluice_transactions_open", "gauge", _T,
        "Transactions open across requests; each holds a connection.",
        "DatabaseConnectionsCurrentlySessionPinned, DatabaseConnectionsCurrentlyInTransaction",
    ),
    Definition(
        "pgsluice_transactions_opened_total", "counter", _T,
        "Transactions opened across requests.",
        "SHOW STATS total_xact_count",
    ),
    Definition(
        "pgsluice_transactions_ended_total", "counter", ("target", "reason"),
        "Transactions ended, by reason.",
    ),
    Definition(
        "pgsluice_transaction_seconds", "histogram", _T,
        "Time that a transaction was open across requests.",
        "SHOW STATS total_xact_time",
    ),
    Definition(
        "pgsluice_nodes", "gauge", ("state",),
        "Nodes of this house as this one sees them, itself included, by state.",
    ),
    Definition(
        "pgsluice_relayed_total", "counter", ("result",),
        "Requests for a transaction of another node, by what came of passing them on.",
    ),
    Definition(
        "pgsluice_audit_failures_total", "counter", (),
        "Lines of the audit log that could not be written.",
    ),
    Definition(
        "pgsluice_draining", "gauge", (),
        "1 while the node takes no new work because it is to stop.",
    ),
    Definition(
        "pgsluice_config_reloads_total", "counter", ("outcome",),
        "Configurations read again: loaded, or refused.",
    ),
    Definition(
        "pgsluice_config_last_reload_successful", "gauge", (),
        "0 if the configuration was last refused, and the one before stays.",
    ),
)  # fmt: skip
"""Every metric there is; the reference page is made from it."""

REFUSED: Final = MappingProxyType(
    {
        "invalid_request": "It was no request that the gateway takes.",
        "slow_request": "Its head or its body took too long.",
        "too_large": "Its head or its body was larger than allowed.",
        "overloaded": "More bodies were being received than the gateway holds.",
        "pipelined": "Something was sent behind a request that was not answered yet.",
        "silent": "Nothing was sent at all.",
        "stalled": "An answer was not read for too long.",
        "unread": "More of all answers together was unread than the gateway holds.",
    }
)
"""Why the guard below HTTP ends a connection."""
NODES: Final = MappingProxyType(
    {
        "sharing": "It lives and has a share of the budget.",
        "leaving": "It stops, or is gone, and its connections still count.",
        "silent": "Nobody answers there, nor says that nobody is there; no node grows meanwhile.",
    }
)
"""States of nodes."""
RELAYED: Final = MappingProxyType(
    {
        "answered": "The other node answered.",
        "gone": "The other node was not there.",
        "lost": "It was passed on, and its answer did not come.",
        "hangup": "The caller went away.",
    }
)
"""What may come of a request that is passed on."""

Labels = tuple[str, ...]
Values = Mapping[Labels, float]


class Histogram:
    """How many of the values fell below each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """One for each bound, values equal to it included, and one for those above all."""
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count *value*."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class _Target:
    """The counts of one target."""

    __slots__ = ("connect", "resets", "statement", "transaction", "transactions", "wait")

    def __init__(self) -> None:
        self.resets = 0
        self.transactions = 0
        self.wait = Histogram(SECONDS)
        self.connect = Histogram(SECONDS)
        self.statement = Histogram(SECONDS)
        self.transaction = Histogram(LIFETIMES)


class _Targets(dict[str, _Target]):
    """The counts of all targets, made as they come."""

    def __missing__(self, name: str) -> _Target:
        made = self[name] = _Target()
        return made


class TargetState(NamedTuple):
    """A target as it is now, for the gauges."""

    limit: int
    size: int
    in_use: int
    waiting: int
    transactions_open: int
    transactions_waiting: int
    budget: int


class NodeState(NamedTuple):
    """The node as it is now, for the gauges."""

    active: int
    callers: int
    draining: bool
    targets: Mapping[str, TargetState]
    refused: Mapping[str, int] = MappingProxyType({})
    """Connections that the guard ended, by reason."""
    bodies: int = 0
    unread: int = 0
    nodes: Mapping[str, int] = MappingProxyType({"sharing": 1})
    """By state of `NODES`."""
    relayed: Mapping[str, int] = MappingProxyType({})
    """By result of `RELAYED`."""


class Metrics(Observer):
    """Counts; `render` is the page."""

    def __init__(self, state: Callable[[], NodeState]) -> None:
        self._state = state
        self._targets = _Targets()
        self._requests: dict[tuple[str, int], int] = {}
        self._refusals: dict[str, int] = {}
        self._request: dict[str, Histogram] = {}
        self._response = Histogram(SIZES)
        self._events: dict[str, dict[Labels, int]] = {
            name: {}
            for name in (
                "pgsluice_queue_refusals_total",
                "pgsluice_connect_failures_total",
                "pgsluice_discards_total",
                "pgsluice_cancels_total",
                "pgsluice_transactions_ended_total",
                "pgsluice_config_reloads_total",
            )
        }
        self._reloaded = True
        self._audit_failures = 0

    def _of(self, target: str) -> _Target:
        return self._targets[target]

    def _count(self, name: str, *labels: str) -> None:
        counts = self._events[name]
        counts[labels] = counts.get(labels, 0) + 1

    # -- listening ---------------------------------------------------------------------

    def happened(self, observation: Observation) -> None:
        """See `Observer`."""
        match observation:
            case ConnectionOpened(target, took):
                self._of(target).connect.add(took)
            case ConnectFailed(target, code):
                self._count("pgsluice_connect_failures_total", target, code)
            case ConnectionClosed(target, reason):
                self._count("pgsluice_discards_total", target, reason)
            case TransactionOpened(target):
                self._of(target).transactions += 1
            case TransactionEnded(target, reason, lived):
                self._of(target).transaction.add(lived)
                self._count("pgsluice_transactions_ended_total", target, reason)
            case StatementCancelled(target, reason):
                self._count("pgsluice_cancels_total", target, reason)
            case ConfigurationLoaded():
                self._reloaded = True
                self._count("pgsluice_config_reloads_total", "loaded")
            case ConfigurationRefused():
                self._reloaded = False
                self._count("pgsluice_config_reloads_total", "refused")
            case AuditFailed():
                self._audit_failures += 1

    def turn_taken(self, target: str, waited: float) -> None:
        """See `Observer`."""
        self._targets[target].wait.add(waited)

    def turn_refused(self, target: str, waited: float, reason: str) -> None:
        """See `Observer`."""
        self._count("pgsluice_queue_refusals_total", target, reason)

    def connection_reset(self, target: str) -> None:
        """See `Observer`."""
        self._targets[target].resets += 1

    def statement_finished(self, target: str, took: float) -> None:
        """See `Observer`."""
        self._targets[target].statement.add(took)

    def request_finished(
        self, operation: str, status: int, code: str | None, took: float, sent: int
    ) -> None:
        """See `Observer`."""
        key = (operation, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        if code is not None:
            self._refusals[code] = self._refusals.get(code, 0) + 1
        histogram = self._request.get(operation)
        if histogram is None:
            histogram = self._request[operation] = Histogram(SECONDS)
        histogram.add(took)
        self._response.add(sent)

    # -- showing -----------------------------------------------------------------------

    def render(self) -> bytes:
        """The page, in Prometheus' text format 0.0.4."""
        state = self._state()
        simple, histograms = self._values(state)
        lines: list[str] = []
        for each in DEFINITIONS:
            lines.append(f"# HELP {each.name} {each.help}")
            lines.append(f"# TYPE {each.name} {each.kind}")
            if each.kind == "histogram":
                for labels, histogram in histograms[each.name].items():
                    lines.extend(_shown(each, labels, histogram))
            else:
                for labels, value in simple[each.name].items():
                    lines.append(f"{each.name}{_labelled(each.labels, labels)} {_number(value)}")
        return ("\n".join(lines) + "\n").encode()

    def _values(
        self, state: NodeState
    ) -> tuple[dict[str, Values], dict[str, Mapping[Labels, Histogram]]]:
        targets = state.targets
        # A target shows itself before anything happened on it: rates begin at nothing.
        counts = {name: self._targets.get(name) or _Target() for name in targets}
        simple: dict[str, Values] = {
            "pgsluice_requests_total": {
                (operation, str(status)): value
                for (operation, status), value in self._requests.items()
            },
            "pgsluice_refusals_total": {(code,): value for code, value in self._refusals.items()},
            "pgsluice_requests_active": {(): state.active},
            "pgsluice_caller_connections": {(): state.callers},
            "pgsluice_caller_connections_refused_total": {
                (reason,): state.refused.get(reason, 0) for reason in (*REFUSED,)
            },
            "pgsluice_request_bytes_held": {(): state.bodies},
            "pgsluice_response_bytes_unread": {(): state.unread},
            "pgsluice_audit_failures_total": {(): self._audit_failures},
            "pgsluice_draining": {(): state.draining},
            "pgsluice_config_last_reload_successful": {(): self._reloaded},
            "pgsluice_connects_total": {(n,): sum(c.connect.counts) for n, c in counts.items()},
            "pgsluice_resets_total": {(n,): c.resets for n, c in counts.items()},
            "pgsluice_statements_total": {(n,): sum(c.statement.counts) for n, c in counts.items()},
            "pgsluice_transactions_opened_total": {(n,): c.transactions for n, c in counts.items()},
            "pgsluice_connections_limit": {(n,): t.limit for n, t in targets.items()},
            "pgsluice_connections_budget": {(n,): t.budget for n, t in targets.items()},
            "pgsluice_nodes": {(each,): state.nodes.get(each, 0) for each in NODES},
            "pgsluice_relayed_total": {(each,): state.relayed.get(each, 0) for each in RELAYED},
            "pgsluice_connections": {(n,): t.size for n, t in targets.items()},
            "pgsluice_connections_in_use": {(n,): t.in_use for n, t in targets.items()},
            "pgsluice_queue_waiting": {(n,): t.waiting for n, t in targets.items()},
            "pgsluice_transactions_open": {(n,): t.transactions_open for n, t in targets.items()},
            "pgsluice_transactions_waiting": {
                (n,): t.transactions_waiting for n, t in targets.items()
            },
            **self._events,
        }
        histograms: dict[str, Mapping[Labels, Histogram]] = {
            "pgsluice_request_seconds": {(name,): each for name, each in self._request.items()},
            "pgsluice_response_bytes": {(): self._response},
            "pgsluice_queue_wait_seconds": {(n,): c.wait for n, c in counts.items()},
            "pgsluice_connect_seconds": {(n,): c.connect for n, c in counts.items()},
            "pgsluice_statement_seconds": {(n,): c.statement for n, c in counts.items()},
            "pgsluice_transaction_seconds": {(n,): c.transaction for n, c in counts.items()},
        }
        return simple, histograms


def _shown(metric: Definition, labels: Labels, histogram: Histogram) -> Iterable[str]:
    total = 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        total += count
        edge = "+Inf" if bound is None else _number(bound)
        names, values = (*metric.labels, "le"), (*labels, edge)
        yield f"{metric.name}_bucket{_labelled(names, values)} {total}"
    shown = _labelled(metric.labels, labels)
    yield f"{metric.name}_sum{shown} {_number(histogram.sum)}"
    yield f"{metric.name}_count{shown} {total}"


def _labelled(names: Sequence[str], values: Labels) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    """Whole numbers as such, others with all their digits: a counter must not lose its last."""
    return str(int(value)) if value == int(value) else repr(float(value))
