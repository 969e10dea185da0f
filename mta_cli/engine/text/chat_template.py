"""Renders a base's chat template in transformers' sandbox, with placeholders in place of the messages.

A template is code that comes with a model. The sandbox denies it access to Python's internals, but does not limit its
time and memory. The template never receives a user's text: the placeholders are replaced after rendering.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from mta_cli.engine.model.checkpoint_files import load_errors_as_bad_input
from mta_cli.errors import BadInput

_PLACEHOLDER = re.compile(r"mtaSlot(\d+)mta")
# a fixed date: templates that print today's date would change a trained adapter's prompts every day
_DAY = date(2024, 7, 26)
_FAILED = ("The chat template of this base cannot be used", "Use a base with a working chat template.")


@dataclass(frozen=True)
class ChatLayout:
    """A rendered conversation with a slot for each message.

    `texts` are the template's own texts. Message `message_indices[i]` goes between `texts[i]` and `texts[i + 1]`.
    """

    texts: tuple[str, ...]
    message_indices: tuple[int, ...]

    def fill_messages(self, contents: Sequence[str]) -> str:
        """The conversation as one text, with `contents[i]` in the slot of message `i`."""
        pieces = [self.texts[0]]
        for slot, text in zip(self.message_indices, self.texts[1:], strict=True):
            pieces += (contents[slot], text)
        return "".join(pieces)


class ChatTemplate:
    """One Jinja chat template, with the variables that templates expect."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        """Raises BadInput for an invalid template."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._variables = {"enable_thinking": False, "strftime_now": _DAY.strftime, **variables}
        with load_errors_as_bad_input(*_FAILED):
            self._template = _compile_jinja_template(source)

    def render_layout(self, roles: Sequence[str], *, generation: bool, system: str | None = None) -> ChatLayout:
        """The layout of a conversation of `roles`, with a slot for each message, after an optional `system` text.

        With `generation` it ends with the header of the assistant's answer. Raises BadInput if the template refuses the
        roles, fails, or does not show each message exactly once.
        """
        fault: BadInput | None = None
        for parts in (False, True):  # templates of multimodal models may require a list of parts
            messages = [] if system is None else [_message("system", system, parts)]
            messages += [_message(role, f"mtaSlot{place}mta", parts) for place, role in enumerate(roles)]
            try:
                return _split(self._render(messages, generation), len(roles))
            except BadInput as error:
                fault = fault or error
        assert fault is not None
        raise fault

    def _render(self, messages: list[dict[str, Any]], generation: bool) -> str:
        with load_errors_as_bad_input(*_FAILED):
            rendered: str = self._template.render(
                messages=messages, add_generation_prompt=generation, **self._variables
            )
            rendered.encode()  # raises for lone surrogates, which must not reach a tokenizer
        return rendered


def load_chat_template(tokenizer: Any) -> ChatTemplate | None:
    """The tokenizer's default chat template, or None. Raises BadInput if it cannot be read."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    with load_errors_as_bad_input(*_FAILED):
        source = tokenizer.get_chat_template()
        if not isinstance(source, str):
            raise TypeError("the tokenizer's chat template is not a string")
    names = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return ChatTemplate(source, names)


def _message(role: str, text: str, parts: bool) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}] if parts else text}


def _split(rendered: str, count: int) -> ChatLayout:
    pieces = _PLACEHOLDER.split(rendered)
    slots = tuple(int(number) for number in pieces[1::2])
    if sorted(slots) != list(range(count)):
        raise BadInput(
            "The chat template of this base does not show every message exactly once.",
            hint="Use a base whose chat template shows each message once.",
        )
    return ChatLayout(tuple(pieces[0::2]), slots)
