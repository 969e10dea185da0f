"""Reports: every number is the document's, the page loads nothing, names are inert, and the same bytes come again."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from mta_cli.errors import BadInput, MtaError
from mta_cli.lab.report import wording
from mta_cli.lab.report.charts import size_chart
from mta_cli.lab.report.write_report import Report, render_html, render_markdown, write_reports
from mta_cli.pipeline.evaluation import ladder_text
from mta_cli.text.printable import clean_line, clean_text
from tests.pipeline.documents import FEW, HOSTILE, MANY, by_memory, document, hostile, with_ladder

VOID = {"meta", "br", "img", "hr", "link", "input"}
ALONE = {
    "defs",
    "path",
    "use",
    "rect",
    "text",
    "g",
    "img",
    "hr",
    "br",
}  # what may close itself, in SVG and in Markdown's HTML
LOADING = {"src", "srcset", "data", "action", "background", "poster", "xlink:href"}


class Page(HTMLParser):
    """A page read strictly: every tag must be closed where it belongs; tables and texts are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALONE, tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if {"td", "th"} & set(self.open[-2:]):
            self.tables[-1][-1][-1] += data

    def said(self, *tags: str) -> str:
        """The text inside any of `tags`."""
        return " ".join(data for tag, data in self.texts if tag in tags)

    def table(self, *head: str) -> dict[str, list[str]]:
        """The cells of the first table whose columns begin with `head`, by the first cell of the row."""
        for rows in self.tables:
            if tuple(rows[0][: len(head)]) == head:
                return {row[0]: row[1:] for row in rows[1:]}
        raise AssertionError(f"no table with the columns {head}")


def rendered(text: str) -> Page:
    """What a Markdown reader shows."""
    return Page(MarkdownIt("commonmark").enable("table").render(text))


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return document()


@pytest.fixture(scope="module")
def page(one: dict[str, Any]) -> str:
    return render_html(Report([one]))


def interval(found: dict[str, float], sign: str = "") -> str:
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def test_a_page_is_balanced_and_has_its_title(page: str) -> None:
    read = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert read.said("title") == read.said("h1") == "Evaluation of lamp-2"
    assert read.said("h3") == "5 shots, 16 anchors, seed 0"


def test_a_page_loads_and_runs_nothing(page: str) -> None:
    for tag, attributes in Page(page).tags:
        assert tag not in {
            "script",
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "image",
            "base",
            "form",
            "foreignobject",
        }
        assert not [name for name in attributes if name.startswith("on") or name in LOADING]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)|javascript:", page)
    assert "default-src 'none'" in page


def test_a_page_has_both_colour_schemes_and_its_charts(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    charts = re.findall(r"<svg .*?</svg>", page, re.S)
    assert len(charts) == 2 and all(ElementTree.fromstring(chart) is not None for chart in charts)
    used = set(re.findall(r"var\(--(\w+)", page))
    assert used and used <= set(re.findall(r"--(\w+):", page))


@pytest.mark.parametrize("reader", ["html", "markdown"])
def test_the_numbers_are_the_documents(one: dict[str, Any], page: str, reader: str) -> None:
    read = Page(page) if reader == "html" else rendered(render_markdown(Report([one])))
    rows = read.table("method", "accuracy", "macro-F1", "gold log-likelihood (nats)")
    assert list(rows) == ["oppu", "mta", "stack", "base"]
    for method, scores in one["methods"].items():
        assert rows[method][:3] == [interval(scores[metric]) for metric in ("accuracy", "macro_f1", "gold_loglik")]
    assert rows["mta"][3:] == ["77,104", "0.00", "0.090", "900"]
    assert rows["oppu"][3] == "1,600,000" and rows["base"][3] == "0"
    differences = read.table("other method", "mta - other [95 %]")
    wanted = [row for row in one["differences"] if row["metric"] == "accuracy"]
    assert {name: row[0] for name, row in differences.items()} == {row["b"]: interval(row, "+") for row in wanted}


def test_the_best_of_each_metric_is_strong(page: str) -> None:
    strong = [text for tag, text in Page(page).texts if tag == "strong"]
    assert strong == ["0.520 [0.470, 0.570]", "0.460 [0.410, 0.510]", "-1.480 [-1.580, -1.380]"]


@pytest.mark.parametrize(
    ("metric", "base", "first"),
    [("accuracy", "better", "oppu"), ("mae", "worse", "base")],
)
def test_each_difference_is_judged_the_right_way_round(metric: str, base: str, first: str) -> None:
    read = Page(render_html(Report([document(metric=metric)])))
    rows = read.table("other method", "mta - other [95 %]")
    assert rows["base"][1:] == ["< 0.001", "0.001", f"{base} than base"]
    assert rows["stack"][1:] == ["0.210", "0.420", "not shown"]
    assert next(iter(read.table("method"))) == first
    tones = [attributes.get("class") for tag, attributes in read.tags if tag == "td"]
    assert base in tones and "not-shown" in tones


def test_the_design_is_in_words(page: str) -> None:
    said = Page(page).said("p")
    for words in (
        "138 users with 333 held-out queries.",
        "5 shots",
        "At most 3 history items",
        "2 folds over users, seed 0.",
        "16 anchors, placement late.",
        "Base tiny.",
        "compared with mta.",
        "Evaluation 1.",
        "The smallest difference in accuracy that this design can detect is 0.040 (as mta and base differed",
    ):
        assert words in said


def test_settings_and_temperatures_are_shown_where_there_are_any(page: str) -> None:
    rows = Page(page).table("method", "settings", "temperature by fold")
    assert rows == {"mta": ["steps 10, rank 2", "1.125, 1.250"]}


def test_what_a_document_lacks_is_left_out() -> None:
    bare = document(costs={}, differences=[], settings={}, calibration={}, power=None)
    for key in ("history_items", "anchors", "placement", "base", "dtype"):
        del bare[key]
    bare["methods"]["base"]["gold_loglik"] = None
    read = Page(render_html(Report([bare])))
    assert read.table("method")["base"] == ["0.200 [0.150, 0.250]", "0.140 [0.090, 0.190]", "–"]
    assert not re.search("None|nan|detect|Base|anchors", read.said("p", "td", "h3"))


def test_seeds_stand_beside_each_other_with_their_mean_and_no_interval_of_it() -> None:
    seeds = [document({**FEW, "base": 0.2 + n / 10}, seed=n, evaluation=n + 1) for n in range(3)]
    read = Page(render_html(Report([seeds[2], seeds[0], seeds[1]])))
    rows = read.table("method", "seed 0", "seed 1", "seed 2", "mean")
    assert rows["base"] == [interval(one["methods"]["base"]["accuracy"]) for one in seeds] + ["0.300"]
    differences = read.table("other method", "seed 0", "seed 1", "seed 2", "mean")
    assert differences["base"][-1] == "+0.200" and differences["base"][0].endswith(" better")
    assert "5 shots, 16 anchors, seeds 0, 1 and 2" in read.said("h3")
    assert [text for tag, text in read.texts if tag == "summary" and text.startswith("Seed")] == [
        "Seed 0",
        "Seed 1",
        "Seed 2",
    ]


def test_what_seeds_found_together_comes_before_them() -> None:
    seeds = [document({**FEW, "base": 0.2 + n / 10}, seed=n, evaluation=n + 1) for n in range(2)]
    both = document({**FEW, "base": 0.25}, seeds=[0, 1], evaluations=[1, 2])
    for gone in ("seed", "evaluation", "settings", "calibration"):
        del both[gone]
    read = Page(render_html(Report([*seeds, both])))
    assert read.table("method", "accuracy")["base"][0] == interval(both["methods"]["base"]["accuracy"])
    assert read.table("method", "seed 0", "seed 1", "mean")["base"][2] == "0.250"
    assert "under the seeds 0 and 1; a user's answers under all of them count together" in read.said("p")
    assert "Evaluations 1 and 2." in read.said("p") and read.said("h3") == "5 shots, 16 anchors, seeds 0 and 1"
    assert read.said("summary").count("Seed") == 0, "their scores are beside each other already"
    assert read.said("summary").count("Settings and calibration") == 1
    read.table("method", "settings", "temperature by fold, seed 0", "temperature by fold, seed 1")
    tuned = {**seeds[1], "settings": {"mta": {"kind": "core", "steps": 60}}}
    told = Page(render_html(Report([seeds[0], tuned, both]))).said("summary")
    assert "Settings and calibration of seed 0" in told and "Settings and calibration of seed 1" in told
    assert "Settings differ between the seeds." in Page(render_html(Report([seeds[0], tuned, both]))).said("p")
    other = document(FEW, seed=2, evaluation=3)
    alone = Page(render_html(Report([seeds[0], other, both])))
    assert "count together" not in alone.said("p"), "it is of other evaluations"


def test_a_method_of_one_seed_alone_makes_no_other_settings() -> None:
    more = {"settings": {"mta": {"steps": 10}, "oppu": {"rank": 8}}, "calibration": {"oppu": [1.5]}}
    first = document({"mta": 0.5, "base": 0.2, "oppu": 0.4}, seed=0, evaluation=1) | more
    second = document({"mta": 0.5, "base": 0.2}, seed=1, evaluation=2) | {
        "settings": {"mta": {"steps": 10}},
        "calibration": {},
    }
    both = document(FEW, seeds=[0, 1], evaluations=[1, 2])
    read = Page(render_html(Report([second, first, both])))
    rows = read.table("method", "settings", "temperature by fold, seed 0", "temperature by fold, seed 1")
    assert rows["mta"][0] == "steps 10" and rows["oppu"] == ["rank 8", "1.500", "–"]
    assert "Settings differ" not in read.said("p")


def test_a_mean_is_over_all_seeds_or_there_is_none() -> None:
    pair = [document(seed=0), document({"mta": 0.5, "base": 0.2}, seed=1)]
    read = Page(render_html(Report(pair)))
    assert read.table("method", "seed 0", "seed 1")["stack"][1:] == ["–", "–"]
    assert read.table("other method", "seed 0", "seed 1")["stack"][1:] == ["–", "–"]
    assert read.table("other method", "seed 0", "seed 1")["base"][2] == "+0.300"


def test_other_designs_of_a_task_are_no_seeds_of_it() -> None:
    read = Page(render_html(Report([document(), document(shots=10, seed=1)])))
    assert read.said("h3") == "5 shots, 16 anchors, seed 0 10 shots, 16 anchors, seed 1"
    with pytest.raises(AssertionError):
        read.table("method", "seed 0")


def test_several_tasks_have_links_to_each() -> None:
    read = Page(render_html(Report([document(), document(task="lamp-3", metric="mae")])))
    targets = [attributes["href"] for tag, attributes in read.tags if tag == "a"]
    assert len(targets) == 2
    assert {f"#{attributes['id']}" for tag, attributes in read.tags if tag == "h2"} == set(targets)
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_hostile_names_are_inert_in_the_page() -> None:
    text = render_html(Report([hostile()]))
    assert clean_text(text) == text
    read = Page(text)
    assert not {"img", "script"} & {tag for tag, _ in read.tags}
    assert not [key for _, attributes in read.tags for key in attributes if key.startswith("on")]
    assert list(read.table("method")) == [clean_line(name) for name in HOSTILE]


def test_hostile_names_are_inert_in_markdown() -> None:
    bad = hostile()
    bad["methods"]["[x](http://evil) ![y](http://evil)"] = bad["methods"][HOSTILE[0]]
    text = render_markdown(Report([bad]))
    assert clean_text(text) == text
    read = rendered(text)
    assert not {"a", "em", "code", "del"} & {tag for tag, _ in read.tags}
    pictures = [attributes["src"] or "" for tag, attributes in read.tags if tag == "img"]
    assert len(pictures) == 2 and all(re.fullmatch(r"frac-1-2-y-shots5-[a-z]+\.png", source) for source in pictures)
    names = {clean_line(name) for name in (*HOSTILE, "[x](http://evil) ![y](http://evil)")}
    assert set(read.table("method")) == names


def test_markdown_shows_the_pictures_beside_it(one: dict[str, Any]) -> None:
    read = rendered(render_markdown(Report([one])))
    pictures = [attributes for tag, attributes in read.tags if tag == "img"]
    assert [picture["src"] for picture in pictures] == ["lamp-2-shots5-intervals.png", "lamp-2-shots5-bytes.png"]
    told = pictures[1]["alt"] or ""
    assert told == size_chart(one, "").caption.partition(".")[0] and told in read.said("p")


def test_the_files_of_a_report(tmp_path: Path, one: dict[str, Any], page: str) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_reports([one], folder)
    names = ["report.md", "report.html", "report.json", "lamp-2-shots5-intervals.png", "lamp-2-shots5-bytes.png"]
    assert paths == [folder / name for name in names]
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(names)
    assert paths[1].read_text(encoding="utf-8") == page
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in paths[3:])
    assert json.loads(paths[2].read_text()) == [one]
    shown = [attributes["src"] for tag, attributes in rendered(paths[0].read_text()).tags if tag == "img"]
    assert shown == names[3:]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_reports([one], folder)] == before


def test_every_document_has_files_of_its_own_and_none_leaves_the_folder(tmp_path: Path) -> None:
    documents = [
        document(),
        document(shots=10),
        document(seed=1),
        document(anchors=8),
        document(evaluation=9),
        hostile(),
        {**hostile(), "task": "../../frac 1 2 y"},
    ]
    paths = write_reports([*documents, document()], tmp_path / "out")
    assert len(set(paths)) == len(paths) == len(list((tmp_path / "out").iterdir()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert all(re.fullmatch(r"[a-z0-9-]+\.(png|md|html|json)", path.name) for path in paths)
    names = {path.name for path in paths}
    assert {"lamp-2-shots5-anchors16-seed0-intervals.png", "lamp-2-anchors16-seed0-by-shots.png"} <= names
    assert len([name for name in names if name.endswith("-intervals.png")]) == len(documents)


def test_nothing_is_left_where_nothing_can_be_written(tmp_path: Path, one: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be made"):
        write_reports([one], tmp_path / "file" / "folder")
    (tmp_path / "out" / "report.md").mkdir(parents=True)
    with pytest.raises(MtaError, match=r"report\.md"):
        write_reports([one], tmp_path / "out")
    assert not [entry for entry in (tmp_path / "out").rglob("*") if entry.suffix == ".tmp"]


def test_no_document_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no evaluation"):
        write_reports([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_methods_make_the_same_bytes_again() -> None:
    documents = [document(MANY), document(MANY, shots=10)]
    assert render_html(Report(documents)) == render_html(Report(documents))
    assert render_markdown(Report(documents)) == render_markdown(Report(documents))


def test_temperatures_of_a_fold_are_told_from_the_least_to_the_most() -> None:
    page = Page(render_html(Report([document(calibration={"mta": [[5.5, 20.0, 10.0], [0.5, 0.5]]})])))
    assert page.table("method", "settings", "temperature by fold")["mta"][1] == "5.500 to 20.000, 0.500"


def test_the_first_table_has_methods_by_label_memory() -> None:
    report = Report([by_memory()])
    table = Page(render_html(report)).tables[0]
    assert table[0] == ["method", "memory off", "memory habit", "memory neighbours"]
    assert [row[0] for row in table[1:]] == ["mta", "pooled-rag"]
    assert table[2] == ["pooled-rag", "0.450 [0.400, 0.500]", "0.510 [0.460, 0.560]", "–"]
    text = render_markdown(report)
    assert text.index("accuracy by label memory") < text.index("bytes a user")
    assert text.index("gold log-likelihood (nats) by label memory") < text.index("bytes a user")


def test_differences_with_the_same_label_memory_share_a_table() -> None:
    made = by_memory()
    report = Report([made])
    text, page = render_markdown(report), Page(render_html(report))
    assert (
        "Every other method is compared with mta, with the same label memory where both were measured with it." in text
    )
    others = page.table("other method", "mta - other [95 %]", "p", "p, Holm", "mta is")
    assert set(others) == {"mta+off", "pooled-rag+habit", "majority"}
    assert page.table("other method", "memory off") == {"pooled-rag": ["+0.020 [-0.020, +0.060], p 0.210 (Holm 0.420)"]}
    assert "with the same label memory" not in render_markdown(Report([document()]))
    for row in made["differences"]:
        row |= {"low": 0.01, "p": 0.01, "p_holm": 0.02}
    assert "| **+0.020 [+0.010, +0.060], p 0.010 (Holm 0.020)** |" in render_markdown(Report([made]))
    for row in made["differences"]:
        row["p_holm"] = 0.07
    assert "| +0.020 [+0.010, +0.060], p 0.010 (Holm 0.070) |" in render_markdown(Report([made])), "exploratory"


def test_each_label_memory_of_the_reference_has_its_own_differences_by_seed() -> None:
    text = render_markdown(Report([by_memory(), {**by_memory(), "seed": 1, "evaluation": 2}]))
    tables = [
        part for part in text.split("**Paired differences in accuracy: ")[1:] if "| other method | seed 0" in part
    ]
    assert [part.partition(" minus")[0] for part in tables] == ["mta", "mta+off"]
    assert "| pooled-rag |" in tables[1] and "| pooled-rag |" not in tables[0]


def test_the_ladder_and_its_verdicts_come_before_the_methods() -> None:
    made = with_ladder()
    page = Page(render_html(Report([made])))
    columns = ladder_text.table_columns(made["ladder"])
    found = page.table(*columns)
    assert found == {cells[0]: list(cells[1:]) for cells in ladder_text.table_rows(made["ladder"])}
    text = render_markdown(Report([made]))
    lines = ladder_text.verdict_lines(made["ladder"], wording.MORE_EVIDENCE)
    places = [text.replace("\\", "").index(line) for line in lines]
    assert places == sorted(places) and places[-1] < text.index("| method |")
    assert "The ladder" in text and "The ladder" not in render_markdown(Report([document()]))
