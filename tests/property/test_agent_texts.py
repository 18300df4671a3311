"""Whatever an exporter, tool, controller or kernel writes: the agent reads it, counts it, and goes on."""

from __future__ import annotations

import math
import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.probe.amd_readings import Accumulator, device_uuid, number, step_mj, without_repeats
from collector.probe.dcgm_devices import devices_of
from collector.probe.dcgm_fields import MEANINGS, is_blank, scaled
from collector.probe.nvidia_smi_text import SmiTextError, parse_csv, parse_xml
from collector.probe.prometheus_text import Sample, parse
from collector.probe.rocm_smi import RocmSmiError
from collector.probe.rocm_smi import parse as parse_rocm
from collector.source.engine_metrics import WANTED, rows_of
from collector.source.ipmi import parse_power_mw
from collector.source.kernel_log import _parsed, find_xid
from collector.source.redfish import parse_power
from collector.source.rows import fitted
from collector.wire import COLUMNS, MAX_STRING_BYTES, Stream

pytestmark = pytest.mark.property

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
VALUES = st.floats(allow_nan=False) | st.integers(-(2**70), 2**70)


@given(st.text())
def test_any_text_is_read_as_metrics_or_counted(text: str) -> None:
    scrape = parse(text)
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    assert len(scrape.samples) + scrape.malformed <= len(lines)


@given(
    NAMES, st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4), VALUES
)
def test_what_is_written_as_the_format_says_is_read_back(name: str, labels: dict[str, str], value: float) -> None:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    written = ",".join(f'{label}="{escaped(text)}"' for label, text in labels.items())
    wrote = {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, str(value))
    (sample,) = parse(f"{name}{{{written}}} {wrote}\n").samples
    assert (sample.name, sample.labels, sample.value) == (name, labels, float(value))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(MEANINGS)),
            st.dictionaries(
                st.sampled_from(["UUID", "GPU_I_ID", "GPU_I_PROFILE", "pod", "hpc_job"]), st.text(max_size=6)
            ),
            VALUES,
        ),
        max_size=8,
    )
)
def test_any_metrics_of_dcgm_give_devices_or_counts(told: list[tuple[str, dict[str, str], float]]) -> None:
    errors: Counter[str] = Counter()
    samples = [Sample(name, labels, float(value), str(value), None) for name, labels, value in told]
    devices = devices_of(samples, errors)
    for device in devices.values():
        assert 0 < device.ref.slice_ratio <= 1
        for name, sample in device.samples.items():
            unit = MEANINGS[name].unit
            if not is_blank(sample, unit):
                scaled(sample, unit)


@given(st.lists(st.tuples(st.sampled_from(sorted(WANTED)), st.sampled_from(["0.1", "+Inf", "x"]), VALUES), max_size=12))
def test_any_metrics_of_an_engine_give_rows_that_fit(told: list[tuple[str, str, float]]) -> None:
    errors: Counter[str] = Counter()
    samples = [Sample(name, {"le": bound}, float(value), str(value), None) for name, bound, value in told]
    for row in rows_of(samples, errors):
        for name, value in fitted(Stream.ENGINE, row, errors, "engines").items():
            assert not isinstance(value, str) or len(value.encode()) <= MAX_STRING_BYTES, name


@given(st.text())
def test_no_line_of_a_log_and_no_output_of_a_tool_stops_the_agent(text: str) -> None:
    find_xid(text)
    _parsed(text)
    parse_power_mw(text)
    for read, refusal in ((parse_csv, SmiTextError), (parse_xml, SmiTextError), (parse_rocm, RocmSmiError)):
        try:
            read(text)
        except refusal:
            continue


@given(st.dictionaries(st.sampled_from(["PowerControl", "PowerWatts", "EnergykWh", "Reading", "ReadingType"]), JSON))
def test_any_resource_of_a_controller_is_a_power_or_none(resource: dict[str, object]) -> None:
    power = parse_power(resource)
    assert power is None or power.power_mw is None or power.power_mw >= 0


@given(
    st.dictionaries(
        st.sampled_from(["Unique ID", "PCI Bus", "Energy counter", "GPU use (%)", "sclk clock speed:"]), st.text()
    )
)
def test_any_card_of_rocm_smi_is_a_reading_or_left_out(card: dict[str, str]) -> None:
    import json  # noqa: PLC0415

    readings, _ = without_repeats(parse_rocm(json.dumps({"card0": card})))
    assert len(readings) <= 1


@given(st.lists(st.integers(0, 2**64), max_size=12), st.lists(st.integers(0, 10_000_000), max_size=12))
def test_a_counter_is_never_negative_and_within_its_own_range(raws: list[int], steps_us: list[int]) -> None:
    accumulator, now_us = Accumulator(), 0
    for raw, step_us in zip(raws, steps_us, strict=False):
        now_us += step_us
        energy_mj, _ = accumulator.take(raw, step_mj(15.3), 100_000, now_us)
        assert energy_mj is None or energy_mj == raw * 1_000 // 65_536


@given(st.none() | st.text() | st.integers() | st.floats())
def test_any_answer_of_a_library_is_a_number_or_none(value: object) -> None:
    told = number(value)
    assert told is None or math.isfinite(told)
    assert (device_uuid(value, "0000:01:00.0") or "").startswith("GPU-")
    assert step_mj(value) > 0


@given(st.sampled_from(list(Stream)), st.data())
def test_a_fitted_row_fits(stream: Stream, data: st.DataObject) -> None:
    names = [column.name for column in COLUMNS[stream]]
    row = data.draw(st.dictionaries(st.sampled_from(names), st.none() | st.text() | st.integers() | st.floats()))
    kinds = {column.name: column.type for column in COLUMNS[stream]}
    for name, value in fitted(stream, row, Counter(), "x").items():
        if isinstance(value, int) and kinds[name] in ("i16", "i32", "i64"):
            assert abs(value) < 2 ** (int(kinds[name][1:]) - 1)
        if isinstance(value, float):
            assert math.isfinite(struct.unpack("<f", struct.pack("<f", value))[0])
