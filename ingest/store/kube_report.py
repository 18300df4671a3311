"""What the facts that kube-state-metrics tells of a pod mean: what it asks for, when it ran, the report on its job. Pure.

The facts come in any order and grouping; the same set means the same. A pod is over when its phase said so, and then from its
containers' end on where that is told. A pod that is merely no longer there is over when that was noticed, which
:mod:`ingest.store.kube_pods` decides; until then it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ingest.pollers.kube_objects import KINDS
from ingest.series.kube import ASK, OVER, REPLICAS
from ingest.series.pods import MAX_FIELDS, Words, weight

SOURCE: Final = "kube-state-metrics"
GONE: Final = "no longer told of"
_STATES: Final = {"Succeeded": "completed", "Failed": "failed"}


def with_words(known: Words, told: Words) -> Words:
    """Return the facts with these words taken in: a pod is over from when that was told first, of all else the latest word counts."""
    found = dict(known)
    for name, word in told.items():
        before = found.get(name)
        if before is None:
            if len(found) < MAX_FIELDS:
                found[name] = word
        elif name == OVER:
            found[name] = min(before, word)
        elif weight(word) > weight(before):
            found[name] = word
    return found


def asked(facts: Words) -> tuple[int, int] | None:
    """Return accelerators held and asked for, None where none were told of. Replicas of shared boards are asked for, not held.

    Containers run together; an init container runs alone before them, and what it holds is theirs afterwards.
    """
    told = [(name.split("/"), word[1]) for name, word in facts.items() if name.startswith(f"{ASK}/")]
    if not told:
        return None
    alone: dict[tuple[str, bool], int] = {}
    together = {True: 0, False: 0}
    for parts, count in told:
        is_held = parts[-1] not in REPLICAS
        if parts[1] == "i":
            key = ("/".join(parts[2:-1]), is_held)
            alone[key] = alone.get(key, 0) + count
        else:
            together[is_held] += count
    held, shared = (
        max([together[kind], *(n for (_, is_), n in alone.items() if is_ is kind)]) for kind in (True, False)
    )
    return held, held + shared


def over(facts: Words) -> tuple[str, int] | None:
    """Return how a pod ended and when, in microseconds; None while its phase does not say so."""
    if OVER not in facts:
        return None
    told_us, phase = facts[OVER]
    return _STATES[phase], value(facts, "completed") or told_us


def report(facts: Words, gone_us: int | None) -> dict[str, Any] | None:
    """Return what is to be said of the pod's job, with its start; None where it has not started or holds no accelerator.

    ``gone_us``: since when it is no longer there, null = it is.
    """
    wanted, start_us = asked(facts), value(facts, "start")
    if wanted is None or start_us is None:
        return None
    state, ended_us, reason = "running", None, None
    ended = over(facts)
    if ended is not None:
        state, ended_us = ended
    elif gone_us is not None:
        state, ended_us, reason = "unknown", gone_us, GONE
    found = {"started_at": start_us, "state": state, "accelerators": wanted[1]}
    # Said even while it runs: it takes back an end that turned out to be none.
    found["ended_at"] = None if ended_us is None else max(ended_us, start_us)
    node = value(facts, "node")
    if node is not None or not wanted[0]:
        found["holds"] = [[node, None, None, wanted[0]]] if wanted[0] else []
    about = _about(facts)
    kind = KINDS.get(str(about.get("workload")).partition("/")[0])
    more = {"reason": reason, "workload_kind": kind, "submitted_at": value(facts, "created")}
    return found | about | {name: said for name, said in more.items() if said is not None}


def wait(facts: Words, gone_us: int | None) -> dict[str, Any] | None:
    """Return what is to be said of the pod's wait; None where it asks for no accelerator or nobody told when it was made."""
    wanted = asked(facts)
    if wanted is None or value(facts, "created") is None:
        return None
    start_us, ended = value(facts, "start"), over(facts)
    found = _about(facts) | {"accelerators": wanted[1]}
    if start_us is not None:
        return found | {"left_at": start_us, "outcome": "started"}
    if ended is not None:
        return found | {"left_at": ended[1], "outcome": "cancelled"}
    # Taken back where the pod turns out to be there.
    return found | {"left_at": gone_us, "outcome": None if gone_us is None else "gone"}


def _about(facts: Words) -> dict[str, Any]:
    workload = value(facts, "maker") or value(facts, "owner")
    found = {
        "namespace": value(facts, "namespace"),
        "name": str(workload).partition("/")[2] if workload else value(facts, "pod"),
        "workload": workload,
        "label": value(facts, "label"),
        "partition": value(facts, "partition"),
    }
    return {name: said for name, said in found.items() if said is not None}


def value(facts: Mapping[str, list[Any]], name: str) -> Any:
    """Return the value of a fact, None where it was not told."""
    return facts[name][1] if name in facts else None
