"""A process from which sealers are forked that kill themselves right before the step they are told: a fork takes milliseconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from datetime import date, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from collector.wire import Stream
from ingest.store.engine import Database
from ingest.store.hours import SiteHour
from ingest.store.seal import Sealer
from ingest.store.seal_days import drop_hot_days
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments

ROOT = Path(__file__).resolve().parents[2]


class Forks:
    """The process and how to ask it for a fork; it runs one thread and opens nothing, so that forks of it are whole."""

    def __init__(self, socket_dir: Path, name: str, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.db.seal_process", str(socket_dir), name, str(folder)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def killed(self, work: str, deadly: str, *words: object) -> None:
        """Have a fork do this work and kill itself right before a step; fail unless it did."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([work, deadly, *map(str, words)]) + "\n")
        self._process.stdin.flush()
        status, told = json.loads(self._process.stdout.readline())
        assert os.WIFSIGNALED(status), f"{work} before {deadly!r}: {status} {told[-2000:]}"
        assert os.WTERMSIG(status) == signal.SIGKILL


def main(socket_dir: str, name: str, folder: str) -> None:
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as told:
            child = os.fork()
            if child == 0:
                try:
                    _work(Database.on_socket(Path(socket_dir), name), Segments.at(folder), *json.loads(line))
                except BaseException:  # noqa: BLE001 - told by the test
                    told.write(traceback.format_exc())
                    told.flush()
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            told.seek(0)
            sys.stdout.write(json.dumps([status, told.read()]) + "\n")
            sys.stdout.flush()


def _work(database: Database, segments: Segments, work: str, deadly: str, *words: str) -> None:
    def step(coming: str) -> None:
        if coming == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    if work == "drop":
        drop_hot_days(database.create_engine("worker"), segments, date.fromisoformat(words[0]), step=step)
    elif work == "delete":
        with database.connect("worker") as connection:
            delete_retired(connection, segments, timedelta(0), step=step)
    else:
        sealer, hour = Sealer(database, segments, step=step), SiteHour(int(words[0]), int(words[1]))
        if work == "rebuild":
            sealer.rebuild(hour, [Stream.DEVICE, Stream.NODE])
        else:
            (sealer.seal if work == "seal" else sealer.merge)(hour)


if __name__ == "__main__":
    main(*sys.argv[1:])
