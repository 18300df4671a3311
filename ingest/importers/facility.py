"""Imports facility factors (facility energy / IT energy, the PUE of a stated category) of a site. Below 1 is refused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

import sqlalchemy as sa

from ingest.importers.columns import Field, Source, read
from ingest.importers.errors import RowError
from ingest.importers.rates import INTERVAL_FIELDS, checked_rate, intervals, need_interval, settle
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import importing
from ingest.store.import_rates import FACILITY_FACTORS, DatedRows

_FACTOR = Field("factor", "decimal", {"factor": None, "pue": None, "facility_factor": None}, required=True)
_CATEGORY = Field("category", "integer", {"category": None, "pue_category": None}, required=True, filled=True)


@dataclass(frozen=True, slots=True)
class FacilityOptions:
    site: str
    step: timedelta = timedelta(days=1)
    """Length of a row that has a start only; rows with valid_from hold until the next."""


def import_facility_factors(
    conn: sa.Connection,
    source: Source,
    options: FacilityOptions,
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import the factors of one site. Raises ImportFileError."""
    with importing(conn, source, kind="facility-factors", site=options.site, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        rows = DatedRows(conn, FACILITY_FACTORS)
        for chunk in read(source, (*INTERVAL_FIELDS, _FACTOR, _CATEGORY), report, progress):
            need_interval(report, default=False)
            staged = []
            for index, to_us, from_us in intervals(chunk, report, options.step):
                line, factor, category = (
                    chunk.lines[index],
                    chunk.values["factor"][index],
                    chunk.values["category"][index],
                )
                try:
                    staged.append((line, from_us, to_us, site_id, _checked(factor, category, report), category))
                except RowError as error:
                    report.rejections.reject(line, error.reason, error.detail)
            rows.add(staged)
        settle(report, rows, "facility_factors", site_id=site_id)
    return report


def _checked(factor: Decimal | None, category: int, report: ImportReport) -> Decimal:
    if factor is None:
        raise RowError("no value, stays missing")
    if not 1 <= factor <= 10 or not 0 <= category <= 3:
        raise RowError("out of range", f"factor {factor} must be 1 to 10, category {category} 0 to 3")
    return checked_rate(factor, report)
