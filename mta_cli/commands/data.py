"""`mta data`: bring histories into the store. Signature, help and rendering; the job is `pipeline.importing`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.common import DryRunOption, JsonOption, complete_tasks, session
from mta_cli.commands.parsing import Commands

if TYPE_CHECKING:
    from rich.console import RenderableType

app = Commands("Import histories.")

FORMATS = {
    "lamp": "LaMP's questions, with --outputs also its answers",
    "users": "one JSON list of users with profile and held-out queries",
    "jsonl": "one JSON record a line: user, input, output; id, time and task when known",
    "csv": "the same records as a table with a header line",
}


def complete_formats(incomplete: str) -> list[tuple[str, str]]:
    """Formats that begin with what was typed, each with its meaning."""
    return [(name, meaning) for name, meaning in FORMATS.items() if name.startswith(incomplete)]


FormatArgument = Annotated[
    str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.", autocompletion=complete_formats)
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
        help="Whether these users may be anchors, who help to serve others. New users may unless told otherwise.",
        show_default=False,
    ),
]


@app.command("import")
def import_(
    ctx: typer.Context,
    format: FormatArgument,
    path: PathArgument,
    outputs: OutputsOption = None,
    task: ImportTaskOption = None,
    can_anchor: ConsentOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Import a file of histories, checked as a whole first. Doing it again changes nothing; new items are added."""
    from mta_cli.pipeline.importing import import_file

    use = session(ctx, json=json)
    source = Path("/dev/stdin") if str(path) == "-" else path
    with use.registry() as reg:
        job = import_file(reg, format, source, task=task, outputs=outputs, can_anchor=can_anchor, dry_run=dry_run)
        use.output.job(job, _summary, dry_run=dry_run)


def _summary(result: dict[str, Any]) -> "RenderableType":
    what = (("history items", "items"), ("held-out queries", "queries"))
    counts = [
        (name, f"{result[f'{key}_added']:,} new, {result[f'{key}_unchanged']:,} known already") for name, key in what
    ]
    return out.pairs([("task", result["tasks"]), ("users", result["users"]), *counts])
