"""From one response back to what it came from: response, serving, fine-tune, dataset, each with what it cost and drew.

A hop that cannot be found is in the chain all the same, with the reason, and the chain says at which it breaks first. What
belongs to another tenant is to this connection what it does not know: row-level security decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from analytics.io import lineage_rows as rows
from analytics.io.lineage_costs import HopFigures, of_call, of_work
from analytics.io.lineage_jobs import Work, of_id, of_run, unseen
from analytics.io.lineage_rows import Owner
from collector.wire import Origin

MAX_DEPTH: Final = 5
"""Fine-tunes of fine-tunes that are followed."""
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NOT_SEEN: Final = "is not known, or not to this token"


@dataclass(frozen=True, slots=True)
class Hop:
    """One station of a chain. ``found`` False: it is missing, and ``reason`` says why; figures are then all unknown."""

    hop: str
    found: bool
    name: str | None = None
    run_id: str | None = None
    job: str | None = None
    """``cluster/native id`` of the scheduler job behind it."""
    tenant: str | None = None
    start_at: datetime | None = None
    end_at: datetime | None = None
    state: str | None = None
    reason: str | None = None
    depth: int = 0
    """0 = of the model that answered, 1 = of the model that one was made from, and so on."""
    figures: HopFigures = field(default_factory=HopFigures)
    work: Work | None = None
    """The jobs that the figures are of: one run can be several."""


@dataclass(frozen=True, slots=True)
class Chain:
    """``breaks_at``: the first hop that is missing, None where the chain reaches its datasets."""

    response_id: str
    hops: tuple[Hop, ...]
    outcomes: tuple[Mapping[str, Any], ...]

    @property
    def breaks_at(self) -> Hop | None:
        return next((hop for hop in self.hops if not hop.found), None)


@dataclass(frozen=True, slots=True)
class _Known:
    """What stands behind a hop: a run, its jobs, or both; ``why`` says what is missing."""

    run: Any = None
    work: Work | None = None
    why: str | None = None

    @property
    def job(self) -> Any:
        return None if self.work is None else self.work.named

    @property
    def there(self) -> bool:
        return self.run is not None or self.job is not None


def chain(conn: sa.Connection, response_id: str, call: Any | None, owner: Owner | None, outcomes: list[Any]) -> Chain:
    """Return the chain behind a response, as far as ``conn`` may see. ``call``: the row of :func:`lineage_rows.any_call`.

    Without a call, the outcomes alone say what is known; there is at least one of either.
    """
    said = _latest(outcomes)
    at = call.called_at if call is not None else outcomes[-1].judged_at
    model = said.get("model") or (None if call is None else call.model)
    hops = [_response_hop(conn, response_id, call, owner, len(outcomes))]
    serving = _serving(conn, said.get("serving_id"), model, at)
    hops.append(_hop(conn, "serving", serving, None if serving.run is None else serving.run.model or model))
    hops += _made_of(conn, said, serving, model, at)
    return Chain(response_id, tuple(hops), tuple(_outcome(row) for row in outcomes))


def with_unseen(conn: sa.Connection, told: Chain) -> Chain:
    """Return a chain whose hops say how many jobs ``conn``, which sees every tenant, sees of them and the chain's own did not."""
    return replace(told, hops=tuple(_with_unseen(conn, hop) for hop in told.hops))


def _with_unseen(conn: sa.Connection, hop: Hop) -> Hop:
    count = 0 if hop.work is None else unseen(conn, hop.work)
    if not count:
        return hop
    why = f"{count} more of its jobs are not known to this token, or not yet in the books: they are not in this"
    return replace(hop, figures=replace(hop.figures, unknown=(*hop.figures.unknown, why)))


def _response_hop(conn: sa.Connection, response_id: str, call: Any, owner: Owner | None, outcomes: int) -> Hop:
    if call is None or owner is None:
        reason = f"no call with this response id is known; {outcomes} outcomes name it"
        return Hop("response", found=False, name=response_id, reason=reason, figures=HopFigures(unknown=(reason,)))
    return Hop(
        "response",
        found=True,
        name=f"{call.provider}/{call.model}",
        tenant=owner.path,
        start_at=call.called_at,
        state=call.status,
        figures=of_call(conn, call, owner),
    )


def _serving(conn: sa.Connection, named: str | None, model: str | None, at: datetime) -> _Known:
    if named is not None:
        return _resolved(conn, named, at)
    if model is None:
        return _Known(why="nobody said which model answered")
    runs = rows.serving_runs(conn, model, at)
    if not runs:
        return _Known(
            why=f"a serving run of {model!r} at that time {_NOT_SEEN}: it is served by others, or its run was not reported "
            "(OpenLineage, kind serving)"
        )
    why = f"{len(runs)} serving runs of it ran then; this is the latest begun" if len(runs) > 1 else None
    return _Known(runs[0], of_run(conn, runs[0]), why)


def _resolved(conn: sa.Connection, identity: str, at: datetime) -> _Known:
    """Return what a run id or ``cluster/native id`` of an outcome stands for."""
    if _UUID.fullmatch(identity):
        run = rows.run_by_id(conn, identity.lower())
        return _Known(why=f"run {identity} {_NOT_SEEN}") if run is None else _Known(run, of_run(conn, run))
    cluster, slash, native_id = identity.partition("/")
    work = of_id(conn, cluster, native_id, at) if slash else None
    if work is None:
        return _Known(why=f"{identity!r} {_NOT_SEEN} as a run or as cluster/id of a job")
    run = rows.run_of_job(conn, work.named, native_id)
    return _Known(run, (None if run is None else of_run(conn, run)) or work)


def _made_of(
    conn: sa.Connection, said: Mapping[str, Any], serving: _Known, model: str | None, at: datetime
) -> Iterator[Hop]:
    """Yield the fine-tune, what it was made from, and the datasets of all of them."""
    source = _resolved(conn, said["fine_tune_id"], at) if said.get("fine_tune_id") else None
    if source is None:
        source = _maker(conn, serving, model, at)
    given: dict[tuple[str, str, str], tuple[int, datetime]] = {}
    followed: set[int] = set()
    depth = 0
    while source is not None:
        yield _hop(conn, "fine_tune", source, None if source.run is None else source.run.job_name, depth)
        if source.run is None or source.run.id in followed:
            break
        followed.add(source.run.id)
        inputs = rows.datasets(conn, source.run, "input")
        earlier = [(each, _trained(conn, each, source.run.first_event_at)) for each in inputs]
        models = [found for each, found in earlier if found is not None]
        for each, found in earlier:
            if found is None and each.kind != "model":
                given.setdefault((each.namespace, each.name, each.version), (depth, source.run.first_event_at))
        depth += 1
        source = models[0] if models and depth < MAX_DEPTH else None
    yield from _datasets(conn, given, said.get("dataset_ids") or (), reached=bool(followed))


def _maker(conn: sa.Connection, serving: _Known, model: str | None, at: datetime) -> _Known:
    """Return the run that wrote the model that answered ``at`` an instant: by what the serving run read, else by its name.

    Judged by the call, not by when the server began: adapters are loaded into servers that run.
    """
    inputs = rows.datasets(conn, serving.run, "input") if serving.run is not None else []
    for each in sorted(inputs, key=lambda row: (row.kind != "model", row.name != model)):
        found = _written(conn, each.namespace, each.name, each.version, at)
        if found.run is not None:
            return _maybe_later(conn, found, (each.namespace, each.name, each.version), serving)
    named = next((each.name for each in inputs if each.kind == "model"), model)
    if named is None:
        return _Known(why="nobody said which model answered")
    return _maybe_later(conn, _written(conn, None, named, "", at), (None, named, ""), serving)


def _maybe_later(conn: sa.Connection, found: _Known, model: tuple[str | None, str, str], serving: _Known) -> _Known:
    """Return the maker with a word of doubt where the server may have answered with what an earlier run wrote."""
    if found.run is None or serving.run is None or found.run.ended_at <= serving.run.first_event_at:
        return found
    earlier = _written(conn, *model, serving.run.first_event_at).run
    if earlier is None:
        return found
    why = (
        f"it ended after the server began; run {earlier.run_id} wrote the model before, and nobody said which of the two "
        "was loaded at the call"
    )
    return replace(found, why=why)


def _written(conn: sa.Connection, namespace: str | None, name: str, version: str, before: datetime) -> _Known:
    runs = rows.writers(conn, namespace, name, version, before)
    if not runs:
        return _Known(why=f"a run that wrote the model {name!r} {_NOT_SEEN}")
    run = runs[0]
    if run.state != "complete" or run.ended_at > before:
        state = "had not ended" if run.ended_at is None or run.ended_at > before else f"ended as {run.state}"
        return _Known(why=f"the run {run.run_id} that writes the model {name!r} {state} by then")
    return _Known(run, of_run(conn, run))


def _trained(conn: sa.Connection, given: Any, before: datetime) -> _Known | None:
    """Return the fine-tune behind an input, None where the input is data."""
    found = _written(conn, given.namespace, given.name, given.version, before)
    if found.run is None or (given.kind != "model" and found.run.kind not in {"fine_tune", "training"}):
        return None
    return found


def _datasets(
    conn: sa.Connection, given: Mapping[tuple[str, str, str], tuple[int, datetime]], named: Any, *, reached: bool
) -> Iterator[Hop]:
    if not given and not named:
        why = (
            "no input of the fine-tune is a dataset"
            if reached
            else "without the run of the fine-tune nobody knows them"
        )
        yield Hop("dataset", found=False, reason=why, figures=HopFigures(unknown=(why,)))
        return
    for (namespace, name, version), (depth, before) in given.items():
        runs = rows.writers(conn, namespace, name, version, before)
        made = _Known(runs[0], of_run(conn, runs[0])) if runs else _Known()
        label = f"{namespace}:{name}" + (f"@{version}" if version else "")
        yield _hop(conn, "dataset", made, label, depth, always=f"a run that wrote it {_NOT_SEEN}")
    known = {f"{namespace}:{name}" for namespace, name, _ in given} | {name for _, name, _ in given}
    for each in named:
        if each not in known:
            yield _hop(conn, "dataset", _Known(), each, always="an outcome names it; no run that read it is known")


def _hop(
    conn: sa.Connection, hop: str, known: _Known, name: str | None, depth: int = 0, *, always: str | None = None
) -> Hop:
    """Return a hop with its figures. ``always``: it is there even without a run; this is why its cost is unknown."""
    if not known.there:
        unknown = HopFigures(unknown=(always or known.why or "",))
        return Hop(hop, found=always is not None, name=name, reason=known.why, depth=depth, figures=unknown)
    run, job = known.run, known.job
    if known.work is not None:
        figures = of_work(conn, known.work)
    elif run.native_id is not None:
        figures = HopFigures(unknown=(f"its job {run.cluster}/{run.native_id} {_NOT_SEEN}",))
    else:
        figures = HopFigures(unknown=("its run names no scheduler job",))
    if not figures.origins:
        figures = HopFigures(unknown=figures.unknown, origins=(_origin_of(run if run is not None else job),))
    return Hop(
        hop,
        found=True,
        name=name or (job.name if job is not None else None),
        run_id=None if run is None else run.run_id,
        job=None if job is None else f"{job.cluster}/{job.native_id}",
        tenant=(job.tenant if job is not None else None) or (run.tenant if run is not None else None),
        start_at=run.first_event_at if run is not None else job.started_at,
        end_at=run.ended_at if run is not None else job.ended_at,
        state=run.state if run is not None else job.state,
        reason=known.why,
        depth=depth,
        figures=figures,
        work=known.work,
    )


def _origin_of(row: Any) -> str:
    return Origin(row.origin).name.lower()


def _latest(outcomes: list[Any]) -> dict[str, Any]:
    """Return the ids outcomes name, of each the latest word."""
    names = ("serving_id", "model", "fine_tune_id", "dataset_ids")
    return {name: value for row in outcomes for name in names if (value := getattr(row, name))}


def _outcome(row: Any) -> Mapping[str, Any]:
    return {
        "kind": row.kind,
        "at": row.judged_at,
        "value": row.value,
        "value_unit": row.value_unit,
        "score": row.score,
        "label": row.label,
        "source": row.source,
        "origin": _origin_of(row),
    }
