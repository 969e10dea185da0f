"""A base's chat template, rendered in a sandbox, bounded in size, around placeholders.

A template is code that came with a model. It never sees a user's text, which replaces the placeholders afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mta_cli.errors import BadInput

RENDER_LIMIT = 1_000_000  # characters; a template that says more is broken or hostile
_PLACEHOLDER = re.compile(r"mtaSlot(\d+)mta")
_TEMPLATE_ERRORS = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
    SyntaxError,
    NameError,
)  # the last: jinja writes 1e9999 into its code as inf


@dataclass(frozen=True)
class ChatLayout:
    """A rendered conversation: `texts` are the template's own words, `message_indices` the messages between."""

    texts: tuple[str, ...]
    message_indices: tuple[int, ...]

    def fill_messages(self, contents: Sequence[str]) -> str:
        """The conversation as one text."""
        pieces = [self.texts[0]]
        for slot, text in zip(self.message_indices, self.texts[1:], strict=True):
            pieces += (contents[slot], text)
        return "".join(pieces)


class ChatTemplate:
    """One Jinja chat template, with the variables that templates expect."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        """Raises BadInput for what is no template, or a longer one than any base has."""
        from jinja2 import TemplateError

        from mta_cli.engine.text.template_sandbox import SOURCE_LIMIT, Sandbox

        self._variables, self._size = variables, len(source)
        if self._size > SOURCE_LIMIT:
            raise _template_error(ValueError(f"{self._size:,} characters; the most is {SOURCE_LIMIT:,}"))
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except (TemplateError, *_TEMPLATE_ERRORS) as error:
            raise _template_error(error) from error

    def render_layout(self, roles: Sequence[str], *, generation: bool, system: str | None = None) -> ChatLayout:
        """The conversation of `roles`, with a slot for each message. A `system` text is put in front as it is.

        `generation` ends it where the assistant begins to speak. Raises BadInput where the template refuses the roles,
        misbehaves, or does not show each message once.
        """
        fault: BadInput | None = None
        for parts in (False, True):  # templates of models that also see images may insist on a list of parts
            messages = [] if system is None else [_message("system", system, parts)]
            messages += [_message(role, f"mtaSlot{place}mta", parts) for place, role in enumerate(roles)]
            try:
                return _split(self._render(messages, generation), len(roles))
            except BadInput as error:
                fault = fault or error
        assert fault is not None
        raise fault

    def _render(self, messages: list[dict[str, Any]], generation: bool) -> str:
        from jinja2 import TemplateError

        from mta_cli.engine.text.template_sandbox import Meter

        pieces: list[str] = []
        size = 0
        self._sandbox.meter = meter = Meter(self._size, len(messages))
        try:
            with meter.count_lines():
                for piece in self._template.generate(
                    messages=messages, add_generation_prompt=generation, enable_thinking=False, **self._variables
                ):
                    size += len(piece)
                    if size > RENDER_LIMIT:
                        raise BadInput(
                            f"The chat template of this base renders more than {RENDER_LIMIT:,} characters.",
                            hint="Use a base with a sound chat template.",
                        )
                    pieces.append(piece)
            rendered = "".join(pieces)
            rendered.encode()  # no half of a surrogate pair reaches a tokenizer
        except (TemplateError, *_TEMPLATE_ERRORS) as error:
            raise _template_error(error) from error
        return rendered


def load_chat_template(tokenizer: Any) -> ChatTemplate | None:
    """The tokenizer's default chat template; None when it has none. Raises BadInput for one that cannot be read."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        source = tokenizer.get_chat_template()
    except _TEMPLATE_ERRORS as error:
        raise _template_error(error) from error
    if not isinstance(source, str):
        raise _template_error(TypeError("it is no text"))
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
            hint="Use a base with a sound chat template.",
        )
    return ChatLayout(tuple(pieces[0::2]), slots)


def _template_error(error: Exception) -> BadInput:
    lines = str(error).strip().splitlines()
    return BadInput(
        f"The chat template of this base cannot be used: {type(error).__name__}: {lines[0][:200] if lines else ''}",
        hint="Use a base with a sound chat template.",
    )
