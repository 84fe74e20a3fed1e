"""The threat model names, for each attack, tests that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/explanation/security.md").read_text(encoding="utf-8")
HEAD = "| attack | what stops it | shown by |"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of each row of the tables of attacks."""
    found: list[list[str]] = []
    for table in PAGE.split(HEAD)[1:]:
        lines = takewhile(lambda line: line.startswith("|"), table.splitlines()[2:])
        found += [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return found


@cache
def functions_of(path: str) -> frozenset[str]:
    """Names of the tests in a file, read and not run."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_each_attack_has_what_stops_it_and_a_test_that_shows_it(row: list[str]) -> None:
    attack, stops, shown = row
    assert attack and stops
    named = TEST.findall(shown)
    assert named, f"no test shows: {attack}"
    assert [name for path, name in named if name not in functions_of(path)] == []
    assert TEST.sub("", shown).strip(" ,") == "", "beside tests, something else is named"


def test_there_are_as_many_as_there_were() -> None:
    assert len(rows()) >= 43


@pytest.mark.parametrize(
    "words", ["stolen master key", "against each other", "against itself", "/metrics"]
)
def test_what_is_not_defended_is_said(words: str) -> None:
    assert words in PAGE.partition("## What is not defended")[2]
