"""What the engine hands to a dialect: a result in memory, or rows that are still coming."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache

from ..core.model import OpenTransaction, Result
from ..postgres.connection import Answer, Connection
from .binding import Bound
from .streams import Copied, Rows
from .targets import Target


class Reply:
    """An answer, and what is left to do once it has been sent."""

    __slots__ = (
        "_after", "_at_once", "connection", "copied", "result", "rows", "target", "transaction",
        "wrote",
    )  # fmt: skip

    def __init__(
        self,
        target: Target,
        *,
        result: Result | None = None,
        rows: Rows | None = None,
        copied: Copied | None = None,
        transaction: OpenTransaction | None = None,
        after: Callable[[], Awaitable[None]] | None = None,
        at_once: Callable[[], bool] | None = None,
        connection: Connection | None = None,
        wrote: bool = False,
    ) -> None:
        self.target = target
        self.connection = connection
        """Still held, for questions to the catalog about the result."""
        self.result = result
        self.rows = rows
        self.copied = copied
        self.transaction = transaction
        self.wrote = wrote
        """What was asked for is committed: whatever fails from here on, it has happened."""
        self._after = after
        self._at_once = at_once

    @property
    def count(self) -> int | None:
        """Rows returned or changed; of a stream those that were sent."""
        if self.result is not None:
            return self.result.row_count
        if self.rows is not None:
            return self.rows.count
        return self.copied.count if self.copied is not None else None

    def settle_at_once(self) -> bool:
        """As `settle`, where nothing has to be waited for; `False` if something has."""
        if self._at_once is not None and self._at_once():
            self._after = None
            return True
        return False

    async def settle(self) -> None:
        """Clean up behind the answer; call it exactly once, whatever happened to the answer."""
        if self.rows is not None:
            await self.rows.close()
        if self._after is not None:
            after, self._after = self._after, None
            await after()


def result_of(connection: Connection, bound: Bound, answer: Answer, max_rows: int | None) -> Result:
    """The answer of PostgreSQL as a result, cut to *max_rows*."""
    columns = bound.described.columns
    command, count = _tag(answer.tag)
    rows = answer.rows
    truncated = max_rows is not None and len(rows) > max_rows
    if truncated:
        rows = rows[:max_rows]
        command, count = command or "SELECT", len(rows)
    return Result(
        columns or (),
        rows,
        count,
        command,
        columns is not None,
        connection.take_notices(),
        truncated,
    )


@lru_cache(maxsize=1024)
def _tag(tag: str) -> tuple[str, int]:
    """`INSERT 0 5` → (`INSERT`, 5); `CREATE TABLE` → (`CREATE TABLE`, 0)."""
    words = tag.split(" ")
    count = 0
    if words and words[-1].isdigit():
        count = int(words.pop())
        if words[0] == "INSERT":
            words = words[:1]
    return " ".join(words), count
