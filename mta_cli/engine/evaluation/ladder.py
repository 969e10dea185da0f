"""The ladder: the steps from no model to a personal one, each compared with the one below it, all else equal.

A step adds one thing. The verdict goes by the log-likelihood of the users' own answers. Knows no store and no screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from mta_cli.engine.evaluation.statistics import holm_adjusted, minimum_detectable_effect, paired_difference
from mta_cli.engine.evaluation.user_sums import UserSums
from mta_cli.engine.evaluation.whose import identify, lead_over_others

Weights = Literal["none", "base", "common", "fused", "adapted"]
Verdict = Literal["worth it", "not shown", "worse"]

LOGLIK = "gold_loglik"
SIGNIFICANCE_LEVEL = 0.05
MIN_UNITS = {"users": 8, "questions": 10}
"""Fewer show nothing: of 8 users, the smallest p of a permutation test is 2/2⁸, which Holm's correction over six steps
leaves just below .05."""


@dataclass(frozen=True)
class Step:
    """One step: what answers at it, and what that `adds` to the step below, in the words of a verdict.

    `weights` are those that answer: no model, the base, the common model (base and task adapter), or the user's own
    fusion or stack above it. `examples`: own items in the prompt. `memory`: label memory. `is_control`: the weights are
    another user's, the examples and the memory one's own.
    """

    name: str
    adds: str
    weights: Weights
    examples: bool = True
    memory: bool = True
    is_control: bool = False

    @property
    def is_personal(self) -> bool:
        """Whether a user's own weights answer."""
        return self.weights in ("fused", "adapted") and not self.is_control


NO_MODEL, BASE, COMMON, FUSED, ADAPTED, ANOTHERS = "no-model", "base", "common", "fused", "adapted", "another's"
BASE_EXAMPLES, COMMON_MEMORY = "base+examples", "common+memory"
OTHERS = "others"
"""Not a step; the name for the mean of other users' models on the same answers."""
LADDER: tuple[Step, ...] = (
    Step(NO_MODEL, "no model", "none"),
    Step(BASE, "the base model", "base", examples=False, memory=False),
    Step(BASE_EXAMPLES, "own examples in the prompt", "base", memory=False),
    Step(COMMON, "the common model", "common", memory=False),
    Step(COMMON_MEMORY, "label memory", "common"),
    Step(FUSED, "the user's anchors", "fused"),
    Step(ADAPTED, "the user's own stack", "adapted"),
    Step(ANOTHERS, "another user's model", "adapted", is_control=True),
)
STEP_NAMES = tuple(step.name for step in LADDER)
PERSONAL_STEPS = tuple(step.name for step in LADDER if step.is_personal)
PERSONAL_MODEL = "a personal model on top"


def ladder_steps(*, memory: bool, examples: bool = True, weights: Sequence[str] = ("fused", "adapted")) -> list[Step]:
    """The steps that a task has, from the bottom.

    Without label `memory` there is no step that adds it, and without `examples` in prompts none that adds those;
    nothing above has them. `weights` says which personal weights exist; the control has the most personal of them.
    """
    found = []
    for step in LADDER:
        if step.is_control:
            step = replace(step, weights=weights[-1] if weights else "common")  # type: ignore[arg-type]
        left_out = (step.name == COMMON_MEMORY and not memory) or (step.name == BASE_EXAMPLES and not examples)
        if left_out or (step.weights in ("fused", "adapted") and step.weights not in weights):
            continue
        found.append(replace(step, memory=step.memory and memory, examples=step.examples and examples))
    return [step for step in found if weights or not step.is_control]


@dataclass(frozen=True)
class ComparedPair:
    """A step, the one it is compared with, and what it has that the other lacks."""

    step: str
    below: str
    adds: str


def compared_pairs(measured: Iterable[str]) -> list[ComparedPair]:
    """The pairs that a ladder compares, among the steps that were `measured`: each with the nearest one below it.

    With both a fusion and a stack, the stack is also compared with the common model: what a personal model adds as a
    whole. No model is not a step below the base: it is compared with the whole, see `judge_ladder`.
    """
    names = set(measured)
    steps = [step for step in LADDER if step.name in names and not step.is_control and step.name != NO_MODEL]
    pairs = [ComparedPair(one.name, below.name, one.adds) for below, one in pairwise(steps)]
    shared = [step.name for step in steps if not step.is_personal]
    personal = [step.name for step in steps if step.is_personal]
    if not (shared and personal):
        return pairs
    if len(personal) == 1:  # it is the personal model
        return [replace(one, adds=PERSONAL_MODEL) if one.step == personal[0] else one for one in pairs]
    return [*pairs, ComparedPair(personal[-1], shared[-1], PERSONAL_MODEL)]


def judge_ladder(sums: Mapping[str, UserSums], main_metric: str, *, unit: str, seed: int) -> dict[str, Any]:
    """The comparisons of a ladder and what each step is worth, from the sums of its steps.

    `unit` is what sums are of and intervals are over: `users`, or the `questions` of few users. Returns {unit, units,
    questions, metric, steps: [{step, gold_loglik, metric}], comparisons: [{step, below, adds, value, low, high, p,
    p_holm, detectable, metric, verdict, why}], control, others, no_model}; differences are in nats, `metric` in
    `main_metric`.

    A step is worth it where its 95 % interval is above 0 and its permutation p, after Holm's correction over the
    steps, is below .05. For a personal step, the highest one must also be ahead of its rivals: `another's` and, where
    it was asked whose answers are, the mean of the others. A claim of several parts, all of which must hold, needs no
    further correction. `why` names the rival that is not beaten. A step without likelihoods, such as no model for
    texts, is not compared.
    """
    weighed = {name: own for name, own in sums.items() if own.has_loglik}
    first = next(iter(sums.values()))
    differ = {(a, b): _difference(weighed[a], weighed[b], main_metric, seed) for a, b in _pairs_to_compute(weighed)}
    pairs = compared_pairs(weighed)
    adjusted = holm_adjusted([differ[one.step, one.below]["p"] for one in pairs])
    control, others = _against(weighed, differ, ANOTHERS), _against_others(weighed, seed)
    rivals = [row for row in (control, others) if row is not None]
    enough = len(first.users) >= MIN_UNITS[unit]
    comparisons = []
    for one, p_holm in zip(pairs, adjusted, strict=True):
        row = {"step": one.step, "below": one.below, "adds": one.adds, **differ[one.step, one.below], "p_holm": p_holm}
        comparisons.append({**row, **_verdict(row, rivals if one.step in PERSONAL_STEPS else [], enough)})
    return {
        "unit": unit,
        "units": len(first.users),
        "questions": round(float(first.sums[:, 0].sum())),
        "metric": main_metric,
        "steps": [_step_values(name, sums[name], main_metric) for name in STEP_NAMES if name in sums],
        "comparisons": comparisons,
        "control": control,
        "others": others,
        "no_model": _against(weighed, differ, NO_MODEL),
    }


def _top(measured: Iterable[str]) -> str | None:
    """The highest step that is no control."""
    names = set(measured)
    return next((s.name for s in reversed(LADDER) if s.name in names and not s.is_control and s.name != NO_MODEL), None)


def _pairs_to_compute(measured: Mapping[str, UserSums]) -> list[tuple[str, str]]:
    top = _top(measured)
    controls = [(top, name) for name in (ANOTHERS, NO_MODEL) if top is not None and name in measured]
    return [*((one.step, one.below) for one in compared_pairs(measured)), *controls]


def _against(
    measured: Mapping[str, UserSums], differ: Mapping[tuple[str, str], Mapping[str, Any]], other: str
) -> dict[str, Any] | None:
    """The highest step less `other`; None where either was not measured or, for `another's`, no personal step was."""
    top = _top(measured)
    if top is None or other not in measured or (other == ANOTHERS and top not in PERSONAL_STEPS):
        return None
    row = {"step": top, "below": other, **differ[top, other]}
    return {**row, "verdict": _plain_verdict(row, row["p"])}


def _against_others(measured: Mapping[str, UserSums], seed: int) -> dict[str, Any] | None:
    """The highest step less the mean of other users' models on the same answers; None where these were not asked."""
    top = _top(measured)
    if top is None or top not in PERSONAL_STEPS or (asked := measured[top].whose) is None:
        return None
    lead = lead_over_others(asked, seed=seed)
    return {"step": top, "below": OTHERS, **lead, "verdict": _plain_verdict(lead, lead["p"])}


def _difference(a: UserSums, b: UserSums, main_metric: str, seed: int) -> dict[str, Any]:
    """a − b of the likelihood, with its interval, p and the difference that could be found; and of the metric."""
    found = paired_difference(a, b, seed=seed)
    least = minimum_detectable_effect(a, b, LOGLIK)
    return {
        **found[LOGLIK],
        "detectable": least if math.isfinite(least) else None,
        "metric": None if main_metric == LOGLIK else found.get(main_metric, {}).get("value"),
    }


def _plain_verdict(row: Mapping[str, Any], p: float) -> Verdict:
    if row["low"] <= 0 <= row["high"] or p >= SIGNIFICANCE_LEVEL:
        return "not shown"
    return "worth it" if row["value"] > 0 else "worse"


def _verdict(row: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]], enough: bool) -> dict[str, str]:
    """The verdict on a step, and `why` where something else than its own difference decided."""
    if not enough:
        return {"verdict": "not shown", "why": "too few"}
    found = _plain_verdict(row, row["p_holm"])
    unbeaten = [rival["below"] for rival in rivals if rival["verdict"] != "worth it"]
    if found == "worth it" and unbeaten:
        return {"verdict": "not shown", "why": unbeaten[0]}
    return {"verdict": found, "why": ""}


def _step_values(name: str, own: UserSums, main_metric: str) -> dict[str, Any]:
    values = own.metric_values()
    metric = None if main_metric == LOGLIK else values.get(main_metric)
    return {"step": name, LOGLIK: values.get(LOGLIK), "metric": metric}


def whose_entries(sums: Mapping[str, UserSums], seed: int) -> list[dict[str, Any]]:
    """Whose is it? For each step, or other method, that was asked, in their order: see `whose.identify`.

    No model, which for texts is naive Bayes, comes last and under this name.
    """
    order = sorted(sums, key=lambda step: step == NO_MODEL)
    named = {step: "naive-bayes" if step == NO_MODEL else step for step in order}
    known = [(named[step], own) for step in order if (own := sums[step].whose) is not None]
    return [{"step": step, **identify(own, seed=seed)} for step, own in known]
