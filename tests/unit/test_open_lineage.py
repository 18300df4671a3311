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
        ({"job": {"namespace": "n", "name": ["j"]}}, "is no text"),
        ({"schemaURL": "https://openlineage.io/spec/3-0-0/OpenLineage.json"}, "3-0-0 is not read"),
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


def test_job_and_dataset_events_belong_to_no_run_and_are_named_as_not_kept() -> None:
    dataset = {"eventTime": AT, "dataset": {"namespace": "n", "name": "d"}, "producer": "p"}
    job = {"eventTime": AT, "job": {"namespace": "n", "name": "j"}, "producer": "p"}
    read = read_events(body(dataset, job, event()), NOW_US)
    assert (read.received, read.without_run, len(read.events), read.refused) == (3, 2, 1, [])
    assert [each.index for each in read.not_kept] == [0, 1]
    assert "belongs to no run" in read.not_kept[0].reason


@pytest.mark.parametrize("changes", [{}, {"schemaURL": None}, {"eventType": None}])
def test_a_run_event_without_its_run_is_a_bad_one(changes: dict[str, Any]) -> None:
    lacks = {name: value for name, value in event(**changes).items() if name != "run"}
    read = read_events(body(lacks), NOW_US)
    assert ([each.reason for each in read.refused], read.without_run) == (["run is missing"], 0)


@pytest.mark.parametrize(
    ("variables", "native_id"),
    [
        # The scheduler's accounting knows a task as ARRAY_TASK and a component as LEADER+OFFSET, not by its own number.
        ({"SLURM_JOB_ID": "4711", "SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11"}, "4700_11"),
        ({"SLURM_JOB_ID": "124", "SLURM_HET_JOB_ID": "123", "SLURM_HET_JOB_OFFSET": "1"}, "123+1"),
        ({"SLURM_JOB_ID": "124", "SLURM_HET_JOB_ID": "123"}, "123"),
        ({"SLURM_JOB_ID": "4711", "SLURM_ARRAY_JOB_ID": "", "SLURM_ARRAY_TASK_ID": ""}, "4711"),
        ({"SLURM_JOB_ID": "4711", "SLURM_ARRAY_JOB_ID": "x", "SLURM_ARRAY_TASK_ID": "1"}, "4711"),
        ({"SLURM_JOB_ID": ""}, None),
    ],
)
def test_tasks_of_arrays_and_components_are_known_by_the_ids_of_the_accounting(
    variables: dict[str, str], native_id: str | None
) -> None:
    listed = [{"name": name, "value": value} for name, value in variables.items()]
    run = {"runId": RUN, "facets": {"environmentVariables": {"environmentVariables": listed}}}
    (found,) = read_events(body(event(run=run)), NOW_US).events
    assert found.native_id == native_id


def test_what_is_too_long_or_cannot_be_printed_is_cut_and_counted_and_two_long_names_stay_two() -> None:
    long = [{"namespace": "s3://b", "name": "x" * 300 + end} for end in "ab"]
    read = read_events(body(event(job={"namespace": "n", "name": "a\nb"}, outputs=long)), NOW_US)
    (found,) = read.events
    assert found.job_name == "a\ufffdb"
    cut = [each.name for each in found.datasets if each.direction == "output"]
    assert [len(name) for name in cut] == [255, 255]
    assert cut[0][:238] == cut[1][:238] == "x" * 238
    assert cut[0] != cut[1]
    assert (read.lost, read.refused) == ({"names_cut": 3}, [])


def test_words_that_are_none_are_left_out_and_the_event_is_kept() -> None:
    facets = {
        "wattledger_job": {"kind": "finetune", "cluster": "c1", "nativeId": 7, "model": ["m"]},
        "tags": {"tags": [{"key": "wattledger.model", "value": ""}]},
        "parent": {"run": {"runId": "seven"}},
    }
    given = event(run={"runId": RUN, "facets": facets}, inputs="x", outputs=[{"namespace": "n"}, *event()["outputs"]])
    read = read_events(body(given), NOW_US)
    (found,) = read.events
    assert (found.cluster, found.native_id, found.kind, found.model, found.parent_run_id) == (
        "c1",
        "7",
        None,
        None,
        None,
    )
    assert [each.name for each in found.datasets] == ["nlp-7b-sft"]
    # The kind, the model, the parent, the inputs that are no array, the output without a name.
    assert read.lost == {"words_left_out": 5}


def test_of_too_many_datasets_what_was_written_goes_first_and_the_rest_is_counted() -> None:
    many = [{"namespace": "n", "name": str(number)} for number in range(502)]
    read = read_events(body(event(inputs=many)), NOW_US)
    (found,) = read.events
    assert [each.direction for each in found.datasets].count("input") == 499
    assert found.datasets[-1].name == "nlp-7b-sft"
    assert read.lost == {"datasets_left_out": 3}


def test_what_is_no_list_of_events_is_refused_as_a_whole() -> None:
    for bad in (b"", b"nope", b"[]", b'"x"', b"[" * 100_000):
        with pytest.raises(BadBodyError):
            read_events(bad, NOW_US)
    with pytest.raises(TooLargeError, match="at most 1000"):
        read_events(json.dumps([{}] * (MAX_EVENTS + 1)).encode(), NOW_US)
