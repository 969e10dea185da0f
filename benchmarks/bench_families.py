"""Model families on our decoder and on transformers' modules: training many users' LoRAs, and decoding one text.

Each family has a random configuration of about 100M parameters. Both sides are ours, with the same rows, factors and
tokens; without its decoder, a base runs through the modules, like a family that the decoder does not cover. The modules
train one user after another, the decoder all together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from benchmarks import harness

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase

SIZES: dict[str, Any] = {
    "hidden_size": 640,
    "intermediate_size": 1792,
    "num_hidden_layers": 15,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
# by configuration name: the model type, and settings that differ
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Qwen3": ("Qwen3", {"head_dim": 64}),
    "SmolLM3": ("SmolLM3", {}),
    "Gemma2": ("Gemma2", {"head_dim": 64, "sliding_window": 128}),
    "Gemma3Text": ("Gemma3", {"head_dim": 64, "sliding_window": 128}),
    "Olmo2": ("Olmo2", {}),
    "Olmo3": ("Olmo3", {"sliding_window": 128}),
    "Phi3": ("Phi3", {}),
    "Granite": ("Granite", {"logits_scaling": 8.0, "residual_multiplier": 0.22}),
    "Lfm2": ("Lfm2", {}),
}
DECODER, MODULES = "decoder", "modules"


def random_base(family: str, dtype: str, layers: int) -> LoadedBase:
    """A random base of the family, with our decoder if it covers the family."""
    import torch
    import transformers

    from mta_cli.engine.model.llama import build_llama_decoder
    from mta_cli.engine.model.load import DTYPES, LoadedBase

    kind, changes = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, "num_hidden_layers": layers, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(DTYPES[dtype]).eval().requires_grad_(False)
    base = LoadedBase(model, None, f"random:{family}", family, torch.device("cpu"), DTYPES[dtype], ())
    base.llama_decoder = build_llama_decoder(model)
    return base


def training(base: LoadedBase, users: int, length: int, steps: int) -> Callable[[], int]:
    """A function that trains a LoRA of rank 8 per user on all linear layers of the upper third; it returns the tokens.

    A step has two rows of `length` tokens for each user.
    """
    import torch

    from mta_cli.engine.lora.adapter import init_lora_weights
    from mta_cli.engine.text.prompts import TrainingRow
    from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer

    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(3, SIZES["vocab_size"], (users, 2, length), generator=generator).tolist()
    start = init_lora_weights(base.model, "all-linear", "upper", 8, 16.0, 0)

    def run() -> int:
        harness.forget(base)
        rows = [[TrainingRow(tuple(text), length - 16) for text in own] for own in texts]
        trainer = Trainer(base, [GroupMember(start, own, Schedule(steps, 2, 1e-4), 0) for own in rows])
        for _ in trainer.train_steps():
            pass
        return users * 2 * length * steps

    return run


def decoding(base: LoadedBase, length: int, tokens: int) -> Callable[[], int]:
    """A function that answers a prompt of `length` tokens with at most `tokens`; it returns the answer's length."""
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams

    prompt = [3 + 7 * place % 30_000 for place in range(length)]
    params = SamplingParams(tokens, stop_at_repetition=False)
    return lambda: len(generate_answers(base, [prompt], [()], [0], params)[0])


def measure(family: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The row of a family; without a decoder only the modules are measured."""
    base = random_base(family, chosen.dtype, chosen.layers)
    covered = base.llama_decoder is not None
    bases = {MODULES: random_base(family, chosen.dtype, chosen.layers)} | ({DECODER: base} if covered else {})
    bases[MODULES].llama_decoder = None
    runs = harness.interleave(
        {f"training, {side}": training(one, chosen.users, chosen.length, chosen.steps) for side, one in bases.items()}
        | {f"decoding, {side}": decoding(one, chosen.length, chosen.tokens) for side, one in bases.items()},
        chosen.repeats,
    )
    rates = {name: timed[-1].value / harness.median_seconds(timed) for name, timed in runs.items()}
    row: dict[str, Any] = {"family": base.model.config.model_type, "covered": "yes" if covered else "no"}
    row["parameters, M"] = round(base.model.num_parameters() / 1e6)
    for work in ("training", "decoding"):
        row |= {f"{work}, {side}": rates.get(f"{work}, {side}") for side in (DECODER, MODULES)}
    return row


def main() -> None:
    """Measure, and print the results in tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    for name, default in (
        ("users", 8),
        ("length", 192),
        ("steps", 2),
        ("tokens", 48),
        ("layers", SIZES["num_hidden_layers"]),
        ("repeats", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    rows = [measure(family, chosen) for family in chosen.families]
    harness.report("families", rows, unit="tokens/s", **vars(chosen))


if __name__ == "__main__":
    main()
