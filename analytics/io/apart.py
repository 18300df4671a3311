"""Reads the readings of some devices of a batch at a time, in the process that began the batch or in another one, in one snapshot.

What was read is told the same way wherever that was, so that the record of a run does not depend on it. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import dataframely as dy
import polars as pl
import psycopg
from psycopg import sql

from analytics.frames import DeviceReadings, Devices
from analytics.inputs import UsageInputs, Window
from analytics.io.manifest import RowsDigest
from analytics.io.open_rows import Look
from analytics.io.readings import Silences, load_readings
from analytics.io.shares import Looks
from analytics.policy import Policy
from ingest.store.engine import Database
from ingest.store.samples import FileRead, SampleSession, sample_session
from ingest.store.segments import Segments


@dataclass(frozen=True, slots=True)
class Apart:
    """Some devices of a batch whose readings another process reads, in the same snapshot: all that it needs for it."""

    site_id: int
    snapshot: str
    """As it was exported; another session can take it over as long as the one that did is open."""
    metered: pl.DataFrame
    boards: tuple[int, ...]
    """Those of its devices that are shared boards."""
    devices: pl.DataFrame
    """With their instances."""
    job_ids: tuple[int, ...]
    """Of everybody who holds something at the site."""
    window: Window
    policy: Policy
    is_hashed: bool
    is_shown: bool
    is_digested: bool
    """Whether rows were read outside of segments already, so that all readings are hashed."""


@dataclass(frozen=True, slots=True)
class ReadApart:
    """What a run is to know of what another process read for it."""

    silences: tuple[Silences, ...]
    files: frozenset[FileRead]
    rows_outside: int
    digests: RowsDigest
    not_digested: tuple[pl.DataFrame, ...]
    """Devices whose readings were not hashed, since no row was outside of segments so far."""
    seen: Mapping[str, RowsDigest]


@dataclass(kw_only=True)
class Reader:
    """Reads the readings of some devices at a time, in one snapshot, and takes note of what it read."""

    session: SampleSession
    site_id: int
    metered: pl.DataFrame
    """Devices that have readings of their own."""
    policy: Policy
    looks: Looks
    is_hashed: bool = True
    """Whether what is read is put on record; of the open window, which is read every few seconds and never repeated, it is not."""
    is_shown: bool = False
    """Whether readings have what is for dashboards alone."""
    digests: RowsDigest = field(default_factory=RowsDigest)
    silences: list[Silences] = field(default_factory=list)
    _not_digested: list[pl.DataFrame] = field(default_factory=list)
    _seen: dict[str, RowsDigest] = field(
        default_factory=lambda: {"device_shares": RowsDigest(), "instance_activity": RowsDigest()}
    )

    def read(self, part: UsageInputs, *, digested: bool = False) -> UsageInputs:
        """Return the inputs of some devices with their readings; each device is read once. ``digested``: hashed wherever they lie."""
        devices = self.metered.filter(pl.col("device_id").is_in(part.devices["device_id"].implode()))
        shares, activity = self.looks.of(part.devices["device_id"])
        readings, silences = self._readings(devices, part)
        self.silences.append(silences)
        part = replace(part, readings=readings, device_shares=shares, instance_activity=activity)
        if not self.is_hashed:
            return part
        self._seen["device_shares"].add(shares)
        self._seen["instance_activity"].add(activity)
        if digested or self.session.rows_outside:
            self.digests.add(readings)
        else:
            self._not_digested.append(devices)
        return part

    def told(self) -> ReadApart:
        """Return what whoever asked for it is to know of what was read here."""
        return ReadApart(
            tuple(self.silences),
            frozenset(self.session.files_read),
            self.session.rows_outside,
            self.digests,
            tuple(self._not_digested),
            self._seen,
        )

    def _readings(self, devices: pl.DataFrame, usage: UsageInputs) -> tuple[dy.DataFrame[DeviceReadings], Silences]:
        return load_readings(
            self.session,
            self.site_id,
            Devices.cast(devices),
            usage.epochs,
            usage.placements,
            usage.window,
            self.policy,
            is_shown=self.is_shown,
        )


@contextmanager
def begin_apart(
    database: Database, part: Apart, *, application: str, segments: Segments | None = None, look: Look | None = None
) -> Iterator[Reader]:
    """Give what reads the devices of a batch that another process began, for a block; that process is to be in its own until then."""
    with sample_session(database, segments, snapshot=part.snapshot, application=application) as session:
        if look is not None:
            with database.connect("worker", autocommit=True, application=application) as connection:
                _begin_look(connection, part.snapshot, look)
            session = look.session(session)  # noqa: PLW2901
        looks = Looks(session, part.site_id, part.window, part.boards, part.devices, part.job_ids)
        yield Reader(
            session=session,
            site_id=part.site_id,
            metered=part.metered,
            policy=part.policy,
            looks=looks,
            is_hashed=part.is_hashed,
            is_shown=part.is_shown,
        )


def _begin_look(connection: psycopg.Connection[Any], snapshot: str, look: Look) -> None:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
        look.begin(connection)
