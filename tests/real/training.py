"""77 MLPerf training runs on H100 nodes with wall (ac) and supply (dc) meters, through import and close."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
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
MODEL: Final = "NVIDIA H100-SXM5-80GB"
METERS: Final = ("ac", "dc")
MJ_PER_KWH: Final = 3_600_000_000
_BOOKS: Final = """
SELECT split_part(d.uuid, '/', 2) AS run, split_part(d.uuid, '/', 3) AS node, sum(u.energy_mj)::bigint AS device_mj,
       coalesce(sum(u.energy_mj) FILTER (WHERE u.job_id IS NOT NULL), 0)::bigint AS job_mj,
       coalesce(sum(u.held_us) FILTER (WHERE u.job_id IS NOT NULL), 0)::bigint AS held_us,
       coalesce(sum(u.covered_us) FILTER (WHERE u.job_id IS NOT NULL), 0)::bigint AS covered_us
FROM current_usage_hours AS u JOIN devices AS d ON d.id = u.device_id GROUP BY 1, 2 ORDER BY 1, 2
"""
_REFUSED: Final = """
SELECT split_part(n.name, '/', 1), r.reason, sum(r.rows)::bigint FROM rejections AS r JOIN nodes AS n ON n.id = r.node_id
GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Published:
    """The data set as published, read once."""

    readings: pl.DataFrame
    """bench, run, meter, node, at_us, watts."""
    truth: dict[tuple[str, str], dict[str, Any]]
    """(run, meter) -> row of the publisher's table."""
    windows: pl.DataFrame
    """run, start_us, stop_us."""

    @classmethod
    def read(cls, shared: Path) -> Published:
        folder = shared / FOLDER
        readings = pl.read_parquet(folder / "mlperf_train_h100_node_power_2s.parquet").with_columns(
            pl.col("bench", "run", "meter").cast(pl.String), (pl.col("ts_ms") * 1000).alias("at_us")
        )
        truth = pl.read_csv(folder / "mlperf_train_h100_energy_truth.csv").to_dicts()
        jobs = pl.read_csv(folder / "mlperf_train_h100_jobs.csv")
        windows = jobs.select(
            "run",
            (pl.col("run_start_ms") * 1000).alias("start_us"),
            (pl.col("run_stop_ms").cast(pl.Int64) * 1000).alias("stop_us"),
        )
        return cls(readings, {(row["run"], row["meter"]): row for row in truth}, windows)


@dataclass(frozen=True, slots=True)
class Run:
    """One run by one meter: what the books say, what an independent trapezoid says, what was published."""

    bench: str
    run: str
    nodes: int
    device_kwh: float
    device_independent_kwh: float
    job_kwh: float
    billed_kwh: float
    job_independent_kwh: float
    coverage: float
    independent_coverage: float
    table_kwh: float
    published_kwh: float | None
    not_positive: int
    """Readings of both meters that were refused as not positive, and below, as repeated."""
    repeated: int
    bad_of_meter: int
    """Not positive ones of this meter, by the publisher's table."""

    @property
    def published_difference_percent(self) -> float | None:
        return None if self.published_kwh is None else (self.billed_kwh / self.published_kwh - 1) * 100


@dataclass(frozen=True, slots=True)
class Imported:
    power: ImportReport
    jobs: ImportReport
    hours_closed: int


def load(stand: Stand, shared: Path, meter: str) -> Imported:
    """Import meters and job windows, one meter billing, and close every hour. Node numbers are local to a run."""
    folder = shared / FOLDER
    with stand.importing("import power") as connection:
        power = import_node_power(
            connection,
            Source(folder / "mlperf_train_h100_node_power_2s.parquet"),
            NodePowerOptions(site="smc", bills=meter, node_name="{run}/{node}", accelerators=8, model=MODEL),
            now=NOW,
        )
    with stand.importing("import jobs") as connection:
        jobs = import_jobs(
            connection,
            Source(folder / "mlperf_train_h100_jobs.csv"),
            JobOptions(site="smc", cluster="smc", on_nodes="{job_id}/*"),
            now=NOW,
        )
    return Imported(power, jobs, stand.close().closed)


def runs(stand: Stand, published: Published, meter: str) -> list[Run]:
    """Return the 77 runs as the books have them, beside the independent figures, by bench and run."""
    billed = stand.billed_mj(datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC))
    refused: dict[tuple[str, str], int] = {(run, reason): rows for run, reason, rows in stand.rows(_REFUSED)}
    books = pl.DataFrame(
        stand.rows(_BOOKS), schema=["run", "node", "device_mj", "job_mj", "held_us", "covered_us"], orient="row"
    )
    by_run = {row["run"]: row for row in books.group_by("run").agg(pl.exclude("node").sum()).to_dicts()}
    mine = published.readings.filter(pl.col("meter") == meter)
    steps = intervals(mine, ["run", "node"])
    windows = published.windows.with_columns(pl.col("run").alias("window"))
    always = windows.with_columns(start_us=pl.lit(0, pl.Int64), stop_us=pl.lit(2**60, pl.Int64))
    whole = {row["window"]: row for row in energy(steps, always, ["run"]).to_dicts()}
    inside = {row["window"]: row for row in energy(steps, windows, ["run"]).to_dicts()}
    length = {run: stop_us - start_us for run, start_us, stop_us in published.windows.iter_rows()}
    found = []
    for run, its_meter in sorted(published.truth, key=lambda key: (published.truth[key]["bench"], key)):
        if its_meter != meter:
            continue
        row, ours = published.truth[run, meter], by_run[run]
        found.append(
            Run(
                bench=row["bench"],
                run=run,
                nodes=row["nodes"],
                device_kwh=ours["device_mj"] / MJ_PER_KWH,
                device_independent_kwh=whole[run]["energy_j"] / J_PER_KWH,
                job_kwh=ours["job_mj"] / MJ_PER_KWH,
                billed_kwh=billed[run] / MJ_PER_KWH,
                job_independent_kwh=inside[run]["energy_j"] / J_PER_KWH,
                coverage=ours["covered_us"] / ours["held_us"],
                independent_coverage=inside[run]["covered_us"] / (length[run] * row["nodes"]),
                table_kwh=row["kwh_trapezoid"],
                published_kwh=row["kwh_published"],
                not_positive=refused.get((run, "power not positive"), 0),
                repeated=refused.get((run, "repeated timestamp"), 0),
                bad_of_meter=row["nonpositive_samples"],
            )
        )
    return found
