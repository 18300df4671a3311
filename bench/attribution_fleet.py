"""A fleet whose day is attributed: who held which device when, what went wrong, and the rows of any hour. Simulated, and says so.

The course of each board is a published trace (``trace_fleet``): 512 boards of six hours, tiled over fleet and time, each tile begun
at another moment and its counters carried on. On top: jobs of five to twenty-five boards one after the other, a tenth of them short,
with counter readings where they begin and end; nodes cut up among jobs (MIG, time-slicing, MPS); jobs known by count only or
without an end; boards that fall silent, counters that begin anew, drivers that are loaded anew. Equal specs make equal rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
import polars as pl

from bench.trace_fleet import CADENCE_S, Array, Traces, fleet_rows
from collector.wire import Reading, Stream
from ingest.store.sample_tables import TARGETS

VERSION: Final = 1
"""Of what a spec makes: another one makes other files."""
US_PER_S: Final = 1_000_000
HOUR_US: Final = 3_600 * US_PER_S
BOARDS_PER_NODE: Final = 8
ROWS_PER_HOUR: Final = 3_600 // CADENCE_S
TEMPLATE_BOARDS: Final = 512
TEMPLATE_ROWS: Final = 6 * ROWS_PER_HOUR
MARGIN_HOURS: Final = 1
"""Sealed before and after the hours that are closed: an hour looks around."""
NODE_METER_S: Final = 60
SLICES_PPM: Final = (428_571, 285_714, 285_714)
"""Of a board in MIG: 3g.40gb and two 2g.20gb, in sevenths."""
PROFILES: Final = ("3g.40gb", "2g.20gb", "2g.20gb")
SHARES_PPM: Final = {"time_slice": (333_333, 333_333, 333_333), "mps": (500_000, 250_000, 250_000)}
WAYS: Final = ("mig", "time_slice", "mps")
_COUNTERS: Final = (
    "energy_mj",
    "throttle_power_cap_ns",
    "pcie_tx_bytes",
    "pcie_rx_bytes",
    "nvlink_tx_kib",
    "nvlink_rx_kib",
)


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """What is made; shares are of what they stand beside."""

    devices: int = 10_000
    hours: int = 24
    jobs: int = 4_000
    tenants: int = 200
    shared_boards: float = 0.05
    short_jobs: float = 0.1
    counted_nodes: float = 0.01
    open_jobs: float = 0.01
    exact_jobs: float = 0.9
    """Of jobs that hold boards as a whole: their agents read the counter where they begin and end."""
    silent_device_hours: float = 0.01
    reset_device_hours: float = 0.001
    reloaded_node_hours: float = 0.001
    seed: int = 5
    start_at: datetime = datetime(2026, 11, 19, tzinfo=UTC)

    @classmethod
    def sized(cls, devices: int, hours: int) -> FleetSpec:
        """Return the whole fleet, or a smaller one about as busy: however few hours, a board is held most of the time."""
        return cls(
            devices=devices, hours=hours, jobs=max(40, round(4_000 * devices / 10_000 * (6 + 0.75 * hours) / 24))
        )

    @property
    def end_at(self) -> datetime:
        return self.start_at + timedelta(hours=self.hours)

    @property
    def start_us(self) -> int:
        return int(self.start_at.timestamp()) * US_PER_S

    @property
    def nodes(self) -> int:
        return self.devices // BOARDS_PER_NODE

    @property
    def digest(self) -> str:
        words = repr((VERSION, TEMPLATE_BOARDS, TEMPLATE_ROWS, sorted(asdict(self).items())))
        return hashlib.sha256(words.encode()).hexdigest()[:12]


class Fleet:
    """The fleet of a spec. Ids: boards from 1, then MIG instances; nodes, meters and their first epochs from 1; jobs from 1."""

    def __init__(self, spec: FleetSpec, traces: Traces) -> None:
        if spec.devices % BOARDS_PER_NODE:
            raise ValueError(f"{spec.devices} devices are not whole nodes of {BOARDS_PER_NODE}")
        self.spec = spec
        self._traces = traces
        nodes = np.arange(1, spec.nodes + 1)
        odd = self._draw("nodes").permutation(nodes)
        shared, counted = (max(1, round(spec.nodes * part)) for part in (spec.shared_boards, spec.counted_nodes))
        self.shared_nodes: Array = np.sort(odd[:shared])
        self.counted_nodes: Array = np.sort(odd[shared : shared + counted])

    def _draw(self, what: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.spec.seed, *what.encode(), *numbers])

    def way(self, node: int) -> str:
        """Return how the boards of a shared node are shared."""
        return WAYS[int(np.searchsorted(self.shared_nodes, node)) % len(WAYS)]

    @cached_property
    def instances(self) -> pl.DataFrame:
        """MIG instances: device_id, parent_device_id, node_id, slice_ppm, mig_profile."""
        rows: list[tuple[int, int, int, int, str]] = []
        for node in self.shared_nodes.tolist():
            if self.way(node) == "mig":
                for board in _boards(node):
                    for ppm, profile in zip(SLICES_PPM, PROFILES, strict=True):
                        rows.append((self.spec.devices + len(rows) + 1, board, node, ppm, profile))
        names = {
            "device_id": pl.Int32,
            "parent_device_id": pl.Int32,
            "node_id": pl.Int32,
            "slice_ppm": pl.Int32,
            "mig_profile": pl.String,
        }
        return pl.DataFrame(rows, schema=names, orient="row")

    @cached_property
    def epochs(self) -> pl.DataFrame:
        """epoch_id, node_id, driver_epoch, from_us: one of each node, and one more for each time its driver was loaded anew."""
        spec = self.spec
        first = pl.DataFrame({"node_id": np.arange(1, spec.nodes + 1)}).with_columns(
            pl.lit(0).alias("driver_epoch"), pl.lit(0).alias("from_us")
        )
        rng = self._draw("reloads")
        count = max(1, round(spec.nodes * spec.hours * spec.reloaded_node_hours))
        again = pl.DataFrame(
            {
                "node_id": rng.choice(np.arange(1, spec.nodes + 1), size=min(count, spec.nodes), replace=False),
                "from_us": spec.start_us + rng.integers(0, spec.hours * HOUR_US, min(count, spec.nodes)),
            }
        ).with_columns(pl.lit(1).alias("driver_epoch"))
        both = pl.concat([first, again.select(first.columns)], how="vertical_relaxed")
        return both.with_row_index("epoch_id", offset=1).cast({"epoch_id": pl.Int32, "node_id": pl.Int32})

    @cached_property
    def holds(self) -> pl.DataFrame:
        """Who holds what: job_id, device_id or node_id with accelerators, share_ppm (null = whole), start_us, end_us, is_exact."""
        return pl.concat([self._whole_holds(), self._shared_holds(), self._counted_holds()]).sort(
            "job_id", "node_id", "device_id"
        )

    @cached_property
    def jobs(self) -> pl.DataFrame:
        """job_id, account, start_us, end_us (null = nobody saw the end)."""
        spans = self.holds.group_by("job_id").agg(pl.col("start_us").min(), pl.col("end_us").max()).sort("job_id")
        tenants = self._draw("tenants").integers(1, self.spec.tenants + 1, spans.height)
        return spans.with_columns(pl.Series("account", [f"t{number}" for number in tenants.tolist()]))

    @cached_property
    def _whole_jobs(self) -> int:
        return max(1, self.spec.jobs - self._shared_jobs - self._counted_jobs)

    @property
    def _jobs_of_a_slot(self) -> int:
        return max(1, round(3 * self.spec.hours / 24))

    @property
    def _shared_jobs(self) -> int:
        return len(self.shared_nodes) * len(SLICES_PPM) * self._jobs_of_a_slot

    @property
    def _counted_jobs(self) -> int:
        return len(self.counted_nodes) * 2 * max(1, round(2 * self.spec.hours / 24))

    def _span(self) -> tuple[int, int]:
        margin = MARGIN_HOURS * HOUR_US
        return self.spec.start_us - margin, self.spec.start_us + self.spec.hours * HOUR_US + margin

    def _whole_holds(self) -> pl.DataFrame:
        spec, rng = self.spec, self._draw("whole")
        odd = {*self.shared_nodes.tolist(), *self.counted_nodes.tolist()}
        boards = np.array([board for node in range(1, spec.nodes + 1) if node not in odd for board in _boards(node)])
        edges, most = [0], len(boards)
        while edges[-1] < most:
            edges.append(min(most, edges[-1] + int(rng.integers(5, 26))))
        groups = [boards[a:b] for a, b in pairwise(edges)]
        from_us, to_us = self._span()
        still_open = max(1, round(spec.jobs * spec.open_jobs))
        rows: list[tuple[Any, ...]] = []
        job = 0
        for number, group in enumerate(groups):
            count = self._whole_jobs * (number + 1) // len(groups) - self._whole_jobs * number // len(groups)
            # Busy and free in turns, and more busy than free.
            parts = rng.dirichlet(np.tile([0.6, 3.0], count)) if count else np.empty(0)
            at_us = from_us + np.cumsum(parts) * (to_us - from_us)
            for start_us, until_us in at_us.astype(np.int64).reshape(-1, 2).tolist():
                job += 1
                is_short = rng.random() < spec.short_jobs
                brief_us = int(rng.integers(30 * US_PER_S, 300 * US_PER_S)) if is_short else HOUR_US * 10**6
                end_us = min(until_us, start_us + brief_us)
                is_last = count and end_us == int(at_us[-1])
                ends = None if is_last and still_open and number % 3 == 0 else end_us
                still_open -= ends is None
                exact = bool(rng.random() < spec.exact_jobs)
                rows += [(job, board, None, 1, None, start_us, ends, exact) for board in group.tolist()]
        return pl.DataFrame(rows, schema=_HOLDS, orient="row")

    def _shared_holds(self) -> pl.DataFrame:
        rng = self._draw("shared")
        from_us, to_us = self._span()
        instances = {
            board: rows["device_id"].to_list()
            for (board,), rows in self.instances.partition_by("parent_device_id", as_dict=True).items()
        }
        rows: list[tuple[Any, ...]] = []
        job = self._whole_jobs
        for node in self.shared_nodes.tolist():
            way = self.way(node)
            for slot in range(len(SLICES_PPM)):
                parts = rng.dirichlet(np.tile([0.3, 3.0], self._jobs_of_a_slot))
                at_us = (from_us + np.cumsum(parts) * (to_us - from_us)).astype(np.int64)
                for start_us, end_us in at_us.reshape(-1, 2).tolist():
                    job += 1
                    for board in _boards(node):
                        device = instances[board][slot] if way == "mig" else board
                        share = None if way == "mig" else SHARES_PPM[way][slot]
                        rows.append((job, device, None, 1, share, start_us, end_us, False))
        return pl.DataFrame(rows, schema=_HOLDS, orient="row")

    def _counted_holds(self) -> pl.DataFrame:
        rng = self._draw("counted")
        from_us, to_us = self._span()
        rows: list[tuple[Any, ...]] = []
        job = self._whole_jobs + self._shared_jobs
        each = self._counted_jobs // (2 * len(self.counted_nodes))
        for node in self.counted_nodes.tolist():
            for accelerators in (3, 5):
                parts = rng.dirichlet(np.tile([0.5, 3.0], each))
                at_us = (from_us + np.cumsum(parts) * (to_us - from_us)).astype(np.int64)
                for start_us, end_us in at_us.reshape(-1, 2).tolist():
                    job += 1
                    rows.append((job, None, node, accelerators, None, start_us, end_us, False))
        return pl.DataFrame(rows, schema=_HOLDS, orient="row")

    @cached_property
    def _resets(self) -> dict[int, list[int]]:
        """Board to the instants its counter began anew."""
        spec, rng = self.spec, self._draw("resets")
        count = max(1, round(spec.devices * spec.hours * spec.reset_device_hours))
        boards = rng.integers(1, spec.devices + 1, count).tolist()
        found: dict[int, list[int]] = {}
        for board, at_us in zip(boards, rng.integers(0, spec.hours * HOUR_US, count).tolist(), strict=True):
            found.setdefault(board, []).append(spec.start_us + at_us)
        for node, at_us in self.epochs.filter(pl.col("driver_epoch") == 1).select("node_id", "from_us").iter_rows():
            for board in _boards(node):
                found.setdefault(board, []).append(at_us)
        return {board: sorted(instants) for board, instants in found.items()}

    @cached_property
    def _silences(self) -> pl.DataFrame:
        """device_id, from_us, to_us: a quarter of a minute to a quarter of an hour."""
        spec, rng = self.spec, self._draw("silences")
        count = max(1, round(spec.devices * spec.hours * spec.silent_device_hours))
        from_us = spec.start_us + rng.integers(0, spec.hours * HOUR_US, count)
        return pl.DataFrame(
            {
                "device_id": rng.integers(1, spec.devices + 1, count).astype(np.int32),
                "from_us": from_us,
                "to_us": from_us + rng.integers(15 * US_PER_S, 900 * US_PER_S, count),
            }
        )

    @cached_property
    def _template(self) -> pl.DataFrame:
        return fleet_rows(self._traces, min(TEMPLATE_BOARDS, self.spec.devices), TEMPLATE_ROWS, 0, seed=self.spec.seed)

    def _gathered(self, columns: list[str], hour_us: int) -> dict[str, Any]:
        """Return columns of all boards for the readings at hour, hour + 10 s, ...: 360 of each board, one board after the other."""
        spec = self.spec
        template_boards = self._template.height // TEMPLATE_ROWS
        board = np.arange(spec.devices)
        tile = board // template_boards
        shift = (tile * 997 + board // BOARDS_PER_NODE * 31) % TEMPLATE_ROWS
        step = (hour_us - spec.start_us) // (CADENCE_S * US_PER_S) + MARGIN_HOURS * ROWS_PER_HOUR
        at = (shift + step)[:, None] + np.arange(ROWS_PER_HOUR)[None, :]
        lap, inside = at // TEMPLATE_ROWS, at % TEMPLATE_ROWS
        row = ((board % template_boards)[:, None] * TEMPLATE_ROWS + inside).reshape(-1)
        made: dict[str, Any] = {}
        for name in columns:
            series = self._template[name]
            if name not in _COUNTERS:
                made[name] = series.gather(row)
                continue
            values = series.to_numpy().reshape(template_boards, TEMPLATE_ROWS)
            growth = values - values[:, :1]
            whole = growth[:, -1] + growth[:, 1]
            of_board = board % template_boards
            carried = growth[of_board[:, None], inside] + whole[of_board][:, None] * lap
            made[name] = (carried + (board * 7_919_000_003 % 10**12)[:, None]).reshape(-1)
        return made

    def energies(self, hour_us: int) -> Array:
        """Return boards x 361 counters, from the hour's first reading to the next hour's, as if none had begun anew."""
        here = self._gathered(["energy_mj"], hour_us)["energy_mj"].reshape(self.spec.devices, ROWS_PER_HOUR)
        following = self._gathered(["energy_mj"], hour_us + HOUR_US)["energy_mj"].reshape(
            self.spec.devices, ROWS_PER_HOUR
        )
        joined: Array = np.concatenate([here, following[:, :1]], axis=1)
        return joined

    def device_rows(self, hour_us: int) -> pl.DataFrame:
        """Return the hour's ``device_samples``, by device and time: periodic, at events, and of MIG instances."""
        spec, schema = self.spec, TARGETS[Stream.DEVICE].schema
        step_us = CADENCE_S * US_PER_S
        at_us = np.tile(hour_us + np.arange(ROWS_PER_HOUR, dtype=np.int64) * step_us, spec.devices)
        boards = np.repeat(np.arange(1, spec.devices + 1), ROWS_PER_HOUR)
        measured = [name for name in schema if name not in {"at", "device_id", "epoch_id"}]
        columns = {"at": at_us, "device_id": boards, "epoch_id": (boards - 1) // BOARDS_PER_NODE + 1}
        periodic = _typed(columns | self._gathered(measured, hour_us), spec.devices * ROWS_PER_HOUR)
        rows = pl.concat([periodic, self._event_rows(hour_us)])
        rows = self._reloaded(self._begun_anew(rows, hour_us))
        rows = pl.concat([self._heard(rows, hour_us), self._instance_rows(periodic, hour_us)])
        return rows.sort("device_id", "at")

    def _event_rows(self, hour_us: int) -> pl.DataFrame:
        """Exact readings where jobs begin and end: the counter alone, on the line between the readings around it."""
        ends = pl.concat(
            self.holds.filter("is_exact").select("device_id", pl.col(name).alias("us"))
            for name in ("start_us", "end_us")
        ).drop_nulls()
        here = ends.filter((pl.col("us") >= hour_us) & (pl.col("us") < hour_us + HOUR_US)).unique()
        # One on the ten seconds is the periodic reading's.
        here = here.filter(pl.col("us") % (CADENCE_S * US_PER_S) != 0).sort("device_id", "us")
        board, us = here["device_id"].to_numpy(), here["us"].to_numpy()
        energies = self.energies(hour_us)
        step, inside = np.divmod(us - hour_us, CADENCE_S * US_PER_S)
        before, after = energies[board - 1, step], energies[board - 1, step + 1]
        columns = {
            "at": us,
            "device_id": board,
            "epoch_id": (board - 1) // BOARDS_PER_NODE + 1,
            "reading": np.full(len(us), int(Reading.ALLOCATION_START)),
            "span_us": np.zeros(len(us), dtype=np.int64),
            "samples": np.ones(len(us), dtype=np.int64),
            "samples_missed": np.zeros(len(us), dtype=np.int64),
            "energy_mj": before + (after - before) * inside // (CADENCE_S * US_PER_S),
        }
        return _typed(columns, len(us))

    def _begun_anew(self, rows: pl.DataFrame, hour_us: int) -> pl.DataFrame:
        """Take from a counter what it showed when it began anew."""
        begun = [
            (board, at_us, self._counter_at(board, at_us))
            for board, instants in self._resets.items()
            for at_us in instants
            if at_us < hour_us + HOUR_US
        ]
        names = {"device_id": pl.Int32, "from_us": pl.Int64, "less_mj": pl.Int64}
        resets = pl.DataFrame(begun, schema=names, orient="row").sort("from_us")
        keyed = rows.with_row_index("_row").with_columns(pl.col("at").dt.epoch("us").alias("_us")).sort("_us")
        less = keyed.filter(pl.col("device_id").is_in(resets["device_id"].unique().implode())).join_asof(
            resets,
            left_on="_us",
            right_on="from_us",
            by="device_id",
            strategy="backward",
            check_sortedness=False,  # they are, by time; polars cannot tell beside ``by``
        )
        moved = less.drop_nulls("less_mj").select("_row", (pl.col("energy_mj") - pl.col("less_mj")).alias("_mj"))
        return (
            rows.with_row_index("_row")
            .join(moved, on="_row", how="left", maintain_order="left")
            .with_columns(pl.coalesce("_mj", "energy_mj").alias("energy_mj"))
            .select(rows.columns)
        )

    def _counter_at(self, board: int, at_us: int) -> int:
        """Return what the last periodic reading at or before an instant showed."""
        hour_us = at_us // HOUR_US * HOUR_US
        spec = self.spec
        key = (board, at_us)
        if key not in self._shown:
            step = (at_us - hour_us) // (CADENCE_S * US_PER_S)
            template_boards = self._template.height // TEMPLATE_ROWS
            index = board - 1
            shift = (index // template_boards * 997 + index // BOARDS_PER_NODE * 31) % TEMPLATE_ROWS
            begun = (hour_us - spec.start_us) // (CADENCE_S * US_PER_S) + MARGIN_HOURS * ROWS_PER_HOUR
            lap, inside = divmod(int(shift + begun + step), TEMPLATE_ROWS)
            first = index % template_boards * TEMPLATE_ROWS
            values = self._template["energy_mj"].slice(first, TEMPLATE_ROWS).to_numpy()
            whole = int(values[-1] - values[0] + values[1] - values[0])
            self._shown[key] = int(values[inside] - values[0]) + whole * lap + index * 7_919_000_003 % 10**12
        return self._shown[key]

    @cached_property
    def _shown(self) -> dict[tuple[int, int], int]:
        return {}

    def _reloaded(self, rows: pl.DataFrame) -> pl.DataFrame:
        again = self.epochs.filter(pl.col("driver_epoch") == 1)
        node = (pl.col("device_id") - 1) // BOARDS_PER_NODE + 1
        named = node.replace_strict(again["node_id"], again["epoch_id"], default=None, return_dtype=pl.Int32)
        since = node.replace_strict(again["node_id"], again["from_us"], default=None, return_dtype=pl.Int64)
        is_after = (pl.col("at").dt.epoch("us") >= since).fill_null(value=False)
        return rows.with_columns(pl.when(is_after).then(named).otherwise(pl.col("epoch_id")).alias("epoch_id"))

    def _heard(self, rows: pl.DataFrame, hour_us: int) -> pl.DataFrame:
        silent = self._silences.filter((pl.col("from_us") < hour_us + HOUR_US) & (pl.col("to_us") > hour_us))
        of_these = pl.col("device_id").is_in(silent["device_id"].unique().implode())
        mine = rows.filter(of_these).with_row_index("_row")
        lost = mine.select("_row", "device_id", pl.col("at").dt.epoch("us").alias("_us")).join(silent, on="device_id")
        lost = (
            lost.filter((pl.col("_us") >= pl.col("from_us")) & (pl.col("_us") < pl.col("to_us")))
            .select("_row")
            .unique()
        )
        return pl.concat([rows.filter(~of_these), mine.join(lost, on="_row", how="anti").drop("_row")])

    def _instance_rows(self, periodic: pl.DataFrame, hour_us: int) -> pl.DataFrame:
        """Rows of MIG instances: how busy each is, and no energy, which only the board knows."""
        instances = self.instances
        parts = self._draw("activity", hour_us // HOUR_US).dirichlet([2.0] * len(SLICES_PPM), instances.height // 3)
        busy = parts.reshape(-1).repeat(ROWS_PER_HOUR)
        device, board = (
            np.repeat(instances[name].to_numpy(), ROWS_PER_HOUR) for name in ("device_id", "parent_device_id")
        )
        rows = (board - 1) * ROWS_PER_HOUR + np.tile(np.arange(ROWS_PER_HOUR), instances.height)
        of_board = periodic.select("at", "epoch_id", "span_us", "sm_active_ratio")[rows]
        columns = {name: of_board[name] for name in ("at", "epoch_id", "span_us")} | {
            "device_id": device,
            "reading": np.zeros(len(device)),
            "samples": np.full(len(device), CADENCE_S),
            "samples_missed": np.zeros(len(device)),
            "sm_active_ratio": of_board["sm_active_ratio"] * busy,
        }
        return _typed(columns, len(device))

    def node_rows(self, hour_us: int) -> pl.DataFrame:
        """Return the hour's ``node_samples``, by meter and time: a meter a node, each minute; boards draw 78 % of it."""
        spec = self.spec
        step = NODE_METER_S // CADENCE_S
        boards = self._gathered(["energy_mj"], hour_us)["energy_mj"].reshape(spec.nodes, BOARDS_PER_NODE, -1)[
            :, :, ::step
        ]
        base_w = 900
        minutes = np.arange(boards.shape[2])
        grown = (hour_us - spec.start_us + MARGIN_HOURS * HOUR_US) // US_PER_S + minutes * NODE_METER_S
        energy_mj = boards.sum(axis=1) + grown[None, :] * base_w * 1_000
        count = spec.nodes * len(minutes)
        of_node = np.repeat(np.arange(1, spec.nodes + 1), len(minutes))
        columns = {
            "at": np.tile(hour_us + minutes * NODE_METER_S * US_PER_S, spec.nodes),
            "meter_id": of_node,
            "epoch_id": of_node,
            "span_us": np.full(count, NODE_METER_S * US_PER_S),
            "energy_mj": energy_mj.reshape(-1),
        }
        return _typed(columns, count, Stream.NODE)

    def share_rows(self, hour_us: int) -> pl.DataFrame:
        """Return the hour's ``device_shares``, by device and time: who kept a time-sliced or MPS board how busy."""
        boards = [b for node in self.shared_nodes.tolist() if self.way(node) != "mig" for b in _boards(node)]
        held = self.holds.filter(pl.col("device_id").is_in(boards) & pl.col("share_ppm").is_not_null())
        at_us = pl.DataFrame({"us": hour_us + np.arange(ROWS_PER_HOUR, dtype=np.int64) * CADENCE_S * US_PER_S})
        here = held.join(at_us, how="cross").filter(
            (pl.col("us") > pl.col("start_us")) & (pl.col("us") <= pl.col("end_us"))
        )
        here = here.join(self.jobs.select("job_id", pl.col("start_us").alias("job_us")), on="job_id").sort(
            "device_id", "us", "job_id"
        )
        busy = self._draw("shares", hour_us // HOUR_US).gamma(2.0, 15.0, here.height).clip(0, 100)
        columns = {
            "at": here["us"],
            "device_id": here["device_id"],
            "epoch_id": (here["device_id"] - 1) // BOARDS_PER_NODE + 1,
            "span_us": np.full(here.height, CADENCE_S * US_PER_S),
            "cluster": pl.Series(["c1"], dtype=pl.String).new_from_index(0, here.height),
            "native_job_id": here["job_id"].cast(pl.String),
            "job_started_at_us": here["job_us"],
            "processes": np.ones(here.height),
            "memory_used_bytes": np.full(here.height, 20 * 2**30),
            "sm_util_percent": np.rint(busy),
            "share_ratio": here["share_ppm"] / 1e6,
            "evidence": pl.Series(["cgroup"], dtype=pl.String).new_from_index(0, here.height),
            "method": pl.Series(["process_utilization"], dtype=pl.String).new_from_index(0, here.height),
        }
        return _typed(columns, here.height, Stream.DEVICE_SHARE)


_HOLDS: Final = {
    "job_id": pl.Int64,
    "device_id": pl.Int32,
    "node_id": pl.Int32,
    "accelerators": pl.Int32,
    "share_ppm": pl.Int32,
    "start_us": pl.Int64,
    "end_us": pl.Int64,
    "is_exact": pl.Boolean,
}


def _boards(node: int) -> range:
    return range((node - 1) * BOARDS_PER_NODE + 1, node * BOARDS_PER_NODE + 1)


def _typed(columns: dict[str, Any], height: int, stream: Stream = Stream.DEVICE) -> pl.DataFrame:
    schema = TARGETS[stream].schema
    return pl.DataFrame(
        [
            pl.Series(name, columns[name]).cast(kind)
            if name in columns
            else pl.Series(name, [None], kind).new_from_index(0, height)
            for name, kind in schema.items()
        ]
    )
