"""`mta demo`: the carried sample through every stage, and a summary of what happened. No logic of any job."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.chat_repl.comparison_table import ANSWER_MODES
from mta_cli.commands.shared.arguments import DryRunOption, JsonOption
from mta_cli.commands.shared.context import AppContext, app_context
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.options import MachineOptions, ModelOptions
from mta_cli.settings import StoreOptions, parse_path

if TYPE_CHECKING:
    from rich.console import RenderableType

STACK_COLUMNS = (
    "user",
    "shots",
    "loss before",
    "after",
    "held-out before",
    "after",
    "recipe bytes",
    "stack bytes",
    "seconds",
)

KeepOption = Annotated[
    Path | None,
    typer.Option(
        "--keep", metavar="DIR", help="Where to keep the demo's store; else beside yours, with -demo added to its name."
    ),
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Train less and adapt fewer users: faster, with a weaker result.")
]


@options(only(ModelOptions), MachineOptions)
def demo(
    ctx: typer.Context,
    *,
    keep: KeepOption = None,
    quick: QuickOption = False,
    flags: Flags,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Run every stage on a sample.

    It has a store of its own. At the end it sums up what happened. The store stays, so that you can look around in it.
    Running the demo again continues or just shows the summary.
    """
    from mta_cli.pipeline.demo import plan_demo, require_demo_store, run_demo
    from mta_cli.pipeline.requests import demo_request
    from store.registry import Registry

    context = app_context(ctx, flags, json=json)
    request = demo_request(context.options, quick=quick)
    root = demo_store_path(context, keep)
    require_demo_store(root)
    if dry_run:
        context.output.run_job_and_print(plan_demo(root, request), dry_run=True)
        return
    with Registry.open(root, create=True, timeout=context.settings.build_options(StoreOptions).timeout) as reg:
        context.output.run_job_and_print(run_demo(reg, request), render_demo, resumes=True)


def demo_store_path(context: AppContext, keep: Path | None) -> Path:
    """The directory of the demo's store: `keep`, else beside the user's own store."""
    if keep is not None:
        return parse_path(str(keep), "--keep")
    return context.store_dir.with_name(f"{context.store_dir.name}-demo")


def render_demo(result: dict[str, Any]) -> RenderableType:
    """The demo's results, task by task, and what to type next."""
    parts = [part for course in result["courses"] for part in _render_task(course)]
    models = f"{result['base']} and {result['embedder']}"
    head = f"Done in {result['seconds']:.0f} s with {models}. Everything is kept in {result['store']}"
    return out.group(*parts, out.text(head, style="bold"), out.text(_next_steps(result)))


def _render_task(course: dict[str, Any]) -> list[RenderableType]:
    """One task: bank, recipes, stacks, answers and, if there is one, its evaluation."""
    measured = [_render_evaluation(course["evaluation"])] if course["evaluation"] else []
    return [
        out.text(f"{'─' * 100}\n{course['description']}", style="bold"),
        out.text(_counts_line(course)),
        out.table(
            ("anchor", "items", "stands for", "loss first", "last"), map(_anchor_cells, course["bank"]["anchors"])
        ),
        out.text("Recipes: which anchors, and how much of each (the rest is the task adapter alone)"),
        out.table(("user", "anchors", "rest", "bytes"), map(_recipe_cells, course["recipes"])),
        out.text("Stacks: loss before and after on the shots they were trained on, and on held-out queries"),
        out.table(STACK_COLUMNS, map(_stack_cells, course["adapted"])),
        out.text("The same question to the models of three users, and each answer"),
        *map(_render_comparison, course["comparisons"]),
        *measured,
    ]


def _counts_line(course: dict[str, Any]) -> str:
    bank, imported = course["bank"], course["imported"]
    items, queries = (imported[f"{what}_added"] + imported[f"{what}_unchanged"] for what in ("items", "queries"))
    speed = f", {bank['tokens']:,} tokens in {bank['seconds']:.0f} s" if bank["seconds"] else ""
    counts = f"{imported['users']} users, {items:,} history items and {queries:,} held-out queries."
    return f"{counts} Bank {bank['bank']} v{bank['version']}: {len(bank['anchors'])} anchors{speed}."


def _anchor_cells(anchor: dict[str, Any]) -> tuple[Any, ...]:
    name = anchor["user"] or "(forgotten)"
    return (
        name,
        anchor["items"],
        f"{anchor['cluster_size']} users",
        out.format_loss(anchor["loss_first"]),
        out.format_loss(anchor["loss_last"]),
    )


def _recipe_cells(recipe: dict[str, Any]) -> tuple[Any, ...]:
    shares = ", ".join(f"{anchor['user']} {anchor['weight']:.2f}" for anchor in recipe["anchors"])
    return recipe["user"], shares, f"{recipe['null_weight']:.2f}", recipe["recipe_bytes"]


def _stack_cells(row: dict[str, Any]) -> tuple[Any, ...]:
    losses = (row["loss_before"], row["loss_after"], row["heldout_before"], row["heldout_after"])
    return (
        row["user"],
        row["shots"],
        *map(out.format_loss, losses),
        row["recipe_bytes"],
        row["stack_bytes"],
        f"{row['seconds']:.1f}",
    )


def _render_comparison(comparison: dict[str, Any]) -> RenderableType:
    rows = [(mode, (comparison["answers"][mode] or "").strip() or "–") for mode in ANSWER_MODES]
    rows.append((f"{comparison['user']}'s own", comparison["gold"]))
    return out.table((comparison["user"], comparison["prompt"]), rows)


def _render_evaluation(evaluation: dict[str, Any]) -> RenderableType:
    metrics = list(next(iter(evaluation["methods"].values())))
    rows = [
        (method, *(_format_interval(found[metric]) for metric in metrics))
        for method, found in evaluation["methods"].items()
    ]
    head = (
        f"{evaluation['queries']} held-out queries of {evaluation['users']} users, each with the same history in the "
        "prompt (95 % intervals over users; pooled is the task adapter alone)"
    )
    return out.group(out.text(head), out.table(("model", *metrics), rows))


def _format_interval(metric: dict[str, float]) -> str:
    return f"{metric['value']:.3f}  [{metric['low']:.3f}, {metric['high']:.3f}]"


def _next_steps(result: dict[str, Any]) -> str:
    shown = result["courses"][0]["comparisons"][0]
    mta = f"mta --store {shlex.quote(result['store'])}"
    lines = (
        ("its users, and what each of them has", f"{mta} user list"),
        ("ask a user's model", f"{mta} ask {shown['user']} -t taste {shlex.quote(shown['prompt'])}"),
        ("a conversation; /help inside", f"{mta} chat {shown['user']} -t voice"),
        ("one user's adapter for PEFT", f"{mta} user export {shown['user']} --task voice --to {shown['user']}-voice"),
        ("forget a user, every trace", f"{mta} user rm {shown['user']}"),
        ("a store of your own", "mta init"),
    )
    return "\nNext:\n" + "\n".join(f"  {command}\n      {what}" for what, command in lines)
