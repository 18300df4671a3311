"""A chain of lines: what changes in it is found and named, whatever it is."""

from __future__ import annotations

import hashlib
import json
import random
import time
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.frames import MONEY, RATE, LedgerLines
from analytics.io.corrections import start_of_corrections
from analytics.model.chain import (
    Break,
    Fault,
    Link,
    Names,
    canonical,
    first_break,
    follow,
    opens,
    seals,
    stamp,
    start_of_hour,
)
from analytics.model.later import LATER, chain_version, said

pytestmark = pytest.mark.unit
START = start_of_hour("fra1", datetime(2026, 10, 1, tzinfo=UTC))
NAMES = Names({1: "acme/nlp", 2: "globex"}, {7: "owned H100 2.00 USD"}, {3: "it 0.20 USD"})
NANO = Decimal("0.000000001")
SCHEMA: dict[str, Any] = {
    "tenant_id": pl.Int32,
    "holder_key": pl.String,
    "api_key": pl.String,
    "pool": pl.String,
    "device_model": pl.String,
    "charge_category": pl.String,
    "price_id": pl.Int32,
    "tariff_id": pl.Int32,
    "quantity": pl.Int64,
    "quantity_unit": pl.String,
    "energy_mj": pl.Int64,
    "energy_low_mj": pl.Int64,
    "energy_high_mj": pl.Int64,
    "facility_mj": pl.Int64,
    "facility_category": pl.Int16,
    "carbon_gco2e": MONEY,
    "billed_cost": MONEY,
    "effective_cost": MONEY,
    "currency": pl.String,
    "source": pl.String,
    "coverage": pl.Float64,
    "origin": pl.Int16,
    "method": pl.String,
    "line_key": pl.String,
    "carbon_market_gco2e": MONEY,
    "carbon_marginal_gco2e": MONEY,
    "embodied_gco2e": MONEY,
    "water_ml": pl.Int64,
    "list_cost": MONEY,
    "ghg_scope": pl.String,
    "basis": pl.String,
    "terms": pl.String,
    "intensity_id": pl.Int32,
    "market_factor_id": pl.Int32,
    "charge_id": pl.Int64,
    "fx_rate_id": pl.Int32,
    "source_currency": pl.String,
    "source_cost": RATE,
}


def line(holder: str, **other: Any) -> dict[str, Any]:
    return (
        dict.fromkeys(SCHEMA)
        | {
            "tenant_id": 1,
            "holder_key": holder,
            "pool": "job",
            "device_model": "H100",
            "charge_category": "gpu_owned",
            "price_id": 7,
            "quantity": 3_600_000_000,
            "quantity_unit": "accelerator-us",
            "energy_mj": 360_000_000,
            "billed_cost": Decimal("2.000000000"),
            "effective_cost": Decimal("2.000000000"),
            "currency": "USD",
            "source": "measured",
            "coverage": 1.0,
            "origin": 1,
        }
        | other
    )


def chained(*lines: dict[str, Any]) -> pl.DataFrame:
    return stamp(pl.DataFrame(lines, schema=SCHEMA), NAMES, START, b"salt")


def links(stored: pl.DataFrame) -> list[Link]:
    rows = stored.select("ordinal", "chain_sha256", "holder_key").iter_rows()
    texts = canonical(stored, NAMES)
    return [Link(ordinal, chain, text, holder) for (ordinal, chain, holder), text in zip(rows, texts, strict=True)]


def found(stored: pl.DataFrame, before: pl.DataFrame) -> Break | None:
    return first_break(links(stored), START, before.height, before["chain_sha256"][-1] if before.height else START)


@cache
def three() -> pl.DataFrame:
    return chained(line("a"), line("b", tenant_id=2), line("c"))


def with_at(stored: pl.DataFrame, place: int, **values: Any) -> pl.DataFrame:
    rows = stored.to_dicts()
    rows[place] |= values
    return pl.DataFrame(rows, schema=stored.schema)


def test_three_lines_hold_and_the_chain_is_sha256_over_the_link_before_and_the_text() -> None:
    assert found(three(), three()) is None
    first = hashlib.sha256(START + canonical(three(), NAMES)[0].encode()).digest()
    second = hashlib.sha256(first + canonical(three(), NAMES)[1].encode()).digest()
    assert three()["chain_sha256"].to_list()[:2] == [first, second]
    assert hashlib.sha256(b'["wattledger/line/1","fra1","2026-10-01T00:00:00Z"]').digest() == START


# As they were before lines had further columns: of a line, of one without a price by an API key, of one with a tariff and carbon.
GOLDEN = (
    "fbda096bdaaf06049ef04d53105ee29871b241db0100252a24cb9f09efe9ec9c",
    "ae871b13440012b935cece6e61012fe0d65c86352ea9259566c8515bddbbfa4c",
    "35e598468d738733b8c412a4e9db68cb511a515e0b00fbbafcad4fb52afe4180",
)
GOLDEN_CORRECTIONS = "986295ce00aa56fa04e39b8e7bcd740ba47c34733696f46440c02e594b489c57"


def golden() -> list[dict[str, Any]]:
    unpriced = line("b", billed_cost=None, effective_cost=None, price_id=None, api_key="k1")
    return [line("a"), unpriced, line("c", carbon_gco2e=Decimal("1.500000000"), coverage=0.5, tariff_id=3)]


def test_lines_of_before_have_the_links_they_had() -> None:
    assert [link.hex() for link in chained(*golden())["chain_sha256"]] == list(GOLDEN)
    old = {name: kind for name, kind in SCHEMA.items() if name not in LATER}
    rows = [{name: row[name] for name in old} for row in golden()]
    assert [link.hex() for link in stamp(pl.DataFrame(rows, old), NAMES, START, b"salt")["chain_sha256"]] == list(
        GOLDEN
    )
    posted = start_of_corrections(
        "fra1", datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC), "late data"
    )
    assert posted.hex() == GOLDEN_CORRECTIONS
    assert chain_version(chained(*golden())) == 1


def test_what_came_later_ends_the_text_of_the_lines_that_say_it_and_of_no_other() -> None:
    names = Names(NAMES.tenants, NAMES.prices, NAMES.tariffs, {"intensity_id": {4: 'DE "flow"'}})
    later = {
        "carbon_market_gco2e": Decimal("0.000000001"),
        "intensity_id": 4,
        "terms": "batch",
        "water_ml": 0,
        "fx_rate_id": 9,
    }
    rows = pl.DataFrame([*golden()[:2], golden()[2] | later], SCHEMA).with_columns(
        pl.lit(None, pl.Binary).alias("api_key_seal")
    )
    before, after = canonical(said(rows.drop(LATER)), names), canonical(rows, names)
    assert after[:2] == before[:2]
    told = (
        ',"carbon_market_gco2e":"0.000000001","water_ml":"0","terms":"batch","intensity":"DE \\"flow\\"","fx_rate":"?"}'
    )
    assert after[2] == before[2][:-1] + told
    assert json.loads(after[2])["intensity"] == 'DE "flow"'
    assert chain_version(rows) == 2
    assert start_of_hour("fra1", datetime(2026, 10, 1, tzinfo=UTC), 2) != START


@pytest.mark.parametrize("name", LATER)
def test_what_is_said_later_of_a_line_of_before_is_found(name: str) -> None:
    kind = SCHEMA[name]
    value: Any = "word" if kind == pl.String else 7 if kind in {pl.Int32, pl.Int64} else NANO
    assert found(with_at(three(), 1, **{name: value}), three()) == Break(Fault.ALTERED, 2, "b")


def test_the_columns_that_came_later_are_the_last_ones_of_a_line() -> None:
    assert set(LedgerLines.column_names()[-len(LATER) :]) == set(LATER)
    assert (
        LedgerLines.create_empty().select(LATER).schema
        == pl.DataFrame(schema={name: SCHEMA[name] for name in LATER}).schema
    )


def test_one_millijoule_too_many_is_found_and_its_line_named() -> None:
    assert found(with_at(three(), 1, energy_mj=360_000_001), three()) == Break(Fault.ALTERED, 2, "b")


def test_a_billionth_too_little_is_found_and_its_line_named() -> None:
    less = Decimal("2.000000000") - NANO
    assert found(with_at(three(), 2, billed_cost=less), three()) == Break(Fault.ALTERED, 3, "c")


def test_a_line_of_another_tenant_than_then_is_found() -> None:
    assert found(with_at(three(), 0, tenant_id=2), three()) == Break(Fault.ALTERED, 1, "a")


def test_a_dropped_line_is_named_by_its_place() -> None:
    without = three().filter(pl.col("holder_key") != "b")
    assert found(without, three()) == Break(Fault.DROPPED, 2, "what stood before c")
    renumbered = without.with_columns(pl.Series("ordinal", [1, 2], pl.Int32))
    assert found(renumbered, three()) == Break(Fault.DROPPED, 2, "what stood before c")
    assert found(three().head(2), three()) == Break(Fault.DROPPED, 3, "the last 1 of 3")


def test_two_lines_that_changed_places_are_reordered_with_or_without_their_links() -> None:
    moved = three().with_columns(pl.Series("ordinal", [2, 1, 3], pl.Int32))
    assert found(moved, three()) == Break(Fault.REORDERED, 1, "a")
    rows = three().to_dicts()
    for name in ("ordinal", "chain_sha256"):
        rows[0][name], rows[1][name] = rows[1][name], rows[0][name]
    assert found(pl.DataFrame(rows, schema=three().schema), three()) == Break(Fault.REORDERED, 1, "a")


@pytest.mark.parametrize("ordinal", [None, 1, 2, 3, 4])
def test_an_invented_line_is_named_wherever_it_claims_to_stand(ordinal: int | None) -> None:
    mine = (
        three()
        .head(1)
        .with_columns(
            pl.lit("x").alias("holder_key"),
            pl.lit(ordinal, pl.Int32).alias("ordinal"),
            pl.lit(b"\x07" * 32).alias("chain_sha256"),
        )
    )
    shown = found(pl.concat([mine, three()]), three())
    assert shown is not None
    assert (shown.fault, shown.called) == (Fault.INVENTED, "x")


def test_an_hour_without_lines_holds_and_one_invented_there_does_not() -> None:
    none = three().clear()
    assert found(none, none) is None
    assert found(three().head(1), none) == Break(Fault.INVENTED, 1, "a")


def test_the_order_and_the_links_do_not_hang_on_ids_or_on_the_order_of_rows() -> None:
    lines = [line("b", tenant_id=2), line("c"), line("a")]
    other_ids = Names({11: "acme/nlp", 12: "globex"}, {17: NAMES.prices[7]}, {})
    ids = {1: 11, 2: 12}
    moved = [each | {"tenant_id": ids[each["tenant_id"]], "price_id": 17} for each in reversed(lines)]
    rebuilt = stamp(pl.DataFrame(moved, schema=SCHEMA), other_ids, START, b"salt")
    assert rebuilt["chain_sha256"].to_list() == three()["chain_sha256"].to_list()


def test_a_forgotten_name_leaves_the_chain_as_it_was_and_says_nothing_of_the_name() -> None:
    before = chained(line("m", api_key="ada", pool="api"))
    (seal,) = before["api_key_seal"].to_list()
    assert opens(seal, "ada") is True
    assert opens(seal, "bob") is False
    forgotten = with_at(before, 0, api_key="erased-1", api_key_seal=seal[-32:])
    assert found(forgotten, before) is None
    assert opens(seal[-32:], "erased-1") is None
    assert seals([None, "ada"], b"1")[0] is None


@given(st.lists(st.text(), min_size=2, max_size=4))
def test_the_text_is_plain_json_whatever_a_name_holds(words: list[str]) -> None:
    stored = chained(*(line(word, method=word) for word in words))
    for text in canonical(stored, NAMES):
        assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40))
def test_whatever_is_done_to_one_line_of_many_is_found_and_named(seed: int, count: int) -> None:
    dice = random.Random(seed)
    costs = [Decimal(dice.randrange(10**12)).scaleb(-9) for _ in range(count)]
    stored = chained(
        *(line(f"j{n}", billed_cost=cost, energy_mj=dice.randrange(10**9)) for n, cost in enumerate(costs))
    )
    rows = stored.to_dicts()
    at = dice.randrange(count)
    called = rows[at]["holder_key"]
    fault = dice.choice(list(Fault))
    if fault is Fault.ALTERED:
        rows[at] |= dice.choice(
            [{"energy_mj": rows[at]["energy_mj"] + 1}, {"billed_cost": rows[at]["billed_cost"] + NANO}]
        )
    elif fault is Fault.DROPPED:
        del rows[at]
    elif fault is Fault.INVENTED:
        called = "x"
        rows.insert(dice.randrange(count + 1), rows[at] | {"holder_key": "x", "ordinal": dice.randrange(1, count + 2)})
    else:
        other = dice.randrange(count)
        if other == at:
            return
        rows[at]["ordinal"], rows[other]["ordinal"] = rows[other]["ordinal"], rows[at]["ordinal"]
        called = rows[min(at, other)]["holder_key"]
    shown = found(pl.DataFrame(rows, schema=stored.schema), stored)
    assert shown is not None
    assert shown.fault is fault
    assert shown.ordinal == at + 1 if fault is Fault.DROPPED else shown.called == called


def test_two_thousand_lines_are_stamped_in_milliseconds() -> None:
    many = pl.DataFrame([line(f"j{n}") for n in range(2_000)], schema=SCHEMA)
    times = []
    for _ in range(5):
        begun = time.process_time()
        stamp(many, NAMES, START, b"salt")
        times.append(time.process_time() - begun)
    assert min(times) < 0.03, times


def test_follow_links_each_text_to_the_one_before() -> None:
    one, two = follow(START, ["a", "b"])
    assert one == hashlib.sha256(START + b"a").digest()
    assert two == hashlib.sha256(one + b"b").digest()
