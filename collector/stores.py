"""What outlives an agent of what it measured: its spool, open, and the writer with the rows that still wait for the disk.

So settings may be read anew while somebody holds the spool or its disk is slow: nothing has to be stored, closed or opened in between.
It stores nothing itself.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from collector.config import Settings
from collector.spool import Spool
from collector.writer import Writer, epoch_fact

_LOG = logging.getLogger(__name__)

_BYTES_PER_MIB: Final = 1_048_576
_END_S: Final = 2.5


class Stores:
    """The spool in use, and those of settings before that are not empty-handed yet."""

    def __init__(self) -> None:
        """Hold none."""
        self._kept: Writer | None = None
        self._leaving: list[Writer] = []
        self._known: dict[tuple[Path, str], tuple[str, int]] = {}

    def spool(self, settings: Settings) -> Spool:
        """Return the spool of these settings, the open one where it is the same. Raises SpoolError."""
        kept = self._kept
        if kept is None or kept.spool.path != Path(settings.spool_path):
            return open_spool(settings)
        kept.spool.max_bytes = settings.spool_max_mib * _BYTES_PER_MIB
        return kept.spool

    def writer_of(self, spool: Spool) -> Writer | None:
        """Return the writer that goes on with an open spool; None for one that was just opened."""
        return self._kept if self._kept is not None and self._kept.spool is spool else None

    def known_epoch(self, spool: Spool, probe: str, boot_id: str) -> int:
        """Return the driver epoch a probe had last in this boot, 0 where none is known. Raises SpoolError.

        A spool that is open already is not asked: it may keep everybody waiting.
        """
        writer, key = self.writer_of(spool), (spool.path, probe)
        if writer is not None and probe in (epochs := writer.known_epochs()):
            self._known[key] = epochs[probe]
        elif writer is None or key not in self._known:
            boot, _, epoch = (spool.recall(epoch_fact(probe)) or "").partition(" ")
            self._known[key] = (boot, int(epoch or 0))
        known_boot, known_epoch = self._known[key]
        return known_epoch if known_boot == boot_id else 0

    def begin(self, writer: Writer) -> None:
        """Note that an agent with this writer runs now; a writer before it, of another spool, ends once its rows are stored."""
        if self._kept is not None and self._kept is not writer:
            self._kept.leave()
            self._leaving.append(self._kept)
        self._kept = None

    def keep(self, writer: Writer) -> None:
        """Keep the spool open and what waits for it, for the next agent."""
        self._kept = writer

    def abandon(self, spool: Spool) -> None:
        """Close a spool that no agent came to use, unless it is kept."""
        if self.writer_of(spool) is None:
            spool.close()

    def close(self) -> None:
        """End, in bounded time: what the disk does not take is lost, and logged."""
        for writer in (*self._leaving, *([self._kept] if self._kept else [])):
            if not writer.close(_END_S):
                _LOG.error("%d rows are lost: the disk did not take them in time", writer.waiting_rows)
            elif writer is self._kept:
                writer.spool.close()
        self._leaving, self._kept = [], None


def open_spool(settings: Settings) -> Spool:
    """Open the spool and say what is wrong with it. Raises SpoolError."""
    spool = Spool(Path(settings.spool_path), max_bytes=settings.spool_max_mib * _BYTES_PER_MIB)
    for damaged in spool.damaged_files:
        _LOG.error("the spool was damaged; it is kept as %s and a new one was started", damaged)
    if not spool.durable:
        _LOG.warning("the spool %s lies in memory: batches are lost at a reboot", spool.path)
    return spool
