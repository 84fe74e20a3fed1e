"""What sealed claims cost a read: the same statement with and without, one caller.

    python benchmarks/bench_claims.py

Rounds alternate, so that both see the same machine; medians are compared.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.cli import embedded
from tests.fix_claims import SCHEMA, Tenant, claims_settings, install_seal, token_of
from tests.fix_gateway import running
from tests.fix_postgres import Database

ROUNDS, REQUESTS = 7, 400
STATEMENTS = {
    "select 1": ("select 1", "select 1"),
    "a policy": ("select note from guc_items where tenant = 'a'", "select note from items"),
}


def main() -> None:
    """Measure, print."""
    home = Path(tempfile.mkdtemp(prefix="pgsluice-bench-"))
    home.chmod(0o711)
    try:
        with embedded.start(home / "data", port=embedded.free_port(), host_auth="trust") as server:
            database = Database(server, "postgres")
            install_seal(database)
            database.sql(SCHEMA)
            database.sql("alter table guc_items disable row level security")
            with (
                running(claims_settings(database, "none"), database) as plain,
                running(claims_settings(database, "sealed"), database) as sealed,
            ):
                callers = [Tenant(gateway, token_of("a")) for gateway in (plain, sealed)]
                for name, texts in STATEMENTS.items():
                    report(name, [list(each) for each in zip(callers, texts, strict=True)])
                for caller in callers:
                    caller.client.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def report(name: str, pairs: list[list]) -> None:  # type: ignore[type-arg]
    """Medians of one statement both ways, in microseconds."""
    medians: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for (caller, sql), into in zip(pairs, medians, strict=True):
            taken = []
            for _ in range(REQUESTS):
                began = time.perf_counter()
                caller.rows(sql)
                taken.append(time.perf_counter() - began)
            into.append(statistics.median(taken) * 1e6)
            caller.heard.clear()
    plain, sealed = (statistics.median(each) for each in medians)
    print(f"{name}: {plain:.0f} us without, {sealed:.0f} us sealed, {sealed - plain:+.0f} us")


if __name__ == "__main__":
    main()
