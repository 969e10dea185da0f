"""The tiny base and the peopled store of the engine's and the jobs' tests."""

from __future__ import annotations

from tests.engine.conftest import base
from tests.pipeline.conftest import peopled

__all__ = ["base", "peopled"]
