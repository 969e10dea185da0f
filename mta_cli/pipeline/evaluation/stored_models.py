"""Measures users' stored models on their held-out queries. Trains nothing.

Answers under base, pooled, fused and adapted weights. Intervals are percentile bootstraps over users (2,000 draws,
seeded), so a user with many queries does not count as many users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput
from mta_cli.events import Event, JobProgress, JobResult, JobStarted
from mta_cli.options import MachineOptions, MemoryOptions, PromptOptions
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.evaluation.answer_queries import ModelQuery, ScoredAnswer, answer_queries
from mta_cli.pipeline.evaluation.design import scored_queries, unscored_note
from mta_cli.pipeline.evaluation.result_document import MAIN_METRICS, paired_differences
from mta_cli.pipeline.memory.bank_memory import PERSONAL_MODES, BankMemory
from mta_cli.pipeline.user_weights import load_fusion_and_stack, load_task_adapter
from store.records import Query, User
from store.tables.predictions import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

MAX_ANSWERS_PER_BATCH = 128  # the most answers in one batch
MAX_LORA_PARAMS_PER_BATCH = 1 << 26  # LoRA parameters of the users in one batch; a single user may have more


@dataclass(frozen=True)
class ModeQuery:
    """A query in one mode, and the LoRAs that the mode adds to the base."""

    query: Query
    mode: str
    loras: tuple[LoraWeights, ...]
    prior: LabelPrior | None


def evaluate_users(
    reg: Registry,
    base_entry: ModelEntry,
    task: Task,
    users: Sequence[User],
    modes: Sequence[str],
    prompt: PromptOptions,
    machine: MachineOptions,
    memory: MemoryOptions,
) -> Iterator[Event]:
    """Answer every held-out query of `users` in each of `modes`, with label `memory`, and store the predictions.

    `JobResult.result` has keys of `mta eval run`, without its design and settings; the last mode is the
    reference. The time to make a model is not measured.
    """
    from mta_cli.engine.lora.adapter import AdapterMerger
    from mta_cli.engine.model.load import number_format
    from mta_cli.pipeline.models.load import load_on_device

    with reg.hold_users(f"evaluation of {task.name}", [user.id for user in users]):
        queries, unscored = scored_queries(reg, task, [user.id for user in users])
        asked = [user for user in users if queries[user.id]]
        yield from unscored_note(unscored)
        if not asked:
            raise BadInput(
                f"None of these users has held-out queries of task {task.name}.",
                hint="mta data import FILE --hold-out 5",
            )
        base = load_on_device(base_entry, machine, reg=reg)
        examples, folder = PromptRowBuilder(reg, base, task, prompt.history_items), AdapterMerger(base)
        yield JobStarted("evaluate", total=len(modes) * sum(len(queries[user.id]) for user in asked), unit="answers")
        answers: list[Prediction] = []
        for alike in ([mode for mode in modes if mode == "base"], [mode for mode in modes if mode != "base"]):
            if not alike:
                continue
            below = load_task_adapter(reg, task.name, base.fingerprint) if "base" not in alike else ()
            folder.set_adapter(below[0] if below else None)
            known = BankMemory.current(reg, task, base.fingerprint, device=machine.device)
            for portion in _query_batches(reg, base.fingerprint, task, asked, queries, alike, known, memory):
                for answer in _answer_batch(base, examples, portion):
                    answers.append(answer)
                    yield JobProgress(answer.method, len(answers), tokens=answer.tokens, seconds=answer.seconds)
        folder.set_adapter(None)
        answers.sort(key=lambda answer: modes.index(answer.method))
        result = {
            "task": task.name,
            "metric": MAIN_METRICS[task.metric],
            "users": len(asked),
            "queries": sum(len(queries[user.id]) for user in asked),
            "seed": machine.seed,
            "history_items": prompt.history_items,
            "base": base_entry.name,
            "dtype": number_format(machine.dtype, machine.device, machine.quantize),
            "reference": modes[-1],
            **_summarise_modes(task, modes, answers, machine.seed),
            "costs": {mode: _costs(reg, base.fingerprint, task.name, asked, mode, answers) for mode in modes},
        }
        yield JobResult({**result, "evaluation": _store(reg, base.fingerprint, task, prompt, result, answers)})


def _query_batches(
    reg: Registry,
    base: str,
    task: Task,
    users: Sequence[User],
    queries: Mapping[int, Sequence[Query]],
    modes: Sequence[str],
    known: BankMemory,
    memory: MemoryOptions,
) -> Iterator[list[ModeQuery]]:
    """Every query of every user in each of `modes`, in batches limited by the size of the users' weights."""
    portion: list[ModeQuery] = []
    numbers = 0
    for user in users:
        mode_loras = {mode: _mode_loras(reg, base, user, task.name, mode) for mode in modes}
        own_priors = {mode: known.prior_for(user, mode, memory) for mode in modes}
        own = sum(lora.num_parameters for loras in mode_loras.values() for lora in loras)
        for i, query in enumerate(queries[user.id]):
            if portion and (
                len(portion) >= MAX_ANSWERS_PER_BATCH or (i == 0 and numbers + own > MAX_LORA_PARAMS_PER_BATCH)
            ):
                yield portion
                portion, numbers = [], 0
            portion += [ModeQuery(query, mode, mode_loras[mode], own_priors[mode]) for mode in modes]
        numbers += own
    if portion:
        yield portion


def _mode_loras(reg: Registry, base: str, user: User, task: str, mode: str) -> tuple[LoraWeights, ...]:
    """The LoRAs of `mode` for a user, above the task adapter; `pooled` is the task adapter alone."""
    return () if mode == "pooled" else load_fusion_and_stack(reg, base, user, task, mode)[0]


def _answer_batch(base: LoadedBase, examples: PromptRowBuilder, portion: Sequence[ModeQuery]) -> list[Prediction]:
    """Answer a batch; each answer counts an equal share of the time."""
    model_loras, priors, owners = _distinct_models(portion)
    questions = [ModelQuery(asked.query, owner) for asked, owner in zip(portion, owners, strict=True)]
    return [
        Prediction(
            asked.query.user_id,
            asked.query.id,
            asked.mode,
            base.tokenizer.decode(list(given.prompt)),
            given.answer,
            asked.query.gold,
            _gold_loglik(examples.task, asked.query, given),
            len(given.prompt),
            given.seconds,
        )
        for asked, given in zip(portion, answer_queries(base, examples, questions, model_loras, priors), strict=True)
    ]


def _gold_loglik(task: Task, query: Query, given: ScoredAnswer) -> float:
    """The log-likelihood of the gold (nats): over the labels, as the answer was decided, or per token of a text."""
    from mta_cli.engine.evaluation.calibration import gold_loglik

    if task.labels:
        return gold_loglik(given.scores, task.labels, query.gold)
    return given.gold_loglik / max(1, given.gold_tokens)


def _distinct_models(
    portion: Sequence[ModeQuery],
) -> tuple[list[tuple[LoraWeights, ...]], list[LabelPrior | None], list[int]]:
    """LoRAs and priors of the different models (a user in a mode) of a batch, and the model index of each query."""
    places = {(asked.query.user_id, asked.mode): asked for asked in portion}
    numbers = {key: n for n, key in enumerate(places)}
    owners = [numbers[asked.query.user_id, asked.mode] for asked in portion]
    return [one.loras for one in places.values()], [one.prior for one in places.values()], owners


def _summarise_modes(task: Task, modes: Sequence[str], answers: Sequence[Prediction], seed: int) -> dict[str, Any]:
    """Each metric of the task, and the gold's mean log-likelihood (nats per query), with 95 % intervals over users."""
    from mta_cli.engine.evaluation import statistics

    user_sums = {mode: sum_answers(task, [answer for answer in answers if answer.method == mode]) for mode in modes}
    return {
        "methods": {mode: statistics.bootstrap_metrics(one, seed=seed) for mode, one in user_sums.items()},
        "differences": paired_differences(user_sums, modes[-1], seed),
    }


def sum_answers(task: Task, answers: Sequence[Prediction]) -> UserSums:
    """The answers of one mode, added up by user."""
    from mta_cli.engine.evaluation.user_sums import sum_by_user

    users, given, golds = [a.user_id for a in answers], [a.answer for a in answers], [a.gold for a in answers]
    return sum_by_user(task.metric, task.labels, users, given, golds, [a.gold_loglik for a in answers])


def _costs(
    reg: Registry, base: str, task: str, users: Sequence[User], mode: str, answers: Sequence[Prediction]
) -> dict[str, float | None]:
    """Bytes that a mode stores for a user, a mean over `users`, and the speed of its answers."""
    bank = reg.banks.latest_ready_bank(task, base)
    recipes = [reg.recipes.get(user.id, task, bank.id) for user in users] if bank and mode in PERSONAL_MODES else []
    stacks = [reg.stacks.get(user.id, task, bank.id) for user in users] if bank and mode == "adapted" else []
    kept = sum(one.bytes for one in (*recipes, *stacks) if one is not None)
    own = [answer for answer in answers if answer.method == mode]
    seconds, tokens = sum(answer.seconds for answer in own), sum(answer.tokens for answer in own)
    return {
        "bytes": kept / len(users),
        "seconds": None,
        "seconds_per_query": seconds / len(own),
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
    }


def _store(
    reg: Registry, base: str, task: Task, prompt: PromptOptions, result: dict[str, Any], answers: Sequence[Prediction]
) -> int:
    bank = reg.banks.latest_ready_bank(task.name, base)
    config = {"history_items": prompt.history_items, "base": base}
    with reg.transaction():
        number = reg.evaluations.add_evaluation(task.name, bank.id if bank else None, config, result)
        reg.evaluations.predictions.add_predictions(number, answers)
    return number
