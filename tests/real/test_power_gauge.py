"""An A100's own gauge beside an in-line meter: what the books say of an energy that only a gauge saw holds what was metered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tests.fakes.site import Site, device, reading

pytestmark = pytest.mark.real
UK_SUMMER_TIME = timedelta(hours=1)


def _read(path: Path) -> list[tuple[float, float]]:
    """Return (Unix second, W) of nvidia-smi's log, whose times are local."""
    found = []
    for line in path.read_text().splitlines()[1:]:
        cells = [cell.strip() for cell in line.split(",")]
        local = datetime.strptime(cells[0], "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC)
        found.append(((local - UK_SUMMER_TIME).timestamp(), float(cells[5])))
    return found


@pytest.mark.parametrize(("capture", "seen_percent"), [("A100_TR", 94.2), ("A100_5050", 99.2)])
def test_the_meters_energy_lies_inside_the_bounds_of_the_gauges(
    shared: Path, capture: str, seen_percent: float
) -> None:
    folder = shared / "data" / "nvidia-smi"
    metered = pl.read_parquet(folder / f"{capture}_external_meter.parquet").with_columns(pl.col("ts_ms") / 1000)
    began, ended = metered["ts_ms"].min(), metered["ts_ms"].max()
    assert isinstance(began, float)
    assert isinstance(ended, float)
    log = [(at, watts) for at, watts in _read(folder / f"{capture}_nvidia-smi.csv") if began <= at <= ended]
    own = metered.filter(pl.col("ts_ms").is_between(log[0][0], log[-1][0]))
    trapezoid = (pl.col("total_w") + pl.col("total_w").shift()) / 2 * pl.col("ts_ms").diff()
    meter_j = own.select(trapezoid.sum()).item()

    site = Site(
        readings=[reading(1, at - log[0][0], None, watts) for at, watts in log],
        devices=[device(model="NVIDIA A100-PCIE-40GB")],
    )
    row = site.usage()["idle"]

    assert row["source"] == "estimated"
    assert row["energy_mj"] / 1000 / meter_j * 100 == pytest.approx(seen_percent, abs=0.3)
    assert row["energy_low_mj"] / 1000 <= meter_j <= row["energy_high_mj"] / 1000
    # 7 % either way, and no wider.
    assert row["energy_high_mj"] / row["energy_mj"] == pytest.approx(1.07, abs=1e-6)
