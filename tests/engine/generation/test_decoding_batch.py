"""Rows that join and leave: each gets what it would get alone, whenever the others come and go."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mta_cli.engine.generation.decoding_batch import DecodingBatch, PromptPass, PromptText
from mta_cli.engine.lora.adapter import merge_into_base
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.lora.row_factors import UserFactors, fused_factors
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.scoring.log_likelihood import UserLoras, completion_log_likelihoods, label_scores
from mta_cli.engine.scoring.prefix_tree import PromptTree
from tests.engine.answers import answer_alone
from tests.engine.generation.test_generate_many import endless, lora, plain_of, prompts_of


def kinds(base: LoadedBase) -> list[tuple[UserLoras, UserLoras]]:
    """Users as (task adapter, own LoRAs): several ranks and placements, some late, and a user without LoRAs."""
    task, late = lora(base, 7, rank=2), lora(base, 5, "upper", 4, rank=3)
    return [
        ((task,), (lora(base, 1, "upper"),)),
        ((), (lora(base, 2, rank=1),)),
        ((task,), (late,)),
        ((), ()),
        ((task,), (lora(base, 3, "upper", rank=5), late)),
        ((), (late,)),
    ]


def factors(base: LoadedBase) -> list[UserFactors]:
    decoder, shared = plain_of(base), dict[int, dict]()
    found = []
    for task, own in kinds(base):
        if task:
            shared.setdefault(0, fused_factors(decoder, task[0]))
        found.append(UserFactors.from_loras(decoder, own, shared[0] if task else {}))
    return found


def alone(base: LoadedBase, prompt: Sequence[int], loras: UserLoras, count: int) -> list[int]:
    """The answer by the path of `mta ask`: LoRAs of all tokens merged into the weights, a late one on top."""
    everywhere = merge_loras([(one, 1.0) for one in loras if one.placement.late_tokens is None])
    late = merge_loras([(one, 1.0) for one in loras if one.placement.late_tokens is not None])
    with merge_into_base(base, everywhere):
        return answer_alone(base, prompt, count, loras=() if late is None else (late,))


def reading(
    base: LoadedBase,
    user: UserFactors,
    ids: Sequence[int],
    prompt: int | None = None,
    prefix: torch.Tensor | None = None,
) -> PromptPass:
    """One text; all of it is the prompt where `prompt` is None."""
    return PromptPass(plain_of(base), [PromptText(user, ids, len(ids) if prompt is None else prompt)], prefix)


@pytest.mark.parametrize("seed", range(6))
def test_whoever_comes_and_goes_each_row_gets_its_own_answer(base: LoadedBase, seed: int) -> None:
    base, draw = endless(base), random.Random(seed)
    users, own = factors(base), [(*task, *rest) for task, rest in kinds(base)]
    asked = [(draw.randrange(len(users)), draw.randrange(1, 40), draw.randrange(1, 12)) for _ in range(14)]
    prompts = prompts_of([length for _, length, _ in asked], seed)
    expected = [alone(base, prompt, own[user], count) for prompt, (user, _, count) in zip(prompts, asked, strict=True)]
    batch, rows, answers = DecodingBatch(plain_of(base)), list[int](), [list[int]() for _ in asked]
    waiting = list(range(len(asked)))
    while waiting or rows:
        if waiting and (len(rows) < 2 or (len(rows) < 5 and draw.random() < 0.5)):
            place = waiting.pop(0)
            text = reading(base, users[asked[place][0]], prompts[place])
            while (logits := text.read(draw.choice((3, 7, 100)))) is None:
                assert text.remaining
            answers[place].append(int(logits.argmax()))
            batch.join(text)
            rows.append(place)
        kept = [r for r, place in enumerate(rows) if len(answers[place]) < asked[place][2]]
        if len(kept) < len(rows):
            rows = [rows[r] for r in batch.keep_rows(kept)]
        if rows:
            step = batch.decode_step([answers[place][-1] for place in rows])
            for place, logits in zip(rows, step, strict=True):
                answers[place].append(int(logits.argmax()))
    assert answers == expected and len(batch) == 0


def test_a_known_prefix_is_not_read_again(base: LoadedBase) -> None:
    base = endless(base)
    for user, (task, own) in zip(factors(base), kinds(base), strict=True):
        (prompt,) = prompts_of([30])
        first = reading(base, user, prompt)
        first.read(100)
        clean = user.reusable_length(30, 29)
        assert clean == (26 if any(one.placement.late_tokens for one in own) else 29)
        longer = [*prompt[:clean], *prompts_of([9], 1)[0]]
        again = reading(base, user, longer, prefix=first.cache.row_block(0, clean))
        assert again.remaining == 9
        logits = again.read(100)
        assert logits is not None and int(logits.argmax()) == alone(base, longer, (*task, *own), 1)[0]


def test_a_row_goes_on_where_it_was_put_aside(base: LoadedBase) -> None:
    """A late LoRA counts from the prompt's end, also where tokens of an answer are read with the prompt."""
    base = endless(base)
    for user, (task, own) in zip(factors(base), kinds(base), strict=True):
        (prompt,) = prompts_of([20])
        expected = alone(base, prompt, (*task, *own), 8)
        logits = reading(base, user, [*prompt, *expected[:5]], 20).read(100)
        assert logits is not None and int(logits.argmax()) == expected[5]


def test_completions_are_scored_behind_the_text(base: LoadedBase) -> None:
    draw = random.Random(3)
    labels = [tuple(draw.randrange(3, 250) for _ in range(length)) for length in (1, 4, 2, 3, 1)]
    for user, (task, own) in zip(factors(base), kinds(base), strict=True):
        (prompt,) = prompts_of([25])
        text = reading(base, user, prompt)
        logits = text.read(100)
        assert logits is not None
        found = text.completion_log_likelihoods(logits[0], labels)
        expected = completion_log_likelihoods(
            base, [PromptTree(tuple(prompt), tuple(labels))], [(*task, *own)], [(0, 0)]
        )
        assert found == pytest.approx(expected[0], abs=2e-4)
        assert text.completion_log_likelihoods(logits[0], labels[:1]) == pytest.approx(found[:1], abs=1e-5)
    assert label_scores(base, prompt, labels)  # the shortest path, without LoRAs


def test_memory_follows_the_rows(base: LoadedBase) -> None:
    batch = DecodingBatch(plain_of(base))
    before = batch.num_bytes
    for prompt in prompts_of([300, 5, 5, 5, 5]):
        text = reading(base, UserFactors({}, {}, {}), prompt)
        text.read(1000)
        batch.join(text)
    assert batch.num_bytes == 4 * before, "twice the rows, twice the positions"
    assert batch.keep_rows([4]) == [4] and len(batch) == 1
    assert torch.isfinite(batch.decode_step([3])).all()


def test_rows_in_bfloat16_have_their_own_loras_alone_and_together(tiny_base_path: Path) -> None:
    coarse = load_base(tiny_base_path, name="tiny", fingerprint="f", device="cpu", dtype="bfloat16")
    fine = load_base(tiny_base_path, name="tiny", fingerprint="f", device="cpu", dtype="float32")
    prompts = prompts_of([12, 17], seed=3)
    exact = [
        [logits_alone(fine, user, prompt, token) for user, prompt, token in zip(pair, prompts, (5, 7), strict=True)]
        for pair in pairs_of_users(fine)
    ]
    for pair, (first, second) in zip(pairs_of_users(coarse), exact, strict=True):
        batch = DecodingBatch(plain_of(coarse))
        for user, prompt in zip(pair, prompts, strict=True):
            text = reading(coarse, user, prompt)
            text.read(100)
            batch.join(text)
            if len(batch) == 1:
                assert error(batch.decode_step([5])[0], first) < 0.1
                batch._cache.lengths = [12]  # the step again, beside another row
        together = batch.decode_step([5, 7])
        assert error(together[0], first) < 0.1 and error(together[1], second) < 0.1
        batch.keep_rows([1])
        batch._cache.lengths = [17]  # the step again, alone
        assert error(batch.decode_step([7])[0], second) < 0.1


def pairs_of_users(base: LoadedBase) -> list[tuple[UserFactors, UserFactors]]:
    users = factors(base)
    return [(one, other) for one in users for other in users if one is not other]


def logits_alone(base: LoadedBase, user: UserFactors, prompt: Sequence[int], token: int) -> torch.Tensor:
    text, batch = reading(base, user, prompt), DecodingBatch(plain_of(base))
    text.read(100)
    batch.join(text)
    return batch.decode_step([token])[0]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact).abs().mean() / exact.std())
