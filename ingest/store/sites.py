"""Sites by name: what zones they stand in, and setting them. A changed zone makes the site's hours due again."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from ingest.store import identities
from ingest.store.tables import reference, samples


@dataclass(frozen=True, slots=True)
class Site:
    """A site and how many nodes it has."""

    name: str
    time_zone: str
    grid_zone: str | None
    nodes: int


def listed(conn: sa.Connection) -> tuple[Site, ...]:
    """Return all sites by name."""
    sites, nodes = reference.sites, reference.nodes
    query = (
        sa.select(sites.c.name, sites.c.time_zone, sites.c.grid_zone, sa.func.count(nodes.c.id))
        .outerjoin(nodes, nodes.c.site_id == sites.c.id)
        .group_by(sites.c.id)
        .order_by(sites.c.name)
    )
    return tuple(Site(*row) for row in conn.execute(query))


def set_zones(conn: sa.Connection, name: str, *, time_zone: str | None = None, grid_zone: str | None = None) -> int:
    """Make the site where it is new, set the zones given, and return its id."""
    site_id = identities.site_ids(conn, [name])[name]
    sites = reference.sites
    wanted = {"time_zone": time_zone, "grid_zone": grid_zone}
    values = {key: value for key, value in wanted.items() if value is not None}
    if not values:
        return site_id
    differs = sa.or_(*(sites.c[key].is_distinct_from(value) for key, value in values.items()))
    if conn.execute(sa.update(sites).where(sites.c.id == site_id, differs).values(**values)).rowcount:
        everything = {"from_at": sa.func.to_timestamp(0), "to_at": sa.func.now() + sa.text("interval '1 hour'")}
        conn.execute(sa.insert(samples.changes).values(site_id=site_id, kind="sites", **everything))
    return site_id
