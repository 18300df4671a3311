from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from ingest.importers.columns import Source
from ingest.importers.errors import OptionError
from ingest.importers.node_power import NodePowerOptions, Parsed, meter_roles, parse
from ingest.importers.report import ImportReport

NOW = datetime(2025, 1, 1, tzinfo=UTC)


def parsed(
    path: Path, options: NodePowerOptions
) -> tuple[list[tuple[int, int, int, int | None, int | None]], ImportReport, Parsed]:
    report, state = ImportReport("node-power", path.name, "", "lab"), Parsed()
    rows = [row for chunk in parse(Source(path, tz="UTC"), options, report, state, NOW) for row in chunk]
    return rows, report, state


def test_of_several_meters_one_must_be_named_to_bill() -> None:
    assert meter_roles({"ac", "dc"}, "ac") == {"ac": True, "dc": False}
    assert meter_roles({"import"}, None) == {"import": True}
    with pytest.raises(OptionError, match=r"2 meters \(ac, dc\)"):
        meter_roles({"ac", "dc"}, None)
    with pytest.raises(OptionError, match="no such meter, only ac, dc"):
        meter_roles({"ac", "dc"}, "pdu")


def test_readings_that_cannot_be_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "node,timestamp,watts,run\nn1,2024-05-01 10:00,2000,r\nn1,2024-05-01 10:01,0,r\nn1,2024-05-01 10:02,-43,r\n"
        "n1,2026-05-01 10:00,2000,r\nn1,2024-05-01 10:03,,r\nn1,2024-05-01 10:04,2000,\n"
        "n1,2024-05-01 10:05,2147483.648,r\nn1,2024-05-01 10:06,2147483.647,r\n",
        encoding="utf-8",
    )
    rows, report, state = parsed(path, NodePowerOptions("lab", node_name="{run}-{node}"))
    assert [row[3] for row in rows] == [2_000_000, 2**31 - 1]
    assert state.keys == {("r-n1", "import"): 0}
    assert report.rejections.by_reason == {
        "power not positive": 2,
        "power impossible": 1,
        "in the future": 1,
        "power is empty": 1,
        "node name incomplete": 1,
    }


def test_a_log_without_power_or_without_the_named_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("node,timestamp,volts\nn1,2024-05-01,230\n", encoding="utf-8")
    with pytest.raises(OptionError, match="neither power nor energy"):
        parsed(path, NodePowerOptions("lab"))
    with pytest.raises(OptionError, match=r"\{run\}, but log.csv has no such column"):
        parsed(path, NodePowerOptions("lab", node_name="{run}/{node}"))
    with pytest.raises(OptionError, match=r"\{rack\} is none of"):
        parsed(path, NodePowerOptions("lab", node_name="{rack}"))


@pytest.mark.real
def test_bad_readings_of_the_mlperf_log_are_those_of_the_truth_file(shared: Path) -> None:
    folder = shared / "data/gpu-power"
    path = folder / "mlperf_train_h100_node_power_2s.parquet"
    rows, report, state = parsed(path, NodePowerOptions("lab", node_name="{run}/{node}"))
    truth = pl.read_csv(folder / "mlperf_train_h100_energy_truth.csv")
    assert report.rejections.by_reason == {"power not positive": truth["nonpositive_samples"].sum()}
    assert len(rows) == 366_361 - 25
    wanted = {
        (run, meter): count
        for run, meter, count in truth.select("run", "meter", "nonpositive_samples").iter_rows()
        if count
    }
    names = list(state.keys)
    found: dict[tuple[str, str], int] = {}
    for (_, key, _), count in state.refused.items():
        node, meter = names[key]
        run = node.rpartition("/")[0]
        found[run, meter] = found.get((run, meter), 0) + count
    assert found == wanted
