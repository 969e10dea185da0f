"""The built-in tasks, and what a task does with a raw question."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.engine.text.task_files import parse_task, task_to_toml
from mta_cli.engine.text.tasks import BUILTIN_TASKS, METRIC_BY_KIND, Task

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"

# The questions' wording is LaMP's own; what they ask about is invented.
QUESTIONS = {
    "lamp-1": (
        'For an author who has written the paper with the title "On Owls", which reference is related? Just answer with'
        ' [1] or [2] without further explanation. [1]: "Night Birds" [2]: "Day Birds"',
        '"On Owls"\n[1]: "Night Birds" [2]: "Day Birds"',
    ),
    "lamp-2": (
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without further"
        " explanation. tags: [sci-fi, based on a book] description: An owl\nfalls: in [love].",
        "An owl\nfalls: in [love].",
    ),
    "lamp-2n": (
        "Which category does this article relate to among the following categories? Just answer with the category name"
        " without further explanation. categories: [women, religion] article: Owls win the cup.",
        "Owls win the cup.",
    ),
    "lamp-3": (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without"
        " further explanation. review: A fine lamp.",
        "A fine lamp.",
    ),
    "lamp-4": ("Generate a headline for the following article: Owls won: again.", "Owls won: again."),
    "lamp-5": ("Generate a title for the following abstract of a paper: We study owls.", "We study owls."),
    "lamp-7": (
        "Paraphrase the following tweet without any explanation before or after it: owls: yes",
        "owls: yes",
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_raw_question_loses_its_instruction(name: str) -> None:
    task, (raw, kept) = BUILTIN_TASKS[name], QUESTIONS[name]
    assert task.strip_instruction(raw) == kept
    assert task.strip_instruction(kept) == kept, "what is stripped already stays"


def test_there_is_a_question_for_every_task() -> None:
    assert {*QUESTIONS, "free"} == set(BUILTIN_TASKS)
    free = BUILTIN_TASKS["free"]
    assert free.strip_instruction("anything: at all") == "anything: at all"


@pytest.mark.parametrize("task", BUILTIN_TASKS.values(), ids=BUILTIN_TASKS)
def test_built_in_tasks_are_valid_task_files(task: Task) -> None:
    assert parse_task(task_to_toml(task), "it") == task
    assert task.metric == METRIC_BY_KIND[task.kind]
    assert task.description


def test_words_are_filled_in_once_and_never_formatted() -> None:
    task = replace(BUILTIN_TASKS["free"], item="{input} -> {output} {x}", prompt="{{input}} {0}")
    assert task.fill_item("{output}", "{input}") == "{output} -> {input} {x}"
    assert task.fill_prompt("{input!r:>9}") == "{{input!r:>9}} {0}"


def test_learning_may_ask_something_else() -> None:
    assert BUILTIN_TASKS["lamp-4"].fill_learning_prompt("a") == BUILTIN_TASKS["lamp-4"].fill_prompt("a")
    assert "cite" not in BUILTIN_TASKS["lamp-1"].fill_learning_prompt("an abstract")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("LaMP_2", "lamp-2"), ("LaMP_3", "lamp-3"), ("LaMP_4", "lamp-4"), ("LaMP_5", "lamp-5"), ("MovieRating", "lamp-3")],
)
def test_real_questions_are_all_stripped(folder: str, name: str) -> None:
    path = DATA / folder / "questions.json"
    if not path.is_file():
        pytest.skip(f"the data of {folder} is not beside the checkout (../shared/data)")
    task = BUILTIN_TASKS[name]
    for question in json.loads(path.read_bytes()):
        stripped = task.strip_instruction(question["input"])
        assert stripped and question["input"].endswith(f": {stripped}")
        assert "explanation" not in stripped[:40] and not stripped.startswith(("Generate a", "Which tag"))
        assert set(task.input_field) | set(task.output_field) <= set(question["profile"][0])
