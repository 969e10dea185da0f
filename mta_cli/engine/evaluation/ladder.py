"""The ladder: the steps from no model to a personal model, each compared with the step below it, everything else equal.

Each step adds one thing. The verdict is based on the log-likelihood of the users' own answers.
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
"""A ladder over fewer users or questions gets no verdict, because no difference could be significant: with 8 users, the
smallest p of a permutation test is 2/2⁸, which after Holm's correction over six steps is just below .05.
"""


@dataclass(frozen=True)
class Step:
    """One step: the model that answers, and what it `adds` to the step below, in the words of a verdict.

    `weights`: no model, the base, the common model (base and task adapter), or the user's own fusion or stack above it.
    `examples`: the user's own items in the prompt. `memory`: label memory. `is_control`: the weights of another user,
    with the user's own examples and memory.
    """

    name: str
    adds: str
    weights: Weights
    examples: bool = True
    memory: bool = True
    is_control: bool = False

    @property
    def is_personal(self) -> bool:
        """Whether the user's own weights are used."""
        return self.weights in ("fused", "adapted") and not self.is_control


NO_MODEL, BASE, COMMON, FUSED, ADAPTED, ANOTHERS = "no-model", "base", "common", "fused", "adapted", "another's"
BASE_EXAMPLES, COMMON_MEMORY = "base+examples", "common+memory"
OTHERS = "others"
"""Not a step, but the name for the mean of other users' models on the same answers."""
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

    Without label `memory` or `examples`, the step that adds them is left out, and the steps above do not have them.
    `weights` says which personal weights exist; the control uses the most personal ones.
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
    """A step, the step `below` with which it is compared, and what the step `adds` to it."""

    step: str
    below: str
    adds: str


def compared_pairs(measured: Iterable[str]) -> list[ComparedPair]:
    """The pairs that a ladder compares: each of the `measured` steps and the nearest measured step below it, without
    `no-model` and the control.

    A last pair judges the personal model as a whole: the highest personal step and the highest step that is not
    personal. With a single personal step, its own pair does this. `judge_ladder` compares `no-model` and the control
    with the highest step.
    """
    names = set(measured)
    steps = [step for step in LADDER if step.name in names and not step.is_control and step.name != NO_MODEL]
    pairs = [ComparedPair(one.name, below.name, one.adds) for below, one in pairwise(steps)]
    shared = [step.name for step in steps if not step.is_personal]
    personal = [step.name for step in steps if step.is_personal]
    if not (shared and personal):
        return pairs
    if len(personal) == 1:  # this one is the personal model
        return [replace(one, adds=PERSONAL_MODEL) if one.step == personal[0] else one for one in pairs]
    return [*pairs, ComparedPair(personal[-1], shared[-1], PERSONAL_MODEL)]


def judge_ladder(sums: Mapping[str, UserSums], main_metric: str, *, unit: str, seed: int) -> dict[str, Any]:
    """The comparisons of a ladder and the verdict on each step, from each step's sums over its answers.

    `unit` names what resampling draws: `users`, or `questions` if there are few users. Returns {unit, units, questions,
    metric, steps: [{step, gold_loglik, metric}], comparisons: [{step, below, adds, value, low, high, p, p_holm,
    detectable, metric, verdict, why}], control, others, no_model}. `units` is the number of users or questions from
    which resampling draws. Differences are in nats; `metric` is the value or difference in `main_metric`.

    A step is worth it if its 95 % interval is above 0 and its permutation p, after Holm's correction over the steps, is
    below .05. For personal steps, the highest one must also be ahead of its rivals: `another's`, and the mean of other
    users' models if that was measured. All of these tests must hold, so they need no further correction. `why` is the
    rival that was not beaten, `too few`, or empty. A step without likelihoods, such as `no-model` for texts, is not
    compared.
    """
    # 1. every difference that the ladder or a rival needs, computed once
    weighed = {name: own for name, own in sums.items() if own.has_loglik}
    first = next(iter(sums.values()))
    differ = {(a, b): _difference(weighed[a], weighed[b], main_metric, seed) for a, b in _pairs_to_compute(weighed)}
    # 2. Holm's correction over the steps only; rivals are conditions, not further hypotheses
    pairs = compared_pairs(weighed)
    adjusted = holm_adjusted([differ[one.step, one.below]["p"] for one in pairs])
    # 3. the rivals that a personal step must beat
    control, others = _difference_to(weighed, differ, ANOTHERS), _difference_to_others(weighed, seed)
    rivals = [row for row in (control, others) if row is not None]
    enough = len(first.users) >= MIN_UNITS[unit]
    # 4. the verdicts
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
        "no_model": _difference_to(weighed, differ, NO_MODEL),
    }


def _top(measured: Iterable[str]) -> str | None:
    """The highest step that is neither a control nor `no-model`."""
    names = set(measured)
    return next((s.name for s in reversed(LADDER) if s.name in names and not s.is_control and s.name != NO_MODEL), None)


def _pairs_to_compute(measured: Mapping[str, UserSums]) -> list[tuple[str, str]]:
    top = _top(measured)
    controls = [(top, name) for name in (ANOTHERS, NO_MODEL) if top is not None and name in measured]
    return [*((one.step, one.below) for one in compared_pairs(measured)), *controls]


def _difference_to(
    measured: Mapping[str, UserSums], differ: Mapping[tuple[str, str], Mapping[str, Any]], other: str
) -> dict[str, Any] | None:
    """The difference of the highest step to `other`; None if either was not measured or, for `another's`, if there is
    no personal step.
    """
    top = _top(measured)
    if top is None or other not in measured or (other == ANOTHERS and top not in PERSONAL_STEPS):
        return None
    row = {"step": top, "below": other, **differ[top, other]}
    return {**row, "verdict": _plain_verdict(row, row["p"])}


def _difference_to_others(measured: Mapping[str, UserSums], seed: int) -> dict[str, Any] | None:
    """The difference of the highest step to the mean of other users' models on the same answers; None if these were not
    measured.
    """
    top = _top(measured)
    if top is None or top not in PERSONAL_STEPS or (asked := measured[top].whose) is None:
        return None
    lead = lead_over_others(asked, seed=seed)
    return {"step": top, "below": OTHERS, **lead, "verdict": _plain_verdict(lead, lead["p"])}


def _difference(a: UserSums, b: UserSums, main_metric: str, seed: int) -> dict[str, Any]:
    """The difference a − b of the likelihood, with its interval, p and detectable difference; and of the metric."""
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
    """The verdict on a step, and `why` if something other than its own difference decided."""
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
    """The results of `whose.identify` for each entry of `sums` with authorship sums, in the order of `sums`.

    `no-model` comes last, under the name `naive-bayes`, because only naive Bayes has authorship sums without a model.
    """
    order = sorted(sums, key=lambda step: step == NO_MODEL)
    named = {step: "naive-bayes" if step == NO_MODEL else step for step in order}
    known = [(named[step], own) for step in order if (own := sums[step].whose) is not None]
    return [{"step": step, **identify(own, seed=seed)} for step, own in known]
