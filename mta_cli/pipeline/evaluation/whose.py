"""Measures authorship: the likelihood of each held-out answer under its user's model and under other users' models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mta_cli.pipeline.evaluation.answer_queries import ModelQuery, gold_log_likelihoods
from store.records import Item
from store.tables.predictions import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.topics import AlikeGroup
    from mta_cli.engine.evaluation.whose import WhoseSums
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.pipeline.data.examples import PromptRowBuilder
    from store.records import Query

MAX_LORA_PARAMS_PER_BATCH = 1 << 26  # LoRA parameters of the users in one batch; a single user may have more
MAX_USERS_PER_GROUP = 16  # users whose models are made and scored together
TOPIC_ITEMS, TOPIC_CHARS = 50, 1000  # the latest items that represent a user's topics, and the characters of each
Loras = tuple["LoraWeights", ...]


def group_users_with_similar_topics(
    users: Sequence[int], items: Mapping[int, Sequence[Item]], named: Mapping[int, str]
) -> list[AlikeGroup]:
    """Group users by the group names in their files (`named`), and by the words of their latest items."""
    from mta_cli.engine.evaluation.topics import group_alike

    texts = {
        user: "\n".join(f"{one.input} {one.output}"[:TOPIC_CHARS] for one in own[-TOPIC_ITEMS:])
        for user, own in items.items()
    }
    return group_alike(users, texts, named, MAX_USERS_PER_GROUP)


def pack_gold_logliks_under_models(
    base: LoadedBase,
    examples: PromptRowBuilder,
    queries: Sequence[Query],
    others: Mapping[int, Sequence[int]],
    load_loras: Callable[[int], Loras],
    prior_of: Callable[[int], LabelPrior | None],
) -> dict[int, bytes]:
    """By query id, the gold's packed log-likelihoods under its user's model and the models of `others[user]`.

    All models get the same prompt and the label prior of the query's user. `load_loras` returns a user's LoRAs, which
    act on top of the base and of the adapter merged into it.
    """
    owners = sorted({*others, *(other for found in others.values() for other in found)})
    asked_of = {
        owner: [one for one in queries if owner == one.user_id or owner in others[one.user_id]] for owner in owners
    }
    found: dict[tuple[int, int], float] = {}  # by query and by the model's user
    for batch in batches_by_size((owner, load_loras(owner)) for owner in owners):
        pairs = [ModelQuery(query, place) for place, (owner, _) in enumerate(batch) for query in asked_of[owner]]
        priors = [prior_of(one.query.user_id) for one in pairs]
        logliks = gold_log_likelihoods(base, examples, pairs, [loras for _, loras in batch], priors)
        for pair, value in zip(pairs, logliks, strict=True):
            found[pair.query.id, batch[pair.model_index][0]] = value
    return _pack(queries, others, lambda query, owner: found[query.id, owner])


def pack_naive_bayes_logliks(
    queries: Sequence[Query], others: Mapping[int, Sequence[int]], written: Mapping[int, Sequence[str]]
) -> dict[int, bytes]:
    """`pack_gold_logliks_under_models` with naive Bayes on the characters of each user's `written` texts as models."""
    from mta_cli.engine.evaluation.naive_bayes import attribute_texts

    rows = attribute_texts(written, [(one.user_id, one.gold, others[one.user_id]) for one in queries])
    found = {
        (query.id, owner): value
        for query, row in zip(queries, rows, strict=True)
        for owner, value in zip((query.user_id, *others[query.user_id]), row, strict=True)
    }
    return _pack(queries, others, lambda query, owner: found[query.id, owner])


def whose_sums(answers: Sequence[Prediction], unit: str = "users") -> WhoseSums | None:
    """Authorship sums by user or by question (`unit`), over the answers with likelihoods under other users' models.

    None if no answer has them.
    """
    from mta_cli.engine.evaluation.whose import sum_whose, unpack_logliks

    known = [one for one in answers if one.whose is not None]
    owners = [one.user_id if unit == "users" else one.query_id for one in known]
    return sum_whose(owners, [unpack_logliks(one.whose or b"") for one in known])


def batches_by_size(models: Iterable[tuple[int, Loras]]) -> Iterator[list[tuple[int, Loras]]]:
    """Batches of (user, LoRAs), each of at most `MAX_LORA_PARAMS_PER_BATCH` parameters or of a single user."""
    batch: list[tuple[int, Loras]] = []
    size = 0
    for owner, loras in models:
        own = sum(part.num_parameters for part in loras)
        if batch and size + own > MAX_LORA_PARAMS_PER_BATCH:
            yield batch
            batch, size = [], 0
        batch.append((owner, loras))
        size += own
    if batch:
        yield batch


def _pack(
    queries: Sequence[Query], others: Mapping[int, Sequence[int]], loglik: Callable[[Query, int], float]
) -> dict[int, bytes]:
    from mta_cli.engine.evaluation.whose import pack_logliks

    return {
        one.id: pack_logliks(loglik(one, one.user_id), [loglik(one, other) for other in others[one.user_id]])
        for one in queries
    }
