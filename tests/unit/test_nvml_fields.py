"""How an answer of the driver becomes a number."""

from __future__ import annotations

import struct

import pytest

from collector.probe.nvml_fields import Field, FieldBatch

pytestmark = pytest.mark.unit
DOUBLE, UINT, ULONG, ULONGLONG, LONGLONG, INT, USHORT, TOO_NEW = range(8)


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        (UINT, struct.pack("<Q", 0xFFFFFFFF_00000007), 7),  # what lies beyond the type's width is rubbish
        (ULONG, struct.pack("<Q", 2**40), 2**40),
        (ULONGLONG, struct.pack("<Q", 2**64 - 1), 2**64 - 1),
        (LONGLONG, struct.pack("<q", -5), -5),
        (INT, struct.pack("<iI", -7, 99), -7),
        (INT, struct.pack("<iI", 7, 99), 7),
        (USHORT, struct.pack("<HHI", 3, 9, 9), 3),
        (DOUBLE, struct.pack("<d", 41.6), 42),
        (DOUBLE, struct.pack("<d", float("nan")), None),
        (DOUBLE, struct.pack("<d", float("inf")), None),
        (TOO_NEW, struct.pack("<Q", 1), None),
    ],
)
def test_a_value_is_decoded_by_the_type_the_driver_says(kind: int, raw: bytes, expected: int | None) -> None:
    field = Field(83, 0, "energy_mj")
    batch = FieldBatch((field,))
    batch._memory[:] = struct.pack("=IIqqIi8s", 83, 0, 0, 5, kind, 0, raw)
    assert list(batch.answers()) == [(field, 0, expected)]
    assert batch.is_narrow("energy_mj") == (kind == UINT)


def test_a_failed_field_has_its_code_and_no_value() -> None:
    field = Field(83, 0, "energy_mj")
    batch = FieldBatch((field,))
    batch._memory[:] = struct.pack("=IIqqIiQ", 83, 0, 0, 5, ULONGLONG, 3, 77)
    assert list(batch.answers()) == [(field, 3, None)]
