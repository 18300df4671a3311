"""The benchmark of shared boards, small: what was seen of activity must beat what was granted, and all of it says simulated."""

from __future__ import annotations

import pytest

from analytics.policy import SharingError
from bench.shared_devices import MIXES, calibrate, judged, measure

pytestmark = pytest.mark.unit


def test_parts_by_activity_are_nearer_to_the_truth_than_parts_by_grants() -> None:
    results = {result.name: result for result in measure([1_000, 1_001])}
    assert {result.detail["data"] for result in results.values()} == {"simulated"}
    assert all("simulated" in result.target for result in results.values())
    for mix in ("mig", "time_slice", "mps"):
        found = results[f"sharing.error.{mix}"]
        assert found.value < 0.75 * (found.baseline or 0), mix
    # Without caps nobody tells MPS clients apart.
    blind = results["sharing.error.mps_uncapped"]
    assert blind.value == pytest.approx(blind.baseline, rel=1e-5)
    for method in ("process_utilization", "slice_activity", "mps_threads", "share", "slice"):
        assert results[f"sharing.coverage.{method}"].value > 75, method


def test_calibration_gives_each_method_its_error() -> None:
    found = calibrate([3])
    assert set(found) == {"process_utilization", "slice_activity", "mps_threads", "share", "slice"}
    assert all(0 < ppm <= 1_000_000 and ppm % 1_000 == 0 for ppm in found.values())


def test_every_job_of_a_world_is_judged_once() -> None:
    rows = judged("time_slice", 1_000, SharingError())
    assert rows["board_mj"].min() > 0  # type: ignore[operator]
    assert set(MIXES) >= set(rows["mix"])
    assert (rows["true_mj"] >= rows["active_mj"]).all()
