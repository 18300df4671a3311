"""Which table each stream of rows is copied to, and with which columns and types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import REAL

from collector.wire import Stream
from ingest.store.tables import samples

_KINDS: Final[dict[type[Any], Any]] = {
    sa.SmallInteger: pl.Int16,
    sa.Integer: pl.Int32,
    sa.BigInteger: pl.Int64,
    REAL: pl.Float32,
    sa.Text: pl.String,
    sa.DateTime: pl.Datetime("us", "UTC"),
}
_MADE_BY_THE_SERVER: Final = {"id", "received_at"}


@dataclass(frozen=True, slots=True)
class Target:
    """A table to copy to. ``partitioned`` tables need their day's partition first."""

    table: str
    schema: Mapping[str, Any]
    partitioned: bool

    def rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return accepted rows (``at_us`` beside ids and measurements) as rows of this table."""
        at = frame["at_us"].cast(pl.Datetime("us", "UTC")).alias("at")
        return pl.DataFrame([at if name == "at" else frame[name] for name in self.schema])


def _target(table: sa.Table) -> Target:
    kinds = {column.name: _KINDS[type(column.type)] for column in table.c if column.name not in _MADE_BY_THE_SERVER}
    return Target(table.name, kinds, partitioned=table in samples.PARTITIONED)


TARGETS: Final = {
    Stream.DEVICE: _target(samples.device_samples),
    Stream.NODE: _target(samples.node_samples),
    Stream.FABRIC: _target(samples.fabric_samples),
    Stream.ENGINE: _target(samples.engine_samples),
    Stream.DEVICE_EVENT: _target(samples.device_events),
    Stream.DEVICE_HEALTH: _target(samples.device_health),
    Stream.DEVICE_SHARE: _target(samples.device_shares),
    Stream.NODE_EVENT: _target(samples.node_events),
    Stream.AGENT: _target(samples.agent_health),
}
LATE: Final = {
    stream: _target(samples.LATE_OF[target.table]) for stream, target in TARGETS.items() if target.partitioned
}
"""Where a stream's rows go whose hour is sealed; streams without an entry are never sealed."""
NOT_SEALED: Final = {Stream.DEVICE_SHARE: ("label",)}
"""Columns left out of segments: words of people that nothing reads there, and that could not be taken back from files."""
