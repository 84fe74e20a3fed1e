"""Many sets of values for one statement, kept by column.

Ten thousand sets are ten thousand mappings, and looking at each value of each costs more
than what PostgreSQL does with it. What dialects read as columns stays columns up to the
driver; a set is made only where somebody looks at one.

    >>> sets = Sets(("id", "name"), ("int8", None), ([1, None], ["a", "b"]))
    >>> sets[0], sets[1]
    ({'id': Typed(value=1, type='int8'), 'name': 'a'}, {'id': None, 'name': 'b'})
    >>> ForEach("select $1", Sets(None, (None,), ([1, 2],)))[1]
    Statement(sql='select $1', parameters=[2], strict=False, verbatim=False)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from .model import Parameters, Statement, Typed

Columns = tuple[Sequence[Any], ...]


class Sets(Sequence[Parameters]):
    """Sets of values that are alike: the same names, and in each column one type of value."""

    __slots__ = ("columns", "names", "types")

    def __init__(
        self, names: tuple[str, ...] | None, types: tuple[str | None, ...], columns: Columns
    ) -> None:
        """Take *columns*, of which there is at least one, all of the same length.

        Args:
            names: Of the values, for `:name`; `None` for `$1 …`.
            types: For each column, what its `Typed` values are; `None` for plain JSON, whose
                values are of one Python type. Both may be NULL.
        """
        self.names = names
        self.types = types
        self.columns = columns

    def __len__(self) -> int:
        """How many sets."""
        return len(self.columns[0])

    @overload
    def __getitem__(self, index: int) -> Parameters: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Parameters]: ...
    def __getitem__(self, index: int | slice) -> Parameters | Sequence[Parameters]:
        """One set, as any other that is not kept by column."""
        if isinstance(index, slice):
            return [self._set(each) for each in range(len(self))[index]]
        return self._set(index)

    def _set(self, index: int) -> Parameters:
        values = [
            value if type is None or value is None else Typed(value, type)
            for type, value in zip(
                self.types, [column[index] for column in self.columns], strict=True
            )
        ]
        return values if self.names is None else dict(zip(self.names, values, strict=True))


class ForEach(Sequence[Statement]):
    """One text with many sets of values, each a statement."""

    __slots__ = ("_sql", "sets", "strict", "verbatim")

    def __init__(
        self, sql: str, sets: Sequence[Parameters], strict: bool = False, verbatim: bool = False
    ) -> None:
        self._sql = sql
        self.strict = strict
        self.verbatim = verbatim
        self.sets = sets

    @property
    def alike(self) -> Sets | None:
        """The sets, if they are kept by column."""
        return self.sets if isinstance(self.sets, Sets) else None

    def __len__(self) -> int:
        """How many sets."""
        return len(self.sets)

    @overload
    def __getitem__(self, index: int) -> Statement: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Statement]: ...
    def __getitem__(self, index: int | slice) -> Statement | Sequence[Statement]:
        """One of them."""
        if isinstance(index, slice):
            return [self._statement(each) for each in self.sets[index]]
        return self._statement(self.sets[index])

    def _statement(self, parameters: Parameters) -> Statement:
        return Statement(self._sql, parameters, self.strict, self.verbatim)

    def __iter__(self) -> Iterator[Statement]:
        """Each once."""
        for each in self.sets:
            yield self._statement(each)
