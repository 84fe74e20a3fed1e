"""What is wrong with a configuration, and the error that holds all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing that is wrong with the configuration."""

    key: str
    """As in the TOML file: `targets.main.pool.max_connections`."""
    source: str
    """The file, or the environment variable, that the value came from."""
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message} (from {self.source})"


class ConfigurationError(Exception):
    """The gateway cannot start as it is configured; `problems` holds every reason."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))
