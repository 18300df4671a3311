"""A year of hourly grid carbon with 26 empty hours: they stay missing, in the store and in the books."""

import csv
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest

from ingest.importers.columns import Source
from ingest.importers.intensity import IntensityOptions, import_intensity
from ingest.importers.node_power import NodePowerOptions, import_node_power
from ingest.importers.report import ImportReport
from ingest.store.sites import set_zones
from tests.real.stand import NOW, Stand
from tests.real.training import FOLDER

pytestmark = [pytest.mark.real, pytest.mark.db]
TABLE = Path("data/carbon/us_grid_hourly_2022_eia.csv")
MISSING_AT = datetime(2022, 3, 14, 4, tzinfo=UTC)
"""The last of 22 empty hours of PJM; the hour after it is known."""


@pytest.fixture(scope="module")
def grid(shared: Path, deploy: Callable[[str], Stand]) -> tuple[Stand, ImportReport]:
    stand = deploy("carbon")
    with stand.importing("intensity") as connection:
        report = import_intensity(connection, Source(shared / TABLE), IntensityOptions(site="pjm"))
    return stand, report


def test_26_empty_hours_are_reported_by_line_and_stay_missing(grid: tuple[Stand, ImportReport]) -> None:
    stand, report = grid
    assert report.rows_read == 4 * 8_760
    assert report.rejections.by_reason == {"no value, stays missing": 26}
    assert report.written == {"intensity": 4 * 8_760 - 26}
    hours = dict(stand.rows("SELECT grid_zone, count(*) FROM intensity GROUP BY 1"))
    assert hours == {"CISO": 8_757, "ERCO": 8_760, "NYIS": 8_760, "PJM": 8_737}


def test_energy_of_a_missing_hour_has_no_carbon_and_its_neighbour_has_the_exact_grams(
    grid: tuple[Stand, ImportReport], shared: Path, tmp_path: Path
) -> None:
    # A measured run (bert, 382 s), moved so that its middle is the end of the missing hour.
    stand, _ = grid
    readings = pl.read_parquet(shared / FOLDER / "mlperf_train_h100_node_power_2s.parquet").filter(
        (pl.col("run") == "result_5119-240510190348838227199_06") & (pl.col("meter") == "ac")
    )
    first_ms, last_ms = readings["ts_ms"][0], readings["ts_ms"][-1]
    middle_ms = int((MISSING_AT + timedelta(hours=1)).timestamp() * 1000)
    moved = readings.select(
        pl.lit("n1").alias("node"), (pl.col("ts_ms") - (first_ms + last_ms) // 2 + middle_ms).alias("ts_ms"), "watts"
    )
    moved.write_csv(tmp_path / "run.csv")
    with stand.importing("zone") as connection, connection.begin():
        set_zones(connection, "pjm", grid_zone="PJM")
    with stand.importing("power") as connection:
        options = NodePowerOptions(site="pjm", accelerators=8, model="H100")
        import_node_power(connection, Source(tmp_path / "run.csv"), options, now=NOW)
    stand.close()

    found = {
        hour: (energy_mj, grams)
        for hour, energy_mj, grams in stand.rows(
            "SELECT hour_at, sum(energy_mj)::bigint, sum(carbon_gco2e) FROM current_ledger_lines GROUP BY 1"
        )
    }
    missing, known = found[MISSING_AT], found[MISSING_AT + timedelta(hours=1)]
    assert missing[0] > 900_000_000  # a quarter of a kWh, of which nobody knows the carbon
    assert missing[1] is None
    with (shared / TABLE).open(newline="") as stream:
        (text,) = (
            row["avg_CI"]
            for row in csv.DictReader(stream)
            if row["zone"] == "PJM" and row["timestamp"] == "2022-03-14 05:00:00+00:00"
        )
    nano = round(Fraction(known[0], 3_600_000_000) * Fraction(Decimal(text)) * 10**9)
    assert known[1] == Decimal(nano).scaleb(-9)
