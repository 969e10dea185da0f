"""`mta ask`, `mta compare` and `mta chat`: flags, input and rendering. Holds no logic of answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mta_cli.commands.chat_repl.comparison_table import ANSWER_MODES, render_comparison, tokens_as_progress
from mta_cli.commands.shared.arguments import JsonOption, TaskOption, UserOption, complete_users
from mta_cli.commands.shared.context import AppContext, app_context, stdin_binary, stdin_is_terminal
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import BadInput, Command, Flag, UsageError
from mta_cli.options import AnswerOptions, MachineOptions, MemoryOptions, ModelOptions, PromptOptions
from mta_cli.terminal.output import group

# flags that --server accepts; servers know them by the same names
SERVER_SAMPLING = ("max_tokens", "temperature", "top_p", "min_p", "repetition_penalty")
MAX_STDIN_BYTES = 4_000_000  # a longer message would be refused anyway


_TEXT_HELP = "without a text, or with -, it is read from standard input."
AskedArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[USER] [TEXT]",
        help=f"The user whose model answers, and the text. With a text alone the base answers; {_TEXT_HELP}",
        autocompletion=complete_users,
    ),
]
ComparedArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[USER] [TEXT]",
        help=f"The user, and the text; {_TEXT_HELP}",
        autocompletion=complete_users,
    ),
]
OptionalUserArgument = Annotated[
    str | None,
    typer.Argument(metavar="[USER]", help="The user; without one, the base answers.", autocompletion=complete_users),
]
UsersOption = Annotated[
    list[str] | None,
    typer.Option("--user", "-u", metavar="USER", help="A user; can be repeated.", autocompletion=complete_users),
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="|".join(ANSWER_MODES),
        help="The model that answers; by default the user's most personal one.",
        autocompletion=lambda: list(ANSWER_MODES),
    ),
]
FreeDecodingOption = Annotated[
    bool, typer.Option("--free-decoding", help="For a task with labels: generate any text, not only a label.")
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Let this server answer, such as http://127.0.0.1:8000/v1."),
]
NoServerOption = Annotated[
    bool, typer.Option("--no-server", help="Load the model here, even if a server of this store runs.")
]
NoSaveOption = Annotated[bool, typer.Option("--no-save", help="Do not store the conversation.")]
ContinueOption = Annotated[bool, typer.Option("--continue", help="Continue the user's newest stored conversation.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this text; can be repeated."),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="A system message in front of the prompt.")
]
StagedOption = Annotated[
    bool,
    typer.Option("--staged", help="Ask about the staged change of this folder's git repository; with -t commit."),
]
ANSWER_TABLES = (AnswerOptions, MemoryOptions, PromptOptions, only(ModelOptions, "base"), MachineOptions)


@options(*ANSWER_TABLES)
def ask(
    ctx: typer.Context,
    *,
    asked: AskedArgument = None,
    user: UserOption = None,
    task: TaskOption = None,
    staged: StagedOption = False,
    mode: ModeOption = None,
    system: SystemOption = None,
    stop: StopOption = None,
    free_decoding: FreeDecodingOption = False,
    no_server: NoServerOption = False,
    flags: Flags,
    json: JsonOption = False,
) -> None:
    """Ask for one answer.

    The answer is streamed to standard output; a line on standard error says which model gave it. The user's most
    personal model answers, and the prompt shows the user's own items that are nearest to the text. Without --task the
    answer is free text, by the user's model for the task with the nearest items. With --task the prompt is the task's,
    and if the task has labels, the answer is one of them. If `mta serve` runs on the same store with the same
    settings, it answers, and nothing is loaded here.
    """
    from mta_cli.pipeline.chat.answer import answer_question
    from mta_cli.pipeline.chat.answer_on_server import answer_on_server, find_equivalent_server
    from mta_cli.pipeline.requests import base_model, chat_options

    context = app_context(ctx, flags, json=json)
    asking = chat_options(context.options, task, mode, free_decoding=free_decoding, stops=stop or (), system=system)
    users, message = split_users_and_text(asked, [user] if user is not None else [], needs_user=staged)
    if staged:
        from mta_cli.pipeline.data.git.staged import staged_question

        if message is not None:
            raise UsageError("--staged and a text are two different questions.", hint="leave one of them out")
        message = staged_question(Path.cwd())
    if len(users) > 1:
        raise UsageError(
            f"mta ask takes one user, and {' and '.join(users)} were given.",
            hint=(Command("compare"), " takes several users"),
        )
    text = _read_message(message, "ask")
    with context.open_registry() as reg:
        if not users and reg.users.existing_names([text]):
            command = context.global_flags.text_with_store(Command("ask", text, "TEXT"))
            context.output.note(
                f"{text} is a user's name, but was taken as the text to ask. `{command}` asks their model."
            )
        name = users[0] if users else None
        given = context.options if name is None else context.options_on_base(reg, task, reg.users.get(name))
        entry = base_model(given)
        server = None if no_server else find_equivalent_server(reg, entry, asking)
        if server is None:
            events = answer_question(reg, entry, name, text, asking)
        else:
            events = answer_on_server(reg, server, entry, name, text, asking)
        result = context.output.run_job(events)
    if json:
        context.output.print_result(result)


@options(*ANSWER_TABLES)
def compare(
    ctx: typer.Context,
    *,
    asked: ComparedArgument = None,
    user: UsersOption = None,
    task: TaskOption = None,
    system: SystemOption = None,
    stop: StopOption = None,
    free_decoding: FreeDecodingOption = False,
    no_server: NoServerOption = False,
    flags: Flags,
    json: JsonOption = False,
) -> None:
    """Compare base, common, fused and adapted.

    All four models get the same prompt, with the same items of the user as examples. Several users are answered one
    after another, and --json then prints an array. If `mta serve` runs on the same store with the same settings, it
    answers.
    """
    from mta_cli.pipeline.chat.answer_on_server import compare_on_server, find_equivalent_server
    from mta_cli.pipeline.chat.compare import compare_user_models
    from mta_cli.pipeline.requests import base_model, chat_options

    context = app_context(ctx, flags, json=json)
    asking = chat_options(context.options, task, free_decoding=free_decoding, stops=stop or (), system=system)
    users, message = split_users_and_text(asked, user or [], needs_user=True)
    if not users:
        raise UsageError(
            "mta compare needs a user whose models answer.", hint=("name one: ", Command("compare", "USER"), ' "TEXT"')
        )
    text = _read_message(message, "compare")
    with context.open_registry() as reg:
        given = context.options_on_base(reg, task, reg.users.get(users[0]))
        entry = base_model(given)
        server = None if no_server else find_equivalent_server(reg, entry, asking)
        if server is None:
            events = compare_user_models(reg, entry, users, text, asking)
        else:
            events = compare_on_server(reg, server, entry, users, text, asking)
        results = context.output.run_job(tokens_as_progress(events))
    context.output.print_result(
        results[0] if len(results) == 1 else results,
        lambda _: group(*(render_comparison(each, context.output) for each in results)),
    )


@options(*ANSWER_TABLES)
def chat(
    ctx: typer.Context,
    *,
    name: OptionalUserArgument = None,
    user: UserOption = None,
    task: TaskOption = None,
    mode: ModeOption = None,
    go_on: ContinueOption = False,
    system: SystemOption = None,
    stop: StopOption = None,
    no_save: NoSaveOption = False,
    free_decoding: FreeDecodingOption = False,
    server: ServerOption = None,
    flags: Flags,
) -> None:
    """Talk with a user's model.

    The user's most personal model answers, and the prompt shows the user's own items that are nearest to the message.
    With --task, or after /task NAME, each message is a separate question of that task. Type /help for a list of
    commands; in a pipe, lines are read from standard input.
    The base is loaded once: another user or mode only changes its weights. Conversations are stored unless --no-save is
    given.
    With --server, a running `mta serve` answers, and nothing is loaded or stored here; if the server needs a
    key, it is read from MTA_SERVER_KEY.
    """
    from mta_cli.commands.chat_repl.repl import ChatShell
    from mta_cli.pipeline.chat.answer import ChatModel
    from mta_cli.pipeline.chat.conversation import Conversation
    from mta_cli.pipeline.requests import base_model, chat_options

    context = app_context(ctx, flags)
    if name is not None and user is not None and name != user:
        raise UsageError(f"mta chat takes one user, and {name} and {user} were given.", hint="leave one of them out")
    user = user if name is None else name
    if go_on and user is None:
        raise UsageError(
            "--continue needs a user.", hint=("name one: ", Command("chat", "USER"), " ", Flag("continue"))
        )
    if go_on and no_save:
        raise UsageError("--continue stores the conversation, and --no-save does not.", hint="leave one of them out")
    if server is not None:
        ours = {"--mode": mode, "--continue": go_on, "--free-decoding": free_decoding}
        sent = {f"--{name.replace('_', '-')}" for name in SERVER_SAMPLING}
        refused = [name for name, given in ours.items() if given] + sorted(set(flags.given_flags()) - sent)
        if refused:
            raise UsageError(
                f"{', '.join(refused)} cannot be given with --server, because the server decides this.",
                hint="leave it out, or leave out --server",
            )
        if code := _chat_with_server(context, server, user, task, system, stop or []):
            raise typer.Exit(code)
        return
    asking = chat_options(context.options, task, mode, free_decoding=free_decoding, stops=stop or (), system=system)
    with context.open_registry() as reg:
        found = reg.users.get(user) if user is not None else None
        given = context.options if found is None else context.options_on_base(reg, task, found)
        model = ChatModel.load_for_user(reg, base_model(given), found, asking)
        conversation = Conversation(model, autosave=not no_save)
        if go_on:
            context.output.run_job(conversation.resume_latest())
        code = ChatShell(context.output, conversation).run_chat(interactive=stdin_is_terminal())
    if code:
        raise typer.Exit(code)


def _chat_with_server(
    context: AppContext, url: str, user: str | None, task: str | None, system: str | None, stops: list[str]
) -> int:
    from mta_cli.commands.chat_repl.repl import ChatShell
    from mta_cli.pipeline.chat.remote import RemoteConversation

    assert context.flags is not None
    known = context.build_options(AnswerOptions)[AnswerOptions]  # refuses values out of bounds
    sampling = {name: getattr(known, name) for name in SERVER_SAMPLING if context.flags.values[name] is not None}
    sampling |= {"stop": stops} if stops else {}
    key = os.environ.get("MTA_SERVER_KEY")
    conversation = RemoteConversation(url, user, key=key, task=task, sampling=sampling, system=system)
    return ChatShell(context.output, conversation).run_chat(interactive=stdin_is_terminal())


def split_users_and_text(
    asked: Sequence[str] | None, named: Sequence[str], *, needs_user: bool = False
) -> tuple[list[str], str | None]:
    """The users and the text (or None), from the arguments `[USER] [TEXT]` and the users `named` by flags.

    A single argument is the text, or the user if one is needed and no flag names one. Raises UsageError for more than
    two arguments.
    """
    given, users = list(asked or ()), list(named)
    if len(given) == 2 or (len(given) == 1 and needs_user and not users):
        users.insert(0, given.pop(0))
    if len(given) > 1:
        raise UsageError(
            f"At most a user and one text can be given, and there are {len(asked or ())} arguments.",
            hint="put the text in quotes",
        )
    return list(dict.fromkeys(users)), given[0] if given else None


def _read_message(given: str | None, command: str) -> str:
    """The text to ask: the argument, or all of standard input. `command` is named in hints."""
    if given is not None and given != "-":
        return given
    if stdin_is_terminal():
        raise UsageError("There is no text to ask.", hint=(Command(command, "USER"), ' "TEXT", or pipe the text in'))
    raw = stdin_binary().read(MAX_STDIN_BYTES + 1)
    if len(raw) > MAX_STDIN_BYTES:
        raise BadInput(f"Standard input has more than {MAX_STDIN_BYTES:,} bytes.", hint="ask with a shorter text")
    try:
        return raw.decode().rstrip("\n")
    except UnicodeDecodeError as error:
        hint = "convert the text to UTF-8 first"
        raise BadInput(f"Standard input is not UTF-8 text (byte {error.start}).", hint=hint) from error
