"""The two backends of a base: the Llama decoder if it knows the base's layers, otherwise the base's own transformers
modules.

Both give the same numbers. The decoder is faster. Only the decoder can run rows of several users in one pass, LoRAs
that act on late tokens only, and constrained trees.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from mta_cli.engine.generation.decoding_batch import DecodingBatch
from mta_cli.engine.generation.llama_batches import pack_requests, read_prompts
from mta_cli.engine.generation.module_batch import ModuleBatch, read_prompts_in_turn
from mta_cli.engine.generation.request import GenerationRequest, PromptCache
from mta_cli.engine.lora.adapter import LoraWeights, Placement, merge_into_base
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.module_scoring import module_label_scores, module_log_likelihoods
from mta_cli.engine.scoring.prefix_cache_scoring import PrefixCacheScorer, pack_users_rows
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.scoring.token_budget import TokenBudget
from mta_cli.engine.scoring.tree_scorers import LlamaTreeScorer, ModuleTreeScorer, TreeScorer, group_frozen_loras
from mta_cli.errors import Flag, UsageError

UserLoras = tuple[LoraWeights, ...]
PromptBatches = Generator[tuple[Sequence[int], DecodingBatch | ModuleBatch, Tensor], None, None]


class LlamaBackend:
    """Computes with the Llama decoder. A user is given as the LoRAs that are added to the base as it is now."""

    name, takes_constrained_trees = "fast", True

    def __init__(self, base: LoadedBase) -> None:
        self._base, self._decoder = base, base.decoder

    def require_placements(self, placements: Sequence[Placement]) -> None:
        """Do nothing, because the decoder can compute every placement; see `ModuleBackend`."""

    def tree_scorer(
        self,
        trees: Sequence[PromptTree],
        placement: Placement,
        *,
        frozen_loras: Sequence[Sequence[LoraWeights]] = (),
        tree_users: Sequence[int] = (),
    ) -> TreeScorer:
        """A scorer of texts with shared beginnings (`trees`), under trainable LoRAs in the layers that `placement`
        names. Tree `i` also has the frozen LoRAs of user `tree_users[i]` below it.
        """
        return LlamaTreeScorer(self._decoder, trees, placement, frozen_loras, tree_users)

    def completion_log_likelihoods(
        self,
        trees: Sequence[PromptTree],
        users: Sequence[UserLoras],
        pairs: Sequence[tuple[int, int]],
        also: Sequence[Placement] = (),
    ) -> list[list[float]]:
        """See `log_likelihood.completion_log_likelihoods`."""
        scorer = PrefixCacheScorer(self._decoder, trees, span_user_placements(self._decoder, users, also))
        user_loras = group_frozen_loras(self._decoder, users)
        results = [trees[tree].zero_sums() for tree, _ in pairs]

        def run(batch: list[int]) -> None:
            owners = [pairs[i][1] for i in batch]
            scores = scorer.score_trees([pairs[i][0] for i in batch], {}, user_loras, owners)
            for value, row, completion in zip(
                scores.log_likelihoods.tolist(), scores.row.tolist(), scores.completion_index, strict=True
            ):
                results[batch[row]][completion] += value

        budget = TokenBudget(self._base)
        lengths, owners = [scorer.tokens_per_pass(tree) for tree, _ in pairs], [user for _, user in pairs]
        budget.run_batches(pack_users_rows(lengths, owners, budget.tokens), run)
        return results

    def label_scores(
        self, prompt: Sequence[int], labels: Sequence[tuple[int, ...]], loras: UserLoras, at_once: int
    ) -> list[float]:
        """Log-likelihoods (nats) of labels after one prompt, `at_once` labels in a pass."""
        groups = [tuple(labels[i : i + at_once]) for i in range(0, len(labels), at_once)]
        trees = [PromptTree(tuple(prompt), group) for group in groups]
        scores = self.completion_log_likelihoods(trees, [loras], [(i, 0) for i in range(len(trees))])
        return [value for values in scores for value in values]

    def pack_requests(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[list[int]]:
        """The indices of the requests, grouped so that the keys, values and factors of a group fit into memory."""
        return pack_requests(self._decoder, requests, max_tokens)

    def read_prompts(
        self, requests: Sequence[GenerationRequest], max_tokens: int, prompt_cache: PromptCache | None
    ) -> PromptBatches:
        """Yields batches of requests whose prompts were read: their indices, the batch, and the logits [rows,
        vocabulary].

        `prompt_cache` can be used for a single request only. This backend makes one batch of all requests.
        """
        return read_prompts(self._decoder, requests, max_tokens, TokenBudget(self._base).tokens, prompt_cache)


class ModuleBackend:
    """Computes with the base's own transformers modules: each user's LoRAs are merged into the weights in turn."""

    name, takes_constrained_trees = "transformers", False

    def __init__(self, base: LoadedBase) -> None:
        self._base = base

    def require_placements(self, placements: Sequence[Placement]) -> None:
        """Raise UsageError for a placement on late tokens only, because merged weights act on every token."""
        if any(one.late_tokens is not None for one in placements):
            raise UsageError(
                "A LoRA that acts only on late tokens needs the fast path (mta's own decoder), which does not support "
                f"{self._base.name} ({self._base.model.config.model_type}).",
                hint=("use ", Flag("placement", "upper")),
            )

    def tree_scorer(
        self,
        trees: Sequence[PromptTree],
        placement: Placement,
        *,
        frozen_loras: Sequence[Sequence[LoraWeights]] = (),
        tree_users: Sequence[int] = (),
    ) -> TreeScorer:
        """See `LlamaBackend`."""
        self.require_placements([placement, *(lora.placement for own in frozen_loras for lora in own)])
        return ModuleTreeScorer(self._base, trees, frozen_loras, tree_users)

    def completion_log_likelihoods(
        self,
        trees: Sequence[PromptTree],
        users: Sequence[UserLoras],
        pairs: Sequence[tuple[int, int]],
        also: Sequence[Placement] = (),
    ) -> list[list[float]]:
        """See `LlamaBackend`. Each completion runs as a separate row."""
        self.require_placements([lora.placement for own in users for lora in own])
        return module_log_likelihoods(self._base, trees, users, pairs)

    def label_scores(
        self, prompt: Sequence[int], labels: Sequence[tuple[int, ...]], loras: UserLoras, at_once: int
    ) -> list[float]:
        """See `LlamaBackend`."""
        self.require_placements([lora.placement for lora in loras])
        with merge_into_base(self._base, merge_loras([(lora, 1.0) for lora in loras])):
            return module_label_scores(self._base, prompt, labels, at_once)

    def pack_requests(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[list[int]]:
        """See `LlamaBackend`. One request is in memory at a time."""
        return [list(range(len(requests)))] if requests else []

    def read_prompts(
        self, requests: Sequence[GenerationRequest], max_tokens: int, prompt_cache: PromptCache | None
    ) -> PromptBatches:
        """See `LlamaBackend`. Each request is a batch."""
        self.require_placements([lora.placement for request in requests for lora in request.loras])
        return read_prompts_in_turn(self._base, requests, prompt_cache)


Backend = LlamaBackend | ModuleBackend


def backend_of(base: LoadedBase) -> Backend:
    """The Llama decoder's backend if the base has that decoder, otherwise the backend of its own modules."""
    return LlamaBackend(base) if base.llama_decoder is not None else ModuleBackend(base)


def span_user_placements(
    decoder: LlamaDecoder, users: Sequence[UserLoras], also: Sequence[Placement] = ()
) -> Placement:
    """The smallest placement that covers all the users' LoRAs. States outside it are the same for all users.

    Placements `also` are covered too, unless they act on all layers and tokens, which would leave nothing to share.
    """
    shareable = (one for one in also if one.first_layer > 0 or one.late_tokens is not None)
    placements = [*(lora.placement for own in users for lora in own), *shareable]
    layers = len(decoder.layers)
    lates = [one.late_tokens for one in placements if one.late_tokens is not None]
    late_tokens = max(lates) if placements and len(lates) == len(placements) else None
    return Placement(min([one.first_layer for one in placements], default=layers), layers - 1, late_tokens)
