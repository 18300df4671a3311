"""Laws of what schedulers say: merging is in no order, and no body makes the receiver fail otherwise than by its own errors."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import BadBodyError
from ingest.importers.errors import RowError
from ingest.pollers.slurm_rows import array_of, record, seconds
from ingest.receivers.work import read_work
from ingest.receivers.work_events import EVENT
from ingest.store.job_facts import Words, meant, merged

pytestmark = pytest.mark.property
NOW = datetime(2026, 11, 22, tzinfo=UTC)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=30)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
REPORTS: st.SearchStrategy[Words] = st.dictionaries(
    st.sampled_from(["account", "state", "holds", "ended_at"]),
    st.tuples(st.integers(0, 5), st.none() | st.integers(0, 2) | st.sampled_from(["a", "b"])).map(list),
    max_size=4,
)
GOOD: dict[str, Any] = {
    "kind": "job",
    "at": "2026-11-21T10:05:02Z",
    "job": {"cluster": "alpha", "id": "1", "start": "2026-11-21T10:05:00Z"},
    "state": "running",
    "account": "nlp",
    "labels": {"team": "a"},
    "holds": [{"node": "gpu01", "accelerators": 4}],
}


@given(REPORTS, REPORTS, REPORTS)
def test_merging_reports_is_in_no_order_and_repeats_nothing(one: Words, two: Words, three: Words) -> None:
    assert merged(one, two) == merged(two, one)
    assert merged(merged(one, two), three) == merged(one, merged(two, three))
    assert merged(one, one) == one
    assert merged(merged(one, two), two) == merged(one, two)


@given(REPORTS, REPORTS)
def test_what_no_scheduler_says_a_hint_fills_in_and_nothing_else(said: Words, hint: Words) -> None:
    stated = {name: value for name, (_, value) in said.items() if value is not None}
    found = meant({"slurm": said, "hint": hint})
    assert {name: found[name] for name in stated} == stated


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value, allow_nan=True).encode()))
def test_a_body_is_read_or_refused(body: bytes) -> None:
    with suppress(BadBodyError):
        read_work(body, NOW)


@given(st.sampled_from([*GOOD, "ended_at", "reason", "accelerators", "unknown"]), JSON)
def test_an_event_is_taken_or_named_with_its_place(field: str, value: Any) -> None:
    body = {"version": 1, "source": "slurm", "events": [GOOD, {**GOOD, field: value}]}
    try:
        work = read_work(json.dumps(body, allow_nan=True).encode(), NOW)
    except BadBodyError:
        return  # NaN is no JSON
    assert work.told + len(work.refused) == 2
    assert [each.index for each in work.refused] in ([], [1])


@given(st.text(max_size=40))
def test_a_name_never_has_its_job_refused(name: str) -> None:
    clean = name.encode("utf-8", "replace").decode()
    assert EVENT.validate_python({**GOOD, **({"name": clean} if clean else {})}).kind == "job"


@given(st.text(max_size=30), st.text("0123456789_[]-,:%+.", max_size=20), st.text("gres/pu:=,0123456789", max_size=30))
def test_a_record_of_slurm_is_read_or_says_what_is_wrong_with_it(state: str, native_id: str, tres: str) -> None:
    array_of(native_id)
    seconds(state)
    row: dict[str, Any] = dict.fromkeys(
        ("cluster", "account", "user", "partition", "qos", "reason", "name", "node_list")
    )
    row |= {
        "job_id": native_id,
        "state": state,
        "alloc_tres": tres,
        "submit": 1,
        "eligible": 1,
        "start": 10**15,
        "end": None,
    }
    try:
        record(row, "c", NOW)
    except RowError as error:
        pytest.fail(f"not caught: {error}")
