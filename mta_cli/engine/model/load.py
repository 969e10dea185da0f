"""The frozen base: loading a model's folder safely, its device and number format, and logits at chosen positions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mta_cli.engine.model.activation_cache import ActivationCache
from mta_cli.engine.model.checkpoint_files import (
    check_folder,
    load_errors_as_bad_input,
    require_config_fits_weights,
)
from mta_cli.engine.model.layer_spec import read_decoder_spec
from mta_cli.engine.model.llama import LlamaDecoder, build_llama_decoder
from mta_cli.errors import BadInput, IntegrityFault, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LoadedBase:
    """A base in memory, frozen and in eval mode.

    `end_ids` are the tokens that end an answer, the tokenizer's first. `head_is_exact`: logits are the output layer
    applied to the backbone's last state, without a scale or cap.
    """

    model: Any
    tokenizer: Any
    fingerprint: str
    name: str
    device: torch.device
    dtype: torch.dtype
    end_ids: tuple[int, ...]
    head_is_exact: bool = field(default=False)
    llama_decoder: LlamaDecoder | None = field(default=None)

    @property
    def window(self) -> int:
        """The most tokens that the base reads at once."""
        return _window(self.model.config)


@dataclass(frozen=True)
class BaseInfo:
    """What prompts and answers need of a base whose weights are computed with elsewhere; see `LoadedBase`."""

    tokenizer: Any
    fingerprint: str
    name: str
    end_ids: tuple[int, ...]
    window: int


def read_base_info(path: Path, *, name: str, fingerprint: str) -> BaseInfo:
    """The base in folder `path` without its weights. Raises BadInput when it is unsafe or no causal language model."""
    from transformers import AutoConfig, GenerationConfig

    quiet_libraries()
    check_folder(path)
    with load_errors_as_bad_input(f"{name} cannot be read as a causal language model", f"look into {path}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        tokenizer = load_tokenizer(path)
        has_own = (path / "generation_config.json").exists()
        generation = GenerationConfig.from_pretrained(path, local_files_only=True) if has_own else None
    return BaseInfo(tokenizer, fingerprint, name, _end_ids(config, generation, tokenizer), _window(config))


def load_base(path: Path, *, name: str, fingerprint: str, device: str = "auto", dtype: str = "auto") -> LoadedBase:
    """The base in folder `path`, on its device.

    Raises BadInput when the folder is unsafe or no causal language model, IntegrityFault when its weights are
    incomplete or not finite.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_libraries()
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    check_folder(path)
    with load_errors_as_bad_input(f"{name} cannot be loaded as a causal language model", f"look into {path}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        require_config_fits_weights(path, config.to_dict())
        tokenizer = load_tokenizer(path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=number,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    model, info = loaded
    _require_complete(name, info)
    _require_finite(name, model)
    model = _to_device(model, place).eval().requires_grad_(False)
    ends = _end_ids(model.config, model.generation_config, tokenizer)
    with load_errors_as_bad_input(f"{name} is of no use as a causal language model", f"look into {path}"):
        return with_decoder(LoadedBase(model, tokenizer, fingerprint, name, place, number, ends))


def with_decoder(base: LoadedBase) -> LoadedBase:
    """The same base with its decoder where the decoder computes it, after looking at its output layer."""
    decoder = base.llama_decoder = build_llama_decoder(base.model)
    exact = decoder is not None and decoder.logit_cap is None
    base.head_is_exact = exact or _head_is_exact(base.model, base.device)
    return base


def family_without_decoder(path: Path) -> str | None:
    """The family (`model_type`) of the base in folder `path` where the decoder does not know its layers; else None.

    The model is built without weights. Whether the decoder gives the same logits is seen only once they are loaded.
    Raises BadInput when the folder holds no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_libraries()
    with load_errors_as_bad_input(f"{path} cannot be read as a causal language model"), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        quantized = getattr(config, "quantization_config", None) is not None
        return str(config.model_type) if quantized or read_decoder_spec(model) is None else None


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model's folder, by transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)


def quiet_libraries() -> None:
    """Silences transformers' progress bars and log lines; what matters is raised as an error instead."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|sentence_transformers|huggingface_hub)(\..*)?"
    )


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA, else Apple's GPU, else the CPU. UsageError when it is not there."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {name!r} is not known", hint="choose auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here", hint="--device auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps: PyTorch sees no Apple GPU here", hint="--device auto or cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format called `name`; `auto` is bfloat16 where the hardware computes in it, else float32.

    It is the format of the base's weights and activations. Trained factors, their gradients, Adam's moments, and the
    logits of log-likelihoods (without Llama decoder: their softmax) are float32 in any case. TensorFloat-32 stays as
    PyTorch has it, off for matrix products.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise UsageError(f"dtype {name!r} is not known", hint=f"choose auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        with torch.cuda.device(device):  # what is asked next is about the current device
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and (_cpu_has("_is_amx_tile_supported") or _cpu_has("_is_avx512_bf16_supported"))
    return torch.bfloat16 if fast else torch.float32


def dtype_name(dtype: str, device: str) -> str:
    """What the number format called `dtype` is on `device`: `float32`, `bfloat16` or `float16`."""
    return str(resolve_dtype(dtype, resolve_device(device))).removeprefix("torch.")


@contextmanager
def fresh_activation_cache(base: LoadedBase) -> Iterator[None]:
    """Inside, the activation cache is empty, as after loading; the former one is back on exit."""
    if base.llama_decoder is None:
        yield
        return
    before, base.llama_decoder.activation_cache = base.llama_decoder.activation_cache, ActivationCache()
    try:
        yield
    finally:
        base.llama_decoder.activation_cache = before


def head_logits(base: LoadedBase, input_ids: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Logits [n, vocabulary] of the next token at n positions (`rows`, `cols`, [n] each) of `input_ids` [batch, time].

    Rows padded on the right need no mask, because attention is causal. The output layer gets a 2-D gather of states: of
    a 3-D one the backward pass copies the vocabulary matrix once per row.
    """
    backbone = _backbone(base.model) if base.head_is_exact else None
    if backbone is not None:
        hidden = backbone(input_ids=input_ids, use_cache=False).last_hidden_state  # [batch, time, width]
        return base.model.get_output_embeddings()(hidden[rows, cols])  # type: ignore[no-any-return]
    if "logits_to_keep" not in inspect.signature(base.model.forward).parameters:
        return base.model(input_ids=input_ids, use_cache=False).logits[rows, cols]  # type: ignore[no-any-return]
    kept, kept_index = torch.unique(cols, return_inverse=True)
    logits = base.model(input_ids=input_ids, use_cache=False, logits_to_keep=kept).logits
    return logits[rows, kept_index]  # type: ignore[no-any-return]


def _backbone(model: Any) -> nn.Module | None:
    """The model without its output layer."""
    prefix = getattr(model, "base_model_prefix", "")
    inner = getattr(model, prefix, None) if prefix else None
    return inner if isinstance(inner, nn.Module) and inner is not model else None


def _head_is_exact(model: Any, device: torch.device) -> bool:
    """Whether the output layer on the backbone's last state gives the model's own logits (no soft cap, no scale)."""
    backbone, head = _backbone(model), model.get_output_embeddings()
    if backbone is None or head is None:
        return False
    ids = torch.arange(1, 7, device=device).remainder(model.get_input_embeddings().weight.shape[0])[None]
    shared = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.no_grad():
        try:
            ours = head(backbone(**shared).last_hidden_state[0]).float()
        except (AttributeError, TypeError, RuntimeError):
            return False
        theirs = model(**shared).logits[0].float()
    coarse = next(model.parameters()).dtype != torch.float32
    return ours.shape == theirs.shape and torch.allclose(
        ours, theirs, rtol=0.05 if coarse else 1e-4, atol=0.05 if coarse else 1e-4
    )


def _window(config: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)


def _end_ids(config: Any, generation: Any, tokenizer: Any) -> tuple[int, ...]:
    ids: list[int] = []
    of_generation = getattr(generation, "eos_token_id", None)
    for value in (tokenizer.eos_token_id, of_generation, config.get_text_config().eos_token_id):
        ids.extend([] if value is None else value if isinstance(value, list) else [value])
    return tuple(dict.fromkeys(ids))


def _cpu_has(probe: str) -> bool:
    supports = getattr(torch.cpu, probe, None)
    return bool(supports and supports())


def _to_device(model: Any, device: torch.device) -> Any:
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise BadInput(
            f"the base does not fit into {device}'s memory", hint="--device cpu, or --dtype bfloat16"
        ) from error


def _require_complete(name: str, info: Any) -> None:
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(map(str, info.get(kind) or ()))
        if keys:
            raise IntegrityFault(
                f"{name}: the weights are incomplete ({kind.replace('_', ' ')}: {len(keys)}, first {keys[0]})",
                hint="pull or copy the model again",
            )


def _require_finite(name: str, model: Any) -> None:
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight.sum(dtype=torch.float32)):
            raise IntegrityFault(
                f"{name}: {key} holds numbers that are not finite", hint="pull or copy the model again"
            )
