"""What every reader of a series' labels asks of them: a label that names something, and where the data was born. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from collector.wire import MAX_META_CHARACTERS, Origin

_ORIGINS: Final = {"simulated": Origin.SIMULATED, "replayed": Origin.REPLAYED, "imported": Origin.IMPORTED}


@dataclass(frozen=True, slots=True)
class Skip:
    """A series that is counted under its name and not stored."""

    name: str
    reason: str
    """``unmapped``; ``client_histogram`` for what comes as spans too; ``kubernetes_watcher`` for what the watcher tells better;
    ``no_cluster`` where no label says whose pods these are; ``bad_labels`` where a needed label is missing or odd."""


def label(labels: Mapping[str, str], *names: str) -> str | None:
    """Return the first of these labels that could name a thing."""
    for name in names:
        value = labels.get(name)
        if value and len(value) <= MAX_META_CHARACTERS and value.isprintable():
            return value
    return None


def origin_of(labels: Mapping[str, str]) -> Origin:
    """Return where the data was born; live where no label says otherwise."""
    return _ORIGINS.get(labels.get("wattledger.origin", labels.get("wattledger_origin", "")), Origin.LIVE)
