"""Pure machine learning: no database, no terminal, no settings.

Read the packages in this order: model, text, lora, scoring, generation, training; then retrieval and memory; then
methods, which combine them, and evaluation.
"""

from __future__ import annotations

import os

# oneDNN keeps a compiled kernel for each tensor shape, and rows have many lengths. With oneDNN's default limit of 1,024
# kernels, training SmolLM2-135M took 0.2 GB more and no less time. The variable is read before the first kernel.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
