"""A file's outputs make a task: of labels, of scores or of texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.errors import BadInput, Command
from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.quick.columns import complete_columns
from mta_cli.pipeline.quick.draft_task import FileSummary, draft_task, task_name


def drafted(outputs: list[str], column: str = "verdict") -> object:
    source = ImportSource(None, Path("films.csv"), "films", columns=ColumnMapping("user", "film", column))
    return draft_task("films", source, FileSummary({"ann": len(outputs)}, tuple(outputs), 100, {}))[0]


def test_the_kind_the_labels_and_the_words_of_the_prompt_come_from_the_outputs() -> None:
    label = drafted(["go", "skip"] * 4)
    assert (label.kind, label.labels, label.metric) == ("label", ("go", "skip"), "accuracy")  # type: ignore[attr-defined]
    assert label.prompt == "{input}\nMy verdict:"  # type: ignore[attr-defined]
    score = drafted(["1", "4", "5"] * 3, "stars")
    assert (score.kind, score.labels) == ("score", ("1", "2", "3", "4", "5"))  # type: ignore[attr-defined]
    assert score.prompt == "{input}\nMy stars from 1 to 5:"  # type: ignore[attr-defined]
    text = drafted([f"a long letter about number {n}" for n in range(9)])
    assert (text.kind, text.labels, text.metric) == ("text", (), "rouge")  # type: ignore[attr-defined]


@pytest.mark.parametrize("column", ["{input}", "a\nb", "<|im_end|>", "{film}: {about}", "x" * 60])
def test_a_column_that_is_no_word_is_not_in_the_prompt(column: str) -> None:
    assert drafted(["go", "skip"] * 4, column).prompt == "{input}\nMy answer:"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("file", "name"), [("My Films.csv", "my-films"), ("--.csv", "quick"), ("Élan.tsv", "lan"), ("a" * 90, "a" * 48)]
)
def test_a_task_is_named_after_the_file(file: str, name: str) -> None:
    assert task_name(Path(file)) == name


def test_columns_are_guessed_and_what_they_are_is_said(tmp_path: Path) -> None:
    file = tmp_path / "films.csv"
    file.write_text("reader,film,stars\n" + "".join(f"r{n % 2},A film about {n},{n % 5}\n" for n in range(20)))
    found = complete_columns(ImportSource(None, file, columns=ColumnMapping(output="film")))
    assert (found.source.columns.user, found.source.columns.output) == ("reader", "film")
    assert [line.origin for line in found.plan_lines[:3]] == ["guessed", "guessed", "given"]
    found = complete_columns(ImportSource(None, file, columns=ColumnMapping(output="reader"), user="ann"))
    assert found.source.columns.input == "film", "what a flag took is no part of the input"
    file.write_text("film,stars\nA,1\nB,2\n")
    with pytest.raises(BadInput, match="has no column user") as refused:
        complete_columns(ImportSource(None, file))
    assert refused.value.hint == ("for example: ", Command("quick", str(file), me="NAME", input="film", output="stars"))
