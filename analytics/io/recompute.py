"""Computes past bills again from what their runs were made of, and says whether they come out to the byte.

A run of which all samples were in files is computed from these files; one that read hot rows, from where they are now, if the readings are still
the same. Where samples are gone or others by now, lines are made of the stored usage hours. It writes nothing: the answer is a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import polars as pl
import psycopg

from analytics.errors import AnalyticsError
from analytics.frames import ApiCalls, Findings, Jobs, NamedUsage
from analytics.inputs import References, Window
from analytics.io.book_rows import content_of
from analytics.io.holds import DEVICE, JOB_KEY
from analytics.io.load import API_CALLS, JOBS, begin_batch
from analytics.io.load_rating import STORED_USAGE
from analytics.io.manifest import Manifest, rating_manifest
from analytics.io.references import Known, load_references
from analytics.io.rows import fetch_frame
from analytics.io.standing import AS_STORED, as_stored, with_stored
from analytics.pipeline import RatingInputs, Shard, content_hash, map_devices, rate_hours, reduce_shards
from analytics.policy import Policy, policy_of
from analytics.version import METHOD_VERSION
from ingest.store.engine import Database
from ingest.store.samples import FileRead
from ingest.store.segments import SegmentError, Segments, SegmentUnreachableError

_DEVICE_HOURS_AT_ONCE: Final = 4_096
"""Readings in memory together, as of a close."""
_RUNS: Final = """
-- Of an hour in a closed month two: what was frozen, and what was posted since.
SELECT DISTINCT ON (sites.name, runs.hour_at, runs.after_period_id IS NULL) sites.name, runs.id FROM ledger_runs AS runs JOIN sites ON sites.id = runs.site_id
WHERE runs.revision > 0 AND runs.finished_at <= %(as_of)s AND runs.hour_at >= %(from_at)s AND runs.hour_at < %(to_at)s
AND (%(site)s::text IS NULL OR sites.name = %(site)s) ORDER BY sites.name, runs.hour_at, runs.after_period_id IS NULL DESC, runs.id DESC
"""
_RUN: Final = """
SELECT id, site_id, hour_at, revision, coalesce(usage_revision, revision), kind, code_version, method_version, policy, as_of_at, snapshot,
       inputs, content_sha256, usage_sha256 FROM ledger_runs
"""
_USAGE_RUN: Final = (
    _RUN
    + "WHERE site_id = %s AND hour_at = %s AND coalesce(usage_revision, revision) = %s AND kind <> 'rate' AND id <= %s "
    "ORDER BY id DESC LIMIT 1"
)
_USAGE: Final = (
    (
        STORED_USAGE
        + """
FROM usage_hours AS used JOIN {device} AS device ON device.id = used.device_id LEFT JOIN jobs ON jobs.id = used.job_id
WHERE used.site_id = %(site_id)s AND used.hour_at = %(from_at)s AND used.revision = %(revision)s
ORDER BY used.device_id, used.holder
"""
    )
    .replace("{device}", DEVICE)
    .replace("{job_key}", JOB_KEY)
)


class Ground(StrEnum):
    """What an hour was computed again from."""

    SAMPLES = "samples"
    USAGE = "usage hours"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Recomputed:
    """The verdict on one hour; ``is_same`` null = it could not be computed, ``why`` says what was missing."""

    site: str
    hour_at: datetime
    revision: int
    kind: str
    code_version: str
    ground: Ground
    is_same: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Run:
    run_id: int
    site_id: int
    hour_at: datetime
    revision: int
    usage_revision: int
    kind: str
    code_version: str
    method_version: int | None
    policy: dict[str, Any] | None
    as_of_at: datetime
    snapshot: str | None
    inputs: dict[str, Any] | None
    content: bytes
    usage_sha256: bytes | None

    @property
    def known(self) -> Known:
        return Known(self.as_of_at, self.snapshot)


def runs_in_force(
    connection: psycopg.Connection[Any], as_of: datetime, from_at: datetime, to_at: datetime, site: str | None
) -> list[tuple[str, int]]:
    """Return (site, run) of each closed hour as the books stood at ``as_of``, by site and time."""
    given = {"as_of": as_of, "from_at": from_at, "to_at": to_at, "site": site}
    return [(name, run_id) for name, run_id in connection.execute(_RUNS, given)]


def recompute(
    database: Database, connection: psycopg.Connection[Any], segments: Segments | None, site: str, run_id: int
) -> Recomputed:
    """Compute what a run wrote once more and compare; ``connection``: a worker's, in no transaction."""
    with connection.transaction():
        run = _Run(*_one(connection, _RUN + "WHERE id = %s", (run_id,)))
    verdict = Recomputed(
        site, run.hour_at.astimezone(UTC), run.revision, run.kind, run.code_version, Ground.NOTHING, None
    )
    if run.method_version != METHOD_VERSION or run.inputs is None or run.policy is None:
        needed = (
            "a version that kept no record of what it read"
            if run.method_version is None or run.inputs is None or run.policy is None
            else f"formulas {run.method_version}"
        )
        why = (
            f"it was computed by {needed}, those of wattledger {run.code_version}; these are formulas {METHOD_VERSION}"
        )
        return replace(verdict, why=why)
    try:
        policy = policy_of(run.policy)
    except AnalyticsError as error:
        return replace(verdict, why=str(error))
    if run.kind == "rate":
        return _of_rating(database, connection, segments, run, policy, verdict)
    found = _of_samples(database, connection, segments, run, policy)
    if isinstance(found, str):
        return _of_usage(connection, run, verdict, found)
    result = replace(verdict, ground=Ground.SAMPLES)
    if content_of(found.usage, found.lines, closed=True) == run.content:
        return replace(result, is_same=True)
    if _may_stand(run, found.changed):
        usage, lines = _standing(connection, run, found)
        if content_of(usage, lines, closed=True) == run.content:
            return replace(result, is_same=True, why=AS_STORED)
    return replace(result, is_same=False, why=_others(found.changed))


def _of_rating(
    database: Database,
    connection: psycopg.Connection[Any],
    segments: Segments | None,
    run: _Run,
    policy: Policy,
    verdict: Recomputed,
) -> Recomputed:
    """A rating is made of usage hours, and these of samples by an earlier run: both are looked at."""
    rated = _of_usage(connection, run, verdict, "")
    with connection.transaction():
        base = _Run(*_one(connection, _USAGE_RUN, (run.site_id, run.hour_at, run.usage_revision, run.run_id)))
    if not rated.is_same or base.inputs is None or base.method_version != METHOD_VERSION:
        return rated
    found = _of_samples(database, connection, segments, base, policy)
    if isinstance(found, str):
        return replace(rated, why=found)
    if content_hash(found.usage) == base.usage_sha256:
        return replace(rated, ground=Ground.SAMPLES)
    if _may_stand(base, found.changed):
        usage, _ = _standing(connection, base, found)
        if content_hash(usage) == base.usage_sha256:
            return replace(rated, ground=Ground.SAMPLES, why=AS_STORED)
    return replace(rated, ground=Ground.SAMPLES, is_same=False, why=_others(found.changed))


def _standing(connection: psycopg.Connection[Any], run: _Run, found: _Again) -> tuple[pl.DataFrame, pl.DataFrame]:
    with connection.transaction():
        references, calls = as_stored(
            connection, found.references, run.site_id, run.hour_at, run.revision, run.usage_revision
        )
    result = reduce_shards(found.window, found.mapped, references, ApiCalls.create_empty())
    of_hour = pl.col("hour_at") == run.hour_at
    return result.usage.filter(of_hour), with_stored(result.lines.filter(of_hour), calls)


@dataclass(frozen=True, slots=True)
class _Again:
    window: Window
    mapped: list[Shard]
    references: References
    usage: pl.DataFrame
    lines: pl.DataFrame
    changed: list[str] | None
    """Other inputs that are not what they were; null = nothing can be said."""


def _of_samples(
    database: Database, connection: psycopg.Connection[Any], segments: Segments | None, run: _Run, policy: Policy
) -> _Again | str:
    """Return usage and lines of a close computed once more; or why it cannot be done."""
    inputs = run.inputs or {}
    first, last = (datetime.fromisoformat(at) for at in inputs["window"])
    outside = inputs["outside"]
    files = None
    if outside is None:
        files = tuple(
            FileRead(stream, datetime.fromisoformat(at), number, sha) for stream, at, number, sha in inputs["segments"]
        )
    window = Window(first, last, min(last, run.hour_at + timedelta(hours=1)))
    try:
        begun = begin_batch(
            database,
            connection,
            run.site_id,
            window,
            policy,
            inputs["currency"],
            as_of=replace(run.known, files=files),
            segments=segments,
        )
        with begun as batch:
            at_once = max(1, _DEVICE_HOURS_AT_ONCE // max(1, (last - first) // timedelta(hours=1)))
            mapped = [map_devices(part, policy) for part in batch.shards(at_once, digested=outside is not None)]
            loaded = batch.end()
        if outside is not None and batch.digests.sha256() != outside[1]:
            return "it read rows before they were sealed, and what lies there now is not the same"
        result = reduce_shards(window, mapped, loaded.inputs.references, loaded.inputs.api_calls)
    except (SegmentError, SegmentUnreachableError, AnalyticsError) as error:
        return str(error)
    of_hour = pl.col("hour_at") == run.hour_at
    changed = _changed(inputs, loaded.read)
    return _Again(
        window, mapped, loaded.inputs.references, result.usage.filter(of_hour), result.lines.filter(of_hour), changed
    )


def _of_usage(connection: psycopg.Connection[Any], run: _Run, verdict: Recomputed, why: str) -> Recomputed:
    """Compare with lines made of the stored usage hours of the revision and what was known of everything else."""
    inputs = run.inputs or {}
    end_at = run.hour_at + timedelta(hours=1)
    window = Window(run.hour_at, end_at, end_at)
    scope: dict[str, Any] = {
        "site_id": run.site_id,
        "from_at": run.hour_at,
        "to_at": end_at,
        "as_of": run.as_of_at,
        "revision": run.usage_revision,
    }
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        usage = fetch_frame(connection, _USAGE, scope, NamedUsage)
        references = load_references(
            connection,
            site_id=run.site_id,
            from_at=run.hour_at,
            to_at=end_at,
            as_of=run.known,
            currency=inputs["currency"],
            jobs=fetch_frame(connection, JOBS, {"job_ids": usage["job_id"].drop_nulls().unique().to_list()}, Jobs),
        )
        calls = fetch_frame(connection, API_CALLS, scope, ApiCalls)
    of_rating = RatingInputs(window, usage, Findings.create_empty(), references, calls)
    try:
        rated = rate_hours(of_rating)
    except AnalyticsError as error:
        return replace(verdict, why=f"{why}; {error}" if why else str(error))
    result = replace(verdict, ground=Ground.USAGE)
    if content_of(rated.usage, rated.lines, closed=True) == run.content:
        return replace(result, is_same=True, why=why)
    changed = _changed(inputs, rating_manifest(of_rating))
    if _may_stand(run, changed):
        with connection.transaction():
            stood, stored = as_stored(
                connection, references, run.site_id, run.hour_at, run.revision, run.usage_revision
            )
        again = rate_hours(replace(of_rating, references=stood, api_calls=ApiCalls.create_empty()))
        if content_of(again.usage, with_stored(again.lines, stored), closed=True) == run.content:
            return replace(result, is_same=True, why="; ".join(filter(None, [why, AS_STORED])))
    return replace(result, is_same=False, why="; ".join(filter(None, [why, _others(changed)])))


def _may_stand(run: _Run, changed: list[str] | None) -> bool:
    """Say whether what differs may be words of jobs or API calls, of which only what is now is kept."""
    return run.revision > 0 and (changed is None or not {"jobs", "api_calls"}.isdisjoint(changed))


def _changed(inputs: dict[str, Any], now: Manifest) -> list[str] | None:
    """Return the inputs that are not what they were; None: of a window of other hours nothing can be said."""
    if list(now.window) != inputs["window"]:
        return None
    return [name for name, told in inputs["frames"].items() if name in now.frames and list(now.frames[name]) != told]


def _others(changed: list[str] | None) -> str:
    return f"other {', '.join(changed)} than then" if changed else "the same inputs give other books"


def _one(connection: psycopg.Connection[Any], query: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
    row = connection.execute(query.encode(), given).fetchone()
    if row is None:
        raise psycopg.DataError("a run that was named is not there")
    return tuple(row)
