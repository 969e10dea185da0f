"""Each value comes from the last of defaults, files, environment and flags that gives it, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mta_cli.configuration.settings import Setting, Settings, StoreOptions, all_settings, convert_value, store_path
from mta_cli.errors import BadInput, MtaError, NotFound, UsageError
from mta_cli.events import PlanLine
from mta_cli.options import AdaptOptions, BankOptions, FuseOptions, MachineOptions, ModelOptions

KNOWN = all_settings()


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "person.toml"
    path.touch()
    monkeypatch.setenv("MTA_CONFIG", str(path))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def test_without_anything_all_is_default() -> None:
    settings = Settings.load(None)
    assert settings.build_options(BankOptions) == BankOptions()
    assert set(settings.origins.values()) == {"default"}
    assert settings.build_options(ModelOptions).base == "smollm2-135m-instruct"


def test_each_layer_overrides_the_one_before(person: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    person.write_text("[bank]\nrank = 2\nalpha = 3\nepochs = 4\nanchors = 5\n")
    (store / "mta.toml").write_text("[bank]\nalpha = 6.5\nepochs = 7\nanchors = 8\n")
    monkeypatch.setenv("MTA_BANK_EPOCHS", "9")
    monkeypatch.setenv("MTA_BANK_ANCHORS", "10")
    settings = Settings.load(store)
    bank = settings.build_options(BankOptions, anchors=11, seed=None)
    assert (bank.rank, bank.alpha, bank.epochs, bank.anchors, bank.pick) == (2, 6.5, 9, 11, "longest")
    origins = [settings.origins[f"bank.{name}"] for name in ("rank", "alpha", "epochs", "anchors", "pick")]
    files = [f"file {person}", f"file {store / 'mta.toml'}"]
    assert origins == [*files, "environment MTA_BANK_EPOCHS", "flag --anchors", "default"]


def test_a_flag_of_one_command_does_not_stay(store: Path) -> None:
    settings = Settings.load(store)
    assert settings.build_options(BankOptions, rank=3).rank == 3
    assert settings.build_options(BankOptions).rank == BankOptions().rank
    assert settings.origins["bank.rank"] == "default"


def test_a_plan_says_where_each_value_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_MACHINE_SEED", "7")
    settings = Settings.load(None)
    machine = settings.build_options(MachineOptions, device="cpu")
    lines = settings.plan_lines(machine, settings.build_options(FuseOptions))
    for line in (
        PlanLine("machine.device", "cpu", "flag --device"),
        PlanLine("machine.dtype", "auto", "default"),
        PlanLine("machine.seed", "7", "environment MTA_MACHINE_SEED"),
        PlanLine("machine.verify", "true", "default"),
        PlanLine("fuse.weights", "not set", "default"),
    ):
        assert line in lines


@pytest.mark.parametrize(("word", "value"), [("1", True), ("yes", True), ("ON", True), ("false", False), ("0", False)])
def test_the_environment_can_say_yes_and_no(word: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_BANK_TASK_ADAPTER", word)
    assert Settings.load(None).build_options(BankOptions).task_adapter is value


def test_a_negative_flag_is_named_as_it_was_typed() -> None:
    settings = Settings.load(None)
    assert settings.build_options(BankOptions, task_adapter=False).task_adapter is False
    assert settings.origins["bank.task_adapter"] == "flag --no-task-adapter"


def test_all_faults_are_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_ADAPT_RANK", "99")
    with pytest.raises(UsageError) as raised:
        Settings.load(None).build_options(AdaptOptions, shots=0, placement="lower")
    message = raised.value.message
    assert "3 settings" in message
    assert "adapt.shots = 0 (flag --shots): the least is 1" in message
    assert "adapt.rank = 99 (environment MTA_ADAPT_RANK): the most is 64" in message
    assert "adapt.placement = lower (flag --placement): choose one of all, upper" in message


def test_all_wrong_types_are_listed_at_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "mta.toml").write_text("[bank]\nrank = 'many'\ntask_adapter = 3\npick = 1\nalpha = true\nepochs = 1.5\n")
    monkeypatch.setenv("MTA_BANK_ANCHORS", "\x1b[2J")
    with pytest.raises(UsageError) as raised:
        Settings.load(store).build_options(BankOptions)
    message = raised.value.message
    assert "6 settings" in message and "\x1b" not in message
    for key in ("rank", "task_adapter", "pick", "alpha", "epochs", "anchors"):
        assert f"bank.{key} = " in message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_only_finite_numbers_are_numbers(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_BANK_ALPHA", value)
    with pytest.raises(UsageError):
        Settings.load(None).build_options(BankOptions)
    with pytest.raises(UsageError):
        Settings.load(None).build_options(BankOptions, alpha=float(value))


def test_an_unknown_key_is_refused_with_the_nearest(store: Path) -> None:
    (store / "mta.toml").write_text("[bank]\nrnk = 1\n[bnk]\nrank = 2\n[other.deep]\nx = 1\n")
    with pytest.raises(UsageError) as raised:
        Settings.load(store)
    assert "'bank.rnk'; did you mean bank.rank?" in raised.value.message
    assert "'bnk.rank'; did you mean bank.rank?" in raised.value.message
    assert "3 settings" in raised.value.message


def test_an_unknown_variable_of_ours_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_ADAPT_SHOT", "1")
    monkeypatch.setenv("MTA_SOMETHING_ELSE", "not ours")
    with pytest.raises(UsageError, match="MTA_ADAPT_SHOTS"):
        Settings.load(None)


@pytest.mark.parametrize(
    "content",
    [b"[bank\n", b"\xff\xfe", b"rank = = 1", b"a = " + b"[" * 100_000, b"#" * 1_000_001, b"x = 1\nx = 2"],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes, store: Path) -> None:
    (store / "mta.toml").write_bytes(content)
    with pytest.raises(BadInput, match=r"mta\.toml"):
        Settings.load(store)


def test_the_variable_and_flag_of_a_setting() -> None:
    setting = KNOWN["bank.task_learning_rate"]
    assert (setting.env_variable, setting.flag) == ("MTA_BANK_TASK_LEARNING_RATE", "--task-learning-rate")


def test_every_default_is_within_its_own_bounds() -> None:
    settings = Settings.load(None)
    for section in {key.partition(".")[0] for key in KNOWN}:
        cls = next(cls for cls in (*_sections(),) if cls.section == section)
        assert settings.build_options(cls) == cls()


def _sections() -> tuple[type, ...]:
    from mta_cli.configuration.settings import OPTION_CLASSES

    return OPTION_CLASSES


@hypothesis_settings(deadline=None)
@given(
    st.sampled_from(list(KNOWN.values())),
    st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.lists(st.none())),
)
def test_a_value_converts_to_its_type_or_is_refused_in_words(setting: Setting, raw: object) -> None:
    try:
        value = convert_value(setting, raw)
    except ValueError as error:
        assert str(error).endswith("is needed")
    else:
        assert type(value) is setting.kind


def test_where_the_store_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "environment"))
    assert store_path(tmp_path / "flag") == tmp_path / "flag"
    assert store_path() == tmp_path / "environment"
    monkeypatch.setenv("MTA_STORE", "")
    assert store_path().name == "mta"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_path(Path("~/mine")) == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert store_path(Path("here")) == tmp_path / "here"


@pytest.mark.parametrize("raw", ["a\0b", "~no-such-person-here/x"])
def test_a_path_that_cannot_be_is_refused(raw: str) -> None:
    with pytest.raises(MtaError):
        store_path(Path(raw))


def test_how_long_to_wait_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_STORE_TIMEOUT", "0.5")
    assert Settings.load(None).build_options(StoreOptions).timeout == 0.5


def test_what_a_job_changes_is_told_as_derived() -> None:
    settings = Settings.load()
    built = settings.build_options(BankOptions, rank=4)
    lines = {line.name: (line.value, line.origin) for line in settings.plan_lines(replace(built, placement="late"))}
    assert lines["bank.rank"] == ("4", "flag --rank") and lines["bank.placement"] == ("late", "derived")
    assert lines["bank.pick"] == ("longest", "default")


def test_a_settings_file_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_CONFIG", str(tmp_path / "mta.tmol"))
    with pytest.raises(NotFound, match=r"mta\.tmol, which is not there"):
        Settings.load(None)


def test_a_path_that_no_system_has_is_refused_in_words() -> None:
    with pytest.raises(BadInput, match=r"the store's path cannot be used: .*File name too long"):
        store_path(Path("x" * 300))


def test_a_settings_file_that_is_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_CONFIG", str(tmp_path))
    with pytest.raises(BadInput, match="cannot be read"):
        Settings.load()


def test_a_number_that_no_machine_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_BANK_RANK", "9" * 400)
    with pytest.raises(UsageError, match="smaller number"):
        Settings.load().build_options(BankOptions)
