"""The beginning of a file: its columns, and a command that maps them."""

from __future__ import annotations

import json
from pathlib import Path

from mta_cli.errors import Command, Flag
from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.data.table_sample import SAMPLE_ROWS, TableSample, read_table_sample
from tests.pipeline.histories import person, write


def sample_of(path: Path, **options: object) -> TableSample:
    found = read_table_sample(ImportSource(None, path, **options))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_columns_of_all_sampled_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"who": "ann", "said": "i"}, {"who": "ann", "then": "o"}] * SAMPLE_ROWS)
    sample = sample_of(path)
    assert sample.columns == ("who", "said", "then") and len(sample.rows) == SAMPLE_ROWS


def test_a_long_row_ends_the_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "x" * 600_000}] * 5)
    assert len(sample_of(path).rows) == 2


def test_a_document_of_users_has_no_columns(tmp_path: Path) -> None:
    assert read_table_sample(ImportSource(None, write(tmp_path / "u.json", [person("ann")]))) is None


def test_the_first_table_of_a_folder_is_sampled(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "Hello, prose\n")
    write(tmp_path / "b.csv", "x;y\n1;2\n")
    assert sample_of(tmp_path).columns == ("x", "y")


def test_the_example_keeps_what_was_given_and_is_right(tmp_path: Path) -> None:
    rows = [{"who": ("ann", "bob")[n % 2], "text": f"a long note {n}", "mood": ("up", "down")[n % 2]} for n in range(9)]
    path = tmp_path / "a b.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    source = ImportSource(None, path, task="moods", columns=ColumnMapping(user="wo", input="Note: {text}"))
    flags = {"user": "who", "input": "Note: {text}", "output": "mood", "task": "moods"}
    assert sample_of(path).example_command(source) == Command("data import", str(path), **flags)
    one = sample_of(path).example_command(ImportSource(None, path, user="cy"))
    assert [flag.name for flag in one.flags] == ["me", "input", "output"] and one.flags[0] == Flag("me", "cy")
