"""`wattledger findings`: throttling and idle waste with their price, from the books of this installation's database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli.access import transaction
from wattledger.cli.bill import Instant
from wattledger.cli.output import Format, Shown, decimal_cell, format_option, percent_cell, print_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

_MJ_PER_KWH: Final = 3_600_000_000
_US_PER_HOUR: Final = 3_600_000_000
_PAGE: Final = 1_000


@click.command(
    epilog="""\b
Examples:
  wattledger findings                                        the last day, dearest first
  wattledger findings --from 2026-11-01 --kind idle_waste --top 50
  wattledger findings --tenant acme/research --format csv > waste.csv
"""
)
@click.option("--from", "from_at", type=Instant(), help="Start. Default: 24 hours before the end.")
@click.option("--to", "to_at", type=Instant(), help="End, exclusive. Default: now.")
@click.option("--kind", help="Only this kind: throttling, idle_waste, overlapping_allocations, …")
@click.option("--tenant", help="Only this tenant path and what is below it.")
@click.option("--top", type=click.IntRange(1, 100_000), default=20, show_default=True, help="At most so many.")
@format_option
@click.pass_context
def findings(
    ctx: click.Context,
    from_at: datetime | None,
    to_at: datetime | None,
    kind: str | None,
    tenant: str | None,
    top: int,
    format_: Format,
) -> None:
    """Show throttling and idle waste with their price, dearest first. Avoidable cost is a part of the bill, not on top."""
    end = to_at or datetime.now(UTC)
    start = from_at or end - timedelta(days=1)
    if start >= end:
        raise click.UsageError(f"the period ends at {end.isoformat()}, not after it begins at {start.isoformat()}")
    found = _read(ctx, start, end, kind)
    rows = [_facts(row) for row in found if tenant is None or _is_below(row.tenant, tenant)]
    rows.sort(key=lambda row: (-(row["avoidable_cash"] or Decimal(0)), row["start_at"], row["id"]))
    shown = (
        Shown("kind", "finding"),
        Shown("tenant", "tenant"),
        Shown("job", "job"),
        Shown("device", "device", lambda uuid: f"…{uuid[-12:]}", leaves=5),
        Shown("start_at", "start (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M}"),
        Shown("duration_s", "minutes", lambda duration_s: f"{duration_s / 60:,.0f}", numeric=True, leaves=4),
        Shown("avoidable_cash", "avoidable cost", decimal_cell(2), numeric=True),
        Shown("currency", "in"),
        Shown("waste_energy_kwh", "kWh", decimal_cell(3), numeric=True, leaves=3),
        Shown("confidence_ratio", "confidence", percent_cell, numeric=True, leaves=2),
        Shown("origin", "origin", leaves=1),
    )
    note = f"{len(rows)} findings from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
    notes = [f"{note}; the dearest {top} are shown" if len(rows) > top else note]
    # Said whatever columns have room: nobody may take simulated waste for real.
    notes += [
        f"{origin}: not real hardware, no real money" for origin in {row["origin"] for row in rows} & {"simulated"}
    ]
    print_rows(rows[:top], shown, format_, notes=notes)


def _read(ctx: click.Context, from_at: datetime, to_at: datetime, kind: str | None) -> Sequence[Any]:
    """Read page by page, so that a month of findings needs no month of memory in one answer."""
    from analytics.io import reads

    rows: list[Any] = []
    with transaction(ctx, "worker") as connection:
        while True:
            before_id = rows[-1].id if rows else None
            page = reads.findings(connection, from_at=from_at, to_at=to_at, kind=kind, before_id=before_id, limit=_PAGE)
            rows += page
            if len(page) < _PAGE:
                return rows


def _facts(row: Any) -> dict[str, Any]:
    from collector.wire import Origin

    return {
        "id": row.id,
        "kind": row.kind,
        "site": row.site,
        "tenant": row.tenant or "unmapped",
        "job": None if row.native_id is None else f"{row.cluster}/{row.native_id}",
        "device": row.device,
        "start_at": row.start_at.astimezone(UTC),
        "end_at": row.end_at.astimezone(UTC),
        "duration_s": (row.end_at - row.start_at).total_seconds(),
        "avoidable_cash": row.avoidable_cash,
        "currency": row.currency,
        "waste_energy_kwh": None if row.waste_energy_mj is None else Decimal(row.waste_energy_mj) / _MJ_PER_KWH,
        "capacity_freed_accelerator_hours": None
        if row.capacity_freed_us is None
        else Decimal(row.capacity_freed_us) / _US_PER_HOUR,
        "confidence_ratio": row.confidence,
        "origin": Origin(row.origin).name.lower(),
    }


def _is_below(path: str | None, tenant: str) -> bool:
    return path is not None and (path == tenant or path.startswith(f"{tenant}/"))
