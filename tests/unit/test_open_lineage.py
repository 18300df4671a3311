"""What is read of OpenLineage events, of any version we know, and what one bad event costs the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ingest.errors import BadBodyError, TooLargeError
from ingest.receivers.open_lineage import MAX_EVENTS, RunDataset, read_events

NOW_US = 1_795_000_000_000_000
"""2026-11-18."""
RUN = "0198f5b2-6f1e-7c3a-9d2b-3f6a1f0e8c11"
AT = "2026-11-18T08:00:00.123456789+01:00"


def event(**changes: Any) -> dict[str, Any]:
    whole = {
        "eventType": "COMPLETE",
        "eventTime": AT,
        "run": {"runId": RUN},
        "job": {"namespace": "train", "name": "nlp.sft"},
        "inputs": [{"namespace": "s3://data", "name": "chats"}],
        "outputs": [{"namespace": "models", "name": "nlp-7b-sft"}],
        "producer": "https://example.org/producer",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
    }
    return {**whole, **changes}


def body(*events: Any) -> bytes:
    return json.dumps(events[0] if len(events) == 1 else events).encode()


def test_a_run_event_is_read_with_what_it_read_and_wrote() -> None:
    read = read_events(body(event()), NOW_US)
    (found,) = read.events
    # 08:00 at +01:00 is 07:00 UTC; digits beyond microseconds are cut.
    assert (found.run_id, found.event_type, found.spec) == (RUN, "complete", "2-0-2")
    assert found.event_at_us % 86_400_000_000 == 7 * 3_600_000_000 + 123_456
    assert found.datasets == (
        RunDataset("input", "s3://data", "chats", "", None),
        RunDataset("output", "models", "nlp-7b-sft", "", None),
    )
    assert (found.cluster, found.native_id, found.kind) == (None, None, None)


@pytest.mark.parametrize(
    "run",
    [
        {"facets": {"wattledger_job": {"cluster": "c1", "nativeId": 4711, "kind": "fine-tune"}}},
        {
            "facets": {
                "tags": {
                    "tags": [
                        {"key": "wattledger.cluster", "value": "c1"},
                        {"key": "wattledger.native_id", "value": "4711"},
                        {"key": "wattledger.kind", "value": "FINE_TUNE"},
                    ]
                }
            }
        },
        {
            "facets": {
                "environmentVariables": {
                    "environmentVariables": [
                        {"name": "SLURM_JOB_ID", "value": "4711"},
                        {"name": "SLURM_CLUSTER_NAME", "value": "c1"},
                        {"name": "AWS_SECRET_ACCESS_KEY", "value": "hush"},
                    ]
                },
                "wattledger_job": {"kind": "fine_tune"},
            }
        },
    ],
)
def test_the_scheduler_job_is_found_in_our_facet_in_tags_or_in_the_environment(run: dict[str, Any]) -> None:
    (found,) = read_events(body(event(run={"runId": RUN, **run})), NOW_US).events
    assert (found.cluster, found.native_id, found.kind) == ("c1", "4711", "fine_tune")
    assert "hush" not in repr(found)


def test_unknown_facets_are_left_out_and_counted_by_name() -> None:
    facets = {"errorMessage": {"message": "a customer's text"}, "sql": {"query": "SELECT secret"}}
    inputs = [{"namespace": "n", "name": "d", "facets": {"schema": {"fields": []}, "version": {"datasetVersion": "3"}}}]
    read = read_events(body(event(run={"runId": RUN, "facets": facets}, inputs=inputs)), NOW_US)
    assert read.facets_ignored == {"errorMessage": 1, "sql": 1, "schema": 1}
    (found,) = read.events
    assert found.facets_ignored == 3
    assert found.datasets[0].version == "3"
    assert "customer" not in repr(found)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eventTime": "2026-11-18T08:00:00"}, "no time zone"),
        ({"eventTime": "2027-11-18T08:00:00Z"}, "in the future"),
        ({"eventTime": "1999-11-18T08:00:00Z"}, "before the year 2000"),
        ({"eventTime": None}, "no RFC 3339 instant"),
        ({"eventType": "EXPLODE"}, "is none of START"),
        ({"run": {"runId": "seven"}}, "is no UUID"),
        ({"run": None}, "run is missing"),
        ({"job": {"namespace": "n"}}, "job.name is missing"),
        ({"job": {"namespace": "n", "name": "x\0y"}}, "no printable text"),
        ({"inputs": {}, "outputs": "x"}, "outputs is no array"),
        ({"schemaURL": "https://openlineage.io/spec/3-0-0/OpenLineage.json"}, "3-0-0 is not read"),
        ({"inputs": [{"namespace": "n", "name": str(n)} for n in range(501)]}, "more than 500 datasets"),
    ],
)
def test_a_bad_event_says_why_and_the_others_are_kept(changes: dict[str, Any], reason: str) -> None:
    read = read_events(body(event(), event(**changes), event(eventType="START")), NOW_US)
    assert [each.event_type for each in read.events] == ["complete", "start"]
    assert [each.index for each in read.refused] == [1]
    assert reason in read.refused[0].reason


def test_events_of_version_1_without_a_type_and_without_a_schema_are_read() -> None:
    old = "https://openlineage.io/spec/1-0-5/OpenLineage.json#/definitions/RunEvent"
    read = read_events(body(event(schemaURL=old), event(eventType=None, schemaURL=None)), NOW_US)
    assert [(each.spec, each.event_type) for each in read.events] == [("1-0-5", "complete"), (None, "other")]


def test_job_and_dataset_events_belong_to_no_run_and_are_counted() -> None:
    dataset = {"eventTime": AT, "dataset": {"namespace": "n", "name": "d"}, "producer": "p"}
    job = {"eventTime": AT, "job": {"namespace": "n", "name": "j"}, "producer": "p"}
    read = read_events(body(dataset, job, event()), NOW_US)
    assert (read.received, read.without_run, len(read.events), read.refused) == (3, 2, 1, [])


def test_what_is_no_list_of_events_is_refused_as_a_whole() -> None:
    for bad in (b"", b"nope", b"[]", b'"x"', b"[" * 100_000):
        with pytest.raises(BadBodyError):
            read_events(bad, NOW_US)
    with pytest.raises(TooLargeError, match="at most 1000"):
        read_events(json.dumps([{}] * (MAX_EVENTS + 1)).encode(), NOW_US)
