"""Write the figures of `explanation/sizing.md` from what was measured.

    python -m benchmarks.bench_sizing      # and bench_fanin, on a quiet machine
    python docs/make_sizing.py

The words of the page are written by hand; between `<!-- figures: NAME -->` and
`<!-- end -->` stands what this writes. A test holds the page to the committed results.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.bench_sizing import table  # noqa: E402  # found by the path above
from benchmarks.servers import describe  # noqa: E402  # found by the path above
from benchmarks.sizing import House, Work, needed  # noqa: E402  # found by the path above

PAGE = ROOT / "docs" / "explanation" / "sizing.md"
RESULTS = ROOT / "benchmarks" / "results"
LAMBDAS = (100, 1_000, 10_000)
SERVICES = (0.002, 0.010)
"""Seconds that a connection is taken for a statement: a look-up by key, a small report."""
THINK = 0.1
"""Seconds between two statements of a function that is busy all the time."""
HOURS = 730
"""Of a month, as AWS counts."""


class Prices(NamedTuple):
    """List prices in USD of us-east-1; the page says of which date."""

    task_vcpu: float = 0.03238
    """Fargate on ARM, an hour."""
    task_gb: float = 0.00356
    balancer: float = 0.0225
    """Application Load Balancer, an hour, without its capacity units."""
    proxy_vcpu: float = 0.015
    """RDS Proxy, an hour for each vCPU of the database."""
    data_api: float = 0.35
    """The Data API, a million requests of up to 32 KiB, of the first billion of a month."""
    data_api_beyond: float = 0.20
    """Beyond the first billion."""


PRICES = Prices()
NODE_GB = 2


def of_nodes(nodes: int, prices: Prices = PRICES) -> float:
    """USD a month for *nodes* tasks behind a load balancer, one at least in reserve."""
    each = prices.task_vcpu + NODE_GB * prices.task_gb
    return HOURS * (max(2, nodes) * each + prices.balancer)


def of_proxy(vcpus: int, prices: Prices = PRICES) -> float:
    """USD a month for RDS Proxy before a database of *vcpus*."""
    return HOURS * max(2, vcpus) * prices.proxy_vcpu


def of_data_api(requests: float, prices: Prices = PRICES) -> float:
    """USD for so many small requests in a month."""
    first = min(requests, 1e9)
    return (first * prices.data_api + (requests - first) * prices.data_api_beyond) / 1e6


def level(prices: Prices = PRICES) -> float:
    """Requests a second, all month, for which two nodes cost what the Data API costs."""
    return of_nodes(2, prices) / prices.data_api * 1e6 / (HOURS * 3_600)


def _read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = orjson.loads((RESULTS / name).read_bytes())
    return result


def process_seconds(result: Mapping[str, Any]) -> float:
    """Of the node's process for a request, as measured."""
    return float(result["work"]["read"]["cpu_ms"]) / 1e3


def measured() -> str:
    """One machine's figures."""
    sizing, fanin = _read("sizing.json"), _read("fanin.json")
    crowd = {
        row["callers"]: row
        for row in fanin["figures"]
        if row["kind"] == "crowd" and row["name"] == "gateway"
    }
    lines = [
        describe(sizing["machine"]),
        f"{sizing['rounds']} rounds of {sizing['seconds']:.0f} s, medians; PostgreSQL, one node and"
        f" the load share {sizing['machine']['cores']} cores; {sizing['connections']} connections.",
        "",
        "| what | measured |",
        "|---|---:|",
        f"| the node's process, for a request | {process_seconds(sizing) * 1e3:.2f} ms |",
    ]
    for kind, work in sizing["work"].items():
        taken = work["service_ms"]
        lines.append(f"| a connection is taken, statement `{kind}` | {taken:.2f} ms |")
    for callers, row in sorted(crowd.items()):
        lines.append(f"| answers a second, {callers:,} callers | {row['per_second']:,.0f} |")
    kib = max(row["kib_per_caller"] or 0.0 for row in crowd.values())
    lines.append(f"| memory for a caller | {kib:.1f} KiB |")
    return "\n".join(lines) + "\n"


def checked() -> str:
    """The model beside the measurements."""
    return table(_read("sizing.json"))


def houses() -> list[tuple[int, float, House]]:
    """What each number of functions needs, by the time that a statement takes."""
    cpu = process_seconds(_read("sizing.json"))
    return [
        (count, service, needed(count, Work(cpu, service), think=THINK))
        for service in SERVICES
        for count in LAMBDAS
    ]


def predicted() -> str:
    """What 100, 1,000 and 10,000 functions need."""
    lines = [
        "| functions | a statement takes ms | statements a second | nodes | connections"
        " | answer after ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for count, service, house in houses():
        lines.append(
            f"| {count:,} | {service * 1e3:.0f} | {house.per_second:,.0f} | {house.nodes}"
            f" | {house.connections} | {house.seconds * 1e3:.1f} |"
        )
    return "\n".join(lines) + "\n"


def costs() -> str:
    """USD a month, for functions that are busy a part of the time."""
    lines = [
        "| functions | busy | requests a month | nodes | this gateway | RDS Proxy, 2 vCPU"
        " | 16 vCPU | Data API |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for count, service, house in houses():
        if service != SERVICES[0]:
            continue
        for part in (1.0, 0.1):
            requests = house.per_second * part * HOURS * 3_600
            lines.append(
                f"| {count:,} | {part:.0%} | {requests / 1e6:,.0f} M | {max(2, house.nodes)}"
                f" | ${of_nodes(house.nodes):,.0f} | ${of_proxy(2):,.0f} | ${of_proxy(16):,.0f}"
                f" | ${of_data_api(requests):,.0f} |"
            )
    lines += [
        "",
        f"Two nodes and their load balancer cost what the Data API costs for {level():.0f} requests"
        " a second, day and night.",
    ]
    return "\n".join(lines) + "\n"


FIGURES = {"measured": measured, "checked": checked, "predicted": predicted, "costs": costs}
_PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page() -> str:
    """The whole page with its figures as they are now."""
    text = PAGE.read_text(encoding="utf-8")
    return _PLACE.sub(lambda found: f"{found[1]}\n{FIGURES[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
