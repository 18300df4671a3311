"""The batch metadata: what a receiver believes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from collector.wire import BatchMeta, DeviceRef, Feed, Origin, UnknownWireVersionError, WireError, cleaned

pytestmark = pytest.mark.unit

META = BatchMeta(
    spool="2b1f8c2e-1111-4222-8333-444455556666",
    sequence=7,
    node="gpu-01",
    boot_id="b",
    driver_epoch=2,
    feed=Feed.DCGM,
    origin=Origin.REPLAYED,
    cadence_us=10_000_000,
    agent_version="0.1.0",
    created_at_us=1,
    monotonic_us=2,
    clock_offset_us=-5,
    devices=(DeviceRef("GPU-1", "H100"), DeviceRef("MIG-1", "H100", kind="mig", parent_uuid="GPU-1", slice_ratio=0.5)),
    durable=False,
    labels={"rack": "r12"},
)


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(META.to_json()) | changes)


def device(**changes: Any) -> str:
    return changed(devices=[{"uuid": "GPU-1", "model": "H100"} | changes])


def test_metadata_comes_back_as_it_was() -> None:
    assert BatchMeta.from_json(META.to_json()) == META


def test_a_key_of_a_later_minor_version_is_ignored() -> None:
    assert BatchMeta.from_json(changed(moon_phase="full")) == META
    assert BatchMeta.from_json(device(colour="green")).devices == (DeviceRef("GPU-1", "H100"),)


@pytest.mark.parametrize("version", [0, 2, "1", None, True + 1])
def test_another_wire_version_is_told_apart_from_garbage(version: object) -> None:
    with pytest.raises(UnknownWireVersionError):
        BatchMeta.from_json(changed(wire_version=version))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spool", ""),
        ("spool", "6b1f"),
        ("spool", "2B1F8C2E-1111-4222-8333-444455556666"),  # the store answers in lower case
        ("node", "n\0"),
        ("boot_id", "\ud800"),
        ("agent_version", "\x1b[2J"),
        ("labels", {"rack": "r\x0012"}),
        ("labels", {"ra\nck": "r12"}),
        ("labels", {"rack": "\udfff"}),
        ("labels", {"rack": "r" * 256}),
        ("sequence", 2**63 - 1),
        ("node", "a\nb"),
        ("node", "x" * 256),
        ("boot_id", None),
        ("agent_version", 3),
        ("sequence", -1),
        ("sequence", 1.5),
        ("sequence", True),
        ("driver_epoch", 2**63),
        ("cadence_us", "10"),
        ("cadence_us", 3_600_000_001),
        ("cadence_us", 36_000_000_000),
        ("clock_offset_us", "later"),
        ("feed", 9),
        ("feed", None),
        ("origin", 0),
        ("labels", ["rack"]),
        ("labels", {"rack": 12}),
        ("labels", {str(number): "" for number in range(65)}),
        ("devices", {"uuid": "GPU-1"}),
        ("devices", ["GPU-1"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(WireError, match=f"(?i){key.rstrip('s')}"):
        BatchMeta.from_json(changed(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uuid", ""),
        ("model", None),
        ("vendor", 1),
        ("kind", "tpu"),
        ("uuid", "GPU-\x001"),
        ("model", "H\t100"),
        ("parent_uuid", 5),
        ("parent_uuid", "GPU-\0"),
        ("parent_uuid", "GPU-\ud8001"),
        ("mig_profile", "1g\n.10gb"),
        ("pci_bus_id", "\x7f"),
        ("mig_profile", "x" * 256),
        ("slice_ratio", 0),
        ("slice_ratio", 1.5),
        ("slice_ratio", "half"),
        ("accelerators", 0),
        ("accelerators", 2_000),
        ("memory_bytes", -1),
    ],
)
def test_a_wrong_device_is_refused(key: str, value: object) -> None:
    with pytest.raises(WireError, match="device 0"):
        BatchMeta.from_json(device(**{key: value}))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "\x00", "[" * 100_000, b"\xff\xfe"])
def test_garbage_is_refused(text: str | bytes) -> None:
    with pytest.raises(WireError):
        BatchMeta.from_json(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train-7b", "train-7b"),
        ("Zähler €𝄞", "Zähler €𝄞"),
        ("a\0b\nc\x7f", "a\ufffdb\ufffdc\ufffd"),
        ("half \ud83d", "half \ufffd"),
        ("x" * 1_025, "x" * 1_024),
        ("€" * 342, "€" * 341),  # three bytes each: 341 of them are 1,023, and a third of one is none
    ],
)
def test_whatever_somebody_named_his_job_becomes_a_text_that_travels(text: str, expected: str) -> None:
    assert cleaned(text) == expected
