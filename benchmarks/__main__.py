"""`python -m benchmarks`: what the gateway is measured by, one after the other.

    python -m benchmarks             measure, print, and write results/
    python -m benchmarks --compare   measure, and fail where a ratio fell behind results/

Each module measures one thing and can be run by itself: `bench_http` (statements),
`bench_rows` (large results and batches), `bench_fanin` (very many callers), `bench_client`
(cold start), `bench_hangup`, `bench_token`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import orjson

from . import bench_http, bench_rows
from .bench_http import RESULTS

TOLERANCE = 0.25
"""Part of a ratio that the noise of a shared machine may take."""


def ratios(result: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of *result* whose name ends in `ratio`, with where it stands."""
    if isinstance(result, dict):
        name = " ".join(str(result[key]) for key in ("delay_ms", "statement", "callers", "name")
                        if key in result)  # fmt: skip
        for key, value in result.items():
            if isinstance(value, int | float) and key.endswith("ratio"):
                yield f"{path} {name} {key}".strip(), float(value)
            else:
                yield from ratios(value, f"{path} {name}".strip())
    elif isinstance(result, list):
        for each in result:
            yield from ratios(each, path)


def behind(now: Any, before: Any) -> list[str]:
    """What fell behind; of rates more is better, of times and CPU less."""
    kept = dict(ratios(before))
    lines = []
    for name, value in ratios(now):
        was = kept.get(name)
        if was is None:
            continue
        less_is_better = name.endswith(("p50_ratio", "cpu_ratio"))
        worse = value > was * (1 + TOLERANCE) if less_is_better else value < was * (1 - TOLERANCE)
        if worse:
            lines.append(f"{name}: {value:.2f}, was {was:.2f}")
    return lines


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--compare", action="store_true", help="with the committed results")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    sys.argv[1:] = [f"--rounds={given.rounds}"]
    before = {
        name: orjson.loads((RESULTS / name).read_bytes())
        for name in ("http.json", "rows.json")
        if (RESULTS / name).exists()
    }
    bench_http.main()
    bench_rows.main()
    if given.compare:
        worse = [
            line
            for name, kept in before.items()
            for line in behind(orjson.loads((RESULTS / name).read_bytes()), kept)
        ]
        print("\n".join(worse) or "no ratio fell behind")
        sys.exit(bool(worse))


if __name__ == "__main__":
    main()
