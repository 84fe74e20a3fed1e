"""The page that compares the Data API with Amazon's: complete, and shown row by row."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.data_api_rows import TABLES, VERDICTS, Row
from docs.make_data_api import PAGE, page
from tests.postgres.test_types import SAMPLES
from tests.wire.data_api import service_model

HERE = Path(__file__).parent
ROWS = [pytest.param(row, id=row.what) for rows in TABLES.values() for row in rows]
WITHDRAWN = "ExecuteSql"


def names_of(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".mjs":
        return set(re.findall(r'^test\("(.+)",', text, re.MULTILINE))
    return {
        node.name
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def members(shape: Any, seen: set[str]) -> Iterator[str]:
    """The names of all members below *shape*."""
    if shape is None or shape.name in seen:
        return
    seen.add(shape.name)
    if shape.type_name == "list":
        yield from members(shape.member, seen)
    elif shape.type_name == "structure":
        for name, member in shape.members.items():
            yield name
            yield from members(member, seen)


def test_the_page_is_what_its_rows_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python docs/make_data_api.py"


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_shown_by_tests_that_exist(row: Row) -> None:
    assert row.verdict in VERDICTS
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name in names_of(HERE / file), test


def test_every_member_operation_and_exception_of_the_model_has_a_row() -> None:
    text = page()
    model = service_model()
    seen: set[str] = set()
    wanted = {shape.name for shape in model.error_shapes}
    for name in model.operation_names:
        if name == WITHDRAWN:
            continue
        operation = model.operation_model(name)
        wanted |= set(members(operation.input_shape, seen))
        wanted |= set(members(operation.output_shape, seen))
    assert {"longValues", "isCurrency", "typeHint", "StatementTimeoutException"} <= wanted
    assert sorted(name for name in wanted if f"`{name}`" not in text) == []
    assert WITHDRAWN in text


def test_every_type_that_a_column_can_have_has_a_row() -> None:
    named = set(re.findall(r"`(\w+)`", "".join(row.what for row in TABLES["Values out"])))
    assert sorted(set(SAMPLES) - named) == []
