"""`mta user`: users, their histories, and their own models. Signature, help and rendering; no logic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mta_cli.commands.shared.arguments import (
    AssumeConsentOption,
    ConsentOption,
    DryRunOption,
    ImportTaskOption,
    JsonOption,
    TaskOption,
    UserArgument,
    WaitOption,
    YesOption,
    complete_users,
)
from mta_cli.commands.shared.context import AppContext, app_context, confirm, make_consent_prompt
from mta_cli.commands.shared.lazy_typer import CommandGroup
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import Command, UsageError
from mta_cli.options import (
    AdaptOptions,
    ExecutorOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    PromptOptions,
)
from mta_cli.terminal import tables
from mta_cli.terminal.user_columns import USER_COLUMNS
from mta_cli.text.formatting import pluralise, shorten

if TYPE_CHECKING:
    from rich.console import RenderableType

    from store.queries.user_row import UserSummary

app = CommandGroup("Users: histories, recipes and stacks.")

SHOWN_ITEMS = 20  # items that are shown where no --limit is given
ITEM_WIDTH = 60  # characters of an item's input, and of its output
LISTED_COLUMNS = [column for column in USER_COLUMNS if column.title]

HistoryOption = Annotated[
    Path | None,
    typer.Option("--history", metavar="FILE", help="A .jsonl or .csv file of the user's items, with input and output."),
]
UsersArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[USER...]",
        help="The users; by default all users with a history who are not anchors.",
        autocompletion=complete_users,
    ),
]


@app.command("list")
def list_(
    ctx: typer.Context,
    task: TaskOption = None,
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="TEXT",
            help="Only users who match: parts of the name, status:adapted, task:NAME, items>5, queries=0 and so on.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Show at most this many users.")] = None,
    json: JsonOption = False,
) -> None:
    """List the users."""
    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        if task is not None:
            from mta_cli.pipeline.data.tasks import find_task

            find_task(reg, task)
        users = reg.user_table.summaries(task, filter or "", limit)
        several_bases = len(reg.banks.bases(ready=False)) > 1

        def cells(user: UserSummary) -> list[object]:
            bases = ", ".join(f"{base} ({status})" for base, status in user.bases.items())
            return [*(getattr(user, column.key) for column in LISTED_COLUMNS), *([bases] if several_bases else [])]

        titles = [*(column.title for column in LISTED_COLUMNS), *(["models on"] if several_bases else [])]
        context.output.print_rows(titles, users, cells)


@app.command()
def show(ctx: typer.Context, user: UserArgument, json: JsonOption = False) -> None:
    """Show what is stored about a user. --json adds the texts; mta user export --all-data writes all of it."""
    from mta_cli.pipeline.bases_in_use import has_several_bases
    from mta_cli.pipeline.users.stored_data import describe_user

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        found, with_bases = describe_user(reg, user, with_texts=json), has_several_bases(reg)
        context.output.print_result(found, lambda value: _render_user(value, context.output.age, with_bases=with_bases))


@app.command()
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The user's name: printable, at most 200 characters.")],
    history: HistoryOption = None,
    task: ImportTaskOption = None,
    can_anchor: ConsentOption = None,
    yes: AssumeConsentOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Add a user, or extend their history."""
    from mta_cli.pipeline.users.add import add_user

    context = app_context(ctx, json=json)
    ask = make_consent_prompt(context, can_anchor, yes=yes)
    with context.open_registry() as reg:
        job = add_user(reg, name, history=history, task=task, can_anchor=can_anchor, ask=ask, dry_run=dry_run)
        context.output.run_job_and_print(job, dry_run=dry_run, resumes=True)


@app.command()
def consent(
    ctx: typer.Context,
    user: Annotated[
        str | None,
        typer.Argument(metavar="[USER]", help="The user's name, unless --all is given.", autocompletion=complete_users),
    ] = None,
    can_anchor: Annotated[
        bool | None,
        typer.Option(
            "--can-anchor/--no-can-anchor",
            help="Whether they may be an anchor, who helps to serve others.",
            show_default=False,
        ),
    ] = None,
    everybody: Annotated[
        bool, typer.Option("--all", help="All users, or with --task all users with items of that task.")
    ] = False,
    task: TaskOption = None,
    wait: WaitOption = False,
    json: JsonOption = False,
) -> None:
    """Say whether users may be anchors. Without consent their anchors become stale and are listed."""
    from mta_cli.pipeline.users.consent import set_consent, set_consent_of_all

    context = app_context(ctx, json=json)
    if (user is None) != everybody:
        raise UsageError(
            "Either one user or --all must be given.", hint=Command("user consent", "NAME", can_anchor=True)
        )
    if task is not None and not everybody:
        raise UsageError(
            "--task can only be given with --all: one user's consent applies to all tasks.", hint="leave out --task"
        )
    if can_anchor is None:
        raise UsageError(
            "Neither --can-anchor nor --no-can-anchor was given.",
            hint="add --can-anchor if the users may be anchors, else --no-can-anchor",
        )
    with context.open_registry() as reg:
        if user is None:
            job = set_consent_of_all(reg, can_anchor, task=task, wait=wait)
            context.output.run_job_and_print(job, _render_consent_of_all)
        else:
            context.output.run_job_and_print(set_consent(reg, user, can_anchor, wait=wait), _render_consent)


@app.command()
def rm(
    ctx: typer.Context,
    user: UserArgument,
    yes: YesOption = False,
    wait: WaitOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Remove a user with all their data and models.

    Lists the parts of other users' models that were trained on the user's items: these parts stay.
    """
    from mta_cli.commands.user_tables import render_removal
    from mta_cli.pipeline.users.removal import plan_user_removal, remove_user

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        if dry_run:
            context.output.run_job_and_print(plan_user_removal(reg, user), dry_run=True)
            return
        if not yes:
            context.output.run_job(plan_user_removal(reg, user, as_notes=True))
        confirm(context.output, f"Remove {user} with all their data and models?", yes=yes)
        context.output.run_job_and_print(remove_user(reg, user, wait=wait), render_removal)


@app.command()
def history(ctx: typer.Context, user: UserArgument, json: JsonOption = False) -> None:
    """List the jobs on a user, with results."""
    from mta_cli.commands.user_tables import render_runs
    from mta_cli.pipeline.users.stored_data import user_runs

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        output = context.output
        output.print_result(
            user_runs(reg, user), lambda runs: render_runs(runs, output.age, details=bool(output.verbosity))
        )


@app.command()
def items(
    ctx: typer.Context,
    user: UserArgument,
    task: TaskOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=1_000_000, help="Show at most this many items; by default 20.")
    ] = None,
    search: Annotated[
        str | None,
        typer.Option("--search", metavar="TEXT", help="Show the items whose input matches these words best."),
    ] = None,
    rm: Annotated[
        list[str] | None,
        typer.Option(
            "--rm", metavar="ID", help="Remove the item with this id and what was made from it; can be repeated."
        ),
    ] = None,
    yes: YesOption = False,
    wait: WaitOption = False,
    json: JsonOption = False,
) -> None:
    """List, search or remove a user's items."""
    context = app_context(ctx, json=json)
    if rm:
        if search is not None or limit is not None:
            raise UsageError("--search and --limit cannot be given with --rm.", hint="name all items with --rm ID")
        _remove_items(context, user, rm, task, yes=yes, wait=wait)
        return
    if yes or wait:
        raise UsageError("--yes and --wait can only be given with --rm.", hint="name the items with --rm ID")
    from mta_cli.pipeline.users.stored_data import find_items, item_entry

    with context.open_registry() as reg:
        found = find_items(reg, user, task=task, limit=limit or SHOWN_ITEMS, search=search)
        context.output.print_result([item_entry(item) for item in found], _items_table)


def _remove_items(context: AppContext, user: str, ids: list[str], task: str | None, *, yes: bool, wait: bool) -> None:
    from mta_cli.pipeline.users.removal import plan_item_removal, remove_items

    with context.open_registry() as reg:
        if not yes:
            context.output.run_job(plan_item_removal(reg, user, ids, task=task, as_notes=True))
        confirm(context.output, "Remove these items and what was made from them?", yes=yes)
        context.output.run_job_and_print(remove_items(reg, user, ids, task=task, wait=wait), _render_removal)


@app.command()
@options(FuseOptions, PromptOptions, only(MemoryOptions), ModelOptions, MachineOptions, ExecutorOptions, preset=True)
def fuse(
    ctx: typer.Context,
    *,
    user: UserArgument,
    task: TaskOption = None,
    flags: Flags,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Choose a user's anchors and their weights. This recipe replaces the user's earlier one."""
    from mta_cli.commands.shared.next_steps import suggest_after_fusion
    from mta_cli.commands.user_tables import render_fusion
    from mta_cli.pipeline.personalize.fuse import fuse_user
    from mta_cli.pipeline.requests import fuse_request
    from mta_cli.pipeline.user_weights import resolve_user_task

    context = app_context(ctx, flags, json=json)
    with context.open_registry() as reg:
        found = reg.users.get(user)
        task = resolve_user_task(reg, found, task)
        asked = flags.values["embedder"] is not None
        request = fuse_request(reg, context.options_on_base(reg, task), task, explicit_embedder=asked)
        plan, explicit = context.settings.plan_lines(*request.plan_options), flags.values["top_k"] is not None
        job = fuse_user(reg, found, request, plan=plan, explicit_top_k=explicit, dry_run=dry_run)
        details = bool(context.output.verbosity)
        context.output.run_job_and_print(job, lambda made: render_fusion(made, details=details), dry_run=dry_run)
        if not dry_run:
            suggest_after_fusion(context, reg, user, request.task.name, request.base)


@app.command()
@options(
    AdaptOptions,
    only(FuseOptions, "weights", "top_k"),
    MemoryOptions,
    PromptOptions,
    ModelOptions,
    MachineOptions,
    ExecutorOptions,
    preset=True,
)
def adapt(
    ctx: typer.Context,
    *,
    users: UsersArgument = None,
    task: TaskOption = None,
    flags: Flags,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Train users' own stacks on what they wrote.

    A user whose recipe is missing, or was made from other items, gets a new one first. mta user fuse makes recipes
    with other options.
    """
    from mta_cli.commands.shared.next_steps import suggest_after_adaptation
    from mta_cli.commands.user_tables import render_adaptations
    from mta_cli.pipeline.personalize.adapt import adapt_users
    from mta_cli.pipeline.requests import adapt_request, resolve_adapt_task

    context = app_context(ctx, flags, json=json)
    with context.open_registry() as reg:
        task = resolve_adapt_task(reg, [reg.users.get(name) for name in users] if users else None, task)
        asked = flags.values["embedder"] is not None
        options, explicit = context.options_on_base(reg, task), flags.values["top_k"] is not None
        request = adapt_request(reg, options, users or None, task, explicit_embedder=asked, explicit_top_k=explicit)
        job = adapt_users(reg, request, plan=context.settings.plan_lines(*request.plan_options), dry_run=dry_run)
        details = bool(context.output.verbosity)
        made = context.output.run_job_and_print(
            job, lambda results: render_adaptations(results, details=details), dry_run=dry_run, resumes=True
        )
        if not dry_run:
            names = [each["user"] for each in made]
            suggest_after_adaptation(context, reg, names, request.fuse.task.name, request.fuse.base)


ExportFolderOption = Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to make.")]
ExportFormatOption = Annotated[
    Literal["peft", "merged", "gguf-lora", "gguf"],
    typer.Option(
        "--format",
        help="peft: a LoRA for PEFT and vLLM; gguf-lora: the LoRA as GGUF; merged: a whole model, the base with the "
        "LoRA merged into it; gguf: the whole model as GGUF.",
    ),
]
ExportRankOption = Annotated[
    str,
    typer.Option(
        "--rank",
        metavar="auto|exact|N",
        help="Rank of a LoRA. auto: the smallest that keeps the loss of the user's own answers; exact: no compression.",
    ),
]
ExportExamplesOption = Annotated[
    int | None,
    typer.Option(
        "--examples",
        min=0,
        max=20,
        help="Number of the user's newest items to write as examples; by default as many as prompts show.",
    ),
]
ExportTypeOption = Annotated[
    Literal["f16", "bf16", "q8_0"], typer.Option("--type", help="Number format of the weights with --format gguf.")
]
ExportBaseNameOption = Annotated[
    str | None,
    typer.Option("--base-name", metavar="NAME", help="The base's name on the machine that will run the export."),
]
ApproximateOption = Annotated[
    bool, typer.Option("--approximate", help="Let LoRAs for late tokens act on all tokens: other programs need that.")
]
CheckOption = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Answer up to 20 of the user's questions with the stored and the exported model, and count differences.",
    ),
]
AllDataOption = Annotated[
    bool,
    typer.Option("--all-data", help="Write all stored data about the user, as readable files, instead of a model."),
]


@app.command()
@options(only(ModelOptions, "base"))
def export(
    ctx: typer.Context,
    *,
    user: UserArgument,
    to: ExportFolderOption,
    task: TaskOption = None,
    form: ExportFormatOption = "peft",
    rank: ExportRankOption = "auto",
    examples: ExportExamplesOption = None,
    number_format: ExportTypeOption = "f16",
    base_name: ExportBaseNameOption = None,
    approximate: ApproximateOption = False,
    check: CheckOption = False,
    flags: Flags,
    all_data: AllDataOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Write a user's model for other programs.

    PEFT, vLLM, llama.cpp, Ollama and LM Studio can load it. The export includes some of the user's items as examples.
    """
    from mta_cli.commands.shared.next_steps import suggest_after_export
    from mta_cli.commands.user_tables import render_export
    from mta_cli.pipeline.personalize.export import ExportOptions, export_user
    from mta_cli.pipeline.requests import base_model
    from mta_cli.pipeline.user_weights import resolve_user_task
    from mta_cli.pipeline.users.export_all_data import export_all_data

    context = app_context(ctx, flags, json=json)
    beside = ("user", "to", "all_data", "json")
    own = [each for each in ctx.command.params if each.name in ctx.params and each.name not in beside]
    if all_data and (given := [each for each in own if _is_on_command_line(ctx, each.name)]):
        refused = ", ".join(max(each.opts, key=len) for each in given)
        raise UsageError(f"{refused} cannot be given with --all-data, which writes everything.", hint="leave it out")
    with context.open_registry() as reg:
        if all_data:
            context.output.run_job_and_print(export_all_data(reg, user, to))
            return
        known = reg.users.get(user)
        set_here = context.build_options(MachineOptions, PromptOptions)
        how = (set_here[MachineOptions], set_here[PromptOptions])
        chosen = ExportOptions(
            form, _parse_rank(rank), examples, number_format, base_name, approximate, yes, check, *how
        )
        task = resolve_user_task(reg, known, task)
        entry = base_model(context.options_on_base(reg, task, known))
        made = context.output.run_job_and_print(export_user(reg, entry, known, task, to, chosen), render_export)
        suggest_after_export(context, made)


def _is_on_command_line(ctx: typer.Context, name: str | None) -> bool:
    source = ctx.get_parameter_source(name or "")
    return source is not None and source.name == "COMMANDLINE"


def _parse_rank(text: str) -> int | Literal["auto"] | None:
    """The rank that `--rank` names; None for `exact`. Raises UsageError for any other text."""
    if text == "auto":
        return "auto"
    if text == "exact":
        return None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"--rank {text!r:.40} is not a rank.", hint="give --rank auto, exact or a number from 1 up")
    return int(text)


def _render_consent(result: dict[str, Any]) -> RenderableType:
    return tables.key_value_grid([("user", result["user"]), ("may be an anchor", result["can_anchor"])])


def _render_consent_of_all(result: dict[str, Any]) -> RenderableType:
    rows = [("users", result["users"]), ("may be anchors", result["can_anchor"]), ("changed", len(result["changed"]))]
    return tables.key_value_grid(rows)


def _render_removal(result: dict[str, Any]) -> RenderableType:
    shown = {**result, "items": ", ".join(result["items"])}
    return tables.key_value_grid((name, shown[name]) for name in ("user", "task", "items", "recipes", "stacks"))


def _items_table(items: list[dict[str, Any]]) -> RenderableType:
    rows = (
        (each["id"], each["time"], each["task"], *(shorten(each[text], ITEM_WIDTH) for text in ("input", "output")))
        for each in items
    )
    return tables.table(("id", "time", "task", "input", "output"), rows)


def _render_user(user: dict[str, Any], age: Callable[[str | None], str | None], *, with_bases: bool) -> RenderableType:
    def of_bank(line: Callable[[dict[str, Any]], str], each: dict[str, Any]) -> str:
        base = f" on {each['base_name']}" if with_bases else ""
        return f"{each['bank']} v{each['version']}{base}{line(each)}"

    lines: list[tuple[str, object]] = [("name", user["name"]), ("may be an anchor", user["can_anchor"])]
    lines += [("added", age(user["created"]))]
    for each in user["tasks"]:
        counts = f"{pluralise(each['items'], 'item')}, {pluralise(each['queries'], 'query', 'queries')}"
        lines += [(f"task {each['task']}", counts)]
    lines += [("group", f"{task}: {group}") for task, group in user["group"].items()]
    lines += [
        ("profile", f"{each['task']}: {pluralise(each['items'], 'item')} by {each['embedder']}")
        for each in user["profiles"]
    ]
    lines += [("recipe", of_bank(_recipe_line, each)) for each in user["recipes"]]
    lines += [("stack", of_bank(_stack_line, each)) for each in user["stacks"]]
    lines += [("rests on", of_bank(_dependencies_line, each)) for each in user["rests_on"]]
    lines += [("anchor", of_bank(_anchor_line, each)) for each in user["anchors"]]
    lines += [("given to", of_bank(_contributions_line, each)) for each in user["given_to"]]
    lines += [("chats", len(user["chats"])), ("runs", len(user["runs"]))]
    return tables.key_value_grid(lines)


def _recipe_line(recipe: dict[str, Any]) -> str:
    shares = ", ".join(f"{each['user'] or 'a forgotten user'} {each['weight']:.2f}" for each in recipe["anchors"])
    return f" by {recipe['method']}: {shares} ({recipe['recipe_bytes']} bytes)"


def _stack_line(stack: dict[str, Any]) -> str:
    losses = f"loss {stack['loss_before']:.3f} → {stack['loss_after']:.3f}"
    kind = f"a {stack['kind']} of {stack['stack_bytes']:,} bytes"
    return f": {kind}, {pluralise(stack['shots'], 'shot')}, {losses}"


def _dependencies_line(part: dict[str, Any]) -> str:
    """The other users on whose items a user's answers depend."""
    pooled, near = part["task_adapter_people"], part["neighbours"]
    parts = [f"anchors trained on {', '.join(part['anchors'])}"] if part["anchors"] else []
    parts += [f"the main directions of {pluralise(part['basis_anchors'], 'anchor')}"] if part["basis_anchors"] else []
    if part["task_adapter"]:
        parts += [f"a task adapter trained on {'unknown' if pooled is None else f'{pooled:,}'} users"]
    parts += [f"{near:,} answers of {part['neighbour_people']:,} users as neighbours"] if near else []
    return f": {'; '.join(parts) or 'no other user'}"


def _contributions_line(part: dict[str, Any]) -> str:
    parts = ["perhaps its task adapter"] if part["perhaps_task_adapter"] else []
    parts += [f"{part['neighbours']:,} answers as neighbours"] if part["neighbours"] else []
    return f": {', '.join(parts)}"


def _anchor_line(anchor: dict[str, Any]) -> str:
    trained = "stale" if anchor["stale"] else "trained" if anchor["digest"] else "not trained yet"
    return f": anchor {anchor['anchor']}, {pluralise(anchor['items'], 'item')}, {trained}"
