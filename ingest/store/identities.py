"""Ids of sites, nodes, devices, meters, ports, engines, epochs and tenants: found, or made, in bulk.

An id never changes, so a caller may cache what it gets for ever. Race-safe under READ COMMITTED: of two that
make the same identity one inserts, and the other waits for it and finds it. Call in a short transaction before the one
that copies samples. Where a device is belongs to ``placements``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from collector.wire import UNKNOWN_MODEL, DeviceRef
from ingest.store.tables import reference, samples
from ingest.store.tenancy import checked_path
from ingest.store.unnested import unnested

_Key = TypeVar("_Key", bound=tuple[Hashable, ...])
_OF_PROCESSORS = frozenset({"rapl", "rapl-dram"})
_ROWS_PER_STATEMENT = 10_000
"""Bounds the memory of one statement; rows travel as an array a column, so parameters are few whatever this is."""

_DUE_AGAIN: Final = sa.text(
    "INSERT INTO changes (site_id, from_at, to_at, kind) "
    "SELECT site_id, min(from_at), greatest(clock_timestamp(), max(from_at) + interval '1 microsecond'), 'devices' FROM ("
    "SELECT nodes.site_id, placements.valid_from AS from_at FROM placements JOIN nodes ON nodes.id = placements.node_id "
    "WHERE placements.device_id = ANY (:device_ids) AND placements.superseded_at IS NULL "
    "UNION ALL SELECT site_id, start_at FROM allocations WHERE device_id = ANY (:device_ids) AND superseded_at IS NULL"
    ") AS seen GROUP BY site_id"
)
"""What is kept of a device, its samples too, lies where it is placed or held."""


class UnknownParentError(LookupError):
    """A MIG instance names a board nobody has reported; the batch must list the board too."""


class EpochKey(NamedTuple):
    """What makes counters comparable: see ``epochs``."""

    node_id: int
    boot_id: str
    driver_epoch: int
    feed: int
    origin: int
    cadence_us: int


class EngineKey(NamedTuple):
    node_id: int
    name: str
    model: str


class NodeKey(NamedTuple):
    site_id: int
    name: str


class OnNode(NamedTuple):
    """A meter or fabric port by its node and name."""

    node_id: int
    name: str


def site_ids(conn: sa.Connection, names: Iterable[str]) -> dict[str, int]:
    """Return the id of each site; a new one gets time zone UTC until its configuration says otherwise."""
    return _by_name(conn, reference.sites, "name", names)


def tenant_ids(conn: sa.Connection, paths: Iterable[str]) -> dict[str, int]:
    """Return the id of each tenant path; raises TenantPathError for what is none."""
    return _by_name(conn, reference.tenants, "path", [checked_path(path) for path in paths])


def node_ids(conn: sa.Connection, keys: Iterable[NodeKey]) -> dict[NodeKey, int]:
    return _ids(conn, reference.nodes, {key: {} for key in keys}, NodeKey._fields)


def known_node(conn: sa.Connection, site: str, node: str) -> int | None:
    """Return the id of a node that exists, None where there is none of this name at the site."""
    sites, nodes = reference.sites, reference.nodes
    query = sa.select(nodes.c.id).join(sites, sites.c.id == nodes.c.site_id)
    found: int | None = conn.execute(query.where(sites.c.name == site, nodes.c.name == node)).scalar_one_or_none()
    return found


def node_name(conn: sa.Connection, node_id: int) -> str:
    """Return the name of a node that exists."""
    nodes = reference.nodes
    return str(conn.execute(sa.select(nodes.c.name).where(nodes.c.id == node_id)).scalar_one())


def meter_ids(conn: sa.Connection, keys: Iterable[OnNode], *, bills: bool = True) -> dict[OnNode, int]:
    """Return the id of each meter; ``bills`` holds for those made now and changes none that exist, as does what they cover."""
    rows = {key: {"bills": bills, "covers": _covers(key.name)} for key in keys}
    return _ids(conn, reference.meters, rows, OnNode._fields)


def _covers(name: str) -> str:
    """Return what a meter of this name sees of its node: RAPL sees processors and memory, but for psys, which is the platform."""
    source, _, zone = name.partition("/")
    return "part" if source in _OF_PROCESSORS and zone != "psys" else "it"


def port_ids(conn: sa.Connection, keys: Iterable[OnNode]) -> dict[OnNode, int]:
    return _ids(conn, samples.fabric_ports, {key: {} for key in keys}, OnNode._fields)


def engine_ids(conn: sa.Connection, keys: Iterable[EngineKey]) -> dict[EngineKey, int]:
    return _ids(conn, samples.engines, {key: {} for key in keys}, EngineKey._fields)


def epoch_ids(conn: sa.Connection, agent_versions: Mapping[EpochKey, str]) -> dict[EpochKey, int]:
    """Return the id of each epoch; the agent version is the one that opened it."""
    rows = {key: {"agent_version": version} for key, version in agent_versions.items()}
    return _ids(conn, samples.epochs, rows, EpochKey._fields)


def device_ids(conn: sa.Connection, devices: Iterable[DeviceRef]) -> dict[str, int]:
    """Return the id of each device by vendor UUID, boards before the MIG instances on them. Raises UnknownParentError.

    A description (vendor, model, kind, board, slice, memory) is what a device *is*, not something that is so for a time: a known UUID
    keeps the one it has, whatever is said of it later. But for one of model ``UNKNOWN_MODEL``, which says nothing: it is replaced by
    the first real one, once, and never comes back. A run of before repeats bit for bit, since ``described_at`` says until when
    nothing was known (analytics.io.load reads it so), and a change makes all hours the device was seen in due again.
    """
    known: dict[str, DeviceRef] = {}
    for device in devices:
        if device.uuid not in known or not _is_stub(device) or _is_stub(known[device.uuid]):
            known[device.uuid] = device
    boards = [device for device in known.values() if device.parent_uuid is None]
    ids = _device_ids(conn, boards, {})
    instances = [device for device in known.values() if device.parent_uuid is not None]
    if instances:
        wanted = {device.parent_uuid for device in instances if device.parent_uuid is not None} - ids.keys()
        found = _find(conn, reference.devices, [(uuid,) for uuid in wanted], ("uuid",))
        ids |= _device_ids(conn, instances, ids | {uuid: found[(uuid,)] for uuid in wanted if (uuid,) in found})
    return ids


def _is_stub(device: DeviceRef) -> bool:
    return device.model == UNKNOWN_MODEL


def _device_ids(conn: sa.Connection, devices: Iterable[DeviceRef], parents: Mapping[str, int]) -> dict[str, int]:
    rows: dict[tuple[str], dict[str, Any]] = {}
    for device in devices:
        if device.parent_uuid is not None and device.parent_uuid not in parents:
            raise UnknownParentError(
                f"device {device.uuid} is a part of {device.parent_uuid}, which nobody has reported"
            )
        rows[(device.uuid,)] = {
            "vendor": device.vendor,
            "model": device.model,
            "kind": device.kind,
            "parent_device_id": None if device.parent_uuid is None else parents[device.parent_uuid],
            "mig_profile": device.mig_profile,
            # Through text: the float's shortest spelling is what the agent meant, its binary expansion is not.
            "slice_ratio": Decimal(str(device.slice_ratio)),
            "accelerators": device.accelerators,
            "memory_bytes": device.memory_bytes,
        }
    ids = {uuid: identity for (uuid,), identity in _ids(conn, reference.devices, rows, ("uuid",)).items()}
    _describe(conn, {ids[uuid]: row for (uuid,), row in rows.items() if row["model"] != UNKNOWN_MODEL})
    return ids


def _describe(conn: sa.Connection, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Put real descriptions in the place of unknown ones, and make the hours of those devices due again."""
    table = reference.devices
    stubs: list[int] = []
    for chunk in _chunks(rows):
        stubs += conn.execute(
            sa.select(table.c.id).where(
                table.c.id == sa.any_(sa.cast(chunk, sa.ARRAY(sa.Integer))), table.c.model == UNKNOWN_MODEL
            )
        ).scalars()
    described = []
    for device_id in sorted(stubs):  # in order, so that two that describe the same devices wait for each other
        # Asked again in the update: who waited for another finds it described.
        statement = sa.update(table).where(table.c.id == device_id, table.c.model == UNKNOWN_MODEL)
        values = {**rows[device_id], "described_at": sa.func.clock_timestamp()}
        if conn.execute(statement.values(values)).rowcount:
            described.append(device_id)
    if described:
        conn.execute(_DUE_AGAIN, {"device_ids": described})


def _by_name(conn: sa.Connection, table: sa.Table, column: str, names: Iterable[str]) -> dict[str, int]:
    return {name: identity for (name,), identity in _ids(conn, table, {(n,): {} for n in names}, (column,)).items()}


def _ids(
    conn: sa.Connection, table: sa.Table, rows: Mapping[_Key, Mapping[str, Any]], key: Sequence[str]
) -> dict[_Key, int]:
    # Looked up first: an insert that conflicts would burn an id each time, and nearly all are known.
    found = _find(conn, table, rows, key)
    missing = [wanted for wanted in rows if wanted not in found]
    if missing:
        _insert(conn, table, {wanted: rows[wanted] for wanted in missing}, key)
        found |= _find(conn, table, missing, key)
    return {wanted: found[wanted] for wanted in rows}


def _insert(conn: sa.Connection, table: sa.Table, rows: Mapping[Any, Mapping[str, Any]], key: Sequence[str]) -> None:
    # In key order, so that two that insert overlapping sets wait for each other instead of deadlocking.
    for chunk in _chunks(sorted(rows)):
        values = [dict(zip(key, wanted, strict=True)) | dict(rows[wanted]) for wanted in chunk]
        columns = list(values[0])
        given = unnested(table, columns, [[row[name] for name in columns] for row in values])
        statement = insert(table).from_select(columns, sa.select(*given.c), include_defaults=False)
        conn.execute(statement.on_conflict_do_nothing(index_elements=list(key)))


def _find(conn: sa.Connection, table: sa.Table, keys: Iterable[Any], key: Sequence[str]) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for chunk in _chunks(keys):
        wanted = unnested(table, key, chunk)
        same = sa.and_(*(table.c[name] == wanted.c[name] for name in key))
        query = sa.select(*(table.c[name] for name in key), table.c.id).join_from(wanted, table, same)
        found |= {tuple(row[:-1]): row[-1] for row in conn.execute(query)}
    return found


def _chunks(keys: Iterable[Any]) -> Iterable[list[Any]]:
    iterator = iter(keys)
    while chunk := list(islice(iterator, _ROWS_PER_STATEMENT)):
        yield chunk
