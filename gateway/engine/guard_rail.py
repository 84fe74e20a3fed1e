"""Tables and verbs of a grant, held against what a statement names, off the event loop.

Only for grants that ask for it. What was read once is remembered by its text; reading
is done by one thread, and a text that has to wait behind too many others is refused,
not let through.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ..core.errors import RateLimited, StatementNotAllowed
from ..core.model import Grant

KEPT = 2_000
MAX_WAITING = 100
_HINT = "the policy limits which tables and verbs a statement may name"


class GuardRail:
    """Reads statements and remembers what they name."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, object] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = 0

    async def check(
        self, grant: Grant, texts: Iterable[str | None], schema: str | None = None
    ) -> None:
        """Raise `StatementNotAllowed` if one of *texts* passes what *grant* allows.

        Args:
            texts: `None` for what names nothing.
            schema: Where the request asks for bare names to be looked up first.

        Raises:
            StatementNotAllowed: It names another table or verb, or cannot be read for certain.
            RateLimited: Too many texts are waiting to be read.
        """
        # Imported late: sqlglot costs start-up time and memory that only this use is worth.
        from ..core.relations import MAX_TEXT, Named, find_breach

        for index, sql in enumerate(texts):
            if sql is None:
                continue
            named = self._known.get(sql)
            if named is None:
                named = "too long" if len(sql) > MAX_TEXT else await self._read(sql)
                if len(sql) <= MAX_TEXT:
                    self._known[sql] = named
                    if len(self._known) > KEPT:
                        self._known.popitem(last=False)
            else:
                self._known.move_to_end(sql)
            if isinstance(named, Named):
                breach = find_breach(named, tables=grant.tables, verbs=grant.verbs, schema=schema)
            else:
                breach = "cannot be read for certain"
            if breach is not None:
                error = StatementNotAllowed(f"this statement {breach}", hint=_HINT)
                error.statement = index
                raise error

    async def _read(self, sql: str) -> object:
        """What *sql* names, or a text if nobody can tell."""
        if self._waiting >= MAX_WAITING:
            raise RateLimited(hint="too many new statements at once", retry_after=1.0)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="guard-rail")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _read, sql)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Read nothing any more."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


def _read(sql: str) -> object:
    from ..core.relations import Unreadable, read_relations

    try:
        return read_relations(sql)
    except Unreadable as error:
        return str(error)
