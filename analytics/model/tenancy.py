"""Who pays: ordered, dated bindings give each job and each API call a tenant, and can explain themselves.

Patterns are globs (``*`` any run of characters, ``?`` one), matched whole and case-sensitively. A null pattern matches
anything, a pattern never matches what is missing, the first rule that matches wins, and no match is ``unmapped`` (null).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import polars as pl

from analytics.errors import InputError

R = TypeVar("R", bound=Mapping[str, Any])
FIELDS: Final = ("cluster", "account", "partition", "user_name", "namespace", "label", "api_key", "tag")
_SEVERAL: Final = frozenset({"label", "tag"})
"""Fields that hold several ``key=value`` joined by commas; a pattern must match one of them whole."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a subject has its tenant: each rule in order with the first field that spoke against it."""

    tenant_id: int | None
    binding_id: int | None
    steps: tuple[str, ...]


def pattern(field: str, glob: str) -> str:
    """Return the anchored regular expression of a glob, valid for Python and for polars."""
    anything, one = ("[^,]*", "[^,]") if field in _SEVERAL else (r"[\s\S]*", r"[\s\S]")
    body = "".join(anything if char == "*" else one if char == "?" else re.escape(char) for char in glob)
    return f"(?:^|,)(?:{body})(?:,|$)" if field in _SEVERAL else f"^(?:{body})$"


def bind(subjects: pl.DataFrame, bindings: pl.DataFrame, at: datetime) -> pl.DataFrame:
    """Return ``subjects`` with tenant_id and binding_id as the bindings in force at ``at`` say; null = unmapped.

    ``subjects`` holds any of :data:`FIELDS`; a field that is not there is missing for all.
    """
    return _bind(subjects, _in_force(_rules(bindings), at))


def _bind(subjects: pl.DataFrame, rules: Sequence[Mapping[str, object]]) -> pl.DataFrame:
    if not rules:
        nothing = pl.lit(None, dtype=pl.Int32)
        return subjects.with_columns(nothing.alias("tenant_id"), nothing.alias("binding_id"))
    first = pl.coalesce(
        pl.when(_matches(rule, subjects.columns)).then(pl.lit(index, dtype=pl.Int32))
        for index, rule in enumerate(rules)
    )
    owners = pl.DataFrame(
        {
            "_rule": range(len(rules)),
            "tenant_id": [rule["tenant_id"] for rule in rules],
            "binding_id": [rule["binding_id"] for rule in rules],
        },
        schema={"_rule": pl.Int32, "tenant_id": pl.Int32, "binding_id": pl.Int32},
    )
    return (
        subjects.with_columns(first.alias("_rule"))
        .join(owners, on="_rule", how="left", maintain_order="left")
        .drop("_rule")
    )


def _matches(rule: Mapping[str, object], present: Sequence[str]) -> pl.Expr:
    asked = [(field, str(rule[field])) for field in FIELDS if rule[field] is not None]
    if any(field not in present for field, _ in asked):
        return pl.lit(value=False)
    if not asked:
        return pl.lit(value=True)
    # Most rules name one account: plain equality is several times cheaper than a regular expression.
    plain = {field for field, glob in asked if field not in _SEVERAL and not set(glob) & {"*", "?"}}
    tests = [
        pl.col(field) == glob if field in plain else pl.col(field).str.contains(pattern(field, glob))
        for field, glob in asked
    ]
    return pl.all_horizontal(test.fill_null(value=False) for test in tests)


def bind_hours(subjects: pl.DataFrame, hours: pl.DataFrame, key: str, bindings: pl.DataFrame) -> pl.DataFrame:
    """Return hour_at, ``key``, tenant_id, binding_id for each (hour_at, key) of ``hours``, as dated at the hour's start."""
    wanted = hours.select("hour_at", key).unique()
    # Rules change rarely: hours under the same rules are bound together.
    alike: dict[tuple[object, ...], tuple[list[dict[str, Any]], list[datetime]]] = {}
    dated = _rules(bindings)
    for hour_at in wanted["hour_at"].unique().sort().to_list():
        rules = _in_force(dated, hour_at)
        alike.setdefault(tuple(rule["binding_id"] for rule in rules), (rules, []))[1].append(hour_at)
    found = [wanted.clear().with_columns(tenant_id=pl.lit(None, pl.Int32), binding_id=pl.lit(None, pl.Int32))]
    for rules, when in alike.values():
        asked = wanted.filter(pl.col("hour_at").is_in(when))
        bound = _bind(subjects.join(asked, on=key, how="semi", nulls_equal=True), rules)
        owners = bound.select(key, "tenant_id", "binding_id")
        found.append(asked.join(owners, on=key, how="inner", nulls_equal=True))
    return pl.concat(found).sort("hour_at", key)


def move(owned: pl.DataFrame, moves: pl.DataFrame) -> pl.DataFrame:
    """Return ``owned`` (hour_at, tenant_id, ...) with the tenants that pay by the moves in force at each hour's start.

    A move leads on: what went to a tenant that has moved itself by then is paid by whom that moved to. Raises InputError where
    moves lead in a circle.
    """
    if moves.is_empty():
        return owned
    rows = moves.sort("valid_from", "move_id").to_dicts()
    pairs = [
        (hour_at, tenant, follow(tenant, rows, hour_at)[-1])
        for hour_at in owned["hour_at"].unique().sort().to_list()
        for tenant in {row["tenant_id"] for row in _in_force(rows, hour_at)}
    ]
    given = pl.DataFrame(
        pairs,
        schema={"hour_at": owned.schema["hour_at"], "tenant_id": pl.Int32, "_to": pl.Int32},
        orient="row",
    )
    return (
        owned.join(given, on=["hour_at", "tenant_id"], how="left", maintain_order="left")
        .with_columns(pl.coalesce("_to", "tenant_id").alias("tenant_id"))
        .drop("_to")
    )


def follow(tenant_id: int, moves: Sequence[Mapping[str, Any]], at: datetime) -> tuple[int, ...]:
    """Return a tenant and whom it moved to by then, one after the other; the last one pays. ``moves``: sorted by begin and id."""
    leads = {row["tenant_id"]: row["to_tenant_id"] for row in _in_force(moves, at)}
    way = [tenant_id]
    while way[-1] in leads:
        way.append(leads[way[-1]])
        if way[-1] in way[:-1]:
            raise InputError(f"moves of tenants {way} lead in a circle at {at}; supersede one of them")
    return tuple(way)


def explain(subject: Mapping[str, str | None], bindings: pl.DataFrame, at: datetime) -> Explanation:
    """Return which rule decides for one job or key, and why each rule before it did not match."""
    steps = []
    for rule in _in_force(_rules(bindings), at):
        against = _mismatch(subject, rule)
        if against is None:
            steps.append(f"rule {rule['position']}: matches")
            return Explanation(int(str(rule["tenant_id"])), int(str(rule["binding_id"])), tuple(steps))
        steps.append(f"rule {rule['position']}: {against}")
    return Explanation(None, None, (*steps, "no rule matches: unmapped"))


def _mismatch(subject: Mapping[str, str | None], rule: Mapping[str, object]) -> str | None:
    for field in FIELDS:
        glob = rule[field]
        if glob is None:
            continue
        value = subject.get(field)
        if value is None:
            return f"{field} is missing, {glob!r} is asked for"
        if not re.search(pattern(field, str(glob)), value):
            return f"{field} {value!r} does not match {glob!r}"
    return None


def _rules(bindings: pl.DataFrame) -> list[dict[str, Any]]:
    return bindings.sort("position", "binding_id").to_dicts()


def _in_force(rules: Sequence[R], at: datetime) -> list[R]:
    return [rule for rule in rules if rule["valid_from"] <= at and (rule["valid_to"] is None or rule["valid_to"] > at)]
