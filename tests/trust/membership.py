"""Membership inference against a bank, and against its users' own stacks: who was in the training?

    python -m tests.trust.membership --store DIR --bank NAME [--items N] [--clusters] [--only PART] [--out FILE]

An attacker who knows an item measures how much an adapter raises the likelihood of its answer over the weights below
it. The score is the difference of losses per token; the AUC is the probability that a training item scores higher than
an item outside the training: of the same user (held-out queries), or of users whom the adapter never saw. One half
means that the attacker learns nothing. Intervals are 95 % bootstrap intervals over people. The store is copied, never
written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mta_cli.engine.lora.adapter import LoraWeights, merge_into_base
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.options import MachineOptions
from mta_cli.pipeline.bank.anchor_training import prepare_anchor_trainings
from mta_cli.pipeline.bank.contributors import Contributor, find_contributors
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.data.profiles import profile_matrix
from mta_cli.pipeline.memory.knn import load_embedder, load_neighbours, update_neighbours
from mta_cli.pipeline.requests import BankRequest, restore_bank_request
from mta_cli.pipeline.training.groups import AdapterTraining, TrainingGroup, train_groups
from mta_cli.pipeline.user_weights import load_fusion_and_stack, load_stack_weights, load_weights
from mta_cli.pipeline.workbench import Workbench
from store.records import Adapter, Bank
from store.registry import Registry
from tests.engine.likelihoods import row_log_likelihoods

DRAWS = 2_000
OTHERS = 24  # items of users whom an adapter never saw, for each tried one
Losses = list[float]


@dataclass(frozen=True)
class Tried:
    """One user's scores under an adapter: `members` of the training, the user's `held` queries, and `others`' items."""

    members: Sequence[float]
    held: Sequence[float]
    others: Sequence[float]


@dataclass
class Scene:
    """A bank on its base, in a copy of the store, with the bank's users."""

    reg: Registry
    bank: Bank
    base: LoadedBase
    request: BankRequest
    pool: list[Contributor]
    examples: PromptRowBuilder
    most: int = 0

    def items(self, user: int) -> list[TrainingRow]:
        """A row for each item that the person was trained on, or for `most` of them, evenly from first to last."""
        (own,) = [each for each in self.pool if each.user.id == user]
        step = max(1, len(own.items) // self.most) if self.most else 1
        return self.examples.training_rows(own.items[::step][: self.most or None])

    def queries(self, user: int) -> list[TrainingRow]:
        """A row for each of the user's held-out queries."""
        return self.examples.query_rows(self.reg.items.queries(user, self.bank.task))

    def strangers(self, besides: set[int], seed: int) -> list[TrainingRow]:
        """`OTHERS` items of people who are not among `besides`."""
        task, limit = self.bank.task, self.request.options.max_items or None
        users = [user.id for user, _ in self.reg.users.users_with_items(task) if user.id not in besides]
        items = [item for user in users for item in self.reg.items.recent_items(user, task, limit)]
        chosen = np.random.default_rng(seed).permutation(len(items))[:OTHERS]
        return self.examples.training_rows([items[place] for place in chosen.tolist()])

    @property
    def bench(self) -> Workbench[BankRequest]:
        """The workbench of the bank, on the base that is loaded."""
        return Workbench(self.reg, self.request, self.bank, base=self.base, rows=self.examples)

    @property
    def task_adapter(self) -> LoraWeights | None:
        """The bank's task adapter."""
        return load_weights(self.reg, self.bank.task_adapter, self.bank.base) if self.bank.task_adapter else None


def auc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """The chance that one of `inside` is above one of `outside`; ties count half."""
    a, b = np.array(inside)[:, None], np.array(outside)[None, :]
    return float((a > b).mean() + 0.5 * (a == b).mean())


def interval(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """The mean of people's `values`, with a 95 % bootstrap interval over people."""
    own = np.array(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(own), (DRAWS, len(own)))
    low, high = np.percentile(own[draws].mean(axis=1), [2.5, 97.5])
    return {"value": float(own.mean()), "low": float(low), "high": float(high), "people": len(own)}


def summary(tried: Sequence[Tried]) -> dict[str, Any]:
    """The AUC against held-out queries of the same people, and against others' items, each a mean over people."""
    same = [auc(one.members, one.held) for one in tried if one.members and one.held]
    others = [auc(one.members, one.others) for one in tried if one.members and one.others]
    return {
        "against_held_out": interval(same) if same else None,
        "against_others": interval(others) if others else None,
    }


def losses(base: LoadedBase, rows: Sequence[TrainingRow], parts: tuple[LoraWeights, ...] = ()) -> Losses:
    """Of each row, the loss of its answer: nats per token."""
    return [-value / count for value, count in row_log_likelihoods(base, rows, parts)]


def gains(base: LoadedBase, rows: Sequence[TrainingRow], parts: tuple[LoraWeights, ...]) -> list[float]:
    """By how much `parts` lower each row's loss, above what the base holds now."""
    without, with_parts = losses(base, rows), losses(base, rows, parts)
    return [a - b for a, b in zip(without, with_parts, strict=True)]


def try_anchors(scene: Scene, digests: dict[int, str]) -> list[Tried]:
    """Each anchor (a digest by its person's id) above the task adapter, on that person's items."""
    pooled = {each.user.id for each in scene.pool}
    found = []
    with merge_into_base(scene.base, scene.task_adapter):
        for user, digest in digests.items():
            parts = (load_weights(scene.reg, digest, scene.bank.base),)
            rows = [scene.items(user), scene.queries(user), scene.strangers(pooled, user)]
            found.append(Tried(*(gains(scene.base, each, parts) for each in rows)))
    return found


def try_stacks(scene: Scene) -> list[Tried]:
    """Each user's stack above their fusion, on the items that it was trained on."""
    reg, bank, rows = scene.reg, scene.bank, scene.examples
    found = []
    with merge_into_base(scene.base, scene.task_adapter):
        for user, _ in reg.users.users_with_items(bank.task):
            if (stack := reg.stacks.get(user.id, bank.task, bank.id)) is None:
                continue
            own = load_stack_weights(reg, stack, bank.base)
            fused = load_fusion_and_stack(reg, bank.base, user, bank.task, "fused")[0]
            shots = rows.training_rows(reg.items.recent_items(user.id, bank.task, stack.shots))
            asked = [shots, scene.queries(user.id), scene.strangers({user.id}, user.id)]
            pairs = [(losses(scene.base, each, fused), losses(scene.base, each, (*fused, own))) for each in asked]
            found.append(Tried(*([a - b for a, b in zip(*pair, strict=True)] for pair in pairs)))
    return found


def try_task_adapter(scene: Scene) -> list[Tried]:
    """The task adapter above the base, tried on all users of its training."""
    adapter = scene.task_adapter
    if adapter is None:
        return []
    pooled = {each.user.id for each in scene.pool}
    others = gains(scene.base, scene.strangers(pooled, 0), (adapter,))
    return [
        Tried(
            gains(scene.base, scene.items(each.user.id), (adapter,)),
            gains(scene.base, scene.queries(each.user.id), (adapter,)),
            others,
        )
        for each in scene.pool
    ]


def try_neighbours(scene: Scene) -> dict[str, Any] | None:
    """What the vote says of an item whose very question is asked: AUC of the true label's log rate, and how often the
    true label has most votes, for kept items and for held-out queries. None where the task has no labels.
    """
    reg, task, embedder = scene.reg, scene.request.task, scene.request.embedder
    list(update_neighbours(reg, scene.bank, task, [(each.user, each.items) for each in scene.pool], embedder, "cpu"))
    bank = reg.banks.by_id(scene.bank.id)
    known = load_neighbours(reg, bank, task)
    if known is None or bank.kernel is None:
        return None
    embed = load_embedder(embedder, "cpu").embed

    def said(pairs: Sequence[tuple[str, str]]) -> tuple[list[float], list[bool]]:
        if not pairs:
            return [], []
        logs = known.log_vote_rates(embed([text for text, _ in pairs]), float(bank.kernel["sharpness"]))  # type: ignore[index]
        places = [task.labels.index(label) for _, label in pairs]
        tops = logs.argmax(axis=1).tolist()
        return [float(logs[i, p]) for i, p in enumerate(places)], [t == p for t, p in zip(tops, places, strict=True)]

    tried, right = [], {"kept": list[bool](), "held_out": list[bool]()}
    for each in scene.pool:
        own = [(item.input, item.output.strip()) for item in each.items if item.output.strip() in task.labels]
        queries = [(q.input, q.gold.strip()) for q in reg.items.queries(each.user.id, task.name)]
        (inside, hit), (outside, near) = said(own), said([pair for pair in queries if pair[1] in task.labels])
        tried.append(Tried(inside, outside, ()))
        right["kept"] += hit
        right["held_out"] += near
    shares = {name: float(np.mean(values)) if values else None for name, values in right.items()}
    return {**summary(tried), "label_has_most_votes": shares, "sharpness": bank.kernel["sharpness"]}


def cluster_anchors(scene: Scene) -> dict[int, str]:
    """Meta-LoRAs trained on all users of an anchor's cluster, with as many steps as the anchor; digests by user.

    A cluster has all users whose nearest anchor this is.
    """
    reg, bank, request = scene.reg, scene.bank, scene.request
    anchors = [anchor for anchor in reg.banks.anchors(bank.id) if anchor.user_id is not None]
    users = [each.user.id for each in scene.pool if each.items_held >= request.options.anchor_items]
    ids, matrix = profile_matrix(reg, bank.task, bank.embedder, users)
    row = {user: place for place, user in enumerate(ids)}
    nearest = (matrix @ matrix[[row[a.user_id] for a in anchors if a.user_id is not None]].T).argmax(axis=1)
    items = {each.user.id: each.items for each in scene.pool}
    run = reg.runs.start_run("membership", {}, bank_id=bank.id)
    parts = []
    for place, anchor in enumerate(anchors):
        assert anchor.user_id is not None
        alone = prepare_anchor_trainings(scene.bench, [anchor], items, run)[anchor.id]
        crowd = tuple(item for user in users if nearest[row[user]] == place for item in items[user])
        mine = {**items, anchor.user_id: crowd or items[anchor.user_id]}
        wide = prepare_anchor_trainings(scene.bench, [anchor], mine, run)[anchor.id]
        job = replace(wide.job, schedule=alone.job.schedule, label=f"cluster {place}", task_adapter=bank.task_adapter)
        parts.append(replace(wide, job=job))
    made = train_anew(scene, parts)
    return {
        a.user_id: one.digest for a, one in zip(anchors, made, strict=True) if isinstance(one, Adapter) and a.user_id
    }


def train_anew(scene: Scene, parts: list[AdapterTraining]) -> list[Adapter | str]:
    """Train meta-LoRAs above the bank's task adapter: an adapter for each part, else why there is none."""
    made: list[Adapter | str] = []

    def settle(results: list[Adapter | str], trained: object) -> Iterator[Any]:
        made.extend(results)
        yield from ()

    with merge_into_base(scene.base, scene.task_adapter):
        list(train_groups(scene.reg, scene.base, [TrainingGroup(parts, settle)]))
    return made


@contextmanager
def opened(store: Path, name: str, most: int = 0) -> Iterator[Scene]:
    """The newest ready bank of this name, in a copy of the store, on its base in float32."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(store, Path(folder) / "store")
        with Registry.open(Path(folder) / "store") as reg:
            bank = reg.banks.get(name)
            request = restore_bank_request(reg, bank, MachineOptions(device="cpu", dtype="float32"))
            entry = request.base
            base = load_base(entry.path, name=entry.name, fingerprint=entry.fingerprint, device="cpu", dtype="float32")
            pool = find_contributors(reg, request)
            examples = PromptRowBuilder(reg, base, request.task, request.prompt.history_items)
            yield Scene(reg, bank, base, request, pool, examples, most)


def measured(
    scene: Scene, *, clusters: bool, only: str = "", say: Callable[[str, Any], None] = lambda name, found: None
) -> dict[str, Any]:
    """Every part of the bank; `say` hears each as soon as it is known."""
    anchors = {a.user_id: str(a.digest) for a in scene.reg.banks.anchors(scene.bank.id) if a.user_id and a.digest}
    work: list[tuple[str, Callable[[], Any]]] = [
        ("anchors", lambda: summary(try_anchors(scene, anchors))),
        ("neighbours", lambda: try_neighbours(scene)),
        ("task_adapter", lambda: summary(try_task_adapter(scene))),
        ("stacks", lambda: summary(try_stacks(scene))),
    ]
    if clusters:
        work.append(("cluster_anchors", lambda: summary(try_anchors(scene, cluster_anchors(scene)))))
    found: dict[str, Any] = {"bank": scene.bank.name, "task": scene.bank.task, "people": len(scene.pool)}
    for name, part in work:
        if only not in ("", name):
            continue
        found[name] = part()
        say(name, found)
    return found


def line(name: str, found: Any) -> str:
    """One part of the bank as a line of a table."""
    if found is None:
        return f"{name:16} none"
    cells = []
    for key in ("against_held_out", "against_others"):
        one = found[key]
        cells.append("–" if one is None else f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]")
    votes = found.get("label_has_most_votes")
    rest = (
        "" if votes is None else f"  label has most votes: kept {votes['kept']:.2f}, held out {votes['held_out']:.2f}"
    )
    return f"{name:16} {cells[0]:22} {cells[1]:22}{rest}"


def main() -> None:
    """Print a table, and write the numbers to a file where one is named."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--bank", action="append", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--clusters", action="store_true", help="train anchors on whole clusters, and try these too")
    parser.add_argument("--only", default="", metavar="PART", help="one part alone, as stacks")
    parser.add_argument("--items", type=int, default=0, help="at most so many items of each person; 0 for all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done: list[dict[str, Any]] = []

    def say(part: str, found: dict[str, Any]) -> None:
        print(line(part, found[part]), flush=True)
        if given.out is not None:  # after each part: what is known stays, whatever happens to the next
            given.out.write_text(json.dumps([*done, found], indent=2) + "\n", encoding="utf-8")

    for name in given.bank:
        with opened(given.store, name, given.items) as scene:
            print(f"{name}: AUC    against held-out       against others' items", flush=True)
            done.append(measured(scene, clusters=given.clusters, only=given.only, say=say))


if __name__ == "__main__":
    main()
