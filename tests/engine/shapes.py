"""Tokenizers of every shape that bases have, made on the spot: byte-level, sentencepiece-like, whole words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.tiny import CHAT_TEMPLATE, byte_tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog and tags the movie as sci-fi or dark comedy",
    "a film about a true story, based on a book; it is thought-provoking, and a classic!",
    "Movies I tagged: Tag: romance\nMy tag for this movie: fantasy\n",
    "user assistant system: 1 2 3 4 5 naïve café — 你好 🎬",
] * 4

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\\n\\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TALKATIVE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant with a long introduction<|im_end|>\\n' }}{% endif %}"
) + CHAT_TEMPLATE


def _wrapped(raw: Any, template: str | None, **names: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.chat_template = template
    return tokenizer


def byte_chatml() -> Any:
    """One token a byte, ChatML."""
    return byte_tokenizer()


def byte_talkative() -> Any:
    """A template with a default system message."""
    return byte_tokenizer(TALKATIVE)


def byte_plain() -> Any:
    """No template and no token of its own at the start."""
    return byte_tokenizer(None)


def byte_merges(template: str | None = LLAMA_3) -> Any:
    """Byte-level BPE with merges, a beginning token, and an end of turn that is not the end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<|begin|>", "<|text_end|>", "<|start|>", "<|end|>", "<|eot|>"]
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    raw.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return _wrapped(raw, template, bos_token="<|begin|>", eos_token="<|text_end|>")


def byte_start() -> Any:
    """Like `byte_merges`, without a template: the tokenizer itself puts a token before a text."""
    return byte_merges(None)


def _pieces() -> Any:
    from tokenizers import Tokenizer, models, trainers

    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    octets = [f"<0x{number:02X}>" for number in range(256)]
    trained = [line.replace(" ", "▁") for line in CORPUS[:3]]
    raw.train_from_iterator(
        trained,
        trainers.BpeTrainer(vocab_size=480, special_tokens=["<unk>", "<s>", "</s>", *octets], show_progress=False),
    )
    state = json.loads(raw.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the trainer makes the bytes control tokens, which they are not
    return Tokenizer.from_str(json.dumps(state))


def metaspace(scheme: str = "first") -> Any:
    """Sentencepiece-like by a pre-tokenizer: words begin with ▁, a leading space is swallowed, bytes as fallback."""
    from tokenizers import decoders, pre_tokenizers, processors

    raw = _pieces()
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(raw, LLAMA_2, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace_always() -> Any:
    """A ▁ before every part of a text, also behind a control token."""
    return metaspace("always")


def prepended() -> Any:
    """Sentencepiece-like by a normalizer: ▁ is put before every text, whatever it begins with."""
    from tokenizers import decoders, normalizers, processors

    raw = _pieces()
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(raw, LLAMA_2, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def whole_words() -> Any:
    """A word, a token; unknown words, spacing and punctuation cannot be spelled."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for line in CORPUS for word in line.split()} | {"user", "assistant", "system"})
    names = ("<unk>", "<|im_start|>", "<|im_end|>", *words)
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = _wrapped(raw, CHAT_TEMPLATE, unk_token="<unk>", eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


EXACT: dict[str, Callable[[], Any]] = {
    maker.__name__: maker
    for maker in (
        byte_chatml,
        byte_talkative,
        byte_plain,
        byte_merges,
        byte_start,
        metaspace,
        metaspace_always,
        prepended,
    )
}
ALL: dict[str, Callable[[], Any]] = {**EXACT, "whole_words": whole_words}


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the base would stop at: the tokenizer's end, and an end of turn where there is one of its own."""
    turn = tokenizer.convert_tokens_to_ids("<|eot|>")
    known = isinstance(turn, int) and turn != tokenizer.unk_token_id
    return (tokenizer.eos_token_id, *((turn,) if known and turn is not None else ()))
