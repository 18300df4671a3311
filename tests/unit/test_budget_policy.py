"""Policy files: all faults at once, each with its line."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from analytics.io.budget_policy import PolicyError, check, parse
from analytics.model.budget import Approval, Step

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "budgets.yaml"

GOOD = """\
version: 1
webhooks:
  ops: {url: "${OPS_URL}", secret: "${OPS_SECRET}"}
budgets:
  - name: nlp
    tenant: acme/nlp
    period: month
    currency: USD
    limits: {cost: 12.10}
    ladder:
      - {at: 80%, do: warn, webhook: ops}
      - {at: 100%, do: cancel, grace: 10m}
"""


def faults(text: str) -> list[str]:
    return [str(fault) for fault in check(text)]


def test_the_shipped_example_is_valid() -> None:
    assert faults(EXAMPLE.read_text()) == []


def test_numbers_stay_the_decimals_that_were_written() -> None:
    budget = parse(GOOD).budgets[0].model
    assert budget.limits.cost == Decimal("12.10")
    assert (budget.ladder[1].do, budget.ladder[1].approval, budget.ladder[1].grace) == (
        Step.CANCEL,
        Approval.MANUAL,
        600,
    )
    assert budget.ladder[0].at == Decimal("0.8")
    assert not budget.armed


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("period: month", "period: month\n    colour: red", "line 8: budgets[0].colour: unknown key"),
        ("limits: {cost: 12.10}", "limits: {cost: 0}", "line 9: budgets[0].limits.cost: Input should be greater than 0"),
        ("limits: {cost: 12.10}", "limits: {cost: nan}", "line 9: budgets[0].limits.cost: Input should be a finite number"),
        ("limits: {cost: 12.10}", "limits: {cost: 1, cost: 2}", "line 9: budgets[0].limits.cost: written twice; the first is on line 9"),
        ("    currency: USD\n", "", "line 8: budgets[0].limits.cost: a cost limit needs a currency; add currency: USD"),
        ("do: cancel", "do: hold", "line 12: budgets[0].ladder[1].do: 'hold' is not a rung that can be carried out; use one of warn, suspend, cancel"),
        ("do: cancel", "do: suspend", "line 12: budgets[0].ladder[1].do: a suspended job keeps its GPUs, so suspend never lowers cost; use cancel"),
        ("at: 100%", "at: 80%", "line 12: budgets[0].ladder[1].at: 80% is not above 80% of the rung before"),
        ("at: 100%", "at: 1.0", "line 12: budgets[0].ladder[1].at: '1.0' is not a percentage; write it like 80%"),
        ("grace: 10m", "grace: 10", "line 12: budgets[0].ladder[1].grace: '10' is not a duration; write it like 10m, 90s or 2h"),
        ("webhook: ops}", "webhook: opps}", "line 11: budgets[0].ladder[0].webhook: no webhook of that name; known: ops"),
        ("acme/nlp", "/acme", "line 6: budgets[0].tenant: '/acme' is not a tenant path; write names joined by single slashes, like acme/research"),
        ("version: 1", "version: 1\ntime_zone: Mars/Base", "line 2: time_zone: 'Mars/Base' is not an IANA time zone; write it like Europe/Berlin"),
        ("version: 1", "version: 2", "line 1: version: String should match pattern '^1$'"),
    ],
)  # fmt: skip
def test_a_fault_names_its_line_and_what_to_do(old: str, new: str, expected: str) -> None:
    assert faults(GOOD.replace(old, new, 1)) == [expected]


def test_a_secret_written_into_the_file_is_refused_and_not_repeated() -> None:
    found = faults(GOOD.replace("${OPS_SECRET}", "hunter2"))
    assert len(found) == 1
    assert found[0].startswith("line 3: webhooks.ops.secret: must be a reference")
    assert "hunter2" not in found[0]


def test_every_fault_of_a_file_is_reported_at_once() -> None:
    broken = (
        GOOD.replace("12.10", "-1").replace("period: month", "period: fortnight").replace("do: warn", "do: explode")
    )
    assert [fault.split(":")[0] for fault in faults(broken)] == ["line 7", "line 9", "line 11"]


def second(**changes: str) -> str:
    """Return the good file with a second budget whose fields are changed."""
    other = {
        "name": "other",
        "tenant": "acme/nlp",
        "period": "month",
        "currency": "USD",
        "limits": "{cost: 5}",
        **changes,
    }
    fields = "\n    ".join(f"{key}: {value}" for key, value in other.items())
    return f"{GOOD}  - {fields}\n    ladder: [{{at: 90%, do: warn}}]\n"


def test_two_budgets_of_one_name_are_refused() -> None:
    assert faults(second(name="nlp", tenant="acme/else")) == ["line 13: name: 'nlp' is taken; the first is on line 5"]


def test_two_limits_in_force_at_once_are_refused() -> None:
    assert faults(second()) == [
        "line 13: other: a cost limit for acme/nlp per month is already in force by 'nlp' on line 5; their dates overlap"
    ]


def test_limits_whose_dates_touch_but_do_not_overlap_are_fine() -> None:
    first = GOOD.replace("currency: USD", "currency: USD\n    valid_to: 2026-12-01")
    assert faults(second(valid_from="2026-12-01").replace(GOOD, first)) == []
    assert len(faults(second(valid_from="2026-11-30").replace(GOOD, first))) == 1


@pytest.mark.parametrize(
    "text", ["", "a: [", "- a", "\x00", "a: &x 1\nb: *x", "[" * 3000, "? {a: 1}\n: 2", "version: 1"]
)
def test_what_is_no_policy_at_all_is_a_fault_not_a_crash(text: str) -> None:
    with pytest.raises(PolicyError):
        parse(text)


def test_the_policy_in_the_documentation_is_valid() -> None:
    page = (EXAMPLE.parents[2] / "docs" / "budgets.md").read_text()
    assert faults(page.split("```yaml\n")[1].split("```")[0]) == []


@pytest.mark.parametrize("text", [r"n\0lp", r"n\x7Flp", r"n\u0085lp"])
def test_a_name_that_cannot_be_printed_is_refused_with_its_line(text: str) -> None:
    assert any(fault.startswith("line 5") for fault in faults(GOOD.replace("name: nlp", f'name: "{text}"')))
