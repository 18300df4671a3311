"""Whatever is posted as lineage or as outcomes is read or refused, never a crash; and good items survive bad neighbours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import IngestError
from ingest.receivers.open_lineage import read_events
from ingest.receivers.outcomes import read_outcomes
from tests.unit.test_open_lineage import NOW_US, event
from tests.unit.test_outcomes import GOOD

pytestmark = pytest.mark.property

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FACETS = st.dictionaries(
    st.sampled_from(
        ["wattledger_job", "tags", "environmentVariables", "parent", "version", "datasetType", "other", "\0"]
    ),
    ANYTHING
    | st.fixed_dictionaries({"tags": st.lists(st.fixed_dictionaries({"key": ANYTHING, "value": ANYTHING}), max_size=2)})
    | st.fixed_dictionaries({"run": ANYTHING, "cluster": ANYTHING, "nativeId": ANYTHING, "datasetVersion": ANYTHING}),
    max_size=3,
)
DATASETS = st.lists(
    ANYTHING | st.fixed_dictionaries({"namespace": st.just("n"), "name": ANYTHING, "facets": FACETS | ANYTHING}),
    max_size=2,
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "eventType": ANYTHING,
        "eventTime": ANYTHING | st.datetimes().map(str),
        "run": ANYTHING
        | st.fixed_dictionaries({"runId": st.just(event()["run"]["runId"]) | ANYTHING, "facets": FACETS}),
        "job": ANYTHING | st.fixed_dictionaries({"namespace": st.just("n"), "name": st.just("j"), "facets": FACETS}),
        "inputs": ANYTHING | DATASETS,
        "outputs": ANYTHING | DATASETS,
        "schemaURL": ANYTHING,
        "producer": ANYTHING,
    },
).map(lambda changes: event(**changes))
OUTCOMES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys([*GOOD, "value", "score", "dataset_ids", "trace_id", "id", "x"], ANYTHING)
)


def sent(items: list[Any]) -> bytes:
    return json.dumps(items).encode("utf-8", "surrogatepass")


@given(st.lists(EVENTS | ANYTHING, max_size=3))
def test_any_event_is_read_or_refused_by_itself(items: list[Any]) -> None:
    try:
        read = read_events(sent([*items, event()]), NOW_US)
    except IngestError:  # bytes that are no JSON to the strict reader: a NaN, half a surrogate
        return
    assert read.received == len(items) + 1 == len(read.events) + len(read.refused) + read.without_run
    assert read.events[-1].job_name == "nlp.sft"
    for each in read.events:
        texts = (
            each.job_name,
            each.cluster,
            each.native_id,
            each.model,
            *each.facets.values(),
            *(d.name for d in each.datasets),
        )
        assert all(word is None or (word.isprintable() and 0 < len(word) <= 255) for word in texts)


@given(st.lists(OUTCOMES.map(lambda changes: {**GOOD, **changes}) | ANYTHING, max_size=3))
def test_any_outcome_is_read_or_refused_by_itself(items: list[Any]) -> None:
    try:
        read = read_outcomes(sent([*items, GOOD]), NOW_US)
    except IngestError:
        return
    assert read.received == len(items) + 1 == len(read.outcomes) + len(read.refused)
    assert read.outcomes[-1].label == "up"


@given(st.data())
def test_a_damaged_body_is_refused_or_read(data: st.DataObject) -> None:
    body = bytearray(sent([event(), event()]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_events, read_outcomes):
        try:
            read(bytes(body), NOW_US)
        except IngestError:
            continue
