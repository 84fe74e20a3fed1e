"""The audit log: who did what as whom, and how it ended. One JSON line a request, no value.

Each line is written by itself, appended in one call, so that what was answered is in the
file when the process dies, and several processes may share a file. A line that cannot be
written stops no request, which has ended by then: it is counted in
`pgsluice_audit_failures_total`, and the log says so once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from ..core.observation import AuditFailed, Observer
from .told import Ended, fingerprints

_MODE = 0o600
_ASKED = 256
"""Characters of a target's name in the caller's words."""


class AuditLog:
    """Appends to *path*."""

    def __init__(self, path: Path, observer: Observer, wall: Callable[[], float]) -> None:
        """Open it.

        Raises:
            OSError: It cannot be written to.
        """
        self._path = path
        self._observer = observer
        self._wall = wall
        self._failing = False
        self._file = _open(path)

    def reopen(self, path: Path) -> None:
        """Go on with *path*, anew also if it is the same: it may have been moved away.

        Raises:
            OSError: It cannot be written to; the one before stays.
        """
        file = _open(path)
        os.close(self._file)
        self._file, self._path = file, path

    def write(self, ended: Ended) -> None:
        """Append the line of one request."""
        try:
            os.write(self._file, orjson.dumps(line_of(ended, self._wall())) + b"\n")
            self._failing = False
        except OSError as error:
            self._observer.happened(AuditFailed(os.strerror(error.errno or 0), self._failing))
            self._failing = True

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)


def line_of(ended: Ended, now: float) -> dict[str, Any]:
    """What is told of one request; *now* in seconds since the epoch."""
    call, principal, grant = ended.call, ended.principal, ended.call.grant
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "request_id": call.request_id,
        "source": ended.source,
        "operation": ended.operation,
        "who": None,
        "target": call.asked[:_ASKED] if call.asked is not None else None,
        "as": None,
        "database": None,
        "read_only": None,
        "fingerprint": fingerprints(call),
        "statements": len(call.statements),
        "rows": ended.rows,
        "status": ended.status,
        "outcome": ended.outcome,
        "code": ended.code,
        "sqlstate": ended.sqlstate,
        "reason": ended.reason or None,
        "replayed": call.replayed,
    }
    if principal is not None:
        line["who"] = {
            "kind": principal.kind,
            "issuer": principal.issuer,
            "subject": principal.subject,
            "session": principal.session,
            "key_id": principal.key_id,
        }
    if grant is not None:
        line["target"], line["as"] = grant.target, grant.login
        line["database"], line["read_only"] = grant.database, grant.read_only
    return line
