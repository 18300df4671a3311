"""Books do not depend on how hours are batched: a day in one pass and its hours one by one, through the real loader.

Boards that move, leave and return, are cut anew and go out of service; holdings by every kind of evidence, by name and by count, with
and without an end, some of them years old; what ended those leaves the reach between one hour and the next.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg
import pytest

from analytics.inputs import Window
from analytics.io.load import load_batch
from analytics.io.references import Known
from analytics.pipeline import HourResult, close_hours, content_hash
from analytics.policy import Policy
from ingest.store.engine import Database

pytestmark = pytest.mark.db
START: Final = datetime(2026, 11, 1, 8, tzinfo=UTC)
HOURS: Final = 3
HOUR: Final = timedelta(hours=1)
EVIDENCE: Final = ("cgroup", "cgroup", "hook", "job-mapping", "environ")
SECONDS: Final = HOURS * 3600
REACH: Final = 48 * 3600


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Fleet:
    """One site of two nodes, drawn from a seed."""

    def __init__(self, connection: psycopg.Connection[Any], seed: int) -> None:
        self._connection, self._draw = connection, random.Random(seed)
        self._name = f"s{seed}"
        self.site_id = self._one("INSERT INTO sites (name) VALUES (%s) RETURNING id", self._name)
        self._nodes, self._epochs = [], []
        for number in (1, 2):
            node = self._one(
                "INSERT INTO nodes (site_id, name) VALUES (%s, %s) RETURNING id", self.site_id, f"n{number}"
            )
            self._nodes.append(node)
            self._epochs.append(self._epoch(node, "boot 1", START - 24 * HOUR))
        # The second node boots again inside the window.
        self._epoch(self._nodes[1], "boot 2", at(self._draw.randrange(SECONDS)))
        self._boards()
        for number in range(1, 15):
            self._job(number)
        self._of_long_ago()

    def _boards(self) -> None:
        draw, (first, second) = self._draw, self._nodes
        self._plain = self._board("plain", [(first, None, None, True)])
        moves = draw.randrange(SECONDS)
        self._moved = self._board("moved", [(first, None, moves, True), (second, moves, None, True)])
        self._returned = self._board("returned", [(first, None, 1200, True), (first, 2400, None, True)])
        stops = draw.randrange(SECONDS)
        self._stopped = self._board("stopped", [(second, None, stops, True), (second, stops, None, False)])
        self._cut = self._board("cut", [(second, None, None, True)])
        self._instances = [
            self._board(f"{ratio}g", [(second, start, end, True)], parent=self._cut, slice_ratio=ratio / 7)
            for ratio, start, end in ((1, None, 1800), (3, 1800, None))
        ]

    def _of_long_ago(self) -> None:
        """Open holdings from before the reach, on boards that stood elsewhere then, left, were taken over, or went on."""
        draw, (first, second) = self._draw, self._nodes
        old = -400 * 86400
        moved, left, repaired, freed = (draw.randrange(SECONDS) - REACH for _ in range(4))
        boards: dict[str, list[tuple[int, int | None, int | None, bool]]] = {
            "moved long ago": [(first, old, moved, True), (second, moved, None, True)],
            "away for a day": [(first, old, left, True), (first, left + 86400, None, True)],
            "repaired": [(second, old, repaired, False), (second, repaired, None, True)],
            "taken over": [(first, old, None, True)],
            "untouched": [(first, old, None, True)],
        }
        for number, (name, stays) in enumerate(boards.items(), 100):
            device = self._board(name, stays)
            start = draw.randrange(old, -REACH - 7200)
            self._hold(self._job_row(number, start, None), device, start, None, "cgroup")
            if name == "taken over":
                for other, evidence, share in ((200, "environ", None), (201, "cgroup", 0.5), (202, "cgroup", None)):
                    taken = freed - draw.randrange(1, 7200)
                    self._hold(self._job_row(other, taken, freed), device, taken, freed, evidence, share)

    def _board(
        self,
        name: str,
        stays: list[tuple[int, int | None, int | None, bool]],
        parent: int | None = None,
        slice_ratio: float = 1.0,
    ) -> int:
        device = self._one(
            "INSERT INTO devices (uuid, vendor, model, kind, parent_device_id, slice_ratio) "
            "VALUES (%s, 'nvidia', 'H100', %s, %s, %s) RETURNING id",
            f"{self._name}/{name}",
            "gpu" if parent is None else "mig",
            parent,
            round(slice_ratio, 6),
        )
        for node, start, end, in_service in stays:
            first, last = (-7200 if start is None else start), (SECONDS + 7200 if end is None else end)
            self._connection.execute(
                "INSERT INTO placements (device_id, node_id, valid_from, valid_to, in_service) VALUES (%s, %s, %s, %s, %s)",
                (device, node, at(first), None if end is None else at(last), in_service),
            )
            if parent is None:
                self._samples(device, self._epochs[self._nodes.index(node)], max(first, -7200), last)
        return device

    def _samples(self, device: int, epoch: int, first: int, last: int) -> None:
        watts = self._draw.choice([70, 300, 700])
        self._connection.execute(
            "INSERT INTO device_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj, "
            "power_average_mw, gpu_util_percent, clocks_event_reasons) "
            "SELECT %s + n * interval '30 s', %s, %s, 0, 30000000, 30, 0, n::bigint * 30 * %s * 1000, %s * 1000, %s, 0 "
            "FROM generate_series(0, %s) AS n WHERE n %% 97 < 90",
            (at(first), device, epoch, watts, watts, self._draw.choice([0, 50]), (last - first) // 30),
        )

    def _job(self, number: int) -> None:
        draw = self._draw
        start = draw.randrange(-3600, SECONDS)
        end = start + draw.choice([3, 300, 1800, 7200])
        told = draw.random() < 0.7
        ended = told or draw.random() < 0.5
        job = self._job_row(number, start, end if ended else None)
        devices = [self._plain, self._moved, self._returned, self._stopped, *self._instances, None]
        for device in draw.sample(devices, draw.randint(1, 3)):
            by_name = device is not None
            self._hold(
                job,
                device,
                start,
                end if told else None,
                draw.choice(EVIDENCE) if by_name else "sacct",
                draw.choice([None, None, 0.5, 0.333333]) if by_name else None,
            )

    def _job_row(self, number: int, start: int, end: int | None) -> int:
        return self._one(
            "INSERT INTO jobs (site_id, cluster, native_id, started_at, ended_at, origin, source) "
            "VALUES (%s, %s, %s, %s, %s, 1, 'agent') RETURNING id",
            self.site_id,
            self._name,
            str(number),
            at(start),
            None if end is None else at(end),
        )

    def _hold(
        self, job: int, device: int | None, start: int, end: int | None, evidence: str, share: float | None = None
    ) -> None:
        """Insert what was told as it began: of a device, or of some accelerators of some node."""
        self._connection.execute(
            "INSERT INTO allocations (job_id, site_id, device_id, node_id, accelerators, share_ratio, start_at, end_at, evidence, "
            "recorded_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                job,
                self.site_id,
                device,
                self._draw.choice(self._nodes) if device is None else None,
                self._draw.randint(1, 4) if device is None else 1,
                share,
                at(start),
                None if end is None else at(end),
                evidence,
                at(start),
            ),
        )

    def _epoch(self, node: int, boot: str, seen_at: datetime) -> int:
        return self._one(
            "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version, first_seen_at) "
            "VALUES (%s, %s, 0, 1, 1, 30000000, 'test', %s) RETURNING id",
            node,
            boot,
            seen_at,
        )

    def _one(self, query: str, *parameters: Any) -> int:
        row = self._connection.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return int(row[0])


def closed(database: Database, site_id: int, first: int, count: int) -> HourResult:
    window = Window(at(first * 3600), at((first + count) * 3600), at((first + count) * 3600))
    as_of = Known(datetime.now(UTC) + HOUR)
    with database.connect("worker", autocommit=True) as connection:
        loaded = load_batch(database, connection, site_id, window, Policy(), "USD", as_of=as_of)
    return close_hours(loaded.inputs, Policy())


@pytest.mark.parametrize("seed", range(4))
def test_a_window_and_its_hours_have_the_same_books(db: Database, seed: int) -> None:
    with db.connect("admin") as connection:
        connection.execute("SELECT ensure_partitions(%s, %s, NULL)", (at(-86400).date(), at(86400).date()))
        site_id = Fleet(connection, seed).site_id
    together = closed(db, site_id, 0, HOURS)
    alone = [closed(db, site_id, hour, 1) for hour in range(HOURS)]
    for name, key in (
        ("usage", ["hour_at", "device_id", "holder"]),
        ("quality", ["hour_at", "device_id", "reason"]),
        ("findings", ["dedupe_key"]),
        ("lines", ["hour_at", "line_key"]),
    ):
        apart = pl.concat([getattr(result, name) for result in alone]).sort(key)
        whole = getattr(together, name).sort(key)
        assert apart.rows() == whole.rows(), name
        assert content_hash(apart) == content_hash(whole), name
    assert {"overlapping_allocations", "evidence_conflict", "allocation_without_end"} & set(together.findings["kind"])
