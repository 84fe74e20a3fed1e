"""What is published was measured, and what gets slower is noticed."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest

from benchmarks import __main__ as bench
from benchmarks import bench_client, bench_fairness, bench_fanin, bench_http, bench_rows, plot

TABLES = {
    "http": bench_http.table,
    "rows": bench_rows.table,
    "fanin": bench_fanin.table,
    "fairness": bench_fairness.table,
    "client": bench_client.table,
}


def kept(name: str) -> Any:
    return orjson.loads((plot.RESULTS / f"{name}.json").read_bytes())


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_that_of_the_results(name: str) -> None:
    assert (plot.RESULTS / f"{name}.md").read_text() == TABLES[name](kept(name))


def test_the_page_shows_the_tables_of_the_results() -> None:
    text = plot.PAGE.read_text(encoding="utf-8")
    assert re.findall(r"<!-- results: (\w+) -->", text) == list(TABLES)
    assert text.count("<!-- end of results -->") == len(TABLES)
    assert plot.page(text) == text, "run python -m benchmarks.plot"


def test_the_page_shows_the_plots_of_the_results() -> None:
    text = plot.PAGE.read_text(encoding="utf-8")
    for name, picture in plot.plots().items():
        assert f"]({name})" in text
        written = (plot.PAGE.parent / name).read_text(encoding="utf-8")
        assert written == picture, "run python -m benchmarks.plot"


def test_a_plot_shows_each_figure_to_scale() -> None:
    bars = [plot.Bar("half & half", 0.5, 1.0), plot.Bar("good", 2.0, 1.5), plot.Bar("plain", 1.0)]
    root = ElementTree.fromstring(plot.plot("a < b", bars))
    svg = "{http://www.w3.org/2000/svg}"
    texts = [each.text for each in root.iter(f"{svg}text")]
    assert {"a < b", "half & half", "0.50", "2.00", "1.00"} <= set(texts)
    half, good, plain = list(root.iter(f"{svg}rect"))[1:]
    widths = [float(each.get("width", "")) for each in (half, good, plain)]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.3)
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.3)
    assert len({each.get("fill") for each in (half, good, plain)}) == 3
    least = next(float(each.get("x1", "")) for each in root.iter(f"{svg}line"))
    assert least == pytest.approx(float(half.get("x", "")) + 2 * widths[0], abs=0.3)


def leaves(result: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every ratio of *result*, where it can be changed."""
    if isinstance(result, dict):
        for key, value in result.items():
            if key.endswith("ratio"):
                yield result, key
            else:
                yield from leaves(value)
    elif isinstance(result, list):
        for each in result:
            yield from leaves(each)


@pytest.mark.parametrize("name", bench.MEASURED)
def test_every_ratio_that_falls_behind_is_told(name: str) -> None:
    before = kept(name)
    assert len(dict(bench.ratios(before))) == len(list(leaves(before))) > 5
    assert bench.behind(before, before) == []
    for index, (where, key) in enumerate(leaves(before)):
        now = copy.deepcopy(before)
        held, _ = list(leaves(now))[index]
        less_is_better = key in ("p50_ratio", "cpu_ratio")
        was = where[key]
        held[key] = was * (1.2 if less_is_better else 0.8)
        assert bench.behind(now, before) == [], key
        held[key] = was / 1.5 if less_is_better else was * 1.5
        assert bench.behind(now, before) == [], key
        held[key] = was * 1.3 if less_is_better else was * 0.7
        [line] = bench.behind(now, before)
        assert line.endswith(f"was {was:.2f}")


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (0.5, 1)])
def test_the_comparison_fails_and_keeps_the_results(
    factor: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for each in plot.RESULTS.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())

    def measured(name: str) -> None:
        result = kept(name)
        for where, key in leaves(result):
            if key in ("rate_ratio", "ratio"):
                where[key] *= factor
        (tmp_path / f"{name}.json").write_bytes(orjson.dumps(result))
        (tmp_path / f"{name}.md").write_text("measured anew")

    # A round of the real ones takes minutes.
    monkeypatch.setattr(bench_http, "main", lambda: measured("http"))
    monkeypatch.setattr(bench_rows, "main", lambda: measured("rows"))
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--compare"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == code
    said = capsys.readouterr().out
    assert ("was" in said) is bool(code)
    arrow = dict(bench.ratios(kept("rows")))["Arrow ratio"]
    assert (f"Arrow ratio: {arrow / 2:.2f}, was {arrow:.2f}" in said) is bool(code)
    for each in plot.RESULTS.iterdir():
        assert (tmp_path / each.name).read_bytes() == each.read_bytes()
