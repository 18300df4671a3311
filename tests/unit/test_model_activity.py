"""Looks at shared boards: clipped to what jobs held, and put onto pieces as counting microsecond by microsecond would."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from analytics.frames import METHODS, DeviceShares, InstanceActivity
from analytics.model.activity import LOOKS, looks, worked
from tests.fakes.site import HOUR, at, table

pytestmark = pytest.mark.unit
S = 1_000_000
HOUR_US = int(HOUR.timestamp()) * S
HELD = {"device_id": pl.Int32, "job_id": pl.Int64, "start_us": pl.Int64, "end_us": pl.Int64}
DEVICES = pl.DataFrame(schema={"device_id": pl.Int32, "parent_device_id": pl.Int32, "slice_ppm": pl.Int32})
SLICES = {"instance_id": pl.Int32, "job_id": pl.Int64, "slice_ppm": pl.Int64, "start_us": pl.Int64, "end_us": pl.Int64}


def seen(
    rows: Sequence[tuple[int, int | None, float, float, float | None]], *holds: tuple[int, int, float, float]
) -> list[tuple[Any, ...]]:
    """Looks (board, job, from, to, percent) where boards were held (board, job, from, to): board, job, from, to (s), ppm."""
    told = [
        {
            "device_id": board,
            "at": at(end),
            "span_us": round((end - start) * S),
            "job_id": job,
            "sm_util_ppm": None if percent is None else round(percent * 10_000),
            "method": "process_utilization",
        }
        for board, job, start, end, percent in rows
    ]
    held = pl.DataFrame(
        [(board, job, HOUR_US + round(a * S), HOUR_US + round(b * S)) for board, job, a, b in holds],
        schema=HELD,
        orient="row",
    )
    found = looks(
        table(DeviceShares, told), InstanceActivity.create_empty(), held, DEVICES, pl.DataFrame(schema=SLICES)
    )
    return [
        (board, job, (a - HOUR_US) / S, (b - HOUR_US) / S, ppm)
        for board, job, a, b, ppm, _, _ in found.select(list(LOOKS)).sort("device_id", "from_us", "job_id").rows()
    ]


def test_what_a_job_holds_on_is_one_holding_whatever_changes_beside_it() -> None:
    """Two stretches that touch: the look across their edge is one, and speaks on for its own length."""
    assert seen([(1, 1, 47, 52, 50)], (1, 1, 0, 50), (1, 1, 50, 100)) == [(1, 1, 47, 57, 500_000)]
    # One that ends where the next stretch begins speaks on into it.
    assert seen([(1, 1, 45, 50, 50)], (1, 1, 0, 50), (1, 1, 50, 100)) == [(1, 1, 45, 55, 500_000)]
    # A second and a third stretch, told in any order.
    assert seen([(1, 1, 95, 105, 50)], (1, 1, 100, 150), (1, 1, 0, 50), (1, 1, 50, 100)) == [(1, 1, 95, 115, 500_000)]


def test_a_break_in_what_a_job_holds_is_no_time_of_its() -> None:
    """It held until 50 s and again from 80 s: of the look of 5 s it held 2, in which it did all that was seen."""
    assert seen([(1, 1, 77, 82, 20)], (1, 1, 0, 50), (1, 1, 80, 100)) == [(1, 1, 80, 87, 500_000)]


def test_a_look_that_only_touches_what_a_job_held_is_nobodys() -> None:
    assert seen([(1, 1, 50, 55, 50)], (1, 1, 0, 50)) == [(1, None, 50, 55, 500_000)]
    assert seen([(1, 1, 50, 55, 50)], (1, 1, 55, 90)) == [(1, None, 50, 55, 500_000)]


def test_each_job_and_board_has_looks_of_its_own() -> None:
    rows = [(1, 1, 0, 5, 10), (1, 2, 0, 5, 20), (2, 1, 0, 5, 30), (1, 1, 5, 10, 40)]
    found = seen(rows, (1, 1, 0, 10), (1, 2, 0, 10), (2, 1, 0, 10))
    assert found == [(1, 1, 0, 5, 100_000), (1, 2, 0, 10, 200_000), (1, 1, 5, 10, 400_000), (2, 1, 0, 10, 300_000)]


def test_several_processes_that_pass_the_whole_are_the_whole() -> None:
    assert seen([(1, 1, 0, 10, 90)], (1, 1, 5, 10)) == [(1, 1, 5, 10, 1_000_000)]


def _drawn(draw: random.Random) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Pieces of three boards under spans of random holders, and looks of whoever."""
    pieces, span = [], 10
    holders: list[tuple[int, int | None, int]] = []
    for board in (3, 1, 2):
        time = draw.randrange(5)
        for _ in range(draw.randrange(1, 4)):
            span += draw.randrange(1, 3)
            jobs = draw.sample([101, 102, 103, 104], draw.randrange(1, 4))
            holders += [(span, job, number) for number, job in enumerate(sorted(jobs))]
            holders += [(span, None, -2)] if draw.random() < 0.5 else []
            holders += [(span, None, -1)] if draw.random() < 0.5 else []
            for _ in range(draw.randrange(1, 4)):
                length = draw.randrange(1, 8)
                pieces.append((span, board, time, time + length))
                time += length + draw.choice([0, 0, 3])
    rows = []
    for _ in range(draw.randrange(25)):
        start = draw.randrange(30)
        rows.append(
            (
                draw.randrange(1, 5),
                draw.choice([101, 102, 103, 104, 105, None]),
                start,
                start + draw.randrange(1, 12),
                None if draw.random() < 0.1 else draw.randrange(1_000_000),
                None if draw.random() < 0.7 else draw.randrange(1_000_000),
                draw.choice(["process_utilization", "mps_threads", "slice_activity"]),
            )
        )
    return (
        pl.DataFrame(
            pieces,
            schema={"span": pl.UInt32, "device_id": pl.Int32, "from_us": pl.Int64, "to_us": pl.Int64},
            orient="row",
        ).sort("device_id", "from_us"),
        pl.DataFrame(holders, schema={"span": pl.UInt32, "job_id": pl.Int64, "job": pl.Int64}, orient="row").sort(
            "span", maintain_order=True
        ),
        pl.DataFrame(rows, schema=LOOKS, orient="row"),
    )


@pytest.mark.parametrize("seed", range(60))
def test_activity_of_a_piece_is_what_counting_every_microsecond_gives(seed: int) -> None:
    pieces, holders, found = _drawn(random.Random(seed))
    many = [holders.filter(span=span).height for span in pieces["span"]]
    first = np.cumsum([0, *many[:-1]]).astype(np.int64)
    answer = worked(pieces, first, holders, found)
    row = 0
    for span, board, start, end in pieces.select("span", "device_id", "from_us", "to_us").rows():
        jobs = [
            (job, number) for job, number in holders.filter(span=span).select("job_id", "job").rows() if number > -2
        ]
        here = [
            look
            for look in found.rows()
            if look[0] == board and look[2] < end and look[3] > start and look[1] in [job for job, _ in jobs]
        ]
        by_threads = any(look[4] is None for look in here)
        unknown = by_threads and any(look[5] is None for look in here)
        told = max((METHODS.index("mps_threads" if by_threads else look[6]) for look in here), default=-1)
        for job, number in holders.filter(span=span).select("job_id", "job").rows():
            rates = [
                look[5 if by_threads else 4]
                for look in here
                for _ in range(max(start, look[2]), min(end, look[3]))
                if look[1] == job and number > -2 and not unknown
            ]
            assert answer.activity_ppm[row] == sum(rates) // (end - start)
            assert answer.method[row] == told
            row += 1
    assert row == len(answer.activity_ppm) == len(answer.method)


def test_a_look_without_threads_is_not_one_that_saw_none() -> None:
    # Two jobs on one board for 10 s: by their time one is not known, so both go by their threads: none, and half of all.
    pieces = pl.DataFrame(
        [(1, 1, 0, 10)],
        schema={"span": pl.UInt32, "device_id": pl.Int32, "from_us": pl.Int64, "to_us": pl.Int64},
        orient="row",
    )
    of_span = pl.DataFrame(
        [(1, 101, 0), (1, 102, 1)], schema={"span": pl.UInt32, "job_id": pl.Int64, "job": pl.Int64}, orient="row"
    )
    first = np.array([0], dtype=np.int64)

    def known(*rows: tuple[int, int | None, int | None]) -> list[int]:
        told = [(1, job, 0, 10, ppm, threads, "mps_threads") for job, ppm, threads in rows]
        return [
            int(ppm)
            for ppm in worked(pieces, first, of_span, pl.DataFrame(told, schema=LOOKS, orient="row")).activity_ppm
        ]

    assert known((101, None, 0), (102, 300_000, 500_000)) == [0, 500_000]
    assert known((101, None, None), (102, 300_000, 500_000)) == [0, 0]
    assert known((101, 0, None), (102, 300_000, None)) == [0, 300_000]
