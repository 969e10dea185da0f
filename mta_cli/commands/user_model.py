"""`mta user fuse`, `adapt` and `export`: a user's own model. Signature, help and rendering; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.common import (
    DryRunOption,
    JsonOption,
    TaskOption,
    UserArgument,
    YesOption,
    app_context,
    complete_users,
)
from mta_cli.commands.flags import Flags, only, options
from mta_cli.commands.user import app
from mta_cli.errors import UsageError
from mta_cli.options import AdaptOptions, FuseOptions, MachineOptions, MemoryOptions, ModelOptions, PromptOptions

UsersArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[USER...]",
        help="The users; else all users with a history who are not anchors.",
        autocompletion=complete_users,
    ),
]


@app.command()
@options(FuseOptions, PromptOptions, only(MemoryOptions), ModelOptions, MachineOptions, preset=True)
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
    from mta_cli.pipeline.weights import resolve_user_task

    use = app_context(ctx, flags, json=json)
    given = use.options
    with use.open_registry() as reg:
        found = reg.users.get(user)
        request = fuse_request(reg, given, resolve_user_task(reg, found, task))
        plan, explicit = use.settings.plan_lines(*request.plan_options), flags.values["top_k"] is not None
        job = fuse_user(reg, found, request, plan=plan, explicit_top_k=explicit, dry_run=dry_run)
        use.output.run_job_and_print(job, _render_recipe, dry_run=dry_run)


@app.command()
@options(
    AdaptOptions,
    only(FuseOptions, "weights", "top_k"),
    MemoryOptions,
    PromptOptions,
    ModelOptions,
    MachineOptions,
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
    from mta_cli.pipeline.requests import adapt_request

    use = app_context(ctx, flags, json=json)
    given = use.options
    with use.open_registry() as reg:
        request = adapt_request(reg, given, users or None, task)
        plan, explicit = use.settings.plan_lines(*request.plan_options), flags.values["top_k"] is not None
        job = adapt_users(
            reg, request.users, request.fuse, request.options, plan=plan, explicit_top_k=explicit, dry_run=dry_run
        )
        use.output.run_job_and_print(job, _render_adapted_users, dry_run=dry_run, resumes=True)


@app.command()
@options(only(ModelOptions, "base"))
def export(
    ctx: typer.Context,
    *,
    user: UserArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to make.")],
    task: TaskOption = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Reduce to this rank; else exact, at the sum of all ranks.")
    ] = None,
    flags: Flags,
    all_data: Annotated[
        bool,
        typer.Option("--all-data", help="All stored data about the user instead, as readable files for them."),
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Write a user's model as one PEFT adapter folder that PEFT and vLLM load as it is."""
    from mta_cli.pipeline.personalize.export import export_user
    from mta_cli.pipeline.requests import base_model
    from mta_cli.pipeline.users.export_data import export_all_data
    from mta_cli.pipeline.weights import resolve_user_task

    use = app_context(ctx, flags, json=json)
    given = {"--task": task, "--rank": rank, "--yes": yes or None}
    refused = [*(flag for flag, value in given.items() if value is not None), *flags.given_flags()]
    if all_data and refused:
        raise UsageError(f"--all-data is everything: {', '.join(refused)} cannot be given with it.")
    with use.open_registry() as reg:
        if all_data:
            use.output.run_job_and_print(export_all_data(reg, user, to))
            return
        known = reg.users.get(user)
        entry = base_model(use.options)
        use.output.run_job_and_print(
            export_user(reg, entry, known, resolve_user_task(reg, known, task), to, rank=rank, replace=yes)
        )


def _render_recipe(recipe: dict[str, Any]) -> Any:
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
            _format_loss(r["loss_before"]),
            _format_loss(r["loss_after"]),
            _format_loss(r["heldout_before"]),
            _format_loss(r["heldout_after"]),
            f"{r['recipe_bytes']} B",
            f"{r['stack_bytes']:,} B",
            f"{r['seconds']:.1f}",
        )
        for r in results
    ]
    return out.table(columns, rows)


def _format_loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
