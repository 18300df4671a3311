"""AMD devices through amdsmi and through rocm-smi's JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from collector.probe import Sweep
from collector.probe.amd import AmdProbe
from collector.probe.amd_library import LibraryUnavailableError, load_library
from collector.probe.amd_readings import device_uuid, number, step_mj
from collector.probe.rocm_smi import RocmSmiError, parse
from collector.source.command import CommandError
from collector.wire import Stream
from tests.fakes.amdsmi import Card, FakeAmdSmi
from tests.fakes.clock import FixedClock

WATT_COUNTS = 65_536
"""Counts of the accumulator in a second at 1 W: it counts in 2**-16 J."""


class Stand:
    """A probe with amdsmi, or without it and with a command, read each second."""

    def __init__(self, root: Path, library: FakeAmdSmi | None, *texts: str | CommandError) -> None:
        (root / "module/amdgpu").mkdir(parents=True, exist_ok=True)
        self.library = library
        self.texts = list(texts)
        self.commands: list[Sequence[str]] = []
        self.clock = FixedClock()
        self.probe = AmdProbe(
            self.clock,
            boot_id="b1",
            sys_root=root,
            load=self.load,
            run=self.run,
            background=False,
            rocm_smi_period_s=30.0,
        )

    def load(self) -> Any:
        if self.library is None:
            raise LibraryUnavailableError("amdsmi is not installed")
        return self.library

    def run(self, command: Sequence[str], _limit_s: float) -> str:
        self.commands.append(command)
        text = self.texts.pop(0)
        if isinstance(text, CommandError):
            raise text
        return text

    def read(self, after_s: float = 1.0) -> Sweep:
        self.clock.advance(after_s)
        for card in self.library.cards if self.library is not None else ():
            if isinstance(card.power_w, int):
                card.accumulator += round(card.power_w * WATT_COUNTS * after_s)
        return self.probe.read()


@pytest.mark.unit
def test_what_amdsmi_tells_becomes_the_same_columns(tmp_path: Path) -> None:
    stand = Stand(tmp_path, FakeAmdSmi(Card(accumulator=0)))
    first = stand.read()
    assert first.readings[0].values["energy_mj"] is None  # not yet seen to move
    sweep = stand.read()
    assert sweep.devices[0].uuid == "GPU-79ccd55167a2124a"
    assert (sweep.devices[0].model, sweep.devices[0].vendor) == ("AMD Instinct MI300X", "amd")
    assert sweep.readings[0].values == {
        "energy_mj": 600_000,  # 300 W for two seconds, to the millijoule
        "power_instant_mw": 300_000,
        "power_average_mw": None,
        "gpu_util_percent": 93,
        "memory_util_percent": 40,
        "memory_used_bytes": 296_747_008,
        "temp_c": 60,  # no edge sensor: the hotspot
        "memory_temp_c": 53,
        "sm_clock_mhz": 2_100,
    }
    slowly = ("memory_clock_mhz", "power_limit_mw", "pcie_replays", "ecc_corrected", "ecc_uncorrected")
    assert [first.readings[0].values[name] for name in slowly] == [None, 750_000, 7, 3, 0]  # 0xFFFFFFFF MHz are none
    (health,) = first.rows[Stream.DEVICE_HEALTH]
    assert (health["memory_total_bytes"], health["power_limit_max_mw"], health["power_limit_min_mw"]) == (
        206_141_652_992,
        750_000,
        None,
    )
    assert sweep.rows == {}


@pytest.mark.unit
def test_what_a_device_refuses_is_told_once_and_not_asked_for_an_hour(tmp_path: Path) -> None:
    library = FakeAmdSmi(Card(refuses={"ecc": 2, "pcie": 15}))
    stand = Stand(tmp_path, library)
    first = stand.read()
    assert [(event.kind, event.detail) for event in first.events] == [
        ("not_supported", "temperature edge"),
        ("not_supported", "ecc"),
    ]
    assert first.errors == {"amd:pcie_replays:15": 1}  # 15 is no refusal: it is asked again
    calls = library.calls
    assert stand.read().events == ()
    assert library.calls - calls == 7  # of eight that are asked each second all but the refused edge sensor
    assert "ecc_corrected" not in stand.read().readings[0].values
    stand.read(3_600)
    assert library.calls - calls == 7 + 7 + 12


@pytest.mark.unit
def test_what_changes_slowly_is_asked_each_five_seconds(tmp_path: Path) -> None:
    stand = Stand(tmp_path, FakeAmdSmi(Card()))
    told = ["ecc_corrected" in stand.read().readings[0].values for _ in range(11)]
    assert told == [True, *[False] * 4, True, *[False] * 4, True]


@pytest.mark.unit
def test_a_reading_is_dated_when_its_counter_was_read(tmp_path: Path) -> None:
    library = FakeAmdSmi(Card(), Card(serial="0x2", bus="0000:84:00.0"))
    stand = Stand(tmp_path, library)
    library.on_call = lambda _what: stand.clock.advance(0.01)  # each call of the driver takes 10 ms
    began_us = stand.clock.wall_us + 1_000_000
    first, second = stand.read().readings
    assert first.at_us == began_us + 10_000
    assert second.at_us == began_us + 10_000 + 12 * 10_000  # eleven more calls on the first, and its own


@pytest.mark.unit
def test_a_counter_that_stands_still_under_power_is_null_and_told_once(tmp_path: Path) -> None:
    card = Card(accumulator=0)
    stand = Stand(tmp_path, FakeAmdSmi(card))
    assert [stand.read().readings[0].values["energy_mj"] for _ in range(3)] == [None, 600_000, 900_000]
    frozen_at, card.power_w = card.accumulator, 0
    energies, events = [], []
    for _ in range(7):
        card.accumulator = frozen_at
        card.power_w = 300
        stand.clock.advance(1.0)
        sweep = stand.probe.read()
        energies.append(sweep.readings[0].values["energy_mj"])
        events += [event.detail for event in sweep.events]
    assert energies == [900_000] * 4 + [None] * 3
    assert events == [f"energy_mj: the accumulator stands at {frozen_at} while the device draws power"]
    assert any("stands still" in sight.detail for sight in stand.probe.sights())
    assert stand.read().readings[0].values["energy_mj"] == 1_200_000  # it moves again


@pytest.mark.unit
def test_a_counter_that_never_moved_is_never_taken_for_energy(tmp_path: Path) -> None:
    card = Card(accumulator=2_424_868)
    stand = Stand(tmp_path, FakeAmdSmi(card))
    for _ in range(10):
        stand.clock.advance(1.0)
        assert stand.probe.read().readings[0].values["energy_mj"] is None


@pytest.mark.unit
def test_a_counter_that_went_back_is_an_event(tmp_path: Path) -> None:
    card = Card(accumulator=10**9)
    stand = Stand(tmp_path, FakeAmdSmi(card))
    stand.read()
    stand.read()
    card.accumulator = 0
    assert [event.kind for event in stand.read().events] == ["counter_reset"]


@pytest.mark.unit
def test_partitions_of_a_board_have_its_energy_and_power_once(tmp_path: Path) -> None:
    cards = [Card(serial=f"0x{number}", bus=f"0000:0c:00.{number}") for number in (1, 2)]
    elsewhere = Card(serial="0x9", bus="0000:22:00.0", accumulator=7)
    dies = Card(serial="0x8", bus="0000:23:00.0", accumulator=7)  # its own address, but the counter of the one before
    stand = Stand(tmp_path, FakeAmdSmi(*cards, elsewhere, dies))
    stand.read()
    sweep = stand.read()
    powers = [reading.values.get("power_instant_mw") for reading in sweep.readings]
    energies = [reading.values["energy_mj"] for reading in sweep.readings]
    assert powers == [300_000, None, 300_000, None]
    assert [energy is not None for energy in energies] == [True, False, True, False]
    assert sweep.errors == {"amd:shared_board": 2}


@pytest.mark.unit
def test_a_driver_that_answers_nothing_is_let_go_and_found_again_in_a_new_epoch(tmp_path: Path) -> None:
    card = Card(accumulator=0)
    library = FakeAmdSmi(card)
    stand = Stand(tmp_path, library)
    stand.read()
    card.refuses = {"*": 34}
    sweep = stand.read()
    assert (sweep.readings, sweep.errors["amd:no_answer"], library.open) == ((), 1, 0)
    assert sweep.devices[0].uuid == "GPU-79ccd55167a2124a"  # the table only grows
    card.refuses = {}
    assert stand.read().readings == ()
    sweep = stand.read(60.0)
    assert (len(sweep.readings), sweep.epoch.driver_epoch, library.open) == (1, 1, 1)
    stand.probe.close()
    assert library.open == 0


@pytest.mark.unit
def test_a_node_without_the_driver_imports_and_runs_nothing(tmp_path: Path) -> None:
    stand = Stand(tmp_path, FakeAmdSmi(Card()))
    (tmp_path / "module/amdgpu").rmdir()
    sweep = stand.read()
    assert (sweep.devices, sweep.readings, sweep.errors) == ((), (), {})
    assert stand.probe.sights()[0].detail == "the kernel has no amdgpu driver loaded"
    assert stand.library is not None
    assert stand.library.calls == 0


@pytest.mark.unit
def test_a_binding_without_its_library_is_a_reason_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "amdsmi.py").write_text("print('Unable to find libamd_smi.so')\n{}['libamd_smi.so']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LibraryUnavailableError, match=r"no fitting libamd_smi\.so"):
        load_library()
    assert capfd.readouterr().out == ""


@pytest.mark.real
def test_recorded_mi100s_are_read_from_rocm_smi(tmp_path: Path, shared: Path) -> None:
    text = (shared / "data/fixtures/rocm-smi-json/mi100_rocm602.json").read_text()
    stand = Stand(tmp_path, None, "WARNING: AMD GPU device(s) is/are in a low-power state.\n\n" + text)
    sweep = stand.read()
    assert [device.uuid for device in sweep.devices] == [
        "GPU-79ccd55167a2124a",
        "GPU-04edfb117a17a07d",  # written without its leading zero
        "GPU-d4a9ec48d03d261d",
        "GPU-1b9dd972253c3736",
    ]
    assert [device.pci_bus_id for device in sweep.devices] == [f"0000:{bus}:00.0" for bus in ("83", "A3", "C3", "E3")]
    assert [reading.values["power_average_mw"] for reading in sweep.readings] == [36_000, 44_000, 43_000, 39_000]
    assert sweep.readings[0].values == {
        "energy_mj": None,  # this recording has no counter
        "power_average_mw": 36_000,
        "power_instant_mw": None,
        "power_limit_mw": 290_000,
        "gpu_util_percent": 0,
        "memory_util_percent": 0,
        "memory_used_bytes": 6_750_208,
        "temp_c": 53,
        "memory_temp_c": 53,
        "sm_clock_mhz": 300,
        "memory_clock_mhz": 1_200,
        "pcie_replays": 0,
    }
    assert sweep.rows[Stream.DEVICE_HEALTH][0]["memory_total_bytes"] == 34_342_961_152
    assert sweep.devices[0].model == "Arcturus GL-XL [Instinct MI100]"


@pytest.mark.real
def test_a_recorded_vega_20_is_read_from_rocm_smi(shared: Path) -> None:
    (card,) = parse((shared / "data/fixtures/rocm-smi-json/vega-20-WKS-GL-XE.json").read_text())
    assert (card.ref.uuid, card.ref.model) == ("GPU-02f048617326b1ea", "Radeon Instinct MI50 32GB")
    values = card.values
    assert (values["power_average_mw"], values["power_limit_mw"], values["sm_clock_mhz"]) == (26_000, 225_000, 1_725)
    assert (values["memory_clock_mhz"], values["temp_c"], values["memory_used_bytes"]) == (1_000, 36, 10_850_304)


def newer(counter: int) -> str:
    card = {
        "Unique ID": "0x719d230578348e8c",
        "Card Series": "AMD Instinct MI300X",
        "PCI Bus": "0000:0C:00.0",
        "Current Socket Graphics Package Power (W)": "139.0",
        "Temperature (Sensor edge) (C)": "N/A",
        "Temperature (Sensor junction) (C)": "41.0",
        "GPU use (%)": "65535",
        "GPU Memory Read/Write Activity (%)": "12",
        "Energy counter": str(counter),
        "Accumulated Energy (uJ)": str(counter * 15.3),
    }
    return json.dumps({"card0": card, "system": {"Driver version": "6.8.5"}})


@pytest.mark.unit
def test_newer_rocm_smi_has_other_words_and_a_counter(tmp_path: Path) -> None:
    # 139 W for 30 s are 4170 J: 4170 x 65536 counts.
    stand = Stand(tmp_path, None, newer(65_536), newer(65_536 + 4_170 * 65_536))
    assert stand.read(30.0).readings[0].values["energy_mj"] is None
    values = stand.read(30.0).readings[0].values
    assert values["energy_mj"] == 4_171_000
    assert (values["power_instant_mw"], values["temp_c"], values["gpu_util_percent"]) == (139_000, 41, None)
    assert values["memory_util_percent"] == 12
    assert stand.read(1.0).readings == ()  # not asked again before its time
    assert len(stand.commands) == 2
    assert "--json" in stand.commands[0]


@pytest.mark.unit
def test_a_command_that_fails_is_counted_and_the_probe_goes_on(tmp_path: Path) -> None:
    stand = Stand(tmp_path, None, CommandError("timeout", "it hung"), "no json", newer(5))
    assert stand.read(30.0).errors == {"amd:rocm_smi:timeout": 1}
    assert stand.read(30.0).errors == {"amd:rocm_smi:parse": 1}
    assert len(stand.read(30.0).readings) == 1
    assert {sight.subject for sight in stand.probe.sights()} == {"AMD devices", "amdsmi"}


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "[]", "{", '{"card0": ' * 100_000])
def test_what_is_no_rocm_smi_output_is_refused(text: str) -> None:
    with pytest.raises(RocmSmiError):
        parse(text)


@pytest.mark.unit
def test_not_available_has_many_forms() -> None:
    unavailable: list[object] = ["N/A", 0xFFFF, "65535", 0xFFFFFFFFFFFFFFFF, None, True, "nan", []]
    assert all(number(value) is None for value in unavailable)
    assert [number(value) for value in (0, "36.0", "7", -3)] == [0, 36.0, 7, -3]


@pytest.mark.unit
def test_one_count_is_exact_and_15_3_is_what_it_rounds_to() -> None:
    assert step_mj(15.300000190734863) == step_mj(None) == Fraction(1000, 65536)
    assert step_mj(1.0) == Fraction(1, 1000)
    # 2**50 counts at 2**-16 J are 2**34 J: no float is in between.
    assert 2**50 * step_mj(15.3) == 2**34 * 1000


@pytest.mark.unit
def test_a_card_without_a_number_is_known_by_its_bus() -> None:
    assert device_uuid("N/A", "0000:0C:00.0") == "GPU-pci-0000:0c:00.0"
    assert device_uuid("0x0", None) is None
