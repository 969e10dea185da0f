"""Answers as Markdown: every piece arrives once, and no sign of a model's is more than a sign."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult

from mta_cli.tui.widgets.markdown_reply import AnswerMarkdown, safe_parser
from tests.tui.driving import screen_text, until


class Page(App[None]):
    """An app with nothing but one answer."""

    def compose(self) -> ComposeResult:
        yield AnswerMarkdown()

    @property
    def reply(self) -> AnswerMarkdown:
        return self.query_one(AnswerMarkdown)


@pytest.mark.parametrize(
    "text",
    [
        "[a](http://x)",
        "![a](http://x)",
        "<http://x>",
        "http://x.org",
        "<b>x</b>",
        "<script>x</script>",
        "&#x202e;",
        "&amp;",
        "[a][b]\n\n[b]: http://x",
        "![a][b]\n\n[b]: http://x",
        "<!-- x -->",
        "[a]: http://x\n\n[a]",
    ],
)
def test_no_sign_opens_hides_or_stands_for_another(text: str) -> None:
    tokens = safe_parser().parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in tokens} <= {"paragraph_open", "inline", "paragraph_close"}
    assert {child.type for child in inner} <= {"text"}
    assert "".join(child.content for child in inner) == text.replace("\n\n", "")


def test_form_is_kept() -> None:
    kinds = [
        token.type for token in safe_parser().parse("# a\n\n- *b* ~~c~~\n\n> `d`\n\n| e |\n|---|\n| f |\n\n```\ng\n```")
    ]
    assert {"heading_open", "bullet_list_open", "blockquote_open", "table_open", "fence"} <= set(kinds)


async def test_what_is_said_in_pieces_is_the_same_as_at_once() -> None:
    text = "# Title\n\nSome **bold** words\nand more.\n\n- one\n- two\n\n```py\nx = 1\n```\n\nThe end."

    app = Page()
    async with app.run_test(size=(80, 30)) as pilot:
        app.run_worker(app.reply.stream_chunks())
        for char in text:
            app.reply.append_chunk(char)
        app.reply.finish_stream()
        await until(pilot, lambda: all(worker.is_finished for worker in app.workers))
        await pilot.pause()
        grown = screen_text(app)  # type: ignore[arg-type]
        await app.reply.update(text)
        await pilot.pause()
        assert grown == screen_text(app) and "The end." in grown  # type: ignore[arg-type]
        assert app.reply.answer_text == app.reply.source == text


@pytest.mark.parametrize(
    "text", ["> " * 500 + "x", "- " * 500 + "x", "*" * 5000, "`" * 5000, "|" * 3000 + "\n" + "|-" * 1500, "[" * 5000]
)
def test_what_is_made_to_be_slow_is_not(text: str) -> None:
    import time

    started = time.perf_counter()
    safe_parser().parse(text)
    assert time.perf_counter() - started < 2.0
