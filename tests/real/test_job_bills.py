"""1,101 jobs of 7 tenants by time and count alone: the bill to the last decimal, and a job that had not ended yet."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from analytics.io.statements import Bill, BillRow, GroupBy
from ingest.importers.report import ImportReport
from tests.real.independent import money
from tests.real.job_bills import FROM_AT, TABLE, TO_AT, UNPRICED, Expected, Job, expected, load, published, read, set_up
from tests.real.stand import Stand

pytestmark = [pytest.mark.real, pytest.mark.db]


@dataclass(frozen=True)
class Billed:
    stand: Stand
    jobs: list[Job]
    report: ImportReport
    expected: Expected
    by_tenant: Bill
    by_job: Bill


@pytest.fixture(scope="module")
def billed(shared: Path, deploy: Callable[[str], Stand], tmp_path_factory: pytest.TempPathFactory) -> Billed:
    stand = deploy("jobs")
    jobs = read(shared / TABLE)
    set_up(stand, tmp_path_factory.mktemp("jobs"), sorted({job.tenant for job in jobs}))
    report = load(stand, shared / TABLE)
    return Billed(
        stand,
        jobs,
        report,
        expected(jobs),
        stand.bill(FROM_AT, TO_AT),
        stand.bill(FROM_AT, TO_AT, GroupBy.JOB),
    )


def _owned(row: BillRow) -> Decimal:
    return row.figures.cost_by_category.get("gpu_owned", Decimal(0))


def test_every_job_is_taken_aborted_and_overlapping_ones_too(billed: Billed) -> None:
    assert billed.report.written == {"jobs": 1_101, "allocations": 1_101}
    assert billed.report.rejections.total == 0
    states = dict(billed.stand.rows("SELECT state, count(*) FROM jobs GROUP BY 1"))
    assert states == {"completed": 1_092, "failed": 9}


def test_each_tenant_is_billed_the_independent_sum_to_the_last_decimal(billed: Billed) -> None:
    rows = {row.tenant: row for row in billed.by_tenant.rows}
    assert set(rows) == {f"mlperf/{tenant}" for tenant in billed.expected.tenant_us}
    assert len(rows) == 7
    for tenant in billed.expected.tenant_us:
        assert _owned(rows[f"mlperf/{tenant}"]) == money(billed.expected.tenant_nano.get(tenant, 0)), tenant
    assert billed.by_tenant.total.cost == money(sum(billed.expected.tenant_nano.values()))
    assert billed.by_tenant.mapped_share == 1


def test_each_job_is_billed_the_independent_sum_to_the_last_decimal(billed: Billed) -> None:
    ours = {row.details["native_id"]: _owned(row) for row in billed.by_job.rows}
    assert len(ours) == 1_101
    for job in billed.jobs:
        assert ours[job.native_id] == money(billed.expected.job_nano.get(job.native_id, 0)), job


def test_accelerator_time_is_the_tables(billed: Billed, shared: Path) -> None:
    rows = {row.tenant: row for row in billed.by_tenant.rows}
    for tenant, held_us in billed.expected.tenant_us.items():
        assert rows[f"mlperf/{tenant}"].figures.held_us == held_us
    # The table's own column, rounded per row: 27,074 accelerator-hours.
    hours = sum(float(row["accel_hours"]) for row in published(shared))
    assert sum(billed.expected.tenant_us.values()) / 3.6e9 == pytest.approx(hours, rel=1e-6)
    assert round(hours) == 27_074


def test_a_model_without_a_price_is_unpriced_and_not_free(billed: Billed) -> None:
    unpriced = [job for job in billed.jobs if job.model == UNPRICED]
    lines = sum(len(list(job.hours())) for job in unpriced)
    assert lines > 0
    assert billed.by_tenant.total.unpriced_lines == lines
    (intel,) = (row for row in billed.by_tenant.rows if row.tenant == "mlperf/Intel-HabanaLabs")
    assert intel.figures.cost == Decimal(0)
    assert intel.figures.unpriced_lines == lines
    assert intel.figures.held_us > 0


def test_a_pool_claims_no_energy_and_no_coverage_and_has_no_idle_time(billed: Billed) -> None:
    assert billed.by_tenant.total.energy_mj is None
    assert billed.by_tenant.total.coverage == Decimal(0)
    holders = billed.stand.rows("SELECT count(*) FROM current_usage_hours WHERE job_id IS NULL")
    assert holders == [(0,)]
    kinds = billed.stand.rows("SELECT DISTINCT kind FROM devices")
    assert kinds == [("pool",)]


def test_only_hours_with_jobs_are_in_the_books(billed: Billed) -> None:
    hours = {hour_us // 3_600_000_000 for job in billed.jobs for hour_us, _ in job.hours()}
    closed = billed.stand.rows("SELECT (extract(epoch FROM hour_at) / 3600)::int FROM ledger_hours")
    assert {hour for (hour,) in closed} == hours
    assert billed.stand.due() == 0


def test_a_job_without_an_end_runs_until_a_later_table_ends_it(
    shared: Path, deploy: Callable[[str], Stand], tmp_path: Path
) -> None:
    # The longest job of all (3.4 hours), first exported 90 minutes before it ended.
    with (shared / TABLE).open(newline="") as stream:
        row = max(csv.DictReader(stream), key=lambda each: float(each["duration_s"]))
    (job,) = (each for each in read(shared / TABLE) if each.native_id == row["job_id"])
    exported_at, later_at = _at(job.stop_us) - timedelta(minutes=90), _at(job.stop_us) + timedelta(minutes=45)
    stand = deploy("open_ended")
    set_up(stand, tmp_path, [job.tenant])

    load(stand, _write(tmp_path / "running.csv", {**row, "run_stop_ms": "", "status": "running"}), exported_at)
    assert stand.bill(FROM_AT, TO_AT).total.held_us == _held_us(job, exported_at)
    # No sample announces the hours of a job in a pool: that nobody ended it is enough.
    stand.rows("DELETE FROM changes RETURNING id")
    stand.close(later_at)
    assert stand.bill(FROM_AT, TO_AT).total.held_us == _held_us(job, later_at)

    day_after = later_at + timedelta(days=1)
    load(stand, _write(tmp_path / "ended.csv", row), day_after)
    bill = stand.bill(FROM_AT, TO_AT)
    assert bill.total.held_us == (job.stop_us - job.start_us) * job.accelerators
    assert bill.total.cost == money(sum(expected([job]).tenant_nano.values()))


def _held_us(job: Job, until: datetime) -> int:
    return (until - _at(job.start_us)) // timedelta(microseconds=1) * job.accelerators


def _at(instant_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant_us)


def _write(path: Path, row: dict[str, str]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(row))
        writer.writeheader()
        writer.writerow(row)
    return path
