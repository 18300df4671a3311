"""What the energy of a pulsating load is by the counter, and what it would be by the power gauge.

The load is that of a job whose kernels repeat every 100 ms (ten tokens or ten small training steps a second): 700 W while a
kernel runs, 140 W between. The gauge of an A100 or H100 sees 25 ms of each 100 ms (arXiv 2312.02741), in step with such a
load, so that it sees always the same part of it; which one is chance, and so all phases are tried. A load of another period
passes the window in turn and averages out; it is tried too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node, values_of

pytestmark = pytest.mark.contract
HIGH_MW, LOW_MW = 700_000, 140_000
PERIOD_MS = 100
KERNEL_MS = 40
DURATION_S = 30


def trace(path: Path, phase_ms: int, *, period_ms: int = PERIOD_MS, kernel_ms: int = KERNEL_MS) -> Path:
    """One period of the load, its kernel beginning at the phase; the fake repeats it."""
    edges = {0: LOW_MW, phase_ms: HIGH_MW, phase_ms + kernel_ms: LOW_MW}
    if phase_ms + kernel_ms > period_ms:  # the kernel runs on into the next period
        edges = {0: HIGH_MW, phase_ms + kernel_ms - period_ms: LOW_MW, phase_ms: HIGH_MW}
    edges[period_ms] = HIGH_MW
    path.write_text("".join(f"{at_ms / 1000},0,{mw},80,20000,60,1980,0,50\n" for at_ms, mw in sorted(edges.items())))
    return path


def measure(nvml: FakeNvml, path: Path) -> tuple[float, float]:
    """Return the energy of half a minute in millijoules: by the counter, and by the gauge as it is integrated without one."""
    nvml.configure(1, trace=path, faults="sensor:25:100,counter:100")
    node = Node(nvml)
    node.sweep(5.03)  # the agent's cadence is not in step with the counter's, which moves ten times a second
    before = values_of(node.sweep())
    first_mj, power_mw = before["energy_mj"], before["power_instant_mw"]
    gauge_mj = 0.0
    for _ in range(DURATION_S):
        values = values_of(node.sweep())
        gauge_mj += ((power_mw or 0) + (values["power_instant_mw"] or 0)) / 2
        power_mw = values["power_instant_mw"]
    return (values["energy_mj"] or 0) - (first_mj or 0), gauge_mj


def test_the_counter_is_right_where_the_gauge_is_not(nvml: FakeNvml, tmp_path: Path) -> None:
    # 40 ms of 700 W and 60 ms of 140 W are 364 W: 10,920 J in half a minute, whatever the phase.
    true_mj = (HIGH_MW * 40 + LOW_MW * 60) // 100 * DURATION_S
    assert true_mj == 10_920_000
    counter_errors, gauge_errors = [], []
    for phase_ms in range(0, PERIOD_MS, 5):
        counter_mj, gauge_mj = measure(nvml, trace(tmp_path / f"{phase_ms}.csv", phase_ms))
        counter_errors.append(abs(counter_mj / true_mj - 1))
        gauge_errors.append(abs(gauge_mj / true_mj - 1))
    assert max(counter_errors) <= 0.01
    # Seeing a kernel only, or the pause only: 700 / 364 and 140 / 364 of the truth.
    assert max(gauge_errors) == pytest.approx(700 / 364 - 1, abs=0.01)
    assert sum(error >= 0.20 for error in gauge_errors) >= 16, "of twenty phases"
    assert sum(gauge_errors) / len(gauge_errors) >= 0.20


def test_a_load_out_of_step_is_right_by_both(nvml: FakeNvml, tmp_path: Path) -> None:
    # 37 ms, of which 14.8 with a kernel: 364 W again, but each window sees another part of it.
    path = tmp_path / "out-of-step.csv"
    path.write_text(
        f"0,0,{HIGH_MW},80,20000,60,1980,0,50\n0.0148,0,{LOW_MW},80,20000,60,1980,0,50\n0.037,0,{LOW_MW},80,20000,60,1980,0,50\n"
    )
    counter_mj, gauge_mj = measure(nvml, path)
    assert counter_mj == pytest.approx(10_920_000, rel=0.01)
    assert gauge_mj == pytest.approx(10_920_000, rel=0.10)
