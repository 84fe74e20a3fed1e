"""PostgreSQL's text of arrays, read and written.

    >>> read_array('{1,NULL,"a,b",""}')
    ['1', None, 'a,b', '']
    >>> write_array(["a", None, ['"']])
    '{"a",NULL,{"\\\\""}}'

The rules are those of the manual, chapter "Arrays", section "Array Input and
Output Syntax".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .errors import InvalidParameter

MAX_DIMENSIONS = 6
"""PostgreSQL's own limit."""

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_BLANKS = " \t\n\r\v\f"
"""White space as PostgreSQL sees it: a no-break space belongs to the element."""
_QUOTED = re.compile(rf'[{_BLANKS}]*"((?:[^"\\]|\\.)*)"[{_BLANKS}]*', re.DOTALL)


@lru_cache(maxsize=8)
def _bare(delimiter: str) -> re.Pattern[str]:
    stop = re.escape(delimiter)
    return re.compile(
        rf'[{_BLANKS}]*((?:[^{{}}"\\{_BLANKS}{stop}]|\\.)(?:[^{{}}"\\{stop}]|\\.)*)', re.DOTALL
    )


def _malformed() -> InvalidParameter:
    return InvalidParameter("the string is not an array", hint="write {1,2,3}")


def read_array(text: str, delimiter: str = ",") -> list[Any]:
    """Nested lists of strings and `None`.

    Args:
        delimiter: `pg_type.typdelim` of the elements; `;` for box.

    Raises:
        InvalidParameter: It is no array.
    """
    if text[:1] == "{" and text[-1:] == "}" and len(text) > 2:
        inner = text[1:-1]
        if '"' not in inner and "\\" not in inner and "{" not in inner and "}" not in inner:
            plain = inner.split(delimiter)
            if all(plain) and not any(item[0] in _BLANKS or item[-1] in _BLANKS for item in plain):
                return [
                    None if len(item) == 4 and item.upper() == "NULL" else item for item in plain
                ]
    body = text.strip(_BLANKS)
    if body.startswith("["):  # lower bounds, [2:4]={…}
        body = body[body.find("=") + 1 :].strip(_BLANKS)
    if not body.startswith("{"):
        raise _malformed()
    items, end = _read_items(body, 1, 1, delimiter)
    if body[end:].strip(_BLANKS):
        raise InvalidParameter("the string is not an array: there is more after its end")
    return items


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    if at >= len(text):
        raise _malformed()
    return at


def _read_items(text: str, at: int, depth: int, delimiter: str) -> tuple[list[Any], int]:
    if depth > MAX_DIMENSIONS:
        raise InvalidParameter(f"an array has at most {MAX_DIMENSIONS} dimensions")
    items: list[Any] = []
    while True:
        at = _skip(text, at)
        if text[at] == "{":
            nested, at = _read_items(text, at + 1, depth + 1, delimiter)
            items.append(nested)
        elif text[at] == "}" and not items:
            return items, at + 1
        elif match := _QUOTED.match(text, at):
            items.append(_ESCAPE.sub(r"\1", match[1]))
            at = match.end()
        elif match := _bare(delimiter).match(text, at):
            word = match[1].rstrip(_BLANKS)
            if word.endswith("\\") and (len(word) - len(word.rstrip("\\"))) % 2:
                word += match[1][len(word)]  # an escaped blank is no white space
            items.append(None if word.upper() == "NULL" else _ESCAPE.sub(r"\1", word))
            at = match.end()
        else:
            raise _malformed()
        at = _skip(text, at)
        if text[at] == "}":
            return items, at + 1
        if text[at] != delimiter:
            raise _malformed()
        at += 1


def write_array(items: list[Any], delimiter: str = ",") -> str:
    """Text that PostgreSQL reads as *items*: strings, `None`, and lists of them."""
    parts = []
    for item in items:
        if item is None:
            parts.append("NULL")
        elif isinstance(item, list):
            parts.append(write_array(item, delimiter))
        else:
            text = str(item).replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f'"{text}"')
    return "{" + delimiter.join(parts) + "}"


_NEEDS_QUOTES = re.compile(r'[{}"\\ \t\n\r\v\f]')


def array_text(items: list[Any], convert: Callable[[Any], str], delimiter: str = ",") -> str:
    r"""An array as PostgreSQL itself prints it; *convert* gives the text of an element.

    >>> array_text(["a", "", None, "null", ["b c"]], str)
    '{a,"",NULL,"null",{"b c"}}'
    """
    parts = []
    for item in items:
        if item is None:
            parts.append("NULL")
        elif isinstance(item, list):
            parts.append(array_text(item, convert, delimiter))
        else:
            text = convert(item)
            if (
                not text
                or delimiter in text
                or _NEEDS_QUOTES.search(text) is not None
                or text.upper() == "NULL"
            ):
                text = text.replace("\\", "\\\\").replace('"', '\\"')
                text = f'"{text}"'
            parts.append(text)
    return "{" + delimiter.join(parts) + "}"
