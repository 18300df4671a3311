"""What reports on a job mean together: of each field the latest word of the best source, in whatever order they came. Pure.

A report is a map of fields to (when it was said, value). Merging two takes the later word field by field, and of two of one
instant always the same, so merging is associative, commutative and idempotent: order, grouping and repetition are irrelevant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

Words = dict[str, list[Any]]
"""Field -> [told at, microseconds since 1970, value]: as the column ``facts`` has it."""
HINT: Final = "hint"
"""Source of what comes along with a holding: it fills in what nobody else says."""
SCHEDULERS: Final = ("slurm", "kubernetes")
OVER: Final = frozenset({"completed", "failed", "cancelled", "preempted", "timeout"})
_EVIDENCE: Final = {"slurm": "slurmctld", "kubernetes": "kubernetes", "kube-state-metrics": "kube-state-metrics"}


def words(at_us: int, facts: Mapping[str, Any]) -> Words:
    """Return a report that says these facts at one instant."""
    return {name: [at_us, value] for name, value in facts.items()}


def merged(one: Words, other: Words) -> Words:
    """Return the later word of each field."""
    found = dict(one)
    for name, word in other.items():
        if name not in found or _weight(word) > _weight(found[name]):
            found[name] = word
    return found


def meant(reports: Mapping[str, Words]) -> dict[str, Any]:
    """Return the value of each field that any source states: schedulers before others, hints last, then the later word.

    That a run is gone is no match for a better source's word that it runs; that it completed or failed is.
    """
    found: dict[str, Any] = {}
    for source in ranked(reports):
        facts = {name: value for name, (_, value) in reports[source].items()}
        if found.get("state") == "running" and facts.get("state") not in OVER:
            facts.pop("ended_at", None)
        for name, value in facts.items():
            if found.get(name) is None:
                found[name] = value
    return found


def ranked(sources: Iterable[str]) -> list[str]:
    """Return sources from the one most believed to the one least."""
    return sorted(sources, key=lambda source: (source == HINT, source not in SCHEDULERS, source))


def evidence_of(source: str) -> str:
    """Return what an allocation says it rests on."""
    return _EVIDENCE.get(source, "api")


def _weight(word: list[Any]) -> tuple[int, str]:
    return word[0], json.dumps(word[1], sort_keys=True)
