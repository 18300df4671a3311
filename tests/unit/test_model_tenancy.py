"""Bindings: first match wins, globs match whole, dates count, and the answer explains itself."""

from decimal import Decimal

import pytest

from analytics.errors import InputError
from analytics.frames import Bindings
from analytics.model.tenancy import explain
from tests.fakes.site import HOUR, Site, at, binding, call, device, holds, job, moved, price, steady, table

FULL = steady(1, 0, 3600, 100)


def _tenant(*rules: dict[str, object], **who: object) -> int | None:
    site = Site(readings=FULL, allocations=[holds(7, 1, 0, 3600)], jobs=[job(7, **who)], bindings=rules)
    found: int | None = site.usage()["job:7"]["tenant_id"]
    return found


def test_the_first_rule_that_matches_wins() -> None:
    rules = (binding(2, 20, account="nlp*"), binding(1, 10, account="nlp-*"), binding(3, 30))
    assert _tenant(*rules, account="nlp-large") == 10
    assert _tenant(*rules, account="nlp") == 20
    assert _tenant(*rules, account="vision") == 30


def test_a_glob_matches_whole_and_takes_other_signs_literally() -> None:
    assert _tenant(binding(1, 10, account="a.c"), account="abc") is None
    assert _tenant(binding(1, 10, account="a?c"), account="abc") == 10
    assert _tenant(binding(1, 10, account="ab"), account="abc") is None


def test_all_patterns_of_a_rule_must_match_and_a_missing_field_never_does() -> None:
    rule = binding(1, 10, account="a", partition="gpu")
    assert _tenant(rule, account="a", partition="gpu") == 10
    assert _tenant(rule, account="a", partition="cpu") is None
    assert _tenant(rule, account="a") is None


def test_one_of_several_labels_is_enough() -> None:
    assert _tenant(binding(1, 10, label="team=nl*"), label="app=x,team=nlp") == 10
    assert _tenant(binding(1, 10, label="team=n*p"), label="team=n,other=p") is None


def test_bindings_hold_from_and_to_their_dates() -> None:
    rules = [binding(1, 10, account="a", valid_to=at(3600)), binding(2, 20, account="a", valid_from=at(3600))]
    site = Site(
        readings=steady(1, 0, 7200, 100),
        allocations=[holds(7, 1, 0, 7200)],
        jobs=[job(7, account="a")],
        bindings=rules,
        hours=2,
    )
    assert site.close().usage["tenant_id"].to_list() == [10, 20]


def test_unmatched_jobs_are_unmapped_and_pools_are_the_platforms() -> None:
    site = Site(readings=FULL, allocations=[holds(7, 1, 0, 1800)], bindings=[binding(1, 10, account="x")])
    lines = site.close().lines.filter(charge_category="gpu_owned")
    assert lines.select("pool", "tenant_id", "job_id").rows() == [("idle", None, None), ("job", None, 7)]


def test_api_keys_are_bound_by_their_public_name() -> None:
    site = Site(
        calls=[call("team-a/1", 1, input_uncached_tokens=2), call(None, 1, input_uncached_tokens=3)],
        prices=[price(1, "1", provider="openai", model="gpt", meter="input_tokens")],
        bindings=[binding(1, 10, api_key="team-a/*")],
        devices=[],
    )
    lines = site.close().lines.sort("quantity")
    assert lines.select("tenant_id", "api_key", "billed_cost").rows() == [
        (10, "team-a/1", Decimal(2)),
        (None, None, Decimal(3)),
    ]


def test_an_explanation_names_the_field_that_spoke_against_each_rule() -> None:
    rules = table(
        Bindings,
        [binding(1, 10, account="x"), binding(2, 20, account="a", user_name="bob"), binding(3, 30, account="a")],
    )
    told = explain({"account": "a"}, rules, HOUR)
    assert (told.tenant_id, told.binding_id) == (30, 3)
    assert told.steps == (
        "rule 1: account 'a' does not match 'x'",
        "rule 2: user_name is missing, 'bob' is asked for",
        "rule 3: matches",
    )
    assert explain({"account": "q"}, rules, HOUR).steps[-1] == "no rule matches: unmapped"


def test_what_has_moved_is_paid_by_whom_it_moved_to_from_then_on() -> None:
    # Tenant 1 moves to 2 at 11:00; tenant 2 moves to 3 at 12:00, and 1 with it. Named outright or bound makes no difference.
    moves = [moved(1, 1, 2, 3600), moved(2, 2, 3, 7200)]
    jobs = [job(1, account="a"), job(2, named_tenant_id=1), job(3)]
    site = Site(
        readings=[reading for board in (1, 2, 3) for reading in steady(board, 0, 3 * 3600, 100)],
        devices=[device(1), device(2), device(3)],
        allocations=[holds(number, number, 0, 3 * 3600) for number in (1, 2, 3)],
        jobs=jobs,
        bindings=[binding(1, 1, account="a")],
        moves=moves,
        hours=3,
    )
    paid = site.close().usage.sort("hour_at").group_by("job_id", maintain_order=True).agg("tenant_id").to_dicts()
    assert {row["job_id"]: row["tenant_id"] for row in paid} == {1: [1, 2, 3], 2: [1, 2, 3], 3: [None, None, None]}
    calls = Site(
        calls=[call("k", 3700, named_tenant_id=1, input_uncached_tokens=1)], devices=[], moves=moves, hours=2
    ).close()
    assert calls.lines["tenant_id"].to_list() == [2]


def test_moves_that_lead_in_a_circle_are_refused() -> None:
    site = Site(
        readings=steady(1, 0, 3600, 100),
        allocations=[holds(1, 1, 0, 3600)],
        jobs=[job(1, named_tenant_id=1)],
        moves=[moved(1, 1, 2, 0), moved(2, 2, 1, 0)],
    )
    with pytest.raises(InputError, match="in a circle"):
        site.close()


def test_a_rule_of_what_a_thing_cannot_have_never_matches_it() -> None:
    assert _tenant(binding(1, 10, api_key="*"), account="a") is None
    site = Site(
        calls=[call("team-a/1", 1, input_uncached_tokens=2)],
        prices=[price(1, "1", provider="openai", model="gpt", meter="input_tokens")],
        bindings=[binding(1, 10, account="*")],
        devices=[],
    )
    assert site.close().lines["tenant_id"].to_list() == [None]


def test_a_rule_of_everything_is_also_of_calls_without_a_key() -> None:
    site = Site(
        calls=[call(None, 1, input_uncached_tokens=3)],
        prices=[price(1, "1", provider="openai", model="gpt", meter="input_tokens")],
        bindings=[binding(1, 30)],
        devices=[],
    )
    assert site.close().lines["tenant_id"].to_list() == [30]
