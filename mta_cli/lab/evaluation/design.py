"""The design of an evaluation: users, their roles, and options. Runs with the same design add to one evaluation.

Methods and their settings are not part of the design. They can be added later, and stored answers stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Command, Flag
from mta_cli.events import PlanLine
from mta_cli.options import ScreeningOptions
from mta_cli.pipeline.evaluation.answer_queries import scorable_queries
from mta_cli.pipeline.evaluation.whose import group_users_with_similar_topics
from mta_cli.pipeline.requests import SCREENING_OPTIONS_KEY, EvalRequest, MeasuredBank, bank_options
from mta_cli.pipeline.runs import bank_label
from mta_cli.text.formatting import join_words
from store.names import quote_text
from store.records import Item, Query
from store.tables.evaluations import FoldMember

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.topics import AlikeGroup
    from mta_cli.lab.evaluation.folds import UserFold
    from store.registry import Registry


# Assumed standard deviation of the difference between two methods on one query, for the estimate before a run. For
# accuracy, 0.4 means that one answer in six is right under only one of the two methods.
DIFFERENCE_SD = {"accuracy": 0.4, "mae": 0.5, "rouge": 0.12}


@dataclass(frozen=True)
class Design:
    """The users by fold, their shots and queries by user id, and the hash `key` of all inputs.

    `unscored` counts the queries that are left out: see `scorable_queries`. `data` is a digest of histories and
    consent, the same for every seed. `named_groups` are the groups that files give, by user id.
    """

    key: str
    folds: tuple[UserFold, ...]
    shots: dict[int, list[Item]]
    queries: dict[int, list[Query]]
    unscored: int = 0
    data: str = ""
    named_groups: dict[int, str] = field(default_factory=dict)

    @cached_property
    def groups(self) -> list[list[AlikeGroup]]:
        """By fold: groups of users of similar topic, whose models are made together. The same in every run, so that a
        continued run makes the same models as an uninterrupted one.
        """
        return [
            [
                group
                for users in (fold.test, fold.tuning)
                for group in group_users_with_similar_topics(users, self.shots, self.named_groups)
            ]
            for fold in self.folds
        ]

    @property
    def role_assignments(self) -> list[FoldMember]:
        """The role of every user in every fold."""
        return [
            (number, user, role)
            for number, fold in enumerate(self.folds)
            for role, users in (("bank", fold.bank), ("tuning", fold.tuning), ("test", fold.test))
            for user in users
        ]

    def answering_users(self, fold: int) -> tuple[int, ...]:
        """A fold's test users, then its tuning users: the queries of both are answered."""
        return (*self.folds[fold].test, *self.folds[fold].tuning)

    def tuning_design(self, fold: int) -> Design:
        """The design for choosing a fold's settings. Its test users are the users on whom settings are compared.

        They are the fold's tuning users or, if it has none, the test users of the other folds.
        """
        own = self.folds[fold]
        if own.tuning:
            return replace(self, folds=(replace(own, test=own.tuning, tuning=()),))
        return replace(self, folds=tuple(replace(one, test=()) if one is own else one for one in self.folds))

    @property
    def all_users(self) -> set[int]:
        """All users of any fold and role."""
        return {user for _, user, _ in self.role_assignments}

    @property
    def test_users(self) -> list[int]:
        """All test users, by fold."""
        return [user for fold in self.folds for user in fold.test]


def make_design(reg: Registry, request: EvalRequest) -> Design:
    """The design of `request`. Raises BadInput where the task has too few users for its folds."""
    from mta_cli.lab.evaluation.folds import split_users

    if request.measured is not None:
        return _measured_bank_design(reg, request, request.measured)
    task, options = request.task, request.options
    counts = {user.id: count for user, count in reg.users.users_with_items(task.name)}
    found, unscored = scorable_queries(reg, task, counts)
    queries = {user: own for user, own in found.items() if own}
    try:
        folds = split_users(counts, list(queries), options.folds, request.machine.seed)
    except ValueError as error:
        raise BadInput(
            f"Task {task.name} cannot be evaluated in {options.folds} folds: {error}.",
            hint=(
                "use a smaller ",
                Flag("folds"),
                ", or import more users with held-out queries (",
                Command("data import", "FILE", hold_out="N"),
                ")",
            ),
        ) from error
    shots = {user: reg.items.recent_items(user, task.name, options.shots) for user in counts}
    histories = _histories(reg, task.name, queries, counts)
    named = reg.users.groups(task.name)
    return Design(_key(request, histories), tuple(folds), shots, queries, unscored, _data_digest(histories), named)


def _measured_bank_design(reg: Registry, request: EvalRequest, measured: MeasuredBank) -> Design:
    """One fold: the users whose data the bank contains, and the tested users.

    Raises BadInput if the bank contains data of a tested user, for example since a refresh.
    """
    from mta_cli.lab.evaluation.folds import UserFold
    from mta_cli.pipeline.anchors import usable_anchors

    task, bank = request.task.name, measured.bank
    queries, unscored = scorable_queries(reg, request.task, measured.test_users)
    shots = {user: reg.items.recent_items(user, task, request.options.shots) for user in measured.test_users}
    sources = reg.banks.source_users(bank.id)
    if inside := sources.intersection(measured.test_users):
        names = join_words(quote_text(reg.users.by_id(user).name) for user in sorted(inside))
        raise BadInput(
            f"Bank {bank_label(measured.bank)} now contains data of {names}, so it cannot be tested on them.",
            hint="test it on users whose data it does not contain",
        )
    fold = UserFold(tuple(sorted(sources)), (), measured.test_users)
    anchors = [[anchor.id, anchor.digest] for anchor in usable_anchors(reg, bank)]
    neighbours = [one.item_id for one in reg.neighbours.consenting_neighbours(bank.id)]
    content = [bank.key, bank.task_adapter, bank.config, bank.kernel, anchors, neighbours]
    histories = _histories(reg, task, queries, queries)
    key, data, named = _key(request, histories, content), _data_digest(histories), reg.users.groups(task)
    return Design(key, (fold,), shots, queries, unscored, data, named)


def _histories(
    reg: Registry, task: str, queries: Mapping[int, list[Query]], users: Container[int]
) -> list[tuple[int, bool, str, list[list[str | None]]]]:
    """Of each of `users`: id, consent, a digest of the history, and the queries."""
    return sorted(
        (
            user.id,
            user.can_anchor,
            reg.items.hash_histories([user.id], task),
            [[q.key, q.input, q.gold, q.time] for q in queries.get(user.id, ())],
        )
        for user, _ in reg.users.users_with_items(task)
        if user.id in users
    )


def _data_digest(histories: Iterable[Sequence[Any]]) -> str:
    return hashlib.sha256(json.dumps(sorted(own[1:3] for own in histories)).encode()).hexdigest()[:16]


def _key(request: EvalRequest, histories: Sequence[Sequence[Any]], measured: Sequence[Any] = ()) -> str:
    from mta_cli.engine.model.load import number_format

    options, machine = request.options, request.machine
    identity = {
        **request.identity,
        "embedder": request.embedder.fingerprint,
        "bank": asdict(bank_options(request)),
        "shots": options.shots,
        "folds": options.folds,
        "dtype": number_format(machine.dtype, machine.device, machine.quantize),
        "people": histories,
        **({"measured_bank": list(measured)} if measured else {}),
        **({"only_earlier": True} if options.only_earlier else {}),
        **({"gates": asdict(request.gates)} if request.gates != ScreeningOptions() else {}),
        "screened": True,  # refused anchors are left out
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def evaluation_config(request: EvalRequest) -> dict[str, Any]:
    """The options that are stored with the evaluation. They contain no user's name."""
    return {
        **({"measured_bank": request.measured.bank.id} if request.measured else {}),
        **({"only_earlier": True} if request.options.only_earlier else {}),
        SCREENING_OPTIONS_KEY: asdict(request.gates),
        "base": request.base.name,
        "fingerprint": request.base.fingerprint,
        "embedder": request.embedder.name,
        "shots": request.options.shots,
        "folds": request.options.folds,
        "placement": request.options.placement,
        **asdict(request.prompt),
        "seed": request.machine.seed,
        **request.machine.formats,
        "bank": asdict(bank_options(request)),
    }


def describe_options(request: EvalRequest) -> str:
    """The options that determine the answers and have no key of their own in a result, as text without the seed."""
    named = ("anchors", "placement", "task_epochs")  # these have separate keys in a result
    bank = {key: value for key, value in asdict(bank_options(request)).items() if key not in named}
    usual = asdict(ScreeningOptions())
    strict = "".join(f" {key} {value}" for key, value in asdict(request.gates).items() if value != usual[key])
    rest = {
        "anchors": f"screened{strict}",
        "embedder": request.embedder.name,
        "calibrate": request.options.calibrate,
        **bank,
    }
    measured = [f"bank {bank_label(request.measured.bank)}"] if request.measured else []
    measured += ["only_earlier True"] if request.options.only_earlier else []
    return ", ".join([*measured, *(f"{key} {value}" for key, value in rest.items())])


def plan_lines(request: EvalRequest, plan: Design, methods: Sequence[str]) -> tuple[PlanLine, ...]:
    """Plan lines: users, queries, sizes of folds, methods, and the detectable difference in the task's metric."""
    from mta_cli.engine.evaluation.statistics import planned_detectable_effect

    metric = request.task.metric
    asked = [len(plan.queries[user]) for user in plan.test_users]
    least = planned_detectable_effect(asked, DIFFERENCE_SD[metric])
    sizes = ", ".join(f"{len(fold.bank)}/{len(fold.tuning)}/{len(fold.test)}" for fold in plan.folds)
    return (
        PlanLine("users", f"{len(asked)} tested, {sum(asked)} queries"),
        PlanLine("folds", f"bank/tuning/test: {sizes}"),
        PlanLine("methods", ", ".join(methods)),
        PlanLine(
            "power",
            f"a difference of {least:.3f} in {metric} is found with 80 % probability",
            f"assumed standard deviation: {DIFFERENCE_SD[metric]:g} per query",
        ),
    )
