"""Watches Slurm: what ran, runs and waits, asked round by round and told to ingest.

The watermark is the instant up to which everything was asked and committed; each round asks from an overlap before it, because
slurmdbd is told of a job's end after the fact. Jobs last told as running that no longer show are asked for by id, however long
ago they ended; and every few hours a round looks back for days. So an outage of slurmdbd, of the controller or of ingest
delays words and loses none.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from ingest.pollers.deliver import Event
from ingest.pollers.memory import Memory
from ingest.pollers.rounds import Teller, Word
from ingest.pollers.slurm_rows import Record, Waiting

_LOG = logging.getLogger(__name__)
SOURCE: Final = "slurm"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
FORGET_AFTER: Final = timedelta(days=14)
"""Of a job that is over. Told again after that, it changes nothing."""
GONE_AFTER: Final = timedelta(minutes=10)
"""A job that waits no more and that the accounting does not speak of: slurmdbd may be told late, but not that late."""
DEEP_EVERY: Final = timedelta(hours=6)
DEEP: Final = timedelta(days=3)


class SlurmSource(Protocol):
    """How Slurm is asked: its commands, or slurmrestd."""

    def ran(self, since: datetime, until: datetime) -> Sequence[Record]: ...

    def named(self, native_ids: Sequence[str], until: datetime) -> Sequence[Record]: ...

    def waiting(self) -> Sequence[Waiting]: ...


@dataclass(frozen=True, slots=True)
class SlurmSettings:
    cluster: str
    overlap: timedelta = timedelta(hours=1)
    first_since: timedelta = timedelta(days=1)
    """How far the first round looks back."""


class SlurmWatch:
    """One cluster. ``clock``: UTC now."""

    def __init__(
        self,
        source: SlurmSource,
        teller: Teller,
        memory: Memory,
        settings: SlurmSettings,
        clock: Callable[[], datetime],
    ) -> None:
        self._source, self._teller, self._memory = source, teller, memory
        self._settings, self._clock = settings, clock
        self._missing: dict[str, datetime] = {}
        self._runs, self._waits = f"run/{settings.cluster}/", f"wait/{settings.cluster}/"

    def round(self) -> Counter[str]:
        """Ask and tell once; raises WatchError, the watermark staying where it was."""
        now = self._clock().replace(microsecond=0)
        since, deep = self._since(now)
        waiting = self._source.waiting()  # first: what starts in between shows among what ran
        records = [*self._source.ran(since, now)]
        open_runs = self._memory.notes(self._runs)
        records += self._vanished(open_runs, records, now)
        counts: Counter[str] = Counter(jobs=len(records), waiting=len(waiting))
        for each in records:
            if each.fault is not None:
                counts["unreadable"] += 1
                _LOG.warning("job %s cannot be read: %s", each.native_id, each.fault)
        words = [*self._run_words(records, now), *self._wait_words(waiting, records, now)]
        counts += self._teller.tell(words, _us(now))
        self._memory.set_mark("watermark_us", str(_us(now)))
        if deep:
            self._memory.set_mark("deep_us", str(_us(now)))
            self._memory.forget(_us(now - FORGET_AFTER))
        return counts

    def _since(self, now: datetime) -> tuple[datetime, bool]:
        mark, deep_mark = self._memory.mark("watermark_us"), self._memory.mark("deep_us")
        if mark is None:
            return now - self._settings.first_since, True
        since = _instant(int(mark)) - self._settings.overlap
        is_deep = deep_mark is None or now - _instant(int(deep_mark)) >= DEEP_EVERY
        return (min(since, now - DEEP) if is_deep else since), is_deep

    def _vanished(self, open_runs: dict[str, str], records: Sequence[Record], now: datetime) -> Sequence[Record]:
        seen = {self._run_key(each) for each in records if each.job is not None}
        missing = sorted({json.loads(note)["id"] for key, note in open_runs.items() if key not in seen})
        if not missing:
            return []
        found = self._source.named(missing, now)
        known = {each.native_id for each in found}
        for native_id in missing:
            if native_id not in known:
                _LOG.warning("job %s was running and Slurm knows it no more: it stays open in the books", native_id)
        return [each for each in found if each.job is not None and self._run_key(each) in open_runs]

    def _run_key(self, each: Record) -> str:
        started_us = each.job.started_us if each.job is not None else 0
        return f"{self._runs}{each.native_id}/{started_us}"

    def _run_words(self, records: Sequence[Record], now: datetime) -> Iterator[Word]:
        for each in records:
            if each.job is None:
                continue
            over = each.job.ended_us is not None or each.job.state not in {"running", "unknown"}
            note = None if over else json.dumps({"id": each.native_id})
            yield self._run_key(each), job_event(each, now), note

    def _wait_words(self, waiting: Sequence[Waiting], records: Sequence[Record], now: datetime) -> Iterator[Word]:
        present = set()
        for each in waiting:
            key = f"{self._waits}{each.native_id}/{each.submitted_us}"
            if key in present:
                continue
            present.add(key)
            note = json.dumps({"id": each.native_id, "submitted_us": each.submitted_us})
            yield key, self._wait_event(each, now), note
        left = {key: json.loads(note) for key, note in self._memory.notes(self._waits).items() if key not in present}
        unknown = {note["id"] for note in left.values()} - {each.native_id.partition("_")[0] for each in records}
        more = self._source.named(sorted(unknown), now) if unknown else ()
        self._missing = {key: self._missing.get(key, now) for key in left}
        for key, note in left.items():
            event = self._left_event(note["id"], note["submitted_us"], [*records, *more], now)
            if event is not None:
                yield key, event, None

    def _wait_event(self, each: Waiting, now: datetime) -> Event:
        event = self._queue(each.native_id, each.submitted_us, now)
        facts = {
            "reason": each.reason,
            "eligible_at": _text(each.eligible_us),
            "account": each.account,
            "user": each.user,
            "partition": each.partition,
            "qos": each.qos,
            "name": each.name,
            "accelerators": each.accelerators,
            "tasks": each.tasks,
        }
        return event | {name: value for name, value in facts.items() if value is not None}

    def _left_event(self, native_id: str, submitted_us: int, records: Sequence[Record], now: datetime) -> Event | None:
        """Return how a wait ended as the accounting says; None where it does not say yet."""
        left: tuple[int, str] | None = None
        for each in records:
            is_task = each.native_id == native_id or each.native_id.startswith(f"{native_id}_")
            if not is_task or each.submitted_us != submitted_us:
                continue
            if each.job is not None:
                left = (each.job.started_us, "started")
            elif each.ended_us is not None and left is None:
                left = (each.ended_us, "cancelled")
        if left is None:
            missing_at = self._missing[f"{self._waits}{native_id}/{submitted_us}"]
            if now - missing_at < GONE_AFTER:
                return None
            left = (_us(missing_at), "gone")
        return self._queue(native_id, submitted_us, now) | {"left_at": _text(left[0]), "outcome": left[1]}

    def _queue(self, native_id: str, submitted_us: int, now: datetime) -> Event:
        job = {"cluster": self._settings.cluster, "id": native_id, "submitted_at": _text(submitted_us)}
        return {"kind": "queue", "at": now.isoformat(), "job": job}


def job_event(each: Record, now: datetime) -> Event:
    """Return what a record says of its run."""
    job = each.job
    assert job is not None  # noqa: S101 - chosen by the caller
    facts: dict[str, Any] = {
        "state": job.state,
        "reason": job.reason,
        "submitted_at": _text(job.submitted_us),
        "eligible_at": _text(job.eligible_us),
        "ended_at": _text(job.ended_us),
        "account": job.account,
        "user": job.user_name,
        "partition": job.partition,
        "qos": job.qos,
        "name": job.name,
        "accelerators": job.accelerators,
        "suspended_s": each.suspended_s,
    }
    holds = [
        {
            name: value
            for name, value in zip(("node", "pool", "model", "accelerators"), hold, strict=True)
            if value is not None
        }
        for hold in job.holds
    ]
    run = {"cluster": job.cluster, "id": job.native_id, "start": _text(job.started_us)}
    said = {name: value for name, value in facts.items() if value is not None}
    return {"kind": "job", "at": now.isoformat(), "job": run, **said, "holds": holds}


def _text(at_us: int | None) -> str | None:
    return None if at_us is None else _instant(at_us).isoformat()


def _instant(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def _us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
