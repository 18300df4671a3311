"""Each step from a line's quantity to its stored figures, in words and exact numbers; frames in, steps out.

The figures are worked out here again (``replay``) and compared with what is stored: a line that does not come out to the last digit
is said to differ. Where the other lines of a rounding group may not be seen, a figure is only held to the last place of its own share.
It does not say where a quantity comes from (``analytics.explain`` does) and formats no table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import polars as pl

from analytics.frames import API_TOKENS, CARRIERS, ELECTRICITY, IDLE_SPREAD
from analytics.model.carbon import Grid
from analytics.model.cost import in_books
from analytics.model.dated import Dated
from analytics.model.facility import IT_ONLY, HourFactor
from analytics.model.replay import NANO, Part, half_even, part_of
from analytics.units import MJ_PER_KWH, US_PER_HOUR

_NO_TIES: Final = ""
_POINT: Final = {"it": "IT", "facility": "facility", "included": "facility (included in the rent)"}


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what is done in ``words``, and the exact figure that comes of it, if one does."""

    part: str
    """Heading it stands under: evidence, binding, readings, energy, price, rounding, facility, carbon."""
    words: str
    value: str | None = None
    unit: str | None = None
    of: str | None = None
    """The device it is of, where a part tells of several."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A line with its steps; ``differs``: figures that do not come out as they are stored, in words, none if all do."""

    line: Mapping[str, Any]
    steps: tuple[Step, ...]
    differs: tuple[str, ...]
    unseen: tuple[str, ...] = field(default=())
    """What could not be checked to the last digit, and why."""


@dataclass(frozen=True, slots=True)
class HourFacts:
    """What the lines of one hour are priced by: stored lines of its revision with ``tenant`` (path), and dated rows in force."""

    hour_at: datetime
    lines: pl.DataFrame
    is_whole: bool
    """Whether ``lines`` are all of the hour's, or those of one subtree."""
    rates: Mapping[str, Mapping[str, Any]]
    """``price:<id>`` and ``tariff:<id>``: the rows that lines name."""
    factor: HourFactor | None
    intensity: pl.DataFrame


def line_steps(line: Mapping[str, Any], quantity: int | None, energy_mj: int | None, facts: HourFacts) -> Explained:
    """Explain one line from its quantity and energy as they were worked out (null = not known apart from the line)."""
    taken = line["quantity"] if quantity is None else quantity
    steps: list[Step] = []
    differs: list[str] = []
    unseen: list[str] = []
    if taken != line["quantity"]:
        differs.append(f"quantity: {taken:,} worked out, {line['quantity']:,} stored ({line['quantity_unit']})")
    priced, cost, seen = _cost(line, taken, facts)
    steps += priced
    _compare(differs, unseen, "cost", cost, line["billed_cost"], to_the_digit=seen, scale=NANO)
    if line["charge_category"] in CARRIERS:
        if energy_mj is not None and energy_mj != line["energy_mj"]:
            differs.append(f"energy: {energy_mj:,} mJ worked out, {_told(line['energy_mj'])} stored")
        more, facility = _facility(line, facts)
        steps += more
        _compare(
            differs, unseen, "facility energy", facility, line["facility_mj"], to_the_digit=facts.is_whole, scale=1
        )
        more, grams = _carbon(line, facts)
        steps += more
        _compare(differs, unseen, "carbon", grams, line["carbon_gco2e"], to_the_digit=facts.is_whole, scale=NANO)
    return Explained(line, tuple(steps), tuple(differs), tuple(unseen))


def _cost(line: Mapping[str, Any], quantity: int, facts: HourFacts) -> tuple[list[Step], Fraction | None, bool]:
    """Return the steps, the cost in billionths (exact share where the group is not whole) and whether it is to the digit."""
    category = line["charge_category"]
    if category in CARRIERS and line["price_id"] is None and line["quantity_unit"] == "mJ":
        words = "carries energy and carbon alone; its electricity is a line of its own"
        return [Step("price", words, "0", line["currency"])], Fraction(0), True
    key = f"tariff:{line['tariff_id']}" if category == ELECTRICITY else f"price:{line['price_id']}"
    rate = facts.rates.get(key)
    if rate is None:
        words = "nobody told a price that holds in this hour: the line is unpriced, which is not zero"
        return [Step("price", words)], None, True
    steps, exact_rate, per = _rate(line, rate, facts)
    if not in_books(rate, line["currency"]):
        words = f"the books are in {line['currency']}: the line is unpriced, which is not zero"
        return [*steps, Step("price", words)], None, True
    same = "tariff_id" if category == ELECTRICITY else "price_id"
    group = facts.lines.filter((pl.col("charge_category") == category) & (pl.col(same) == line[same]))
    rows = group.to_dicts()
    share = Fraction(quantity) * exact_rate / per
    steps.append(
        Step(
            "price",
            f"{quantity:,} {line['quantity_unit']} × {_exact(exact_rate)} ÷ {per:,}",
            _exact(share),
            line["currency"],
        )
    )
    if not facts.is_whole:
        steps.append(Step("rounding", _UNSEEN))
        return steps, share * NANO, False
    mine = _at(rows, line)
    weights = [int(row["quantity"]) for row in rows]
    weights[mine] = quantity
    names = [
        _token_tie(row, rate) if category == API_TOKENS else _tie(row, "holder_key", "device_model") for row in rows
    ]
    part = part_of(Fraction(sum(weights)) * exact_rate / per * NANO, weights, names, mine)
    steps += _rounding(
        "rounding", part, line["quantity_unit"], f"{exact_rate_words(exact_rate, per)}", line["currency"], NANO
    )
    return steps, Fraction(part.part), True


def exact_rate_words(rate: Fraction, per: int) -> str:
    return f"× {_exact(rate)}" + (f" ÷ {per:,}" if per != 1 else "")


def _rate(line: Mapping[str, Any], rate: Mapping[str, Any], facts: HourFacts) -> tuple[list[Step], Fraction, int]:
    """Return what the price row says, the exact rate, and how many quantity units it is for."""
    until = "until replaced" if rate["valid_to"] is None else f"to {_day(rate['valid_to'])}"
    valid = f"valid from {_day(rate['valid_from'])} {until}"
    if line["charge_category"] == ELECTRICITY:
        amount = Fraction(rate["amount_per_kwh"])
        steps = [
            Step(
                "price",
                f"tariff at the {_POINT[rate['metering_point']]} meter, {valid}",
                _exact(amount),
                f"{rate['currency']}/kWh",
            )
        ]
        if rate["metering_point"] == "facility":
            factor = IT_ONLY if facts.factor is None else facts.factor.factor
            words = "× facility factor of the hour" if facts.factor else "no facility factor is known: IT energy alone"
            steps.append(Step("price", words, _exact(factor), None))
            amount *= factor
        return steps, amount, MJ_PER_KWH
    amount = Fraction(rate["amount"])
    who = "published standard rate" if rate["provider"] == "owned" else f"price of {rate['provider']}"
    if line["charge_category"] == API_TOKENS:
        return (
            [
                Step(
                    "price",
                    f"{who}, {rate['model']} {rate['meter']}, {valid}",
                    _exact(amount),
                    f"{rate['currency']}/token",
                )
            ],
            amount,
            1,
        )
    unit = f"{rate['currency']}/accelerator-hour"
    return [Step("price", f"{who} of {rate['model']}, {valid}", _exact(amount), unit)], amount, US_PER_HOUR


def _facility(line: Mapping[str, Any], facts: HourFacts) -> tuple[list[Step], Fraction | None]:
    if line["energy_mj"] is None:
        return [], None
    if facts.factor is None:
        return [Step("facility", "no facility factor is known of this hour: facility energy is not said")], None
    factor = facts.factor.factor
    category = "not known of all of it" if facts.factor.category is None else str(facts.factor.category)
    steps = [Step("facility", f"facility factor of the hour, PUE category {category}", _exact(factor))]
    share = Fraction(line["energy_mj"]) * factor
    steps.append(Step("facility", f"{line['energy_mj']:,} mJ × {_exact(factor)}", _exact(share), "mJ"))
    if not facts.is_whole:
        return steps, share
    part = _energy_part(line, facts, factor)
    return [*steps, *_rounding("facility", part, "mJ", f"× {_exact(factor)}", "mJ", 1)], Fraction(part.part)


def _carbon(line: Mapping[str, Any], facts: HourFacts) -> tuple[list[Step], Fraction | None]:
    if line["energy_mj"] is None:
        return [], None
    row = Grid(facts.intensity).at(facts.hour_at)
    if row is None:
        return [Step("carbon", "no intensity of the grid is known of this hour: grams are not said")], None
    factor = IT_ONLY if facts.factor is None else facts.factor.factor
    rate = Fraction(row["gco2e_per_kwh"]) * factor
    said = "estimated" if row["estimated"] else "as published"
    kind = "location-based life-cycle" if row["life_cycle"] else "location-based"
    steps = [
        Step(
            "carbon",
            f"{kind} intensity, {said}, from {_day(row['valid_from'])}",
            _exact(Fraction(row["gco2e_per_kwh"])),
            "gCO2e/kWh",
        )
    ]
    if factor != 1:
        steps.append(Step("carbon", "× facility factor of the hour", _exact(factor)))
    share = Fraction(line["energy_mj"]) * rate / MJ_PER_KWH
    steps.append(Step("carbon", f"{line['energy_mj']:,} mJ × {_exact(rate)} ÷ {MJ_PER_KWH:,}", _exact(share), "gCO2e"))
    if not facts.is_whole:
        return steps, share * NANO
    part = _energy_part(line, facts, rate / MJ_PER_KWH * NANO)
    return [*steps, *_rounding("carbon", part, "mJ", exact_rate_words(rate, MJ_PER_KWH), "gCO2e", NANO)], Fraction(
        part.part
    )


def _energy_part(line: Mapping[str, Any], facts: HourFacts, rate: Fraction) -> Part:
    rows = facts.lines.filter(pl.col("charge_category").is_in(CARRIERS)).to_dicts()
    weights = [int(row["energy_mj"] or 0) for row in rows]
    names = [_tie(row, "holder_key", "device_model", "charge_category") for row in rows]
    return part_of(sum(weights) * rate, weights, names, _at(rows, line))


def idle_spread_steps(line: Mapping[str, Any], facts: HourFacts, policies: pl.DataFrame) -> Explained:
    """Explain a tenant's part of the idle cost of the hour, or the platform's counter-line."""
    rule = Dated(policies, "policy_id").at(facts.hour_at)
    rows = facts.lines.to_dicts()
    idle = [
        row
        for row in rows
        if row["pool"] == "idle" and row["charge_category"] != IDLE_SPREAD and row["billed_cost"] is not None
    ]
    others = [row for row in rows if row["charge_category"] == IDLE_SPREAD]
    total = sum((Fraction(row["billed_cost"]) for row in idle), Fraction(0))
    if rule is None or not facts.is_whole:
        words = _UNSEEN if rule is not None else "the idle policy of the hour is not known"
        return Explained(line, (Step("rounding", words),), (), ("cost: what is spread is of lines that are not shown",))
    steps = [Step("price", f"{len(idle)} idle lines of the hour cost together", _money(total), line["currency"])]
    if line["tenant_id"] is None:
        given = sum((Fraction(row["billed_cost"]) for row in others if row["tenant_id"] is not None), Fraction(0))
        steps.append(
            Step("price", "the counter-line: minus what tenants were given of it", _money(-given), line["currency"])
        )
        differs: list[str] = []
        _compare(differs, [], "cost", -given * NANO, line["billed_cost"], to_the_digit=True, scale=NANO)
        return Explained(line, tuple(steps), tuple(differs))
    parts = _spread_parts(rows, rule, policies, facts.hour_at)
    keys = list(parts)
    part = part_of(
        total * NANO, [parts[key][0] for key in keys], [parts[key][1] for key in keys], keys.index(line["tenant_id"])
    )
    basis = (
        "parts per million" if rule["policy"] == "fixed" else ("accelerator-us" if rule["basis"] == "time" else "mJ")
    )
    steps.append(Step("price", f"policy {rule['policy']}: each tenant's part is by its", basis))
    steps += _rounding("rounding", part, basis, "idle cost", line["currency"], NANO)
    differs = []
    _compare(differs, [], "cost", Fraction(part.part), line["billed_cost"], to_the_digit=True, scale=NANO)
    return Explained(line, tuple(steps), tuple(differs))


def _spread_parts(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any], policies: pl.DataFrame, at: datetime
) -> dict[int | None, tuple[int, Any]]:
    """Return tenant -> its weight and its place among equals; null = what stays with the platform."""
    paths = {row["tenant_id"]: row["tenant"] for row in rows}
    weights: dict[int | None, int] = {}
    if rule["policy"] == "fixed":
        for told in policies.sort("valid_from", "policy_id").to_dicts():
            if (
                told["policy"] == "fixed"
                and told["valid_from"] <= at
                and (told["valid_to"] is None or told["valid_to"] > at)
            ):
                weights[told["tenant_id"]] = told["fixed_ppm"]
        weights[None] = 1_000_000 - sum(weights.values())
    else:
        for row in rows:
            if row["pool"] != "job" or row["charge_category"] not in CARRIERS:
                continue
            time = row["quantity"] if row["quantity_unit"] == "accelerator-us" else 0
            used = time if rule["basis"] == "time" else row["energy_mj"] or 0
            weights[row["tenant_id"]] = weights.get(row["tenant_id"], 0) + used
        weights = {tenant: used for tenant, used in weights.items() if used > 0}
    return {tenant: (weight, (tenant is not None, paths.get(tenant) or _NO_TIES)) for tenant, weight in weights.items()}


def correction_steps(line: Mapping[str, Any], before: pl.DataFrame, after: pl.DataFrame) -> Explained:
    """Explain a correction of a frozen hour: what its line was posted as, what it would be by now, and the difference."""
    steps, differs = [], []
    scale = {
        "billed_cost": line["currency"],
        "energy_mj": "mJ",
        "facility_mj": "mJ",
        "carbon_gco2e": "gCO2e",
        "quantity": line["quantity_unit"],
    }
    for name, unit in scale.items():
        old, new = (_sum(frame, line, name) for frame in (before, after))
        if old is None and new is None:
            continue
        moved = (new or 0) - (old or 0)
        what = name.removesuffix("_mj").removesuffix("_gco2e").replace("_", " ")
        steps.append(
            Step("correction", f"{what}: {_told(new)} by now − {_told(old)} posted before", _told(moved), unit)
        )
        if line[name] is None or Fraction(line[name]) != Fraction(moved):
            differs.append(f"{what}: {_told(moved)} worked out, {_told(line[name])} stored ({unit})")
    return Explained(line, tuple(steps), tuple(differs))


_WHO: Final = (
    "tenant_id",
    "job_id",
    "api_key",
    "pool",
    "device_model",
    "charge_category",
    "holder_key",
    "quantity_unit",
    "currency",
)


def _sum(frame: pl.DataFrame, line: Mapping[str, Any], name: str) -> Any:
    rows = frame
    for who in _WHO:
        rows = rows.filter(pl.col(who).eq_missing(pl.lit(line[who], dtype=frame.schema[who])))
    known = rows[name].drop_nulls()
    return sum(known.to_list()) if known.len() else None


def _rounding(part_name: str, part: Part, unit: str, rate: str, figure: str, scale: int) -> list[Step]:
    """Say how a part of a rounded total came about; ``scale``: last places of the figure to its unit."""
    lines = "the only line of its group" if part.lines == 1 else f"all {part.lines:,} lines of the group"
    steps = [
        Step(part_name, f"{lines}: {part.weights:,} {unit} {rate}", _exact(part.exact / scale), figure),
        Step(
            part_name,
            "rounded once, half to even" + (", to 9 places" if scale == NANO else ""),
            _fixed(part.total, scale),
            figure,
        ),
    ]
    if part.lines == 1:
        return steps
    place = "millijoule" if scale == 1 else "billionth"
    steps.append(
        Step(part_name, f"× {part.weight:,} ÷ {part.weights:,}, rounded down", _fixed(part.floor, scale), figure)
    )
    won = abs(part.part) - abs(part.floor)
    if part.left:
        steps.append(
            Step(
                part_name,
                f"{part.left:,} {place}{'s' if part.left != 1 else ''} left for the largest remainders; this one is "
                f"{part.remainder:,} ÷ {part.weights:,}, number {part.rank:,} of {part.lines:,}",
                _fixed(won if part.part >= 0 else -won, scale),
                figure,
            )
        )
    steps.append(Step(part_name, "this line", _fixed(part.part, scale), figure))
    return steps


_UNSEEN: Final = "the group's other lines are not yours to see: the figure is held to the last place of its exact share"


def _compare(
    differs: list[str],
    unseen: list[str],
    what: str,
    mine: Fraction | None,
    stored: Any,
    *,
    to_the_digit: bool,
    scale: int,
) -> None:
    """Note where ``mine``, in last places, is not what is stored, or cannot be said to be."""
    kept = None if stored is None else Fraction(stored) * scale
    if mine is None or kept is None:
        if (mine is None) != (kept is None):
            differs.append(f"{what}: {_place(mine, scale)} worked out, {_place(kept, scale)} stored")
    elif to_the_digit:
        if mine != kept:
            differs.append(f"{what}: {_place(mine, scale)} worked out, {_place(kept, scale)} stored")
    elif abs(mine - kept) >= Fraction(3, 2):  # half of rounding once, and less than one of the largest remainder
        differs.append(f"{what}: {_place(mine, scale)} is its exact share, {_place(kept, scale)} stored")
    else:
        unseen.append(f"{what}: within the last place of its exact share")


def _place(value: Fraction | None, scale: int) -> str:
    return "nothing" if value is None else _fixed(half_even(value), scale)


def _at(rows: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> int:
    return next(at for at, row in enumerate(rows) if row["line_key"] == line["line_key"])


def _tie(row: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple((row[name] is not None, row[name] or _NO_TIES) for name in names)


def _token_tie(row: Mapping[str, Any], rate: Mapping[str, Any]) -> tuple[Any, ...]:
    # A group has one price, so one provider; models whose names stand for the price's are several.
    model, _, part = row["holder_key"].removeprefix(f"api:{rate['provider']}/").rpartition("/")
    return (*_tie(row, "tenant", "api_key"), model, part, row["line_key"])


def _exact(value: Fraction) -> str:
    """Return a fraction as a finite decimal where it is one of at most 21 places, else as a fraction with its rounded value."""
    for places in (0, 3, 6, 9, 12, 15, 18, 21):
        scaled = value * 10**places
        if scaled.denominator == 1:
            text = _fixed(scaled.numerator, 10**places)
            return text.rstrip("0").rstrip(".") if "." in text else text
    about = _fixed(half_even(value * 10**12), 10**12)
    return f"{value.numerator}/{value.denominator} ≈ {about}"


def _fixed(places: int, scale: int) -> str:
    """Return an integer of last places as text with thousands apart."""
    whole, rest = divmod(abs(places), scale)
    sign = "-" if places < 0 else ""
    return f"{sign}{whole:,}" + (f".{rest:0{len(str(scale)) - 1}d}" if scale > 1 else "")


def _money(value: Fraction) -> str:
    return _fixed(half_even(value * NANO), NANO)


def _told(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:f}" if isinstance(value, Decimal) else f"{value:,}"


def _day(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d}" if (at.hour, at.minute, at.second) == (0, 0, 0) else f"{at:%Y-%m-%d %H:%MZ}"
