"""A token may name so many new things an hour, and known ones as often as it likes."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest

from collector.wire import Stream
from ingest.errors import BadBodyError, TooManyError
from ingest.newcomers import Newcomers, Quota
from ingest.series.memory import MAX_NEW_OF_A_NODE, Memory
from ingest.store.registry import MAX_NAMES_AN_HOUR, _NamesAnHour
from tests.db.ingest_harness import batch_meta, device

pytestmark = pytest.mark.unit


def test_what_is_known_is_admitted_and_what_is_new_only_while_the_hour_has_room() -> None:
    now = 7_200.0 + 600
    newcomers = Newcomers(lambda: now)
    first = batch_meta()  # a node, a spool, an epoch and two devices: five names
    newcomers.admit(1, 6, first)
    newcomers.admit(1, 6, first)
    with pytest.raises(TooManyError) as refused:
        newcomers.admit(1, 6, batch_meta(boot_id="boot-2"))  # a spool and an epoch more: seven
    assert refused.value.reason == "too_many_new"
    assert refused.value.retry_after_s == 3_000
    newcomers.admit(1, 6, batch_meta())  # nothing was taken in of the refused one: a spool more is the sixth
    newcomers.admit(2, 6, batch_meta(boot_id="boot-2"))  # another token's
    newcomers.admit(1, 0, batch_meta(boot_id="boot-3"))  # no limit
    now += 3_600
    newcomers.admit(1, 6, batch_meta(boot_id="boot-2"))


def test_a_million_made_up_devices_take_little_memory_and_are_refused() -> None:
    newcomers = Newcomers(lambda: 0.0)
    refused = 0
    tracemalloc.start()
    for batch in range(2_000):
        meta = batch_meta(devices=tuple(device(f"{batch}-{number}") for number in range(500)))
        try:
            newcomers.admit(1, 4_096, meta)
        except TooManyError:
            refused += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused == 2_000 - 8  # of 503 names each eight fit into 4,096
    assert peak < 8 * 1024 * 1024


def test_one_nodes_made_up_series_leave_room_for_the_others() -> None:
    memory = Memory()
    greedy, honest = memory.of(1, "n1", 0), memory.of(1, "n2", 0)  # type: ignore[arg-type]
    admitted = [memory.admits(greedy, Stream.FABRIC, (str(number),), 1, (1, "n1")) for number in range(10_000)]
    assert sum(admitted) == MAX_NEW_OF_A_NODE
    assert memory.admits(honest, Stream.FABRIC, ("mlx5_0/1",), 1, (1, "n2"))


def test_a_nodes_new_meters_and_ports_are_bounded_each_hour() -> None:
    names = _NamesAnHour()
    names.take(Counter({1: MAX_NAMES_AN_HOUR, 2: 1}))
    with pytest.raises(BadBodyError, match="4096 new meters"):
        names.take(Counter({1: 1, 2: 1}))
    names.take(Counter({2: MAX_NAMES_AN_HOUR - 1}))  # the refused one counted nothing


def test_of_a_body_the_parts_with_room_are_taken_and_what_was_heard_costs_nothing() -> None:
    now = 7_200.0 + 600
    newcomers, quota = Newcomers(lambda: now), Quota("jobs", 3, "SETTING")
    assert newcomers.room(1, quota, [["a"], ["a", "b"]]) == [None, None]
    first, second, third = newcomers.room(1, quota, [["c", "d"], ["c"], ["a", "b", "c"]])  # four are too many
    assert (second, third) == (None, None)
    assert first is not None
    assert (first.reason, first.retry_after_s) == ("too_many_new", 3_000)
    assert first.detail == "this token may tell of 3 new jobs in an hour (SETTING); send it again in 3000 s"
    assert newcomers.room(2, quota, [["d"]]) == [None]  # another token's
    assert newcomers.room(1, Quota("runs", 3, "S"), [["d"]]) == [None]  # another kind
    assert newcomers.room(1, Quota("jobs", 0, "S"), [[str(number) for number in range(100)]]) == [None]  # no limit
    now += 3_600
    assert newcomers.room(1, quota, [["d"]]) == [None]


def test_what_is_only_counted_fits_up_to_the_hours_limit() -> None:
    now = 7_200.0
    newcomers, quota = Newcomers(lambda: now), Quota("outcomes", 10, "SETTING")
    assert newcomers.count(1, quota, 7) == (7, None)
    fits, why = newcomers.count(1, quota, 7)
    assert fits == 3
    assert why is not None
    assert why.retry_after_s == 3_600
    assert newcomers.count(1, quota, 1)[0] == 0
    assert newcomers.count(2, quota, 10) == (10, None)
    assert newcomers.count(1, Quota("outcomes", 0, "S"), 99) == (99, None)
    now += 3_600
    assert newcomers.count(1, quota, 10) == (10, None)
