"""Slurm's words as rows, whoever was asked: a record of a job, a job that waits. Shares the reading of sacct with its importer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ingest.importers.errors import RowError
from ingest.importers.job_rows import JobRow
from ingest.importers.sacct import gpus, job_of

_ARRAY: Final = re.compile(r"(\d+)_\[([^\]]*)\]?")
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_CUT: Final = 255
"""Longest id, node or name of a queue that events take."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the accounting database. ``job`` is None for one that never started, or that cannot be read (``fault``)."""

    native_id: str
    submitted_us: int | None
    ended_us: int | None
    job: JobRow | None
    suspended_s: int | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending job; ``tasks`` of an array that wait, each asking for ``accelerators``."""

    native_id: str
    submitted_us: int
    eligible_us: int | None
    reason: str | None
    account: str | None
    user: str | None
    partition: str | None
    qos: str | None
    name: str | None
    accelerators: int | None
    tasks: int | None = None


def record(row: Mapping[str, Any], cluster: str, now: datetime) -> Record | None:
    """Return the record of a row keyed as the importer's FIELDS, instants in microseconds; None for a step."""
    native_id = str(row["job_id"])
    if "." in native_id:
        return None
    suspended_s = seconds(row.get("suspended")) or None
    if not row["alloc_tres"] and not row["node_list"] and str(row["state"]).startswith("CANCELLED"):
        # Withdrawn while it waited: Slurm says it began, when it ended, on no node; the end itself may be missing.
        return Record(native_id, row["submit"], row["end"] or row["start"], None, suspended_s)
    try:
        job = job_of(0, row, cluster, now)
    except RowError as error:
        fault = None if error.reason == "never started" else f"{error.reason} {error.detail}".strip()
        return Record(native_id, row["submit"], row["end"], None, suspended_s, fault)
    return Record(native_id, row["submit"], row["end"], job, suspended_s)


def waiting(row: Mapping[str, Any]) -> Waiting | None:
    """Return a pending job of the fields id, submit, eligible, reason, account, user, partition, qos, name, tres; None if unreadable."""
    if row["submit"] is None:
        return None
    native_id, tasks = array_of(str(row["id"]))
    try:
        accelerators = gpus(row["tres"])[0] or None
    except RowError:
        accelerators = None
    return Waiting(
        native_id=native_id[:_CUT],
        submitted_us=row["submit"],
        eligible_us=row["eligible"],
        reason=row["reason"],
        account=row["account"],
        user=row["user"],
        partition=row["partition"],
        qos=row["qos"],
        name=row["name"],
        accelerators=accelerators,
        tasks=tasks,
    )


def array_of(native_id: str) -> tuple[str, int | None]:
    """Return the id of a pending array and how many of its tasks wait; ``12_[4-9,20%2]`` is 12 with seven."""
    match = _ARRAY.fullmatch(native_id)
    if match is None:
        return native_id, None
    tasks = 0
    for piece in match[2].partition("%")[0].split(","):
        part = _RANGE.fullmatch(piece)
        if part is None:  # a long list is cut with dots
            return match[1], None
        first, last, step = int(part[1]), int(part[2] or part[1]), int(part[3] or 1)
        tasks += max(0, (last - first) // max(step, 1) + 1)
    return match[1], tasks or None


def seconds(text: object) -> int | None:
    """Return the seconds of Slurm's ``[days-]hours:minutes:seconds``; null for anything else."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)(?:\.\d+)?", str(text or ""))
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
