"""The Chat screen: a conversation with the selected user's model, and the user's earlier conversations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widgets import Input, OptionList, Static

from mta_cli.errors import MtaError
from mta_cli.events import ArtifactSaved, Event, JobResult, JobStarted, Note, TextChunk
from mta_cli.text.formatting import format_rate
from mta_cli.text.printable import clean_text
from mta_cli.tui.screens.asking import AskingScreen, likely_task, next_in_cycle
from mta_cli.tui.text import block_text, describe_ending, line_text
from mta_cli.tui.widgets.answer_reasons import ReasonsPane
from mta_cli.tui.widgets.markdown_reply import AnswerMarkdown
from mta_cli.tui.widgets.prompt import PromptArea
from mta_cli.tui.widgets.waiting import WaitingLine
from mta_cli.tui.workers.chat_turn import ChatSession

if TYPE_CHECKING:
    from store.records import Message
    from store.registry import Registry
    from store.tables.chats import ChatSummary

MODES: tuple[str | None, ...] = (None, "base", "common", "fused", "adapted")  # None: the most personal mode of the user
MAX_MESSAGES_SHOWN = 60  # messages of a stored conversation, its last ones
MAX_CHATS_LISTED = 100  # conversations
NO_USER_HELP = """No user selected.

Press 1, move to a user and press Enter; then come back with 5.
Conversations are stored with the user. They can be searched, continued and learnt from.
Home, 0, lists the newest ones of all users."""


class ChatScreen(AskingScreen):
    """A conversation with the selected user's model, beside a list of earlier conversations."""

    SCREEN_NAME: ClassVar[str] = "chat"
    HELP: ClassVar[str] = (
        "Type and press Enter; the user's model answers, with the user's history in the prompt. Every exchange is "
        "stored at once.\n"
        "Escape stops an answer and keeps the text so far. After a failure your message is back in the prompt.\n"
        "m changes the model: the most personal one, the base, the common model, the fusion, the adapted one. t "
        "switches between a conversation and the user's tasks; with a task, each message is a separate question.\n"
        "w shows why the last answer is as it is: what it is made of, the history items in its prompt, what the label "
        "memory added, which neighbours voted, and how words were chosen.\n"
        "h shows earlier conversations; type to search them, Enter continues one. g keeps the last exchange as a "
        "history item of the user, to learn from."
    )
    CSS_PATH = ["asking.tcss", "chat.tcss"]  # noqa: RUF012 - Textual declares no ClassVar
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "focus_prompt", "Type", id="chat.write", tooltip="Type a message"),
        Binding("n", "new", "New", id="chat.new", tooltip="Begin a new conversation"),
        Binding("h", "search_chats", "History", id="chat.past", tooltip="Search in earlier conversations"),
        Binding(
            "m", "mode", "Mode", id="chat.mode", tooltip="Change the model: most personal, or one step of the ladder"
        ),
        Binding(
            "t",
            "task",
            "Task",
            id="chat.task",
            show=False,
            tooltip="A conversation, or questions of a task",
        ),
        Binding("w", "why", "Why", id="chat.why", tooltip="Show why the last answer is as it is, or hide it"),
        Binding("g", "keep_exchange", "Good", id="chat.good", tooltip="Keep the last exchange as a history item"),
        Binding(
            "y",
            "copy",
            "Copy",
            id="chat.copy",
            show=False,
            tooltip="Copy the last answer, or its reasons if they have the focus",
        ),
        Binding("d", "remove", "Remove", id="chat.remove", show=False, tooltip="Remove the conversation; asks"),
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the answer; else leave the prompt"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._user_tasks: dict[str, int] = {}
        self._mode: str | None = None
        self._chats: list[ChatSummary] = []
        self._words = ""  # the words of the last search
        self._session = ChatSession()
        self._last_prompt = ""  # the last message
        self._reply: AnswerMarkdown | None = None
        self._waiting = WaitingLine()  # below the reply until its first word

    def compose_body(self) -> ComposeResult:
        """The list of earlier conversations, the current one, and the prompt."""
        yield Static(block_text(NO_USER_HELP), id="no-user")
        with Container(id="asked"):
            with Vertical(id="past", classes="list"):
                yield Input(placeholder="search conversations", id="search")
                yield OptionList(id="chats")
            with Vertical(id="answering"):
                yield VerticalScroll(id="turns")
                yield ReasonsPane()
                yield Static(id="status")
                yield Static(id="how")
                yield PromptArea("Type a message, Enter asks · Esc leaves the prompt: then 0…6 and keys work")

    async def reload(self) -> None:
        """Read the selected user's tasks and conversations."""
        name = self.mta_app.selected_user
        tasks = await self.mta_app.store_thread.run(lambda reg: _read_user_tasks(reg, name))
        if tasks is None:
            name = None
        self.set_class(name is None, "-no-user")
        if name != self._user:
            self._user, self._mode = name, None
            self.refresh_bindings()
            labelled = [task for task, labels in (tasks or {}).items() if labels]
            only_labels = len(labelled) == len(tasks or {})
            selected = self.mta_app.selected_task
            self._prompt_task = likely_task(labelled, selected) if only_labels or selected in labelled else None
            await self._reset_chat()
            self.query_one("#search", Input).value = ""
            if name is not None:
                self.query_one(PromptArea).focus()
        self._user_tasks = tasks or {}
        if self._prompt_task not in (None, *self._user_tasks):
            self._prompt_task = None
        self._show_prompt_settings()
        await self._load_chat_list()
        if (wanted := self.mta_app.chat_to_open) is not None:
            self.mta_app.chat_to_open = None
            await self._open_chat(wanted)
        elif name is None:
            self.set_focus(None)

    @work(exclusive=True, group="search", exit_on_error=False)
    async def _reload_chat_list(self) -> None:
        await self._load_chat_list()

    async def _load_chat_list(self) -> None:
        name, words = self._user, self.query_one("#search", Input).value
        options = self.query_one("#chats", OptionList)
        at = options.highlighted if words == self._words else None
        kept = self._chats[at].id if at is not None and at < len(self._chats) else None
        self._words = words
        if name is None:
            self._chats = []
        else:
            self._chats = await self.mta_app.store_thread.run(
                lambda reg: reg.chats.search_chats(reg.users.get(name).id, words, limit=MAX_CHATS_LISTED)
            )
        options.clear_options()
        options.add_options([_chat_option_text(chat, here=chat.id == self._session.chat_id) for chat in self._chats])
        ids = [chat.id for chat in self._chats]
        options.highlighted = ids.index(kept) if kept in ids else 0 if ids else None
        count = len(self._chats)
        self.query_one("#past").border_title = Text(f"{count or 'no'} conversation{'s' if count != 1 else ''}")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search the conversations while words are typed."""
        self._reload_chat_list()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Move the focus from the search to its results."""
        self.query_one("#chats").focus()

    @work(exclusive=True, group="open", exit_on_error=False)
    async def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open the chosen conversation, to continue it."""
        await self._open_chat(self._chats[event.option_index].id)

    async def _open_chat(self, chat_id: int) -> None:
        messages = await self.mta_app.store_thread.run(lambda reg: reg.chats.messages(chat_id))
        await self._reset_chat()
        self._session.continue_chat(chat_id)
        turns = self.query_one("#turns")
        if len(messages) > MAX_MESSAGES_SHOWN:
            turns.mount(
                Static(
                    line_text(f"{len(messages) - MAX_MESSAGES_SHOWN} earlier messages are not shown"), classes="source"
                )
            )
        await turns.mount_all(
            [widget for message in messages[-MAX_MESSAGES_SHOWN:] for widget in _message_widgets(message)]
        )
        turns.anchor()
        self.query_one("#past").remove_class("open")
        self.query_one(PromptArea).focus()
        await self._load_chat_list()

    async def _reset_chat(self) -> None:
        self.active_request.discard_request()
        self._finish_reply()
        self._session = ChatSession()
        await self.query_one("#turns").remove_children()
        self.query_one(ReasonsPane).close()
        self.show_status("")

    @work(exclusive=True, group="open", exit_on_error=False)
    async def action_new(self) -> None:
        """Start a new conversation with the same user."""
        await self._reset_chat()
        self.query_one(PromptArea).focus()
        await self._load_chat_list()

    def action_search_chats(self) -> None:
        """Focus the search in earlier conversations."""
        self.query_one("#past").add_class("open")
        self.query_one("#search").focus()

    def action_mode(self) -> None:
        """Switch to the next model."""
        self._mode = next_in_cycle(list(MODES), self._mode)
        self._show_prompt_settings()

    def action_task(self) -> None:
        """Switch to the next task."""
        self.switch_to_next_task(list(self._user_tasks))
        self._show_prompt_settings()

    def action_copy(self) -> None:
        """Copy the last answer to the clipboard, or its reasons if these have the focus."""
        reasons = self.query_one(ReasonsPane)
        if reasons.has_focus:
            self.app.copy_to_clipboard(reasons.plain_text)
            return
        replies = self.query(AnswerMarkdown)
        if replies:
            self.app.copy_to_clipboard(clean_text(replies.last().answer_text))

    def action_stop(self) -> None:
        """Stop the answer; if none is running, close the reasons and the list, or leave the prompt."""
        if self.stop_answer():
            return
        reasons = self.query_one(ReasonsPane)
        if self.focused in (reasons, self.query_one("#turns")):
            reasons.close()
        self.query_one("#past").remove_class("open")
        self.query_one("#turns").focus()

    def action_why(self) -> None:
        """Show the reasons of the last answer, or hide them."""
        pane = self.query_one(ReasonsPane)
        if pane.is_open:
            pane.close()
            self.query_one("#turns").focus()
        elif not self._session.has_exchange:
            self.show_status("There is no answer to explain yet; ask something first.")
        elif not self.report_if_answering():
            self._request_reasons(lambda: pane.focus())

    def _request_reasons(self, shown: Callable[[], object] = lambda: None) -> None:
        session, pane = self._session, self.query_one(ReasonsPane)

        def handle(event: Event) -> None:
            if isinstance(event, JobResult):
                pane.show_reasons(event.result)
                self.show_status("")
                shown()

        self.active_request.start_request(session.explain_last, handle, self._show_request_error)

    def action_keep_exchange(self) -> None:
        """Keep the last exchange as a history item of the user."""
        if self.active_request.in_progress or not self._session.has_exchange:
            self.show_status("There is no answer to keep yet; ask something first.")
            return
        session = self._session
        self.active_request.start_request(session.keep_last_exchange, self._handle_keep_event, self._show_request_error)

    def _handle_keep_event(self, event: Event) -> None:
        if isinstance(event, ArtifactSaved):
            self.show_status(f"kept: {event.detail}")
        elif isinstance(event, Note):
            self.show_status(event.text)

    def _show_request_error(self, error: BaseException | None, stopped: bool) -> None:
        if error is not None:
            self.mta_app.show_error(error)

    @work(exclusive=True, group="open", exit_on_error=False)
    async def action_remove(self) -> None:
        """Remove the shown conversation from the store, after asking."""
        chat_id = self._session.chat_id
        if chat_id is None or self.active_request.in_progress:
            self.show_status("No stored conversation is shown.")
        elif await self.mta_app.confirm("Remove this conversation? History items kept from it stay."):
            await self.mta_app.store_thread.run(lambda reg: reg.chats.remove(chat_id))
            await self._reset_chat()
            await self._load_chat_list()

    def on_prompt_area_submitted(self, message: PromptArea.Submitted) -> None:
        """Send the typed message to the model."""
        if self._user is None or self.report_if_answering():
            return
        asking = self.question_options(self._prompt_task, self._mode)
        if asking is None:
            return
        self._last_prompt, self._reply, self._warnings = message.text, AnswerMarkdown(), []
        self.query_one(PromptArea).replace_text("")
        turns = self.query_one("#turns")
        self._waiting = WaitingLine()
        turns.mount(Static(block_text(self._last_prompt), classes="said"), self._reply, self._waiting)
        turns.anchor()
        self.show_status("")
        self.run_worker(self._reply.stream_chunks(), group="stream")
        session, user, text = self._session, self._user, self._last_prompt
        self.active_request.start_request(
            lambda context: session.send_message(context, user, asking, text),
            self._handle_event,
            self._handle_end,
        )

    def _handle_event(self, event: Event) -> None:
        reply = self._reply
        if isinstance(event, JobStarted):
            self._waiting.start(event.job)
        elif isinstance(event, TextChunk) and reply is not None:
            if not reply.answer_text:
                self.show_status("")
                self._waiting.remove()
            reply.append_chunk(event.text)
        elif isinstance(event, Note) and not (reply and reply.answer_text):
            self.show_status(event.text)
        elif isinstance(event, Note) and event.warning:
            self._warnings.append(event.text)
        elif isinstance(event, JobResult):
            if reply is not None and not reply.answer_text.strip():
                reply.append_chunk("(an empty answer)")
            # For an answer cut at its length the last warning names a flag of the command line, so it is left out here.
            cut = event.result["ended"] == "length"

            self.show_status(" ".join(self._warnings[:-1] if cut else self._warnings))
            self._append_source_line(_answer_source_line(event.result))

    def _handle_end(self, error: BaseException | None, stopped: bool) -> None:
        said = self._finish_reply()
        self._waiting.remove()
        if error is not None or (stopped and not said):
            self._restore_prompt(keep_turn=said)
        if error is not None:
            self.show_status("")
            self.mta_app.show_error(error)
        elif stopped:
            self.show_status("stopped" if said else "stopped before the first word")
            if said:
                self._append_source_line("stopped; the text so far is kept")
        elif self.query_one(ReasonsPane).is_open:
            self._request_reasons()
        self._reload_chat_list()

    def _restore_prompt(self, *, keep_turn: bool) -> None:
        """Put the last message back into an empty prompt; unless `keep_turn`, also remove it from the conversation."""
        prompt = self.query_one(PromptArea)
        if not prompt.text.strip():
            prompt.replace_text(self._last_prompt)
        if not keep_turn:
            shown = [widget for widget in self.query_one("#turns").children if not isinstance(widget, WaitingLine)]
            for widget in shown[-2:]:
                widget.remove()

    def _finish_reply(self) -> bool:
        """Mark the streamed answer as complete; returns whether it has any text."""
        reply, self._reply = self._reply, None
        if reply is None:
            return False
        reply.finish_stream()
        return bool(reply.answer_text)

    def _append_source_line(self, words: str) -> None:
        self.query_one("#turns").mount(Static(line_text(words), classes="source"))

    def _show_prompt_settings(self) -> None:
        mode, task = self._mode or "most personal", self._prompt_task
        parts = (Text("user "), line_text(self._user, "bold"), Text(" · model "), line_text(mode, "bold"))
        labels = self._user_tasks.get(task or "", 0)
        how = Text("a conversation")
        if task is not None:
            how = Text.assemble("prompt ", line_text(task, "bold"), ", each message by itself")
        answers = f", answered with one of {labels} labels" if labels else ""
        change = " (t changes it)" if self._user_tasks else ""
        self.query_one("#how", Static).update(Text.assemble(*parts, Text(" · "), how, Text(answers + change)))


def _read_user_tasks(reg: Registry, name: str | None) -> dict[str, int] | None:
    """The number of labels of each of the user's tasks; None without a user or if the user was removed."""
    from mta_cli.pipeline.data.tasks import find_task

    user = reg.users.find(name) if name is not None else None
    if user is None:
        return None
    counts = {}
    for task, _, _ in reg.users.tasks_of_user(user.id):
        try:
            counts[task] = len(find_task(reg, task).labels)
        except MtaError:  # the task's definition is missing or damaged; asking a question shows the error
            counts[task] = 0
    return counts


def _chat_option_text(chat: ChatSummary, *, here: bool) -> Text:
    title = line_text(f"{'▸ ' if here else ''}{chat.title}", "bold" if here else "")
    about = line_text(f"  {chat.created[:16].replace('T', ' ')} · {chat.messages} messages", "dim")
    parts = [title, Text("\n"), about]
    if chat.excerpt:
        parts += [Text("\n"), line_text(f"  {chat.excerpt}", "italic")]
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _message_widgets(message: Message) -> list[Static | AnswerMarkdown]:
    if message.role == "user":
        return [Static(block_text(message.content), classes="said")]
    source = message.source
    words = source.get("mode", message.role)
    if source.get("bank"):
        words += f" · bank {source['bank']} v{source['version']}"
    return [AnswerMarkdown(message.content), Static(line_text(words), classes="source")]


def _answer_source_line(result: dict[str, Any]) -> str:
    source, tokens, seconds = result["source"], result["tokens"], result["seconds"]
    bank = f" · {result['task']} · bank {source['bank']} v{source['version']}" if source["bank"] else ""
    rate = f", {format_rate(tokens / seconds)}/s" if seconds and result["ended"] != "label" else ""
    ending = describe_ending(result["ended"])
    return f"{source['mode']}{bank} · {tokens} token{'s' if tokens != 1 else ''}{rate}{ending}"
