"""One agent a node, and nobody else has a say in whether it starts."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from collector import run
from collector.config import Settings
from collector.errors import AgentError

pytestmark = pytest.mark.unit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir(mode=0o755)
    return Settings(spool_path=str(tmp_path / "spool" / "spool.db"), release_file=str(tmp_path / "run" / "release"))


def test_whoever_locks_the_folder_that_everybody_can_read_keeps_no_agent_from_starting(
    settings: Settings, tmp_path: Path
) -> None:
    descriptor = os.open(tmp_path / "run", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with run._only_one(settings):
        pass
    os.close(descriptor)


def test_nobody_but_their_owner_can_open_the_files_that_are_locked(settings: Settings, tmp_path: Path) -> None:
    locks = [tmp_path / "spool" / "spool.db.lock", tmp_path / "run" / "agent.lock"]
    locks[0].parent.mkdir()
    locks[0].touch(mode=0o666)  # as an agent before left it
    with run._only_one(settings):
        assert [stat.S_IMODE(path.stat().st_mode) for path in locks] == [0o600, 0o600]


def test_a_second_agent_is_refused_on_the_spool_and_on_the_node_and_a_third_starts_after_the_first(
    settings: Settings, tmp_path: Path
) -> None:
    elsewhere = Settings(spool_path=str(tmp_path / "other.db"), release_file=settings.release_file)
    with run._only_one(settings):
        with pytest.raises(AgentError, match="give this one its own spool_path"), run._only_one(settings):
            pass
        with pytest.raises(AgentError, match="another agent runs on this node"), run._only_one(elsewhere):
            pass
    with run._only_one(elsewhere):
        pass


def test_a_link_in_the_lock_s_place_is_not_followed(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "run" / "agent.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(AgentError, match=r"cannot open .*agent\.lock"), run._only_one(settings):
        pass


def test_a_file_system_without_locks_is_a_clear_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(AgentError, match="No locks available"), run._only_one(settings):
        pass
