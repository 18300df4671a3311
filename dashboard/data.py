"""The dashboard's only way to data: a small client of the API. No SQL, no other package of ours.

It turns answers into typed values and failures into an error a page can explain. Amounts stay Decimal; only charts make
floats of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self

import httpx

URL_VARIABLE: Final = "WATTLEDGER_API_URL"
TOKEN_FILE_VARIABLE: Final = "WATTLEDGER_API_TOKEN_FILE"  # noqa: S105 (names a file)
DEFAULT_URL: Final = "http://127.0.0.1:8470"
_TIMEOUT_S: Final = 20.0
_LONGEST_REASON: Final = 300


class ApiError(Exception):
    """The API did not give what was asked; ``remedy`` says what a person can do.

    ApiError
    ├── ApiDownError      nobody answers
    └── ApiRefusedError   the token is missing, unknown, expired, or not allowed this
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class ApiDownError(ApiError):
    pass


class ApiRefusedError(ApiError):
    pass


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums of a part of the books; null energy or carbon is unknown, not zero. Costs in the bill's currency."""

    cost: Decimal
    cost_by_category: Mapping[str, Decimal]
    unpriced_lines: int
    usage_unknown_calls: int
    energy_kwh: Decimal | None
    carbon_kgco2e: Decimal | None
    tokens: int
    accelerator_hours: Decimal
    idle_accelerator_hours: Decimal
    throttled_accelerator_hours: Decimal
    idle_waste: Decimal
    throttle_waste: Decimal
    coverage_ratio: Decimal | None
    sources: tuple[str, ...]
    origins: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            cost=Decimal(row["cost"]),
            cost_by_category={name: Decimal(amount) for name, amount in row["cost_by_category"].items()},
            unpriced_lines=row["unpriced_lines"],
            usage_unknown_calls=row["usage_unknown_calls"],
            energy_kwh=_decimal(row["energy_kwh"]),
            carbon_kgco2e=_decimal(row["carbon_kgco2e"]),
            tokens=row["tokens"],
            accelerator_hours=Decimal(row["accelerator_hours"]),
            idle_accelerator_hours=Decimal(row["idle_accelerator_hours"]),
            throttled_accelerator_hours=Decimal(row["throttled_accelerator_hours"]),
            idle_waste=Decimal(row["idle_waste"]),
            throttle_waste=Decimal(row["throttle_waste"]),
            coverage_ratio=_decimal(row["coverage_ratio"]),
            sources=tuple(row["sources"]),
            origins=tuple(row["origins"]),
        )


@dataclass(frozen=True, slots=True)
class BillRow:
    """One tenant's part; ``(platform)/…`` are pools, ``unmapped`` is what no binding names."""

    tenant: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class Bill:
    """What a period cost, by tenant."""

    currency: str | None
    status: str
    hours_closed: int
    books_as_of_at: datetime | None
    mapped_share_ratio: Decimal | None
    total: Figures
    rows: tuple[BillRow, ...]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        return cls(
            currency=answer["currency"],
            status=answer["status"],
            hours_closed=answer["hours_closed"],
            books_as_of_at=_instant(answer["books_as_of_at"]),
            mapped_share_ratio=_decimal(answer["mapped_share_ratio"]),
            total=Figures.of(answer["total"]),
            rows=tuple(BillRow(row["key"], Figures.of(row)) for row in answer["rows"]),
        )


@dataclass(frozen=True, slots=True)
class PowerPoint:
    """Mean IT power of one site and device model over one step; at least this where coverage is below 1."""

    at: datetime
    site: str
    model: str
    power_w: float
    coverage_ratio: float
    origins: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            at=datetime.fromisoformat(row["at"]),
            site=row["site"],
            model=row["model"] or "all models",
            power_w=row["power_w"],
            coverage_ratio=row["coverage_ratio"],
            origins=tuple(row["origins"]),
        )


@dataclass(frozen=True, slots=True)
class TenantEnergy:
    """IT energy of one tenant, in millijoules, step by step; null where no meter spans any of it, never zero.

    A null tenant is what nobody held, or whose job has no tenant. Sources, origins and coverage (null: unknown) are of
    its hours.
    """

    tenant: str | None
    energy_mj: tuple[int | None, ...]
    sources: tuple[str, ...]
    origins: tuple[str, ...]
    coverage_ratio: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            tenant=row["tenant"],
            energy_mj=tuple(row["energy_mj"]),
            sources=tuple(row["sources"]),
            origins=tuple(row["origins"]),
            coverage_ratio=row["coverage_ratio"],
        )


@dataclass(frozen=True, slots=True)
class TenantSteps:
    """Energy of all tenants over steps of ``step_s`` seconds from ``from_at`` on."""

    from_at: datetime
    step_s: int
    tenants: tuple[TenantEnergy, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """A detected episode of waste with its price; null cash is unknown, not zero."""

    kind: str
    site: str
    tenant: str | None
    job: str | None
    device: str | None
    start_at: datetime
    end_at: datetime
    avoidable_cash: Decimal | None
    currency: str | None
    waste_energy_kwh: Decimal | None
    capacity_freed_accelerator_hours: Decimal | None
    confidence_ratio: float
    origin: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            kind=row["kind"],
            site=row["site"],
            tenant=row["tenant"],
            job=None if row["native_id"] is None else f"{row['cluster']}/{row['native_id']}",
            device=row["device"],
            start_at=datetime.fromisoformat(row["start_at"]),
            end_at=datetime.fromisoformat(row["end_at"]),
            avoidable_cash=_decimal(row["avoidable_cash"]),
            currency=row["currency"],
            waste_energy_kwh=_decimal(row["waste_energy_kwh"]),
            capacity_freed_accelerator_hours=_decimal(row["capacity_freed_accelerator_hours"]),
            confidence_ratio=row["confidence_ratio"],
            origin=row["origin"],
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """Where one budget stands, in ``unit``."""

    name: str
    tenant: str
    unit: str
    period: str
    limit: Decimal
    spent: Decimal
    forecast: Decimal | None
    verdict: str
    rung: str | None
    armed: bool
    reason: str
    period_end_at: datetime
    coverage_ratio: Decimal | None
    origin: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            name=row["name"],
            tenant=row["tenant"],
            unit=row["unit"],
            period=row["period"],
            limit=Decimal(row["limit"]),
            spent=Decimal(row["spent"]),
            forecast=_decimal(row["forecast"]),
            verdict=row["verdict"],
            rung=row["rung"],
            armed=row["armed"],
            reason=row["reason"],
            period_end_at=datetime.fromisoformat(row["period_end_at"]),
            coverage_ratio=_decimal(row["coverage_ratio"]),
            origin=row["origin"],
        )


class Api:
    """The API as one token sees it. Use as a context manager."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT_S, transport=transport)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Return the API the environment names; raises ApiRefusedError when its token cannot be read."""
        named = env.get(TOKEN_FILE_VARIABLE)
        if not named:
            raise ApiRefusedError(
                f"{TOKEN_FILE_VARIABLE} is not set, so there is no token to ask with",
                "start the dashboard with `wattledger up`, or put a read token into a file and name it there",
            )
        try:
            token = Path(named).read_text(encoding="ascii").strip()
        except OSError as error:
            raise ApiRefusedError(
                f"the token file {named} cannot be read: {error.strerror}",
                f"make one with `wattledger token create` and name it in {TOKEN_FILE_VARIABLE}",
            ) from error
        return cls(env.get(URL_VARIABLE) or DEFAULT_URL, token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def bill(self, from_at: datetime, to_at: datetime) -> Bill:
        """Return the bill by tenant of full UTC hours."""
        return Bill.of(self._get("/v1/bill", {**_period(from_at, to_at), "group_by": "tenant", "limit": 10_000}))

    def fleet_power(self, from_at: datetime, to_at: datetime, step_s: int) -> tuple[PowerPoint, ...]:
        """Return mean power by step, site and device model."""
        asked = {**_period(from_at, to_at), "step_s": step_s, "by_model": True}
        return tuple(PowerPoint.of(row) for row in self._get("/v1/fleet/power", asked)["points"])

    def tenants_energy(self, from_at: datetime, to_at: datetime, step_s: int) -> TenantSteps:
        """Return the energy of each tenant by step, page by page until there is no more."""
        asked: dict[str, Any] = {**_period(from_at, to_at), "step_s": step_s}
        tenants: list[TenantEnergy] = []
        while True:
            page = self._get("/v1/tenants/energy", asked)
            tenants += [TenantEnergy.of(row) for row in page["tenants"]]
            if page["next_cursor"] is None:
                return TenantSteps(from_at, step_s, tuple(tenants))
            asked["cursor"] = page["next_cursor"]

    def findings(self, from_at: datetime, to_at: datetime, most: int = 200) -> tuple[Finding, ...]:
        """Return the newest findings that touch the period."""
        rows = self._get("/v1/findings", {**_period(from_at, to_at), "limit": most})["findings"]
        return tuple(Finding.of(row) for row in rows)

    def budgets(self) -> tuple[Budget, ...]:
        """Return every budget in force."""
        return tuple(Budget.of(row) for row in self._get("/v1/budgets", {})["budgets"])

    def _get(self, path: str, parameters: Mapping[str, Any]) -> Any:
        try:
            answer = self._client.get(path, params=dict(parameters))
        except httpx.TransportError as error:
            raise ApiDownError(
                f"{self.url} does not answer ({error})",
                "start it with `wattledger up`; `wattledger doctor` says what is wrong",
            ) from error
        if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise ApiRefusedError(
                f"the API refuses this token: {_reason(answer)}",
                "make one with `wattledger token create … --scope read --tenant '*'`",
            )
        if answer.status_code != httpx.codes.OK:
            raise ApiError(
                f"{path} answers {answer.status_code}: {_reason(answer)}", "`wattledger doctor` says what is wrong"
            )
        return answer.json()


def _period(from_at: datetime, to_at: datetime) -> dict[str, str]:
    return {"from": from_at.isoformat(), "to": to_at.isoformat()}


def _reason(answer: httpx.Response) -> str:
    """Return the problem's own words where there are some."""
    try:
        problem = answer.json()
    except ValueError:
        return answer.text.strip()[:_LONGEST_REASON]
    return str(problem.get("detail", problem))[:_LONGEST_REASON] if isinstance(problem, dict) else str(problem)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
