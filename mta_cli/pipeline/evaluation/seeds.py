"""Finished evaluations read again: against another reference, and several that differ in their seed alone as one.

A seed draws folds, anchors and initial weights for the same people. Over several seeds a person is still one person,
with the answers of all: intervals are over people, and that the seeds are few is not in them. Answers nothing.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound, UsageFault
from mta_cli.pipeline.evaluation.outcome import compared, judge_again
from mta_cli.pipeline.reporting.results import DESIGN, by_seed, cost
from mta_cli.pipeline.reporting.wording import listed
from mta_cli.pipeline.tasks import find_task
from store.evaluations import Evaluation

if TYPE_CHECKING:
    from mta_cli.engine.tallies import Tally
    from store.registry import Registry

COSTS = ("bytes", "seconds", "seconds_per_query", "tokens_per_second")


def finished(reg: "Registry", number: int) -> Evaluation:
    """The evaluation of this number. Raises NotFound for one that is not there or has no result yet."""
    found = reg.evaluations.get(number)
    if found.status != "done" or "costs" not in found.result:
        raise NotFound(
            f"Evaluation {number} has no result yet.", hint="mta eval run with the options it was begun with"
        )
    return found


def shown(reg: "Registry", numbers: Sequence[int], reference: str | None = None) -> dict[str, Any]:
    """The document of one evaluation, or of several seeds of one design, all methods being compared with `reference`.

    Without one, with that of the first evaluation. Raises NotFound as `finished`, and UsageFault for evaluations of
    several designs or people, and for a reference that is not among the methods.
    """
    found = [finished(reg, number) for number in dict.fromkeys(numbers)]
    return found[0].result if len(found) == 1 and reference is None else together(reg, found, reference)


def reported(reg: "Registry", numbers: Sequence[int], reference: str | None = None) -> list[dict[str, Any]]:
    """The documents of evaluations, and after them one for each design that has several seeds of the same people.

    All methods are compared with `reference`, or with that of each evaluation. Raises as `shown`.
    """
    found = {number: finished(reg, number) for number in dict.fromkeys(numbers)}
    documents = [shown(reg, [number], reference) for number in found]
    for group in by_seed(documents):
        if len(group) > 1:
            with suppress(UsageFault):  # of other people: each seed stands for itself
                documents.append(together(reg, [found[document["evaluation"]] for document in group], reference))
    return documents


def together(reg: "Registry", evaluations: Sequence[Evaluation], reference: str | None = None) -> dict[str, Any]:
    """The document of `evaluations`: {task, …, seeds, evaluations, reference, methods, differences, power, costs}.

    Methods that not all of them have are left out; costs are means over them. Raises UsageFault as `shown`.
    """
    _require_one_design(evaluations)
    results = [one.result for one in evaluations]
    first = results[0]
    methods = [name for name in first["methods"] if all(name in result["methods"] for result in results)]
    chosen = reference or first["reference"]
    if chosen not in methods:
        raise UsageFault(f"{chosen} is not among the methods", hint=f"choose one of {', '.join(methods)}")
    tallies = {name: _joined(reg, evaluations, name) for name in methods}
    users, queries = _counted(tallies[chosen], len(results))
    made = {**first, "users": users, "queries": queries, **compared(tallies, chosen, first["seed"])}
    if len(evaluations) == 1:
        return made
    return {
        **{key: value for key, value in made.items() if key not in ("seed", "evaluation", "settings", "calibration")},
        "seeds": [result["seed"] for result in results], "evaluations": [one.id for one in evaluations],
        "costs": {name: {what: _mean(results, name, what) for what in COSTS} for name in methods},
    }  # fmt: skip


def _joined(reg: "Registry", evaluations: Sequence[Evaluation], method: str) -> "Tally":
    from mta_cli.engine.tallies import joined

    task = find_task(reg, evaluations[0].task)
    try:
        return joined([judge_again(reg, task, one, method).tally for one in evaluations])
    except ValueError as error:
        numbers = listed(one.id for one in evaluations)
        raise UsageFault(f"evaluations {numbers} cannot be read as one: {error}", hint="mta eval list") from error


def _counted(tally: "Tally", times: int) -> tuple[int, int]:
    """How many people, and how many queries each time."""
    return len(tally.users), round(tally.sums[:, 0].sum() / times)


def _require_one_design(evaluations: Sequence[Evaluation]) -> None:
    first, numbers = evaluations[0], [one.id for one in evaluations]
    for one in evaluations:
        if "settings" not in one.result:
            raise UsageFault(f"evaluation {one.id} is one of stored models: it stands for itself")
        for key in DESIGN:
            if key != "reference" and one.result.get(key) != first.result.get(key):
                told = f"{key}: {first.result.get(key)} in {first.id} and {one.result.get(key)} in {one.id}"
                raise UsageFault(f"these evaluations differ in more than the seed ({told})", hint="mta eval list")
    if len({one.result["seed"] for one in evaluations}) < len(evaluations):
        raise UsageFault(f"evaluations {listed(numbers)} have a seed in common", hint="mta eval list")


def _mean(results: Sequence[dict[str, Any]], method: str, what: str) -> float | None:
    values = [value for result in results if (value := cost(result, method, what)) is not None]
    return sum(values) / len(values) if values else None
