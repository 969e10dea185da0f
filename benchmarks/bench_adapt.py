"""Adapting users to their five shots: ours compared with a PEFT LoRA of rank 8 trained on the bare base.

Ours starts above a task adapter and a few anchors, which are made here from other users and not timed, because a bank
is made once. The timed part is the evidence of every anchor for every user, merging, and the stacks' training. The
rival (OPPU's settings: rank 8 on q and v) trains until its held-out loss is as low as ours, or up to its limit of
steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks import harness
from benchmarks.bench_bank import ours as train_group
from benchmarks.losses import mean_loss
from benchmarks.rivals import Recipe, oppu, peft_adapt

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import TrainingRow

STEPS, RATE = 10, 2e-3


def adapt(
    base: LoadedBase, anchors: Sequence[LoraWeights], users: Sequence[Sequence[TrainingRow]], placement: str
) -> list[tuple[LoraWeights, ...]]:
    """Every user's fusion and stack, from their shots."""
    from mta_cli.engine.lora.adapter import init_lora_weights
    from mta_cli.engine.lora.merge import merge_loras
    from mta_cli.engine.methods.weightings import evidence_weights
    from mta_cli.engine.scoring.log_likelihood import (
        completion_log_likelihoods,
    )
    from mta_cli.engine.scoring.prefix_tree import PromptTree
    from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer

    harness.forget(base)
    forks = [PromptTree.from_row(row) for rows in users for row in rows]
    candidates = [(), *((anchor,) for anchor in anchors)]
    asked = [(fork, person) for person in range(len(candidates)) for fork in range(len(forks))]
    values = iter(completion_log_likelihoods(base, forks, candidates, asked))
    flat = [[next(values)[0] for _ in forks] for _ in candidates]
    fusions, at = [], 0
    for rows in users:
        null, *own = (sum(one[at : at + len(rows)]) for one in flat)
        weights = evidence_weights(own, null, 1.0)
        merged = merge_loras(list(zip(anchors, weights, strict=True)))
        fusions.append((merged,) if merged is not None else ())
        at += len(rows)
    start = init_lora_weights(base.model, "q_proj,v_proj", placement, 2, 4.0, 0)
    schedule = Schedule(STEPS, 8, RATE)
    trainer = Trainer(
        base, [GroupMember(start, rows, schedule, 0, under) for rows, under in zip(users, fusions, strict=True)]
    )
    for _ in trainer.train_steps():
        pass
    return [(*under, trainer.weights(i)) for i, under in enumerate(fusions)]


def prepared(base: LoadedBase, others: Sequence[Sequence[TrainingRow]]) -> dict[str, list[LoraWeights]]:
    """Anchors by placement; the task adapter stays merged into the base."""
    from mta_cli.engine.lora.adapter import AdapterMerger

    pooled = [row for rows in others for row in rows]
    (task,) = train_group(base, [pooled], Recipe(placement="all", learning_rate=1e-3))
    AdapterMerger(base).set_adapter(task)
    return {place: train_group(base, others[:4], Recipe(placement=place)) for place in ("upper", "late")}


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("users", 16), ("rival-users", 2), ("limit", 16), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--task", choices=("taste", "voice"), default="taste", help="labels, or sentences")
    chosen = parser.parse_args()
    base = harness.load("bfloat16")
    prompts = harness.prompter(base, chosen.task)
    everybody = harness.people(chosen.users + 8, 8, task=chosen.task)
    others = [harness.rows_of(prompts, person, 3) for person in everybody[:8]]
    users = [harness.rows_of(prompts, person, 3)[:5] for person in everybody[8:]]
    heldout = [harness.query_rows(prompts, person, 3) for person in everybody[8:]]
    anchors = prepared(base, others)
    runs = harness.interleave(
        {place: lambda place=place: adapt(base, anchors[place], users, place) for place in anchors}, chosen.repeats
    )
    rows, reached = [], {}
    for place, timed in runs.items():
        seconds, parts = harness.median_seconds(timed) / len(users), timed[-1].value
        losses = [mean_loss(base.model, queries, own) for queries, own in zip(heldout, parts, strict=True)]
        reached[place] = losses
        rows.append(
            {
                "side": f"mta, {place}",
                "users": len(users),
                "seconds a user": seconds,
                "held-out loss": sum(losses) / len(losses),
                "reached": "–",
            }
        )
    for place, losses in reached.items():
        rows.append(rival(users, heldout, losses, place, chosen.rival_users, chosen.limit))
    before = [mean_loss(base.model, queries) for queries in heldout]
    lengths = [(len(row.input_ids), len(row.input_ids) - row.answer_start) for rows in users for row in rows]
    tokens = {name: sum(pair[i] for pair in lengths) / len(lengths) for i, name in enumerate(("row", "answer"))}
    harness.report(
        f"adapt-{chosen.task}",
        rows,
        task_adapter_loss=sum(before) / len(before),
        shots=5,
        steps=STEPS,
        tokens=tokens,
        dtype="bfloat16",
        repeats=chosen.repeats,
    )


def rival(
    users: Sequence[Sequence[TrainingRow]],
    heldout: Sequence[Sequence[TrainingRow]],
    targets: Sequence[float],
    place: str,
    count: int,
    limit: int,
) -> dict[str, object]:
    """PEFT for the first `count` users, each trained until the loss that ours reached."""
    found = [
        peft_adapt(
            harness.base_folder(),
            users[i],
            heldout[i],
            oppu(learning_rate=2e-3),
            target=targets[i],
            limit=limit,
            every=2,
        )
        for i in range(count)
    ]
    losses = [min(point.loss for point in one.curve) for one in found]
    seconds = sum(one.trained.seconds for one in found) / count
    return {
        "side": f"PEFT rank 8 from scratch, to the loss of {place}",
        "users": count,
        "seconds a user": seconds,
        "held-out loss": sum(losses) / count,
        "reached": f"{sum(one.reached for one in found)} of {count}",
    }


if __name__ == "__main__":
    main()
