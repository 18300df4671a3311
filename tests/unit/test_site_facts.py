"""A file of what no device tells of a site: every fault is named with its line, amounts are exact."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics.io.site_facts import SiteFactsError, check

pytestmark = pytest.mark.unit
EXAMPLE = Path(__file__).resolve().parents[2] / "deploy/examples/site.yaml"


def _faults(text: str) -> list[str]:
    with pytest.raises(SiteFactsError) as caught:
        check(text)
    return [str(fault) for fault in caught.value.faults]


def test_the_example_says_what_it_says() -> None:
    found = check(EXAMPLE.read_text(encoding="utf-8"))
    assert found.site == "berlin-1"
    assert {name: len(facts) for name, facts in found.sections.items()} == {
        "meters": 2, "overhead": 1, "shared_it": 1, "capacity": 1, "idle": 1,
    }  # fmt: skip
    (overhead,) = found.sections["overhead"]
    # 400 W, 12 % and 30 %, from midnight in Berlin.
    assert (overhead["idle_w"], overhead["active_percent"], overhead["error_percent"]) == (400_000, 120_000, 300_000)
    assert overhead["from"] == datetime(2025, 12, 31, 23, tzinfo=UTC)


def test_every_fault_is_named_with_its_line() -> None:
    text = """\
overhead:
  - {nodes: "*", idle_w: many}
  - {nodes: "*", watts: 3}
shared_it:
  - {name: leaf, kind: switch}
  - {name: leaf, kind: door, power_w: 1}
assets:
  - {asset: A, capitalized: 2026-01-01}
  - {asset: A, device: GPU-1, capitalized: 2026-02-01, disposed: 2026-01-01}
idle:
  - {policy: fixed, tenant: acme}
capacity:
  - {kind: stranded, node: n, device: d}
  - {kind: stranded, node: n, from: 2026-02-01, to: 2026-01-01}
  - {kind: stranded, from: soon}
roof: yes
"""
    lines = [int(fault.partition(":")[0].removeprefix("line ")) for fault in _faults(text)]
    assert lines == [2, 3, 3, 5, 6, 8, 9, 11, 13, 14, 15, 16]


@pytest.mark.parametrize(
    "text",
    [
        'overhead:\n  - {nodes: "a*", idle_w: 1}\n  - {nodes: "a*", idle_w: 2, from: 2026-01-01}\n',
        "shared_it:\n  - {name: x, kind: switch, power_w: 1, to: 2026-02-01}\n  - {name: x, kind: switch, power_w: 2, from: 2026-01-31}\n",
        "idle:\n  - {policy: keep}\n  - {policy: proportional, basis: time}\n",
    ],
)
def test_two_entries_of_one_thing_do_not_hold_at_once(text: str) -> None:
    (fault,) = _faults(text)
    assert "overlaps the entry on line 2" in fault


def test_idle_cost_is_carried_in_one_way_at_a_time_and_not_by_more_than_all() -> None:
    fixed = "idle:\n  - {policy: fixed, tenant: a, share_percent: 60}\n"
    assert _faults(fixed + "  - {policy: keep, from: 2026-01-01}\n") == [
        "line 3: idle: fixed parts and another policy hold at once from 2026-01-01 on; one at a time"
    ]
    more = "  - {policy: fixed, tenant: b, share_percent: 40.0001, from: 2026-01-01, to: 2026-02-01}\n"
    assert _faults(fixed + more) == [
        "line 3: idle: fixed parts that hold from 2026-01-01 on are more than 100 percent together"
    ]
    whole = more.replace("40.0001", "40") + "  - {policy: fixed, tenant: c, share_percent: 40, from: 2026-02-01}\n"
    assert len(check(fixed + whole).sections["idle"]) == 3


@pytest.mark.parametrize(
    "entry",
    [
        "meters: [{meter: m, wrap_kwh: 0}]",
        "meters: [{meter: m, wrap_kwh: 1000000001}]",
        "meters: [{meter: m, error_percent: 999999}]",
        "shared_it: [{name: s, kind: switch, power_w: 1000000001}]",
        "idle: [{policy: fixed, tenant: a, share_percent: 101}]",
    ],
)
def test_an_amount_that_nothing_can_have_is_a_fault(entry: str) -> None:
    (fault,) = _faults(entry + "\n")
    assert "as a number" in fault


def test_entries_that_meet_in_time_are_fine() -> None:
    text = 'overhead:\n  - {nodes: "*", idle_w: 1, to: 2026-01-01}\n  - {nodes: "*", idle_w: 2, from: 2026-01-01}\n'
    assert len(check(text).sections["overhead"]) == 2


def test_an_empty_section_says_that_nothing_holds() -> None:
    assert check("overhead: []\n").sections == {"overhead": ()}
