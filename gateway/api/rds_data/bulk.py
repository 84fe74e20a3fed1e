"""Many sets of parameters, read by column.

The sets of one request are alike as a rule: the same names in the same order, and under each
name one member of the union. Then a decoder made for just that reads them, and the checks look
at columns: 0.5 µs a set of two values, where `codec` takes 1.4. Whatever is different is left
to `codec`, which reads value by value and also finds the words for what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import isfinite
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from ...core.model import Typed
from ...core.sets import Sets

LEAST = 32 * 1024
"""Bytes of a body below which its sets are not worth a second look."""
_MOST = 100
"""Columns; a decoder is kept for each combination of members that comes along."""
_LOOKED_AT = 8
"""Sets that are looked at for a value that is not NULL."""
_BEGIN = re.compile(rb'"parameterSets"\s*:\s*\[\s*')
_NEXT = re.compile(rb"\s*,\s*")

ReadSet = Callable[[bytes], Mapping[str, Any] | None]
"""The values by name of one set in JSON; a ValueError or msgspec's if it is wrong."""

_T = TypeVar("_T")
_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class _Long(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    given: _Int64 = msgspec.field(name="longValue")


class _Double(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    given: float = msgspec.field(name="doubleValue")


class _Boolean(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    given: bool = msgspec.field(name="booleanValue")


class _String(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    given: str = msgspec.field(name="stringValue")


class _LongOrNull(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    given: _Int64 | None = msgspec.field(name="longValue", default=None)
    isNull: bool | None = None


class _DoubleOrNull(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    given: float | None = msgspec.field(name="doubleValue", default=None)
    isNull: bool | None = None


class _BooleanOrNull(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    given: bool | None = msgspec.field(name="booleanValue", default=None)
    isNull: bool | None = None


class _StringOrNull(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    given: str | None = msgspec.field(name="stringValue", default=None)
    isNull: bool | None = None


class _Parameter(msgspec.Struct, Generic[_T], forbid_unknown_fields=True, gc=False):
    name: str
    value: _T


_MEMBERS: Mapping[str | None, tuple[Any, Any]] = {
    "int8": (_Parameter[_Long], _Parameter[_LongOrNull]),
    "float8": (_Parameter[_Double], _Parameter[_DoubleOrNull]),
    "bool": (_Parameter[_Boolean], _Parameter[_BooleanOrNull]),
    None: (_Parameter[_String], _Parameter[_StringOrNull]),
}
"""By the type that a value of the member has by itself: without NULL, and with it."""


class Alike(msgspec.Struct, gc=False):
    """A request whose sets are alike."""

    parameterSets: Any
    resourceArn: str | None = None
    secretArn: str | None = None
    sql: str | None = None
    database: str | None = None
    schema: str | None = None
    transactionId: str | None = None


@lru_cache(maxsize=256)
def _decoder(types: tuple[str | None, ...], nulls: bool) -> Callable[[bytes], Alike]:
    members = tuple(_MEMBERS[each][nulls] for each in types)
    fields: Any = [("parameterSets", list[tuple[members]])]  # type: ignore[valid-type]  # made at run time
    made: Any = msgspec.defstruct("Alike", fields, bases=(Alike,), gc=False)
    decode: Callable[[bytes], Alike] = msgspec.json.Decoder(made).decode
    return decode


def read_alike(body: bytes, read_set: ReadSet) -> tuple[Alike, Sets] | None:
    """The request in *body* and its sets, by column; `None` if they are not alike."""
    try:
        looked_at = _first_sets(body, read_set)
        types = _types(looked_at)
        if types is None:
            return None
        nulls = b'"isNull"' in body
        request = _decoder(types, nulls)(body)
        parameters = list(zip(*request.parameterSets, strict=True))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    names = tuple(looked_at[0] or ())
    columns = []
    for name, type, column in zip(names, types, parameters, strict=True):
        if [each.name for each in column].count(name) != len(column):
            return None
        values = [each.value.given for each in column]
        if nulls and not _is_given([each.value.isNull for each in column], values):
            return None
        if type == "float8" and not all(isfinite(each) for each in values if each is not None):
            return None
        columns.append(values)
    return request, Sets(names, types, tuple(columns))


def _first_sets(body: bytes, read_set: ReadSet) -> list[Mapping[str, Any] | None]:
    """What seem to be the first sets; the decoder that is made after them sees whether they are."""
    found: list[Mapping[str, Any] | None] = []
    begin = _BEGIN.search(body)
    while begin is not None and len(found) < _LOOKED_AT:
        end = body.find(b"}]", begin.end()) + 2
        found.append(read_set(body[begin.end() : end]))
        begin = _NEXT.match(body, end)
    return found


def _types(looked_at: Sequence[Mapping[str, Any] | None]) -> tuple[str | None, ...] | None:
    """What the values of each column are by themselves; `None` if that is not plain to see."""
    first = looked_at[0] if looked_at else None
    if not first or len(first) > _MOST:
        return None
    types = []
    for name in first:
        values = [each[name] for each in looked_at if each and each.get(name) is not None]
        value = values[0] if values else None
        type = value.type if isinstance(value, Typed) else None
        if value is None or type not in _MEMBERS:
            return None
        types.append(type)
    return tuple(types)


def _is_given(nulls: list[bool | None], values: list[Any]) -> bool:
    """Whether each is either a value or NULL."""
    if False in nulls:
        return False
    return [each is None for each in nulls] == [each is not None for each in values]
