"""The packs of published figures, made from their packages as `make packs` makes them, and taken in by the imports."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from hashlib import sha256
from pathlib import Path

import pytest
import sqlalchemy as sa

from analytics.io.price_book import check
from analytics.io.price_book_store import apply
from ingest.importers.columns import Source
from ingest.importers.intensity import IntensityOptions, import_intensity
from ingest.store.engine import Database

pytestmark = pytest.mark.db

LEFT_OUT = [
    "3 names by several patterns at once",
    "19 prices by the hour that are not exact by the second",
    "8 prices of annotated pages: pages are told of one kind",
    "3 prices of audio_hours in tiers",
    "11 prices of cached audio: what was cached is told across kinds of content",
    "16 prices of cached images: what was cached is told across kinds of content",
    "21 prices of images that are sent: senders tell them as input",
    "3 prices of input_audio_hours in tiers",
    "3 prices of input_document_kpages in tiers",
    "3 prices of messages: no sender tells them",
    "24 prices of service_tier fast",
    "5 prices of speed fast",
    "7 prices of video tokens: no sender tells them",
]
UNPRICED = {"gemma-3", "gemma-3n", "moderation", "grok-voice-latest"}
"""Models that cost nothing, or are sold by what no sender tells."""
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
    # What is left out is left out by name: nothing in tiers, of batches, by the hour of the day or of tools is.
    told = [line.removeprefix("left out: ") for line in made.stderr.splitlines() if line.startswith("left out: ")]
    assert [line for line in told if not line[:3].isalpha()] == LEFT_OUT
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
    assert all(word in told for word in ("CC BY 4.0", "MIT", "2026-11-01", "intensity-yearly.csv", "prices-api.yaml"))
    zones = read(packs / "intensity-yearly.csv")
    assert len({row["zone"] for row in zones}) == 211
    assert all("Our World in Data" in row["source"] for row in zones)
    # A year's own mean is what was published; beyond the year it is carried forward, and says so.
    assert {row["estimated"] for row in zones if row["valid_to"]} == {"false"}
    assert {row["estimated"] for row in zones if not row["valid_to"]} == {"true"}
    book = check((packs / "prices-api.yaml").read_text(encoding="utf-8"))
    assert (len(book.prices), len(book.aliases or ())) == (1_805, 442)
    assert all(price.source.source_url and price.source.published_on for price in book.prices)
    # A name of a model without a price stays unpriced: a later pattern would give it another's.
    known = {(price.provider, price.model) for price in book.prices}
    free = {alias.model for alias in book.aliases or () if (alias.provider, alias.model) not in known}
    assert free == UNPRICED


def test_the_pack_has_tiers_batches_hours_and_hour_long_caches(packs: Path) -> None:
    book = check((packs / "prices-api.yaml").read_text(encoding="utf-8"))
    of = {
        (price.model, price.meter, price.terms.text()): price.amount
        for price in book.prices
        if price.model in {"grok-4.3", "claude-3-5-sonnet", "deepseek-chat"}
    }
    assert of["grok-4.3", "output_tokens", "above_tokens=199999"] == Decimal("0.000005")
    assert of["grok-4.3", "output_tokens", "service_tier=batch above_tokens=199999"] == Decimal("0.000004")
    assert of["claude-3-5-sonnet", "cache_write_tokens", "cache_ttl_s=3600"] == Decimal("0.000006")
    assert of["claude-3-5-sonnet", "tool:web_search", ""] == Decimal("0.01")
    day = "time_zone=UTC from_local=00:30:00 to_local=16:30:00"
    assert of["deepseek-chat", "input_tokens", day] == Decimal("0.00000027")
    assert of["deepseek-chat", "input_tokens", ""] == Decimal("0.000000135")


def test_packs_come_in_whole_and_hours_known_better_go_before_a_year_s_mean(
    conn: sa.Connection, packs: Path, tmp_path: Path
) -> None:
    text = (packs / "prices-api.yaml").read_text(encoding="utf-8")
    with conn.begin():
        applied = apply(conn, check(text), sha256(text.encode()).digest(), "ada")
    assert (applied.prices, applied.names) == (1_805, 442)
    intensity = import_intensity(conn, Source(packs / "intensity-yearly.csv"), IntensityOptions("lab", life_cycle=True))
    assert (intensity.rejections.total, intensity.rows_written) == (0, 422)
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
