"""Who carries what idle accelerators cost: the platform, or tenants by what they used or by fixed parts, on lines of their own.

DESIGN §7.5: a policy, default keep, and always a separate line. What is spread are the billed costs of the platform's idle lines of an hour,
rounded before; the parts of tenants and the platform's counter-line sum to zero, so that every other sum of the books stays what it was.
No line that was there is changed, and nothing here counts for a budget's own spend.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from analytics.errors import InputError
from analytics.frames import HOLDER_IDLE, IDLE_SPREAD, MONEY
from analytics.model.cost import least_sure
from analytics.model.dated import Dated
from analytics.model.money import from_nano, spread
from analytics.units import NANO, PPM, from_us

_PARTS: Final = {
    "hour_us": pl.Int64,
    "policy_id": pl.Int32,
    "tenant_id": pl.Int32,
    "path": pl.String,
    "weight": pl.Int64,
    "pays": pl.Boolean,
}
"""``pays`` false: the part that stays with the platform."""
_COUNTER: Final = "-"


def spread_lines(
    lines: pl.DataFrame, used: pl.DataFrame, policies: pl.DataFrame, tenants: pl.DataFrame
) -> pl.DataFrame:
    """Return ``idle_spread`` lines for the hours in which a policy wants them, with the columns of ``lines`` that are not null.

    ``lines``: all lines of the hours. ``used``: hour_us, tenant_id, accelerator_us, energy_mj of jobs. Jobs without a tenant have their part
    too, which nobody else pays: it stays with the platform. An hour in which nobody used anything, or nothing idle has a price, is left as it is.
    """
    idle = (
        lines.filter((pl.col("pool") == HOLDER_IDLE) & pl.col("billed_cost").is_not_null())
        .group_by("hour_us")
        .agg(
            (pl.col("billed_cost") * NANO).cast(pl.Int64).sum().alias("nano"),
            pl.col("quantity").filter(pl.col("quantity_unit") == "accelerator-us").sum().alias("idle_us"),
            least_sure(pl.col("source")).alias("source"),
            pl.col("coverage").min(),
            pl.col("origin").max(),
        )
        .sort("hour_us")
    )
    parts = _parts(idle["hour_us"].to_list(), used, policies, tenants)
    given = parts.join(idle, on="hour_us", how="inner", maintain_order="left")
    for total in ("nano", "idle_us"):
        given = spread(given, group=["hour_us"], weight="weight", ties=["pays", "path"], total=total, into=total)
    paid = given.filter("pays").with_columns((pl.lit(f"{HOLDER_IDLE}:") + pl.col("path")).alias("holder_key"))
    back = (
        paid.group_by("hour_us", "policy_id", maintain_order=True)
        .agg(-pl.col("nano").sum(), pl.col("idle_us").sum(), pl.col("source", "coverage", "origin").first())
        .with_columns(pl.lit(None, dtype=pl.Int32).alias("tenant_id"), pl.lit(HOLDER_IDLE).alias("holder_key"))
    )
    key = [
        pl.col("tenant_id").cast(pl.String).fill_null(_COUNTER),
        pl.lit(HOLDER_IDLE),
        pl.lit(_COUNTER),
        pl.lit(IDLE_SPREAD),
        pl.col("policy_id").cast(pl.String),
    ]
    return pl.concat([paid.select(back.columns), back]).select(
        "hour_us",
        pl.concat_str(key, separator="|").alias("line_key"),
        "tenant_id",
        "holder_key",
        pl.lit(HOLDER_IDLE).alias("pool"),
        pl.lit(IDLE_SPREAD).alias("charge_category"),
        pl.col("idle_us").alias("quantity"),
        pl.lit("accelerator-us").alias("quantity_unit"),
        from_nano(pl.col("nano")).alias("billed_cost"),
        from_nano(pl.col("nano")).cast(MONEY).alias("effective_cost"),
        "source",
        "coverage",
        "origin",
    )


def _parts(hours: list[int], used: pl.DataFrame, policies: pl.DataFrame, tenants: pl.DataFrame) -> pl.DataFrame:
    paths = dict(tenants.select("tenant_id", "path").iter_rows())
    dated = Dated(policies, "policy_id")
    found: list[tuple[Any, ...]] = []
    of_hour = {key[0]: rows for key, rows in used.partition_by("hour_us", as_dict=True).items()}
    for hour in hours:
        rule = dated.at(from_us(hour))
        if rule is None or rule["policy"] == "keep":
            continue
        parts = (
            _fixed(policies, hour)
            if rule["policy"] == "fixed"
            else _by_use(of_hour.get(hour, used.clear()), "accelerator_us" if rule["basis"] == "time" else "energy_mj")
        )
        if sum(parts.values()) > 0:
            found.extend(
                (hour, rule["policy_id"], tenant, paths.get(tenant), weight, tenant is not None)
                for tenant, weight in parts.items()
            )
    return pl.DataFrame(found, schema=_PARTS, orient="row").sort("hour_us", "pays", "path")


def _by_use(used: pl.DataFrame, measure: str) -> dict[int | None, int]:
    return {
        tenant: int(amount)
        for tenant, amount in used.group_by("tenant_id").agg(pl.col(measure).fill_null(0).sum()).iter_rows()
        if amount > 0
    }


def _fixed(policies: pl.DataFrame, hour: int) -> dict[int | None, int]:
    """Return parts per million of each tenant, by the row of it that began last, and of the platform the rest."""
    at = from_us(hour)
    in_force = policies.filter(
        (pl.col("policy") == "fixed")
        & (pl.col("valid_from") <= at)
        & (pl.col("valid_to").is_null() | (pl.col("valid_to") > at))
    ).sort("valid_from", "policy_id")
    parts: dict[int | None, int] = dict(in_force.select("tenant_id", "fixed_ppm").iter_rows())
    told = sum(parts.values())
    if told > PPM:
        raise InputError(f"fixed parts of idle cost at {at} sum to {told} parts per million; they cannot pass {PPM}")
    return parts | {None: PPM - told}
