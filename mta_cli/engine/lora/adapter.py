"""LoRA weights: their files, the layers that train them, and merging them into a base's weights.

A LoRA adds `scale · B A` to a frozen weight `W` (Hu et al., arXiv 2106.09685), with `A [rank, in]`, `B [out, rank]` and
`scale = alpha / rank`. Files use PEFT's key names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mta_cli.engine.lora.adapter_file import read_adapter_file
from mta_cli.engine.lora.targets import LAYER_INDEX_PATTERN, select_target_modules
from mta_cli.engine.model.layer_spec import has_plain_weight
from mta_cli.engine.model.load import LoadedBase
from mta_cli.errors import BadInput, Command, Flag, IntegrityFault, MtaError, UsageError

PEFT_KEY_PREFIX = "base_model.model."
LATE_PROMPT_TOKENS = 8  # the prompt's last tokens: the end of its text and the header of the answer

Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Placement:
    """Where a LoRA acts: decoder layers `first_layer` to `last_layer` (inclusive), and at which token positions.

    With `late_tokens` None it acts on all positions. Otherwise it acts on the last `late_tokens` tokens of the prompt
    and on the answer (as in "activated LoRA", arXiv 2504.12397).
    """

    first_layer: int
    last_layer: int
    late_tokens: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.first_layer}-{self.last_layer}/{'all' if self.late_tokens is None else f'late{self.late_tokens}'}"
        )

    @classmethod
    def parse(cls, text: str) -> Placement:
        """The placement that `str` wrote as `text`. Raises IntegrityFault for any other text."""
        match = re.fullmatch(r"(\d+)-(\d+)/(?:all|late([1-9]\d*))", text)
        if match is None:
            raise IntegrityFault(f"unknown LoRA placement {text!r}", hint="update mta: it may be from a newer version")
        return cls(int(match[1]), int(match[2]), int(match[3]) if match[3] else None)

    @classmethod
    def from_name(cls, name: str, layers: int) -> Placement:
        """The placement called `all` (all `layers` of the base), `upper` (the upper third), or `late` (the upper third,
        late tokens only).
        """
        first = 0 if name == "all" else layers - max(1, layers // 3)
        return cls(first, layers - 1, LATE_PROMPT_TOKENS if name == "late" else None)

    @property
    def name(self) -> str:
        """The name for `from_name`: `late` for late tokens, else `upper` if it begins above layer 0, else `all`."""
        return "late" if self.late_tokens is not None else "upper" if self.first_layer else "all"

    def first_position(self, prompt: int) -> int:
        """The first position on which the LoRA acts, in a text whose prompt has `prompt` tokens."""
        return 0 if self.late_tokens is None else max(0, prompt - self.late_tokens)


def merge_placements(placements: Sequence[Placement]) -> Placement:
    """The layer range that contains all `placements`. Raises IntegrityFault if they act on different tokens."""
    if len({one.late_tokens for one in placements}) != 1:
        raise IntegrityFault(
            f"these LoRAs act on different tokens ({', '.join(map(str, placements))}) and cannot be merged into one",
            hint=("train anchors and stacks with the same ", Flag("placement")),
        )
    return Placement(
        min(p.first_layer for p in placements), max(p.last_layer for p in placements), placements[0].late_tokens
    )


@dataclass(frozen=True)
class LoraWeights:
    """Factors by module path: `A [rank, in]` and `B [out, rank]`; ΔW is `scale · B A`. Ranks may differ by module."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    placement: Placement

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 without modules."""
        return max((int(a.shape[0]) for a, _ in self.factors.values()), default=0)

    @property
    def num_parameters(self) -> int:
        """The number of entries in all `A` and `B`."""
        return sum(a.numel() + b.numel() for a, b in self.factors.values())

    def delta_weight(self, path: str) -> Tensor:
        """ΔW of one module, float32 `[out, in]`."""
        a, b = self.factors[path]
        return self.scale * (b.float() @ a.float())

    def norm(self) -> float:
        """Frobenius norm of ΔW over all modules."""
        return self.scale * math.sqrt(sum(squared_norm(a, b) for a, b in self.factors.values()))

    def cast_for_storage(self) -> LoraWeights:
        """The weights rounded to float16, as a file stores them. Raises IntegrityFault if a number overflows or is not
        finite.
        """
        factors = {path: (a.half(), b.half()) for path, (a, b) in self.factors.items()}
        for path, pair in factors.items():
            if not all(bool(torch.isfinite(t).all()) for t in pair):
                raise IntegrityFault(f"the LoRA of {path} is not finite in float16", hint="lower the learning rate")
        return LoraWeights(factors, self.scale, self.placement)

    def to_bytes(self, metadata: Mapping[str, Any]) -> bytes:
        """The bytes of a safetensors file; its header has `metadata` (JSON values), the scale and the placement."""
        tensors = {}
        for path, (a, b) in sorted(self.factors.items()):
            tensors[f"{PEFT_KEY_PREFIX}{path}.lora_A.weight"] = a.contiguous()
            tensors[f"{PEFT_KEY_PREFIX}{path}.lora_B.weight"] = b.contiguous()
        header = {**metadata, "scale": self.scale, "placement": str(self.placement)}
        return save_tensors(tensors, metadata={"mta": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_file(cls, path: Path) -> LoraWeights:
        """The weights of a file that `to_bytes` made. The file is memory-mapped.

        Raises IntegrityFault for any other file, and for one that cannot be read.
        """
        try:
            metadata, factors = read_adapter_file(path)
            header = json.loads(metadata["mta"])
            scale, placement = float(header["scale"]), Placement.parse(header["placement"])
            if not math.isfinite(scale):
                raise ValueError(f"its scale is {scale}")
        except (MtaError, SafetensorError, ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise IntegrityFault(
                f"{path.name} is not an adapter of mta: {error}", hint=(Command("doctor"), " checks stored adapters")
            ) from error
        return cls(factors, scale, placement)


def squared_norm(a: Tensor, b: Tensor) -> float:
    """Squared Frobenius norm of `B A`, in float64, from the factors' small Gram matrices: tr(A Aᵀ · Bᵀ B)."""
    a, b = a.cpu().double(), b.cpu().double()
    return max(0.0, float(((a @ a.T) * (b.T @ b)).sum()))


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear modules inside decoder layers by path, in the model's own order, without routers of experts."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and LAYER_INDEX_PATTERN.search(path)
        # Llama 4's router also returns its choice of experts, so a LoraLinear cannot replace it
        and not type(module).__name__.endswith("Router")
    }


def layer_of(path: str) -> int:
    """The index of the decoder layer in a module's path. Raises BadInput for a path without one."""
    match = LAYER_INDEX_PATTERN.search(path)
    if match is None:
        raise BadInput(f"{path} is not a module of a decoder layer")
    return int(match[1])


def find_target_modules(model: nn.Module, targets: str, placement: str) -> tuple[list[str], Placement]:
    """The paths of the modules that `targets` (names, comma-separated, or `all-linear`) selects in the layers of
    `placement`, and the placement itself. Raises the errors of `select_target_modules`.
    """
    layers = linear_layers(model)
    where = Placement.from_name(placement, 1 + max((layer_of(path) for path in layers), default=0))
    named = select_target_modules(targets, {path.rsplit(".", 1)[-1] for path in layers})
    chosen = [
        p for p in layers if p.rsplit(".", 1)[-1] in named and where.first_layer <= layer_of(p) <= where.last_layer
    ]
    return chosen, where


def init_lora_weights(
    model: nn.Module, targets: str, placement: str, rank: int, alpha: float, seed: int
) -> LoraWeights:
    """Initial factors: `A` Kaiming-uniform as in PEFT, `B` zero, so ΔW is zero. The same seed gives equal numbers."""
    paths, where = find_target_modules(model, targets, placement)
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    factors: Factors = {}
    for path in paths:
        linear = modules[path]
        assert isinstance(linear, nn.Linear)
        a = torch.empty(rank, linear.in_features)  # [rank, in]
        nn.init.kaiming_uniform_(a, a=5**0.5, generator=generator)
        factors[path] = (a, torch.zeros(linear.out_features, rank))
    return LoraWeights(factors, alpha / rank, where)


class LoraLinear(nn.Module):
    """A frozen linear layer plus `B A x`; the scale is inside `B`. Products run in the input's dtype."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, a, b  # a [rank, in], b [out, rank]

    def forward(self, x: Tensor) -> Tensor:
        """`[…, in]` → `[…, out]`."""
        inner = nn.functional.linear(x, self.a.to(x.dtype))
        result: Tensor = self.linear(x) + nn.functional.linear(inner, self.b.to(x.dtype))
        return result

    @property
    def weight(self) -> Tensor:
        """`W + B A`, for models that read the weight instead of calling the layer, as Mamba does."""
        return self.linear.weight + (self.b @ self.a).to(self.linear.weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's bias."""
        return self.linear.bias


@contextmanager
def attach_lora_layers(model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside the block, a `LoraLinear` replaces each linear layer in `factors`; B must include the scale.

    Raises BadInput for a module that is not a plain linear layer.
    """
    layers: dict[str, LoraLinear] = {}
    try:
        for path, (a, b) in factors.items():
            linear = model.get_submodule(path)
            if not isinstance(linear, nn.Linear):
                raise BadInput(f"The module {path} of this base is not a torch.nn.Linear, so no LoRA can act on it")
            layers[path] = LoraLinear(linear, a, b)
            model.set_submodule(path, layers[path])
        yield
    finally:
        for path, layer in layers.items():
            model.set_submodule(path, layer.linear)


class AdapterMerger:
    """Merges one LoRA at a time into a base's weights, so that it adds no cost to a forward pass.

    The original weights of adapted modules are kept, so that `set_adapter(None)` restores the base bit for bit. A
    packed (quantised) weight is not changed; a hook adds the scaled `B A x` to its module's output.
    """

    def __init__(self, base: LoadedBase) -> None:
        self.base = base
        self._original: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []  # on modules with packed weights

    @torch.no_grad()
    def set_adapter(self, weights: LoraWeights | None) -> None:
        """Merge `weights` into the base in place of the earlier adapter; None restores the base.

        ΔW is computed in float32 and added before rounding to the model's dtype. Raises UsageError for a LoRA for late
        tokens only, and IntegrityFault for a LoRA that does not fit the base.
        """
        factors = weights.factors if weights is not None else {}
        if weights is not None and weights.placement.late_tokens is not None:
            raise UsageError(
                "a LoRA that acts only on late tokens cannot be merged into weights, which act on all tokens",
                hint=("train it with ", Flag("placement", "upper")),
            )
        # 1. undo the earlier adapter; modules of the new one are overwritten below
        self.base.invalidate_caches()
        while self._hooks:
            self._hooks.pop().remove()
        for path, original in self._original.items():
            if path not in factors:
                self._module(path).weight.copy_(original)
        # 2. W + ΔW from the kept originals, so that rounding errors do not add up
        for path in factors:
            assert weights is not None
            module = self._module(path)
            a, b = (factor.to(module.weight.device, torch.float32) for factor in factors[path])
            if (shape := (b.shape[0], a.shape[1])) != (fitting := (module.out_features, module.in_features)):
                raise IntegrityFault(
                    f"{path}: the adapter's shape {shape} does not fit the base's {fitting}",
                    hint="use the base on which the adapter was trained",
                )
            if not has_plain_weight(module):
                self._hooks.append(module.register_forward_hook(_add_delta(a, weights.scale * b, self.base.dtype)))
                continue
            weight = module.weight
            original = self._original.setdefault(path, weight.clone())
            weight.copy_(torch.addmm(original.float(), b, a, alpha=weights.scale))

    def _module(self, path: str) -> nn.Linear:
        try:
            module = self.base.model.get_submodule(path)
        except AttributeError as error:
            raise IntegrityFault(
                f"this base has no layer {path}", hint="use the base on which the adapter was trained"
            ) from error
        if not isinstance(module, nn.Linear):
            raise IntegrityFault(
                f"{path} of this base is not a linear layer", hint="use the base on which the adapter was trained"
            )
        return module


def _add_delta(a: Tensor, b: Tensor, dtype: torch.dtype) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that adds `b a x`, for `a` [rank, in] and scaled `b` [out, rank], computed in `dtype`."""
    a, b = a.to(dtype), b.to(dtype)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + nn.functional.linear(nn.functional.linear(inputs[0], a), b)

    return add


@contextmanager
def merge_into_base(base: LoadedBase, weights: LoraWeights | None) -> Iterator[AdapterMerger]:
    """An `AdapterMerger` with `weights` merged; the base is restored on exit."""
    merger = AdapterMerger(base)
    try:
        merger.set_adapter(weights)
        yield merger
    finally:
        merger.set_adapter(None)
