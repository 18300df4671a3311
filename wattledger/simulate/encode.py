"""Turns a span of one node's slots into the body that its agent would have sent. It decides nothing about delivery."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from collector.arrow import ColumnData
from collector.batch import Columns, Rows, encode_body
from collector.wire import COLUMNS, BatchMeta, Feed, Origin, Reading, Stream
from wattledger.simulate.blocks import Block, Event
from wattledger.simulate.plants import Reset, resets_of_day
from wattledger.simulate.spec import DAY_US, FleetSpec

AGENT_VERSION: Final = "simulator/1"
NODE_METER: Final = "redfish"
NODE_METER_S: Final = 60
_DTYPES: Final = {"i16": np.int16, "i32": np.int32, "i64": np.int64, "f32": np.float32}
_CONSTANTS: Final = {
    "reading": int(Reading.PERIODIC),
    "samples_missed": 0,
    "encoder_util_percent": 0,
    "decoder_util_percent": 0,
    "memory_clock_mhz": 2619,
    "pstate": 0,
    "throttle_hw_thermal_ns": 0,
    "throttle_power_brake_ns": 0,
    "throttle_sync_boost_ns": 0,
    "pcie_replays": 0,
    "nvlink_errors": 0,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One body, its sequence in the node's spool, and how many device rows are in it."""

    body: bytes
    sequence: int
    rows: int


def encode_slots(spec: FleetSpec, block: Block, node: int, first: int, end: int) -> list[Encoded]:
    """Return the bodies of a node's slots [first, end) of one block: none where it was silent, two around a reset.

    The sequence of a body is its first slot, counted from the start of the fleet: it depends on nothing else, so history and
    live data continue one another and a window made again has its old batch id.
    """
    cuts = sorted(_slot_of_reset(block, reset) for reset in block.resets if reset.node == node)
    edges = [first, *(cut for cut in cuts if first < cut < end), end]
    parts = [_encode_part(spec, block, node, begin, stop) for begin, stop in pairwise(edges)]
    return [part for part in parts if part is not None]


def _slot_of_reset(block: Block, reset: Reset) -> int:
    row = int(np.searchsorted(block.at_us[:, reset.node], reset.up_us, side="left"))
    return block.first_slot + row


def _encode_part(spec: FleetSpec, block: Block, node: int, first: int, end: int) -> Encoded | None:
    rows = slice(first - block.first_slot, end - block.first_slot)
    devices = slice(node * spec.devices_per_node, (node + 1) * spec.devices_per_node)
    valid = block.valid[rows, devices]
    events = [event for event in block.events.get(node, ()) if first <= event.slot < end]
    if not valid.any():
        return None
    samples, count = _samples(spec, block, node, rows, devices, events)
    streams: dict[Stream, Rows | Columns] = {Stream.DEVICE: samples}
    if spec.node_meters:
        streams[Stream.NODE] = _node_rows(spec, block, node, rows, valid)
    base = devices.start
    _add_events(streams, events, base)
    meta = _meta(spec, node, first, end, int(block.at_us[rows, node][valid.any(axis=1)][0]))
    return Encoded(encode_body(meta, streams), first, count)


def _samples(
    spec: FleetSpec, block: Block, node: int, rows: slice, devices: slice, events: list[Event]
) -> tuple[Columns, int]:
    """Lay out the periodic rows, time by time, with the exact readings behind them."""
    valid = block.valid[rows, devices]
    keep = None if valid.all() else valid.reshape(-1)
    exact = [event for event in events if event.energy_mj is not None]
    periodic = int(valid.sum())
    total = periodic + len(exact)
    values: dict[str, npt.NDArray[Any]] = {
        name: block.columns[name][rows, devices].reshape(-1) for name in block.columns
    }
    values["at_us"] = np.repeat(block.at_us[rows, node], spec.devices_per_node)
    values["device"] = np.tile(np.arange(spec.devices_per_node, dtype=np.int32), valid.shape[0])
    if keep is not None:
        values = {name: value[keep] for name, value in values.items()}
    constants = {**_CONSTANTS, "span_us": spec.cadence_us, "samples": spec.cadence_s}
    for name, constant in constants.items():
        values[name] = np.full(periodic, constant)
    extra = _exact_columns(exact, devices.start)
    present = np.packbits(np.arange(total) < periodic, bitorder="little").data if exact else None
    data: dict[str, ColumnData] = {}
    for column in COLUMNS[Stream.DEVICE]:
        dtype = _DTYPES[column.type]
        value = values[column.name].astype(dtype, copy=False)
        if not exact:
            data[column.name] = ColumnData(np.ascontiguousarray(value).data)
        elif column.name in extra:
            data[column.name] = ColumnData(np.concatenate([value, np.array(extra[column.name], dtype=dtype)]).data)
        else:
            padded = np.concatenate([value, np.zeros(len(exact), dtype=dtype)])
            data[column.name] = ColumnData(padded.data, present, len(exact))
    return Columns(total, data), total


def _exact_columns(events: list[Event], base: int) -> dict[str, list[int]]:
    """Return what an exact reading holds: when, why, and the counter. Everything else in its row is null."""
    return {
        "at_us": [event.at_us for event in events],
        "device": [event.device - base for event in events],
        "reading": [int(event.reading) for event in events],
        "span_us": [0] * len(events),
        "samples": [1] * len(events),
        "samples_missed": [0] * len(events),
        "energy_mj": [event.energy_mj for event in events if event.energy_mj is not None],
    }


def _node_rows(spec: FleetSpec, block: Block, node: int, rows: slice, valid: npt.NDArray[np.bool_]) -> Rows:
    """Return the node meter's readings: one a minute, as a Redfish endpoint is polled."""
    found = Rows(Stream.NODE)
    every = max(1, NODE_METER_S // spec.cadence_s)
    for row in range(rows.start, rows.stop):
        if (block.first_slot + row) % every == 0 and valid[row - rows.start].any():
            found.append(
                {
                    "at_us": int(block.at_us[row, node]),
                    "meter": NODE_METER,
                    "span_us": every * spec.cadence_us,
                    "power_mw": int(block.node_power_mw[row, node]),
                }
            )
    return found


def _add_events(streams: dict[Stream, Rows | Columns], events: list[Event], base: int) -> None:
    allocations, device_events = Rows(Stream.ALLOCATION), Rows(Stream.DEVICE_EVENT)
    for event in events:
        where: dict[str, int | float | str | None] = {
            "at_us": event.at_us,
            "device": event.device - base,
            "energy_mj": event.energy_mj,
        }
        if event.job is None:
            device_events.append({**where, "kind": event.kind, "code": event.code})
            continue
        job = event.job
        allocations.append(
            {
                **where,
                "action": 1 if event.reading is Reading.ALLOCATION_START else 2,
                "cluster": job.cluster,
                "native_job_id": job.native_id,
                "job_started_at_us": job.start_us,
                "account": job.account,
                "user": job.user,
                "partition": job.partition,
                "qos": job.qos,
                "label": job.label,
                "job_name": job.name,
                "workload_kind": job.workload_kind,
                "evidence": "simulated",
            }
        )
    if len(allocations):
        streams[Stream.ALLOCATION] = allocations
    if len(device_events):
        streams[Stream.DEVICE_EVENT] = device_events


def _meta(spec: FleetSpec, node: int, first: int, end: int, at_us: int) -> BatchMeta:
    past = [reset for reset in resets_until(spec, at_us) if reset.node == node and reset.up_us <= at_us]
    reboots = [number for number, reset in enumerate(past) if reset.reboot]
    booted_us = past[reboots[-1]].down_us if reboots else spec.start_at_us - DAY_US
    created_us = spec.start_at_us + end * spec.cadence_us
    return BatchMeta(
        spool=spec.spool(node),
        sequence=first,
        node=spec.node_name(node),
        boot_id=spec.boot_id(node, len(reboots)),
        driver_epoch=len(past) - (reboots[-1] if reboots else 0),
        feed=Feed.NATIVE,
        origin=Origin.SIMULATED,
        cadence_us=spec.cadence_us,
        agent_version=AGENT_VERSION,
        created_at_us=created_us,
        monotonic_us=created_us - booted_us,
        clock_offset_us=0,
        devices=spec.device_refs(node),
    )


def resets_until(spec: FleetSpec, at_us: int) -> list[Reset]:
    """Return all reloads and reboots of the fleet on the days up to an instant, in time order."""
    days = range((at_us - spec.start_at_us) // DAY_US + 1)
    return sorted((reset for day in days for reset in resets_of_day(spec, day)), key=lambda reset: reset.up_us)
