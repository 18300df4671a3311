"""What DuckDB is given of PostgreSQL: dated rows as they are told, and nothing resolved. Read by Arrow, inside the peer's time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import polars as pl

from analytics.model.sensors import MOST_W
from analytics.policy import GapPolicy
from bench.attribution_stand import SITE_ID
from ingest.store.arrow import command_session
from ingest.store.engine import Database

_ASKED: Final = {
    "device": """
SELECT device.id AS device_id, uuid, placed.node_id, kind, model, accelerators, parent_device_id, greatest(1, (slice_ratio * 1000000)::integer) AS slice_ppm,
       NULL::integer AS idle_power_mw FROM devices AS device JOIN placements AS placed ON placed.device_id = device.id AND placed.valid_to IS NULL
JOIN nodes ON nodes.id = placed.node_id WHERE site_id = {site}
UNION ALL
SELECT device.id, uuid, nodes.id, kind, model, accelerators, NULL, 1000000, NULL FROM devices AS device JOIN nodes ON true JOIN sites ON sites.id = nodes.site_id
WHERE kind = 'chassis' AND uuid = 'chassis:' || sites.name || '/' || nodes.name AND site_id = {site}
""",
    "meter": "SELECT id AS meter_id, node_id, name FROM meters WHERE node_id IS NOT NULL AND bills AND covers = 'it'",
    "allocation": """
SELECT held.id AS allocation_id, job_id, concat_ws('|', jobs.cluster, jobs.native_id, extract(epoch FROM jobs.started_at)::text) AS job_key, device_id, node_id,
       held.accelerators, (share_ratio * 1000000)::integer AS share_ppm, (extract(epoch FROM start_at) * 1000000)::bigint AS start_us,
       (extract(epoch FROM coalesce(end_at, ended_at)) * 1000000)::bigint AS end_us
FROM allocations AS held JOIN jobs ON jobs.id = held.job_id WHERE held.site_id = {site} AND superseded_at IS NULL
""",
    "job": """
SELECT id AS job_id, cluster, native_id, (extract(epoch FROM started_at) * 1000000)::bigint AS started_us, account, partition, user_name, namespace, origin,
       CASE WHEN binding_id IS NULL THEN tenant_id END AS named_tenant_id FROM jobs WHERE site_id = {site}
""",
    "binding": "SELECT id AS binding_id, position, tenant_id, cluster, account, partition, user_name, namespace, {dated} FROM bindings WHERE label IS NULL AND api_key IS NULL AND tag IS NULL",
    "price": "SELECT id, provider, model, meter, amount::text AS amount, {dated} FROM prices",
    "tariff": "SELECT id, amount_per_kwh::text AS amount, {dated} FROM tariffs WHERE site_id = {site} AND metering_point = 'facility'",
    "grid": "SELECT intensity.id, gco2e_per_kwh::text AS amount, {dated} FROM intensity JOIN sites ON sites.grid_zone = intensity.grid_zone "
    "WHERE sites.id = {site} AND basis = 'location'",
    "facility": "SELECT id, factor::text AS amount, {dated} FROM facility_factors WHERE site_id = {site}",
    "epoch": "SELECT epochs.id AS epoch_id, node_id, boot_id, driver_epoch, feed, epochs.origin, cadence_us FROM epochs "
    "JOIN nodes ON nodes.id = node_id WHERE site_id = {site}",
}
_DATED: Final = "(extract(epoch FROM valid_from) * 1000000)::bigint AS valid_from_us, (extract(epoch FROM valid_to) * 1000000)::bigint AS valid_to_us"


def given(database: Database, hours: Sequence[datetime]) -> dict[str, pl.DataFrame]:
    """Return each table by its name in the SQL. Amounts are decimal text; instants are microseconds."""
    with command_session(database, "admin") as session:
        told = {name: session.fetch(query.format(site=SITE_ID, dated=_DATED)) for name, query in _ASKED.items()}
    # Data sheets are constants of the product, as they would be of any.
    sheet = [(place, pattern, watts * 1_000) for place, (pattern, watts) in enumerate(MOST_W)]
    sheet.append((len(sheet), "", GapPolicy().max_power_mw))
    return told | {
        "hour": pl.DataFrame(
            {"hour_us": [int(at.timestamp()) * 1_000_000 for at in hours]}, schema={"hour_us": pl.Int64}
        ),
        "sheet": pl.DataFrame(
            sheet, schema={"place": pl.Int32, "pattern": pl.String, "most_mw": pl.Int64}, orient="row"
        ),
    }
