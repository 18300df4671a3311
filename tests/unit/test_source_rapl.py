"""Processor energy from RAPL: wraps, resets, rights and zones that count the same joules."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.probe import Row
from collector.source import files
from collector.source.rapl import RaplSource
from collector.wire import Stream

RANGE_UJ = 262_143_328_850


class Node:
    """A tree of zones and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 100.0
        self.source = RaplSource(sys_root=root, monotonic=lambda: self.now_s)

    def zone(self, entry: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> None:
        folder = self.root / "class/powercap" / entry
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")

    def read(self, after_s: float = 10.0) -> dict[str, Row]:
        self.now_s += after_s
        return {str(row["meter"]): row for row in self.source.read().rows.get(Stream.NODE, ())}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.unit
def test_packages_and_memory_add_up_and_their_parts_do_not(node: Node) -> None:
    node.zone("intel-rapl:0", "package-0", 1_000_000)
    node.zone("intel-rapl:0:0", "core", 500_000)
    node.zone("intel-rapl:0:1", "dram", 200_000)
    node.zone("intel-rapl:1", "package-1", 3_000_000)
    node.zone("intel-rapl-mmio:0", "package-0", 1_000_000)
    assert node.read() == {"rapl": {"meter": "rapl", "span_us": 0, "energy_mj": 0}}
    node.zone("intel-rapl:0", "package-0", 1_000_000 + 700_000_000)
    node.zone("intel-rapl:0:0", "core", 500_000 + 600_000_000)
    node.zone("intel-rapl:0:1", "dram", 200_000 + 50_000_000)
    node.zone("intel-rapl:1", "package-1", 3_000_000 + 300_000_000)
    node.zone("intel-rapl-mmio:0", "package-0", 1_000_000 + 700_000_000)
    # 700 + 50 + 300 J in 10 s: core lies in its package, mmio is the package again.
    assert node.read() == {"rapl": {"meter": "rapl", "span_us": 10_000_000, "energy_mj": 1_050_000}}


@pytest.mark.unit
def test_a_counter_that_wraps_goes_on_counting(node: Node) -> None:
    node.zone("intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    node.read()
    node.zone("intel-rapl:0", "package-0", 2_500_000)
    assert node.read()["rapl"]["energy_mj"] == 3_500  # 1.0 J to the end and 2.5 J after it


@pytest.mark.unit
def test_nothing_is_lost_to_rounding_over_many_readings(node: Node) -> None:
    node.zone("intel-rapl:0", "package-0", 0)
    node.read()
    for turn in range(1, 101):
        (node.root / "class/powercap/intel-rapl:0/energy_uj").write_text(f"{turn * 1_999}\n")
        row = node.read(1.0)["rapl"]
    assert row["energy_mj"] == 199  # 100 x 1.999 mJ


@pytest.mark.unit
@pytest.mark.parametrize(
    ("value_uj", "after_s"),
    [
        (5_000_000, 300.0),  # 262 s at 1000 W are a whole turn: one may have gone unseen
        (0, 10.0),  # as a wrap it would be 26 kW
    ],
)
def test_where_a_wrap_may_have_gone_unseen_the_counter_starts_over(node: Node, value_uj: int, after_s: float) -> None:
    node.zone("intel-rapl:0", "package-0", 0)
    node.read()
    node.zone("intel-rapl:0", "package-0", 2_000_000_000)
    assert node.read()["rapl"]["energy_mj"] == 2_000_000
    node.zone("intel-rapl:0", "package-0", value_uj)
    node.now_s += after_s
    observation = node.source.read()
    assert observation.rows[Stream.NODE][0]["energy_mj"] == 0
    assert observation.errors == {"rapl:counter_restarted": 1}


@pytest.mark.unit
def test_psys_is_a_meter_of_its_own(node: Node) -> None:
    node.zone("intel-rapl:0", "package-0", 0)
    node.zone("intel-rapl:1", "psys", 0)
    assert sorted(node.read()) == ["rapl", "rapl/psys"]
    node.zone("intel-rapl:1", "psys", 40_000_000_000)  # 4 kW for 10 s: no package draws that, a platform may
    assert node.read()["rapl/psys"]["energy_mj"] == 40_000_000


@pytest.mark.unit
def test_a_node_without_rapl_costs_nothing_and_says_what_would_help(node: Node) -> None:
    assert node.source.read().rows == {}
    (sight,) = node.source.sights()
    assert (sight.seen, "intel_rapl_msr" in str(sight.remedy)) == (False, True)


@pytest.mark.unit
def test_counters_only_root_may_read_are_a_sight_and_no_error(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.zone("intel-rapl:0", "package-0", 0)
    real = files.read_small

    def refuse(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("collector.source.rapl.read_small", refuse)
    observation = node.source.read()
    assert (observation.rows, observation.errors) == ({}, {})
    (sight,) = node.source.sights()
    assert (sight.seen, "CAP_DAC_READ_SEARCH" in str(sight.remedy)) == (False, True)


@pytest.mark.unit
def test_a_zone_that_goes_away_starts_the_meter_over(node: Node) -> None:
    node.zone("intel-rapl:0", "package-0", 0)
    node.zone("intel-rapl:1", "package-1", 0)
    node.read()
    (node.root / "class/powercap/intel-rapl:1/energy_uj").write_text("not a number\n")
    observation = node.source.read()
    assert (observation.rows, observation.errors) == ({}, {"rapl:unreadable": 1})
    assert node.read(60.0)["rapl"]["energy_mj"] == 0


@pytest.mark.real
@pytest.mark.parametrize(
    ("tree", "zones"), [("sysfs-procfs", "package-0, package-10"), ("sysfs-kepler", "package-0, package-10")]
)
def test_recorded_trees_have_each_package_once(shared: Path, tree: str, zones: str) -> None:
    # kepler's has package-0 through mmio as well, and a core zone inside
    source = RaplSource(sys_root=shared / "data/fixtures" / tree)
    assert source.sights()[0].detail == zones
    assert source.read().rows[Stream.NODE] == ({"meter": "rapl", "span_us": 0, "energy_mj": 0},)
