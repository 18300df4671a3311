"""The worker's rounds on a real database: closing, restating, resting, and never twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from analytics.closing import hours
from analytics.errors import BooksError
from analytics.inputs import Window
from analytics.io.hours import batches, due_hours
from analytics.io.load import load_batch
from analytics.jobs import HourCloser, WorkerSettings
from analytics.minutes import MinutesMaker
from analytics.pipeline import HourResult, reduce_shards
from analytics.policy import Policy
from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import SegmentError, Segments
from tests.db.independent_energy import INDEPENDENT
from tests.db.ledger_fixture import HOUR, HOUR_AT, RUN_BY_HAND, SmallFleet, small_fleet

pytestmark = pytest.mark.db

SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + timedelta(hours=3)
KWH_MJ = 3_600_000_000


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


def test_a_job_pays_for_its_half_hour_and_the_platform_for_the_rest(fleet: SmallFleet) -> None:
    # 100 W for an hour is 0.1 kWh; the job held the first half.
    fleet.samples(HOUR_AT, HOUR_AT + HOUR + timedelta(minutes=5))
    job_id = fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=30))

    HourCloser(fleet.database, SETTINGS).run(LATER)

    usage = fleet.rows(
        "SELECT holder, energy_mj, held_us, covered_us FROM current_usage_hours WHERE hour_at = %s ORDER BY 1",
        HOUR_AT,
    )
    half_us = 1_800_000_000
    assert usage == [
        ("idle", KWH_MJ // 20, half_us, half_us),
        (f"job:{job_id}", KWH_MJ // 20, half_us, half_us),
    ]
    carbon = (
        "SELECT pool, carbon_gco2e FROM current_ledger_lines WHERE hour_at = %s AND energy_mj IS NOT NULL ORDER BY 1"
    )
    assert fleet.rows(carbon, HOUR_AT) == [("idle", Decimal("20.000000000")), ("job", Decimal("20.000000000"))]
    lines = fleet.rows(
        "SELECT pool, charge_category, tenant_id, effective_cost FROM current_ledger_lines WHERE hour_at = %s ORDER BY 1, 2",
        HOUR_AT,
    )
    assert lines == [
        ("idle", "electricity", None, Decimal("0.010000000")),
        ("idle", "gpu_owned", None, Decimal("1.000000000")),
        ("job", "electricity", fleet.tenant_id, Decimal("0.010000000")),
        ("job", "gpu_owned", fleet.tenant_id, Decimal("1.000000000")),
    ]


def test_books_equal_an_independent_query_over_raw_samples(fleet: SmallFleet) -> None:
    # Readings 7 s off the hour and a step of 11 s: the hour's edges fall inside intervals.
    fleet.samples(HOUR_AT + timedelta(seconds=7), HOUR_AT + 2 * HOUR, power_w=373, step_s=11)
    fleet.job("7", HOUR_AT + timedelta(minutes=10, seconds=3), HOUR_AT + timedelta(minutes=95, seconds=1))

    HourCloser(fleet.database, SETTINGS).run(LATER)

    for hour in (HOUR_AT, HOUR_AT + HOUR):
        with fleet.admin() as connection:
            independent = connection.execute(INDEPENDENT, {"hour": hour}).fetchall()
        books = fleet.rows(
            "SELECT device_id, sum(energy_mj)::bigint FROM current_usage_hours WHERE hour_at = %s GROUP BY 1", hour
        )
        assert books == independent
        assert books[0][1] > 0


def test_a_second_round_finds_nothing_to_do(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    closer = HourCloser(fleet.database, SETTINGS)
    first = closer.run(LATER)
    assert first.closed >= 1

    with fleet.admin() as connection:
        assert due_hours(connection, LATER) == []
    assert closer.run(LATER).closed == 0


def test_late_data_closes_the_hour_again_as_a_new_revision_with_its_difference(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=30))
    closer = HourCloser(fleet.database, SETTINGS)
    closer.run(LATER)
    before = fleet.rows("SELECT revision, status FROM ledger_hours WHERE hour_at = %s", HOUR_AT)
    assert before == [(1, "closed")]

    fleet.samples(HOUR_AT + timedelta(minutes=30, seconds=10), HOUR_AT + HOUR, start_mj=1810 * 100_000)
    restated = closer.run(LATER)

    assert restated.restated >= 1
    assert fleet.rows("SELECT revision FROM ledger_hours WHERE hour_at = %s", HOUR_AT) == [(2,)]
    energies = fleet.rows(
        "SELECT revision, sum(energy_mj)::bigint FROM usage_hours WHERE hour_at = %s GROUP BY 1 ORDER BY 1", HOUR_AT
    )
    assert energies == [(1, KWH_MJ // 20), (2, KWH_MJ // 10)]
    (difference,) = fleet.rows("SELECT diff FROM ledger_runs WHERE hour_at = %s AND revision = 2", HOUR_AT)[0]
    assert difference["before"]["energy_mj"] == str(KWH_MJ // 20)
    assert difference["after"]["energy_mj"] == str(KWH_MJ // 10)


def test_the_open_window_is_provisional_and_replaced_in_place(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=20))
    closer = HourCloser(fleet.database, SETTINGS)
    closer.run(HOUR_AT + timedelta(minutes=20))
    fleet.samples(HOUR_AT + timedelta(minutes=20, seconds=10), HOUR_AT + HOUR, start_mj=1210 * 100_000)
    closer.run(HOUR_AT + timedelta(minutes=50))
    assert fleet.rows("SELECT DISTINCT revision FROM ledger_lines WHERE hour_at = %s", HOUR_AT) == [(0,)]
    assert fleet.rows("SELECT status FROM ledger_hours WHERE hour_at = %s", HOUR_AT) == [("provisional",)]

    closer.run(LATER)

    assert fleet.rows("SELECT DISTINCT revision FROM ledger_lines WHERE hour_at = %s", HOUR_AT) == [(1,)]


def test_of_two_workers_with_the_same_picture_one_writes(fleet: SmallFleet) -> None:
    from analytics.frames import Findings, JobTenants, LedgerLines, Quality, UsageHours  # noqa: PLC0415
    from analytics.io.runs import Saved  # noqa: PLC0415
    from analytics.io.save import HourBooks, save_hour  # noqa: PLC0415

    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    with fleet.database.connect("worker", autocommit=True) as connection:
        state = due_hours(connection, LATER)[0]
        empty = HourBooks(
            UsageHours.create_empty(),
            LedgerLines.create_empty(),
            Findings.create_empty(),
            Quality.create_empty(),
            JobTenants.create_empty(),
        )
        assert save_hour(connection, state, empty, RUN_BY_HAND, closed=True) is Saved.WRITTEN
        assert save_hour(connection, state, empty, RUN_BY_HAND, closed=True) is Saved.LOST_RACE
    assert fleet.rows("SELECT count(*) FROM ledger_runs") == [(1,)]


def test_a_silence_over_hours_is_known_energy_once_the_device_speaks_again(fleet: SmallFleet) -> None:
    # Silent from 08:10 to 11:05; the counter went on. Nothing of it is lost, all of it is estimated.
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=10))
    closer = HourCloser(fleet.database, SETTINGS)
    closer.run(HOUR_AT + timedelta(hours=3))
    back_at = HOUR_AT + timedelta(hours=3, minutes=5)
    fleet.samples(back_at, back_at + HOUR, start_mj=int((back_at - HOUR_AT).total_seconds()) * 100_000)

    for _ in range(3):
        closer.run(HOUR_AT + timedelta(hours=6))

    found = fleet.rows(
        "SELECT hour_at, sum(energy_mj)::bigint, sum(estimated_mj)::bigint FROM current_usage_hours "
        "WHERE hour_at < %s GROUP BY 1 ORDER BY 1",
        HOUR_AT + 3 * HOUR,
    )
    tenth = KWH_MJ // 10
    assert found == [
        (HOUR_AT, tenth, tenth // 6 * 5),
        (HOUR_AT + HOUR, tenth, tenth),
        (HOUR_AT + 2 * HOUR, tenth, tenth),
    ]
    with fleet.admin() as connection:
        assert due_hours(connection, HOUR_AT + timedelta(hours=6)) == []


def test_a_price_correction_restates_only_the_hours_it_touches(fleet: SmallFleet) -> None:
    # Two tariffs, 0.20 before 11:00 and 0.30 after; the second turns out to be 0.50.
    change_at = HOUR_AT + 3 * HOUR
    fleet.rows("UPDATE tariffs SET valid_to = %s RETURNING id", change_at)
    _tariff(fleet, "0.30", change_at)
    fleet.samples(HOUR_AT, HOUR_AT + 4 * HOUR)
    closer, now = HourCloser(fleet.database, SETTINGS), HOUR_AT + timedelta(hours=6)
    closer.run(now)
    fleet.rows("UPDATE tariffs SET superseded_at = now() WHERE amount_per_kwh = 0.30 RETURNING id")
    _tariff(fleet, "0.50", change_at)
    with fleet.admin() as connection:
        fleet.changed("tariffs", change_at, now, connection)

    closer.run(now)

    revisions = fleet.rows("SELECT hour_at, revision FROM ledger_hours ORDER BY 1")
    assert revisions[:4] == [*((HOUR_AT + n * HOUR, 1) for n in range(3)), (change_at, 2)]
    costs = fleet.rows(
        "SELECT revision, sum(effective_cost) FROM ledger_lines WHERE hour_at = %s AND charge_category = 'electricity' "
        "GROUP BY 1 ORDER BY 1",
        change_at,
    )
    assert costs == [(1, Decimal("0.030000000")), (2, Decimal("0.050000000"))]


def _tariff(fleet: SmallFleet, amount: str, from_at: datetime) -> None:
    fleet.rows(
        "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
        "VALUES (%s, 'it', %s, 'USD', 'test', %s) RETURNING id",
        fleet.site_id,
        amount,
        from_at,
    )


def test_a_job_shows_its_tenant_and_a_tenant_named_by_an_import_stands_before_bindings(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    bound = fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=20))
    named = fleet.job("8", HOUR_AT + timedelta(minutes=20), HOUR_AT + timedelta(minutes=40))
    stranger = fleet.job("9", HOUR_AT + timedelta(minutes=40), HOUR_AT + HOUR, account="nobody")
    ((other,),) = fleet.rows("INSERT INTO tenants (path) VALUES ('globex') RETURNING id")
    fleet.rows("UPDATE jobs SET tenant_id = %s WHERE id = %s RETURNING id", other, named)

    HourCloser(fleet.database, SETTINGS).run(LATER)

    shown = fleet.rows("SELECT id, tenant_id, binding_id IS NOT NULL FROM jobs ORDER BY id")
    assert shown == [(bound, fleet.tenant_id, True), (named, other, False), (stranger, None, False)]
    paying = fleet.rows("SELECT job_id, tenant_id FROM current_usage_hours WHERE job_id IS NOT NULL ORDER BY 1")
    assert paying == [(bound, fleet.tenant_id), (named, other), (stranger, None)]


def test_an_imported_call_with_a_named_tenant_is_billed_to_it(fleet: SmallFleet) -> None:
    fleet.rows(
        "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
        "VALUES ('openai', 'm', 'input_tokens', 0.0000025, 'token', 'USD', 'test', %s) RETURNING id",
        HOUR_AT - 24 * HOUR,
    )
    with fleet.admin() as connection:
        connection.execute("SELECT ensure_partitions(%s, %s, NULL)", (HOUR_AT.date(), HOUR_AT.date() + 24 * HOUR))
        connection.execute(
            "INSERT INTO api_calls (called_at, dedupe_key, site_id, tenant_id, provider, model, input_uncached_tokens, "
            "usage_known, source, origin) VALUES (%s, 'k', %s, %s, 'openai', 'm', 1000, true, 'log', 2)",
            (HOUR_AT, fleet.site_id, fleet.tenant_id),
        )
        fleet.changed("api_calls", HOUR_AT, HOUR_AT + timedelta(seconds=1), connection)

    HourCloser(fleet.database, SETTINGS).run(LATER)

    lines = fleet.rows(
        "SELECT tenant_id, effective_cost FROM current_ledger_lines WHERE charge_category = 'api_tokens'"
    )
    assert lines == [(fleet.tenant_id, Decimal("0.002500000"))]


def test_inputs_as_they_were_known_are_the_same_after_a_later_correction(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    job_id = fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=40))
    window = Window(HOUR_AT, HOUR_AT + HOUR, LATER)
    with fleet.database.connect("worker", autocommit=True) as connection:
        first = load_batch(fleet.database, connection, fleet.site_id, window, Policy(), "USD")
        fleet.rows("UPDATE allocations SET superseded_at = now() RETURNING id")
        again = load_batch(fleet.database, connection, fleet.site_id, window, Policy(), "USD", as_of=first.as_of)
        now = load_batch(fleet.database, connection, fleet.site_id, window, Policy(), "USD")
    assert first.inputs.usage.holds["job_id"].to_list() == [job_id]
    assert again.read.frames == first.read.frames
    assert now.inputs.usage.holds.is_empty()


def test_an_hour_that_does_not_balance_keeps_no_other_from_closing(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbalanced(window: Window, *others: Any) -> HourResult:
        if window.from_at <= HOUR_AT + HOUR < window.to_at:
            raise BooksError("the second hour")
        return reduce_shards(window, *others)

    monkeypatch.setattr(hours, "reduce_shards", unbalanced)
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)

    done = HourCloser(fleet.database, SETTINGS).run(HOUR_AT + 6 * HOUR)

    assert done.failed == 1
    closed = fleet.rows("SELECT hour_at FROM ledger_hours WHERE status = 'closed' ORDER BY 1")
    assert closed[:2] == [(HOUR_AT,), (HOUR_AT + 2 * HOUR,)]


def test_a_late_reading_moves_energy_between_minutes_even_where_its_hour_stays_the_same(fleet: SmallFleet) -> None:
    # 100 W; between 8:10:30 and 8:11:30 nothing at first, then the news that 3.6 of the 6 kJ were used by 8:10:50.
    hole, minute = HOUR_AT + timedelta(minutes=10, seconds=30), HOUR_AT + timedelta(minutes=10)
    fleet.samples(HOUR_AT, hole)
    fleet.samples(hole + timedelta(minutes=1), HOUR_AT + HOUR, start_mj=690 * 100_000)
    closer, minutes = HourCloser(fleet.database, SETTINGS), MinutesMaker(fleet.database, SETTINGS)
    closer.run(LATER)
    minutes.step()
    of_minute = "SELECT energy_mj FROM minute_rollups WHERE minute_at = %s"
    assert fleet.rows(of_minute, minute) == [(6_000_000,)]
    fleet.samples(hole + timedelta(seconds=20), hole + timedelta(seconds=20), start_mj=63_000_000 + 3_600_000)

    closer.run(LATER)
    minutes.step()

    # 3 kJ to 8:10:30, 3.6 kJ to 8:10:50, then 10 of the 40 seconds in which 2.4 kJ were used.
    assert fleet.rows(of_minute, minute) == [(7_200_000,)]
    assert fleet.rows("SELECT revision FROM ledger_hours WHERE hour_at = %s", HOUR_AT) == [(1,)]


def test_a_silence_that_ends_right_on_the_hour_is_known_energy_too(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=10))
    fleet.samples(HOUR_AT + 3 * HOUR, HOUR_AT + 4 * HOUR, start_mj=3 * KWH_MJ // 10)
    closer, now = HourCloser(fleet.database, SETTINGS), HOUR_AT + 6 * HOUR

    closer.run(now)
    closer.run(now)

    energies = fleet.rows("SELECT sum(energy_mj)::bigint FROM current_usage_hours GROUP BY hour_at ORDER BY hour_at")
    assert energies[:4] == [(KWH_MJ // 10,)] * 4


def test_late_readings_inside_a_known_silence_bend_every_hour_of_it(fleet: SmallFleet) -> None:
    # Silent from 08:05 to 14:00:10; then rows of 11:00 to 11:05 arrive that do not lie on the line between.
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=5))
    back_at = HOUR_AT + timedelta(hours=6, seconds=10)
    fleet.samples(back_at, back_at + HOUR, start_mj=2_160_000_000)
    closer, now = HourCloser(fleet.database, SETTINGS), HOUR_AT + timedelta(hours=9)
    for _ in range(3):
        closer.run(now)
    fleet.samples(HOUR_AT + 3 * HOUR, HOUR_AT + timedelta(hours=3, minutes=5), start_mj=540_000_000)

    for _ in range(5):
        closer.run(now)

    with fleet.admin() as connection:
        assert due_hours(connection, now) == []
        for number in range(7):
            hour = HOUR_AT + number * HOUR
            independent = connection.execute(INDEPENDENT, {"hour": hour}).fetchall()
            books = fleet.rows(
                "SELECT device_id, sum(energy_mj)::bigint FROM current_usage_hours WHERE hour_at = %s GROUP BY 1", hour
            )
            assert books == independent, hour


def test_a_sealed_hour_without_its_segments_is_refused_rather_than_closed_without_its_rows(
    fleet: SmallFleet, tmp_path: Path
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    Sealer(fleet.database, Segments.at(tmp_path)).seal(hour_of(fleet.site_id, HOUR_AT))
    window = Window(HOUR_AT, HOUR_AT + HOUR, LATER)
    with fleet.database.connect("worker") as connection, pytest.raises(SegmentError, match="sealed"):
        load_batch(fleet.database, connection, fleet.site_id, window, SETTINGS.policy, "USD")


def test_hours_are_computed_together_as_long_as_they_follow_one_another(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    with fleet.database.connect("worker") as connection:
        due = due_hours(connection, LATER)
    assert [len(batch.hours) for batch in batches(due, 24)] == [3]
    assert [len(batch.hours) for batch in batches(due, 2)] == [2, 1]
    assert [len(batch.hours) for batch in batches([due[0], due[2]], 24)] == [1, 1]


def test_books_and_what_a_run_says_it_read_do_not_depend_on_what_is_in_memory_together(
    fleet: SmallFleet, tmp_path: Path
) -> None:
    # Five more nodes with a board each, two of them silent since before; the first hour sealed, the next one hot.
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    for number in range(2, 7):
        fleet.rows(
            "WITH node AS (INSERT INTO nodes (site_id, name) VALUES (%s, %s) RETURNING id), "
            "board AS (INSERT INTO devices (uuid, vendor, model, kind) VALUES (%s, 'nvidia', 'H100', 'gpu') RETURNING id), "
            "epoch AS (INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
            "SELECT id, 'b', 0, 1, 1, 10000000, 'test' FROM node RETURNING id), "
            "placed AS (INSERT INTO placements (device_id, node_id, valid_from) SELECT board.id, node.id, %s FROM board, node) "
            "INSERT INTO device_samples SELECT (jsonb_populate_record(said, jsonb_build_object('device_id', board.id, "
            "'epoch_id', epoch.id))).* FROM device_samples AS said, board, epoch WHERE extract(minute FROM at) <> %s RETURNING 1",
            fleet.site_id,
            f"n{number}",
            f"GPU-{number}",
            HOUR_AT,
            number,
        )
    segments = Segments.at(tmp_path)
    Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT))
    told = []
    for hours_at_once, device_hours in ((24, 4_096), (24, 2), (1, 4_096)):
        with fleet.admin() as connection:
            connection.execute("TRUNCATE ledger_hours, ledger_runs, usage_hours, hour_jobs, ledger_lines CASCADE")
            fleet.changed("device_samples", HOUR_AT, HOUR_AT + 2 * HOUR, connection)
        settings = WorkerSettings("test", hours_per_pass=hours_at_once, device_hours_per_pass=device_hours)
        assert HourCloser(fleet.database, settings, segments).run(LATER).closed == 2
        told.append(fleet.rows("SELECT hour_at, content_sha256, inputs FROM ledger_runs ORDER BY 1"))
    assert told[0] == told[1]
    # Each hour by itself reads less, and comes to the same.
    assert [row[:2] for row in told[2]] == [row[:2] for row in told[0]]
    assert told[0][0][2]["outside"][0] > 6 * 300


def test_what_is_open_comes_before_a_correction_of_many_hours_which_takes_as_many_rounds_as_it_needs(
    fleet: SmallFleet,
) -> None:
    now = HOUR_AT + 5 * HOUR + timedelta(minutes=20)
    fleet.samples(HOUR_AT, now)
    closer = HourCloser(fleet.database, replace(SETTINGS, hours_per_pass=2))
    assert closer.run(now).closed == 5
    fleet.rows("UPDATE tariffs SET amount_per_kwh = amount_per_kwh * 2 RETURNING 1")
    with fleet.admin() as connection:
        fleet.changed("tariffs", HOUR_AT, now, connection)
    order: list[datetime] = []
    rounds = [closer.run(now, on_hour=lambda hour, _: order.append(hour.hour_at), within_s=0.0) for _ in range(2)]
    open_hour = HOUR_AT + 5 * HOUR
    eight, nine, ten, eleven = (HOUR_AT + number * HOUR for number in range(4))
    assert order == [open_hour, eight, nine, open_hour, ten, eleven]
    assert [(done.rated, done.left) for done in rounds] == [(2, 3), (2, 1)]
    assert closer.run(now).rated == 1
    assert closer.run(now).rated == 0
