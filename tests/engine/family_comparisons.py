"""Every family of decoder layers on a device, beside transformers' modules on the CPU, in all that decoders do.

The reference runs a whole text through the modules, with `B A x` added by hooks from the first position on at which a
LoRA acts. All is float32. A comparison yields pairs: what the decoder gives on the device, and the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mta_cli.engine.generation.decoding_batch import DecodingBatch, PromptPass, PromptText
from mta_cli.engine.generation.llama_batches import read_prompts
from mta_cli.engine.generation.request import GenerationRequest
from mta_cli.engine.lora.adapter import Factors, LoraWeights
from mta_cli.engine.lora.row_factors import UserFactors
from mta_cli.engine.model.llama import LlamaDecoder, build_llama_decoder
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.scoring.tree_scorers import LlamaTreeScorer
from tests.engine.families import EXACT
from tests.engine.lora_cases import random_lora

PROMPTS, ANSWER = (70, 23, 61), 20  # tokens; windows of the configurations are shorter
Pair = tuple[Tensor, Tensor]


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """In the Euclidean norm; a reference of zeros would prove nothing."""
    assert ours.shape == theirs.shape and theirs.norm() > 1e-3
    return float((ours.cpu() - theirs).norm() / theirs.norm())


def decoder_on(device: torch.device, made: Any) -> LlamaDecoder:
    """The decoder of a copy of `made` on the device."""
    decoder = build_llama_decoder(copy.deepcopy(made).to(device))
    assert decoder is not None
    return decoder


def random_text(length: int, seed: int) -> list[int]:
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


@contextmanager
def attached(made: Any, factors: Mapping[str, tuple[Tensor, Tensor]], start: int) -> Iterator[None]:
    """`made` with `B A x` (the scale inside B) added to modules at positions from `start` on."""

    def add(a: Tensor, b: Tensor, _: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        acts = (torch.arange(output.shape[1]) >= start)[None, :, None]
        return output + (inputs[0] @ a.T @ b.T) * acts

    with ExitStack() as stack:
        for path, (a, b) in factors.items():
            stack.callback(made.get_submodule(path).register_forward_hook(partial(add, a, b)).remove)
        yield


def reference(made: Any, ids: Sequence[int], loras: Sequence[LoraWeights] = (), prompt: int = 0) -> Tensor:
    """Logits [time, vocabulary] of a text with `prompt` prompt tokens under `loras`."""
    with torch.no_grad(), ExitStack() as stack:
        for one in loras:
            scaled = {path: (a, one.scale * b) for path, (a, b) in one.factors.items()}
            stack.enter_context(attached(made, scaled, one.placement.first_position(prompt)))
        logits: Tensor = made(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


def log_likelihoods_and_gradients(
    family: str, device: torch.device, placement: str, recomputes: bool = False
) -> Iterator[Pair]:
    made = EXACT[family]()
    start = random_lora(made, 1, placement=placement)
    trees = [PromptTree(tuple(random_text(n, n)), (tuple(random_text(6, n + 1)),)) for n in PROMPTS]

    def leaves(where: torch.device | str) -> Factors:
        halves = {
            path: [half.to(where, copy=True).requires_grad_() for half in pair] for path, pair in start.factors.items()
        }
        return {path: (a, b) for path, (a, b) in halves.items()}

    def theirs(factors: Factors) -> Tensor:
        found = []
        for tree in trees:
            with attached(made, factors, start.placement.first_position(len(tree.prompt))):
                logits = made(input_ids=torch.tensor([tree.tokens]), use_cache=False).logits[0]
            answer = torch.tensor(tree.completions[0])
            found.append(logits[-len(answer) :].log_softmax(-1).gather(1, answer[:, None])[:, 0])
        return torch.cat(found)

    decoder = decoder_on(device, made)
    scorer = LlamaTreeScorer(decoder, trees, start.placement, (), ())
    values, grads = list[Tensor](), list[list[Tensor]]()
    sides: tuple[tuple[Callable[[Factors], Tensor], torch.device | str], ...] = (
        (lambda factors: scorer.score_rows(range(len(trees)), factors).log_likelihoods, device),
        (theirs, "cpu"),
    )
    for run, where in sides:
        own = leaves(where)
        with decoder.recomputing_layers(recomputes):
            values.append(run(own))
        values[-1].square().sum().backward()  # type: ignore[no-untyped-call]
        grads.append([half.grad for pair in own.values() for half in pair if half.grad is not None])
    yield values[0].detach(), values[1].detach()
    yield from zip(*grads, strict=True)


def prompt_and_tokens_one_by_one(family: str, device: torch.device) -> Iterator[Pair]:
    yield from batch_of_texts(family, device, [random_text(PROMPTS[0] + ANSWER, 0)], [()])


def batch_of_texts(
    family: str, device: torch.device, texts: Sequence[list[int]], users: Sequence[tuple[LoraWeights, ...]]
) -> Iterator[Pair]:
    """The prompts of all texts read together, and their answers token by token."""
    made, prompts = EXACT[family](), [len(text) - ANSWER for text in texts]
    expected = [reference(made, *case) for case in zip(texts, users, prompts, strict=True)]
    requests = [GenerationRequest(text[:-ANSWER], loras) for text, loras in zip(texts, users, strict=True)]
    with torch.inference_mode():
        _, batch, logits = next(read_prompts(decoder_on(device, made), requests, ANSWER, 10_000, None))
        for step in range(ANSWER):
            yield from ((logits[row], expected[row][prompt - 1 + step]) for row, prompt in enumerate(prompts))
            logits = batch.decode_step([text[prompt + step] for text, prompt in zip(texts, prompts, strict=True)])


def users_of(made: Any) -> list[tuple[LoraWeights, ...]]:
    """Three users: a LoRA at all tokens, a late one, and both."""
    everywhere, late = random_lora(made, 1), random_lora(made, 2, placement="late", rank=2)
    return [(everywhere,), (late,), (random_lora(made, 3, placement="upper"), late)]


def batch_of_users_behind_a_shared_prefix(family: str, device: torch.device) -> Iterator[Pair]:
    late = users_of(EXACT[family]())[1]
    shared = random_text(12, 9)  # what all prompts begin with, without LoRAs
    texts = [shared + random_text(length + ANSWER, length) for length in PROMPTS]
    yield from batch_of_texts(family, device, texts, [late, (), late])


def rows_that_join_a_running_batch(family: str, device: torch.device) -> Iterator[Pair]:
    made = EXACT[family]()
    decoder, users = decoder_on(device, made), users_of(made)
    texts = [random_text(length + ANSWER, length) for length in PROMPTS]
    expected = [reference(made, *case) for case in zip(texts, users, PROMPTS, strict=True)]
    batch = DecodingBatch(decoder)
    read = list[int]()  # tokens of each row that were read
    for text, loras, length in zip(texts, users, PROMPTS, strict=True):
        user = UserFactors.from_loras(decoder, loras, {})
        prompt = PromptPass(decoder, [PromptText(user, text[:length], length)])
        while (logits := prompt.read(25)) is None:
            pass
        yield logits[0], expected[len(read)][length - 1]
        batch.join(prompt)
        read.append(length)
        for _ in range(6):  # a few steps before the next row joins
            rows = batch.decode_step([texts[row][place] for row, place in enumerate(read)])
            yield from ((rows[row], expected[row][place]) for row, place in enumerate(read))
            read = [place + 1 for place in read]


def completions_of_a_text_that_was_read(family: str, device: torch.device) -> Iterator[Pair]:
    made, ids = EXACT[family](), random_text(PROMPTS[0], 0)
    prompt = PromptPass(decoder_on(device, made), [PromptText(UserFactors({}, {}, {}), ids, len(ids))])
    logits = prompt.read(1000)
    assert logits is not None
    completions = [random_text(length, length) for length in (1, 9, 4)]
    found = prompt.completion_log_likelihoods(logits[0], completions)
    for value, completion in zip(found, completions, strict=True):
        steps = reference(made, [*ids, *completion])[len(ids) - 1 : -1].log_softmax(-1)
        yield torch.tensor(value), steps.gather(1, torch.tensor(completion)[:, None]).sum()


COMPARISONS: Mapping[str, Callable[[str, torch.device], Iterator[Pair]]] = {
    **{
        f"log-likelihoods and gradients of LoRA factors, {placement}": partial(
            log_likelihoods_and_gradients, placement=placement
        )
        for placement in ("all", "upper", "late")
    },
    "the same of layers that are computed again": partial(
        log_likelihoods_and_gradients, placement="all", recomputes=True
    ),
    "a prompt, and tokens one by one": prompt_and_tokens_one_by_one,
    "a batch of users behind a shared prefix": batch_of_users_behind_a_shared_prefix,
    "rows that join a running batch": rows_that_join_a_running_batch,
    "completions of a text that was read": completions_of_a_text_that_was_read,
}
