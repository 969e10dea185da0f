"""`mta data`: import histories into the store. Signature, help and rendering; the job is in the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import (
    AssumeConsentOption,
    ConsentOption,
    DryRunOption,
    ImportTaskOption,
    JsonOption,
)
from mta_cli.commands.shared.context import app_context, make_consent_prompt, stdin_is_terminal
from mta_cli.commands.shared.lazy_typer import CommandGroup
from mta_cli.commands.shared.next_steps import suggest_after_import
from mta_cli.errors import Command, UsageError
from mta_cli.pipeline.data.formats import FORMATS
from mta_cli.pipeline.data.git import LEAST_COMMITS
from mta_cli.terminal import tables

if TYPE_CHECKING:
    from rich.console import RenderableType

app = CommandGroup("Import histories.")


def complete_formats() -> list[tuple[str, str]]:
    """The formats, each with its meaning."""
    return [(name, each.meaning) for name, each in FORMATS.items()]


def complete_presets() -> list[str]:
    """The presets."""
    from mta_cli.pipeline.data.presets import PRESETS

    return list(PRESETS)


FormatArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FORMAT",
        help=f"One of {', '.join(FORMATS)}. It may be left out: then the content says which.",
        autocompletion=complete_formats,
        show_default=False,
    ),
]
PathArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="PATH",
        help="The file, a folder or zip archive of files, or a git repository; - reads standard input.",
        show_default=False,
    ),
]
OutputsOption = Annotated[
    Path | None, typer.Option("--outputs", metavar="FILE", help="The answers to LaMP's questions.")
]
UserColumnOption = Annotated[
    str | None,
    typer.Option("--user", metavar="COLUMN", help="The column of the user; {file} is the name of each row's file."),
]
InputColumnOption = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="COLUMN", help='The column of the input, or a template such as "{title} ({year}). {review}".'
    ),
]
OutputColumnOption = Annotated[
    str | None, typer.Option("--output", metavar="COLUMN", help="The column of the output, or a template.")
]
TimeColumnOption = Annotated[
    str | None,
    typer.Option("--time", metavar="COLUMN", help='The column of the time; "" reads none. Else time, where it is.'),
]
IdColumnOption = Annotated[
    str | None,
    typer.Option("--id", metavar="COLUMN", help='The column of the item\'s id; "" reads none. Else id, where it is.'),
]
MeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--me",
        metavar="NAME",
        help="The user of a file of one user. For mail your addresses, for WhatsApp, Slack and Discord your names "
        "there; repeat it for several. The first may be another name.",
        show_default=False,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="SITE",
        help="Read the export of a site: letterboxd, imdb, goodreads or movielens; also adds a task for its ratings.",
        autocompletion=complete_presets,
    ),
]
HoldOutOption = Annotated[
    int,
    typer.Option(
        "--hold-out",
        metavar="N",
        min=0,
        help="Hold out N items of each user as queries: the last by time, else drawn; 3 stay in the history.",
    ),
]
SkipFaultyOption = Annotated[
    bool, typer.Option("--skip-faulty", help="Leave out records with a fault, and count them.")
]
RoundOption = Annotated[
    float,
    typer.Option(
        "--round",
        metavar="N",
        min=0.0,
        max=1e9,
        help="Round numbers in the output to multiples of N; leave out other outputs.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="DATE", help="Of a repository: only commits that their authors made since DATE."),
]
PathsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--paths", metavar="PATH", help="Of a repository: only commits that change something in PATH; repeat it."
    ),
]
LeastOption = Annotated[
    int,
    typer.Option(
        "--least", metavar="N", min=1, help="Of a repository: leave out authors with fewer than N such commits."
    ),
]
BodyOption = Annotated[
    bool,
    typer.Option("--body", help="Of a repository: learn whole messages, as task commit-body; else their first lines."),
]
PseudonymsOption = Annotated[
    bool, typer.Option("--pseudonyms", help="Of a repository: give its authors made-up names.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="What draws the held-out items of users without times.")
]


@app.command("import")
def import_(
    ctx: typer.Context,
    format: FormatArgument = None,
    path: PathArgument = None,
    user: UserColumnOption = None,
    input: InputColumnOption = None,
    output: OutputColumnOption = None,
    time: TimeColumnOption = None,
    id: IdColumnOption = None,
    me: MeOption = None,
    preset: PresetOption = None,
    hold_out: HoldOutOption = 0,
    seed: SeedOption = 0,
    skip_faulty: SkipFaultyOption = False,
    round: RoundOption = 0.0,
    outputs: OutputsOption = None,
    since: SinceOption = None,
    paths: PathsOption = None,
    least: LeastOption = LEAST_COMMITS,
    body: BodyOption = False,
    pseudonyms: PseudonymsOption = False,
    task: ImportTaskOption = None,
    can_anchor: ConsentOption = None,
    yes: AssumeConsentOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Import histories or a git repository.

    All of it is checked first. Importing it again changes nothing; new items are added.
    """
    from mta_cli.commands.import_columns import ask_for_columns
    from mta_cli.pipeline.data.column_mapping import ColumnMapping
    from mta_cli.pipeline.data.git.selection import CommitSelection
    from mta_cli.pipeline.data.import_source import ImportSource
    from mta_cli.pipeline.users.import_file import import_source
    from store.names import check_name

    context = app_context(ctx, json=json)
    format, path = _place_words(format, path)
    piped = str(path) == "-"
    source = ImportSource(
        format,
        Path("/dev/stdin") if piped else path,
        task,
        outputs,
        check_name(me[0]) if me else None,
        ColumnMapping(user, input, output, time, id),
        preset,
        hold_out,
        seed,
        tuple(me[1:]) if me else (),
        skip_faulty,
        round,
        commits=CommitSelection(since, tuple(paths or ()), least, body, pseudonyms),
    )
    source.require_consistent()
    ask = make_consent_prompt(context, can_anchor, yes=yes, piped=piped, third_parties=source.is_repository)
    with context.open_registry() as reg:
        if stdin_is_terminal() and not json:
            source = ask_for_columns(context.output, source, context.global_flags.words)
        job = import_source(reg, source, can_anchor=can_anchor, ask=ask, dry_run=dry_run)
        done = context.output.run_job_and_print(job, _render_import, dry_run=dry_run, resumes=True)
        if not dry_run:
            suggest_after_import(context, reg, done["tasks"])


def _place_words(first: str | None, path: Path | None) -> tuple[str | None, Path]:
    """The format, if given, and the path; a single word is the path. Raises UsageError without a path."""
    if path is not None:
        return first, path
    if not first or (first in FORMATS and not Path(first).exists()):
        what = "which file?" if not first else f"{first} is a format; which file?"
        raise UsageError(what, hint=(Command("data import"), f" {first or '[FORMAT]'} PATH"))
    return None, Path(first)


def _render_import(result: dict[str, Any]) -> RenderableType:
    what = (("history items", "items"), ("held-out queries", "queries"))
    counts = [
        (name, f"{result[f'{key}_added']:,} new, {result[f'{key}_unchanged']:,} known already") for name, key in what
    ]
    return tables.key_value_grid([("task", result["tasks"]), ("users", result["users"]), *counts])
