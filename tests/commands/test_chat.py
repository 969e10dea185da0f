"""`mta ask`, `compare` and `chat` from the command line: streams, pipes, every slash command, hostile text."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mta_cli.app import run_command_line as run_mta
from mta_cli.commands.chat_repl.repl import ChatShell, terminal_reader
from mta_cli.commands.chat_repl.slash_commands import SLASH_COMMANDS, complete_line, parse_slash_command
from mta_cli.engine.generation.answer_text import StreamingDetokenizer
from mta_cli.errors import UsageError
from mta_cli.pipeline.chat.answer import ChatModel
from mta_cli.pipeline.chat.conversation import Conversation
from mta_cli.terminal.output import Output
from mta_cli.text.printable import clean_text
from tests.pipeline.world import World, asking, contents, make_world

FAST = ("--max-tokens", "8", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def world(store_root: Path) -> Iterator[World]:
    made = make_world(store_root)
    yield made
    made.reg.close()


@dataclass
class Told:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def mta(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Runs a command line, with bytes on its standard input."""

    def call(*arguments: str, stdin: bytes = b"") -> Told:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = run_mta(arguments)
        captured = capsys.readouterr()
        return Told(code, captured.out, captured.err)

    return call


Mta = Callable[..., Told]


def test_ask_streams_to_stdout_and_says_the_source_on_stderr(world: World, mta: Mta) -> None:
    told = mta("ask", "--user", "alice", "hello there", *FAST)
    assert told.code == 0 and told.out.endswith("\n")
    assert "adapted · task free · bank tests v1 · anchors dave, erin" in told.err


def test_ask_json_is_one_document(world: World, mta: Mta) -> None:
    told = mta("ask", "--user", "alice", "hello there", "--json", *FAST)
    result = json.loads(told.out)
    assert {"user", "text", "tokens", "seconds", "source"} <= set(result)
    plain = mta("ask", "--user", "alice", "hello there", *FAST)
    assert plain.out.rstrip("\n") == clean_text(result["text"]).rstrip("\n")


@pytest.mark.parametrize("dash", [(), ("-",)])
def test_ask_reads_a_pipe(world: World, mta: Mta, dash: tuple[str, ...]) -> None:
    told = mta("ask", "--json", "--user", "alice", *dash, *FAST, stdin=b"hello there\n")
    direct = mta("ask", "--json", "--user", "alice", "hello there", *FAST)
    assert json.loads(told.out)["text"] == json.loads(direct.out)["text"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (("--user", "alice"), b"", 4, "empty"),
        (("--user", "alice"), b"\xff\xfe", 4, "not UTF-8"),
        (("--user", "alise", "hi"), b"", 3, "alice"),
        (("--user", "../x", "hi"), b"", 3, "../x"),
        (("--user", "carol", "--mode", "adapted", "hi"), b"", 3, "no stack"),
        (("--task", "lamp-2", "--mode", "common", "hi"), b"", 3, "no bank for task lamp-2"),
        (("--task", "lamp-99", "hi"), b"", 3, "lamp-99"),
        (("--base", "nothing", "hi"), b"", 3, "nothing"),
        (("--max-tokens", "0", "hi"), b"", 2, "max_tokens"),
        (("--temperature", "-1", "hi"), b"", 2, "temperature"),
        (("--min-p", "2", "hi"), b"", 2, "min_p"),
        (("--repetition-penalty", "0", "hi"), b"", 2, "repetition_penalty"),
        (("--stop", "", "hi"), b"", 2, "stops nothing"),
        (("--task", "lamp-2", "--system", "Be brief.", "hi"), b"", 2, "its own prompt"),
    ],
)
def test_what_cannot_be_asked(
    world: World, mta: Mta, arguments: tuple[str, ...], stdin: bytes, code: int, message: str
) -> None:
    told = mta("ask", *arguments, stdin=stdin)
    assert (told.code, told.out) == (code, "") and message in told.err and "Traceback" not in told.err


def test_a_base_that_is_gone_is_explained(world: World, mta: Mta, tmp_path: Path) -> None:
    told = mta("ask", "--base", str(tmp_path / "gone"), "hi")
    assert told.code == 3 and "gone" in told.err


def test_model_text_cannot_drive_the_terminal(world: World, mta: Mta, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "a\x1b]52;c;AAAA\x07\x9b31m\u202eb [red]c[/b]\n"
    monkeypatch.setattr(StreamingDetokenizer, "add_token", lambda self, token: hostile)
    for arguments in (("ask", "hi", "--user", "alice"), ("compare", "--user", "alice", "hi")):
        told = mta(*arguments, *FAST)
        assert told.code == 0 and "[red]c[/b]" in told.out
        assert not any(char in told.out + told.err for char in "\x1b\x07\x9b\u202e")
    told = mta("chat", "--user", "alice", *FAST, stdin=b"hi\n/history\n/history 1\n")
    assert not any(char in told.out + told.err for char in "\x1b\x07\x9b\u202e")


def test_compare_shows_four_answers_and_how_many_examples_all_saw(
    world: World, mta: Mta, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = json.loads(mta("compare", "--user", "alice", "hello", "--json", *FAST).out)
    assert list(result["answers"]) == ["base", "common", "fused", "adapted"] and result["user"] == "alice"
    wide = mta("compare", "--user", "alice", "hello", *FAST)
    (headings,) = [line for line in wide.out.splitlines() if "base+examples" in line]
    assert headings.index("base+examples") < headings.index("common") < headings.index("fused")
    assert headings.index("fused") < headings.index("adapted") and "Each prompt showed 3 own examples" in wide.out
    bare = mta("compare", "--user", "alice", "hello", "--history-items", "0", *FAST)
    assert "base+examples" not in bare.out and "No own examples" in bare.out
    monkeypatch.setattr("mta_cli.commands.chat_repl.comparison_table.MIN_SIDE_BY_SIDE_COLUMNS", 10_000)
    narrow = mta("compare", "--user", "alice", "hello", *FAST).out.splitlines()
    starts = [
        n for mode in ("base", "common", "fused", "adapted") for n, line in enumerate(narrow) if line.startswith(mode)
    ]
    assert starts == sorted(starts) and len(set(starts)) == 4


def test_the_user_is_named_by_position_or_flag(world: World, mta: Mta) -> None:
    for words, user in ((["alice", "hi"], "alice"), (["-u", "alice", "hi"], "alice"), (["hi"], None)):
        assert json.loads(mta("ask", *words, "--json", *FAST).out)["user"] == user
    assert json.loads(mta("ask", "alice", "-", "--json", *FAST, stdin=b"hi").out)["user"] == "alice"
    store = str(world.reg.root)
    assert f"`mta --store {store} ask alice TEXT`" in mta("--store", store, "ask", "alice", *FAST).err
    both = json.loads(mta("compare", "bob", "-u", "alice", "hi", "--json", *FAST).out)
    assert [each["user"] for each in both] == ["bob", "alice"]
    told = mta("compare", "-u", "bob", "-u", "alice", "hi", *FAST).out
    assert told.index("bob: hi") < told.index("alice: hi")
    assert mta("chat", "alice", *FAST, stdin=b"hello\n").err.count("alice · ") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ask", "-u", "alice", "bob", "hi"], "mta compare takes several"),
        (["ask", "alice", "how", "are", "you"], "put the text in quotes"),
        (["compare"], "needs a user"),
        (["chat", "alice", "--user", "bob"], "leave one of them out"),
    ],
)
def test_too_many_words_and_too_few(world: World, mta: Mta, words: list[str], said: str) -> None:
    told = mta(*words)
    assert (told.code, told.out) == (2, "") and said in told.err


@pytest.mark.parametrize("command", ["ask", "compare"])
def test_a_terminal_without_a_text_is_told_how_to_ask(
    world: World, mta: Mta, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.commands.chat.stdin_is_terminal", lambda: True)
    told = mta(command, "-u", "alice")
    assert told.code == 2 and f'mta {command} USER "TEXT"' in told.err


def test_compare_shows_a_dash_where_there_is_no_model(world: World, mta: Mta) -> None:
    told = mta("compare", "--user", "bob", "hello", *FAST)
    assert "–" in told.out and "no stack" in told.err


def test_chat_reads_lines_from_a_pipe(world: World, mta: Mta) -> None:
    told = mta("chat", "--user", "alice", *FAST, stdin=b"hello\n\nand again\n")
    assert told.code == 0 and told.err.count("tokens,") + told.err.count("token,") == 2
    (chat,) = world.reg.chats.of_user(world.alice.id)
    assert [m.content for m in world.reg.chats.messages(chat.id)][::2] == ["hello", "and again"]
    assert ">" not in told.out.split("\n")[0][:8]


def test_chat_no_save(world: World, mta: Mta) -> None:
    assert mta("chat", "--user", "alice", "--no-save", *FAST, stdin=b"hello\n").code == 0
    assert world.reg.chats.of_user(world.alice.id) == []


def test_every_slash_command_works_in_a_pipe(world: World, mta: Mta, tmp_path: Path) -> None:
    lines = [
        "/help",
        "hello",
        "/why",
        "/good",
        "/undo",
        "/good",
        "/system Be brief.",
        "/system",
        "/compare",
        "/compare what else?",
        "/base",
        "/common",
        "/fused",
        "/adapted",
        "/save",
        f"/save {tmp_path / 'chat.txt'}",
        "/history",
        "/history 1",
        "/reset",
        "/user bob",
        "/task free",
        "hello bob",
        "/task",
        "/quit",
        "never",
    ]
    for table in ("recipes", "stacks"):  # older than what is kept: /undo leaves them
        world.reg._db.execute_write(f"UPDATE {table} SET created = '2000'")
    told = mta("chat", "--user", "alice", *FAST, stdin="\n".join(lines).encode())
    assert told.code == 0 and "error" not in told.err
    assert {command.name for command in SLASH_COMMANDS} <= {line.split()[0] for line in lines}
    assert all(command.usage in told.out and command.help in told.out for command in SLASH_COMMANDS)
    assert "How the answer was chosen" in told.out and "adapted: the base model + " in told.out
    assert (tmp_path / "chat.txt").exists()
    assert ("hello", _answer(world)) in contents(world.reg.items.recent_items(world.alice.id, "free", None))
    bobs = [m.content for c in world.reg.chats.of_user(world.bob.id) for m in world.reg.chats.messages(c.id)]
    assert "hello bob" in bobs and "never" not in bobs
    assert "first words" in told.out and told.err.count("saved chat") == 2


def _answer(world: World) -> str:
    chat = world.reg.chats.of_user(world.alice.id)[0]
    return str(world.reg.chats.messages(chat.id)[1].content)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/frobnicate", "There is no command /frobnicate"),
        ("/hepl", "Did you mean /help?"),
        ("/user", "/user needs an argument: NAME"),
        ("/reset now", "/reset takes no argument"),
        ("/usr/bin", "is typed with //"),
    ],
)
def test_mistyped_commands_are_explained(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_slash_command(line)
    assert message in f"{caught.value.message} {caught.value.hint}"


def test_a_pipe_goes_on_after_a_mistake_and_reports_it(world: World, mta: Mta) -> None:
    told = mta("chat", "--user", "alice", *FAST, stdin=b"/nope\n\xff\n/user nobody\nhello\n")
    assert told.code == 2 and "There is no command /nope" in told.err and "not UTF-8" in told.err
    assert len(world.reg.chats.of_user(world.alice.id)) == 1


def test_two_slashes_begin_a_message(world: World, mta: Mta) -> None:
    mta("chat", "--user", "alice", *FAST, stdin=b"//usr/bin is what?\n")
    (chat,) = world.reg.chats.of_user(world.alice.id)
    assert world.reg.chats.messages(chat.id)[0].content == "/usr/bin is what?"


def test_a_line_beyond_the_limit_is_refused_whole(world: World, mta: Mta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.commands.chat_repl.repl.MAX_LINE_BYTES", 50)
    told = mta("chat", "--user", "alice", *FAST, stdin=b"x" * 500 + b"\nshort\n")
    assert told.code == 4 and "more than 50 bytes" in told.err
    (chat,) = world.reg.chats.of_user(world.alice.id)
    assert [m.content for m in world.reg.chats.messages(chat.id)][::2] == ["short"]


def test_completion_comes_from_the_table_and_the_store() -> None:
    def names() -> list[str]:
        return ["alice", "alice smith", "bob"]

    assert complete_line("/us", names) == ["/user "]
    assert complete_line("/user al", names) == ["/user alice", "/user alice smith"]
    assert [line.strip() for line in complete_line("/", names)] == [command.name for command in SLASH_COMMANDS]
    assert complete_line("hello", names) == []


def test_the_terminal_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    readline = pytest.importorskip("readline")
    monkeypatch.setattr("builtins.input", lambda prompt: f"typed after {prompt}")
    read = terminal_reader(lambda line: [line + "a", line + "b"])
    completer = readline.get_completer()
    assert [completer("/", state) for state in range(3)] == ["/a", "/b", None]
    assert read("> ") == "typed after > "


@pytest.fixture
def shell(world: World) -> ChatShell:
    return ChatShell(
        Output(), Conversation(ChatModel.load_for_user(world.reg, world.entry, world.alice, asking()), autosave=True)
    )


def typed(*lines: str | type[BaseException]) -> Callable[[str], str | None]:
    """A reader that types these lines and then Ctrl-D; an exception class is raised instead of typed."""
    waiting = list(lines)

    def read(prompt: str) -> str | None:
        assert prompt == "alice (adapted)> "
        if not waiting:
            return None
        line = waiting.pop(0)
        if isinstance(line, str):
            return line
        raise line

    return read


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    shell: ChatShell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speak = ChatModel.stream_answer

    def interrupted(self: ChatModel, ids: list[int], spoken: Any, column: str = "") -> Iterator[Any]:
        for event in speak(self, ids, spoken, column):
            yield event
            if len(shell.conversation.exchanges) == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(ChatModel, "stream_answer", interrupted)
    shell._run_terminal(typed("hello", "again"))
    assert [exchange.question for exchange in shell.conversation.exchanges] == ["hello", "again"]
    assert "stopped" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_asks_once(shell: ChatShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell._run_terminal(typed(KeyboardInterrupt, "/reset", KeyboardInterrupt, "/quit", "never"))
    assert "/quit ends the chat" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        shell._run_terminal(typed(KeyboardInterrupt, KeyboardInterrupt))


def test_errors_do_not_end_a_typed_chat(shell: ChatShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell._run_terminal(typed("/nope", "/user nobody", "hello"))
    assert len(shell.conversation.exchanges) == 1 and "/nope" in capsys.readouterr().err


def test_an_answer_ends_at_a_stop_text(world: World, mta: Mta) -> None:
    whole = json.loads(mta("ask", "--user", "alice", "hello there", "--json", *FAST).out)["text"]
    stop = whole[3:6]
    cut = json.loads(
        mta("ask", "--user", "alice", "hello there", "--stop", "never", "--stop", stop, "--json", *FAST).out
    )
    assert (cut["text"], cut["ended"]) == (whole[: whole.index(stop)], "stop")
    compared = json.loads(mta("compare", "--user", "alice", "hello there", "--stop", stop, "--json", *FAST).out)
    assert compared["answers"]["adapted"] == cut["text"] and compared["details"]["adapted"]["ended"] == "stop"


def test_the_last_conversation_is_gone_on_with(world: World, mta: Mta) -> None:
    told = mta("chat", "--user", "alice", "--continue", *FAST, stdin=b"hi\n")
    assert told.code == 3 and "alice has no stored conversation" in told.err
    mta("chat", "--user", "alice", *FAST, stdin=b"an older one\n")
    mta("chat", "--user", "alice", *FAST, stdin=b"the first question\n")
    told = mta("chat", "--user", "alice", "--continue", *FAST, stdin=b"the second question\n")
    assert told.code == 0 and "Continuing chat" in told.err
    newest, older = world.reg.chats.of_user(world.alice.id)
    asked = [message.content for message in world.reg.chats.messages(newest.id)][::2]
    assert asked == ["the first question", "the second question"] and older.title == "an older one"
    told = mta("chat", "--continue", *FAST)
    assert told.code == 2 and "needs a user" in told.err and "hint: name one: mta chat USER --continue" in told.err
    told = mta("chat", "--user", "alice", "--continue", "--no-save", *FAST)
    assert told.code == 2 and "hint: leave one of them out" in told.err
