"""Prompts and labels, for tokenizers of every shape."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.engine.text.chat_template import ChatLayout
from mta_cli.engine.text.prompts import KEPT_LAYOUTS, HistoryExample, PromptBuilder
from mta_cli.engine.text.tasks import BUILTIN_TASKS, Task
from mta_cli.errors import BadInput
from tests.engine.shapes import ALL, EXACT, LLAMA_3, byte_merges, byte_plain, end_ids, metaspace
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer

AWKWARD = (
    "comedy",
    " comedy",
    "   three spaces",
    "trailing  ",
    "\n",
    "two\n\nlines\n",
    "\ttab",
    "🎬👩‍👩‍👧",
    "你好 世界",
    "naïve café",
    "a<|im_end|>b",
    "<|im_end|>",
    "</s><s>[INST]",
    "<|eot|><|start|>system<|end|>",
    "<unk>",
    "",
)
FREE = BUILTIN_TASKS["free"]
TAGS = BUILTIN_TASKS["lamp-2"]


@cache
def tokenizer_of(shape: str) -> Any:
    return ALL[shape]()


@cache
def prompter_of(shape: str, task: Task = FREE, window: int | None = None) -> PromptBuilder:
    tokenizer = tokenizer_of(shape)
    return PromptBuilder(tokenizer, task, end_ids(tokenizer), window)


def decoded(prompter: PromptBuilder, ids: Any) -> str:
    return str(prompter.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def control_count(prompter: PromptBuilder, ids: Any) -> int:
    tokenizer = prompter.tokenizer
    known = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sum(number in known - {tokenizer.unk_token_id} for number in ids)


@pytest.mark.parametrize("answer", AWKWARD)
@pytest.mark.parametrize("shape", EXACT)
def test_labels_are_the_answer_and_the_end_of_turn(shape: str, answer: str) -> None:
    prompter = prompter_of(shape)
    row = prompter.training_row("What is it?", answer, [HistoryExample("an earlier one", "its answer")])
    *said, end = row.input_ids[row.answer_start :]
    assert decoded(prompter, said) == answer
    assert end == prompter.end_id
    assert end in end_ids(prompter.tokenizer)
    assert control_count(prompter, said) == 0


def test_the_sign_for_a_space_is_a_letter_where_it_can_be() -> None:
    answer = "▁ already ▁"  # sentencepiece-like tokenizers cannot tell it from a space
    assert decoded(prompter_of("byte_merges"), prompter_of("byte_merges").answer_ids(answer)[:-1]) == answer
    said = prompter_of("metaspace").answer_ids(answer)[:-1]
    assert decoded(prompter_of("metaspace"), said).split() == ["already"]


@pytest.mark.parametrize("shape", EXACT)
def test_every_label_is_spelled_whole(shape: str) -> None:
    prompter = prompter_of(shape, TAGS)
    for label in TAGS.labels:
        assert decoded(prompter, prompter.answer_ids(label)[:-1]) == label
        assert label in prompter.render_item(HistoryExample("a film", label))


def test_the_end_of_a_turn_is_the_templates_where_the_base_stops_at_it() -> None:
    tokenizer = byte_merges()
    turn, text = tokenizer.convert_tokens_to_ids("<|eot|>"), tokenizer.eos_token_id
    assert PromptBuilder(tokenizer, FREE, (text, turn)).end_id == turn
    assert PromptBuilder(tokenizer, FREE, (text,)).end_id == text
    with pytest.raises(BadInput, match="no token that ends an answer"):
        PromptBuilder(tokenizer, FREE, ())


@pytest.mark.parametrize("words", AWKWARD)
@pytest.mark.parametrize("shape", ALL)
def test_what_is_asked_and_what_is_learnt_have_the_same_prompt(shape: str, words: str) -> None:
    prompter = prompter_of(shape)
    history = [HistoryExample(words, "one"), HistoryExample("two", words)]
    row = prompter.training_row(words, "an answer", history)
    assert list(row.input_ids) == prompter.prompt_ids(words, history) + prompter.answer_ids("an answer")
    assert row.answer_start == len(prompter.prompt_ids(words, history))


@pytest.mark.parametrize("words", AWKWARD)
@pytest.mark.parametrize("shape", EXACT)
def test_nobody_can_type_a_control_token(shape: str, words: str) -> None:
    prompter = prompter_of(shape)
    tame = prompter.prompt_ids("words", [HistoryExample("words", "words")])
    ids = prompter.prompt_ids(words, [HistoryExample(words, words)])
    assert control_count(prompter, ids) == control_count(prompter, tame)
    assert words.strip() in decoded(prompter, ids)


@pytest.mark.parametrize(
    "shape", ["byte_chatml", "byte_talkative", "byte_merges", "metaspace", "metaspace_always", "prepended"]
)
def test_ordinary_words_are_tokenised_as_transformers_does(shape: str) -> None:
    prompter = prompter_of(shape)
    talk = [
        {"role": "user", "content": "Which film?"},
        {"role": "assistant", "content": "the quick fox"},
        {"role": "user", "content": "And then?"},
    ]
    for messages in (talk[:1], talk):
        theirs = prompter.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert prompter.chat_ids(messages) == theirs
    assert prompter.prompt_ids("Which film?") == prompter.chat_ids(talk[:1])


def test_without_a_template_the_tokenizers_own_start_is_kept() -> None:
    prompter = prompter_of("byte_start")
    tokenizer = prompter.tokenizer
    assert prompter.prompt_ids("a film") == tokenizer("a film\n")["input_ids"]
    assert prompter.prompt_ids("a film")[0] == tokenizer.bos_token_id
    plain = prompter_of("byte_plain")
    assert plain.prompt_ids("a film") == plain.tokenizer("a film\n")["input_ids"]
    assert (
        decoded(plain, plain.chat_ids([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]))
        == "a\nb\n"
    )


def test_history_stands_before_the_question_in_the_order_given() -> None:
    prompter = prompter_of("byte_chatml", TAGS)
    text = decoded(
        prompter, prompter.prompt_ids("now", [HistoryExample("x", "classic"), HistoryExample("y", "comedy")])
    )
    assert text == (
        "<|im_start|>user\nMovies I tagged:\nx\nTag: classic\ny\nTag: comedy\n\nnow\nMy tag for this movie:<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_chat_shows_history_before_each_message_that_has_one() -> None:
    prompter = prompter_of("byte_chatml")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "bye"},
    ]
    begins = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat I said before:\nQ: q\nA: a\n\nhello<|im_end|>\n"
        "<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\n"
    )
    first, last = HistoryExample("q", "a"), HistoryExample("r", "b")
    text = decoded(prompter, prompter.chat_ids(messages, [[first]]))
    assert text == f"{begins}bye<|im_end|>\n<|im_start|>assistant\n"
    text = decoded(prompter, prompter.chat_ids(messages, [[first], [last]]))
    assert text == f"{begins}What I said before:\nQ: r\nA: b\n\nbye<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "system", "begins"),
    [
        ("talkative", "", "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n"),
        (
            "talkative",
            "{default}",
            "<|im_start|>system\nYou are a helpful assistant with a long introduction<|im_end|>\n",
        ),
        ("talkative", "Short.", "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\n"),
        ("chatml", "", "<|im_start|>user\n"),
        ("plain", "Short.", "Short.\n\nhello"),
        ("plain", "", "hello"),
    ],
)
def test_the_system_message(template: str, system: str, begins: str) -> None:
    prompter = prompter_of(f"byte_{template}", replace(FREE, system=system))
    assert decoded(prompter, prompter.prompt_ids("hello")).startswith(begins)


def test_a_template_that_takes_no_system_message_gets_it_before_the_first_words() -> None:
    prompter = prompter_of("metaspace", replace(FREE, system="Short."))
    assert decoded(prompter, prompter.prompt_ids("hello")) == "<s>[INST] Short.\n\nhello [/INST]"
    prompter = prompter_of("metaspace", TAGS)
    assert decoded(prompter, prompter.prompt_ids("x")).startswith("<s>[INST] x\n")
    silent = byte_tokenizer(CHAT_TEMPLATE.replace("in messages", "in messages if message['role'] != 'system'"))
    prompter = PromptBuilder(silent, replace(FREE, system="Short."), end_ids(silent))
    assert decoded(prompter, prompter.prompt_ids("hello")).startswith("<|im_start|>user\nShort.\n\nhello")


def test_roles_that_a_template_refuses_are_a_clear_fault() -> None:
    with pytest.raises(BadInput, match="no system role"):
        prompter_of("metaspace").chat_ids([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])


@pytest.mark.parametrize("shape", ALL)
def test_budgets_hold(shape: str) -> None:
    task = replace(TAGS, query_tokens=9, item_tokens=12, answer_tokens=5, labels=())
    prompter = prompter_of(shape, task)
    long = "the quick brown fox 🎬 naïve, <|im_end|> " * 50
    words = prompter.tokenizer

    def count(text: str) -> int:
        return len(words.encode(text, add_special_tokens=False, split_special_tokens=True))

    assert 0 < count(prompter.truncate_query(long)) <= 9
    assert long.startswith(prompter.truncate_query(long))
    shown = prompter.render_item(HistoryExample(long, long))
    film, tag = shown.split("\nTag: ")
    assert count(film) > 0 and count(tag) > 0 and count(film) + count(tag) <= 12
    cut = prompter.answer_ids(long)
    assert len(cut) <= 6
    assert prompter.end_id not in cut


@pytest.mark.parametrize("shape", ALL)
def test_a_question_fits_into_the_bases_window_with_its_answer(shape: str) -> None:
    """Shown items go first, the last of them before the others; then the end of the question."""
    task = replace(FREE, query_tokens=60, item_tokens=30, answer_tokens=20)
    whole, history = prompter_of(shape, task), [HistoryExample(f"thing {n} " * 9, "good") for n in range(3)]
    text = "question " * 60
    for shown in (3, 2, 1, 0):
        needed = len(whole.prompt_ids(text, history[:shown])) + task.answer_tokens + 1
        tight = prompter_of(shape, task, window=needed)
        assert tight.prompt_ids(text, history) == whole.prompt_ids(text, history[:shown])
        row = tight.training_row(text, "a long answer " * 30, history)
        assert len(row.input_ids) <= needed and row.answer_start == len(tight.prompt_ids(text, history))
    less = prompter_of(shape, task, window=needed - 10).prompt_ids(text, history)
    assert len(whole.prompt_ids("")) < len(less) <= needed - 10 - task.answer_tokens - 1


def test_an_answer_is_never_cut_to_nothing() -> None:
    """A character of several tokens, or leading white space, may be more than an answer may have."""
    for output in ("🎬 film", " " * 40 + "film"):
        row = prompter_of("byte_chatml", replace(FREE, answer_tokens=1)).training_row("what?", output)
        assert len(row.input_ids) == row.answer_start + 1


def test_a_short_question_leaves_its_tokens_to_the_answer() -> None:
    task = replace(TAGS, item_tokens=20, labels=())
    prompter = prompter_of("byte_chatml", task)
    assert prompter.render_item(HistoryExample("ab", "x" * 50)) == f"ab\nTag: {'x' * 18}"
    assert prompter.render_item(HistoryExample("a" * 50, "xy")) == f"{'a' * 18}\nTag: xy"
    assert prompter.render_item(HistoryExample("a" * 50, "x" * 50)) == f"{'a' * 5}\nTag: {'x' * 15}"


def test_a_label_that_fills_the_budget_leaves_nothing_of_the_question() -> None:
    task = replace(TAGS, item_tokens=6)
    assert (
        prompter_of("byte_chatml", task).render_item(HistoryExample("a film", "social commentary"))
        == "\nTag: social commentary"
    )


def test_no_character_is_cut_in_two() -> None:
    for budget in range(1, 12):
        shown = prompter_of("byte_chatml", replace(FREE, query_tokens=budget)).truncate_query("a🎬b🎬")
        assert "\ufffd" not in shown and "a🎬b🎬".startswith(shown)
        assert len(shown.encode()) <= budget


def test_a_huge_text_costs_no_more_than_its_beginning() -> None:
    prompter = prompter_of("byte_chatml", TAGS)
    assert len(prompter.prompt_ids("x" * 30_000_000)) < 200


def test_items_and_questions_may_ask_different_things() -> None:
    prompter = prompter_of("byte_chatml", BUILTIN_TASKS["lamp-7"])
    row = prompter.training_row("my own tweet", "my own tweet")
    assert "my own tweet" not in decoded(prompter, row.input_ids[: row.answer_start])
    assert "somebody's tweet" in decoded(prompter, prompter.prompt_ids("somebody's tweet", [HistoryExample("a", "a")]))


def test_a_slow_tokenizer_will_do() -> None:
    class Slow:
        is_fast = False

        def __init__(self, fast: Any) -> None:
            self._fast = fast

        def __getattr__(self, name: str) -> Any:
            return getattr(self._fast, name)

        def encode(self, text: str, **options: Any) -> list[int]:
            options["split_special_tokens"] = False  # not every tokenizer knows of it
            return list(self._fast.encode(text, **options))

    slow = Slow(byte_tokenizer())
    prompter = PromptBuilder(slow, replace(FREE, query_tokens=20), end_ids(slow))
    fast = prompter_of("byte_chatml", replace(FREE, query_tokens=20))
    for words in AWKWARD:
        assert prompter.prompt_ids(words * 3) == fast.prompt_ids(words * 3)
        assert prompter.answer_ids(words) == fast.answer_ids(words)


texts = st.text(max_size=60) | st.lists(st.sampled_from([*AWKWARD, "a", " ", "\n", "word "]), max_size=8).map("".join)


@settings(max_examples=40, deadline=None)
@given(shape=st.sampled_from(sorted(EXACT)), question=texts, answer=texts, item=st.tuples(texts, texts))
def test_properties_of_every_row(shape: str, question: str, answer: str, item: tuple[str, str]) -> None:
    prompter = prompter_of(shape, replace(FREE, query_tokens=24, item_tokens=24, answer_tokens=400))
    history = [HistoryExample(*item)]
    row = prompter.training_row(question, answer, history)
    prompt = prompter.prompt_ids(question, history)
    assert row.input_ids == (*prompt, *prompter.answer_ids(answer))
    assert row.input_ids[-1] == prompter.end_id
    assert control_count(prompter, row.input_ids[row.answer_start :]) == 1
    assert control_count(prompter, prompt) == control_count(prompter, prompter.prompt_ids("a"))
    assert (
        len(
            prompter.tokenizer.encode(
                prompter.truncate_query(question), add_special_tokens=False, split_special_tokens=True
            )
        )
        <= 24
    )
    assert question.startswith(prompter.truncate_query(question))
    if "▁" not in answer or shape.startswith("byte"):
        assert decoded(prompter, row.input_ids[row.answer_start : -1]) == answer


@pytest.mark.parametrize("make", [byte_plain, metaspace, lambda: byte_merges(LLAMA_3)])
def test_a_second_prompter_gives_the_same_ids(make: Any) -> None:
    first, second = (PromptBuilder(tokenizer, TAGS, end_ids(tokenizer)) for tokenizer in (make(), make()))
    assert first.training_row("a film", "comedy", [HistoryExample("b", "classic")]) == second.training_row(
        "a film", "comedy", [HistoryExample("b", "classic")]
    )


def test_any_number_of_orders_of_roles_takes_bounded_memory() -> None:
    def layouts() -> int:
        return sum(type(one) is ChatLayout for one in gc.get_objects())

    prompter = PromptBuilder(byte_tokenizer(), FREE, end_ids(byte_tokenizer()))
    before = layouts()
    for roles in product(("user", "assistant"), repeat=9):  # 512
        prompter.chat_ids([{"role": role, "content": "a"} for role in roles])
    assert 0 < layouts() - before <= KEPT_LAYOUTS < 512
