"""Which form of an answer a caller wants, told from its Accept header.

    >>> negotiate("text/csv;q=0.9, application/x-ndjson; frames=1")
    <Form.FRAMES: 'application/x-ndjson; frames=1'>
    >>> negotiate("*/*"), negotiate("image/png")
    (<Form.JSON: 'application/json'>, None)

Media ranges and q-values are those of RFC 9110, section 12.5.1: a more specific
range overrides a less specific one, and q=0 excludes.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import NamedTuple


class Form(Enum):
    """How rows are written, by media type."""

    JSON = "application/json"
    NDJSON = "application/x-ndjson"
    """One object a line and nothing else."""
    FRAMES = "application/x-ndjson; frames=1"
    """A line of columns, a line for each row, and a line that says how it ended."""
    CSV = "text/csv"
    ARROW = "application/vnd.apache.arrow.stream"


ALL = tuple(Form)

_HEADER_LIMIT = 2_000
"""Characters of an Accept header that are looked at; browsers send a tenth."""


class _Range(NamedTuple):
    type: str
    subtype: str
    frames: bool
    quality: float


def _read_range(text: str) -> _Range | None:
    name, *parameters = (part.strip() for part in text.split(";"))
    type, slash, subtype = name.lower().partition("/")
    if not (type and slash and subtype):
        return None
    quality, frames = 1.0, False
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        key, value = key.strip().lower(), value.strip().strip('"')
        if key == "q":
            try:
                quality = min(1.0, max(0.0, float(value)))
            except ValueError:
                return None
        elif key == "frames":
            frames = value == "1"
    return _Range(type, subtype, frames, quality)


def _specificity(found: _Range, form: Form) -> int:
    """How exactly *found* means *form*; 0 if it does not."""
    type, _, subtype = form.value.partition(";")[0].partition("/")
    if (found.type, found.subtype) == (type, subtype):
        return 4 if found.frames == (form is Form.FRAMES) else 0
    if found.frames or form is Form.FRAMES:
        return 0  # asked for by name or not at all
    if found.type == type and found.subtype == "*":
        return 2
    return 1 if (found.type, found.subtype) == ("*", "*") else 0


@lru_cache(maxsize=256)
def negotiate(accept: str | None, offered: tuple[Form, ...] = ALL) -> Form | None:
    """The form of *offered* that *accept* likes best; `None` if it likes none.

    Between equals the one named more exactly wins, then the one named first, then the
    one that stands first in *offered*. No header, or an empty one, accepts anything.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [_read_range(part) for part in accept[:_HEADER_LIMIT].split(",")]
    best: tuple[tuple[float, int, int, int], Form] | None = None
    for place, form in enumerate(offered):
        fits = [
            (_specificity(found, form), -index, found.quality)
            for index, found in enumerate(ranges)
            if found is not None and _specificity(found, form)
        ]
        if not fits:
            continue
        exact, order, quality = max(fits)
        rank = (quality, exact, order, -place)
        if quality > 0 and (best is None or rank > best[0]):
            best = (rank, form)
    return best[1] if best is not None else None
