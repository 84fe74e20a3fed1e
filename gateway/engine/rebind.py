"""How other sets of values are bound to a statement that is bound already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..core.errors import InvalidParameter
from ..core.model import Parameters, Statement, Typed
from ..core.sets import Sets
from ..core.values import encode_all, holds_bytea
from ..postgres.connection import Connection
from .binding import Bound, encoders_of, target_of
from .plans import Plan, kinds_of, values_of, variant_of


def rebinder(
    connection: Connection, bound: Bound, statement: Statement
) -> Callable[[Parameters], list[Any] | None]:
    """What gives the arguments of *bound* for other values of the same names and kinds.

    `None` for values that are of other kinds, or do not fit: `bind` finds out what they need.
    """
    parameters = statement.parameters
    variant, described = bound.variant, bound.described
    encoders = encoders_of(connection, variant, described, statement.verbatim)
    values = values_of(variant, parameters)
    kinds = tuple(zip(kinds_of(values), [type(value) is Typed for value in values], strict=True))
    names = variant.rewritten.names
    named = isinstance(parameters, Mapping)
    # A name that is not used is no part of the text, and yet makes another variant.
    wanted = frozenset(parameters or ()) if named else frozenset()
    make = _rebinding(kinds, named, wanted != frozenset(names))
    again: Callable[[Parameters], list[Any] | None] = make(encoders, names, wanted)
    return again


@lru_cache(maxsize=1024)
def _rebinding(
    kinds: tuple[tuple[str, bool], ...], named: bool, unused: bool
) -> Callable[..., Any]:
    """What makes a rebinder for values of *kinds*, compiled: half the price of a loop."""
    cells = range(len(kinds))
    checks, given = [], []
    for index, (kind, typed) in zip(cells, kinds, strict=True):
        value = f"v{index}"
        if typed:
            checks.append(f"type({value}) is not Typed or {value}[1] != {kind!r}")
            given.append(f"e{index}({value}[0])")
        elif kind == "null":
            checks.append(f"{value} is not None")
            given.append("None")
        else:
            other = "type({v}) is not str" if kind == "text" else "kinds(({v},))[0] != {k!r}"
            checks.append(other.format(v=value, k=kind))
            given.append(f"e{index}({value})")
    values = "".join(f"v{index}, " for index in cells)
    if named:
        look = "".join(f"p[n{index}], " for index in cells)
        wrong = "type(p) is not dict or len(p) != count"
        wrong += " or p.keys() != wanted" if unused else ""
    else:
        look = "*p,"
        wrong = f"p is None or type(p) is dict or len(p) != {len(kinds)}"
    lines = [
        "def make(encoders, names, wanted):",
        f" ({''.join(f'e{index}, ' for index in cells)}) = encoders",
        f" ({''.join(f'n{index}, ' for index in cells)}) = names" if named else "",
        " count = len(wanted)",
        " def again(p):",
        f"  if {wrong}: return None",
        "  try:",
        f"   ({values}) = ({look})",
        f"   if {' or '.join(checks)}: return None" if checks else "",
        f"   return [{', '.join(given)}]",
        "  except (InvalidParameter, KeyError): return None",
        " return again",
    ]
    scope: dict[str, Any] = {
        "Typed": Typed,
        "InvalidParameter": InvalidParameter,
        "kinds": kinds_of,
    }
    exec(compile("\n".join(lines), "<rebinder>", "exec"), scope)
    made: Callable[..., Any] = scope["make"]
    return made


def rebind_all(
    connection: Connection,
    plan: Plan,
    bound: Bound,
    sets: Sets,
    suffix: str,
    strict: bool,
    verbatim: bool,
) -> list[Sequence[Any]] | None:
    """The arguments of *bound* for each of *sets*, by column; *bound* is that of the first.

    `None` if a value needs another statement than the first one, or does not fit: `rebinder`
    and `bind` find out which. A tenth of their price.
    """
    variant, described = bound.variant, bound.described
    uncast = variant_of(plan, sets[0], {}, suffix, strict) is variant
    numbers: Parameters = list(range(len(sets.columns)))
    if sets.names is not None:
        numbers = dict(zip(sets.names, range(len(sets.columns)), strict=True))
    places = values_of(variant, numbers)
    arguments = []
    for place, oid in zip(places, described.parameters, strict=True):
        column = sets.columns[place]
        # Casts are chosen by the kinds of values: of NULL, and of a number beyond 64 bits, too.
        natural_int = sets.types[place] is None and type(column[0]) is int
        if not uncast and (natural_int or None in column):
            return None
        wanted = target_of(connection.catalog, oid)
        if verbatim and sets.types[place] is None and holds_bytea(wanted):
            return None
        try:
            arguments.append(encode_all(wanted, column))
        except InvalidParameter:
            return None
    return arguments or None
