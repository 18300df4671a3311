"""What told changes amount to: holdings by device, and whether they obey the laws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from collector.jobs.evidence import Change, JobKey


@dataclass(slots=True)
class Held:
    key: JobKey
    start_us: int
    end_us: int | None
    share_ratio: float | None


def held_by_device(changes: Iterable[Change]) -> dict[str, list[Held]]:
    """Return the holdings, checking on the way that what begins was not held and what ends was."""
    found: dict[str, list[Held]] = {}
    for change in changes:
        holdings = found.setdefault(change.device_uuid, [])
        current = [held for held in holdings if held.key == change.job.key and held.end_us is None]
        if change.begins:
            assert not current, f"{change.job.key} begins twice on {change.device_uuid}"
            holdings.append(Held(change.job.key, change.at_us, None, change.share_ratio))
        else:
            assert len(current) == 1, f"{change.job.key} ends on {change.device_uuid} without a begin"
            assert change.at_us >= current[0].start_us
            current[0].end_us = change.at_us
    return found


def check_no_overlap(holdings: Iterable[Held], until_us: int) -> None:
    """Check that at no instant a whole holding meets another, and that shares never exceed the device."""
    spans = [(held.start_us, until_us if held.end_us is None else held.end_us, held) for held in holdings]
    edges = sorted({edge for start, end, _ in spans for edge in (start, end)})
    for at_us in edges:
        present = [held for start, end, held in spans if start <= at_us < end]
        if len(present) > 1:
            shares = [held.share_ratio for held in present]
            assert None not in shares, f"a whole device held by {[held.key.native_id for held in present]} at {at_us}"
            assert sum(share or 0.0 for share in shares) <= 1.000_001
            assert len({held.key for held in present}) == len(present)
