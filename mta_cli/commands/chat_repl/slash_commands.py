"""The slash commands of `mta chat`: one table for /help, completion and the manual.

Maps each name to its effect on a conversation; does not read lines or show errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mta_cli.commands.chat_repl.comparison_table import render_comparison, tokens_as_progress
from mta_cli.errors import UsageError
from mta_cli.events import Event, JobResult
from mta_cli.terminal.output import Output, group, text
from mta_cli.terminal.tables import table

if TYPE_CHECKING:
    from mta_cli.pipeline.chat.conversation import Conversation
    from mta_cli.pipeline.chat.remote import RemoteConversation

AnyConversation: TypeAlias = "Conversation | RemoteConversation"
SlashRender = Callable[[Any, Output], Any]


class LeaveChat(Exception):
    """The user ends the chat."""


@dataclass(frozen=True)
class SlashCommand:
    """One command. `argument`: `NAME` is required, `[NAME]` is optional, empty takes none."""

    name: str
    argument: str
    help: str
    run: Callable[[AnyConversation, str], Iterator[Event]]
    render: SlashRender | None = None

    @property
    def usage(self) -> str:
        """The command as it is typed, with its argument."""
        return f"{self.name} {self.argument}".rstrip()


def parse_slash_command(line: str) -> tuple[SlashCommand, str]:
    """The command of a typed line, and its argument. Raises UsageError with the right usage."""
    name, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    command = SLASH_COMMANDS_BY_NAME.get(name)
    if command is None:
        near = difflib.get_close_matches(name, SLASH_COMMANDS_BY_NAME, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"There is no command {name[:40]}.",
            hint=f"{meant}/help lists the commands; a message that begins with / is typed with //.",
        )
    if argument and not command.argument:
        raise UsageError(f"{name} takes no argument.", hint=f"type {name} alone")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"{name} needs an argument: {command.argument}.", hint=f"type {command.usage}")
    return command, argument


def complete_line(line: str, users: Callable[[], list[str]]) -> list[str]:
    """Completions of a line: names of commands, and users' names after /user."""
    if line.startswith("/user "):
        return [f"/user {name}" for name in users() if name.startswith(line.removeprefix("/user ").lstrip())]
    return [
        command.name + (" " if command.argument else "") for command in SLASH_COMMANDS if command.name.startswith(line)
    ]


def _list_commands(conversation: AnyConversation, argument: str) -> Iterator[Event]:
    yield JobResult([{"command": command.usage, "what": command.help} for command in SLASH_COMMANDS])


def _leave_chat(conversation: AnyConversation, argument: str) -> Iterator[Event]:
    yield from ()
    raise LeaveChat


def _switch_to_mode(mode: str) -> Callable[[AnyConversation, str], Iterator[Event]]:
    return lambda conversation, argument: conversation.switch_mode(mode)


def _render_help(rows: Any, output: Output) -> Any:
    return table(("command", "what it does"), [(row["command"], row["what"]) for row in rows])


def _explain_last(conversation: AnyConversation, argument: str) -> Iterator[Event]:
    yield JobResult(conversation.explain_last())


def _render_reasons(reasons: Any, output: Output) -> Any:
    from mta_cli.tui.widgets.answer_reasons import reason_lines

    return group(*reason_lines(reasons))


def _render_history(result: Any, output: Output) -> Any:
    if "messages" in result:
        parts: list[Any] = []
        for message in result["messages"]:
            mode = message["source"].get("mode", message["role"])
            speaker = result["user"] if message["role"] == "user" else mode
            parts += [text(f"{speaker} · {message['created']}", style="bold"), text(message["content"]), text("")]
        return group(*parts) if parts else text("This chat is empty.")
    if not result["chats"]:
        return text(f"{result['user']} has no stored chats.")
    rows = [(chat["chat"], chat["created"], chat["messages"], chat["title"]) for chat in result["chats"]]
    more = [text(f"and {result['more']} older ones")] if result["more"] else []
    return group(table(("chat", "begun", "messages", "first words"), rows), *more)


SLASH_COMMANDS: tuple[SlashCommand, ...] = (
    SlashCommand("/help", "", "List these commands.", _list_commands, _render_help),
    SlashCommand(
        "/user", "NAME", "Talk with another user's model, in a new conversation.", lambda c, a: c.switch_user(a)
    ),
    SlashCommand(
        "/task",
        "[NAME]",
        "Treat each message as a question of a task; without NAME, as a turn of the conversation.",
        lambda c, a: c.switch_task(a),
    ),
    SlashCommand("/base", "", "Let the base answer from here on.", _switch_to_mode("base")),
    SlashCommand("/common", "", "Let the common model of all users answer from here on.", _switch_to_mode("common")),
    SlashCommand("/fused", "", "Let the fusion of anchors answer from here on.", _switch_to_mode("fused")),
    SlashCommand(
        "/adapted", "", "Let the user's own stack on the fusion answer from here on.", _switch_to_mode("adapted")
    ),
    SlashCommand(
        "/compare",
        "[QUESTION]",
        "Show side by side how base, common, fused and adapted answer QUESTION, or the last one.",
        lambda c, a: tokens_as_progress(c.compare(a)),
        render_comparison,
    ),
    SlashCommand(
        "/why",
        "",
        "Explain the last answer: items in the prompt, labels, label memory.",
        _explain_last,
        _render_reasons,
    ),
    SlashCommand(
        "/history",
        "[CHAT]",
        "List the user's stored chats, or show one.",
        lambda c, a: c.stored_chats(a),
        _render_history,
    ),
    SlashCommand(
        "/good", "", "Keep the last exchange as a history item, to learn from.", lambda c, a: c.accept_exchange()
    ),
    SlashCommand("/undo", "", "Undo the last /good, and remove what was made from it.", lambda c, a: c.undo_accept()),
    SlashCommand(
        "/system",
        "[TEXT]",
        "Put a system message in front of the conversation; without TEXT, remove it.",
        lambda c, a: c.set_system(a),
    ),
    SlashCommand(
        "/save",
        "[FILE]",
        "Store the conversation, even after --no-save; with FILE, also write it there as text.",
        lambda c, a: c.save(a),
    ),
    SlashCommand("/reset", "", "Begin a new conversation.", lambda c, a: c.reset()),
    SlashCommand("/quit", "", "End the chat, as Ctrl-D does.", _leave_chat),
)
SLASH_COMMANDS_BY_NAME = {command.name: command for command in SLASH_COMMANDS}
