"""Laws of the simulator: what it sends and what it says is true are one and the same, however time is cut."""

from collections import defaultdict
from functools import lru_cache
from itertools import pairwise

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.wire import Origin, Reading, Stream
from tests.fakes.bodies import Body, read_body
from wattledger.simulate.fleet import Fleet, SimBatch, container_s
from wattledger.simulate.spec import BLOCK_US, US_PER_S, FleetSpec

START_US = 1_790_000_400 * US_PER_S
DAY = FleetSpec(start_at_us=START_US, nodes=10, devices_per_node=2, seed=11, duplicate_ratio=0.02, reorder_ratio=0.05)
SMALL = FleetSpec(start_at_us=START_US, nodes=2, devices_per_node=2, seed=3, duplicate_ratio=0.1, reorder_ratio=0.2)


@lru_cache
def _day() -> tuple[Fleet, list[tuple[SimBatch, Body]]]:
    fleet = Fleet(DAY)
    return fleet, [(batch, read_body(batch.body)) for batch in fleet.batches(START_US, START_US + 24 * BLOCK_US)]


@lru_cache
def _readings() -> dict[tuple[str, str, int], pl.DataFrame]:
    """All rows of the day by (device, boot, driver epoch), each batch counted once, in time order."""
    found: defaultdict[tuple[str, str, int], list[pl.DataFrame]] = defaultdict(list)
    seen: set[tuple[str, int]] = set()
    for batch, body in _day()[1]:
        if (batch.spool, batch.sequence) in seen:
            continue
        seen.add((batch.spool, batch.sequence))
        for (index,), rows in body.streams[Stream.DEVICE].partition_by("device", as_dict=True).items():
            device = body.meta.devices[int(index)].uuid
            found[device, body.meta.boot_id, body.meta.driver_epoch].append(rows)
    return {key: pl.concat(frames).sort("at_us") for key, frames in found.items()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    def sent(seed: int) -> list[SimBatch]:
        spec = FleetSpec(start_at_us=START_US, nodes=4, devices_per_node=2, seed=seed)
        return list(Fleet(spec).batches(START_US, START_US + 2 * BLOCK_US))

    assert sent(5) == sent(5)
    assert [batch.body for batch in sent(5)] != [batch.body for batch in sent(6)]


@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, 17), max_size=4), seconds=st.sampled_from([60, 600, 1800]))
def test_any_slicing_gives_the_bytes_of_the_whole(cuts: set[int], seconds: int) -> None:
    step_us = container_s(seconds) * US_PER_S
    end_us = START_US + 3 * BLOCK_US
    edges = sorted({START_US, end_us, *(START_US + cut * step_us for cut in cuts if cut * step_us < 3 * BLOCK_US)})
    whole = list(Fleet(SMALL).batches(START_US, end_us, seconds))
    sliced = [batch for begin, stop in pairwise(edges) for batch in Fleet(SMALL).batches(begin, stop, seconds)]
    assert sliced == whole


def test_batches_of_another_length_carry_the_same_rows() -> None:
    def rows(seconds: int) -> pl.DataFrame:
        bodies: dict[tuple[str, int], Body] = {}
        for batch in Fleet(SMALL).batches(START_US, START_US + BLOCK_US, seconds):
            bodies[batch.spool, batch.sequence] = read_body(batch.body)
        frames = [body.streams[Stream.DEVICE].with_columns(node=pl.lit(body.meta.node)) for body in bodies.values()]
        return pl.concat(frames).sort("node", "device", "at_us")

    assert rows(600).equals(rows(10))
    assert rows(1800).equals(rows(10))


def test_every_batch_says_that_it_is_simulated_and_has_an_id_of_its_own() -> None:
    ids: dict[tuple[str, int], bytes] = {}
    for batch, body in _day()[1]:
        assert body.meta.origin is Origin.SIMULATED
        assert (body.meta.spool, body.meta.sequence, body.meta.node) == (batch.spool, batch.sequence, batch.node)
        assert body.streams[Stream.DEVICE].height == batch.rows
        assert ids.setdefault((batch.spool, batch.sequence), batch.body) == batch.body
    spools = {batch.spool for batch, _ in _day()[1]}
    assert len(spools) == DAY.nodes


def test_counters_never_fall_inside_an_epoch_and_no_instant_is_read_twice() -> None:
    counters = ("energy_mj", "throttle_power_cap_ns", "throttle_sw_thermal_ns", "pcie_tx_bytes", "nvlink_rx_kib")
    for rows in _readings().values():
        assert rows["at_us"].is_unique().all()
        for name in counters:
            steps = rows[name].drop_nulls().diff().drop_nulls()
            assert steps.is_empty() or int(str(steps.min())) >= 0


def test_counters_restart_only_where_a_reload_or_reboot_was_planted() -> None:
    fleet, _ = _day()
    planted = {
        DAY.node_name(plant.nodes[0])
        for plant in fleet.plants(START_US, START_US + 24 * BLOCK_US)
        if plant.kind in ("driver_reload", "lost_device")
    }
    epochs: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
    for _, body in _day()[1]:
        epochs[body.meta.node].add((body.meta.boot_id, body.meta.driver_epoch))
    assert len(planted) == 2
    assert {node for node, seen in epochs.items() if len(seen) == 2} == planted
    assert {node for node, seen in epochs.items() if len(seen) == 1} == set(epochs) - planted


def test_what_was_sent_adds_up_to_the_true_energy_of_each_device() -> None:
    fleet, _ = _day()
    # The last hours may still be on their way: compare up to three hours before the end of what was sent.
    start_us, end_us = START_US + BLOCK_US, START_US + 20 * BLOCK_US
    sums: defaultdict[str, int] = defaultdict(int)
    for (device, _, _), rows in _readings().items():
        at, energy = rows["at_us"].to_list(), rows["energy_mj"].to_list()
        readings = list(zip(at, energy, strict=True))
        for (t0, c0), (t1, c1) in pairwise(readings):
            begin, stop = max(t0, start_us), min(t1, end_us)
            if begin < stop:
                sums[device] += (c1 - c0) * (stop - t0) // (t1 - t0) - (c1 - c0) * (begin - t0) // (t1 - t0)
    assert dict(sums) == fleet.truth(start_us, end_us).device_energy_mj


def test_a_job_is_true_to_the_counter_readings_of_its_events() -> None:
    fleet, bodies = _day()
    truth = {job.native_id: job for job in fleet.truth(START_US, START_US + 24 * BLOCK_US).jobs}
    readings: defaultdict[str, dict[tuple[str, int], tuple[int, int | None]]] = defaultdict(dict)
    for _, body in bodies:
        for row in body.streams.get(Stream.ALLOCATION, pl.DataFrame()).iter_rows(named=True):
            uuid = body.meta.devices[row["device"]].uuid
            readings[row["native_job_id"]][uuid, row["action"]] = (row["at_us"], row["energy_mj"])
    checked = 0
    for native_id, events in readings.items():
        job = truth[native_id]
        if len(events) != 2 * job.devices or any(energy is None for _, energy in events.values()):
            continue
        devices = {uuid for uuid, _ in events}
        spent = sum((events[uuid, 2][1] or 0) - (events[uuid, 1][1] or 0) for uuid in devices)
        assert spent == job.energy_mj
        assert all(events[uuid, 1][0] == job.start_us and events[uuid, 2][0] == job.end_us for uuid in devices)
        assert job.held_us == (job.end_us - job.start_us) * job.devices
        checked += 1
    assert checked > 20


def test_each_readable_event_is_also_an_exact_row_of_its_device() -> None:
    for _, body in _day()[1]:
        events = body.streams.get(Stream.ALLOCATION)
        if events is None:
            continue
        known = events.filter(pl.col("energy_mj").is_not_null()).select("at_us", "device", "energy_mj")
        exact = body.streams[Stream.DEVICE].filter(
            pl.col("reading").is_in([int(Reading.ALLOCATION_START), int(Reading.ALLOCATION_END)])
        )
        assert known.sort("at_us", "device").equals(exact.select(known.columns).sort("at_us", "device"))
        assert exact["span_us"].eq(0).all()


def test_the_power_gauge_agrees_with_the_counter() -> None:
    for rows in _readings().values():
        steps = rows.with_columns(
            spent_mj=pl.col("energy_mj").diff(), took_us=pl.col("at_us").diff(), before=pl.col("reading").shift(1)
        ).filter(
            pl.col("reading") == 0,
            pl.col("before") == 0,
            pl.col("took_us") == pl.col("span_us"),
        )
        # mW x 10 s = 10 mJ: the gauge is rounded down to whole milliwatts, the counter to millijoules.
        off = (steps["spent_mj"] - steps["power_average_mw"].cast(pl.Int64) * 10).abs()
        assert off.is_empty() or int(str(off.max())) <= 11


def test_no_two_jobs_hold_one_device_at_a_time() -> None:
    fleet, _ = _day()
    held: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for job in fleet.jobs(START_US, START_US + 48 * BLOCK_US):
        for device in job.devices:
            held[device].append((job.start_us, job.end_us))
    for spans in held.values():
        spans.sort()
        assert all(end < later for (_, end), (later, _) in pairwise(spans))
