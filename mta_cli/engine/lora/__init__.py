"""LoRA weights: initialisation, merging, files, and batches with a different LoRA in each row.

Read `adapter` first, then `merge` and `batched`. `row_factors` serves continuous batching; `cores` reads stacks that
earlier versions stored.
"""
