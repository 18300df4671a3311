"""What nvidia-smi prints: recorded captures, recorded XML of five years of drivers, and the probe that runs it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from collector.check import Answer, _driver, _tool
from collector.config import Settings
from collector.probe import Sweep
from collector.probe.nvidia_smi import NvidiaSmiProbe
from collector.probe.nvidia_smi_text import QUERY, SmiDevice, SmiTextError, parse_csv, parse_xml
from collector.source.command import CommandError
from collector.wire import COLUMNS, Stream
from tests.fakes.clock import FixedClock

HEADER = "uuid, name, pci.bus_id, power.draw [W], power.draw.average [W], utilization.gpu [%], memory.total [MiB]\n"


def capture(text: str, phase: str) -> SmiDevice:
    """Return the device of the CSV section of one phase of a capture."""
    start = text.index(f"# {phase} :: query-gpu (csv")
    lines = text[start:].split("\n")
    (device,) = parse_csv("\n".join(lines[3:5]))  # title, command, rule, header, line
    return device


def amount(cell: str) -> Decimal | None:
    """Return the number of a cell of the expected values."""
    return None if cell in ("[N/A]", "N/A") else Decimal(cell.split(maxsplit=1)[0])


def times(cell: str, factor: int) -> int | None:
    number = amount(cell)
    return None if number is None else int(number * factor)


@pytest.mark.real
def test_captures_give_the_expected_values(shared: Path) -> None:
    folder = shared / "data/fixtures/nvidia-smi-capture"
    with (folder / "expected_values.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(expected) == 6
    for line in expected:
        device = capture((folder / f"{line['capture']}.txt").read_text(), line["phase"])
        values = device.values
        told = {
            "model": device.ref.model,
            "limit": values["power_limit_mw"],
            "temp": values["temp_c"],
            "util": values["gpu_util_percent"],
            "clock": values["sm_clock_mhz"],
            "clock_max": device.health["sm_clock_max_mhz"],
            "reasons": values["clocks_event_reasons"],
            "cap": values["throttle_power_cap_ns"],
            "thermal": values["throttle_sw_thermal_ns"],
            "pstate": values["pstate"],
            "mig": device.health["mig_enabled"],
        }
        assert told == {
            "model": line["name"],
            "limit": times(line["enforced.power.limit"], 1_000),
            "temp": int(line["temperature.gpu"]),
            "util": times(line["utilization.gpu"], 1),
            "clock": times(line["clocks.current.sm"], 1),
            "clock_max": times(line["clocks.max.sm"], 1),
            "reasons": int(line["clocks_event_reasons.active"], 16),
            "cap": times(line["clocks_event_reasons_counters.sw_power_cap"], 1_000),
            "thermal": times(line["clocks_event_reasons_counters.sw_thermal_slowdown"], 1_000),
            "pstate": int(line["pstate"][1:]),
            "mig": {"Enabled": 1, "Disabled": 0, "[N/A]": None}[line["mig.mode.current"]],
        }
        # The capture and the file beside it were read some ms apart: the column is the average where there is one.
        assert values["power_average_mw"] == times(line["power.draw [W]"], 1_000)


@pytest.mark.real
def test_the_traps_of_the_captures_are_null_or_kept_as_told(shared: Path) -> None:
    folder = shared / "data/fixtures/nvidia-smi-capture"
    mig = capture((folder / "linux-x86_64__nvidia-h200-mig__590.48.01.txt").read_text(), "load")
    utilizations = [mig.values[f"{part}_util_percent"] for part in ("gpu", "memory", "encoder", "decoder")]
    assert utilizations == [None] * 4  # a MIG board has none: not 0 %, at 295 W
    assert mig.values["power_average_mw"] == 295_010
    card = capture((folder / "linux-x86_64__nvidia-geforce-rtx-2080-super__595.71.05.txt").read_text(), "idle")
    # "Power cap" on an idle card at 39 of 250 W: kept as told, beside the figures that show it caps nothing.
    assert card.values["clocks_event_reasons"] == 0x4
    assert (card.values["power_average_mw"], card.values["power_limit_mw"]) == (39_320, 250_000)
    assert card.values["gpu_util_percent"] == 0
    assert (card.values["ecc_corrected"], card.values["memory_temp_c"]) == (None, None)
    assert card.values["power_instant_mw"] == 39_320  # Turing tells no average: the one figure stands in both


@pytest.mark.real
def test_columns_are_those_of_the_wire(shared: Path) -> None:
    folder = shared / "data/fixtures/nvidia-smi-capture"
    device = capture((folder / "linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01.txt").read_text(), "load")
    assert set(device.values) <= {column.name for column in COLUMNS[Stream.DEVICE]}
    assert set(device.health) <= {column.name for column in COLUMNS[Stream.DEVICE_HEALTH]}
    assert device.health == {
        "memory_total_bytes": 81_559 * 1_048_576,
        "memory_reserved_bytes": 479 * 1_048_576,
        "sm_clock_max_mhz": 1_980,
        "memory_clock_max_mhz": 2_619,
        "power_limit_min_mw": 200_000,
        "power_limit_max_mw": 700_000,
        "power_limit_default_mw": 700_000,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "ecc_corrected_aggregate": 0,
        "ecc_uncorrected_aggregate": 0,
        "remapped_rows_corrected": 0,
        "remapped_rows_uncorrected": 0,
        "remapping_pending": 0,
        "remapping_failed": 0,
        "retired_pages_corrected": None,
        "retired_pages_uncorrected": None,
        "recovery_action": 0,
        "mig_enabled": 0,
    }


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "values", "health"),
    [
        (
            "tesla-t4.xml",  # driver 470: throttle reasons, power_readings
            {
                "power_average_mw": 26_780,
                "power_limit_mw": 70_000,
                "gpu_util_percent": 0,
                "temp_c": 40,
                "memory_temp_c": None,
                "sm_clock_mhz": 585,
                "memory_clock_mhz": 5_000,
                "clocks_event_reasons": 0,
                "memory_used_bytes": 1_032 * 1_048_576,
                "ecc_corrected": 0,
                "ecc_uncorrected": 0,
                "pcie_replays": 0,
            },
            {
                "slowdown_temp_c": 93,
                "pcie_width": 8,
                "pcie_width_max": 16,
                "mig_enabled": None,
                "remapping_failed": None,
            },
        ),
        (
            "a10g.xml",
            {"power_average_mw": 25_580, "clocks_event_reasons": 0x1, "temp_c": 17, "pstate": 8},
            {"remapped_rows_corrected": 0, "remapping_failed": 0, "power_limit_default_mw": 300_000},
        ),
        (
            "a100-sxm4-v12.xml",  # cut in four: no utilization
            {"power_average_mw": 67_030, "power_limit_mw": 500_000, "gpu_util_percent": None, "memory_temp_c": 44},
            {"mig_enabled": 1, "memory_reserved_bytes": 869 * 1_048_576, "memory_max_temp_c": 95},
        ),
        (
            "rtx-3080-v13.xml",  # driver 595: average and instant apart, counters of reasons
            {
                "power_average_mw": 139_620,
                "power_instant_mw": 142_330,
                "power_limit_mw": 320_000,
                "gpu_util_percent": 65,
                "clocks_event_reasons": 0,
                "throttle_power_cap_ns": 0,
                "ecc_corrected": None,
            },
            {"recovery_action": 0, "slowdown_temp_c": 95, "shutdown_temp_c": 98},
        ),
    ],
)
def test_recorded_xml_is_read(
    shared: Path, file: str, values: dict[str, int | None], health: dict[str, int | None]
) -> None:
    (device,) = parse_xml((shared / "data/fixtures/nvidia-smi-xml" / file).read_text())
    assert {name: device.values[name] for name in values} == values
    assert {name: device.health[name] for name in health} == health
    assert device.ref.uuid.startswith("GPU-")


@pytest.mark.unit
@pytest.mark.parametrize(
    "cell",
    ["[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "[GPU requires reset]", "ERR!", "", "many W", "1e9 W"],
)
def test_what_is_no_number_is_null(cell: str) -> None:
    (device,) = parse_csv(HEADER + f"GPU-a, NVIDIA A100, 00000000:01:00.0, {cell}, {cell}, {cell}, 81920 MiB\n")
    assert (device.values["power_average_mw"], device.values["gpu_util_percent"]) == (None, None)
    assert device.ref.memory_bytes == 81_920 * 1_048_576


@pytest.mark.unit
@pytest.mark.parametrize(
    "text",
    ["", "No devices were found\n", HEADER + "GPU-a, too, few\n", HEADER + ", NVIDIA, 0, 1 W, 1 W, 0 %, 1 MiB\n"],
)
def test_a_text_that_is_no_such_csv_is_refused(text: str) -> None:
    with pytest.raises(SmiTextError):
        parse_csv(text)


@pytest.mark.unit
def test_xml_that_multiplies_is_refused() -> None:
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 20}">' for n in range(12))
    with pytest.raises(SmiTextError, match="cannot be read"):
        parse_xml(f'<!DOCTYPE x [<!ENTITY e0 "aaaaaaaaaaaaaaaaaaaa">{entities}]><x>&e12;</x>')
    with pytest.raises(SmiTextError):
        parse_xml("<gpu")


class Tool:
    """Plays nvidia-smi; a text or a failure a run, the last one for ever."""

    def __init__(self, *answers: str | CommandError) -> None:
        self.answers = list(answers)
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str], _limit_s: float) -> str:
        self.commands.append(command)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, CommandError):
            raise answer
        return answer


def table(power_w: str = "100.00", util: str = "50") -> str:
    return HEADER + f"GPU-a, NVIDIA A100, 00000000:01:00.0, {power_w} W, {power_w} W, {util} %, 81920 MiB\n"


class Stand:
    def __init__(self, *answers: str | CommandError) -> None:
        self.clock = FixedClock()
        self.tool = Tool(*answers)
        self.probe = NvidiaSmiProbe(self.clock, boot_id="b1", run=self.tool, background=False)

    def read(self, after_s: float = 15.0) -> Sweep:
        self.clock.advance(after_s)
        return self.probe.read()


@pytest.mark.unit
def test_each_run_is_one_reading_and_nothing_is_made_up_in_between() -> None:
    stand = Stand(table())
    counts = [len(stand.read(5.0).readings) for _ in range(7)]
    assert counts == [1, 0, 0, 1, 0, 0, 1]  # at 15 s
    assert stand.tool.commands[0] == ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv")


@pytest.mark.unit
def test_check_asks_the_tool_where_the_agent_would() -> None:
    assert _tool(Stand(table()).probe) == Answer(True, "driver", "NVIDIA devices through nvidia-smi: 1 boards")
    failed = _tool(Stand(CommandError("timeout", "nvidia-smi had not ended")).probe)
    assert (failed.fine, failed.found) == (
        False,
        "NVIDIA devices through nvidia-smi: timeout: nvidia-smi had not ended",
    )
    chosen = _driver(Settings(nvml=False, nvidia_smi=True), FixedClock())
    assert chosen.found.startswith("NVIDIA devices through nvidia-smi")


@pytest.mark.real
def test_a_driver_that_refuses_the_question_is_asked_for_xml_from_then_on(shared: Path) -> None:
    xml = (shared / "data/fixtures/nvidia-smi-xml/tesla-t4.xml").read_text()
    stand = Stand(CommandError("exit_2", 'Field "power.draw.average" is not a valid field to query.'), xml, xml)
    assert stand.read().readings[0].values["power_average_mw"] == 26_780
    assert stand.read().readings[0].values["power_average_mw"] == 26_780
    assert [command[1] for command in stand.tool.commands] == [stand.tool.commands[0][1], "-q", "-q"]


@pytest.mark.unit
def test_a_tool_that_hangs_or_prints_nonsense_is_counted() -> None:
    stand = Stand(CommandError("timeout", "nvidia-smi had not ended"), "NVIDIA-SMI has failed\n", table())
    assert stand.read().errors == {"nvidia_smi:timeout": 1}
    assert stand.read().errors == {"nvidia_smi:unreadable": 1}
    assert stand.probe.sights()[0].seen is False
    assert len(stand.read().readings) == 1
    assert stand.probe.sights()[0].seen is True


@pytest.mark.unit
def test_a_gauge_that_stands_still_while_the_load_moves_is_stuck() -> None:
    busy = [table("100.00", str(util)) for util in (0, 90) * 6]
    stand = Stand(*busy, table("101.00", "90"))
    powers, events = [], []
    for _ in range(13):
        sweep = stand.read()
        powers.append(sweep.readings[0].values["power_average_mw"])
        events += [event.detail for event in sweep.events]
    # From the first reading on 120 s are eight more of 15 s.
    assert powers == [100_000] * 8 + [None] * 4 + [101_000]
    assert events == ["power_average_mw: the sensor stands at 100000 mW whatever the load"]


@pytest.mark.unit
def test_an_idle_card_s_steady_gauge_is_no_stuck_sensor() -> None:
    stand = Stand(table("39.32", "0"))
    assert {stand.read().readings[0].values["power_average_mw"] for _ in range(40)} == {39_320}


@pytest.mark.unit
def test_a_board_that_is_no_longer_listed_is_lost_and_recovers() -> None:
    other = table() + "GPU-b, NVIDIA A100, 00000000:02:00.0, 1 W, 1 W, 0 %, 81920 MiB\n"
    stand = Stand(other, table(), table(), table(), other)
    events = [event.kind for _ in range(5) for event in stand.read().events]
    assert events == ["lost", "recovered"]


@pytest.mark.unit
def test_boards_that_claim_one_uuid_are_not_both_counted() -> None:
    line = table().splitlines()[1]
    stand = Stand(table() + line + "\n")
    sweep = stand.read()
    assert (len(sweep.readings), sweep.errors) == (1, {"nvidia_smi:repeated_uuid": 1})


@pytest.mark.unit
def test_health_is_a_row_a_minute() -> None:
    stand = Stand(table())
    assert [len(stand.read().rows) for _ in range(6)] == [1, 0, 0, 0, 1, 0]
