"""The LoRA-XS basis of a bank: the main directions of its anchors, as the frozen factors around every user's core."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mta_cli.errors import BadInput
from mta_cli.options import MAX_STACK_RANK
from mta_cli.pipeline.training.groups import BankBasis
from store.records import Adapter, Bank

if TYPE_CHECKING:
    from store.registry import Registry


def load_or_make_basis(reg: Registry, bank: Bank) -> BankBasis:
    """The bank's basis, of the largest rank that a core may have; computed and stored on first use.

    Raises BadInput when the anchors' ΔW are all zero.
    """
    from mta_cli.pipeline.user_weights import load_weights

    digest = reg.banks.by_id(bank.id).basis or _make_basis(reg, bank)
    return BankBasis(reg.adapters.get(digest), load_weights(reg, digest, bank.base))


def _make_basis(reg: Registry, bank: Bank) -> str:
    from mta_cli.engine.lora.lora_xs import bank_basis
    from mta_cli.pipeline.bank.screening import usable_anchors
    from mta_cli.pipeline.runs import library_versions
    from mta_cli.pipeline.user_weights import load_weights

    digests = [anchor.digest for anchor in usable_anchors(reg, bank) if anchor.digest is not None]
    found = bank_basis([load_weights(reg, digest, bank.base) for digest in digests], MAX_STACK_RANK)
    if found is None:
        raise BadInput(
            f"The anchors of bank {bank.name} v{bank.version} do not move the model: no core can stand on them.",
            hint="--kind lora",
        )
    weights, data = found.cast_for_storage(), hashlib.sha256("\n".join(digests).encode()).hexdigest()
    header = {
        "kind": "basis",
        "base": bank.base,
        "task_adapter": bank.task_adapter,
        "rank": weights.rank,
        "alpha": weights.scale * weights.rank,
        "seed": bank.seed,
        "data_hash": data,
    }
    digest, size = reg.adapters.write_file(weights.to_bytes(header))
    adapter = Adapter(
        digest=digest,
        kind="basis",
        base=bank.base,
        task_adapter=bank.task_adapter,
        rank=weights.rank,
        alpha=weights.scale * weights.rank,
        targets="",
        placement=str(weights.placement),
        dtype="float16",
        seed=bank.seed,
        data_hash=data,
        bytes=size,
        versions=library_versions(),
    )
    with reg.transaction():
        reg.adapters.add_adapter(adapter)
        reg.banks.set_basis(bank.id, digest)
    return digest
