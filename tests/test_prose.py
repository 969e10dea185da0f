"""The hand-written pages say what is true: links lead somewhere, examples are read, messages are the program's."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.options import PLACEMENTS, WEIGHT_METHODS
from mta_cli.pipeline.data.tasks import add_task
from mta_cli.pipeline.users.import_file import import_file
from store.registry import Registry
from tests.pipeline.town import finish

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(ROOT.glob("*.md")) + sorted(DOCS.rglob("*.md"))
SAMPLE = ROOT / "mta_cli" / "sample"
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
EXAMPLES = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.S | re.M)
FENCE = re.compile(r"^```(?:json|csv)\n(.*?)^```", re.S | re.M)


def text(name: str) -> str:
    path = DOCS / name
    if not path.exists():
        pytest.skip(f"there is no docs/{name}")
    return path.read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as hosts of Markdown make them."""
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name} links to {link}"


def test_the_names_that_say_where_to_add_what_are_in_the_program() -> None:
    """Files and names of code in backticks, but those of the screen that is only an example."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Where to add what")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w/.]*\w)`", section)) - {
        "screens/notes.py",
        "mNNN_name.sql",
        "notes",
        "Notes",
        "NotesScreen",
    }
    files = [
        path for folder in ("mta_cli", "store", "tests", "docs", "benchmarks") for path in (ROOT / folder).rglob("*")
    ]
    tails = {"/".join(path.parts[-n:]) for path in files for n in range(1, 6)}
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in files if path.suffix == ".py")))
    assert [name for name in named if name not in tails and name.rpartition(".")[2] not in words] == []
    for owner, member in re.findall(r"`([A-Z]\w+)\.(\w+)`", section):
        homes = [path.read_text() for path in files if path.suffix == ".py" and f"class {owner}" in path.read_text()]
        assert any(re.search(rf"^    (async )?(def )?{member}\b", home, re.M) for home in homes), f"{owner}.{member}"


def examples() -> dict[str, list[str]]:
    """The fenced examples of docs/formats.md by format."""
    page = (DOCS / "formats.md").read_text(encoding="utf-8")
    return {name: FENCE.findall(body) for name, body in EXAMPLES.findall(page)}


@pytest.fixture
def store(store_root: Path) -> Iterator[Registry]:
    with Registry.open(store_root, create=True) as reg:
        add_task(reg, SAMPLE / "taste.toml")
        yield reg


@pytest.mark.parametrize(
    ("name", "task", "queries"), [("jsonl", None, 0), ("csv", None, 0), ("users", "taste", 1), ("lamp", "lamp-2", 1)]
)
def test_the_examples_of_each_format_are_imported(
    store: Registry, tmp_path: Path, name: str, task: str | None, queries: int
) -> None:
    given = examples()[name]
    source, outputs = tmp_path / f"example.{name}", None
    source.write_text(given[0], encoding="utf-8")
    if name == "jsonl":  # its record names its task itself
        assert '"task": "taste"' in given[0]
    if name == "lamp":
        outputs = tmp_path / "outputs.json"
        outputs.write_text(given[1], encoding="utf-8")
    result, _ = finish(import_file(store, name, source, task=task, outputs=outputs))
    assert result["items_added"] >= 1 and result["queries_added"] == queries
    again, _ = finish(import_file(store, name, source, task=task, outputs=outputs))
    assert again["items_added"] == again["queries_added"] == 0


def test_every_table_and_view_is_in_the_store_reference(store: Registry, store_root: Path) -> None:
    page = text("store.md")
    with closing(sqlite3.connect(store_root / "registry.db")) as database:
        found = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    tables = {name for (name,) in found if not name.startswith(("sqlite_", "items_fts_"))}
    assert set(store.count_rows()) <= tables
    assert not [table for table in sorted(tables) if f"`{table}`" not in page]


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_every_weights_rule_has_its_formula(name: str) -> None:
    assert re.search(rf"^\| `{name}` \| .", text("maths.md"), re.M)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement_is_explained(name: str) -> None:
    maths = " ".join(text("maths.md").split())
    assert f"`--placement {name}`" in maths or f"{name} third of the layers" in maths or f"in the {name} third" in maths


@pytest.mark.parametrize("name", sorted({task.metric for task in BUILTIN_TASKS.values()}))
def test_every_metric_is_explained(name: str) -> None:
    assert f"`{name}`" in text("tasks.md")
    assert name in text("maths.md").lower()


@pytest.mark.parametrize("name", BUILTIN_TASKS)
def test_every_built_in_task_is_explained(name: str) -> None:
    assert f"`{name}`" in text("tasks.md")


def test_the_messages_in_troubleshooting_are_the_programs() -> None:
    """A bold code span is a message; … stands for what differs. The words between must stand in the source."""
    sources = [path for folder in ("mta_cli", "store") for path in (ROOT / folder).rglob("*.py")]
    source = " ".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in sources)
    source = source.replace("{doing}", "running the same job")  # what `Registry.job_lock` fills in
    messages = re.findall(r"\*\*`([^`]+)`\*\*", text("troubleshooting.md"))
    parts = [part.strip(" .:;,") for message in messages for part in message.split("…")]
    strange = [part for part in parts if len(part) > 7 and part not in source]
    assert not strange


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_no_page_names_a_place_on_some_machine(page: Path) -> None:
    assert not re.findall(r"(?<![\w.~])/(?:home|root|tmp|work|Users|mnt)/\w+", page.read_text(encoding="utf-8"))
