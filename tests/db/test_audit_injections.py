"""Wherever in the books of a frozen month, of what was posted for it, or of the open month the least amount is added, `audit verify` finds it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics.io.bill_spans import sum_spans
from analytics.io.disputes import lines_of_hour, open_dispute
from analytics.io.periods import close_month
from analytics.io.verify_period import Verified, verify
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.month import month
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOVEMBER: Final = month("2026-11")
OPEN_AT: Final = datetime(2026, 12, 1, 8, tzinfo=UTC)
LATER: Final = datetime(2026, 12, 2, tzinfo=UTC)
NANO: Final = "0.000000001"
OF_A_LINE: Final = {
    "energy_mj": "1",
    "quantity": "1",
    "facility_mj": "1",
    "energy_low_mj": "1",
    "energy_high_mj": "1",
    "carbon_gco2e": NANO,
    "billed_cost": NANO,
    "effective_cost": NANO,
}
TARGETS: Final = sorted(
    [(table, name, least) for table in ("ledger_lines", "ledger_corrections") for name, least in OF_A_LINE.items()]
    + [("usage_hours", "energy_mj", "1")]
    + [("bill_lines", name, OF_A_LINE[name]) for name in ("energy_mj", "billed_cost", "effective_cost", "carbon_gco2e")]
    + [("bill_times", "held_us", "1"), ("period_hours", "lines", "1"), ("ledger_runs", "line_count", "1")]
)  # fmt: skip
"""Table, column, and the least that can be added to it."""


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """Three hours of November that are frozen; a tariff, a factor, a reading and a job that were told since; a disputed line; and an hour of December."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=100))  # then a gap, whose energy has bounds
    fleet.samples(HOUR_AT + timedelta(minutes=110), HOUR_AT + 3 * HOUR - timedelta(seconds=10), start_mj=660_000_000)
    fleet.samples(OPEN_AT, OPEN_AT + HOUR - timedelta(seconds=10), start_mj=10_000_000_000)
    for number, at in enumerate((HOUR_AT, HOUR_AT + HOUR, HOUR_AT + 2 * HOUR, OPEN_AT)):
        fleet.job(str(number), at, at + timedelta(minutes=30))
    closer = HourCloser(fleet.database, WorkerSettings(code_version="test"))
    closer.run(LATER)
    with fleet.database.connect("owner", autocommit=True) as owner:
        close_month(
            owner, NOVEMBER, None, now=LATER, lateness=timedelta(minutes=15), by="ada", accepted=["coverage", "mapped"]
        )
    with fleet.admin() as connection:
        connection.execute("UPDATE tariffs SET superseded_at = now()")
        connection.execute(
            "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
            "VALUES (%s, 'it', 0.4, 'USD', 'test', '2026-10-01Z')",
            [fleet.site_id],
        )
        connection.execute(
            "INSERT INTO facility_factors (site_id, factor, category, source, valid_from) VALUES (%s, 1.3, 2, 'test', '2026-10-01Z')",
            [fleet.site_id],
        )
        connection.execute(
            "INSERT INTO device_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) "
            "VALUES (%s, %s, %s, 0, 0, 1, 0, 630000000)",
            (HOUR_AT + timedelta(minutes=105), fleet.device_id, fleet.epoch_id),
        )
        fleet.changed("device_samples", HOUR_AT, HOUR_AT + 2 * HOUR, connection)
    fleet.job("late", HOUR_AT + timedelta(minutes=40), HOUR_AT + timedelta(minutes=50))
    closer.run(LATER)
    engine = fleet.database.create_engine("owner")
    with engine.begin() as owner:
        name = next(line.name for line in lines_of_hour(owner, HOUR_AT + HOUR) if line.tenant)
        assert name is not None
        open_dispute(owner, name, "it was cancelled", by="ada")
    engine.dispose()
    with fleet.database.connect("worker", autocommit=True) as worker:
        sum_spans(worker, for_s=60)
    return fleet


def look(fleet: SmallFleet, from_at: datetime = NOVEMBER.from_at, to_at: datetime = LATER) -> Verified:
    with fleet.database.connect("worker", autocommit=True) as connection:
        return verify(connection, from_at=from_at, to_at=to_at)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_least_amount_anywhere_in_the_books_is_found(fleet: SmallFleet, data: st.DataObject) -> None:
    table, name, least = data.draw(st.sampled_from(TARGETS))
    sign = data.draw(st.sampled_from("+-"))
    with fleet.admin() as rogue:
        rogue.execute("SET session_replication_role = replica")
        rows = rogue.execute(f"SELECT ctid FROM {table} WHERE {name} IS NOT NULL ORDER BY ctid".encode()).fetchall()
        assert rows, f"no row of {table} has {name}: nothing is tried there"
        (row,) = data.draw(st.sampled_from(rows))
        moved = _add(rogue, table, name, f"{sign} {least}", row)
        if moved is None:
            return  # the store itself refuses it
        found = look(fleet).problems
        assert _add(rogue, table, name, f"{'-' if sign == '+' else '+'} {least}", moved) is not None
    assert found, f"{sign}{least} in {table}.{name} was not found"
    assert look(fleet).problems == ()


def _add(rogue: psycopg.Connection[Any], table: str, name: str, amount: str, row: str) -> str | None:
    """Return where the row is now; null = a constraint forbids what it would be."""
    query = f"UPDATE {table} SET {name} = {name} {amount} WHERE ctid = %s::tid RETURNING ctid"
    try:
        found = rogue.execute(query.encode(), [row]).fetchone()
    except psycopg.errors.CheckViolation:
        return None
    assert found is not None
    return str(found[0])


OTHER: Final = {
    "text": "coalesce({name}, '') || 'x'",
    "integer": "coalesce({name}, 0) + 1",
    "bigint": "coalesce({name}, 0) + 1",
    "smallint": "coalesce({name}, 0) + 1",
    "numeric": "coalesce({name}, 0) + 0.000000001",
    "double precision": "CASE WHEN {name} > 0.5 THEN {name} - 1e-9 ELSE {name} + 1e-9 END",
    "timestamp with time zone": "{name} + interval '1000 hours'",
}
"""By type, what is not what stands there; of what a rule bounds, others that it lets be."""
KEYS: Final = {"site_id": ("77",), "revision": ("77",), "device_id": ("77",)}
BOUNDED: Final = {"source": ("measured", "estimated", "assumed"), "state": ("used", "available", "reserved", "down")}


def test_whatever_is_altered_of_a_usage_hour_that_counts_is_found(fleet: SmallFleet) -> None:
    columns = fleet.rows(
        "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = 'usage_hours'::regclass AND attnum > 0 "
        "AND NOT attisdropped ORDER BY attnum"
    )
    assert len(columns) >= 26
    unseen, refused = [], []
    with fleet.admin() as rogue:
        rogue.execute("SET session_replication_role = replica")
        rows = rogue.execute(
            "SELECT used.site_id, used.hour_at, used.revision, used.device_id, used.holder FROM usage_hours AS used "
            "JOIN ledger_hours USING (site_id, hour_at, revision) WHERE holder LIKE 'job:%' ORDER BY hour_at LIMIT 1"
        ).fetchall()
        (key,) = rows
        assert key[1] == HOUR_AT
        for name, kind in columns:
            old, changed = _altered(rogue, name, kind, key)
            if changed is None:
                refused.append(name)
                continue
            if not look(fleet, HOUR_AT, HOUR_AT + HOUR).problems:
                unseen.append(name)
            rogue.execute(f"UPDATE usage_hours SET {name} = %s WHERE ctid = %s::tid".encode(), [old, changed])
    assert (unseen, refused) == ([], [])
    assert look(fleet).problems == ()


def _altered(rogue: psycopg.Connection[Any], name: str, kind: str, key: Any) -> tuple[Any, str | None]:
    """Return what stood there and where the row is now; None: no other value is let in."""
    where = "(site_id, hour_at, revision, device_id, holder) = (%s, %s, %s, %s, %s)"
    (old,) = rogue.execute(f"SELECT {name} FROM usage_hours WHERE {where}".encode(), key).fetchone() or (None,)
    least = [OTHER[kind].format(name=name), *([f"{name} - 1"] if kind == "bigint" else [])]
    others = [f"'{word}'" for word in BOUNDED.get(name, ()) if word != old] or [*KEYS.get(name, ()), *least]
    for other in others:
        try:
            found = rogue.execute(f"UPDATE usage_hours SET {name} = {other} WHERE {where} RETURNING ctid".encode(), key)
        except psycopg.errors.CheckViolation:
            continue
        row = found.fetchone()
        assert row is not None
        return old, str(row[0])
    return old, None
