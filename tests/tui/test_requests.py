"""A job's request is the same whether flags, settings, a form or a stored run say what is asked."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.configuration.settings import Settings
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.lab.evaluation.design import evaluation_config
from mta_cli.options import MachineOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.models.installed import record_models
from mta_cli.pipeline.requests import (
    AdaptRequest,
    adapt_request_json,
    eval_request_json,
    restore_adapt_request,
    restore_bank_request,
    restore_eval_request,
)
from mta_cli.tui.dialogs.job_forms import JOB_FORMS
from mta_cli.tui.dialogs.job_request import FormContext
from mta_cli.tui.workers.chat_turn import question_options_from_settings
from store.registry import Registry
from tests.commands.captured import Call, Captured, capture, job_call

HERE = MachineOptions(device="cpu", dtype="bfloat16", seed=7)  # all but the device must come from the stored run
NAMED: dict[str, tuple[list[str], dict[str, str]]] = {
    "bank build": (["--task", "lamp-2", "--name", "mine"], {"task": "lamp-2", "name": "mine"}),
    "user adapt": (["ida", "kim"], {"users": "ida, kim"}),
    "eval run": (["--task", "lamp-2"], {"task": "lamp-2"}),
}
"""What a job is about, as words of the command line and as fields of a form."""
OPTIONS = {
    "bank build": {"bank.rank": "3", "bank.task_adapter": "no", "bank.anchors": "2", "prompt.history_items": "1"},
    "user adapt": {"adapt.alpha": "3.5", "fuse.top_k": "2", "memory.memory": "habit"},
    "eval run": {"eval.methods": "base,mta", "eval.memory": "off", "bank.epochs": "5", "eval.calibrate": "no"},
}


def as_flags(options: dict[str, str]) -> list[str]:
    words = []
    for key, value in {**options, "machine.seed": "3", "machine.dtype": "float32"}.items():
        flag = key.partition(".")[2].replace("_", "-")
        words += [f"--no-{flag}"] if value == "no" else [f"--{flag}", value]
    return words


def request_of(call: Call) -> Any:
    """The request in what a job is given."""
    (asked,), _ = call
    if isinstance(asked, AdaptRequest):  # of the number of anchors, a flag asks for more than a setting does
        return replace(asked, explicit_top_k=True)
    return asked


@pytest.mark.parametrize("command", NAMED)
def test_flags_settings_and_forms_make_one_request(
    command: str, demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (words, named), options = NAMED[command], OPTIONS[command]
    by_flags = request_of(job_call(monkeypatch, command, *words, *as_flags(options)))

    known, start = FormContext(Settings.load(demo_store), demo_store, tuple(BUILTIN_TASKS)), JOB_FORMS[command]
    filled = {field.name: field.initial_value for field in start.make_fields(known)}
    values = {key.partition(".")[2]: value for key, value in options.items()}
    assert {*named, *values} <= set(filled)
    order = start.make_request(known, {**filled, **named, **values, "seed": "3", "dtype": "float32"})
    calls = capture(monkeypatch, command)
    with Registry.open(demo_store) as reg, pytest.raises(Captured):
        list(order.make_events(reg, False))
    assert request_of(calls[0]) == by_flags

    for key, value in {**options, "machine.seed": "3", "machine.dtype": "float32"}.items():
        monkeypatch.setenv("MTA_" + key.upper().replace(".", "_"), value)
    assert request_of(job_call(monkeypatch, command, *words)) == by_flags


def test_a_stored_adaptation_is_asked_again_in_full(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request_of(job_call(monkeypatch, "user adapt", "ida", "kim", *as_flags(OPTIONS["user adapt"])))
    with Registry.open(demo_store) as reg:
        record_models(reg, asked.fuse.base)
        run = reg.runs.start_run("adaptation", {}, asked_users=[user.id for user in asked.users or ()])
        assert restore_adapt_request(reg, run.id, adapt_request_json(asked), HERE) == asked


def test_a_stored_evaluation_is_asked_again_in_full(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*NAMED["eval run"][0], "--set", "mta.steps=4", *as_flags(OPTIONS["eval run"])]
    asked = request_of(job_call(monkeypatch, "eval run", *words))
    with Registry.open(demo_store) as reg:
        begun = reg.evaluations.get_or_create_evaluation("key", asked.task.name, evaluation_config(asked), [])
        restored = restore_eval_request(reg, begun, eval_request_json(asked), HERE)
    assert asdict(restored.bank) == asdict(asked.plan_options[1]) and restored.plan_options == asked.plan_options
    assert (restored.task, restored.base, restored.embedder) == (asked.task, asked.base, asked.embedder)
    assert restored.method_settings == asked.method_settings == {"mta": {"steps": "4"}}


def test_a_stored_bank_is_asked_for_again_in_full(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--min-items", "5", "--max-share", "0.5"]
    words = [*NAMED["bank build"][0], *more, *as_flags(OPTIONS["bank build"])]
    with monkeypatch.context() as patch:
        asked = request_of(job_call(patch, "bank build", *words))

    def stop(*arguments: Any) -> None:
        raise Captured("the bank is begun")

    monkeypatch.setattr("mta_cli.pipeline.bank.build.update_neighbours", stop)
    with Registry.open(demo_store) as reg:
        with contextlib.suppress(Captured):
            list(build_bank(reg, asked))
        bank = next(bank for bank in reg.banks.all() if bank.name == "mine")
        assert restore_bank_request(reg, bank, HERE) == asked


def test_the_window_asks_as_the_command_does(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--max-tokens", "9", "--memory", "off", "--history-items", "1", "--seed", "2"]
    arguments, _ = job_call(monkeypatch, "ask", "hello", "--task", "lamp-2", "--mode", "base", *flags)
    for key, value in {"ANSWER_MAX_TOKENS": "9", "MEMORY_MEMORY": "off", "PROMPT_HISTORY_ITEMS": "1"}.items():
        monkeypatch.setenv(f"MTA_{key}", value)
    monkeypatch.setenv("MTA_MACHINE_SEED", "2")
    assert question_options_from_settings(Settings.load(demo_store), "lamp-2", "base") == arguments[-1]
