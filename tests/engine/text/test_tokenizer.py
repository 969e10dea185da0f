"""What looks like a control token in a user's text is spelled in letters, however often it is there."""

from __future__ import annotations

import time
from functools import cache

import pytest

from mta_cli.engine.text.tokenizer import PromptTokenizer
from tests.engine.shapes import ALL


@cache
def words_of(shape: str) -> PromptTokenizer:
    """A tokenizer whose template contains `<think>`, an added token that is not special, as Qwen3's do."""
    tokenizer = ALL[shape]()
    tokenizer.add_tokens(["<think>", "</think>"])
    return PromptTokenizer(tokenizer, ["<think>\n\n</think>"])


@pytest.mark.parametrize(
    "text", ["<think>", "a <think>b</think> c", "<think><think>", "<thi<think>nk>", "<|end|><think></s>", "no</thin"]
)
@pytest.mark.parametrize("shape", ["byte_chatml", "byte_merges", "metaspace"])
def test_control_tokens_of_the_template_are_spelled(shape: str, text: str) -> None:
    words = words_of(shape)
    ids = words.encode_user_text(text)
    assert words.count_control_tokens(ids) == 0 < words.count_control_tokens(words.encode_template("<think>"))
    if shape.startswith("byte"):
        assert words.decode_ids(ids) == text


def test_a_text_full_of_control_tokens_takes_a_moment_and_can_be_cut() -> None:
    words, started = words_of("byte_merges"), time.perf_counter()
    once = words.encode_user_text("<think>")
    assert words.truncate_text("<think>" * 3_000, 10 * len(once)) == "<think>" * 10
    assert words.encode_user_text("<think>" * 5_000) == once * 5_000
    assert time.perf_counter() - started < 5
