"""19,366 LLM requests at published per-token prices: the bill by tenant and by key, to the last decimal."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from analytics.io.statements import Bill, GroupBy
from ingest.importers.report import ImportReport
from tests.real.independent import money
from tests.real.stand import Stand
from tests.real.token_bills import FROM_AT, GATEWAY, GPT, KEYS, TO_AT, Call, calls, expected, load, tenant_of

pytestmark = [pytest.mark.real, pytest.mark.db]


@dataclass(frozen=True)
class Billed:
    stand: Stand
    calls: list[Call]
    prices: ImportReport
    published: ImportReport
    expected: dict[str, int]
    by_tenant: Bill
    by_key: Bill


@pytest.fixture(scope="module")
def billed(shared: Path, deploy: Callable[[str], Stand], tmp_path_factory: pytest.TempPathFactory) -> Billed:
    stand = deploy("tokens")
    prices, published, _ = load(stand, shared, tmp_path_factory.mktemp("tokens"))
    made = calls(shared)
    by_tenant, by_key = stand.bill(FROM_AT, TO_AT), stand.bill(FROM_AT, TO_AT, GroupBy.JOB)
    return Billed(stand, made, prices, published, expected(shared, made), by_tenant, by_key)


def test_every_request_and_token_is_taken(billed: Billed) -> None:
    assert billed.published.written == {"api_calls": 19_366}
    assert billed.published.rejections.total == 0
    assert billed.by_tenant.total.tokens == sum(call.input_tokens + call.output_tokens for call in billed.calls)
    assert billed.stand.rows("SELECT count(*) FROM ledger_hours") == [(2 * 2,)]  # 18:15 to 19:14, at two sites


def test_rates_keep_more_decimals_than_the_bill(billed: Billed) -> None:
    (rate,) = billed.stand.rows(
        "SELECT amount FROM prices WHERE provider = %s AND model = %s AND meter = 'input_tokens'", *GPT
    )[0]
    assert rate == Decimal("0.00000171875")
    assert billed.prices.rounded > 0  # floats of the publisher's pipeline with more than 18


def test_the_trace_as_published_costs_the_independent_sum(billed: Billed) -> None:
    (row,) = (row for row in billed.by_tenant.rows if row.tenant == tenant_of(GATEWAY))
    assert row.figures.cost == money(billed.expected[GATEWAY])
    assert row.figures.cost > 30


def test_each_key_is_billed_the_independent_sum_to_the_last_decimal(billed: Billed) -> None:
    ours = {row.key: row.figures.cost_by_category["api_tokens"] for row in billed.by_key.rows}
    assert ours == {f"key/{key}": money(nano) for key, nano in billed.expected.items()}
    assert len(ours) == 1 + len(KEYS)


def test_each_tenant_is_billed_the_sum_of_its_keys_and_the_total_is_theirs(billed: Billed) -> None:
    sums: dict[str, int] = {}
    for key, nano in billed.expected.items():
        sums[tenant_of(key)] = sums.get(tenant_of(key), 0) + nano
    assert {row.tenant: row.figures.cost for row in billed.by_tenant.rows} == {t: money(n) for t, n in sums.items()}
    assert billed.by_tenant.total.cost == money(sum(sums.values()))
    assert billed.by_tenant.total.unpriced_lines == 0
    assert billed.by_tenant.mapped_share == Decimal(1)
