"""Writes what ``bench.scale`` measured: two figures, and the tables between the marks of docs/scaling.md. It measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.scale_plot import Panel, figure

if TYPE_CHECKING:
    from bench.scale import Point

COSTS: Final[Mapping[str, tuple[str, Callable[[Point], float]]]] = {
    "join": ("ms CPU/new node", lambda point: point.join_cpu_ms),
    "ingest": ("us CPU/row", lambda point: point.ingest_us),
    "postgres": ("us CPU/row", lambda point: point.postgres_us),
    "hot": ("B/row", lambda point: point.hot_bytes),
    "sealed": ("B/row", lambda point: point.sealed_bytes),
    "close": ("ms CPU/device-hour", lambda point: point.close_cpu_ms),
    "seal": ("us CPU/row", lambda point: point.seal_us),
    "rollup": ("us/device-hour", lambda point: point.rollup_ms * 1e3 / point.device_hours),
    "raw": ("us/device-hour", lambda point: point.raw_ms * 1e3 / point.device_hours),
}
"""Cost of one thing by name: unit, and how it is had from a point. Growing as the size does is staying as it is here."""
_BEGIN: Final = "<!-- measured: begin -->"
_END: Final = "<!-- measured: end -->"
_PAGE: Final = "scaling.md"


def write(folder: Path, axes: Mapping[str, Sequence[Point]], machine: Mapping[str, Any], at: datetime) -> None:
    """Write the figures into ``folder``/scaling and the tables into ``folder``/scaling.md, which is made where it is missing."""
    figures = folder / "scaling"
    figures.mkdir(parents=True, exist_ok=True)
    where = f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}"
    subtitle = f"simulated fleet; {where}; {at:%Y-%m-%d}; dashed: grows exactly as the size does"
    labels = {"devices": "devices, one hour each", "hours": f"hours of {axes['hours'][0].devices:,} devices"}
    for axis, points in axes.items():
        title = f"Cost against {axis}"
        (figures / f"{axis}.svg").write_text(figure(title, subtitle, _panels(axis, labels[axis], points)))
    told = (
        f"Measured {at:%Y-%m-%d} on {where}, load average {machine['load_average_1min']} at the end; simulated fleet."
    )
    tables = [
        f"### {labels[axis].capitalize()}\n\n![]({_figure(axis)})\n\n{_table(points)}" for axis, points in axes.items()
    ]
    trends = [_trend(point) for point in axes["hours"] if point.trend is not None]
    measured = "\n\n".join([told, *tables, *trends])
    page = folder / _PAGE
    text = page.read_text() if page.exists() else f"# Scaling\n\n{_BEGIN}\n{_END}\n"
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    page.write_text(f"{head}{_BEGIN}\n{measured}\n{_END}{tail}")


def _figure(axis: str) -> str:
    return f"scaling/{axis}.svg"


def _panels(axis: str, label: str, points: Sequence[Point]) -> list[Panel]:
    sizes = [float(point.devices if axis == "devices" else point.hours) for point in points]

    def of(cost: Callable[[Point], float]) -> list[float]:
        return [max(cost(point), 1e-6) for point in points]

    return [
        Panel(
            "Taking in",
            "CPU s",
            label,
            sizes,
            {
                "ingest": of(lambda p: p.ingest_us * p.rows / 1e6),
                "PostgreSQL": of(lambda p: p.postgres_us * p.rows / 1e6),
            },
        ),
        Panel(
            "Closing and sealing",
            "CPU s",
            label,
            sizes,
            {
                "close": of(lambda p: p.close_cpu_ms * p.device_hours / 1e3),
                "seal": of(lambda p: p.seal_us * p.rows / 1e6),
            },
        ),
        Panel(
            "Bytes",
            "B",
            label,
            sizes,
            {
                "hot, indexes included": of(lambda p: p.hot_bytes * p.rows),
                "sealed": of(lambda p: p.sealed_bytes * p.rows),
            },
        ),
        Panel(
            "Asking",
            "ms",
            label,
            sizes,
            {
                "energy by tenant and minute, from rollups": of(lambda p: p.rollup_ms),
                "energy by device, from sealed files": of(lambda p: p.raw_ms),
            },
        ),
    ]


def _trend(point: Point) -> str:
    """Say what one hour of history after the other cost in one stand, where nothing else differs between them."""
    costs = ", ".join(f"{cost:.2f}" for cost in point.by_hour_us)
    return (
        f"Taking in the {point.hours} hours one after the other cost ingest and PostgreSQL together, in us of processor time a row: "
        f"{costs}. The last third cost {point.trend or 0:.2f} times the first."
    )


def _table(points: Sequence[Point]) -> str:
    heads = ["", "unit", *(f"{point.devices:,} x {point.hours} h" for point in points)]
    rows = [["rows", "", *(f"{point.rows:,}" for point in points)]]
    rows += [[name, unit, *(f"{cost(point):,.3g}" for point in points)] for name, (unit, cost) in COSTS.items()]
    rows.append(["load average", "", *(f"{point.load_average:g}" for point in points)])
    rows.append(["a rollup answer", "ms", *(f"{point.rollup_ms:,.3g}" for point in points)])
    rows.append(["a raw answer", "ms", *(f"{point.raw_ms:,.3g}" for point in points)])
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
