"""`mta data`: import histories into the store. Signature, help and rendering; the job is in the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.common import (
    AppContext,
    DryRunOption,
    JsonOption,
    app_context,
    complete_tasks,
    stdin_is_terminal,
)
from mta_cli.commands.parsing import CommandApp
from mta_cli.errors import MtaError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mta_cli.pipeline.users.import_file import AskConsent

app = CommandApp("Import histories.")

IMPORT_FORMATS = {
    "lamp": "LaMP's questions, with --outputs also its answers",
    "users": "one JSON list of users with profile and held-out queries",
    "jsonl": "one JSON record a line: user, input, output; id, time and task when known",
    "csv": "the same records as a table with a header line",
}


def complete_formats(incomplete: str) -> list[tuple[str, str]]:
    """Formats that begin with the typed text, each with its meaning."""
    return [(name, meaning) for name, meaning in IMPORT_FORMATS.items() if name.startswith(incomplete)]


FormatArgument = Annotated[
    str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(IMPORT_FORMATS)}.", autocompletion=complete_formats)
]
PathArgument = Annotated[Path, typer.Argument(metavar="PATH", help="The file; - reads standard input.")]
OutputsOption = Annotated[
    Path | None, typer.Option("--outputs", metavar="FILE", help="The answers to LaMP's questions.")
]
ImportTaskOption = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="TASK", help="The task of records that name none; else free.", autocompletion=complete_tasks
    ),
]
ConsentOption = Annotated[
    bool | None,
    typer.Option(
        "--can-anchor/--no-can-anchor",
        help="Whether these users may be anchors, who help to serve others. Where it is not given, a terminal is asked "
        "about new users, and else they may.",
        show_default=False,
    ),
]
AssumeConsentOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask whether new users may be anchors: they may.")
]


def make_consent_prompt(
    use: AppContext, can_anchor: bool | None, *, yes: bool, piped: bool = False
) -> AskConsent | None:
    """A function that asks once whether new users may be anchors; None where the answer is given or cannot be typed.

    `piped`: standard input is the file.
    """
    if can_anchor is not None or yes or piped or not stdin_is_terminal():
        return None

    def ask(users: int) -> bool:
        many = f"the {users:,} new users be anchors, who help"
        who = many if users > 1 else "the new user be an anchor, who helps"
        answer = use.output.read_answer(f"May {who} to serve others? [Y/n]")
        if answer is None or answer.lower() not in ("", "y", "yes", "n", "no"):
            raise MtaError("nothing was changed", hint="answer yes or no, or add --can-anchor or --no-can-anchor")
        return not answer.lower().startswith("n")

    return ask


@app.command("import")
def import_(
    ctx: typer.Context,
    format: FormatArgument,
    path: PathArgument,
    outputs: OutputsOption = None,
    task: ImportTaskOption = None,
    can_anchor: ConsentOption = None,
    yes: AssumeConsentOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Import a file of histories after checking all of it. Importing it again changes nothing; new items are added."""
    from mta_cli.pipeline.users.import_file import import_file

    use = app_context(ctx, json=json)
    piped = str(path) == "-"
    source = Path("/dev/stdin") if piped else path
    ask = make_consent_prompt(use, can_anchor, yes=yes, piped=piped)
    with use.open_registry() as reg:
        job = import_file(
            reg, format, source, task=task, outputs=outputs, can_anchor=can_anchor, ask=ask, dry_run=dry_run
        )
        use.output.run_job_and_print(job, _render_import, dry_run=dry_run)


def _render_import(result: dict[str, Any]) -> RenderableType:
    what = (("history items", "items"), ("held-out queries", "queries"))
    counts = [
        (name, f"{result[f'{key}_added']:,} new, {result[f'{key}_unchanged']:,} known already") for name, key in what
    ]
    return out.key_value_grid([("task", result["tasks"]), ("users", result["users"]), *counts])
