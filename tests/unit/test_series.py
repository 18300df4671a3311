"""What series mean: units, blanks, labels, nodes, and what is remembered of them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from collector.wire import COLUMNS, Origin, Stream
from ingest.series.book import OTHER, Book
from ingest.series.host import load_ratio, throttled_ns, used_bytes
from ingest.series.kube import KUBE
from ingest.series.labels import Skip
from ingest.series.memory import DEFAULT_CADENCE_US, Cadence, Known, Memory
from ingest.series.names import DCGM, DCGM_HEALTH, ENGINES, HARDWARE, KNOWN, NODES, Unit
from ingest.series.places import NODE_LABELS, Place, place
from ingest.series.rows import rows_of
from ingest.series.samples import Samples
from ingest.series.units import DERIVED, converted

pytestmark = pytest.mark.unit
SECOND_US = 1_000_000


@pytest.mark.parametrize(
    ("value", "unit", "kind", "wanted"),
    [
        (312.5, "w", "i32", 312_500),
        (12.5, "j", "i64", 12_500),
        (5_000_123.0, "mj", "i64", 5_000_123),
        (2.0, "mib", "i64", 2_097_152),
        (87.0, "percent", "i16", 87),
        (101.0, "percent", "i16", None),
        (0.25, "ratio", "f32", 0.25),
        (1.005, "ratio", "f32", 1.0),  # rounding
        (87.0, "ratio", "f32", 0.87),  # was made percent on the way
        (-0.1, "ratio", "f32", None),
        (0.5, "ratio_percent", "i16", 50),
        (87.0, "ratio_percent", "i16", 87),  # field 203 counts 0-100 under both its names
        (1.0, "ratio_percent", "i16", None),  # 1 % or all of it
        (0.0, "ratio_percent", "i16", 0),
        (1.0, "whole_ratio", "i16", 100),
        (50.0, "whole_ratio", "i16", None),
        (12_500_000_000.0, "bytes_per_s", "i64", 100_000),  # 100 Gbit/s in Mbit/s
        (9223372036854775794.0, "celsius", "i16", None),  # DCGM: no value, 64 bits
        (2147483632.0, "w", "i32", None),  # DCGM: no value, 32 bits
        (140737488355328.0, "w", "i32", None),  # DCGM: no value, floating point
        (140737488355328.0, "mj", "i64", 140737488355328),  # a counter on its way up
        (40_000.0, "count", "i16", None),  # does not fit
        (math.inf, "count", "i64", None),
    ],
)
def test_a_value_becomes_its_columns_number_or_nothing(
    value: float, unit: Unit, kind: str, wanted: float | None
) -> None:
    (found,) = converted(np.array([value]), unit, kind).tolist()
    assert (None if math.isnan(found) else found) == wanted


def test_every_column_of_the_table_is_one_of_its_stream() -> None:
    meanings = [*DCGM.values(), *DCGM_HEALTH.values(), *ENGINES.values(), *NODES.values()]
    meanings += [each for told in HARDWARE.values() for entry in told for each in (entry.device, entry.node) if each]
    for meaning in meanings:
        assert meaning.column in {column.name for column in COLUMNS[meaning.stream]} | DERIVED, meaning


def placed(name: str, labels: dict[str, str]) -> Place:
    found = place(name, labels)
    assert isinstance(found, Place), found
    return found


@pytest.mark.parametrize(
    ("labels", "node"),
    [
        ({"Hostname": "a", "instance": "10.0.0.1:9400"}, "a"),
        ({"hostname": "b", "instance": "10.0.0.1:9400"}, "b"),
        ({"node": "c", "instance": "10.0.0.1:9400"}, "c"),
        ({"instance": "gpu-1:9400"}, "gpu-1"),
        ({"instance": "[fe80::1]:9400"}, "fe80::1"),
        ({"instance": "gpu-1"}, "gpu-1"),
        ({"service.instance.id": "gpu-1:9400"}, "gpu-1"),  # what a collector makes of the address it scrapes
        ({"service.instance.id": "10.0.0.1:9100", "server.address": "gpu-1"}, "gpu-1"),
        ({"service.instance.id": "gpu-1:9100", "net.host.name": "gpu-1.lab", "host.name": "h"}, "h"),
        ({"service.instance.id": "627cc493-f310-47de-96bd-71410b7dec09"}, "627cc493-f310-47de-96bd-71410b7dec09"),
        ({"instance": "fe80::1"}, "fe80::1"),  # its last group is no port
        ({"Hostname": "x\ny", "node": "c"}, "c"),  # a control character names nothing
        ({"Hostname": "", "host.name": "d"}, "d"),
        ({}, None),
    ],
)
def test_a_node_is_the_first_label_that_names_one(labels: dict[str, str], node: str | None) -> None:
    assert placed("DCGM_FI_DEV_GPU_TEMP", {"UUID": "GPU-1", **labels}).node == node


def test_which_labels_name_a_node_can_be_said() -> None:
    found = place(
        "DCGM_FI_DEV_GPU_TEMP", {"UUID": "GPU-1", "Hostname": "a", "rack_host": "b"}, ("rack_host", *NODE_LABELS)
    )
    assert isinstance(found, Place)
    assert found.node == "b"


def test_a_hostile_label_names_a_row_as_it_stands_or_nothing() -> None:
    injected = "'; DROP TABLE devices; --"
    assert placed("DCGM_FI_DEV_GPU_TEMP", {"UUID": injected, "Hostname": "a"}).subject == (injected,)
    assert place("DCGM_FI_DEV_GPU_TEMP", {"UUID": "G" * 256, "Hostname": "a"}) == Skip(
        "DCGM_FI_DEV_GPU_TEMP", "bad_labels"
    )
    assert place("DCGM_FI_DEV_GPU_TEMP", {"Hostname": "a"}) == Skip("DCGM_FI_DEV_GPU_TEMP", "bad_labels")
    deep = {"UUID": "GPU-1", "GPU_I_ID": "9" * 5_000}
    assert placed("DCGM_FI_DEV_FB_USED", deep).subject == ("GPU-1",)


def test_hardware_names_go_by_the_kind_of_thing_they_tell_of() -> None:
    gpu = placed("hw.power", {"hw.id": "GPU-1", "hw.type": "gpu", "host.name": "a", "wattledger.origin": "simulated"})
    assert (gpu.stream, gpu.subject, gpu.column, gpu.origin) == (
        Stream.DEVICE,
        ("GPU-1",),
        "power_average_mw",
        Origin.SIMULATED,
    )
    other = placed("hw.power", {"hw.id": "0", "hw.type": "gpu", "host.name": "a", "hw.vendor": "AMD"})
    assert other.subject == ("hw:a/0",)  # unique on its host alone
    assert other.device is not None
    assert other.device.vendor == "amd"
    host = placed("hw.host.energy", {"host.name": "a"})
    assert (host.stream, host.subject) == (Stream.NODE, ("hw/host/host",))
    assert place("hw.power", {"hw.id": "0", "hw.type": "fan"}) == Skip("hw.power", "unmapped")
    errors = {"hw.id": "GPU-1", "hw.type": "gpu", "error.type": "page_fault"}
    assert place("hw.errors", errors) == Skip("hw.errors", "unmapped")


def test_devices_numbered_by_their_host_go_by_the_tokens_node_where_no_label_names_one() -> None:
    told = ({"hw.id": "0"}, {"hw.id": "GPU-1"}, {"hw.id": "1", "host.name": "a"})
    entries = [placed("hw.power", {"hw.type": "gpu", **labels}) for labels in told]
    samples = Samples(np.arange(3), np.full(3, SECOND_US), np.full(3, 100.0))

    def devices_of(own_node: str | None) -> list[str]:
        found, _ = rows_of(samples, [*entries], Memory(), 1, own_node, SECOND_US)
        return sorted(subject[0] for node in found for subject in node.streams[Stream.DEVICE][0])

    # One book serves all senders: what one token's node names is not the next one's.
    assert devices_of("n1") == ["GPU-1", "hw:a/1", "hw:n1/0"]
    assert devices_of("n2") == ["GPU-1", "hw:a/1", "hw:n2/0"]
    assert devices_of(None) == ["hw:a/1"]
    found, _ = rows_of(samples, [*entries], Memory(), 1, "n1", SECOND_US)
    assert {ref.uuid for node in found for ref in node.known.devices} == {"GPU-1", "hw:a/1", "hw:n1/0"}


def test_names_without_a_place_are_told_apart_up_to_a_bound() -> None:
    book = Book(max_names=2)
    numbers = [book.learn_name(name) for name in ("a", "b", "c", "d", "a")]
    assert numbers == [0, 1, 2, 2, 0]
    assert book.entries == [Skip("a", "unmapped"), Skip("b", "unmapped"), Skip(OTHER, "unmapped")]
    assert place("kube_service_info", {}) == Skip("kube_service_info", "kubernetes_watcher")


def test_a_book_forgets_everything_once_it_is_full_and_only_between_requests() -> None:
    book = Book(max_series=1)
    book.learn(b"1", "DCGM_FI_DEV_GPU_TEMP", lambda: {"UUID": "GPU-1"})
    book.learn(b"2", "DCGM_FI_DEV_GPU_TEMP", lambda: {"UUID": "GPU-2"})
    assert len(book.entries) == 2
    book.tidy()
    assert (book.entries, book.known, book.generation) == ([], {}, 1)


def test_a_nodes_spacing_changes_after_three_steps_in_a_row() -> None:
    cadence = Cadence()
    for seconds in (0, 10, 20, 25, 35, 45):  # one short step between
        cadence.saw(seconds * SECOND_US + 1)
    assert cadence.us == DEFAULT_CADENCE_US
    cadence.saw(55 * SECOND_US + 1)
    assert cadence.us == 10 * SECOND_US
    cadence.saw(655 * SECOND_US + 1)  # a gap is no spacing
    assert cadence.us == 10 * SECOND_US


def test_only_so_many_new_things_are_named_in_an_hour() -> None:
    memory = Memory(max_new_an_hour=1)
    known = memory.of(1, "n", Origin.LIVE)
    hour_us = 3600 * SECOND_US
    assert memory.admits(known, Stream.DEVICE, ("a",), hour_us)
    assert not memory.admits(known, Stream.DEVICE, ("b",), hour_us)
    assert memory.admits(known, Stream.DEVICE, ("a",), hour_us)
    assert memory.admits(known, Stream.DEVICE, ("b",), 2 * hour_us)


def test_the_longest_silent_nodes_are_forgotten_first() -> None:
    memory = Memory(max_nodes=2)
    first = memory.of(1, "a", Origin.LIVE)
    memory.of(1, "b", Origin.LIVE)
    assert memory.of(1, "a", Origin.LIVE) is first
    memory.of(1, "c", Origin.LIVE)
    assert memory.of(1, "a", Origin.LIVE) is first
    assert len(memory) == 2


def test_load_is_the_mean_of_the_processors_that_were_told_twice() -> None:
    known = Known("spool")
    assert load_ratio(known, [("0", 0, 5.0), ("1", 0, 5.0)]) == {}
    told = [("0", 10 * SECOND_US, 15.0), ("1", 10 * SECOND_US, 7.5), ("2", 10 * SECOND_US, 1.0)]
    assert load_ratio(known, told) == {10 * SECOND_US: 0.375}  # idle 10 s and 2.5 s of 10
    assert load_ratio(known, [("0", 20 * SECOND_US, 1.0)]) == {}  # it was restarted


def test_used_memory_needs_a_total_that_came_once() -> None:
    known = Known("spool")
    assert used_bytes(known, None, 400) is None
    assert used_bytes(known, 1000, 400) == 600
    assert used_bytes(known, None, 300) == 700
    assert used_bytes(known, None, 2000) is None


def test_a_violation_counter_is_taken_once_it_was_seen_to_count_nanoseconds() -> None:
    known = Known("spool")
    told = [(0, 0.0, 0.0), (1, 500_000.0, None), (2, 900_000_000.0, 900_000_000.0), (3, 900_000_001.0, 900_000_001.0)]
    for seconds, value, wanted in told:  # after the second it has grown by 900 s in 1 s, were it microseconds
        assert throttled_ns(known, "GPU-1", "throttle_power_cap_ns", seconds * SECOND_US, value) == wanted


def test_a_device_beyond_the_hours_room_is_not_named_to_the_database() -> None:
    book = Book()
    labels = [{"UUID": f"GPU-{number}", "Hostname": "n"} for number in range(2)]
    numbers = [book.learn(str(n).encode(), "DCGM_FI_DEV_GPU_TEMP", lambda n=n: labels[n]) for n in range(2)]  # type: ignore[misc]
    samples = Samples(np.array(numbers, dtype=np.int32), np.array([5, 5]), np.array([40.0, 41.0]))
    (rows,), tally = rows_of(samples, book.entries, Memory(max_new_an_hour=1), 1, None, 3600 * SECOND_US)
    assert [ref.uuid for ref in rows.known.devices] == ["GPU-0"]
    assert tally.samples["too_many_new"] == 1


def test_of_several_values_of_one_column_and_instant_the_largest_counts_in_any_order() -> None:
    book = Book()
    pods = [{"UUID": "GPU-1", "Hostname": "n", "pod": name} for name in ("a", "b", "c")]
    numbers = [book.learn(str(n).encode(), "DCGM_FI_DEV_FB_USED", lambda n=n: pods[n]) for n in range(3)]  # type: ignore[misc]
    for values in ([1.0, 3.0, 2.0], [3.0, 2.0, 1.0]):
        samples = Samples(np.array(numbers, dtype=np.int32), np.array([5, 5, 5]), np.array(values))
        (rows,), _ = rows_of(samples, book.entries, Memory(), 1, None, 3600 * SECOND_US)
        subjects, at_us, columns = rows.streams[Stream.DEVICE]
        assert (subjects, at_us.tolist()) == ([("GPU-1",)], [5])
        assert columns["memory_used_bytes"].tolist() == [3 * 2**20]


def test_the_page_s_filter_keeps_every_name_that_has_a_place() -> None:
    page = (Path(__file__).parents[2] / "docs/series.md").read_text(encoding="utf-8")
    (kept,) = re.findall(r'source_labels: \[__name__\], regex: "(.+?)", action: keep', page)
    assert [name for name in sorted(KNOWN | KUBE) if not re.fullmatch(kept, name)] == []
    assert "falls back" not in page, "Prometheus drops what is answered 415"
