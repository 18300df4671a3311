"""The contract of `POST /v1/jobs/events`, version 1: what schedulers, watchers and prolog scripts may say. docs/schedulers.md tells it.

A body is an envelope and up to 5,000 events. An unknown key is an error, so that a misspelt field is not lost in silence.
Instants are RFC 3339 with a zone. This module declares; :mod:`ingest.receivers.work` reads.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from collector.wire import cleaned

VERSION: Final = 1
PATH: Final = "/v1/jobs/events"
MAX_EVENTS: Final = 5_000
MAX_HOLDS: Final = 20_000
"""Nodes of one job; the largest machines have half of that."""
MAX_ACCELERATORS: Final = 100_000
"""Of one run, whatever it holds them of: the largest clusters have as many."""
MAX_OF_A_NODE: Final = 512
"""The densest hosts have 72 boards, or 16 in seven slices each."""
FIRST_AT: Final = datetime(2000, 1, 1, tzinfo=UTC)
WORKLOAD_KINDS = Literal["training", "fine-tuning", "inference", "agent", "simulation", "batch", "unknown"]
STATES = Literal["pending", "running", "completed", "failed", "cancelled", "preempted", "timeout", "unknown"]
EVIDENCE = Literal["hook", "slurmctld", "kubernetes", "api"]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a character that is not printable")
    return text


def _cleaned(value: object) -> object:
    return cleaned(value) if isinstance(value, str) else value


def _rfc3339(value: object) -> object:
    # A bare number would be guessed to be seconds or milliseconds.
    if not isinstance(value, str) or value[4:5] != "-":
        raise ValueError("is not an RFC 3339 instant such as 2026-11-21T10:03:20Z")
    return value


def _plausible(at: datetime) -> datetime:
    if at < FIRST_AT or at > datetime(2100, 1, 1, tzinfo=UTC):
        raise ValueError("is not between the years 2000 and 2100")
    return at.astimezone(UTC)


Name = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_printable)]
Words = Annotated[str, BeforeValidator(_cleaned), Field(min_length=1)]
"""What a user chose, a job's name: cleaned and cut, never refused, or a job could be hidden by its name."""
Instant = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_plausible)]
Count = Annotated[int, Field(ge=1, le=MAX_ACCELERATORS, strict=True)]
TOO_MANY_ON_NODE: Final = f"no node has more than {MAX_OF_A_NODE} accelerators; tell of a pool with pool"
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=r"^[^=,\s]+$")]
LabelValue = Annotated[str, Field(max_length=255, pattern=r"^[^,\s]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(_Strict):
    """One run of a job: the scheduler's id is reused after a requeue, so its start belongs to it."""

    cluster: Name
    id: Name
    start: Instant


class Wait(_Strict):
    """A job that has not started."""

    cluster: Name
    id: Name
    submitted_at: Instant


class _About(_Strict):
    """What is said of a job whichever way it is told; null says nothing."""

    account: Words | None = None
    user: Words | None = None
    partition: Words | None = None
    qos: Words | None = None
    namespace: Words | None = None
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=64)] | None = None
    name: Words | None = None
    workload: Words | None = Field(None, description="what a pod belongs to: Job/train, JobSet/..., Deployment/...")
    accelerators: Count | None = Field(None, description="accelerators asked for")


class Hold(_Strict):
    """So many accelerators of a node, or of a pool where no node is known."""

    node: Name | None = None
    pool: Name | None = None
    model: Name | None = None
    accelerators: Count

    @model_validator(mode="after")
    def _one_place(self) -> Hold:
        if (self.node is None) == (self.pool is None):
            raise ValueError("say node or pool, one of them")
        if self.node is not None and self.model is not None:
            raise ValueError("model goes with pool; what a node has is known")
        if self.node is not None and self.accelerators > MAX_OF_A_NODE:
            raise ValueError(TOO_MANY_ON_NODE)
        return self


class JobEvent(_About):
    """What a scheduler knows of a run at ``at``. Of each field the latest word counts, whatever the order of arrival."""

    kind: Literal["job"]
    at: Instant = Field(description="when the scheduler said so")
    job: Run
    state: STATES | None = None
    reason: Words | None = None
    submitted_at: Instant | None = None
    eligible_at: Instant | None = None
    ended_at: Instant | None = None
    workload_kind: WORKLOAD_KINDS | None = None
    suspended_s: Annotated[int, Field(ge=0, le=10**9, strict=True)] | None = None
    holds: Annotated[list[Hold], Field(max_length=MAX_HOLDS)] | None = Field(
        None, description="all that the run holds from its start to its end; agents' evidence on a node goes before it"
    )

    @model_validator(mode="after")
    def _in_order(self) -> JobEvent:
        if self.ended_at is not None and self.ended_at < self.job.start:
            raise ValueError("ended_at is before the job's start")
        if self.state == "pending":
            raise ValueError("a run that has a start is not pending; tell of a wait with kind queue")
        held = sum(hold.accelerators for hold in self.holds or ())
        if held > MAX_ACCELERATORS:
            raise ValueError(f"holds {held} accelerators in all; no run has more than {MAX_ACCELERATORS}")
        of_node: dict[str, int] = {}
        for hold in self.holds or ():
            if hold.node is not None:
                of_node[hold.node] = of_node.get(hold.node, 0) + hold.accelerators
        if max(of_node.values(), default=0) > MAX_OF_A_NODE:
            raise ValueError(TOO_MANY_ON_NODE)
        return self


class AllocationEvent(_About):
    """A run begins or ends to hold something at ``at``: one device, or so many accelerators of a node or pool."""

    kind: Literal["allocation_start", "allocation_end"]
    at: Instant
    job: Run
    device: Name | None = Field(None, description="vendor UUID")
    node: Name | None = None
    pool: Name | None = None
    model: Name | None = None
    accelerators: Count = 1
    share_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    energy_mj: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] | None = Field(
        None, description="the device's counter then, millijoules"
    )
    evidence: EVIDENCE = "api"

    @model_validator(mode="after")
    def _one_place(self) -> AllocationEvent:
        if sum(place is not None for place in (self.device, self.node, self.pool)) != 1:
            raise ValueError("say device, node or pool, one of them")
        if self.device is None and (self.share_ratio is not None or self.energy_mj is not None):
            raise ValueError("share_ratio and energy_mj are of one device")
        if self.device is not None and self.accelerators != 1:
            raise ValueError("a device is one accelerator; leave accelerators out")
        if self.node is not None and self.accelerators > MAX_OF_A_NODE:
            raise ValueError(TOO_MANY_ON_NODE)
        if self.model is not None and self.pool is None:
            raise ValueError("model goes with pool")
        return self


class QueueEvent(_About):
    """A job waits, since when for which reason; or it left the queue."""

    kind: Literal["queue"]
    at: Instant = Field(description="when the scheduler said so")
    job: Wait
    reason: Words | None = None
    since: Instant | None = Field(None, description="the reason holds from here; else from `at`")
    eligible_at: Instant | None = None
    tasks: Count | None = Field(None, description="tasks of an array that wait")
    left_at: Instant | None = None
    outcome: Literal["started", "cancelled", "gone"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> QueueEvent:
        if (self.left_at is None) != (self.outcome is None):
            raise ValueError("left_at and outcome go together")
        return self


class NodeEvent(_Strict):
    """Where a node stands from ``at`` on; what is not said is not known, and replaces what was."""

    kind: Literal["node"]
    at: Instant
    node: Name
    rack: Name | None = None
    switch: Words | None = None
    nvlink_domain: Name | None = None


Event = Annotated[JobEvent | AllocationEvent | QueueEvent | NodeEvent, Field(discriminator="kind")]
EVENT: Final[TypeAdapter[JobEvent | AllocationEvent | QueueEvent | NodeEvent]] = TypeAdapter(Event)


class Envelope(_Strict):
    """A body. The events are read one by one: a bad one is refused, the others are kept."""

    version: Literal[1]
    source: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    origin: Literal["live", "imported", "replayed", "simulated"] = "live"
    events: Annotated[list[dict[str, Any]], Field(max_length=MAX_EVENTS)]


class Body(_Strict):
    """The envelope with its events, for the published schema."""

    version: Literal[1]
    source: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$", description="who tells: slurm, kubernetes, ...")]
    origin: Literal["live", "imported", "replayed", "simulated"] = "live"
    events: Annotated[list[Event], Field(max_length=MAX_EVENTS)]


def schema() -> dict[str, Any]:
    """Return the JSON schema of a body; docs/schedulers.schema.json is this."""
    return Body.model_json_schema()


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def us(at: datetime) -> int:
    """Return an instant as microseconds since 1970."""
    return (at - _EPOCH) // timedelta(microseconds=1)
