"""The pages about the client: their snippets run, their reference is what the code says."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pgsluice
import pytest

from docs.make_client_reference import PAGE, page
from tests.fix_gateway import Gateway

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
PAGES = [*sorted(HOW_TO.glob("move-from-*.md")), HOW_TO / "python-client.md"]
README = ROOT / "client" / "README.md"
WHERE = '"https://gateway.example.com", token="…"'
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def environment(shared_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setenv("PGSLUICE_URL", shared_gateway.url)
    monkeypatch.setenv("PGSLUICE_TOKEN", shared_gateway.token)
    monkeypatch.setenv("PGSLUICE_DATABASE", shared_gateway.database)
    monkeypatch.setenv("RESOURCE_ARN", shared_gateway.resource_arn)
    monkeypatch.setenv("SECRET_ARN", shared_gateway.secret_arn)
    return shared_gateway


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_snippets_of_a_page_run(path: Path, environment: Gateway) -> None:
    snippets = SNIPPET.findall(path.read_text(encoding="utf-8"))
    assert snippets
    scope: dict[str, Any] = {"__name__": path.stem}
    for snippet in snippets:
        exec(compile(snippet, str(path), "exec", dont_inherit=True), scope)
    for name in ("db", "rds"):
        if name in scope:
            scope[name].close()


def test_the_snippet_of_the_readme_runs(environment: Gateway) -> None:
    (snippet,) = SNIPPET.findall(README.read_text(encoding="utf-8"))
    scope: dict[str, Any] = {}
    with pgsluice.connect() as db:
        db.execute("create table products (id int, name text, price numeric)")
        db.execute("insert into products values (10, 'nut', 0.10), (11, 'bolt', 0.25)")
        db.execute("create table notes (text text)")
        assert snippet.count(WHERE) == 1
        exec(compile(snippet.replace(WHERE, ""), str(README), "exec"), scope)
        assert scope["total"] == Decimal("0.35")
        assert scope["rows"] == [{"id": 11, "name": "bolt"}]
        assert db.scalar("select text from notes") == "hello"
        db.execute("drop table products, notes")
    scope["db"].close()


def test_the_reference_says_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python docs/make_client_reference.py"
