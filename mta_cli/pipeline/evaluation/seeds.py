"""Finished evaluations read again: against another reference, and several that differ in their seed alone as one.

A seed draws folds, anchors and initial weights for the same people. Over several seeds a person is still one person,
with the answers of all: intervals are over people, and that the seeds are few is not in them. Answers nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import UsageFault
from mta_cli.pipeline.evaluation.exchange import COSTS, read
from mta_cli.pipeline.evaluation.finished import Measured, finished
from mta_cli.pipeline.evaluation.scoring import compared
from mta_cli.pipeline.report.results import DESIGN, by_seed, cost
from mta_cli.pipeline.report.wording import listed

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import Tally
    from store.registry import Registry


Place = int | str
"""The number of an evaluation in the store, or the path of a file that `files.export` wrote."""


def measured(places: Sequence[Place], reg: Registry | None) -> list[Measured]:
    """The evaluations that are kept there, each once. Raises as `finished` and `files.read`.

    `reg` is the store whose numbers are meant; None where `needs_store` says that none is.
    """
    found = []
    for place in dict.fromkeys(map(_place, places)):
        if isinstance(place, int):
            assert reg is not None
            found.append(finished(reg, place))
        else:
            found.append(read(Path(os.path.expanduser(place))))  # leaves the home of nobody as it stands
    return found


def needs_store(places: Sequence[Place]) -> bool:
    """Whether one of them is in the store; files stand for themselves."""
    return any(isinstance(_place(place), int) for place in places)


def _place(place: Place) -> Place:
    return int(place) if str(place).isascii() and str(place).isdigit() else str(place)


def shown(evaluations: Sequence[Measured], reference: str | None = None) -> dict[str, Any]:
    """The document of one evaluation, or of several seeds of one design, all methods being compared with `reference`.

    Without one, with that of the first evaluation. Raises UsageFault for evaluations of several designs or people, and
    for a reference that is not among the methods.
    """
    return _document(evaluations[0], reference) if len(evaluations) == 1 else together(evaluations, reference)


def reported(evaluations: Sequence[Measured], reference: str | None = None) -> list[dict[str, Any]]:
    """The documents of evaluations, and after them one for each design that has several seeds of the same people.

    All methods are compared with `reference`, or with that of each evaluation. Raises as `shown`.
    """
    found = {one.id: one for one in evaluations}
    documents = [_document(one, reference) for one in found.values()]
    for group in by_seed(documents):
        if len(group) > 1:
            with suppress(UsageFault):  # of other people: each seed stands for itself
                documents.append(together([found[document["evaluation"]] for document in group], reference))
    return documents


def _document(one: Measured, reference: str | None) -> dict[str, Any]:
    return one.result if one.kept and reference is None else together([one], reference)


def together(evaluations: Sequence[Measured], reference: str | None = None) -> dict[str, Any]:
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
    tallies = {name: _joined(evaluations, name) for name in methods}
    users, queries = _counted(tallies[chosen], len(results))
    made = {**first, "users": users, "queries": queries, **compared(tallies, chosen, first["seed"])}
    if len(evaluations) == 1:
        return made
    return {
        **{key: value for key, value in made.items() if key not in ("seed", "evaluation", "settings", "calibration")},
        "seeds": [result["seed"] for result in results],
        "evaluations": [one.id for one in evaluations],
        "costs": {name: {what: _mean(results, name, what) for what in COSTS} for name in methods},
    }


def _joined(evaluations: Sequence[Measured], method: str) -> Tally:
    from mta_cli.engine.evaluation.user_sums import joined

    all_here = all(one.kept for one in evaluations)
    tallies = [one.tally(method) if all_here else one.abroad(method) for one in evaluations]
    try:
        return joined(tallies)
    except ValueError as error:
        names = listed(one.name for one in evaluations)
        raise UsageFault(f"{names} cannot be read as one: {error}", hint="mta eval list") from error


def _counted(tally: Tally, times: int) -> tuple[int, int]:
    """How many people, and how many queries each time."""
    return len(tally.users), round(tally.sums[:, 0].sum() / times)


def _require_one_design(evaluations: Sequence[Measured]) -> None:
    first = evaluations[0]
    for one in evaluations:
        if "settings" not in one.result:
            raise UsageFault(f"{one.name} is one of stored models: it stands for itself")
        for key in DESIGN:
            if key != "reference" and one.result.get(key, "") != first.result.get(key, ""):
                told = f"{key}: {first.result.get(key)} in {first.id} and {one.result.get(key)} in {one.id}"
                raise UsageFault(f"these evaluations differ in more than the seed ({told})", hint="mta eval list")
    if len({one.result["seed"] for one in evaluations}) < len(evaluations):
        names = listed(one.name for one in evaluations)
        raise UsageFault(f"{names} have a seed in common", hint="mta eval list")


def _mean(results: Sequence[dict[str, Any]], method: str, what: str) -> float | None:
    values = [value for result in results if (value := cost(result, method, what)) is not None]
    return sum(values) / len(values) if values else None
