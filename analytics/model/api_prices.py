"""Chooses the price of one part of an API call by the conditions it was made under. Pure: prices in, a price or a reason out.

A price row says its own conditions: a service tier, a prompt above so many tokens (then the whole call is at it: a cliff), how long a
cache is kept, hours of the day in an IANA zone. Rows without conditions are the standard ones. A tier, or a cache of another
duration, that has no price of its own has none: a discount is never guessed. An unknown price is a state, never 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, Final
from zoneinfo import ZoneInfo

from analytics.model.aliases import target_of

STANDARD: Final = "standard"
TIERS: Final = (STANDARD, "batch", "flex", "priority")
_TIER_OF_METER: Final = {"batches": "batch", "": STANDARD}
MINUTES_TTL_S: Final = 300
HOUR_TTL_S: Final = 3_600
ESTIMATE_HIGH: Final = "estimate_high"
POLICIES: Final = ("deny", ESTIMATE_HIGH, "allow")
_ON_DEMAND: Final = "on_demand"
_HALF_HOUR: Final = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Asked:
    """One part of calls alike: the meters that may price it, best first, and the conditions."""

    provider: str
    model: str
    meters: tuple[str, ...]
    at: datetime
    tier: str = STANDARD
    prompt_tokens: int = 0
    """All of the input, cached or not; what a threshold counts."""
    ttl_s: int | None = None
    """Of what is written to a cache: how long it is kept; null = the provider's usual."""


@dataclass(frozen=True, slots=True)
class Priced:
    """``amount``: of one unit. ``terms``: the conditions it is the price of, null = none. ``estimated``: dearest of its kind."""

    price_id: int
    amount: Decimal
    terms: str | None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    reason: str


@dataclass(frozen=True, slots=True)
class _Row:
    price_id: int
    amount: Decimal
    currency: str
    valid_from: datetime
    valid_to: datetime | None
    tier: str
    above_tokens: int
    ttl_s: int | None
    zone: ZoneInfo | None
    from_local: time
    to_local: time
    weekdays: int

    def holds(self, at: datetime) -> bool:
        return self.valid_from <= at and (self.valid_to is None or at < self.valid_to)

    def in_hours(self, at: datetime) -> bool:
        """Whether the wall clock of its zone is within its hours; those past midnight are of the weekday they began on."""
        if self.zone is None:
            return True
        local = at.astimezone(self.zone)
        clock, day = local.time(), local.isoweekday()
        if self.from_local < self.to_local:
            return self.from_local <= clock < self.to_local and self._of_day(day)
        if clock >= self.from_local:
            return self._of_day(day)
        return clock < self.to_local and self._of_day((day - 2) % 7 + 1)

    def _of_day(self, day: int) -> bool:
        return bool(self.weekdays >> (day - 1) & 1)

    @property
    def terms(self) -> str | None:
        told = [
            *([self.tier] if self.tier != STANDARD else []),
            *([f"above {self.above_tokens} tokens"] if self.above_tokens else []),
            *([f"kept {self.ttl_s} s"] if self.ttl_s is not None else []),
            *([f"{self.from_local:%H:%M}-{self.to_local:%H:%M} {self.zone}"] if self.zone is not None else []),
        ]
        return ", ".join(told) or None

    @property
    def place(self) -> tuple[Any, ...]:
        return self.zone is not None, self.above_tokens, self.ttl_s is not None, self.valid_from, self.price_id


class Book:
    """Prices of API models, ready to be asked for many calls."""

    def __init__(
        self,
        prices: Iterable[Mapping[str, Any]],
        aliases: Sequence[Mapping[str, Any]] = (),
        policies: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Take rows of Prices, ModelAliases and PricePolicies; what is bought in a region or by commitment is no call's price."""
        self._rows: dict[tuple[str, str, str], list[_Row]] = defaultdict(list)
        self._of_model: dict[tuple[str, str], list[_Row]] = defaultdict(list)
        self._aliases, self._policies = aliases, policies
        self._names: dict[tuple[str, str, datetime], str] = {}
        for told in prices:
            if told.get("region") is not None or told.get("purchase") not in (None, _ON_DEMAND):
                continue
            meter, row = _row(told)
            self._rows[told["provider"], told["model"], meter].append(row)
            self._of_model[told["provider"], told["model"]].append(row)
        for rows in self._rows.values():
            rows.sort(key=lambda row: row.place, reverse=True)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def model_of(self, provider: str, model: str, at: datetime) -> str:
        """Return the model whose prices are a name's: its own where the book has some in force, else what an alias says."""
        if not self._aliases or any(row.holds(at) for row in self._of_model.get((provider, model), ())):
            return model
        key = provider, model, at
        if key not in self._names:
            self._names[key] = target_of(self._aliases, provider, model, at) or model
        return self._names[key]

    def prices_meter(self, provider: str, model: str, meter: str, at: datetime) -> bool:
        """Return whether anything of this model is sold by this meter at the time."""
        rows = self._rows.get((provider, self.model_of(provider, model, at), meter), ())
        return any(row.holds(at) for row in rows)

    def choose(self, asked: Asked) -> Priced | Unknown:
        """Return the price of a part: of its best meter that has one for these conditions, the most particular, then the newest."""
        model = self.model_of(asked.provider, asked.model, asked.at)
        known = False
        for meter in asked.meters:
            for row in self._rows.get((asked.provider, model, meter), ()):
                if not row.holds(asked.at):
                    continue
                known = True
                if (
                    row.tier == asked.tier
                    and _same_ttl(row.ttl_s, asked.ttl_s)
                    and (row.above_tokens == 0 or asked.prompt_tokens > row.above_tokens)
                    and row.in_hours(asked.at)
                ):
                    return Priced(row.price_id, row.amount, row.terms)
        return self._estimate(asked) or Unknown(self._why(asked, model, known=known))

    def currency_of(self, price_id: int) -> str:
        return next(row.currency for rows in self._rows.values() for row in rows if row.price_id == price_id)

    def thresholds(self) -> list[int]:
        """Return the prompts from which on some price is another, ascending."""
        return sorted({row.above_tokens for rows in self._rows.values() for row in rows if row.above_tokens})

    def changes(self, from_at: datetime, to_at: datetime) -> list[datetime]:
        """Return the instants at which a choice may become another: all of dates, and within the interval those of wall clocks."""
        rows = [row for each in self._rows.values() for row in each]
        dated: Iterable[tuple[datetime, datetime | None]] = [
            *((row.valid_from, row.valid_to) for row in rows),
            *((told["valid_from"], told["valid_to"]) for told in (*self._aliases, *self._policies)),
        ]
        found = {at for begun, ended in dated for at in (begun, ended) if at is not None}
        for zone, begun, ended in {(row.zone, row.from_local, row.to_local) for row in rows if row.zone is not None}:
            found |= _clock_changes(zone, (begun, ended), from_at, to_at)
        return sorted(found)

    def _estimate(self, asked: Asked) -> Priced | None:
        if self._policy(asked) != ESTIMATE_HIGH:
            return None
        dearest = [
            row
            for (provider, _, meter), rows in self._rows.items()
            if provider == asked.provider and meter in asked.meters
            for row in rows
            if row.holds(asked.at)
        ]
        if not dearest:
            return None
        row = max(dearest, key=lambda row: (row.amount, -row.price_id))
        return Priced(row.price_id, row.amount, ESTIMATE_HIGH, estimated=True)

    def _policy(self, asked: Asked) -> str | None:
        """Return what is done of an unknown price: the policy that names most of it, then the newest."""
        who = asked.provider.casefold(), asked.model.casefold()
        fitting = [
            told
            for told in self._policies
            if told["valid_from"] <= asked.at
            and (told["valid_to"] is None or asked.at < told["valid_to"])
            and fnmatchcase(who[0], told["provider"].casefold())
            and fnmatchcase(who[1], told["model"].casefold())
        ]
        best = max(fitting, key=_names_most, default=None)
        return None if best is None else str(best["unknown"])

    def _why(self, asked: Asked, model: str, *, known: bool) -> str:
        if known:
            ttl = "" if asked.ttl_s is None else f" of a cache kept {asked.ttl_s} s"
            return f"no {asked.tier} price{ttl}"
        return "no price of this part" if self._of_model.get((asked.provider, model)) else "no price of this model"


def _names_most(told: Mapping[str, Any]) -> tuple[int, int, int]:
    return len(told["provider"].replace("*", "")), len(told["model"].replace("*", "")), told["policy_id"]


def _same_ttl(of_row: int | None, asked: int | None) -> bool:
    return of_row in (None, MINUTES_TTL_S) if asked is None else of_row == asked


def _row(told: Mapping[str, Any]) -> tuple[str, _Row]:
    meter, _, tier = str(told["meter"]).partition("/")
    zone = told.get("time_zone")
    return meter, _Row(
        told["price_id"],
        told["amount"],
        told["currency"],
        told["valid_from"],
        told["valid_to"],
        told.get("service_tier") or _TIER_OF_METER.get(tier, tier),
        told.get("above_tokens") or 0,
        told.get("cache_ttl_s"),
        None if zone is None else ZoneInfo(zone),
        told.get("from_local") or time(),
        told.get("to_local") or time(),
        127 if told.get("weekdays") is None else told["weekdays"],
    )


def _clock_changes(zone: ZoneInfo, clocks: Iterable[time], from_at: datetime, to_at: datetime) -> set[datetime]:
    """Return when these wall clocks are passed, and when the zone's clocks are put forward or back, which is on half hours."""
    found: set[datetime] = set()
    day: date = from_at.astimezone(zone).date() - timedelta(days=1)
    while day <= to_at.astimezone(zone).date() + timedelta(days=1):
        for clock in {*clocks, time()}:
            for fold in (0, 1):
                found.add(datetime.combine(day, clock.replace(fold=fold), zone).astimezone(from_at.tzinfo))
        day += timedelta(days=1)
    at = from_at.replace(minute=0, second=0, microsecond=0)
    while at <= to_at:
        if at.astimezone(zone).utcoffset() != (at - _HALF_HOUR).astimezone(zone).utcoffset():
            found.add(at)
        at += _HALF_HOUR
    return found
