"""The one place where errors become messages and exit codes, the flags before a command, and shell completion."""

from __future__ import annotations

import inspect
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from mta_cli import __version__
from mta_cli.app import run_command_line
from mta_cli.commands.shared import arguments
from mta_cli.commands.shared.context import AppContext, GlobalFlags, confirm
from mta_cli.commands.shared.option_flags import Flags, options
from mta_cli.errors import BadInput, IntegrityFault, Interrupted, MtaError, NotFound, StoreBusy, UsageError
from mta_cli.options import BankOptions, FuseOptions
from mta_cli.terminal.output import Output
from tests.shell import mta

ROOT = Path(__file__).parent.parent


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Lets `mta init` raise what it is given."""

    def fail_with(error: BaseException) -> None:
        def registry(self: AppContext, *, create: bool = False) -> Any:
            raise error

        monkeypatch.setattr(AppContext, "open_registry", registry)

    return fail_with


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MtaError("m"), 1),
        (UsageError("m"), 2),
        (NotFound("m"), 3),
        (BadInput("m"), 4),
        (IntegrityFault("m"), 5),
        (StoreBusy("m"), 1),
        (Interrupted("m"), 130),
        (KeyboardInterrupt(), 130),
        (EOFError(), 1),
        (RuntimeError("m"), 1),
        (OSError(28, "No space left on device"), 1),
        (RecursionError("m"), 1),
        (MemoryError(), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_failure_has_its_exit_code(
    error: BaseException, code: int, failing: Callable[[BaseException], None]
) -> None:
    failing(error)
    ran = mta("init")
    assert ran.code == code
    assert ran.err and "Traceback" not in ran.err
    assert ran.out == ""


def test_a_traceback_only_when_asked(failing: Callable[[BaseException], None]) -> None:
    failing(RuntimeError("boom"))
    assert mta("init").err.startswith("unexpected: RuntimeError: boom\nhint:")
    assert "Traceback" not in mta("-v", "init").err
    assert "Traceback" in mta("-vv", "init").err


def test_errors_leave_standard_output_empty_with_json(failing: Callable[[BaseException], None]) -> None:
    failing(BadInput("bad", hint="mend it", faults=("a", "b")))
    ran = mta("init", "--json")
    assert (ran.out, ran.err) == ("", "error: bad\n  a\n  b\nhint: mend it\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["init", "--nonsense"], ["user", "show"], ["user", "\x1b[2J\x00"]])
def test_usage_errors_are_two_lines_and_exit_2(arguments: list[str]) -> None:
    ran = mta(*arguments)
    assert ran.code == 2
    assert ran.err.startswith("error: ") and "--help" in ran.err and "\x1b" not in ran.err
    assert ran.out == ""


def test_a_wrong_choice_is_told_in_plain_words() -> None:
    told = mta("user", "export", "alice", "--to", "x", "--format", "guff").err
    assert told.startswith("error: Invalid value for '--format': 'guff' is not one of 'peft', ")


def test_help_alone_and_asked_for() -> None:
    for line in ([], ["user"]):
        ran = mta(*line)
        assert (ran.code, ran.out) == (2, "") and "Usage: mta" in ran.err
    ran = mta("--help")
    assert (ran.code, ran.err) == (0, "") and "Usage: mta" in ran.out
    assert mta("-h").out == ran.out


def test_commands_are_listed_in_reading_order() -> None:
    listed = mta("--help").out.split("Commands:")[1].split("\n")
    names = [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "]
    assert names == [
        "init",
        "model",
        "task",
        "data",
        "user",
        "bank",
        "ask",
        "compare",
        "chat",
        "eval",
        "serve",
        "ps",
        "tui",
        "quick",
        "demo",
        "config",
        "doctor",
        "backup",
        "restore",
        "snapshot",
        "pull",
        "help",
    ]


def test_version() -> None:
    assert mta("--version").out == f"mta {__version__}\n"


def test_global_flags_are_taken_anywhere(tmp_path: Path, failing: Callable[[BaseException], None]) -> None:
    store = tmp_path / "s"
    assert mta("init", "--json", "--store", store).json() == {"store": str(store), "created": True}
    for words in (["user", "list", "--store", store], ["user", "--store", store, "list"]):
        assert mta(*words, "--json").json() == []
    assert mta("init", "--store", tmp_path / "q", "-q").err == ""
    failing(RuntimeError("boom"))
    assert "Traceback" in mta("init", "-vv").err and "Traceback" in mta("-v", "init", "-v").err
    assert mta("init", "--store", "").code == 2


def test_a_late_store_is_completed_from(tmp_path: Path) -> None:
    store = tmp_path / "s"
    with AppContext(GlobalFlags(store=store)).open_registry(create=True) as registry:
        registry.users.add("alice")
    assert completions(f"mta user show --store {store} al") == ["alice"]


def completions(line: str) -> list[str]:
    """What bash offers at the end of a line."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1 + line.endswith(" "))}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "_MTA_COMPLETE": "complete_bash", **words}
    ran = subprocess.run([sys.executable, "-m", "mta_cli"], env=env, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    return ran.stdout.splitlines()


def test_completions_are_written_as_the_shell_reads_them(tmp_path: Path) -> None:
    with AppContext(GlobalFlags(store=tmp_path / "s")).open_registry(create=True) as registry:
        registry.users.add("Anna Berg")
        registry.users.add("Chiara")
        registry.users.add("Ødegård")
    start = f"mta --store {tmp_path / 's'} user show"
    assert completions(f"{start} an") == ["Anna\\ Berg"]
    assert completions(f'{start} "An') == ["Anna Berg"]
    assert completions(f"{start} ch") == ["Chiara"]
    assert completions(f"{start} ø") == ["Ødegård"]


def test_methods_complete_after_a_comma() -> None:
    assert "mta,majority" in completions("mta eval run --methods mta,maj")


def test_a_script_for_the_shell_that_is_named() -> None:
    assert mta("--show-completion", "fish").out.startswith("complete --command mta")
    assert mta("--show-completion", "zsh").out.startswith("#compdef mta")
    ran = mta("--show-completion", "tcsh")
    assert ran.code == 2 and "bash, zsh, fish" in ran.err


def test_a_hint_names_the_store_that_was_given(tmp_path: Path) -> None:
    store = tmp_path / "a store"
    mta("--store", store, "init")
    assert f"hint: mta --store '{store}' task list shows all" in mta("--store", store, "user", "list", "-t", "zzz").err


def test_global_flags_reach_the_command(tmp_path: Path) -> None:
    ran = mta("--store", tmp_path / "s", "init", "--json")
    assert ran.json() == {"store": str(tmp_path / "s"), "created": True}
    assert mta("--store", tmp_path / "s", "init", "--json").json()["created"] is False


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    ran = mta("--store", tmp_path / "none", "user", "list")
    assert ran.code == 3 and f"hint: mta --store {tmp_path / 'none'} init" in ran.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("answer", ["y\n", "YES\n", " y \n"])
def test_yes_goes_on(answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    confirm(Output(), "Remove it?", yes=False)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Remove it? [y/N] \n")


@pytest.mark.parametrize("answer", ["n\n", "\n", "yess\n", "да\n"])
def test_anything_else_changes_nothing(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    with pytest.raises(MtaError, match="nothing was changed"):
        confirm(Output(), "Remove it?", yes=False)


def test_nobody_to_answer_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(UsageError) as raised:
        confirm(Output(), "Remove it?", yes=False)
    assert raised.value.hint == "add --yes to agree"
    confirm(Output(), "Remove it?", yes=True)


def test_an_option_takes_its_words_from_the_options() -> None:
    @options(BankOptions, FuseOptions)
    def command(*, flags: Flags) -> None: ...

    found = {name: p.annotation.__metadata__[0] for name, p in inspect.signature(command).parameters.items()}
    pick = found["pick"]
    assert (pick.help, pick.metavar, pick.show_default) == (
        "Which user of a cluster becomes its anchor: the one with the longest history, or the medoid.",
        "longest|medoid",
        "longest",
    )
    assert pick.autocompletion() == ["longest", "medoid"]
    assert found["weights"].show_default is False


def test_an_option_is_a_flag_and_its_negation_where_it_is_yes_or_no() -> None:
    probe = typer.Typer()
    seen: list[object] = []

    @probe.command()
    @options(BankOptions, FuseOptions)
    def command(*, flags: Flags) -> None:
        seen.append((flags.values["task_adapter"], flags.values["top_k"]))

    for line in ([], ["--no-task-adapter"], ["--task-adapter", "--top-k", "3"]):
        typer.main.get_command(probe).main(line, standalone_mode=False)
    assert seen == [(None, None), (False, None), (True, 3)]


def _context(store: Path | None) -> Any:
    return SimpleNamespace(find_root=lambda: SimpleNamespace(params={"store": store}))


def test_names_complete(tmp_path: Path) -> None:
    store = tmp_path / "s"
    with AppContext(GlobalFlags(store=store)).open_registry(create=True) as registry:
        for name in ("alice", "alfred", "bob", "Ødegård"):
            registry.users.add(name)
        registry.tasks.save_task("mine", "")
    assert sorted(arguments.complete_users(_context(store))) == ["alfred", "alice", "bob", "Ødegård"]
    assert {"mine", "lamp-2", "free"} <= set(arguments.complete_tasks(_context(store)))
    assert arguments.complete_banks(_context(store)) == []
    assert "smollm2-135m-instruct" in arguments.complete_models(_context(store))


def test_completion_never_complains(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"not a database" * 100)
    for complete in (arguments.complete_users, arguments.complete_banks):
        assert complete(_context(tmp_path)) == []
        assert complete(_context(tmp_path / "none")) == []
        assert complete(SimpleNamespace()) == []  # type: ignore[arg-type]
    assert "free" in arguments.complete_tasks(_context(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_ask_for_names(shell: str, tmp_path: Path) -> None:
    store = tmp_path / "s"
    with AppContext(GlobalFlags(store=store)).open_registry(create=True) as registry:
        registry.users.add("alice")
    words = f"mta --store {store} user show al"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "_MTA_COMPLETE": f"complete_{shell}", "COMP_WORDS": words}
    env |= {"COMP_CWORD": "5", "_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    ran = subprocess.run([sys.executable, "-m", "mta_cli"], env=env, capture_output=True, text=True, check=False)
    assert "alice" in ran.stdout and ran.stderr == ""


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mta_cli --help | true; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("0\n", "")


def test_an_empty_store_flag_is_no_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--store", "", "user", "list"]) == 2
    assert "--store is empty" in capsys.readouterr().err


def test_a_closed_stream_takes_all() -> None:
    for shut in (">&-", "2>&-", ">&- 2>&-"):
        ran = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m mta_cli --version {shut}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0 and ran.stderr == "", shut


def test_a_question_without_standard_input_is_a_usage_error(tmp_path: Path) -> None:
    with AppContext(GlobalFlags(store=tmp_path / "s")).open_registry(create=True) as registry:
        registry.users.add("alice")
    ran = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m mta_cli --store {tmp_path / 's'} user rm alice <&-"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2 and "add --yes" in ran.stderr


def test_a_reader_of_notes_that_has_gone_costs_no_result_and_no_exit_code(tmp_path: Path) -> None:
    store = f"{sys.executable} -m mta_cli --store {tmp_path / 's'}"
    script = f"exec 2> >(true); sleep 0.2; {store} init; {store} user add alice --yes; {store} user show bob; echo $?"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["bash", "-c", script], env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert re.search(r"added +yes", ran.stdout) and ran.stdout.endswith("\n3\n")


def test_ctrl_c_before_a_job_is_one_line(tmp_path: Path) -> None:
    code = (
        "import os, signal; from mta_cli import app; from mta_cli.commands.shared.context import AppContext\n"
        "def open_registry(self, create=False): os.kill(os.getpid(), signal.SIGINT)\n"
        'setattr(AppContext, "open_registry", open_registry)\n'
        "import sys; sys.argv = ['mta', 'init']; app.main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "error: interrupted\n"), signal.SIGINT


def test_a_terminal_without_unicode_still_gets_its_answer(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "MTA_STORE": str(tmp_path / "sé")}
    arguments = [sys.executable, "-m", "mta_cli", "init"]
    ran = subprocess.run(arguments, env=env, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert b"s\\xe9" in ran.stdout


def test_run_returns_the_code_of_an_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def registry(self: AppContext, *, create: bool = False) -> Any:
        raise typer.Exit(5)

    monkeypatch.setattr(AppContext, "open_registry", registry)
    assert run_command_line(["init"]) == 5


def test_ctrl_c_while_mta_still_loads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mta_cli import __main__, app

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "main", interrupted)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "")
