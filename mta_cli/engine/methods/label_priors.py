"""Label priors: how often a person gives each label, and what others answered to the like of a question.

No language model and no gradient. A habit is a share of what the person's own answers say; neighbours say more, and
their kernel (see `engine.neighbours`) says how much the habit counts beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mta_cli.engine.memory.label_prior import FrequencyLabelPrior, LabelPrior, user_label_prior
from mta_cli.engine.methods.method import MethodContext, Settings, UserShots
from mta_cli.engine.scoring.label_examples import LabelExample, TrainingExample

if TYPE_CHECKING:
    from mta_cli.engine.memory.knn import NeighbourLabelPrior

PRIOR_SETTINGS = {"prior_strength": 8.0, "prior_weight": 0.25}  # beside parts that have learnt from the same shots
NO_PRIOR_SETTINGS = {"prior_strength": 8.0, "prior_weight": 0.0}
NEIGHBOUR_SETTINGS = {
    **PRIOR_SETTINGS,
    "neighbour_weight": 1.7,
}  # the habit's own weight counts where the bank keeps no neighbours
COUNT_BYTES = 2  # a label's number and its count, of each label that the person gave


def label_priors(
    bench: MethodContext, people: Sequence[UserShots], settings: Settings
) -> list[tuple[LabelPrior | None, int]]:
    """Each person's label prior, if any, and the bytes that it is kept in.

    `settings`: `neighbour_weight`, how many times what the bank found neighbours and habit count beside the model
    (see `Kernel.beside_model`); without neighbours, or where it is 0, `prior_weight`, the share of the habit that is
    added alone, in which `prior_strength` is how many answers the population's rates count as. Nothing where the
    weights are 0 or the task has no labels.
    """
    near, share = float(settings.get("neighbour_weight", 0.0)), float(settings["prior_weight"])
    if near > 0.0 and bench.neighbour_index is not None:
        return [(neighbour_label_prior(bench, person, near), _label_count_bytes(bench, person)) for person in people]
    if share == 0.0 or not bench.task.labels:
        return [(None, 0) for _ in people]
    found: list[tuple[LabelPrior | None, int]] = []
    for person in people:
        values = user_label_prior(person.outputs, bench.task.labels, bench.rates, float(settings["prior_strength"]))
        found.append((FrequencyLabelPrior(tuple(share * value for value in values)), _label_count_bytes(bench, person)))
    return found


def neighbour_label_prior(bench: MethodContext, person: UserShots, weight: float | None = None) -> NeighbourLabelPrior:
    """What neighbours and the person's habit say, by themselves or `weight` times beside a model.

    ValueError on a bench without items.
    """
    from mta_cli.engine.memory.knn import PRIOR_STRENGTH, NeighbourLabelPrior

    if bench.neighbour_index is None:
        raise ValueError("there are no neighbours on this bench")
    known, kernel, embed = bench.neighbour_index
    own = user_label_prior(person.outputs, bench.task.labels, bench.rates, PRIOR_STRENGTH)
    found = NeighbourLabelPrior(known, kernel, embed, own)
    return found if weight is None else found.with_model_weight(weight)


def shot_examples(bench: MethodContext, person: UserShots, settings: Settings) -> tuple[TrainingExample, ...]:
    """A person's shots as evidence and stack take them: as choices, where neighbours count beside answers.

    Each counts beside what neighbours and the person's other shots say of it. An output that is no label counts as a
    text.
    """
    near, labels = float(settings.get("neighbour_weight", 0.0)), bench.task.labels
    if near == 0.0 or bench.neighbour_index is None:
        return person.rows
    found = list[TrainingExample](person.rows)
    for n, (text, output) in enumerate(zip(person.inputs, map(str.strip, person.outputs), strict=True)):
        if output in labels:
            others = replace(person, outputs=person.outputs[:n] + person.outputs[n + 1 :])
            prior = neighbour_label_prior(bench, others, near)
            found[n] = LabelExample.from_prior(person.rows[n], bench.label_tokens, labels.index(output), prior, text)
    return tuple(found)


def _label_count_bytes(bench: MethodContext, person: UserShots) -> int:
    return COUNT_BYTES * len({output.strip() for output in person.outputs}.intersection(bench.task.labels))
