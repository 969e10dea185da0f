"""Asks at a terminal for the columns of user, input, output and time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mta_cli.errors import MtaError

if TYPE_CHECKING:
    from mta_cli.pipeline.data.import_source import ImportSource
    from mta_cli.pipeline.data.table_sample import TableSample
    from mta_cli.terminal.output import Output

QUESTIONS = {
    "user": "user: the column with the users' names, or else the one user's name",
    "input": 'input: a column, or several as "{title}. {text}"',
    "output": "output: a column",
    "time": "time: a column, or - for none",
}
NONE = "-"
EXAMPLE_CHARACTERS = 60


def ask_for_columns(output: Output, source: ImportSource, words: Sequence[str]) -> ImportSource:
    """Ask the user for the columns that are missing, and return the source with them.

    Nothing is asked for a stream or a file without columns. The time is asked for too if a column may hold it. Enter
    accepts the guess in brackets. Then the command line `words` is printed with the answers as flags. Raises the errors
    of `read_table_sample`, and MtaError if the input ends.
    """
    from mta_cli.pipeline.data.column_mapping import find_column
    from mta_cli.pipeline.data.table_sample import read_table_sample

    sample = None if source.preset is not None or source.is_stream else read_table_sample(source)
    if sample is None or not sample.rows or source.columns.unknown_columns(sample.columns):
        return source
    missing = sample.missing_parts(source)
    if not missing:
        return source
    examples, guess = sample.guess().examples, sample.guess(source.columns)
    output.note(f"{sample.file} has the columns:")
    for name in sample.columns:
        output.note(f"  {name}: {examples[name][:EXAMPLE_CHARACTERS]}")
    timed = guess.columns.time and source.columns.time is None and find_column("time", sample.columns) is None
    asked = [*missing, *(["time"] if timed else [])]
    for part in asked:
        source = _ask_for_part(output, source, sample, part, getattr(sample.guess(source.columns).columns, part))
    output.note(f"The same command without questions: {shlex.join(['mta', *words, *_column_flags(source, asked)])}")
    return source


def _ask_for_part(
    output: Output, source: ImportSource, sample: TableSample, part: str, guessed: str | None
) -> ImportSource:
    question = QUESTIONS[part] + (f" [{guessed}]" if guessed else "")
    while True:
        answer = output.read_answer(f"{question}:")
        if answer is None:
            raise MtaError(
                "the input ended before all columns were named; nothing was imported",
                hint="name the columns with --user, --input and --output",
            )
        chosen = answer or guessed
        if not chosen:
            continue
        if part == "time" and chosen == NONE:
            return replace(source, columns=replace(source.columns, time=""))
        try:
            columns = replace(source.columns, **{part: chosen})
            unknown = columns.unknown_columns(sample.columns)
        except MtaError as error:
            output.warn(str(error))
            continue
        if not unknown:
            return replace(source, columns=columns, guessed_time=part == "time" and not answer)
        if part == "user" and guessed is None and "{" not in chosen:
            return replace(source, user=chosen)
        output.warn(f"{sample.file} has no column {unknown[0]!r}")


def _column_flags(source: ImportSource, parts: Sequence[str]) -> list[str]:
    """The flags that name the columns of these parts. `--me` names the one user of a file without user column."""
    given = {f"--{part}": getattr(source.columns, part) for part in parts}
    given |= {"--me": source.user} if "user" in parts else {}
    return [word for flag, text in given.items() if text is not None for word in (flag, text)]
