"""query.fleet: energy by tenant in steps of a minute over a fleet's 40 M samples; the peer answers the same, to the millijoule.

Ours is the API's own route, ``GET /v1/tenants/energy``, asked over HTTP as the peer is, in a process of its own as the peer has:
token, row-level security, where figures come from, JSON and all. It reads the minutes by tenant that closing an hour writes with
its books. Beside it the sealed segments, raw. The peer has no such step: it is asked over its samples, as it always is,
``sum by (tenant) (increase(energy_mj[1m]))``, past its result cache. All answers are compared, and one that differs ends the run.
What closing the hours costs is no part of it. Cold: servers restarted and the kernel's pages of their files let go. Warm: the
median of several, in turns.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import polars as pl
import psycopg

from analytics.io.rollups import energy_by_tenant
from analytics.jobs import HourCloser, WorkerSettings
from analytics.minutes import MinutesMaker
from bench import victoria
from bench.api import api
from bench.report import Result
from bench.stand import Stand, stand
from bench.trace_fleet import METRICS
from bench.trace_stand import HOUR, START_AT, TraceStand, furnish, size_of
from ingest.store.samples import samples
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments

TARGET_RATIO: Final = 1.0
RAW_TARGET_MS: Final = 150.0
_ROUNDS: Final = 7
_MINUTE_US: Final = 60_000_000
_QUERY: Final = "sum by (tenant) (increase(energy_mj[1m]))"
Answer = dict[tuple[int, str], int]
"""Millijoules by (start of the minute in Unix seconds, tenant)."""


def run() -> list[Result]:
    devices, hours = size_of("WATTLEDGER_BENCH_QUERY_DEVICES", 1_000), size_of("WATTLEDGER_BENCH_QUERY_HOURS", 4)
    with tempfile.TemporaryDirectory(prefix="wl-bench-query-") as name, stand() as on:
        folder = Path(name)
        loaded = furnish(on.database, devices, hours)
        segments = Segments.at(folder / "segments")
        settings, later = WorkerSettings(code_version="bench"), loaded.end_at + timedelta(hours=2)
        HourCloser(on.database, settings).run(later)
        MinutesMaker(on.database, settings).step(later, within_s=math.inf)
        sealer = Sealer(on.database, segments)
        for number in range(hours):
            sealer.seal(hour_of(1, START_AT + number * HOUR))
        with on.database.connect("admin", autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        with api(on) as client:
            route = _Way(lambda: _asked_of_us(client, loaded))
        function, raw = _function(loaded), _raw(loaded, segments)
        for way in (function, raw):
            if way.answer != route.answer:
                raise RuntimeError("ours disagree: " + _difference(route.answer, way.answer))
        _cool(on, folder / "segments", function, raw)
        on.restart(victoria.forget_pages)
        with api(on) as client:
            route.ask = lambda: _asked_of_us(client, loaded)
            route.chill()
            peer, detail = _peer(loaded, folder / "victoria", route, function, raw)
    detail |= {"samples": loaded.samples, "devices": devices, "hours": hours, "answers": len(route.answer)}
    detail |= {"cold_ms": route.cold_ms, "raw_cold_ms": raw.cold_ms, "in_process_ms": function.warm_ms}
    met = peer is not None and route.warm_ms <= TARGET_RATIO * peer
    return [
        Result("query.fleet", route.warm_ms, "ms", f"<= {TARGET_RATIO:g} x peer", met, peer, detail),
        Result(
            "query.fleet.raw", raw.warm_ms, "ms", f"<= {RAW_TARGET_MS:g} ms", raw.warm_ms <= RAW_TARGET_MS, peer, detail
        ),
    ]


class _Way:
    """One way to the answer, with what it takes."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self.ask = ask
        self.answer = ask()
        self.warm_ms = 0.0
        self.cold_ms: float | None = None

    def chill(self) -> None:
        """Take the time of the first question after whatever was done before."""
        self.cold_ms = round(self.timed_ms(), 2)

    def timed_ms(self) -> float:
        began_s = time.perf_counter()
        self.ask()
        return (time.perf_counter() - began_s) * 1_000


def _in_turns(*ways: _Way) -> None:
    """Take the time of each way warm, one after the other and again: whatever else the machine does meets all of them."""
    times: list[list[float]] = [[] for _ in ways]
    for number in range(_ROUNDS + 1):
        for way, known in zip(ways, times, strict=True):
            taken_ms = way.timed_ms()
            if number:
                known.append(taken_ms)
    for way, known in zip(ways, times, strict=True):
        way.warm_ms = round(statistics.median(known), 2)


def _asked_of_us(client: httpx.Client, loaded: TraceStand) -> Answer:
    asked = {"from": START_AT.isoformat(), "to": loaded.end_at.isoformat()}
    answer = client.get("/v1/tenants/energy", params=asked)
    answer.raise_for_status()
    start_s = int(START_AT.timestamp())
    return {
        (start_s + 60 * number, series["tenant"]): energy_mj
        for series in orjson.loads(answer.content)["tenants"]
        for number, energy_mj in enumerate(series["energy_mj"])
        if energy_mj is not None
    }


def _function(loaded: TraceStand) -> _Way:
    """What the route asks the database, without the route."""
    pool = loaded.database.create_engine("worker", pool_size=1)
    start_s = int(START_AT.timestamp())

    def ask() -> Answer:
        with closing(pool.raw_connection()) as lent:
            connection: psycopg.Connection[Any] = lent.driver_connection  # type: ignore[assignment]
            found = energy_by_tenant(connection, START_AT, loaded.end_at)
        return {
            (start_s + 60 * number, str(series.tenant)): energy_mj
            for series in found
            for number, energy_mj in enumerate(series.energy_mj)
            if energy_mj is not None
        }

    return _Way(ask)


def _raw(loaded: TraceStand, segments: Segments) -> _Way:
    tenants = pl.LazyFrame(
        [(device, loaded.tenant_of(device)) for device in range(1, loaded.devices + 1)],
        schema={"device_id": pl.Int32, "tenant": pl.String},
        orient="row",
    )

    pool = loaded.database.create_engine("worker", pool_size=1)

    def ask() -> Answer:
        with closing(pool.raw_connection()) as lent:
            connection: psycopg.Connection[Any] = lent.driver_connection  # type: ignore[assignment]
            rows = samples(
                loaded.database, START_AT, loaded.end_at + HOUR, ["energy_mj"], segments=segments, connection=connection
            )
        # As a remainder and not by dt.second(), which takes three times as long to find out.
        is_mark = pl.col("at").dt.epoch("us") % _MINUTE_US == 0
        marks = rows.filter(is_mark).select("device_id", "at", "energy_mj")
        is_same = pl.col("device_id") == pl.col("device_id").shift(-1)
        spent = marks.select(
            "device_id", "at", pl.when(is_same).then(pl.col("energy_mj").shift(-1) - pl.col("energy_mj"))
        ).filter(pl.col("at") < loaded.end_at)
        found = spent.join(tenants, on="device_id").group_by("at", "tenant").agg(pl.col("energy_mj").sum()).collect()
        seconds = found["at"].dt.epoch("s").to_list()
        return dict(
            zip(zip(seconds, found["tenant"].to_list(), strict=True), found["energy_mj"].to_list(), strict=True)
        )

    return _Way(ask)


def _cool(on: Stand, segments: Path, *ways: _Way) -> None:
    """Restart the server with none of its files in memory, and ask each way once."""
    for way in ways:
        on.restart(victoria.forget_pages)
        victoria.forget_pages(segments)
        with on.database.connect("admin") as connection:
            connection.execute("SELECT 1")
        way.chill()


def _peer(loaded: TraceStand, folder: Path, *ways: _Way) -> tuple[float | None, dict[str, Any]]:
    """Fill and ask the peer, in turns with our ways; return its warm time, and what else there is to tell."""
    ours = ways[0].answer
    if not victoria.is_installed():
        _in_turns(*ways)
        return None, {"peer": victoria.MISSING}
    labels: Callable[[int], dict[str, str]] = lambda device: {  # noqa: E731
        "gpu": f"GPU-{device}",
        "node": f"node-{(device - 1) // 8 + 1}",
        "tenant": loaded.tenant_of(device),
    }
    with victoria.victoria(folder) as server:
        server.load(loaded.rows, METRICS, labels)
        server.merge()
        warm = _Way(lambda: _asked(server, loaded))
        _in_turns(ways[0], warm, *ways[1:])
    if warm.answer != ours:
        raise RuntimeError("ours and the peer's answers differ: " + _difference(ours, warm.answer))
    victoria.forget_pages(folder)
    with victoria.victoria(folder) as server:
        began_s = time.perf_counter()
        _asked(server, loaded)
        cold_ms = round((time.perf_counter() - began_s) * 1_000, 2)
    return warm.warm_ms, {"peer": "VictoriaMetrics, nocache=1", "peer_cold_ms": cold_ms}


def _asked(server: victoria.Victoria, loaded: TraceStand) -> Answer:
    start_s, end_s = START_AT.timestamp() + 60, loaded.end_at.timestamp()
    return {
        (int(at_s) - 60, series["metric"]["tenant"]): int(float(value))
        for series in server.query_range(_QUERY, start_s, end_s, 60)
        for at_s, value in series["values"]
    }


def _difference(left: Answer, right: Answer) -> str:
    wrong = [(key, left.get(key), right.get(key)) for key in sorted({*left, *right}) if left.get(key) != right.get(key)]
    return f"{len(wrong)} of {len(left)} and {len(right)}, first {wrong[:3]}"
