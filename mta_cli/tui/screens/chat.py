"""A conversation with the chosen person's model, and their earlier ones. Knows neither models nor how they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widgets import Input, OptionList, Static

from mta_cli.errors import MtaError, NotFound
from mta_cli.events import Done, Event, Note, Saved, Token
from mta_cli.printable import clean
from mta_cli.progress import rate as per_second
from mta_cli.tui.messages import StoreChanged
from mta_cli.tui.screens.base import Room
from mta_cli.tui.text import block, line
from mta_cli.tui.widgets.markdown_reply import Reply
from mta_cli.tui.widgets.prompt import Prompt
from mta_cli.tui.workers.chat_turn import AS_TYPED, Line, Turn, asking_of, following

if TYPE_CHECKING:
    from store.records import Message
    from store.registry import Registry
    from store.tables.chats import FoundChat

MODES: tuple[str | None, ...] = (None, "base", "fused", "adapted")  # None: the most personal there is
SHOWN = 60  # messages of a stored conversation, its last ones
LISTED = 100  # conversations
NOBODY = """Nobody is chosen.

Press 1, move to somebody and press Enter; then come back with 5.
Every conversation is stored with the person, and can be searched, gone on with and learnt from."""


class ChatRoom(Room):
    """Talking as the chosen person: one conversation at a time, all earlier ones beside it."""

    ROOM: ClassVar[str] = "chat"
    HELP: ClassVar[str] = (
        "Type and press Enter; the person's own model answers, with their history in the prompt. Every exchange is "
        "stored at once.\n"
        "Escape stops an answer: what was said until then is kept. After a failure your words stand in the prompt "
        "again.\n"
        "m changes who answers: the most personal model, the base, the fusion, the adapted one. t changes how words "
        "are put: as typed, or as a task's own prompt.\n"
        "h shows earlier conversations; type to search in them, Enter goes on with one. g keeps the last exchange as "
        "a history item of the person, to learn from."
    )
    CSS_PATH = "chat.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "write", "Type", id="chat.write", tooltip="Type a message"),
        Binding("n", "new", "New", id="chat.new", tooltip="Begin a new conversation"),
        Binding("h", "past", "History", id="chat.past", tooltip="Search in earlier conversations"),
        Binding("m", "mode", "Mode", id="chat.mode", tooltip="Change who answers: best, base, fused or adapted"),
        Binding("t", "task", "Task", id="chat.task", show=False, tooltip="Put words as typed, or as a task's prompt"),
        Binding("g", "good", "Good", id="chat.good", tooltip="Keep the last exchange as a history item"),
        Binding("y", "copy", "Copy", id="chat.copy", show=False, tooltip="Copy the last answer"),
        Binding("d", "remove", "Remove", id="chat.remove", show=False, tooltip="Remove the conversation; asks"),
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the answer; else leave the prompt"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._person: str | None = None
        self._tasks: tuple[str, ...] = ()
        self._put_as: str | None = None  # None: words go as typed
        self._mode: str | None = None
        self._chats: list[FoundChat] = []
        self._line = Line()
        self._turn: Turn | None = None
        self._words = ""  # what was asked last
        self._warnings: list[str] = []  # told while it was answered
        self._reply: Reply | None = None

    def furnish(self) -> ComposeResult:
        """Earlier conversations, this one, the prompt."""
        yield Static(block(NOBODY), id="nobody")
        with Container(id="room"):
            with Vertical(id="past"):
                yield Input(placeholder="search conversations", id="search")
                yield OptionList(id="chats")
            with Vertical(id="speaking"):
                yield VerticalScroll(id="turns")
                yield Static(id="notes")
                yield Static(id="how")
                yield Prompt("Type a message, Enter asks · Esc leaves the prompt, so that keys work")

    @property
    def turn(self) -> Turn:
        """The talk under way."""
        if self._turn is None:
            self._turn = Turn(self.home.speaker)
        return self._turn

    async def reload(self) -> None:
        """Who is chosen, and their conversations."""
        name = self.home.chosen
        tasks = await self.home.shelf.read(lambda reg: _tasks(reg, name))
        if tasks is None:
            name = None
        self.set_class(name is None, "-nobody")
        if name != self._person:
            self._person, self._put_as, self._mode = name, None, None
            await self._begin_anew()
            self.query_one("#search", Input).value = ""
            if name is not None:
                self.query_one(Prompt).focus()
        self._tasks = tasks or ()
        if self._put_as not in (None, *self._tasks):
            self._put_as = None
        self._tell_how()
        await self._list()

    def on_store_changed(self, message: StoreChanged) -> None:
        """The person's weights may be others now."""
        self._line.refold = True

    @work(exclusive=True, group="search")
    async def _list_again(self) -> None:
        await self.guarded(self._list())

    async def _list(self) -> None:
        """The conversations that hold the words searched for."""
        name, words = self._person, self.query_one("#search", Input).value
        if name is None:
            self._chats = []
        else:
            self._chats = await self.home.shelf.read(
                lambda reg: reg.chats.search(reg.users.get(name).id, words, limit=LISTED)
            )
        options = self.query_one("#chats", OptionList)
        options.clear_options()
        options.add_options([_listed(chat, here=chat.id == self._line.chat_id) for chat in self._chats])
        options.highlighted = 0 if self._chats else None
        count = len(self._chats)
        self.query_one("#past").border_title = Text(f"{count or 'no'} conversation{'s' if count != 1 else ''}")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search as words are typed."""
        self._list_again()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """From the words to what was found."""
        self.query_one("#chats").focus()

    @work(exclusive=True, group="open")
    async def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Go on with a stored conversation."""
        await self.guarded(self._open(self._chats[event.option_index].id))

    async def _open(self, chat_id: int) -> None:
        messages = await self.home.shelf.read(lambda reg: reg.chats.messages(chat_id))
        await self._begin_anew()
        self._line.go_on_with(chat_id)
        turns = self.query_one("#turns")
        if len(messages) > SHOWN:
            turns.mount(Static(line(f"{len(messages) - SHOWN} earlier messages are not shown"), classes="source"))
        await turns.mount_all([widget for message in messages[-SHOWN:] for widget in _shown(message)])
        turns.anchor()
        self.query_one("#past").remove_class("open")
        self.query_one(Prompt).focus()
        await self._list()

    async def _begin_anew(self) -> None:
        """An empty conversation; what is stored stays."""
        self.turn.drop()
        self._finish_reply()
        self._line = Line()
        await self.query_one("#turns").remove_children()
        self._note("")

    def action_write(self) -> None:
        """To the prompt."""
        self.query_one(Prompt).focus()

    @work(exclusive=True, group="open")
    async def action_new(self) -> None:
        """A new conversation with the same person."""
        await self._begin_anew()
        self.query_one(Prompt).focus()
        await self._list()

    def action_past(self) -> None:
        """To the search in earlier conversations."""
        self.query_one("#past").add_class("open")
        self.query_one("#search").focus()

    def action_mode(self) -> None:
        """Who answers next."""
        self._mode = following(list(MODES), self._mode)
        self._tell_how()

    def action_task(self) -> None:
        """How words are put next."""
        self._put_as = following([None, *self._tasks], self._put_as)
        self._tell_how()

    def action_copy(self) -> None:
        """The last answer, into the clipboard."""
        replies = self.query(Reply)
        if replies:
            self.app.copy_to_clipboard(clean(replies.last().words))
            self.notify("copied", markup=False, timeout=2)

    def action_stop(self) -> None:
        """Stop the answer; else close the list, or leave the prompt."""
        if self.turn.stop():
            self._note("stopping …")
            return
        self.query_one("#past").remove_class("open")
        self.query_one("#turns").focus()

    def action_good(self) -> None:
        """The last exchange becomes a history item."""
        if self.turn.busy or not self._line.spoken:
            self._note("There is no answer in this window yet to keep; ask something first.")
            return
        spoken = self._line
        self.turn.begin(lambda desk: spoken.good(), self._hear_kept, self._ended_kept)

    def _hear_kept(self, event: Event) -> None:
        if isinstance(event, Saved):
            self._note(f"kept: {event.detail}")
        elif isinstance(event, Note):
            self._note(event.text)

    def _ended_kept(self, error: BaseException | None, stopped: bool) -> None:
        if error is not None:
            self.home.fail(error)

    @work(exclusive=True, group="open")
    async def action_remove(self) -> None:
        """Remove what is stored of the conversation that is shown."""
        chat_id = self._line.chat_id
        if chat_id is None or self.turn.busy:
            self._note("No stored conversation is shown.")
        elif await self.home.sure("Remove this conversation? What was kept of it as history items stays."):
            await self.guarded(self._remove(chat_id))

    async def _remove(self, chat_id: int) -> None:
        await self.home.shelf.read(lambda reg: reg.chats.remove(chat_id))
        await self._begin_anew()
        await self._list()

    def on_prompt_asked(self, message: Prompt.Asked) -> None:
        """A message to the model."""
        if self._person is None or self.turn.busy:
            self._note("An answer is under way; Escape stops it.")
            return
        try:
            asking = asking_of(self.home.settings, self._put_as, self._mode)
        except MtaError as error:
            self.home.fail(error)
            return
        self._words, self._reply, self._warnings = message.text, Reply(), []
        self.query_one(Prompt).put("")
        turns = self.query_one("#turns")
        turns.mount(Static(block(self._words), classes="said"), self._reply)
        turns.anchor()
        self._note("asking …")
        self.run_worker(self._reply.follow(), group="stream")
        spoken, person, words = self._line, self._person, self._words
        self.turn.begin(lambda desk: spoken.say(desk, person, asking, words), self._hear, self._ended)

    def _hear(self, event: Event) -> None:
        reply = self._reply
        if isinstance(event, Token) and reply is not None:
            if not reply.words:
                self._note("")
            reply.say(event.text)
        elif isinstance(event, Note) and not (reply and reply.words):
            self._note(event.text)
        elif isinstance(event, Note) and event.warning:
            self._warnings.append(event.text)
        elif isinstance(event, Done):
            if reply is not None and not reply.words.strip():
                reply.say("(an empty answer)")
            cut = event.result["ended"] == "length"  # the last warning says it in the command line's words
            self._note(" ".join(self._warnings[:-1] if cut else self._warnings))
            self._tell_source(_source(event.result))

    def _ended(self, error: BaseException | None, stopped: bool) -> None:
        said = self._finish_reply()
        if error is not None or (stopped and not said):
            self._give_back(keep=said)
        if error is not None:
            self._note("")
            self.home.fail(error)
        elif stopped:
            self._note("stopped" if said else "stopped before a word was said")
            if said:
                self._tell_source("stopped; what was said is kept")
        self._list_again()

    def _give_back(self, *, keep: bool) -> None:
        """The words stand in the prompt again, unless others do; an exchange without an answer is taken away."""
        prompt = self.query_one(Prompt)
        if not prompt.text.strip():
            prompt.put(self._words)
        if not keep:
            for widget in list(self.query_one("#turns").children)[-2:]:
                widget.remove()

    def _finish_reply(self) -> bool:
        """The answer grows no more; whether anything was said."""
        reply, self._reply = self._reply, None
        if reply is None:
            return False
        reply.finish()
        return bool(reply.words)

    def _tell_source(self, words: str) -> None:
        self.query_one("#turns").mount(Static(line(words), classes="source"))

    def _tell_how(self) -> None:
        mode, how = self._mode or "most personal", self._put_as or AS_TYPED
        parts = (Text("with "), line(self._person, "bold"), Text(" · answers "), line(mode, "bold"))
        self.query_one("#how", Static).update(Text.assemble(*parts, Text(" · put "), line(how, "bold")))

    def _note(self, words: str) -> None:
        self.query_one("#notes", Static).update(line(words))


def _tasks(reg: Registry, name: str | None) -> tuple[str, ...] | None:
    """The person's tasks; None where they are gone, or nobody is meant."""
    if name is None:
        return None
    try:
        return tuple(task for task, _, _ in reg.users.tasks_of(reg.users.get(name).id))
    except NotFound:
        return None


def _listed(chat: FoundChat, *, here: bool) -> Text:
    title = line(f"{'▸ ' if here else ''}{chat.title}", "bold" if here else "")
    about = line(f"  {chat.created[:16].replace('T', ' ')} · {chat.messages} messages", "dim")
    parts = [title, Text("\n"), about]
    if chat.excerpt:
        parts += [Text("\n"), line(f"  {chat.excerpt}", "italic")]
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _shown(message: Message) -> list[Static | Reply]:
    """A stored message as it is shown."""
    if message.role == "user":
        return [Static(block(message.content), classes="said")]
    source = message.source
    words = source.get("mode", message.role)
    if source.get("bank"):
        words += f" · bank {source['bank']} v{source['version']}"
    return [Reply(message.content), Static(line(words), classes="source")]


def _source(result: dict[str, Any]) -> str:
    """Where an answer came from, and how fast."""
    source, tokens, seconds = result["source"], result["tokens"], result["seconds"]
    bank = f" · {result['task']} · bank {source['bank']} v{source['version']}" if source["bank"] else ""
    rate = f", {per_second(tokens / seconds)}/s" if seconds and result["ended"] != "label" else ""
    cut = " · cut" if result["ended"] == "length" else ""
    return f"{source['mode']}{bank} · {tokens} token{'s' if tokens != 1 else ''}{rate}{cut}"
