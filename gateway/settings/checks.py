"""What numbers, files and URLs of any section must be."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .found import Found
from .urls import is_loopback

RANGES: dict[str, tuple[float, float]] = {
    "server.port": (0, 65_535),
    "server.admin_port": (-1, 65_535),
    "server.request_bytes": (1_024, 2**30),
    "server.inflight_bytes": (1_024, 2**40),
    "server.keep_alive": (1, 86_400),
    "server.drain_delay": (0, 3_600),
    "server.drain_timeout": (0, 3_600),
    "server.drain_idle": (0, 3_600),
    "server.max_callers": (1, 10_000_000),
    "issuers.leeway": (0, 300),
    "issuers.max_age": (1, 10 * 365 * 86_400),
    "issuers.jwks_stale_for": (0, 7 * 86_400),
    "tokens.ttl": (60, 3_600),
    "cors.max_age": (0, 86_400),
    "nodes.refresh": (0.1, 60),
    "observe.slow_statement": (0, 86_400),
    "observe.traces_sampled": (0, 1),
    "targets.statement_timeout": (0.001, 86_400),
    "targets.continued_timeout": (0, 7 * 86_400),
    "targets.read_budget": (1_024, 2**30),
    "targets.response_bytes": (1_024, 2**30),
    "targets.stream_timeout": (1, 7 * 86_400),
    "targets.stream_rate": (0, 2**40),
    "targets.stream_window": (0.1, 3_600),
    "targets.pool.max_connections": (1, 10_000),
    "targets.pool.max_open_transactions": (0, 10_000),
    "targets.pool.max_waiting": (0, 10_000_000),
    "targets.pool.share": (0.01, 1),
    "targets.pool.stream_share": (0.01, 1),
    "targets.pool.connect_timeout": (0.1, 300),
    "targets.pool.max_lifetime": (1, 10 * 365 * 86_400),
    "targets.pool.statement_cache": (0, 100_000),
    "targets.transactions.idle_timeout": (0.1, 86_400),
    "targets.transactions.max_lifetime": (0.1, 7 * 86_400),
}
"""Smallest and largest sensible value of each number."""


def check_ranges(found: Found, path: tuple[str, ...], settings: Any, kind: str = "") -> None:
    """That every number in *settings* is within `RANGES`, those of nested tables too.

    Args:
        kind: What stands for *path* in `RANGES`; its first part unless told.
    """
    kind = kind or path[0]
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            check_ranges(found, (*path, item.name), value, f"{kind}.{item.name}")
        elif bounds := RANGES.get(f"{kind}.{item.name}"):
            low, high = bounds
            if not low <= value <= high:  # also false for not-a-number
                found.problem((*path, item.name), f"must be from {low:,} to {high:,}")


def check_readable(found: Found, path: tuple[str, ...], file: Path | None) -> bool:
    """Whether *file* can be read, or none is given."""
    if file is not None:
        try:
            file.open("rb").close()
        except OSError as error:
            found.problem(path, f"cannot be read: {(error.strerror or 'unknown reason').lower()}")
            return False
    return True


def check_url(found: Found, path: tuple[str, ...], url: str | None) -> None:
    """That *url* is https, or goes nowhere off this machine."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("https", "http") or parts.username or parts.fragment:
        found.problem(path, "must be a URL such as https://name/path, without user or fragment")
    elif parts.scheme == "http" and not is_loopback(host):
        found.problem(path, "must be https, but for loopback")


def has_problem(found: Found, prefix: str) -> bool:
    """Whether something is wrong already with a key that begins with *prefix*."""
    return any(problem.key.startswith(prefix) for problem in found.problems)
