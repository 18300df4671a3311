"""Who reports: each node with what is known of its agent, and the silence of those that should and do not.

Silence is never read as idleness: a node that reported lately and stopped is a finding until it reports again. Nodes that
only imports speak of have no agent and are not asked after.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from collector.wire import Feed, Origin

LATE_AFTER: Final = timedelta(seconds=60)
"""Two batches in a row are missing."""
SILENT_AFTER: Final = timedelta(minutes=5)
GONE_AFTER: Final = timedelta(days=7)
"""A node that has been away for longer, and that no scheduler uses, was taken out of service; its silence is history."""
AGENT_SILENT: Final = "agent_silent"

_NODES: Final = """
WITH heard AS (
    SELECT node_id, max(last_seen_at) AS last_seen_at FROM spools GROUP BY node_id
), latest AS (
    SELECT DISTINCT ON (epochs.node_id) epochs.node_id, health.*
    FROM agent_health AS health JOIN epochs ON epochs.id = health.epoch_id
    WHERE health.at > %(now)s - %(silent_after)s ORDER BY epochs.node_id, health.at DESC
), spoke AS (
    SELECT DISTINCT ON (node_id) node_id, agent_version, origin FROM epochs WHERE feed <> %(imported)s
    ORDER BY node_id, first_seen_at DESC
), scheduled AS (
    SELECT DISTINCT coalesce(allocations.node_id, placements.node_id) AS node_id
    FROM allocations LEFT JOIN placements ON placements.device_id = allocations.device_id
        AND placements.superseded_at IS NULL
    WHERE allocations.superseded_at IS NULL AND coalesce(allocations.end_at, %(now)s) > %(now)s - %(gone_after)s
)
SELECT sites.name AS site, nodes.name AS node, heard.last_seen_at, spoke.agent_version, spoke.origin,
       scheduled.node_id IS NOT NULL AS scheduled,
       latest.sample_us, latest.samples, latest.samples_missed, latest.probe_errors, latest.probe_errors_by_kind,
       latest.spool_bytes, latest.oldest_unsent_us, latest.dropped_batches, latest.cpu_ratio, latest.rss_bytes,
       latest.durable, latest.released
FROM nodes JOIN sites ON sites.id = nodes.site_id
LEFT JOIN heard ON heard.node_id = nodes.id LEFT JOIN latest ON latest.node_id = nodes.id
LEFT JOIN spoke ON spoke.node_id = nodes.id LEFT JOIN scheduled ON scheduled.node_id = nodes.id
WHERE spoke.node_id IS NOT NULL OR scheduled.node_id IS NOT NULL
ORDER BY sites.name, nodes.name
"""
# One finding an episode: the instant of the last word is what it is known by. A word from the node ends it.
_RAISE: Final = """
INSERT INTO findings (dedupe_key, site_id, kind, start_at, end_at, evidence, confidence, origin)
SELECT format('%%s/%%s/%%s', %(kind)s::text, nodes.id, extract(epoch FROM heard.last_seen_at)), nodes.site_id, %(kind)s,
       heard.last_seen_at, %(now)s, jsonb_build_object('node', nodes.name, 'last_seen_at', heard.last_seen_at), 1.0,
       (SELECT origin FROM epochs WHERE epochs.node_id = nodes.id AND feed <> %(imported)s
        ORDER BY first_seen_at DESC LIMIT 1)
FROM (SELECT node_id, max(last_seen_at) AS last_seen_at FROM spools GROUP BY node_id) AS heard
JOIN nodes ON nodes.id = heard.node_id
WHERE heard.last_seen_at < %(now)s - %(silent_after)s AND heard.last_seen_at > %(now)s - %(gone_after)s
AND EXISTS (SELECT FROM epochs WHERE epochs.node_id = nodes.id AND feed <> %(imported)s)
ON CONFLICT (dedupe_key) DO UPDATE SET end_at = excluded.end_at, recorded_at = now()
RETURNING evidence ->> 'node', xmax = 0
"""


TOLD_BY_AGENTS: Final = (
    "attribution_conflict",
    "hooks_held",
    "job_end_missing",
    "job_leftover",
    "node_name_mismatch",
    "order_contested",
    "order_not_undone",
    "order_previous_unknown",
    "spool_damaged",
)
"""Node events somebody has to look at: a bill or a board may be other than it should. They become findings of their kind."""
_TELL: Final = """
INSERT INTO findings (dedupe_key, site_id, kind, device_id, start_at, end_at, evidence, confidence, origin)
SELECT DISTINCT ON (dedupe_key) dedupe_key, site_id, kind, device_id, at, at, evidence, 1.0, origin FROM (
    SELECT concat_ws('/', events.kind, nodes.id, events.subject, extract(epoch FROM events.at)) AS dedupe_key,
           nodes.site_id, events.kind, devices.id AS device_id, events.at, epochs.origin,
           jsonb_build_object('node', nodes.name, 'subject', events.subject, 'detail', events.detail) AS evidence
    FROM node_events AS events JOIN epochs ON epochs.id = events.epoch_id JOIN nodes ON nodes.id = epochs.node_id
    LEFT JOIN devices ON devices.uuid = events.subject
    WHERE events.kind = ANY (%(kinds)s) AND events.at > %(now)s - %(gone_after)s
) AS told ON CONFLICT (dedupe_key) DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node: ``state`` is reporting, late, silent, gone or no_agent (its scheduler uses it, no agent ever spoke).

    Figures of the agent are those of its last five minutes, null where it sent none or is an older one.
    """

    site: str
    node: str
    state: str
    last_seen_at: datetime | None
    agent_version: str | None
    origin: str | None
    scheduled: bool
    sample_us: int | None
    samples: int | None
    samples_missed: int | None
    probe_errors: int | None
    probe_errors_by_kind: str | None
    spool_bytes: int | None
    oldest_unsent_us: int | None
    dropped_batches: int | None
    cpu_ratio: float | None
    rss_bytes: int | None
    durable: bool | None
    released: bool | None


def fleet(connection: psycopg.Connection[Any], now: datetime) -> list[NodeStatus]:
    """Return every node that an agent spoke for or a scheduler uses, by site and name. As the worker role."""
    given = {"now": now, "silent_after": SILENT_AFTER, "gone_after": GONE_AFTER, "imported": int(Feed.IMPORT)}
    with connection.cursor(row_factory=dict_row) as cursor:
        return [_status(row, now) for row in cursor.execute(_NODES, given)]


def raise_silences(connection: psycopg.Connection[Any], now: datetime) -> list[str]:
    """Raise a finding for each agent that fell silent, or extend it; return the nodes that are newly silent."""
    given = {
        "kind": AGENT_SILENT,
        "now": now,
        "silent_after": SILENT_AFTER,
        "gone_after": GONE_AFTER,
        "imported": int(Feed.IMPORT),
    }
    return sorted(node for node, is_new in connection.execute(_RAISE, given) if is_new)


def raise_told(connection: psycopg.Connection[Any], now: datetime) -> int:
    """Raise what agents told and somebody has to look at as findings, each once; return how many are new."""
    given = {"kinds": list(TOLD_BY_AGENTS), "now": now, "gone_after": GONE_AFTER}
    return connection.execute(_TELL, given).rowcount


def _status(row: dict[str, Any], now: datetime) -> NodeStatus:
    origin = row.pop("origin")
    flags = {name: None if row[name] is None else bool(row[name]) for name in ("durable", "released")}
    return NodeStatus(
        **{**row, **flags},
        state=_state(row["last_seen_at"], now, scheduled=row["scheduled"]),
        origin=None if origin is None else Origin(origin).name.lower(),
    )


def _state(last_seen_at: datetime | None, now: datetime, *, scheduled: bool) -> str:
    if last_seen_at is None:
        return "no_agent"
    age = now - last_seen_at
    if age > GONE_AFTER and not scheduled:
        return "gone"
    if age > SILENT_AFTER:
        return "silent"
    return "late" if age > LATE_AFTER else "reporting"
