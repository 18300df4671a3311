"""Who stood where and held what, as it was told, and what a site has beside its devices: dated facts."""

from __future__ import annotations

import dataframely as dy

from analytics.frames.words import instant


class Placements(dy.Schema):
    """Where a device was, and whether in service, during [valid_from, valid_to); rows of one device do not overlap."""

    device_id = dy.Int32()
    node_id = dy.Int32()
    in_service = dy.Bool()
    asset = dy.String(nullable=True)
    """Number of the asset in the books of fixed assets; null = not told."""
    valid_from = instant()
    valid_to = instant(nullable=True)


class Devices(dy.Schema):
    """One device that stood in the site in the window or within the reach around it, or a pool that something was held of."""

    device_id = dy.Int32(primary_key=True)
    uuid = dy.String()
    """Vendor UUID. Ties of rounding are ordered by it: ids are the database's own and differ in one that was rebuilt."""
    node_id = dy.Int32(nullable=True)
    """The last it stood in, around a moving window: ``Placements`` say where it was when. Null for a pool and shared IT only."""
    model = dy.String()
    kind = dy.String(check=lambda kind: kind.is_in(["gpu", "mig", "node", "chassis", "site", "pool"]))
    """``chassis``: what a node draws beyond its devices; ``site``: shared IT of the site, in no node."""
    parent_device_id = dy.Int32(nullable=True)
    """Board of a MIG instance; null = a device of its own."""
    slice_ppm = dy.Int32(min=1, max=1_000_000)
    """Of the board that an instance is; a million for any other device."""
    accelerators = dy.Int32(min=1)
    """Of a pool always 1: how many it has nobody knows, each holder brings its own count."""
    idle_power_mw = dy.Int32(nullable=True)
    """Power of the whole device at rest, where known; null = the policy's default per accelerator."""
    origin = dy.Int16(min=1, max=4)
    """Marks rows of hours of which neither a reading near them nor an epoch of the node tells."""


class Holds(dy.Schema):
    """What somebody said of who held what, as it was told: of a device, of a count on a node, or of a count in a pool."""

    allocation_id = dy.Int64()
    job_id = dy.Int64()
    job_key = dy.String()
    """Cluster, native id and start of the job, by which ties of rounding are ordered."""
    device_id = dy.Int32(nullable=True)
    """The device, MIG instance or pool; null = a count of the node's."""
    node_id = dy.Int32(nullable=True)
    """Of a count; null where the device is told."""
    accelerators = dy.Int32(min=1)
    share_ppm = dy.Int32(nullable=True, min=1, max=1_000_000)
    """Parts per million of what is held; null = all of it."""
    evidence = dy.String()
    """Instrument that told: cgroup, slurmctld, job-mapping, import, environ, ..."""
    start_at = instant()
    end_at = instant(nullable=True)
    """Null = nobody told of an end."""
    job_ended_at = instant(nullable=True)
    """End of the job by its own record, where there is one."""
    recorded_at = instant()
    """When the store learned of it: a boot that had been seen by then ended nothing that was told of later."""


class OverheadModels(dy.Schema):
    """What a node draws beyond its devices where no meter tells; ``assumed``."""

    model_id = dy.Int32(primary_key=True)
    node_id = dy.Int32(primary_key=True)
    """A node whose name the model's glob matches."""
    precedence = dy.Int32(min=0)
    """Of several that hold at once the lowest counts: the longest glob."""
    idle_mw = dy.Int64(min=0)
    per_accelerator_active_ppm = dy.Int32(min=0)
    """Parts per million of its devices' energy beside that."""
    error_ppm = dy.Int32(min=0)
    """Half of the 90 % interval, relative."""
    valid_from = instant()
    valid_to = instant(nullable=True)


class SharedIt(dy.Schema):
    """Switches, storage and management of the site: by their meter or by a configured power, ``assumed`` then."""

    shared_it_id = dy.Int32(primary_key=True)
    device_id = dy.Int32()
    """Of kind ``site``: what it is booked on."""
    name = dy.String()
    kind = dy.String()
    power_mw = dy.Int64(nullable=True, min=0)
    meter_id = dy.Int32(nullable=True)
    error_ppm = dy.Int32(min=0)
    """Of a configured power: half of the 90 % interval, relative."""
    valid_from = instant()
    valid_to = instant(nullable=True)


class CapacityHolds(dy.Schema):
    """Capacity that is kept from jobs during [valid_from, valid_to): of a device, a node, or the site."""

    hold_id = dy.Int32(primary_key=True)
    node_id = dy.Int32(nullable=True)
    device_id = dy.Int32(nullable=True)
    kind = dy.String(check=lambda kind: kind.is_in(["reservation", "maintenance", "stranded"]))
    tenant_id = dy.Int32(nullable=True)
    valid_from = instant()
    valid_to = instant(nullable=True)


class Assets(dy.Schema):
    """From when to when something is on the books: each hour between is in one state."""

    asset = dy.String()
    device_id = dy.Int32(nullable=True)
    node_id = dy.Int32(nullable=True)
    capitalized_at = instant()
    disposed_at = instant(nullable=True)
