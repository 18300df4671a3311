"""The fake API of the dashboard's tests answers in the real one's shape, field by field."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from analytics.api.bill import BillModel, FiguresModel, RowModel
from analytics.api.budgets import BudgetModel
from analytics.api.logs import FindingModel, PowerPoint, PowerSeries
from analytics.api.tenant_energy import TenantEnergyModel, TenantEnergyPage
from tests.fakes.api import a_good_day, nothing_yet

PERIOD = {"from": "2026-11-19T13:00:00Z", "to": "2026-11-21T13:00:00Z", "step_s": "600"}


def answer(path: str) -> Mapping[str, Any]:
    given = a_good_day()[path](PERIOD)
    assert isinstance(given, Mapping)
    return given


@pytest.mark.parametrize(
    ("rows", "model"),
    [
        ([answer("/v1/bill")], BillModel),
        ([answer("/v1/bill")["total"]], FiguresModel),
        (answer("/v1/bill")["rows"], RowModel),
        (answer("/v1/budgets")["budgets"], BudgetModel),
        (answer("/v1/findings")["findings"], FindingModel),
        ([answer("/v1/fleet/power")], PowerSeries),
        (answer("/v1/fleet/power")["points"], PowerPoint),
        ([answer("/v1/tenants/energy")], TenantEnergyPage),
        (answer("/v1/tenants/energy")["tenants"], TenantEnergyModel),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_fake_has_the_fields_of_the_real_answer(rows: list[dict[str, Any]], model: type[BaseModel]) -> None:
    for row in rows:
        assert row.keys() == model.model_fields.keys()
        model.model_validate(row)


def test_an_empty_installation_answers_in_the_same_shape() -> None:
    given = nothing_yet()["/v1/bill"](PERIOD)
    assert isinstance(given, Mapping)
    assert given.keys() == BillModel.model_fields.keys()
