"""A base with random weights, made from a configuration alone, to measure the speed of a shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mta_cli.engine.model.device_memory import is_out_of_memory
from mta_cli.engine.model.load import LoadedBase, quiet_libraries, resolve_device, resolve_dtype, with_decoder
from mta_cli.errors import BadInput, Flag


def make_random_base(
    family: str, config: Mapping[str, Any], *, device: str = "auto", dtype: str = "auto", seed: int = 0
) -> LoadedBase:
    """A base of transformers' model type `family` with this `config`, on its device. It has no tokenizer.

    The same seed, device and number format give the same weights. Raises BadInput if it does not fit into memory.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_libraries()
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    cards = [place.index or 0] if place.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cards), place:  # weights are made where they are needed
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                AutoConfig.for_model(family, **config), dtype=number
            )
        model = model.eval().requires_grad_(False)
        return with_decoder(LoadedBase(model, None, f"random:{seed}", family, place, number, ()))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BadInput(
            f"random weights of this shape do not fit into the memory of {place}",
            hint=("choose a smaller shape, or ", Flag("device", "cpu")),
        ) from error
