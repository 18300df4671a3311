"""How many accelerators an event may speak of: what no node and no run has is refused with its reason, the rest is kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from ingest.receivers.work import read_work
from ingest.receivers.work_events import MAX_ACCELERATORS, MAX_OF_A_NODE

pytestmark = pytest.mark.unit
AT = "2026-11-21T10:00:00Z"
JOB = {"cluster": "c", "id": "1", "start": AT}


def read(*events: dict[str, Any]) -> Any:
    body = {"version": 1, "source": "slurm", "events": [{"at": AT, "job": JOB, **event} for event in events]}
    return read_work(json.dumps(body).encode(), datetime(2026, 11, 22, tzinfo=UTC))


def holds(*given: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "job", "holds": list(given)}


def start(**place: Any) -> dict[str, Any]:
    return {"kind": "allocation_start", **place}


NODE, POOL = {"node": "gpu01"}, {"pool": "p", "model": "H100"}


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (start(**POOL, accelerators=1_000_000), "less than or equal to 100000"),
        (start(**NODE, accelerators=MAX_OF_A_NODE + 1), "no node has more than 512 accelerators"),
        (start(device="GPU-1", accelerators=2), "a device is one accelerator"),
        (holds({**NODE, "accelerators": MAX_OF_A_NODE + 1}), "no node has more than 512 accelerators"),
        (holds({**NODE, "accelerators": 500}, {**NODE, "accelerators": 13}), "no node has more than 512 accelerators"),
        (holds({**POOL, "accelerators": 99_999}, {"pool": "q", "accelerators": 2}), "holds 100001 accelerators in all"),
        ({"kind": "job", "accelerators": 1_000_000}, "less than or equal to 100000"),
    ],
)
def test_an_event_beyond_what_there_can_be_is_refused_and_the_others_of_its_body_kept(
    event: dict[str, Any], why: str
) -> None:
    good = start(**NODE, accelerators=8)
    work = read(good, event, good)
    assert (work.told, [each.index for each in work.refused], work.refused[0].reason) == (2, [1], "malformed")
    assert why in work.refused[0].detail


def test_the_most_there_can_be_is_taken() -> None:
    whole = [{"node": f"n{number}", "accelerators": 8} for number in range(MAX_ACCELERATORS // 8)]
    taken = (start(**NODE, accelerators=MAX_OF_A_NODE), start(**POOL, accelerators=MAX_ACCELERATORS), holds(*whole))
    work = read(*taken, start(device="GPU-1"))
    assert (work.told, work.refused) == (4, [])


CLOCK = datetime(2026, 11, 22, tzinfo=UTC)
AHEAD, JUST_AHEAD = "2026-11-22T00:05:01Z", "2026-11-22T00:05:00Z"
WAIT = {"cluster": "c", "id": "1", "submitted_at": AT}


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"kind": "job"}, "at"),
        ({"kind": "job", "job": {"cluster": "c", "id": "1"}}, "job.start"),
        ({"kind": "job", "state": "completed"}, "ended_at"),
        ({"kind": "job"}, "submitted_at"),
        ({**start(**NODE), "job": {"cluster": "c", "id": "1"}}, "job.start"),
        ({"kind": "queue", "job": {"cluster": "c", "id": "1"}}, "job.submitted_at"),
        ({"kind": "queue", "job": WAIT, "reason": "Priority"}, "since"),
        ({"kind": "queue", "job": WAIT, "outcome": "started"}, "left_at"),
        ({"kind": "node", "node": "n1"}, "at"),
    ],
)
def test_what_has_happened_lies_no_further_ahead_than_a_clock_may_be(event: dict[str, Any], field: str) -> None:
    def told(instant: str) -> Any:
        given = {"at": AT, "job": JOB, **event}
        within, _, name = field.rpartition(".")
        given = given | {within: {**given[within], name: instant}} if within else given | {name: instant}
        if given["kind"] == "node":
            del given["job"]
        good = {"at": AT, "kind": "job", "job": JOB}
        body = {"version": 1, "source": "slurm", "events": [good, given]}
        return read_work(json.dumps(body).encode(), CLOCK)

    work = told(AHEAD)
    assert (work.told, [(each.index, each.reason) for each in work.refused]) == (1, [(1, "future")])
    assert work.refused[0].detail.startswith(f"{field}: ")
    assert (told(JUST_AHEAD).told, told(JUST_AHEAD).refused) == (2, [])


def test_a_wait_may_be_planned_for_a_later_day() -> None:
    planned = {"kind": "queue", "job": WAIT, "reason": "BeginTime", "eligible_at": "2026-12-24T18:00:00Z"}
    assert (read(planned).told, read(planned).refused) == (1, [])
