"""Measures users' stored models on their held-out queries at each step of the ladder. Trains nothing.

Intervals are over users, or over questions if there are few users; see `engine.evaluation.ladder`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mta_cli.engine.evaluation.ladder import whose_entries
from mta_cli.engine.evaluation.metrics import MAIN_METRICS
from mta_cli.errors import BadInput, Command
from mta_cli.events import Event, JobProgress, JobResult, JobStarted
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.evaluation.answer_queries import (
    ModelQuery,
    answer_queries,
    scorable_queries,
    unscorable_queries_note,
)
from mta_cli.pipeline.evaluation.whose import (
    MAX_LORA_PARAMS_PER_BATCH,
    group_users_with_similar_topics,
    pack_gold_logliks_under_models,
    pack_naive_bayes_logliks,
    whose_sums,
)
from mta_cli.pipeline.memory.bank_memory import MAX_RECENT_ANSWERS
from mta_cli.pipeline.user_weights import current_bank, load_fusion_and_stack
from mta_cli.pipeline.workbench import Workbench
from store.records import Query, User
from store.tables.predictions import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.ladder import Step
    from mta_cli.engine.evaluation.user_sums import UserSums
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.requests import FuseRequest
    from store.registry import Registry

MAX_ANSWERS_PER_BATCH = 128
MIN_USERS_OF_SHARED_EXAMPLE = 3  # a question that at least this many users were asked can be a shared example
EXAMPLE_RULES = {
    "users": "a question of the users with the largest, the median and the smallest gain",
    "questions": "the questions with the largest, the median and the smallest gain",
    "shared": "the question that most users were asked, of those with the largest, the median and the smallest gain",
}


@dataclass(frozen=True)
class _StepQuery:
    """A query to answer at a step of the ladder, with the LoRAs of the user `owner`."""

    query: Query
    step: Step
    owner: int
    loras: tuple[LoraWeights, ...]
    prior: LabelPrior | None


def evaluate_users(reg: Registry, request: FuseRequest, users: Sequence[User]) -> Iterator[Event]:
    """Answer every held-out query of `users`, who must have stacks, at each step of the ladder; store the predictions.

    The request's task and base choose the models, and its options the prompts and the label memory. In a task with
    labels every query is answered. In a task of texts only the likelihood of the gold answer is measured, and only the
    answers of `examples` are generated. `JobResult.result` has the keys of the result of `mta eval run` except design
    and settings; also `ladder` and `examples` [{user, question, gold, answers: {step: text}}].

    Raises BadInput if no user has held-out queries that can be scored.
    """
    from mta_cli.engine.evaluation.ladder import MIN_UNITS, ladder_steps
    from mta_cli.engine.model.load import number_format

    task, prompt, machine = request.task, request.prompt, request.machine
    with reg.hold_users(f"evaluation of {task.name}", [user.id for user in users]):
        queries, unscored = scorable_queries(reg, task, [user.id for user in users])
        asked = [user for user in users if queries[user.id]]
        yield from unscorable_queries_note(unscored)
        if not asked:
            raise BadInput(
                f"None of these users has held-out queries of task {task.name}.",
                hint=Command("data import", "FILE", hold_out=5),
            )
        # 1. the steps of the ladder; a single user has no control
        bench = Workbench(reg, request, current_bank(reg, task.name, request.base.fingerprint))
        steps = ladder_steps(
            memory=bool(task.labels) and request.memory.memory != "off",
            examples=prompt.history_items > 0,
            weights=("fused", "adapted"),
        )
        steps = [one for one in steps if not (one.is_control and len(asked) == 1)]
        # 2. answers at every step that has a model, and without a model
        step_answers = _StepAnswers(bench, asked, queries, steps)
        yield JobStarted("evaluate", step_answers.answer_count, "answers")
        yield from step_answers.answer_all()
        unit = "users" if len(asked) >= MIN_UNITS["users"] else "questions"
        answers = [*step_answers.answers_without_model(), *step_answers.answers]
        # 3. the verdicts; texts are generated for the examples only
        summary = _summarise(task, steps, answers, unit, machine.seed)
        if not task.labels:
            texts = {one.id: one.input for own in queries.values() for one in own}
            step_answers.generate(answers, choose_examples(answers, summary["ladder"], texts)[1])
        result = {
            "task": task.name,
            "users": len(asked),
            "queries": sum(len(queries[user.id]) for user in asked),
            "seed": machine.seed,
            **asdict(prompt),
            "base": request.base.name,
            "dtype": number_format(machine.dtype, machine.device, machine.quantize),
            "reference": next(one.name for one in reversed(steps) if not one.is_control),
            **summary,
            "costs": {one.name: _costs(bench, asked, one, answers) for one in steps},
        }
        config = {**asdict(prompt), "base": request.base.fingerprint}
        # 4. store answers and document together
        with reg.transaction():
            number = reg.evaluations.add_evaluation(task.name, bench.bank.id, config, result)
            reg.evaluations.predictions.add_predictions(number, answers)
        yield JobResult({**result, "evaluation": number, **_describe_examples(reg, task.name, result, answers)})


def load_evaluation_document(reg: Registry, number: int) -> dict[str, Any]:
    """The JSON document of an evaluation that `evaluate_users` stored, with its examples.

    Raises NotFound if there is no such evaluation.
    """
    found = reg.evaluations.get(number)
    answers = reg.evaluations.predictions.load_predictions(number)
    return {**found.result, "evaluation": number, **_describe_examples(reg, found.task, found.result, answers)}


def _describe_examples(
    reg: Registry, task: str, result: Mapping[str, Any], answers: Sequence[Prediction]
) -> dict[str, Any]:
    """The example questions with each step's answers. The stored document lacks them: it has no names and no texts."""
    from mta_cli.engine.evaluation.ladder import STEP_NAMES

    queries = {one.id: one for user in {one.user_id for one in answers} for one in reg.items.queries(user, task)}
    rule, chosen = choose_examples(answers, result["ladder"], {key: one.input for key, one in queries.items()})
    examples = []
    for number in chosen:
        own = sorted((one for one in answers if one.query_id == number), key=lambda one: STEP_NAMES.index(one.method))
        query = queries[number]
        examples.append(
            {
                "user": reg.users.by_id(query.user_id).name,
                "question": query.input,
                "gold": query.gold,
                "answers": {one.method: one.answer for one in own},
                "gold_logliks": {one.method: one.gold_loglik for one in own},
            }
        )
    return {"example_rule": EXAMPLE_RULES[rule], "examples": examples}


class _StepAnswers:
    """Computes the answers of all steps with one loaded base."""

    def __init__(
        self,
        bench: Workbench[FuseRequest],
        users: Sequence[User],
        queries: Mapping[int, Sequence[Query]],
        steps: Sequence[Step],
    ) -> None:
        from mta_cli.engine.lora.adapter import AdapterMerger

        reg, task = bench.reg, bench.task
        self._bench, self._base, self._task, self._users, self._queries = bench, bench.base, task, users, queries
        self._steps, self._merger = [one for one in steps if one.weights != "none"], AdapterMerger(bench.base)
        self._items = {user.id: reg.items.recent_items(user.id, task.name, MAX_RECENT_ANSWERS) for user in users}
        groups = group_users_with_similar_topics([user.id for user in users], self._items, reg.users.groups(task.name))
        self._others = {user: others for group in groups for user, others in group.items()}
        self._priors = {user.id: bench.memory.prior_for(user, "common", bench.spec.memory) for user in users}
        self._examples = {
            True: bench.rows,
            False: PromptRowBuilder(reg, bench.base, task, 0),
        }
        self._by_id = {user.id: user for user in users}
        self.answers: list[Prediction] = []

    @property
    def answer_count(self) -> int:
        """The number of answers that `answer_all` computes."""
        return len(self._steps) * sum(len(self._queries[user.id]) for user in self._users)

    def answer_all(self) -> Iterator[Event]:
        """Answer every query at every step that has a model, then score the golds under other users' models.

        The answers are in `answers` afterwards, in the order of the steps.
        """
        try:
            for (below, shows), steps in groupby(self._steps, lambda one: (one.weights != "base", one.examples)):
                self._merger.set_adapter(self._bench.task_adapter if below else None)
                together = list(steps)
                for portion in self._batches(together):
                    for answer in self._answer(portion, shows=shows):
                        self.answers.append(answer)
                        yield JobProgress(
                            answer.method, len(self.answers), tokens=answer.tokens, seconds=answer.seconds
                        )
            yield JobProgress("whose is it", len(self.answers))
            self._score_gold_under_other_models()
        finally:
            self._merger.set_adapter(None)
        order = [one.name for one in self._steps]
        self.answers.sort(key=lambda answer: order.index(answer.method))

    def _batches(self, steps: Sequence[Step]) -> Iterator[list[_StepQuery]]:
        """Every user's queries at each of `steps`, in batches of limited numbers of answers and of LoRA parameters."""
        portion: list[_StepQuery] = []
        numbers = 0
        for user in self._users:
            owners = {one.name: self._others[user.id][0] if one.is_control else user.id for one in steps}
            loras = {one.name: self._loras(owners[one.name], one) for one in steps}
            own = sum(lora.num_parameters for found in loras.values() for lora in found)
            for i, query in enumerate(self._queries[user.id]):
                if portion and (
                    len(portion) >= MAX_ANSWERS_PER_BATCH or (i == 0 and numbers + own > MAX_LORA_PARAMS_PER_BATCH)
                ):
                    yield portion
                    portion, numbers = [], 0
                portion += [
                    _StepQuery(query, one, owners[one.name], loras[one.name], self._prior(one, user.id))
                    for one in steps
                ]
            numbers += own
        if portion:
            yield portion

    def _prior(self, step: Step, user: int) -> LabelPrior | None:
        return self._priors[user] if step.memory else None

    def _loras(self, user: int, step: Step) -> tuple[LoraWeights, ...]:
        """The LoRAs that a step adds to the base or the common model."""
        if step.weights in ("base", "common"):
            return ()
        found = load_fusion_and_stack(
            self._bench.reg, self._base.fingerprint, self._by_id[user], self._task.name, step.weights
        )
        return found[0]

    def _answer(self, portion: Sequence[_StepQuery], *, shows: bool, generate: bool = False) -> list[Prediction]:
        """Answer a batch. Each answer's time is an equal share of the batch's."""
        from mta_cli.engine.evaluation.calibration import gold_loglik

        models = {(one.step.name, one.query.user_id): one for one in portion}
        places = {key: n for n, key in enumerate(models)}
        questions = [ModelQuery(one.query, places[one.step.name, one.query.user_id]) for one in portion]
        loras, priors = [one.loras for one in models.values()], [one.prior for one in models.values()]
        examples, labels = self._examples[shows], self._task.labels
        given = answer_queries(self._base, examples, questions, loras, priors, generate=generate)
        return [
            Prediction(
                one.query.user_id,
                one.query.id,
                one.step.name,
                self._base.tokenizer.decode(list(found.prompt)),
                found.answer,
                one.query.gold,
                gold_loglik(found.scores, labels, one.query.gold)
                if labels
                else found.gold_loglik / max(1, found.gold_tokens),
                len(found.prompt),
                found.seconds,
            )
            for one, found in zip(portion, given, strict=True)
        ]

    def _score_gold_under_other_models(self) -> None:
        """Add to each answer of a personal step the gold's likelihoods under other users' models (same prompt)."""
        queries = [query for user in self._users if self._others[user.id] for query in self._queries[user.id]]
        others = {query.user_id: self._others[query.user_id] for query in queries}
        for step in (one for one in self._steps if one.is_personal):
            found = pack_gold_logliks_under_models(
                self._base,
                self._examples[step.examples],
                queries,
                others,
                partial(self._loras, step=step),
                partial(self._prior, step),
            )
            self.answers = [
                replace(one, whose=found.get(one.query_id)) if one.method == step.name else one for one in self.answers
            ]

    def answers_without_model(self) -> list[Prediction]:
        """Answers to the same queries by each user's most frequent label, median score or nearest own text.

        A label's likelihood is computed from the user's own label rates. Texts have no likelihood; naive Bayes measures
        their authorship.
        """
        from mta_cli.engine.evaluation.calibration import gold_loglik
        from mta_cli.engine.evaluation.ladder import NO_MODEL
        from mta_cli.engine.methods.majority import simplest_answerer

        rates, labels = self._bench.memory.without_neighbours, self._task.labels
        uniform = (1 / max(1, len(labels)),) * len(labels)  # without a bank, the label rates are unknown
        rows, written = [], dict[int, list[str]]()
        for user in self._users:
            own = self._items[user.id]
            inputs, outputs = [item.input for item in own], [item.output for item in own]
            written[user.id] = outputs
            answer = simplest_answerer(self._task, lambda time: rates.rates_until(time) or uniform, inputs, outputs)
            for query in self._queries[user.id]:
                text, scores = answer(query.input, query.time)
                loglik = gold_loglik(scores, self._task.labels, query.gold) if self._task.labels else None
                rows.append(Prediction(user.id, query.id, NO_MODEL, "", text, query.gold, loglik, 0, 0.0))
        if self._task.labels or not any(one.is_personal for one in self._steps):
            return rows
        queries = [query for own in self._queries.values() for query in own]
        found = pack_naive_bayes_logliks(queries, self._others, written)
        return [replace(one, whose=found[one.query_id]) for one in rows]

    def generate(self, answers: list[Prediction], chosen: Sequence[int]) -> None:
        """Generate the texts of all steps' answers to the `chosen` queries, and put them into `answers`."""
        texts: dict[tuple[str, int], str] = {}
        asked = [query for user in self._users for query in self._queries[user.id] if query.id in chosen]
        try:
            for (below, shows), steps in groupby(self._steps, lambda one: (one.weights != "base", one.examples)):
                self._merger.set_adapter(self._bench.task_adapter if below else None)
                portion = []
                for step in steps:
                    for query in asked:
                        owner = self._others[query.user_id][0] if step.is_control else query.user_id
                        portion.append(_StepQuery(query, step, owner, self._loras(owner, step), None))
                for given in self._answer(portion, shows=shows, generate=True):
                    texts[given.method, given.query_id] = given.answer
        finally:
            self._merger.set_adapter(None)
        for place, one in enumerate(answers):
            if (one.method, one.query_id) in texts:
                answers[place] = replace(one, answer=texts[one.method, one.query_id])


def choose_examples(
    answers: Sequence[Prediction], ladder: Mapping[str, Any], questions: Mapping[int, str]
) -> tuple[str, list[int]]:
    """Choose up to three example queries; returns the key of the rule in `EXAMPLE_RULES`, and the queries' ids.

    A query's gain is the gold's log-likelihood at the highest step minus that under the common model. If enough users
    were asked the same question, the rule is `shared`, because then answers differ only by user. Otherwise each user's
    query with the largest absolute gain is taken. `questions` are the queries' texts by id.
    """
    from mta_cli.engine.evaluation.ladder import ANOTHERS, COMMON, COMMON_MEMORY, NO_MODEL

    steps = [one["step"] for one in ladder["steps"] if one["step"] not in (NO_MODEL, ANOTHERS)]
    top = steps[-1]
    below = next((name for name in (COMMON_MEMORY, COMMON) if name in steps and name != top), steps[0])
    logliks = {(one.method, one.query_id): one.gold_loglik or 0.0 for one in answers}
    gains: dict[int, dict[int, float]] = {}  # each query's gain, by the unit (user or query) and the query's id
    for one in answers:
        if one.method == top:
            key = one.user_id if ladder["unit"] == "users" else one.query_id
            gains.setdefault(key, {})[one.query_id] = (one.gold_loglik or 0.0) - logliks[below, one.query_id]
    order = sorted(gains, key=lambda key: (sum(gains[key].values()) / len(gains[key]), key), reverse=True)
    rule, shared = str(ladder["unit"]), Counter(questions[number] for own in gains.values() for number in own)
    question, users = shared.most_common(1)[0]
    if rule == "users" and users >= MIN_USERS_OF_SHARED_EXAMPLE:
        rule = "shared"
        gains = {
            key: {n: gain for n, gain in own.items() if questions[n] == question}
            for key, own in gains.items()
            if any(questions[n] == question for n in own)
        }
        order = [key for key in order if key in gains]
    chosen = dict.fromkeys((order[0], order[len(order) // 2], order[-1]))
    return rule, [max(gains[key], key=lambda number: (abs(gains[key][number]), number)) for key in chosen]


def _summarise(
    task: Task, steps: Sequence[Step], answers: Sequence[Prediction], unit: str, seed: int
) -> dict[str, Any]:
    """The metrics and mean gold log-likelihoods (nats per query) of each step, with 95 % intervals, and the ladder."""
    from mta_cli.engine.evaluation import statistics
    from mta_cli.engine.evaluation.ladder import judge_ladder

    metric = MAIN_METRICS[task.metric] if task.labels else "gold_loglik"
    by_step = {one.name: [answer for answer in answers if answer.method == one.name] for one in steps}
    sums = {name: replace(sum_answers(task, own, unit), whose=whose_sums(own, unit)) for name, own in by_step.items()}
    top = next(one.name for one in reversed(steps) if not one.is_control)
    shown = {name: own for name, own in sums.items() if own.has_loglik or task.labels}
    ladder = judge_ladder(sums, metric, unit=unit, seed=seed)
    return {
        "metric": metric,
        "methods": {name: statistics.bootstrap_metrics(own, seed=seed) for name, own in shown.items()},
        "differences": statistics.paired_differences(shown, [(top, name) for name in shown if name != top], seed=seed),
        "ladder": {**ladder, "whose": whose_entries(sums, seed)},
    }


def sum_answers(task: Task, answers: Sequence[Prediction], unit: str) -> UserSums:
    """The sums of one step's answers: by user if `unit` is `users`, otherwise by question.

    In a task without labels, answers are scored by the likelihood of the gold answers.
    """
    from mta_cli.engine.evaluation.user_sums import sum_by_user

    owners = [one.user_id if unit == "users" else one.query_id for one in answers]
    given, golds = [one.answer for one in answers], [one.gold for one in answers]
    metric = task.metric if task.labels else "likelihood"
    return sum_by_user(metric, task.labels, owners, given, golds, [one.gold_loglik for one in answers])


def _costs(
    bench: Workbench[FuseRequest], users: Sequence[User], step: Step, answers: Sequence[Prediction]
) -> dict[str, float | None]:
    """The mean number of bytes that a step stores for each of `users`, and the speed of its answers."""
    reg, task, bank = bench.reg, bench.task.name, bench.bank.id
    recipes = [reg.recipes.get(user.id, task, bank) for user in users] if step.is_personal else []
    stacks = [reg.stacks.get(user.id, task, bank) for user in users] if step.weights == "adapted" else []
    kept = sum(one.bytes for one in (*recipes, *stacks) if one is not None)
    own = [answer for answer in answers if answer.method == step.name]
    seconds, tokens = sum(answer.seconds for answer in own), sum(answer.tokens for answer in own)
    return {
        "bytes": kept / len(users),
        "seconds": None,
        "seconds_per_query": seconds / len(own),
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
    }
