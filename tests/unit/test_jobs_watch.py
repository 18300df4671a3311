"""Being woken when a folder changes, with inotify and without."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.jobs.watch import FolderWatch


@pytest.fixture(params=[True, False], ids=["inotify", "times"])
def watch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FolderWatch]:
    (tmp_path / "jobs").mkdir()
    found = FolderWatch([tmp_path / "jobs", tmp_path / "later"], inotify=request.param)
    assert found.prompt is request.param
    yield found
    found.close()


def woken_after_s(watch: FolderWatch, act: threading.Timer) -> float:
    begun = time.monotonic()
    act.start()
    assert watch.wait(10.0)
    act.join()
    return time.monotonic() - begun


def test_nothing_happens_and_the_time_is_up(watch: FolderWatch) -> None:
    before_s = time.process_time()
    assert not watch.wait(0.3)
    assert time.process_time() - before_s < 0.1  # it slept


def test_a_file_moved_in_wakes(watch: FolderWatch, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    move = threading.Timer(0.05, lambda: (tmp_path / "new").rename(tmp_path / "jobs" / "1"))
    assert woken_after_s(watch, move) < 5.0
    assert not watch.wait(0.05)


def test_a_file_that_came_between_two_waits_wakes_at_once(watch: FolderWatch, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "1").touch()
    assert watch.wait(0.0)
    assert not watch.wait(0.0)


def test_a_folder_made_later_is_watched_from_then_on(watch: FolderWatch, tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    assert watch.wait(5.0)
    assert woken_after_s(watch, threading.Timer(0.05, (tmp_path / "later" / "1").touch)) < 5.0
    watch.wait(0.0)
    (tmp_path / "later" / "1").unlink()
    (tmp_path / "later").rmdir()
    assert watch.wait(5.0)


def test_a_stop_ends_the_wait_and_all_later_ones(watch: FolderWatch) -> None:
    timer = threading.Timer(0.05, watch.stop)
    timer.start()
    begun = time.monotonic()
    assert not watch.wait(30.0)
    assert time.monotonic() - begun < 10.0
    assert not watch.wait(30.0)
    timer.join()
