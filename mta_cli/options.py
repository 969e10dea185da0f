"""The options of every job: defaults, bounds and help in one place. Knows nothing of flags, files or the environment.

A job's section name and a field's name make the setting's key: `bank.rank` is `--rank` of `mta bank build`, `rank`
under `[bank]` in a settings file and `MTA_BANK_RANK` in the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from mta_cli.errors import Flag, UsageError
from mta_cli.text.formatting import pluralise

T = TypeVar("T")


def option_field(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    settings_only: bool = False,
    metavar: str = "",
) -> Any:
    """A dataclass field with its help and bounds in `metadata`. `settings_only`: it has no flag.

    `metavar` is the placeholder of its value in help, where the type does not say it.
    """
    metadata = {
        "metavar": metavar,
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "settings_only": settings_only,
    }
    return field(default=default, metadata=metadata)


PLACEMENTS = ("all", "upper", "late")
MEMORIES = ("off", "habit", "neighbours")
ALL_MEMORIES = "all"
LADDER_METHODS = "ladder"
"""Used instead of methods' names: the method of each step of the ladder."""
MAX_OTHERS = 15
"""The most other users under whose models an answer is scored, to measure authorship."""
USUAL_ANCHORS, USUAL_MIN_ITEMS = 16, 8
"""Anchors of a bank, and history items of each, unless the data require fewer."""
USUAL_MAX_ITEMS = 200
"""The number of a user's most recent items from which banks, recipes and stacks are made."""
WEIGHT_METHODS = ("evidence", "similarity", "uniform")
# Weightings that use the likelihood of the user's own items; the task adapter gets 1 minus the sum of the weights.
SHOT_WEIGHTINGS = ("evidence",)


@dataclass(frozen=True)
class MachineOptions:
    """The device and the number formats of a job."""

    section: ClassVar[str] = "machine"
    device: str = option_field("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option_field("auto", "Number format of the base.", choices=("auto", "float32", "bfloat16", "float16"))
    quantize: str = option_field(
        "off", "Pack the base's linear layers: nf4 stores each weight in 4 bits.", choices=("off", "nf4")
    )
    max_memory: str | None = option_field(
        None, "The most memory that a job may plan to use, such as 6GB; without it, as much as is fastest."
    )
    seed: int = option_field(0, "Seed of every random choice.", minimum=0, maximum=2**31 - 1)
    verify: bool = option_field(
        True,
        "Check the base's files and the registry in full, once in each process, and refuse damaged ones.",
        settings_only=True,
    )

    @property
    def formats(self) -> dict[str, str]:
        """The number formats as stored with trained adapters. Unquantised weights are not named."""
        return {"dtype": self.dtype, **({"quantize": self.quantize} if self.quantize != "off" else {})}

    @property
    def memory_limit(self) -> int | None:
        """`max_memory` in bytes. Raises UsageError if it is not a size."""
        if self.max_memory is None:
            return None
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([MGT])i?B?", self.max_memory.strip(), re.IGNORECASE)
        if match is None or not float(match[1]):
            raise UsageError(
                f"{self.section}.max_memory = {self.max_memory!r:.80} is not a size.",
                hint=("write for example ", Flag("max_memory", "6GB"), ", or 500MB"),
            )
        return round(float(match[1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[match[2].upper()])


@dataclass(frozen=True)
class ExecutorOptions:
    """Where training and evidence are computed. Results do not depend on it."""

    section: ClassVar[str] = "executor"
    executor: str = option_field("local", "Compute in this process, or on workers of Ray.", choices=("local", "ray"))
    workers: int = option_field(2, "Workers of Ray; each holds the base.", minimum=1, maximum=10_000)
    ray_address: str = option_field("", "A running Ray cluster, `auto` or HOST:PORT; if empty, a new one here.")
    gpus: float = option_field(1.0, "GPUs of each worker, if the base runs on a GPU.", minimum=0.01, maximum=8)

    @property
    def title_suffix(self) -> str:
        """` on N Ray workers` for a job's title; empty for this process."""
        return "" if self.executor == "local" else f" on {pluralise(self.workers, 'Ray worker')}"


@dataclass(frozen=True)
class PromptOptions:
    """The contents of a prompt besides the user's text."""

    section: ClassVar[str] = "prompt"
    history_items: int = option_field(3, "Own history items shown in a prompt; 0 for none.", minimum=0, maximum=20)


@dataclass(frozen=True)
class BankOptions:
    """The options of `mta bank build`."""

    section: ClassVar[str] = "bank"
    anchors: int | None = option_field(
        None,
        "Number of anchor users; where not given, at most 16 and at most a third of the users who may be anchors.",
        minimum=1,
        maximum=10_000,
    )
    rank: int = option_field(8, "Rank of each meta-LoRA.", minimum=1, maximum=256)
    alpha: float = option_field(
        16.0, "LoRA alpha of each meta-LoRA; its scale is alpha / rank.", minimum=0.001, maximum=4096
    )
    epochs: int = option_field(2, "Passes over each anchor's history.", minimum=1, maximum=100)
    learning_rate: float = option_field(1e-3, "Peak learning rate of the meta-LoRAs.", minimum=1e-8, maximum=1.0)
    batch_size: int = option_field(8, "Rows in a training step.", minimum=1, maximum=1024)
    targets: str = option_field(
        "all-linear", "Linear layers that get LoRAs: all-linear, or the last parts of their names, comma-separated."
    )
    placement: str = option_field(
        "upper",
        "Where meta-LoRAs act: in all layers, in the upper third, or (late) there and only on the prompt's end and the "
        "answer.",
        choices=PLACEMENTS,
    )
    pick: str = option_field(
        "longest",
        "Which user of a cluster becomes its anchor: the one with the longest history, or the medoid.",
        choices=("longest", "medoid"),
    )
    min_items: int | None = option_field(
        None,
        "History items that a user needs to be an anchor; where not given, 8, or fewer if few users have 8.",
        minimum=1,
        maximum=1_000_000,
    )
    max_items: int = option_field(
        USUAL_MAX_ITEMS, "Use at most this many of each user's latest items; 0 for all.", minimum=0, maximum=1_000_000
    )
    task_adapter: bool = option_field(True, "First train one LoRA on all candidates' histories together.")
    task_min_items: int | None = option_field(
        None,
        "History items that a user needs for the task adapter; where not given, as many as an anchor.",
        minimum=1,
        maximum=1_000_000,
    )
    task_placement: str = option_field(
        "all", "Where the task adapter acts: in all layers, or the upper third.", choices=("all", "upper")
    )
    task_rank: int = option_field(8, "Rank of the task adapter.", minimum=1, maximum=256)
    task_epochs: int = option_field(2, "Passes over the pooled histories.", minimum=1, maximum=100)
    task_learning_rate: float = option_field(1e-3, "Peak learning rate of the task adapter.", minimum=1e-8, maximum=1.0)
    held_out_weights: bool = option_field(
        True,
        "Fit the label memory's weights with task adapters trained on other users; takes as long as one more adapter.",
    )

    @property
    def anchor_count(self) -> int:
        """The number of anchors; the default number if it is still to be chosen from the data."""
        return USUAL_ANCHORS if self.anchors is None else self.anchors

    @property
    def anchor_items(self) -> int:
        """The history items that an anchor needs; the default if it is still to be chosen from the data."""
        return USUAL_MIN_ITEMS if self.min_items is None else self.min_items

    @property
    def min_contributor_items(self) -> int:
        """The history items that a user needs to contribute to a bank, as an anchor or to the task adapter."""
        return self.anchor_items if self.task_min_items is None else min(self.task_min_items, self.anchor_items)


@dataclass(frozen=True)
class ScreeningOptions:
    """The limits of screening, relative to the other anchors of the bank."""

    section: ClassVar[str] = "gates"
    max_norm: float = option_field(
        5.0,
        "Largest norm of an anchor's module, in multiples of the bank's median; 0 for no limit.",
        minimum=0,
        maximum=1e6,
    )
    max_probe: float = option_field(
        10.0,
        "Largest effect of an anchor on neutral prompts, in multiples of the bank's median; 0 for no limit.",
        minimum=0,
        maximum=1e6,
    )
    max_share: float = option_field(
        0.75,
        "Largest share of users that one anchor may serve, but at least twice an equal share, so that a bank of up to "
        "eight anchors has no limit; 0 for no limit.",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True)
class FuseOptions:
    """The options of `mta user fuse`."""

    section: ClassVar[str] = "fuse"
    weights: str | None = option_field(
        None,
        "How anchors are weighted; where not given, by evidence if there are shots, else by similarity.",
        choices=WEIGHT_METHODS,
    )
    top_k: int = option_field(4, "Largest number of anchors in a recipe.", minimum=1, maximum=10_000)
    sharpness: float = option_field(
        0.5, "Sharpness of evidence weights; 1 gives the posterior under a flat prior.", minimum=0, maximum=100
    )
    scale: float = option_field(
        0.5,
        "Factor of the anchors' evidence weights; the rest goes to the task adapter.",
        minimum=0,
        maximum=10,
    )
    shots: int = option_field(
        USUAL_MAX_ITEMS,
        "How many of the latest items count as evidence; an adaptation uses the items that it trains on.",
        minimum=1,
        maximum=1000,
    )
    candidates: int = option_field(64, "Nearest anchors whose evidence is computed.", minimum=1, maximum=10_000)


STACK_PASSES, MIN_STACK_PASSES = 16, 2
"""Passes of a stack over a single shot, and the minimum; passes fall with the square root of the number of shots.

A change needs a higher `version` of the methods that train stacks (CONTRIBUTING, "A default").
"""

TEXT_STACK_RATE, LABEL_STACK_RATE = 2e-3, 5e-4
"""Peak learning rates of a stack: of tasks whose outputs are texts, and of tasks with labels or scores.

A change needs a higher `version`, as above.
"""

STACK_TARGETS = "q_proj,v_proj"


@dataclass(frozen=True)
class AdaptOptions:
    """The options of `mta user adapt`."""

    section: ClassVar[str] = "adapt"
    shots: int = option_field(
        USUAL_MAX_ITEMS,
        "How many of the latest history items the stack is trained on, and its recipe made from.",
        minimum=1,
        maximum=1000,
    )
    rank: int = option_field(2, "Rank of the stack.", minimum=1, maximum=64)
    steps: int | None = option_field(
        None,
        "Optimiser steps; where not given, 16 passes over a single shot, fewer passes over more shots, and at least "
        "two.",
        minimum=1,
        maximum=10_000,
    )
    epochs: int | None = option_field(
        None, "Passes over the shots; where given, they decide the number of steps.", minimum=1, maximum=1000
    )
    learning_rate: float | None = option_field(
        None,
        f"Peak learning rate; where not given, {TEXT_STACK_RATE:g} for texts, and {LABEL_STACK_RATE:g} for labels and "
        "scores.",
        minimum=1e-8,
        maximum=1.0,
    )
    batch_size: int = option_field(1, "Rows in a training step.", minimum=1, maximum=1024)
    alpha: float = option_field(4.0, "The stack's scale is alpha / rank.", minimum=0.001, maximum=4096)
    targets: str = option_field(
        STACK_TARGETS,
        "The linear layers that carry the stack, by the last part of their names, comma-separated, or all-linear; "
        "in a base without q_proj and v_proj, the default is all-linear.",
    )
    placement: str = option_field(
        "upper",
        "Where the stack acts: in all layers, in the upper third, or (late) there and only on the prompt's end and the "
        "answer.",
        choices=PLACEMENTS,
    )

    def peak_rate(self, labels: bool) -> float:
        """The given learning rate, else the default: lower with `labels`, because the rate for texts harms labels."""
        return self.learning_rate or (LABEL_STACK_RATE if labels else TEXT_STACK_RATE)


@dataclass(frozen=True)
class AnswerOptions:
    """The options of answers: `mta ask`, `mta compare` and `mta chat`."""

    section: ClassVar[str] = "answer"
    max_tokens: int | None = option_field(
        None,
        "Most tokens in an answer; where not given, as many as the task's answers have, and 256 in a chat.",
        minimum=1,
        maximum=32_768,
    )
    temperature: float = option_field(0.0, "0 picks the likeliest token; above 0 samples.", minimum=0, maximum=5)
    top_p: float = option_field(
        1.0, "Sample from the smallest set of tokens with this probability.", minimum=0.01, maximum=1
    )
    min_p: float = option_field(
        0.0, "Sample no token with less than this share of the likeliest one's probability.", minimum=0, maximum=1
    )
    repetition_penalty: float | None = option_field(
        None,
        "Penalty for tokens that the answer already has; where not given, 1.1 in a chat, and 1 (no penalty) for a "
        "task's questions.",
        minimum=0.1,
        maximum=10,
    )


@dataclass(frozen=True)
class MemoryOptions:
    """Label memory of personal models, for tasks with labels. The paper does not have it."""

    section: ClassVar[str] = "memory"
    memory: str = option_field(
        "neighbours",
        "Label memory: off; habit, the user's label prior; or neighbours, that prior and other users' answers to "
        "similar inputs.",
        choices=MEMORIES,
    )
    neighbour_weight: float = option_field(
        1.0,
        "Weight of the memory beside the model, in multiples of the weight fitted when the bank was built.",
        minimum=0.01,
        maximum=10,
        settings_only=True,
    )
    prior_weight: float = option_field(
        0.5,
        "Share of the user's label prior that is added to the labels' log-likelihoods where no neighbours count.",
        minimum=0,
        maximum=10,
        settings_only=True,
    )
    prior_strength: float = option_field(
        8.0,
        "In that prior, all users' label rates count as much as this number of the user's own answers.",
        minimum=0.01,
        maximum=1e6,
        settings_only=True,
    )
    look_ahead: bool = option_field(False, "Let neighbours count that are later than the question.", settings_only=True)


@dataclass(frozen=True)
class EvalOptions:
    """The options of `mta eval run` and `mta eval tune`."""

    section: ClassVar[str] = "eval"
    methods: str = option_field(
        LADDER_METHODS,
        "Methods to compare, comma-separated; `ladder` stands for the method of each step. See mta eval methods.",
        metavar="METHOD,…",
    )
    reference: str = option_field(
        "mta",
        "The method with which all others are compared. Without a suffix, its variant with the other method's label "
        "memory is used, if that was measured.",
        metavar="METHOD",
    )
    shots: int = option_field(
        USUAL_MAX_ITEMS,
        "Cut each tested user's history to at most this many of the latest items.",
        minimum=1,
        maximum=1000,
    )
    folds: int = option_field(
        3,
        "Number of folds; each user is tested in one of them. 1 is a plain split into bank, tuning and test users.",
        minimum=1,
        maximum=100,
    )
    placement: str = option_field("late", "Where anchors and stacks act; see mta bank build.", choices=PLACEMENTS)
    memory: str | None = option_field(
        None,
        "Label memory of the methods that are named without one; `all` measures them with each. Where not given, each "
        "method has its own.",
        choices=(*MEMORIES, ALL_MEMORIES),
    )
    calibrate: bool = option_field(True, "Fit a temperature for each method on users who are not tested with it.")
    only_earlier: bool = option_field(
        False,
        "Build each fold's bank from items that are not later than the first query of the fold's tested users.",
    )
    others: int = option_field(
        MAX_OTHERS,
        "Score each held-out answer also under this many other users' models, nearest in topic first; 0 for none.",
        minimum=0,
        maximum=MAX_OTHERS,
    )


SITES = ("letterboxd", "imdb", "goodreads", "movielens")
"""The sites whose exports can be read."""
LEAST_COMMITS = 10
"""The default for the commits that an author needs: eight history items, as an anchor needs, and two held out."""


@dataclass(frozen=True)
class ImportOptions:
    """The options of `mta data import`. Flags and a form set them; settings files and the environment cannot."""

    section: ClassVar[str] = "import"
    preset: str | None = option_field(
        None, "The site whose export is read; also adds a task for its ratings.", choices=SITES
    )
    me: tuple[str, ...] = option_field(
        (),
        "The user of a file of one user. For mail your addresses, for WhatsApp, Slack and Discord your names there; "
        "can be repeated. The first one becomes the user's name.",
        metavar="NAME",
    )
    user: str | None = option_field(
        None, "The column of the user; {file} is the name of each row's file.", metavar="COLUMN"
    )
    input: str | None = option_field(
        None, 'The column of the input, or a template such as "{title} ({year}). {review}".', metavar="COLUMN"
    )
    output: str | None = option_field(None, "The column of the output, or a template.", metavar="COLUMN")
    time: str | None = option_field(
        None, "The column of the time, by default `time` if there is one; - reads none.", metavar="COLUMN"
    )
    id: str | None = option_field(
        None, "The column of the item's id, by default `id` if there is one; - reads none.", metavar="COLUMN"
    )
    hold_out: int = option_field(
        0,
        "Items of each user that are held out as queries: the last by time, else drawn; 3 stay in the history.",
        minimum=0,
        maximum=1_000_000_000,
    )
    seed: int = option_field(0, "Seed that draws held-out items of users without times.", minimum=0, maximum=2**31 - 1)
    skip_faulty: bool = option_field(False, "Leave out faulty records and report their number.")
    round: float = option_field(
        0.0, "Round numeric outputs to multiples of this; leave out items without one.", minimum=0, maximum=1e9
    )
    outputs: str | None = option_field(None, "The file with the answers to LaMP's questions.", metavar="FILE")
    since: str | None = option_field(
        None, "Of a repository: only commits that their authors made since this date.", metavar="DATE"
    )
    paths: tuple[str, ...] = option_field(
        (), "Of a repository: only commits that change something in this path; several are possible.", metavar="PATH"
    )
    least: int = option_field(
        LEAST_COMMITS, "Of a repository: leave out authors with fewer such commits.", minimum=1, maximum=1_000_000_000
    )
    body: bool = option_field(
        False, "Of a repository: learn whole messages, as task commit-body, instead of their first lines."
    )
    pseudonyms: bool = option_field(False, "Of a repository: give its authors made-up names.")


@dataclass(frozen=True)
class QuickOptions:
    """The options of `mta quick` itself. Flags and a form set them; settings files and the environment cannot."""

    section: ClassVar[str] = "quick"
    minutes: float = option_field(3.0, "About how long it may take; more trains more.", minimum=0.1, maximum=10_000)
    hold_out: int | None = option_field(
        None,
        "Items of each user that are held out to measure: the last by time, else drawn. Where not given, as stored, "
        "else a fifth of a user's items: 2 to 12, and of one user alone 10 to 12.",
        minimum=1,
        maximum=1_000_000_000,
    )


@dataclass(frozen=True)
class ModelOptions:
    """The models that a store works with, by name, hub name (`hf:ORG/NAME`) or folder."""

    section: ClassVar[str] = "models"
    base: str = option_field("smollm2-135m-instruct", "The base model.", metavar="MODEL")
    embedder: str = option_field("minilm-l6", "The embedder that makes profiles.", metavar="MODEL")


@dataclass(frozen=True)
class ServeOptions:
    """The options of `mta serve`."""

    section: ClassVar[str] = "serve"
    host: str = option_field("127.0.0.1", "Address to listen on; an address that other machines can reach needs keys.")
    port: int = option_field(8000, "Port to listen on; 0 for any that is free.", minimum=0, maximum=65_535)
    max_batch: int = option_field(16, "Most answers decoded in one batch.", minimum=1, maximum=256)
    queue: int = option_field(256, "Most waiting answers; further requests get status 429.", minimum=1, maximum=100_000)
    cache: int = option_field(
        512, "Megabytes for users' models and cached beginnings of conversations.", minimum=1, maximum=1_000_000
    )
    streams: int = option_field(64, "Most concurrent requests of one key.", minimum=1, maximum=10_000)
    cors: str = option_field("", "Web pages that may send requests, comma-separated: https://chat.example.org.")
    log_text: bool = option_field(False, "Log the last message of each chat request.")
    vllm: str = option_field("", "Address of a vLLM server that computes the answers instead of this process.")
    adapters: str = option_field("", "With --vllm: the folder from which that server loads adapters.")
    max_rank: int = option_field(64, "With --vllm: its --max-lora-rank.", minimum=1, maximum=512)
    approximate: bool = option_field(False, "With --vllm: let LoRAs for late tokens act on all tokens.")
    max_body: int = option_field(
        2_048, "Largest request, in kilobytes.", minimum=1, maximum=1_000_000, settings_only=True
    )
    drain: float = option_field(
        30.0,
        "Seconds that running answers get when the server stops.",
        minimum=0,
        maximum=3_600,
        settings_only=True,
    )


class OptionSet:
    """One instance each of several option classes: `options[BankOptions]`."""

    def __init__(self, *instances: Any) -> None:
        self._by_class: dict[type[Any], Any] = {type(instance): instance for instance in instances}

    def __getitem__(self, cls: type[T]) -> T:
        found: T = self._by_class[cls]
        return found

    def with_instance(self, instance: Any) -> OptionSet:
        """A copy with `instance` replacing the instance of its class."""
        return OptionSet(*(self._by_class | {type(instance): instance}).values())

    def get(self, cls: type[T]) -> T:
        """The instance of an option class; its defaults if a command or form does not have these options."""
        found: T = self._by_class.get(cls) or cls()
        return found


PERMUTED_ANSWERS = "permuted"  # a control: evaluation banks with anchors trained on randomly permuted answers
PRESETS: dict[str, dict[str, Any]] = {
    # The paper's own choices (arXiv 2511.20072): no task adapter, the two nearest anchors by cosine, a LoRA of rank 4.
    "published": {
        "bank.task_adapter": False,
        "bank.rank": 8,
        "bank.alpha": 16.0,
        "bank.epochs": 3,
        "bank.learning_rate": 1e-4,
        "bank.batch_size": 2,
        "bank.targets": "all-linear",
        "bank.placement": "all",
        "bank.pick": "longest",
        "fuse.weights": "similarity",
        "fuse.top_k": 2,
        "adapt.rank": 4,
        "adapt.alpha": 8.0,
        "adapt.targets": "all-linear",
        "adapt.placement": "all",
        "adapt.batch_size": 8,
        "adapt.epochs": 1,
        "adapt.learning_rate": 5e-5,
        "memory.memory": "off",
        "prompt.history_items": 1,
    }
}
"""The settings of each preset. They override settings files and the environment; flags override them."""

JOB_OPTIONS: tuple[type[Any], ...] = (
    MachineOptions,
    PromptOptions,
    BankOptions,
    ScreeningOptions,
    FuseOptions,
    AdaptOptions,
    AnswerOptions,
    MemoryOptions,
    EvalOptions,
    ModelOptions,
    ServeOptions,
    ExecutorOptions,
)


def options_from_json(cls: type[T], document: Mapping[str, Any]) -> T:
    """Options of a class from the keys of a document that are fields; other fields have their defaults."""
    names = {spec.name for spec in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in document.items() if name in names})


def find_option_faults(options: Any) -> list[str]:
    """Every value of `options` that is out of bounds, one line each."""
    faults = []
    for spec in fields(options):
        value, meta = getattr(options, spec.name), spec.metadata
        if value is None:
            continue
        name = f"{options.section}.{spec.name} = {value}"
        if meta["choices"] and value not in meta["choices"]:
            faults.append(f"{name}: choose one of {', '.join(meta['choices'])}")
        if meta["minimum"] is not None and not value >= meta["minimum"]:
            faults.append(f"{name}: the least is {meta['minimum']}")
        if meta["maximum"] is not None and not value <= meta["maximum"]:
            faults.append(f"{name}: the most is {meta['maximum']}")
    return faults
