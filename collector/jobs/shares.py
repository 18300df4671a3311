"""Gathers processes into what each holder used of each device: one row a device and holder. Pure.

Memory and utilization are measured per process where the driver gives them; who paid for how much of a shared board's power is the
server's business, and ``method`` says how well these rows can tell. A process that runs for no job is a row without a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from collector.jobs.evidence import Job, JobKey
from collector.jobs.holding import Device
from collector.probe import ProcessReading, Row
from collector.wire import cleaned

_ALL_PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """One process on one device, and whom it runs for."""

    reading: ProcessReading
    job: Job | None
    evidence: str
    mps_threads_percent: float | None = None
    """As its own environment has it: what an MPS client was told to keep to, unproven."""


def share_rows(samples: Iterable[Sample], devices: Mapping[str, Device], since_us: int) -> list[Row]:
    """Return the DEVICE_SHARE rows of one look, by device and job; ``since_us``: the look before, 0 for none."""
    by_device: dict[str, dict[JobKey | None, list[Sample]]] = {}
    for sample in samples:
        key = None if sample.job is None else sample.job.key
        by_device.setdefault(sample.reading.device_uuid, {}).setdefault(key, []).append(sample)
    rows: list[Row] = []
    for uuid in sorted(by_device):
        holders = by_device[uuid]
        granted = devices.get(uuid, _NOTHING)
        method = _method(holders, granted)
        order = sorted(holders, key=lambda entry: ("", "", 0) if entry is None else tuple(entry))
        rows += [_row(uuid, holders[key], granted, method, since_us) for key in order]
    return rows


_NOTHING: Final = Device()


def _method(holders: Mapping[JobKey | None, list[Sample]], granted: Device) -> str:
    """Return how the parts of several holders can be told apart."""
    if len(holders) == 1:
        return "measured"
    everyone = [sample for samples in holders.values() for sample in samples]
    if any(sample.reading.kind == "mps" for sample in everyone):
        # The driver's figures per MPS client are not to be trusted.
        known = all(sample.mps_threads_percent is not None for sample in everyone)
        return "mps_threads" if known else "equal"
    if all(sample.reading.sm_util_percent is not None for sample in everyone):
        return "process_utilization"
    if any(grant.weight is not None for grant in granted.hooks.values()):
        return "shards"
    return "equal"


def _row(uuid: str, samples: list[Sample], granted: Device, method: str, since_us: int) -> Row:
    job = samples[0].job
    at_us = max(sample.reading.at_us for sample in samples)
    held = None if job is None else granted.open.get(job.key)
    share_ratio = None if held is None else held.share_ratio
    if method == "mps_threads":
        threads = sum(sample.mps_threads_percent or 0.0 for sample in samples)
        share_ratio = min(_ALL_PERCENT, threads) / _ALL_PERCENT
    return {
        "at_us": at_us,
        "device_uuid": uuid,
        "span_us": max(0, at_us - since_us) if since_us else 0,
        "cluster": None if job is None else cleaned(job.key.cluster),
        "native_job_id": None if job is None else cleaned(job.key.native_id),
        "job_started_at_us": None if job is None else job.key.started_at_us,
        "namespace": None if job is None or job.namespace is None else cleaned(job.namespace),
        "label": None if job is None or job.label is None else cleaned(job.label),
        "processes": len({sample.reading.pid for sample in samples}),
        "memory_used_bytes": _sum([sample.reading.used_memory_bytes for sample in samples]),
        "sm_util_percent": _percent([sample.reading.sm_util_percent for sample in samples]),
        "memory_util_percent": _percent([sample.reading.memory_util_percent for sample in samples]),
        "share_ratio": share_ratio,
        "evidence": samples[0].evidence,
        "method": method,
    }


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    # A sum over some of the processes would look like a measurement of all.
    return sum(known) if len(known) == len(values) else None


def _percent(values: list[int | None]) -> float | None:
    total = _sum(values)
    return None if total is None else float(min(_ALL_PERCENT, total))
