"""The pages: made from the code where they can be, and pointing at what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.make_reference import REFERENCE, pages

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "client/README.md",
        *ROOT.glob("deploy/*.md"),
        *ROOT.glob("examples/*/*.md"),
    )
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_PATH = re.compile(r"`((?:gateway|benchmarks|docs|tests|client|deploy|examples)/[\w./-]*)`")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("made", ["settings.md", "errors.md", "metrics.md", "endpoints.md"])
def test_the_reference_says_what_the_code_says(made: str) -> None:
    written = (REFERENCE / made).read_text(encoding="utf-8")
    assert written == pages()[made], "run python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [
        link
        for link in links
        if not link.startswith("#") and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_that_are_named_exist(page: Path) -> None:
    named = CODE_PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []
