"""Merging four rank-8 LoRAs on every linear layer of SmolLM2-135M, from files to one adapter, compared with PEFT.

Ours reads the files each time; PEFT merges loaded adapters, and its loading is measured separately: "from files" is the
sum of both. The limit is the time of moving the bytes of the files and the result in memory. Ours merges several times
in each turn, so that memory returned to a virtual machine's host is requested only once.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.rivals import load
from mta_cli.engine.lora.adapter import LoraWeights, Placement, linear_layers
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.pipeline.personalize.export_formats import CONFIG_FILE, WEIGHTS_FILE, peft_config

RANK, SCALE = 8, 2.0
SHARES = {"one": 0.4, "two": 0.3, "three": 0.2, "four": 0.1}
KINDS = ("cat", "linear", "svd")
TIMES = 10  # merges of ours in one turn
OURS, LOADING = "ours", "PEFT loads four adapters"

Factors = Mapping[str, tuple[Tensor, Tensor]]


def make_adapters(model: Any, folder: Path) -> dict[str, Path]:
    """Random adapters of every linear layer, as files of ours inside folders that PEFT loads."""
    layers, entry = linear_layers(model), harness.base_entry()
    folders = {}
    for seed, name in enumerate(SHARES):
        generator = torch.Generator().manual_seed(seed)
        factors = {
            path: (
                torch.randn(RANK, layer.in_features, generator=generator) * layer.in_features**-0.5,
                torch.randn(layer.out_features, RANK, generator=generator) * 0.02,
            )
            for path, layer in layers.items()
        }
        weights = LoraWeights(factors, SCALE, Placement(0, model.config.num_hidden_layers - 1)).cast_for_storage()
        folders[name] = folder / name
        folders[name].mkdir()
        (folders[name] / WEIGHTS_FILE).write_bytes(weights.to_bytes({"kind": "meta"}))
        config = {**peft_config(weights, entry), "lora_alpha": int(SCALE * RANK)}
        (folders[name] / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return folders


class Ours:
    """Our way from files to one merged LoRA."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.files = {name: folder / WEIGHTS_FILE for name, folder in folders.items()}

    def once(self) -> LoraWeights:
        """Read and merge."""
        merged = merge_loras([(LoraWeights.from_file(file), SHARES[name]) for name, file in self.files.items()])
        assert merged is not None
        return merged

    def often(self) -> None:
        """`TIMES` merges."""
        for _ in range(TIMES):
            self.once()


class Peft:
    """A PEFT model with the four adapters; every merge and load gets a new name."""

    def __init__(self, model: Any, folders: Mapping[str, Path]) -> None:
        from peft import PeftModel

        self.folders, self.numbers, self.made = folders, itertools.count(), list[str]()
        (first, folder), *others = folders.items()
        self.model: Any = PeftModel.from_pretrained(model, folder, adapter_name=first)
        for name, folder in others:
            self.model.load_adapter(folder, adapter_name=name)

    def merging(self, kind: str) -> Callable[[], str]:
        """A function that merges by `add_weighted_adapter`. `svd` keeps the full rank, like `cat`, in its fast form."""
        more = {"svd_rank": len(SHARES) * RANK, "svd_full_matrices": False} if kind == "svd" else {}

        def run() -> str:
            name = self._new(kind)
            self.model.add_weighted_adapter(list(SHARES), list(SHARES.values()), name, combination_type=kind, **more)
            return name

        return run

    def loading(self) -> None:
        """Load the four adapters from their folders."""
        for name, folder in self.folders.items():
            self.model.load_adapter(folder, adapter_name=self._new(name))

    def tidy(self) -> None:
        """Remove the made adapters, so that rounds are equal."""
        while self.made:
            self.model.delete_adapter(self.made.pop())

    def factors(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """The factors of a merged adapter, with the scale multiplied into B."""
        found = {}
        for path, module in self.model.get_base_model().named_modules():
            if name in getattr(module, "lora_A", {}):
                b = module.lora_B[name].weight.detach().double() * module.scaling[name]
                found[path] = (module.lora_A[name].weight.detach(), b)
        return found

    def _new(self, kind: str) -> str:
        self.made.append(f"{kind}{next(self.numbers)}")
        return self.made[-1]


def errors(parts: Sequence[tuple[LoraWeights, float]], results: Mapping[str, Factors]) -> dict[str, float]:
    """Frobenius norm of each result's ΔW minus the exact one, over all modules, as a share of the exact one's."""
    squares, total = dict.fromkeys(results, 0.0), 0.0
    for path in parts[0][0].factors:
        exact = sum(w * part.scale * _product(part.factors[path]) for part, w in parts)
        assert isinstance(exact, Tensor)
        total += float(exact.square().sum())
        for name, factors in results.items():
            squares[name] += float((_product(factors[path]) - exact).square().sum())
    return {name: (square / total) ** 0.5 for name, square in squares.items()}


def _product(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[1].double() @ pair[0].double()


def rows(seconds: Mapping[str, float], wrong: Mapping[str, float], floor: float) -> Iterator[dict[str, Any]]:
    """A row for ours, and two for each of PEFT's methods."""
    yield _row(OURS, seconds[OURS], seconds[OURS], floor, wrong[OURS])
    for kind in KINDS:
        alone = seconds[f"PEFT {kind}"]
        yield _row(f"PEFT {kind}, loaded", alone, seconds[OURS], floor, wrong[kind])
        yield _row(f"PEFT {kind}, from files", alone + seconds[LOADING], seconds[OURS], floor, wrong[kind])


def _row(name: str, own: float, ours: float, floor: float, wrong: float) -> dict[str, Any]:
    return {
        "merge k=4, rank 8": name,
        "ms": own * 1e3,
        "times ours": own / ours,
        "limit ms": floor * 1e3,
        "times limit": own / floor,
        "% of limit": 100 * floor / own,
        "error": wrong,
    }


def main() -> None:
    """Measure, and print the results."""
    rate = harness.bandwidth()
    model = load(harness.base_folder(), "float32")
    with tempfile.TemporaryDirectory() as folder:
        folders = make_adapters(model, Path(folder))
        ours, peft = Ours(folders), Peft(model, folders)
        merging = {f"PEFT {kind}": peft.merging(kind) for kind in KINDS}
        quick: dict[str, Callable[[], Any]] = {name: merging.pop(name) for name in ("PEFT cat", "PEFT linear")}
        runs = harness.interleave({OURS: ours.often, **quick, "tidy": peft.tidy}, repeats=15)
        runs |= harness.interleave({**merging, LOADING: peft.loading, "tidy": peft.tidy})
        parts = [(LoraWeights.from_file(file), SHARES[name]) for name, file in ours.files.items()]
        results = {OURS: ours.once().factors, **{kind: peft.factors(peft.merging(kind)()) for kind in KINDS}}
        wrong = errors(parts, results)
        size = sum(file.stat().st_size for file in ours.files.values()) + 4 * ours.once().num_parameters
    seconds = {name: harness.median_seconds(taken) for name, taken in runs.items()}
    seconds[OURS] /= TIMES
    rate = max(rate, harness.bandwidth())
    harness.report("merge", list(rows(seconds, wrong, size / rate)), bytes=size, bandwidth=rate)


if __name__ == "__main__":
    main()
