"""A simulated site: drawn once from its spec, with its truth, and looked at as often and in whatever way one likes."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import numpy as np
import polars as pl

from analytics.frames import INSTANT, DeviceReadings
from analytics.units import PPM, from_us, to_us
from collector.wire import Feed, Origin
from tests.fakes.site import HOUR, LONG_AGO
from tests.sim import frames
from tests.sim.fate import Fate, draw_fate
from tests.sim.instruments import (
    activity_ppm,
    counter_mj,
    gauge_mw,
    heard,
    looks,
    node_meter_mj,
    refreshed,
    written,
)
from tests.sim.jobs import HOUR_US, SimHold, put_to_work
from tests.sim.observed import Observed
from tests.sim.spec import SLICES, Sampling, WorldSpec
from tests.sim.steps import Ints, in_steps
from tests.sim.truth import Rectangles, Truth

START_US: Final = to_us(HOUR)
NODE_METER: Final = 9_000
"""Device ids of node meters: this + the node."""
_DCGM: Final = Sampling(cadence_s=30, exact_at_events=False)
_EPOCHS_OF_A_NODE: Final = 1_000
_DCGM_EPOCHS: Final = 500
_BMC_EPOCH: Final = 999


class World:
    """One spec's site. Same spec, same bytes, of the truth and of every way to look."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec
        rectangles = Rectangles()
        self.holds, self.works = put_to_work(spec, rectangles)
        self.truth = Truth(rectangles)
        self.fate: Fate = draw_fate(spec)
        self.until_us = spec.hours * HOUR_US
        draw = np.random.default_rng([spec.seed, 6])
        self.offset_mj = {board: int(draw.integers(0, 10**12)) for board in self.truth.boards}
        """What each counter showed when the world began: a board has a life before it."""

    def counter_mj(self, board: int, at_us: Ints) -> Ints:
        """Return what a board's counter shows at each instant (µs from the first hour)."""
        return counter_mj(self.truth.board(board), self.fate.resets(board), at_us, self.offset_mj[board])

    def epoch_id(self, board: int, at_us: int, feed: Feed = Feed.NATIVE) -> int:
        """Return the epoch of a board's readings at an instant: its node's driver load, as that feed numbers them."""
        stay = next(stay for stay in self.fate.stays[board] if stay.covers(at_us))
        loads = sum(at <= at_us for at in self.fate.reloads[stay.node])
        return stay.node * _EPOCHS_OF_A_NODE + (_DCGM_EPOCHS if feed is Feed.DCGM else 0) + loads

    def sample(self, how: Sampling) -> Observed:
        """Return what instruments and schedulers tell of this world."""
        readings = [self._read(board, how, Feed.NATIVE) for board in self.truth.boards]
        if self.spec.weather.two_feeds:
            readings += [self._read(board, _DCGM, Feed.DCGM) for board in self.truth.boards]
        if self.spec.weather.node_meter_gain is not None:
            readings += [self._read_node(node, how, self.spec.weather.node_meter_gain) for node in self.fate.reloads]
        table = pl.concat(readings)
        shares, activity = self._activity(how)
        return Observed(
            hours=self.spec.hours,
            readings=DeviceReadings.validate(table),
            epochs=self._epochs(table["epoch_id"].unique().sort().to_list()),
            devices=self._devices(),
            placements=self._placements(),
            anchors=self._anchors() if how.hook_anchors else pl.DataFrame(schema=frames.ANCHORS),
            holds=self._holds(),
            shares=shares,
            activity=activity,
            native_ids=self._native_ids(),
        )

    def _read(self, board: int, how: Sampling, feed: Feed) -> pl.DataFrame:
        draw = np.random.default_rng([self.spec.seed, 7, board, feed])
        events = [at for hold in self.holds if hold.board == board for at in (hold.start_us, hold.end_us)]
        found = looks(self.until_us, how, events, draw)
        there = heard(found.at_us, board, self.fate) if feed is Feed.NATIVE else np.ones(len(found.at_us), bool)
        at, gauges = found.at_us[there], ~found.exact[there]
        power = self.truth.board(board)
        shown = refreshed(at, how.refresh_s, self.fate.resets(board))
        mean = gauge_mw(power, how.gauge, shown)
        blind = how.gauge != "counter"
        if blind:
            at, mean, gauges = at[gauges], mean[gauges], gauges[gauges]
        counter = None if blind else self.counter_mj(board, shown)
        busy = power.power_mw(at - 1) > self.truth.floor_mw[board]
        said = written(at, self.spec.weather.clock_jitter_us, draw)
        return _readings(
            len(at),
            device_id=pl.repeat(board, len(at), dtype=pl.Int32, eager=True),
            at=_instants(said),
            epoch_id=pl.Series([self.epoch_id(board, int(t), feed) for t in at], dtype=pl.Int32),
            energy_mj=None if counter is None else pl.Series(counter),
            power_mw=_where(gauges, mean),
            gpu_util_percent=_where(gauges, np.where(busy, 90, 0)),
        )

    def _read_node(self, node: int, how: Sampling, gain: float) -> pl.DataFrame:
        draw = np.random.default_rng([self.spec.seed, 8, node])
        at = looks(self.until_us, how, [], draw).at_us
        boards = [
            (self.truth.board(board), stay.start_us, stay.end_us)
            for board, stays in self.fate.stays.items()
            for stay in stays
            if stay.node == node
        ]
        wrap_mj = self.spec.weather.wrap_mj
        shown = node_meter_mj(boards, in_steps(self.spec.overhead_w), round(gain * PPM), wrap_mj, at)
        return _readings(
            len(at),
            device_id=pl.repeat(NODE_METER + node, len(at), dtype=pl.Int32, eager=True),
            at=_instants(at),
            epoch_id=pl.repeat(node * _EPOCHS_OF_A_NODE + _BMC_EPOCH, len(at), dtype=pl.Int32, eager=True),
            energy_mj=pl.Series(shown),
        )

    def _epochs(self, ids: list[int]) -> list[dict[str, Any]]:
        found = []
        for epoch_id in ids:
            node, load = divmod(epoch_id, _EPOCHS_OF_A_NODE)
            bmc, dcgm = load == _BMC_EPOCH, _DCGM_EPOCHS <= load < _BMC_EPOCH
            found.append(
                {
                    "epoch_id": epoch_id,
                    "node_id": node,
                    "boot_id": "bmc" if bmc else "boot",
                    # Each feed numbers driver loads by itself.
                    "driver_epoch": 1 if bmc else load % _DCGM_EPOCHS + (7 if dcgm else 1),
                    "feed": int(Feed.DCGM if dcgm else Feed.NATIVE),
                    "origin": int(Origin.SIMULATED),
                    "cadence_us": 30_000_000 if dcgm else 10_000_000,
                    "first_seen_at": LONG_AGO,
                }
            )
        return found

    def _devices(self) -> list[dict[str, Any]]:
        usual = {"accelerators": 1, "slice_ppm": PPM, "origin": int(Origin.SIMULATED)}
        boards: list[dict[str, Any]] = [
            {
                "device_id": board,
                "uuid": f"GPU-{board:05}",
                "node_id": stays[-1].node,
                "model": "SIM-700",
                "kind": "gpu",
                "idle_power_mw": self.truth.floor_mw[board],
                **usual,
            }
            for board, stays in self.fate.stays.items()
        ]
        boards += self._instances()
        if self.spec.weather.node_meter_gain is None:
            return boards
        return boards + [
            {
                "device_id": NODE_METER + node,
                "uuid": f"chassis:sim/{node}",
                "node_id": node,
                "model": "chassis",
                "kind": "node",
                "idle_power_mw": None,
                **usual,
            }
            for node in self.fate.reloads
        ]

    def _placements(self) -> pl.DataFrame:
        rows = [
            {
                "device_id": board,
                "node_id": stay.node,
                "in_service": True,
                "valid_from": LONG_AGO if stay.start_us is None else _instant(stay.start_us),
                "valid_to": None if stay.end_us is None else _instant(stay.end_us),
            }
            for board, stays in self.fate.stays.items()
            for stay in stays
        ]
        return pl.DataFrame(rows, schema=frames.PLACEMENTS)

    def _instances(self) -> list[dict[str, Any]]:
        found = {hold.instance: hold for hold in self.holds if hold.instance is not None}
        return [
            {
                "device_id": number,
                "uuid": f"MIG-{number:05}",
                "node_id": self.fate.stays[hold.board][-1].node,
                "model": "SIM-700",
                "kind": "mig",
                "parent_device_id": hold.board,
                "slice_ppm": hold.weight_num * PPM // SLICES,
                "accelerators": 1,
                "origin": int(Origin.SIMULATED),
            }
            for number, hold in sorted(found.items())
        ]

    def _anchors(self) -> pl.DataFrame:
        rows = []
        for board in self.truth.boards:
            events = sorted({at for hold in self.holds if hold.board == board for at in (hold.start_us, hold.end_us)})
            counter = self.counter_mj(board, np.array(events, dtype=np.int64))
            rows += [(board, _instant(at), int(mj)) for at, mj in zip(events, counter, strict=True)]
        return pl.DataFrame(rows, schema=frames.ANCHORS, orient="row")

    def _native_ids(self) -> dict[int, str]:
        """Name the jobs; one that was requeued has the name of the job before it on its board."""
        draw = np.random.default_rng([self.spec.seed, 9])
        names: dict[int, str] = {}
        last: dict[int, str] = {}
        starts, runs = _starts(self.holds), set[tuple[str, int]]()
        for hold in self.holds:
            if hold.job not in names:
                again = bool(draw.random() < self.spec.weather.requeue_rate)
                name = last.get(hold.board, str(hold.job)) if again else str(hold.job)
                # No scheduler starts two runs of one id at one time.
                names[hold.job] = str(hold.job) if (name, starts[hold.job]) in runs else name
                runs.add((names[hold.job], starts[hold.job]))
            last[hold.board] = names[hold.job]
        return names

    def _holds(self) -> pl.DataFrame:
        """What sources tell of who held what: lost ends, and thin evidence of another job beside the good."""
        weather = self.spec.weather
        draw = np.random.default_rng([self.spec.seed, 10])
        names, starts = self._native_ids(), _starts(self.holds)
        overlaps = np.random.default_rng([self.spec.seed, 12]).random(len(self.holds)) < weather.overlap_rate
        counted = self._counted()
        rows = []
        for number, hold in enumerate(self.holds):
            lost, known, thin = draw.random(3)
            if hold.job in counted and number and self.holds[number - 1].job == hold.job:
                continue  # its first row tells of all its boards
            row = {
                "allocation_id": number + 1,
                "job_id": hold.job,
                "job_key": f"sim|{names[hold.job]}|{starts[hold.job]}",
                "device_id": hold.instance or hold.board,
                "accelerators": 1,
                "share_ppm": None
                if hold.weight_den == 1 or hold.instance
                else hold.weight_num * PPM // hold.weight_den,
                "evidence": "cgroup",
                "start_at": _instant(hold.start_us),
                "end_at": None if lost < weather.lost_end_rate else _instant(hold.end_us),
                "job_ended_at": None if lost < weather.lost_end_rate and known < 0.5 else _instant(hold.end_us),
                "recorded_at": _instant(hold.start_us),
            }
            other = self.holds[(number + 1) % len(self.holds)].job
            told = {**row, "job_id": other, "job_key": f"sim|{names[other]}|{starts[other]}"}
            if hold.job in counted:
                stay = next(stay for stay in self.fate.stays[hold.board] if stay.covers(hold.start_us))
                boards = {each.board for each in self.holds if each.job == hold.job}
                row |= {"device_id": None, "node_id": stay.node, "accelerators": len(boards), "evidence": "sacct"}
            rows.append(row)
            if thin < weather.failing_evidence:
                rows.append({**told, "allocation_id": len(self.holds) + number + 1, "evidence": "environ"})
            if overlaps[number]:
                since = _instant((hold.start_us + hold.end_us) // 2)
                rows.append({**told, "allocation_id": 2 * len(self.holds) + number + 1, "start_at": since})
        return pl.DataFrame(rows, schema=frames.HOLDS)

    def _counted(self) -> set[int]:
        """Draw the jobs of whole boards that are told of by count alone."""
        draw = np.random.default_rng([self.spec.seed, 13])
        whole = [hold.job for hold in self.holds if hold.weight_den == 1 and hold.instance is None]
        return {job for job in dict.fromkeys(whole) if draw.random() < self.spec.weather.count_only_rate}

    def _activity(self, how: Sampling) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return what is seen of the activity of shared boards: by process, and of MIG by instance."""
        sharing = self.spec.sharing
        shares, instances = [], []
        for number, work in enumerate(self.works):
            if sharing is None:
                break
            hold = work.hold
            draw = np.random.default_rng([self.spec.seed, 11, number])
            for at_us, span_us, ppm in activity_ppm(work, how, sharing.clock_distortion, draw):
                if hold.instance is not None:
                    instances.append((hold.board, hold.instance, _instant(at_us), span_us, ppm))
                    continue
                told = sharing.kind == "time_slice" or sharing.capped
                cap = hold.weight_num * PPM // hold.weight_den if sharing.kind == "mps" and sharing.capped else None
                method = "process_utilization" if sharing.kind == "time_slice" else "mps_threads"
                row = (hold.board, _instant(at_us), span_us, hold.job, ppm if told else None, None, cap, method)
                shares.append(row)
        return (
            pl.DataFrame(shares, schema=frames.DEVICE_SHARES, orient="row"),
            pl.DataFrame(instances, schema=frames.INSTANCE_ACTIVITY, orient="row"),
        )


def _starts(holds: list[SimHold]) -> dict[int, int]:
    found: dict[int, int] = {}
    for hold in holds:
        found[hold.job] = min(found.get(hold.job, hold.start_us), hold.start_us)
    return found


def _instant(at_us: int) -> datetime:
    return from_us(START_US + at_us)


def _instants(at_us: Ints) -> pl.Series:
    return pl.Series(at_us + START_US, dtype=pl.Int64).cast(INSTANT)


def _where(known: np.ndarray[tuple[int], np.dtype[np.bool_]], values: Ints) -> pl.Series:
    """Return the values, null where they are not known."""
    return pl.select(pl.when(pl.Series(known)).then(pl.Series(values))).to_series()


def _readings(count: int, **columns: pl.Series | None) -> pl.DataFrame:
    """Return readings with what is given of the frame's columns; the others are null."""
    kinds = DeviceReadings.create_empty().schema
    empty = {name: pl.repeat(None, count, dtype=kind, eager=True) for name, kind in kinds.items()}
    given = {name: column.cast(kinds[name]) for name, column in columns.items() if column is not None}
    return pl.DataFrame({**empty, **given})
