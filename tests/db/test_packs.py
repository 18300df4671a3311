"""The packs of published figures, made from their packages as `make packs` makes them, and taken in by the imports."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.importers.columns import Source
from ingest.importers.intensity import IntensityOptions, import_intensity
from ingest.importers.prices import PriceOptions, import_prices
from ingest.store.engine import Database

pytestmark = pytest.mark.db

PACKS = Path(__file__).resolve().parents[2] / "deploy/packs"


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    made = subprocess.run(
        [PACKS / "build", folder],
        env=os.environ | {"PYTHON": sys.executable},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "left out: 32 prices in tiers" in made.stderr
    return folder


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def rows(conn: sa.Connection, query: str) -> list[tuple[object, ...]]:
    with conn.begin():
        return [tuple(row) for row in conn.execute(sa.text(query))]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_packs_are_published_figures_with_source_date_and_licence(packs: Path) -> None:
    told = (packs / "README.md").read_text(encoding="utf-8")
    pins = (PACKS / "requirements.txt").read_text(encoding="utf-8")
    for name in ("codecarbon", "genai-prices"):
        (pin,) = [line for line in pins.splitlines() if line.startswith(f"{name}==")]
        assert pin.replace("==", " ") in told
    assert all(word in told for word in ("CC BY 4.0", "MIT", "2026-11-01", "intensity-yearly.csv", "prices-api.csv"))
    zones = read(packs / "intensity-yearly.csv")
    assert len({row["zone"] for row in zones}) == 211
    assert all("Our World in Data" in row["source"] for row in zones)
    # A year's own mean is what was published; beyond the year it is carried forward, and says so.
    assert {row["estimated"] for row in zones if row["valid_to"]} == {"false"}
    assert {row["estimated"] for row in zones if not row["valid_to"]} == {"true"}
    prices = read(packs / "prices-api.csv")
    keys = {(row["provider"], row["model"], row["meter"], row["valid_from"]) for row in prices}
    assert len(keys) == len(prices) > 500
    assert all(row["valid_from"] and Decimal(row["amount"]) >= 0 for row in prices)


def test_packs_come_in_whole_and_hours_known_better_go_before_a_year_s_mean(
    conn: sa.Connection, packs: Path, tmp_path: Path
) -> None:
    prices = import_prices(conn, Source(packs / "prices-api.csv"), PriceOptions("lab"))
    intensity = import_intensity(conn, Source(packs / "intensity-yearly.csv"), IntensityOptions("lab", life_cycle=True))
    assert (prices.rejections.total, intensity.rejections.total) == (0, 0)
    assert (prices.rows_written, intensity.rows_written) == (743, 422)
    known = (
        "SELECT gco2e_per_kwh::float8, estimated, valid_from::text, valid_to::text FROM intensity WHERE grid_zone = 'DE' "
        "AND superseded_at IS NULL AND valid_from < '2026-01-02' ORDER BY valid_from"
    )
    assert rows(conn, known) == [
        (380.95, False, "2023-01-01 00:00:00+00", "2024-01-01 00:00:00+00"),
        (380.95, True, "2024-01-01 00:00:00+00", None),
    ]
    hour = "zone,datetime_utc,gco2e_per_kwh\nDE,2026-01-01T00:00,312.4\n"
    (tmp_path / "hour.csv").write_text(hour, encoding="utf-8")
    import_intensity(conn, Source(tmp_path / "hour.csv"), IntensityOptions("lab", life_cycle=True))
    assert rows(conn, known)[1:] == [
        (380.95, True, "2024-01-01 00:00:00+00", "2026-01-01 00:00:00+00"),
        (312.4, False, "2026-01-01 00:00:00+00", "2026-01-01 01:00:00+00"),
        (380.95, True, "2026-01-01 01:00:00+00", None),
    ]
