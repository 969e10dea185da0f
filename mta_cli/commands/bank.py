"""`mta bank`: build, list, show, verify and remove banks. Signature, help and rendering; no logic."""

from __future__ import annotations

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
    YesOption,
    app_context,
    complete_banks,
    complete_models,
    complete_tasks,
    confirm,
    typer_option,
)
from mta_cli.commands.parsing import CommandApp
from mta_cli.errors import UsageError
from mta_cli.options import BankOptions, MachineOptions, PromptOptions, ScreeningOptions

app = CommandApp("Banks: anchor users and their meta-LoRAs.")

BankArgument = Annotated[str, typer.Argument(metavar="BANK", help="The bank's name.", autocompletion=complete_banks)]
RefreshOption = Annotated[
    bool,
    typer.Option(
        "--refresh",
        help="Replace the stale anchors of the task's newest bank by others and train only those, and bring its "
        "neighbours up to date. All else is as it was built; --name says which bank.",
    ),
]
VersionOption = Annotated[int | None, typer.Option("--bank-version", help="Which version; else the newest ready one.")]


@app.command()
def build(
    ctx: typer.Context,
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="The task.", autocompletion=complete_tasks)],
    name: Annotated[str | None, typer.Option("--name", help="The bank's name; else the task's.")] = None,
    anchors: Annotated[int | None, typer_option(BankOptions, "anchors")] = None,
    rank: Annotated[int | None, typer_option(BankOptions, "rank")] = None,
    alpha: Annotated[float | None, typer_option(BankOptions, "alpha")] = None,
    epochs: Annotated[int | None, typer_option(BankOptions, "epochs")] = None,
    learning_rate: Annotated[float | None, typer_option(BankOptions, "learning_rate")] = None,
    batch_size: Annotated[int | None, typer_option(BankOptions, "batch_size")] = None,
    targets: Annotated[str | None, typer_option(BankOptions, "targets")] = None,
    placement: Annotated[str | None, typer_option(BankOptions, "placement")] = None,
    pick: Annotated[str | None, typer_option(BankOptions, "pick")] = None,
    min_items: Annotated[int | None, typer_option(BankOptions, "min_items")] = None,
    max_items: Annotated[int | None, typer_option(BankOptions, "max_items")] = None,
    task_adapter: Annotated[bool | None, typer_option(BankOptions, "task_adapter")] = None,
    task_min_items: Annotated[int | None, typer_option(BankOptions, "task_min_items")] = None,
    task_placement: Annotated[str | None, typer_option(BankOptions, "task_placement")] = None,
    task_rank: Annotated[int | None, typer_option(BankOptions, "task_rank")] = None,
    task_epochs: Annotated[int | None, typer_option(BankOptions, "task_epochs")] = None,
    task_learning_rate: Annotated[float | None, typer_option(BankOptions, "task_learning_rate")] = None,
    max_norm: Annotated[float | None, typer_option(ScreeningOptions, "max_norm")] = None,
    max_probe: Annotated[float | None, typer_option(ScreeningOptions, "max_probe")] = None,
    max_share: Annotated[float | None, typer_option(ScreeningOptions, "max_share")] = None,
    refresh: RefreshOption = False,
    history_items: HistoryItemsOption = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The base.", autocompletion=complete_models)
    ] = None,
    embedder: Annotated[
        str | None, typer.Option("--embedder", metavar="MODEL", help="The embedder.", autocompletion=complete_models)
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Build a bank: profiles, anchors, the task adapter and a meta-LoRA per anchor. Run it again
    to finish a stopped build.
    """
    use = app_context(ctx, json=json)
    given: dict[str, Any] = {
        "anchors": anchors,
        "rank": rank,
        "alpha": alpha,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "targets": targets,
        "placement": placement,
        "pick": pick,
        "min_items": min_items,
        "max_items": max_items,
        "task_adapter": task_adapter,
        "task_min_items": task_min_items,
        "task_placement": task_placement,
        "task_rank": task_rank,
        "task_epochs": task_epochs,
        "task_learning_rate": task_learning_rate,
    }
    bounds: dict[str, Any] = {"max_norm": max_norm, "max_probe": max_probe, "max_share": max_share}
    if refresh:
        rest = {"history_items": history_items, "base": base, "embedder": embedder, "seed": seed, "dtype": dtype}
        _refuse_with_refresh({**given, **bounds, **rest})
        _run_refresh(use, task, name, device, dry_run=dry_run)
        return
    options, gates = (
        use.settings.build_options(BankOptions, **given),
        use.settings.build_options(ScreeningOptions, **bounds),
    )
    prompt = use.settings.build_options(PromptOptions, history_items=history_items)
    machine = use.machine_options(seed=seed, device=device, dtype=dtype)
    _run_build(use, task, name, (base, embedder), options, gates, prompt, machine, dry_run=dry_run)


def _run_build(
    use: AppContext,
    task: str,
    name: str | None,
    models: tuple[str | None, str | None],
    options: BankOptions,
    gates: ScreeningOptions,
    prompt: PromptOptions,
    machine: MachineOptions,
    *,
    dry_run: bool,
) -> None:
    from mta_cli.pipeline.bank.build import BankRequest, build_bank
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.models.lookup import resolve_model

    base, embedder = models
    with use.open_registry() as reg:
        request = BankRequest(
            find_task(reg, task),
            resolve_model(base or use.model_options.base, "base"),
            resolve_model(embedder or use.model_options.embedder, "embedder"),
            options,
            prompt,
            machine,
            name,
            gates=gates,
        )
        plan = use.settings.plan_lines(options, gates, prompt, machine)
        job = build_bank(reg, request, plan=plan, dry_run=dry_run)
        use.output.run_job_and_print(job, _render_bank, dry_run=dry_run, resumes=True)


def _refuse_with_refresh(given: dict[str, Any]) -> None:
    """A bank that is refreshed keeps its options. UsageFault names those that were given."""
    flags = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if flags:
        raise UsageError(
            f"--refresh keeps the bank's own options: {', '.join(flags)} cannot be given with it.",
            hint="without --refresh another version is built",
        )


def _run_refresh(use: AppContext, task: str, name: str | None, device: str | None, *, dry_run: bool) -> None:
    from mta_cli.pipeline.bank.refresh import refresh_bank
    from mta_cli.pipeline.data.tasks import find_task

    machine = use.machine_options(device=device)
    with use.open_registry() as reg:
        job = refresh_bank(reg, find_task(reg, task).name, machine, name=name, dry_run=dry_run)
        use.output.run_job_and_print(job, _render_bank, dry_run=dry_run, resumes=True)


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List banks with their task, anchors and state."""
    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        rows = [
            {
                "bank": b.name,
                "version": b.version,
                "task": b.task,
                "status": b.status,
                "created": b.created,
                "anchors": len(reg.banks.anchors(b.id)),
                "stale": sum(a.stale for a in reg.banks.anchors(b.id)),
            }
            for b in reg.banks.all()
        ]
    columns = ("bank", "version", "task", "status", "anchors", "stale", "created")
    use.output.print_result(rows, lambda found: out.table(columns, [[row[c] for c in columns] for row in found]))


@app.command()
def show(ctx: typer.Context, bank: BankArgument, version: VersionOption = None, json: JsonOption = False) -> None:
    """Show a bank's anchors, their losses and the digests of their files."""
    from mta_cli.pipeline.bank.verify import bank_json

    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        use.output.print_result(bank_json(reg, reg.banks.get(bank, version)), _render_bank)


@app.command()
def verify(ctx: typer.Context, bank: BankArgument, version: VersionOption = None, json: JsonOption = False) -> None:
    """Read every file of a bank and compare it with its digest and its row."""
    from mta_cli.pipeline.bank.verify import verify_bank

    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        use.output.print_result(verify_bank(reg, bank, version), _render_verification)


@app.command()
def rm(
    ctx: typer.Context,
    bank: BankArgument,
    version: VersionOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Remove one version of a bank, with the recipes and stacks that stand on it."""
    from mta_cli.pipeline.bank.verify import remove_bank

    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        found = reg.banks.get(bank, version)
        confirm(use.output, f"Remove bank {found.name} v{found.version} and every recipe and stack on it?", yes=yes)
        use.output.print_result(remove_bank(reg, found), _render_removal)


def _render_bank(bank: dict[str, Any]) -> Any:
    rows = [
        (
            a["user"] or "(forgotten)",
            a["items"],
            a["cluster_size"],
            _format_loss(a["loss_first"]),
            _format_loss(a["loss_last"]),
            (a["digest"] or "")[:12],
            "stale" if a["stale"] else "",
        )
        for a in bank["anchors"]
    ]
    speed = f"{bank['tokens']:,} tokens in {bank['seconds']:.0f} s" if bank["seconds"] else bank["status"]
    return out.group(
        out.text(
            f"Bank {bank['bank']} v{bank['version']} for task {bank['task']}: {len(bank['anchors'])} anchors, {speed}"
        ),
        out.table(("anchor", "items", "cluster", "loss first", "loss last", "digest", ""), rows),
        *([out.text(_task_adapter_line(bank["task_adapter_people"]))] if bank["task_adapter"] else []),
        *([out.text(_neighbours_line(bank))] if bank["kernel"] else []),
        *_render_screening(bank["gates"]),
    )


def _task_adapter_line(people: int | None) -> str:
    whom = "an unknown number of" if people is None else f"{people:,}"
    return f"The task adapter was trained on the items of {whom} people; it serves everybody."


_KERNEL_TERMS = {"votes": "votes", "habit": "habit", "discriminant": "linear"}  # as they are called, and their keys


def _neighbours_line(bank: dict[str, Any]) -> str:
    count, people = bank["neighbours"], bank["neighbour_people"]
    kernel = {"linear": 0.0, **bank["kernel"]}  # a bank of an earlier version has no discriminant
    powers = ", ".join(f"{name} × {kernel[key]:.2f}" for name, key in _KERNEL_TERMS.items())
    beside = bank["beside_model"]
    share = "not weighed against the model" if beside is None else f"× {beside:.2f} beside the model"
    return (
        f"{count:,} answers of {people:,} people serve as neighbours "
        f"(sharpness {kernel['sharpness']:.2f}, {powers}; {share})."
    )


def _render_verification(result: dict[str, Any]) -> Any:
    said = f"Bank {result['bank']} v{result['version']}: {result['adapters']} adapter files are what their rows say."
    return out.group(out.text(said), *_render_screening(result["gates"]))


def _render_screening(found: list[dict[str, Any]]) -> list[Any]:
    from mta_cli.pipeline.bank.screening import finding_line

    return [out.text(f"Gate: {finding_line(one)}.") for one in found]


def _render_removal(result: dict[str, Any]) -> Any:
    along = f"{result['recipes']} recipes and {result['stacks']} stacks"
    return out.text(f"Removed bank {result['bank']} v{result['version']}, {along}.")


def _format_loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
