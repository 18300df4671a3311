"""What a benchmark reports, appended as one JSON object per result and shown as a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Result:
    """One measured value. ``met`` says whether the target holds; ``target`` is its wording."""

    name: str
    value: float
    unit: str
    target: str
    met: bool
    baseline: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return None if not self.baseline else self.value / self.baseline

    def as_json(self) -> str:
        facts = asdict(self) | {
            "ratio": self.ratio,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        }
        return json.dumps(facts, sort_keys=True)


def machine() -> dict[str, Any]:
    """Return what of this machine decides a result; load from elsewhere included, since it makes one worthless."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def append(results: Sequence[Result], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(result.as_json() + "\n" for result in results)


def show(results: Sequence[Result]) -> None:
    table = Table("benchmark", "value", "unit", "baseline", "ratio", "target", "met")
    for result in results:
        table.add_row(
            result.name,
            _spelled(result.value),
            result.unit,
            "" if result.baseline is None else _spelled(result.baseline),
            "" if result.ratio is None else f"{result.ratio:.2f}",
            result.target,
            "[green]yes[/]" if result.met else "[red]no[/]",
        )
    Console().print(table)


def _spelled(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
