"""attribution.day: a day of 10,000 simulated GPUs, read every 10 s, from sealed segments to a closed and balanced ledger.

86.4 M board readings, 4,000 jobs of 200 tenants, with shared boards, silences, counters begun anew and jobs known by count. The
product's worker closes 24 hours as it does in production: loads, computes, checks, hashes and commits to PostgreSQL. The time is
from its first read to its last commit. DuckDB makes the same books of the same files and tables by published SQL (``bench/duckdb/``) on
the same cores and commits them to the same PostgreSQL; the bytes of both are compared, and their energy with the readings by a query that
shares nothing with either. The best of three rounds of each, in turns.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from bench.attribution_answers import compare
from bench.attribution_files import SealedFleet, sealed
from bench.attribution_fleet import ROWS_PER_HOUR, Fleet, FleetSpec
from bench.attribution_peer import Peer, PeerRun
from bench.attribution_rounds import Round, check, worker
from bench.attribution_stand import announce, furnish, seal
from bench.report import Result
from bench.stand import stand
from bench.trace_fleet import Traces
from bench.trace_stand import shared_folder, size_of
from collector.wire import Stream

TARGET_S: Final = 30.0
TARGET_GIB: Final = 2.0
TARGET_RATIO: Final = 1.5
_GIB: Final = 1 << 30


def fleet_of_the_bench() -> tuple[Fleet, SealedFleet]:
    """Return the fleet with its files; both sizes may be set smaller for a quick look."""
    devices, hours = (
        size_of("WATTLEDGER_BENCH_ATTRIBUTION_DEVICES", 10_000),
        size_of("WATTLEDGER_BENCH_ATTRIBUTION_HOURS", 24),
    )
    fleet = Fleet(FleetSpec.sized(devices, hours), Traces.read(shared_folder()))
    return fleet, sealed(fleet)


def run() -> list[Result]:
    fleet, files = fleet_of_the_bench()
    spec = fleet.spec
    rounds = [_both(fleet, files) for _ in range(size_of("WATTLEDGER_BENCH_ATTRIBUTION_ROUNDS", 3))]
    ours = min((mine for mine, _, _ in rounds), key=lambda each: each.seconds)
    theirs = min((peer for _, peer, _ in rounds), key=lambda each: each.seconds)
    ratio, gib = theirs.seconds / ours.seconds, max(mine.peak_bytes for mine, _, _ in rounds) / _GIB
    detail = told(fleet, files, ours) | rounds[0][2]
    detail |= {"duckdb_s": round(theirs.seconds, 2), "duckdb_cpu_s": round(theirs.cpu_s, 2), "rounds": len(rounds)}
    detail |= {f"duckdb_{name}_s": round(seconds, 2) for name, seconds in theirs.parts_s.items()}
    detail |= {"duckdb_postgres_cpu_s": round(theirs.postgres_cpu_s, 2)}
    detail |= {"device_rows": spec.devices * spec.hours * ROWS_PER_HOUR}
    return [
        Result(
            "attribution.day", ours.seconds, "s", f"<= {TARGET_S:g} s", ours.seconds <= TARGET_S, theirs.seconds, detail
        ),
        Result("attribution.day.memory", gib, "GiB", f"<= {TARGET_GIB:g} GiB", gib <= TARGET_GIB, detail=detail),
        Result(
            "attribution.day.speedup", ratio, "x DuckDB", f">= {TARGET_RATIO:g} x", ratio >= TARGET_RATIO, detail=detail
        ),
    ]


def _both(fleet: Fleet, files: SealedFleet) -> tuple[Round, PeerRun, dict[str, int]]:
    """Have the peer and then ours make the books of the same day; raises RuntimeError where they are not the same."""
    spec = fleet.spec
    with stand() as on:
        furnish(on.database, fleet)
        peer = Peer(on, fleet, files).run()
        seal(on.database, files)
        announce(on.database, spec.start_at, spec.end_at)
        with worker(on, files.root) as closer:
            done = closer.round(spec.end_at + timedelta(hours=2))
        if done.counted["closed"] != spec.hours:
            raise RuntimeError(f"{spec.hours} hours were due: {done.counted}")
        compared = compare(on, peer)
        return done, peer, compared | {"energy_mj": check(on, files, spec.start_at, spec.end_at)}


def told(fleet: Fleet, files: SealedFleet, done: Round) -> dict[str, object]:
    """Return what a result says of the fleet and of the processors' time."""
    spec = fleet.spec
    return {
        "origin": "simulated fleet, power from published traces",
        "devices": spec.devices,
        "hours": spec.hours,
        "jobs": fleet.jobs.height,
        "tenants": spec.tenants,
        "sealed_rows": sum(file.rows for file in files.files if file.stream == Stream.DEVICE.value),
        "worker_cpu_s": round(done.cpu_s, 2),
        "postgres_cpu_s": round(done.postgres_cpu_s, 2),
        "worker_peak_gib": round(done.peak_bytes / _GIB, 3),
    }
