"""The organisations of the simulated fleet: what their jobs and keys look like, and the bindings that map them.

Names are invented. A part of the work comes from accounts that no binding names: every real fleet has some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import yaml


@dataclass(frozen=True, slots=True)
class Organisation:
    """One paying team. ``path`` is null for work that no binding maps. ``kinds`` are workload kinds with weights."""

    path: str | None
    account: str
    partition: str
    qos: str
    users: tuple[str, ...]
    weight: float
    kinds: tuple[tuple[str, float], ...]
    names: tuple[str, ...]
    contact: str = ""
    cost_centre: str = ""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key of the LLM gateway by its public name. ``weight`` is its share of the calls, ``models`` have weights."""

    name: str
    path: str | None
    weight: float
    models: tuple[tuple[str, str, float], ...]
    input_tokens_median: float
    output_tokens_median: float
    cached_ratio: float


ORGANISATIONS: Final = (
    Organisation(
        "acme/research/nlp",
        "nlp",
        "train",
        "normal",
        ("ada", "noor", "wen"),
        0.32,
        (("training", 0.6), ("fine-tuning", 0.4)),
        ("llm-pretrain", "sft", "dpo", "tokenizer-ablation"),
        "nlp-leads@acme.example",
        "CC-4110",
    ),
    Organisation(
        "acme/research/vision",
        "vision",
        "train",
        "normal",
        ("kofi", "mira"),
        0.22,
        (("training", 0.7), ("batch", 0.3)),
        ("vit-l", "detector", "video-embed"),
        "vision@acme.example",
        "CC-4120",
    ),
    Organisation(
        "acme/product/search",
        "search",
        "prod",
        "high",
        ("svc-search",),
        0.16,
        (("inference", 0.85), ("fine-tuning", 0.15)),
        ("reranker", "embedder", "query-llm"),
        "search-oncall@acme.example",
        "CC-2200",
    ),
    Organisation(
        "globex/quant",
        "gx-quant",
        "train",
        "normal",
        ("ines", "piotr"),
        0.17,
        (("simulation", 0.6), ("training", 0.4)),
        ("paths-mc", "vol-surface", "alpha-net"),
        "quant@globex.example",
        "GX-77",
    ),
    Organisation(
        "globex/bio",
        "gx-bio",
        "train",
        "low",
        ("sofia",),
        0.13,
        (("simulation", 0.5), ("batch", 0.5)),
        ("fold", "dock", "md-run"),
        "bio@globex.example",
        "GX-31",
    ),
)
UNBOUND: Final = Organisation(
    None,
    "guest",
    "scratch",
    "scavenger",
    ("tmp01", "visitor"),
    0.0,
    (("unknown", 0.7), ("batch", 0.3)),
    ("notebook", "test", "bench"),
)

API_KEYS: Final = (
    ApiKey(
        "nlp-evals",
        "acme/research/nlp",
        0.15,
        (("openai", "gpt-5", 0.5), ("anthropic", "claude-sonnet-4-5", 0.5)),
        1800,
        420,
        0.35,
    ),
    ApiKey(
        "vision-captions",
        "acme/research/vision",
        0.14,
        (("openai", "gpt-4o-mini", 0.7), ("gcp.gemini", "gemini-2.5-flash", 0.3)),
        900,
        160,
        0.1,
    ),
    ApiKey(
        "search-prod",
        "acme/product/search",
        0.42,
        (("openai", "gpt-5-mini", 0.6), ("anthropic", "claude-haiku-4-5", 0.4)),
        2400,
        220,
        0.6,
    ),
    ApiKey(
        "quant-agents", "globex/quant", 0.16, (("openai", "o4-mini", 0.6), ("openai", "gpt-5", 0.4)), 3200, 900, 0.45
    ),
    ApiKey("bio-papers", "globex/bio", 0.09, (("anthropic", "claude-sonnet-4-5", 1.0),), 5200, 600, 0.2),
    ApiKey("hackday-2", None, 0.04, (("openai", "gpt-4o-mini", 1.0),), 700, 200, 0.0),
)
OVERSPENT_KEY: Final = "quant-agents"
"""The key whose rate explodes in the planted overspend."""
REASONING_MODELS: Final = frozenset({"gpt-5", "gpt-5-mini", "o4-mini", "gemini-2.5-flash"})


def bindings_yaml(cluster: str = "sim") -> str:
    """Return the bindings of the simulated organisations as the YAML that ``wattledger tenants check`` reads."""
    tenants = {entry.path: {"contact": entry.contact, "cost_centre": entry.cost_centre} for entry in ORGANISATIONS}
    rules: list[dict[str, object]] = [
        {"tenant": entry.path, "cluster": cluster, "account": entry.account} for entry in ORGANISATIONS
    ]
    rules += [{"tenant": key.path, "key": key.name} for key in API_KEYS if key.path is not None]
    header = "# Bindings of the simulated fleet. Accounts and keys that are not named here stay unmapped, on purpose.\n"
    text: str = yaml.safe_dump({"tenants": tenants, "bindings": rules}, sort_keys=False)
    return header + text
