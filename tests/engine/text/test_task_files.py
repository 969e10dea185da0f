"""Task files: what is read, what is refused, and that all faults come at once."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_cli.engine.text.task_files import TASK_KEYS, parse_task, task_to_toml
from mta_cli.engine.text.tasks import BUILTIN_TASKS, DEFAULT_SCORE_LABELS, Task
from mta_cli.errors import BadInput

DOCS = Path(__file__).parents[3] / "docs" / "tasks.md"
LEAST = 'name = "mine"\nprompt = "Say {input}"\n'


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(BadInput) as caught:
        parse_task(text, "mine.toml")
    assert caught.value.hint
    assert all(fault.startswith("mine.toml: ") for fault in caught.value.faults)
    return tuple(fault.removeprefix("mine.toml: ") for fault in caught.value.faults)


def test_the_least_task_file() -> None:
    assert parse_task(LEAST, "it") == Task(name="mine", kind="text", description="", prompt="Say {input}")


def test_what_follows_from_what_is_given() -> None:
    label = parse_task(LEAST + 'labels = ["yes", "no"]\ninput_field = "text"\noutput_field = ["a", "b"]', "it")
    assert (label.kind, label.metric) == ("label", "accuracy")
    assert (label.input_field, label.output_field) == (("text",), ("a", "b"))
    score = parse_task(LEAST + 'kind = "score"', "it")
    assert (score.labels, score.metric) == (DEFAULT_SCORE_LABELS, "mae")


def test_all_faults_come_at_once() -> None:
    text = """
        name = "My Task"
        kind = "lable"
        item = "no answer here"
        labels = ["a", "a"]
        querytokens = 3
        query_tokens = 0
        item_tokens = "many"
        answer_tokens = true
        question_pattern = "("
        input_field = []
        description = "two\\nlines"
    """
    found = faults(text)
    assert len(found) == 12
    for words in (
        "prompt is missing",
        "name is 'My Task'",
        "kind is 'lable'; choose one of label, score, text",
        "item does not contain {output}",
        "labels has 'a' twice",
        "'querytokens' is not a key of a task file; is it query_tokens?",
        "query_tokens is '0'; it goes from 1",
        "item_tokens is a text, not a whole number",
        "answer_tokens is true or false, not a whole number",
        "question_pattern is not a regular expression",
        "input_field is neither",
        "description has a line break",
    ):
        assert any(fault.startswith(words) for fault in found), (words, found)


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ('kind = "label"', "needs labels"),
        ('labels = ["one"]', "needs labels: two or more"),
        ('kind = "text"\nlabels = ["a", "b"]', "kind text has no labels"),
        ('kind = "score"\nlabels = ["1", "good"]', "numbers such as 4 or 3.5, not 'good'"),
        ('kind = "score"\nlabels = ["1"]', "two or more"),
        ('metric = "accuracy"', "metric accuracy does not measure kind text"),
        ('labels = ["a", " b"]', "number 2 is ' b'"),
        ('labels = ["a", 3]', "number 2 is '3'"),
        ('labels = "a, b"', "not a list"),
        ('question_pattern = "a.*"', "no group named input"),
        ("system = 3", "system is a number, not a text"),
        ("description = 2024-01-01", "a date or time, not a text"),
        (f'history_header = "{"x" * 10_001}"', "has 10,001 characters"),
        ("[labels]\na = 1", "not a list"),
    ],
)
def test_values_that_cannot_be(more: str, fault: str) -> None:
    found = faults(LEAST + more)
    assert len(found) == 1 and fault in found[0]


@pytest.mark.parametrize("name", ["", "../x", "-x", "A", "x" * 65, "a b", "a\\nb", "..", "é"])
def test_names_that_cannot_be(name: str) -> None:
    assert len(faults(f'name = "{name}"\nprompt = "{{input}}"')) == 1


@pytest.mark.parametrize("text", ["", "name", "name = ", '"', "[[", "\x00", '{"name": "a"}', "a = " + "[" * 100_000])
def test_what_is_no_toml_or_holds_nothing(text: str) -> None:
    with pytest.raises(BadInput):
        parse_task(text, "it")


def test_a_huge_text_is_refused() -> None:
    with pytest.raises(BadInput, match="1,000,001 characters"):
        parse_task("#" * 1_000_001, "it")


words = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@given(prompt=words, item=words, header=words, system=words, labels=st.lists(words, max_size=4))
def test_a_task_survives_being_written(prompt: str, item: str, header: str, system: str, labels: list[str]) -> None:
    kept = tuple(dict.fromkeys(label.strip() for label in labels if label.strip()))
    task = replace(
        BUILTIN_TASKS["free"],
        name="mine",
        kind="label" if len(kept) > 1 else "text",
        metric="accuracy" if len(kept) > 1 else "rouge",
        labels=kept if len(kept) > 1 else (),
        prompt=prompt + "{input}",
        item=item + "{output}",
        history_header=header,
        system=system,
    )
    assert parse_task(task_to_toml(task), "it") == task


def test_every_key_is_documented_and_the_example_is_a_task() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert list(TASK_KEYS) == [spec.name for spec in fields(Task)]
    for key in TASK_KEYS:
        assert f"| `{key}` |" in page, key
    for name in BUILTIN_TASKS:
        assert f"`{name}`" in page, name
    blocks = [block.split("```", 1)[0] for block in page.split("```toml\n")[1:]]
    tasks = [parse_task(block, "docs/tasks.md") for block in blocks]
    assert {task.kind for task in tasks} == {"label", "score", "text"}


@pytest.mark.parametrize("label", ["01", "1.0"])
def test_scores_that_are_one_number_are_one_label(label: str) -> None:
    (fault,) = faults(LEAST + f'kind = "score"\nlabels = ["1", "2", "{label}"]')
    assert f"'{label}' is the same number as one before it" in fault


def test_scores_may_be_halves() -> None:
    assert parse_task(LEAST + 'kind = "score"\nlabels = ["0.5", "1", "1.5"]', "it").labels == ("0.5", "1", "1.5")


@pytest.mark.parametrize("label", ["nan", "inf", "1e3", "1_0", ""])
def test_what_only_python_reads_as_a_number_is_no_score(label: str) -> None:
    assert faults(LEAST + f'kind = "score"\nlabels = ["1", "{label}"]')
