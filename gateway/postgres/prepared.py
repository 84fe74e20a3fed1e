"""A prepared statement, and what PostgreSQL says of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..core.model import Column
from .types import TypeCatalog


class Described(NamedTuple):
    """A prepared statement and what PostgreSQL says of it."""

    state: Any
    parameters: tuple[int, ...]
    """Type oids of `$1 …`."""
    columns: tuple[Column, ...] | None
    """`None` without a row description."""


def read_description(state: Any, catalog: TypeCatalog) -> Described:
    """What PostgreSQL says of the prepared statement *state*."""
    parameters = tuple(parameter.oid for parameter in state._get_parameters() or ())
    attributes = state._get_attributes()
    details = _row_description(state)
    if details is None and not attributes:
        return Described(state, parameters, None)
    columns = []
    for index, attribute in enumerate(attributes or ()):
        oid = attribute.type.oid
        facts = catalog.facts(oid)
        table, number, typmod = (0, 0, -1)
        if details is not None and index < len(details):
            table, number, typmod = details[index]
        columns.append(
            Column(attribute.name, facts.name, oid, catalog.kind(oid), table, number, typmod)
        )
    return Described(state, parameters, tuple(columns))


def _row_description(state: Any) -> list[tuple[int, int, int]] | None:
    """Table oid, attribute number and typmod of each column.

    asyncpg decodes them and keeps them to itself; the garbage collector knows where.
    """
    import gc

    lists = [referent for referent in gc.get_referents(state) if isinstance(referent, list)]
    for each in lists:
        if each and isinstance(each[0], tuple) and len(each[0]) == 7:
            return [(entry[1], entry[2], entry[5]) for entry in each]
    # SELECT without columns: an empty list beside that of the parameters. A command that
    # returns no rows has that one alone.
    return [] if len(lists) == 2 else None
