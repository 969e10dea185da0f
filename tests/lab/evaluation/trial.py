"""Quick evaluations: of the people of `town`, one that is run once for many tests, and answers made up for judging."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from mta_cli.lab.evaluation.design import Design, make_design
from mta_cli.lab.evaluation.folds import UserFold
from mta_cli.options import BankOptions, EvalOptions, PromptOptions
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.requests import EvalRequest
from store.records import NewItem
from store.registry import Registry
from store.tables.predictions import EvalCell, Prediction
from tests.pipeline import town
from tests.pipeline.town import CPU, TASK, finish

ALL = [
    "majority",
    "base",
    "rag",
    "pooled",
    "pooled-rag",
    "oppu",
    "oppu-pooled",
    "fusion",
    "fusion-random",
    "stack",
    "mta",
    "mta-recipe",
    "mta-released",
]
SECRET = "zyzzyva"


def eval_request(*, given: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> EvalRequest:
    """Three folds, two anchors, three shots; `changes` are options of the evaluation."""
    bank = BankOptions(anchors=2, rank=2, alpha=4.0, epochs=1, task_epochs=1, min_items=5)
    return EvalRequest(
        TASK,
        resolve_model("tiny", "base"),
        resolve_model("tiny-embedder", "embedder"),
        EvalOptions(**{"methods": ",".join(ALL), "shots": 3, **changes}),
        bank,
        PromptOptions(2),
        CPU,
        given or {},
    )


def timeless(document: Any) -> Any:
    """A result without its times and number."""
    gone = {"seconds", "seconds_per_query", "tokens_per_second", "evaluation"}
    if isinstance(document, dict):
        return {key: timeless(value) for key, value in document.items() if key not in gone}
    return [timeless(value) for value in document] if isinstance(document, list) else document


@dataclass(frozen=True)
class Trial:
    """A store in which `request` was run, its result, and the inputs of methods: (user, texts of the shots)."""

    reg: Registry
    request: EvalRequest
    plan: Design
    result: dict[str, Any]
    given: list[tuple[int, str]]

    @property
    def number(self) -> int:
        """The evaluation's."""
        return int(self.result["evaluation"])


def profiles(request: EvalRequest, plan: Design) -> dict[int, Tensor]:
    """Every user's profile."""
    from mta_cli.lab.evaluation.context import embed_shot_profiles

    job = embed_shot_profiles(request, plan)
    while True:
        try:
            next(job)
        except StopIteration as end:
            found: dict[int, Tensor] = end.value
            return found


def plant_secrets(reg: Registry) -> None:
    """Give every user an earliest item that answers all of the user's queries and contains a secret."""
    for user, _ in reg.users.users_with_items(TASK.name):
        words = " ".join(query.input for query in reg.items.queries(user.id, TASK.name))
        reg.items.append_items(user.id, [NewItem("old", TASK.name, f"{SECRET} {words}", "dystopia", "2019-01-01")])


def make_trial(root: Path, base: Path, embedder: Path) -> Trial:
    """Run every method there is in two folds, with as little training as each allows."""
    from mta_cli.lab.evaluation.context import EvalContext
    from mta_cli.lab.evaluation.run import run_evaluation
    from mta_cli.lab.methods.catalog import PRESETS_BY_NAME
    from mta_cli.pipeline.models.pull import register_folder

    little = {"steps": "1", "epochs": "1", "evaluations": "6"}
    given = {m.name: {k: v for k, v in little.items() if k in m.default_settings} for m in PRESETS_BY_NAME.values()}
    seen: list[tuple[int, str]] = []
    people = EvalContext.method_users
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_MODELS", str(root / "models"))
        register_folder(base, name="tiny")
        register_folder(embedder, name="tiny-embedder")
        reg = Registry.open(root / "store", create=True)
        town.people(reg, items=6)
        plant_secrets(reg)

        def watched(field: EvalContext, users: Sequence[int]) -> Any:
            found = people(field, users)
            decode = field.base.tokenizer.decode
            seen.extend(
                (p.number, " ".join((*p.inputs, *p.outputs, *(decode(list(row.input_ids)) for row in p.rows))))
                for p in found
            )
            return found

        patch.setattr(EvalContext, "method_users", watched)
        request = eval_request(
            methods=",".join([*PRESETS_BY_NAME, "pooled-rag+habit"]),
            folds=2,
            given={m: v for m, v in given.items() if v},
        )
        result, _ = finish(run_evaluation(reg, request))
    return Trial(reg, request, make_design(reg, request), result, seen)


Answers = Mapping[str, Sequence[tuple[str, Sequence[float]]]]
"""Of each person: the gold of each query, and the scores that a method gave the labels there."""


@dataclass(frozen=True)
class Made:
    """People, their queries and a plan, without any model; methods' answers are made up."""

    reg: Registry
    plan: Design
    evaluation: int
    users: dict[str, int]

    def answer(
        self, method: str, answers: Answers, fold: int = 0, settings: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        """Store answers of a method. `more` are fields of every prediction, and `bytes` and `spent` of each cell."""
        size, spent = more.pop("bytes", 0), more.pop("spent", 0.5)
        cells = []
        for name, own in answers.items():
            user, rows = self.users[name], []
            for query, (gold, scores) in zip(self.plan.queries[self.users[name]], own, strict=True):
                packed = struct.pack(f"<{len(scores)}f", *scores) if scores else None
                rows.append(
                    replace(Prediction(user, query.id, method, "p", "?", gold, -4.0, 10, 0.25, 2, packed), **more)
                )
            cells.append((EvalCell(fold, method, settings or {}, user, size, spent), rows))
        self.reg.evaluations.predictions.save_cells(self.evaluation, cells)


def make_up(reg: Registry, task: str, queries: Mapping[str, int], *folds: tuple[str, str, str]) -> Made:
    """People with as many queries as `queries` says; `folds` name who builds, tunes and is tested, a letter each."""
    users = {name: reg.users.add(name).id for name in queries}
    for name, count in queries.items():
        reg.items.append_queries(users[name], [NewItem(f"q{i}", task, f"{name} {i}", "?") for i in range(count)])
    made = tuple(UserFold(*(tuple(users[name] for name in names) for names in fold)) for fold in folds)
    plan = Design("k", made, {}, {user: reg.items.queries(user, task) for user in users.values()})
    return Made(reg, plan, reg.evaluations.get_or_create_evaluation("k", task, {}, plan.role_assignments).id, users)
