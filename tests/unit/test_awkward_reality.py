"""What real clusters do to the books, a test for each: none of it is lost, and none of it is billed to somebody without saying how."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from analytics.frames import UNATTRIBUTED_PREFIX
from tests.fakes.site import Site, at, device, epoch, holds, job, reading, steady

FULL = steady(1, 0, 3600, 100)


def on_node(job_id: int, count: int, start: float, end: float | None, **more: Any) -> dict[str, Any]:
    told = {"device_id": None, "node_id": 1, "accelerators": count, "evidence": "sacct"}
    return {**holds(job_id, 0, start, end), **told, **more}


def joules(site: Site) -> dict[tuple[int, str], float]:
    rows = site.close().usage
    return {(row[0], row[1]): row[2] / 1000 for row in rows.select("device_id", "holder", "energy_mj").rows()}


def test_a_node_shared_by_jobs_is_billed_by_the_boards_each_has() -> None:
    site = Site(
        readings=[*steady(1, 0, 3600, 100), *steady(2, 0, 3600, 300)],
        devices=[device(1), device(2)],
        allocations=[holds(7, 1, 0, 3600), holds(8, 2, 0, 3600)],
    )
    assert joules(site) == {(1, "job:7"): 360_000, (2, "job:8"): 1_080_000}


def test_a_node_with_only_a_node_meter_is_split_by_the_accelerators_each_has() -> None:
    site = Site(
        readings=steady(9, 0, 3600, 800),
        devices=[device(9, kind="node", accelerators=8)],
        allocations=[on_node(7, 2, 0, 3600), on_node(8, 4, 0, 3600)],
    )
    assert joules(site) == {(9, "job:7"): 720_000, (9, "job:8"): 1_440_000, (9, "idle"): 720_000}
    assert set(site.close().usage["method"]) == {"count"}


def test_a_count_is_of_the_boards_that_nobody_holds_by_name() -> None:
    boards = range(1, 9)
    site = Site(
        readings=[row for number in boards for row in steady(number, 0, 3600, 100)],
        devices=[device(number) for number in boards],
        allocations=[holds(1, 1, 0, 3600), holds(1, 2, 0, 3600), on_node(2, 3, 0, 3600)],
    )
    found = joules(site)
    assert found[1, "job:1"] == found[2, "job:1"] == 360_000
    assert [found[number, "job:2"] for number in boards if number > 2] == [180_000] * 6


def test_more_than_a_node_has_is_a_finding_and_no_more_energy() -> None:
    site = Site(readings=FULL, allocations=[on_node(7, 2, 0, 3600)])
    assert joules(site) == {(1, "job:7"): 360_000}
    found = site.close().findings.row(0, named=True)
    assert (found["kind"], found["evidence"]) == (
        "count_exceeds_devices",
        '{"free":1,"jobs":[7],"node_id":1,"wanted":2}',
    )


def test_energy_of_an_hour_of_silence_is_known_and_goes_to_who_held_the_board_throughout() -> None:
    """Read at 3,000 s and at 9,000 s: 600 kJ between, of which the silent hour is 360 kJ."""
    readings = [
        *steady(1, 0, 3000, 100),
        *({**row, "energy_mj": row["energy_mj"] + 900_000_000} for row in steady(1, 9000, 10_800, 100)),
    ]
    kept = Site(readings=readings, allocations=[holds(7, 1, 0, None)], hours=3).close().usage
    silent = kept.filter(pl.col("hour_at") == at(3600)).row(0, named=True)
    assert (silent["holder"], silent["energy_mj"], silent["source"], silent["coverage"]) == (
        "job:7",
        360_000_000,
        "estimated",
        0,
    )
    lost = Site(readings=readings, allocations=[holds(7, 1, 0, 5000)], hours=3).close().usage
    silent_rows = lost.filter((pl.col("hour_at") == at(3600)) & (pl.col("energy_mj") > 0))
    assert silent_rows.select("holder", "energy_mj", "reason").rows() == [
        ("unattributed:telemetry_gap", 360_000_000, "telemetry_gap")
    ]


def test_a_board_silent_for_an_hour_with_nothing_after_has_no_energy_and_is_not_available() -> None:
    rows = Site(readings=steady(1, 0, 3600, 100), hours=2).close().usage
    silent = rows.filter(pl.col("hour_at") == at(3600)).row(0, named=True)
    assert (silent["energy_mj"], silent["state"], silent["reason"]) == (None, "down", "no_telemetry")


def test_contradicting_evidence_is_decided_once_and_told_once() -> None:
    site = Site(readings=FULL, allocations=[holds(1, 1, 0, 3600), {**holds(2, 1, 900, 1800), "evidence": "import"}])
    assert joules(site) == {(1, "job:1"): 360_000}
    found = site.close().findings
    assert found.select("kind", "start_at", "end_at", "evidence").rows() == [
        ("evidence_conflict", at(900), at(1800), '{"evidence":["cgroup","import"],"jobs":[1,2]}')
    ]


def test_an_end_nobody_told_is_found_in_the_hour_of_the_end_that_was_taken() -> None:
    epochs = [epoch(), epoch(2, boot_id="later", first_seen_at=at(4000))]
    site = Site(readings=steady(1, 0, 7200, 100), allocations=[holds(7, 1, 1000, None)], epochs=epochs, hours=2)
    rows = site.close().usage.filter(job_id=7)
    assert rows["held_us"].to_list() == [2_600_000_000, 400_000_000]
    found = site.close().findings.filter(kind="allocation_without_end").row(0, named=True)
    assert (found["job_id"], found["start_at"], found["end_at"]) == (7, at(3600), at(4000))
    assert found["evidence"] == '{"ended_by":"node_rebooted"}'


def test_a_requeued_id_is_two_jobs() -> None:
    runs = [job(1, native_id="9"), job(2, native_id="9")]
    site = Site(readings=FULL, jobs=runs, allocations=[holds(1, 1, 0, 1800), holds(2, 1, 1800, 3600)])
    assert joules(site) == {(1, "job:1"): 180_000, (1, "job:2"): 180_000}


@pytest.mark.parametrize(
    ("allocations", "reason"),
    [
        ([holds(1, 1, 0, 3600), holds(2, 1, 0, 3600)], "overlap"),
        ([{**holds(1, 1, 0, 3600), "evidence": "environ"}], "hint_only"),
    ],
)
def test_what_is_nobodys_says_why(allocations: list[dict[str, Any]], reason: str) -> None:
    row = Site(readings=FULL, allocations=allocations).usage()[f"{UNATTRIBUTED_PREFIX}{reason}"]
    assert (row["energy_mj"], row["reason"], row["job_id"]) == (360_000_000, reason, None)


def test_a_board_that_changed_nodes_within_the_hour_has_one_hour_of_books() -> None:
    """Its counter began anew in the other node; what lies between is not invented."""
    moved = [reading(1, seconds, (seconds - 1800) * 100, epoch_id=2) for seconds in range(1800, 3601, 10)]
    places = [
        {"device_id": 1, "node_id": node, "in_service": True, "valid_from": at(start), "valid_to": end}
        for node, start, end in ((1, -9000, at(1800)), (2, 1800, None))
    ]
    site = Site(
        readings=[*steady(1, 0, 1790, 100), *moved],
        epochs=[epoch(), epoch(2, node_id=2)],
        placements=places,
        allocations=[holds(7, 1, 0, None), holds(8, 1, 2000, 3600)],
    )
    found = joules(site)
    # Job 7's end nobody told: it ends where the board leaves.
    assert found == {(1, "job:7"): 179_000, (1, "idle"): 20_000, (1, "job:8"): 160_000}
