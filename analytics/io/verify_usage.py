"""Holds stored usage hours against the hash that the run which wrote them put on record, and lines against whose time they are of.

Bills of devices, of time held and idle are read from usage hours, of which no line carries more than the energy. It repairs nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import polars as pl
import psycopg

from analytics.frames import GPU_OWNED, UsageHours
from analytics.pipeline import content_hash
from analytics.version import METHOD_VERSION

_KINDS: Final = {name: kind for name, kind in UsageHours.create_empty().schema.items() if name != "hour_at"}
# Of times that are null as zero, and no more: what the hash was made of.
_ROWS: Final = "SELECT {columns} FROM usage_hours WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s".replace(
    "{columns}",
    ", ".join(f"coalesce({name}, 0)" if name in {"reserved_us", "down_us"} else name for name in _KINDS),
)
_COPY: Final = f"COPY ({_ROWS}) TO STDOUT (FORMAT csv)"
_REVISIONS: Final = "SELECT revision, count(*) FROM usage_hours WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s GROUP BY revision ORDER BY 1"
# Columns of the table that no run writes: nothing has been read of them, and nothing stands in them.
_UNWRITTEN: Final = """
SELECT count(*) FROM usage_hours WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s
AND num_nonnulls(intensity_id, carbon_gco2e) > 0
"""
_HASH: Final = """
SELECT usage_sha256, method_version FROM ledger_runs WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s
AND kind = 'close'
"""


def look_at_usage(
    connection: psycopg.Connection[Any],
    at: Mapping[str, Any],
    usage_of: Mapping[int, int],
    lines: Mapping[int, pl.DataFrame],
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the usage hours of an hour (``at``: site_id, hour_at), and with lines that are not of their holders.

    ``usage_of``: the revision of usage that each revision of lines is made of; ``lines``: of the revisions that are looked at.
    """
    for revision, count in connection.execute(_REVISIONS, at).fetchall():
        if revision not in usage_of.values():
            yield "invented", f"{count} usage hours of revision {revision}, which no run wrote"
    for revision in sorted({usage_of[number] for number in lines}):
        given = {**at, "revision": revision}
        usage = _stored(connection, given)
        row = connection.execute(_HASH, given).fetchone()
        # What was hashed by the columns of other formulas cannot be made again of these.
        if row is not None and row[0] is not None and row[1] == METHOD_VERSION:
            (unwritten,) = connection.execute(_UNWRITTEN, given).fetchone() or (0,)
            if unwritten or content_hash(usage) != bytes(row[0]):
                yield "usage", f"the usage hours of revision {revision} are not those that its run wrote"
        held = usage.group_by("holder").agg((pl.col("held_us") * pl.col("accelerators")).sum().alias("held"))
        for number in sorted(lines):
            if usage_of[number] == revision:
                for what in _held(lines[number], held):
                    yield "sums", f"revision {number}: {what}"
    for number in sorted(lines):
        yield from _owners(number, lines[number])


def _held(lines: pl.DataFrame, held: pl.DataFrame) -> Iterator[str]:
    """Owned accelerators are charged for exactly the time that usage hours say they were held."""
    charged = (
        lines.filter(pl.col("charge_category") == GPU_OWNED)
        .group_by(_holder())
        .agg(pl.col("quantity").sum().alias("charged"))
    )
    other = (
        held.join(charged, on="holder", how="full", coalesce=True)
        .with_columns(pl.col("held", "charged").fill_null(0))
        .filter(pl.col("held") != pl.col("charged"))
    )
    for row in other.sort("holder").to_dicts():
        yield f"time of {row['holder']}: lines say {row['charged']} accelerator-us, usage hours {row['held']}"


def _owners(revision: int, lines: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """A line of a job names it by the same id as its key does, which is checked by what the job used."""
    named = pl.concat_str(pl.lit("job:"), pl.col("job_id").cast(pl.String))
    is_other = (pl.col("pool") == "job") & ~_holder().eq_missing(named)
    is_other |= (pl.col("pool") != "job") & pl.col("job_id").is_not_null()
    other = lines.filter(is_other)
    if other.height:
        yield (
            "altered",
            f"revision {revision}: {other.height} lines are of another job than {min(other['line_key'].to_list())} says",
        )


def _holder() -> pl.Expr:
    return pl.col("line_key").str.split("|").list.get(1, null_on_oob=True).alias("holder")


def _stored(connection: psycopg.Connection[Any], given: Mapping[str, Any]) -> pl.DataFrame:
    """Return usage hours as they were hashed, unchecked: what somebody altered may fit no rule. As text, a third of what rows take."""
    text = io.BytesIO()
    with connection.cursor() as cursor, cursor.copy(_COPY.encode(), given) as copy:
        for part in copy:
            text.write(part)
    text.seek(0)
    frame = (
        pl.read_csv(text, has_header=False, schema=_KINDS) if text.getbuffer().nbytes else pl.DataFrame(schema=_KINDS)
    )
    at: datetime = given["hour_at"]
    dated = frame.select(pl.lit(at, pl.Datetime("us", "UTC")).alias("hour_at"), pl.all())
    return dated.sort("device_id", "holder")
