"""From what agents say of a node's power to the lines of a bill: overhead, shared IT, and the meter tree above."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from analytics.inputs import Window
from analytics.io.load import load_batch
from analytics.io.recompute import recompute
from analytics.io.site_facts import check
from analytics.io.site_facts_store import apply
from analytics.jobs import HourCloser, WorkerSettings
from analytics.pipeline import close_hours
from analytics.policy import Policy
from ingest.store.engine import Database
from ingest.store.identities import OnNode, meter_ids
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db

SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + timedelta(hours=3)
UNTIL = HOUR_AT + HOUR + timedelta(minutes=5)
HOUR_MJ = 3_600_000
"""Of one watt."""
LINES = (
    "SELECT pool, charge_category, device_model, tenant_id, energy_mj, billed_cost, method, source FROM current_ledger_lines "
    "WHERE hour_at = %s ORDER BY charge_category, pool, device_model"
)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    found = small_fleet(db)
    found.samples(HOUR_AT - timedelta(minutes=5), UNTIL)
    return found


def meter(fleet: SmallFleet, name: str) -> int:
    """Return a meter of the node, made as ingest makes it when a row names it first."""
    engine, place = fleet.database.create_engine("writer"), OnNode(fleet.node_id, name)
    with engine.begin() as conn:
        made = meter_ids(conn, [place])[place]
    engine.dispose()
    return made


def node_rows(
    fleet: SmallFleet,
    meter_id: int,
    watts: int,
    *,
    every_s: int = 30,
    but: tuple[int, int] = (0, 0),
    wrap_mj: int | None = None,
) -> None:
    """Insert an agent's rows of a node meter's counter around the hour, none ``but`` seconds from it."""
    fleet.rows(
        """
        INSERT INTO node_samples (at, meter_id, epoch_id, span_us, energy_mj)
        SELECT at, %s, %s, 30000000, CASE WHEN %s::bigint IS NULL THEN shown ELSE mod(shown, %s::bigint) END FROM (
            SELECT %s::timestamptz + n * interval '1 second' AS at, (n + 600)::bigint * %s * 1000 AS shown
            FROM generate_series(-300, 3900, %s) AS n WHERE n <= %s OR n >= %s) AS rows RETURNING 1
        """,
        meter_id,
        fleet.epoch_id,
        wrap_mj,
        wrap_mj,
        HOUR_AT,
        watts,
        every_s,
        *but,
    )
    with fleet.admin() as connection:
        fleet.changed("node_samples", HOUR_AT, UNTIL, connection)


def usage(fleet: SmallFleet) -> list[tuple[Any, ...]]:
    return fleet.rows(
        "SELECT devices.uuid, holder, energy_mj, held_us FROM current_usage_hours JOIN devices ON devices.id = device_id "
        "WHERE hour_at = %s ORDER BY 1, 2",
        HOUR_AT,
    )


def test_an_agents_node_meter_becomes_overhead_of_who_used_the_boards(fleet: SmallFleet) -> None:
    # The node draws 400 W, its board 100 W: 300 W for an hour, half of the board's energy was job 7's.
    job_id = fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=30))
    node_rows(fleet, meter(fleet, "redfish"), 400)

    HourCloser(fleet.database, SETTINGS).run(LATER)

    half_us = 1_800_000_000
    assert usage(fleet) == [
        ("GPU-1", "idle", 50 * HOUR_MJ, half_us),
        ("GPU-1", f"job:{job_id}", 50 * HOUR_MJ, half_us),
        ("chassis:s1/n1", "idle", 150 * HOUR_MJ, 0),
        ("chassis:s1/n1", f"job:{job_id}", 150 * HOUR_MJ, 0),
    ]
    # 0.05 and 0.15 kWh at 0.20: no line is without a price, and energy is on no electricity line.
    cent, rent = Decimal("0.010000000"), Decimal("1.000000000")
    assert fleet.rows(LINES, HOUR_AT) == [
        ("idle", "electricity", "H100", None, None, cent, "whole", "measured"),
        ("idle", "electricity", "chassis", None, None, 3 * cent, "overhead", "measured"),
        ("job", "electricity", "H100", fleet.tenant_id, None, cent, "whole", "measured"),
        ("job", "electricity", "chassis", fleet.tenant_id, None, 3 * cent, "overhead", "measured"),
        ("idle", "gpu_owned", "H100", None, 50 * HOUR_MJ, rent, "whole", "measured"),
        ("job", "gpu_owned", "H100", fleet.tenant_id, 50 * HOUR_MJ, rent, "whole", "measured"),
        ("idle", "node_overhead", "chassis", None, 150 * HOUR_MJ, 0, "overhead", "measured"),
        ("job", "node_overhead", "chassis", fleet.tenant_id, 150 * HOUR_MJ, 0, "overhead", "measured"),
    ]


def test_a_hole_costs_its_minutes_and_says_so(fleet: SmallFleet) -> None:
    # From 10:00 to 13:30 the controller said nothing: more than three minutes, in minutes 10 to 13: 56 of 60.
    node_rows(fleet, meter(fleet, "redfish"), 400, but=(600, 810))
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert usage(fleet)[1:] == [("chassis:s1/n1", "platform:overhead", 56 * 60 * 300 * 1000, 0)]
    told = "SELECT round(coverage::numeric, 6)::text FROM current_ledger_lines WHERE hour_at = %s AND device_model = 'chassis'"
    assert fleet.rows(told, HOUR_AT) == [("0.933333",), ("0.933333",)]
    ((noted,),) = fleet.rows("SELECT reason FROM ledger_runs WHERE hour_at = %s ORDER BY id DESC LIMIT 1", HOUR_AT)
    assert noted


def test_of_two_meters_of_a_node_one_bills(fleet: SmallFleet) -> None:
    node_rows(fleet, meter(fleet, "dc"), 380)
    node_rows(fleet, meter(fleet, "ac"), 400)
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert usage(fleet)[1:] == [("chassis:s1/n1", "platform:overhead", 300 * HOUR_MJ, 0)]


def test_a_meter_that_bills_from_an_hour_on_moves_that_hour_alone(fleet: SmallFleet) -> None:
    node_rows(fleet, meter(fleet, "ac"), 400)
    node_rows(fleet, meter(fleet, "dc"), 380)
    closer = HourCloser(fleet.database, SETTINGS)
    closer.run(LATER)
    assert usage(fleet)[1:] == [("chassis:s1/n1", "platform:overhead", 300 * HOUR_MJ, 0)]

    def say(since: datetime) -> int:
        text = f"meters:\n  - {{node: n1, meter: ac, bills: false, from: {since:%Y-%m-%dT%H:%MZ}}}\n"
        with fleet.database.connect("owner") as connection:
            apply(connection, check(text), "s1", LATER)
        closer.run(LATER)
        ((revision,),) = fleet.rows("SELECT revision FROM ledger_hours WHERE hour_at = %s", HOUR_AT)
        return int(revision)

    # An hour goes by what holds as it begins.
    assert say(HOUR_AT + timedelta(minutes=1)) == 1
    assert usage(fleet)[1:] == [("chassis:s1/n1", "platform:overhead", 300 * HOUR_MJ, 0)]
    assert say(HOUR_AT) == 2
    assert usage(fleet)[1:] == [("chassis:s1/n1", "platform:overhead", 280 * HOUR_MJ, 0)]
    # The first revision comes out as it was, of what was known to it.
    with fleet.database.connect("worker", autocommit=True) as connection:
        found = [
            recompute(fleet.database, connection, None, "s1", run_id)
            for (run_id,) in fleet.rows("SELECT id FROM ledger_runs WHERE hour_at = %s ORDER BY id", HOUR_AT)
        ]
    assert {(each.revision, each.is_same, each.why) for each in found} == {(1, True, ""), (2, True, "")}


def test_a_register_that_begins_anew_goes_on_where_its_limit_is_known(fleet: SmallFleet) -> None:
    number = meter(fleet, "redfish")
    node_rows(fleet, number, 400, wrap_mj=500_000_000)
    fleet.rows("UPDATE meters SET wrap_mj = 500000000 WHERE id = %s RETURNING 1", number)
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert usage(fleet)[1:] == [("chassis:s1/n1", "platform:overhead", 300 * HOUR_MJ, 0)]


def test_a_board_that_is_cut_up_is_taken_off_once(fleet: SmallFleet) -> None:
    fleet.rows(
        "INSERT INTO devices (uuid, vendor, model, kind, parent_device_id, slice_ratio) "
        "SELECT 'MIG-' || part, 'nvidia', 'H100', 'mig', %s, 0.5 FROM generate_series(1, 2) AS part RETURNING 1",
        fleet.device_id,
    )
    fleet.rows(
        "INSERT INTO placements (device_id, node_id, valid_from) SELECT id, %s, %s FROM devices WHERE kind = 'mig' RETURNING 1",
        fleet.node_id,
        HOUR_AT - HOUR,
    )
    node_rows(fleet, meter(fleet, "redfish"), 400)
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert usage(fleet)[1:] == [("chassis:s1/n1", "platform:overhead", 300 * HOUR_MJ, 0)]


def test_processors_alone_are_a_part_of_the_overhead(fleet: SmallFleet) -> None:
    node_rows(fleet, meter(fleet, "rapl"), 60)
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert usage(fleet)[1:] == [("chassis:s1/n1", "platform:overhead", 60 * HOUR_MJ, 0)]
    assert fleet.rows("SELECT DISTINCT reason FROM current_usage_hours WHERE held_us = 0") == [
        ("processors_and_memory",)
    ]


def test_boards_above_their_node_are_a_finding_and_the_hour_closes_all_the_same(fleet: SmallFleet) -> None:
    node_rows(fleet, meter(fleet, "redfish"), 90)
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert [row[0] for row in usage(fleet)] == ["GPU-1"]
    found = fleet.rows(
        "SELECT findings.kind, uuid FROM findings JOIN devices ON devices.id = device_id WHERE start_at = %s", HOUR_AT
    )
    assert found == [("negative_remainder", "chassis:s1/n1")]


def test_a_model_and_shared_it_are_assumed_with_bounds_and_priced_as_electricity_alone(fleet: SmallFleet) -> None:
    ((site,),) = fleet.rows("SELECT id FROM sites")
    fleet.rows(
        "INSERT INTO overhead_models (site_id, node_glob, idle_mw, per_accelerator_active_ppm, error_ppm, valid_from) "
        "VALUES (%s, 'n*', 200000, 100000, 300000, '2026-01-01Z') RETURNING 1",
        site,
    )
    fleet.rows(
        "INSERT INTO shared_it (site_id, name, kind, power_mw, error_ppm, valid_from) "
        "VALUES (%s, 'leaf-1', 'switch', 150000, 200000, '2026-01-01Z') RETURNING 1",
        site,
    )
    HourCloser(fleet.database, SETTINGS).run(LATER)
    rows = fleet.rows(
        "SELECT uuid, holder, energy_mj, energy_low_mj, energy_high_mj, method, source FROM current_usage_hours "
        "JOIN devices ON devices.id = device_id WHERE hour_at = %s AND held_us = 0 ORDER BY 1",
        HOUR_AT,
    )
    # 200 W and a tenth of the board's 100 W; 150 W of the switch.
    assert rows == [
        (
            "chassis:s1/n1",
            "platform:overhead",
            210 * HOUR_MJ,
            147 * HOUR_MJ,
            273 * HOUR_MJ,
            "overhead_model",
            "assumed",
        ),
        ("site:s1/leaf-1", "platform:shared_it", 150 * HOUR_MJ, 120 * HOUR_MJ, 180 * HOUR_MJ, "shared_it", "assumed"),
    ]
    lines = [row for row in fleet.rows(LINES, HOUR_AT) if row[0] == "platform"]
    assert lines == [
        ("platform", "electricity", "chassis", None, None, Decimal("0.042000000"), "overhead_model", "assumed"),
        ("platform", "electricity", "switch", None, None, Decimal("0.030000000"), "shared_it", "assumed"),
        ("platform", "node_overhead", "chassis", None, 210 * HOUR_MJ, 0, "overhead_model", "assumed"),
        ("platform", "shared_it", "switch", None, 150 * HOUR_MJ, 0, "shared_it", "assumed"),
    ]


def test_shared_it_with_a_meter_is_measured_by_its_periods(fleet: SmallFleet) -> None:
    ((site,),) = fleet.rows("SELECT id FROM sites")
    ((number,),) = fleet.rows(
        "INSERT INTO meters (site_id, name, level) VALUES (%s, 'storage', 'other') RETURNING id", site
    )
    ((taken,),) = fleet.rows(
        "INSERT INTO imports (site_id, kind, sha256, scope, file_name) VALUES (%s, 'meters', '', '', 'f') RETURNING id",
        site,
    )
    for quarter in range(4):
        start = HOUR_AT + quarter * HOUR / 4
        fleet.rows(
            "INSERT INTO meter_readings (meter_id, from_at, to_at, energy_mj, source, import_id) VALUES (%s, %s, %s, %s, 'f', %s) RETURNING 1",
            number, start, start + HOUR / 4, 1000 * (quarter + 1), taken,
        )  # fmt: skip
    fleet.rows(
        "INSERT INTO shared_it (site_id, name, kind, meter_id, error_ppm, valid_from) "
        "VALUES (%s, 'filer', 'storage', %s, 0, '2026-01-01Z') RETURNING 1",
        site,
        number,
    )
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert usage(fleet)[1:] == [("site:s1/filer", "platform:shared_it", 10_000, 0)]


def test_shared_it_on_the_meter_of_a_node_is_not_that_nodes_overhead_and_closes_without_it(fleet: SmallFleet) -> None:
    ((site,),) = fleet.rows("SELECT id FROM sites")
    number = meter(fleet, "rack-pdu")
    node_rows(fleet, number, 500)
    fleet.samples(UNTIL, UNTIL + HOUR)
    fleet.rows(
        "INSERT INTO shared_it (site_id, name, kind, meter_id, error_ppm, valid_from) "
        "VALUES (%s, 'leaf-1', 'switch', %s, 0, '2026-01-01Z') RETURNING 1",
        site,
        number,
    )
    HourCloser(fleet.database, SETTINGS).run(LATER + HOUR)
    assert usage(fleet) == [
        ("GPU-1", "idle", 100 * HOUR_MJ, 3_600_000_000),
        ("site:s1/leaf-1", "platform:shared_it", 500 * HOUR_MJ, 0),
    ]
    # The meter says nothing after five minutes of the next hour.
    after = fleet.rows(
        "SELECT energy_mj FROM current_usage_hours WHERE holder = 'platform:shared_it' AND hour_at = %s", HOUR_AT + HOUR
    )
    assert after == [(500 * HOUR_MJ // 12,)]


def test_a_node_with_a_node_meter_alone_keeps_its_whole_energy(db: Database) -> None:
    fleet = small_fleet(db)
    job_id = fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    fleet.rows("UPDATE devices SET kind = 'node', uuid = 'node:s1/n1', accelerators = 8 RETURNING 1")
    with fleet.admin() as connection:
        connection.execute(
            "SELECT ensure_partitions(%s, %s, NULL)", (HOUR_AT.date(), HOUR_AT.date() + timedelta(days=1))
        )
    node_rows(fleet, meter(fleet, "ac"), 4000)
    node_rows(fleet, meter(fleet, "dc"), 3800)
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert usage(fleet) == [("node:s1/n1", f"job:{job_id}", 4000 * HOUR_MJ, 3_600_000_000)]
    assert fleet.rows("SELECT DISTINCT method FROM current_usage_hours") == [("node_meter",)]


def test_no_power_that_no_node_can_draw_and_no_meter_of_cooling_is_a_nodes(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.rows("UPDATE devices SET kind = 'node', uuid = 'node:s1/n1', accelerators = 8 RETURNING 1")
    with fleet.admin() as connection:
        connection.execute(
            "SELECT ensure_partitions(%s, %s, NULL)", (HOUR_AT.date(), HOUR_AT.date() + timedelta(days=1))
        )
    node_rows(fleet, meter(fleet, "dc"), 3800)
    cooling = meter(fleet, "ac")  # it would come before
    node_rows(fleet, cooling, 900)
    fleet.rows("UPDATE meters SET covers = 'cooling' WHERE id = %s RETURNING 1", cooling)
    fleet.rows("UPDATE node_samples SET power_mw = 2147483648 RETURNING 1")  # as an import once kept it
    HourCloser(fleet.database, SETTINGS).run(LATER)
    assert usage(fleet) == [("node:s1/n1", "idle", 3800 * HOUR_MJ, 3_600_000_000)]


def test_a_meter_that_is_read_each_quarter_has_the_same_books_hour_by_hour(fleet: SmallFleet) -> None:
    ((site,),) = fleet.rows("SELECT id FROM sites")
    fleet.samples(UNTIL, UNTIL + 2 * HOUR, start_mj=70 * 60 * 100_000)
    fleet.rows("UPDATE epochs SET cadence_us = 900000000 RETURNING 1")
    fleet.rows(
        "INSERT INTO node_samples (at, meter_id, epoch_id, span_us, energy_mj) "
        "SELECT %s::timestamptz + n * interval '1 second', %s, %s, 900000000, (n + 9000) * 400000::bigint "
        "FROM generate_series(-3150, 12000, 900) AS n RETURNING 1",
        HOUR_AT,
        meter(fleet, "redfish"),
        fleet.epoch_id,
    )

    def overhead(first: int, count: int) -> list[tuple[Any, ...]]:
        start, end = HOUR_AT + first * HOUR, HOUR_AT + (first + count) * HOUR
        with fleet.database.connect("worker", autocommit=True) as connection:
            found = load_batch(fleet.database, connection, site, Window(start, end, end), Policy(), "USD")
        usage = close_hours(found.inputs, Policy()).usage.filter(method="overhead")
        return usage.select("hour_at", "energy_mj", "coverage").rows()

    together = overhead(0, 3)
    assert [row[1] for row in together] == [300 * HOUR_MJ] * 3
    assert [row for hour in range(3) for row in overhead(hour, 1)] == together
