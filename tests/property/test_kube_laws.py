"""Whatever labels and values a sender writes, pods of kube-state-metrics are read or counted, and order is irrelevant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.series.kube import KUBE
from ingest.series.labels import Skip
from ingest.series.places import Entry, place
from ingest.series.pods import KubeMemory, Words, gathered
from ingest.series.samples import Samples
from ingest.store.kube_report import report, with_words

pytestmark = pytest.mark.property
NOON = 1_795_262_400
UIDS = [f"0a1b2c3d-0000-4000-8000-00000000000{number}" for number in "ab"]
KEYS = [
    "uid",
    "pod",
    "namespace",
    "node",
    "container",
    "resource",
    "phase",
    "created_by_kind",
    "created_by_name",
    "label_a",
]
odd = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [*UIDS, "nvidia_com_gpu", "nvidia_com_mig_1g_5gb", "Succeeded", "Failed", "Running", "<none>", "x" * 300]
    ),
)
labels = st.dictionaries(st.sampled_from([*KEYS, "exported_pod", "instance", "label_b"]), odd, max_size=8)
told = st.tuples(
    st.sampled_from(sorted(KUBE)),
    labels,
    st.sampled_from(UIDS),
    st.sampled_from([0, 1, 2, 600]),
    st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 4.0, float(NOON), NOON + 60.0])),
)


def entry(name: str, given_labels: dict[str, str], uid: str) -> Entry:
    return place(name, {"cluster": "c", "instance": "ksm", "resource": "amd_com_gpu", **given_labels, "uid": uid})


@settings(max_examples=200)
@given(st.lists(told, max_size=12), st.permutations(range(12)))
def test_any_series_are_read_or_counted_and_mean_the_same_in_any_order(
    series: list[tuple[str, dict[str, str], str, int, float]], order: list[int]
) -> None:
    found = [(entry(name, own, uid), (NOON + at) * 1_000_000, value) for name, own, uid, at, value in series]
    # Of one instant there is one word of a series.
    apart: dict[tuple[int, str], tuple[Entry, int, float]] = {
        (at_us, str(one)): (one, at_us, value) for one, at_us, value in found
    }
    pieces = [piece for piece in apart.values() if not isinstance(piece[0], Skip)]
    together = reports([pieces])
    assert reports([[piece] for piece in pieces]) == together
    assert reports([[pieces[place]] for place in order if place < len(pieces)]) == together
    for said in together.values():
        if said is not None and said["ended_at"] is not None:
            assert said["ended_at"] >= said["started_at"]
        assert all(text.isprintable() for text in (said or {}).values() if isinstance(text, str))


def reports(requests: list[list[tuple[Entry, int, float]]]) -> dict[tuple[str, str], dict[str, Any] | None]:
    """What is said of each pod after these requests."""
    known: dict[tuple[str, str], Words] = {}
    for request in requests:
        entries = [one for one, _, _ in request]
        at_us, values = [at for _, at, _ in request], [value for _, _, value in request]
        samples = Samples(np.arange(len(request), dtype=np.int32), np.array(at_us, dtype=np.int64), np.array(values))
        news = KubeMemory().news(1, gathered(samples, entries, (NOON + 600) * 1_000_000)[0], NOON * 1_000_000)
        for key, pod in news.pods.items():
            known[key] = with_words(known.get(key, {}), pod.facts)
    return {key: report(facts, None) for key, facts in known.items()}
