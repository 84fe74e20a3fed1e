"""The results in the page on performance: tables as they are written, and plots of the ratios.

    python -m benchmarks.plot

Reads `benchmarks/results/` and writes the plots beside `docs/explanation/performance.md`, and
into that page what stands between the marks of a table and its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import orjson

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "performance.md"
_TABLE = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

_WIDTH, _ROW, _TOP = 760, 24, 46
_LEFT, _RIGHT = 190, 70
"""Room for names and for figures."""
_REACHED, _BEHIND, _PLAIN = "#2f7d5b", "#b5562f", "#5b7083"


class Bar(NamedTuple):
    """One figure of a plot."""

    name: str
    value: float
    least: float | None = None
    """What it is to reach, if anything."""


def plot(title: str, bars: Sequence[Bar]) -> str:
    """*bars* as an SVG picture, each from 0, with a line at 1 where both are equal."""
    most = max(1.2, *(each.value for each in bars), *(each.least or 0 for each in bars))
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    height = _TOP + _ROW * len(bars) + 30
    one = _LEFT + scale
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for index, bar in enumerate(bars):
        y = _TOP + index * _ROW
        colour = _PLAIN
        if bar.least is not None:
            colour = _REACHED if bar.value >= bar.least else _BEHIND
        end = _LEFT + bar.value * scale
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="17" fill="{colour}"/>',
            f'<text x="{end + 6:.1f}" y="{y + 13}">{bar.value:.2f}</text>',
        ]
        if bar.least is not None:
            at = _LEFT + bar.least * scale
            parts.append(
                f'<line x1="{at:.1f}" y1="{y - 3}" x2="{at:.1f}" y2="{y + 20}" stroke="#000000"'
                ' stroke-width="2"/>'
            )
    bottom = height - 26
    parts += [
        f'<line x1="{one:.1f}" y1="{_TOP - 8}" x2="{one:.1f}" y2="{bottom}" stroke="#999999"'
        ' stroke-dasharray="4 3"/>',
        f'<text x="12" y="{height - 10}" font-size="12" fill="#555555">Dashed: equal.'
        " Black mark: what is to be reached.</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _rows(result: Any) -> Iterator[Bar]:
    for row in result["figures"]:
        if row["what"] != row["reference"]:
            yield Bar(row["what"], row["ratio"], row["least"])


def _http(result: Any) -> Iterator[Bar]:
    for row in result["figures"]:
        callers, kind, delay = row["callers"], row["statement"], row["delay_ms"]
        name = f"{kind}, {callers} caller{'s' * (callers > 1)}" + (
            f", {delay:.0f} ms" * (delay > 0)
        )
        least = 1.0 if kind == "write" else 1.2 if callers > 1 and not delay else None
        yield Bar(name, row["rate_ratio"], least)


def _fanin(result: Any) -> Iterator[Bar]:
    crowds = [row for row in result["figures"] if row["kind"] == "crowd"]
    peer = {row["callers"]: row["per_second"] for row in crowds if row["name"] == "pgbouncer"}
    for row in sorted(crowds, key=lambda each: each["callers"]):
        if row["name"] != "pgbouncer":
            least = 0.5 if row["name"] == "gateway" and row["callers"] == 10_000 else None
            ratio = row["per_second"] / peer[row["callers"]]
            yield Bar(f"{row['callers']:,}, {row['name']}", ratio, least)


_PLOTS = {
    "http": ("Requests in a second, gateway : bare handler", _http),
    "rows": ("Speed, psql \\copy to CSV or executemany being 1", _rows),
    "fanin": ("Rate with so many callers, PgBouncer being 1", _fanin),
}


def plots(results: Path = RESULTS) -> Mapping[str, str]:
    """The pictures by the name of their file."""
    made = {}
    for name, (title, bars) in _PLOTS.items():
        result = orjson.loads((results / f"{name}.json").read_bytes())
        made[f"performance-{name}.svg"] = plot(title, list(bars(result)))
    return made


def page(text: str, results: Path = RESULTS) -> str:
    """The page *text* with the tables of today between their marks."""

    def table(found: re.Match[str]) -> str:
        return found[1] + (results / f"{found[2]}.md").read_text(encoding="utf-8") + found[3]

    return _TABLE.sub(table, text)


def main() -> None:
    """Write pictures and page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for name, picture in plots().items():
        (PAGE.parent / name).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
