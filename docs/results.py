# ruff: noqa: E501
"""Makes the tables of results/README.md and of the README's Figures from the evaluations that the program exported.

Every number comes from `docs/results/*/*.json` by the functions that `mta eval show` uses. Knows no job.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from mta_cli.commands.demo import render_demo, render_examples
from mta_cli.engine.evaluation.ladder import ADAPTED, ANOTHERS, COMMON, COMMON_MEMORY, NO_MODEL, STEP_NAMES
from mta_cli.lab.evaluation.seeds import evaluation_document, load_evaluations
from mta_cli.pipeline.evaluation.ladder_text import personal_row, whose_text
from mta_cli.pipeline.evaluation.metric_names import metric_name
from mta_cli.terminal import output as out

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- figures: made by `make docs` from docs/results; do not edit -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Measured:
    """One task's evaluations: seeds of one design, and a file with the lowest two steps where they were measured apart."""

    name: str
    folder: str
    seeds: tuple[int, ...] = (0,)

    @functools.cached_property
    def document(self) -> dict[str, Any]:
        """All seeds as one."""
        return _document(tuple(f"{self.folder}/seed{seed}.json" for seed in self.seeds))

    @property
    def ladder(self) -> Mapping[str, Any]:
        """The ladder of the document."""
        found: Mapping[str, Any] = self.document["ladder"]
        return found

    @functools.cached_property
    def steps(self) -> dict[str, Mapping[str, Any]]:
        """The values of every step; those below the common model may stand in a file of their own."""
        below = f"{self.folder}/base.json"
        apart = _document((below,))["ladder"]["steps"] if (RESULTS / below).exists() else []
        return {row["step"]: row for row in (*apart, *self.ladder["steps"])}


TASKS = (
    Measured("reviews", "eval-lamp-3-default-banks"),
    Measured("movie tags", "eval-lamp-2-default-banks", (0, 1, 2)),
    Measured("film scores", "eval-movie-rating-default-banks"),
    Measured("headlines", "eval-lamp-4-default-banks"),
    *([Measured("commits", "eval-commits")] if (RESULTS / "eval-commits" / "seed0.json").exists() else []),
)
HELP = {
    NO_MODEL: "own label rates, or the nearest own text",
    "base": "the language model as it is",
    "base+examples": "+ the user's three nearest items in the prompt",
    COMMON: "+ one LoRA for all users (the task adapter)",
    COMMON_MEMORY: "+ label memory",
    "fused": "+ the user's anchors, merged",
    ADAPTED: "+ the user's own stack",
    ANOTHERS: "control: another user's anchors and stack",
}


@functools.cache
def _document(files: tuple[str, ...]) -> dict[str, Any]:
    return evaluation_document(load_evaluations([str(RESULTS / name) for name in files], None))


def steps_table() -> str:
    """The value of each step on each task: the metric, and in brackets the likelihood."""
    heads = [f"{one.name}, {metric_name(one.ladder['metric'])}" for one in TASKS]
    lines = [f"| step | what it adds | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(TASKS)]
    for step in STEP_NAMES:
        cells = [_value(one.steps.get(step)) for one in TASKS]
        lines.append(f"| `{step}` | {HELP[step]} | {' | '.join(cells)} |")
    counts = [f"{one.document['users']}, {one.document['queries']}" for one in TASKS]
    return "\n".join([*lines, f"| users, questions | | {' | '.join(counts)} |"])


def _value(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    metric, loglik = (None if row[key] is None else short(row[key]) for key in ("metric", "gold_loglik"))
    return f"{metric or '–'} ({loglik})" if loglik is not None else metric or "–"


def gains_table() -> str:
    """What each step adds in likelihood, with its interval, p after Holm's correction and verdict."""
    lines = [
        f"| what is added | difference | {' | '.join(one.name for one in TASKS)} |",
        "|---|---|" + "---:|" * len(TASKS),
    ]
    named = dict.fromkeys((row["adds"], row["step"]) for one in TASKS for row in one.ladder["comparisons"])
    for adds, step in named:
        rows = [_row(one.ladder, adds, step) for one in TASKS]
        below = dict.fromkeys(f"`{row['below']}`" for row in rows if row is not None)
        lines.append(f"| {adds} | `{step}` − {' or '.join(below)} | {' | '.join(_gain(row) for row in rows)} |")
    for title, rival, key in (
        ("own in place of another user's", ANOTHERS, "control"),
        ("all of it", NO_MODEL, "no_model"),
    ):
        lines.append(f"| {title} | `{ADAPTED}` − `{rival}` | {' | '.join(_gain(one.ladder[key]) for one in TASKS)} |")
    power = [personal_row(one.ladder) for one in TASKS]
    found = [short(row["detectable"]) if row is not None and row["detectable"] else "–" for row in power]
    return "\n".join([*lines, f"| smallest personal gain found with 80 % power | | {' | '.join(found)} |"])


def _row(ladder: Mapping[str, Any], adds: str, step: str) -> Mapping[str, Any] | None:
    return next((row for row in ladder["comparisons"] if (row["adds"], row["step"]) == (adds, step)), None)


def _gain(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    p = row.get("p_holm", row["p"])
    told = f"{short(row['value'], signed=True)} [{short(row['low'], signed=True)}, {short(row['high'], signed=True)}] p {_p(p)}"
    return f"**{told}**" if row["verdict"] == "worth it" else told


def whose_lines() -> str:
    """Whose is it? One line for each step of each task that was asked, and of the tasks of `mta demo`."""
    asked = [(one.name, row) for one in TASKS for row in one.ladder.get("whose", ())]
    for course in _demo()["courses"]:
        asked += [(f"{course['task']} of `mta demo`", row) for row in course["ladder"]["whose"]]
    return "\n".join(f"- {name}, {tight(whose_text(row))}" for name, row in asked)


@functools.cache
def _demo() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    return found


def demo_block() -> str:
    """What `mta demo` prints at its end, as a block."""
    return _block(render_demo(_demo()))


def example_block() -> str:
    """The demo's question with the answers of three users' models, as a block."""
    return _block(out.group(*render_examples(_demo()["courses"][0]["examples"], is_labels=False)))


def _block(shown: RenderableType) -> str:
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(shown)
    lines = [line.rstrip() for line in console.file.getvalue().strip().splitlines()]  # type: ignore[attr-defined]
    return "\n".join(["```", *lines, "```"])


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else short(value) if value < 0.9995 else "1"


def short(value: float, *, signed: bool = False) -> str:
    """Three decimals as the pages write them: −.030, without the zero before the point."""
    text = f"{round(value, 3) + 0.0:{'+' if signed else ''}.3f}"
    return tight(text)


def tight(text: str) -> str:
    """The text with the pages' form of numbers."""
    return re.sub(r"-(?=[.\d])", "−", re.sub(r"(?<![\d.])0\.(\d)", r".\1", text))


def fill(page: str, parts: Sequence[str]) -> str:
    """The page with its marked places filled, in order. Raises ValueError where there are more or fewer."""
    found = re.split(f"({re.escape(BEGIN)}).*?({re.escape(END)})", page, flags=re.DOTALL)
    if len(found) != 3 * len(parts) + 1:
        raise ValueError(f"{len(parts)} tables for {len(found) // 3} marked places")
    told = [found[0]]
    for place, part in enumerate(parts):
        told += [f"{BEGIN}\n{part}\n{END}", found[3 * place + 3]]
    return "".join(told)


def results_page() -> str:
    """results/README.md with its tables."""
    return fill((RESULTS / "README.md").read_text(encoding="utf-8"), [steps_table(), gains_table(), whose_lines()])


def readme() -> str:
    """README.md with the demo's answers and the table of its Figures."""
    return fill(README.read_text(encoding="utf-8"), [example_block(), steps_table()])


def tour() -> str:
    """tour.md with the end of the demo; its commands are run by docs/tour.py."""
    return fill((FOLDER / "tour.md").read_text(encoding="utf-8"), [demo_block()])
