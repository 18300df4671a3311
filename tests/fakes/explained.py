"""Explains every line of a site in memory, the way `wattledger why` does with what it reads: usage hours followed, then each line's steps."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import polars as pl

from analytics.explain import Followed, follow
from analytics.frames import GPU_OWNED, IDLE_SPREAD
from analytics.inputs import HourInputs, Window
from analytics.model.explain import Explained, HourFacts, idle_spread_steps, line_steps
from analytics.model.facility import factors_of
from analytics.model.methods import category
from analytics.pipeline import HourResult
from analytics.policy import Policy
from analytics.units import to_us


def explained(
    inputs: HourInputs, result: HourResult, policy: Policy, *, is_whole: bool = True
) -> list[tuple[Explained, list[Followed]]]:
    """Return each line of devices with the usage hours it is made of; ``inputs`` may be of several hours."""
    found: list[tuple[Explained, list[Followed]]] = []
    references = inputs.references
    for (hour_at,), usage in result.usage.partition_by("hour_at", as_dict=True, maintain_order=True).items():
        window = Window(hour_at, hour_at + timedelta(hours=1), hour_at + timedelta(hours=1))
        followed = follow(replace(inputs.usage, window=window), policy, usage, {})
        by_key = {(each.device_id, each.holder): each for each in followed}
        hour_us = to_us(hour_at)
        paths = references.tenants.select("tenant_id", pl.col("path").alias("tenant"))
        lines = result.lines.filter(pl.col("hour_at") == hour_at).join(paths, on="tenant_id", how="left")
        rates: dict[str, dict[str, Any]] = {f"price:{row['price_id']}": row for row in references.prices.to_dicts()}
        rates |= {f"tariff:{row['tariff_id']}": row for row in references.tariffs.to_dicts()}
        factor = factors_of([hour_us], references.facility_factors).get(hour_us)
        facts = HourFacts(hour_at, lines, is_whole, rates, factor, references.intensity)
        named = usage.join(
            inputs.usage.devices.select("device_id", pl.col("model").alias("device_model")), on="device_id"
        ).with_columns(category(pl.col("method"), pl.lit(GPU_OWNED)).alias("rides"))
        for line in lines.filter(pl.col("pool") != "api").to_dicts():
            if line["charge_category"] == IDLE_SPREAD:
                found.append((idle_spread_steps(line, facts, references.idle_policies), []))
                continue
            holder = line["holder_key"] if line["job_id"] is None else f"job:{line['job_id']}"
            rows = named.filter((pl.col("holder") == holder) & (pl.col("device_model") == line["device_model"]))
            if line["charge_category"] != "electricity":
                rows = rows.filter(pl.col("rides") == line["charge_category"])
            mine = [by_key[row["device_id"], row["holder"]] for row in rows.to_dicts()]
            energies = [each.energy_mj for each in mine if each.energy_mj is not None]
            energy = sum(energies) if energies else None
            time = sum(each.held_us * count for each, count in zip(mine, rows["accelerators"], strict=True))
            quantity = time if line["quantity_unit"] == "accelerator-us" else energy or 0
            found.append((line_steps(line, quantity, energy, facts), mine))
    return found
