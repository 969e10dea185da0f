"""Answers for many people in one batch: what each would get alone, whatever else the batch holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mta_cli.engine.generation import llama_batches
from mta_cli.engine.generation.decoding_batch import DecodingBatch
from mta_cli.engine.generation.generate import generate, generate_answers
from mta_cli.engine.generation.repetition import RepetitionFilter
from mta_cli.engine.generation.request import GenerationRequest, SamplingParams
from mta_cli.engine.lora.adapter import LoraWeights, Placement, merge_into_base
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import UserLoras
from mta_cli.errors import BadInput, IntegrityFault, UsageError
from tests.engine.answers import answer_alone
from tests.engine.lora_cases import random_lora

LENGTHS = (9, 23, 14, 31, 12, 9)


def prompts_of(lengths: Sequence[int], seed: int = 0, common: int = 0) -> list[list[int]]:
    """Random prompts that begin with the same `common` tokens."""
    draw = random.Random(seed)
    head = [draw.randrange(3, 250) for _ in range(common)]
    return [head + [draw.randrange(3, 250) for _ in range(length - common)] for length in lengths]


def plain_of(base: LoadedBase) -> LlamaDecoder:
    """The base's plain decoder, which the tiny base has."""
    assert base.llama_decoder is not None
    return base.llama_decoder


def endless(base: LoadedBase) -> LoadedBase:
    """The same base without an end token."""
    return replace(base, end_ids=())


def lora(base: LoadedBase, seed: int, placement: str = "all", late: int | None = None, rank: int = 4) -> LoraWeights:
    """A random part, strong enough to change answers, on the last `late` prompt tokens and the answer."""
    weights = random_lora(base.model, seed, rank=rank, alpha=8.0 * rank, placement=placement)
    place = weights.placement
    return LoraWeights(weights.factors, weights.scale, Placement(place.first_layer, place.last_layer, late))


def everywhere(base: LoadedBase) -> list[UserLoras]:
    """Four users: a LoRA in all layers, one in the upper third, both, and none."""
    first, second = lora(base, 1), lora(base, 2, "upper", rank=3)
    return [(first,), (second,), (first, second), ()]


def mixed(base: LoadedBase) -> list[UserLoras]:
    """Late parts of two lengths, with and without a part that acts everywhere."""
    return [(lora(base, 3, late=5),), (lora(base, 1), lora(base, 4, "upper", 2)), (lora(base, 5, late=5),), ()]


@torch.no_grad()
def slow_logits(base: LoadedBase, prompt: Sequence[int], tail: Sequence[int], parts: UserLoras) -> Tensor:
    """Logits [1 + tail, vocabulary] after the prompt and each token of `tail`: the whole text at once, no cache."""
    acting = merge_loras([(part, 1.0) for part in parts if part.placement.late_tokens is None])
    lates = [part for part in parts if part.placement.late_tokens is not None]
    text = torch.tensor([[*prompt, *tail]])
    with merge_into_base(base, acting):
        if not lates:
            logits: Tensor = base.model(text).logits[0]
            return logits[len(prompt) - 1 :]
        hooks = []
        for part in lates:
            start = part.placement.first_position(len(prompt))
            for path, (a, b) in part.factors.items():

                def late(
                    _: object, given: tuple[Tensor], out: Tensor, start: int = start, delta: Tensor = part.scale * b @ a
                ) -> Tensor:
                    where = torch.arange(out.shape[1])[:, None] >= start
                    return out + where * (given[0] @ delta.T)

                hooks.append(base.model.get_submodule(path).register_forward_hook(late))
        try:
            logits = base.model(text).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
    return logits[len(prompt) - 1 :]


def batch_logits(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    people: Sequence[UserLoras],
    owners: Sequence[int],
    at_once: int = 1000,
) -> list[Tensor]:
    """What the batch gives after each prompt and each token of its tail; rows leave when their tail is done."""
    requests = [GenerationRequest(prompt, people[owner]) for prompt, owner in zip(prompts, owners, strict=True)]
    found: list[list[Tensor]] = [[] for _ in prompts]
    with torch.inference_mode():
        reading = llama_batches.read_prompts(plain_of(base), requests, max(map(len, tails)), at_once, None)
        numbers, batch, logits = next(reading)
        which, step = list(numbers), 0
        while True:
            for r, row in zip(which, logits, strict=True):
                found[r].append(row)
            alive = [n for n, r in enumerate(which) if len(tails[r]) > step]
            if not alive:
                return [torch.stack(rows) for rows in found]
            which = [which[i] for i in batch.keep_rows(alive)]
            logits = batch.decode_step([tails[r][step] for r in which])
            step += 1


@pytest.mark.parametrize("kind", [everywhere, mixed])
@pytest.mark.parametrize(("order", "at_once"), [((0, 1, 2, 3, 4, 5), 1000), ((3, 0, 5, 1, 4, 2), 20), ((2,), 1000)])
def test_logits_are_those_of_each_person_alone(
    base: LoadedBase, kind: Callable[[LoadedBase], list[UserLoras]], order: tuple[int, ...], at_once: int
) -> None:
    people = kind(base)
    all_prompts, all_tails = prompts_of(LENGTHS), prompts_of((7, 1, 5, 0, 3, 7), seed=9)
    prompts, tails, owners = [all_prompts[i] for i in order], [all_tails[i] for i in order], [i % 4 for i in order]
    found = batch_logits(base, prompts, tails, people, owners, at_once)
    for prompt, tail, owner, logits in zip(prompts, tails, owners, found, strict=True):
        assert (logits - slow_logits(base, prompt, tail, people[owner])).abs().max() < 1e-4


def greedy(base: LoadedBase, prompt: Sequence[int], parts: UserLoras, count: int) -> list[int]:
    """The likeliest tokens, each from a pass over the whole text."""
    answer: list[int] = []
    for _ in range(count):
        answer.append(int(slow_logits(base, prompt, answer, parts)[-1].argmax()))
    return answer


@pytest.mark.parametrize("kind", [everywhere, mixed])
def test_answers_are_those_of_each_person_alone(
    base: LoadedBase, kind: Callable[[LoadedBase], list[UserLoras]]
) -> None:
    people, prompts = kind(base), prompts_of(LENGTHS)
    owners = [0, 1, 2, 3, 1, 0]
    found = generate_answers(endless(base), prompts, people, owners, SamplingParams(8))
    alone = [greedy(base, prompt, people[owner], 8) for prompt, owner in zip(prompts, owners, strict=True)]
    assert found == alone and len({tuple(answer) for answer in found}) > 3
    back = generate_answers(endless(base), prompts[::-1], people, owners[::-1], SamplingParams(8))
    assert back == alone[::-1]


def test_late_parts_share_what_all_prompts_begin_with(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [(lora(base, 3, late=5),), (lora(base, 4, "upper", late=2),), ()]
    prompts, read = prompts_of((20, 26, 23), common=17), list[int]()
    find = llama_batches._shared_prefix

    def found_prefix(*given: Any) -> Tensor | None:
        if (prefix := find(*given)) is not None:
            read.append(prefix.shape[3])
        return prefix

    monkeypatch.setattr(llama_batches, "_shared_prefix", found_prefix)
    found = generate_answers(endless(base), prompts, people, [0, 1, 2], SamplingParams(6))
    assert read == [15]  # the shortest prompt has 20 tokens, and a part acts on the last 5
    assert found == [greedy(base, prompt, parts, 6) for prompt, parts in zip(prompts, people, strict=True)]
    one = generate_answers(endless(base), prompts, [(lora(base, 1),)], [0, 0, 0], SamplingParams(6))
    assert read == [15, 17] and one == [greedy(base, prompt, (lora(base, 1),), 6) for prompt in prompts]
    generate_answers(endless(base), prompts, everywhere(base), [0, 1, 2], SamplingParams(6))
    assert read == [15, 17]  # what depends on the person is not shared


def test_people_answered_before_leave_nothing_behind(base: LoadedBase) -> None:
    first, second = everywhere(base), [(lora(base, seed),) for seed in (21, 22)]
    prompts = prompts_of(LENGTHS)
    fresh = generate_answers(endless(base), prompts, second, [0, 1] * 3, SamplingParams(6))
    generate_answers(endless(base), prompts, first, [0, 1, 2, 3, 0, 1], SamplingParams(6))
    assert generate_answers(endless(base), prompts, second, [0, 1] * 3, SamplingParams(6)) == fresh


def test_a_row_that_moves_takes_its_own_person_along(base: LoadedBase) -> None:
    """The last row fills the place of the first, which has left: its logits are its own person's."""
    people, prompts = everywhere(base), prompts_of((9, 12, 15))
    found = batch_logits(base, prompts, [[], [5] * 4, [6] * 4], people, [0, 1, 2])
    expected = slow_logits(base, prompts[2], [6] * 4, people[2])
    assert (found[2] - expected).abs().max() < 1e-4


def test_a_long_queue_is_taken_in_batches(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    people, prompts = everywhere(base), prompts_of(LENGTHS)
    owners = [0, 1, 2, 3, 1, 0]
    whole = generate_answers(endless(base), prompts, people, owners, SamplingParams(5))
    sizes: list[int] = []
    make = llama_batches.DecodingBatch

    def counted(decoder: LlamaDecoder, rows: int, capacity: int) -> DecodingBatch:
        sizes.append(rows)
        return make(decoder, rows, capacity)

    monkeypatch.setattr(llama_batches, "DecodingBatch", counted)
    monkeypatch.setattr(llama_batches, "CPU_BATCH_BYTES", 1)
    assert generate_answers(endless(base), prompts, people, owners, SamplingParams(5)) == whole
    assert sizes == [1] * 6
    monkeypatch.setattr(llama_batches, "CPU_BATCH_BYTES", 2 << 30)
    monkeypatch.setattr(llama_batches, "PACKED_MAX_ROWS", 4)
    assert generate_answers(endless(base), prompts, people, owners, SamplingParams(5)) == whole
    assert sorted(sizes[6:]) == [2, 4]


def test_a_seed_means_the_same_alone_and_in_company(base: LoadedBase) -> None:
    people, prompts, owners = everywhere(base), prompts_of(LENGTHS), [0, 1, 2, 3, 1, 0]
    params = SamplingParams(9, 1.0, 0.9, seed=5)
    company, _ = streamed(endless(base), prompts, people, owners, params)
    for prompt, owner, answer in zip(prompts, owners, company, strict=True):
        assert streamed(endless(base), [prompt], people, [owner], params)[0] == [answer]
        with merge_into_base(base, merge_loras([(part, 1.0) for part in people[owner]])):
            assert answer_alone(endless(base), prompt, 9, temperature=1.0, top_p=0.9, seed=5) == answer


def test_rows_end_at_end_tokens_and_the_others_go_on(base: LoadedBase) -> None:
    people, prompts, owners = everywhere(base), prompts_of(LENGTHS), [0, 1, 2, 3, 1, 0]
    whole = generate_answers(endless(base), prompts, people, owners, SamplingParams(10))
    end = whole[2][4]
    found = generate_answers(replace(base, end_ids=(end,)), prompts, people, owners, SamplingParams(10))
    assert found == [answer[: answer.index(end)] if end in answer else answer for answer in whole]


def test_room_bounds_each_answer(base: LoadedBase) -> None:
    near = [5] * (base.window - 3)
    found = generate_answers(endless(base), [near, [5, 6, 7]], [()], [0, 0], SamplingParams(6))
    assert [len(answer) for answer in found] == [3, 6]
    assert generate_answers(base, [[5, 6]], [()], [0], SamplingParams(0)) == [[]]
    assert generate_answers(base, [], [()], [], SamplingParams(4)) == []
    for prompt in ([], [5] * base.window):
        with pytest.raises(BadInput, match="tokens"):
            generate_answers(base, [[5], prompt], [()], [0, 0], SamplingParams(1))


def test_a_base_of_another_family_folds_one_person_after_another(base: LoadedBase) -> None:
    people, prompts, owners = everywhere(base), prompts_of(LENGTHS), [0, 1, 2, 3, 1, 0]
    expected = generate_answers(endless(base), prompts, people, owners, SamplingParams(6))
    other = replace(endless(base), llama_decoder=None)
    assert generate_answers(other, prompts, people, owners, SamplingParams(6)) == expected
    with pytest.raises(UsageError, match="late"):
        generate_answers(other, prompts, mixed(base), owners, SamplingParams(6))


def test_numbers_that_are_not_numbers_are_an_error(base: LoadedBase) -> None:
    plain_of(base).norm.weight.data.fill_(float("nan"))
    with pytest.raises(IntegrityFault, match="NaN"):
        generate_answers(base, prompts_of((4, 5)), [()], [0, 0], SamplingParams(2))


@pytest.mark.parametrize("plain", [True, False])
def test_a_stream_gives_the_same_answers_a_token_at_a_time(base: LoadedBase, plain: bool) -> None:
    spoken = endless(base) if plain else replace(endless(base), llama_decoder=None)
    people, prompts = everywhere(base), prompts_of((9, 9, 9, 9))
    requests = [GenerationRequest(prompt, loras) for prompt, loras in zip(prompts, people, strict=True)]
    places = [place for place, _ in generate(spoken, requests, SamplingParams(5, stop_at_repetition=False))]
    answers = generate_answers(spoken, prompts, people, range(4), SamplingParams(5))
    assert [request.answer for request in requests] == answers
    assert places == ([0, 1, 2, 3] * 5 if plain else [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5)


@pytest.mark.parametrize("plain", [True, False])
def test_answers_that_repeat_themselves_end_the_same_alone_and_in_company(base: LoadedBase, plain: bool) -> None:
    spoken = endless(base) if plain else replace(endless(base), llama_decoder=None)
    people, prompts, owners = everywhere(base), prompts_of(LENGTHS), [0, 1, 2, 3, 1, 0]
    raw = generate_answers(spoken, prompts, people, owners, SamplingParams(120, stop_at_repetition=False))
    assert all(len(answer) == 120 for answer in raw)
    kept = []
    for answer in raw:
        tokens = RepetitionFilter(base.tokenizer)
        kept.append(tokens.tokens if any(tokens.add(token)[1] for token in answer) else answer)
    assert sum(len(answer) < 120 for answer in kept) > 0, "some loop"
    assert generate_answers(spoken, prompts, people, owners, SamplingParams(120)) == kept
    assert generate_answers(spoken, prompts[::-1], people, owners[::-1], SamplingParams(120)) == kept[::-1]
    answers, finishes = streamed(spoken, prompts, people, owners, SamplingParams(120))
    assert answers == kept
    assert finishes == ["length" if len(answer) == 120 else "repetition" for answer in kept]
    for prompt, owner, answer in zip(prompts, owners, kept, strict=True):
        assert generate_answers(spoken, [prompt], people, [owner], SamplingParams(120)) == [answer]
        with merge_into_base(base, merge_loras([(part, 1.0) for part in people[owner]])):
            assert answer_alone(spoken, prompt, 120) == answer


def streamed(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    people: Sequence[UserLoras],
    owners: Sequence[int],
    params: SamplingParams,
    goes_on: Callable[[int], bool] = lambda place: True,
) -> tuple[list[list[int]], list[str]]:
    """All answers of a stream, and why each ended."""
    requests = [GenerationRequest(prompt, people[owner]) for prompt, owner in zip(prompts, owners, strict=True)]
    answers: list[list[int]] = [[] for _ in prompts]
    for place, token in generate(base, requests, params, goes_on=goes_on):
        answers[place].append(token)
    assert answers == [request.answer for request in requests]
    return answers, [request.finish for request in requests]


@pytest.mark.parametrize("plain", [True, False])
def test_a_reader_ends_one_answer_and_the_others_go_on(base: LoadedBase, plain: bool) -> None:
    spoken = endless(base) if plain else replace(endless(base), llama_decoder=None)
    people, prompts, owners = everywhere(base), prompts_of((9, 12, 14)), [0, 1, 2]
    params = SamplingParams(12, stop_at_repetition=False)
    whole, _ = streamed(spoken, prompts, people, owners, params)
    asked: list[int] = []

    def goes_on(place: int) -> bool:
        asked.append(place)
        return place != 1 or asked.count(1) < 5

    found, _ = streamed(spoken, prompts, people, owners, params, goes_on)
    assert [found[0], found[2]] == [whole[0], whole[2]]
    assert found[1] == whole[1][: len(found[1])] and 3 <= len(found[1]) <= 5


def test_penalties_and_min_p_are_those_of_each_alone(base: LoadedBase) -> None:
    people, prompts, owners = everywhere(base), prompts_of((9, 12, 14, 10)), [0, 1, 2, 3]
    params = SamplingParams(30, 1.5, 1.0, 0.2, 1.8)
    found, _ = streamed(endless(base), prompts, people, owners, params)
    for prompt, owner, answer in zip(prompts, owners, found, strict=True):
        with merge_into_base(base, merge_loras([(part, 1.0) for part in people[owner]])):
            alone = answer_alone(endless(base), prompt, 30, temperature=1.5, min_p=0.2, repetition_penalty=1.8)
            assert alone == answer
    greedy_raw, _ = streamed(endless(base), prompts, people, owners, SamplingParams(30, stop_at_repetition=False))
    penalised, _ = streamed(endless(base), prompts, people, owners, SamplingParams(30, repetition_penalty=5.0))
    assert sum(len(set(answer)) for answer in penalised) > sum(len(set(answer)) for answer in greedy_raw)
