"""Words of who held what, as a test tells them, and who had the board by them. Seconds from :data:`tests.fakes.site.HOUR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from analytics.frames import Devices, Epochs, Holds, Placements
from analytics.model.holding import Resolved, hold, resolve
from analytics.policy import Policy
from analytics.units import US_PER_SECOND, to_us
from tests.fakes.site import HOUR, LONG_AGO, Rows, at, device, epoch, table

START: Final = to_us(HOUR)
BOARD: Final = (device(),)
ONE_BOOT: Final = (epoch(),)


def told(job: int, device_id: int | None, start: float, end: float | None, **more: Any) -> dict[str, Any]:
    usual = {"evidence": "cgroup", "accelerators": 1, "recorded_at": at(start), "job_key": f"c|{job}"}
    return {
        "allocation_id": hash((job, device_id, start)) % 2**40,
        "job_id": job,
        "device_id": device_id,
        "start_at": at(start),
        "end_at": None if end is None else at(end),
        **usual,
        **more,
    }


def on_node(job: int, count: int, start: float, end: float | None, **more: Any) -> dict[str, Any]:
    return told(job, None, start, end, **{"node_id": 1, "accelerators": count, "evidence": "sacct", **more})


def stands(
    device_id: int, start: float | None = None, end: float | None = None, node: int = 1, *, in_service: bool = True
) -> dict[str, Any]:
    return {
        "device_id": device_id,
        "node_id": node,
        "in_service": in_service,
        "valid_from": LONG_AGO if start is None else at(start),
        "valid_to": None if end is None else at(end),
    }


def instance(device_id: int, board: int, slice_ppm: int) -> dict[str, Any]:
    return device(device_id, kind="mig", parent_device_id=board, slice_ppm=slice_ppm)


def resolved(
    holds: Rows,
    devices: Sequence[dict[str, Any]] = BOARD,
    placements: Rows | None = None,
    epochs: Rows = ONE_BOOT,
) -> Resolved:
    where = [stands(row["device_id"]) for row in devices] if placements is None else placements
    found = resolve(
        table(Holds, holds), table(Placements, where), table(Devices, devices), table(Epochs, epochs), Policy()
    )
    return replace(found, held=found.held.sort("device_id", "start_us", "holder_key", "holder"))


def who(
    holds: Rows,
    devices: Sequence[dict[str, Any]] = BOARD,
    placements: Rows | None = None,
    epochs: Rows = ONE_BOOT,
) -> list[tuple[float, float, str, float]]:
    """Return from, to (s), holder and part of the first device over one hour."""
    where = [stands(row["device_id"]) for row in devices] if placements is None else placements
    found = hold(
        table(Devices, devices[:1]),
        table(Placements, where),
        resolved(holds, devices, placements, epochs).held,
        START,
        START + 3600 * US_PER_SECOND,
    )
    rows = found.pieces.join(found.holders, on="span", maintain_order="left_right")
    return [
        (
            (row["from_us"] - START) / US_PER_SECOND,
            (row["to_us"] - START) / US_PER_SECOND,
            row["holder"],
            round(row["weight"] / row["weights"], 6),
        )
        for row in rows.iter_rows(named=True)
    ]
