"""Keeps the libraries' own bars and warnings off the terminal. Knows nothing of what they load."""

from __future__ import annotations

import warnings


def quiet_libraries() -> None:
    """Silences transformers' progress bars and log lines; what matters is raised as an error instead."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|sentence_transformers|huggingface_hub)(\..*)?"
    )
