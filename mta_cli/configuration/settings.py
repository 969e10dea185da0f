"""The value of every option, and where it comes from.

Later sources override earlier ones: defaults, the user's file, the store's file, MTA_* variables of the environment,
a preset, flags. Knows the option classes, but no
command, no model and nothing in a store.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args, get_type_hints

from mta_cli import options
from mta_cli.errors import BadInput, Command, Flag, NotFound, UsageError, did_you_mean, system_reason
from mta_cli.events import PlanLine

SETTINGS_FILE_NAME = "mta.toml"
MAX_SETTINGS_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class StoreOptions:
    """How a store is opened."""

    section: ClassVar[str] = "store"
    timeout: float = options.option_field(10.0, "Seconds to wait for another writer.", minimum=0, maximum=86_400)


OPTION_CLASSES: tuple[type[Any], ...] = (*options.JOB_OPTIONS, StoreOptions)
UNSTORED_CLASSES: tuple[type[Any], ...] = (options.ImportOptions, options.QuickOptions)
"""Option classes that only flags and forms set, not settings files or the environment."""
OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Setting:
    """One setting: its key, type (without None), default, help and bounds."""

    key: str
    kind: type
    default: Any
    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    settings_only: bool
    metavar: str

    @property
    def env_variable(self) -> str:
        """The environment variable of the setting: MTA_BANK_RANK for `bank.rank`."""
        return "MTA_" + self.key.upper().replace(".", "_")

    @property
    def flag(self) -> str:
        """The flag of the setting: `--rank` for `bank.rank`."""
        return "--" + self.key.partition(".")[2].replace("_", "-")


@functools.cache
def _settings_by_section() -> Mapping[str, Mapping[str, Setting]]:
    found: dict[str, dict[str, Setting]] = {}
    for cls in (*OPTION_CLASSES, *UNSTORED_CLASSES):
        hints = get_type_hints(cls)
        own = found[cls.section] = {}
        for spec in fields(cls):
            parts = get_args(hints[spec.name])
            kind = parts[0] if type(None) in parts else hints[spec.name]
            own[spec.name] = Setting(f"{cls.section}.{spec.name}", kind, spec.default, **spec.metadata)
    return found


def settings_of(cls: type[Any]) -> Mapping[str, Setting]:
    """The settings of an option class, by field name."""
    return _settings_by_section()[vars(cls)["section"]]


@functools.cache
def all_settings() -> Mapping[str, Setting]:
    """All settings that files may contain, by key."""
    return {setting.key: setting for cls in OPTION_CLASSES for setting in settings_of(cls).values()}


def store_path(flag: Path | None = None) -> Path:
    """The store's directory: `--store`, else MTA_STORE, else the platform's data directory."""
    chosen = str(flag) if flag is not None else os.environ.get("MTA_STORE", "")
    if not chosen:
        import platformdirs

        return platformdirs.user_data_path("mta")
    return parse_path(chosen, "the store's path")


def config_path() -> Path:
    """The user's settings file: MTA_CONFIG, which must exist, else `mta.toml` in the platform's configuration
    directory, which may be missing.
    """
    chosen = os.environ.get("MTA_CONFIG", "")
    if not chosen:
        import platformdirs

        return platformdirs.user_config_path("mta") / SETTINGS_FILE_NAME
    path = parse_path(chosen, "MTA_CONFIG")
    if not path.exists():
        raise NotFound(f"MTA_CONFIG names {path}, which is not there.", hint="make the file, or unset MTA_CONFIG")
    return path


def parse_path(raw: str, what: str) -> Path:
    """The absolute path of the text `raw`. Raises BadInput for an invalid path; `what` names its source there."""
    if "\0" in raw:
        raise BadInput(f"{what} contains a NUL character: {raw!r:.200}")
    try:
        path = Path(raw).expanduser().absolute()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long, unreadable, or an unknown user's home
        raise BadInput(f"{what} cannot be used: {raw!r:.200} ({system_reason(error)})") from None
    return path


@dataclass(frozen=True)
class RawValue:
    """A value before conversion, and where it comes from."""

    value: Any
    origin: str


class Settings:
    """The settings of one command. `origins` says where each comes from: default, `file PATH`, `environment NAME`, …"""

    def __init__(self, given: Mapping[str, RawValue]) -> None:
        self._given = dict(given)
        self.origins = {key: given[key].origin if key in given else "default" for key in all_settings()}
        self._built: dict[str, Any] = {}

    @classmethod
    def load(cls, store: Path | None = None, preset: str | None = None) -> Self:
        """The settings of the user's file, of `store`'s file, of the environment and of a preset.

        Raises `BadInput` for a file that cannot be read, `UsageError` for an unknown key, variable or preset.
        """
        given: dict[str, RawValue] = {}
        for file in (config_path(), *([store / SETTINGS_FILE_NAME] if store is not None else [])):
            given.update(read_settings_file(file))
        given.update(_read_environment())
        if preset is not None:
            if preset not in options.PRESETS:
                hint = (Flag("preset"), f" {' or '.join(options.PRESETS)}")
                raise UsageError(f"There is no preset {preset!r:.80}.", hint=hint)
            for key, value in options.PRESETS[preset].items():
                given[key] = RawValue(value, f"preset {preset}")
        return cls(given)

    def build_option_set(self, classes: Sequence[type[Any]], flags: Mapping[str, Any]) -> options.OptionSet:
        """An instance of each of `classes`. A flag sets the field of its name in every class that has it.

        Raises `UsageError` that lists all bad values of all classes.
        """
        faults: list[str] = []
        built = [self._build(cls, flags, faults) for cls in classes]
        if faults:
            raise UsageError(_join_faults(faults))
        return options.OptionSet(*built)

    def build_options(self, cls: type[OptionsT], **flags: Any) -> OptionsT:
        """An instance of the option class `cls`. A flag that is None was not given.

        Raises `UsageError` that lists all values of a wrong type or out of bounds, with their origins.
        """
        return self.build_option_set((cls,), flags)[cls]

    def _build(self, cls: type[OptionsT], flags: Mapping[str, Any], faults: list[str]) -> OptionsT | None:
        """An instance of `cls`; None if it has faults, which are added to `faults`."""
        values: dict[str, Any] = {}
        found: list[str] = []
        for name, setting in settings_of(cls).items():
            given = self._resolve_value(setting, flags.get(name))
            self.origins[setting.key] = given.origin
            try:
                values[name] = self._built[setting.key] = convert_value(setting, given.value)
            except ValueError as error:
                found.append(f"{setting.key} = {_describe_raw_value(given.value)} ({given.origin}): {error}")
        if not found:
            built = cls(**values)
            found = [self._add_origin(fault) for fault in options.find_option_faults(built)]
            if not found:
                return built
        faults += found
        return None

    def plan_lines(self, *instances: Any, all_keys: bool = False) -> tuple[PlanLine, ...]:
        """A line of key, value and origin for each field of the given options that is used, or with `all_keys` for all.

        A value that a job changed later has the origin `derived`.
        """
        known = () if all_keys else instances
        unused = {key for instance in known for key in getattr(instance, "unused_keys", ())}
        return tuple(
            PlanLine(
                key, _format_value(value), self.origins[key] if self._built.get(key, value) == value else "derived"
            )
            for instance in instances
            for spec in fields(instance)
            for key, value in ((f"{instance.section}.{spec.name}", getattr(instance, spec.name)),)
            if key not in unused
        )

    def _resolve_value(self, setting: Setting, flag: Any) -> RawValue:
        if flag is not None:
            name = setting.flag if flag is not False else "--no-" + setting.flag.removeprefix("--")
            return RawValue(flag, f"flag {name}")
        return self._given.get(setting.key, RawValue(setting.default, "default"))

    def _add_origin(self, fault: str) -> str:
        head, _, rest = fault.partition(": ")
        return f"{head} ({self.origins[head.partition(' = ')[0]]}): {rest}"


def convert_value(setting: Setting, raw: Any) -> Any:
    """The raw value, from a flag, file or the environment, as the setting's type. Raises ValueError with the reason."""
    if raw is None and setting.default is None:
        return None
    if setting.kind is bool:
        return _parse_boolean(raw)
    if setting.kind == tuple[str, ...]:  # a repeated flag, or a text with commas in a form
        return tuple(part for text in raw.split(",") if (part := text.strip())) if isinstance(raw, str) else tuple(raw)
    if setting.kind is str:
        if not isinstance(raw, str):
            raise ValueError("a text in quotes is needed")
        return raw
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError("a number is needed")
    try:
        number = setting.kind(raw if not isinstance(raw, str) else raw.strip())
    except (ValueError, OverflowError):
        raise ValueError("a whole number is needed" if setting.kind is int else "a number is needed") from None
    if isinstance(number, int) and number.bit_length() > 128:
        raise ValueError("a smaller number is needed")
    if not math.isfinite(number) or (setting.kind is int and isinstance(raw, float) and number != raw):
        raise ValueError("a whole number is needed" if setting.kind is int else "a finite number is needed")
    return number


def find_setting(key: str) -> Setting:
    """The setting with this key. Raises NotFound with the most similar key."""
    known = all_settings()
    if key not in known:
        near = difflib.get_close_matches(key[:200], list(known), n=1)
        raise NotFound(
            f"There is no setting {key!r:.80}.",
            hint=did_you_mean(near, (Command("config list"), " shows all settings")),
        )
    return known[key]


def check_value(setting: Setting, raw: str) -> Any:
    """The text `raw` as a value of the setting. Raises UsageError for a wrong type or a value out of bounds."""
    section, _, name = setting.key.partition(".")
    try:
        value = convert_value(setting, raw)
    except ValueError as error:
        raise UsageError(f"{setting.key} = {raw!r:.80}: {error}") from None
    owner = next(each for each in OPTION_CLASSES if each.__dict__["section"] == section)
    if faults := options.find_option_faults(owner(**{name: value})):
        raise UsageError(_join_faults(faults))
    return value


def _parse_boolean(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(raw, str) and raw.strip().lower() in words:
        return words[raw.strip().lower()]
    raise ValueError("true or false is needed")


def read_settings_file(path: Path) -> dict[str, RawValue]:
    """The settings in a file, by key; empty if it is missing. Raises BadInput, and UsageError for unknown keys."""
    known = all_settings()
    given, faults = {}, []
    for key, value in read_file_values(path).items():
        if key in known:
            given[key] = RawValue(value, f"file {path}")
        else:
            faults.append(f"{path}: there is no setting {key!r:.80}{_suggest_name(key, known)}")
    if faults:
        raise UsageError(
            _join_faults(faults),
            hint=(
                Command("config unset", "SETTING"),
                " removes it from your file; with ",
                Flag("in_store"),
                " from the store's file",
            ),
        )
    return given


def read_file_values(path: Path) -> dict[str, Any]:
    """The values in a settings file by key, including unknown keys; empty if it is missing. Raises BadInput."""
    try:
        if not path.exists():
            return {}
        from mta_cli.plain_file import refuse_special_file
        from mta_cli.text.toml_parser import parse_toml

        refuse_special_file(path)
        if path.stat().st_size > MAX_SETTINGS_FILE_BYTES:
            raise BadInput(
                f"the settings file {path} is larger than {MAX_SETTINGS_FILE_BYTES:,} bytes, so it is not read",
                hint="correct the file, or move it away",
            )
        content = parse_toml(path.read_bytes().decode())
    except (OSError, ValueError) as error:  # invalid UTF-8 or TOML is a ValueError
        raise BadInput(
            f"the settings file {path} cannot be read: {error}", hint="correct the file, or move it away"
        ) from None
    values: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            values |= {f"{name}.{inner}": setting for inner, setting in value.items()}
        else:
            values[name] = value
    return values


def _read_environment() -> dict[str, RawValue]:
    by_variable = {setting.env_variable: setting.key for setting in all_settings().values()}
    sections = tuple(f"MTA_{section.section.upper()}_" for section in OPTION_CLASSES)
    given, faults = {}, []
    for name, value in os.environ.items():
        if name in by_variable:
            given[by_variable[name]] = RawValue(value, f"environment {name}")
        elif name.startswith(sections):
            faults.append(f"environment: there is no setting {name!r:.80}{_suggest_name(name, by_variable)}")
    if faults:
        raise UsageError(_join_faults(faults), hint="unset the variable, or correct its name")
    return given


def _suggest_name(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name[:200], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _describe_raw_value(value: Any) -> str:
    endless = isinstance(value, Mapping | list) or (isinstance(value, int) and value.bit_length() > 128)
    return f"a {type(value).__name__}" if endless else f"{value!r:.80}"


def _join_faults(faults: list[str]) -> str:
    if len(faults) == 1:
        return faults[0]
    return f"{len(faults)} settings cannot be used:\n" + "\n".join(faults)


def _format_value(value: Any) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
