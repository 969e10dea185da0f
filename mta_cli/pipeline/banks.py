"""Looking after finished banks: verify and remove. Builds nothing."""

from typing import TYPE_CHECKING, Any

from mta_cli.errors import IntegrityFault
from mta_cli.pipeline.gating import findings_json
from mta_cli.pipeline.personal import load_weights
from store.models import Bank

if TYPE_CHECKING:
    from store.registry import Registry


def verify_bank(reg: "Registry", name: str, version: int | None = None) -> dict[str, Any]:
    """Read every adapter of a bank in full. IntegrityFault names all that are missing, changed or not finite."""
    bank = reg.banks.get(name, version)
    anchors = reg.banks.anchors(bank.id)
    digests = [digest for digest in (bank.task_adapter, bank.basis, *(a.digest for a in anchors)) if digest]
    faults = [f"anchor {a.id} ({a.user}) has no meta-LoRA" for a in anchors if a.digest is None]
    for digest in dict.fromkeys(digests):
        try:
            load_weights(reg, digest, bank.base).stored()
        except IntegrityFault as error:
            faults.append(error.message)
    if faults:
        raise IntegrityFault(
            f"Bank {bank.name} v{bank.version} is not whole: " + "; ".join(faults),
            hint=f"mta bank rm {bank.name} --bank-version {bank.version}, then mta bank build --task {bank.task}",
        )
    stale = [a.id for a in anchors if a.stale]
    return {
        "bank": bank.name, "version": bank.version, "ok": True, "adapters": len(digests), "stale_anchors": stale,
        "gates": findings_json(reg, bank),
    }  # fmt: skip


def remove_bank(reg: "Registry", bank: Bank) -> dict[str, Any]:
    """Remove a bank with the recipes and stacks on it, and the adapter files that nothing else uses."""
    return {"bank": bank.name, "version": bank.version, **reg.banks.remove(bank.id)}
