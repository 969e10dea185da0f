"""Decoding: equal to the library's greedy search, exact label scores, whole characters, an exact cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mta_cli.engine.generation.answer_text import StreamingDetokenizer
from mta_cli.engine.generation.generate import generate
from mta_cli.engine.generation.request import GenerationRequest, PromptCache, SamplingParams
from mta_cli.engine.lora.adapter import LoraWeights, Placement, merge_into_base
from mta_cli.engine.model.llama import BatchedLora, causal_mask
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.scoring.log_likelihood import NO_LORAS, UserLoras, label_scores
from mta_cli.engine.scoring.tree_scorers import group_frozen_loras
from mta_cli.errors import BadInput, IntegrityFault, UsageError
from tests.engine.answers import answer_alone
from tests.engine.families import model
from tests.engine.lora_cases import random_lora


@pytest.fixture(scope="module", params=["plain", "modules"])
def base(request: pytest.FixtureRequest, tiny_base_path: Path) -> LoadedBase:
    """The tiny base in float32, with its plain decoder and as if it had none."""
    loaded = load_base(tiny_base_path, name="tiny", fingerprint="sha256:tiny", device="cpu", dtype="float32")
    return loaded if request.param == "plain" else replace(loaded, llama_decoder=None)


@pytest.fixture
def plain_base(tiny_base_path: Path) -> LoadedBase:
    """The tiny base with its plain decoder."""
    return load_base(tiny_base_path, name="tiny", fingerprint="sha256:tiny", device="cpu", dtype="float32")


def ids_of(base: LoadedBase, text: str) -> list[int]:
    """Plain token ids of `text`."""
    return list(base.tokenizer.encode(text, add_special_tokens=False))


def endless(base: LoadedBase) -> LoadedBase:
    """The same base without an end token, so that a random model never stops early."""
    return replace(base, end_ids=())


def test_greedy_equals_generate(base: LoadedBase) -> None:
    for prompt in ("hello there", "ä 日本", "x"):
        ids = ids_of(base, prompt)
        expected = base.model.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=-1, pad_token_id=0
        )[0, len(ids) :].tolist()
        assert answer_alone(endless(base), ids, 24) == expected


def test_streamed_pieces_are_the_decoded_answer(base: LoadedBase) -> None:
    ids = ids_of(base, "say something")
    tokens = answer_alone(endless(base), ids, 40)
    decoder = StreamingDetokenizer(base.tokenizer)
    pieces = [*map(decoder.add_token, tokens), decoder.flush()]
    assert "".join(pieces) == base.tokenizer.decode(tokens, skip_special_tokens=True)


def test_stops_at_any_end_token(base: LoadedBase) -> None:
    ids = ids_of(base, "hello")
    tokens = answer_alone(endless(base), ids, 12)
    ending = replace(base, end_ids=(-5, tokens[6]))
    assert answer_alone(ending, ids, 12) == tokens[: tokens.index(tokens[6])]


@pytest.mark.parametrize("kind", ["Mamba", "Rwkv"])
def test_a_base_whose_cache_is_no_keys_and_values(plain_base: LoadedBase, kind: str) -> None:
    """Mamba's states cannot be copied for each label, and Rwkv gives no cache that could be passed on."""
    base = replace(plain_base, model=model(kind), llama_decoder=None, head_is_exact=False)
    prompt, labels = [5, 80, 9, 200, 31, 7], [[5], [6, 7], [8, 9, 10]]
    rows = [base.model(torch.tensor([prompt + label])).logits[0].log_softmax(-1)[len(prompt) - 1 :] for label in labels]
    naive = [sum(float(logs[i, t]) for i, t in enumerate(label)) for logs, label in zip(rows, labels, strict=True)]
    assert label_scores(base, prompt, labels) == pytest.approx(naive, abs=1e-4)
    text, memory = list(prompt), PromptCache()
    for _ in range(6):
        text.append(int(base.model(torch.tensor([text])).logits[0, -1].argmax()))
    for start in (len(prompt), len(prompt) + 2):  # the second prompt begins as the first text does
        found = answer_alone(endless(base), text[:start], 12 - start, prompt_cache=memory)
        assert found == text[start:]


@pytest.mark.parametrize("text", ["plain", "naïve 日本語 🎉👩‍👩‍👧 end", "Ω", "\ufffd mid", "ends 🎉"])
def test_characters_are_never_split(base: LoadedBase, text: str) -> None:
    decoder = StreamingDetokenizer(base.tokenizer)
    pieces = [decoder.add_token(token) for token in ids_of(base, text)]
    assert "".join(pieces) + decoder.flush() == text
    held = "\ufffd" not in text
    assert not held or not any("\ufffd" in piece for piece in pieces)


def test_an_open_character_comes_out_at_the_end(base: LoadedBase) -> None:
    decoder = StreamingDetokenizer(base.tokenizer)
    pieces = [decoder.add_token(token) for token in ids_of(base, "a🎉")[:-1]]
    assert "".join(pieces) == "a"
    assert set(decoder.flush()) == {"\ufffd"}
    assert decoder.flush() == ""


def test_memory_gives_the_same_answer_as_starting_afresh(base: LoadedBase) -> None:
    memory = PromptCache()
    first = ids_of(base, "shared beginning, first question")
    answer = answer_alone(endless(base), first, 8, prompt_cache=memory)
    second = first + answer + ids_of(base, " and then more")
    assert memory.shared_length(second) >= len(first)
    continued = answer_alone(endless(base), second, 8, prompt_cache=memory)
    assert continued == answer_alone(endless(base), second, 8)
    other = ids_of(base, "shared ending")
    assert answer_alone(endless(base), other, 8, prompt_cache=memory) == answer_alone(endless(base), other, 8)


def test_memory_holds_nothing_of_a_pass_that_is_interrupted(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PromptCache()
    ids = ids_of(base, "hello")
    whole = answer_alone(endless(base), ids, 8)
    answer_alone(endless(base), ids, 2, prompt_cache=memory)

    def interrupted(*_: Any, **__: Any) -> Iterator[int]:
        raise KeyboardInterrupt

    inner = (base.llama_decoder, "logits") if base.llama_decoder is not None else (base.model.model, "forward")
    with monkeypatch.context() as patch:
        patch.setattr(*inner, interrupted)
        with pytest.raises(KeyboardInterrupt):
            answer_alone(endless(base), ids, 2, prompt_cache=memory)
    assert memory.ids == ids[: len(memory.ids)] and (memory.cache is None) == (memory.ids == [])
    assert answer_alone(endless(base), ids, 8, prompt_cache=memory) == whole


def test_sampling_follows_the_seed(base: LoadedBase) -> None:
    ids = ids_of(base, "hello")
    draws = [tuple(answer_alone(endless(base), ids, 12, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_tiny_top_p_is_greedy(base: LoadedBase) -> None:
    ids = ids_of(base, "hello")
    greedy = answer_alone(endless(base), ids, 8)
    assert answer_alone(endless(base), ids, 8, temperature=2.0, top_p=1e-6) == greedy


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-12])
def test_a_tiny_temperature_is_greedy(base: LoadedBase, temperature: float) -> None:
    greedy = answer_alone(endless(base), [5, 6, 7], 4)
    assert answer_alone(endless(base), [5, 6, 7], 4, temperature=temperature) == greedy


def test_the_window_bounds_prompt_and_answer(base: LoadedBase) -> None:
    long = [5] * (base.window - 3)
    assert len(answer_alone(endless(base), long, 50)) == 3
    for ids in ([], [5] * base.window):
        with pytest.raises(BadInput, match="tokens"):
            answer_alone(base, ids, 1)


def test_numbers_that_are_not_numbers_are_an_error(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.model.lm_head, "forward", lambda hidden: hidden @ torch.full((64, 9), float("nan")))
    if base.llama_decoder is not None:
        monkeypatch.setattr(
            base.llama_decoder, "logits", lambda states, read_copies: torch.full((len(states), 9), float("nan"))
        )
    with pytest.raises(IntegrityFault, match="NaN"):
        answer_alone(base, [1, 2], 2)


def late_part(base: LoadedBase, seed: int = 3, late: int = 4) -> LoraWeights:
    """A part of the upper layer for the last `late` prompt tokens and the answer."""
    weights = random_lora(base.model, seed, alpha=32.0, placement="upper")
    place = weights.placement
    return LoraWeights(weights.factors, weights.scale, Placement(place.first_layer, place.last_layer, late))


def masked_logits(base: LoadedBase, prompt: list[int], answer: list[int], part: LoraWeights) -> torch.Tensor:
    """Logits after each answer token and the prompt, from one pass whose part is masked by position."""
    plain = base.llama_decoder
    assert plain is not None
    text = torch.tensor([prompt + answer])
    where = (torch.arange(text.shape[1]) >= part.placement.first_position(len(prompt))).float()[None, :, None]
    (crowd,) = group_frozen_loras(plain, [[part]])
    with torch.no_grad():
        rope, mask = (
            plain.rope(torch.arange(text.shape[1])[None]),
            causal_mask(text.shape[1], plain.dtype, plain.device),
        )
        return plain.logits(
            plain.run_layers(plain.embed(text), rope, mask, loras=[BatchedLora(crowd.factors_for_rows([0]), where)])[0]
        )


def test_a_late_part_meets_late_tokens_only(plain_base: LoadedBase) -> None:
    part, prompt = late_part(plain_base), ids_of(plain_base, "what would I say to that?")
    answer = answer_alone(endless(plain_base), prompt, 10, loras=(part,))
    expected = masked_logits(plain_base, prompt, answer, part)[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert answer == expected != answer_alone(endless(plain_base), prompt, 10)
    labels = [ids_of(plain_base, text) for text in ("a", "dark comedy")]
    for label, score in zip(labels, label_scores(plain_base, prompt, labels, (part,)), strict=True):
        logprobs = torch.log_softmax(masked_logits(plain_base, prompt, label, part), -1)
        naive = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(label))
        assert score == pytest.approx(naive, abs=1e-4)


def test_memory_keeps_nothing_that_a_late_part_has_touched(plain_base: LoadedBase) -> None:
    base, memory = endless(plain_base), PromptCache()
    part, other = late_part(base), late_part(base, seed=4, late=9)
    first = ids_of(base, "shared beginning, first question")
    answer = answer_alone(base, first, 8, prompt_cache=memory, loras=(part,))
    assert memory.ids == first[:-4]
    second = first + answer + ids_of(base, " and then more")
    turns: list[tuple[list[int], UserLoras]] = [
        (second, (part,)),
        (second, NO_LORAS),
        (second[:-1], (other,)),
        (first[:-3], (part,)),
        (first, NO_LORAS),
    ]
    for turn, loras in turns:
        found = answer_alone(base, turn, 8, prompt_cache=memory, loras=loras)
        assert found == answer_alone(base, turn, 8, loras=loras)
    started = generate(base, [GenerationRequest(first, (part,))], SamplingParams(8), prompt_cache=memory)
    next(started)
    started.close()
    assert memory.ids == first[:-4]


def test_only_the_plain_decoder_takes_late_parts(plain_base: LoadedBase) -> None:
    part, other = late_part(plain_base), replace(plain_base, llama_decoder=None)
    with pytest.raises(UsageError, match="late"):
        answer_alone(other, [5, 6, 7], 1, loras=(part,))
    with pytest.raises(UsageError, match="late"):
        label_scores(other, [5, 6, 7], [[8]], (part,))


def test_prompts_run_in_chunks(plain_base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(plain_base, "a prompt that is read in several pieces")
    whole = answer_alone(endless(plain_base), ids, 8)
    monkeypatch.setattr("mta_cli.engine.generation.llama_batches.PREFILL_CHUNK_TOKENS", 7)
    assert answer_alone(endless(plain_base), ids, 8) == whole


def test_the_cache_grows_with_the_answer(plain_base: LoadedBase) -> None:
    ids = ids_of(plain_base, "x")
    whole = answer_alone(endless(plain_base), ids, 300, stop_at_repetition=False)
    expected = plain_base.model.generate(
        torch.tensor([ids]), max_new_tokens=300, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    assert whole == expected[0, 1:].tolist()


def test_packed_weights_follow_what_is_folded(tiny_base_path: Path) -> None:
    base = endless(load_base(tiny_base_path, name="tiny", fingerprint="f", device="cpu", dtype="bfloat16"))
    plain, ids, part = base.llama_decoder, ids_of(base, "hello"), random_lora(base.model, 3, alpha=64.0)
    assert plain is not None
    plain.pack_weights()
    before = answer_alone(base, ids, 12)
    with merge_into_base(base, part):
        plain.pack_weights()
        inside = answer_alone(base, ids, 12)
    assert inside != before == answer_alone(base, ids, 12)


def test_training_after_decoding_still_has_gradients(plain_base: LoadedBase) -> None:
    """A longer table of angles and packed weights, both made while decoding, do not stand in autograd's way."""
    plain = plain_base.llama_decoder
    assert plain is not None
    answer_alone(endless(plain_base), [5] * 300, 12)
    plain.pack_weights()
    x = plain.embed(torch.tensor([[5, 6, 7]])).clone().requires_grad_()
    plain.run_layers(
        x, plain.rope(torch.tensor([[0, 1, 2]])), causal_mask(3, plain.dtype, plain.device)
    ).sum().backward()
    assert x.grad is not None and bool(x.grad.abs().sum() > 0)
