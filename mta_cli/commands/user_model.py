"""`mta user fuse`, `adapt` and `export`: a user's own model. Signature, help and rendering; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.common import (
    AppContext,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    HistoryItemsOption,
    JsonOption,
    SeedOption,
    TaskOption,
    UserArgument,
    YesOption,
    app_context,
    complete_models,
    complete_users,
    typer_option,
)
from mta_cli.commands.user import app
from mta_cli.errors import UsageError
from mta_cli.options import AdaptOptions, FuseOptions, MachineOptions, MemoryOptions, PromptOptions

BaseOption = Annotated[
    str | None, typer.Option("--base", metavar="MODEL", help="The base.", autocompletion=complete_models)
]
EmbedderOption = Annotated[
    str | None, typer.Option("--embedder", metavar="MODEL", help="The embedder.", autocompletion=complete_models)
]
WeightsOption = Annotated[str | None, typer_option(FuseOptions, "weights")]
TopKOption = Annotated[int | None, typer_option(FuseOptions, "top_k")]
EvidenceShotsOption = Annotated[int | None, typer_option(FuseOptions, "shots")]


def _fuse_request(
    use: AppContext,
    reg: Any,
    task: str,
    base: str | None,
    embedder: str | None,
    fuse: FuseOptions,
    prompt: PromptOptions,
    machine: MachineOptions,
) -> Any:
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.models.lookup import resolve_model
    from mta_cli.pipeline.personalize.fuse import FuseRequest

    entries = (
        resolve_model(base or use.model_options.base, "base"),
        resolve_model(embedder or use.model_options.embedder, "embedder"),
    )
    return FuseRequest(find_task(reg, task), *entries, fuse, prompt, machine, use.settings.build_options(MemoryOptions))


@app.command()
def fuse(
    ctx: typer.Context,
    user: UserArgument,
    task: TaskOption = None,
    weights: WeightsOption = None,
    top_k: TopKOption = None,
    shots: EvidenceShotsOption = None,
    temperature: Annotated[float | None, typer_option(FuseOptions, "temperature")] = None,
    sharpness: Annotated[float | None, typer_option(FuseOptions, "sharpness")] = None,
    scale: Annotated[float | None, typer_option(FuseOptions, "scale")] = None,
    candidates: Annotated[int | None, typer_option(FuseOptions, "candidates")] = None,
    max_cosine: Annotated[float | None, typer_option(FuseOptions, "max_cosine")] = None,
    history_items: HistoryItemsOption = None,
    base: BaseOption = None,
    embedder: EmbedderOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Make a user's recipe: the anchors that explain them, and how much of each. Replaces the one they had."""
    from mta_cli.pipeline.personalize.fuse import fuse_user
    from mta_cli.pipeline.personalize.weights import resolve_user_task

    use = app_context(ctx, json=json)
    options = use.settings.build_options(
        FuseOptions,
        weights=weights,
        top_k=top_k,
        shots=shots,
        temperature=temperature,
        sharpness=sharpness,
        scale=scale,
        candidates=candidates,
        max_cosine=max_cosine,
    )
    prompt = use.settings.build_options(PromptOptions, history_items=history_items)
    machine = use.machine_options(seed=seed, device=device, dtype=dtype)
    with use.open_registry() as reg:
        person = reg.users.get(user)
        request = _fuse_request(
            use, reg, resolve_user_task(reg, person, task), base, embedder, options, prompt, machine
        )
        plan = use.settings.plan_lines(options, prompt, machine)
        job = fuse_user(reg, person, request, plan=plan, explicit_top_k=top_k is not None, dry_run=dry_run)
        use.output.run_job_and_print(job, _render_recipe, dry_run=dry_run)


@app.command()
def adapt(
    ctx: typer.Context,
    users: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[USER...]",
            help="Whom; else everybody with a history who is no anchor.",
            autocompletion=complete_users,
        ),
    ] = None,
    task: TaskOption = None,
    shots: Annotated[int | None, typer_option(AdaptOptions, "shots")] = None,
    kind: Annotated[str | None, typer_option(AdaptOptions, "kind")] = None,
    rank: Annotated[int | None, typer_option(AdaptOptions, "rank")] = None,
    steps: Annotated[int | None, typer_option(AdaptOptions, "steps")] = None,
    learning_rate: Annotated[float | None, typer_option(AdaptOptions, "learning_rate")] = None,
    batch_size: Annotated[int | None, typer_option(AdaptOptions, "batch_size")] = None,
    pull: Annotated[float | None, typer_option(AdaptOptions, "pull")] = None,
    alpha: Annotated[float | None, typer_option(AdaptOptions, "alpha")] = None,
    targets: Annotated[str | None, typer_option(AdaptOptions, "targets")] = None,
    placement: Annotated[str | None, typer_option(AdaptOptions, "placement")] = None,
    weights: WeightsOption = None,
    top_k: TopKOption = None,
    history_items: HistoryItemsOption = None,
    base: BaseOption = None,
    embedder: EmbedderOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Train a stack on top of the fusion with a few shots. Makes the recipe first where there is none."""
    from mta_cli.pipeline.personalize.adapt import adapt_users, resolve_adapt_task

    use = app_context(ctx, json=json)
    options = use.settings.build_options(
        AdaptOptions,
        shots=shots,
        kind=kind,
        rank=rank,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        pull=pull,
        alpha=alpha,
        targets=targets,
        placement=placement,
    )
    fusing = use.settings.build_options(FuseOptions, weights=weights, top_k=top_k, shots=shots)
    prompt = use.settings.build_options(PromptOptions, history_items=history_items)
    machine = use.machine_options(seed=seed, device=device, dtype=dtype)
    with use.open_registry() as reg:
        chosen = [reg.users.get(name) for name in dict.fromkeys(users)] if users else None
        request = _fuse_request(
            use, reg, resolve_adapt_task(reg, chosen, task), base, embedder, fusing, prompt, machine
        )
        options = options.with_kind_defaults(bool(request.task.labels))
        lines = use.settings.plan_lines(options, fusing, prompt, machine)
        plan = [line for line in lines if line.name not in options.unused_keys]
        job = adapt_users(reg, chosen, request, options, plan=plan, explicit_top_k=top_k is not None, dry_run=dry_run)
        use.output.run_job_and_print(job, _render_adapted_users, dry_run=dry_run, resumes=True)


@app.command()
def export(
    ctx: typer.Context,
    user: UserArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to make.")],
    task: TaskOption = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Reduce to this rank; else exact, at the sum of all ranks.")
    ] = None,
    base: BaseOption = None,
    all_data: Annotated[
        bool,
        typer.Option("--all-data", help="Everything that is held about the user instead, as readable files for them."),
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Write a user's model as one PEFT adapter folder that PEFT and vLLM load as it is."""
    from mta_cli.pipeline.models.lookup import resolve_model
    from mta_cli.pipeline.personalize.export import export_user
    from mta_cli.pipeline.personalize.weights import resolve_user_task
    from mta_cli.pipeline.users.export_data import export_all_data

    use = app_context(ctx, json=json)
    given = {"--task": task, "--rank": rank, "--base": base, "--yes": yes or None}
    if all_data and (flags := [flag for flag, value in given.items() if value is not None]):
        raise UsageError(f"--all-data is everything: {', '.join(flags)} cannot be given with it.")
    with use.open_registry() as reg:
        if all_data:
            use.output.run_job_and_print(export_all_data(reg, user, to))
            return
        person = reg.users.get(user)
        entry = resolve_model(base or use.model_options.base, "base")
        use.output.run_job_and_print(
            export_user(reg, entry, person, resolve_user_task(reg, person, task), to, rank=rank, replace=yes)
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
