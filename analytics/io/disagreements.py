"""Where schedulers and agents say different things of a job: a finding each, so that nothing of it is silent.

Who is believed is settled when the words come in (ingest.store.job_holds): agents on the devices they see, schedulers on the
rest. The books balance either way. What is found here is what somebody has to look at: a bill may be other than it should, or
a job runs where nobody planned it. A finding is withdrawn when the sources agree, as late words often make them.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

HELD_AFTER_END: Final = "held_after_end"
"""Agents see devices held by a job that its scheduler ended."""
DEVICES_DISAGREE: Final = "devices_disagree"
"""On a node, agents see a job hold another number of devices than the scheduler gave it there."""
UNSEEN_BY_AGENT: Final = "job_unseen_by_agent"
"""A scheduler gave a job devices of a node whose agent, which does tell of others, saw it hold none."""
UNKNOWN_TO_SCHEDULER: Final = "job_unknown_to_scheduler"
"""Agents see a job of a cluster whose scheduler is watched and does not know it."""
SCHEDULERS_DISAGREE: Final = "schedulers_disagree"
"""Two schedulers' words on what a job holds differ."""
DEVICES_UNKNOWN: Final = "node_devices_unknown"
"""A scheduler gave jobs accelerators of a node of which no device is known: their time is in no bill."""
TWO_CLUSTERS: Final = "pod_in_two_clusters"
"""Sources name one pod under two names of clusters: it is two jobs that claim one device, and neither is billed for it."""
KINDS: Final = (
    HELD_AFTER_END,
    DEVICES_DISAGREE,
    UNSEEN_BY_AGENT,
    UNKNOWN_TO_SCHEDULER,
    SCHEDULERS_DISAGREE,
    DEVICES_UNKNOWN,
    TWO_CLUSTERS,
)
LOOK_BACK: Final = timedelta(days=7)
SETTLED_AFTER: Final = timedelta(minutes=15)
"""Words of one event come within minutes: an epilog, slurmdbd's delay, a round of a watcher."""

# Each selects dedupe_key, site_id, kind, job_id, start_at, end_at, evidence, origin.
_HELD_AFTER_END: Final = """
SELECT 'held_after_end/' || jobs.id, jobs.site_id, 'held_after_end', jobs.id, jobs.ended_at,
       max(coalesce(held.end_at, %(now)s)),
       jsonb_build_object('job', jobs.native_id, 'cluster', jobs.cluster, 'scheduler', jobs.source, 'ended_at', jobs.ended_at,
                          'still_held', bool_or(held.end_at IS NULL), 'devices', jsonb_agg(DISTINCT devices.uuid)), jobs.origin
FROM jobs JOIN allocations AS held ON held.job_id = jobs.id AND held.superseded_at IS NULL
JOIN devices ON devices.id = held.device_id
WHERE jobs.source <> 'agent' AND jobs.ended_at > %(from)s
AND coalesce(held.end_at, %(now)s) > jobs.ended_at + %(settled)s GROUP BY jobs.id
"""
# Shares of one device are as many devices as they are jobs' rows: only whole devices and MIG instances can be counted.
_DEVICES_DISAGREE: Final = """
WITH listed AS (
    SELECT reports.job_id, reports.source, hold.value ->> 0 AS node, sum((hold.value ->> 3)::integer) AS accelerators
    FROM job_reports AS reports JOIN jobs ON jobs.id = reports.job_id,
         jsonb_array_elements(reports.facts -> 'holds' -> 1) AS hold
    WHERE coalesce(jobs.ended_at, %(now)s) > %(from)s AND jobs.started_at < %(now)s - %(settled)s
    AND hold.value ->> 0 IS NOT NULL GROUP BY 1, 2, 3
), seen AS (
    SELECT held.job_id, nodes.name AS node, count(DISTINCT held.device_id) AS devices, jsonb_agg(DISTINCT devices.uuid) AS uuids
    FROM allocations AS held JOIN placements ON placements.device_id = held.device_id AND placements.superseded_at IS NULL
    JOIN nodes ON nodes.id = placements.node_id JOIN devices ON devices.id = held.device_id
    WHERE held.superseded_at IS NULL AND devices.kind IN ('gpu', 'mig') AND held.job_id IN (SELECT job_id FROM listed)
    GROUP BY 1, 2 HAVING bool_and(held.share_ratio IS NULL)
)
SELECT concat_ws('/', 'devices_disagree', jobs.id, seen.node), jobs.site_id, 'devices_disagree', jobs.id, jobs.started_at,
       coalesce(jobs.ended_at, %(now)s),
       jsonb_build_object('job', jobs.native_id, 'cluster', jobs.cluster, 'node', seen.node, 'scheduler', listed.source,
                          'by_scheduler', listed.accelerators, 'by_agent', seen.devices, 'devices', seen.uuids), jobs.origin
FROM listed JOIN seen USING (job_id, node) JOIN jobs ON jobs.id = job_id WHERE listed.accelerators <> seen.devices
"""
_UNSEEN: Final = """
SELECT concat_ws('/', 'job_unseen_by_agent', jobs.id, nodes.id), jobs.site_id, 'job_unseen_by_agent', jobs.id, held.start_at,
       coalesce(held.end_at, %(now)s),
       jsonb_build_object('job', jobs.native_id, 'cluster', jobs.cluster, 'node', nodes.name, 'scheduler', jobs.source,
                          'accelerators', held.accelerators), jobs.origin
FROM allocations AS held JOIN jobs ON jobs.id = held.job_id JOIN nodes ON nodes.id = held.node_id
WHERE held.superseded_at IS NULL AND coalesce(held.end_at, %(now)s) > %(from)s
AND coalesce(held.end_at, %(now)s) > held.start_at + %(settled)s AND jobs.source <> 'agent'
-- The agent was there all along, and is one that says whose devices are.
AND EXISTS (SELECT FROM epochs WHERE epochs.node_id = nodes.id AND epochs.feed = 1 AND epochs.first_seen_at < held.start_at)
AND EXISTS (SELECT FROM spools WHERE spools.node_id = nodes.id AND spools.last_seen_at > held.start_at + %(settled)s)
AND EXISTS (
    SELECT FROM placements JOIN allocations AS other ON other.device_id = placements.device_id AND other.superseded_at IS NULL
    WHERE placements.node_id = nodes.id AND placements.superseded_at IS NULL
    AND coalesce(other.end_at, %(now)s) > held.start_at - interval '7 days'
)
"""
_UNKNOWN: Final = """
SELECT 'job_unknown_to_scheduler/' || jobs.id, jobs.site_id, 'job_unknown_to_scheduler', jobs.id, jobs.started_at,
       coalesce(jobs.ended_at, %(now)s),
       jsonb_build_object('job', jobs.native_id, 'cluster', jobs.cluster, 'devices', (
           SELECT jsonb_agg(DISTINCT devices.uuid) FROM allocations AS held JOIN devices ON devices.id = held.device_id
           WHERE held.job_id = jobs.id AND held.superseded_at IS NULL)), jobs.origin
FROM jobs WHERE jobs.source = 'agent' AND jobs.started_at < %(now)s - %(settled)s - interval '15 minutes'
AND coalesce(jobs.ended_at, %(now)s) > %(from)s
-- Its scheduler was watched before and after.
AND EXISTS (SELECT FROM job_reports JOIN jobs AS known ON known.id = job_reports.job_id
            WHERE known.cluster = jobs.cluster AND known.site_id = jobs.site_id AND job_reports.source <> 'hint'
            AND known.started_at < jobs.started_at)
AND EXISTS (SELECT FROM job_reports JOIN jobs AS known ON known.id = job_reports.job_id
            WHERE known.cluster = jobs.cluster AND known.site_id = jobs.site_id AND job_reports.source <> 'hint'
            AND job_reports.recorded_at > jobs.started_at + %(settled)s)
"""
_SCHEDULERS: Final = """
SELECT 'schedulers_disagree/' || jobs.id, jobs.site_id, 'schedulers_disagree', jobs.id, jobs.started_at,
       coalesce(jobs.ended_at, %(now)s),
       jsonb_build_object('job', jobs.native_id, 'cluster', jobs.cluster,
                          'holds', jsonb_object_agg(reports.source, reports.facts -> 'holds' -> 1)), jobs.origin
FROM jobs JOIN job_reports AS reports ON reports.job_id = jobs.id AND reports.source <> 'hint' AND reports.facts ? 'holds'
WHERE coalesce(jobs.ended_at, %(now)s) > %(from)s
GROUP BY jobs.id HAVING count(DISTINCT reports.facts -> 'holds' -> 1) > 1
"""
# Of a node, not of a job: one finding however many jobs ran there.
_DEVICES_UNKNOWN: Final = """
SELECT 'node_devices_unknown/' || nodes.id, nodes.site_id, 'node_devices_unknown', NULL::bigint, min(held.start_at),
       max(coalesce(held.end_at, %(now)s)),
       jsonb_build_object('node', nodes.name, 'jobs', count(DISTINCT held.job_id), 'accelerators', max(held.accelerators),
                          'unbilled_accelerator_s', round(sum(held.accelerators
                              * extract(epoch FROM coalesce(held.end_at, %(now)s) - held.start_at)))), max(jobs.origin)
FROM allocations AS held JOIN nodes ON nodes.id = held.node_id JOIN jobs ON jobs.id = held.job_id
WHERE held.superseded_at IS NULL AND coalesce(held.end_at, %(now)s) > %(from)s AND held.start_at < %(now)s - %(settled)s
AND NOT EXISTS (SELECT FROM placements WHERE placements.node_id = nodes.id AND placements.superseded_at IS NULL)
GROUP BY nodes.id
"""
# A pod's UID is one pod's in the whole world, so two clusters of it are one under two names. One finding a pair of names.
_TWO_CLUSTERS: Final = """
WITH twice AS (
    SELECT native_id, array_agg(DISTINCT cluster ORDER BY cluster) AS clusters, min(site_id) AS site_id,
           min(started_at) AS start_at, max(coalesce(ended_at, %(now)s)) AS end_at, max(origin) AS origin,
           array_agg(DISTINCT cluster) FILTER (WHERE source = 'agent') AS agents
    FROM jobs WHERE length(native_id) = 36 AND native_id ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
    AND coalesce(ended_at, %(now)s) > %(from)s
    GROUP BY native_id HAVING count(DISTINCT cluster) > 1
)
SELECT 'pod_in_two_clusters/' || array_to_json(clusters), site_id, 'pod_in_two_clusters', NULL::bigint, min(start_at), max(end_at),
       jsonb_build_object('clusters', clusters, 'pods', count(*), 'pod', min(native_id),
                          'by_agents', jsonb_agg(DISTINCT agents) FILTER (WHERE agents IS NOT NULL),
                          'hint', 'give the agents'' setting cluster and the watcher''s --cluster one name'), max(origin)
FROM twice GROUP BY clusters, site_id
"""
_QUERIES: Final = (_HELD_AFTER_END, _DEVICES_DISAGREE, _UNSEEN, _UNKNOWN, _SCHEDULERS, _DEVICES_UNKNOWN, _TWO_CLUSTERS)
_RAISE: Final = """
INSERT INTO findings (dedupe_key, site_id, kind, job_id, start_at, end_at, evidence, confidence, origin)
SELECT dedupe_key, site_id, kind, job_id, start_at, greatest(start_at, end_at), evidence, 1.0, origin
FROM ({query}) AS found (dedupe_key, site_id, kind, job_id, start_at, end_at, evidence, origin)
ON CONFLICT (dedupe_key) DO UPDATE SET end_at = excluded.end_at, evidence = excluded.evidence, withdrawn_at = NULL,
    recorded_at = now()
RETURNING dedupe_key, kind, xmax = 0
"""
# Only what could have been found now: of a job older than that nobody asked.
_WITHDRAW: Final = """
UPDATE findings SET withdrawn_at = %(now)s
WHERE kind = ANY (%(kinds)s) AND withdrawn_at IS NULL AND dedupe_key <> ALL (%(found)s)
AND (job_id IN (SELECT id FROM jobs WHERE coalesce(ended_at, %(now)s) > %(from)s) OR (job_id IS NULL AND end_at > %(from)s))
"""


def raise_disagreements(connection: psycopg.Connection[Any], now: datetime) -> Counter[str]:
    """Raise a finding for each disagreement, withdraw those that are settled; return how many are new by kind. As the worker."""
    given = {"now": now, "from": now - LOOK_BACK, "settled": SETTLED_AFTER, "kinds": list(KINDS)}
    new: Counter[str] = Counter()
    found: list[str] = []
    for query in _QUERIES:
        for key, kind, is_new in connection.execute(_RAISE.replace("{query}", query), given).fetchall():
            found.append(str(key))
            new[str(kind)] += bool(is_new)
    connection.execute(_WITHDRAW, {**given, "found": found})
    return +new
