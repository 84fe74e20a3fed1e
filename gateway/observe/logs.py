"""One JSON line for each request: who, what, how it ended, how long. Never a value.

What happens to the node itself has lines of its own, with the member `event`; so has a
statement that took long. Lines are collected and written together, so that a request
costs no system call.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, BinaryIO

import orjson

from ..core.observation import (
    AuditFailed,
    ConfigurationLoaded,
    ConfigurationRefused,
    ConnectFailed,
    DrainBegan,
    IdempotencyFound,
    Observation,
    Observer,
    PasswordCanChange,
    Resolved,
)
from .told import Ended, fingerprints

_BUFFER = 32_768
_FLUSH_AFTER = 1.0
"""Seconds that a line may wait for company."""
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}


_LINE = (
    b'{"time":%.3f,"level":"info","operation":%b,"request_id":%b,"subject":%b,"target":%b,'
    b'"fingerprint":%b,"status":%d,"outcome":"ok","rows":%b,"bytes":%d,"queue_ms":%.2f,'
    b'"connect_ms":%.2f,"db_ms":%.2f,"total_ms":%.2f}'
)


@lru_cache(maxsize=4_096)
def _quoted(text: str | None) -> bytes:
    """*text* as JSON: one of those that come again and again."""
    return orjson.dumps(text)


def _ordinary(ended: Ended, now: float) -> bytes:
    """The line of a request that went well, written by one format: at half the price."""
    call = ended.call
    return _LINE % (
        now,
        _quoted(ended.operation),
        orjson.dumps(call.request_id),
        _quoted(ended.principal.subject if ended.principal is not None else None),
        _quoted(call.target),
        _quoted(call.statements[0].fingerprint if call.statements else None),
        ended.status,
        b"null" if ended.rows is None else b"%d" % ended.rows,
        ended.sent,
        call.queued * 1000,
        call.connecting * 1000,
        call.running * 1000,
        (ended.ended - ended.received) * 1000,
    )


class RequestLog(Observer):
    """The access log, and what happens to the node."""

    def __init__(
        self,
        level: str = "info",
        out: BinaryIO | None = None,
        *,
        slow: float = 0.0,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        """Write to *out*, which is standard error if there is none.

        Args:
            slow: Seconds in PostgreSQL from which a statement has a line of its own.
            later: Calls something in so many seconds; without, lines wait for the next one.
        """
        self._level = _LEVELS.get(level, 20)
        self.slow = slow
        self._later = later
        self._out = out if out is not None else sys.stderr.buffer
        self._lines: list[bytes] = []
        self._size = 0
        self._flushed = 0.0
        self._waiting = False

    def set_level(self, level: str) -> None:
        """Write what is at least as grave as *level* from now on."""
        self._level = _LEVELS.get(level, 20)

    def happened(self, observation: Observation) -> None:
        """See `Observer`."""
        match observation:
            case ConfigurationLoaded(changed, ignored):
                found: dict[str, Any] = {"changed": list(changed)}
                if ignored:
                    found["takes_a_restart"] = list(ignored)
                level = "warning" if ignored else "info"
                self._event(level, "configuration_loaded", found)
            case ConfigurationRefused(problems):
                self._event("error", "configuration_refused", {"problems": list(problems)})
            case DrainBegan(running, transactions):
                found = {"running": running, "transactions": transactions}
                self._event("info", "drain_began", found)
            case IdempotencyFound(target, where):
                level = "info" if where == "database" else "warning"
                self._event(level, "idempotency_found", {"target": target, "where": where})
            case PasswordCanChange(target, login):
                found = {"target": target, "login": login}
                self._event("warning", "password_can_change", found)
            case Resolved(target, outcome):
                self._event("warning", "commit_resolved", {"target": target, "outcome": outcome})
            case ConnectFailed(target, code, took):
                found = {"target": target, "code": code, "took_ms": round(took * 1000, 2)}
                self._event("warning", "connect_failed", found)
            case AuditFailed(reason, again=False):
                self._event("error", "audit_failed", {"reason": reason})

    def _event(self, level: str, event: str, more: dict[str, Any]) -> None:
        if self._level <= _LEVELS[level]:
            line = {"time": round(time.time(), 3), "level": level, "event": event, **more}
            self._lines.append(orjson.dumps(line))
            # These are rare, and somebody may be waiting for them.
            self.flush()

    def request(self, ended: Ended) -> None:
        """One request has ended."""
        call = ended.call
        failed = ended.status >= 500 or ended.status == 0
        slow = 0 < self.slow <= call.running and self._level <= 30
        if self._level > (40 if failed else 20) and not slow:
            return
        now = time.time()
        if ended.outcome == "ok" and ended.status and not slow and len(call.statements) < 2:
            self._add(_ordinary(ended, now), now)
            return
        line: dict[str, Any] = {
            "time": round(now, 3),
            "level": "error" if failed else "info",
            "operation": ended.operation,
            "request_id": call.request_id,
            "subject": ended.principal.subject if ended.principal is not None else None,
            "target": call.target,
            "fingerprint": fingerprints(call),
            "status": ended.status,
            "outcome": ended.outcome,
            "rows": ended.rows,
            "bytes": ended.sent,
            "queue_ms": round(call.queued * 1000, 2),
            "connect_ms": round(call.connecting * 1000, 2),
            "db_ms": round(call.running * 1000, 2),
            "total_ms": round((ended.ended - ended.received) * 1000, 2),
        }
        if ended.code is not None:
            line["code"] = ended.code
            if ended.sqlstate is not None:
                line["sqlstate"] = ended.sqlstate
            if ended.reason:
                line["reason"] = ended.reason
        if self._level <= (40 if failed else 20):
            self._add(orjson.dumps(line), now)
        if slow:
            self._add(orjson.dumps({**line, "level": "warning", "event": "slow_statement"}), now)

    def _add(self, encoded: bytes, now: float) -> None:
        self._lines.append(encoded)
        self._size += len(encoded)
        if self._size > _BUFFER or now - self._flushed > _FLUSH_AFTER:
            self._flushed = now
            self.flush()
        elif self._later is not None and not self._waiting:
            # Nobody may come after this one; it is to be read all the same.
            self._waiting = True
            self._later(_FLUSH_AFTER, self._flush_late)

    def _flush_late(self) -> None:
        self._waiting = False
        self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        if self._lines:
            lines, self._lines, self._size = self._lines, [], 0
            self._out.write(b"\n".join(lines) + b"\n")
            self._out.flush()
