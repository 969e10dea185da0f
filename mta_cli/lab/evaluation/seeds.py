"""Compares the methods of finished evaluations with another reference, and pools evaluations that differ only in seed.

The seed determines folds, anchors and initial weights; the users stay the same. In a pool, a user's answers under all
seeds count together. Intervals are over users; they do not include the variance between seeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command, Flag, UsageError
from mta_cli.lab.evaluation.evaluation_file import COSTS, read_evaluation
from mta_cli.lab.evaluation.finished_evaluation import FinishedEvaluation, load_finished_evaluation
from mta_cli.lab.evaluation.result_document import comparison_part
from mta_cli.lab.report.results import DESIGN_KEYS, group_seeds, method_cost, used_settings
from mta_cli.text.formatting import join_words

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from store.registry import Registry


OF_ONE_SEED = ("seed", "evaluation", "settings", "given", "calibration")
"""The keys of a document that are specific to one seed."""
EvaluationRef = int | str
"""The number of an evaluation in the store, or the path of a file that `export_evaluation` wrote."""


def load_evaluations(places: Sequence[EvaluationRef], reg: Registry | None) -> list[FinishedEvaluation]:
    """The evaluations at these places, without duplicates.

    `reg` is the store in which numbers are looked up; it may be None if `needs_store` is false. Raises the errors of
    `load_finished_evaluation` and `read_evaluation`.
    """
    found = []
    for place in dict.fromkeys(map(_parse_ref, places)):
        if isinstance(place, int):
            assert reg is not None
            found.append(load_finished_evaluation(reg, place))
        else:
            # `expanduser` of os leaves `~name` of an unknown user unchanged
            found.append(read_evaluation(Path(os.path.expanduser(place))))
    return found


def needs_store(places: Sequence[EvaluationRef]) -> bool:
    """Whether one of the places is an evaluation of the store and not a file."""
    return any(isinstance(_parse_ref(place), int) for place in places)


def _parse_ref(place: EvaluationRef) -> EvaluationRef:
    return int(place) if str(place).isascii() and str(place).isdigit() else str(place)


def evaluation_document(evaluations: Sequence[FinishedEvaluation], reference: str | None = None) -> dict[str, Any]:
    """The document of one evaluation, or of several seeds of one design. All methods are compared with `reference`.

    Without a reference, the first evaluation's is used. Raises UsageError for evaluations of several designs or of
    different users, and for a reference that is not among the methods.
    """
    return _document(evaluations[0], reference) if len(evaluations) == 1 else pool_seeds(evaluations, reference)


def report_documents(
    evaluations: Sequence[FinishedEvaluation],
    reference: str | None = None,
    *,
    on_unpooled: Callable[[str], None] = lambda reason: None,
) -> list[dict[str, Any]]:
    """The documents of evaluations, then one for each design with several seeds of the same users.

    All methods are compared with `reference`, or with each evaluation's own. `on_unpooled` is called with
    the reason if seeds of one design cannot be pooled. Raises the errors of `evaluation_document`.
    """
    found = {one.id: one for one in evaluations}
    documents = [_document(one, reference) for one in found.values()]
    for group in group_seeds(documents):
        if len(group) > 1:
            try:
                documents.append(pool_seeds([found[document["evaluation"]] for document in group], reference))
            except UsageError as error:
                on_unpooled(str(error))
    return documents


def _document(one: FinishedEvaluation, reference: str | None) -> dict[str, Any]:
    return one.result if one.in_store and reference is None else pool_seeds([one], reference)


def pool_seeds(evaluations: Sequence[FinishedEvaluation], reference: str | None = None) -> dict[str, Any]:
    """The document of `evaluations`: {task, …, seeds, evaluations, reference, methods, differences, power, costs}.

    Only methods that all evaluations have are kept; costs are means over the evaluations. Raises UsageError in
    the same cases as `evaluation_document`.
    """
    _require_one_design(evaluations)
    results = [one.result for one in evaluations]
    first = results[0]
    methods = [name for name in first["methods"] if all(name in result["methods"] for result in results)]
    chosen = _find_reference(reference or first["reference"], methods)
    user_sums = {name: _pool_user_sums(evaluations, name) for name in methods}
    if len({result["data"] for result in results if "data" in result}) > 1:
        raise UsageError(
            "histories or consent changed between these evaluations, so they cannot be pooled",
            hint=(Command("eval list"), " lists all evaluations"),
        )
    own = user_sums[chosen]
    queries = round(own.sums[:, 0].sum() / len(results))  # of one seed
    made = {**first, "users": len(own.users), "queries": queries, **comparison_part(user_sums, chosen, first["seed"])}
    if made["ladder"] is not None:
        made["ladder"]["questions"] = queries
    if len(evaluations) == 1:
        return made
    return {
        **{key: value for key, value in made.items() if key not in OF_ONE_SEED},
        "seeds": [result["seed"] for result in results],
        "evaluations": [one.id for one in evaluations],
        "costs": {name: {what: _mean(results, name, what) for what in COSTS} for name in methods},
    }


def _find_reference(name: str, methods: Sequence[str]) -> str:
    """The method among `methods` that `name` means; `mta+neighbours` means `mta`. Raises UsageError if there is
    none.
    """
    from mta_cli.lab.methods.catalog import find_method

    if name in methods:
        return name
    with suppress(UsageError):  # a file may have a method that no longer exists
        if (known := find_method(name).name) in methods:
            return known
    raise UsageError(f"{name} is not among the methods", hint=f"choose one of {', '.join(methods)}")


def _pool_user_sums(evaluations: Sequence[FinishedEvaluation], method: str) -> UserSums:
    from mta_cli.engine.evaluation.user_sums import add_user_sums

    all_here = all(one.in_store for one in evaluations)
    user_sums = [one.user_sums(method) if all_here else one.portable_sums(method) for one in evaluations]
    try:
        return add_user_sums(user_sums)
    except ValueError as error:
        names = join_words(one.name for one in evaluations)
        raise UsageError(
            f"{names} cannot be pooled: {error}", hint=(Command("eval list"), " lists all evaluations")
        ) from error


def _require_one_design(evaluations: Sequence[FinishedEvaluation]) -> None:
    first = evaluations[0]
    for one in evaluations:
        if "settings" not in one.result:
            raise UsageError(
                f"{one.name} measured stored models, so it can neither be pooled nor compared with another reference",
                hint=("name only this evaluation, and leave out ", Flag("reference")),
            )
        for key in DESIGN_KEYS:
            if key != "reference" and one.result.get(key, "") != first.result.get(key, ""):
                here, there = first.result.get(key, "not set"), one.result.get(key, "not set")
                raise UsageError(
                    "only the seed may differ between pooled evaluations, but "
                    f"{key} is {here} in {first.name} and {there} in {one.name}",
                    hint=("name evaluations with the same options; ", Command("eval list"), " lists all"),
                )
    for name in first.result["methods"]:
        results = [one.result for one in evaluations if name in one.result["methods"]]
        settings = [own for result in results for own in used_settings(result, name)]
        if len({own.get("version", 1) for own in settings}) > 1:
            raise UsageError(
                f"These evaluations cannot be pooled: different versions of mta computed {name} differently.",
                hint="run the older evaluation again",
            )
        given = {key for result in results for key in result.get("given", {}).get(name, {})}
        for key in sorted(given):  # other settings may be tuned by seed
            values = [own.get(key, "not set") for own in settings]
            if any(value != values[0] for value in values):
                told = " and ".join(map(str, dict.fromkeys(values)))
                raise UsageError(
                    f"only the seed may differ between pooled evaluations, but the setting {name}.{key} is {told}",
                    hint=("name evaluations with the same settings; ", Command("eval list"), " lists all"),
                )
    if len({one.result["seed"] for one in evaluations}) < len(evaluations):
        names = join_words(one.name for one in evaluations)
        raise UsageError(
            f"{names} have a seed in common, so they cannot be pooled",
            hint=(Command("eval list"), " lists all evaluations"),
        )


def _mean(results: Sequence[dict[str, Any]], method: str, what: str) -> float | None:
    values = [value for result in results if (value := method_cost(result, method, what)) is not None]
    return sum(values) / len(values) if values else None
