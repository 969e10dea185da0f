"""Fits the weights with which the scores of model and label memory are added, on the users of a finished bank.

Some items are predicted twice, as queries of a new user: by the base with a task adapter, in a prompt with other items
of the same user, and by the label memory, without the user's own items in the bank and without later items. Which of
the two predicts better depends on the task.

The bank's task adapter is trained on these answers, so its predictions would be better than for a new user. Therefore
each half of the users is predicted by a task adapter that is trained on the other half and then dropped. The bank's
ladder (`ladder.compute_label_ladder`) is measured on the same predictions, with weights fitted on the other half.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.labels import find_label
from mta_cli.events import Event, JobProgress, JobStarted, Note
from mta_cli.pipeline.bank.ladder import LADDER_KEY, compute_label_ladder, take_round_robin
from mta_cli.pipeline.bank.task_adapter import task_adapter_training
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.memory.knn import MIXTURE_WEIGHTS_KEY, labelled_items, load_neighbours
from mta_cli.pipeline.training.groups import TrainingGroup, pair_with_adapters, train_groups
from store.records import Adapter, Bank, Item, Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.knn import EmbedFunction, NeighbourIndex, NeighbourKernel, Vectors
    from mta_cli.engine.text.tasks import Task
    from mta_cli.engine.training.session import TrainingResult
    from mta_cli.pipeline.bank.contributors import Contributor
    from mta_cli.pipeline.requests import BankRequest
    from mta_cli.pipeline.training.groups import AdapterTraining
    from mta_cli.pipeline.workbench import Workbench
    from store.registry import Registry

MAX_GUESSED_ITEMS = 256  # the most items that are predicted, evenly distributed over users
# the most of these items that the base without adapters predicts too, for the ladder (5 % of a small build's time)
MAX_LADDER_CASES = 128
ITEMS_PER_STEP = 32  # items between two progress events
HELD_OUT_OPTION = "held_out_weights"  # the key of a bank option: whether halves of the users predict each other


@dataclass(frozen=True)
class LeaveOneOutCase:
    """An item to predict, and other known items of its user."""

    item: Item
    shots: tuple[Item, ...]


def fit_memory_weights(
    bench: Workbench[BankRequest], pool: Sequence[Contributor], run: Run | None = None
) -> Iterator[Event]:
    """Fit and store the bank's weights of model and memory, and its ladder.

    Does nothing if they are stored or the bank has no neighbours. There is no ladder for banks of evaluations and for
    task adapters that were trained on all users. No adapter may be merged into the base. An interrupted fit starts
    again; an interrupted training is resumed.
    """
    reg, request, bank, task = bench.reg, bench.spec, bench.bank, bench.task
    if bank.kernel is None or MIXTURE_WEIGHTS_KEY in bank.config:
        return
    if (known := load_neighbours(reg, bank, task)) is None:
        return
    if (known_fit := _find_weights_of_equivalent_bank(reg, bank, request)) is not None:
        _store_weights(reg, bank, known_fit)
        return
    import numpy as np

    from mta_cli.engine.evaluation.ladder import BASE, BASE_EXAMPLES, COMMON, COMMON_MEMORY
    from mta_cli.engine.lora.adapter import merge_into_base
    from mta_cli.engine.memory.knn import NeighbourKernel, fit_mixture_weights

    place = {one.item_id: n for n, one in enumerate(labelled_items(reg, bank, task))}
    cases = sample_leave_one_out_cases([item for each in pool for item in each.items if item.id in place], bank.seed)
    own_cases = [list(own) for _, own in groupby(cases, key=lambda one: one.item.user_id)]
    on_ladder = {one.item.id for one in take_round_robin(own_cases, MAX_LADDER_CASES)}
    halves = [pool[::2], pool[1::2]] if request.options.held_out_weights and bank.task_adapter else [pool]
    users = [{each.user.id for each in half} for half in halves]
    cases.sort(key=lambda one: next(n for n, half in enumerate(users) if one.item.user_id in half))
    asked = [[one for one in cases if one.item.user_id in half] for half in users]
    parts = {n: others for n, others in enumerate(reversed(halves)) if len(halves) == 2 and asked[n] and others}
    trained = (yield from _train_adapters_of_halves(bench, parts, run)) if parts else {}
    found: list[list[float]] = []
    for n in range(len(halves)):
        with merge_into_base(bench.base, trained.get(n, bench.task_adapter)):
            found += yield from _model_label_scores(bench, asked[n], bench.rows.history_items)
    places = np.array([place[one.item.id] for one in cases])
    memory = memory_label_scores(known, NeighbourKernel(**bank.kernel), task, cases, places)
    golds = np.array([find_label(one.item.output, task.labels) for one in cases])
    model, owners = np.array(found), known.item_users[places]
    weights = fit_mixture_weights(model, memory, golds, owners)
    fitted: dict[str, Any] = {MIXTURE_WEIGHTS_KEY: {"model": weights.model, "memory": weights.memory}}
    if len(parts) == 2 and not request.purpose:
        shares, first = np.empty((len(cases), 2)), np.arange(len(cases)) < len(asked[0])
        for half in (first, ~first):  # weights fitted on the other half, so that no case is in its own fit
            other = fit_mixture_weights(model[~half], memory[~half], golds[~half], owners[~half])
            shares[half] = other.model, other.memory
        rows = [n for n, one in enumerate(cases) if one.item.id in on_ladder]
        judged, scores = [cases[n] for n in rows], {}
        for step, shown in ((BASE, 0), (BASE_EXAMPLES, bench.rows.history_items)):
            if shown or step == BASE:
                scores[step] = np.array((yield from _model_label_scores(bench, judged, shown)))
        scores[COMMON] = model[rows]
        scores[COMMON_MEMORY] = (shares[:, :1] * model + shares[:, 1:] * memory)[rows]
        fitted[LADDER_KEY] = compute_label_ladder(task, judged, known, scores, bank.seed)
    _store_weights(reg, bank, fitted)
    yield Note(
        f"In an answer, the model's weight is {weights.model:.2f} and the label memory's {weights.memory:.2f}, "
        f"fitted to {len(cases)} items of the bank.",
        detail=True,
    )


def _store_weights(reg: Registry, bank: Bank, fitted: dict[str, Any]) -> None:
    reg.banks.set_bank_config(bank.id, {**reg.banks.by_id(bank.id).config, **fitted})


def _find_weights_of_equivalent_bank(reg: Registry, bank: Bank, request: BankRequest) -> dict[str, Any] | None:
    """The stored weights and ladder of a bank that differs from `bank` only in its anchors; None without one."""
    siblings = reg.banks.banks_on_task_adapter(bank.task_adapter, bank.embedder) if bank.task_adapter else []
    held_out = request.options.held_out_weights
    fitted = [one.config for one in siblings if one.config[HELD_OUT_OPTION] == held_out]
    kept = [{key: one[key] for key in (MIXTURE_WEIGHTS_KEY, LADDER_KEY) if key in one} for one in fitted]
    return max((one for one in kept if MIXTURE_WEIGHTS_KEY in one), key=len, default=None)


def _train_adapters_of_halves(
    bench: Workbench[BankRequest], parts: Mapping[int, Sequence[Contributor]], run: Run | None
) -> Generator[Event, None, dict[int, LoraWeights]]:
    """Train a task adapter on each part's users only. Returns the adapters by part; they are not stored.

    Part 0 is the second half of the users; its adapter predicts the first half.
    """
    trainings = {
        n: task_adapter_training(bench, part, run, f"task adapter of half {2 - n}") for n, part in parts.items()
    }
    kept: dict[int, LoraWeights] = {}
    groups = [
        TrainingGroup([training], partial(_collect_trained_weights, bench.reg, training, kept, n))
        for n, training in trainings.items()
    ]
    yield JobStarted("fit of the memory weights", sum(group.steps for group in groups))
    yield from train_groups(bench.reg, bench.base, groups, executor=bench.executor)
    return kept


def _collect_trained_weights(
    reg: Registry,
    training: AdapterTraining,
    kept: dict[int, LoraWeights],
    part: int,
    results: Sequence[Adapter | str],
    trained: TrainingResult,
) -> Iterator[Event]:
    ((_, adapter),) = pair_with_adapters([training], [training], results)
    reg.adapters.remove_if_unreferenced(adapter.digest)
    kept[part] = trained.weights[0]
    return iter(())


def memory_label_scores(
    known: NeighbourIndex,
    kernel: NeighbourKernel,
    task: Task,
    cases: Sequence[LeaveOneOutCase],
    places: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """The scores of the memory alone for each label of each case [cases, labels], nats.

    `places` are the cases' indices among the items of `known`.
    """
    import numpy as np

    from mta_cli.engine.memory.knn import MixtureWeights, NeighbourLabelPrior

    alone = MixtureWeights.from_parts(model=0.0, memory=1.0)
    found = []
    for one, place in zip(cases, places.tolist(), strict=True):
        others, answers = known.without_user(one.item.user_id), tuple(shot.output for shot in one.shots)
        prior = NeighbourLabelPrior(others, kernel, _constant_embedder(known.vectors[[place]]), task.labels, answers)
        found.append(prior.beside_model(alone)(one.item.input, one.item.time))
    return np.array(found)


def _constant_embedder(vector: Vectors) -> EmbedFunction:
    """An embedding function that returns `vector` for any texts."""
    return lambda texts: vector


def sample_leave_one_out_cases(items: Sequence[Item], seed: int) -> list[LeaveOneOutCase]:
    """At most `MAX_GUESSED_ITEMS` random cases, the same number for each user.

    A user with fewer items has fewer cases. A case has at most `FIT_SHOTS` other items of its user as shots.
    """
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
    bench: Workbench[BankRequest], cases: Sequence[LeaveOneOutCase], history_items: int
) -> Generator[Event, None, list[list[float]]]:
    """Returns the model's log-likelihood of each label of each case [cases, labels], in nats."""
    from mta_cli.engine.scoring.log_likelihood import NO_LORAS, completion_log_likelihoods
    from mta_cli.engine.scoring.prefix_tree import PromptTree

    base, task, shown = bench.base, bench.task, dict[int, list[int]]()
    examples, scores = PromptRowBuilder(bench.reg, base, task, history_items, shown), list[list[float]]()
    labels = tuple(tuple(examples.prompter.answer_ids(label)) for label in task.labels)
    yield JobStarted("fit of the memory weights", len(cases), "items")
    for start in range(0, len(cases), ITEMS_PER_STEP):
        began, trees = time.monotonic(), []
        for one in cases[start : start + ITEMS_PER_STEP]:
            shown[one.item.user_id] = [shot.id for shot in one.shots]
            history = examples.retrieve_history(one.item.user_id, one.item.input, history_items)
            trees.append(PromptTree(tuple(examples.prompter.prompt_ids(one.item.input, history)), labels))
        scores += completion_log_likelihoods(base, trees, [NO_LORAS], [(n, 0) for n in range(len(trees))])
        yield JobProgress(task.name, len(scores), seconds=time.monotonic() - began)
    return scores
