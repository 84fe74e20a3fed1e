"""`python -m benchmarks`: what the gateway is measured by, one after the other.

    python -m benchmarks             measure, print, write results/ and the page on performance
    python -m benchmarks --compare   measure, and fail where a ratio fell behind results/,
                                     which stay as they are

Each module measures one thing and can be run by itself: `bench_http` (statements),
`bench_rows` (large results and batches), `bench_fanin` (very many callers), `bench_client`
(cold start), `bench_hangup`, `bench_token`, `bench_issuer`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import orjson

from . import bench_http, bench_rows, plot
from .bench_http import RESULTS

MEASURED = ("http", "rows")
_NAMES = ("delay_ms", "statement", "callers", "name", "what")
"""Members that tell the figures of one list apart."""
TOLERANCE = 0.25
"""Part of a ratio that the noise of a shared machine may take."""


def ratios(result: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of *result* whose name ends in `ratio`, with where it stands."""
    if isinstance(result, dict):
        name = " ".join(str(result[key]) for key in _NAMES if key in result)
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
    files = [RESULTS / f"{name}.{kind}" for name in MEASURED for kind in ("json", "md")]
    before = {path: path.read_bytes() for path in files if path.exists()}
    bench_http.main()
    bench_rows.main()
    if not given.compare:
        plot.main()
        return
    worse = [
        line
        for path, kept in before.items()
        if path.suffix == ".json"
        for line in behind(orjson.loads(path.read_bytes()), orjson.loads(kept))
    ]
    for path, kept in before.items():
        path.write_bytes(kept)
    print("\n".join(worse) or "no ratio fell behind")
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
