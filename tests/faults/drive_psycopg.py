"""The load through psycopg, by an application that retries what failed.

Runs with a python of its own that has psycopg and knows this folder alone.
"""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parent))
from driver import Told, in_threads
from operations import STATEMENTS

ATTEMPTS = 3
_RACES = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


class Caller:
    """Runs an operation in one transaction, on a connection of its thread."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._dsn = config["dsn"]
        self._mine = threading.local()

    def _connection(self) -> Any:
        found = getattr(self._mine, "connection", None)
        if found is None or found.closed:
            # PgBouncer 1.18 knows no prepared statements in transaction mode.
            found = psycopg.connect(self._dsn, prepare_threshold=None, connect_timeout=60)
            self._mine.connection = found
        return found

    def __call__(self, operation: dict[str, Any]) -> Told:
        """Do one operation."""
        word = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(random.random() * min(2.0, 0.1 * 2**attempt))
            try:
                connection = self._connection()
                with connection.transaction():
                    for name, values in operation["steps"]:
                        sql = re.sub(r":([a-z]+)", r"%(\1)s", STATEMENTS[name])
                        connection.execute(sql, values)
                return Told("acknowledged")
            except (psycopg.OperationalError, psycopg.InterfaceError, *_RACES) as error:
                word = type(error).__name__
            except psycopg.Error as error:
                word = type(error).__name__
                break
        # An error is all it knows; it takes it for what it says.
        return Told("not_executed", None, word, True)


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    in_threads(asked, Caller(asked), asked["callers"])
