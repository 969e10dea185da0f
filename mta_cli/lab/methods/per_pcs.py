"""`per-pcs`: every module of a user's LoRA is assembled from the anchors that act most on its inputs, as in Per-Pcs.

Per-Pcs (arXiv 2406.10471) cuts each sharer's LoRA into one piece per module, with a gate: a vector g, trained on the
sharer's own history. A piece's score is the mean of √in · cos(x, g) over the tokens that predict the user's answers,
where x is the module's input (centred in the paper before the cosine). The three best pieces of a module are weighted
by a softmax, and their A and B are summed separately. The result is applied before the inputs of the next module are
scored. This module does all of that in one pass over the user's shots.

There is one difference. A bank holds no sharer's history, so no gate is trained, and the piece is its own gate. Its
score is the mean of √in · ‖ΔW x‖ / (‖ΔW‖ ‖x‖), with the Frobenius norm: the share of the user's inputs that the piece
acts on, independent of its size. For a piece of rank one, ΔW = b gᵀ, this is √in · |cos(x, g)|, the paper's score up to
its sign. An input of random direction scores about 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mta_cli.engine.backends import backend_of
from mta_cli.engine.lora.adapter import Factors, LoraWeights, Placement, merge_placements
from mta_cli.engine.lora.batched import ModuleSlice, module_slices, stack_loras
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.model.llama import BatchedLora
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.module_scoring import module_token_losses
from mta_cli.engine.scoring.prefix_cache_scoring import PrefixCacheScorer
from mta_cli.engine.scoring.prefix_tree import PromptTree

BYTES_PER_PIECE = 4  # bytes of a chosen piece: its anchor's number and its weight, 2 each
MIN_NORM = 1e-12


class AnchorPieces:
    """The pieces of all anchors by module: `A [anchors, rank, in]` and scaled `B [anchors, out, rank]`, float32."""

    def __init__(self, anchors: Sequence[LoraWeights], device: torch.device) -> None:
        self.placement: Placement = merge_placements([anchor.placement for anchor in anchors])
        self.factors = stack_loras(anchors, device)
        self._grams = {path: b.mT @ b for path, (_, b) in self.factors.items()}  # [anchors, rank, rank]
        self._norms = {
            path: ((a @ a.mT) * self._grams[path]).sum((1, 2)).clamp_min(0.0).sqrt()
            for path, (a, _) in self.factors.items()
        }

    def scores(self, path: str, x: Tensor, share: Tensor) -> Tensor:
        """Each anchor's score [anchors] at a module with inputs `x` [tokens, in] of weight `share` [tokens].

        A missing piece, or one with ΔW = 0, scores 0, the lowest score.
        """
        a, _ = self.factors[path]
        inner = x @ a.mT  # [anchors, tokens, rank]
        answer = ((inner @ self._grams[path]) * inner).sum(-1).clamp_min(0.0).sqrt()
        whole = self._norms[path][:, None] * torch.linalg.vector_norm(x, dim=-1)
        result: Tensor = math.sqrt(x.shape[-1]) * (answer / whole.clamp_min(MIN_NORM)) @ share
        return result


@dataclass
class PieceAssembly:
    """One user's LoRA, which grows module by module during a pass over their shots.

    `rows`, `columns` [tokens] are the positions that predict answers, and `share` [tokens] their weights.
    `chosen_pieces` are, by module, the chosen anchors with their weights, the best first.
    """

    pool: AnchorPieces
    top_k: int
    temperature: float
    rows: Tensor
    columns: Tensor
    share: Tensor
    factors: Factors = field(default_factory=dict)
    chosen_pieces: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)

    def apply_piece(self, path: str, x: Tensor) -> Tensor:
        """Choose the user's piece for a module by its input `x`, keep it, and return its output for `x`.

        `[rows, time, in]` → `[rows, time, out]`.
        """
        a, b = self.factors[path] = self._choose(path, x[self.rows, self.columns].float())
        return x @ a.to(x.dtype).T @ b.to(x.dtype).T

    def _choose(self, path: str, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.pool.scores(path, x, self.share)
        best, chosen = scores.topk(min(self.top_k, len(scores)))
        weights = torch.softmax(best / self.temperature, 0)
        self.chosen_pieces[path] = (chosen.tolist(), weights.tolist())
        a, b = self.pool.factors[path]
        return torch.tensordot(weights, a[chosen], 1), torch.tensordot(weights, b[chosen], 1)

    def to_lora_weights(self) -> LoraWeights:
        """The LoRA, float32 on the CPU."""
        factors = {path: (a.cpu(), b.cpu()) for path, (a, b) in self.factors.items()}
        return LoraWeights(factors, 1.0, self.pool.placement)


@dataclass(frozen=True, kw_only=True)
class _AssemblyLora(BatchedLora):
    """The LoRA that an assembly applies in a pass of `LlamaDecoder`."""

    assembly: PieceAssembly
    module_slices: dict[str, ModuleSlice]

    def add_delta(self, key: tuple[int, str], x: Tensor, y: Tensor) -> Tensor:
        """See `BatchedLora`."""
        for path, place in self.module_slices.items():
            if (place.layer, place.projection) == key:
                y = y + F.pad(self.assembly.apply_piece(path, x), (place.columns_before, place.columns_after))
        return y


@torch.no_grad()
def assemble_pieces(
    base: LoadedBase, pool: AnchorPieces, user: UserShots, top_k: int, temperature: float
) -> PieceAssembly:
    """The user's pieces, chosen by the rows of their shots in one pass. There must be at least one row.

    Raises UsageError where the base does not support the anchors' placement.
    """
    backend_of(base).require_placements([pool.placement])
    trees = [PromptTree.from_row(row) for row in user.rows]
    starts = [
        pool.placement.first_position(len(tree.prompt)) if base.llama_decoder is not None else 0 for tree in trees
    ]
    where = [(r, column - starts[r]) for r, tree in enumerate(trees) for column, _, _ in tree.prediction_targets()]
    share = [1.0 / (len(trees) * len(trees[r].completions[0])) for r, _ in where]
    rows, columns = torch.tensor(where, device=base.device).T
    assembly = PieceAssembly(pool, top_k, temperature, rows, columns, torch.tensor(share, device=base.device))
    if base.llama_decoder is not None:
        part = _AssemblyLora({}, assembly=assembly, module_slices=module_slices(base.llama_decoder, list(pool.factors)))
        PrefixCacheScorer(base.llama_decoder, trees, pool.placement).score_trees(range(len(trees)), {}, also=[part])
    else:
        with _hook_assembly(base.model, assembly):
            module_token_losses(base, trees)
    return assembly


@contextmanager
def _hook_assembly(model: nn.Module, assembly: PieceAssembly) -> Iterator[None]:
    """Inside the block, forward hooks add the assembly's pieces to the outputs of the model's modules.

    Each piece is chosen when its module runs.
    """

    def beside(path: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + assembly.apply_piece(path, inputs[0])

    handles = [model.get_submodule(path).register_forward_hook(partial(beside, path)) for path in assembly.pool.factors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def build_per_pcs_models(context: MethodContext, users: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """A model for each of `users` with a LoRA of the anchors' rank; without a LoRA if shots or anchors are missing."""
    if not len(context.anchors):
        return [UserModel() for _ in users]
    base = context.loaded_base
    pool = AnchorPieces(list(context.anchors), base.device)
    top_k, temperature = int(settings["top_k"]), float(settings["temperature"])
    return [
        _assembly_to_model(assemble_pieces(base, pool, user, top_k, temperature)) if user.rows else UserModel()
        for user in users
    ]


def _assembly_to_model(assembly: PieceAssembly) -> UserModel:
    pieces = sum(len(chosen) for chosen, _ in assembly.chosen_pieces.values())
    return UserModel((assembly.to_lora_weights(),), bytes=BYTES_PER_PIECE * pieces)


METHOD = Method(
    "per-pcs",
    "the three anchors that answer the user's inputs best, module by module (as Per-Pcs)",
    overrides={"top_k": 3, "temperature": 1.0},
    grid=({"top_k": 1}, {"top_k": 3}, {"top_k": 3, "temperature": 0.1}),
    build=build_per_pcs_models,
)
