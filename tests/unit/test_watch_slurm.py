"""The Slurm watcher against a Slurm that is told what to say: nothing lost, nothing told twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.importers.columns import Source, read
from ingest.importers.report import ImportReport
from ingest.importers.sacct import FIELDS
from ingest.pollers.deliver import Delivery
from ingest.pollers.errors import DeliveryError, SourceError
from ingest.pollers.memory import Memory
from ingest.pollers.rounds import Dry, Telling, Totals, run
from ingest.pollers.slurm import SlurmSettings, SlurmWatch
from ingest.pollers.slurm_commands import _rows
from ingest.pollers.slurm_rows import Record, Waiting, array_of, record, seconds
from ingest.receivers.work import read_work

pytestmark = pytest.mark.unit
T0 = datetime(2026, 11, 1, 12, tzinfo=UTC)
STATES = {"completed", "failed", "cancelled", "preempted", "timeout", "running", "unknown"}


def us(minute: float) -> int:
    return int((T0 + timedelta(minutes=minute)).timestamp()) * 1_000_000


def ran(native_id: str, start: float | None, end: float | None = None, state: str = "RUNNING", **given: Any) -> Record:
    row = {
        "job_id": native_id,
        "cluster": "c",
        "account": "nlp",
        "user": "ada",
        "partition": "gpu",
        "qos": None,
        "state": state,
        "submit": us(-1),
        "eligible": us(-1),
        "start": None if start is None else us(start),
        "end": None if end is None else us(end),
        "alloc_tres": "billing=8,gres/gpu=8,gres/gpu:h100=8,node=2",
        "node_list": "gpu[09-10]",
        "reason": None,
        "name": "train",
        "suspended": "00:00:00",
        **given,
    }
    found = record(row, "c", T0 + timedelta(days=1))
    assert found is not None
    return found


def waits(native_id: str, reason: str = "Resources") -> Waiting:
    return Waiting(native_id, us(-1), us(-1), reason, "nlp", "ada", "gpu", None, "train", 8)


@dataclass
class FakeSlurm:
    """Slurm as the watcher asks it; ``down`` makes every question fail."""

    records: list[Record] = field(default_factory=list)
    pending: list[Waiting] = field(default_factory=list)
    archive: list[Record] = field(default_factory=list)
    down: bool = False
    since: list[datetime] = field(default_factory=list)

    def ran(self, since: datetime, until: datetime) -> Sequence[Record]:
        del until
        if self.down:
            raise SourceError("slurmdbd does not answer")
        self.since.append(since)
        return self.records

    def named(self, native_ids: Sequence[str], until: datetime) -> Sequence[Record]:
        del until
        return [each for each in self.archive if each.native_id in native_ids]

    def waiting(self) -> Sequence[Waiting]:
        return self.pending


class FakeIngest:
    """What ingest answers to bodies, and what it took."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.answers: list[httpx.Response] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.answers:
            answer = self.answers.pop(0)
            if answer.status_code == 599:
                raise httpx.ConnectError("refused")
            return answer
        work = read_work(request.content, T0 + timedelta(days=2))
        assert not work.refused, work.refused
        self.events += json.loads(request.content)["events"]
        return httpx.Response(200, json={"accepted": work.told, "refused_count": 0, "refused": []})

    def taken(self) -> list[tuple[str, str, Any]]:
        """Return kind, id and what is the news of each event taken since the last question."""
        found = [
            (each["kind"], each["job"]["id"], each.get("outcome") or each.get("state") or each.get("reason"))
            for each in self.events
        ]
        self.events.clear()
        return found


@dataclass
class World:
    slurm: FakeSlurm
    ingest: FakeIngest
    memory: Memory
    now: datetime = T0
    pauses: list[float] = field(default_factory=list)

    watch: SlurmWatch | None = None

    def round(self) -> Counter[str]:
        if self.watch is None:
            client = httpx.Client(transport=httpx.MockTransport(self.ingest))
            delivery = Delivery(client, "http://ingest", "slurm", lambda: "secret", wait=self.pauses.append)
            telling = Telling(delivery, self.memory)
            self.watch = SlurmWatch(self.slurm, telling, self.memory, SlurmSettings("c"), lambda: self.now)
        return self.watch.round()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(FakeSlurm(), FakeIngest(), Memory(tmp_path / "slurm.sqlite"))


def test_a_running_job_is_told_once_and_again_when_it_ends(world: World) -> None:
    world.slurm.records = [ran("7", 0)]
    world.round()
    world.round()
    assert world.ingest.taken() == [("job", "7", "running")]
    world.slurm.records = [ran("7", 0, 60, "COMPLETED")]
    world.round()
    assert world.ingest.taken() == [("job", "7", "completed")]
    assert world.round()["told"] == 0


def test_what_an_event_says_is_what_slurm_said(world: World) -> None:
    world.slurm.records = [ran("123_4", 0, 60, "CANCELLED by 0", suspended="1-02:00:05")]
    world.round()
    assert world.ingest.events == [
        {
            "kind": "job",
            "at": "2026-11-01T12:00:00+00:00",
            "job": {"cluster": "c", "id": "123_4", "start": "2026-11-01T12:00:00+00:00"},
            "state": "cancelled",
            "reason": "CANCELLED by 0",
            "submitted_at": "2026-11-01T11:59:00+00:00",
            "eligible_at": "2026-11-01T11:59:00+00:00",
            "ended_at": "2026-11-01T13:00:00+00:00",
            "account": "nlp",
            "user": "ada",
            "partition": "gpu",
            "name": "train",
            "accelerators": 8,
            "suspended_s": 93_605,
            "holds": [{"node": "gpu09", "accelerators": 4}, {"node": "gpu10", "accelerators": 4}],
        }
    ]


def test_a_requeued_job_is_two_runs_and_both_components_of_a_heterogeneous_job_are_told(world: World) -> None:
    world.slurm.records = [ran("7", 0, 5, "REQUEUED"), ran("7", 9), ran("8+0", 0), ran("8+1", 0)]
    world.round()
    assert world.ingest.taken() == [
        ("job", "7", "preempted"),
        ("job", "7", "running"),
        ("job", "8+0", "running"),
        ("job", "8+1", "running"),
    ]


def test_the_watermark_stays_where_it_was_until_all_is_committed(world: World) -> None:
    world.round()
    first = world.memory.mark("watermark_us")
    world.now += timedelta(minutes=10)
    world.slurm.down = True
    with pytest.raises(SourceError):
        world.round()
    world.slurm.down = False
    world.slurm.records = [ran("7", 0)]
    world.ingest.answers = [httpx.Response(599)] * 4
    with pytest.raises(DeliveryError, match="nothing is lost"):
        world.round()
    assert world.memory.mark("watermark_us") == first
    assert len(world.pauses) == 3
    world.round()
    assert world.ingest.taken() == [("job", "7", "running")]
    # Asked from an hour before the first round on.
    assert world.slurm.since[-1] == T0 - timedelta(hours=1)
    assert world.memory.mark("watermark_us") == str(us(10))


def test_every_six_hours_a_round_looks_back_three_days(world: World) -> None:
    world.round()
    world.now += timedelta(hours=6)
    world.round()
    world.now += timedelta(minutes=1)
    world.round()
    assert world.slurm.since == [
        T0 - timedelta(days=1),
        T0 + timedelta(hours=6) - timedelta(days=3),
        T0 + timedelta(hours=5),
    ]


def test_a_job_that_ended_long_before_its_end_was_known_is_asked_for_by_id(world: World) -> None:
    world.slurm.records = [ran("7", 0)]
    world.round()
    world.slurm.records = []
    world.slurm.archive = [ran("7", -900, -890, "COMPLETED"), ran("7", 0, 1, "FAILED")]
    world.round()
    assert world.ingest.taken() == [("job", "7", "running"), ("job", "7", "failed")]
    world.round()
    assert world.ingest.taken() == []


def test_a_wait_is_told_with_each_new_reason_and_how_it_ended(world: World) -> None:
    world.slurm.pending = [waits("7"), waits("8"), waits("9")]
    world.round()
    world.slurm.pending = [waits("7", "Priority"), waits("8"), waits("9")]
    world.round()
    world.slurm.pending = []
    world.slurm.records = [ran("7", 3), ran("8", 4, None, "CANCELLED by 1000", alloc_tres=None, node_list=None)]
    world.now += timedelta(minutes=5)
    world.round()
    assert world.ingest.taken() == [
        ("queue", "7", "Resources"),
        ("queue", "8", "Resources"),
        ("queue", "9", "Resources"),
        ("queue", "7", "Priority"),
        ("job", "7", "running"),
        ("queue", "7", "started"),
        ("queue", "8", "cancelled"),
    ]
    # Of the third its accounting says nothing for ten minutes.
    world.now += timedelta(minutes=9)
    world.round()
    assert world.ingest.taken() == []
    world.now += timedelta(minutes=1)
    world.round()
    assert [each["left_at"] for each in world.ingest.events] == [(T0 + timedelta(minutes=5)).isoformat()]
    assert world.ingest.taken() == [("queue", "9", "gone")]
    world.round()
    assert world.ingest.taken() == []


def test_a_refused_token_fails_the_round_at_once_with_advice(world: World) -> None:
    world.slurm.records = [ran("7", 0)]
    world.ingest.answers = [httpx.Response(401, json={"detail": "the token is not valid"})]
    with pytest.raises(DeliveryError, match="the token is not valid; make a token with `wattledger token create"):
        world.round()
    assert world.pauses == []


def test_retry_after_is_honoured(world: World) -> None:
    world.slurm.records = [ran("7", 0)]
    world.ingest.answers = [httpx.Response(503, headers={"retry-after": "7"})]
    world.round()
    assert len(world.pauses) == 1
    assert 7 <= world.pauses[0] <= 7 * 1.5


def test_a_refused_event_is_not_told_again_but_one_refused_for_its_clock_is(world: World) -> None:
    world.slurm.records = [ran("7", 0), ran("8", 0)]
    refused = [
        {"index": 0, "reason": "malformed", "detail": "no"},
        {"index": 1, "reason": "future", "detail": "5 minutes ahead"},
    ]
    world.ingest.answers = [httpx.Response(200, json={"accepted": 0, "refused_count": 2, "refused": refused})]
    assert world.round()["refused"] == 2
    world.round()
    assert world.ingest.taken() == [("job", "8", "running")]


def test_the_memory_survives_a_crash_and_a_dry_round_notes_nothing(world: World, tmp_path: Path) -> None:
    world.slurm.records = [ran("7", 0)]
    world.round()
    world.memory, world.watch = Memory(tmp_path / "slurm.sqlite"), None
    world.round()
    assert len(world.ingest.taken()) == 1
    dry = Dry()
    watch = SlurmWatch(world.slurm, dry, Memory(None), SlurmSettings("c"), lambda: T0)
    assert watch.round()["would_tell"] == 1
    assert dry.events[0]["job"]["id"] == "7"


def test_a_name_with_line_breaks_is_no_record_of_another_job() -> None:
    text = "7<k>ada<k>evil\n8<k>root\n9|root|x\n10<k>bob<k>fine\n"
    assert [row["id"] for row in _rows(text, "<k>", ["id", "user", "name"], ends=False)] == ["7", "10"]
    ended = "7<k>ada<k>evil\n8<k>\n10<k>bob<k>fine<k>\n"
    assert [row["id"] for row in _rows(ended, "<k>", ["id", "user", "name"], ends=True)] == ["7", "10"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", ("12", None)),
        ("12_3", ("12_3", None)),
        ("12_[4-9,20%2]", ("12", 7)),
        ("12_[0-9:3]", ("12", 4)),
        ("12_[1,2,...]", ("12", None)),
    ],
)
def test_an_array_that_waits_is_one_wait_of_so_many_tasks(text: str, expected: tuple[str, int | None]) -> None:
    assert array_of(text) == expected


def test_slurms_durations() -> None:
    assert [seconds(text) for text in ("00:00:05", "1-00:00:00", "02:03", "", None)] == [5, 86_400, 123, None, None]


def test_counts_for_a_scraper_name_their_source() -> None:
    totals = Totals("slurm")
    totals.add(Counter(jobs=3), good=True)
    totals.add(Counter(), good=False)
    lines = totals.exposition().splitlines()
    assert 'wattledger_watch_jobs_total{source="slurm"} 3' in lines
    assert 'wattledger_watch_failed_rounds_total{source="slurm"} 1' in lines


def test_lines_that_a_real_sacct_printed_are_read_and_its_steps_left_out(shared: Path) -> None:
    file = Source(shared / "data" / "fixtures" / "slurm" / "sample-sacct-output.txt", tz="UTC")
    rows = [
        {"suspended": None, **dict(zip(chunk.values, values, strict=True))}
        for chunk in read(file, FIELDS, ImportReport("sacct", "sample", "", "s1"))
        for _, *values in chunk.rows(*chunk.values)
    ]
    assert len(rows) == 68
    # The sample is of steps alone; as jobs of the same words all are read.
    assert [record(row, "c", T0) for row in rows] == [None] * 68
    found = [record({**row, "job_id": row["job_id"].partition(".")[0]}, "c", T0) for row in rows]
    assert [each for each in found if each is None or each.fault or each.job is None] == []
    assert {each.job.state for each in found if each is not None and each.job is not None} <= STATES


def test_a_round_that_fails_as_nobody_foresaw_is_counted_and_the_next_is_done() -> None:
    totals, stop, done = Totals("slurm"), threading.Event(), list[int]()

    def once() -> Counter[str]:
        done.append(len(done))
        if len(done) == 1:
            raise TypeError("null where a list was")
        stop.set()
        return Counter(told=1)

    run(once, totals, stop, interval_s=0.001)
    assert 'wattledger_watch_failed_rounds_total{source="slurm"} 1' in totals.exposition()
    assert 'wattledger_watch_told_total{source="slurm"} 1' in totals.exposition()
