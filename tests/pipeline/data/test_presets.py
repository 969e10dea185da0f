"""Exports of sites in their real form, imported by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.text.task_files import parse_task, task_to_toml
from mta_cli.errors import BadInput, NotFound, UsageError
from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.data.presets import PRESETS
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.users.import_file import import_source
from store.registry import Registry
from tests.pipeline.histories import run

EXPORTS = Path(__file__).parent / "exports"


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


def take(reg: Registry, preset: str, path: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    return run(import_source(reg, ImportSource(None, path, preset=preset, **options)))


def items(reg: Registry, user: str, task: str) -> list[tuple[str, str, str | None]]:
    return [(each.input, each.output, each.time) for each in reg.items.recent_items(reg.users.get(user).id, task)]


def test_letterboxd(reg: Registry) -> None:
    result, notes = take(reg, "letterboxd", EXPORTS / "letterboxd", user="ann")
    assert (result["task"], result["items_added"], notes) == ("letterboxd", 5, [])
    found = items(reg, "ann", "letterboxd")
    assert found[0] == (
        "The Ferry at Dusk (1998). Slow, and worth it.\nThe last crossing stays with me.",
        "4.5",
        "2024-01-03",
    )
    assert found[2] == ("Harbour of Glass (2019)", "0.5", "2024-02-14")


def test_letterboxd_reviews_alone(reg: Registry) -> None:
    result, notes = take(reg, "letterboxd", EXPORTS / "letterboxd" / "reviews.csv", user="ann")
    assert result["items_added"] == 2
    assert notes == ["left out, rows without a rating: 1"]


def test_imdb(reg: Registry) -> None:
    result, _ = take(reg, "imdb", EXPORTS / "imdb" / "ratings.csv", user="ann")
    assert (result["task"], result["items_added"]) == ("imdb", 3)
    found = items(reg, "ann", "imdb")
    assert found[0] == ("The Ferry at Dusk (1998). Drama, Romance. Ilse Brandt", "9", "2023-05-01")
    assert found[2][0] == "Signal House (2020). Crime, Mystery"


def test_goodreads(reg: Registry) -> None:
    result, notes = take(reg, "goodreads", EXPORTS / "goodreads", user="ann")
    assert (result["items_added"], notes) == (2, ["left out, rows without a rating: 1"])
    assert items(reg, "ann", "goodreads") == [
        ("The Tidewatcher's Almanac by Mara Quill. Every chapter is a tide.\n\nI read it twice.", "5", "2022-07-15"),
        ("Small Engines by Piet Darrow", "2", "2022-08-02"),
    ]


def test_movielens(reg: Registry) -> None:
    result, _ = take(reg, "movielens", EXPORTS / "movielens")
    assert (result["users"], result["items_added"]) == (2, 4)
    assert items(reg, "1", "movielens") == [
        ("Cartographer, The (2003). Adventure|Drama|Mystery", "4.5", "2000-07-30T18:20:47"),
        ("The Ferry at Dusk (1998). Drama|Romance", "4", "2000-07-30T18:45:03"),
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_a_second_import_changes_nothing_and_every_rating_is_a_label(reg: Registry, name: str) -> None:
    user = "ann" if PRESETS[name].has_one_user else None
    _, notes = take(reg, name, EXPORTS / name, user=user)
    assert not any("not labels" in note for note in notes)
    assert find_task(reg, name) == PRESETS[name].task
    again, _ = take(reg, name, EXPORTS / name, user=user)
    assert again["items_added"] == 0 and again["items_unchanged"] > 0


@pytest.mark.parametrize("name", PRESETS)
def test_the_case_of_the_headers_does_not_matter(reg: Registry, tmp_path: Path, name: str) -> None:
    user = "ann" if PRESETS[name].has_one_user else None
    for file in (EXPORTS / name).iterdir():
        header, _, body = file.read_text(encoding="utf-8").partition("\n")
        (tmp_path / file.name).write_text(f"{header.lower()}\n{body}", encoding="utf-8")
    first, _ = take(reg, name, EXPORTS / name, user=user)
    again, _ = take(reg, name, tmp_path, user=user)
    assert (again["items_added"], again["items_unchanged"]) == (0, first["items_added"])


@pytest.mark.parametrize("name", PRESETS)
def test_the_tasks_of_presets_are_valid_task_files(name: str) -> None:
    task = PRESETS[name].task
    assert parse_task(task_to_toml(task), name) == task


def test_a_dry_run_adds_no_task(reg: Registry) -> None:
    source = ImportSource(None, EXPORTS / "imdb", preset="imdb", user="ann")
    run(import_source(reg, source, dry_run=True))
    assert reg.tasks.get("imdb") is None


def test_a_task_and_columns_of_ones_own(reg: Registry) -> None:
    take(reg, "imdb", EXPORTS / "imdb", user="ann", task="free", columns=ColumnMapping(input="{Title}"))
    assert items(reg, "ann", "free")[0][:2] == ("The Ferry at Dusk", "9")
    assert reg.tasks.get("imdb") is None


def test_requests_that_do_not_fit(reg: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not name its user"):
        take(reg, "imdb", EXPORTS / "imdb")
    with pytest.raises(UsageError, match="names its users"):
        take(reg, "movielens", EXPORTS / "movielens", user="ann")
    with pytest.raises(UsageError, match="'netflix' is not a preset"):
        take(reg, "netflix", EXPORTS / "imdb")
    with pytest.raises(NotFound, match=r"There is no ratings\.csv in"):
        take(reg, "imdb", EXPORTS / "goodreads", user="ann")
    shutil.copy(EXPORTS / "movielens" / "ratings.csv", tmp_path / "ratings.csv")
    with pytest.raises(NotFound, match=r"There is no movies\.csv in"):
        take(reg, "movielens", tmp_path / "ratings.csv")
    with pytest.raises(BadInput, match="is not an export of Goodreads: it lacks the columns Author, My Rating"):
        take(reg, "goodreads", EXPORTS / "imdb" / "ratings.csv", user="ann")
    with pytest.raises(BadInput, match="has no column 'Titel'; its columns are 'Const'") as caught:
        take(reg, "imdb", EXPORTS / "imdb", user="ann", columns=ColumnMapping(input="{Titel}"))
    assert caught.value.hint is None
    assert reg.users.names() == []


def test_columns_of_the_second_file_can_be_mapped(reg: Registry) -> None:
    take(reg, "letterboxd", EXPORTS / "letterboxd", user="ann", columns=ColumnMapping(input="{Name}: {Tags}"))
    assert [item[0] for item in items(reg, "ann", "letterboxd")][:2] == [
        "The Ferry at Dusk: boats, evening",
        "Nine Quiet Rooms",
    ]
