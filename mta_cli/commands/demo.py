"""`mta demo`: runs every stage on the included sample and shows the results by task. No job's logic."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import DryRunOption, JsonOption
from mta_cli.commands.shared.context import AppContext, app_context
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.configuration.settings import SETTINGS_FILE_NAME, StoreOptions, parse_path
from mta_cli.configuration.settings_file import write_setting
from mta_cli.options import MachineOptions, ModelOptions
from mta_cli.terminal import output as out
from mta_cli.terminal import tables
from mta_cli.text.formatting import pluralise, shorten

if TYPE_CHECKING:
    from rich.console import RenderableType

NAME_WIDTH = 15  # characters of a step's name before its answer
MAX_ANSWER_WIDTH = 62  # characters of an answer that are shown: one line of a terminal of 80 columns

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

    It takes about three minutes on two cores and has a store of its own. At the end it shows what each step from the
    base to a user's own model is worth on all held-out queries, and what the models of three users answer. The store
    stays, so that you can look around in it.
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
    """The demo's results for each task, and next commands."""
    mta = f"mta --store {shlex.quote(result['store'])}"
    parts = [part for course in result["courses"] for part in _render_task(course, mta)]
    head = f"Done in {result['seconds']:.0f} s with {result['base']} and {result['embedder']}."
    return out.group(*parts, out.text(f"{head} Look around: {mta} tui"))


def _render_task(course: dict[str, Any], mta: str) -> list[RenderableType]:
    from mta_cli.pipeline.evaluation.ladder_text import table_columns, table_rows, verdict_lines
    from mta_cli.pipeline.evaluation.metric_names import LOGLIK_METRIC

    ladder, examples = course["ladder"], course["examples"]
    asked = examples[0]
    asking = f"compare {asked['user']} -t {course['task']} {shlex.quote(asked['question'])}"
    return [
        out.text(course["description"], style="bold"),
        out.text(
            f"{pluralise(len(course['adapted']), 'new user')} got a recipe and a stack above the common model and "
            f"{pluralise(len(course['bank']['anchors']), 'anchor')}; prompts show "
            f"{pluralise(course['evaluation']['history_items'], 'own example')}."
        ),
        tables.table(table_columns(ladder), table_rows(ladder)),
        *map(out.text, verdict_lines(ladder)),
        out.text(f"\nExamples: {course['example_rule']}."),
        *render_examples(examples, is_labels=ladder["metric"] != LOGLIK_METRIC),
        out.text(f"Next: {mta} {asking}\n"),
    ]


def render_examples(examples: list[dict[str, Any]], *, is_labels: bool) -> list[RenderableType]:
    """The examples in one block if all users were asked the same and only personal answers differ; else one by one."""
    from mta_cli.pipeline.evaluation.ladder_text import PERSONAL_STEPS

    impersonal = [{name: one["answers"].get(name) for name in ("base", "common")} for one in examples]
    asked = {one["question"] for one in examples}
    if is_labels or len(asked) > 1 or any(one != impersonal[0] for one in impersonal):
        return [_render_example(one, is_labels=is_labels) for one in examples]
    lines = [examples[0]["question"], *(_answer_line(name, answer) for name, answer in impersonal[0].items())]
    for one in examples:
        most_personal = [answer for name, answer in one["answers"].items() if name in PERSONAL_STEPS][-1]
        lines += [_answer_line(one["user"], most_personal), _answer_line("  own words", one["gold"])]
    return [out.text("\n".join(lines))]


def _answer_line(name: str, answer: str | None) -> str:
    return f"  {name:<{NAME_WIDTH}}{shorten(answer or '', MAX_ANSWER_WIDTH) or '(an empty answer)'}"


def _render_example(example: dict[str, Any], *, is_labels: bool) -> RenderableType:
    """A held-out question with the answers of base, common and personal model, and the user's own.

    Of steps with the same weights the highest is shown; for labels, also the probability of the user's own answer.
    """
    from mta_cli.pipeline.evaluation.ladder_text import PERSONAL_STEPS

    answers = example["answers"]  # in the ladder's order
    found = [[name for name in answers if name.startswith(part)] for part in ("base", "common")]
    found.append([name for name in answers if name in PERSONAL_STEPS])
    told = ""
    for name in (names[-1] for names in found):
        likely = f" (own at {100 * math.exp(example['gold_logliks'][name]):.0f} %)" if is_labels else ""
        told += f"\n  {name:<{NAME_WIDTH}}{shorten(answers[name], MAX_ANSWER_WIDTH) or '(an empty answer)'}{likely}"
    told += f"\n  {'own':<{NAME_WIDTH}}{shorten(example['gold'], MAX_ANSWER_WIDTH)}"
    return out.text(f"{example['user']}: {example['question']}{told}")
