"""Reads OpenLineage run events (specification 1.x and 2.x) into what lineage keeps of them. Pure.

Only what says which run it was and when can cost the event itself: a name that is too long is cut, a word that is none is left
out, and both are counted. Kept are the run, its state, what it read and wrote, and the few facets that join a run to a scheduler job, a kind or a
served model. All other facets are counted by name and left out: they are unbounded, and error messages, SQL and source
code are in them. Job and dataset events, which belong to no run, are not kept, and the answer says so.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from re import compile as pattern
from typing import Any, Final

from collector.wire import Origin
from ingest.receivers.json_body import MAX_TEXT, ItemError, Refused, instant_us, items, mapping

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
_ENVIRONMENT: Final = (
    *("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_HET_JOB_ID"),
    "SLURM_HET_JOB_OFFSET",
)
_NUMBER = pattern(r"[0-9]{1,18}")
_TAGS: Final = {f"wattledger.{name}": name for name in ("cluster", "native_id", "kind", "model", "origin")}
_READ_FACETS: Final = frozenset((JOB_FACET, "environmentVariables", "tags", "parent", "version", "datasetType"))
_NOT_KEPT: Final = (
    "not kept: a job or dataset event belongs to no run; send what a run read and wrote with its run events"
)
_CUT: Final = "names_cut"
_LEFT_OUT: Final = "words_left_out"
_DATASETS_LEFT_OUT: Final = "datasets_left_out"
_DIGEST: Final = 16
"""Hex digits of SHA-256 of the whole, at the end of what was cut: two long names stay two."""
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
    """Job and dataset events: read by nobody, so not kept."""
    not_kept: list[Refused] = field(default_factory=list)
    """Those of them that are named one by one."""
    facets_ignored: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    """Of the events that were read: names cut, words and datasets left out."""
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
            event = _event(given, now_us, read)
        except ItemError as fault:
            read.refused.append(Refused(place, str(fault)))
            continue
        if event is None:
            read.without_run += 1
            read.not_kept.append(Refused(place, _NOT_KEPT))
        else:
            read.events.append(event)
            read.places.append(place)
    return read


def _event(given: Any, now_us: int, into: ReadEvents) -> RunEvent | None:
    event = mapping(given, "event")
    spec = _spec(event.get("schemaURL"))
    if _of_no_run(event):
        return None
    run, job = mapping(event.get("run"), "run"), mapping(event.get("job"), "job")
    event_type = str(event.get("eventType") or "OTHER").lower()
    if event_type not in STATES:
        raise ItemError(f"eventType {event_type.upper()!r:.40} is none of {', '.join(STATES).upper()}")
    skipped: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    found = _words_of_run(run, job, skipped, lost)
    datasets = tuple(sorted(_datasets(event, skipped, lost), key=lambda each: each.direction))
    kind = found.pop("kind", "").lower().replace("-", "_")
    if kind in KINDS:
        found["kind"] = kind
    elif kind:
        lost[_LEFT_OUT] += 1
    read = RunEvent(
        run_id=_run_id(run.get("runId"), "run.runId"),
        event_type=event_type,
        event_at_us=instant_us(event.get("eventTime"), "eventTime", now_us),
        job_namespace=_name(job.get("namespace"), "job.namespace", lost),
        job_name=_name(job.get("name"), "job.name", lost),
        producer=_word(event.get("producer"), lost),
        spec=spec,
        kind=found.get("kind"),
        cluster=found.get("cluster"),
        native_id=found.get("native_id"),
        parent_run_id=found.get("parent"),
        model=found.get("model"),
        origin=_origin(found.get("origin")),
        datasets=datasets,
        facets=found,
        facets_ignored=sum(skipped.values()),
    )
    into.lost.update(lost)
    ignored = into.facets_ignored
    for name, count in skipped.items():
        ignored[name if name in ignored or len(ignored) < _NAMES_COUNTED else "(others)"] += count
    return read


def _of_no_run(event: Mapping[str, Any]) -> bool:
    """Say whether it is a job or dataset event; a run event that lacks its run is none of these, but a bad one."""
    if "run" in event or event.get("eventType") or str(event.get("schemaURL")).endswith("/RunEvent"):
        return False
    return "dataset" in event or "job" in event


def _spec(schema_url: Any) -> str | None:
    match = _SPEC.search(schema_url) if isinstance(schema_url, str) else None
    if match is None:
        return None
    if match[1] not in {"1", "2"}:
        raise ItemError(f"specification {'-'.join(match.groups())} is not read; send 1.x or 2.x")
    return "-".join(match.groups())


def _words_of_run(
    run: Mapping[str, Any], job: Mapping[str, Any], skipped: Counter[str], lost: Counter[str]
) -> dict[str, str]:
    """Return what joins the run to a job, best source first: our facet, tags, then the environment a job runs in."""
    facets = _facets(run, skipped, lost)
    job_facets = _facets(job, skipped, lost)
    ours = _part(facets, JOB_FACET, lost)
    said = {"cluster": "cluster", "nativeId": "native_id", "kind": "kind", "model": "model", "origin": "origin"}
    found = {name: word for key, name in said.items() if (word := _word(ours.get(key), lost))}
    for given in (facets, job_facets):
        for tag in _listed(given.get("tags"), "tags"):
            name = _TAGS.get(str(tag.get("key")))
            word = _word(tag.get("value"), lost) if name is not None else None
            if name is not None and word is not None:
                found.setdefault(name, word)
    for name, word in _of_environment(facets, lost).items():
        found.setdefault(name, word)
    parent = _part(_part(facets, "parent", lost), "run", lost).get("runId")
    if parent is not None:
        try:
            found["parent"] = _run_id(parent, "parent.run.runId")
        except ItemError:
            lost[_LEFT_OUT] += 1
    return found


def _of_environment(facets: Mapping[str, Any], lost: Counter[str]) -> dict[str, str]:
    """Return cluster and id as the scheduler's accounting spells them: ``4700_11`` of an array, ``123+1`` of components.

    A task of an array and a component have numbers of their own in SLURM_JOB_ID, by which no accounting knows them.
    """
    given: dict[str, str] = {}
    for variable in _listed(facets.get("environmentVariables"), "environmentVariables"):
        name = variable.get("name")
        word = _word(variable.get("value"), lost) if name in _ENVIRONMENT else None
        if word is not None:
            given.setdefault(str(name), word)

    def number(name: str) -> str | None:
        word = given.get(name, "")
        return word if _NUMBER.fullmatch(word) else None

    native_id = given.get("SLURM_JOB_ID")
    array, task = number("SLURM_ARRAY_JOB_ID"), number("SLURM_ARRAY_TASK_ID")
    whole, component = number("SLURM_HET_JOB_ID"), number("SLURM_HET_JOB_OFFSET")
    if whole is not None:
        native_id = whole if component is None else f"{whole}+{component}"
    elif array is not None and task is not None:
        native_id = f"{array}_{task}"
    found = {"native_id": native_id, "cluster": given.get("SLURM_CLUSTER_NAME")}
    return {name: word for name, word in found.items() if word is not None}


def _facets(of: Mapping[str, Any], skipped: Counter[str], lost: Counter[str]) -> Mapping[str, Any]:
    facets = _part(of, "facets", lost)
    for name in facets:
        if name not in _READ_FACETS:
            skipped["".join(character for character in name if character.isprintable())[:64]] += 1
    return facets


def _part(of: Mapping[str, Any], name: str, lost: Counter[str]) -> Mapping[str, Any]:
    """Return an object of an object, an empty one where there is none; what is no object is counted."""
    given = of.get(name)
    if isinstance(given, dict):
        return given
    if given is not None:
        lost[_LEFT_OUT] += 1
    return {}


def _listed(facet: Any, name: str) -> Iterator[Mapping[str, Any]]:
    if facet is None:
        return
    given = mapping(facet, name).get(name)
    if not isinstance(given, list):
        return
    yield from (entry for entry in given[:1_000] if isinstance(entry, dict))


def _datasets(event: Mapping[str, Any], skipped: Counter[str], lost: Counter[str]) -> Iterator[RunDataset]:
    room = MAX_DATASETS
    # What a run wrote goes first: it is less, and without it no chain reaches the run.
    for direction, key in (("output", "outputs"), ("input", "inputs")):
        given = event.get(key) or []
        if not isinstance(given, list):
            lost[_LEFT_OUT] += 1
            continue
        if len(given) > room:
            lost[_DATASETS_LEFT_OUT] += len(given) - room
        for entry in given[:room]:
            try:
                yield _dataset(direction, mapping(entry, key), skipped, lost)
            except ItemError:
                lost[_LEFT_OUT] += 1
        room -= min(len(given), room)


def _dataset(direction: str, dataset: Mapping[str, Any], skipped: Counter[str], lost: Counter[str]) -> RunDataset:
    facets = _facets(dataset, skipped, lost)
    for part in ("inputFacets", "outputFacets"):
        skipped.update(name[:64] for name in _part(dataset, part, lost) if name.isprintable())
    return RunDataset(
        direction,
        _name(dataset.get("namespace"), "namespace", lost),
        _name(dataset.get("name"), "name", lost),
        _word(_part(facets, "version", lost).get("datasetVersion"), lost) or "",
        (_word(_part(facets, "datasetType", lost).get("datasetType"), lost) or "").lower() or None,
    )


def _name(given: Any, where: str, lost: Counter[str]) -> str:
    """Return a name, cut where it is too long; raises ItemError where there is none."""
    word = _word(given, lost)
    if word is None:
        raise ItemError(f"{where} is missing" if given is None or given == "" else f"{where} {given!r:.60} is no text")
    return word


def _word(given: Any, lost: Counter[str]) -> str | None:
    """Return a text the store takes, None where there is none: cut to its length, what cannot be printed replaced, counted."""
    if given is None or given == "":
        return None
    if isinstance(given, int) and not isinstance(given, bool):  # an id somebody did not quote
        given = str(given)
    if not isinstance(given, str):
        lost[_LEFT_OUT] += 1
        return None
    if given.isprintable() and len(given) <= MAX_TEXT:
        return given
    lost[_CUT] += 1
    clean = given if given.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in given)
    if len(clean) <= MAX_TEXT:
        return clean
    digest = hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{clean[: MAX_TEXT - _DIGEST - 1]}~{digest}"


def _run_id(given: Any, where: str) -> str:
    try:
        return str(uuid.UUID(given))
    except (ValueError, TypeError, AttributeError):
        raise ItemError(f"{where} {given!r:.60} is no UUID") from None


def _origin(named: str | None) -> int:
    if named is not None and named.upper() in Origin.__members__:
        return int(Origin[named.upper()])
    return int(Origin.LIVE)
