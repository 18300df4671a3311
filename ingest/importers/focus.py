"""Imports cost and usage exports in FOCUS 1.0 to 1.3: charges with every digit, invoice totals, and LLM calls listed one by one.

Token charges are never added to the calls they are of: line items of one call become a report of that call, the last in the
order of record, and a model's total for a day is kept to be compared. Times without a zone are UTC, as FOCUS says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa

from collector.wire import Origin
from ingest.calls import ApiCall, CallSource
from ingest.importers.columns import Source, header_of, read
from ingest.importers.errors import OptionError
from ingest.importers.focus_columns import FIELDS, version_of
from ingest.importers.focus_rows import CallLine, Charge, parse_charges
from ingest.importers.instants import EPOCH
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import check_tenant, importing
from ingest.store.charges import CHARGE_COLUMNS, Charges, StatedTotalError, WrittenCharges
from ingest.store.import_calls import keep_reports

_values: Final = attrgetter(*CHARGE_COLUMNS)
"""The fields of a charge as they are staged; astuple() copies each deeply, which took as long as all else."""


@dataclass(frozen=True, slots=True)
class FocusOptions:
    """What an export does not say of itself."""

    site: str
    tenant: str | None = None
    """Who pays for all of it; otherwise the bindings say, by tag and account."""
    provider: str | None = None
    """How calls name the provider of its token charges, where that is not the file's name in lower case."""
    one_of_several: bool = False
    """A part of one export: nothing of it restates what another part says."""
    whole_periods: bool = False
    """All there is of its billing periods: what earlier files said of them and this one does not counts no longer."""
    stated_totals: Mapping[str, Decimal] = field(default_factory=dict)


def import_focus(
    conn: sa.Connection,
    source: Source,
    options: FocusOptions,
    *,
    now: datetime,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one export. Raises ImportFileError."""
    check_tenant(options.tenant)
    if options.one_of_several and options.whole_periods:
        raise OptionError("a file is either one part of several or the whole of its periods")
    source = replace(source, tz=source.tz or "UTC")
    with importing(conn, source, kind="focus", site=options.site, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        report.note(f"FOCUS {version_of(header_of(source))} by its columns")
        charges = Charges(conn, site_id, report.import_id)
        calls = _Calls(options.provider)
        taken_back = 0
        coming = _Coming(now)
        for chunk in read(source, FIELDS, report, progress):
            rows = list(parse_charges(chunk, report.rejections, options.provider, now))
            charges.add(_values(charge) for charge, _ in rows)
            taken_back += sum(_takes_back(charge) for charge, _ in rows)
            coming.add(charge for charge, _ in rows)
            calls.add(line for _, line in rows if line is not None)
        try:
            written = charges.store(
                tenant=options.tenant,
                one_of_several=options.one_of_several,
                whole_periods=options.whole_periods,
                stated=options.stated_totals,
            )
        except StatedTotalError as error:
            raise OptionError(f"--invoice-total: {error}") from error
        kept = keep_reports(conn, site_id, calls.merged(), CallSource.INVOICE, tenant=options.tenant)
        _tell(report, written)
        if calls.lines:
            known = kept.superseded + kept.repeated
            report.written["api_calls"] = kept.counted
            report.note(
                f"{calls.lines} lines list {len(calls.merged())} LLM calls one by one: {known} of them were known from a better "
                "source and are not counted again"
            )
        if taken_back:
            report.note(
                f"{taken_back} rows correct or credit token charges: they are kept with these, and are in no sum of charges"
            )
        if coming.rows:
            report.note(
                f"{coming.rows} charges are paid ahead ({_amounts(coming.cost)}): their invoices have them now, sums of "
                "charges from when they begin"
            )
        if calls.negative:
            report.note(
                f"{calls.negative} of these calls have more tokens taken back than charged in this file: no report of a call"
            )
        if calls.unclear:
            report.note(f"{calls.unclear} of these calls do not say of which tokens they are: their usage is unknown")
    return report


def _takes_back(charge: Charge) -> bool:
    return charge.covers is not None and (
        charge.is_correction or charge.category != "usage" or (charge.call_tokens or 0) < 0
    )


def _tell(report: ImportReport, written: WrittenCharges) -> None:
    report.written["charges"] = written.inserted
    report.unchanged = written.unchanged
    if written.restated:
        report.note(
            f"{written.restated} charges of earlier files are restated and count no longer ({_amounts(written.restated_cost)}): "
            "if the files are parts of one export, import them with --part"
        )
    if written.missing:
        report.note(
            f"{written.missing} charges of earlier files are not in this one and count no longer "
            f"({_amounts(written.missing_cost)}): it was said to be the whole of its billing periods"
        )
    if report.rejections.total:
        report.note("refused rows are in no total")
    if written.first_us is not None and written.last_us is not None:
        report.saw(written.first_us, written.last_us)


def _amounts(sums: Mapping[str, Decimal]) -> str:
    return ", ".join(f"{amount.normalize():f} {currency}" for currency, amount in sorted(sums.items()))


class _Coming:
    """Charges that begin after the import: rows, and what they amount to by currency."""

    def __init__(self, now: datetime) -> None:
        self._now_us = (now - EPOCH) // timedelta(microseconds=1)
        self.rows = 0
        self.cost: dict[str, Decimal] = {}

    def add(self, charges: Iterable[Charge]) -> None:
        for charge in charges:
            if charge.charge_start_us > self._now_us:
                self.rows += 1
                self.cost[charge.currency] = self.cost.get(charge.currency, Decimal(0)) + charge.billed_cost


class _Calls:
    """Line items of single calls, gathered over the whole file: input and output of one call are rows far apart."""

    def __init__(self, provider: str | None) -> None:
        self._provider = provider
        self._lines: dict[tuple[str, str], list[CallLine]] = {}
        self.lines = 0

    def add(self, lines: Iterable[CallLine]) -> None:
        for line in lines:
            self.lines += 1
            self._lines.setdefault((line.provider, line.call_id), []).append(line)

    @property
    def unclear(self) -> int:
        return sum(any(line.part is None for line in lines) for lines in self._lines.values())

    def merged(self) -> list[ApiCall]:
        """Return one report per call; tokens of a part that several lines name are added up, taken back ones subtracted."""
        return [
            _report(provider, call_id, lines)
            for (provider, call_id), lines in self._lines.items()
            if not _is_negative(lines)
        ]

    @property
    def negative(self) -> int:
        """Calls of which this file takes back more of a part than it charges: what it takes back from is elsewhere."""
        return sum(_is_negative(lines) for lines in self._lines.values())


def _is_negative(lines: list[CallLine]) -> bool:
    parts: dict[str | None, int] = {}
    for line in lines:
        parts[line.part] = parts.get(line.part, 0) + line.tokens
    return min(parts.values()) < 0


def _report(provider: str, call_id: str, lines: list[CallLine]) -> ApiCall:
    known = all(line.part is not None for line in lines)
    parts: dict[str, Any] = {}
    for line in lines:
        if known and line.part is not None:
            parts[line.part] = parts.get(line.part, 0) + line.tokens
    return ApiCall(
        called_at_us=min(line.at_us for line in lines),
        dedupe_key=f"{provider}/{call_id}",
        provider=provider,
        model=min(line.model for line in lines),
        usage_known=known,
        origin=int(Origin.IMPORTED),
        api_key=min((line.api_key for line in lines if line.api_key), default=None),
        response_id=call_id,
        **parts,
    )
