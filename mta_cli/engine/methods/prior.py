"""A person's label prior: how often they give each label, against how often people do. No model and no gradient."""

from collections.abc import Sequence

from mta_cli.engine.labels import habit
from mta_cli.engine.methods.shape import Bench, Person, Settings

PRIOR = {"prior_strength": 8.0, "prior_weight": 0.25}  # beside parts that have learnt from the same shots
NO_PRIOR = {"prior_strength": 8.0, "prior_weight": 0.0}
COUNT_BYTES = 2  # a label's number and its count, of each label that the person gave


def habits(bench: Bench, people: Sequence[Person], settings: Settings) -> list[tuple[tuple[float, ...], int]]:
    """What is added to each label's log-likelihood for each person (nats), and the bytes that it is kept in.

    `settings`: `prior_strength`, how many shots the population's rates count as, and `prior_weight`, the share of the
    prior that is added: prompts that show a person's items tell the model a part of it already. Nothing where the
    weight is 0 or the task has no labels.
    """
    weight, strength = float(settings["prior_weight"]), float(settings["prior_strength"])
    if weight == 0.0 or not bench.task.labels:
        return [((), 0) for _ in people]
    found = []
    for person in people:
        prior = habit(person.outputs, bench.task.labels, bench.rates, strength)
        given = len({output.strip() for output in person.outputs}.intersection(bench.task.labels))
        found.append((tuple(weight * value for value in prior), COUNT_BYTES * given))
    return found
