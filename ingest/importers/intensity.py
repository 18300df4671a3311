"""Imports carbon intensity of grid zones, g CO2e per kWh. An empty cell is a missing hour: counted, never filled."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Final

import sqlalchemy as sa

from ingest.importers.columns import Field, Source, read
from ingest.importers.errors import OptionError, RowError
from ingest.importers.rates import DEFAULT_STEP, INTERVAL_FIELDS, checked_rate, intervals, need_interval, settle
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import importing
from ingest.store.import_rates import INTENSITY, DatedRows

BASES: Final = ("location", "market", "marginal")
G_PER_KWH: Final = {
    "g/kWh": Decimal(1),
    "gCO2/kWh": Decimal(1),
    "gCO2e/kWh": Decimal(1),
    "kg/MWh": Decimal(1),
    "kgCO2/MWh": Decimal(1),
    "kg/kWh": Decimal(1_000),
}
_DIRECT: Final[dict[str, str | None]] = {
    "gco2e_per_kwh": "g/kWh",
    "intensity_gco2e_per_kwh": "g/kWh",
    "ci_direct_g_per_kwh": "g/kWh",
    "avg_ci": "g/kWh",
    "carbon_intensity": None,
    "intensity": None,
}
_LIFE_CYCLE: Final[dict[str, str | None]] = {
    "gco2e_per_kwh": "g/kWh",
    "ci_lca_g_per_kwh": "g/kWh",
    "carbon_intensity_lca": None,
}
_ZONE = Field("zone", "text", {"zone": None, "grid_zone": None, "region": None, "area": None})
_ESTIMATED = Field("estimated", "flag", {"estimated": None, "is_estimated": None})


@dataclass(frozen=True, slots=True)
class IntensityOptions:
    site: str
    zone: str | None = None
    """Takes only this zone's rows; the zone of all rows where the file has no such column."""
    basis: str = "location"
    life_cycle: bool = False
    """Upstream emissions included: chooses the column where a file has both."""
    step: timedelta = DEFAULT_STEP


def import_intensity(
    conn: sa.Connection,
    source: Source,
    options: IntensityOptions,
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one file of intensities, all its zones or one. Raises ImportFileError."""
    if options.basis not in BASES:
        raise OptionError(f"--basis {options.basis!r} is none of {', '.join(BASES)}")
    names = _LIFE_CYCLE if options.life_cycle else _DIRECT
    field = Field("intensity", "decimal", names, units=G_PER_KWH, required=True)
    scope = f"zone={options.zone or ''} basis={options.basis} life_cycle={options.life_cycle}"
    with importing(conn, source, kind="intensity", site=options.site, scope=scope, dry_run=dry_run) as (
        report,
        site_id,
    ):
        if site_id is None:
            return report
        rows = DatedRows(conn, INTENSITY)
        for chunk in read(source, (*INTERVAL_FIELDS, field, _ZONE, _ESTIMATED), report, progress):
            need_interval(report, default=False)
            if "zone" not in report.columns and options.zone is None:
                raise OptionError(f"{report.file_name} has no column of zones; say which zone it is about: --zone")
            staged = []
            values, zones, estimated = (chunk.values[name] for name in ("intensity", "zone", "estimated"))
            for index, to_us, from_us in intervals(chunk, report, options.step):
                line, zone = chunk.lines[index], zones[index] or options.zone
                if options.zone is not None and zone != options.zone:
                    continue
                try:
                    value = _checked(values[index], zone, report)
                except RowError as error:
                    report.rejections.reject(line, error.reason, error.detail)
                    continue
                staged.append(
                    (line, from_us, to_us, zone, options.basis, options.life_cycle, value, bool(estimated[index]))
                )
            rows.add(staged)
        # Any site may be on the zone.
        settle(report, rows, "intensity", site_id=None)
    return report


def _checked(value: Decimal | None, zone: str | None, report: ImportReport) -> Decimal:
    if zone is None:
        raise RowError("zone is empty")
    if value is None:
        raise RowError("no value, stays missing", zone)
    return checked_rate(value, report)
