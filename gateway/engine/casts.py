"""Which values of a statement need a cast, and how that is found out."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ..core.model import Parameters, Typed
from ..core.placeholders import Place, caller_position
from ..core.values import TEXT_OIDS, natural
from ..postgres.failures import UNTYPED, sqlstate
from ..postgres.prepared import Described
from .plans import Plan, Variant, kinds_of, located, names_of, refuse, values_of

_NUMBER = re.compile(r"\$(\d{1,5})")
NO_SUCH_FUNCTION = "42883"
_REPAIRS = 8
"""Places of a text that are cast one after the other."""


def key_of(variant: Variant, index: int) -> Any:
    """By what casts know the placeholder at *index*: its name, or its number from 1."""
    names = variant.rewritten.names
    return names[index] if names else index + 1


def _own_kind(value: Any) -> str | None:
    """The type of *value* where nothing else tells one; `None` for a list that could be any."""
    if value is None or isinstance(value, str):
        return "text"
    return value.type if type(value) is Typed else natural(value)


def _all_casts(variant: Variant, values: Sequence[Any]) -> dict[Any, str]:
    """A type for every value, for a statement in which PostgreSQL found none."""
    casts: dict[Any, str] = {}
    for index, value in enumerate(values):
        kind = _own_kind(value)
        if kind is not None:
            casts[key_of(variant, index)] = kind
    return casts


def text_casts(variant: Variant, described: Described, values: Sequence[Any]) -> dict[Any, str]:
    """Casts for the values that would be taken for text and are not."""
    casts: dict[Any, str] = {}
    for index, (oid, value) in enumerate(zip(described.parameters, values, strict=False)):
        if oid not in TEXT_OIDS or value is None or isinstance(value, str):
            continue
        kind = value.type if type(value) is Typed else natural(value)
        if kind is not None:
            casts[key_of(variant, index)] = kind
    return casts


def narrowed(
    casts: dict[Any, str], variant: Variant, values: Sequence[Any]
) -> dict[Any, str] | None:
    """*casts* with int4 for int8 where the value fits; `None` if that changes nothing.

    Most functions and operators that count are of int4 alone.
    """
    narrow = dict(casts)
    for index, value in enumerate(values):
        key = key_of(variant, index)
        number = value.value if type(value) is Typed else value
        if casts.get(key) == "int8" and isinstance(number, int) and abs(number) < 1 << 31:
            narrow[key] = "int4"
    return None if narrow == casts else narrow


async def find_casts(
    attempt: Callable[[dict[Any, str]], Awaitable[tuple[Variant, Described | Exception]]],
    variant: Variant,
    parameters: Parameters,
    error: Exception,
    strict: bool,
) -> tuple[dict[Any, str], Variant, Described]:
    """Find casts with which PostgreSQL takes a text in which it found too few types.

    All values are cast to their own types, which is one more way to it and no more; if that
    makes no sense, only those that PostgreSQL complains of, one after the other. So a `:id`
    of `(:id is null or key = :id)` is text in one place, and what the key is in the other.

    Raises:
        GatewayError: What PostgreSQL has against the text.
    """
    values = values_of(variant, parameters)
    casts = _all_casts(variant, values)
    if not casts:
        refuse(error, variant)
    recast, found = await attempt(casts)
    if isinstance(found, Described):
        return casts, recast, found
    first, refused = recast, found
    narrow = None if strict else narrowed(casts, variant, values)
    if narrow is not None and sqlstate(found) == NO_SUCH_FUNCTION:
        recast, found = await attempt(narrow)
        if isinstance(found, Described):
            return narrow, recast, found
    casts, recast, found = {}, variant, error
    while not strict and len(casts) < _REPAIRS:
        cast = _complaint(recast, values_of(recast, parameters), found)
        if cast is None or cast[0] in casts:
            break
        casts = {**casts, cast[0]: cast[1]}
        recast, found = await attempt(casts)
        if isinstance(found, Described):
            more = text_casts(recast, found, values_of(recast, parameters))
            if more.keys() <= casts.keys():
                return casts, recast, found
            casts = {**more, **casts}
            recast, found = await attempt(casts)
            if isinstance(found, Described):
                return casts, recast, found
            break
    if sqlstate(refused) in UNTYPED:
        # The first complaint is about what the caller wrote.
        raise located(error, variant) from refused
    refuse(refused, first)


def _complaint(variant: Variant, values: list[Any], error: Exception) -> tuple[Any, str] | None:
    """The cast that what PostgreSQL has against a text calls for, if it says which."""
    state, key = sqlstate(error), None
    if state == "42P18":  # "could not determine data type of parameter $1", in any language
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else 0
        if 0 < number <= len(values):
            key = key_of(variant, number - 1)
    elif state == "42P08" and getattr(error, "position", None):
        at = int(error.position) - 1  # type: ignore[attr-defined]
        found = _NUMBER.match(variant.sql, at)
        number = int(found[1]) if found else 0
        key = Place(caller_position(variant.rewritten, at + 1) - 1)
    kind = _own_kind(values[number - 1]) if key is not None and number > 0 else None
    return None if kind is None else (key, kind)


def remember(
    plan: Plan, parameters: Parameters, variant: Variant, values: Sequence[Any], casts: Any
) -> None:
    """Keep the casts that values of these names and kinds turned out to need."""
    if len(plan.casts) < 64:
        plan.casts[(names_of(parameters), kinds_of(values))] = casts
