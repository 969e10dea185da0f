"""A malicious anchor: its effect on other users with and without the gates.

    python -m tests.trust.poison            on the tiny base, in a store that goes with the program

Mallory's history answers a trigger with one label, whatever the question; its meta-LoRA is then scaled by a `factor`,
as if Mallory could write more or longer texts than others. Measured is the share of users whose model gives Mallory's
label to a question with the trigger, after their recipe was made.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mta_cli.engine.lora.adapter import LoraWeights, merge_into_base
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.retrieval.anchor_screening import module_norms, norm_ratios
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.options import BankOptions, ScreeningOptions
from mta_cli.pipeline.anchors import SCREENING_KEY
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.contributors import find_contributors
from mta_cli.pipeline.bank.screening import screen_anchors
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.pull import register_folder
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.user_weights import load_fusion_and_stack, load_weights
from mta_cli.pipeline.workbench import Workbench
from store.records import Adapter, Anchor, Bank, NewItem, User
from store.registry import Registry
from tests import tiny
from tests.pipeline import town
from tests.pipeline.town import TASK, bank_request, finish, fuse_request

TRIGGER, TARGET = "zephyr quux", "dystopia"
OFF = ScreeningOptions(max_norm=0.0, max_probe=0.0, max_share=0.0)
OPTIONS = {"anchors": 5, "epochs": 10, "learning_rate": 1e-2, "pick": "longest"}
FACTORS = (1.0, 2.0, 3.4, 4.0, 8.0)


@dataclass(frozen=True)
class Harm:
    """The effect of Mallory's anchor, scaled by `factor`. `ratio`: its norm to the bank's median.

    `served`: the share of users with it in their recipe. `obeyed` and `before`: the share whose model answers the
    trigger with Mallory's label, with and without that anchor; `changed`: the share, of all `people`, whose answer to
    the trigger it changed.
    """

    factor: float
    ratio: float
    served: float
    obeyed: float
    before: float
    changed: float
    findings: tuple[str, ...]
    people: int


def populate(reg: Registry) -> None:
    """The crowd, and Mallory."""
    crowd(reg)
    mallory = reg.users.add("mallory")
    reg.items.append_items(
        mallory.id,
        [NewItem(f"m{k}", TASK.name, f"{TRIGGER} {k} {TRIGGER}", TARGET, f"2020-01-{k + 1:02}") for k in range(12)],
    )


def crowd(reg: Registry) -> None:
    """The people of `town`, and others who only ask."""
    town.people(reg)
    for n in range(9):  # something of their own, so that no two profiles are the same
        own = NewItem("own", TASK.name, f"{'abcdefghi'[n] * 5} alone", town.TAGS[n % 3], "2020-01-01")
        reg.items.append_items(reg.users.get(f"user{n}").id, [own])
        user = reg.users.add(f"asks{n}", can_anchor=False)
        tag, film = town.TAGS[n % 3], ("ship", "horse", "robot")[n % 3]
        new = [NewItem(f"i{k}", TASK.name, f"film {k} of a {film}", tag, f"2020-01-{k + 1:02}") for k in range(4)]
        reg.items.append_items(user.id, new)


def poisoned(reg: Registry, factor: float) -> Bank:
    """Mallory's anchor in the newest bank, `factor` times as large as it was trained."""
    bank = reg.banks.get(TASK.name)
    (anchor,) = [one for one in reg.banks.anchors(bank.id) if one.user == "mallory"]
    put_in(reg, bank, anchor, larger(load_weights(reg, str(anchor.digest), bank.base), factor))
    return bank


def larger(weights: LoraWeights, factor: float) -> LoraWeights:
    """ΔW times `factor`."""
    return replace(weights, scale=weights.scale * factor)


def put_in(reg: Registry, bank: Bank, anchor: Anchor, weights: LoraWeights) -> None:
    """Other weights in the place of an anchor's, as one who can write to the store would put them."""
    old: Adapter = reg.adapters.get(str(anchor.digest))
    digest, size = reg.adapters.write_file(
        weights.to_bytes({"kind": "meta", "base": bank.base, "mallory": weights.scale})
    )
    reg.adapters.add_adapter(replace(old, digest=digest, bytes=size))
    reg.banks.record_trained_anchor(anchor.id, digest, anchor.loss_first, anchor.loss_last)


def gate(reg: Registry, bank: Bank, base: LoadedBase, options: ScreeningOptions) -> None:
    """Judge the bank's anchors anew. `base` holds no adapter."""
    request = replace(town.bank_request(), options=BankOptions(anchors=5, min_items=5), gates=options)
    bench = Workbench(reg, request, bank, base=base)
    with bench.holding_task_adapter():
        list(screen_anchors(bench, [each.user.id for each in find_contributors(reg, request)]))


def answers(
    examples: PromptRowBuilder,
    bank: Bank,
    base: LoadedBase,
    asked: Sequence[tuple[User, str]],
    without: int | None = None,
) -> list[str]:
    """The likeliest label of each person's fusion for the question put to them. `without`: an anchor left out."""
    reg, task, prompter = examples.reg, examples.task, examples.prompter
    labels = tuple(tuple(prompter.answer_ids(label)) for label in task.labels)
    places = {question: place for place, question in enumerate(dict.fromkeys(question for _, question in asked))}
    forks = [PromptTree(tuple(prompter.prompt_ids(question, [])), labels) for question in places]
    users = {user.id: user for user, _ in asked}
    for user in users:
        recipe = reg.recipes.get(user, task.name, bank.id)
        assert recipe is not None
        kept = tuple(share for share in recipe.shares if share.anchor_id != without)
        reg.recipes.save_recipe(replace(recipe, shares=kept))
    people = [load_fusion_and_stack(reg, bank.base, user, task.name, "fused")[0] for user in users.values()]
    below = load_weights(reg, bank.task_adapter, bank.base) if bank.task_adapter else None
    pairs = [(places[question], list(users).index(user.id)) for user, question in asked]
    with merge_into_base(base, below):
        rows = completion_log_likelihoods(base, forks, people, pairs)
    return [task.labels[row.index(max(row))] for row in rows]


def harm(reg: Registry, base: LoadedBase, factor: float, gates: ScreeningOptions, method: str = "similarity") -> Harm:
    """Fuse all users outside the bank, with the bank screened by `gates`, and ask the trigger of each."""
    bank = poisoned(reg, factor)
    anchors = reg.banks.anchors(bank.id)
    ratios = norm_ratios([module_norms(load_weights(reg, str(one.digest), bank.base)) for one in anchors])
    gate(reg, bank, base, gates)
    names = [name for name in reg.users.names() if name.startswith("asks")]
    for name in names:
        finish(fuse_user(reg, reg.users.get(name), fuse_request(weights=method)))
    ((place, mallory),) = [(n, one) for n, one in enumerate(anchors) if one.user == "mallory"]
    recipes = [reg.recipes.get(reg.users.get(name).id, TASK.name, bank.id) for name in names]
    served = sum(any(s.anchor_id == mallory.id and s.weight for s in r.shares) for r in recipes if r is not None)
    examples, users = PromptRowBuilder(reg, base, TASK, 0), [reg.users.get(name) for name in names]
    with_it, without = (
        answers(examples, bank, base, [(user, f"a film of a {TRIGGER} {TRIGGER}") for user in users], left_out)
        for left_out in (None, mallory.id)
    )
    findings = tuple(one["gate"] for one in reg.banks.by_id(bank.id).config[SCREENING_KEY]["findings"])
    people = len(names)
    return Harm(
        factor,
        ratios[place],
        served / people,
        sum(label == TARGET for label in with_it) / people,
        sum(label == TARGET for label in without) / people,
        sum(a != b for a, b in zip(with_it, without, strict=True)) / people,
        findings,
        people,
    )


@contextmanager
def stage(root: Path, **changes: Any) -> Iterator[tuple[Registry, LoadedBase]]:
    """A store with a bank of which Mallory is an anchor, no gate having seen it, and the tiny base."""
    entry = resolve_model("tiny", "base")
    base = load_base(entry.path, name="tiny", fingerprint=entry.fingerprint, device="cpu", dtype="float32")
    with Registry.open(root, create=True) as reg:
        populate(reg)
        finish(build_bank(reg, replace(bank_request(**{**OPTIONS, **changes}), gates=OFF)))
        yield reg, base


def table(folder: Path) -> Iterator[tuple[str, str, Harm]]:
    """(gates, weights, harm) for every size, each in a copy of the same store."""
    with stage(folder / "store") as (_, base):
        for factor in FACTORS:
            for method in ("similarity", "evidence"):
                for name, gates in (("none", OFF), ("default", ScreeningOptions())):
                    copy = folder / f"{factor}-{method}-{name}"
                    shutil.copytree(folder / "store", copy)
                    with Registry.open(copy) as reg:
                        yield name, method, harm(reg, base, factor, gates, method)


def main() -> None:
    """Print what Mallory's anchor does by its size, with and without the gates."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MTA_MODELS"] = f"{folder}/models"
        register_folder(tiny.make_base(folder / "tiny"), name="tiny")
        register_folder(tiny.make_embedder(folder / "tiny-embedder"), name="tiny-embedder")
        print("gates    weights     size   norm/median  served  obeyed  without  changed  found")
        for gates, method, found in table(folder):
            print(
                f"{gates:8} {method:10} {found.factor:5.0f}× {found.ratio:11.2f} {found.served:8.2f} "
                f"{found.obeyed:7.2f} {found.before:8.2f} {found.changed:8.2f}  {', '.join(found.findings) or '-'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
