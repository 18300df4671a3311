"""An agent that lost its state ends what was left open on its node and it does not find held, in whatever order things arrive."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise, permutations
from typing import Any

import httpx
import pytest

from collector.wire import JOBS_BEGUN_ANEW, Stream
from ingest.settings import Settings
from ingest.store.allocations import Event, JobKey, apply, begin_anew
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, device_row, make_site, now_us, rows, run, send

pytestmark = pytest.mark.db
MINUTE_US = 60_000_000
START, END = 1, 2
ANEW_MINUTE = 20
Told = tuple[str, int, int]
"""What (START, END of a job; anew; a reading), the job's number or 0, the minute."""


def held(db: Database, began_us: int) -> list[tuple[Any, ...]]:
    """Return job, start and end in minutes of what is known now."""
    with db.connect("admin") as connection:
        found: list[tuple[Any, ...]] = connection.execute(
            "SELECT native_id, extract(epoch FROM start_at), extract(epoch FROM end_at) FROM allocations "
            "JOIN jobs ON jobs.id = job_id WHERE superseded_at IS NULL ORDER BY native_id, start_at"
        ).fetchall()
    return [
        (job, *(None if at is None else round(float(at) / 60 - began_us / MINUTE_US, 3) for at in times))
        for job, *times in found
    ]


def tell(db: Database, told: tuple[Told, ...], *, node_of_anew: str = "node-1") -> list[tuple[Any, ...]]:
    """Send each in a batch of its own, in this order; return what is held. A reading each minute up to the eighth comes first."""
    site, meta, began_us = make_site(db), batch_meta(), now_us() // MINUTE_US * MINUTE_US - 40 * MINUTE_US

    async def scenario(client: httpx.AsyncClient) -> None:
        seen = body_of(meta, *(device_row(began_us + minute * MINUTE_US) for minute in range(9)))
        answers = [await send(client, seen, site.node_tokens["node-1"])]
        for sequence, (what, job, minute) in enumerate(told, start=2):
            at_us = began_us + minute * MINUTE_US
            if what == "anew":
                other = (
                    batch_meta(node=node_of_anew, devices=())
                    if node_of_anew != "node-1"
                    else batch_meta(spool=meta.spool, sequence=sequence)
                )
                event = {"at_us": at_us, "kind": JOBS_BEGUN_ANEW}
                body = body_of(other, node_event=rows(Stream.NODE_EVENT, event))
                answers.append(await send(client, body, site.node_tokens[node_of_anew]))
                continue
            event = {
                "at_us": at_us,
                "device": 0,
                "action": START if what == "start" else END,
                "cluster": "c",
                "native_job_id": str(job),
                "job_started_at_us": began_us,
                "evidence": "cgroup",
            }
            body = body_of(batch_meta(spool=meta.spool, sequence=sequence), allocation=rows(Stream.ALLOCATION, event))
            answers.append(await send(client, body, site.node_tokens["node-1"]))
        assert [answer.status_code for answer in answers] == [200] * len(answers), [answer.text for answer in answers]

    run(Settings(db), scenario)
    return held(db, began_us)


ANEW: Told = ("anew", 0, ANEW_MINUTE)


@pytest.mark.parametrize("told", list(permutations((("start", 7, 1), ANEW))))
def test_what_is_not_found_held_ends_with_the_last_reading_before(db: Database, told: tuple[Told, ...]) -> None:
    assert tell(db, told) == [("7", 1, 8)]


@pytest.mark.parametrize("told", list(permutations((("start", 7, 1), ANEW, ("start", 7, ANEW_MINUTE)))))
def test_what_is_found_held_goes_on_without_a_break(db: Database, told: tuple[Told, ...]) -> None:
    assert tell(db, told) == [("7", 1, None)]


@pytest.mark.parametrize("end", [5, 12])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_an_end_that_was_told_after_all_is_the_end(db: Database, end: int, order: tuple[int, ...]) -> None:
    told: tuple[Told, ...] = (("start", 7, 1), ANEW, ("end", 7, end))
    found = tell(db, tuple(told[position] for position in order))
    assert (found[0][1], found[-1][2]) == (1, end)
    assert all(before[2] == after[1] for before, after in pairwise(found))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_what_begins_later_is_another_holding(db: Database, order: tuple[int, ...]) -> None:
    told: tuple[Told, ...] = (("start", 7, 1), ANEW, ("start", 7, 25))
    assert tell(db, tuple(told[position] for position in order)) == [("7", 1, 8), ("7", 25, None)]


def test_a_job_without_any_reading_after_its_start_held_nothing_that_anybody_saw(db: Database) -> None:
    assert tell(db, (("start", 7, 10), ANEW)) == [("7", 10, 10)]


def test_another_node_s_beginning_ends_nothing_here(db: Database) -> None:
    assert tell(db, (("start", 7, 1), ANEW), node_of_anew="node-2") == [("7", 1, None)]


def test_hours_since_the_last_reading_are_due_again(db: Database) -> None:
    tell(db, (("start", 7, 1), ANEW))
    with db.connect("admin") as connection:
        found = connection.execute(
            "SELECT count(*) FROM changes, allocations WHERE kind = 'allocations' AND superseded_at IS NULL AND from_at = end_at"
        ).fetchall()
        job = connection.execute("SELECT state, ended_at IS NOT NULL FROM jobs").fetchall()
    assert found == [(1,)]
    assert job == [("unknown", True)]


def test_a_start_and_a_beginning_at_once_see_each_other(db: Database) -> None:
    site = make_site(db)
    with db.connect("admin") as admin:
        ids: list[tuple[Any, ...]] = admin.execute(
            "WITH device AS (INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-1', 'nvidia', 'H100', 'gpu') RETURNING id) "
            "INSERT INTO placements (device_id, node_id, valid_from) SELECT device.id, nodes.id, now() - interval '1 day' "
            "FROM device, nodes WHERE nodes.name = 'node-1' RETURNING device_id, node_id"
        ).fetchall()
    ((device_id, node_id),) = ids
    began_us = now_us() - 40 * MINUTE_US
    begun_at = datetime.fromtimestamp(began_us / 1e6, UTC) + timedelta(minutes=ANEW_MINUTE)
    start = Event(
        site.site_id, device_id, JobKey("c", "7", began_us), began_us, START, None, None, 1, "cgroup", 1, (None,) * 8
    )

    def begin() -> None:
        with db.connect("writer") as other:
            begin_anew(other, [(node_id, begun_at)])

    with db.connect("writer") as conn:
        apply(conn, [start])  # not committed yet
        beginning = threading.Thread(target=begin)
        beginning.start()
        beginning.join(0.3)
        assert beginning.is_alive()
        conn.commit()
        beginning.join(10)
    assert held(db, began_us) == [("7", 0, 0)]
