"""A sealer in a process of its own that kills itself right before the step it is told."""

from __future__ import annotations

import os
import signal
import sys
from datetime import date, timedelta
from pathlib import Path

from ingest.store.engine import Database
from ingest.store.hours import SiteHour
from ingest.store.seal import Sealer
from ingest.store.seal_days import drop_hot_days
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments


def main(socket_dir: str, name: str, folder: str, work: str, deadly: str, *words: str) -> None:
    def step(coming: str) -> None:
        if coming == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    database = Database.on_socket(Path(socket_dir), name)
    segments = Segments.at(folder)
    if work in {"seal", "merge"}:
        sealer = Sealer(database, segments, step=step)
        hour = SiteHour(int(words[0]), int(words[1]))
        (sealer.seal if work == "seal" else sealer.merge)(hour)
    elif work == "drop":
        drop_hot_days(database.create_engine("worker"), segments, date.fromisoformat(words[0]), step=step)
    else:
        with database.connect("worker") as connection:
            delete_retired(connection, segments, timedelta(0), step=step)


if __name__ == "__main__":
    main(*sys.argv[1:])
