"""Writes `reference/client.md` from the docstrings of the client.

python docs/make_client_reference.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT / "client") not in sys.path:
    sys.path.insert(0, str(ROOT / "client"))

import pgsluice  # noqa: E402  # found by the path above

PAGE = ROOT / "docs" / "reference" / "client.md"
_CLASSES = ("Client", "Transaction", "Stream", "Result", "Column")
_VALUES = ("Interval", "Range", "Multirange", "Json")
_FUNCTIONS = ("lambda_deadline", "lambda_handler", "rds_data_client", "boto3_session")
_MADE = "<!-- Made by docs/make_client_reference.py; change the code instead. -->\n\n"


def page() -> str:
    """All of it."""
    lines = [
        "# The Python client",
        "",
        "`pgsluice.connect` is the class `Client`. `AsyncClient`, `AsyncTransaction` and",
        "`AsyncStream` have the same words, awaited. With examples, values and errors:",
        "[Use the Python client](../how-to/python-client.md).",
    ]
    for name in _CLASSES:
        lines += _class(getattr(pgsluice, name))
    lines += ["", "## Values"]
    for name in _VALUES:
        lines += ["", f"`{name}`", "", *_text(getattr(pgsluice, name))]
    lines += ["", "## In a function"]
    for name in _FUNCTIONS:
        found = getattr(pgsluice, name)
        lines += ["", f"`{name}{_signature(found)}`", "", *_text(found)]
    lines += ["", "## Errors", "", "| class | below | meaning |", "|---|---|---|"]
    for name in pgsluice.__all__:
        kind = getattr(pgsluice, name)
        if isinstance(kind, type) and issubclass(kind, pgsluice.Error):
            below = kind.__bases__[0].__name__
            lines.append(f"| `{name}` | `{below}` | {(kind.__doc__ or '').splitlines()[0]} |")
    return _MADE + "\n".join(lines) + "\n"


def _class(kind: type) -> list[str]:
    lines = ["", f"## {kind.__name__}", "", *_text(kind)]
    for name, each in inspect.getmembers(kind):
        if name.startswith("_") or (issubclass(kind, tuple) and hasattr(tuple, name)):
            continue
        if inspect.isfunction(each):
            lines += ["", f"`{name}{_signature(each)}`", "", *_text(each)]
        elif isinstance(each, property):
            lines += ["", f"`{name}`", "", *_text(each)]
    return lines


def _signature(found: Any) -> str:
    signature = inspect.signature(found)
    given = [each for each in signature.parameters.values() if each.name != "self"]
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in given]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _text(found: Any) -> list[str]:
    lines: list[str] = []
    for line in (inspect.getdoc(found) or "").splitlines():
        if line in ("Args:", "Raises:"):
            lines.append(f"{line}\n")
        elif line.startswith("        "):
            lines.append(f"  {line.strip()}")
        elif line.startswith("    "):
            name, colon, meaning = line.strip().partition(": ")
            lines.append(f"- `{name}`: {meaning}" if colon else f"  {line.strip()}")
        else:
            lines.append(line)
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
