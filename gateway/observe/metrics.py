"""Counters and gauges in Prometheus' text form, rendered when they are asked for.

The hot path adds to plain integers; nothing here runs between two scrapes.
Labels never hold SQL, a user or a tenant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Sample(NamedTuple):
    """One value of a metric."""

    labels: Mapping[str, str]
    value: float


class Metric(NamedTuple):
    """A metric and its values."""

    name: str
    kind: str
    """`counter` or `gauge`."""
    help: str
    samples: Iterable[Sample]


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(metrics: Iterable[Metric]) -> bytes:
    """*metrics* as a scrape wants them.

    >>> print(render([Metric("x", "gauge", "An x.", [Sample({"a": "b"}, 2)])]).decode(), end="")
    # HELP x An x.
    # TYPE x gauge
    x{a="b"} 2
    """
    lines = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.help}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for sample in metric.samples:
            labels = ",".join(f'{key}="{_label(value)}"' for key, value in sample.labels.items())
            shown = f"{{{labels}}}" if labels else ""
            lines.append(f"{metric.name}{shown} {sample.value:g}")
    return ("\n".join(lines) + "\n").encode()
