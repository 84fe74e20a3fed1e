"""Fixtures for all tests: each `fix_*.py` beside this file is a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest_plugins = [f"tests.{path.stem}" for path in sorted(Path(__file__).parent.glob("fix_*.py"))]
# All at once and first: one of them may import another.
pytest.register_assert_rewrite(*pytest_plugins)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Async tests run on asyncio with the loop that the server uses."""
    return ("asyncio", {"use_uvloop": True})
