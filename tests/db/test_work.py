"""The worker's round on a real database: budgets decided and acted on, messages delivered, days kept, chores apart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from fastapi import FastAPI, Request

from analytics.actions.pause import pause, resume
from analytics.io import action_log, budgets
from analytics.io.action_log import Action, Status
from analytics.jobs import WorkerSettings
from ingest.store import layout, partitions
from ingest.store.engine import Database
from tests.fakes.books import Books, hour, usage
from tests.fakes.serving import serving
from tests.fakes.slurm import FakeSlurm
from wattledger.home import Home
from wattledger.housekeeping import Housekeeper, Kept
from wattledger.work import Chore, Worker

pytestmark = pytest.mark.db
POLICY = """\
version: 1
webhooks:
  ops: {url: "${OPS_URL}", secret: "${OPS_SECRET}"}
budgets:
  - name: nlp
    tenant: acme/nlp
    period: day
    currency: USD
    limits: {cost: 100}
    armed: true
    ladder:
      - {at: 80%, do: warn, webhook: ops}
      - {at: 100%, do: cancel, approval: AUTOMATIC, grace: 10m}
"""
NOW = datetime(2026, 11, 11, 2, 20, tzinfo=UTC)
SETTINGS = WorkerSettings(code_version="test")


@dataclass
class World:
    """A tenant at 120 % of an armed budget of 100 USD, its job 42 running in Slurm; a clock that is set by hand."""

    database: Database
    home: Home
    slurm: FakeSlurm
    now: datetime = NOW
    workers: list[Worker] = field(default_factory=list)

    def worker(self, *, enforced: bool) -> Worker:
        made = Worker(self.database, SETTINGS, self.home, enforced=enforced, clock=lambda: self.now)
        self.workers.append(made)
        return made

    def actions(self) -> tuple[Action, ...]:
        engine = self.database.create_engine("worker")
        try:
            with engine.connect() as conn:
                return action_log.find(conn)
        finally:
            engine.dispose()


@pytest.fixture
def world(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    slurm = FakeSlurm.create(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{slurm.root / 'bin'}:/usr/bin:/bin")
    home = Home(tmp_path / "home", "test").create()
    made = World(db, home, slurm)
    admin = db.create_engine("admin")
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        books = Books.open(conn)
        job_id = books.job("acme/nlp", "42")
        slurm.job("42", hour(0))
        line = usage(job_id=job_id, tenant_id=books.tenant("acme/nlp"), devices={books.device_ids[0]: 1}, cost="120")
        books.close(1, [line])
    with admin.begin() as conn:
        budgets.apply(conn, POLICY, hour(0), actor="test")
    admin.dispose()
    yield made
    for worker in made.workers:
        worker.close()


def test_without_enforced_a_round_writes_down_what_it_would_have_done(world: World) -> None:
    world.worker(enforced=False).once()
    (action,) = world.actions()
    assert (action.status, action.dry_run, action.target["native_id"]) == (Status.DRY_RUN, True, "42")
    assert action.evidence["dry_run_because"] == ["the deployment does not enforce"]
    assert world.slurm.acts() == []


def test_enforced_and_armed_a_later_round_cancels_the_job_in_the_slurm_on_the_path(world: World) -> None:
    worker = world.worker(enforced=True)
    worker.once()
    assert world.slurm.acts() == []
    world.now = NOW + timedelta(minutes=10)
    worker.once()
    assert world.slurm.acts() == ["scancel 42"]
    (action,) = world.actions()
    assert (action.status, action.dry_run) == (Status.DONE, False)


def test_a_paused_home_holds_its_worker_until_resumed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    worker = world.worker(enforced=True)
    worker.once()
    world.now = NOW + timedelta(minutes=10)
    pause(world.home.root, by="ada", reason="wrong prices", now=world.now)
    worker.once()
    worker.once()
    assert world.slurm.acts() == []
    assert [record.message for record in caplog.records if "paused" in record.message] == [
        "actions are paused by ada since 2026-11-11T02:30:00+00:00: wrong prices"
    ]
    resume(world.home.root)
    worker.once()
    assert world.slurm.acts() == ["scancel 42"]


def test_jobs_of_a_slurm_that_does_not_answer_are_dry_runs_until_it_does(world: World) -> None:
    world.slurm.mode("dead")
    worker = world.worker(enforced=True)
    worker.once()
    (action,) = world.actions()
    assert action.evidence["dry_run_because"] == ["no control plane for cluster 'lab'"]
    world.slurm.mode("fine")
    worker.once()
    assert {found.status for found in world.actions()} == {Status.DRY_RUN, Status.PLANNED}


def test_a_round_delivers_what_the_budget_has_to_say(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, object]] = []
    receiver = FastAPI()

    @receiver.post("/hook")
    async def hook(request: Request) -> None:
        heard.append(await request.json())

    with serving(receiver) as url:
        monkeypatch.setenv("OPS_URL", f"{url}/hook")
        monkeypatch.setenv("OPS_SECRET", "s3cret")
        worker = world.worker(enforced=False)
        worker.once()
        worker.once()
    assert [(message["event"], message["budget"], message["spent"]) for message in heard] == [
        ("budget.rung_reached", "nlp", "120.000000000")
    ]


def test_a_chore_that_fails_is_logged_and_does_not_keep_the_others_from_their_work(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = world.worker(enforced=False)
    hours = worker.chores[0]

    def fails(now: datetime) -> None:
        raise ValueError(f"hours are stuck at {now:%H:%M}")

    hours.work = fails
    worker.round()
    assert hours.failures == 1
    assert "hours failed, 1 in a row" in caplog.text
    assert "hours are stuck at 02:20" in caplog.text
    assert len(world.actions()) == 1


def test_a_chore_waits_its_interval_and_longer_the_more_often_it_failed() -> None:
    # Intervals of 10 s: a tenth early at most, so that a round never misses it; failures double it up to a minute.
    chore = Chore("hours", 10.0, lambda _: None)
    chore.finished(100.0, failed=False)
    assert chore.due_s == 108.5
    waits = []
    for _ in range(5):
        chore.finished(100.0, failed=True)
        waits.append(chore.due_s - 100.0)
    for waited, longest in zip(waits, [20, 40, 60, 60, 60], strict=True):
        assert 0.8 * longest <= waited <= longest
    chore.finished(100.0, failed=False)
    assert (chore.failures, chore.due_s) == (0, 108.5)


def test_of_two_workers_only_the_one_with_the_lease_works(world: World) -> None:
    first, second = world.worker(enforced=False), world.worker(enforced=False)
    done: list[int] = []

    def note(number: int, _: datetime) -> None:
        done.append(number)

    for number, worker in enumerate((first, second), start=1):
        for chore in worker.chores:
            chore.work = partial(note, number)
    first.round()
    second.round()
    assert done == [1] * len(first.chores)


def test_a_round_longer_than_the_lease_keeps_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattledger.work.LEASE", timedelta(seconds=2))
    first, second = world.worker(enforced=False), world.worker(enforced=False)
    done: list[int] = []
    begun, stop = threading.Event(), threading.Event()

    def long_round(_: datetime) -> None:
        begun.set()
        stop.wait(60)

    first.chores[0].work = long_round
    second.chores[0].work = lambda _: done.append(2)
    running = threading.Thread(target=first.run, args=(stop,))
    running.start()
    try:
        assert begun.wait(30)
        time.sleep(4)  # twice the lease
        second.round()
        assert done == []
    finally:
        stop.set()
        running.join()
    second.round()  # the first gave the lease back
    assert done == [2]


def test_a_database_that_is_gone_is_said_once_a_round_and_waited_for(
    db: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = Worker(db.named("not_there"), SETTINGS, Home(tmp_path, "test"), enforced=False)
    with closing(gone), caplog.at_level(logging.WARNING):
        gone.round()
    (record,) = caplog.records
    assert record.message.startswith("the database does not answer:")
    assert 'database "not_there" does not exist' in record.message


def test_days_are_made_a_week_ahead_and_indexed_once_they_are_over(db: Database) -> None:
    # Two hours into the 21st: the 20th is over and its stragglers are in; an hour before, it was not.
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = (today - timedelta(days=1)).date()
    with db.connect("owner") as owner:  # a chunk of API calls is made ahead only where there is a site
        owner.execute("INSERT INTO sites (name) VALUES ('lab')")
    engine = db.create_engine("worker")
    with engine.begin() as conn:
        partitions.ensure(conn, yesterday, today.date())
    keeper = Housekeeper(engine)
    tables, keyed = len(partitions.PARTITIONED), len(partitions.DROPPABLE)
    assert keeper.run(today + timedelta(hours=1)) == Kept(made=8 * tables, closed=0, busy=0)
    assert keeper.run(today + timedelta(hours=2)) == Kept(made=0, closed=keyed, busy=0)
    assert Housekeeper(engine).run(today + timedelta(hours=3)) == Kept(made=0, closed=0, busy=0)
    with engine.begin() as conn:
        days = {partition.day for partition in partitions.partitions(conn)}
    assert max(days) == (today + timedelta(days=7)).date()
    engine.dispose()


def test_old_days_of_calls_and_spans_that_never_had_a_row_are_dropped_and_others_are_not(db: Database) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    old, used, young = ((today - timedelta(days=days)).date() for days in (60, 50, 30))
    with db.connect("owner") as owner:
        owner.execute("INSERT INTO sites (name) VALUES ('lab')")
    engine = db.create_engine("worker")
    with engine.begin() as conn:
        native = layout.recorded(conn).layout is layout.Layout.NATIVE
        for day in (old, used, young):
            partitions.ensure(conn, day, day + timedelta(days=1), tables=("api_calls", "spans"))
    with db.connect("admin") as admin:
        insert = (
            "INSERT INTO spans (site_id, started_at, trace_id, span_id, name, kind, status, attributes, origin) "
            "SELECT id, %s, 't', 's', 'n', 'chat', 'ok', '{}', 1 FROM sites"
        )
        admin.execute(insert, [used])
    keeper = Housekeeper(engine)
    assert keeper.run(today).dropped == (3 if native else 0)
    assert keeper.run(today).dropped == 0
    with engine.begin() as conn:
        left = {(each.table, each.day) for each in partitions.partitions(conn) if each.day < today.date()}
    kept = {("spans", used), ("spans", young), ("api_calls", young)}
    assert left == kept if native else left >= kept
    engine.dispose()


def test_a_day_that_is_still_written_to_is_indexed_later(db: Database) -> None:
    # Waits for the function's lock timeout of 5 s.
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = today - timedelta(days=1)
    engine = db.create_engine("worker")
    with engine.begin() as conn:
        partitions.ensure(conn, yesterday.date(), today.date(), tables=("node_samples",))
    keeper = Housekeeper(engine)
    with engine.begin() as conn:
        (relation,) = partitions.relations(conn, "node_samples", [yesterday.date()])
    with db.connect("admin") as writer:
        writer.execute(f"LOCK TABLE {relation} IN ROW EXCLUSIVE MODE".encode())
        assert keeper.run(today + timedelta(hours=3)).busy == 1
        writer.rollback()
    assert keeper.run(today + timedelta(hours=4)) == Kept(made=0, closed=1, busy=0)
    engine.dispose()
