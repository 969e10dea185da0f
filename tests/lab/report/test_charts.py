"""Charts of evaluations: what is drawn, that the same documents give the same bytes, and that names stay names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mta_cli.lab.report import charts, plots
from mta_cli.lab.report.charts import Chart
from mta_cli.lab.report.style import MAX_NAME_LENGTH, short_name
from mta_cli.text.printable import clean_text
from tests.pipeline.documents import FEW, HOSTILE, by_memory, document, hostile

PNG = b"\x89PNG\r\n\x1a\n"
SVG = "{http://www.w3.org/2000/svg}"
SEEN = ("value", "low", "high")


def every_chart(values: dict[str, float] = FEW) -> list[Chart]:
    one = document(values)
    return [
        charts.interval_chart(one, "one"),
        charts.size_chart(one, "one"),
        charts.series_chart([document(values, shots=n) for n in (2, 5, 10)], "shots", "one"),
        charts.series_chart([document(values, anchors=n) for n in (4, 8)], "anchors", "one"),
        charts.series_chart([document(values, task_epochs=n) for n in (1, 2)], "task_epochs", "one"),
    ]


def texts(svg: str) -> list[str]:
    """What a reader can read in an SVG."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("chart", every_chart(), ids=lambda chart: chart.name)
def test_a_chart_is_valid_svg_with_its_words_as_text(chart: Chart) -> None:
    svg = charts.chart_svg(chart)
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("viewBox")
    assert root.get("aria-label") == chart.caption
    assert {"stack", "base"} <= set(texts(svg))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) and all(name.startswith(chart.name) for name in ids)


@pytest.mark.parametrize("chart", every_chart(), ids=lambda chart: chart.name)
def test_a_chart_loads_and_runs_nothing(chart: Chart) -> None:
    for element in ElementTree.fromstring(charts.chart_svg(chart)).iter():
        assert element.tag.removeprefix(SVG) in {"svg", "g", "path", "use", "defs", "clipPath", "rect", "text"}
        for key, value in element.attrib.items():
            assert not key.startswith("on") and "http" not in value
            assert "href" not in key or value.startswith("#")


@pytest.mark.parametrize("chart", every_chart(), ids=lambda chart: chart.name)
def test_the_same_document_gives_the_same_bytes(chart: Chart) -> None:
    assert charts.chart_svg(chart) == charts.chart_svg(chart)
    first = charts.chart_png(chart)
    assert first.startswith(PNG) and first == charts.chart_png(chart)
    assert not any(word in first for word in (b"Software", b"tIME", b"Creation"))


def test_neither_a_persons_style_nor_their_screen_changes_a_chart(tmp_path: Path) -> None:
    script = (
        "import hashlib, sys\nfrom mta_cli.lab.report import charts\n"
        "from tests.pipeline.documents import document\n"
        "one = document()\nfor chart in (charts.interval_chart(one, 'x'), charts.size_chart(one, 'x')):\n"
        "    print(hashlib.sha256(charts.chart_svg(chart).encode() + charts.chart_png(chart)).hexdigest())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: tkagg\nfont.size: 30\naxes.facecolor: red\n")
    root = Path(__file__).parents[3]
    plain = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "1"}
    own = {**plain, "MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "2", "DISPLAY": ""}
    ran = [
        subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, check=True, capture_output=True).stdout
        for env in (plain, own)
    ]
    assert ran[0] == ran[1] and len(ran[0].split()) == 2


def test_rows_are_sorted_by_the_main_metric_from_the_best() -> None:
    shown = [text for text in texts(charts.chart_svg(charts.interval_chart(document(), "x"))) if text in FEW]
    assert shown == ["oppu", "mta", "stack", "base"]


def test_rows_of_an_error_are_sorted_the_other_way_round() -> None:
    shown = [
        text for text in texts(charts.chart_svg(charts.interval_chart(document(metric="mae"), "x"))) if text in FEW
    ]
    assert shown == ["base", "stack", "mta", "oppu"]


def drawn(chart: Chart) -> tuple[list[str], list[tuple[float, float]]]:
    """The named ticks of the first axis, and the positions of marks."""
    from mta_cli.lab.report import style

    with style.chart_style():
        axes = chart.draw().axes[0]
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        points = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines]
    return ticks, points


def test_dots_stand_at_the_values_of_the_document() -> None:
    _, points = drawn(charts.interval_chart(document(), "x"))
    assert {(round(x, 9), row) for x, row in points} >= {(0.52, 0), (0.50, 1), (0.47, 2), (0.20, 3)}


def test_the_fewest_bytes_are_at_the_top_and_what_is_as_good_with_fewer_is_hollow() -> None:
    from mta_cli.lab.report import style

    one = document({"mta": 0.5, "oppu": 0.4, "base": 0.2})
    one["costs"] = {"mta": {"bytes": 82_000}, "oppu": {"bytes": 1_600_000}, "base": {"bytes": 0}}
    chart = charts.size_chart(one, "x")
    names = ["base", "mta", "oppu", "0 B", "82 kB", "1.6 MB"]
    assert [text for text in texts(charts.chart_svg(chart)) if text in names] == names
    with style.chart_style():
        marks = [line for line in chart.draw().axes[0].lines if len(line.get_xdata()) == 1]
    fills = {line.get_ydata()[0]: line.get_markerfacecolor() for line in marks}
    assert [row for row, fill in fills.items() if fill == style.PAPER_COLOUR] == [2]


@pytest.mark.parametrize("metric", ["accuracy", "mae"])
def test_better_is_up_by_shots(metric: str) -> None:
    from mta_cli.lab.report import style

    with style.chart_style():
        chart = charts.series_chart([document(metric=metric), document(metric=metric, shots=9)], "shots", "x")
        bottom, top = chart.draw().axes[0].get_ylim()
        assert (bottom < top) == (metric == "accuracy")


def test_every_method_has_a_panel_beside_the_reference() -> None:
    values = {**FEW, "permuted-task:none:lora+neighbours": 0.3}
    documents = [document(values, shots=2), document({**values, "late": 0.4}, shots=5)]
    shown = texts(charts.chart_svg(charts.series_chart(documents, "shots", "x")))
    assert {"base", "stack", "oppu", "mta", "shots", "2", "5"} <= set(shown)
    assert {"permuted-task:none:lora", "+neighbours"} <= set(shown)  # one name, on two lines
    assert "late" not in shown  # one point does not make a line
    alone = texts(
        charts.chart_svg(charts.series_chart([document({"mta": 0.5}, shots=n) for n in (1, 2)], "shots", "x"))
    )
    assert alone.count("mta") == 2  # the panel and the legend


def test_a_panel_has_the_reference_with_the_methods_label_memory() -> None:
    documents = [{**by_memory(), "shots": 2}, {**by_memory(), "shots": 5}]
    panels = [panel for panel in plots.draw_series(documents, "shots").axes if panel.get_visible()]
    first = {panel.get_title(): list(panel.lines[0].get_ydata()) for panel in panels}
    assert first["pooled-rag"] == [0.47, 0.47]  # mta+off
    assert first["pooled-rag+habit"] == first["majority"] == [0.58, 0.58]  # mta
    assert "is mta with the same label memory." in charts.series_chart(documents, "shots", "x").caption
    assert "same label memory" not in charts.series_chart([document(), document(shots=10)], "shots", "x").caption


def test_settings_that_differ_are_said_below_a_series() -> None:
    other = document(shots=10, settings={"mta": {"steps": 20}})
    assert "Settings differ" in charts.series_chart([document(), other], "shots", "x").caption
    assert "Settings differ" not in charts.series_chart([document(), document(shots=10)], "shots", "x").caption


def test_what_a_document_lacks_is_not_drawn() -> None:
    bare = document(costs={}, differences=[])
    del bare["methods"]["base"]["gold_loglik"]
    bare["methods"]["stack"]["accuracy"] = {"value": None, "low": None, "high": None}
    bare["methods"]["oppu"]["accuracy"] = {"value": 0.5, "low": float("nan"), "high": None}
    for chart in (charts.interval_chart(bare, "x"), charts.size_chart(bare, "x")):
        assert charts.chart_png(chart).startswith(PNG)
        assert "nan" not in charts.chart_svg(chart).lower()


def test_hostile_names_are_text_and_nothing_else() -> None:
    bad = hostile()
    for chart, letters in (
        (charts.interval_chart(bad, "x"), MAX_NAME_LENGTH),
        (charts.size_chart(bad, "x"), MAX_NAME_LENGTH),
        (charts.series_chart([bad, bad], "shots", "x"), plots.MAX_TITLE_LETTERS),
    ):
        svg = charts.chart_svg(chart)
        assert clean_text(svg) == svg and "<img" not in svg
        begins = {short_name(text, letters) for text in texts(svg)}  # the reference is whole in the legend
        assert {short_name(name, letters) for name in HOSTILE} <= begins
        assert charts.chart_png(chart).startswith(PNG)
