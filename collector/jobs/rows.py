"""Puts what the ledger tells into rows for the wire. Pure; it leaves the counter to the agent, who reads it."""

from __future__ import annotations

from collections.abc import Mapping

from collector.jobs.evidence import Change, Finding
from collector.jobs.holding import Device
from collector.probe import Row
from collector.wire import JOBS_BEGUN_ANEW, cleaned


def allocation_row(change: Change) -> Row:
    """Return the row of the stream ALLOCATION that a change is told by; texts are cleaned for the wire."""
    job = change.job
    return {
        "at_us": change.at_us,
        "device_uuid": change.device_uuid,
        "action": 1 if change.begins else 2,
        "share_ratio": change.share_ratio,
        "cluster": cleaned(job.key.cluster),
        "native_job_id": cleaned(job.key.native_id),
        "job_started_at_us": job.key.started_at_us,
        "account": _cleaned(job.account),
        "user": _cleaned(job.user),
        "partition": _cleaned(job.partition),
        "qos": _cleaned(job.qos),
        "namespace": _cleaned(job.namespace),
        "label": _cleaned(job.label),
        "job_name": _cleaned(job.job_name),
        "evidence": change.evidence.value,
    }


def finding_row(finding: Finding) -> Row:
    """Return the row of the stream NODE_EVENT that a finding is told by; one about no device has no subject."""
    return {
        "at_us": finding.at_us,
        "kind": finding.kind,
        "subject": finding.device_uuid or None,
        "detail": cleaned(finding.detail),
    }


def anew_row(at_us: int) -> Row:
    """Return the node event of an agent that began at ``at_us`` without knowing what was told before."""
    detail = "the agent began without its state; what it does not find held was over before"
    return {"at_us": at_us, "kind": JOBS_BEGUN_ANEW, "subject": None, "detail": detail}


def found_held(devices: Mapping[str, Device], at_us: int) -> list[Row]:
    """Return a start at ``at_us`` of all that was held then and is still: what goes on, whatever was told of it before."""
    return [
        allocation_row(Change(at_us, uuid, held.job, True, held.share_ratio, held.evidence))
        for uuid, device in devices.items()
        for held in device.open.values()
        if held.since_us < at_us
    ]


def _cleaned(text: str | None) -> str | None:
    return None if text is None else cleaned(text)
