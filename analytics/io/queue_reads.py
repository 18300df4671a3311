"""What waits now, longest first, with the reason of the moment; read as the worker."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

_WAITING: Final = """
SELECT sites.name AS site, entry.cluster, entry.native_id, entry.submitted_at, entry.account, entry.user_name, entry.namespace,
       entry.partition, coalesce(entry.workload, entry.name) AS name, entry.accelerators, entry.tasks, latest.reason,
       latest.since_at AS reason_since_at, entry.origin,
       greatest(extract(epoch FROM %(now)s - entry.submitted_at)::bigint, 0) AS waiting_s
FROM queue_entries AS entry JOIN sites ON sites.id = entry.site_id
LEFT JOIN LATERAL (
    SELECT reason, since_at FROM queue_reasons WHERE entry_id = entry.id ORDER BY since_at DESC LIMIT 1
) AS latest ON true
WHERE entry.left_at IS NULL AND (%(site)s::text IS NULL OR sites.name = %(site)s)
AND (%(cluster)s::text IS NULL OR entry.cluster = %(cluster)s)
ORDER BY entry.submitted_at, entry.id
"""


def waiting(
    connection: psycopg.Connection[Any], now: datetime, *, site: str | None = None, cluster: str | None = None
) -> list[dict[str, Any]]:
    """Return jobs that wait: identity, owner, accelerators (of each of ``tasks``), ``waiting_s``, reason and since when."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return list(cursor.execute(_WAITING, {"now": now, "site": site, "cluster": cluster}))
