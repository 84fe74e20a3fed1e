"""One JSON line for each request: who, what, how it ended, how long. Never a value.

What happens to the node itself has lines of its own, with the member `event`. Lines
are collected and written together, so that a request costs no system call.
"""

from __future__ import annotations

import sys
import time
from typing import Any, BinaryIO

import orjson

from ..core.observation import (
    ConfigurationLoaded,
    ConfigurationRefused,
    ConnectFailed,
    DrainBegan,
    IdempotencyFound,
    Observation,
    Observer,
    Resolved,
)

_BUFFER = 32_768
_FLUSH_AFTER = 1.0
"""Seconds that a line may wait for company."""
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}


class RequestLog(Observer):
    """The access log, and what happens to the node."""

    def __init__(self, level: str = "info", out: BinaryIO | None = None) -> None:
        self._level = _LEVELS.get(level, 20)
        self._out = out if out is not None else sys.stderr.buffer
        self._lines: list[bytes] = []
        self._size = 0
        self._flushed = 0.0

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
            case Resolved(target, outcome):
                self._event("warning", "commit_resolved", {"target": target, "outcome": outcome})
            case ConnectFailed(target, code, took):
                found = {"target": target, "code": code, "took_ms": round(took * 1000, 2)}
                self._event("warning", "connect_failed", found)

    def _event(self, level: str, event: str, more: dict[str, Any]) -> None:
        if self._level <= _LEVELS[level]:
            line = {"time": round(time.time(), 3), "level": level, "event": event, **more}
            self._lines.append(orjson.dumps(line))
            # These are rare, and somebody may be waiting for them.
            self.flush()

    def request(
        self,
        *,
        operation: str,
        request_id: str,
        subject: str | None,
        status: int,
        code: str | None,
        queued: float,
        running: float,
    ) -> None:
        """One request has ended; *queued* and *running* in seconds."""
        failed = status >= 500 or status == 0
        if self._level > (40 if failed else 20):
            return
        now = time.time()
        line: dict[str, Any] = {
            "time": round(now, 3),
            "level": "error" if failed else "info",
            "operation": operation,
            "request_id": request_id,
            "subject": subject,
            "status": status,
            "queue_ms": round(queued * 1000, 2),
            "db_ms": round(running * 1000, 2),
        }
        if code is not None:
            line["code"] = code
        encoded = orjson.dumps(line)
        self._lines.append(encoded)
        self._size += len(encoded)
        if self._size > _BUFFER or now - self._flushed > _FLUSH_AFTER:
            self._flushed = now
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        if self._lines:
            lines, self._lines, self._size = self._lines, [], 0
            self._out.write(b"\n".join(lines) + b"\n")
            self._out.flush()
