"""What was written is what samples() reads, from where the catalog says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from collector.wire import Feed
from ingest.settings import Settings
from ingest.store.engine import Database
from ingest.store.samples import COLUMNS, samples
from tests.db.ingest_harness import batch_meta, body_of, device_row, make_site, now_us, run, send

pytestmark = pytest.mark.db
HOUR_US = 3_600_000_000


def instant(at_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)


def filled(db: Database, *bodies: bytes) -> int:
    site = make_site(db)

    async def scenario(client: httpx.AsyncClient) -> None:
        for body in bodies:
            assert (await send(client, body, site.node_tokens["node-1"])).status_code == 200

    run(Settings(db), scenario)
    return site.site_id


def test_rows_come_back_as_sent_with_what_their_epoch_says(db: Database) -> None:
    at = now_us() // HOUR_US * HOUR_US - HOUR_US + 60_000_000
    old = at - 100 * HOUR_US
    values = {
        name: 7
        for name in COLUMNS
        if name not in {"reading", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio"}
    }
    body = body_of(
        batch_meta(),
        device_row(at, 1, **values, sm_active_ratio=0.25),
        device_row(at, 0, energy_mj=None),
        device_row(old, 0, energy_mj=5),  # past hot retention: kept with the late rows
    )
    site_id = filled(db, body)
    found = samples(db, instant(old), instant(at + 1), list(COLUMNS), site_id=site_id).collect()
    assert found.select("at", "energy_mj", "feed", "origin", "cadence_us").rows() == [
        (instant(old), 5, 1, 4, 10_000_000),
        (instant(at), None, 1, 4, 10_000_000),
        (instant(at), 7, 1, 4, 10_000_000),
    ]
    last = found.row(2, named=True)
    assert {name: last[name] for name in values} == values
    assert last["sm_active_ratio"] == 0.25
    assert last["tensor_active_ratio"] is None
    # Half-open, and narrowed to one device.
    assert samples(db, instant(old), instant(at), ["energy_mj"]).collect().height == 1
    one = samples(db, instant(at), instant(at + 1), ["energy_mj"], devices=[last["device_id"]]).collect()
    assert one["energy_mj"].to_list() == [7]
    assert samples(db, instant(at), instant(at + 1), ["energy_mj"], site_id=site_id + 1).collect().is_empty()


def test_the_most_direct_feed_of_a_device_and_hour_is_the_one_read(db: Database) -> None:
    first = now_us() // HOUR_US * HOUR_US - 2 * HOUR_US
    bodies = [
        body_of(batch_meta(feed=Feed.DCGM), device_row(first, energy_mj=1), device_row(first + HOUR_US, energy_mj=2)),
        body_of(batch_meta(), device_row(first + 1, energy_mj=3)),
    ]
    filled(db, *bodies)
    found = samples(db, instant(first), instant(first + 2 * HOUR_US), ["energy_mj"]).collect()
    assert found["energy_mj"].to_list() == [3, 2]


def test_unknown_columns_and_naive_instants_are_refused(db: Database) -> None:
    at = instant(now_us())
    with pytest.raises(ValueError, match="no column colour"):
        samples(db, at, at, ["colour"])
    with pytest.raises(ValueError, match="UTC-aware"):
        samples(db, at.replace(tzinfo=None), at, ["energy_mj"])
