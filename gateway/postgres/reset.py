"""What makes a session as new, and the canary that tells of statements that were taken away."""

from __future__ import annotations

import random
import struct

CANARY = "pgsluice_canary"
SEAL_SQL = (
    "select pg_catalog.set_config('gw.claims', $1, true),"
    " pg_catalog.set_config('gw.seal', $2, true)"
)
"""What is prepared as the canary; its values never stand in a text that others could read."""

_RESET = (
    # A session's random() can be made predictable for the next one by setseed. The seed is
    # ours: to make one in SQL, of a random uuid, costs the server more than this whole line.
    "RESET SESSION AUTHORIZATION;RESET ALL;CLOSE ALL;UNLISTEN *;DISCARD SEQUENCES;SET seed=%.9f;"
    # A PREPARE inside a function survives all of the above, and could replace a statement of
    # ours under its own name: then another row comes, or one that says so. After a DEALLOCATE
    # ALL our canary is missing, and no row comes.
    "SELECT pg_catalog.pg_advisory_unlock_all(),from_sql,"
    # DISCARD TEMP leaves the schema of temporary objects, which can be seen; and with one
    # there already, a next temporary table does not stand before what prepared statements
    # mean by its name. So a session that had any goes, and they go with it.
    "pg_catalog.pg_my_temp_schema()"
    # An expression more in here costs the server several microseconds.
    " FROM pg_catalog.pg_prepared_statement()"
    f" WHERE from_sql OR name OPERATOR(pg_catalog.=) '{CANARY}'"
)
"""What makes a session as new, as one simple query."""
CLEAN_ROW = b"D\0\0\0\x14\0\3" + b"\0\0\0\0" + b"\0\0\0\1f" + b"\0\0\0\0010"
"""The one row of it then: nothing, false, 0."""
_seeds = random.Random()
"""Of its own: what the shared generator gives is seen elsewhere, and tells what comes next."""


def _reset_message() -> tuple[bytes, bytes]:
    head, tail = (part.encode("ascii") for part in _RESET.split("%.9f"))
    size = 4 + len(head) + len("0.123456789") + len(tail) + 1
    return b"Q" + struct.pack("!i", size) + head, tail + b"\0"


_RESET_HEAD, _RESET_TAIL = _reset_message()


def reset_message() -> bytes:
    """The message that resets a session; `ResetBehind` hears how it ends."""
    return b"%b%.9f%b" % (_RESET_HEAD, _seeds.random(), _RESET_TAIL)
