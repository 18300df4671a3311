"""How far an estimate may be off, by the instrument it came from: 90 % bounds, in integers.

What a counter says is what is billed: its own error (NVML states 5 %) is everybody's alike and stands in docs/methodology.md. An
estimate adds to that: a gauge that does not look all the time, a silence of which the energy is known and the hour is not. Bounds
of parts are summed as they are, as if all were off in the same direction.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.policy import Policy
from analytics.units import MW_PER_W

PPM: Final = 1_000_000
_MW_US_PER_MJ: Final = 1_000_000
AVERAGED_PPM: Final = 50_000
"""A gauge that averages over all of its period: NVML field 185, Ampere but GA100 and later; node meters (arXiv 2312.02741)."""
PARTIAL_PPM: Final = 70_000
"""A gauge that looks at 25 ms of each 100 ms: 5 % of the board and what varies between its looks, over minutes (same source, and
the A100 log beside an external meter in tests/real)."""
PARTIAL_MODELS: Final = r"(?i)\b(A100|A800|A30|V100|P100)\b|^unknown$"
"""Boards with such a gauge only: GA100, and Volta and Pascal before it. A device that nobody described may be one."""
MOST_W: Final = (
    (r"(?i)B300", 1_400),
    (r"(?i)\bGB200|\bB200", 1_200),
    (r"(?i)\bB100", 1_000),
    (r"(?i)MI35\dX", 1_400),
    (r"(?i)MI325X", 1_000),
    (r"(?i)MI300[AX]", 760),
    (r"(?i)\bGH200", 1_000),
    (r"(?i)\bH[128]00\b|\bH20\b", 700),
    (r"(?i)\b(A100|A800)\b", 500),
    (r"(?i)\bL40S?\b", 350),
    (r"(?i)\bV100\b", 350),
    (r"(?i)\bL4\b|\bT4\b", 75),
)
"""Largest board power that the makers' data sheets allow, by model: over a gap of minutes no board draws more. A model that is not
here may draw what no interval may pass (``policy.gaps.max_power_mw``)."""


def instruments(devices: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """Return device_id, most_mw, gauge_error_ppm (Int64) of each device (device_id, model, kind, accelerators)."""
    most: pl.Expr = pl.lit(policy.gaps.max_power_mw, dtype=pl.Int64)
    board = pl.col("kind").is_in(["gpu", "mig"])
    for pattern, watts in reversed(MOST_W):
        most = (
            pl.when(board & pl.col("model").str.contains(pattern))
            .then(pl.lit(watts * MW_PER_W, dtype=pl.Int64))
            .otherwise(most)
        )
    partial = board & pl.col("model").str.contains(PARTIAL_MODELS)
    return devices.select(
        "device_id",
        (most * pl.col("accelerators")).alias("most_mw"),
        pl.when(partial).then(PARTIAL_PPM).otherwise(AVERAGED_PPM).cast(pl.Int64).alias("gauge_error_ppm"),
    )


def gauge_error_mj(energy_mj: pl.Expr, error_ppm: pl.Expr) -> pl.Expr:
    """Return by how much a gauge's energy may be off either way, rounded up."""
    return ((energy_mj.cast(pl.Int128) * error_ppm + (PPM - 1)) // PPM).cast(pl.Int64)


def gap_bounds_mj(delta_mj: pl.Expr, own_us: pl.Expr, width_us: pl.Expr, most_mw: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Return the least and the most of a gap's energy that can belong to ``own_us`` of its ``width_us``.

    No part of the gap draws more than ``most_mw``: [max(0, D - most x rest), min(D, most x own)].
    """
    most_own = (most_mw.cast(pl.Int128) * own_us // _MW_US_PER_MJ).cast(pl.Int64)
    most_rest = (most_mw.cast(pl.Int128) * (width_us - own_us) // _MW_US_PER_MJ).cast(pl.Int64)
    return (delta_mj - most_rest).clip(0, None), pl.min_horizontal(delta_mj, most_own)
