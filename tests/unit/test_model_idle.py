"""What idle accelerators cost is the platform's, or tenants' by a policy: always on lines of its own, which sum to zero."""

from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from analytics.errors import InputError
from tests.fakes.site import LONG_AGO, Site, at, device, holds, job, price, steady, tariff

TENANTS = [{"tenant_id": 10, "path": "acme/nlp"}, {"tenant_id": 20, "path": "acme/vision"}]


def policy(policy_id: int, name: str, **more: Any) -> dict[str, Any]:
    return {"policy_id": policy_id, "policy": name, "valid_from": LONG_AGO, **more}


def fleet(*policies: dict[str, Any], **more: Any) -> Site:
    """Three boards at 2 USD an hour: one is held all the hour by nlp, one half of it by vision, and the third by nobody."""
    usual: dict[str, Any] = {
        "readings": [row for board, watts in ((1, 300), (2, 100), (3, 100)) for row in steady(board, 0, 3600, watts)],
        "devices": [device(1), device(2), device(3)],
        "allocations": [holds(1, 1, 0, 3600), holds(2, 2, 0, 1800)],
        "jobs": [job(1, named_tenant_id=10), job(2, named_tenant_id=20)],
        "tenants": TENANTS,
        "prices": [price(1, "2")],
        "idle": policies,
    }
    return Site(**(usual | more))


def spread_of(site: Site) -> dict[int | None, Decimal]:
    lines = site.close().lines.filter(charge_category="idle_spread")
    assert set(lines["pool"]) <= {"idle"}
    assert lines["energy_mj"].null_count() == lines["carbon_gco2e"].null_count() == lines.height
    return dict(lines.select("tenant_id", "billed_cost").iter_rows())


def test_without_a_policy_or_with_keep_the_platform_keeps_it() -> None:
    assert spread_of(fleet()) == spread_of(fleet(policy(1, "keep"))) == {}


def test_by_time_each_tenant_carries_its_part_and_all_sums_stay() -> None:
    # 1.5 hours idle are 3 USD; held were 1 and 0.5 hours.
    site = fleet(policy(1, "proportional", basis="time"))
    assert spread_of(site) == {10: Decimal(2), 20: Decimal(1), None: Decimal(-3)}
    kept, lines = fleet().close().lines, site.close().lines
    assert lines["billed_cost"].sum() == kept["billed_cost"].sum() == Decimal(6)
    assert lines.filter(pl.col("charge_category") != "idle_spread").equals(kept)
    time = dict(lines.filter(charge_category="idle_spread").select("tenant_id", "quantity").iter_rows())
    assert time == {10: 3_600_000_000, 20: 1_800_000_000, None: 5_400_000_000}


def test_by_energy_the_one_that_drew_more_carries_more() -> None:
    # nlp 300 Wh, vision 50 Wh; idle 3 USD: 3 x 300 / 350 = 2.571428571..., the odd billionth to the larger remainder.
    assert spread_of(fleet(policy(1, "proportional", basis="energy"))) == {
        10: Decimal("2.571428571"),
        20: Decimal("0.428571429"),
        None: Decimal(-3),
    }


def test_fixed_parts_leave_the_rest_with_the_platform() -> None:
    parts = [policy(1, "fixed", tenant_id=10, fixed_ppm=600_000), policy(2, "fixed", tenant_id=20, fixed_ppm=250_000)]
    assert spread_of(fleet(*parts)) == {10: Decimal("1.8"), 20: Decimal("0.75"), None: Decimal("-2.55")}


def test_electricity_of_idle_time_goes_along_and_what_has_no_price_stays_visible() -> None:
    # 150 Wh idle at 0.20 USD/kWh are 0.03 USD beside the 3 USD.
    priced = fleet(policy(1, "proportional", basis="time"), tariffs=[tariff(1, "0.20")])
    assert spread_of(priced)[None] == Decimal("-3.03")
    unpriced = fleet(policy(1, "proportional", basis="time"), prices=[])
    assert spread_of(unpriced) == {}
    assert unpriced.close().lines.filter(pool="idle")["billed_cost"].null_count() == 2


def test_nobody_pays_the_part_of_a_job_without_a_tenant() -> None:
    nobodys = [job(1, named_tenant_id=10), job(2)]
    assert spread_of(fleet(policy(1, "proportional", basis="time"), jobs=nobodys)) == {
        10: Decimal(2),
        None: Decimal(-2),
    }


def test_where_nobody_used_anything_it_stays_with_the_platform() -> None:
    assert spread_of(fleet(policy(1, "proportional", basis="time"), allocations=[])) == {}


def test_the_policy_that_began_last_counts_from_its_hour_on() -> None:
    later = [policy(1, "proportional", basis="time"), policy(2, "keep", valid_from=at(0))]
    assert spread_of(fleet(*later)) == {}
    to_come = [policy(1, "proportional", basis="time"), policy(2, "keep", valid_from=at(3600))]
    assert spread_of(fleet(*to_come))[None] == Decimal(-3)


def test_parts_beyond_the_whole_are_refused() -> None:
    parts = [policy(1, "fixed", tenant_id=10, fixed_ppm=600_000), policy(2, "fixed", tenant_id=20, fixed_ppm=500_000)]
    with pytest.raises(InputError, match="1100000 parts per million"):
        fleet(*parts).close()


def test_a_credit_is_spread_like_a_cost() -> None:
    credit = fleet(policy(1, "proportional", basis="time"), prices=[], tariffs=[tariff(1, "-0.20")])
    assert spread_of(credit) == {10: Decimal("-0.02"), 20: Decimal("-0.01"), None: Decimal("0.03")}


def test_fixed_parts_count_from_the_hour_they_begin_in_until_they_end() -> None:
    def parts(**more: Any) -> dict[int | None, Decimal]:
        vision = policy(2, "fixed", tenant_id=20, fixed_ppm=250_000, **more)
        return spread_of(fleet(policy(1, "fixed", tenant_id=10, fixed_ppm=600_000), vision))

    both = {10: Decimal("1.8"), 20: Decimal("0.75"), None: Decimal("-2.55")}
    alone = {10: Decimal("1.8"), None: Decimal("-1.8")}
    assert parts(valid_from=at(0)) == both
    assert parts(valid_from=at(3_600)) == alone
    assert parts(valid_to=at(3_600)) == both
    assert parts(valid_to=at(0)) == alone
    assert parts(valid_from=at(-7_200), valid_to=at(-3_600)) == alone


def test_fixed_parts_may_be_the_whole_and_leave_the_platform_nothing() -> None:
    parts = [policy(1, "fixed", tenant_id=10, fixed_ppm=750_000), policy(2, "fixed", tenant_id=20, fixed_ppm=250_000)]
    assert spread_of(fleet(*parts)) == {10: Decimal("2.25"), 20: Decimal("0.75"), None: Decimal(-3)}


def test_by_energy_a_tenant_of_whose_boards_nothing_was_read_carries_nothing() -> None:
    heard = [row for board, watts in ((1, 300), (3, 100)) for row in steady(board, 0, 3600, watts)]
    assert set(spread_of(fleet(policy(1, "proportional", basis="energy"), readings=heard))) == {10, None}
