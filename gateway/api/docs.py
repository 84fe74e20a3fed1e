"""The page at /docs: openapi.yaml, readable, made without a request off the machine."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

_PATH = re.compile(r"  (/\S*):")
_METHOD = re.compile(r"    (get|post|delete):")
_SUMMARY = re.compile(r"      summary: (.*)")


def render_docs(read: Callable[[], str]) -> str:
    """The body of the page: a table of the endpoints, and the document itself below.

    The document is laid out one way only, so its table needs no YAML parser.
    """
    text = read()
    rows = []
    path = method = ""
    for line in text.splitlines():
        if match := _PATH.fullmatch(line):
            path = match[1]
        elif match := _METHOD.fullmatch(line):
            method = match[1].upper()
        elif (match := _SUMMARY.fullmatch(line)) and method:
            rows.append(
                f"<tr><td><b>{method}</b></td><td><code>{html.escape(path)}</code></td>"
                f"<td>{html.escape(match[1])}</td></tr>"
            )
            method = ""
    table = "".join(rows)
    return f"<table>{table}</table><h2>openapi.yaml</h2><pre>{html.escape(text)}</pre>"
