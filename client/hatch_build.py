"""Fills a wheel with slim modules, see `slim`; an editable install has them as they are."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from slim import slim  # noqa: E402  # found by the path above


class Slim(BuildHookInterface[Any]):
    """Puts slim copies in the place of the modules."""

    _copies: tempfile.TemporaryDirectory[str]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the files are collected."""
        self._copies = tempfile.TemporaryDirectory()
        if version == "editable":
            return
        for path in (ROOT / "pgsluice").glob("*.py"):
            copy = Path(self._copies.name, path.name)
            copy.write_text(slim(path), encoding="utf-8")
            build_data["force_include"][str(copy)] = f"pgsluice/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """After the wheel is written."""
        self._copies.cleanup()
