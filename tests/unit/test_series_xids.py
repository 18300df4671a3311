"""Errors of devices in a gauge of the last one: what this process knows to stand goes no further."""

from __future__ import annotations

import numpy as np
import pytest

from collector.wire import Origin
from ingest.series.labels import Skip
from ingest.series.places import place
from ingest.series.samples import Samples
from ingest.series.xids import Stood, XidMemory, XidPiece

pytestmark = pytest.mark.unit
NOON_US = 1_795_262_400_000_000
PIECE = XidPiece("GPU-1", "gpu-1", Origin.LIVE)


def samples(*told: tuple[int, float]) -> Samples:
    """The gauge at these seconds past noon."""
    at_us = np.array([NOON_US + second * 1_000_000 for second, _ in told])
    return Samples(np.zeros(len(told), dtype=np.int32), at_us, np.array([value for _, value in told]))


def changed(
    memory: XidMemory, *told: tuple[int, float], piece: XidPiece = PIECE, own: str | None = None
) -> list[Stood]:
    found, rest = memory.news(1, samples(*told), [piece], own, NOON_US + 3_600_000_000)
    assert len(rest) == 0
    return found.stood


def stood(second: int, code: int) -> Stood:
    return Stood(NOON_US + second * 1_000_000, code, "GPU-1", "gpu-1", Origin.LIVE)


def test_changes_go_on_in_order_of_time_until_they_are_known_to_be_kept() -> None:
    memory = XidMemory()
    wanted = [stood(0, 0), stood(30, 79), stood(60, 0)]
    assert changed(memory, (60, 0.0), (0, 0.0), (15, 0.0), (30, 79.0), (45, 79.0)) == wanted
    assert changed(memory, (75, 0.0)) == [stood(75, 0)]
    memory.kept(1, wanted)
    assert changed(memory, (75, 0.0)) == []


def test_a_blank_a_stale_marker_and_a_sample_from_the_future_say_nothing() -> None:
    assert changed(XidMemory(), (0, 9223372036854775794.0), (1, float("nan")), (2, -1.0), (7_200, 79.0)) == []


def test_a_gauge_without_a_node_is_the_tokens_or_nobodys() -> None:
    nameless = XidPiece("GPU-1", None, Origin.LIVE)
    assert changed(XidMemory(), (0, 79.0), piece=nameless) == []
    assert changed(XidMemory(), (0, 79.0), piece=nameless, own="gpu-1") == [stood(0, 79)]


def test_a_gauge_is_of_the_board_under_both_its_names() -> None:
    labels = {"UUID": "GPU-1", "Hostname": "gpu-1", "GPU_I_ID": "3"}
    assert place("DCGM_FI_DEV_XID_ERRORS", labels) == place("DCGM_FI_DEV_XID_ERROR", labels) == PIECE
    assert place("DCGM_FI_DEV_XID_ERRORS", {}) == Skip("DCGM_FI_DEV_XID_ERRORS", "bad_labels")
