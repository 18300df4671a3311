"""The same books in DuckDB, by SQL that is published (``bench/duckdb/``), with the same cores and 2 GB; and the comparison of both.

What is resolved beforehand on either side of a database, who held what by which evidence and which tenant pays for which job, is
given to DuckDB and not timed, though ours resolves it inside its time. What DuckDB leaves out the SQL says.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import duckdb
import polars as pl

from analytics.inputs import References, Window
from analytics.io.load import load_batch
from analytics.model.dated import Dated
from analytics.model.holding import resolve
from analytics.policy import Policy
from analytics.units import MJ_PER_KWH, NANO, US_PER_HOUR
from bench.attribution_files import SealedFleet
from bench.attribution_fleet import Fleet
from bench.attribution_stand import SITE_ID
from bench.stand import Stand
from collector.wire import Stream
from ingest.store.engine import Database

SQL: Final = Path(__file__).parent / "duckdb"
THREADS: Final = 2
MEMORY: Final = "2GB"
BOARDS_AT_ONCE: Final = 1_000
"""Of a day: about a gigabyte is sorted at once. Fewer read more row groups twice, more spill."""
_PART: Final = """
CREATE OR REPLACE TABLE part (hour_us BIGINT, device_id INTEGER, holder VARCHAR, job_id BIGINT, holder_key VARCHAR, energy_mj BIGINT,
    kept_mj BIGINT, held_us BIGINT, covered_us BIGINT, active_us BIGINT, idle_us BIGINT, throttled_us BIGINT)
"""


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One run of the peer: ``seconds`` from the first read to its own tables written."""

    seconds: float
    cpu_s: float
    parts: pl.DataFrame
    lines: pl.DataFrame


class Peer:
    """DuckDB with what it is given; each run starts from nothing."""

    def __init__(self, on: Stand, fleet: Fleet, files: SealedFleet) -> None:
        """``on``: furnished, before any hour is sealed there: so nothing but references is read."""
        self._fleet = fleet
        self._files = [str(path) for path in files.paths(Stream.DEVICE).values()]
        self._given = _given(on.database, fleet)

    def run(self) -> PeerRun:
        spec = self._fleet.spec
        with (
            tempfile.TemporaryDirectory(prefix="wl-bench-duckdb-") as folder,
            duckdb.connect(f"{folder}/books.duckdb") as base,
        ):
            base.execute(
                f"SET threads = {THREADS}; SET memory_limit = '{MEMORY}'; SET temp_directory = '{folder}/spill'"
            )
            base.execute("SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
            for name, frame in self._given.items():
                base.from_arrow(frame.to_arrow()).create(name)
            base.execute(_PART)
            began_s, cpu_s = time.perf_counter(), time.process_time()
            books = (SQL / "attribution.sql").read_text()
            gaps = Policy().gaps
            known = {
                "$files": repr(self._files),
                "$gap_us": gaps.max_gap_us,
                "$reach_us": gaps.reach_us,
                "$refresh_us": gaps.refresh_us,
            }
            for first in range(1, spec.devices + 1, BOARDS_AT_ONCE):
                lot = {"$first": first, "$last": min(first + BOARDS_AT_ONCE - 1, spec.devices)}
                base.execute(_worded(books, known | lot))
            base.execute((SQL / "attribution_lines.sql").read_text())
            seconds, spent_s = time.perf_counter() - began_s, time.process_time() - cpu_s
            parts, lines = base.sql("FROM part").pl(), base.sql("FROM line").pl()
        return PeerRun(seconds, spent_s, parts, lines)


def _worded(sql: str, words: dict[str, object]) -> str:
    for word, value in words.items():
        sql = sql.replace(word, str(value))
    return sql


def _given(database: Database, fleet: Fleet) -> dict[str, pl.DataFrame]:
    """Return what DuckDB is given: references of the whole time, resolved by the product."""
    spec, policy = fleet.spec, Policy()
    window = Window(spec.start_at, spec.end_at, spec.end_at)
    with database.connect("worker", autocommit=True) as connection:
        inputs = load_batch(database, connection, SITE_ID, window, policy, "USD").inputs
    usage = inputs.usage
    held = resolve(usage.holds, usage.placements, usage.devices, usage.epochs, policy).held
    boards = usage.devices.filter(pl.col("device_id") <= spec.devices)
    hours = [spec.start_at + timedelta(hours=number) for number in range(spec.hours)]
    tenant = pl.col("account").str.strip_prefix("t").cast(pl.Int32).alias("tenant_id")
    return {
        "held": held,
        "board": boards.select("device_id", "accelerators", "model"),
        "hour": pl.DataFrame({"hour_us": [int(at.timestamp()) * 1_000_000 for at in hours]}),
        "job_tenant": fleet.jobs.select("job_id", tenant),
        "rate": pl.DataFrame(list(_rates(inputs.references, hours)), schema=_RATES, orient="row"),
    }


_RATES: Final = {"hour_us": pl.Int64, "category": pl.String, "num": pl.Int64, "den": pl.Int64}


def _rates(known: References, hours: list[datetime]) -> Iterator[tuple[int, str, int, int]]:
    """Yield of each hour and category the billionths of one unit, as a fraction."""
    prices, tariffs = Dated(known.prices, "price_id"), Dated(known.tariffs, "tariff_id")
    factors, grid = Dated(known.facility_factors, "factor_id"), Dated(known.intensity, "intensity_id")
    for at in hours:
        factor = Fraction(_in_force(factors, at)["factor"])
        of_unit = {
            "gpu_owned": Fraction(_in_force(prices, at)["amount"]) / US_PER_HOUR,
            "electricity": Fraction(_in_force(tariffs, at)["amount_per_kwh"]) * factor / MJ_PER_KWH,
            "carbon": Fraction(_in_force(grid, at)["gco2e_per_kwh"]) * factor / MJ_PER_KWH,
        }
        for category, amount in of_unit.items():
            nano = amount * NANO
            yield int(at.timestamp()) * 1_000_000, category, nano.numerator, nano.denominator


def _in_force(facts: Dated, at: datetime) -> dict[str, Any]:
    row = facts.at(at)
    if row is None:
        raise RuntimeError(f"nothing is in force at {at}")
    return row
