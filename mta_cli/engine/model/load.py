"""The frozen base: loading a model's folder safely, its device and number format, and logits at chosen positions."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mta_cli.engine.model.activation_cache import ACTIVATION_CACHE_BYTES, ActivationCache
from mta_cli.engine.model.checkpoint_files import (
    check_folder,
    load_errors_as_bad_input,
    read_json,
    weight_files,
)
from mta_cli.engine.model.device_memory import is_out_of_memory
from mta_cli.engine.model.layer_spec import read_decoder_spec
from mta_cli.engine.model.llama import LlamaDecoder, build_llama_decoder
from mta_cli.engine.model.plain_llama import load_plain_llama, read_plain_config
from mta_cli.errors import BadInput, Command, Flag, IntegrityFault, UsageError, extra_hint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZE_PACKAGES = ("bitsandbytes", "accelerate")
OFF = "off"  # the value of `quantize` for unpacked weights


@dataclass(frozen=True)
class MemoryLimits:
    """Limits on memory. With lower limits, passes take longer, and results differ only in their last bits.

    `batch_tokens` is the number of tokens in a pass including padding, except in passes for prefixes
    (`PrefixCacheScorer`); None: as many as keep the device busy. `cache_bytes` limits cached states, `group_bytes` the
    factors, gradients and moments that train together.
    """

    batch_tokens: int | None = None
    cache_bytes: int = ACTIVATION_CACHE_BYTES
    group_bytes: int = 1 << 30


@dataclass
class LoadedBase:
    """A base in memory, frozen and in eval mode.

    `end_ids` are the tokens that end an answer, the tokenizer's own first. `head_is_exact`: logits are the output layer
    applied to the backbone's last state, without a scale or cap. `quantize` is the packing of its linear layers, or
    `off`; `dtype` is the format of all other numbers.
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
    quantize: str = OFF
    limits: MemoryLimits = field(default_factory=MemoryLimits)

    @property
    def decoder(self) -> LlamaDecoder:
        """The Llama decoder. Raises UsageError if it cannot compute this base."""
        if self.llama_decoder is None:
            raise UsageError(
                f"{self.name} ({self.model.config.model_type}) has no fast path: mta's own decoder cannot compute it."
            )
        return self.llama_decoder

    def invalidate_caches(self) -> None:
        """Drop everything that was computed from the weights. Call it before or after changing them."""
        if self.llama_decoder is not None:
            self.llama_decoder.invalidate_caches()

    @property
    def number_format(self) -> str:
        """The base's number format as text, such as `bfloat16` or `nf4+bfloat16`."""
        return _format_text(self.dtype, self.quantize)

    @property
    def window(self) -> int:
        """The base's context length in tokens."""
        return _window(self.model.config)


@dataclass(frozen=True)
class BaseInfo:
    """What prompts and answers need of a base whose weights run in another server; see `LoadedBase` for the fields."""

    tokenizer: Any
    fingerprint: str
    name: str
    end_ids: tuple[int, ...]
    window: int


def read_base_info(path: Path, *, name: str, fingerprint: str) -> BaseInfo:
    """The `BaseInfo` of the base in folder `path`, without loading weights.

    Raises the errors of `check_folder`, and BadInput if the base is not a causal language model.
    """
    from transformers import AutoConfig, GenerationConfig

    quiet_libraries()
    check_folder(path)
    with load_errors_as_bad_input(f"{name} cannot be read as a causal language model", f"check the files in {path}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        _require_causal(name, config)
        tokenizer = load_tokenizer(path)
        has_own = (path / "generation_config.json").exists()
        generation = GenerationConfig.from_pretrained(path, local_files_only=True) if has_own else None
    return BaseInfo(tokenizer, fingerprint, name, _end_ids(config, generation, tokenizer), _window(config))


def load_base(
    path: Path,
    *,
    name: str = "",
    fingerprint: str = "",
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = OFF,
    limits: MemoryLimits | None = None,
    for_answers: bool = False,
) -> LoadedBase:
    """The base in folder `path`, loaded on its device.

    `name` is for messages, by default the folder's name; `fingerprint` is for callers who store adapters. With
    `quantize` "nf4", the weights of the decoder's linear layers are packed while they are read. With `for_answers`, a
    Llama with default settings is built without transformers' modules, which is faster: it can decode and score, but
    its `model` cannot be called.

    Raises NotFound if there is no model folder, BadInput if it is not a causal language model with safetensors,
    IntegrityFault if its weights are incomplete or not finite, UsageError if the device or number format is unknown or
    missing, or the weights cannot be packed.
    """
    # 1. before loading, refuse a folder without safetensors, and a device or packing that this machine does not support
    name = name or path.name
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    require_quantize(quantize, place)
    check_folder(path)
    limits = limits or MemoryLimits()
    if for_answers and quantize == OFF and (plain := read_plain_config(path)) is not None:
        return _load_for_answers(path, plain, name, fingerprint, place, number, limits)
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_libraries()
    # 2. configuration, tokenizer and weights, which are packed while they are read
    with load_errors_as_bad_input(f"{name} cannot be loaded as a causal language model", f"check the files in {path}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        _require_causal(name, config)
        if (is_packed := getattr(config, "quantization_config", None) is not None) and quantize != OFF:
            raise UsageError(
                f"The weights of {name} are already packed in its files.",
                hint=("leave out ", Flag("quantize", quantize)),
            )
        if is_packed or quantize != OFF:
            _import_bitsandbytes()
        packing = _nf4_arguments(number, place) if quantize != OFF else {}
        tokenizer = load_tokenizer(path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=number,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **packing,
        )
    # 3. refuse weights that are missing or not finite, which transformers accepts
    model, info = loaded
    _require_complete(name, info)
    _require_finite(name, model.named_parameters() if quantize == OFF else _stored_weights(path))
    # 4. freeze the model on its device
    model = _to_device(model, place).eval().requires_grad_(False)
    _keep_packed_layout(model)
    if quantize != OFF:
        _copy_from_files(model)
    ends = _end_ids(model.config, model.generation_config, tokenizer)
    base = LoadedBase(model, tokenizer, fingerprint, name, place, number, ends, quantize=quantize, limits=limits)
    with load_errors_as_bad_input(f"{name} cannot be used as a causal language model", f"check the files in {path}"):
        return with_decoder(base)


def _load_for_answers(
    path: Path,
    config: dict[str, Any],
    name: str,
    fingerprint: str,
    device: torch.device,
    dtype: torch.dtype,
    limits: MemoryLimits,
) -> LoadedBase:
    quiet_libraries()
    with load_errors_as_bad_input(f"{name} cannot be loaded as a causal language model", f"check the files in {path}"):
        tokenizer = load_tokenizer(path)
        model: Any = load_plain_llama(name, path, config, dtype)
    _require_finite(name, model.named_parameters())
    model = _to_device(model, device).eval().requires_grad_(False)
    ends = _end_ids(model.config, model.generation_config, tokenizer)
    base = LoadedBase(model, tokenizer, fingerprint, name, device, dtype, ends, head_is_exact=True, limits=limits)
    if (spec := read_decoder_spec(model)) is None:
        raise BadInput(f"{name} cannot be used as a causal language model: its layers differ from Llama's")
    base.llama_decoder = LlamaDecoder(model, spec)
    base.llama_decoder.activation_cache = ActivationCache(limits.cache_bytes)
    return base


def with_decoder(base: LoadedBase) -> LoadedBase:
    """Set the base's Llama decoder, if that decoder can compute the base, and `head_is_exact`; return the same base."""
    decoder = base.llama_decoder = build_llama_decoder(base.model)
    if decoder is not None:
        decoder.activation_cache = ActivationCache(base.limits.cache_bytes)
    exact = decoder is not None and decoder.logit_cap is None
    base.head_is_exact = exact or _head_is_exact(base.model, base.device)
    return base


def family_without_decoder(path: Path) -> str | None:
    """The family (`model_type`) of the base in folder `path` if the decoder does not know its layers; otherwise None.

    The model is built without weights, so its logits are not compared. Raises BadInput if the folder does not contain a
    causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_libraries()
    with load_errors_as_bad_input(f"{path} cannot be read as a causal language model"), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        _require_causal(str(path), config)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        packing = getattr(config, "quantization_config", None) or {"quant_method": "bitsandbytes"}
        known = packing.get("quant_method") == "bitsandbytes"  # its packed layers are still linear modules
        return None if known and read_decoder_spec(model) is not None else str(config.model_type)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a model's folder. Errors of transformers are raised as they are, not as BadInput."""
    settings = path / "tokenizer_config.json"
    if settings.exists() and read_json(settings).get("tokenizer_class") == "PreTrainedTokenizerFast":
        from transformers import PreTrainedTokenizerFast  # AutoTokenizer would choose it too, but imports for a second

        return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)


def quiet_libraries() -> None:
    """Silence, in this process, transformers' progress bars, the log lines of transformers and bitsandbytes below
    errors, and FutureWarnings of Hugging Face's libraries. Failures still raise exceptions.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # other libraries import it too
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|sentence_transformers|huggingface_hub)(\..*)?"
    )


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA, else Apple's GPU, else the CPU. Raises UsageError if it is missing."""
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
            f"device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices on this machine",
            hint=("use ", Flag("device", "auto"), " or cpu"),
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            "device mps: PyTorch sees no Apple GPU on this machine", hint=("use ", Flag("device", "auto"), " or cpu")
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format called `name`, for the base's weights and activations. Raises UsageError for an unknown name.

    `auto` is bfloat16 if the hardware computes in it, else float32. In every format, trained factors, accumulated
    gradients, Adam's moments, and the logits of log-likelihoods (without the Llama decoder, only their softmax) are
    float32. TensorFloat-32 stays off for matrix products, which is PyTorch's default.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise UsageError(f"dtype {name!r} is not known", hint=f"choose auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        with torch.cuda.device(device):  # the next query is about the current device
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and (_cpu_has("_is_amx_tile_supported") or _cpu_has("_is_avx512_bf16_supported"))
    return torch.bfloat16 if fast else torch.float32


def number_format(dtype: str, device: str, quantize: str = OFF) -> str:
    """The resolved name of the number format `dtype` on `device`: `float32`, `bfloat16` or `float16`.

    With packed weights their format comes first: `nf4+bfloat16`.
    """
    return _format_text(resolve_dtype(dtype, resolve_device(device)), quantize)


def _format_text(dtype: torch.dtype, quantize: str) -> str:
    name = str(dtype).removeprefix("torch.")
    return name if quantize == OFF else f"{quantize}+{name}"


def require_quantize(quantize: str, device: torch.device) -> None:
    """Raises UsageError if weights cannot be packed: bitsandbytes is missing, or the device is not supported."""
    if quantize == OFF:
        return
    if missing := [name for name in QUANTIZE_PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError((Flag("quantize", quantize), f" needs {' and '.join(missing)}."), hint=extra_hint("quantize"))
    if device.type == "mps":
        raise UsageError(
            (Flag("quantize", quantize), f" works on a CPU or on CUDA, not on {device}."),
            hint=("use ", Flag("device", "cpu")),
        )


def _import_bitsandbytes() -> None:
    """Import bitsandbytes, if installed, before other libraries do.

    The package `kernels`, with which it would download compiled code from the hub, is hidden during the import.
    """
    if "bitsandbytes" in sys.modules or importlib.util.find_spec("bitsandbytes") is None:
        return
    fetching = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # now `import kernels` fails
    try:
        importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if fetching is not None:
            sys.modules["kernels"] = fetching


def _nf4_arguments(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The arguments that make transformers pack weights in NF4 with double quantisation (QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    packing = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": packing, "device_map": {"": device}}


@contextmanager
def fresh_activation_cache(base: LoadedBase) -> Iterator[None]:
    """Inside the block, the activation cache starts empty, as after loading; the former cache is restored on exit."""
    if base.llama_decoder is None:
        yield
        return
    before = base.llama_decoder.activation_cache
    base.llama_decoder.activation_cache = ActivationCache(before.limit)
    try:
        yield
    finally:
        base.llama_decoder.activation_cache = before


def head_logits(base: LoadedBase, input_ids: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Logits [n, vocabulary] of the next token at n positions (`rows`, `cols`, [n] each) of `input_ids` [batch, time].

    Rows padded on the right need no mask, because attention is causal. The output layer gets a 2-D gather of states,
    because for a 3-D one the backward pass would copy the vocabulary matrix once per row.
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


def _require_causal(name: str, config: Any) -> None:
    """Raises BadInput for an encoder such as BERT: transformers loads it as a causal model, but its attention is
    bidirectional.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    one_way = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not one_way:
        raise BadInput(
            f"{name} is an encoder ({config.model_type}): it fills in missing words and cannot write answers",
            hint=("use a causal language model; ", Command("model list", available=True), " shows bases"),
        )


def _head_is_exact(model: Any, device: torch.device) -> bool:
    """Whether the output layer applied to the backbone's last state gives the model's logits (no soft cap, no
    scale).
    """
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
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BadInput(
            f"the base does not fit into {device}'s memory",
            hint=("use ", Flag("device", "cpu"), ", or ", Flag("dtype", "bfloat16")),
        ) from error


def _require_complete(name: str, info: Any) -> None:
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(map(str, info.get(kind) or ()))
        if keys:
            raise IntegrityFault(
                f"{name}: the weights are incomplete ({kind.replace('_', ' ')}: {len(keys)}, first {keys[0]})",
                hint="pull or copy the model again",
            )


def _keep_packed_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights for AVX-512: that layout has no gradients and does not support all
    widths.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def _copy_from_files(model: nn.Module) -> None:
    """Copy the weights that were not packed; otherwise they would keep the whole files mapped and in memory."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.clone()


def _stored_weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights as stored in the files, to be checked for finite numbers, which packing would hide."""
    from safetensors import safe_open

    for file in weight_files(path):
        with safe_open(path / file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                yield key, opened.get_tensor(key)


def _require_finite(name: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    for key, weight in weights:
        if not torch.isfinite(weight.sum(dtype=torch.float32)):
            raise IntegrityFault(
                f"{name}: {key} contains numbers that are not finite", hint="pull or copy the model again"
            )
