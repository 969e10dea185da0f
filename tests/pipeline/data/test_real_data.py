"""The real people's data that may lie beside the checkout; nothing of it is copied here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_cli.pipeline.data.tasks import add_task
from mta_cli.pipeline.users.import_file import import_file
from store.registry import Registry
from tests.pipeline.histories import imported, run

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
FOLDERS = [
    ("LaMP_2", "lamp-2"),
    ("LaMP_3", "lamp-3"),
    ("LaMP_4", "lamp-4"),
    ("LaMP_5", "lamp-5"),
    ("MovieRating", "lamp-3"),
]

AROUSAL = """
name = "arousal"
kind = "label"
description = "How aroused a reader feels"
prompt = "How aroused does the reader feel? {input}"
item = "{input} -> {output}"
labels = ["calm", "slightly aroused", "aroused", "highly aroused"]
metric = "accuracy"
input_field = "text"
output_field = "label"
question_pattern = "(?s).*? text: (?P<input>.*)"
"""


def folder(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"the data of {name} is not beside the checkout (../shared/data)")
    return path


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


@pytest.mark.parametrize(("name", "task"), FOLDERS)
def test_users_and_questions_agree(reg: Registry, name: str, task: str) -> None:
    path = folder(name)
    people = json.loads((path / "users.json").read_bytes())
    result, notes = run(import_file(reg, "users", path / "users.json", task=task))
    assert result["items_added"] == sum(len(each["profile"]) for each in people)
    assert result["queries_added"] == sum(len(each["query"]) for each in people)
    assert not any(note.startswith("left out") or "not labels" in note for note in notes)
    again = imported(reg, "lamp", path / "questions.json", outputs=path / "outputs.json", task=task)
    assert (again["items_added"], again["queries_added"]) == (0, 0)
    held = [query for each in people for query in reg.items.queries(reg.users.get(each["user_id"]).id, task)]
    raw = {query["id"]: query["input"] for each in people for query in each["query"]}
    assert all(len(query.input) < len(raw[query.key]) for query in held), "the instruction is stripped"


def test_a_task_of_ones_own(reg: Registry, tmp_path: Path) -> None:
    path = folder("StudEmo_arousal")
    file = tmp_path / "arousal.toml"
    file.write_text(AROUSAL, encoding="utf-8")
    add_task(reg, file)
    result, notes = run(import_file(reg, "users", path / "users.json", task="arousal"))
    assert (result["users"], result["queries_added"]) == (17, 140)
    assert notes == []
