"""Decoding: equal to the library's greedy search, exact label scores, whole characters, an exact cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mta_cli.engine.base import LoadedBase, load_base
from mta_cli.engine.generate import (
    Decoder,
    Memory,
    answer_loglik,
    choose_label,
    label_scores,
    stream,
    token_ids,
)
from mta_cli.errors import BadInput, IntegrityFault


@pytest.fixture(scope="module")
def base(tiny_base_path: Path) -> LoadedBase:
    """The tiny base in float32."""
    return load_base(tiny_base_path, name="tiny", fingerprint="sha256:tiny", device="cpu", dtype="float32")


def ids_of(base: LoadedBase, text: str) -> list[int]:
    """Plain token ids of `text`."""
    return list(base.tokenizer.encode(text, add_special_tokens=False))


def endless(base: LoadedBase) -> LoadedBase:
    """The same base without an end token, so that a random model never stops early."""
    return LoadedBase(base.model, base.tokenizer, base.fingerprint, base.name, base.device, base.dtype, ())


def test_greedy_equals_generate(base: LoadedBase) -> None:
    for prompt in ("hello there", "ä 日本", "x"):
        ids = ids_of(base, prompt)
        expected = base.model.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=-1, pad_token_id=0
        )[0, len(ids) :].tolist()
        assert list(token_ids(endless(base), ids, max_tokens=24)) == expected


def test_streamed_pieces_are_the_decoded_answer(base: LoadedBase) -> None:
    ids = ids_of(base, "say something")
    tokens = list(token_ids(endless(base), ids, max_tokens=40))
    assert "".join(stream(endless(base), ids, max_tokens=40)) == base.tokenizer.decode(tokens, skip_special_tokens=True)


def test_stops_at_any_end_token(base: LoadedBase) -> None:
    ids = ids_of(base, "hello")
    tokens = list(token_ids(endless(base), ids, max_tokens=12))
    ending = LoadedBase(base.model, base.tokenizer, "f", "tiny", base.device, base.dtype, (-5, tokens[6]))
    assert list(token_ids(ending, ids, max_tokens=12)) == tokens[: tokens.index(tokens[6])]


def test_label_scores_equal_the_naive_sum(base: LoadedBase) -> None:
    prompt = ids_of(base, "which one?")
    labels = [ids_of(base, text) for text in ("a", "comedy", "dark comedy", "日本")]
    naive = []
    for label in labels:
        logits = base.model(torch.tensor([prompt + label])).logits[0].double()
        logprobs = torch.log_softmax(logits, -1)
        naive.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(label)))
    assert label_scores(base, prompt, labels) == pytest.approx(naive, abs=1e-4)
    assert answer_loglik(base, prompt, labels[2]) == pytest.approx(naive[2], abs=1e-4)
    place, scores = choose_label(base, prompt, labels)
    assert scores[place] == max(scores)


def test_label_batches_do_not_change_scores(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ids_of(base, "q")
    labels = [ids_of(base, "label " * n) for n in range(1, 6)]
    together = label_scores(base, prompt, labels)
    monkeypatch.setattr("mta_cli.engine.generate.SCORE_CELLS", 1)
    assert label_scores(base, prompt, labels) == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize("labels", [[], [[1], []]])
def test_labels_without_tokens_are_refused(base: LoadedBase, labels: list[list[int]]) -> None:
    with pytest.raises(BadInput):
        label_scores(base, [1, 2], labels)


@pytest.mark.parametrize("text", ["plain", "naïve 日本語 🎉👩‍👩‍👧 end", "Ω", "\ufffd mid", "ends 🎉"])
def test_characters_are_never_split(base: LoadedBase, text: str) -> None:
    decoder = Decoder(base.tokenizer)
    pieces = [decoder.push(token) for token in ids_of(base, text)]
    assert "".join(pieces) + decoder.flush() == text
    held = "\ufffd" not in text
    assert not held or not any("\ufffd" in piece for piece in pieces)


def test_an_open_character_comes_out_at_the_end(base: LoadedBase) -> None:
    decoder = Decoder(base.tokenizer)
    pieces = [decoder.push(token) for token in ids_of(base, "a🎉")[:-1]]
    assert "".join(pieces) == "a"
    assert set(decoder.flush()) == {"\ufffd"}
    assert decoder.flush() == ""


def test_memory_gives_the_same_answer_as_starting_afresh(base: LoadedBase) -> None:
    memory = Memory()
    first = ids_of(base, "shared beginning, first question")
    answer = list(token_ids(endless(base), first, max_tokens=8, memory=memory))
    second = first + answer + ids_of(base, " and then more")
    assert memory.keep_prefix(second) >= len(first)
    continued = list(token_ids(endless(base), second, max_tokens=8, memory=memory))
    assert continued == list(token_ids(endless(base), second, max_tokens=8))
    other = ids_of(base, "shared ending")
    assert list(token_ids(endless(base), other, max_tokens=8, memory=memory)) == list(
        token_ids(endless(base), other, max_tokens=8)
    )


def test_memory_is_dropped_when_a_pass_is_interrupted(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    ids = ids_of(base, "hello")
    list(token_ids(endless(base), ids, max_tokens=2, memory=memory))

    def interrupted(*_: Any, **__: Any) -> Iterator[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(base.model.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(token_ids(endless(base), ids, max_tokens=2, memory=memory))
    assert memory.cache is None and memory.ids == []


def test_sampling_follows_the_seed(base: LoadedBase) -> None:
    ids = ids_of(base, "hello")
    draws = [tuple(token_ids(endless(base), ids, max_tokens=12, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_tiny_top_p_is_greedy(base: LoadedBase) -> None:
    ids = ids_of(base, "hello")
    greedy = list(token_ids(endless(base), ids, max_tokens=8))
    assert list(token_ids(endless(base), ids, max_tokens=8, temperature=2.0, top_p=1e-6)) == greedy


def test_the_window_bounds_prompt_and_answer(base: LoadedBase) -> None:
    long = [5] * (base.window - 3)
    assert len(list(token_ids(endless(base), long, max_tokens=50))) == 3
    for ids in ([], [5] * base.window):
        with pytest.raises(BadInput, match="tokens"):
            list(token_ids(base, ids, max_tokens=1))


def test_numbers_that_are_not_numbers_are_an_error(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.model.lm_head, "forward", lambda hidden: hidden @ torch.full((64, 9), float("nan")))
    with pytest.raises(IntegrityFault, match="NaN"):
        list(token_ids(base, [1, 2], max_tokens=2))
