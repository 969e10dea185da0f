"""The gain from users' own stacks by kind, size, passes and the weights below them, on the same users and questions.

Above one bank of a store, for users whose data it does not contain. Each arm trains a stack for every user and is
measured on their held-out questions, with and without own examples in the prompt: the log-likelihood of the user's own
answer (nats, for texts per token), how often it is higher than under models of others of the same group, generated
texts (ROUGE-1, and whether naive Bayes on characters attributes them to the user) or the error of the likeliest label
(1 for a wrong one, of scores the distance), bytes and seconds per user.

An arm is `NAME:key=value,…`. The keys are the fields of `AdaptOptions` (targets are joined by `+`), and:

- `below`: the weights below the stack (fusion, common, nearest, another)
- `shots`: the number of own items
- `shown`: how many own items training prompts show, in turn, such as `0-1-3`
- `passes`: passes over the shots; by default as in `mta user adapt`
- `held`: every `held`-th item is left out of training

The arms named `common` and `fusion` train nothing. An arm whose name begins with `curve` is measured after each pass.
Every finished arm is written to the JSON file; arms that the file already has are not run again.

    python -m benchmarks.bench_stacks STORE --task TASK --bank BANK --users FILE --to FILE.json ARM…
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.engine.evaluation.whose import unpack_logliks
from mta_cli.options import AdaptOptions, FuseOptions, MachineOptions, MemoryOptions, PromptOptions
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.evaluation.whose import batches_by_size, pack_gold_logliks_under_models, pack_naive_bayes_logliks
from mta_cli.pipeline.requests import FuseRequest, model_by_fingerprint
from mta_cli.pipeline.workbench import Workbench, user_shots
from store.registry import Registry

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.methods.method import UserShots
    from store.records import Query, User

WITHOUT = "common", "fusion"  # arms without training
OWN_KEYS = ("below", "shots", "shown", "passes", "held")
PORTION = 16  # users who are trained together
GENERATED = 6  # the most questions of a user for which text is generated


@dataclass(frozen=True)
class Arm:
    """One way to give users a stack."""

    name: str
    values: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Arm:
        """The arm that `NAME:key=value,…` describes."""
        name, _, rest = text.partition(":")
        return cls(name, dict(part.split("=", 1) for part in rest.split(",") if part))

    def number(self, key: str, default: int) -> int:
        return int(self.values.get(key, default))

    @property
    def options(self) -> AdaptOptions:
        own = {key: value for key, value in self.values.items() if key not in OWN_KEYS}
        numbers = {k: float(v) if k in ("learning_rate", "alpha") else v for k, v in own.items()}
        typed = {k: int(v) if k in ("rank", "batch_size") else v for k, v in numbers.items()}
        if "targets" in typed:
            typed["targets"] = str(typed["targets"]).replace("+", ",")
        return AdaptOptions(**typed)  # type: ignore[arg-type]


class Setting:
    """The base with the common model, the tested users and their questions."""

    def __init__(self, reg: Registry, task: str, bank: str, names: Sequence[str], others: int) -> None:
        from mta_cli.engine.lora.adapter import AdapterMerger
        from mta_cli.pipeline.data.tasks import find_task
        from mta_cli.pipeline.evaluation.answer_queries import scorable_queries
        from mta_cli.pipeline.evaluation.whose import group_users_with_similar_topics
        from mta_cli.pipeline.models.load import load_on_device
        from mta_cli.pipeline.user_weights import load_task_adapter

        self.reg, self.task, self.bank = reg, find_task(reg, task), reg.banks.get(bank)
        self.users: list[User] = [reg.users.get(name) for name in names]
        ids = [user.id for user in self.users]
        queries, _ = scorable_queries(reg, self.task, ids)
        self.queries: list[Query] = [one for user in ids for one in queries[user]]
        self.items = {user: reg.items.recent_items(user, task, 200) for user in ids}
        groups = group_users_with_similar_topics(ids, self.items, reg.users.groups(task))
        self.others = {user: found[:others] for group in groups for user, found in group.items()}
        self.base_entry = model_by_fingerprint(reg, self.bank.base, "base")
        self.base = load_on_device(self.base_entry, MachineOptions(), reg=reg)
        found = load_task_adapter(reg, task, self.base.fingerprint)
        AdapterMerger(self.base).set_adapter(found[0] if found else None)
        self.history = int(self.bank.config["history_items"])

    @cached_property
    def bench(self) -> Workbench[FuseRequest]:
        """The bank on the base of this setting, for methods."""
        prompt, machine = PromptOptions(self.history), MachineOptions()
        spec = FuseRequest(self.task, self.base_entry, None, FuseOptions(), prompt, machine)
        return Workbench(self.reg, spec, self.bank, base=self.base)

    def few(self, shots: int) -> Shots:
        """The users with their last `shots` items."""
        if shots not in self._few:
            self._few[shots] = Shots(self, shots)
        return self._few[shots]

    @cached_property
    def _few(self) -> dict[int, Shots]:
        return {}


class Shots:
    """The users restricted to this many items, which prompts show and fusions are made from."""

    def __init__(self, setting: Setting, shots: int) -> None:
        from mta_cli.pipeline.data.profiles import load_profiles, refresh_profiles

        self.setting = setting
        self.items = {user: own[-shots:] for user, own in setting.items.items()}
        among = {user: [one.id for one in own] for user, own in self.items.items()}
        reg, base, task = setting.reg, setting.base, setting.task
        self.builders = {n: PromptRowBuilder(reg, base, task, n, among) for n in {0, setting.history}}
        self.builder = self.builders[setting.history]
        embedder = model_by_fingerprint(reg, setting.bank.embedder, "embedder")
        for _ in refresh_profiles(reg, task.name, embedder, setting.users):
            pass
        profiles = load_profiles(reg, task.name, setting.bank.embedder, [one.id for one in setting.users])
        self.users: list[UserShots] = [
            user_shots(one, self.items[one.id], profiles.get(one.id), self.builder) for one in setting.users
        ]

    @cached_property
    def recipes(self) -> tuple[list[Any], float]:
        """Each user's anchors and weights by evidence, and the seconds per user."""
        from mta_cli.engine.methods.anchor_weights import weigh_anchors

        started = time.perf_counter()
        found = weigh_anchors(
            self.setting.bench.methods, self.users, "evidence", FuseOptions(), MemoryOptions(memory="off")
        )
        return found, (time.perf_counter() - started) / len(self.users)

    def below(self, kind: str) -> list[tuple[LoraWeights, ...]]:
        """The weights below each user's stack, above the common model."""
        from mta_cli.engine.methods.anchor_weights import merge_shares, nearest_anchors

        anchors = self.setting.bench.methods.anchors
        if kind == "common":
            return [()] * len(self.users)
        if kind == "nearest":
            near = [nearest_anchors(self.setting.bench.methods, one, FuseOptions()) for one in self.users]
            return [(anchors[own[0][0]],) for own in near]
        merged = [
            tuple(merge_shares([anchors[one.anchor] for one in own], [one.weight for one in own], released=False))
            for own in self.recipes[0]
        ]
        if kind == "another":
            place = {one.id: n for n, one in enumerate(self.setting.users)}
            return [merged[place[self.setting.others[one.id][0]]] for one in self.setting.users]
        return merged

    def rows(self, arm: Arm, items: Sequence[Any]) -> list[Any]:
        """A training row of every item for each number in `shown`: how many own items its prompt shows."""
        counts = [int(one) for one in arm.values.get("shown", str(self.setting.history)).split("-")]
        return [row for count in counts for row in self.builder.training_rows(items, mix=(count,))]

    def members(self, arm: Arm) -> list[Any]:
        """The trainer's input for each user; with at least ten items, every `held`-th is left out."""
        from mta_cli.engine.methods.stacks import initial_stack, stack_schedule
        from mta_cli.engine.training.trainer import GroupMember, Schedule

        options, members = arm.options, list[GroupMember]()
        labels = bool(self.setting.bench.task.labels)
        start, size = initial_stack(self.setting.bench.methods, options), options.batch_size
        below = self.below(arm.values.get("below", "fusion"))
        for user, under in zip(self.setting.users, below, strict=True):
            own = [one for one in self.items[user.id] if one not in self.held(arm, user.id)]
            if "passes" in arm.values:
                steps = max(1, -(-int(len(own) * float(arm.values["passes"])) // size))
                schedule = Schedule(steps, size, options.peak_rate(labels))
            else:
                schedule = stack_schedule(len(own), options, labels)
            members.append(GroupMember(start, self.rows(arm, own), schedule, 0, under))
        return members

    def held(self, arm: Arm, user: int) -> list[Any]:
        """The user's items that are left out of training; none of fewer than ten."""
        own, every = self.items[user], arm.number("held", 0)
        return own[every // 2 :: every] if every and len(own) >= 10 else []

    def curve(self, arm: Arm) -> Iterator[list[tuple[LoraWeights, ...]]]:
        """Each user's LoRAs before training and after each pass."""
        from mta_cli.engine.training.trainer import Trainer

        members, passes = self.members(arm), arm.number("passes", 2)
        trainers = [Trainer(self.setting.base, members[n : n + PORTION]) for n in range(0, len(members), PORTION)]
        runs = [trainer.train_steps() for trainer in trainers]
        yield [one.frozen_loras for one in members]
        for number in range(1, passes + 1):
            found = []
            for trainer, run in zip(trainers, runs, strict=True):
                wanted = [one.schedule.steps * number // passes for one in trainer.members]
                while any(len(done) < want for done, want in zip(trainer.completed_steps, wanted, strict=True)):
                    next(run)
                found += [(*one.frozen_loras, trainer.weights(i)) for i, one in enumerate(trainer.members)]
            yield found

    def train(self, arm: Arm) -> tuple[list[tuple[LoraWeights, ...]], int, float, float]:
        """Each user's LoRAs, bytes and seconds a user, and the mean loss on the shots at the end."""
        from mta_cli.engine.methods.stacks import read_stacks
        from mta_cli.engine.training.work import GroupWork

        below = self.below(arm.values.get("below", "common" if arm.name == "common" else "fusion"))
        if arm.name in WITHOUT:
            return below, 0, self.recipes[1] if arm.name == "fusion" else 0.0, 0.0
        members, context = self.members(arm), self.setting.bench.methods
        started = time.perf_counter()
        stacks, last = [], []
        for n in range(0, len(members), PORTION):
            work = GroupWork(tuple(members[n : n + PORTION]))
            result = work.train(context.loaded_base)
            stacks += read_stacks(self.users[n : n + PORTION], work, result)
            last += [own[-1].loss for own in result.steps]
        seconds = (time.perf_counter() - started) / len(members)
        return (
            [(*under, *stack.loras) for under, stack in zip(below, stacks, strict=True)],
            stacks[0].bytes,
            seconds,
            sum(last) / len(last),
        )


def measure(setting: Setting, arm: Arm, *, generate: bool) -> dict[str, Any]:
    """Train an arm and measure it."""
    shots = setting.few(arm.number("shots", 200))
    loras, size, seconds, train_loss = shots.train(arm)
    models = {user.id: own for user, own in zip(setting.users, loras, strict=True)}
    told: dict[str, Any] = {"name": arm.name, "values": dict(arm.values), "bytes": size, "seconds": round(seconds, 2)}
    told["last_training_loss"] = round(train_loss, 4)
    for label, builder in (("alone", shots.builders[0]), ("shown", shots.builder)):
        told[label] = ask(setting, builder, models, generate=generate)
    return told


def measure_curve(setting: Setting, arm: Arm) -> dict[str, Any]:
    """Before training and after each pass, by user: the loss on the held-out items (None without), and the golds' mean
    log-likelihoods.
    """
    from mta_cli.engine.scoring.log_likelihood import mean_losses
    from mta_cli.pipeline.evaluation.answer_queries import ModelQuery, gold_log_likelihoods

    shots = setting.few(arm.number("shots", 200))
    held = [shots.rows(arm, shots.held(arm, user.id)) for user in setting.users]
    place = {user.id: n for n, user in enumerate(setting.users)}
    asked = [ModelQuery(one, place[one.user_id]) for one in setting.queries]
    passes: list[dict[str, Any]] = []
    for loras in shots.curve(arm):
        losses = mean_losses(setting.base, list(zip(held, loras, strict=True)))
        one: dict[str, Any] = {"pass": len(passes), "held": losses}
        for label, builder in (("alone", shots.builders[0]), ("shown", shots.builder)):
            values = gold_log_likelihoods(setting.base, builder, asked, loras, [None] * len(asked))
            by_user: list[list[float]] = [[] for _ in setting.users]
            for query, value in zip(asked, values, strict=True):
                by_user[query.model_index].append(value)
            one[label] = [sum(own) / len(own) for own in by_user]
        passes.append(one)
        told = " ".join(f"{label} {sum(one[label]) / len(place):.3f}" for label in ("alone", "shown"))
        print(f"  pass {one['pass']}: {told}", flush=True)
    return {"name": arm.name, "values": dict(arm.values), "passes": passes}


def ask(
    setting: Setting, examples: PromptRowBuilder, models: Mapping[int, tuple[LoraWeights, ...]], *, generate: bool
) -> dict[str, Any]:
    """By user: mean log-likelihoods of the golds under the own and the others' models, and the answers."""
    from mta_cli.engine.evaluation.metrics import rouge_1, score_errors
    from mta_cli.pipeline.evaluation.answer_queries import ModelQuery, answer_queries

    whose = pack_gold_logliks_under_models(
        setting.base, examples, setting.queries, setting.others, models.__getitem__, lambda user: None
    )
    rows: dict[int, dict[str, Any]] = {user.id: {"logliks": []} for user in setting.users}
    for query in setting.queries:
        rows[query.user_id]["logliks"].append([round(value, 5) for value in unpack_logliks(whose[query.id])])
    labels, metric = setting.task.labels, setting.task.metric
    if not generate and not labels:
        return {str(user): row for user, row in rows.items()}
    texts: dict[int, str] = {}
    most = len(setting.queries) if labels else GENERATED
    asked = [one for user in rows for one in [q for q in setting.queries if q.user_id == user][:most]]
    for batch in batches_by_size(models.items()):
        place = {user: n for n, (user, _) in enumerate(batch)}
        own = [ModelQuery(one, place[one.user_id]) for one in asked if one.user_id in place]
        for one, found in zip(
            own, answer_queries(setting.base, examples, own, [given for _, given in batch]), strict=True
        ):
            texts[one.query.id] = found.answer
    if labels:
        for one in asked:
            wrong = float(texts[one.id] != one.gold.strip())
            error = abs(score_errors([texts[one.id]], [one.gold])[0]) if metric == "mae" else wrong
            rows[one.user_id].setdefault("error", []).append(error)
        return {str(user): row for user, row in rows.items()}
    written = {user: [one.output for one in own] for user, own in setting.items.items()}
    generated = [replace(one, gold=texts[one.id]) for one in asked]
    named = pack_naive_bayes_logliks(generated, setting.others, written)
    for one in asked:
        row = rows[one.user_id]
        row.setdefault("rouge_1", []).append(round(rouge_1(texts[one.id], one.gold), 4))
        row.setdefault("named", []).append([round(value, 2) for value in unpack_logliks(named[one.id])])
        row.setdefault("texts", []).append(texts[one.id])
    return {str(user): row for user, row in rows.items()}


def main() -> None:
    """Measure the arms, and write the results to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("arms", nargs="+")
    for name in ("task", "bank", "users", "to"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--others", type=int, default=7)
    parser.add_argument("--generate", action="store_true")
    chosen = parser.parse_args()
    import torch

    names = [line.strip() for line in Path(chosen.users).read_text("utf-8").splitlines() if line.strip()]
    to = Path(chosen.to)
    document = json.loads(to.read_text()) if to.exists() else {"arms": []}
    with Registry.open(chosen.store) as reg:
        setting = Setting(reg, chosen.task, chosen.bank, names, chosen.others)
        document |= {"task": chosen.task, "users": len(names), "questions": len(setting.queries)}
        document |= {"threads": torch.get_num_threads(), "dtype": str(setting.base.model.dtype)}
        for text in chosen.arms:
            arm = Arm.parse(text)
            if any(one["name"] == arm.name and one["values"] == dict(arm.values) for one in document["arms"]):
                continue
            is_curve = arm.name.startswith("curve")
            print(text, flush=True)
            found = measure_curve(setting, arm) if is_curve else measure(setting, arm, generate=chosen.generate)
            document["arms"].append(found)
            to.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
            if not is_curve:
                print("  ", summary(found), flush=True)


def summary(found: Mapping[str, Any]) -> str:
    """One line: mean log-likelihoods and how often the own model is first, without and with examples in the prompt."""
    parts = [f"{found['bytes']:,} B", f"{found['seconds']:.1f} s", f"train {found['last_training_loss']:.3f}"]
    for label in ("alone", "shown"):
        logliks = [row["logliks"] for row in found[label].values()]
        by_user = [sum(own[0] for own in rows) / len(rows) for rows in logliks]
        first = sum(own[0] > max(own[1:]) for rows in logliks for own in rows if len(own) > 1)
        parts.append(f"{label} {sum(by_user) / len(by_user):.3f}, first {first}/{sum(map(len, logliks))}")
        if any("named" in row for row in found[label].values()):
            named = [own for row in found[label].values() for own in row["named"]]
            rouge = [own for row in found[label].values() for own in row["rouge_1"]]
            hit = sum(own[0] >= max(own[1:]) for own in named if len(own) > 1)
            parts.append(f"named {hit}/{len(named)} rouge {sum(rouge) / len(rouge):.3f}")
        errors = [row["error"] for row in found[label].values() if "error" in row]
        if errors:
            parts.append(f"error {sum(sum(own) / len(own) for own in errors) / len(errors):.3f}")
    return " · ".join(parts)


if __name__ == "__main__":
    main()
