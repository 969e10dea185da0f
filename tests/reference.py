"""A plain forward pass of transformers' model, as the reference for what our decoder computes."""

from __future__ import annotations

from typing import Any


def reference_logits(base: Any, path: Any, ids: list[int]) -> Any:
    """Logits [time, vocabulary] of `ids` by transformers' model in folder `path`, with the weights of `base` now."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=base.dtype).eval()
    model.load_state_dict(base.model.state_dict(), strict=True)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]
