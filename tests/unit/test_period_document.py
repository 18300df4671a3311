"""A document of a closed month says by itself whether it is whole, and what is no document is refused with the part that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from analytics.errors import CloseError
from analytics.io.period_document import Entry, document, faults, links_of, moved_link, moved_start, moved_text, parsed

EIGHT = datetime(2026, 11, 1, 8, tzinfo=UTC)
MOVED = [{"site": "s1", "billed_cost": f"0.00{number}"} for number in range(1, 4)]


def whole(lines: int = 3) -> dict[str, Any]:
    """Return the document of a second close, of one hour and one correction; of the lines that moved it tells three."""
    link, count = moved_link(moved_start("2026-11", None, 2), map(moved_text, MOVED))
    assert count == 3
    period = {"name": "2026-11", "site": "*", "number": 2, "from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}
    moved = {"lines": lines, "sha256": link.hex(), "told": MOVED}
    head = {
        "period": period,
        "closed_by": "ada",
        "closed_at": "2026-12-02T00:00:00Z",
        "apart": [],
        "totals": {},
        "checklist": [],
        "moved": moved,
    }
    entries = [Entry("s1", EIGHT, 2, b"\x01" * 32), Entry("s1", EIGHT, 1, b"\x02" * 32, "late data")]
    return document(head, entries, links_of(head, entries)[-1], None)


def test_a_whole_document_has_no_fault() -> None:
    assert faults(parsed(json.dumps(whole()), "f"), None) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["hours"][0].__setitem__(3, "zz"), "hours, entry 1, is not of the form"),
        (lambda d: d["hours"][0].__setitem__(1, "yesterday"), "hours, entry 1, is not of the form"),
        (lambda d: d.__setitem__("hours", [["s1"]]), "hours, entry 1, is not of the form"),
        (lambda d: d["corrections"][0].pop(), "corrections, entry 1, is not of the form"),
        (lambda d: d.__setitem__("period", {"name": "2026-11"}), "period.site is not of the form"),
        (lambda d: d.__setitem__("period", "2026-11"), "period is not of the form"),
        (lambda d: d.__setitem__("moved", {}), "moved is not of the form"),
        (lambda d: d.__setitem__("signature", "%%%a"), "its signature is no base64"),
        (lambda d: d.pop("totals"), "lacks totals"),
        (lambda d: d.__setitem__("format", "wattledger/close/1"), "is no document of a closed month"),
    ],
)
def test_what_is_no_document_is_refused_by_name(change: Callable[[dict[str, Any]], Any], says: str) -> None:
    found = whole()
    change(found)
    with pytest.raises(CloseError, match=says):
        parsed(json.dumps(found), "close-2026-11.json")


def test_who_closed_it_and_each_line_that_moved_are_under_the_root() -> None:
    other = whole()
    other["closed_by"] = "eve"
    assert "lead to the root" in faults(other, None)[0]
    other = whole()
    other["moved"]["told"] = [*MOVED[:2], {"site": "s1", "billed_cost": "0.004"}]
    assert faults(other, None) == ["the lines that it says moved are not those under its root"]
    assert faults(whole(lines=4), None) == ["it tells 3 of 4 lines that moved"]
