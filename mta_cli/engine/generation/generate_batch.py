"""Answers for many people at once: one batch, a row for each request, every row with its own person's parts.

Knows neither users, the prompts' words nor files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mta_cli.engine.generation.batch_state import Batch, Row
from mta_cli.engine.generation.generate import choose, require_int8, require_numbers, require_room, token_ids
from mta_cli.engine.lora.adapter import folded
from mta_cli.engine.lora.merge import merge
from mta_cli.engine.model.kv_cache import Slots
from mta_cli.engine.model.llama import FEW, Plain, Read
from mta_cli.engine.scoring.backends import Budget, crowds, require_everywhere
from mta_cli.engine.scoring.log_likelihood import PARTS
from mta_cli.engine.scoring.prefix_cache_scoring import packed, tokens_at_once
from mta_cli.engine.vectors import require_plain, stacked

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase

CPU_BYTES, GPU_BYTES = 2 << 30, 8 << 30  # of caches and factors held at once


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen, the same for all requests. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass
class Request:
    """A prompt, whose it is, how many tokens may follow, and the answer as it grows. `seed` draws its tokens."""

    prompt: tuple[int, ...]
    owner: int
    room: int
    seed: int = 0
    answer: list[int] = field(default_factory=list)


def answer_many(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    people: Sequence[PARTS],
    owners: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    shifts: Sequence[Tensor | None] = (),
) -> list[list[int]]:
    """The answer's token ids to each prompt, without the end of turn; prompt `i` is asked of person `owners[i]`.

    A person is the parts that stand above the base as it is, and, where `shifts` are given, what is added to the last
    normalised state. An answer does not depend on what else is asked. Raises BadInput where a prompt leaves no room,
    IntegrityFault where the model gives no numbers, UsageFault where the base cannot have late parts or vectors.
    """
    choice = Choice(max_tokens, temperature, top_p)
    requests = _requests(base, prompts, owners, max_tokens, seeds or [0] * len(prompts))
    waiting = [request for request in requests if request.room > 0]
    if base.plain is None:
        require_plain(base, shifts)
        for _ in _one_by_one(base, waiting, people, choice):
            pass
    elif waiting:
        _together(base, base.plain, waiting, people, choice, shifts)
    return [request.answer for request in requests]


def stream_many(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    people: Sequence[PARTS],
    owners: Sequence[int],
    choice: Choice,
    *,
    seed: int = 0,
    int8: bool = False,
) -> Iterator[tuple[int, int]]:
    """What `answer_many` gives, as it is made: (place in `prompts`, token). All are in one batch, which must fit.

    `int8`: weights rounded to 8 bits choose all tokens but the first ones. Raises what `answer_many` raises.
    """
    if int8:
        require_int8(base)
    requests = _requests(base, prompts, owners, choice.max_tokens, [seed] * len(prompts))
    waiting = [request for request in requests if request.room > 0]
    if base.plain is None:
        found = _one_by_one(base, waiting, people, choice)
    else:
        found = _streamed(base, base.plain, waiting, people, choice, int8)
    places = {id(request): place for place, request in enumerate(requests)}
    yield from ((places[id(request)], token) for request, token in found)


def _requests(
    base: LoadedBase, prompts: Sequence[Sequence[int]], owners: Sequence[int], most: int, seeds: Sequence[int]
) -> list[Request]:
    return [
        Request(tuple(prompt), owner, min(most, require_room(base, prompt)), seed)
        for prompt, owner, seed in zip(prompts, owners, seeds, strict=True)
    ]


@torch.inference_mode()
def _together(
    base: LoadedBase,
    plain: Plain,
    requests: Sequence[Request],
    people: Sequence[PARTS],
    choice: Choice,
    shifts: Sequence[Tensor | None],
) -> None:
    plain.pack()
    prefix, budget = _shared(plain, requests, people), Budget(base)

    def work(batch: list[Request]) -> None:
        for request in batch:
            request.answer.clear()  # of a batch that did not fit into memory
        running = _begin(plain, batch, people, prefix, shifts)
        for _ in _answers(running, running.read(budget.tokens), list(batch), choice, base.end_ids):
            pass

    limit = GPU_BYTES if base.device.type == "cuda" else CPU_BYTES
    batches = packed([_bytes(plain, request, people) for request in requests], limit)
    budget.spend([[requests[i] for i in b[n : n + FEW]] for b in batches for n in range(0, len(b), FEW)], work)


@torch.inference_mode()
def _streamed(
    base: LoadedBase, plain: Plain, requests: list[Request], people: Sequence[PARTS], choice: Choice, int8: bool
) -> Iterator[tuple[Request, int]]:
    if not requests:
        return
    running = _begin(plain, requests, people, _shared(plain, requests, people))
    logits = running.read(tokens_at_once(base.device))
    plain.pack(int8)
    yield from _answers(running, logits, requests, choice, base.end_ids, "int8" if int8 else "packed")


def _begin(
    plain: Plain,
    batch: Sequence[Request],
    people: Sequence[PARTS],
    prefix: Slots | None,
    shifts: Sequence[Tensor | None] = (),
) -> Batch:
    owners = list(dict.fromkeys(request.owner for request in batch))
    rows = [Row(request.prompt, owners.index(request.owner)) for request in batch]
    slots = Slots(plain, len(batch), max(len(r.prompt) for r in batch) + max(r.room for r in batch))
    if prefix is not None:
        slots.begin_with(prefix)
    added = stacked(plain, [shifts[owner] for owner in owners] if shifts else ())
    return Batch(plain, crowds(plain, [people[owner] for owner in owners]), rows, slots, added)


def _answers(
    running: Batch,
    logits: Tensor,
    requests: list[Request],
    choice: Choice,
    end_ids: Sequence[int],
    read: Read = "packed",
) -> Iterator[tuple[Request, int]]:
    """Decode until every request has its answer, telling each token; a row leaves the batch when its own is whole."""
    randoms = [torch.Generator().manual_seed(request.seed) for request in requests]
    while True:
        tokens = _choose(logits, choice, randoms)
        for request, token in zip(requests, tokens, strict=True):
            if token not in end_ids:
                request.answer.append(token)
                yield request, token
        alive = [
            r
            for r, (request, token) in enumerate(zip(requests, tokens, strict=True))
            if token not in end_ids and len(request.answer) < request.room
        ]
        if not alive:
            return
        if len(alive) < len(requests):
            order = running.keep(alive)
            requests, randoms = [requests[i] for i in order], [randoms[i] for i in order]
            tokens = [tokens[i] for i in order]
        logits = running.step(tokens, read)


def _choose(logits: Tensor, choice: Choice, randoms: Sequence[torch.Generator]) -> list[int]:
    """One token for each row of `logits` [rows, vocabulary]."""
    if choice.temperature <= 0:
        require_numbers(logits)
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [choose(row, choice.temperature, choice.top_p, random) for row, random in zip(logits, randoms, strict=True)]


def _shared(plain: Plain, requests: Sequence[Request], people: Sequence[PARTS]) -> Slots | None:
    """What all prompts begin with, read once, where it is the same for everybody: no part of anybody acts there, or all
    requests are one person's. None where there is nothing to share.
    """
    owners = {request.owner for request in requests}
    parts = [part for owner in owners for part in people[owner]]
    everywhere = tuple(part for part in parts if part.placement.late is None)
    if len(requests) == 1 or (everywhere and len(owners) > 1):
        return None
    lates = [part.placement for part in parts if part.placement.late is not None]
    length = _common([request.prompt[:-1] for request in requests])
    length = min([length, *(late.start(len(request.prompt)) for late in lates for request in requests)])
    if length == 0:
        return None
    slots = Slots(plain, 1, length)
    Batch(plain, crowds(plain, [everywhere]), [Row(requests[0].prompt[:length], 0)], slots).read(length)
    return slots


def _common(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `texts` begin with."""
    length = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _bytes(plain: Plain, request: Request, people: Sequence[PARTS]) -> int:
    """What a request's cache and its person's factors take: float32, cast, and the row's own with zeros between."""
    cache = 2 * len(plain.layers) * plain.kv_heads * plain.head_width * (len(request.prompt) + request.room)
    factors = sum(part.parameters for part in people[request.owner])
    total: int = plain.dtype.itemsize * cache + (4 + 3 * plain.dtype.itemsize) * factors
    return total


def _one_by_one(
    base: LoadedBase, requests: Sequence[Request], people: Sequence[PARTS], choice: Choice
) -> Iterator[tuple[Request, int]]:
    """Through the base's own modules: each person folded in turn, one request after another."""
    require_everywhere(base, [part.placement for parts in people for part in parts])
    for person in dict.fromkeys(request.owner for request in requests):
        with folded(base, merge([(part, 1.0) for part in people[person]])):
            for request in requests:
                if request.owner != person:
                    continue
                for token in token_ids(
                    base,
                    request.prompt,
                    max_tokens=request.room,
                    temperature=choice.temperature,
                    top_p=choice.top_p,
                    seed=request.seed,
                ):
                    request.answer.append(token)
                    yield request, token
