"""Budget policy files: YAML text in, a validated :class:`BudgetPolicy` or every fault with its line out.

Validated as a whole: one bad line and nothing of the file is used. It refuses what could never be carried out (a suspend on
a cost limit: a suspended Slurm job keeps its GPUs) and secrets written into the file: receivers are ``${NAME}`` references,
resolved only when a message leaves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from analytics.io.yaml_lines import Document, Fault, read, spelled
from analytics.model.budget import STEP_SEVERITY, Approval, Measure, Step
from analytics.model.period import Period
from ingest.store.tenancy import checked_path

REFERENCE: Final = re.compile(r"\$\{[A-Z][A-Z0-9_]*\}")
DURATION: Final = re.compile(r"(\d{1,6})\s*(s|m|h|d)")
SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_GRACE_S: Final = 7 * 86400
# A suspended job keeps its accelerators, so only what the work itself draws goes down.
SUSPEND_HELPS: Final = frozenset({Measure.ENERGY_KWH, Measure.CARBON_KGCO2E})
# Nothing of ours can stop an API key yet: a token budget warns.
STEPS_OF_TOKENS: Final = frozenset({Step.WARN})


class PolicyError(ValueError):
    """The policy cannot be used; ``faults`` says why, all of it, by line."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        super().__init__("the budget policy is not valid:\n" + "\n".join(f"  {fault}" for fault in faults))


def _percent(text: object) -> object:
    if isinstance(text, str) and text.strip().endswith("%"):
        digits = text.strip()[:-1].strip()
        if re.fullmatch(r"\d{1,4}(\.\d{1,4})?", digits):
            return str(Decimal(digits) / 100)
    raise ValueError(f"{text!r} is not a percentage; write it like 80%")


def _seconds(text: object) -> object:
    match = DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write it like 10m, 90s or 2h")
    return int(match[1]) * SECONDS[match[2]]


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not an IANA time zone; write it like Europe/Berlin") from None
    return name


def _reference(text: str) -> str:
    if not REFERENCE.fullmatch(text):
        # The text is not repeated: it may be the secret itself.
        raise ValueError(
            "must be a reference to an environment variable like ${FINOPS_WEBHOOK}, never the value itself"
        )
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} holds characters that cannot be printed")
    return text


def _step(text: object) -> object:
    if text in set(Step):
        return text
    raise ValueError(f"{text!r} is not a rung that can be carried out; use one of {', '.join(Step)}")


Ratio = Annotated[Decimal, BeforeValidator(_percent), Field(gt=0, le=10)]
Seconds = Annotated[int, BeforeValidator(_seconds), Field(le=MAX_GRACE_S)]
Zone = Annotated[str, AfterValidator(_known_zone)]
Secret = Annotated[str, AfterValidator(_reference)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^\S(.*\S)?$"), AfterValidator(_printable)]
Globs = Annotated[tuple[Name, ...], Field(max_length=1000)]
Limit = Annotated[Decimal, Field(gt=0, max_digits=29, decimal_places=9, allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WebhookModel(Strict):
    url: Secret
    secret: Secret


class RungModel(Strict):
    at: Ratio
    do: Annotated[Step, BeforeValidator(_step)]
    approval: Approval = Approval.MANUAL
    grace: Seconds = 0
    webhook: Name | None = None


class ProtectModel(Strict):
    """Globs by job attribute; a job that matches any of them is never touched."""

    jobs: Globs = ()
    names: Globs = ()
    users: Globs = ()
    accounts: Globs = ()
    partitions: Globs = ()
    qos: Globs = ()
    namespaces: Globs = ()
    workload_kinds: Globs = ()


class LimitsModel(Strict):
    cost: Limit | None = None
    energy_kwh: Limit | None = None
    carbon_kgco2e: Limit | None = None
    accelerator_hours: Limit | None = None
    tokens: Limit | None = None

    def given(self) -> dict[Measure, Decimal]:
        return {measure: value for measure in Measure if (value := getattr(self, measure.value)) is not None}


class BudgetModel(Strict):
    name: Name
    tenant: Annotated[str, AfterValidator(checked_path)]
    period: Period
    time_zone: Zone | None = None
    valid_from: date | None = None
    valid_to: date | None = None
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None
    limits: LimitsModel
    armed: bool = False
    protect: ProtectModel = ProtectModel()
    ladder: Annotated[tuple[RungModel, ...], Field(min_length=1, max_length=20)]


@dataclass(frozen=True, slots=True)
class PlacedBudget:
    """One budget of the file, with the line it stands on."""

    line: int
    model: BudgetModel
    time_zone: str

    @property
    def valid_from_at(self) -> datetime | None:
        return _midnight(self.model.valid_from, self.time_zone)

    @property
    def valid_to_at(self) -> datetime | None:
        return _midnight(self.model.valid_to, self.time_zone)


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    budgets: tuple[PlacedBudget, ...]
    webhooks: dict[str, WebhookModel]
    protect: ProtectModel
    sha256: bytes


class _Head(Strict):
    version: Annotated[str, Field(pattern=r"^1$")]
    time_zone: Zone = "UTC"
    webhooks: dict[Name, WebhookModel] = Field(default_factory=dict)
    protect: ProtectModel = ProtectModel()
    budgets: Annotated[list[Any], Field(min_length=1, max_length=10_000)]


def check(text: str) -> tuple[Fault, ...]:
    """Return every fault of a policy file, in line order; empty when it can be applied."""
    try:
        parse(text)
    except PolicyError as error:
        return error.faults
    return ()


def parse(text: str) -> BudgetPolicy:
    """Return the policy of a file; raises :class:`PolicyError` with every fault."""
    document = read(text)
    faults = list(document.faults)
    if not isinstance(document.data, dict):
        faults = faults or [Fault(1, "", "must be a mapping with version and budgets")]
        raise PolicyError(tuple(sorted(faults)))
    head: _Head | None = None
    try:
        head = _Head.model_validate(document.data)
    except ValidationError as error:
        faults += _faults(error, document, ())
    zone = head.time_zone if head else "UTC"
    placed: list[PlacedBudget] = []
    written = document.data.get("budgets")
    for position, raw in enumerate(written if isinstance(written, list) else []):
        path = ("budgets", position)
        try:
            model = BudgetModel.model_validate(raw)
        except ValidationError as error:
            faults += _faults(error, document, path)
        else:
            placed.append(PlacedBudget(document.line_of(path), model, model.time_zone or zone))
            faults += _impossible(model, document, path, set(head.webhooks) if head else None)
    faults += _clashes(placed)
    if faults or head is None:
        raise PolicyError(tuple(sorted(set(faults))))
    return BudgetPolicy(tuple(placed), head.webhooks, head.protect, hashlib.sha256(text.encode()).digest())


def _faults(error: ValidationError, document: Document, above: tuple[str | int, ...]) -> Iterator[Fault]:
    for item in error.errors(include_url=False, include_input=False):
        path = (*above, *(part for part in item["loc"] if part != "[key]"))
        match item["type"]:
            case "extra_forbidden":
                message = "unknown key"
            case "missing":
                message = "is missing"
            case _:
                message = item["msg"].removeprefix("Value error, ")
        yield Fault(document.line_of(path), spelled(path), message)


def _impossible(
    budget: BudgetModel, document: Document, path: tuple[str | int, ...], webhooks: set[str] | None
) -> Iterator[Fault]:
    """What each field allows but together could never be carried out."""

    def fault(message: str, *below: str | int) -> Fault:
        here = (*path, *below)
        return Fault(document.line_of(here), spelled(here), message)

    measures = budget.limits.given()
    if not measures:
        yield fault(f"no limit; give at least one of {', '.join(Measure)}", "limits")
    if Measure.COST in measures and budget.currency is None:
        yield fault("a cost limit needs a currency; add currency: USD", "limits", "cost")
    if Measure.COST not in measures and budget.currency is not None:
        yield fault("a currency without a cost limit means nothing; remove it", "currency")
    if budget.valid_from and budget.valid_to and budget.valid_to <= budget.valid_from:
        yield fault(f"ends on {budget.valid_to}, not after it begins on {budget.valid_from}", "valid_to")
    for position, rung in enumerate(budget.ladder):
        before = budget.ladder[position - 1] if position else None
        for key, message in _impossible_rung(rung, before, set(measures), webhooks):
            yield fault(message, "ladder", position, key)


def _impossible_rung(
    rung: RungModel, before: RungModel | None, measures: set[Measure], webhooks: set[str] | None
) -> Iterator[tuple[str, str]]:
    if rung.do is Step.SUSPEND and (useless := measures - SUSPEND_HELPS):
        names = ", ".join(sorted(useless))
        yield "do", f"a suspended job keeps its GPUs, so suspend never lowers {names}; use cancel"
    if Measure.TOKENS in measures and rung.do not in STEPS_OF_TOKENS:
        yield "do", f"{rung.do} stops jobs, not API keys; a tokens budget can only warn"
    if rung.webhook is not None and webhooks is not None and rung.webhook not in webhooks:
        known = ", ".join(sorted(webhooks)) or "none declared"
        yield "webhook", f"no webhook of that name; known: {known}"
    if before is not None and rung.at <= before.at:
        yield "at", f"{rung.at:%} is not above {before.at:%} of the rung before"
    if before is not None and STEP_SEVERITY[rung.do] < STEP_SEVERITY[before.do]:
        yield "do", f"{rung.do} is milder than {before.do} of the rung before"


def _clashes(placed: list[PlacedBudget]) -> Iterator[Fault]:
    """Two budgets of one name, or two limits on one measure of one tenant and period in force at the same time."""
    named: dict[str, PlacedBudget] = {}
    limited: dict[tuple[str, Period, Measure], list[PlacedBudget]] = {}
    for budget in placed:
        first = named.setdefault(budget.model.name, budget)
        if first is not budget:
            yield Fault(budget.line, "name", f"{budget.model.name!r} is taken; the first is on line {first.line}")
        for measure in budget.model.limits.given():
            others = limited.setdefault((budget.model.tenant, budget.model.period, measure), [])
            for other in others:
                if _overlap(budget, other):
                    yield Fault(
                        budget.line,
                        budget.model.name,
                        f"a {measure} limit for {budget.model.tenant} per {budget.model.period} is already in force by "
                        f"{other.model.name!r} on line {other.line}; their dates overlap",
                    )
            others.append(budget)


def _overlap(one: PlacedBudget, other: PlacedBudget) -> bool:
    earliest, latest = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    return max(one.valid_from_at or earliest, other.valid_from_at or earliest) < min(
        one.valid_to_at or latest, other.valid_to_at or latest
    )


def _midnight(day: date | None, zone: str) -> datetime | None:
    return None if day is None else datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
