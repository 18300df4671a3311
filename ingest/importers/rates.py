"""What importers of dated facts share: intervals from the columns or from a stated step, exact amounts, the outcome.

A series with a step (hourly prices) says nothing about an hour it has no row for: the hour stays unknown, it is never
filled from its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Final

from ingest.importers.columns import Chunk, Field
from ingest.importers.errors import OptionError, RowError
from ingest.importers.report import ImportReport
from ingest.store.import_rates import DatedRows

MAX_DECIMALS: Final = 18
"""What NUMERIC(38, 18) keeps. Finer digits come from floats in the publisher's pipeline; rounding them is counted."""
_LAST_PLACE: Final = Decimal(1).scaleb(-MAX_DECIMALS)
MAX_WHOLE_DIGITS: Final = 20
DEFAULT_STEP: Final = timedelta(hours=1)

START = Field(
    "start",
    "instant",
    {
        "datetime_utc": None,
        "timestamp": None,
        "datetime": None,
        "start": None,
        "time": None,
        "hour": None,
        "utc": None,
        "start_ms": "ms",
        "start_s": "s",
    },
)
VALID_FROM = Field("valid_from", "instant", {"valid_from": None, "from": None, "effective_from": None})
VALID_TO = Field("valid_to", "instant", {"valid_to": None, "to": None, "until": None, "end": None})
INTERVAL_FIELDS: Final = (START, VALID_FROM, VALID_TO)


def intervals(
    chunk: Chunk, report: ImportReport, step: timedelta, default_from_us: int | None = None
) -> Iterator[tuple[int, int | None, int]]:
    """Yield (index, to_us or None, from_us) of the rows that have an interval; the others go to the report."""
    step_us = step // timedelta(microseconds=1)
    for index, (line, start, valid_from, valid_to) in enumerate(chunk.rows("start", "valid_from", "valid_to")):
        from_us = valid_from if valid_from is not None else start if start is not None else default_from_us
        if from_us is None:
            report.rejections.reject(line, "start is empty")
            continue
        to_us = valid_to
        if to_us is None and valid_from is None and start is not None:
            if from_us % step_us:
                report.rejections.reject(line, "not on the step", f"rows are not {step} apart? say --step")
                continue
            to_us = from_us + step_us
        if to_us is not None and to_us <= from_us:
            report.rejections.reject(line, "ends before it starts")
            continue
        yield index, to_us, from_us


def checked_rate(value: Decimal, report: ImportReport, *, negative: bool = False) -> Decimal:
    """Return the rate as the store keeps it; more than 18 decimals are rounded half-even and counted in the report."""
    if value < 0 and not negative:
        raise RowError("negative", str(value))
    if value and not -MAX_DECIMALS - MAX_WHOLE_DIGITS < value.adjusted() < MAX_WHOLE_DIGITS:
        raise RowError("out of range", str(value))
    with localcontext(prec=80):
        kept = value.quantize(_LAST_PLACE, ROUND_HALF_EVEN)
    if kept != value:
        report.rounded += 1
    return kept


def need_interval(report: ImportReport, *, default: bool) -> None:
    """Raise unless the file, or an option, says from when its rows hold."""
    if not default and not {"start", "valid_from"} & report.columns.keys():
        raise OptionError(
            f"{report.file_name} does not say from when its rows hold: accepted are "
            f"{', '.join((*START.names, *VALID_FROM.names))}; name the column with --map start=… or --map valid_from=…"
        )


def settle(report: ImportReport, rows: DatedRows, table: str, *, site_id: int | None) -> None:
    """Store what was staged and put the outcome into the report."""
    written = rows.store(report.file_name, until_next=True, site_id=site_id)
    for line, at in written.overlapping:
        report.rejections.reject(line, "overlaps an earlier row", at)
    report.written[table] = written.inserted
    report.unchanged = written.unchanged
    if report.rounded:
        report.note(f"{report.rounded} rates had more than {MAX_DECIMALS} decimals and were rounded there")
    if written.superseded:
        report.note(f"{written.superseded} rows known before are superseded")
    if written.first_us is not None and written.last_us is not None:
        report.saw(written.first_us, written.last_us)
