"""Every option is a flag or a setting, every flag reaches its job, and a preset lies between flags and environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from mta_cli.app import app
from mta_cli.configuration.settings import OPTION_CLASSES, Setting, Settings, all_settings
from mta_cli.options import JOB_OPTIONS, PRESETS
from store.registry import Registry
from tests.commands.captured import JOBS, job_call
from tests.pipeline import town
from tests.shell import mta

WORDS: dict[str, list[str]] = {
    "bank build": ["--task", "lamp-2"],
    "user fuse": ["ida"],
    "user adapt": ["ida"],
    "user export": ["ida", "--to", "folder"],
    "ask": ["hello"],
    "compare": ["--user", "ida", "hello"],
    "chat": [],
    "eval run": ["--task", "lamp-2"],
    "eval tune": ["--task", "lamp-2"],
    "serve": [],
    "demo": [],
}
ANSWERING = ("answer", "memory", "prompt", "models", "machine")
SECTIONS: dict[str, tuple[str, ...]] = {
    "bank build": ("bank", "gates", "prompt", "models", "machine", "executor"),
    "user fuse": ("fuse", "prompt", "models", "machine", "executor"),
    "user adapt": ("adapt", "fuse", "memory", "prompt", "models", "machine", "executor"),
    "user export": ("models",),
    "ask": ANSWERING,
    "compare": ANSWERING,
    "chat": ANSWERING,
    "eval run": ("eval", "bank", "prompt", "models", "machine", "executor"),
    "eval tune": ("eval", "bank", "prompt", "models", "machine", "executor"),
    "serve": ("serve", *ANSWERING),
    "demo": ("machine",),
}
"""The sections whose options a command has flags for, the first that has a name before the others."""


@pytest.fixture(autouse=True)
def peopled(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the users of `town`, in which the name of a model replaces the model."""
    with Registry.open(store_root, create=True) as reg:
        town.people(reg)
    for where in ("mta_cli.pipeline.requests", "mta_cli.pipeline.models.installed"):
        monkeypatch.setattr(f"{where}.resolve_model", lambda name, kind: (name, kind))
    monkeypatch.setattr("mta_cli.engine.model.load.QUANTIZE_PACKAGES", ())  # a flag of an extra that may be missing
    return store_root


def option_flags(command: str) -> dict[str, Setting]:
    """The settings that a command has flags for, by the parameter's name."""
    found: Any = get_command(app)
    for word in command.split():
        found = found.get_command(None, word)
    flags = {}
    for parameter in found.params:
        keys = [f"{section}.{parameter.name}" for section in SECTIONS[command]]
        if key := next((key for key in keys if key in all_settings()), None):
            assert parameter.help == all_settings()[key].help
            flags[parameter.name] = all_settings()[key]
    return flags


def other_value(setting: Setting) -> list[str]:
    """The flag with a value that is allowed and not the default."""
    if setting.kind is bool:
        return [setting.flag if not setting.default else f"--no-{setting.flag[2:]}"]
    if setting.choices:
        return [setting.flag, next(choice for choice in setting.choices if choice != setting.default)]
    if setting.kind is str:
        return [
            setting.flag,
            {"device": "cpu", "host": "127.0.0.2", "max_memory": "6GB"}.get(setting.key.partition(".")[2], "base"),
        ]
    assert setting.minimum is not None and setting.maximum is not None
    return [setting.flag, str(setting.kind(setting.minimum if setting.default != setting.minimum else setting.maximum))]


@pytest.mark.parametrize("command", JOBS)
def test_every_flag_reaches_the_job_and_its_plan(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(*more: str) -> tuple[Any, dict[str, str]]:
        arguments, rest = job_call(monkeypatch, command, *WORDS[command], *more)
        plan = {line.name: line.origin for line in rest.pop("plan", ())}
        return (arguments, rest), plan

    flags = option_flags(command)
    assert flags
    for name, setting in flags.items():
        asked, plan = given(*other_value(setting))
        assert asked != given()[0], name
        if plan and not setting.key.startswith("models."):
            assert plan[setting.key] in (f"flag {setting.flag}", f"flag --no-{setting.flag[2:]}")


def test_every_option_is_a_flag_or_says_that_it_is_a_setting() -> None:
    flags = {setting.key for command in JOBS for setting in option_flags(command).values()}
    settings_only = {
        f"{cls.section}.{spec.name}" for cls in JOB_OPTIONS for spec in fields(cls) if spec.metadata["settings_only"]
    }
    assert flags.isdisjoint(settings_only)
    assert flags | settings_only == {f"{cls.section}.{spec.name}" for cls in JOB_OPTIONS for spec in fields(cls)}


def test_memory_is_a_flag_wherever_labels_are_weighed() -> None:
    with_memory = {command for command in JOBS if "memory" in option_flags(command)}
    assert with_memory == {"user adapt", "ask", "compare", "chat", "eval run", "eval tune", "serve"}


def plans(monkeypatch: pytest.MonkeyPatch, *more: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """The plans of the commands that know presets, by setting: value and origin."""
    for command in ("bank build", "user fuse", "user adapt"):
        _, rest = job_call(monkeypatch, command, *WORDS[command], *more)
        yield command, {line.name: (line.value, line.origin) for line in rest["plan"]}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_stands_above_the_environment_and_below_flags(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_PROMPT_HISTORY_ITEMS", "7")
    monkeypatch.setenv("MTA_MEMORY_MEMORY", "habit")
    seen: set[str] = set()
    for _, plan in plans(monkeypatch, "--preset", preset):
        of_preset = {key for key, (_, origin) in plan.items() if origin == f"preset {preset}"}
        assert of_preset == set(plan) & set(PRESETS[preset])
        seen |= of_preset
    assert seen == set(PRESETS[preset])
    for _, plan in plans(monkeypatch, "--preset", preset, "--history-items", "9"):
        assert plan["prompt.history_items"] == ("9", "flag --history-items")
    for _, plan in plans(monkeypatch):
        assert plan["prompt.history_items"] == ("7", "environment MTA_PROMPT_HISTORY_ITEMS")


def test_the_published_choices_reach_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank,), _ = job_call(monkeypatch, "bank build", *WORDS["bank build"], "--preset", "published")
    assert not bank.options.task_adapter and bank.options.placement == "all"
    (asked,), _ = job_call(monkeypatch, "user adapt", *WORDS["user adapt"], "--preset", "published")
    fuse, stack = asked.fuse, asked.options
    assert (fuse.options.weights, fuse.options.top_k, fuse.memory.memory) == ("similarity", 2, "off")
    assert (stack.rank, stack.alpha, stack.targets) == (4, 8.0, "all-linear")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_settings_and_values_that_are_there(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE", "EMBEDDER"):
        monkeypatch.delenv(f"MTA_MODELS_{name}")
    assert set(PRESETS[preset]) <= set(all_settings())
    built = Settings.load(None, preset).build_option_set(OPTION_CLASSES, {})
    for cls in JOB_OPTIONS:
        for spec in fields(cls):
            key = f"{cls.section}.{spec.name}"
            assert getattr(built[cls], spec.name) == PRESETS[preset].get(key, spec.default)


@pytest.mark.parametrize("command", ["bank build", "user fuse", "user adapt"])
def test_an_unknown_preset_is_refused_with_those_that_there_are(command: str) -> None:
    ran = mta(*command.split(), *WORDS[command], "--preset", "unpublished")
    assert ran.code == 2 and "'unpublished'" in ran.err and all(name in ran.err for name in PRESETS)


def test_a_refreshed_bank_keeps_its_options() -> None:
    ran = mta("bank", "build", "--task", "lamp-2", "--refresh", "--preset", "published", "--rank", "2", "--seed", "1")
    assert ran.code == 2 and "--rank, --seed, --preset cannot be given too" in ran.err


def test_all_bad_values_of_all_classes_are_listed_at_once() -> None:
    ran = mta("bank", "build", "--task", "lamp-2", "--rank", "0", "--max-share", "2", "--history-items", "99")
    assert ran.code == 2 and "3 settings cannot be used" in ran.err
    assert all(key in ran.err for key in ("bank.rank = 0", "gates.max_share = 2", "prompt.history_items = 99"))
