"""How the answer of a gate reads."""

from __future__ import annotations

import pytest

from wattledger.cli.gate import _lines

pytestmark = pytest.mark.unit


def test_what_a_budget_could_not_count_stands_below_it() -> None:
    budget = {
        "name": "nlp",
        "tenant": "acme/nlp",
        "measure": "cost",
        "unit": "USD",
        "limit": "100",
        "left": "40",
        "left_after": "32.75",
        "verdict": "allow",
        "unpriced_lines": 1,
        "usage_unknown_calls": 1_200,
        "unmeasured_lines": 0,
    }
    hidden = dict.fromkeys(budget) | {"measure": "cost", "verdict": "allow"}
    answer: dict[str, str | None] = {
        "verdict": "allow",
        "reason": "fits",
        "tenant": "acme/nlp",
        "currency": "USD",
        "cost": "7.25",
    }
    answer |= {"energy_kwh": "1", "carbon_kgco2e": None, "accelerator_hours": "2", "origin": "live"}
    lines = list(_lines({**answer, "budgets": [budget, hidden, budget | {"unpriced_lines": 0}], "basis": []}))
    assert lines[6:] == [
        "budget    allow: nlp of acme/nlp, 40.00 of 100.00 USD left, 32.75 after this job",
        "          not counted in it: 1 lines without a price, 1,200 API calls that told no usage",
        "budget    allow: one above your tenants, on cost",
        "budget    allow: nlp of acme/nlp, 40.00 of 100.00 USD left, 32.75 after this job",
        "          not counted in it: 1,200 API calls that told no usage",
    ]
