"""Chat templates: slots, and what a broken one, or one that reaches for attributes, ends with."""

from __future__ import annotations

from typing import Any

import pytest

from mta_cli.engine.text.chat_template import ChatLayout, ChatTemplate, load_chat_template
from mta_cli.errors import BadInput
from tests.engine.shapes import LLAMA_2, LLAMA_3
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def layout(source: str, *roles: str, generation: bool = True, system: str | None = None) -> ChatLayout:
    return ChatTemplate(source, NAMES).render_layout(roles or ("user",), generation=generation, system=system)


def test_slots_stand_where_messages_go() -> None:
    found = layout(CHAT_TEMPLATE, "user", "assistant", "user")
    assert found.message_indices == (0, 1, 2)
    assert found.texts[0] == "<|im_start|>user\n"
    assert found.texts[-1] == "<|im_end|>\n<|im_start|>assistant\n"
    assert found.fill_messages(["{{ 1 }}", "mtaSlot0mta", "c"]).count("{{ 1 }}") == 1


def test_variables_and_a_system_text() -> None:
    assert layout(LLAMA_3).texts[0] == "<s><|start|>user<|end|>\n\n"
    assert "Be brief." in layout(LLAMA_3, system="Be brief.").texts[0]
    with pytest.raises(BadInput, match="no system role"):
        layout(LLAMA_2, system="Be brief.")


def test_a_template_may_insist_on_parts() -> None:
    source = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}|{% endfor %}"
    assert layout(source, "user", "user").texts == ("", "|", "|")


def test_a_template_may_turn_the_order_round() -> None:
    found = layout("{% for m in messages | reverse %}[{{ m['content'] }}]{% endfor %}", "user", "user")
    assert (found.message_indices, found.fill_messages(["a", "b"])) == ((1, 0), "[b][a]")


def test_the_tags_and_helpers_that_templates_use() -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ {'a': 'é<'} | tojson }}{% if not enable_thinking %}!{% endif %}"
    )
    assert layout(source).texts == ("", '{"a": "é<"}!')


def test_the_date_in_a_template_stands_still() -> None:
    source = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0]['content'] }}"
    assert layout(source).texts == ("2024-07-26 ", "")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'].__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}{{ messages[0]['content'] }}",
        "{% set _ = messages.append(1) %}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'] }}{% for i in range(10000000) %}{% endfor %}",
        "{{ messages[0]['content'] }}{{ 1 / 0 }}",
        "{{ messages[7]['content']['x']['y'] }}",
        "{% if %}",
        "{{ " + "(" * 2000 + ")" * 2000 + " }}",
        "{{ undefined_function() }}",
        "nothing of what was said",
        "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'] | tojson | length }}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(BadInput) as caught:
        layout(source)
    assert "chat template" in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 400


def test_the_tokenizers_template() -> None:
    assert load_chat_template(byte_tokenizer(None)) is None
    found = load_chat_template(byte_tokenizer("{{ bos_token }}{{ messages[0]['content'] }}"))
    assert found is not None and found.render_layout(("user",), generation=True).texts == ("<|im_start|>", "")


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE}
    with pytest.raises(BadInput, match="cannot be used"):
        load_chat_template(tokenizer)
