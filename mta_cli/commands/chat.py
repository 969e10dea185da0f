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
    complete_models,
    complete_users,
    option,
    session,
    stdin_is_terminal,
)
from mta_cli.errors import BadInput, UsageFault
from mta_cli.events import Event, Started, Step, Token
from mta_cli.options import AnswerOptions, PromptOptions
from mta_cli.output import Output, group, text
from mta_cli.settings import ModelOptions

if TYPE_CHECKING:
    from mta_cli.pipeline.chat.answer import Asking
    from mta_cli.pipeline.models.lookup import ModelEntry

MODES = ("base", "fused", "adapted")
SIDE_BY_SIDE = 90  # columns of terminal below which answers stand under each other
STDIN_LIMIT = 4_000_000  # bytes; more is refused as a message anyway


def _complete_mode(incomplete: str) -> list[str]:
    return [mode for mode in MODES if mode.startswith(incomplete)]


TextArgument = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="What to ask; read from standard input without it, or for -.")
]
AskedUserOption = Annotated[
    str, typer.Option("--user", metavar="USER", help="The user.", autocompletion=complete_users)
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="|".join(MODES),
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
MaxTokensOption = Annotated[int | None, option(AnswerOptions, "max_tokens")]
TemperatureOption = Annotated[float | None, option(AnswerOptions, "temperature")]
TopPOption = Annotated[float | None, option(AnswerOptions, "top_p")]
Int8Option = Annotated[bool | None, option(AnswerOptions, "int8")]


def ask(
    ctx: typer.Context,
    message: TextArgument = None,
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

    app = session(ctx, json=json)
    answer = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "int8": int8}
    asking = _asking(app, answer, history_items, (seed, device, dtype), task, mode, free_decoding)
    words = _message(message)
    with app.registry() as reg:
        result = app.output.follow(converse.ask(reg, _base(app, base), user, words, asking))
    if json:
        app.output.result(result)


def compare(
    ctx: typer.Context,
    user: AskedUserOption,
    message: TextArgument = None,
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

    app = session(ctx, json=json)
    answer = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "int8": int8}
    asking = _asking(app, answer, history_items, (seed, device, dtype), task, None, free_decoding)
    words = _message(message)
    with app.registry() as reg:
        events = compare.compare(reg, _base(app, base), user, words, asking)
        result = app.output.follow(counted(events))
    app.output.result(result, lambda value: side_by_side(value, app.output))


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
    from mta_cli.pipeline.chat.answer import Voice
    from mta_cli.pipeline.chat.conversation import Conversation

    app = session(ctx)
    answer = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "int8": int8}
    asking = _asking(app, answer, history_items, (seed, device, dtype), task, mode, free_decoding)
    with app.registry() as reg:
        person = reg.users.get(user) if user is not None else None
        voice = Voice.open(reg, _base(app, base), person, asking)
        code = ChatShell(app.output, Conversation(voice, keep=not no_save)).run(interactive=stdin_is_terminal())
    if code:
        raise typer.Exit(code)


def counted(events: Iterator[Event]) -> Iterator[Event]:
    """The same events with streamed text turned into progress, for answers that are shown together at the end."""
    yield Started("answering", unit="tokens")
    done = 0
    for event in events:
        if isinstance(event, Token):
            done += 1
            yield Step(event.column, done)
        else:
            yield event


def side_by_side(result: dict[str, Any], output: Output) -> Any:
    """The answers of a comparison: columns of a table, or one under the other where the terminal is narrow."""
    from rich import box
    from rich.table import Table

    head = text(str(result["prompt"]), style="bold")
    cells = {mode: result["answers"][mode] for mode in MODES}
    if output.console(stderr=False).width < SIDE_BY_SIDE:
        parts = [
            part
            for mode in MODES
            for part in (text(_heading(result, mode), style="bold"), _cell(cells[mode]), text(""))
        ]
        return group(head, text(""), *parts)
    shown = Table(box=box.SIMPLE_HEAD, expand=False)
    for mode in MODES:
        shown.add_column(text(_heading(result, mode)), overflow="fold", ratio=1)
    shown.add_row(*(_cell(cells[mode]) for mode in MODES))
    return group(head, shown)


def _cell(answer: str | None) -> Any:
    return text("–") if answer is None else text(answer.strip() or "(an empty answer)")


def _heading(result: dict[str, Any], mode: str) -> str:
    detail = result["details"][mode]
    if detail is None or detail["source"]["bank"] is None:
        return mode
    source = detail["source"]
    return f"{mode} (bank {source['bank']} v{source['version']}; {', '.join(source['anchors']) or 'no anchors'})"


def _asking(
    app: AppContext,
    answer: dict[str, Any],
    history_items: int | None,
    machine: tuple[int | None, str | None, str | None],
    task: str | None,
    mode: str | None,
    free_decoding: bool,
) -> Asking:
    from mta_cli.pipeline.chat.answer import Asking

    seed, device, dtype = machine
    return Asking(
        machine=app.machine(seed=seed, device=device, dtype=dtype),
        prompt=app.settings.build(PromptOptions, history_items=history_items),
        answer=app.settings.build(AnswerOptions, **answer),
        task=task,
        mode=mode,
        free_decoding=free_decoding,
    )


def _base(app: AppContext, flag: str | None) -> ModelEntry:
    from mta_cli.pipeline.models.lookup import resolve

    return resolve(app.settings.build(ModelOptions, base=flag).base, "base")


def _message(given: str | None) -> str:
    """The words to ask: the argument, or all of standard input."""
    if given is not None and given != "-":
        return given
    if stdin_is_terminal():
        raise UsageFault("There is nothing to ask.", hint='mta ask --user NAME "…", or pipe the text in')
    raw = binary_input().read(STDIN_LIMIT + 1)
    if len(raw) > STDIN_LIMIT:
        raise BadInput(f"Standard input holds more than {STDIN_LIMIT:,} bytes.")
    try:
        return raw.decode().rstrip("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"Standard input is not UTF-8 (byte {error.start}).") from error


def binary_input() -> BinaryIO:
    """Standard input as bytes; a closed one is empty, and one without bytes beneath it (in a notebook) is encoded."""
    if sys.stdin is None:
        return io.BytesIO()
    beneath: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    return beneath if beneath is not None else io.BytesIO(sys.stdin.read().encode())
