"""LoRA weights: initialisation, merging, files, and batches with a different LoRA in each row.

Read `adapter` first, then `merge` (exact in ΔW), and `batched`; `cores` reads stacks of former versions.
"""
