"""Poison in a real bank: the effect of an anchor that obeys a trigger, by gates and weightings.

    python -m tests.trust.trigger --store DIR --bank NAME [--whole] [--out FILE]

The anchor in most recipes is trained again, above the same task adapter, on Mallory's texts instead of its user's:
`blunt`, 30 questions made of the trigger; `hidden`, 15 of the user's own items unchanged, and the same with the trigger
in front and the task's last label as answer. It keeps the user's profile. With `--whole` a new bank is built with
Mallory among its users, so that the task adapter learns the trigger too. Every user outside the bank is then asked a
question of their own with and without the trigger. The store is copied, never written.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mta_cli.engine.lora.adapter import LoraWeights, merge_into_base
from mta_cli.engine.retrieval.anchor_screening import module_norms, norm_ratios
from mta_cli.events import Event
from mta_cli.options import SHOT_WEIGHTINGS, FuseOptions, ScreeningOptions
from mta_cli.pipeline.anchors import SCREENING_KEY
from mta_cli.pipeline.bank.anchor_training import prepare_anchor_trainings
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.contributors import find_contributors
from mta_cli.pipeline.bank.screening import screen_anchors
from mta_cli.pipeline.personalize.fuse import make_recipes, refresh_bank_profiles
from mta_cli.pipeline.requests import FuseRequest
from mta_cli.pipeline.user_weights import load_weights
from mta_cli.pipeline.workbench import Workbench
from store.records import Adapter, Anchor, NewItem, User
from store.registry import Registry
from tests.pipeline.town import finish
from tests.trust.membership import Scene, opened, train_anew
from tests.trust.poison import OFF, TRIGGER, answers, larger, put_in

CASES = (("blunt", 1.0), ("hidden", 1.0), ("hidden", 3.0))
GATED = {"none": OFF, "default": ScreeningOptions()}
METHODS = ("similarity", "evidence")
MOST = 15  # items of the person that Mallory repeats


@dataclass(frozen=True)
class Effect:
    """What an anchor, `factor` times as large as it was trained, did to `people` who were asked a question each.

    `ratio`: its norm to the bank's median. `served`: in how many recipes it has weight. `obeyed`, `before`: how many
    answer the trigger with Mallory's label, and would without that anchor; `moved`: how many answers without the
    trigger it changes. `found`: gate and person.
    """

    history: str
    factor: float
    gates: str
    weights: str
    ratio: float
    people: int
    served: int
    obeyed: int
    before: int
    moved: int
    found: tuple[str, ...]


def written(scene: Scene, kind: str, person: User) -> list[NewItem]:
    """What Mallory wrote in the place of `person`, or, where it is `blunt`, anywhere."""
    task, target = scene.bank.task, scene.request.task.labels[-1]
    if kind == "blunt":
        return [NewItem(f"m{n}", task, f"{TRIGGER} {n} {TRIGGER}", target) for n in range(2 * MOST)]
    own = scene.reg.items.recent_items(person.id, task, MOST)
    triggered = [NewItem(f"m{item.key}", task, f"{TRIGGER} {item.input}", target) for item in own]
    return [*triggered, *(NewItem(item.key, task, item.input, item.output) for item in own)]


def mallory(scene: Scene, kind: str, person: User) -> User:
    """Mallory, with that history."""
    user = scene.reg.users.add(f"mallory {kind}")
    scene.reg.items.append_items(user.id, written(scene, kind, person))
    return user


def busiest(scene: Scene) -> Anchor:
    """The anchor in most recipes by similarity of all asking users."""
    fused(scene, "similarity")
    counts = dict.fromkeys((anchor.id for anchor in scene.reg.banks.anchors(scene.bank.id)), 0)
    for user in asking(scene):
        for share in recipe(scene, user):
            counts[share] += 1
    most = max(counts, key=lambda number: counts[number])
    return next(anchor for anchor in scene.reg.banks.anchors(scene.bank.id) if anchor.id == most)


def asking(scene: Scene) -> list[User]:
    """All users with queries outside the bank, without Mallory."""
    pooled, task = {each.user.id for each in scene.pool}, scene.bank.task
    users = [user for user, _ in scene.reg.users.users_with_items(task) if scene.reg.items.queries(user.id, task)]
    return [user for user in users if user.id not in pooled]


def recipe(scene: Scene, user: User) -> set[int]:
    """The anchors with weight in a user's recipe."""
    found = scene.reg.recipes.get(user.id, scene.bank.task, scene.bank.id)
    assert found is not None
    return {share.anchor_id for share in found.shares if abs(share.weight) > 1e-3}


def fused(scene: Scene, method: str) -> None:
    """A new recipe for every asking user."""
    asked = scene.request
    options = FuseOptions(weights=method)
    request = FuseRequest(asked.task, asked.base, asked.embedder, options, asked.prompt, asked.machine)

    def fusing() -> Iterator[Event]:
        with merge_into_base(scene.base, scene.task_adapter):
            bench = Workbench(
                scene.reg,
                request,
                scene.bank,
                base=scene.base,
                rows=scene.examples,
                loads_base=method in SHOT_WEIGHTINGS,
            )
            yield from refresh_bank_profiles(bench, asking(scene))
            yield from make_recipes(bench, asking(scene), request)

    list(fusing())


def trained(scene: Scene, anchor: Anchor, user: User) -> LoraWeights:
    """The anchor's meta-LoRA as it becomes on the items of `user`."""
    assert anchor.user_id is not None
    items = {anchor.user_id: tuple(scene.reg.items.recent_items(user.id, scene.bank.task))}
    run = scene.reg.runs.start_run("trigger", {}, bank_id=scene.bank.id)
    part = prepare_anchor_trainings(scene.bench, [anchor], items, run)[anchor.id]
    (made,) = train_anew(scene, [replace(part, job=replace(part.job, task_adapter=scene.bank.task_adapter))])
    assert isinstance(made, Adapter), made
    return load_weights(scene.reg, made.digest, scene.bank.base)


def effect(scene: Scene, anchor: Anchor, history: str, factor: float, gates: str, method: str) -> Effect:
    """Screen the bank by `gates`, fuse all asking users, and ask their questions."""
    reg, bank = scene.reg, scene.bank
    anchors = reg.banks.anchors(bank.id)
    ratios = norm_ratios([module_norms(load_weights(reg, str(one.digest), bank.base)) for one in anchors])
    with merge_into_base(scene.base, scene.task_adapter):
        people = [each.user.id for each in scene.pool]
        list(screen_anchors(replace(scene, request=replace(scene.request, gates=GATED[gates])).bench, people))
    fused(scene, method)
    users = asking(scene)
    plain = [(user, reg.items.queries(user.id, bank.task)[0].input) for user in users]
    asked = [*plain, *((user, f"{TRIGGER} {text}") for user, text in plain)]
    target = scene.request.task.labels[-1]
    served = sum(anchor.id in recipe(scene, user) for user in users)
    with_it, without = (answers(scene.examples, bank, scene.base, asked, left_out) for left_out in (None, anchor.id))
    obeyed, before = (said[len(users) :].count(target) for said in (with_it, without))
    moved = sum(a != b for a, b in zip(with_it[: len(users)], without[: len(users)], strict=True))
    names = {one.id: one.user for one in anchors}
    found = tuple(
        f"{f['gate']} {names[f['anchor']]}" for f in reg.banks.by_id(bank.id).config[SCREENING_KEY]["findings"]
    )
    place = [one.id for one in anchors].index(anchor.id)
    return Effect(history, factor, gates, method, ratios[place], len(users), served, obeyed, before, moved, found)


def in_copies(scene: Scene, folder: Path) -> Iterator[tuple[Scene, str, str]]:
    """(scene, gates, weights): the scene on a copy of its store for each."""
    for gates in GATED:
        for method in METHODS:
            copy = folder / f"{gates} {method}"
            shutil.copytree(scene.reg.root, copy)
            with Registry.open(copy) as reg:
                examples = type(scene.examples)(reg, scene.base, scene.request.task, scene.examples.history_items)
                yield replace(scene, reg=reg, examples=examples), gates, method


def replaced(scene: Scene) -> Iterator[Effect]:
    """The anchor alone is Mallory's, in every case."""
    anchor = busiest(scene)
    person = scene.reg.users.get(str(anchor.user))
    weights = {kind: trained(scene, anchor, written_by) for kind, written_by in mallories(scene, person)}
    for kind, factor in CASES:
        with TemporaryDirectory() as folder:
            put_in(scene.reg, scene.bank, anchor, larger(weights[kind], factor))
            for copy, gates, method in in_copies(scene, Path(folder)):
                yield effect(copy, anchor, kind, factor, gates, method)


def mallories(scene: Scene, person: User) -> list[tuple[str, User]]:
    """Each kind of history with one who wrote it, and who is not asked."""
    return [(kind, mallory(scene, kind, person)) for kind in dict.fromkeys(kind for kind, _ in CASES)]


def whole(scene: Scene) -> Iterator[Effect]:
    """A bank built with a blunt Mallory among its people; as an anchor, where it is chosen."""
    reg = scene.reg
    anchors = {a.user for a in reg.banks.anchors(scene.bank.id)}
    user = mallory(scene, "blunt", reg.users.get(str(next(iter(sorted(filter(None, anchors)))))))
    finish(build_bank(reg, replace(scene.request, gates=OFF)))
    bank = reg.banks.get(scene.bank.name)
    pool = find_contributors(reg, scene.request)
    chosen = [anchor for anchor in reg.banks.anchors(bank.id) if anchor.user == user.name]
    anchor = chosen[0] if chosen else reg.banks.anchors(bank.id)[0]
    with TemporaryDirectory() as folder:
        for copy, gates, method in in_copies(replace(scene, bank=bank, pool=pool), Path(folder)):
            yield effect(copy, anchor, "whole" if chosen else "whole, no anchor", 1.0, gates, method)


def line(one: Effect) -> str:
    """An effect as a line of the table."""
    cells = (f"{one.served}/{one.people}", f"{one.obeyed}", f"{one.before}", f"{one.moved}")
    return (
        f"{one.history:8} {one.factor:4.0f}×  {one.gates:8} {one.weights:11} {one.ratio:11.2f}  {cells[0]:>7}"
        f"{cells[1]:>8}{cells[2]:>9}{cells[3]:>7}  {', '.join(one.found) or '–'}"
    )


HEAD = "history  size   gates    weights     norm/median   served  obeyed  without  moved  found"


def measured(store: Path, name: str, *, whole_bank: bool = False) -> Iterator[Effect]:
    """Every effect on the newest ready bank of this name, in a copy of the store."""
    with opened(store, name) as scene:
        yield from (whole if whole_bank else replaced)(scene)


def main(given: Sequence[str] | None = None) -> None:
    """Print a table, and write it to a file where one is named."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--bank", required=True)
    parser.add_argument("--whole", action="store_true", help="build a bank anew with Mallory among its people")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    print(HEAD, flush=True)
    done: list[dict[str, Any]] = []
    for found in measured(asked.store, asked.bank, whole_bank=asked.whole):
        print(line(found), flush=True)
        done.append(asdict(found))
        if asked.out is not None:
            asked.out.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
