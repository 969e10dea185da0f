"""Description, verification and removal of banks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command, IntegrityFault
from mta_cli.pipeline.anchors import findings_json
from mta_cli.pipeline.bank.ladder import LADDER_KEY
from mta_cli.pipeline.bases_in_use import base_name
from mta_cli.pipeline.memory.knn import MIXTURE_WEIGHTS_KEY
from mta_cli.pipeline.runs import bank_status
from mta_cli.pipeline.user_weights import load_weights
from mta_cli.pipeline.users.provenance import count_bank_users
from store.records import Bank

if TYPE_CHECKING:
    from store.registry import Registry


def bank_json(reg: Registry, bank: Bank) -> dict[str, Any]:
    """The JSON document of `mta bank build` and `mta bank show`."""
    anchors = [
        {
            "user": anchor.user,
            "items": anchor.items,
            "loss_first": anchor.loss_first,
            "loss_last": anchor.loss_last,
            "digest": anchor.digest,
            "cluster_size": anchor.cluster_size,
            "stale": anchor.stale,
        }
        for anchor in reg.banks.anchors(bank.id)
    ]
    return {
        "bank": bank.name,
        "version": bank.version,
        "task": bank.task,
        "status": bank_status(reg, bank),
        "base": bank.base,
        "base_name": base_name(reg, bank.base),
        "task_adapter": bank.task_adapter,
        "neighbours": reg.neighbours.count_neighbours(bank.id),
        "kernel": bank.kernel,
        "memory_weights": bank.config.get(MIXTURE_WEIGHTS_KEY),
        "ladder": bank.config.get(LADDER_KEY),
        **count_bank_users(reg, bank),
        "gates": findings_json(reg, bank),
        "anchors": anchors,
        "tokens": bank.tokens,
        "seconds": round(bank.seconds, 3),
        "tokens_per_second": round(bank.tokens / bank.seconds, 1) if bank.seconds else None,
    }


def verify_bank(reg: Registry, name: str, version: int | None = None) -> dict[str, Any]:
    """Read and check every adapter of a bank. Raises one IntegrityFault for all missing or damaged adapters."""
    bank = reg.banks.get(name, version)
    anchors = reg.banks.anchors(bank.id)
    digests = [digest for digest in (bank.task_adapter, bank.basis, *(a.digest for a in anchors)) if digest]
    faults = [f"anchor {a.id} ({a.user}) has no meta-LoRA" for a in anchors if a.digest is None and not a.stale]
    for digest in dict.fromkeys(digests):
        try:
            load_weights(reg, digest, bank.base).cast_for_storage()
        except IntegrityFault as error:
            faults.append(str(error))
    if faults:
        raise IntegrityFault(
            f"Bank {bank.name} v{bank.version} has missing or damaged parts: " + "; ".join(faults),
            hint=(
                "remove it and build it again: ",
                Command("bank rm", bank.name, bank_version=bank.version),
                ", then ",
                Command("bank build", task=bank.task),
            ),
        )
    stale = [a.id for a in anchors if a.stale]
    return {
        "bank": bank.name,
        "version": bank.version,
        "ok": True,
        "adapters": len(digests),
        "stale_anchors": stale,
        "gates": findings_json(reg, bank),
    }


def remove_bank(reg: Registry, bank: Bank) -> dict[str, Any]:
    """Remove a bank with its recipes and stacks, and the adapter files that nothing else uses.

    Raises StoreBusy while the bank is being built, or users are being adapted for its task.
    """
    with reg.job_lock(f"bank {bank.name}"), reg.job_lock(f"adapt {bank.task}"):
        return {"bank": bank.name, "version": bank.version, **reg.banks.remove(bank.id)}
