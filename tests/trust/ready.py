"""Imports all that commands import, on one computing thread, so that copies of this process start at once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sentence_transformers  # noqa: F401
import sklearn.cluster  # noqa: F401
import torch
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama  # noqa: F401

import store.migrations.steps  # noqa: F401

torch.set_num_threads(1)
