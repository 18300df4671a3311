"""The frame every watcher runs in: a round, its counts on one log line, a pause with jitter, and again until told to stop."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from ingest.pollers.deliver import Delivery, Event, bodies
from ingest.pollers.errors import WatchError
from ingest.pollers.memory import Memory, digest

log = logging.getLogger(__name__)
SHOWN: Final = 5
LONGEST_PAUSE_S: Final = 300.0
Word = tuple[str, Event, str | None]
"""Subject, event, and a note that is kept while the subject is open (None: over)."""


class Teller(Protocol):
    """Where words go."""

    def tell(self, words: Sequence[Word], at_us: int) -> Counter[str]:
        """Deliver words; return counts. Raises DeliveryError, what was delivered until then being noted."""


class Telling:
    """Delivers words that are new and notes each once ingest has committed it."""

    def __init__(self, delivery: Delivery, memory: Memory) -> None:
        self._delivery = delivery
        self._memory = memory

    def tell(self, words: Sequence[Word], at_us: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        new: list[tuple[str, Event]] = []
        known: dict[str, tuple[bytes, str | None]] = {}
        for key, event, note in words:
            mark = digest(event)
            if not self._memory.is_told(key, mark):
                new.append((key, event))
                known[key] = (mark, note)
        for group in bodies(new):
            delivered = self._delivery.post([event for _, event in group])
            refused = delivered.refused
            # Refused because of a clock, or of a full hour: told again when time has come. Anything else would be for ever.
            later = {place for place, why in refused.items() if why.startswith(("future", "too_many_new"))}
            told = [(key, *known[key]) for place, (key, _) in enumerate(group) if place not in later]
            self._memory.tell(told, at_us)
            counts["told"] += len(group) - len(refused)
            counts["refused"] += len(refused)
            for place, why in list(refused.items())[:SHOWN]:
                log.warning("ingest refuses %s: %s", group[place][0], why)
            if len(refused) > SHOWN:
                log.warning("and %d more of this body", len(refused) - SHOWN)
        return counts


class Dry:
    """Prints nothing and delivers nothing: gathers the events of a dry run."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def tell(self, words: Sequence[Word], at_us: int) -> Counter[str]:
        del at_us
        self.events += [event for _, event, _ in words]
        return Counter(would_tell=len(words))


class Totals:
    """Counts since the start, for a scraper: a text of Prometheus."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._counts: Counter[str] = Counter()
        self._last_good_s = 0.0
        self._lock = threading.Lock()

    def add(self, counts: Counter[str], *, good: bool) -> None:
        with self._lock:
            self._counts += Counter({f"{name}_total": number for name, number in counts.items()})
            self._counts["rounds_total" if good else "failed_rounds_total"] += 1
            if good:
                self._last_good_s = time.time()

    def exposition(self) -> str:
        with self._lock:
            lines = [
                f'wattledger_watch_{name}{{source="{self._source}"}} {number}'
                for name, number in sorted(self._counts.items())
            ]
            lines.append(
                f'wattledger_watch_last_good_round_timestamp_seconds{{source="{self._source}"}} {self._last_good_s:.0f}'
            )
        return "\n".join(lines) + "\n"


def run(once: Callable[[], Counter[str]], totals: Totals, stop: threading.Event, *, interval_s: float) -> None:
    """Do rounds until stopped; a failed one is logged and tried again after a growing pause."""
    failures = 0
    while not stop.is_set():
        started_s = time.monotonic()
        try:
            counts = once()
        except WatchError as error:
            failures += 1
            totals.add(Counter(), good=False)
            log.warning("round failed, %d in a row: %s", failures, error)
        except Exception:  # the outermost loop of the process: whatever it was, the next round may do
            failures += 1
            totals.add(Counter(), good=False)
            log.exception("round failed, %d in a row", failures)
        else:
            failures = 0
            totals.add(counts, good=True)
            log.info("%s in %.1f s", said(counts.items()), time.monotonic() - started_s)
        pause_s = min(LONGEST_PAUSE_S, interval_s * 2 ** min(failures, 8)) if failures else interval_s
        stop.wait(pause_s * random.uniform(0.9, 1.1))  # noqa: S311 (jitter)


def said(counts: Iterable[tuple[str, Any]]) -> str:
    """Return counts as one line."""
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts) or "nothing"
