"""One user's answer: a batch of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mta_cli.engine.generation.generate import generate
from mta_cli.engine.generation.request import GenerationRequest, PromptCache, SamplingParams
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import NO_LORAS, UserLoras


def answer_alone(
    base: LoadedBase,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    loras: UserLoras = NO_LORAS,
    prompt_cache: PromptCache | None = None,
    **sampling: Any,
) -> list[int]:
    """The answer's token ids; `sampling` is of `SamplingParams`."""
    request = GenerationRequest(prompt, loras)
    params = SamplingParams(max_tokens, **sampling)
    streamed = [token for _, token in generate(base, [request], params, prompt_cache=prompt_cache)]
    assert streamed == request.answer
    return streamed
