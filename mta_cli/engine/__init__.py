"""Pure machine learning: no database, no terminal, no settings.

Read the packages in this order: model, text, lora, scoring, generation, training; then retrieval and memory; then
methods, which combine them, and evaluation.
"""

from __future__ import annotations

import os

# oneDNN keeps a compiled kernel for each shape, and rows have many lengths. Its own limit of 1,024 kernels took 0.2 GB
# more in training SmolLM2-135M, and saved no time. It reads the variable before its first kernel.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
