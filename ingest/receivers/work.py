"""Reads bodies of `POST /v1/jobs/events` into what the store keeps; refuses single events with their place and reason. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
from pydantic import ValidationError

from collector.wire import Origin
from ingest.errors import BadBodyError, TooLargeError
from ingest.receivers.work_events import (
    EVENT,
    MAX_EVENTS,
    VERSION,
    AllocationEvent,
    Envelope,
    JobEvent,
    NodeEvent,
    QueueEvent,
    us,
)

MAX_BODY_BYTES: Final = 4 << 20
MAX_DECODED_BYTES: Final = 16 << 20
MAX_AHEAD: Final = timedelta(minutes=5)
"""Senders' clocks may be that much ahead."""
Facts = dict[str, Any]
"""Field of a job or wait -> value as JSON has it; instants in microseconds since 1970, holds as (node, pool, model, count)."""


@dataclass(frozen=True, slots=True)
class RunKey:
    cluster: str
    native_id: str
    started_at_us: int


@dataclass(frozen=True, slots=True)
class JobTold:
    run: RunKey
    at_us: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class HoldTold:
    """A begin (1) or end (2) of a holding; ``facts`` fill in what nobody has said of the job yet."""

    run: RunKey
    at_us: int
    action: int
    device: str | None
    node: str | None
    pool: str | None
    model: str | None
    accelerators: int
    share_ratio: float | None
    energy_mj: int | None
    evidence: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class WaitTold:
    cluster: str
    native_id: str
    submitted_at_us: int
    at_us: int
    reason: str | None
    since_us: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class NodeTold:
    node: str
    at_us: int
    rack: str | None
    switch: str | None
    nvlink_domain: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """One event that is not kept; ``index`` counts from 0 in the body."""

    index: int
    reason: str
    detail: str


@dataclass
class Work:
    """What one body says; each entry with its place in the body, for refusals that only the store can make."""

    source: str
    origin: Origin
    jobs: list[tuple[int, JobTold]] = field(default_factory=list)
    holds: list[tuple[int, HoldTold]] = field(default_factory=list)
    waits: list[tuple[int, WaitTold]] = field(default_factory=list)
    nodes: list[tuple[int, NodeTold]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def told(self) -> int:
        return len(self.jobs) + len(self.holds) + len(self.waits) + len(self.nodes)

    def events(self) -> Iterator[tuple[int, JobTold | HoldTold | WaitTold | NodeTold]]:
        yield from self.jobs
        yield from self.holds
        yield from self.waits
        yield from self.nodes

    def refuse(self, refused: list[Refused]) -> None:
        """Take out what is refused."""
        self.refused += refused
        gone = {each.index for each in refused}
        self.jobs = [each for each in self.jobs if each[0] not in gone]
        self.holds = [each for each in self.holds if each[0] not in gone]
        self.waits = [each for each in self.waits if each[0] not in gone]
        self.nodes = [each for each in self.nodes if each[0] not in gone]


def named(told: JobTold | HoldTold | WaitTold | NodeTold) -> Iterator[Hashable]:
    """Yield what an event names: each becomes a row of its own when it is new."""
    match told:
        case JobTold():
            yield told.run
            for node, pool, model, _ in told.facts.get("holds", ()):
                yield (node, pool, model)
        case HoldTold():
            yield told.run
            yield told.device or (told.node, told.pool, told.model)
        case WaitTold():
            yield "wait", told.cluster, told.native_id, told.submitted_at_us
        case NodeTold():
            yield (told.node, None, None)


def read_work(body: bytes, now: datetime) -> Work:
    """Return what a body says; raises BadBodyError where it is no body of this version."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadBodyError("malformed", f"the body is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise BadBodyError("malformed", 'the body is not {"version": 1, "source": "...", "events": [...]}')
    if raw.get("version") != VERSION:
        raise BadBodyError("version", f"version {raw.get('version')!r:.40}; this server reads version {VERSION}")
    if isinstance(raw.get("events"), list) and len(raw["events"]) > MAX_EVENTS:
        raise TooLargeError(f"{len(raw['events'])} events; at most {MAX_EVENTS} in one body")
    try:
        envelope = Envelope.model_validate(raw)
    except ValidationError as error:
        raise BadBodyError("malformed", _words(error)) from error
    work = Work(envelope.source, Origin[envelope.origin.upper()])
    limit = now + MAX_AHEAD
    for index, given in enumerate(envelope.events):
        try:
            event = EVENT.validate_python(given)
        except ValidationError as error:
            work.refused.append(Refused(index, "malformed", _words(error)))
            continue
        ahead = [name for name, instant in _past(event) if instant is not None and instant > limit]
        if ahead:
            detail = f"{', '.join(ahead)}: more than 5 minutes ahead; is the sender's clock right?"
            work.refused.append(Refused(index, "future", detail))
            continue
        _add(work, index, event)
    return work


def _past(event: JobEvent | AllocationEvent | QueueEvent | NodeEvent) -> Iterator[tuple[str, datetime | None]]:
    """Yield the instants of what has happened; only when a wait becomes eligible may be planned."""
    yield "at", event.at
    match event:
        case JobEvent():
            yield "job.start", event.job.start
            yield "submitted_at", event.submitted_at
            yield "ended_at", event.ended_at
        case AllocationEvent():
            yield "job.start", event.job.start
        case QueueEvent():
            yield "job.submitted_at", event.job.submitted_at
            yield "since", event.since
            yield "left_at", event.left_at


def _add(work: Work, index: int, event: JobEvent | AllocationEvent | QueueEvent | NodeEvent) -> None:
    match event:
        case JobEvent():
            work.jobs.append((index, JobTold(_run(event), us(event.at), dict(_job_facts(event)))))
        case AllocationEvent():
            work.holds.append((index, _hold(event)))
        case QueueEvent():
            since = event.since or event.at
            facts = dict(_about(event)) | dict(_queue_facts(event))
            work.waits.append(
                (
                    index,
                    WaitTold(
                        event.job.cluster,
                        event.job.id,
                        us(event.job.submitted_at),
                        us(event.at),
                        event.reason,
                        us(since),
                        facts,
                    ),
                )
            )
        case NodeEvent():
            told = NodeTold(event.node, us(event.at), event.rack, event.switch, event.nvlink_domain)
            work.nodes.append((index, told))


def _run(event: JobEvent | AllocationEvent) -> RunKey:
    return RunKey(event.job.cluster, event.job.id, us(event.job.start))


def _about(event: JobEvent | AllocationEvent | QueueEvent) -> Iterator[tuple[str, Any]]:
    for name in ("account", "partition", "qos", "namespace", "name", "workload", "accelerators"):
        value = getattr(event, name)
        if value is not None:
            yield name, value
    if event.user is not None:
        yield "user_name", event.user
    if event.labels is not None:
        # As bindings match them: one text, sorted, so that two spellings of one set are one.
        text = ",".join(f"{key}={value}" for key, value in sorted(event.labels.items()))
        yield "label", text or None


def _job_facts(event: JobEvent) -> Iterator[tuple[str, Any]]:
    yield from _about(event)
    yield "started_at", us(event.job.start)
    for name in ("state", "reason", "workload_kind"):
        value = getattr(event, name)
        if value is not None:
            yield name, value
    for name in ("submitted_at", "eligible_at", "ended_at"):
        instant = getattr(event, name)
        if instant is not None:
            yield name, us(instant)
    if event.suspended_s is not None:
        yield "suspended_us", event.suspended_s * 1_000_000
    if event.holds is not None:
        yield "holds", _summed(event)


def _summed(event: JobEvent) -> list[list[Any]]:
    counts: dict[tuple[str | None, str | None, str | None], int] = {}
    for hold in event.holds or ():
        place = (hold.node, hold.pool, hold.model)
        counts[place] = counts.get(place, 0) + hold.accelerators
    return sorted([[*place, count] for place, count in counts.items()], key=repr)


def _queue_facts(event: QueueEvent) -> Iterator[tuple[str, Any]]:
    for name in ("eligible_at", "left_at"):
        instant = getattr(event, name)
        if instant is not None:
            yield name, us(instant)
    for name in ("tasks", "outcome"):
        value = getattr(event, name)
        if value is not None:
            yield name, value


def _hold(event: AllocationEvent) -> HoldTold:
    facts = {name: value for name, value in _about(event) if name != "accelerators"}  # here those held, not asked for
    return HoldTold(
        run=_run(event),
        at_us=us(event.at),
        action=1 if event.kind == "allocation_start" else 2,
        device=event.device,
        node=event.node,
        pool=event.pool,
        model=event.model,
        accelerators=event.accelerators,
        share_ratio=event.share_ratio,
        energy_mj=event.energy_mj,
        evidence=event.evidence,
        facts=facts,
    )


def _words(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(str(part) for part in fault['loc']) or 'body'}: {fault['msg']}" for fault in faults[:3]]
    rest = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(shown)[:500] + rest
