"""Export formats of a user's model: for PEFT and vLLM, for llama.cpp, and whole models.

Each makes the files of a folder; `export` adds the README and the list of files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mta_cli.errors import BadInput, Flag
from mta_cli.pipeline.models.bases import packaged_repository
from mta_cli.pipeline.models.manifest import MANIFEST, ModelEntry
from mta_cli.pipeline.users.exported_folders import FileContent

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.lora.adapter import LoraWeights

ExportFormat = Literal["peft", "merged", "gguf-lora", "gguf"]
FORMATS: tuple[ExportFormat, ...] = ("peft", "merged", "gguf-lora", "gguf")
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
# lists the files of an export with their SHA-256, so that a later export may replace them
LIST_FILE = "mta-export.json"
LORA_FILE, MODEL_FILE, CARD_FILE = "adapter.gguf", "model.gguf", "README.md"
_EXPERT_LAYERS = frozenset({"gate_proj", "up_proj", "down_proj"})
# model families in which PEFT 0.21 with transformers 5 treats every layer of these names as an expert
_EXPERT_FAMILIES = (
    *("afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "glm4_moe"),
    *("glm4_moe_lite", "hunyuan_v1_moe", "longcat_flash", "qwen3_moe", "qwen3_next", "solar_open"),
)
_MAMBA_FAMILIES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
_HUB = re.compile(r"hf:(?P<repository>[^@]+)(?:@(?P<revision>.+))?")


@dataclass(frozen=True)
class ExportedModel:
    """The model to export: weights of uniform rank, the base below them, and the base's name on the machine that will
    run it.
    """

    weights: LoraWeights
    entry: ModelEntry
    base_name: str | None
    number_format: str
    about: Mapping[str, Any]

    def files(self, form: ExportFormat) -> dict[str, FileContent]:
        """The files of a format, by name. Raises BadInput if the base does not support it."""
        makers = {"peft": self._peft, "merged": self._merged, "gguf-lora": self._gguf_lora, "gguf": self._gguf}
        return makers[form]()

    def _peft(self) -> dict[str, FileContent]:
        config = peft_config(self.weights, self.entry, self.base_name)
        return {WEIGHTS_FILE: self.weights.to_bytes(self.about), CONFIG_FILE: json_bytes(config)}

    def _merged(self) -> dict[str, FileContent]:
        """A whole model: the base's own files, and its weights with the user's ΔW added, in the weights' dtype.

        Each weight file is computed when it is written. Raises BadInput if the base lacks a module of the user's LoRA.
        """
        from mta_cli.engine.model.checkpoint_files import model_files, weight_files

        folder, shards = self.entry.path, _list_weight_files(self.entry.path)
        self._require_every_module()
        ours, weights = (MANIFEST, CARD_FILE, LIST_FILE), weight_files(folder)
        rest = [path for path in model_files(folder) if path not in weights and path.name not in ours]
        copied: dict[str, FileContent] = {path.as_posix(): (folder / path).read_bytes() for path in rest}
        return copied | {path.as_posix(): partial(self._write_shard, folder / path) for path in shards}

    def _write_shard(self, shard: Path, to: Path) -> None:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file

        with safe_open(shard, "pt") as file:
            loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: self._changed(name, weight).to(weight.dtype) for name, weight in loaded.items()}
            to.touch()
            mode = to.stat().st_mode
            try:
                save_file(tensors, to, metadata=file.metadata())
            except SafetensorError as error:  # such as a full disk
                raise OSError(str(error)) from error
        to.chmod(mode)  # safetensors makes files readable by their owner only

    def _changed(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the base unchanged, or in float32 with the user's ΔW, so that it is rounded only when written."""
        module, _, kind = name.rpartition(".")
        if kind != "weight" or module not in self.weights.factors:
            return weight
        return weight.float() + self.weights.delta_weight(module)

    def _gguf_lora(self) -> dict[str, FileContent]:
        from mta_cli.engine.model.checkpoint_files import read_config
        from mta_cli.engine.model.gguf_writer import gguf_family, write_lora_gguf

        config = read_config(self.entry.path)
        gguf_family(config)  # raises before anything is written
        write = partial(write_lora_gguf, weights=self.weights, config=config, facts=self._facts())
        return {LORA_FILE: write}

    def _gguf(self) -> dict[str, FileContent]:
        from mta_cli.engine.model.gguf_writer import require_whole_gguf, write_model_gguf

        require_whole_gguf(self.entry.path)
        self._require_every_module()

        def write(path: Path) -> None:
            weights = self._all_weights()
            write_model_gguf(path, weights, self.entry.path, self.number_format, self._facts())

        return {MODEL_FILE: write}

    def _all_weights(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        from safetensors import safe_open

        for shard in _list_weight_files(self.entry.path):
            with safe_open(self.entry.path / shard, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, lambda file=file, name=name: self._changed(name, file.get_tensor(name))  # type: ignore[misc]

    def _require_every_module(self) -> None:
        """Raises BadInput if the base's files are quantised, or lack a weight that the user's LoRA changes."""
        from mta_cli.engine.model.checkpoint_files import read_config
        from mta_cli.engine.model.safetensors_header import read_safetensors_header

        if read_config(self.entry.path).get("quantization_config") is not None:
            raise BadInput(
                f"The weights in {self.entry.path} are quantised, so the user's changes cannot be added to them.",
                hint=("use ", Flag("format", "peft"), ", or name the same base in full precision with ", Flag("base")),
            )
        shards = [self.entry.path / shard for shard in _list_weight_files(self.entry.path)]
        known = {name for shard in shards for name in read_safetensors_header(shard).tensors}
        if missing := [module for module in self.weights.factors if f"{module}.weight" not in known]:
            raise BadInput(
                f"{self.entry.path} has no weight named {missing[0]}.weight, so the user's change cannot be added.",
                hint=("use ", Flag("format", "peft"), " or ", Flag("format", "gguf-lora")),
            )

    def _facts(self) -> dict[str, str]:
        return {"mta.about": json.dumps(dict(self.about))}


def _list_weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers reads, without Mistral's second copy of the weights."""
    from mta_cli.engine.model.checkpoint_files import weight_files

    files = weight_files(folder)
    return [file for file in files if not file.name.startswith("consolidated")] or files


def peft_config(weights: LoraWeights, entry: ModelEntry, base_name: str | None = None) -> dict[str, Any]:
    """`adapter_config.json`: alpha equals the rank, so PEFT's scale is 1. Modules are named by their full paths."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or base_repository(entry) or public_base_name(entry),
        "revision": base_revision(entry, base_name),
        "r": weights.rank,
        "lora_alpha": weights.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(weights.factors),
    }


def peft_notes(weights: LoraWeights, config: Mapping[str, Any]) -> list[str]:
    """Notes on parts of these weights that PEFT cannot use with a base of this `config.json`."""
    names, family = {module.rpartition(".")[2] for module in weights.factors}, config.get("model_type")
    dense = sorted(names & _EXPERT_LAYERS) if family in _EXPERT_FAMILIES else []
    refused = "out_proj" in names and family in _MAMBA_FAMILIES
    notes = (
        [f"PEFT treats {', '.join(dense)} of this base as experts and does not load their changes."] if dense else []
    )
    # Mamba layers multiply by dt_proj's weight directly, so a LoRA module around it has no effect
    notes += ["PEFT does not apply the change of dt_proj."] if "dt_proj" in names else []
    notes += ["PEFT refuses a LoRA on out_proj of this base."] if refused else []
    return [f"{note} --format merged includes it." for note in notes]


def loadable_base_name(entry: ModelEntry, base_name: str | None) -> str:
    """The name by which commands on another machine can load the base; `BASE` if unknown."""
    return base_name or base_repository(entry) or "BASE"


def base_repository(entry: ModelEntry) -> str | None:
    """The base's repository on the hub; None if it is unknown.

    For a base from a Python package, it is the repository of the base that the package was made from.
    """
    hub = _HUB.fullmatch(entry.name)
    return hub["repository"] if hub else packaged_repository(entry.fingerprint)


def base_revision(entry: ModelEntry, base_name: str | None) -> str | None:
    """The pulled commit or branch of the base; None if the base has another name on the machine that will run it."""
    hub = _HUB.fullmatch(entry.name)
    return hub["revision"] if hub and base_name is None else None


def public_base_name(entry: ModelEntry) -> str:
    """The base's name; of a local folder only the last part, so that the export shows no path of this machine."""
    return entry.name if _HUB.fullmatch(entry.name) else Path(entry.name).name


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """The content of a JSON file in UTF-8."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
