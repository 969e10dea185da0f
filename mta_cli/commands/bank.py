"""`mta bank`: build, list, show, verify and remove banks. Signature, help and rendering; no logic."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import (
    DryRunOption,
    JsonOption,
    RequiredTaskOption,
    YesOption,
    complete_banks,
)
from mta_cli.commands.shared.context import AppContext, app_context, confirm
from mta_cli.commands.shared.lazy_typer import CommandGroup
from mta_cli.commands.shared.next_steps import suggest_after_build
from mta_cli.commands.shared.option_flags import Flags, options
from mta_cli.errors import UsageError
from mta_cli.events import Event
from mta_cli.options import (
    BankOptions,
    ExecutorOptions,
    MachineOptions,
    ModelOptions,
    PromptOptions,
    ScreeningOptions,
)
from mta_cli.terminal import output as out
from mta_cli.terminal import tables
from mta_cli.text.formatting import loss_verdict, pluralise

if TYPE_CHECKING:
    from store.registry import Registry

app = CommandGroup("Banks: anchor users and their meta-LoRAs.")

BankArgument = Annotated[str, typer.Argument(metavar="BANK", help="The bank's name.", autocompletion=complete_banks)]
RefreshOption = Annotated[
    bool,
    typer.Option(
        "--refresh",
        help="Replace the stale anchors of the task's newest bank by other users, train only those, and bring the "
        "label memory's neighbours up to date. The rest of the bank stays. --name or --base chooses another bank.",
    ),
]
VersionOption = Annotated[
    int | None, typer.Option("--bank-version", help="The bank's version; by default the newest ready one.")
]


@app.command()
@options(BankOptions, ScreeningOptions, PromptOptions, ModelOptions, MachineOptions, ExecutorOptions, preset=True)
def build(
    ctx: typer.Context,
    *,
    task: RequiredTaskOption,
    name: Annotated[str | None, typer.Option("--name", help="The bank's name; by default the task's.")] = None,
    refresh: RefreshOption = False,
    flags: Flags,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Build a task's bank of anchors.

    Makes profiles, chooses anchors, trains the task adapter and a meta-LoRA per anchor. Run it again to finish a
    stopped build.
    """
    from mta_cli.pipeline.bank.build import build_bank
    from mta_cli.pipeline.requests import bank_request

    context = app_context(ctx, flags, json=json)
    if refresh:
        _run_refresh(context, flags, task, name, dry_run=dry_run)
        return
    given = context.options
    with context.open_registry() as reg:
        request = bank_request(reg, given, task, name)
        job = build_bank(reg, request, plan=context.settings.plan_lines(*request.plan_options), dry_run=dry_run)
        _run_and_print(context, reg, job, dry_run=dry_run)


def _run_refresh(context: AppContext, flags: Flags, task: str, name: str | None, *, dry_run: bool) -> None:
    """Refresh the task's bank, which keeps its options. Raises UsageError if options were given."""
    from mta_cli.pipeline.bank.refresh import refresh_bank
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.models.installed import resolve_model

    if refused := [flag for flag in flags.given_flags() if flag not in ("--device", "--base")]:
        raise UsageError(
            f"--refresh keeps the options that the bank was built with, so {', '.join(refused)} cannot be given too.",
            hint="leave out --refresh to build a new version of the bank with other options",
        )
    machine, base = context.build_options(MachineOptions)[MachineOptions], flags.values["base"]
    with context.open_registry() as reg:
        fingerprint = None if base is None else resolve_model(base, "base").fingerprint
        job = refresh_bank(reg, find_task(reg, task).name, machine, name=name, base=fingerprint, dry_run=dry_run)
        _run_and_print(context, reg, job, dry_run=dry_run)


def _run_and_print(context: AppContext, reg: Registry, job: Iterator[Event], *, dry_run: bool) -> None:
    render = partial(_render_bank, reg, details=bool(context.output.verbosity))
    bank = context.output.run_job_and_print(job, render, dry_run=dry_run, resumes=True)
    if not dry_run:
        suggest_after_build(context, reg, bank)


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the banks."""
    from mta_cli.pipeline.bases_in_use import base_name, has_several_bases
    from mta_cli.pipeline.runs import bank_status

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        base = ("base_name",) if has_several_bases(reg) else ()
        rows = [
            {
                "bank": b.name,
                "version": b.version,
                "task": b.task,
                "status": bank_status(reg, b),
                "base": b.base,
                "base_name": base_name(reg, b.base),
                "created": b.created,
                "anchors": len(reg.banks.anchors(b.id)),
                "stale": sum(a.stale for a in reg.banks.anchors(b.id)),
            }
            for b in reg.banks.all()
        ]
    keys = ("bank", "version", "task", *base, "status", "anchors", "stale")
    columns = [*(key.removesuffix("_name") for key in keys), "created"]

    def render(found: list[dict[str, Any]]) -> Any:
        return tables.table(
            columns, [[*(row[key] for key in keys), context.output.age(row["created"])] for row in found]
        )

    context.output.print_result(rows, render)


@app.command()
def show(ctx: typer.Context, bank: BankArgument, version: VersionOption = None, json: JsonOption = False) -> None:
    """Show a bank: anchors, losses, digests."""
    from mta_cli.pipeline.bank.verify import bank_json

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        found = bank_json(reg, reg.banks.get(bank, version))
        context.output.print_result(found, partial(_render_bank, reg, details=True))


@app.command()
def verify(ctx: typer.Context, bank: BankArgument, version: VersionOption = None, json: JsonOption = False) -> None:
    """Check a bank's files against its records."""
    from mta_cli.pipeline.bank.verify import verify_bank

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        checked = verify_bank(reg, bank, version)
    said = f"Bank {checked['bank']} v{checked['version']}: {checked['adapters']} adapter files match their records."
    context.output.print_result(checked, lambda _: out.group(out.text(said), *_render_screening(checked["gates"])))


@app.command()
def rm(
    ctx: typer.Context,
    bank: BankArgument,
    version: VersionOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Remove a version of a bank. The recipes and stacks that depend on it go too."""
    from mta_cli.pipeline.bank.verify import remove_bank

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        found = reg.banks.get(bank, version)
        confirm(context.output, f"Remove bank {found.name} v{found.version} and every recipe and stack on it?", yes=yes)
        context.output.print_result(remove_bank(reg, found), _render_removal)


def _render_bank(reg: Registry, bank: dict[str, Any], *, details: bool) -> Any:
    """A bank: its anchors and whether they learned. `details` adds digests, the task adapter and label memory."""
    from mta_cli.pipeline.bases_in_use import on_base

    columns = ["anchor", "items", "stands for", "training loss", "is", ""]
    rows = [
        [
            a["user"] or "(forgotten)",
            a["items"],
            pluralise(a["cluster_size"], "user"),
            f"{out.format_loss(a['loss_first'])} → {out.format_loss(a['loss_last'])}",
            None if a["loss_first"] is None else loss_verdict(a["loss_first"], a["loss_last"]),
            "stale" if a["stale"] else "",
        ]
        for a in bank["anchors"]
    ]
    if details:
        columns.insert(-1, "digest")
        for row, anchor in zip(rows, bank["anchors"], strict=True):
            row.insert(-1, (anchor["digest"] or "")[:12])
    trained = f"trained on {bank['tokens']:,} tokens in {bank['seconds']:.0f} s" if bank["seconds"] else bank["status"]
    anchors = pluralise(len(bank["anchors"]), "anchor")
    lines = []
    if any(a["digest"] for a in bank["anchors"]):
        lines.append(_training_loss_line(bank["anchors"]))
    if details and bank["task_adapter"]:
        users = bank["task_adapter_people"]
        whose = "an unknown number of users" if users is None else pluralise(users, "user")
        lines.append(f"The task adapter was trained on the items of {whose}; it serves all users.")
    if details and bank["kernel"]:
        lines.append(_neighbours_line(bank))
    return out.group(
        out.text(
            f"Bank {bank['bank']} v{bank['version']} for task {bank['task']}{on_base(reg, bank['base'])}: "
            f"{anchors}, {trained}"
        ),
        tables.table(columns, rows),
        *map(out.text, lines),
        *_render_screening(bank["gates"]),
        *_render_ladder(bank["ladder"]),
    )


def _render_ladder(ladder: dict[str, Any] | None) -> list[Any]:
    """The ladder up to the common model, measured on the bank's own users; nothing if it was not measured."""
    from mta_cli.pipeline.evaluation.ladder_text import table_columns, table_rows, verdict_lines

    if ladder is None:
        return []
    measured = (
        "Measured on held-out queries of the bank's users; the common model has learned from these users."
        if ladder["seen"]
        else f"Measured on items of the bank's users as if they were new: {ladder['shots']} other items of the user "
        "are known, and the common model has learned from other users."
    )
    more = "`mta quick` and `mta eval run` measure the personal steps."
    lines = [out.text(line) for line in verdict_lines(ladder, more)]
    return [out.text(measured), tables.table(table_columns(ladder), table_rows(ladder)), *lines]


def _training_loss_line(anchors: list[dict[str, Any]]) -> str:
    known = [a for a in anchors if a["loss_first"] is not None and a["loss_last"] is not None]
    if not known:
        return "No anchor has a measured loss."
    before, after = fmean(a["loss_first"] for a in known), fmean(a["loss_last"] for a in known)
    worse = [
        str(a["user"] or "(forgotten)")
        for a in known
        if loss_verdict(a["loss_first"], a["loss_last"]).endswith("worse")
    ]
    rose = f" It rose for {', '.join(worse)}." if worse else ""
    return f"Training loss {before:.3f} → {after:.3f} on average: {loss_verdict(before, after)}.{rose}"


_KERNEL_TERMS = {"votes": "votes", "label prior": "habit", "discriminant": "linear"}  # names shown → stored keys


def _neighbours_line(bank: dict[str, Any]) -> str:
    count, users = bank["neighbours"], bank["neighbour_people"]
    kernel = bank["kernel"]
    powers = ", ".join(f"{name} × {kernel[key]:.2f}" for name, key in _KERNEL_TERMS.items())
    weights = bank["memory_weights"]
    share = (
        "the label memory's weight was not fitted"
        if weights is None
        else f"weights in an answer: model {weights['model']:.2f}, label memory {weights['memory']:.2f}"
    )
    return (
        f"{pluralise(count, 'answer')} of {pluralise(users, 'user')} serve as neighbours "
        f"(sharpness {kernel['sharpness']:.2f}, {powers}; {share})."
    )


def _render_screening(found: list[dict[str, Any]]) -> list[Any]:
    from mta_cli.pipeline.anchors import format_finding

    return [out.text(f"Gate: {format_finding(one)}.") for one in found]


def _render_removal(result: dict[str, Any]) -> Any:
    along = f"{pluralise(result['recipes'], 'recipe')} and {pluralise(result['stacks'], 'stack')}"
    return out.text(f"Removed bank {result['bank']} v{result['version']}, {along}.")
