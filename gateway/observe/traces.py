"""OpenTelemetry spans: one of the request, and inside it one of what PostgreSQL did.

They are our own, made where a request ends, from the times that it has gathered; an
instrumented driver would see the reset behind each statement as well. A trace that a
caller began, in `traceparent` and `tracestate`, is gone on with. Attributes are those of
OpenTelemetry's conventions for HTTP servers and database clients, without the text and
the values of a statement: its fingerprint stands for it.

OpenTelemetry is the extra `otel`, imported when traces are switched on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.trace import make_traceparent
from ..settings import ObserveSettings
from .told import Ended, fingerprints

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_FAREWELL = 3_000
"""Milliseconds for the last spans to be sent."""
_SEND_TIMEOUT = 5
"""Seconds that one export may take."""


class Trace:
    """One request's span, begun and not ended."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Any) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = make_traceparent(
            context.trace_id, context.span_id, int(context.trace_flags)
        )
        """What stands for this span in a header, or in a comment."""


class Traces:
    """Makes spans and has them sent, by a thread of OpenTelemetry's."""

    def __init__(self, settings: ObserveSettings, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=settings.traces_endpoint, timeout=_SEND_TIMEOUT)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": settings.service_name}),
            sampler=ParentBased(TraceIdRatioBased(settings.traces_sampled)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pgsluice", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kinds = SpanKind
        self._failed = Status(StatusCode.ERROR)
        self._inside = set_span_in_context

    def begin(self, operation: str, headers: Sequence[tuple[bytes, bytes]], ago: float) -> Trace:
        """The span of a request that was complete *ago* seconds ago."""
        carrier = {
            name.decode("ascii"): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate")
        }
        span = self._tracer.start_span(
            f"pgsluice {operation}" if operation else "pgsluice",
            context=self._propagator.extract(carrier),
            kind=self._kinds.SERVER,
            start_time=time.time_ns() - int(ago * 1e9),
        )
        return Trace(span)

    def finish(self, trace: Trace, ended: Ended, method: str) -> None:
        """End the span of *ended*, after that of its work in the database."""
        span = trace._span
        now = time.time_ns()
        if span.is_recording():
            call = ended.call
            span.set_attributes(
                _known(
                    {
                        "http.request.method": method,
                        "http.response.status_code": ended.status or None,
                        "http.response.body.size": ended.sent,
                        "pgsluice.operation": ended.operation,
                        "pgsluice.request_id": call.request_id,
                        "pgsluice.outcome": ended.outcome,
                        "pgsluice.queue_seconds": call.queued,
                        "error.type": ended.code,
                    }
                )
            )
            # As HTTP servers do: what the caller did wrong is no error of ours.
            if ended.status >= 500:
                span.set_status(self._failed)
            if call.target is not None:
                self._database(span, ended, now)
        span.end(now)

    def _database(self, parent: Any, ended: Ended, now: int) -> None:
        call, grant = ended.call, ended.call.grant
        begun = now - int((ended.ended - call.started) * 1e9)
        span = self._tracer.start_span(
            f"{ended.operation} {call.target}",
            context=self._inside(parent),
            kind=self._kinds.CLIENT,
            start_time=begun,
        )
        found = fingerprints(call)
        span.set_attributes(
            _known(
                {
                    "db.system.name": "postgresql",
                    "db.namespace": grant.database if grant is not None else None,
                    "db.operation.name": ended.operation,
                    "db.operation.batch.size": (
                        len(call.statements) if len(call.statements) > 1 else None
                    ),
                    "db.response.returned_rows": ended.rows,
                    "db.response.status_code": ended.sqlstate,
                    "error.type": ended.sqlstate or ended.code,
                    "pgsluice.target": call.target,
                    "pgsluice.fingerprint": found,
                    "pgsluice.backend_pid": call.backend,
                    "pgsluice.connect_seconds": call.connecting,
                }
            )
        )
        if ended.code is not None:
            span.set_status(self._failed)
        # A stream keeps PostgreSQL at work until its end.
        whole = ended.streamed or not call.running
        span.end(now if whole else begun + int(call.running * 1e9))

    def close(self) -> None:
        """Send what is left, for a while; may block."""
        self._provider.force_flush(_FAREWELL)
        self._provider.shutdown()


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
