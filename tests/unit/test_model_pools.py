"""Time held in pools: many jobs at once, each with its own count, no energy, nothing idle, nothing invented."""

from decimal import Decimal
from typing import Any

import polars as pl

from analytics.inputs import Window
from tests.fakes.site import HOUR, Site, at, device, holds, price, steady, tariff

HOUR_US = 3_600_000_000
POOL = device(9, node_id=None, kind="pool", model="TPU")


def _in_pool(job: int, start: float, end: float | None, accelerators: int) -> dict[str, Any]:
    return {**holds(job, 9, start, end), "accelerators": accelerators}


def _site(*allocations: dict[str, Any], **more: Any) -> Site:
    return Site(devices=[device(), POOL], allocations=allocations, **more)


def _rows(site: Site, window: Window | None = None) -> list[tuple[Any, ...]]:
    rows = site.close(window).usage.filter(pl.col("device_id") == 9)
    return rows.select("hour_at", "holder", "held_us", "accelerators").rows()


def test_jobs_hold_a_pool_at_once_each_with_its_own_count() -> None:
    assert _rows(_site(_in_pool(1, 0, 1800, 512), _in_pool(2, 900, 3600, 8))) == [
        (HOUR, "job:1", HOUR_US // 2, 512),
        (HOUR, "job:2", HOUR_US * 3 // 4, 8),
    ]


def test_a_pool_is_never_idle_and_claims_no_energy_and_no_coverage() -> None:
    site = _site(_in_pool(1, 0, 900, 8), readings=steady(1, 0, 3600, 100))
    result = site.close()
    (row,) = result.usage.filter(pl.col("device_id") == 9).to_dicts()
    assert (row["holder"], row["energy_mj"], row["estimated_mj"], row["method"]) == ("job:1", None, None, "pool")
    assert (row["coverage"], row["covered_us"], row["state"], row["feed"]) == (0.0, 0, "used", None)
    assert result.quality.filter(pl.col("device_id") == 9).is_empty()
    assert result.findings.is_empty()


def test_a_job_in_a_pool_costs_its_time_times_its_accelerators_and_no_electricity() -> None:
    # 512 accelerators for half an hour at 3 an hour: 768.
    result = _site(_in_pool(1, 0, 1800, 512), prices=[price(1, "3", model="TPU")], tariffs=[tariff(1, "0.2")]).close()
    lines = result.lines.filter(pl.col("pool") == "job").to_dicts()
    assert [(line["charge_category"], line["quantity"], line["billed_cost"]) for line in lines] == [
        ("gpu_owned", 512 * HOUR_US // 2, Decimal("768.000000000"))
    ]


def test_a_pool_of_an_unpriced_model_is_unpriced_and_not_free() -> None:
    (line,) = (
        _site(_in_pool(1, 0, 3600, 8), prices=[price(1, "3")]).close().lines.filter(pl.col("pool") == "job").to_dicts()
    )
    assert (line["billed_cost"], line["price_id"], line["quantity"]) == (None, None, 8 * HOUR_US)


def test_held_time_is_cut_at_the_hours_and_an_open_end_runs_to_the_window() -> None:
    site = _site(_in_pool(1, 1800, None, 4), hours=2)
    assert _rows(site) == [(HOUR, "job:1", HOUR_US // 2, 4), (at(3600), "job:1", HOUR_US, 4)]
    open_hour = Window(HOUR, at(2700), HOUR)
    assert _rows(site, open_hour) == [(HOUR, "job:1", HOUR_US // 4, 4)]


def test_a_job_that_changes_its_count_within_the_hour_is_booked_in_accelerator_time() -> None:
    # 8 for half an hour and 16 for a quarter: 8 accelerator-hours.
    resized = (_in_pool(1, 0, 1800, 8), {**_in_pool(1, 1800, 2700, 16), "allocation_id": 5})
    assert _rows(_site(*resized)) == [(HOUR, "job:1", 8 * HOUR_US, 1)]


def test_a_job_that_pauses_keeps_its_count() -> None:
    paused = (_in_pool(1, 0, 900, 8), {**_in_pool(1, 2700, 3600, 8), "allocation_id": 5})
    assert _rows(_site(*paused)) == [(HOUR, "job:1", HOUR_US // 2, 8)]


def test_overlapping_allocations_of_one_job_add_up() -> None:
    twice = (_in_pool(1, 0, 3600, 8), {**_in_pool(1, 0, 900, 8), "allocation_id": 5})
    assert _rows(_site(*twice)) == [(HOUR, "job:1", 10 * HOUR_US, 1)]


def test_a_site_of_pools_alone_has_books() -> None:
    assert _rows(Site(devices=[POOL], epochs=(), allocations=[_in_pool(1, 0, 3600, 2)])) == [
        (HOUR, "job:1", HOUR_US, 2)
    ]


def test_allocations_one_after_the_other_keep_their_count() -> None:
    one_by_one = (_in_pool(1, 0, 1800, 8), {**_in_pool(1, 1800, 3600, 8), "allocation_id": 5})
    assert _rows(_site(*one_by_one)) == [(HOUR, "job:1", HOUR_US, 8)]


def test_a_microsecond_of_the_next_hour_is_of_the_next_hour() -> None:
    site = _site(_in_pool(1, 0, 3600.000001, 8), hours=2)
    assert _rows(site) == [(HOUR, "job:1", HOUR_US, 8), (at(3600), "job:1", 1, 8)]
    assert _rows(_site(_in_pool(1, 0, 3600, 8), hours=2)) == [(HOUR, "job:1", HOUR_US, 8)]
