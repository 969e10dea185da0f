"""`mta demo`: the carried sample through every stage, and what came of it on two screens. No logic of any job."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.shared.arguments import DryRunOption, JsonOption
from mta_cli.commands.shared.context import AppContext, app_context
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.formatting import pluralise
from mta_cli.options import MachineOptions, ModelOptions
from mta_cli.settings import SETTINGS_FILE_NAME, StoreOptions, parse_path
from mta_cli.settings_file import write_setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

MODEL_NAMES = {"base": "base", "pooled": "common", "fused": "personal", "adapted": "personal"}
VERDICTS = {
    "better": "By the loss, the personal models are better",
    "worse": "By the loss, the personal models are worse",
    "not told apart": "Nothing improved for sure",
}
EXAMPLE_RULE = (
    "Shown is each user's held-out query whose own answer gained most likelihood from the common to the personal "
    "model, of those answered right if any: the best cases, not typical ones. A lower loss is better."
)
NAME_WIDTH = 9  # characters of a model's name before its answer
MAX_ANSWER_WIDTH = 66  # characters of an answer that are shown: one line of a terminal of 80 columns

KeepOption = Annotated[
    Path | None,
    typer.Option(
        "--keep", metavar="DIR", help="Where to keep the demo's store; else beside yours, with -demo added to its name."
    ),
]
FullOption = Annotated[
    bool, typer.Option("--full", help="Train longer: about seven minutes on two cores instead of three.")
]


@options(only(ModelOptions), MachineOptions)
def demo(
    ctx: typer.Context,
    *,
    keep: KeepOption = None,
    full: FullOption = False,
    flags: Flags,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Run every stage on a sample.

    It takes about three minutes on two cores and has a store of its own. At the end it shows answers of the base, the
    common model and three users' own models, and what all held-out queries say. The store stays, so that you can look
    around in it.
    Running the demo again continues or just shows the summary.
    """
    from mta_cli.pipeline.demo import demo_history_items, plan_demo, require_demo_store, run_demo
    from mta_cli.pipeline.requests import demo_request
    from store.registry import Registry

    context = app_context(ctx, flags, json=json)
    request = demo_request(context.options, full=full)
    root = demo_store_path(context, keep)
    require_demo_store(root)
    if dry_run:
        context.output.run_job_and_print(plan_demo(root, request), dry_run=True)
        return
    with Registry.open(root, create=True, timeout=context.settings.build_options(StoreOptions).timeout) as reg:
        write_setting(root / SETTINGS_FILE_NAME, "prompt.history_items", demo_history_items(full))
        context.output.run_job_and_print(run_demo(reg, request), render_demo, resumes=True)


def demo_store_path(context: AppContext, keep: Path | None) -> Path:
    """The directory of the demo's store: `keep`, else beside the user's own store."""
    if keep is not None:
        return parse_path(str(keep), "--keep")
    return context.store_dir.with_name(f"{context.store_dir.name}-demo")


def render_demo(result: dict[str, Any]) -> RenderableType:
    """The demo's results, task by task, and what to type next."""
    mta = f"mta --store {shlex.quote(result['store'])}"
    parts = [part for course in result["courses"] for part in _render_task(course, mta)]
    head = f"Done in {result['seconds']:.0f} s with {result['base']} and {result['embedder']}."
    return out.group(out.text(f"{EXAMPLE_RULE}\n"), *parts, out.text(f"{head} Look around: {mta} tui"))


def _render_task(course: dict[str, Any], mta: str) -> list[RenderableType]:
    """One task: an example of each of the three users, the verdict of all held-out queries, and a next step."""
    shown, evaluation = course["comparisons"], course["evaluation"]
    is_labels = "accuracy" in next(iter(evaluation["methods"].values()))
    render_example = _render_label_example if is_labels else _render_text_example
    asking = f"compare {shown[0]['user']} -t {course['task']} {shlex.quote(shown[0]['prompt'])}"
    gained = sum(comparison["gain"] > 0 for comparison in shown)
    return [
        out.text(course["description"], style="bold"),
        out.text(_models_line(course)),
        *(render_example(comparison, list(evaluation["methods"])) for comparison in shown),
        *([out.text(f"Even so, it gained for {gained} of {len(shown)} users only.")] if gained < len(shown) else []),
        out.text(_verdict_line(course), style="bold"),
        out.text(f"Next: {mta} {asking}\n"),
    ]


def _models_line(course: dict[str, Any]) -> str:
    anchors, kept = len(course["bank"]["anchors"]), "a stack" if course["adapted"] else "a recipe only"
    return (
        f"{course['verdict']['users']} new users got {kept}, above a common model and {anchors} anchors; "
        f"prompts show {pluralise(course['evaluation']['history_items'], 'history item')}."
    )


def _render_text_example(comparison: dict[str, Any], modes: Sequence[str]) -> RenderableType:
    """One held-out query and a line for each kind of model; the personal one is the last that was measured."""
    answers = {MODEL_NAMES[mode]: _shorten(comparison["answers"][mode]) or "(an empty answer)" for mode in modes}
    rows = (*answers.items(), ("own", comparison["gold"]))
    told = "".join(f"\n  {name:<{NAME_WIDTH}}{answer}" for name, answer in rows)
    return out.text(f"{comparison['user']}: {comparison['prompt']}{told}")


def _render_label_example(comparison: dict[str, Any], modes: Sequence[str]) -> RenderableType:
    """One held-out query, and the labels in a line, with the probability of the user's own one."""
    answers = {MODEL_NAMES[mode]: comparison["answers"][mode] for mode in modes}
    told = " · ".join(f"{name}: {answer}" for name, answer in (*answers.items(), ("own", comparison["gold"])))
    before, after = (math.exp(comparison["gold_logliks"][mode]) for mode in ("pooled", modes[-1]))
    return out.text(f"{comparison['user']}: {comparison['prompt']}\n  {told} ({before:.0%} → {after:.0%})")


def _shorten(answer: str) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= MAX_ANSWER_WIDTH else f"{line[: MAX_ANSWER_WIDTH - 1]}…"


def _verdict_line(course: dict[str, Any]) -> str:
    """What all held-out queries say, with the likelihoods of the users' own answers as losses."""
    said, evaluation = course["verdict"], course["evaluation"]
    metric, modes = evaluation["metric"], ("base", "pooled", list(evaluation["methods"])[-1])
    base, before, after = (evaluation["methods"][mode][metric]["value"] for mode in modes)
    return (
        f"All {said['queries']} held-out queries of {said['users']} users: loss base {-said['base']:.2f}, "
        f"common {-said['before']:.2f} → personal {-said['after']:.2f}; "
        f"{metric} {base:.2f}, {before:.2f} → {after:.2f}. "
        f"{VERDICTS[said['verdict']]} (95 %: {said['low']:+.3f} to {said['high']:+.3f})."
    )
