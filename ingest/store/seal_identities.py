"""What the ids in a segment mean, so that its file can be read without the database."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from collector.wire import Stream
from ingest.store.arrow import Fetch

_DEVICES: Final = """
SELECT devices.id, devices.uuid, devices.model, devices.kind, parent.uuid AS parent, nodes.name AS node
FROM devices LEFT JOIN devices AS parent ON parent.id = devices.parent_device_id
LEFT JOIN LATERAL (SELECT node_id FROM placements WHERE placements.device_id = devices.id
                   ORDER BY superseded_at DESC NULLS FIRST, valid_from DESC LIMIT 1) AS placed ON true
LEFT JOIN nodes ON nodes.id = placed.node_id WHERE devices.id = ANY ('{ids}') ORDER BY devices.id
"""
_ON_NODES: Final = """
SELECT found.id, found.name{more}, nodes.name AS node FROM {table} AS found JOIN nodes ON nodes.id = found.node_id
WHERE found.id = ANY ('{ids}') ORDER BY found.id
"""
_EPOCHS: Final = """
SELECT epochs.id, nodes.name AS node, boot_id, driver_epoch, feed, origin, cadence_us
FROM epochs JOIN nodes ON nodes.id = epochs.node_id WHERE epochs.id = ANY ('{ids}') ORDER BY epochs.id
"""
_KEYS: Final = {
    Stream.DEVICE: _DEVICES,
    Stream.DEVICE_HEALTH: _DEVICES,
    Stream.DEVICE_SHARE: _DEVICES,
    Stream.NODE: _ON_NODES.replace("{table}", "meters").replace("{more}", ", found.bills"),
    Stream.FABRIC: _ON_NODES.replace("{table}", "fabric_ports").replace("{more}", ""),
    Stream.ENGINE: _ON_NODES.replace("{table}", "engines").replace("{more}", ", found.model"),
}


def known_keys(fetch: Fetch, stream: Stream, ids: Collection[int]) -> dict[str, list[Any]]:
    """Return what a stream's keys mean: columns by name, as lists of equal length. Empty where epochs are the keys."""
    query = _KEYS.get(stream)
    return {} if query is None else _columns(fetch, query, ids)


def known_epochs(fetch: Fetch, ids: Collection[int]) -> dict[str, list[Any]]:
    """Return what epochs mean, likewise."""
    return _columns(fetch, _EPOCHS, ids)


def _columns(fetch: Fetch, query: str, ids: Collection[int]) -> dict[str, list[Any]]:
    array = "{" + ",".join(str(int(number)) for number in sorted(ids)) + "}"
    return fetch(query.format(ids=array)).to_dict(as_series=False)
