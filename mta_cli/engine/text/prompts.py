"""Builds the token ids of prompts, with the base's own chat template, and of answers.

A user's text is always encoded as plain text: a "<|im_end|>" typed into a message does not end the turn. This module
uses no store, no retrieval and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mta_cli.engine.text.chat_template import ChatLayout, load_chat_template
from mta_cli.engine.text.labels import find_label
from mta_cli.engine.text.tasks import TEMPLATE_SYSTEM_MESSAGE, Task
from mta_cli.engine.text.tokenizer import TEXT_CACHE_SIZE, PromptTokenizer
from mta_cli.errors import BadInput

Roles = tuple[str, ...]
KEPT_LAYOUTS = 256  # cached layouts, one per sequence of roles; bounded, because a server's clients choose the roles


@dataclass(frozen=True)
class HistoryExample:
    """A history item as a prompt shows it."""

    input: str
    output: str


@dataclass(frozen=True)
class TrainingRow:
    """One training row. The loss is on `input_ids[answer_start:]`: the answer and the end of turn."""

    input_ids: tuple[int, ...]
    answer_start: int


class PromptBuilder:
    """Prompts and answers of one task for one tokenizer. `end_ids` are the tokens that end the base's answers.

    `window` is the base's context length. If a prompt and the longest answer would exceed it, history items are dropped
    from the prompt, starting with the last (the least similar); if that is not enough, the query's text is cut.

    The tokenizer must not change afterwards, because encoded texts are cached.
    """

    def __init__(self, tokenizer: Any, task: Task, end_ids: Sequence[int], window: int | None = None) -> None:
        self.tokenizer, self.task = tokenizer, task
        # the most tokens of a prompt that leave room for the longest answer
        self._most_tokens = math.inf if window is None else window - task.answer_tokens - 1
        self._template = load_chat_template(tokenizer)
        self._layout = lru_cache(KEPT_LAYOUTS)(self._layout_uncached)
        bare = self._template.render_layout(("user",), generation=True).texts if self._template else ()
        self._words = PromptTokenizer(tokenizer, bare)
        self._start = () if self._template else self._words.leading_special_ids()
        self._system, self._preface = self._system_message(bare)
        self.end_id = self._find_end_of_turn_id(tuple(end_ids))
        self._answer = lru_cache(TEXT_CACHE_SIZE)(self._answer_ids_uncached)
        self._shown = lru_cache(TEXT_CACHE_SIZE)(self.render_item)

    def prompt_ids(self, text: str, history: Sequence[HistoryExample] = ()) -> list[int]:
        """Token ids of the prompt that asks `text` after showing `history`; the answer follows them."""
        return self._encode_question(self.task.fill_prompt, text, history)

    def training_row(self, text: str, output: str, history: Sequence[HistoryExample] = ()) -> TrainingRow:
        """The training row of the history item with input `text` and answer `output`; its prompt shows `history`."""
        prompt = self._encode_question(self.task.fill_learning_prompt, text, history)
        return TrainingRow((*prompt, *self._answer(output)), len(prompt))

    def answer_ids(self, output: str) -> list[int]:
        """Token ids of an answer and the end of turn.

        An answer longer than the task's `answer_tokens` is cut and gets no end of turn, so that a model does not learn
        to stop in the middle. A label is never cut.
        """
        return list(self._answer(output))

    def chat_ids(
        self, messages: Sequence[dict[str, str]], histories: Sequence[Sequence[HistoryExample]] = ()
    ) -> list[int]:
        """Token ids of a conversation that ends where the assistant's next answer begins.

        `histories[n]` are the history items to show before the user's message number `n`, counted from 0; a missing
        entry counts as empty. Messages are not cut to the task's token budgets. Raises BadInput if the template refuses
        the order of the roles.
        """
        roles, contents = tuple(message["role"] for message in messages), [message["content"] for message in messages]
        asked = [place for place, role in enumerate(roles) if role == "user"]
        for n, place in enumerate(asked):
            shown = histories[n] if n < len(histories) else ()
            contents[place] = self._with_history(contents[place], shown, preface=n == 0)
        return self._encode(roles, contents)

    def messages(self, words: str, history: Sequence[HistoryExample] = ()) -> list[dict[str, str]]:
        """The chat messages, each with `role` and `content`, that ask `words` after showing `history`.

        A system message comes first if the base's template takes one; otherwise its text is put before `words`.
        """
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, {"role": "user", "content": self._with_history(words, history)}]

    def words_around_turns(self) -> tuple[str, str, str, str]:
        """The template's own texts before the first question, before a given answer, before the next question, and
        before the answer to generate. The first includes a system message if the template takes one.
        """
        layout, _ = self._layout(("user", "assistant", "user"))
        first, after, between, last = layout.texts
        return first, after, between, last

    def truncate_query(self, text: str) -> str:
        """A query's `text`, cut to at most the task's `query_tokens`."""
        return self._words.truncate_text(text, self.task.query_tokens)

    def render_item(self, example: HistoryExample) -> str:
        """A history item as prompts show it, with at most the task's `item_tokens` for input and output together.

        If both are long, the output gets three quarters of these tokens, because the user's answer is more informative
        than the question. A label is never cut.
        """
        words, budget = self._words, self.task.item_tokens
        least = min(budget // 4, len(words.encode_user_text(words.truncate_text(example.input, budget))))
        output = self._cut_answer(self._label_or_text(example.output), budget - least)
        return self.task.fill_item(
            words.truncate_text(example.input, budget - len(words.encode_user_text(output))), output
        )

    def _answer_ids_uncached(self, output: str) -> tuple[int, ...]:
        output = self._label_or_text(output)
        kept = self._cut_answer(output, self.task.answer_tokens)
        ids = self._words.encode_exactly(kept) or self._words.encode_exactly(output)[: self.task.answer_tokens]
        return (*ids, self.end_id) if kept == output else tuple(ids)

    def _cut_answer(self, output: str, budget: int) -> str:
        return output if output in self.task.labels else self._words.truncate_text(output, budget)

    def _label_or_text(self, output: str) -> str:
        """The output; if it is another spelling of a label, the label."""
        place = find_label(output, self.task.labels)
        return output if place is None else self.task.labels[place]

    def _encode_question(self, fill: Callable[[str], str], text: str, history: Sequence[HistoryExample]) -> list[int]:
        text, budget, shown = self.truncate_query(text), self.task.query_tokens, list(history)
        while True:
            ids = self._encode(("user",), [self._with_history(fill(text), shown)])
            if len(ids) <= self._most_tokens or (not shown and budget == 1):
                return ids
            if shown:
                shown.pop()
            else:
                budget = max(1, budget // 2)
                text = self._words.truncate_text(text, budget)

    def _with_history(self, words: str, history: Sequence[HistoryExample], *, preface: bool = True) -> str:
        block = [self._preface] if self._preface and preface else []
        if history:
            block.append("\n".join((self.task.history_header, *map(self._shown, history))))
        return "\n\n".join((*block, words))

    def _encode(self, roles: Roles, contents: Sequence[str]) -> list[int]:
        """Encodes the whole conversation in one pass, as the base was trained. If that finds control tokens besides the
        template's own, a message contains one; then every message is encoded separately, as plain text.
        """
        layout, controls = self._layout(roles)
        ids = self._words.encode_template(layout.fill_messages(contents))
        if self._words.count_control_tokens(ids) != controls:
            ids = self._words.encode_template(layout.texts[0])
            for slot, text in zip(layout.message_indices, layout.texts[1:], strict=True):
                ids += self._words.encode_user_text(contents[slot])
                ids += self._words.encode_template(text)
        return [*self._start, *ids]

    def _layout_uncached(self, roles: Roles) -> tuple[ChatLayout, int]:
        """The template around messages of these roles, and the number of its control tokens."""
        if self._template is None:
            layout = ChatLayout(("", *("\n" for _ in roles)), tuple(range(len(roles))))
        else:
            system = None if roles[:1] == ("system",) else self._system
            layout = self._template.render_layout(roles, generation=True, system=system)
        controls = sum(self._words.count_control_tokens(self._words.encode_template(text)) for text in layout.texts)
        return layout, controls

    def _system_message(self, bare: Sequence[str]) -> tuple[str | None, str]:
        """The system message for the template, and the text to put before the first message if the template takes none.

        An empty system message is passed only to templates that would otherwise insert their own.
        """
        wanted = self.task.system
        if wanted == TEMPLATE_SYSTEM_MESSAGE:
            return None, ""
        if self._template is None:
            return None, wanted
        try:
            given = "".join(self._template.render_layout(("user",), generation=True, system=wanted).texts)
        except BadInput:  # a template without a system role
            return None, wanted
        if wanted.strip() not in given:  # a template that drops system messages
            return None, wanted
        shorter = len(self._words.encode_template(given)) < len(self._words.encode_template("".join(bare)))
        return (wanted, "") if wanted or shorter else (None, "")

    def _find_end_of_turn_id(self, end_ids: tuple[int, ...]) -> int:
        """The token with which the template ends an answer, if it is an end token of the base; otherwise the base's
        first end token.
        """
        if not end_ids:
            raise BadInput(
                "The base names no token that ends an answer.",
                hint="Set eos_token_id in the base's generation_config.json, or use a base that has an end token.",
            )
        if self._template is None:
            return end_ids[0]
        try:
            after = self._template.render_layout(("user", "assistant"), generation=False).texts[-1]
        except BadInput:  # a template that shows no finished answers
            after = ""
        return next((token for token in self._words.encode_template(after) if token in end_ids), end_ids[0])
