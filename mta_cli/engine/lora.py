"""LoRA weights: their files, the layers that train them, and folding them into a base. Knows no user, bank or database.

A LoRA adds `scale · B A` to a frozen weight `W` (Hu et al., arXiv 2106.09685), with `A [rank, in]`, `B [out, rank]` and
`scale = alpha / rank`. Files hold PEFT's key names, so that PEFT reads every one of them.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from mta_cli.errors import BadInput, IntegrityFault, UsageFault

PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"
_LAYER = re.compile(r"\.(\d+)\.")
_KEY = re.compile(r"^base_model\.model\.([A-Za-z0-9_.]+)\.lora_([AB])\.weight$")

Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Placement:
    """Where a part acts: decoder layers `first` to `last` (inclusive), and at which token positions."""

    first: int
    last: int
    tokens: str = "all"

    def __str__(self) -> str:
        return f"{self.first}-{self.last}/{self.tokens}"

    @classmethod
    def parse(cls, text: str) -> "Placement":
        """Read what `str` wrote. Raises IntegrityFault when it is something else."""
        match = re.fullmatch(r"(\d+)-(\d+)/(all)", text)
        if match is None:
            raise IntegrityFault(f"unknown placement {text!r}", hint="update mta: the adapter is from a newer version")
        return cls(int(match[1]), int(match[2]), match[3])

    @classmethod
    def named(cls, name: str, layers: int) -> "Placement":
        """`all` layers of a base with `layers` of them, or the `upper` third."""
        return cls(layers - max(1, layers // 3) if name == "upper" else 0, layers - 1)


@dataclass(frozen=True)
class LoraWeights:
    """Factors by module path: `A [rank, in]` and `B [out, rank]`; ΔW is `scale · B A`. Ranks may differ by module."""

    factors: Factors
    scale: float
    placement: Placement

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 when there is none."""
        return max((int(a.shape[0]) for a, _ in self.factors.values()), default=0)

    @property
    def parameters(self) -> int:
        """How many numbers the factors hold."""
        return sum(a.numel() + b.numel() for a, b in self.factors.values())

    def delta(self, path: str) -> Tensor:
        """ΔW of one module, float32 `[out, in]`."""
        a, b = self.factors[path]
        return self.scale * (b.float() @ a.float())

    def norm(self) -> float:
        """Frobenius norm of ΔW over all modules, from the factors' small Gram matrices."""
        total = 0.0
        for a, b in self.factors.values():
            a64, b64 = a.double(), b.double()
            total += float(((a64 @ a64.T) * (b64.T @ b64)).sum())
        return self.scale * math.sqrt(max(total, 0.0))

    def stored(self, dtype: torch.dtype = torch.float16) -> "LoraWeights":
        """The weights as a file in `dtype` gives them back. Raises IntegrityFault when a number is not finite there."""
        factors = {path: (a.to(dtype), b.to(dtype)) for path, (a, b) in self.factors.items()}
        for path, pair in factors.items():
            if not all(bool(torch.isfinite(t).all()) for t in pair):
                raise IntegrityFault(f"{path} holds numbers that are not finite", hint="lower the learning rate")
        return LoraWeights(factors, self.scale, self.placement)

    def to_bytes(self, metadata: Mapping[str, Any]) -> bytes:
        """A safetensors file under PEFT's names; `metadata` (JSON values), scale and placement stand in its header."""
        tensors = {}
        for path, (a, b) in sorted(self.factors.items()):
            tensors[f"{PREFIX}{path}.lora_A.weight"] = a.contiguous()
            tensors[f"{PREFIX}{path}.lora_B.weight"] = b.contiguous()
        header = {**metadata, "scale": self.scale, "placement": str(self.placement)}
        return save_tensors(tensors, metadata={"mta": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_file(cls, path: Path) -> "LoraWeights":
        """Read a file that `to_bytes` made, without trusting it. Raises IntegrityFault on anything else."""
        halves: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("mta", "null"))
                for key in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    match = _KEY.match(key)
                    if match is None:
                        raise IntegrityFault(f"{path.name} holds a tensor that is no LoRA factor: {key[:80]!r}")
                    halves.setdefault(match[1], {})[match[2]] = file.get_tensor(key)
            scale, placement = float(header["scale"]), Placement.parse(header["placement"])
            factors = {name: (pair["A"], pair["B"]) for name, pair in halves.items()}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise IntegrityFault(f"{path.name} is no adapter of mta: {error}", hint="mta doctor") from error
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise IntegrityFault(f"{path.name} is no safetensors file: {error}", hint="mta doctor") from error
        for name, (a, b) in factors.items():
            if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
                raise IntegrityFault(f"{path.name}: factors of {name} do not fit: {tuple(a.shape)}, {tuple(b.shape)}")
        return cls(factors, scale, placement)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear modules inside decoder layers by path, in the model's own order."""
    return {
        path: module for path, module in model.named_modules() if isinstance(module, nn.Linear) and _LAYER.search(path)
    }


def layer_of(path: str) -> int:
    """The decoder layer that a module path stands in."""
    match = _LAYER.search(path)
    if match is None:
        raise BadInput(f"{path} is in no decoder layer")
    return int(match[1])


def find_targets(model: nn.Module, targets: str, placement: str) -> tuple[list[str], Placement]:
    """Module paths that `targets` (names, comma-separated, or `all-linear`) select in the layers of `placement`.

    Raises UsageFault when a name fits no layer of this base.
    """
    layers = linear_layers(model)
    where = Placement.named(placement, 1 + max((layer_of(path) for path in layers), default=0))
    known = {path.rsplit(".", 1)[-1] for path in layers}
    wanted = known if targets == ALL_LINEAR else {name.strip() for name in targets.split(",") if name.strip()}
    unknown = sorted(wanted - known)
    if unknown or not wanted:
        raise UsageFault(
            f"targets {', '.join(unknown) or targets!r}: this base has no such layers",
            hint=f"choose among {', '.join(sorted(known))}, or {ALL_LINEAR}",
        )
    chosen = [p for p in layers if p.rsplit(".", 1)[-1] in wanted and where.first <= layer_of(p) <= where.last]
    return chosen, where


def initial(model: nn.Module, targets: str, placement: str, rank: int, alpha: float, seed: int) -> LoraWeights:
    """Fresh factors: `A` Kaiming-uniform as in PEFT, `B` zero, so ΔW starts at nothing. Same seed, same numbers."""
    paths, where = find_targets(model, targets, placement)
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
    """A frozen linear layer plus `scale · B (gate · A x)`. The factors are float32; products run in the input's dtype.

    `gate` [parts] with `owner` [rank] weighs the ranks of several parts; without it every rank counts fully.
    """

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(a.to(linear.weight.device, torch.float32, copy=True))  # [rank, in]
        self.b = nn.Parameter(b.to(linear.weight.device, torch.float32, copy=True))  # [out, rank]
        self.scale = scale
        self.gate: Tensor | None = None
        self.owner: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[…, in]` → `[…, out]`."""
        inner = nn.functional.linear(x, self.a.to(x.dtype))
        if self.gate is not None and self.owner is not None:
            inner = inner * self.gate[self.owner].to(x.dtype)
        result: Tensor = self.linear(x) + nn.functional.linear(inner, (self.scale * self.b).to(x.dtype))
        return result


@contextmanager
def attached(model: nn.Module, weights: LoraWeights) -> Iterator[dict[str, LoraLinear]]:
    """The model with trainable LoRA layers in place of the adapted linear ones, which come back on exit."""
    layers: dict[str, LoraLinear] = {}
    try:
        for path, (a, b) in weights.factors.items():
            linear = model.get_submodule(path)
            if not isinstance(linear, nn.Linear):
                raise BadInput(f"{path} of this base is no plain linear layer")
            layers[path] = LoraLinear(linear, a, b, weights.scale)
            model.set_submodule(path, layers[path])
        yield layers
    finally:
        for path, layer in layers.items():
            model.set_submodule(path, layer.linear)


class Folder:
    """Folds one LoRA at a time into a model's own weights, so that it runs at the base's speed.

    The original weights of touched modules are kept, so that `set(None)` restores the base bit for bit.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._original: dict[str, Tensor] = {}

    @torch.no_grad()
    def set(self, weights: LoraWeights | None) -> None:
        """Make the model `W + ΔW`. ΔW is computed in float32 and added before rounding to the model's dtype."""
        factors = weights.factors if weights is not None else {}
        for path, original in self._original.items():
            if path not in factors:
                self._weight(path).copy_(original)
        for path in factors:
            assert weights is not None
            weight = self._weight(path)
            original = self._original.setdefault(path, weight.clone())
            delta = weights.delta(path).to(weight.device)
            if delta.shape != weight.shape:
                raise IntegrityFault(f"{path}: ΔW {tuple(delta.shape)} does not fit the base's {tuple(weight.shape)}")
            weight.copy_(original.float() + delta)

    def _weight(self, path: str) -> Tensor:
        try:
            module = self.model.get_submodule(path)
        except AttributeError as error:
            raise IntegrityFault(f"this base has no layer {path}", hint="the adapter is for another base") from error
        if not isinstance(module, nn.Linear):
            raise IntegrityFault(f"{path} of this base is no linear layer", hint="the adapter is for another base")
        return module.weight.detach()


@contextmanager
def folded(model: nn.Module, weights: LoraWeights | None) -> Iterator[Folder]:
    """`Folder` for the length of a block; the base is restored on exit."""
    folder = Folder(model)
    try:
        folder.set(weights)
        yield folder
    finally:
        folder.set(None)
