"""Sets who carries what idle accelerators of a site cost, as dated rows; a policy that begins later takes over from one before."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import psycopg

from analytics.units import PPM

PolicyName = Literal["keep", "proportional", "fixed"]
Basis = Literal["time", "energy"]
_SAME: Final = """
SELECT policy, basis, tenant_id, fixed_ppm FROM idle_policies
WHERE site_id = %(site_id)s AND superseded_at IS NULL AND valid_from = %(from_at)s ORDER BY tenant_id
"""


class IdlePolicyError(ValueError):
    """A policy that cannot be; the message says why."""


def set_policy(
    conn: psycopg.Connection[Any],
    site: str,
    policy: PolicyName,
    from_at: datetime,
    now: datetime,
    *,
    basis: Basis = "time",
    parts: Mapping[str, int] | None = None,
) -> bool:
    """Have the policy count from an instant on; return False where it did already.

    ``parts``: parts per million by tenant path, of a fixed one. A policy of the same instant is superseded, one that is in force then ends.
    Raises IdlePolicyError, and changes nothing, for a site or tenant that is not known, and for parts that pass the whole.
    """
    parts = parts or {}
    if (policy == "fixed") != bool(parts):
        raise IdlePolicyError("a fixed policy, and no other, names the part of each tenant")
    if sum(parts.values()) > PPM:
        raise IdlePolicyError(f"the parts sum to {sum(parts.values()) / PPM:.4%}; they cannot pass the whole")
    with conn.transaction():
        row = conn.execute("SELECT id FROM sites WHERE name = %s FOR UPDATE", [site]).fetchone()
        if row is None:
            raise IdlePolicyError(f"there is no site {site!r}; `wattledger sites list` names them")
        tenants: dict[str, int] = dict(
            conn.execute("SELECT path, id FROM tenants WHERE path = ANY (%s)", [list(parts)]).fetchall()
        )
        unknown = sorted(set(parts) - set(tenants))
        if unknown:
            raise IdlePolicyError(f"there is no tenant {', '.join(unknown)}")
        of = {"site_id": row[0], "from_at": from_at, "now": now}
        by = basis if policy == "proportional" else None
        wanted: list[tuple[Any, ...]] = sorted((policy, by, tenants[path], ppm) for path, ppm in parts.items())
        wanted = wanted or [(policy, by, None, None)]
        if conn.execute(_SAME, of).fetchall() == wanted:
            return False
        ending = conn.execute(
            """
            UPDATE idle_policies SET superseded_at = %(now)s WHERE site_id = %(site_id)s AND superseded_at IS NULL
            AND (valid_from = %(from_at)s OR (valid_from < %(from_at)s AND (valid_to IS NULL OR valid_to > %(from_at)s)))
            RETURNING policy, basis, tenant_id, fixed_ppm, valid_from
            """,
            of,
        ).fetchall()
        with conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO idle_policies (site_id, policy, basis, tenant_id, fixed_ppm, valid_from, valid_to, recorded_at) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    *((row[0], *one[:4], one[4], from_at, now) for one in ending if one[4] < from_at),
                    *((row[0], *one, from_at, None, now) for one in wanted),
                ],
            )
        conn.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, 'idle_policies')",
            [row[0], from_at, max(from_at, now + timedelta(hours=1))],
        )
        return True
