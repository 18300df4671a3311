"""Where nodes stand, from Slurm's own files and from a table: dated, and a repetition is no row."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingest.importers.columns import Source
from ingest.importers.errors import ImportFileError
from ingest.importers.report import ImportReport
from ingest.importers.topology import TopologyOptions, import_topology
from ingest.store.engine import Database

pytestmark = pytest.mark.db
NOVEMBER, DECEMBER = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
TREE = """
# two leaves under a spine
SwitchName=leaf1 Nodes=gpu[01-02]
switchname=leaf2 nodes=gpu03 LinkSpeed=100
SwitchName=core Switches=leaf[1-2]
"""


def imported(db: Database, path: Path, text: str, valid_from: datetime = NOVEMBER) -> ImportReport:
    path.write_text(text)
    engine = db.create_engine("owner")
    try:
        with engine.connect() as conn:
            return import_topology(conn, Source(path), TopologyOptions("s1", valid_from))
    finally:
        engine.dispose()


def standing(db: Database) -> list[tuple[Any, ...]]:
    with db.connect("admin") as admin:
        return admin.execute(
            "SELECT name, rack, switch, nvlink_domain, valid_from, valid_to FROM topology JOIN nodes ON nodes.id = node_id "
            "WHERE superseded_at IS NULL ORDER BY name, valid_from"
        ).fetchall()


def test_a_tree_gives_each_node_the_path_of_its_switch(db: Database, tmp_path: Path) -> None:
    report = imported(db, tmp_path / "topology.conf", TREE)
    assert standing(db) == [
        ("gpu01", None, "core/leaf1", None, NOVEMBER, None),
        ("gpu02", None, "core/leaf1", None, NOVEMBER, None),
        ("gpu03", None, "core/leaf2", None, NOVEMBER, None),
    ]
    assert (report.written["nodes"], report.rejections.total) == (3, 0)
    again = imported(db, tmp_path / "topology.conf", TREE)
    assert again.already_imported_at is not None
    moved = imported(
        db, tmp_path / "topology.conf", TREE.replace("gpu03", "gpu[02-03]").replace("[01-02]", "01"), DECEMBER
    )
    assert (moved.written["nodes"], moved.unchanged) == (1, 2)
    assert [row[2:] for row in standing(db) if row[0] == "gpu02"] == [
        ("core/leaf1", None, NOVEMBER, DECEMBER),
        ("core/leaf2", None, DECEMBER, None),
    ]


def test_blocks_are_nvlink_domains(db: Database, tmp_path: Path) -> None:
    imported(db, tmp_path / "topology.conf", "BlockName=b1 Nodes=gpu[1-2]\nBlockName=b2 Nodes=gpu3\nBlockSizes=18\n")
    assert [(row[0], row[3]) for row in standing(db)] == [("gpu1", "b1"), ("gpu2", "b1"), ("gpu3", "b2")]


def test_the_yaml_of_newer_slurm(db: Database, tmp_path: Path) -> None:
    text = """
- topology: default
  cluster_default: true
  tree:
    switches:
      - {switch: core, children: "leaf[1-2]"}
      - {switch: leaf1, nodes: "gpu[1-2]"}
- topology: nvl
  block:
    block_sizes: [18]
    blocks: [{block: b1, nodes: gpu1}]
"""
    imported(db, tmp_path / "topology.yaml", text)
    assert [row[:4] for row in standing(db)] == [("gpu1", None, "core/leaf1", "b1"), ("gpu2", None, "core/leaf1", None)]


def test_a_table_of_racks(db: Database, tmp_path: Path) -> None:
    imported(db, tmp_path / "racks.csv", "node,rack,switch,nvlink_domain\ngpu1,r1,leaf1,d1\ngpu2,r1,,\n")
    assert [row[:4] for row in standing(db)] == [("gpu1", "r1", "leaf1", "d1"), ("gpu2", "r1", None, None)]


def test_switches_in_a_ring_and_bad_host_lists_are_refused(db: Database, tmp_path: Path) -> None:
    ring = "SwitchName=a Switches=b\nSwitchName=b Switches=a\nSwitchName=a Nodes=n1\n"
    with pytest.raises(ImportFileError, match="switches hang on each other"):
        imported(db, tmp_path / "ring.conf", ring)
    report = imported(db, tmp_path / "bad.conf", "SwitchName=a Nodes=n[1-\nSwitchName=b Nodes=n2\n")
    assert [each.line for each in report.rejections.examples] == [1]
    assert [row[0] for row in standing(db)] == ["n2"]
