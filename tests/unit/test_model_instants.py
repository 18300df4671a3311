"""Instants of devices as integers: in order of device and time, exact, and held inside what is looked at."""

import numpy as np
import polars as pl

from analytics.model.instants import Instants, distinct

DEVICES = pl.Series("device_id", [3, 2_000_000_000], dtype=pl.Int32)


def _ids(*numbers: int) -> pl.Series:
    return pl.Series(numbers, dtype=pl.Int32)


def test_instants_are_numbered_by_device_and_then_by_time() -> None:
    # From 100 to 109, both among them, are ten of each device.
    device, since, until = _ids(3, 3, 2_000_000_000), pl.Series([100, 109, 101]), pl.Series([101, 109, 109])
    found = Instants(DEVICES, 100, 109).numbered(device, since, until)
    assert [each.tolist() for each in found] == [[0, 9, 11], [1, 9, 19]]


def test_what_lies_outside_is_taken_for_the_first_or_the_last() -> None:
    instants = Instants(DEVICES, 100, 109)
    (found,) = instants.numbered(_ids(2_000_000_000, 2_000_000_000), pl.Series([-(2**61), 2**61]))
    assert found.tolist() == [10, 19]


def test_numbers_have_their_names_again() -> None:
    instants = Instants.around(DEVICES, pl.Series([120, 100, 105]), pl.Series([121, 130, 106]))
    assert (instants.first_us, instants.last_us, instants.width) == (100, 130, 31)
    named = instants.named(np.array([0, 30, 31]), "at_us")
    assert named.rows() == [(3, 100), (3, 130), (2_000_000_000, 100)]
    (again,) = instants.numbered(named["device_id"], named["at_us"])
    assert again.tolist() == [0, 30, 31]


def test_each_number_stands_once_and_in_order() -> None:
    assert distinct(np.array([5, 1, 5, 0, 1, 1])).tolist() == [0, 1, 5]
    assert distinct(np.array([7, 7])).tolist() == [7]
    assert distinct(np.zeros(0, dtype=np.int64)).tolist() == []
