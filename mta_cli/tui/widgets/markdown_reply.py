"""What a model says, as Markdown that can do no harm: no links, images, HTML or entities, and no highlighting of code.

Text from models is hostile: what could hide a character or open something stays visible as the signs it is made of.
"""

from __future__ import annotations

import asyncio

from markdown_it import MarkdownIt
from textual.content import Content
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownBlock, MarkdownFence

from mta_cli.printable import clean

OFF = ("link", "image", "autolink", "html_inline", "html_block", "entity", "reference", "linkify")
MOST_NESTED = 20


def safe_parser() -> MarkdownIt:
    """Headings, lists, quotes, tables, emphasis and code; all else is plain words."""
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MOST_NESTED})
    return parser.enable(["table", "strikethrough"]).disable([*OFF])


class Code(MarkdownFence):
    """Code as it stands: no lexer of the model's choice reads it."""

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        """The code without colours."""
        return Content(code)


class Reply(Markdown):
    """An answer that may still grow: put pieces in with `say`, `finish` when there are no more, await `follow`."""

    def __init__(self, text: str = "") -> None:
        super().__init__(clean(text), parser_factory=safe_parser, open_links=False)
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.words = text

    def get_block_class(self, block_name: str) -> type[MarkdownBlock]:
        """Code is shown by our own block."""
        return Code if block_name in ("fence", "code_block") else super().get_block_class(block_name)

    def say(self, piece: str) -> None:
        """Let the answer grow."""
        self.words += piece
        self._pieces.put_nowait(clean(piece))

    def finish(self) -> None:
        """Nothing more will be said."""
        self._pieces.put_nowait(None)

    async def follow(self) -> None:
        """Show what is said until the end; pieces that come faster than they are drawn are drawn together."""
        stream = Markdown.get_stream(self)
        try:
            while (piece := await self._pieces.get()) is not None:
                await stream.write(piece)
        finally:
            await stream.stop()
