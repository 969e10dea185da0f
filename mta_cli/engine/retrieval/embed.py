"""Sentence embeddings of texts of any length, by the model in a sentence-transformers folder.

A long text is split into windows, and its embedding is the mean of the windows' embeddings, so no part is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mta_cli.engine.model.checkpoint_files import check_folder, load_errors_as_bad_input
from mta_cli.errors import Command, IntegrityFault

WINDOWS_PER_BATCH = 32
FALLBACK_WINDOW = 512


class Embedder:
    """A loaded sentence embedder. `window` is its maximum number of tokens."""

    def __init__(self, path: Path, device: str = "auto") -> None:
        """Loads the folder. Raises BadInput if it is damaged or not a sentence embedder."""
        check_folder(path)
        from mta_cli.engine.model.load import quiet_libraries, resolve_device

        quiet_libraries()
        from sentence_transformers import SentenceTransformer

        self.device = resolve_device(device)
        with load_errors_as_bad_input(f"{path} cannot be loaded as a sentence embedder"):
            self._model = SentenceTransformer(
                str(path),
                device=str(self.device),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            ).eval()
        self._tokenizer: Any = self._model.tokenizer
        self.window = min(self._model.max_seq_length or FALLBACK_WINDOW, 100_000)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length embeddings [texts, width] in float32."""
        pieces, owners = self._tokenize_windows(texts)
        order = sorted(range(len(pieces)), key=lambda index: len(pieces[index]["input_ids"]))
        sums: Tensor | None = None  # [texts, width]
        with torch.inference_mode():
            for start in range(0, len(order), WINDOWS_PER_BATCH):
                chosen = order[start : start + WINDOWS_PER_BATCH]
                vectors = self._forward([pieces[index] for index in chosen])  # [batch, width], unit length
                if sums is None:
                    sums = torch.zeros(len(texts), vectors.shape[1])
                sums.index_add_(0, torch.tensor([owners[index] for index in chosen]), vectors)
        if sums is None:
            return np.zeros((0, 0), dtype=np.float32)
        rows = torch.nn.functional.normalize(sums, dim=1).numpy()
        if not np.isfinite(rows).all():
            raise IntegrityFault(
                "The embedder is damaged: its vectors contain NaN or infinity.",
                hint=("install it again: ", Command("model rm"), ", then ", Command("model pull")),
            )
        return rows

    def count_tokens(self, texts: Sequence[str]) -> int:
        """The number of tokens that `embed` reads for these texts, including special tokens."""
        return sum(len(piece["input_ids"]) for piece in self._tokenize_windows(texts)[0])

    def _tokenize_windows(self, texts: Sequence[str]) -> tuple[list[dict[str, list[int]]], list[int]]:
        """The windows of all texts as token ids with special tokens, and the index of each window's text."""
        prompt = self._model.prompts.get(self._model.default_prompt_name or "", "") or ""
        if not texts:
            return [], []
        with load_errors_as_bad_input("The tokenizer of this embedder failed"):
            coded = self._tokenizer(
                [prompt + text for text in texts],
                truncation=True,
                max_length=self.window,
                return_overflowing_tokens=True,
                return_attention_mask=False,
            )
        names = [name for name in ("input_ids", "token_type_ids") if name in coded]
        pieces = [{name: coded[name][index] for name in names} for index in range(len(coded["input_ids"]))]
        return pieces, list(coded["overflow_to_sample_mapping"])

    def _forward(self, pieces: Sequence[dict[str, list[int]]]) -> Tensor:
        padded = self._tokenizer.pad(
            {name: [piece[name] for piece in pieces] for name in pieces[0]}, return_tensors="pt"
        )
        features = {name: tensor.to(self.device) for name, tensor in padded.items()}
        embeddings = self._model(features)["sentence_embedding"]
        return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu()
