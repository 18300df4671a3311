"""Puts the explanation of a line, or of an hour of a job, together: who held what by which word, who pays and why, readings, and each figure.

It reads through ``explain_reads`` and writes nothing; a figure that does not come out as it is stored is part of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

import polars as pl
import psycopg

from analytics.errors import InputError
from analytics.explain import NOT_FOLLOWED, Followed, as_stored
from analytics.frames import API_TOKENS, ELECTRICITY, GPU_OWNED, IDLE_SPREAD
from analytics.io.explain_reads import (
    HourRead,
    Job,
    costliest,
    find_job,
    is_line,
    line_name,
    line_of,
    lines_of_job,
    read_hour,
    usage_of,
)
from analytics.io.explain_samples import followed, known_of
from analytics.io.references import Known
from analytics.model import tenancy
from analytics.model.explain import Explained, HourFacts, Step, correction_steps, idle_spread_steps, line_steps
from analytics.model.facility import factors_of
from analytics.model.methods import category
from analytics.model.tokens import UNKNOWN, book_of, price_of
from analytics.policy import EVIDENCE, OTHER_EVIDENCE
from analytics.units import to_us
from collector.wire import Origin
from ingest.store.engine import Database
from ingest.store.segments import Segments

SAMPLES: Final = "samples"
USAGE: Final = "stored usage hours"
_RULES_TOLD: Final = 12


@dataclass(frozen=True, slots=True)
class Why:
    """The answer. ``ground``: what energy was followed to; ``why``: why not to samples, or not all of it, else empty."""

    asked: str
    site: str
    hour_at: datetime
    ground: str
    why: str
    is_simulated: bool
    job: Job | None
    steps: tuple[Step, ...]
    """What all lines of the answer have in common: evidence, binding, readings, energy."""
    lines: tuple[Explained, ...]
    differs: tuple[str, ...]
    """What of the readings and usage hours does not come out, beside what each line says of itself."""

    @property
    def holds(self) -> bool:
        """Whether every line comes out as it is stored."""
        return not self.differs and not any(line.differs for line in self.lines)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, read in one transaction."""

    text: str
    job: Job | None
    read: HourRead
    is_whole: bool


def ask(
    connection: psycopg.Connection[Any],
    text: str,
    hour_at: datetime | None,
    *,
    now: datetime | None = None,
    is_whole: bool = True,
) -> Asked:
    """Read a line or an hour of a job as the connection may see it; raises WhyError where there is none.

    ``now``: reference data as known by then; without it as the hour's run knew it, which only a worker's connection may ask.
    ``is_whole``: whether all tenants' lines are to be seen.
    """
    job = None
    if is_line(text):
        lines = line_of(connection, text)
    else:
        job = find_job(connection, text)
        lines = lines_of_job(connection, job, hour_at or costliest(job))
    site_id, at = lines[0]["site_id"], lines[0]["hour_at"]
    lines = [line for line in lines if line["site_id"] == site_id]
    known = known_of(connection, site_id, at) if now is None else None
    read = read_hour(connection, lines, known or Known(now or datetime.now(UTC)))
    return Asked(text, job, read, is_whole)


def answer(asked: Asked, sampled: tuple[Database, psycopg.Connection[Any], Segments | None] | None = None) -> Why:
    """Return the explanation; ``sampled``: where samples are read, by a worker's connection in no transaction."""
    read = asked.read
    found: list[Followed] | None = None
    why = "samples are the operator's to read: `wattledger why` follows them"
    if sampled is not None and read.usage.height:
        found, why = followed(*sampled, read)
    elif not read.usage.height:
        why = "no device is behind it"
    followed_to = found or [
        as_stored(row, read.devices.get(row["device_id"], "a device")) for row in read.usage.to_dicts()
    ]
    known = {key for line in read.lines for key in _rows_of(read, line)}
    followed_to = [each for each in followed_to if (each.device_id, each.holder) in known]
    by_key = {(each.device_id, each.holder): each for each in followed_to}
    facts = _facts(read, is_whole=asked.is_whole)
    lines = tuple(_line(line, read, facts, by_key) for line in read.lines)
    steps = [*_evidence(read), *_binding(read, is_whole=asked.is_whole)]
    for part in ("readings", "energy"):
        steps += [step for each in followed_to for step in each.steps if step.part == part]
    beside = 0 if found is None else read.usage.filter(pl.col("method").is_in(list(NOT_FOLLOWED))).height
    if found is not None:
        why = (
            f"but {beside:,} of {read.usage.height:,} usage hours, of no counter of their own: as stored"
            if beside
            else ""
        )
    return Why(
        asked.text,
        read.site,
        read.hour_at.astimezone(UTC),
        USAGE if found is None else SAMPLES,
        why,
        any(line["origin"] == Origin.SIMULATED for line in read.lines),
        asked.job,
        tuple(steps),
        lines,
        tuple(word for each in followed_to for word in each.differs),
    )


def _facts(read: HourRead, *, is_whole: bool) -> HourFacts:
    hour_us = to_us(read.hour_at)
    factor = factors_of([hour_us], read.references.facility_factors).get(hour_us)
    return HourFacts(read.hour_at, read.hour_lines, is_whole, read.rates, factor, read.references.intensity)


def _rows_of(read: HourRead, line: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return device and holder of the usage hours that a line is made of."""
    if line["corrects_hour_at"] is not None or line["charge_category"] in (IDLE_SPREAD, API_TOKENS):
        return []
    rows = usage_of(read, line)
    if line["charge_category"] != ELECTRICITY:
        rides = rows.select(category(pl.col("method"), pl.lit(GPU_OWNED)).alias("rides"))["rides"]
        rows = rows.filter((rides == line["charge_category"]).fill_null(value=line["charge_category"] == GPU_OWNED))
    return list(rows.select("device_id", "holder").iter_rows())


def _line(
    line: Mapping[str, Any], read: HourRead, facts: HourFacts, by_key: Mapping[tuple[int, str], Followed]
) -> Explained:
    if line["corrects_hour_at"] is not None:
        return correction_steps(line, *read.corrected[bytes(line["chain_sha256"])])
    if line["charge_category"] == IDLE_SPREAD:
        return idle_spread_steps(line, facts, read.references.idle_policies)
    if line["charge_category"] == API_TOKENS:
        return _tokens(line, read, facts)
    accelerators = dict(
        zip(read.usage.select("device_id", "holder").iter_rows(), read.usage["accelerators"], strict=True)
    )
    mine = [(accelerators[key], by_key[key]) for key in _rows_of(read, line)]
    energies = [each.energy_mj for _, each in mine if each.energy_mj is not None]
    energy = sum(energies) if energies else None
    time = sum(each.held_us * count for count, each in mine)
    is_time = line["quantity_unit"] == "accelerator-us"
    words = (
        f"held time × accelerators of {len(mine):,} usage hours" if is_time else f"energy of {len(mine):,} usage hours"
    )
    quantity = time if is_time else energy or 0
    explained = line_steps(line, quantity, energy, facts)
    first = Step("price", words, f"{quantity:,}", line["quantity_unit"])
    return replace(explained, steps=(first, *explained.steps))


def _tokens(line: Mapping[str, Any], read: HourRead, facts: HourFacts) -> Explained:
    """Explain a line of calls: its tokens are counted again where all calls are to be seen."""
    if not facts.is_whole:
        return line_steps(line, None, None, facts)
    part = str(line["holder_key"]).rpartition("/")[2]
    count, calls = 0, 0
    owners: dict[str | None, int | None] = {}
    known = read.references
    book = book_of(read.calls, known.prices, known.aliases, known.price_policies)
    for call in read.calls.filter(pl.col("api_key").eq_missing(pl.lit(line["api_key"], dtype=pl.String))).to_dicts():
        if f"api:{call['provider']}/{call['model']}/{part}" != line["holder_key"]:
            continue
        key = call["api_key"]
        if key not in owners:
            owners[key] = tenancy.explain({"api_key": key}, read.references.bindings, read.hour_at).tenant_id
        if _paid(call["named_tenant_id"] or owners[key], read) != line["tenant_id"]:
            continue
        if part == UNKNOWN:
            amount = 0 if call["usage_known"] else 1
        else:
            price_id, terms = price_of(call, part, book)
            same = price_id == line["price_id"] and (price_id is not None or terms == line.get("terms"))
            amount = call[part] or 0 if call["usage_known"] and same else 0
        count, calls = count + amount, calls + bool(amount)
    explained = line_steps(line, count, None, facts)
    words = f"{part.replace('_', ' ')} of {calls:,} call{'s' if calls != 1 else ''} under this key"
    return replace(explained, steps=(Step("price", words, f"{count:,}", line["quantity_unit"]), *explained.steps))


def _paid(tenant_id: int | None, read: HourRead) -> int | None:
    if tenant_id is None:
        return None
    return tenancy.follow(tenant_id, _moves(read), read.hour_at)[-1]


def _moves(read: HourRead) -> list[dict[str, Any]]:
    return read.references.tenant_moves.sort("valid_from", "move_id").to_dicts()


def _evidence(read: HourRead) -> list[Step]:
    steps = []
    for row in read.evidence:
        what = read.devices.get(row["device_id"], row["name"])
        if row["device_id"] is None:
            what = f"{row['accelerators']} of {what}"
        share = "" if row["share_ratio"] is None else f", share {row['share_ratio']:.6f}".rstrip("0").rstrip(".")
        until = "no end told" if row["end_at"] is None else f"to {_at(row['end_at'], read.hour_at)}"
        rank = EVIDENCE.get(row["evidence"], OTHER_EVIDENCE)
        words = (
            f"{what}{share}: from {_at(row['start_at'], read.hour_at)} {until}, told by {row['evidence']} (rank {rank})"
        )
        steps.append(Step("evidence", words))
    return steps


def _binding(read: HourRead, *, is_whole: bool) -> list[Step]:
    line = read.lines[0]
    if line["job_id"] is None and line["pool"] != "api":
        said = {"idle": "nobody held it: the platform's idle pool", "platform": "the platform's: nobody used the node"}
        why = said.get(line["pool"], f"nobody's: {line['holder_key']}")
        given = f"; {line['tenant']} has this part of it by the idle policy" if line["tenant"] else ""
        return [Step("binding", why + given)]
    if line["pool"] == "api":
        subject: dict[str, Any] = {"api_key": line["api_key"]}
        named = None
    else:
        if read.references.jobs.is_empty():
            return [
                Step("binding", "the job is another tenant's by now; the books say", line["tenant"] or "(unmapped)")
            ]
        (subject,) = read.references.jobs.to_dicts()
        named = subject["named_tenant_id"]
    paths = dict(read.references.tenants.select("tenant_id", "path").iter_rows())
    if named is not None:
        steps = [Step("binding", f"named outright by an import, before any rule: {paths.get(named, '?')}")]
        tenant_id: int | None = named
    else:
        found = tenancy.explain(subject, read.references.bindings, read.hour_at)
        told = (
            found.steps if len(found.steps) <= _RULES_TOLD else (*found.steps[: _RULES_TOLD - 2], "…", found.steps[-1])
        )
        steps = [Step("binding", words) for words in told]
        tenant_id = found.tenant_id
    try:
        way = () if tenant_id is None else tenancy.follow(tenant_id, _moves(read), read.hour_at)
    except InputError as error:
        return [*steps, Step("binding", str(error))]
    steps += [
        Step("binding", f"{paths.get(old, '?')} has moved to {paths.get(new, '?')} by then")
        for old, new in pairwise(way)
    ]
    pays = way[-1] if way else None
    if pays == line["tenant_id"]:
        return [*steps, Step("binding", "so it is paid by", line["tenant"] or "(unmapped)")]
    words = "the books say (a job's own words, and rules of other tenants, are not what they were or not yours to see)"
    return [
        *steps,
        Step(
            "binding",
            words if is_whole else "rules of other tenants are not shown; the books say",
            line["tenant"] or "(unmapped)",
        ),
    ]


def _at(at: datetime, hour_at: datetime) -> str:
    at = at.astimezone(UTC)
    same_day = at.date() == hour_at.astimezone(UTC).date()
    return f"{at:%H:%M:%S}" if same_day else f"{at:%Y-%m-%d %H:%M:%S}"


def why_dict(why: Why) -> dict[str, Any]:
    """Return the answer ready for JSON, every figure exact."""
    return {
        "asked": why.asked,
        "site": why.site,
        "hour_at": _plain(why.hour_at),
        "ground": why.ground,
        "why_not_samples": why.why or None,
        "simulated": why.is_simulated,
        "holds": why.holds,
        "differs": list(why.differs),
        "job": None if why.job is None else {"name": why.job.name, "hours": [_hour(row) for row in why.job.hours]},
        "steps": [_step(step) for step in why.steps],
        "lines": [
            {
                "name": line_name(each.line),
                **{key: _plain(each.line[key]) for key in _TOLD},
                "steps": [_step(step) for step in each.steps],
                "differs": list(each.differs),
                "unseen": list(each.unseen),
            }
            for each in why.lines
        ],
    }


_TOLD: Final = (
    "tenant", "pool", "holder_key", "device_model", "charge_category", "quantity", "quantity_unit", "energy_mj", "energy_low_mj",
    "energy_high_mj", "facility_mj", "carbon_gco2e", "billed_cost", "currency", "status", "source", "coverage", "method", "reason",
    "corrects_hour_at",
)  # fmt: skip


def _hour(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(row[key])
        for key in ("hour_at", "billed_cost", "currency", "energy_mj", "carbon_gco2e", "lines", "is_open")
    }


def _step(step: Step) -> dict[str, Any]:
    return {"part": step.part, "words": step.words, "value": step.value, "unit": step.unit, "of": step.of}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal | Fraction):
        return f"{value:f}"
    return value
