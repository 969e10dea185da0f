"""`mta ask`, `mta compare` and `mta chat`: flags, input and rendering. Holds no logic of answers."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mta_cli.commands.chat_repl.comparison_table import ANSWER_MODES, render_comparison, tokens_as_progress
from mta_cli.commands.shared.arguments import JsonOption, TaskOption, UserOption, complete_users
from mta_cli.commands.shared.context import AppContext, app_context, stdin_binary, stdin_is_terminal
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import BadInput, UsageError
from mta_cli.options import AnswerOptions, MachineOptions, MemoryOptions, ModelOptions, PromptOptions

MAX_STDIN_BYTES = 4_000_000  # bytes; a longer message is refused anyway


def _complete_mode(incomplete: str) -> list[str]:
    return [mode for mode in ANSWER_MODES if mode.startswith(incomplete)]


MessageArgument = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="What to ask; read from standard input without it, or for -.")
]
RequiredUserOption = Annotated[
    str, typer.Option("--user", metavar="USER", help="The user.", autocompletion=complete_users)
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="|".join(ANSWER_MODES),
        help="Which model answers; without it, the most personal one.",
        autocompletion=_complete_mode,
    ),
]
FreeDecodingOption = Annotated[
    bool, typer.Option("--free-decoding", help="Let a task with labels answer in its own words.")
]
ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="Talk over a running server: http://127.0.0.1:8000/v1.")
]
NoSaveOption = Annotated[bool, typer.Option("--no-save", help="Do not store the conversation.")]
ANSWER_TABLES = (AnswerOptions, MemoryOptions, PromptOptions, only(ModelOptions, "base"), MachineOptions)


@options(*ANSWER_TABLES)
def ask(
    ctx: typer.Context,
    *,
    message: MessageArgument = None,
    user: UserOption = None,
    task: TaskOption = None,
    mode: ModeOption = None,
    free_decoding: FreeDecodingOption = False,
    flags: Flags,
    json: JsonOption = False,
) -> None:
    """Get one answer, streamed to standard output; the model that answered goes to standard error.

    The text is sent as typed, after the user's own history items. With --task it becomes that task's prompt, and
    a task with labels answers with one of them.
    """
    from mta_cli.pipeline.chat.answer import answer_question
    from mta_cli.pipeline.requests import base_model, chat_options

    context = app_context(ctx, flags, json=json)
    asking = chat_options(context.options, task, mode, free_decoding=free_decoding)
    words = _read_message(message)
    with context.open_registry() as reg:
        given = context.options if user is None else context.options_on_base(reg, task, reg.users.get(user))
        result = context.output.run_job(answer_question(reg, base_model(given), user, words, asking))
    if json:
        context.output.print_result(result)


@options(*ANSWER_TABLES)
def compare(
    ctx: typer.Context,
    *,
    user: RequiredUserOption,
    message: MessageArgument = None,
    task: TaskOption = None,
    free_decoding: FreeDecodingOption = False,
    flags: Flags,
    json: JsonOption = False,
) -> None:
    """Put one question to base, fused and adapted with the same prompt, and show the answers side by side."""
    from mta_cli.pipeline.chat.compare import compare_user_models
    from mta_cli.pipeline.requests import base_model, chat_options

    context = app_context(ctx, flags, json=json)
    asking = chat_options(context.options, task, free_decoding=free_decoding)
    words = _read_message(message)
    with context.open_registry() as reg:
        given = context.options_on_base(reg, task, reg.users.get(user))
        events = compare_user_models(reg, base_model(given), user, words, asking)
        result = context.output.run_job(tokens_as_progress(events))
    context.output.print_result(result, lambda value: render_comparison(value, context.output))


@options(*ANSWER_TABLES)
def chat(
    ctx: typer.Context,
    *,
    user: UserOption = None,
    task: TaskOption = None,
    mode: ModeOption = None,
    no_save: NoSaveOption = False,
    free_decoding: FreeDecodingOption = False,
    server: ServerOption = None,
    flags: Flags,
) -> None:
    """Talk with a user's model. Type /help for what else can be typed; lines are read from standard input in a pipe.

    The base is loaded once: another user or mode only changes its weights. Conversations are stored unless --no-save.
    With --server, a running `mta serve` answers, and nothing is loaded or stored here; MTA_SERVER_KEY holds a key.
    """
    from mta_cli.commands.chat_repl.repl import ChatShell
    from mta_cli.pipeline.chat.answer import ChatModel
    from mta_cli.pipeline.chat.conversation import Conversation
    from mta_cli.pipeline.requests import base_model, chat_options

    context = app_context(ctx, flags)
    if server is not None:
        if code := _chat_with_server(context, server, user, task, mode):
            raise typer.Exit(code)
        return
    asking = chat_options(context.options, task, mode, free_decoding=free_decoding)
    with context.open_registry() as reg:
        found = reg.users.get(user) if user is not None else None
        given = context.options if found is None else context.options_on_base(reg, task, found)
        model = ChatModel.load_for_user(reg, base_model(given), found, asking)
        shell = ChatShell(context.output, Conversation(model, autosave=not no_save))
        code = shell.run_chat(interactive=stdin_is_terminal())
    if code:
        raise typer.Exit(code)


def _chat_with_server(context: AppContext, url: str, user: str | None, task: str | None, mode: str | None) -> int:
    from mta_cli.commands.chat_repl.repl import ChatShell
    from mta_cli.pipeline.chat.remote import RemoteConversation

    if mode is not None:
        raise UsageError("--mode is not for a server, which answers with the most personal model.")
    conversation = RemoteConversation(url, user, key=os.environ.get("MTA_SERVER_KEY"), task=task)
    return ChatShell(context.output, conversation).run_chat(interactive=stdin_is_terminal())


def _read_message(given: str | None) -> str:
    """The question: the argument, or all of standard input."""
    if given is not None and given != "-":
        return given
    if stdin_is_terminal():
        raise UsageError("There is nothing to ask.", hint='mta ask --user NAME "…", or pipe the text in')
    raw = stdin_binary().read(MAX_STDIN_BYTES + 1)
    if len(raw) > MAX_STDIN_BYTES:
        raise BadInput(f"Standard input holds more than {MAX_STDIN_BYTES:,} bytes.")
    try:
        return raw.decode().rstrip("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"Standard input is not UTF-8 (byte {error.start}).") from error
