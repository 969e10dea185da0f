"""Pure machine learning: no database, no terminal, no settings.

Read in the order of the data: model, text, lora, scoring, generation, training; then retrieval and memory, the methods
that are made of them, and evaluation, which compares methods.
"""

from __future__ import annotations

import os

# oneDNN keeps a compiled kernel for each shape, and rows have many lengths. Its own limit of 1,024 kernels took 0.2 GB
# more in training SmolLM2-135M, and saved no time. It reads the variable before its first kernel.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
