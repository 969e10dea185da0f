"""`mta ask`, `mta compare` and `mta chat`: flags, reading what is asked, showing the answers. No logic of answers."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from mta_cli.commands.common import (
    AppContext,
    DeviceOption,
    DtypeOption,
    HistoryItemsOption,
    JsonOption,
    SeedOption,
    TaskOption,
    UserOption,
    app_context,
    complete_models,
    complete_users,
    stdin_is_terminal,
    typer_option,
)
from mta_cli.errors import BadInput, UsageError
from mta_cli.events import Event, JobProgress, JobStarted, TextChunk
from mta_cli.options import AnswerOptions, MemoryOptions, PromptOptions
from mta_cli.output import Output, group, text
from mta_cli.settings import ModelOptions

if TYPE_CHECKING:
    from mta_cli.pipeline.chat.answer import ChatOptions
    from mta_cli.pipeline.models.manifest import ModelEntry

ANSWER_MODES = ("base", "fused", "adapted")
MIN_SIDE_BY_SIDE_COLUMNS = 90  # columns of terminal below which answers stand under each other
MAX_STDIN_BYTES = 4_000_000  # bytes; more is refused as a message anyway


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
        help="Who answers; the most personal there is, without it.",
        autocompletion=_complete_mode,
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="MODEL", help="The base model; else the configured one.", autocompletion=complete_models
    ),
]
FreeDecodingOption = Annotated[
    bool, typer.Option("--free-decoding", help="Let a task with labels answer in its own words.")
]
NoSaveOption = Annotated[bool, typer.Option("--no-save", help="Do not store the conversation.")]
MaxTokensOption = Annotated[int | None, typer_option(AnswerOptions, "max_tokens")]
TemperatureOption = Annotated[float | None, typer_option(AnswerOptions, "temperature")]
TopPOption = Annotated[float | None, typer_option(AnswerOptions, "top_p")]
Int8Option = Annotated[bool | None, typer_option(AnswerOptions, "int8")]


def ask(
    ctx: typer.Context,
    message: MessageArgument = None,
    user: UserOption = None,
    task: TaskOption = None,
    mode: ModeOption = None,
    base: BaseOption = None,
    free_decoding: FreeDecodingOption = False,
    history_items: HistoryItemsOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    int8: Int8Option = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = False,
) -> None:
    """Get one answer, streamed to standard output; where it came from goes to standard error.

    The words are sent as typed, after the user's own history items; with --task they become that task's prompt, and
    a task with labels answers with one of them.
    """
    from mta_cli.pipeline.chat import answer as converse

    app = app_context(ctx, json=json)
    answer = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "int8": int8}
    asking = _build_answer_request(app, answer, history_items, (seed, device, dtype), task, mode, free_decoding)
    words = _read_message(message)
    with app.open_registry() as reg:
        result = app.output.run_job(converse.answer_question(reg, _resolve_base(app, base), user, words, asking))
    if json:
        app.output.print_result(result)


def compare(
    ctx: typer.Context,
    user: RequiredUserOption,
    message: MessageArgument = None,
    task: TaskOption = None,
    base: BaseOption = None,
    free_decoding: FreeDecodingOption = False,
    history_items: HistoryItemsOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    int8: Int8Option = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = False,
) -> None:
    """Put one question to base, fused and adapted, with the same prompt, and show the answers side by side."""
    from mta_cli.pipeline.chat import compare

    app = app_context(ctx, json=json)
    answer = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "int8": int8}
    asking = _build_answer_request(app, answer, history_items, (seed, device, dtype), task, None, free_decoding)
    words = _read_message(message)
    with app.open_registry() as reg:
        events = compare.compare_user_models(reg, _resolve_base(app, base), user, words, asking)
        result = app.output.run_job(tokens_as_progress(events))
    app.output.print_result(result, lambda value: render_comparison(value, app.output))


def chat(
    ctx: typer.Context,
    user: UserOption = None,
    task: TaskOption = None,
    mode: ModeOption = None,
    base: BaseOption = None,
    no_save: NoSaveOption = False,
    free_decoding: FreeDecodingOption = False,
    history_items: HistoryItemsOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    int8: Int8Option = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Talk with a user's model. Type /help for what else can be typed; lines are read from standard input in a pipe.

    The base is loaded once: another user or mode only changes its weights. Conversations are stored unless --no-save.
    """
    from mta_cli.commands.chat_shell import ChatShell
    from mta_cli.pipeline.chat.answer import ChatModel
    from mta_cli.pipeline.chat.conversation import Conversation

    app = app_context(ctx)
    answer = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "int8": int8}
    asking = _build_answer_request(app, answer, history_items, (seed, device, dtype), task, mode, free_decoding)
    with app.open_registry() as reg:
        person = reg.users.get(user) if user is not None else None
        voice = ChatModel.load_for_user(reg, _resolve_base(app, base), person, asking)
        code = ChatShell(app.output, Conversation(voice, autosave=not no_save)).run_chat(
            interactive=stdin_is_terminal()
        )
    if code:
        raise typer.Exit(code)


def tokens_as_progress(events: Iterator[Event]) -> Iterator[Event]:
    """The same events with streamed text turned into progress, for answers that are shown together at the end."""
    yield JobStarted("answering", unit="tokens")
    done = 0
    for event in events:
        if isinstance(event, TextChunk):
            done += 1
            yield JobProgress(event.column, done)
        else:
            yield event


def render_comparison(result: dict[str, Any], output: Output) -> Any:
    """The answers of a comparison: columns of a table, or one under the other where the terminal is narrow."""
    from rich import box
    from rich.table import Table

    head = text(str(result["prompt"]), style="bold")
    cells = {mode: result["answers"][mode] for mode in ANSWER_MODES}
    if output.console(stderr=False).width < MIN_SIDE_BY_SIDE_COLUMNS:
        parts = [
            part
            for mode in ANSWER_MODES
            for part in (text(_answer_heading(result, mode), style="bold"), _format_answer(cells[mode]), text(""))
        ]
        return group(head, text(""), *parts)
    shown = Table(box=box.SIMPLE_HEAD, expand=False)
    for mode in ANSWER_MODES:
        shown.add_column(text(_answer_heading(result, mode)), overflow="fold", ratio=1)
    shown.add_row(*(_format_answer(cells[mode]) for mode in ANSWER_MODES))
    return group(head, shown)


def _format_answer(answer: str | None) -> Any:
    return text("–") if answer is None else text(answer.strip() or "(an empty answer)")


def _answer_heading(result: dict[str, Any], mode: str) -> str:
    detail = result["details"][mode]
    if detail is None or detail["source"]["bank"] is None:
        return mode
    source = detail["source"]
    return f"{mode} (bank {source['bank']} v{source['version']}; {', '.join(source['anchors']) or 'no anchors'})"


def _build_answer_request(
    app: AppContext,
    answer: dict[str, Any],
    history_items: int | None,
    machine: tuple[int | None, str | None, str | None],
    task: str | None,
    mode: str | None,
    free_decoding: bool,
) -> ChatOptions:
    from mta_cli.pipeline.chat.answer import ChatOptions

    seed, device, dtype = machine
    return ChatOptions(
        machine=app.machine_options(seed=seed, device=device, dtype=dtype),
        prompt=app.settings.build_options(PromptOptions, history_items=history_items),
        answer=app.settings.build_options(AnswerOptions, **answer),
        memory=app.settings.build_options(MemoryOptions),
        task=task,
        mode=mode,
        free_decoding=free_decoding,
    )


def _resolve_base(app: AppContext, flag: str | None) -> ModelEntry:
    from mta_cli.pipeline.models.lookup import resolve_model

    return resolve_model(app.settings.build_options(ModelOptions, base=flag).base, "base")


def _read_message(given: str | None) -> str:
    """The words to ask: the argument, or all of standard input."""
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


def stdin_binary() -> BinaryIO:
    """Standard input as bytes; a closed one is empty, and one without bytes beneath it (in a notebook) is encoded."""
    if sys.stdin is None:
        return io.BytesIO()
    beneath: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    return beneath if beneath is not None else io.BytesIO(sys.stdin.read().encode())
