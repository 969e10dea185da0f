"""What a model says, as Markdown that can do no harm: no links, images, HTML or entities, and no highlighting of code.

Text from models is hostile: what could hide a character or open something stays visible as the signs it is made of.
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
    """Headings, lists, quotes, tables, emphasis and code; all else is plain words."""
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING})
    return parser.enable(["table", "strikethrough"]).disable([*DISABLED_MARKDOWN_RULES])


class PlainCodeBlock(MarkdownFence):
    """Code as it stands: no lexer of the model's choice reads it."""

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        """The code without colours."""
        return Content(code)


class AnswerMarkdown(Markdown):
    """An answer that may still grow: `append_chunk`, then `finish_stream`; `stream_chunks` is awaited in a worker."""

    def __init__(self, text: str = "") -> None:
        super().__init__(clean_text(text), parser_factory=safe_parser, open_links=False)
        self._chunks: asyncio.Queue[str | None] = asyncio.Queue()
        self.answer_text = text

    def get_block_class(self, block_name: str) -> type[MarkdownBlock]:
        """Code is shown by our own block."""
        return PlainCodeBlock if block_name in ("fence", "code_block") else super().get_block_class(block_name)

    def append_chunk(self, piece: str) -> None:
        """Let the answer grow."""
        self.answer_text += piece
        self._chunks.put_nowait(clean_text(piece))

    def finish_stream(self) -> None:
        """Nothing more will be said."""
        self._chunks.put_nowait(None)

    async def stream_chunks(self) -> None:
        """Show what is said until the end; pieces that come faster than they are drawn are drawn together."""
        stream = Markdown.get_stream(self)
        try:
            while (piece := await self._chunks.get()) is not None:
                await stream.write(piece)
        finally:
            await stream.stop()
