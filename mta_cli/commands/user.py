"""`mta user`: users, their histories, and their own models. Signature, help and rendering; no logic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mta_cli import output as out
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
from mta_cli.commands.shared.context import app_context, confirm, make_consent_prompt
from mta_cli.commands.shared.lazy_typer import CommandApp
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import UsageError
from mta_cli.options import (
    AdaptOptions,
    ExecutorOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    PromptOptions,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from store.records import UserSummary

app = CommandApp("Users: who they are, their histories, recipes and stacks.")

_USER_COLUMNS = ("name", "items", "queries", "task", "status", "stack bytes", "may be anchor")

HistoryOption = Annotated[
    Path | None,
    typer.Option("--history", metavar="FILE", help="Their history: a .jsonl or .csv file with input and output."),
]
UsersArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[USER...]",
        help="The users; else all users with a history who are not anchors.",
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
            help="Words of the name, and status:adapted, task:NAME, items>5, queries=0 and so on, as in the window.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many; else all.")] = None,
    json: JsonOption = False,
) -> None:
    """List users with their items, held-out queries, main task, status, bytes of stack and consent to be an anchor."""
    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        if task is not None:
            from mta_cli.pipeline.data.tasks import find_task

            find_task(reg, task)
        users = reg.user_table.summaries(task, filter or "", limit)
        if len(reg.banks.bases(ready=False)) > 1:
            columns = (*_USER_COLUMNS, "models on")
            context.output.print_rows(columns, users, lambda user: (*_user_cells(user), _bases_cell(user)))
        else:
            context.output.print_rows(_USER_COLUMNS, users, _user_cells)


@app.command()
def show(ctx: typer.Context, user: UserArgument, json: JsonOption = False) -> None:
    """Show the stored data about a user; with --json all of it."""
    from mta_cli.pipeline.bases_in_use import has_several_bases
    from mta_cli.pipeline.users.stored_data import describe_user

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        render = partial(_render_user, with_bases=has_several_bases(reg))
        context.output.print_result(describe_user(reg, user, with_texts=json), render)


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
    """Add a user, with or without a history. The history of an existing user is extended."""
    from mta_cli.pipeline.users.add import add_user

    context = app_context(ctx, json=json)
    ask = make_consent_prompt(context, can_anchor, yes=yes)
    with context.open_registry() as reg:
        job = add_user(reg, name, history=history, task=task, can_anchor=can_anchor, ask=ask, dry_run=dry_run)
        context.output.run_job_and_print(job, dry_run=dry_run, resumes=True)


@app.command()
def consent(
    ctx: typer.Context,
    user: UserArgument,
    can_anchor: Annotated[
        bool | None,
        typer.Option(
            "--can-anchor/--no-can-anchor",
            help="Whether they may be an anchor, who helps to serve others.",
            show_default=False,
        ),
    ] = None,
    wait: WaitOption = False,
    json: JsonOption = False,
) -> None:
    """Say whether a user may be an anchor from now on. Without consent their anchors become stale and are listed."""
    from mta_cli.pipeline.users.consent import set_consent

    context = app_context(ctx, json=json)
    if can_anchor is None:
        raise UsageError("say whether the user may be an anchor", hint="add --can-anchor or --no-can-anchor")
    with context.open_registry() as reg:
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
    """Remove every trace of a user. Anchors trained on them are listed and become stale."""
    from mta_cli.pipeline.users.forget import forget_user, plan_forget

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        if dry_run:
            context.output.run_job_and_print(plan_forget(reg, user), dry_run=True)
            return
        if not yes:
            context.output.run_job(plan_forget(reg, user, aloud=True))
        confirm(context.output, f"Remove every trace of {user}?", yes=yes)
        context.output.run_job_and_print(forget_user(reg, user, wait=wait))


@app.command()
def history(ctx: typer.Context, user: UserArgument, json: JsonOption = False) -> None:
    """Show the runs about a user, with their results."""
    from mta_cli.pipeline.users.stored_data import user_runs

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        context.output.print_result(user_runs(reg, user), _runs_table)


@app.command()
def items(
    ctx: typer.Context,
    user: UserArgument,
    task: TaskOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="At most so many.")] = 20,
    search: Annotated[
        str | None, typer.Option("--search", metavar="TEXT", help="Best matches of these words instead.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a user's most recent history items, or those that match a search."""
    from mta_cli.pipeline.users.stored_data import find_items, item_entry

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        found = find_items(reg, user, task=task, limit=limit, search=search)
        context.output.print_result([item_entry(item) for item in found], _items_table)


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
    """Make a user's recipe: the anchors that fit them, with weights. Replaces their earlier recipe."""
    from mta_cli.pipeline.personalize.fuse import fuse_user
    from mta_cli.pipeline.requests import fuse_request
    from mta_cli.pipeline.user_weights import resolve_user_task

    context = app_context(ctx, flags, json=json)
    with context.open_registry() as reg:
        found = reg.users.get(user)
        task = resolve_user_task(reg, found, task)
        request = fuse_request(reg, context.options_on_base(reg, task), task)
        plan, explicit = context.settings.plan_lines(*request.plan_options), flags.values["top_k"] is not None
        job = fuse_user(reg, found, request, plan=plan, explicit_top_k=explicit, dry_run=dry_run)
        context.output.run_job_and_print(job, _render_fusion, dry_run=dry_run)


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
    """Train a stack on top of the fusion with a few shots. Makes a missing recipe first."""
    from mta_cli.pipeline.personalize.adapt import adapt_users
    from mta_cli.pipeline.requests import adapt_request, resolve_adapt_task

    context = app_context(ctx, flags, json=json)
    with context.open_registry() as reg:
        task = resolve_adapt_task(reg, [reg.users.get(name) for name in users] if users else None, task)
        request = adapt_request(reg, context.options_on_base(reg, task), users or None, task)
        plan, explicit = context.settings.plan_lines(*request.plan_options), flags.values["top_k"] is not None
        job = adapt_users(
            reg, request.users, request.fuse, request.options, plan=plan, explicit_top_k=explicit, dry_run=dry_run
        )
        context.output.run_job_and_print(job, _render_adapted_users, dry_run=dry_run, resumes=True)


@app.command()
@options(only(ModelOptions, "base"))
def export(
    ctx: typer.Context,
    *,
    user: UserArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to make.")],
    task: TaskOption = None,
    form: Annotated[
        Literal["peft", "merged", "gguf-lora", "gguf"],
        typer.Option("--format", help="A LoRA for PEFT and vLLM, or as GGUF; or a whole model, as either."),
    ] = "peft",
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Reduce to this rank; else exact, at the sum of all ranks.")
    ] = None,
    number_format: Annotated[
        Literal["f16", "bf16", "q8_0"], typer.Option("--type", help="Number format of a whole GGUF's weights.")
    ] = "f16",
    base_name: Annotated[
        str | None,
        typer.Option("--base-name", metavar="NAME", help="What the base is called where this will run."),
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Let parts for late tokens act on all, since nothing else knows them.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Answer up to 20 of the user's questions before and after, and count changes."),
    ] = False,
    flags: Flags,
    all_data: Annotated[
        bool,
        typer.Option("--all-data", help="All stored data about the user instead, as readable files for them."),
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Write a user's model as a folder for other programs: PEFT, vLLM, llama.cpp, Ollama, LM Studio."""
    from mta_cli.pipeline.personalize.export import ExportOptions, export_user
    from mta_cli.pipeline.requests import base_model
    from mta_cli.pipeline.user_weights import resolve_user_task
    from mta_cli.pipeline.users.export_all_data import export_all_data

    context = app_context(ctx, flags, json=json)
    given = {"--task": task, "--rank": rank, "--yes": yes or None, "--base-name": base_name}
    given |= {"--format": form if form != "peft" else None, "--approximate": approximate or None}
    given |= {"--check": check or None}
    given |= {"--type": number_format if number_format != "f16" else None}
    refused = [*(flag for flag, value in given.items() if value is not None), *flags.given_flags()]
    if all_data and refused:
        raise UsageError(f"--all-data is everything: {', '.join(refused)} cannot be given with it.")
    with context.open_registry() as reg:
        if all_data:
            context.output.run_job_and_print(export_all_data(reg, user, to))
            return
        known = reg.users.get(user)
        chosen = ExportOptions(form, rank, number_format, base_name, approximate, yes, check)
        task = resolve_user_task(reg, known, task)
        entry = base_model(context.options_on_base(reg, task, known))
        context.output.run_job_and_print(export_user(reg, entry, known, task, to, chosen))


def _user_cells(user: UserSummary) -> tuple[object, ...]:
    return (user.name, user.items, user.queries, user.task, user.status, user.stack_bytes, user.can_anchor)


def _bases_cell(user: UserSummary) -> str:
    return ", ".join(f"{base} ({status})" for base, status in user.bases.items())


def _render_consent(result: dict[str, Any]) -> RenderableType:
    return out.key_value_grid([("user", result["user"]), ("may be an anchor", result["can_anchor"])])


def _items_table(items: list[dict[str, Any]]) -> RenderableType:
    rows = (
        (each["id"], each["time"], each["task"], _shorten(each["input"]), _shorten(each["output"])) for each in items
    )
    return out.table(("id", "time", "task", "input", "output"), rows)


def _runs_table(runs: list[dict[str, Any]]) -> RenderableType:
    rows = (
        (each["id"], each["kind"], each["status"], each["started"], each["ended"], _format_outcome(each))
        for each in runs
    )
    return out.table(("run", "kind", "status", "started", "ended", "result"), rows)


def _format_outcome(run: dict[str, Any]) -> str:
    if run["error"]:
        return str(run["error"])
    values = [(name, value) for name, value in (run["result"] or {}).items() if value is not None]
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values)


def _render_user(user: dict[str, Any], *, with_bases: bool) -> RenderableType:
    def of_bank(line: Callable[[dict[str, Any]], str], each: dict[str, Any]) -> str:
        base = f" on {each['base_name']}" if with_bases else ""
        return f"{each['bank']} v{each['version']}{base}{line(each)}"

    lines: list[tuple[str, object]] = [("name", user["name"]), ("may be an anchor", user["can_anchor"])]
    lines += [("added", user["created"])]
    lines += [(f"task {each['task']}", f"{each['items']} items, {each['queries']} queries") for each in user["tasks"]]
    lines += [("profile", f"{each['task']}: {each['items']} items by {each['embedder']}") for each in user["profiles"]]
    lines += [("recipe", of_bank(_recipe_line, each)) for each in user["recipes"]]
    lines += [("stack", of_bank(_stack_line, each)) for each in user["stacks"]]
    lines += [("rests on", of_bank(_dependencies_line, each)) for each in user["rests_on"]]
    lines += [("anchor", of_bank(_anchor_line, each)) for each in user["anchors"]]
    lines += [("given to", of_bank(_contributions_line, each)) for each in user["given_to"]]
    lines += [("chats", len(user["chats"])), ("runs", len(user["runs"]))]
    return out.key_value_grid(lines)


def _recipe_line(recipe: dict[str, Any]) -> str:
    shares = ", ".join(f"{each['user'] or 'a forgotten user'} {each['weight']:.2f}" for each in recipe["anchors"])
    return f" by {recipe['method']}: {shares} ({recipe['recipe_bytes']} bytes)"


def _stack_line(stack: dict[str, Any]) -> str:
    losses = f"loss {stack['loss_before']:.3f} → {stack['loss_after']:.3f}"
    kind = f"a {stack['kind']} of {stack['stack_bytes']:,} bytes"
    return f": {kind}, {stack['shots']} shots, {losses}"


def _dependencies_line(part: dict[str, Any]) -> str:
    """The other users whose items a user's answers depend on."""
    pooled, near = part["task_adapter_people"], part["neighbours"]
    parts = [f"anchors trained on {', '.join(part['anchors'])}"] if part["anchors"] else []
    parts += [f"the main directions of {part['basis_anchors']} anchors"] if part["basis_anchors"] else []
    if part["task_adapter"]:
        parts += [f"a task adapter trained on {'unknown' if pooled is None else f'{pooled:,}'} users"]
    parts += [f"{near:,} answers of {part['neighbour_people']:,} users as neighbours"] if near else []
    return f": {'; '.join(parts) or 'no other user'}"


def _contributions_line(part: dict[str, Any]) -> str:
    """A bank's data from a user besides their anchors."""
    parts = ["perhaps its task adapter"] if part["perhaps_task_adapter"] else []
    parts += [f"{part['neighbours']:,} answers as neighbours"] if part["neighbours"] else []
    return f": {', '.join(parts)}"


def _anchor_line(anchor: dict[str, Any]) -> str:
    trained = "stale" if anchor["stale"] else "trained" if anchor["digest"] else "not trained yet"
    return f": anchor {anchor['anchor']}, {anchor['items']} items, {trained}"


def _shorten(text: str, most: int = 60) -> str:
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 1]}…"


def _render_fusion(recipe: dict[str, Any]) -> Any:
    rows = [(a["user"], f"{a['similarity']:.3f}", f"{a['weight']:.3f}") for a in recipe["anchors"]]
    rest = (
        [("(task adapter alone)", "", f"{recipe['null_weight']:.3f}")]
        if recipe["method"] in ("evidence", "learned")
        else []
    )
    bank = f"bank {recipe['bank']} v{recipe['version']}"
    head = f"{recipe['user']}: {recipe['method']} over {bank}, {recipe['recipe_bytes']} bytes"
    return out.group(out.text(head), out.table(("anchor", "similarity", "weight"), [*rows, *rest]))


def _render_adapted_users(results: list[dict[str, Any]]) -> Any:
    columns = (
        "user",
        "shots",
        "steps",
        "loss before",
        "after",
        "held-out before",
        "after",
        "recipe",
        "stack",
        "seconds",
    )
    rows = [
        (
            r["user"],
            r["shots"],
            r["steps"],
            out.format_loss(r["loss_before"]),
            out.format_loss(r["loss_after"]),
            out.format_loss(r["heldout_before"]),
            out.format_loss(r["heldout_after"]),
            f"{r['recipe_bytes']} B",
            f"{r['stack_bytes']:,} B",
            f"{r['seconds']:.1f}",
        )
        for r in results
    ]
    return out.table(columns, rows)
