"""The load to the naive handler, by a client that retries as SDKs do."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

from tests.faults.driver import Told, in_threads
from tests.faults.operations import STATEMENTS, numbered

ATTEMPTS = 3


class Caller:
    """Posts the statements of an operation, which the handler runs in one transaction."""

    def __init__(self, config: dict[str, Any]) -> None:
        limits = httpx2.Limits(max_connections=None)
        self._http = httpx2.Client(base_url=config["url"], timeout=10, limits=limits)

    def __call__(self, operation: dict[str, Any]) -> Told:
        """Do one operation."""
        body = [numbered(STATEMENTS[name], values) for name, values in operation["steps"]]
        word = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(random.random() * min(2.0, 0.1 * 2**attempt))
            try:
                answer = self._http.post("/", json=body)
            except httpx2.TransportError as error:
                word = type(error).__name__
                continue
            if answer.status_code == 200:
                return Told("acknowledged")
            word = f"{answer.status_code} {answer.text}"
            if answer.status_code < 500:
                break
        # An error is all it knows; it takes it for what it says.
        return Told("not_executed", None, word, True)


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    in_threads(asked, Caller(asked), asked["callers"])
