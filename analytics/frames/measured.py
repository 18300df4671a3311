"""What instruments told: readings of boards and nodes, looks at processes, and the meters themselves."""

from __future__ import annotations

import dataframely as dy

from analytics.frames.words import SOURCES, instant


class DeviceReadings(dy.Schema):
    """One reading of one device, any order, repeats allowed (the model drops and counts them).

    A node metered as a whole is a device of kind ``node`` or ``chassis``: its rows carry energy or power and null elsewhere.
    """

    device_id = dy.Int32()
    at = instant()
    epoch_id = dy.Int32()
    energy_mj = dy.Int64(nullable=True)
    """Raw cumulative counter, comparable only inside an epoch."""
    power_mw = dy.Int32(nullable=True)
    """``power_average_mw`` of a device sample, ``power_mw`` of a node meter."""
    gpu_util_percent = dy.Int16(nullable=True)
    clocks_event_reasons = dy.Int64(nullable=True)
    """Bits seen in any reading of the span."""
    throttled_ns = dy.Int64(nullable=True)
    """Raw cumulative: sum of power cap, SW thermal, HW thermal and power brake violation time; null = none supported."""
    power_max_mw = dy.Int32(nullable=True)
    """This and the next for dashboards: nothing of a bill is made of them."""
    temp_c = dy.Int16(nullable=True)


class Anchors(dy.Schema):
    """A counter value that was read where a holding begins or ends, by who told of it; of the device's epoch then."""

    device_id = dy.Int32()
    at = instant()
    energy_mj = dy.Int64()


class Epochs(dy.Schema):
    """One boot and driver load of a node, as one feed saw it."""

    epoch_id = dy.Int32(primary_key=True)
    node_id = dy.Int32()
    boot_id = dy.String()
    driver_epoch = dy.Int64()
    feed = dy.Int16(min=1)
    origin = dy.Int16(min=1, max=4)
    cadence_us = dy.Int64(min=0)
    first_seen_at = instant()


class DeviceShares(dy.Schema):
    """Measured activity of one holder on a shared board over the ``span_us`` before ``at``; null job = processes of no job."""

    device_id = dy.Int32()
    at = instant()
    span_us = dy.Int64(min=1)
    job_id = dy.Int64(nullable=True)
    sm_util_ppm = dy.Int32(nullable=True, min=0)
    """Time with work on the multiprocessors, parts per million of the span; several processes may pass a million."""
    memory_used_bytes = dy.Int64(nullable=True, min=0)
    share_ppm = dy.Int32(nullable=True, min=0, max=1_000_000)
    """As configured: threads of an MPS client, shards of a device; null = none."""
    method = dy.String()


class InstanceActivity(dy.Schema):
    """Measured activity of one MIG instance, a device too, over the ``span_us`` before ``at``; ``device_id`` is its board."""

    device_id = dy.Int32()
    instance_id = dy.Int32()
    at = instant()
    span_us = dy.Int64(min=1)
    sm_active_ppm = dy.Int32(min=0, max=1_000_000)
    """Of the instance's own multiprocessors."""


class Meters(dy.Schema):
    """One meter of the site, where it hangs (utility over PDU over node), and what is said of it; a row for each time of that."""

    meter_id = dy.Int32()
    parent_meter_id = dy.Int32(nullable=True)
    level = dy.String(check=lambda level: level.is_in(["utility", "pdu", "cdu", "node", "other"]))
    name = dy.String()
    """As its source names it: redfish, rapl, ac; of several of one node it decides which bills."""
    covers = dy.String(check=lambda covers: covers.is_in(["it", "part", "cooling", "all"]))
    node_id = dy.Int32(nullable=True)
    """Null = of the site itself, or of shared IT, whichever node speaks for it."""
    wrap_mj = dy.Int64(nullable=True, min=1)
    """Where its counter begins anew; null = it does not, or nobody knows."""
    gain_ppm = dy.Int32(min=0)
    """Its error, 90 %, parts per million of what it reads."""
    valid_from = instant(nullable=True)
    """What it covers, and where its counter begins anew, holds from here; null = always did. An hour goes by its start."""
    valid_to = instant(nullable=True)


class NodeReadings(dy.Schema):
    """One reading of a meter of a node, any order, repeats allowed; without a node, of one that shared IT is metered by."""

    meter_id = dy.Int32()
    node_id = dy.Int32(nullable=True)
    at = instant()
    epoch_id = dy.Int32()
    energy_mj = dy.Int64(nullable=True)
    power_mw = dy.Int32(nullable=True)


class MeterPeriods(dy.Schema):
    """Energy of a meter over [from_at, to_at)."""

    meter_id = dy.Int32()
    from_at = instant()
    to_at = instant()
    energy_mj = dy.Int64(min=0)
    source = dy.String(check=lambda source: source.is_in(list(SOURCES)))
