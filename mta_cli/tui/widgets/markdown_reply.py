"""A model's answer as harmless Markdown: no links, images, HTML or entities, and no code highlighting.

Text from models is untrusted: markup that could hide characters or open something is shown literally.
"""

from __future__ import annotations

import asyncio

from markdown_it import MarkdownIt
from textual.content import Content
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownBlock, MarkdownFence

from mta_cli.text.printable import clean_text

DISABLED_MARKDOWN_RULES = ("link", "image", "autolink", "html_inline", "html_block", "entity", "reference", "linkify")
MAX_NESTING = 20


def safe_parser() -> MarkdownIt:
    """A Markdown parser for headings, lists, quotes, tables, emphasis and code; everything else is plain text."""
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING})
    return parser.enable(["table", "strikethrough"]).disable([*DISABLED_MARKDOWN_RULES])


class PlainCodeBlock(MarkdownFence):
    """A code block without syntax highlighting, whose language the model would choose."""

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        """The code without colours."""
        return Content(code)


class AnswerMarkdown(Markdown):
    """A streaming answer: call `append_chunk`, then `finish_stream`; await `stream_chunks` in a worker."""

    def __init__(self, text: str = "") -> None:
        super().__init__(clean_text(text), parser_factory=safe_parser, open_links=False)
        self._chunks: asyncio.Queue[str | None] = asyncio.Queue()
        self.answer_text = text

    def get_block_class(self, block_name: str) -> type[MarkdownBlock]:
        """The class for a kind of block: our own for code blocks."""
        return PlainCodeBlock if block_name in ("fence", "code_block") else super().get_block_class(block_name)

    def append_chunk(self, piece: str) -> None:
        """Append a piece to the answer."""
        self.answer_text += piece
        self._chunks.put_nowait(clean_text(piece))

    def finish_stream(self) -> None:
        """Mark the answer as complete."""
        self._chunks.put_nowait(None)

    async def stream_chunks(self) -> None:
        """Show the answer until its end; pieces that arrive faster than drawing are drawn together."""
        stream = Markdown.get_stream(self)
        try:
            while (piece := await self._chunks.get()) is not None:
                await stream.write(piece)
        finally:
            await stream.stop()
