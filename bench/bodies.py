"""Bodies and rows as real nodes send them: eight GPUs, every column a recent data-centre GPU fills, deterministic."""

from __future__ import annotations

import random
import time
import uuid
from array import array
from typing import Any, Final

from collector.arrow import TYPECODES, ColumnData
from collector.batch import Columns, encode_body
from collector.wire import COLUMNS, BatchMeta, DeviceRef, Feed, Origin, Stream

DEVICES: Final = 8
# Not supported by an H100: null in every row, as on the real thing.
NOT_SUPPORTED: Final = frozenset({"throttle_sync_boost_ns", "encoder_util_percent", "decoder_util_percent"})


class Node:
    """One sender and its next batch number."""

    def __init__(self, number: int) -> None:
        generator = random.Random(number)  # noqa: S311 - repeatable data
        self.name = f"node-{number:05d}"
        self._spool = str(uuid.uuid4())  # of this run: a batch number must not have been seen before
        self._sequence = 0
        self.devices = tuple(
            DeviceRef(
                uuid=f"GPU-{uuid.UUID(int=generator.getrandbits(128))}",
                model="NVIDIA H100 80GB HBM3",
                memory_bytes=85_520_809_984,
                pci_bus_id=f"00000000:{0x18 + index:02X}:00.0",
            )
            for index in range(DEVICES)
        )
        self._boot_id = str(uuid.UUID(int=generator.getrandbits(128)))

    def body(self, columns: Columns) -> bytes:
        """Return the next batch with these rows."""
        self._sequence += 1
        now_us = time.time_ns() // 1_000
        meta = BatchMeta(
            spool=self._spool,
            sequence=self._sequence,
            node=self.name,
            boot_id=self._boot_id,
            driver_epoch=1,
            feed=Feed.NATIVE,
            origin=Origin.SIMULATED,
            cadence_us=1_000_000,
            agent_version="0.1.0",
            created_at_us=now_us,
            monotonic_us=now_us % 10**12,
            clock_offset_us=0,
            devices=self.devices,
        )
        return encode_body(meta, {Stream.DEVICE: columns})


def columns(rows: int, last_at_us: int, seed: int = 1) -> Columns:
    """Return ``rows`` rows of eight devices at 1 s, the last of them at ``last_at_us``."""
    generator = random.Random(seed)  # noqa: S311 - repeatable data
    data: dict[str, ColumnData] = {}
    for column in COLUMNS[Stream.DEVICE]:
        if column.name not in NOT_SUPPORTED:
            values = _values(column.name, column.type, rows, last_at_us, generator)
            data[column.name] = ColumnData(array(TYPECODES[column.type], values))
    return Columns(rows, data)


def _values(name: str, kind: str, rows: int, last_at_us: int, generator: random.Random) -> list[Any]:
    seconds = [(rows - 1 - row) // DEVICES for row in range(rows)]
    if name == "at_us":
        return [last_at_us - back * 1_000_000 for back in seconds]
    if name == "device":
        return [row % DEVICES for row in range(rows)]
    if name == "reading":
        return [0] * rows
    if name == "span_us":
        return [1_000_000] * rows
    if name == "energy_mj":
        return [
            9 * 10**11 + (row % DEVICES) * 10**9 - back * 512_345 + generator.randrange(9_999)
            for row, back in enumerate(seconds)
        ]
    if kind == "f32":
        return [generator.random() for _ in range(rows)]
    if kind == "i16":
        return [generator.randrange(40, 90) for _ in range(rows)]
    if kind == "i32":
        return [generator.randrange(300_000, 700_000) for _ in range(rows)]
    return [7 * 10**9 - back * 1_000 for back in seconds]
