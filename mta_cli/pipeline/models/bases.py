"""The catalog of common bases on the hub: repository, licence and shape. Sizes and memory are computed.

It has no digests: `mta model pull` takes the commit and the digests from the hub.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

from mta_cli.pipeline.models.catalog import PACKAGES, ModelPackage
from mta_cli.pipeline.models.memory import Shape

# the families that `engine/model/layer_spec.py` describes
FAST_FAMILIES = frozenset({"gemma3_text", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"})
NUMBER_BYTES = 2  # bfloat16


@dataclass(frozen=True)
class HubBase:
    """A base on the hub. `family` is transformers' `model_type`; the sizes are from its `config.json`.

    `stores_tied_head` says that its files contain the tied output layer a second time.
    """

    repository: str
    family: str
    licence: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool = True
    gated: bool = False
    stores_tied_head: bool = False

    @property
    def name(self) -> str:
        """The short name: the repository's own in lower case."""
        return self.repository.partition("/")[2].lower()

    @property
    def hub_name(self) -> str:
        """The name under which the pulled model is installed."""
        return f"hf:{self.repository}"

    @property
    def fast(self) -> bool:
        """Whether the fast decoder supports it; other bases run through transformers' modules."""
        return self.family in FAST_FAMILIES

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        heads = self.head_dim * (self.heads + 2 * self.kv_heads)  # width of queries, keys and values
        projections = self.width * (heads + self.head_dim * self.heads + 3 * self.inner)
        vectors = {
            "gemma3_text": 4 * self.width + 2 * self.head_dim,
            "olmo2": 2 * self.width + self.head_dim * (self.heads + self.kv_heads),
            "qwen2": 2 * self.width + heads,
            "qwen3": 2 * self.width + 2 * self.head_dim,
        }
        layer = projections + vectors.get(self.family, 2 * self.width)
        return self.layers * layer + self.width + self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def download_bytes(self) -> int:
        """The bytes of its weight files, which are all bfloat16. The tokenizer's files, some 10 MB, are not counted."""
        stored = self.parameters + (self.vocabulary * self.width if self.stores_tied_head else 0)
        return NUMBER_BYTES * stored

    @property
    def shape(self) -> Shape:
        """The sizes that determine the base's memory."""
        sizes = (self.layers, self.width, self.heads, self.kv_heads, self.head_dim, self.inner, self.vocabulary)
        return Shape(*sizes, self.parameters, self.fast)


def _smollm2(size: str, layers: int, width: int, heads: int, kv_heads: int, inner: int) -> HubBase:
    repository = f"HuggingFaceTB/SmolLM2-{size}-Instruct"
    return HubBase(repository, "llama", "apache-2.0", layers, width, heads, kv_heads, 64, inner, 49_152)


def _qwen3(size: str, layers: int, width: int, heads: int, inner: int, **rest: bool) -> HubBase:
    return HubBase(f"Qwen/Qwen3-{size}", "qwen3", "apache-2.0", layers, width, heads, 8, 128, inner, 151_936, **rest)


_ALL = (
    _smollm2("135M", 30, 576, 9, 3, 1536),
    _smollm2("360M", 32, 960, 15, 5, 2560),
    _smollm2("1.7B", 24, 2048, 32, 32, 8192),
    HubBase("HuggingFaceTB/SmolLM3-3B", "smollm3", "apache-2.0", 36, 2048, 16, 4, 128, 11_008, 128_256),
    _qwen3("0.6B", 28, 1024, 16, 3072, stores_tied_head=True),
    _qwen3("1.7B", 28, 2048, 16, 6144, stores_tied_head=True),
    _qwen3("4B", 36, 2560, 32, 9728),
    _qwen3("8B", 36, 4096, 32, 12_288, tied=False),
    HubBase("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", "apache-2.0", 24, 896, 14, 2, 64, 4864, 151_936),
    HubBase("Qwen/Qwen2.5-1.5B-Instruct", "qwen2", "apache-2.0", 28, 1536, 12, 2, 128, 8960, 151_936),
    HubBase("Qwen/Qwen2.5-3B-Instruct", "qwen2", "qwen-research", 36, 2048, 16, 2, 128, 11_008, 151_936),
    HubBase("Qwen/Qwen2.5-7B-Instruct", "qwen2", "apache-2.0", 28, 3584, 28, 4, 128, 18_944, 152_064, tied=False),
    HubBase("meta-llama/Llama-3.2-1B-Instruct", "llama", "llama3.2", 16, 2048, 32, 8, 64, 8192, 128_256, gated=True),
    HubBase("meta-llama/Llama-3.2-3B-Instruct", "llama", "llama3.2", 28, 3072, 24, 8, 128, 8192, 128_256, gated=True),
    HubBase(
        "meta-llama/Llama-3.1-8B-Instruct",
        "llama",
        "llama3.1",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        inner=14_336,
        vocabulary=128_256,
        tied=False,
        gated=True,
    ),
    HubBase("google/gemma-3-270m-it", "gemma3_text", "gemma", 18, 640, 4, 1, 256, 2048, 262_144, gated=True),
    HubBase("google/gemma-3-1b-it", "gemma3_text", "gemma", 26, 1152, 4, 1, 256, 6912, 262_144, gated=True),
    HubBase("ibm-granite/granite-3.3-2b-instruct", "granite", "apache-2.0", 40, 2048, 32, 8, 64, 8192, 49_159),
    HubBase("ibm-granite/granite-3.3-8b-instruct", "granite", "apache-2.0", 40, 4096, 32, 8, 128, 12_800, 49_159),
    HubBase("allenai/OLMo-2-0425-1B-Instruct", "olmo2", "apache-2.0", 16, 2048, 16, 16, 128, 8192, 100_352, tied=False),
    HubBase(
        "mistralai/Mistral-7B-Instruct-v0.3", "mistral", "apache-2.0", 32, 4096, 32, 8, 128, 14_336, 32_768, tied=False
    ),
)
HUB_BASES: dict[str, HubBase] = {base.name: base for base in _ALL}


def installed_name(name: str) -> str:
    """The name under which a model is installed: `hf:ORG/NAME` for a short name of a base on the hub, else `name`."""
    return HUB_BASES[name].hub_name if name in HUB_BASES and name not in PACKAGES else name


def weights_origin(fingerprint: str) -> str | None:
    """A text that says how an embedded base's weights differ from the hub's; None for any other model."""
    if (package := _package_of_base(fingerprint)) is None:
        return None
    repository = HUB_BASES[package.name].repository
    return f"the 4-bit file {package.gguf} converted to bfloat16, not the weights of {repository} on the hub"


def packaged_repository(fingerprint: str) -> str | None:
    """The repository of the base from which an embedded base was made; None for any other model."""
    package = _package_of_base(fingerprint)
    return None if package is None else HUB_BASES[package.name].repository


def _package_of_base(fingerprint: str) -> ModelPackage | None:
    return next((one for one in PACKAGES.values() if one.gguf and one.fingerprint == fingerprint), None)


def can_be_pulled(name: str) -> bool:
    """Whether `mta model pull` has a source for this name."""
    return name in PACKAGES or installed_name(name).startswith("hf:")


def hub_name(name: str) -> str | None:
    """`hf:ORG/NAME` if `name` is `ORG/NAME`; None for any other text."""
    return f"hf:{name}" if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) else None


def near_names(name: str, known: Collection[str]) -> list[str]:
    """At most five of the `known` names that begin with `name`; without any, at most three similar names.

    Case and punctuation are ignored.
    """
    plain = {_letters_and_digits(one): one for one in sorted(known)}
    wanted = _letters_and_digits(name)
    begun = [one for key, one in plain.items() if wanted and key.startswith(wanted)]
    return begun[:5] or [plain[key] for key in difflib.get_close_matches(wanted, plain, n=3)]


def _letters_and_digits(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
