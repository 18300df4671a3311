"""A read API of canned answers on a port of its own: what the dashboard talks to in its tests.

Answers have the shape of the real one (tests/e2e/test_dashboard.py holds the two against each other).
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = Mapping[str, Any] | tuple[int, Mapping[str, Any]]
TOKEN = "wl_1_of-the-test"
TENANTS = {
    "(platform)/idle": ("412.4", "61.2", "38.0", "17.1"),
    "(platform)/unattributed": ("22.8", "4.4", "2.6", "1.2"),
    "acme/product/search": ("1204.9", "201.7", "318.4", "140.2"),
    "acme/research/nlp": ("4108.3", "690.2", "911.9", "401.6"),
    "acme/research/vision": ("2377.1", "402.6", "590.3", "260.0"),
    "globex/bio": ("903.6", "144.9", "201.5", "88.7"),
    "globex/quant": ("1666.2", "266.8", "377.7", "166.4"),
    "unmapped": ("388.0", "52.2", "70.1", "30.9"),
}
API_COST = {"acme/product/search": "210.42", "acme/research/nlp": "96.3", "globex/quant": "402.77", "unmapped": "3.1"}
WASTE = {
    "acme/research/nlp": ("96.5", "61.2"),
    "globex/quant": ("210.8", "0"),
    "acme/research/vision": ("18.4", "12.9"),
}


@dataclass
class FakeApi:
    """Answers by path; change ``answers`` to change the weather."""

    url: str
    answers: dict[str, Callable[[dict[str, str]], Answer]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def serving(answers: Mapping[str, Callable[[dict[str, str]], Answer]]) -> Iterator[FakeApi]:
    """Serve the answers until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            api.asked.append((parts.path, asked))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._say(401, {"title": "Not authenticated", "status": 401, "detail": "the token is unknown"})
                return
            made = api.answers[parts.path](asked)
            self._say(*(made if isinstance(made, tuple) else (200, made)))

        def _say(self, status: int, body: Mapping[str, Any]) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api = FakeApi(f"http://127.0.0.1:{server.server_address[1]}", dict(answers))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def figures(
    gpu: str = "0", electricity: str = "0", energy: str | None = None, carbon: str | None = None, **others: Any
) -> dict[str, Any]:
    """One row's figures; costs add up here, so that a test need not."""
    categories = {"gpu_owned": gpu, "electricity": electricity, "api_tokens": others.pop("api_tokens", "0")}
    idle, throttled = others.pop("waste", ("0", "0"))
    return {
        "cost": f"{sum(float(amount) for amount in categories.values()):.2f}",
        "cost_by_category": {name: amount for name, amount in categories.items() if amount != "0"},
        "unpriced_lines": 0,
        "usage_unknown_calls": 0,
        "energy_kwh": energy,
        "carbon_kgco2e": carbon,
        "tokens": 0,
        "cost_failed": None,
        "cost_preempted": None,
        "cost_cancelled": None,
        "accelerator_hours": "6144",
        "allocated_accelerator_hours": "6000",
        "active_accelerator_hours": "5760",
        "idle_accelerator_hours": "240",
        "throttled_accelerator_hours": "80",
        "idle_waste": idle,
        "throttle_waste": throttled,
        "coverage_ratio": "0.9914",
        "sources": ["measured"],
        "origins": ["simulated"],
        **{
            f"{amount}_per_{hour}_accelerator_hour": None
            for amount in ("cost", "energy_kwh", "carbon_kgco2e")
            for hour in ("allocated", "active", "idle")
        },
    } | others


def bill(rows: Mapping[str, dict[str, Any]], total: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "from_at": "2026-11-19T13:00:00Z",
        "to_at": "2026-11-21T13:00:00Z",
        "group_by": "tenant",
        "currency": "USD",
        "status": "provisional",
        "hours_closed": 47,
        "books_as_of_at": "2026-11-21T12:00:00Z",
        "mapped_share_ratio": "0.9641",
        "total": total,
        "corrections": [],
        "disputed": {"lines": 0, "cost": "0"},
        "rows": [{"key": tenant, "tenant": tenant, **row} for tenant, row in rows.items()],
        "rollups": [],
        "next_cursor": None,
    } | others


def a_good_day() -> dict[str, Callable[[dict[str, str]], Answer]]:
    """The answers of a simulated fleet of 128 GPUs with five tenants."""
    rows = {
        tenant: figures(
            gpu, electricity, energy, carbon, api_tokens=API_COST.get(tenant, "0"), waste=WASTE.get(tenant, ("0", "0"))
        )
        for tenant, (gpu, electricity, energy, carbon) in TENANTS.items()
    }
    total = figures("11083.3", "1824", "2510.5", "1106.1", api_tokens="712.59", waste=("325.7", "74.1"))
    return {
        "/v1/bill": lambda _: bill(rows, total),
        "/v1/fleet/power": _power,
        "/v1/tenants/energy": _tenants_energy,
        "/v1/findings": lambda _: {"findings": [_finding(number) for number in range(14)], "next_cursor": None},
        "/v1/budgets": lambda _: {"budgets": [budget(*each) for each in BUDGETS]},
    }


def nothing_yet() -> dict[str, Callable[[dict[str, str]], Answer]]:
    """The answers of an installation that nobody has sent anything to."""
    empty = figures(coverage_ratio=None, sources=[], origins=[])
    return {
        "/v1/bill": lambda _: bill(
            {}, empty, currency=None, hours_closed=0, books_as_of_at=None, mapped_share_ratio=None, status="closed"
        ),
        "/v1/fleet/power": lambda _: {"step_s": 600, "points": []},
        "/v1/tenants/energy": no_energy,
        "/v1/findings": lambda _: {"findings": [], "next_cursor": None},
        "/v1/budgets": lambda _: {"budgets": []},
    }


BUDGETS = (
    ("nlp-week", "acme/research/nlp", "cost", "USD", "9000", "7460.25", "10120", "warn", "warn"),
    ("quant-day", "globex/quant", "cost", "USD", "900", "1032.4", "1280", "deny", "cancel"),
    ("research-week", "acme/research", "energy_kwh", "energy_kwh", "2500", "1502.2", "2103", "allow", None),
    ("research-week", "acme/research", "carbon_kgco2e", "carbon_kgco2e", "600", "401.3", "561.8", "allow", None),
)


def budget(  # noqa: PLR0917 - a table row
    name: str,
    tenant: str,
    measure: str,
    unit: str,
    limit: str,
    spent: str,
    forecast: str,
    verdict: str,
    rung: str | None,
) -> dict[str, Any]:
    return {
        "name": name,
        "tenant": tenant,
        "measure": measure,
        "unit": unit,
        "period": "week",
        "time_zone": "UTC",
        "period_start_at": "2026-11-16T00:00:00Z",
        "period_end_at": "2026-11-23T00:00:00Z",
        "limit": limit,
        "spent": spent,
        "spent_own": spent,
        "left": str(float(limit) - float(spent)),
        "forecast": forecast,
        "forecast_basis": "linear run rate",
        "verdict": verdict,
        "rung": rung,
        "needs_approval": False,
        "armed": False,
        "reason": f"budget {name!r}: {spent} of {limit} {unit}",
        "coverage_ratio": "0.99",
        "books_as_of_at": "2026-11-21T12:00:00Z",
        "unpriced_lines": 0,
        "usage_unknown_calls": 0,
        "unmeasured_lines": 0,
        "origin": "simulated",
    }


def power_point(at: datetime, model: str, power_w: float, coverage_ratio: float = 1.0) -> dict[str, Any]:
    return {
        "at": at.isoformat().replace("+00:00", "Z"),
        "site": "sim",
        "model": model,
        "power_w": power_w,
        "coverage_ratio": coverage_ratio,
        "throttled_ratio": 0.01,
        "origins": ["simulated"],
    }


def _power(asked: dict[str, str]) -> dict[str, Any]:
    first, last = (datetime.fromisoformat(asked[name]).astimezone(UTC) for name in ("from", "to"))
    step = timedelta(seconds=int(asked["step_s"]))
    points = []
    for number in range((last - first) // step):
        at = first + number * step
        hour = at.hour + at.minute / 60
        day = 0.5 - 0.5 * math.cos(hour / 24 * 2 * math.pi)
        wobble = 0.04 * math.sin(number / 3) + 0.02 * math.sin(number / 1.7)
        if not 140 <= number < 146:  # the agents of one model were silent for an hour
            points.append(power_point(at, "NVIDIA H100 80GB HBM3", 21_000 + 26_000 * (day + wobble), 0.985))
        points.append(power_point(at, "NVIDIA L40S", 6_000 + 5_200 * (1 - day + wobble)))
    return {"step_s": int(asked["step_s"]), "points": points}


def no_energy(asked: Mapping[str, str]) -> dict[str, Any]:
    return {
        "from_at": asked["from"],
        "to_at": asked["to"],
        "step_s": int(asked["step_s"]),
        "tenants": [],
        "next_cursor": None,
    }


def tenant_energy(tenant: str | None, energy_mj: Sequence[int | None], **others: Any) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "energy_mj": list(energy_mj),
        "sources": ["measured"],
        "origins": ["simulated"],
        "coverage_ratio": 0.9914,
    } | others


def _tenants_energy(asked: dict[str, str]) -> dict[str, Any]:
    """Two pages: the tenants by path, then what nobody held."""
    first, last = (datetime.fromisoformat(asked[name]).astimezone(UTC) for name in ("from", "to"))
    step_s = int(asked["step_s"])
    count = (last - first) // timedelta(seconds=step_s)

    def energy_mj(watts: float, number: int) -> int | None:
        if 140 <= number < 146 and watts > 9_000:  # the agents of one model were silent for an hour
            return None
        day = 0.5 - 0.5 * math.cos((first + timedelta(seconds=number * step_s)).hour / 24 * 2 * math.pi)
        return round(watts * (0.6 + 0.4 * day + 0.05 * math.sin(number / 3)) * step_s * 1000)

    names = [name for name in TENANTS if "/" in name and "(" not in name]
    page = [
        tenant_energy(name, [energy_mj(3_000 * (1 + place), number) for number in range(count)])
        for place, name in enumerate(names)
    ]
    if "cursor" in asked:
        page = [tenant_energy(None, [energy_mj(2_000, number) for number in range(count)])]
    return no_energy(asked) | {"tenants": page, "next_cursor": None if "cursor" in asked else "next"}


def _finding(number: int) -> dict[str, Any]:
    start = datetime(2026, 11, 20, 3, tzinfo=UTC) + timedelta(minutes=97 * number)
    is_idle = number % 3 != 1
    return {
        "id": 100 + number,
        "kind": "idle_waste" if is_idle else "throttling",
        "site": "sim",
        "tenant": ("globex/quant", "acme/research/nlp", None)[number % 3],
        "cluster": "sim",
        "native_id": str(4711 + number),
        "device": f"GPU-5f3a9c1e-77d2-4b0a-8c2f-1d0e9ab7{number:04x}",
        "start_at": start.isoformat().replace("+00:00", "Z"),
        "end_at": (start + timedelta(minutes=25 + 3 * number)).isoformat().replace("+00:00", "Z"),
        "avoidable_cash": f"{1.75 * (1 + number):.9f}",
        "currency": "USD",
        "waste_energy_kwh": f"{0.11 * (1 + number):.6f}",
        "capacity_freed_accelerator_hours": "0.500000",
        "confidence_ratio": 0.9 if is_idle else 0.5,
        "evidence": {},
        "origin": "simulated",
    }
