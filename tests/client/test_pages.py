"""The pages about the client: their snippets run, their reference is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.make_client_reference import PAGE, page
from tests.fix_gateway import Gateway

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "how-to").glob("move-from-*.md"))
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_snippets_of_a_page_run(
    path: Path, shared_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSLUICE_URL", shared_gateway.url)
    monkeypatch.setenv("PGSLUICE_TOKEN", shared_gateway.token)
    monkeypatch.setenv("PGSLUICE_DATABASE", shared_gateway.database)
    monkeypatch.setenv("RESOURCE_ARN", shared_gateway.resource_arn)
    monkeypatch.setenv("SECRET_ARN", shared_gateway.secret_arn)
    snippets = SNIPPET.findall(path.read_text(encoding="utf-8"))
    assert snippets
    scope: dict[str, object] = {"__name__": path.stem}
    for snippet in snippets:
        exec(compile(snippet, str(path), "exec"), scope)
    for name in ("db", "rds"):
        if name in scope:
            scope[name].close()  # type: ignore[attr-defined]


def test_the_reference_says_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python docs/make_client_reference.py"
