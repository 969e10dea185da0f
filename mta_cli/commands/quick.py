"""`mta quick`: from a file to a verdict. Signature, help and rendering; the job is in the pipeline."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.data import (
    InputColumnOption,
    MeOption,
    OutputColumnOption,
    TimeColumnOption,
    UserColumnOption,
)
from mta_cli.commands.shared.arguments import (
    ConsentOption,
    DryRunOption,
    JsonOption,
    complete_tasks,
)
from mta_cli.commands.shared.context import AppContext, app_context, make_consent_prompt, stdin_is_terminal
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import NotFound, UsageError
from mta_cli.formatting import pluralise
from mta_cli.options import (
    AdaptOptions,
    BankOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    PromptOptions,
    ScreeningOptions,
)
from mta_cli.printable import clean_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mta_cli.pipeline.data.import_source import ImportSource
    from store.registry import Registry

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A table with what each user was asked and answered.")
]
MinutesOption = Annotated[
    float, typer.Option("--minutes", metavar="N", min=0.1, max=10_000, help="About how long it may take.")
]
HoldOutOption = Annotated[
    int | None,
    typer.Option(
        "--hold-out",
        metavar="N",
        min=1,
        help="Items of each user that are held out to measure: the last by time, else drawn. Where not given, as "
        "stored, else 2, or of one user alone up to 12.",
        show_default=False,
    ),
]
AssumeOption = Annotated[
    bool,
    typer.Option(
        "--yes",
        "-y",
        help="Do not ask: take the guessed columns; new users may be anchors, but not those of mail and chats.",
    ),
]
TaskNameOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="The name of the task that is made, or a task that there is; else the file's name.",
        autocompletion=complete_tasks,
    ),
]


@options(
    ModelOptions,
    MachineOptions,
    *(only(cls) for cls in (BankOptions, ScreeningOptions, FuseOptions, AdaptOptions, MemoryOptions, PromptOptions)),
)
def quick(
    ctx: typer.Context,
    *,
    file: FileArgument,
    user: UserColumnOption = None,
    input: InputColumnOption = None,
    output: OutputColumnOption = None,
    time: TimeColumnOption = None,
    me: MeOption = None,
    minutes: MinutesOption = 3.0,
    hold_out: HoldOutOption = None,
    task: TaskNameOption = None,
    can_anchor: ConsentOption = None,
    yes: AssumeOption = False,
    flags: Flags,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Take a table to a verdict on its users.

    Is a personal model worth it for them? Columns and the kind of task are guessed. Some items of each user are held
    out, a bank and personal models are made of the others, and both they and the common model answer what was held
    out. Run it again to finish a stopped run.
    """
    from mta_cli.pipeline.quick.run import QuickRequest, run_quick

    context = app_context(ctx, flags, json=json)
    source = _make_source(
        file, user, input, output, time, me or (), task, hold_out or 0, context.options[MachineOptions].seed
    )
    ask = make_consent_prompt(context, can_anchor, yes=yes)
    if stdin_is_terminal() and not yes and not json:
        from mta_cli.commands.import_columns import ask_for_columns

        source = ask_for_columns(context.output, source, context.global_flags.words)
    with _open_store(context, dry_run=dry_run) as reg:
        request = QuickRequest(source, context.options, minutes)
        job = run_quick(reg, request, can_anchor=can_anchor, ask=ask, dry_run=dry_run)
        store = context.global_flags.store
        context.output.run_job_and_print(job, partial(render_verdict, store=store), dry_run=dry_run, resumes=True)


def _make_source(
    file: Path,
    user: str | None,
    input: str | None,
    output: str | None,
    time: str | None,
    me: Sequence[str],
    task: str | None,
    hold_out: int,
    seed: int,
) -> ImportSource:
    from mta_cli.pipeline.data.column_mapping import ColumnMapping
    from mta_cli.pipeline.data.import_source import ImportSource
    from store.names import check_name

    columns = ColumnMapping(user, input, output, time)
    name, also = (check_name(me[0]), tuple(me[1:])) if me else (None, ())
    source = ImportSource(None, file, task, None, name, columns, hold_out=hold_out, seed=seed, also_me=also)
    if str(file) == "-" or source.is_stream:
        raise UsageError("mta quick reads the file more than once", hint="write it to a file first")
    source.require_consistent()
    return source


@contextmanager
def _open_store(context: AppContext, *, dry_run: bool) -> Iterator[Registry]:
    """The store, made where there is none; a dry run then looks into an empty one that is gone afterwards."""
    with contextlib.ExitStack() as stack:
        try:
            reg = stack.enter_context(context.open_registry(create=not dry_run))
        except NotFound:
            from store.registry import Registry

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mta-"))
            reg = stack.enter_context(Registry.open(Path(folder) / "store", create=True))
        yield reg


EXAMPLE_ANSWERS = ("answered", "common", "personal")
METRICS = {"accuracy": "right", "mae": "error", "rouge_1": "ROUGE-1", "gold_loglik": "log-likelihood"}
SIMPLEST = {
    "label": "no model: most frequent answer",
    "score": "no model: median score",
    "text": "no model: nearest own text",
}
PERSONAL = {"fused": "personal: recipe", "adapted": "personal: recipe and stack"}


def render_verdict(result: dict[str, Any], *, store: Path | None = None) -> RenderableType:
    """The verdict on one screen of 80 columns and 24 lines."""
    columns = ("user", "question", "answered", result["common_word"], "personal")
    examples = [
        (_cut(one["user"], 10), _cut(one["question"], 24), *(_cut(one[name], 11) for name in EXAMPLE_ANSWERS))
        for one in result["examples"]
    ]
    return out.group(
        out.text(_head(result)),
        out.text(""),
        out.table(("model", *(METRICS[name] for name in _shown_metrics(result))), _model_rows(result)),
        out.text(""),
        out.text(_gain_lines(result)),
        out.text(f"Verdict: {result['verdict']}: {result['why']}.", style="bold"),
        out.text(f"{result['example_rule'].capitalize()}:"),
        out.table(columns, examples),
        out.text("Next:\n" + "\n".join(f"  {_in_store(command, store)}" for command in result["next"])),
    )


def _head(result: dict[str, Any]) -> str:
    anchors = " (anchors)" if result["measured_on_anchors"] and result["users"] > 1 else ""
    return (
        f"{_cut(result['file'], 30)}: {pluralise(result['users'], 'user')}, {result['items']:,} items, "
        f"{result['queries']:,} held out; task {_cut(result['task'], 16)} ({result['kind']})\n"
        f"Bank {_cut(result['bank'], 16)} v{result['version']}, {pluralise(result['anchors'], 'anchor')}; "
        f"{pluralise(result['measured_users'], 'user')}{anchors} measured on {result['measured_queries']} questions, "
        f"{result['seconds']:.0f} s"
    )


def _shown_metrics(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys((result["metric"], "gold_loglik")))


def _model_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    names = {
        result["personal"]: PERSONAL[result["personal"]] + ("" if result["memory"] == "off" else ", label memory"),
        "pooled": "common: task adapter",
        "base": "untrained: the base",
        "majority": SIMPLEST[result["kind"]],
    }
    return [
        (said, *(_number(result["models"][method].get(metric)) for metric in _shown_metrics(result)))
        for method, said in names.items()
        if method in result["models"]
    ]


def _gain_lines(result: dict[str, Any]) -> str:
    gain = result["gain"]
    measured, common = sum(result[how] for how in ("better", "same", "worse")), result["common_word"]
    return (
        f"The personal model was better for {result['better']} of {measured} {result['unit']}, the same for "
        f"{result['same']}, worse for {result['worse']}.\n"
        f"Gain over the {common} model in {METRICS[result['deciding_metric']]}, 95 % interval: {gain['value']:+.3f} "
        f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _cut(value: str, most: int) -> str:
    line = clean_line(" ".join(value.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def _in_store(command: str, store: Path | None) -> str:
    return command if store is None else command.replace("mta ", f"mta --store {shlex.quote(str(store))} ", 1)
