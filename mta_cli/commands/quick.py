"""`mta quick`: from a file to a verdict. Signature, help and rendering; the job is in the pipeline."""

from __future__ import annotations

import contextlib
import math
import shlex
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import (
    ConsentOption,
    DryRunOption,
    JsonOption,
    complete_tasks,
)
from mta_cli.commands.shared.context import AppContext, app_context, make_consent_prompt, stdin_is_terminal
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import MtaError, NotFound, UsageError
from mta_cli.options import (
    AdaptOptions,
    BankOptions,
    FuseOptions,
    ImportOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    PromptOptions,
    QuickOptions,
    ScreeningOptions,
)
from mta_cli.terminal import output as out
from mta_cli.terminal import tables
from mta_cli.text.formatting import pluralise

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mta_cli.pipeline.quick.run import AskTime
    from store.registry import Registry

READ_OPTIONS = ("user", "input", "output", "time", "me", "since", "paths", "least", "body", "pseudonyms")
FileArgument = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A table with what each user was asked and answered, or a git repository."),
]
AssumeOption = Annotated[
    bool,
    typer.Option(
        "--yes",
        "-y",
        help="Do not ask: take the guessed columns; new users may be anchors, but not those of mail, chats and "
        "repositories; continue if even the smallest plan takes longer than --minutes.",
    ),
]
TaskNameOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="The name of the task to make, or of an existing task; by default the file's name.",
        autocompletion=complete_tasks,
    ),
]


@options(
    only(ImportOptions, *READ_OPTIONS),
    QuickOptions,
    ModelOptions,
    MachineOptions,
    *(only(cls) for cls in (BankOptions, ScreeningOptions, FuseOptions, AdaptOptions, MemoryOptions, PromptOptions)),
)
def quick(
    ctx: typer.Context,
    *,
    file: FileArgument,
    task: TaskNameOption = None,
    can_anchor: ConsentOption = None,
    yes: AssumeOption = False,
    flags: Flags,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Measure personal models on your own data.

    The verdict says whether a personal model is worth it for the users of a table or a git repository. Columns and the
    kind of task are guessed. Some items of each user are held out, and a bank and personal models are made from the
    others. The held-out items are then answered by each step: the base, the base with the user's own examples, the
    common model, and the user's own model. Run it again to finish a stopped run; a finished run prints its result
    again.
    """
    from mta_cli.pipeline.data.import_source import ImportSource
    from mta_cli.pipeline.quick.columns import complete_columns
    from mta_cli.pipeline.quick.run import QuickRequest, run_quick

    context = app_context(ctx, flags, json=json)
    given = replace(context.options[ImportOptions], seed=context.options[MachineOptions].seed)
    source = ImportSource.from_options(file, given, task=task)
    if str(file) == "-" or source.is_stream:
        raise UsageError(
            "mta quick reads its file more than once, so it cannot read standard input or a pipe.",
            hint="save the input to a file first, and name that file",
        )
    minutes = context.options[QuickOptions].minutes
    ask = make_consent_prompt(context, can_anchor, yes=yes, third_parties=source.is_repository)
    if stdin_is_terminal() and not yes and not json:
        from mta_cli.commands.import_columns import ask_for_columns

        source = ask_for_columns(context.output, source, context.global_flags.words)
    complete_columns(source)  # so that no store is made for an unreadable file
    with _open_store(context, dry_run=dry_run) as reg:
        request = QuickRequest(source, context.options, minutes)
        ask_time = None if yes else _make_time_prompt(context, minutes)
        job = run_quick(reg, request, can_anchor=can_anchor, ask=ask, ask_time=ask_time, dry_run=dry_run)
        store = context.global_flags.store
        context.output.run_job_and_print(job, partial(render_verdict, store=store), dry_run=dry_run, resumes=True)


@contextmanager
def _open_store(context: AppContext, *, dry_run: bool) -> Iterator[Registry]:
    """The store. If it is missing it is made; in a dry run, a temporary empty store takes its place."""
    with contextlib.ExitStack() as stack:
        try:
            reg = stack.enter_context(context.open_registry(create=not dry_run))
        except NotFound:
            from store.registry import Registry

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mta-"))
            reg = stack.enter_context(Registry.open(Path(folder) / "store", create=True))
        yield reg


def _make_time_prompt(context: AppContext, minutes: float) -> AskTime:
    """A function that asks whether to continue if the smallest plan takes longer than --minutes."""

    def ask(seconds: float) -> None:
        least = math.ceil(seconds / 60)
        if context.output.json or not stdin_is_terminal():
            raise UsageError(
                f"Even the smallest plan takes about {least} min, more than the {minutes:g} of --minutes.",
                hint=f"allow it with --minutes {least}, or run it all the same with --yes",
            )
        answer = context.output.read_answer(f"Even the smallest plan takes about {least} min. Continue? [y/N]")
        if (answer or "").lower() not in ("y", "yes"):
            raise MtaError(
                "nothing was trained; the file is imported", hint=f"run it again with --minutes {least} to train"
            )

    return ask


TEXT_STEPS = ("base", "base+examples", "common", "adapted")
NAME_WIDTH, TEXT_WIDTH, TEXT_LINES = 16, 64, 6


def render_verdict(result: dict[str, Any], *, store: Path | None = None) -> RenderableType:
    """The ladder, three questions with their answers, the verdict, and next steps."""
    from mta_cli.pipeline.evaluation.ladder_text import table_columns, table_rows

    ladder, examples = result["ladder"], result["examples"]
    labels = result["kind"] != "text"
    mta = "mta" if store is None else f"mta --store {shlex.quote(str(store))}"
    questions = "\n".join(
        line for n, one in enumerate(examples, 1) for line in _wrap_beside_name(f"{n} {one['user']}", one["question"])
    )
    return out.group(
        out.text(_result_summary(result) + "\n"),
        tables.table(table_columns(ladder), table_rows(ladder)),
        out.text(f"\n{result['example_rule'].capitalize()}:"),
        *(
            (out.text(questions), _answer_table(examples))
            if labels
            else map(_render_text_example, range(1, 4), examples)
        ),
        out.text("\nVerdict", style="bold"),
        *(out.text(f"- {line}") for line in result["verdict"]),
        out.text("\nNext:\n" + "\n".join(f"  {command.replace('mta ', f'{mta} ', 1)}" for command in result["next"])),
    )


def _result_summary(result: dict[str, Any]) -> str:
    anchors = " (anchors)" if result["measured_on_anchors"] and result["users"] > 1 else ""
    lines = [
        f"{result['file']}: {pluralise(result['users'], 'user')}, {result['items']:,} items, "
        f"{result['queries']:,} held out; task {result['task']} ({result['kind']})",
        f"Bank {result['bank']} v{result['version']}, {pluralise(result['anchors'], 'anchor')}; "
        f"{pluralise(result['measured_users'], 'user')}{anchors} measured on {result['measured_queries']} questions, "
        f"{result['seconds']:.0f} s",
    ]
    if result["shots"] is not None:
        lines.append(f"Personal models from at most {result['shots']} items of each user; with more it can differ.")
    if result["users"] == 1:
        lines.append("The common model, too, is trained on this user's items alone.")
    return "\n".join(lines)


def _answer_table(examples: Sequence[dict[str, Any]]) -> RenderableType:
    rows = [("own answer", *(one["gold"] for one in examples))]
    rows += [(step, *(one["answers"][step] for one in examples)) for step in examples[0]["answers"]]
    return tables.table(("", *(str(n) for n in range(1, len(examples) + 1))), rows)


def _render_text_example(number: int, example: dict[str, Any]) -> RenderableType:
    answers = [(step, example["answers"][step]) for step in TEXT_STEPS if step in example["answers"]]
    told = [(f"{number} {example['user']}", example["question"]), *answers, ("own answer", example["gold"])]
    return out.text("\n".join(["", *(line for name, text in told for line in _wrap_beside_name(name, text))]))


def _wrap_beside_name(name: str, text: str) -> list[str]:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, TEXT_WIDTH)] or ["(nothing)"]
    if len(lines) > TEXT_LINES:
        lines[TEXT_LINES - 1 :] = [lines[TEXT_LINES - 1] + " …"]
    names = textwrap.wrap(name, NAME_WIDTH - 1)
    names += [""] * (len(lines) - len(names))
    lines += [""] * (len(names) - len(lines))
    return [f"{name:<{NAME_WIDTH}}{line}".rstrip() for name, line in zip(names, lines, strict=True)]
