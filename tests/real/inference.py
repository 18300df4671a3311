"""20 MLPerf inference captures of one 8 x H200 server at the wall, through import and close.

The captures are one node's log: between them the analyser was off, before and after each labelled window the server idled.
The windows are imported as jobs. The analyser's clock is local and its zone is nowhere stated; UTC is the choice that shifts
nothing, and no energy depends on it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl

from ingest.importers.columns import Source
from ingest.importers.jobs import JobOptions, import_jobs
from ingest.importers.node_power import NodePowerOptions, import_node_power
from ingest.importers.report import ImportReport
from tests.real.independent import J_PER_KWH, energy, intervals
from tests.real.stand import NOW, Stand

FOLDER: Final = Path("data/gpu-power")
TZ: Final = "UTC"
NODE: Final = "h200-maxq"
MJ_PER_KWH: Final = 3_600_000_000
_US: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RATES: Final = ("result_tokens_per_second", "result_completed_tokens_per_second")
_JOBS: Final = """
SELECT j.native_id, sum(u.energy_mj)::bigint, sum(u.held_us)::bigint, sum(u.covered_us)::bigint
FROM current_usage_hours AS u JOIN jobs AS j ON j.id = u.job_id GROUP BY 1
"""
_IDLE: Final = """
SELECT (extract(epoch FROM hour_at) * 1000000)::bigint, energy_mj, covered_us, held_us, state FROM current_usage_hours
WHERE holder = 'idle' AND energy_mj IS NOT NULL ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Capture:
    """One labelled window: books, bill, independent trapezoid, publisher's table."""

    name: str
    kwh: float
    billed_kwh: float
    independent_kwh: float
    table_kwh: float
    bad_readings: int
    """Not positive, inside the window; the table's mean counts them as power."""
    table_good_kwh: float
    """The table's figure with the mean taken over positive readings only."""
    coverage: float
    idle_before_s: float
    idle_before_w: float
    """Time and mean power of the readings before the window, from the readings."""
    j_per_token: float | None
    table_j_per_token: float | None

    @property
    def difference_percent(self) -> float:
        return (self.kwh / self.table_good_kwh - 1) * 100


@dataclass(frozen=True, slots=True)
class IdleHour:
    """Energy and covered time that no window claims, by hour: books and readings."""

    hour_us: int
    kwh: float
    independent_kwh: float
    covered_us: int
    independent_covered_us: int
    held_us: int
    state: str


def truth(shared: Path) -> list[dict[str, Any]]:
    """Return the rows of the published table with ``start`` and ``stop`` as instants."""
    rows = pl.read_csv(shared / FOLDER / "mlperf_infer_windows_truth.csv").to_dicts()
    for row in rows:
        for name, text in (("start", row["power_begin"]), ("stop", row["power_end"])):
            row[name] = datetime.strptime(text, "%m-%d-%Y %H:%M:%S.%f").replace(tzinfo=UTC)
    return rows


def load(stand: Stand, shared: Path, folder: Path) -> tuple[ImportReport, ImportReport]:
    """Import the captures as one node's log and the windows as its jobs, and close. ``folder``: for the job table."""
    table = folder / "windows.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["job_id", "start", "end", "state", "gpus", "workload_kind"])
        for row in truth(shared):
            # The label's month comes first; the importer takes ISO only, since 07-12 could be two days.
            times = (row[name].replace(tzinfo=None).isoformat(" ") for name in ("start", "stop"))
            writer.writerow([row["run_id"], *times, "completed", 8, "inference"])
    with stand.importing("import power") as connection:
        power = import_node_power(
            connection,
            Source(shared / FOLDER / "mlperf_infer_wall_power_1s.parquet", tz=TZ),
            NodePowerOptions(site="lab", node_name=NODE, accelerators=8, model="NVIDIA H200-SXM-141GB"),
            now=NOW,
        )
    with stand.importing("import jobs") as connection:
        options = JobOptions(site="lab", cluster="lab", on_nodes=NODE)
        jobs = import_jobs(connection, Source(table, tz=TZ), options, now=NOW)
    stand.close()
    return power, jobs


def captures(stand: Stand, shared: Path) -> list[Capture]:
    """Return the windows in the order of the table."""
    steps, windows = _steps(shared), _windows(shared)
    inside = {row["window"]: row for row in energy(steps, windows, ["node"]).to_dicts()}
    books = {name: figures for name, *figures in stand.rows(_JOBS)}
    billed = stand.billed_mj(datetime(2024, 7, 1, tzinfo=UTC), datetime(2024, 8, 1, tzinfo=UTC))
    first = {row["run_id"]: _to_us(datetime.fromisoformat(row["first"]).replace(tzinfo=UTC)) for row in truth(shared)}
    before = windows.with_columns(
        pl.col("start_us").alias("stop_us"),
        pl.col("window").replace_strict(first, return_dtype=pl.Int64).alias("start_us"),
    )
    idle = {row["window"]: row for row in energy(steps, before, ["node"]).to_dicts()}
    readings = _readings(shared)
    found = []
    for row in truth(shared):
        name = row["run_id"]
        within = readings.filter(pl.col("at_us").is_between(_to_us(row["start"]), _to_us(row["stop"])))["watts"]
        bad = within.filter(within <= 0)
        good_w = (row["win_avg_w"] * within.len() - float(bad.sum())) / (within.len() - bad.len())
        energy_mj, held_us, covered_us = books[name]
        tokens_per_s = next((row[rate] for rate in _RATES if row["j_per_token"] is not None and row[rate]), None)
        found.append(
            Capture(
                name=name.split("|", 2)[2],
                kwh=energy_mj / MJ_PER_KWH,
                billed_kwh=billed[name] / MJ_PER_KWH,
                independent_kwh=inside[name]["energy_j"] / J_PER_KWH,
                table_kwh=row["win_kwh"],
                bad_readings=bad.len(),
                table_good_kwh=good_w * row["win_s"] / J_PER_KWH,
                coverage=covered_us / held_us,
                idle_before_s=idle[name]["covered_us"] / 1e6,
                idle_before_w=idle[name]["energy_j"] / (idle[name]["covered_us"] / 1e6),
                j_per_token=energy_mj / 1000 / (tokens_per_s * row["win_s"]) if tokens_per_s else None,
                table_j_per_token=row["j_per_token"],
            )
        )
    return found


def idle_hours(stand: Stand, shared: Path) -> list[IdleHour]:
    """Return every hour in which the server idled while it was metered."""
    steps, windows = _steps(shared), _windows(shared)
    touched = sorted({*(steps["from_us"] // 3_600_000_000).to_list(), *(steps["to_us"] // 3_600_000_000).to_list()})
    hours = pl.DataFrame({"window": touched}).select(
        pl.lit(NODE).alias("node"),
        "window",
        (pl.col("window") * 3_600_000_000).alias("start_us"),
        ((pl.col("window") + 1) * 3_600_000_000).alias("stop_us"),
    )
    cut = windows.select("node", pl.col("start_us").alias("w_from"), pl.col("stop_us").alias("w_to")).join(
        hours, on="node"
    )
    held = cut.select(
        "node",
        "window",
        pl.max_horizontal("w_from", "start_us").alias("start_us"),
        pl.min_horizontal("w_to", "stop_us").alias("stop_us"),
    ).filter(pl.col("start_us") < pl.col("stop_us"))
    whole = {row["window"]: row for row in energy(steps, hours, ["node"]).to_dicts()}
    claimed = {row["window"]: row for row in energy(steps, held, ["node"]).to_dicts()}
    nothing = {"energy_j": 0.0, "covered_us": 0}
    found = []
    for hour_us, energy_mj, covered_us, held_us, state in stand.rows(_IDLE):
        hour = hour_us // 3_600_000_000
        job = claimed.get(hour, nothing)
        found.append(
            IdleHour(
                hour_us,
                energy_mj / MJ_PER_KWH,
                (whole[hour]["energy_j"] - job["energy_j"]) / J_PER_KWH,
                covered_us,
                whole[hour]["covered_us"] - job["covered_us"],
                held_us,
                state,
            )
        )
    return found


def _readings(shared: Path) -> pl.DataFrame:
    readings = pl.read_parquet(shared / FOLDER / "mlperf_infer_wall_power_1s.parquet", columns=["ts", "watts"])
    return readings.select(pl.lit(NODE).alias("node"), pl.col("ts").dt.epoch("us").alias("at_us"), "watts")


def _steps(shared: Path) -> pl.DataFrame:
    return intervals(_readings(shared), ["node"])


def _windows(shared: Path) -> pl.DataFrame:
    rows = [(NODE, row["run_id"], _to_us(row["start"]), _to_us(row["stop"])) for row in truth(shared)]
    return pl.DataFrame(rows, schema=["node", "window", "start_us", "stop_us"], orient="row")


def _to_us(at: datetime) -> int:
    return (at - _EPOCH) // _US
