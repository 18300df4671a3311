"""Reads OpenLineage run events (specification 1.x and 2.x) into what lineage keeps of them. Pure; one bad event refuses itself.

Kept are the run, its state, what it read and wrote, and the few facets that join a run to a scheduler job, a kind or a
served model. All other facets are counted by name and left out: they are unbounded, and error messages, SQL and source
code are in them. Job and dataset events, which belong to no run, are counted.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from re import compile as pattern
from typing import Any, Final

from collector.wire import Origin
from ingest.receivers.json_body import ItemError, Refused, instant_us, items, mapping, text, words

LINEAGE_PATH: Final = "/api/v1/lineage"
BATCH_PATH: Final = "/api/v1/lineage/batch"
MAX_EVENTS: Final = 1_000
MAX_DATASETS: Final = 500
"""Of one event, inputs and outputs together."""
JOB_FACET: Final = "wattledger_job"
"""Our own run facet: ``cluster`` and ``nativeId`` of the scheduler job, ``kind`` of the run, ``model`` it serves as."""
KINDS: Final = ("fine_tune", "training", "serving", "data")
STATES: Final = ("start", "running", "complete", "fail", "abort", "other")
ENDED: Final = ("complete", "fail", "abort")
_SPEC = pattern(r"/spec/(\d+)-(\d+)-(\d+)/")
_ENVIRONMENT: Final = {"SLURM_JOB_ID": "native_id", "SLURM_CLUSTER_NAME": "cluster"}
_TAGS: Final = {f"wattledger.{name}": name for name in ("cluster", "native_id", "kind", "model", "origin")}
_READ_FACETS: Final = frozenset((JOB_FACET, "environmentVariables", "tags", "parent", "version", "datasetType"))
_NAMES_COUNTED: Final = 200
"""Names of ignored facets told apart in one body; further ones are counted together."""


@dataclass(frozen=True, slots=True)
class RunDataset:
    direction: str
    namespace: str
    name: str
    version: str
    """Empty = not stated."""
    kind: str | None


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event of a run; None = not said."""

    run_id: str
    event_type: str
    event_at_us: int
    job_namespace: str
    job_name: str
    producer: str | None
    spec: str | None
    kind: str | None
    cluster: str | None
    native_id: str | None
    parent_run_id: str | None
    model: str | None
    origin: int
    datasets: tuple[RunDataset, ...]
    facets: Mapping[str, str]
    facets_ignored: int

    def named(self) -> Iterator[Hashable]:
        """Yield what becomes a row of its own: the run, the event, and each dataset of the run."""
        yield self.run_id
        yield self.run_id, self.event_type, self.event_at_us
        for each in self.datasets:
            yield self.run_id, each


@dataclass
class ReadEvents:
    """What a body holds: run events, what was refused by its place in the body, and what was counted and left out."""

    received: int = 0
    events: list[RunEvent] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    without_run: int = 0
    """Job and dataset events."""
    facets_ignored: Counter[str] = field(default_factory=Counter)
    places: list[int] = field(default_factory=list)
    """Of the run events, in the body."""

    def refuse(self, why: Sequence[str | None]) -> None:
        """Refuse the events for which ``why``, one entry an event, gives a reason."""
        self.refused += [Refused(place, reason) for place, reason in zip(self.places, why, strict=True) if reason]
        self.events = [event for event, reason in zip(self.events, why, strict=True) if not reason]
        self.places = [place for place, reason in zip(self.places, why, strict=True) if not reason]


def read_events(body: bytes, now_us: int) -> ReadEvents:
    """Return the events of one body, a single event or an array of them; raises BadBodyError if it is neither."""
    read = ReadEvents()
    for place, given in enumerate(items(body, MAX_EVENTS, "an OpenLineage event or an array of them")):
        read.received += 1
        try:
            event = _event(given, now_us, read.facets_ignored)
        except ItemError as fault:
            read.refused.append(Refused(place, str(fault)))
            continue
        if event is None:
            read.without_run += 1
        else:
            read.events.append(event)
            read.places.append(place)
    return read


def _event(given: Any, now_us: int, ignored: Counter[str]) -> RunEvent | None:
    event = mapping(given, "event")
    spec = _spec(event.get("schemaURL"))
    if "run" not in event and ("dataset" in event or "job" in event):
        return None
    run, job = mapping(event.get("run"), "run"), mapping(event.get("job"), "job")
    event_type = (text(event.get("eventType"), "eventType") or "OTHER").lower()
    if event_type not in STATES:
        raise ItemError(f"eventType {event_type.upper()!r:.40} is none of {', '.join(STATES).upper()}")
    skipped: Counter[str] = Counter()
    found = _words_of_run(run, job, skipped)
    datasets = tuple(_datasets(event, skipped))
    for name, count in skipped.items():
        ignored[name if name in ignored or len(ignored) < _NAMES_COUNTED else "(others)"] += count
    kind = (found.get("kind") or "").lower().replace("-", "_") or None
    if kind is not None and kind not in KINDS:
        raise ItemError(f"kind {kind!r:.40} is none of {', '.join(KINDS)}")
    return RunEvent(
        run_id=_run_id(run.get("runId"), "run.runId"),
        event_type=event_type,
        event_at_us=instant_us(event.get("eventTime"), "eventTime", now_us),
        job_namespace=text(job.get("namespace"), "job.namespace", required=True),
        job_name=text(job.get("name"), "job.name", required=True),
        producer=text(event.get("producer"), "producer"),
        spec=spec,
        kind=kind,
        cluster=found.get("cluster"),
        native_id=found.get("native_id"),
        parent_run_id=found.get("parent"),
        model=found.get("model"),
        origin=_origin(found.get("origin")),
        datasets=datasets,
        facets=found,
        facets_ignored=sum(skipped.values()),
    )


def _spec(schema_url: Any) -> str | None:
    url = text(schema_url, "schemaURL")
    match = _SPEC.search(url) if url else None
    if match is None:
        return None
    if match[1] not in {"1", "2"}:
        raise ItemError(f"specification {'-'.join(match.groups())} is not read; send 1.x or 2.x")
    return "-".join(match.groups())


def _words_of_run(run: Mapping[str, Any], job: Mapping[str, Any], skipped: Counter[str]) -> dict[str, str]:
    """Return what joins the run to a job, best source first: our facet, tags, then the environment a job runs in."""
    facets = _facets(run, "run.facets", skipped)
    job_facets = _facets(job, "job.facets", skipped)
    ours = mapping(facets.get(JOB_FACET, {}), JOB_FACET)
    said = {"cluster": "cluster", "nativeId": "native_id", "kind": "kind", "model": "model", "origin": "origin"}
    found = words({name: ours.get(key) for key, name in said.items()}, JOB_FACET)
    for given in (facets, job_facets):
        for tag in _listed(given.get("tags"), "tags"):
            name = _TAGS.get(str(tag.get("key")))
            if name is not None:
                found.setdefault(name, text(tag.get("value"), "tag", required=True))
    for variable in _listed(facets.get("environmentVariables"), "environmentVariables"):
        name = _ENVIRONMENT.get(str(variable.get("name")))
        if name is not None:
            found.setdefault(name, text(variable.get("value"), "environment variable", required=True))
    parent = mapping(facets.get("parent", {}), "parent").get("run")
    if parent is not None:
        found["parent"] = _run_id(mapping(parent, "parent.run").get("runId"), "parent.run.runId")
    return found


def _facets(of: Mapping[str, Any], where: str, skipped: Counter[str]) -> Mapping[str, Any]:
    facets = mapping(of.get("facets") or {}, where)
    for name in facets:
        if name not in _READ_FACETS:
            skipped["".join(character for character in name if character.isprintable())[:64]] += 1
    return facets


def _listed(facet: Any, name: str) -> Iterator[Mapping[str, Any]]:
    if facet is None:
        return
    given = mapping(facet, name).get(name)
    if not isinstance(given, list):
        return
    yield from (entry for entry in given[:1_000] if isinstance(entry, dict))


def _datasets(event: Mapping[str, Any], skipped: Counter[str]) -> Iterator[RunDataset]:
    seen = 0
    for direction, key in (("input", "inputs"), ("output", "outputs")):
        given = event.get(key) or []
        if not isinstance(given, list):
            raise ItemError(f"{key} is no array")
        seen += len(given)
        if seen > MAX_DATASETS:
            raise ItemError(f"more than {MAX_DATASETS} datasets in one event")
        for entry in given:
            dataset = mapping(entry, key)
            facets = _facets(dataset, f"{key}.facets", skipped)
            version = mapping(facets.get("version", {}), "version").get("datasetVersion")
            kind = mapping(facets.get("datasetType", {}), "datasetType").get("datasetType")
            for part in ("inputFacets", "outputFacets"):
                skipped.update(name[:64] for name in mapping(dataset.get(part) or {}, part) if name.isprintable())
            yield RunDataset(
                direction,
                text(dataset.get("namespace"), f"{key}.namespace", required=True),
                text(dataset.get("name"), f"{key}.name", required=True),
                text(version, "datasetVersion") or "",
                (text(kind, "datasetType") or "").lower() or None,
            )


def _run_id(given: Any, where: str) -> str:
    try:
        return str(uuid.UUID(given))
    except (ValueError, TypeError, AttributeError):
        raise ItemError(f"{where} {given!r:.60} is no UUID") from None


def _origin(named: str | None) -> int:
    if named is not None and named.upper() in Origin.__members__:
        return int(Origin[named.upper()])
    return int(Origin.LIVE)
