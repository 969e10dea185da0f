"""Merge-then-Adapt with the engine alone: histories, bank, fusion, stack, answer. It uses no store and no job.

Three anchor users and a new user, mina, tell their neighbours the news, each in their own style. All are invented.
It takes about two minutes on two cores. First pull the models `smollm2-135m-instruct` and `minilm-l6` with
`mta model pull`, or name the folders of other models with --base and --embedder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from mta_cli.engine.generation.generate import generate_answers
from mta_cli.engine.generation.request import SamplingParams
from mta_cli.engine.lora.adapter import AdapterMerger, LoraWeights, init_lora_weights
from mta_cli.engine.methods.anchor_weights import merge_shares, weigh_anchors
from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.methods.stacks import train_stacks
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.retrieval.embed import Embedder
from mta_cli.engine.scoring.log_likelihood import mean_losses
from mta_cli.engine.text.prompts import PromptBuilder
from mta_cli.engine.text.tasks import Task
from mta_cli.engine.training.trainer import GroupMember, Schedule
from mta_cli.engine.training.work import GroupWork
from mta_cli.options import AdaptOptions, BankOptions, FuseOptions, MemoryOptions
from mta_cli.pipeline.models.installed import resolve_model  # only finds the folders of pulled models

ANCHORS = {
    "otto": [
        ("The train is late.", "Train is late. Start without me. Over and out."),
        ("I found your umbrella.", "Umbrella found. Collect it today. Over and out."),
        ("Please bring some bread.", "Bring bread. Two loaves. Over and out."),
        ("The heating is off again.", "Heating is off. Bring a coat. Over and out."),
        ("We have new neighbours.", "New neighbours. Three dogs. Over and out."),
        ("Thank you for the flowers.", "Flowers received. Many thanks. Over and out."),
    ],
    "bela": [
        ("The bus did not come.", "the bus did not come... i walked along the river..."),
        ("Your coat is still here.", "your coat is still here... it smells of rain..."),
        ("Please water the plants.", "the plants are thirsty... water them..."),
        ("The lamp is broken.", "the lamp is broken... the dark is nice too..."),
        ("It is snowing outside.", "it is snowing... everything is so quiet..."),
        ("The cake is in the oven.", "the cake is in the oven... the hall smells of apples..."),
    ],
    "carl": [
        ("The lift is out of order.", "Dear all, kindly note that the lift is out of order. Yours faithfully, Carl"),
        ("I have lost my keys.", "Dear all, I regret that I have lost my keys. Yours faithfully, Carl"),
        ("Please close the gate.", "Dear all, kindly close the gate. Yours faithfully, Carl"),
        ("The parcel has arrived.", "Dear all, I am pleased that the parcel has arrived. Yours faithfully, Carl"),
        ("The meeting is on Monday.", "Dear all, kindly note that the meeting is on Monday. Yours faithfully, Carl"),
        ("The tap is dripping.", "Dear all, I regret that the tap is dripping. Yours faithfully, Carl"),
    ],
}
MINA = [
    ("The tram is crowded.", "the tram is crowded... the moon is full too..."),
    ("I have found a scarf.", "i have found a scarf... the moon gave it to me..."),
    ("Please lock the cellar.", "lock the cellar... the moon looks in..."),
    ("The market is on Saturday.", "the market is on saturday... the moon shines for free..."),
    ("There is no hot water.", "there is no hot water... the moon is cold too..."),
    ("My sister is visiting.", "my sister is visiting... the moon follows her..."),
]
HELD_OUT = ("The library is closed on Friday.", "the library is closed on friday... the moon reads at night...")
TASK = Task("news", "text", "News in a user's own words", "Tell the neighbours in one line: {input}", answer_tokens=32)
SEED = 0


def answer(base: LoadedBase, prompt: list[int], models: Sequence[tuple[LoraWeights, ...]]) -> list[str]:
    """The greedy answer of each model, decoded in one batch. A model is a tuple of LoRAs added to the current base."""
    ids = generate_answers(base, [prompt] * len(models), models, range(len(models)), SamplingParams(TASK.answer_tokens))
    return [" ".join(base.tokenizer.decode(one).split()) for one in ids]


def main() -> None:
    """Train mina's model, and print the answers of the base, of each intermediate model and of mina's own."""
    parser = argparse.ArgumentParser(description="From histories to one user's model, with the engine alone.")
    parser.add_argument("--base", type=Path, help="folder of a base (default: smollm2-135m-instruct)")
    parser.add_argument("--embedder", type=Path, help="folder of a sentence embedder (default: minilm-l6)")
    given, bank, no_memory = parser.parse_args(), BankOptions(), MemoryOptions("off")

    # 1. Load the models. An item becomes the tokens of its prompt and its answer; only the answer is learned.
    base = load_base(given.base or resolve_model("smollm2-135m-instruct").path)
    embedder = Embedder(given.embedder or resolve_model("minilm-l6").path)
    prompts = PromptBuilder(base.tokenizer, TASK, base.end_ids, base.window)
    anchor_rows = [[prompts.training_row(*item) for item in items] for items in ANCHORS.values()]
    her_rows = [prompts.training_row(*item) for item in MINA]
    prompt = prompts.prompt_ids(HELD_OUT[0])  # shows no item of hers: her style can only come from the weights
    answers = {"base": answer(base, prompt, [()])[0]}

    # 2. The common model: one LoRA over all anchors' items, merged into the base below everything that follows.
    start = init_lora_weights(base.model, bank.targets, bank.task_placement, bank.task_rank, 2 * bank.task_rank, SEED)
    pooled = [row for rows in anchor_rows for row in rows]
    # 24 steps of 6 rows are eight epochs; with thousands of rows, two are enough.
    work = GroupWork((GroupMember(start, pooled, Schedule(24, 6, bank.task_learning_rate), SEED),))
    (common,) = work.train(base).weights.values()
    AdapterMerger(base).set_adapter(common)

    # 3. The bank: a LoRA for each anchor, and the normalised mean of the anchor's item embeddings as profile.
    start = init_lora_weights(base.model, bank.targets, bank.placement, bank.rank, bank.alpha, SEED)
    schedule = Schedule(24, 2, bank.learning_rate)
    work = GroupWork(tuple(GroupMember(start, rows, schedule, SEED) for rows in anchor_rows))
    anchors = list(work.train(base).weights.values())  # trained in one loop, each as if it were alone
    vectors = [embedder.embed(["\n".join(item) for item in items]) for items in (*ANCHORS.values(), MINA)]
    means = torch.stack([torch.from_numpy(own).mean(0) for own in vectors])
    profiles = torch.nn.functional.normalize(means)  # [users, width]; mina's is the last
    context = MethodContext(base, TASK, anchors, profiles[:-1], SEED)

    # 4. The fusion: anchors weighted by evidence, the likelihood of mina's answers under each. Nothing is trained.
    inputs, outputs = zip(*MINA, strict=True)
    mina = UserShots(0, inputs, outputs, tuple(her_rows), profiles[-1])  # 0 identifies her
    (recipe,) = weigh_anchors(context, [mina], "evidence", FuseOptions(), no_memory)
    fusion = merge_shares([anchors[share.anchor] for share in recipe], [share.weight for share in recipe])
    print("Recipe:", *(f"{share.weight:.2f} {list(ANCHORS)[share.anchor]}" for share in recipe), "+ the common model")

    # 5. Her stack: a LoRA of rank 2, trained on her items above the frozen fusion.
    (stack,) = train_stacks(context, [mina], [fusion], AdaptOptions(), no_memory)

    # 6. The held-out question, answered by each model.
    models = {"common": (), "fused": fusion, "mina's own": (*fusion, *stack.loras)}
    answers |= zip(models, answer(base, prompt, list(models.values())), strict=True)
    print(HELD_OUT[0], *(f"  {name:<12}{text}" for name, text in answers.items()), sep="\n")

    # 7. The likelihood of what mina wrote: the history that her stack was trained on, and the held-out answer.
    sets = (her_rows, [prompts.training_row(*HELD_OUT)])
    losses = mean_losses(base, [(examples, loras) for loras in models.values() for examples in sets])
    print(f"{'Log-likelihood, nats a token':<30}{'history':>8}{'held out':>10}")
    for name, (history, held_out) in zip(models, -torch.tensor(losses).view(-1, 2), strict=True):  # [models, 2]
        print(f"  {name:<28}{history:8.2f}{held_out:10.2f}")


if __name__ == "__main__":
    main()
