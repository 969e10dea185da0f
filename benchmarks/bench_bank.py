"""Building a bank: our group of anchors compared with Hugging Face's Trainer with PEFT and with TRL, one user after
another.

All train the same rows with the same modules, rank, batch size, rate and number of steps. The rivals load the base
again for each user, as a script for one user would, and run on the first `--rival-anchors` users only: they train one
after another, so their rate does not depend on the number of users. The loss is measured by one function for all sides.
The limit is the time of bare matrix products with as many operations: 2 per weight and token below the lowest adapted
layer, 4 above it, and 4 for the head at each labelled token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks import harness
from benchmarks.losses import mean_loss
from benchmarks.rivals import Recipe, Trained, trainer_bank, trl_bank

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import TrainingRow


def ours(base: LoadedBase, users: Sequence[Sequence[TrainingRow]], recipe: Recipe) -> list[LoraWeights]:
    """Every user's LoRA, trained as one group."""
    from mta_cli.engine.lora.adapter import init_lora_weights
    from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer

    harness.forget(base)
    members = []
    for rows in users:
        schedule = Schedule.from_epochs(len(rows), recipe.epochs, recipe.batch_size, recipe.learning_rate)
        start = init_lora_weights(base.model, recipe.targets, recipe.placement, recipe.rank, recipe.alpha, recipe.seed)
        members.append(GroupMember(start, rows, schedule, recipe.seed))
    trainer = Trainer(base, members)
    for _ in trainer.train_steps():
        pass
    return [trainer.weights(i) for i in range(len(users))]


def operations(base: LoadedBase, rows: Sequence[TrainingRow], placement: str) -> float:
    """The operations (multiplications and additions) of training on `rows` once, without the LoRAs' own."""
    from mta_cli.engine.lora.adapter import find_target_modules, layer_of, linear_layers

    first = find_target_modules(base.model, "all-linear", placement)[1].first_layer
    sizes = [(layer_of(path), linear.weight.numel()) for path, linear in linear_layers(base.model).items()]
    each = sum(size * (2 if layer < first else 4) for layer, size in sizes)
    head = 4 * base.model.get_output_embeddings().weight.numel()
    return sum(len(row.input_ids) * each + (len(row.input_ids) - row.answer_start) * head for row in rows)


def sides(
    base: LoadedBase, users: Sequence[Sequence[TrainingRow]], few: Sequence[Sequence[TrainingRow]]
) -> dict[str, Callable[[], list[LoraWeights]]]:
    """Every way to build the bank."""
    folder = harness.base_folder()

    def rival(bank: Callable[..., list[Trained]], recipe: Recipe) -> Callable[[], list[LoraWeights]]:
        return lambda: [trained.weights for trained in bank(folder, few, recipe)]

    return {
        "Trainer + PEFT, upper": rival(trainer_bank, Recipe()),
        "TRL chunked loss, upper": rival(trl_bank, Recipe()),
        "mta, upper": lambda: ours(base, users, Recipe()),
        "mta, late": lambda: ours(base, users, Recipe(placement="late")),
        "Trainer + PEFT, all": rival(trainer_bank, Recipe(placement="all")),
        "mta, all": lambda: ours(base, few, Recipe(placement="all")),
    }


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("anchors", 16), ("items", 8), ("rival-anchors", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    base = harness.load("bfloat16")
    prompts = harness.prompter(base)
    users = [harness.rows_of(prompts, person, 3) for person in harness.people(chosen.anchors, chosen.items)]
    few = users[: chosen.rival_anchors]
    rate = harness.matrix_rate(base.dtype)
    runs = harness.interleave(sides(base, users, few), chosen.repeats)
    rows = []
    for name, timed in runs.items():
        placement = name.rsplit(" ", 1)[-1]
        trained = users if name in ("mta, upper", "mta, late") else few
        flat = [row for own in trained for row in own]
        tokens, seconds = 2 * sum(len(row.input_ids) for row in flat), harness.median_seconds(timed)
        limit = 2 * operations(base, flat, placement) / rate
        losses = [mean_loss(base.model, own, [w]) for own, w in zip(few, timed[-1].value, strict=False)]
        rows.append(
            {
                "side": name,
                "anchors": len(trained),
                "tokens": tokens,
                "seconds": seconds,
                "tokens/s": tokens / seconds,
                "matrix limit, tokens/s": tokens / limit,
                "of the limit": f"{limit / seconds:.0%}",
                "loss after": sum(losses) / len(losses),
            }
        )
    before = [mean_loss(base.model, own) for own in few]
    harness.report("bank", rows, loss_before=sum(before) / len(before), dtype="bfloat16", repeats=chosen.repeats)


if __name__ == "__main__":
    main()
