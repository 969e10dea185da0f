"""LoRA weights: how they are made, merged, stored, and applied to many users in one batch.

Read `adapter` first, then `merge` (exact in ΔW), and `batched`; `cores` reads stacks of former versions.
"""
