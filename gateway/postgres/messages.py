"""Messages of PostgreSQL's protocol that the driver does not build, or reads and forgets."""

from __future__ import annotations

import struct
from collections.abc import Sequence

BEGUN = b"1\0\0\0\x042\0\0\0\x04C\0\0\0\nBEGIN\0"
"""What PostgreSQL says to a BEGIN that is sent as a statement."""
READY = b"Z\0\0\0\5"
"""How the last message of an answer begins; one byte follows."""
_READY_SIZE = len(READY) + 1


def command_tags(data: bytes) -> list[str]:
    """The command tags among whole messages, which the driver reads and forgets."""
    # Sets alike have answers alike, each of a BindComplete of five bytes and a tag: one
    # comparison of all, where message by message costs 0.3 µs a set.
    if data.startswith(b"2\0\0\0\4C"):
        unit = data[: 6 + int.from_bytes(data[6:10], "big")]
        count = (len(data) - _READY_SIZE) // len(unit)
        if data[:-_READY_SIZE] == unit * count:
            return [unit[10:-1].decode("ascii", "replace")] * count
    tags = []
    at, end = 0, len(data)
    while at < end:
        size = int.from_bytes(data[at + 1 : at + 5], "big")
        if data[at] == 0x43:
            tags.append(data[at + 5 : at + size].decode("ascii", "replace"))
        at += 1 + size
    return tags


def bind_and_execute(statement: str, values: Sequence[str]) -> bytes:
    """The messages Bind and Execute, values and result as text. No Sync: more follows."""
    body = bytearray(b"\0" + statement.encode() + b"\0" + struct.pack("!HH", 0, len(values)))
    for value in values:
        raw = value.encode()
        body += struct.pack("!i", len(raw)) + raw
    body += struct.pack("!H", 0)
    execute = b"\0" + struct.pack("!i", 0)
    return b"".join(
        kind + struct.pack("!i", 4 + len(message)) + message
        for kind, message in ((b"B", bytes(body)), (b"E", execute))
    )


def _parse_and_execute(sql: str) -> bytes:
    """The messages Parse, Bind and Execute for *sql*, without names, values or rows."""
    parts = (b"\0" + sql.encode() + b"\0\0\0", b"\0\0\0\0\0\0\0\0", b"\0\0\0\0\0")
    return b"".join(
        kind + struct.pack("!i", 4 + len(message)) + message
        for kind, message in zip((b"P", b"B", b"E"), parts, strict=True)
    )


BEGIN = _parse_and_execute("BEGIN READ WRITE")
