"""Results of `mta user` as sentences and tables for a terminal of 80 columns. Reads dicts; stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mta_cli.options import SHOT_WEIGHTINGS
from mta_cli.terminal import output as out
from mta_cli.terminal import tables
from mta_cli.text.formatting import loss_verdict, pluralise

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_VALUES_SHOWN = 3  # values of a run's result in the list of runs


def render_fusion(recipe: Mapping[str, Any], *, details: bool) -> RenderableType:
    """A recipe: its anchors with their weights, and the task adapter's share."""
    rows: list[tuple[object, ...]] = [
        (each["user"], f"{each['similarity']:.3f}", f"{each['weight']:.3f}") for each in recipe["anchors"]
    ]
    if recipe["method"] in SHOT_WEIGHTINGS:
        rows.append(("(task adapter alone)", "", f"{recipe['null_weight']:.3f}"))
    made = f" by {recipe['method']}, {recipe['recipe_bytes']} bytes" if details else ""
    head = f"{recipe['user']}: the anchors of bank {recipe['bank']} v{recipe['version']} that fit best{made}"
    return out.group(out.text(head), tables.table(("anchor", "similarity", "weight"), rows))


def render_adaptations(results: Sequence[Mapping[str, Any]], *, details: bool) -> RenderableType:
    """A table of each user's held-out log-likelihood (nats) by the common, fused and adapted model.

    Without held-out queries it shows the loss on the shots instead. A sentence over all users follows. `details` adds
    sizes and steps.
    """
    held_out = any(each["heldout_before"] is not None for each in results)
    columns = ["user", "shots", *(("answers", "common", "fused", "adapted") if held_out else ("loss",)), "stack is"]
    columns += ["steps", "recipe", "stack", "seconds"] if details else []
    rows = []
    for each in results:
        row = [each["user"], each["shots"]]
        if held_out:
            losses = (each.get(f"heldout_{when}") for when in ("common", "before", "after"))
            row += [each["heldout_queries"] or None, *(None if loss is None else f"{-loss:.3f}" for loss in losses)]
        else:
            row.append(_loss_change_text(each, "loss"))
        row.append(_verdict(each, "heldout" if held_out else "loss"))
        if details:
            sizes = (f"{each['recipe_bytes']} B", f"{each['stack_bytes']:,} B")
            row += [each["steps"], *sizes, f"{each['seconds']:.1f}"]
        rows.append(row)
    shown = tables.table(columns, rows)
    said = "Held-out answers in nats, nearer to 0 is better. " if held_out else ""
    return out.group(shown, out.text(said + _summary_sentence(results)))


def render_export(result: Mapping[str, Any]) -> RenderableType:
    """An export: its folder, size and contents."""
    source = result["source"]
    anchors = pluralise(len(source["anchors"]), "anchor")
    parts = {"fused": f"the task adapter and {anchors}", "adapted": f"the task adapter, {anchors} and the stack"}
    lines = [
        f"Wrote {result['user']}'s model for {result['task']} to {result['to']}: {result['format']}, "
        f"{result['bytes'] / 1e6:.1f} MB.",
        f"It holds {parts[source['mode']]} of bank {source['bank']} v{source['version']}, of rank {result['rank']}.",
    ]
    return out.text("\n".join(lines))


def render_removal(result: Mapping[str, Any]) -> RenderableType:
    """A sentence on what was removed with a user."""
    files = pluralise(len(result["adapters_removed"]), "adapter file")
    return out.text(
        f"Removed {result['user']}: {pluralise(result['items'], 'item')} and {files}. The name is not kept, so "
        "importing a file with their items again adds them as a new user."
    )


def render_runs(
    runs: Sequence[Mapping[str, Any]], age: Callable[[str | None], str | None], *, details: bool
) -> RenderableType:
    """A table of the runs about a user; `age` turns a time into its age."""
    rows = [
        (each["id"], each["kind"], each["status"], age(each["started"]), _outcome(each, details=details))
        for each in runs
    ]
    return tables.table(("run", "kind", "status", "started", "result"), rows)


def _summary_sentence(results: Sequence[Mapping[str, Any]]) -> str:
    """The verdict over the users with held-out queries, or over all users if none has any."""
    held_out = [each for each in results if each["heldout_before"] is not None]
    kind = "heldout" if held_out else "loss"
    known = held_out or [each for each in results if each["loss_before"] is not None]
    if not known:
        return "No user has a history, so no stack was trained; the recipe alone answers."
    before, after = (fmean(each[f"{kind}_{when}"] for each in known) for when in ("before", "after"))
    verdict = loss_verdict(before, after)
    if len(known) > 1:
        verdicts = [_verdict(each, kind) or "" for each in known]
        counts = {word: sum(one.endswith(word) for one in verdicts) for word in ("better", "worse", "different")}
        verdict += f" ({counts['better']} better, {counts['different']} no different, {counts['worse']} worse)"
    elif verdict == "no different":
        verdict += "; try more --steps or a higher --learning-rate"
    if held_out:
        what = "The stack adds" if len(known) == 1 else "On average the stacks add"
        return f"{what} {before - after:+.3f}: {verdict}."
    return (
        f"Loss on the shots {before:.3f} → {after:.3f}: {verdict}. Without held-out queries there is no other measure."
    )


def _loss_change_text(result: Mapping[str, Any], kind: str) -> str | None:
    before, after = result[f"{kind}_before"], result[f"{kind}_after"]
    return None if before is None or after is None else f"{before:.3f} → {after:.3f}"


def _verdict(result: Mapping[str, Any], kind: str) -> str | None:
    before, after = result[f"{kind}_before"], result[f"{kind}_after"]
    return None if before is None or after is None else loss_verdict(before, after)


def _outcome(run: Mapping[str, Any], *, details: bool) -> str:
    if run["error"]:
        return str(run["error"])
    result = run["result"] or {}
    if not details and result.get("loss_before") is not None and result.get("loss_after") is not None:
        held_out = result.get("heldout_before") is not None and result.get("heldout_after") is not None
        return (
            f"{'held-out loss' if held_out else 'loss'} {_loss_change_text(result, 'heldout' if held_out else 'loss')}"
        )
    values = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in result.items()
        if isinstance(value, bool | int | float | str)
    ]
    return ", ".join(values if details else values[:MAX_VALUES_SHOWN])
