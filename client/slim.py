"""Python source without what only its developers read: a wheel and a layer hold that.

Whole lines of comment go, and the docstrings of what is private. What `help()` says of the
public names stays, and every line keeps its number, so that a traceback fits the source.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHOWN = {
    "ClientShell",
    "Column",
    "Flows",
    "Interval",
    "Json",
    "Multirange",
    "Range",
    "Result",
    "StatementsShell",
    "StreamShell",
    "TransactionFlows",
    "boto3_session",
    "lambda_deadline",
    "lambda_handler",
}
"""What private modules hold that `help()` of a public name shows."""


def slim(path: Path) -> str:
    """The module at *path*, slim."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    shown = not path.stem.startswith("_") or path.stem == "__init__"
    for node, alone in _docstrings(ast.parse(source), shown):
        start, end = node.lineno - 1, node.end_lineno or node.lineno
        rest = lines[start][: node.col_offset] + "..." if alone else ""
        lines[start:end] = [rest + "\n", *["\n"] * (end - start - 1)]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            lines[token.start[0] - 1] = "\n"
    return "".join(lines)


def _docstrings(node: Any, shown: bool) -> Iterator[tuple[ast.Expr, bool]]:
    """The docstrings in the body of *node* that nobody is shown, and whether there is no more."""
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            private = child.name.startswith("_")
            yield from _docstrings(child, not private and (shown or child.name in SHOWN))
        elif not shown and isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            yield child, len(node.body) == 1
