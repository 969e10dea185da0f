"""The weights of a bank's model and of its memory in their sum, fitted on the bank's users once the bank is built.

Some items are predicted twice, as a new user's question is: by the base with the task adapter, in a prompt with other
items of the same user, and by the label memory, without that user's own items in the bank and without later ones. Tasks
differ in which of the two predicts better.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mta_cli.events import Event, JobProgress, JobStarted, Note
from mta_cli.pipeline.memory.knn import MIXTURE_WEIGHTS_KEY, labelled_items, load_neighbours
from store.records import Bank, Item

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mta_cli.engine.memory.knn import EmbedFunction, NeighbourIndex, NeighbourKernel, Vectors
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.bank.build import Contributor
    from mta_cli.pipeline.requests import BankRequest
    from store.registry import Registry

MAX_GUESSED_ITEMS = 256  # items that are predicted, evenly over all users
ITEMS_PER_STEP = 32  # items between two progress events


@dataclass(frozen=True)
class LeaveOneOutCase:
    """An item to predict, and other items of its user that are known, as for a new user."""

    item: Item
    shots: tuple[Item, ...]


def fit_memory_weights(
    reg: Registry, bank: Bank, request: BankRequest, pool: Sequence[Contributor], base: LoadedBase | None = None
) -> Iterator[Event]:
    """Fit and store the mixture weights of the bank that `request` and `pool` make.

    Does nothing where they are stored or the bank has no neighbours. `base`, without any adapter, is loaded when
    it is not given. An interrupted fit starts again.
    """
    import numpy as np

    bank, task = reg.banks.by_id(bank.id), request.task
    known = (
        load_neighbours(reg, bank, task) if bank.kernel is not None and MIXTURE_WEIGHTS_KEY not in bank.config else None
    )
    if known is None:
        return
    from mta_cli.engine.lora.adapter import merge_into_base
    from mta_cli.engine.memory.knn import NeighbourKernel, fit_mixture_weights
    from mta_cli.pipeline.models.load import load_on_device
    from mta_cli.pipeline.user_weights import load_weights

    place = {one.item_id: n for n, one in enumerate(labelled_items(reg, bank, task))}
    cases = sample_cases([item for each in pool for item in each.items if item.id in place], bank.seed)
    base = base if base is not None else load_on_device(request.base, request.machine, reg=reg)
    with merge_into_base(base, load_weights(reg, bank.task_adapter, base.fingerprint) if bank.task_adapter else None):
        model = yield from _model_label_scores(reg, base, task, cases, request.prompt.history_items)
    places = np.array([place[one.item.id] for one in cases])
    memory, rates = memory_scores(known, NeighbourKernel(**(bank.kernel or {})), task, cases, places)
    weights = fit_mixture_weights(np.array(model), memory, rates, known.labels[places], known.item_users[places])
    reg.banks.set_bank_config(bank.id, {**reg.banks.by_id(bank.id).config, MIXTURE_WEIGHTS_KEY: asdict(weights)})
    yield Note(
        f"Answers count the model {weights.model:.2f} times and label memory {weights.memory:.2f} times, "
        f"judged by {len(cases)} items of the bank."
    )


def memory_scores(
    known: NeighbourIndex,
    kernel: NeighbourKernel,
    task: Task,
    cases: Sequence[LeaveOneOutCase],
    places: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The memory's scores of each case beside a model, and the log-rates of the labels (both [cases, labels], nats).

    `places` are the cases' numbers among the items of `known`.
    """
    import numpy as np

    from mta_cli.engine.memory.knn import MixtureWeights, NeighbourLabelPrior

    memory_alone, rates_alone = MixtureWeights(1.0, memory=1.0), MixtureWeights(1.0, memory=0.0, rates=1.0)
    found: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for one, place in zip(cases, places.tolist(), strict=True):
        others, answers = known.without_user(one.item.user_id), tuple(shot.output for shot in one.shots)
        prior = NeighbourLabelPrior(others, kernel, _constant(known.vectors[[place]]), task.labels, answers)
        asked = one.item.input, one.item.time
        found.append((prior.beside_model(memory_alone)(*asked), prior.beside_model(rates_alone)(*asked)))
    memory, rates = zip(*found, strict=True)
    return np.array(memory), np.array(rates)


def _constant(vector: Vectors) -> EmbedFunction:
    """An embedder of one text whose embedding is known."""
    return lambda texts: vector


def sample_cases(items: Sequence[Item], seed: int) -> list[LeaveOneOutCase]:
    """At most about `MAX_GUESSED_ITEMS` cases, as many for each user, each with `FIT_SHOTS` other items of its user."""
    import numpy as np

    from mta_cli.engine.memory.knn import FIT_SHOTS

    rng, items_by_user = np.random.default_rng(seed), dict[int, list[Item]]()
    for item in items:
        items_by_user.setdefault(item.user_id, []).append(item)
    users_items = [list(items_by_user.values())[n] for n in rng.permutation(len(items_by_user))[:MAX_GUESSED_ITEMS]]
    cases = []
    for items_of_user in users_items:
        for n in rng.permutation(len(items_of_user))[: max(1, MAX_GUESSED_ITEMS // len(users_items))]:
            others = [item for item in items_of_user if item is not items_of_user[n]]
            cases.append(
                LeaveOneOutCase(items_of_user[n], tuple(others[i] for i in rng.permutation(len(others))[:FIT_SHOTS]))
            )
    return cases


def _model_label_scores(
    reg: Registry, base: LoadedBase, task: Task, cases: Sequence[LeaveOneOutCase], history_items: int
) -> Generator[Event, None, list[list[float]]]:
    """`return`s the model's log-likelihood of each label of each case [cases, labels], nats."""
    from mta_cli.engine.scoring.log_likelihood import NO_LORAS, completion_log_likelihoods
    from mta_cli.engine.scoring.prefix_tree import PromptTree
    from mta_cli.pipeline.data.examples import PromptRowBuilder

    shown: dict[int, list[int]] = {}
    examples, scores = PromptRowBuilder(reg, base, task, history_items, shown), list[list[float]]()
    labels = tuple(tuple(examples.prompter.answer_ids(label)) for label in task.labels)
    yield JobStarted("weighing of neighbours", len(cases), "items")
    for start in range(0, len(cases), ITEMS_PER_STEP):
        began, trees = time.monotonic(), []
        for one in cases[start : start + ITEMS_PER_STEP]:
            shown[one.item.user_id] = [shot.id for shot in one.shots]
            history = examples.retrieve_history(one.item.user_id, one.item.input, history_items)
            trees.append(PromptTree(tuple(examples.prompter.prompt_ids(one.item.input, history)), labels))
        scores += completion_log_likelihoods(base, trees, [NO_LORAS], [(n, 0) for n in range(len(trees))])
        yield JobProgress(task.name, len(scores), seconds=time.monotonic() - began)
    return scores
