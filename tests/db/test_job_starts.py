"""One run of a job that two sources date a little differently is one row, in either order; a requeue is another run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from collector.wire import DeviceRef
from ingest.importers.columns import Source
from ingest.importers.sacct import SacctOptions, import_sacct
from ingest.store import identities, placements
from ingest.store.allocations import Event, JobKey, apply
from ingest.store.engine import Database
from ingest.store.identities import NodeKey

pytestmark = pytest.mark.db

TEN = datetime(2025, 5, 1, 10, 0, tzinfo=UTC)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
START, END = 1, 2
SACCT = "JobID|Account|User|State|Start|End|AllocTRES|NodeList\n7|nlp|ada|{}|2025-05-01T10:00:00|{}|gres/gpu=1|n1\n"
Do = Callable[[], object]


class Stand:
    """A site with one node and one GPU, an agent's events, and files of sacct."""

    def __init__(self, db: Database, folder: Path) -> None:
        self.db, self.folder = db, folder
        self.engine = db.create_engine("owner")
        with self.engine.begin() as conn:
            self.site_id = identities.site_ids(conn, ["lab"])["lab"]
            (node_id,) = identities.node_ids(conn, [NodeKey(self.site_id, "n1")]).values()
            (self.device_id,) = identities.device_ids(conn, [DeviceRef("GPU-1", "H100")]).values()
            placements.place(conn, node_id, {self.device_id: TEN - timedelta(hours=1)}, {})

    def agent(self, action: int, minute: float, *, late_s: float = 3.0, run_minute: float = 0.0) -> None:
        """Tell a begin or end of the run that began ``late_s`` after that minute of ten by the node's hooks."""
        job = JobKey("c1", "7", us(run_minute) + round(late_s * 1e6))
        event = Event(self.site_id, self.device_id, job, us(minute), action, 100, None, 1, "hook", 3, (None,) * 8)
        with self.db.connect("writer") as conn:
            apply(conn, [event])

    def sacct(self, state: str = "COMPLETED", end: str = "2025-05-01T10:20:03") -> None:
        path = self.folder / "sacct.txt"
        path.write_text(SACCT.format(state, end))
        with self.engine.connect() as conn:
            import_sacct(conn, Source(path, tz="UTC"), SacctOptions("lab", cluster="c1"), now=NOW)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.engine.begin() as conn:
            return [tuple(row) for row in conn.execute(sa.text(query))]

    def jobs(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT started_at, ended_at, state, account FROM jobs ORDER BY started_at")

    def held(self) -> list[tuple[Any, ...]]:
        return self.rows(
            "SELECT device_id, node_id, start_at, end_at FROM allocations WHERE superseded_at IS NULL ORDER BY start_at"
        )


def us(minute: float) -> int:
    return round((TEN.timestamp() + minute * 60) * 1e6)


def at(minute: float) -> datetime:
    return TEN + timedelta(minutes=minute)


@pytest.fixture
def stand(db: Database, tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(db, tmp_path)
    yield stand
    stand.engine.dispose()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_hook_s_job_and_sacct_s_three_seconds_earlier_are_one_in_any_order(
    stand: Stand, order: tuple[int, ...]
) -> None:
    steps: tuple[Do, ...] = (lambda: stand.agent(START, 0.05), lambda: stand.agent(END, 20), stand.sacct)
    for step in order:
        steps[step]()
    # The scheduler's own record says when it began and ended; what it held, and so what it costs, is the agent's word alone.
    assert stand.jobs() == [(TEN, at(20.05), "completed", "nlp")]
    assert stand.held() == [(stand.device_id, None, at(0.05), at(20))]


def test_what_is_held_is_the_same_with_and_without_the_second_source(stand: Stand) -> None:
    stand.agent(START, 0.05)
    stand.agent(END, 20)
    alone = stand.held()
    stand.sacct("RUNNING", "Unknown")
    stand.sacct()
    assert stand.held() == alone


def test_two_nodes_whose_prologs_differ_by_seconds_tell_of_one_run(stand: Stand) -> None:
    stand.agent(START, 0.05, late_s=3)
    stand.agent(END, 20, late_s=1)
    assert stand.jobs() == [(at(0.05), at(20), "unknown", None)]
    assert stand.held() == [(stand.device_id, None, at(0.05), at(20))]


def test_a_requeued_run_stays_apart(stand: Stand) -> None:
    stand.agent(START, 0.05)
    stand.agent(END, 5)
    stand.agent(START, 6, run_minute=6, late_s=0)
    stand.sacct()
    stand.agent(END, 9, run_minute=6, late_s=0)
    assert [row[0] for row in stand.jobs()] == [TEN, at(6)]
    assert [row[2:] for row in stand.held()] == [(at(0.05), at(5)), (at(6), at(9))]


def test_six_seconds_apart_are_two_runs(stand: Stand) -> None:
    stand.sacct()
    stand.agent(START, 0.2, late_s=6)
    assert len(stand.jobs()) == 2


def test_rows_that_a_release_before_made_of_one_run_do_not_stop_an_import(stand: Stand) -> None:
    for late_s in (1, 3):
        stand.rows(
            "INSERT INTO jobs (site_id, cluster, native_id, started_at, state, origin, source) SELECT id, 'c1', '7', "
            f"'2025-05-01T10:00:0{late_s}Z', 'running', 3, 'agent' FROM sites RETURNING id"
        )
    stand.sacct()
    assert TEN in [row[0] for row in stand.jobs()]
