"""An hour of 200 devices, large enough that polars works in parallel; prints the hash of ten closes when run."""

from __future__ import annotations

import sys
from dataclasses import replace

import polars as pl

from analytics.frames import DeviceReadings
from analytics.inputs import HourInputs
from analytics.pipeline import close_hours, content_hash
from analytics.policy import Policy
from tests.fakes.site import HOUR, Site, binding, device, epoch, factor, holds, intensity, job, price, tariff

DEVICES, ROWS = 200, 400


def busy_hour() -> HourInputs:
    """Readings in no order; jobs of eight devices, every fifth of them on shares of a board."""
    number = pl.int_range(DEVICES * ROWS, dtype=pl.Int64, eager=True).shuffle(seed=3)
    steps, devices = number % ROWS, number // ROWS + 1
    power = (number * 7_919 % 600_000 + 60_000).cast(pl.Int32)
    readings = pl.DataFrame(
        {
            "device_id": devices.cast(pl.Int32),
            "at": (steps * 10_000_000 - 200_000_000).cast(pl.Duration("us")) + pl.Series([HOUR]),
            "epoch_id": ((devices - 1) // 8 + 1).cast(pl.Int32),
            "energy_mj": steps * 5_000_000 + number % 1_000,
            "power_mw": power,
            "power_max_mw": power,
            "gpu_util_percent": (number % 3 * 45).cast(pl.Int16),
            "temp_c": pl.repeat(60, number.len(), dtype=pl.Int16, eager=True),
            "clocks_event_reasons": number % 5 * 4,
            "throttled_ns": steps * 10**9,
        }
    )
    nodes = range(1, DEVICES // 8 + 1)
    allocations = [
        holds(node, board, 60 * (node % 20), None if node % 3 else 3000, 0.5 if node % 5 == 0 else None)
        for node in nodes
        for board in range(node * 8 - 7, node * 8 + 1)
    ]
    site = Site(
        devices=[device(number, node_id=(number - 1) // 8 + 1) for number in range(1, DEVICES + 1)],
        epochs=[epoch(node, node_id=node) for node in nodes],
        allocations=allocations,
        jobs=[job(node, account=f"a{node % 4}") for node in nodes],
        bindings=[binding(number, 10 + number, account=f"a{number}") for number in range(3)],
        prices=[price(1, "2.123456789012345678")],
        tariffs=[tariff(1, "0.1134567", metering_point="facility")],
        intensity=[intensity(1, "381.7")],
        factors=[factor(1, "1.37")],
    )
    inputs = site.inputs()
    return replace(inputs, usage=replace(inputs.usage, readings=DeviceReadings.validate(readings)))


def main(times: int) -> None:
    inputs = busy_hour()
    for _ in range(times):
        result = close_hours(inputs, Policy())
        frames = (result.usage, result.lines, result.findings, result.quality)
        print(pl.thread_pool_size(), *(content_hash(frame).hex() for frame in frames))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
