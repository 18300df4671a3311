"""Compares what ours has booked with what DuckDB made of the same files and references: they are the same, or the run ends.

Each hour's content hash (usage hours and lines, every column) and the head of its chain of lines are equal bytes; findings are equal
row by row, what could not be known by reason. Where a hash differs the first rows that do are told.
"""

from __future__ import annotations

import json
from typing import Any, Final

import polars as pl

from bench.attribution_peer import PeerRun
from bench.stand import Stand
from ingest.store.arrow import ArrowSession, command_session

_RUNS: Final = (
    "SELECT hour_at, content_sha256, head_sha256, quality::text AS quality FROM ledger_runs ORDER BY hour_at, id"
)
_ROWS: Final = "SELECT {columns} FROM {table} WHERE hour_at >= '{first}' AND hour_at <= '{last}'"
_FINDINGS: Final = """
SELECT dedupe_key, kind, device_id, job_id, tenant_id, start_at, end_at, evidence::text AS evidence, waste_energy_mj, avoidable_cash::text AS avoidable_cash,
       capacity_freed_us, currency, confidence, origin FROM findings WHERE withdrawn_at IS NULL
"""
_WRITTEN: Final = """
SELECT 'usage_hours' AS name, (SELECT count(*) FROM current_usage_hours) AS ours, (SELECT count(*) FROM peer.usage_hours) AS theirs
UNION ALL SELECT 'ledger_lines', (SELECT count(*) FROM current_ledger_lines), (SELECT count(*) FROM peer.ledger_lines)
UNION ALL SELECT 'findings', (SELECT count(*) FROM findings WHERE withdrawn_at IS NULL), (SELECT count(*) FROM peer.findings)
"""
_KEYS: Final = {
    "current_usage_hours": ["hour_at", "device_id", "holder"],
    "current_ledger_lines": ["hour_at", "line_key"],
}


def compare(on: Stand, peer: PeerRun) -> dict[str, int]:
    """Return how many rows of what were the same; raises RuntimeError where any is not."""
    with command_session(on.database, "admin") as session:
        runs, written = session.fetch(_RUNS), session.fetch(_WRITTEN)
        hashes = ["hour_at", "content_sha256", "head_sha256"]
        if not runs.select(hashes).equals(peer.hashes.select(hashes).cast(dict(runs.select(hashes).schema))):  # type: ignore[arg-type]
            raise RuntimeError(f"the books differ: {_first_difference(session, peer)}")
        findings = session.fetch(_FINDINGS)
    theirs = peer.findings.with_columns(pl.col("avoidable_cash").cast(pl.String)).select(findings.columns)
    _same(
        "findings",
        findings.with_columns(_as_json("evidence")),
        theirs.with_columns(_as_json("evidence")),
        ["dedupe_key"],
    )
    _same("qualities", _told(runs), _counted(peer.quality), ["hour_at", "reason"])
    if not written["ours"].equals(written["theirs"]):
        raise RuntimeError(f"other rows were written: {written.rows()}")
    return {f"same_{name}": count for name, count, _ in written.iter_rows()} | {"same_hours": runs.height}


def _first_difference(session: ArrowSession, peer: PeerRun) -> str:
    """Return what differs in the first table that does."""
    for (table, key), theirs in zip(_KEYS.items(), (peer.usage, peer.lines), strict=True):
        amounts = [name for name, kind in theirs.schema.items() if kind.is_decimal()]
        columns = ", ".join(f"{name}::text AS {name}" if name in amounts else name for name in theirs.columns)
        first, last = theirs.select(
            pl.col("hour_at").min().cast(pl.String), pl.col("hour_at").max().cast(pl.String).alias("last")
        ).row(0)
        ours = session.fetch(_ROWS.format(columns=columns, table=table, first=first, last=last))
        try:
            _same(table, ours, theirs.with_columns(pl.col(amounts).cast(pl.String)), key)
        except RuntimeError as difference:
            return str(difference)
    return "in the order of rows, or in their types"


def _told(runs: pl.DataFrame) -> pl.DataFrame:
    """Return hour_at, reason, devices, time_us of what runs say of their quality."""
    rows = [
        (hour_at, reason, counted["devices"], counted["time_us"])
        for hour_at, text in runs.select("hour_at", "quality").iter_rows()
        for reason, counted in json.loads(text).items()
    ]
    return pl.DataFrame(rows, schema=_QUALITY, orient="row")


_INSTANT: Final = pl.Datetime("us", "UTC")
_QUALITY: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "hour_at": _INSTANT,
    "reason": pl.String,
    "devices": pl.Int64,
    "time_us": pl.Int64,
}


def _counted(quality: pl.DataFrame) -> pl.DataFrame:
    hour_at = (pl.col("hour").cast(pl.Int64) * 3_600_000_000).cast(_INSTANT).alias("hour_at")
    counted = quality.group_by(hour_at, "reason").agg(pl.len().cast(pl.Int64).alias("devices"), pl.col("time_us").sum())
    return counted.select(list(_QUALITY))


def _as_json(column: str) -> pl.Expr:
    """PostgreSQL keeps JSON in an order of its own."""
    return pl.col(column).map_elements(_sorted, return_dtype=pl.String).alias(column)


def _sorted(text: str) -> str:
    value: Any = json.loads(text)
    return json.dumps(value, sort_keys=True)


def _same(what: str, ours: pl.DataFrame, theirs: pl.DataFrame, key: list[str]) -> None:
    both = ours.join(theirs, on=key, how="full", coalesce=True, nulls_equal=True, suffix="_theirs")
    values = [name for name in ours.columns if name not in key]
    wrong = both.filter(pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_theirs")) for name in values))
    if wrong.height or ours.height != theirs.height or both.height != ours.height:
        first = wrong.row(0, named=True) if wrong.height else f"{ours.height} and {theirs.height} rows"
        raise RuntimeError(f"{wrong.height} {what} differ, first: {first}")
