"""attribution.open: the open window of 10,000 simulated GPUs, priced anew after ten seconds of readings, three quarters into its hour.

Rows are hot: in PostgreSQL, as ingest leaves them, with the change that announces them. The hour before has its books, as in life, and no
evaluation may look at it. The first two evaluations, which read the whole hour (and the first one closes the hour before), are told apart;
of the following ones, each after one more reading of every board, the median counts.
"""

from __future__ import annotations

import statistics
from datetime import datetime, timedelta
from typing import Final

import polars as pl

from bench.attribution import told
from bench.attribution_files import SealedFleet
from bench.attribution_fleet import HOUR_US, Fleet, FleetSpec
from bench.attribution_rounds import Round, worker
from bench.attribution_stand import announce, furnish
from bench.report import Result
from bench.stand import Stand, stand
from bench.trace_fleet import CADENCE_S, Traces
from bench.trace_stand import shared_folder, size_of
from ingest.store.copy import copy_statement, encode

TARGET_S: Final = 1.0
HOUR: Final = timedelta(hours=1)
INTO_THE_HOUR: Final = timedelta(minutes=45)
MARGIN: Final = timedelta(minutes=10)
CADENCE: Final = timedelta(seconds=CADENCE_S)
WHOLE: Final = 2
"""Looks that read all of the hour: the second keeps its rows for those that follow."""


def run() -> list[Result]:
    spec = FleetSpec.sized(size_of("WATTLEDGER_BENCH_ATTRIBUTION_DEVICES", 10_000), 2)
    fleet = Fleet(spec, Traces.read(shared_folder()))
    rows = pl.concat(fleet.device_rows(spec.start_us + hour * HOUR_US) for hour in (-1, 0, 1))
    evaluations = size_of("WATTLEDGER_BENCH_ATTRIBUTION_ROUNDS", 3)
    now = spec.start_at + HOUR + INTO_THE_HOUR
    with stand() as on:
        furnish(on.database, fleet)
        _arrive(on, rows, spec.start_at - MARGIN, now, whole=True)
        on.server.placement.data.joinpath("segments").mkdir()
        with worker(on, on.server.placement.data / "segments") as closer:
            rounds = [_evaluated(closer.round(now), closed=1)]
            for _ in range(WHOLE - 1 + evaluations):
                _arrive(on, rows, now, now + CADENCE, whole=False)
                now += CADENCE
                rounds.append(_evaluated(closer.round(now)))
    seconds = statistics.median(each.seconds for each in rounds[WHOLE:])
    typical = min(rounds[WHOLE:], key=lambda each: abs(each.seconds - seconds))
    detail = told(fleet, SealedFleet(shared_folder(), (), 0), typical) | {
        "first_s": round(rounds[0].seconds, 2),
        "evaluations": evaluations,
        "hot_rows": rows.filter(pl.col("at") < now).height,
    }
    return [Result("attribution.open", seconds, "s", f"<= {TARGET_S:g} s", seconds <= TARGET_S, detail=detail)]


def _evaluated(done: Round, *, closed: int = 0) -> Round:
    if done.counted != dict.fromkeys(done.counted, 0) | {"provisional": 1, "closed": closed}:
        raise RuntimeError(f"the open hour was due, and {closed} to be closed: {done.counted}")
    return done


def _arrive(on: Stand, rows: pl.DataFrame, from_at: datetime, to_at: datetime, *, whole: bool) -> None:
    """Put rows where ingest puts them, and announce them as it does."""
    new = rows.filter((pl.col("at") >= from_at) & (pl.col("at") < to_at)).sort("at", "device_id")
    with on.database.connect("admin", autocommit=True) as connection:
        if whole:
            connection.execute(
                "SELECT ensure_partitions(%s, %s, NULL)", (from_at.date(), to_at.date() + timedelta(days=2))
            )
        with connection.cursor() as cursor, cursor.copy(copy_statement("device_samples", new.columns)) as copy:
            for part in encode(new):
                copy.write(part)
        if whole:
            connection.execute("VACUUM ANALYZE")
    # The margin before the hour is there to be looked at, and no hour of its own.
    announce(on.database, from_at + MARGIN if whole else from_at, to_at)
