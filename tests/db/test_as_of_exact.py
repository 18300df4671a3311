"""What a run of the books saw is what a later look through its snapshot sees: also of rows recorded before it and committed after."""

from __future__ import annotations

import psycopg
import pytest

from analytics.inputs import Window
from analytics.io.load import Loaded, load_batch
from analytics.io.references import Known
from analytics.io.restored import SETTLE
from analytics.policy import Policy
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
LATER = HOUR_AT + 30 * HOUR
TARIFF = (
    "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
    "VALUES (%s, 'it', 0.50, 'USD', 'late', %s)"
)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


def loaded(fleet: SmallFleet, as_of: Known | None = None) -> Loaded:
    with fleet.database.connect("worker", autocommit=True) as connection:
        window = Window(HOUR_AT, HOUR_AT + HOUR, LATER)
        return load_batch(fleet.database, connection, fleet.site_id, window, Policy(), "USD", as_of=as_of)


def amounts(seen: Loaded) -> list[str]:
    return sorted(f"{amount:.2f}" for amount in seen.inputs.references.tariffs["amount_per_kwh"])


def ends(seen: Loaded) -> list[object]:
    return seen.inputs.usage.holds["job_ended_at"].to_list()


def test_what_was_recorded_before_a_run_and_committed_after_it_was_not_seen_and_stays_unseen(fleet: SmallFleet) -> None:
    with fleet.database.connect("admin") as slow:
        slow.execute("UPDATE tariffs SET superseded_at = now() WHERE source = 'test'")
        slow.execute(TARIFF, (fleet.site_id, HOUR_AT))
        run = loaded(fleet)  # the writer's now() is earlier than this run's
        slow.commit()

    assert amounts(run) == ["0.20"]
    assert amounts(loaded(fleet, run.as_of)) == ["0.20"]
    assert loaded(fleet, run.as_of).read.frames == run.read.frames
    assert amounts(loaded(fleet)) == ["0.50"]
    # By its instant alone the run would have seen the row that replaced the one it saw.
    assert amounts(loaded(fleet, Known(run.as_of.at))) == ["0.50"]


def test_a_holding_that_is_committed_while_a_run_reads_is_seen_by_none_of_its_queries(fleet: SmallFleet) -> None:
    with fleet.database.connect("admin") as slow:
        slow.execute(
            "INSERT INTO jobs (site_id, cluster, native_id, started_at, account, origin, source) VALUES (%s, 'c1', '7', %s, 'nlp', 1, 'agent')",
            (fleet.site_id, HOUR_AT),
        )
        slow.execute(
            "INSERT INTO allocations (job_id, site_id, device_id, start_at, evidence) SELECT id, %s, %s, %s, 'cgroup' FROM jobs",
            (fleet.site_id, fleet.device_id, HOUR_AT),
        )
        run = loaded(fleet)
        slow.commit()

    assert run.inputs.usage.holds.height == 0
    assert loaded(fleet, run.as_of).inputs.usage.holds.height == 0
    assert loaded(fleet).inputs.usage.holds.height == 1


def test_the_end_of_a_job_that_is_committed_while_a_run_reads_is_not_of_what_it_saw(fleet: SmallFleet) -> None:
    job = fleet.job("7", HOUR_AT, None)
    with fleet.database.connect("admin") as slow:
        slow.execute("UPDATE jobs SET ended_at = %s WHERE id = %s", (HOUR_AT + HOUR / 2, job))
        run = loaded(fleet)
        slow.commit()

    assert ends(run) == ends(loaded(fleet, run.as_of)) == [None]
    assert ends(loaded(fleet)) == [HOUR_AT + HOUR / 2]


def test_a_restored_database_goes_on_counting_so_that_old_runs_see_nothing_new(fleet: SmallFleet) -> None:
    # As after a dump was loaded into a server that is younger than the one it came from: its ids start low again.
    fleet.rows("UPDATE tariffs SET recorded_xid = '9000000' RETURNING 1")
    before = Known(LATER, "9000010:9000020:9000015")
    with fleet.admin() as admin, admin.transaction():
        for statement in SETTLE.split(";\n"):
            if statement.strip():
                admin.execute(statement.encode())
        admin.execute("UPDATE tariffs SET superseded_at = now() WHERE source = 'test'")
        admin.execute(TARIFF, (fleet.site_id, HOUR_AT))

    assert amounts(loaded(fleet, before)) == ["0.20"]
    run = loaded(fleet)
    assert amounts(run) == ["0.50"]
    assert amounts(loaded(fleet, run.as_of)) == ["0.50"]
    assert fleet.rows("SELECT min(recorded_xid::text::bigint) > 9000000 FROM tariffs WHERE source = 'late'") == [
        (True,)
    ]


def test_a_stamp_that_comes_with_a_row_stays_and_nobody_has_to_give_one(fleet: SmallFleet) -> None:
    with fleet.admin() as admin:
        admin.execute(
            "INSERT INTO bindings (position, tenant_id, valid_from, recorded_xid) VALUES (7, %s, %s, '77')",
            (fleet.tenant_id, HOUR_AT),
        )
        admin.execute("UPDATE bindings SET superseded_at = now() WHERE position = 7")
    ((recorded, is_ours),) = fleet.rows(
        "SELECT recorded_xid::text, superseded_xid < pg_current_xact_id() AND superseded_xid > '77' FROM bindings WHERE position = 7"
    )
    assert (recorded, is_ours) == ("77", True)


def test_a_worker_may_not_make_stamps(fleet: SmallFleet) -> None:
    with fleet.database.connect("worker") as worker, pytest.raises(psycopg.errors.InsufficientPrivilege):
        worker.execute("SELECT stamped_transaction()")
