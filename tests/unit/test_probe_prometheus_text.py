"""The text format as exporters write it, and as nobody should."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from collector.probe import prometheus_text
from collector.probe.prometheus_text import parse


@pytest.mark.unit
def test_a_line_becomes_name_labels_and_value() -> None:
    scrape = parse('# HELP up Is it up.\n# TYPE up gauge\nup{job="dcgm",instance="a:9400"} 1\n')
    (sample,) = scrape.samples
    assert (sample.name, sample.labels, sample.value) == ("up", {"job": "dcgm", "instance": "a:9400"}, 1.0)
    assert sample.at_ms is None
    assert (scrape.malformed, scrape.truncated) == (0, False)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("line", "labels"),
    [
        ("up 1", {}),
        ("up{} 1", {}),
        ("up\t1", {}),
        ('up {a="b"} 1', {"a": "b"}),
        ('up{a="b",} 1', {"a": "b"}),
        ('up{ a = "b" , c="d" } 1', {"a": "b", "c": "d"}),
        (
            r'up{path="C:\\dir",says="\"hi\"\nthere",odd="\q"} 1',
            {"path": "C:\\dir", "says": '"hi"\nthere', "odd": "\\q"},
        ),
        ('up{glob="{a}, b=\\"c\\"} 2"} 1', {"glob": '{a}, b="c"} 2'}),
        ('up{name="Grüße 显卡"} 1', {"name": "Grüße 显卡"}),
        ('up{a=""} 1', {"a": ""}),
        ('up{a="b"} 1 # {trace_id="x"} 0.5 1520879607.789', {"a": "b"}),
        ('up{a="b"} 1\r', {"a": "b"}),
    ],
)
def test_labels_are_unescaped_and_exemplars_ignored(line: str, labels: dict[str, str]) -> None:
    scrape = parse(line + "\n")
    assert [sample.labels for sample in scrape.samples] == [labels]
    assert scrape.samples[0].value == 1.0


@pytest.mark.unit
def test_values_that_are_no_numbers_in_arithmetic_are_values_all_the_same() -> None:
    values = [sample.value for sample in parse("a NaN\na +Inf\na -Inf\na 1e-3\na -7\na .5\na 5.\n").samples]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, 0.001, -7.0, 0.5, 5.0]


@pytest.mark.unit
def test_whole_numbers_stay_exact_beyond_what_a_float_holds() -> None:
    sentinel, scientific, broken = parse("a 9223372036854775794\na 1.28996013e+08\na 0.5\n").samples
    assert sentinel.integer() == 9223372036854775794
    assert scientific.integer() == 128_996_013
    assert broken.integer() is None


@pytest.mark.unit
def test_instants_are_milliseconds_and_in_open_metrics_seconds() -> None:
    assert parse("a 1 1395066363000\n").samples[0].at_ms == 1_395_066_363_000
    assert parse("a 1 1395066363.25\n# EOF\n").samples[0].at_ms == 1_395_066_363_250


@pytest.mark.unit
@pytest.mark.parametrize(
    "line",
    [
        "up",
        "up{ 1",
        'up{a="b} 1',
        "up{a=b} 1",
        'up{a="b" c="d"} 1',
        'up{a="b",a="c"} 1',
        'up{1a="b"} 1',
        "up one",
        "up 1_000",
        "up 0x10",
        "1up 1",
        'up{a="b"}',
        "up 1 yesterday",
        "up 1 1e999",
        '{"quoted name"} 1',
        "up{" + ",".join(f'l{number}="v"' for number in range(65)) + "} 1",
        'up{a="' + "x" * 2_049 + '"} 1',
        "up " + " " * 20_000 + "1",
    ],
)
def test_a_malformed_line_is_counted_and_the_others_are_read(line: str) -> None:
    scrape = parse(f"before 1\n{line}\nafter 2\n")
    assert [sample.name for sample in scrape.samples] == ["before", "after"]
    assert scrape.malformed == 1


@pytest.mark.unit
def test_lines_beyond_the_bound_are_not_looked_at_and_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_text, "MAX_LINES", 2)
    assert parse("a 1\nb 2\n") == (parse("a 1\nb 2").samples, 0, False)
    scrape = parse("a 1\nb 2\nc 3\n")
    assert ([sample.name for sample in scrape.samples], scrape.truncated) == (["a", "b"], True)


@pytest.mark.unit
def test_only_wanted_names_are_returned() -> None:
    assert [sample.name for sample in parse("a 1\nb 2\na 3\n", {"b"}).samples] == ["b"]


@pytest.mark.unit
def test_hostile_lines_cost_no_more_than_long_ones() -> None:
    lines = [
        'a{b="' + "\\" * 16_000,
        "a{" + '"' * 16_000,
        "a{" + 'x="\\",' * 2_500,
        "a" * 16_000,
        "a " + "1" * 16_000 + "x",
    ]
    began = time.process_time()
    assert parse("\n".join(lines)).malformed == len(lines)
    assert time.process_time() - began < 0.5


@pytest.mark.real
def test_every_recorded_exporter_is_read_to_its_last_line(shared: Path) -> None:
    files = sorted((shared / "data/fixtures/prometheus-text").iterdir())
    assert len(files) == 7
    for file in files:
        text = file.read_text()
        scrape = parse(text)
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert (len(scrape.samples), scrape.malformed, scrape.truncated) == (len(lines), 0, False), file.name


@pytest.mark.real
def test_values_of_a_recorded_exporter_are_those_in_its_lines(shared: Path) -> None:
    folder = shared / "data/fixtures/prometheus-text"
    (dcgm,) = [
        sample
        for sample in parse((folder / "dcgm_exporter_t4_idle.prom").read_text()).samples
        if sample.name == "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
    ]
    assert dcgm.integer() == 128_996_013
    assert dcgm.labels["modelName"] == "Tesla T4"
    assert dcgm.labels["Hostname"] == "424773df46e0"
    h100 = folder / "nvidia_gpu_exporter_linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01__load.metrics"
    (power,) = [s.value for s in parse(h100.read_text(), {"nvidia_smi_power_draw_watts"}).samples]
    assert power == 631.95  # expected_values.csv
