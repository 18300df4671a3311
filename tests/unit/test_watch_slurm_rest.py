"""slurmrestd in the shapes of newer versions: wrapped numbers, states as lists, errors in an answer of 200."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from ingest.pollers.errors import RightsError, SourceError
from ingest.pollers.slurm_rest import SlurmRest

pytestmark = pytest.mark.unit
T0 = 1_795_287_353
NOW = datetime.fromtimestamp(T0 + 86_400, UTC)


def wrapped(value: int | None) -> dict[str, Any]:
    return {"set": value is not None, "infinite": False, "number": value or 0}


ACCOUNTED = {
    "job_id": 12,
    "cluster": "alpha",
    "account": "nlp",
    "user": "ada",
    "partition": "gpu",
    "qos": "normal",
    "name": "train",
    "nodes": "gpu[08-09]",
    "array": {"job_id": 10, "task_id": wrapped(3)},
    "het": {"job_id": 0, "job_offset": wrapped(None)},
    "state": {"current": ["COMPLETED"], "reason": "None"},
    "time": {"submission": T0 - 60, "eligible": T0 - 60, "start": wrapped(T0), "end": wrapped(T0 + 60), "suspended": 5},
    "tres": {
        "allocated": [
            {"type": "cpu", "name": "", "id": 1, "count": 8},
            {"type": "gres", "name": "gpu:h100", "id": 1002, "count": 8},
            {"type": "gres", "name": "gpu", "id": 1001, "count": 8},
        ]
    },
}
PENDING = {
    "job_id": 20,
    "array_job_id": wrapped(20),
    "array_task_string": "1-4%2",
    "job_state": ["PENDING"],
    "submit_time": wrapped(T0),
    "eligible_time": wrapped(None),
    "state_reason": "Priority",
    "tres_req_str": "cpu=1,gres/gpu=2",
    "user_name": "ada",
}


def rest(*faults: dict[str, Any], status: int = 200) -> SlurmRest:
    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith("/openapi"):
            return httpx.Response(200, json={"paths": {"/slurmdb/v0.0.39/jobs": {}, "/slurmdb/v0.0.41/jobs/": {}}})
        assert "/v0.0.41/" in path
        assert (request.headers["x-slurm-user-name"], request.headers["x-slurm-user-token"]) == ("root", "jwt")
        jobs = [ACCOUNTED] if path.startswith("/slurmdb") else [PENDING, {**PENDING, "job_state": ["RUNNING"]}]
        return httpx.Response(status, json={"jobs": jobs, "errors": list(faults)})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    return SlurmRest(client, "http://slurm", "root", lambda: "jwt", "alpha")


def test_a_job_of_a_newer_version_is_read() -> None:
    (found,) = rest().ran(NOW, NOW)
    job = found.job
    assert job is not None
    assert (found.native_id, found.suspended_s) == ("10_3", 5)
    assert (job.started_us, job.ended_us, job.state, job.reason) == (
        T0 * 1_000_000,
        (T0 + 60) * 1_000_000,
        "completed",
        None,
    )
    assert (job.accelerators, list(job.holds)) == (8, [("gpu08", None, None, 4), ("gpu09", None, None, 4)])


def test_what_waits_is_read_and_what_runs_is_left_out() -> None:
    (found,) = rest().waiting()
    assert (found.native_id, found.tasks, found.accelerators, found.reason) == ("20", 4, 2, "Priority")
    assert (found.submitted_us, found.eligible_us) == (T0 * 1_000_000, None)


def test_errors_in_an_answer_of_200_are_errors() -> None:
    with pytest.raises(SourceError, match="Unable to contact slurmdbd"):
        rest({"description": "Unable to contact slurmdbd", "error_number": 9}).ran(NOW, NOW)
    with pytest.raises(RightsError, match="scontrol token"):
        rest({"error": "Authentication failure"}, status=500).waiting()
