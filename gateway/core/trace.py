"""A request's place in a trace: the `traceparent` that it brings, and the comment made of it.

    >>> where = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    >>> read_traceparent(where)
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    >>> sql_comment(read_traceparent(where))
    "/*traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/"
    >>> sql_comment("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
    ''

Source: W3C Trace Context, "traceparent Header"; sqlcommenter's specification.
"""

from __future__ import annotations

import re

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def read_traceparent(value: bytes) -> str | None:
    """*value* in the form of version 00; `None` if it is none, and is to be ignored."""
    match = _PARENT.fullmatch(value.strip())
    if match is None:
        return None
    version, trace, span, flags, more = match.groups()
    # Later versions may have more parts; version 00 has none, and ff is no version.
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not trace.strip(b"0") or not span.strip(b"0"):
        return None
    return (b"00-%b-%b-%b" % (trace, span, flags)).decode("ascii")


def make_traceparent(trace: int, span: int, flags: int) -> str:
    """The header for these ids."""
    return f"00-{trace:032x}-{span:016x}-{flags:02x}"


def sql_comment(traceparent: str | None) -> str:
    """The comment for a statement of that trace; nothing if the trace is not recorded."""
    if traceparent is None or not int(traceparent[-2:], 16) & 1:
        return ""
    return f"/*traceparent='{traceparent}'*/"
