"""1,101 MLPerf jobs of 7 tenants, known by (pool, model, count) only: their bill, and the same bill computed apart.

The rate card is a test's: rounded rentals as published, one rate that needs 18 decimals, a change of price in the middle of
the time, and one model without a price.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from ingest.importers.columns import Source
from ingest.importers.jobs import JobOptions, import_jobs
from ingest.importers.prices import PriceOptions, import_prices
from ingest.importers.report import ImportReport
from tests.real.independent import US_PER_HOUR, Line, billed
from tests.real.stand import NOW, Stand

TABLE: Final = Path("data/jobs/mlperf_training_v4_jobs.csv")
FROM_AT: Final = datetime(2023, 4, 1, tzinfo=UTC)
TO_AT: Final = datetime(2024, 6, 1, tzinfo=UTC)
H100: Final = "NVIDIA H100-SXM5-80GB"
PRICE_CHANGE_AT: Final = datetime(2024, 1, 1, tzinfo=UTC)
UNPRICED: Final = "Intel(R) Gaudi(R) 2 AI Accelerator"
RATES: Final = (
    (H100, "2.95", FROM_AT, PRICE_CHANGE_AT),
    (H100, "2.739726027397260274", PRICE_CHANGE_AT, None),  # 24,000 a year over 8,760 hours
    ("NVIDIA H200-SXM5-141GB", "3.5", FROM_AT, None),
    ("NVIDIA L40S", "1.5484", FROM_AT, None),
    ("TPU-v5p", "4.2", FROM_AT, None),
)
"""Model, rate per accelerator-hour, valid from, valid to."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the published table, instants in microseconds."""

    native_id: str
    tenant: str
    model: str
    accelerators: int
    start_us: int
    stop_us: int

    def hours(self) -> Iterator[tuple[int, int]]:
        """Yield (hour_us, held_us) of each hour the job touches."""
        hour_us = self.start_us // US_PER_HOUR * US_PER_HOUR
        while hour_us < self.stop_us:
            yield hour_us, min(self.stop_us, hour_us + US_PER_HOUR) - max(self.start_us, hour_us)
            hour_us += US_PER_HOUR


@dataclass(frozen=True, slots=True)
class Expected:
    """Billionths by tenant and by job, and accelerator-microseconds by tenant, priced or not."""

    tenant_nano: dict[str, int]
    job_nano: dict[str, int]
    tenant_us: dict[str, int]


def read(path: Path) -> list[Job]:
    """Read the published table without the product's reader."""
    with path.open(newline="") as stream:
        return [
            Job(
                row["job_id"],
                row["tenant"],
                row["accel_model"],
                int(row["gpus"]),
                int(Decimal(row["run_start_ms"]) * 1000),
                int(Decimal(row["run_stop_ms"]) * 1000),
            )
            for row in csv.DictReader(stream)
        ]


def set_up(stand: Stand, folder: Path, tenants: Sequence[str]) -> None:
    """Give the deployment its rate card and one tenant per submitter."""
    card = folder / "rates.csv"
    with card.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["provider", "model", "meter", "amount", "unit", "currency", "valid_from", "valid_to"])
        for model, amount, valid_from, valid_to in RATES:
            ends = valid_to.isoformat() if valid_to else ""
            writer.writerow(["owned", model, "accelerator_hour", amount, "hour", "USD", valid_from.isoformat(), ends])
    with stand.importing("import prices") as connection:
        import_prices(connection, Source(card), PriceOptions(site="mlperf"))
    rules = "\n".join(f'  - {{tenant: "mlperf/{tenant}", account: "{tenant}"}}' for tenant in tenants)
    stand.bind(f"bindings:\n{rules}\n")


def load(stand: Stand, table: Path, now: datetime = NOW) -> ImportReport:
    """Import a table of jobs and close what is due."""
    with stand.importing("import jobs") as connection:
        report = import_jobs(connection, Source(table), JobOptions(site="mlperf", cluster="mlperf"), now=now)
    stand.close(now)
    return report


def expected(jobs: Sequence[Job]) -> Expected:
    """Return the bill by exact fractions, from the published table alone: ties of rounding go by the jobs' names."""
    groups: dict[tuple[int, str, datetime], list[Line]] = defaultdict(list)
    rates: dict[tuple[str, datetime], Decimal] = {}
    tenant_us: dict[str, int] = defaultdict(int)
    owner = {job.native_id: job.tenant for job in jobs}
    for job in jobs:
        for hour_us, held_us in job.hours():
            quantity = held_us * job.accelerators
            tenant_us[job.tenant] += quantity
            rate = _rate(job.model, _EPOCH + hour_us * _US)
            if rate is None:
                continue
            rates[job.model, rate[1]] = rate[0]
            groups[hour_us, job.model, rate[1]].append(Line(job.native_id, quantity, (job.native_id,)))
    job_nano: dict[str, int] = defaultdict(int)
    for (_, model, valid_from), lines in groups.items():
        for line, nano in billed(lines, rates[model, valid_from], US_PER_HOUR):
            job_nano[line.owner] += nano
    tenant_nano: dict[str, int] = defaultdict(int)
    for native_id, nano in job_nano.items():
        tenant_nano[owner[native_id]] += nano
    return Expected(dict(tenant_nano), dict(job_nano), dict(tenant_us))


def _rate(model: str, at: datetime) -> tuple[Decimal, datetime] | None:
    for name, amount, valid_from, valid_to in RATES:
        if name == model and valid_from <= at and (valid_to is None or at < valid_to):
            return Decimal(amount), valid_from
    return None


def published(shared: Path) -> list[dict[str, Any]]:
    """Return the table's own rows, for its derived columns."""
    with (shared / TABLE).open(newline="") as stream:
        return list(csv.DictReader(stream))
