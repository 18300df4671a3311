"""deploy/slurm/: scripts that write one small file and can neither fail, nor hang, nor be talked into anything."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from collector.jobs.hooks import HookEvent, HookFolder

pytestmark = pytest.mark.contract

SCRIPTS = Path(__file__).resolve().parents[2] / "deploy" / "slurm"
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
JOB = {
    "SLURM_JOB_ID": "31",
    "SLURM_JOB_GPUS": "0,1",
    "SLURM_CLUSTER_NAME": "lab",
    "SLURM_JOB_UID": "1000",
    "SLURM_JOB_USER": "ada",
    "SLURM_JOB_ACCOUNT": "research",
    "SLURM_JOB_PARTITION": "train",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder below one that others may pass, for the tests that run as nobody."""
    memory = Path("/dev/shm")  # as /run is
    home = Path(tempfile.mkdtemp(prefix="wl-hooks-", dir=memory if os.access(memory, os.W_OK) else None))
    home.chmod(0o755)
    yield home / "jobs"
    for path in home.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(home)


def command(shell: str, script: str) -> list[str]:
    program = shutil.which(shell) or shell
    # As /bin/sh would run it: bash under its own name reads whatever BASH_ENV names.
    as_sh = {"bash": ["--posix"], "busybox": ["sh"]}.get(shell, [])
    return [program, *as_sh, str(SCRIPTS / script)]


def run(folder: Path, script: str = "prolog.sh", shell: str = SHELLS[0], **environment: str) -> float:
    """Run a script as slurmd would, check that it answers 0 and says nothing; return how long it took."""
    begun = time.monotonic()
    done = subprocess.run(
        command(shell, script),
        env={"WATTLEDGER_HOOK_DIR": str(folder), **environment},
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return time.monotonic() - begun


def events(folder: Path) -> list[HookEvent]:
    return HookFolder(folder).read(())


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", ["prolog.sh", "epilog.sh"])
def test_the_scripts_parse_in_every_shell_there_is(shell: str, script: str) -> None:
    words = command(shell, script)
    subprocess.run([*words[:-1], "-n", words[-1]], check=True, capture_output=True)


def test_prolog_and_epilog_differ_in_nothing_but_what_they_say_happened() -> None:
    texts = [(SCRIPTS / name).read_text().splitlines() for name in ("prolog.sh", "epilog.sh")]
    differ = [pair for pair in zip(*texts, strict=True) if pair[0] != pair[1] and not pair[0].startswith("#")]
    assert differ == [("event=start", "event=end")]
    assert all(os.access(SCRIPTS / name, os.X_OK) for name in ("prolog.sh", "epilog.sh"))


@pytest.mark.parametrize("shell", SHELLS)
def test_a_start_and_an_end_are_told_with_their_instants(folder: Path, shell: str) -> None:
    before_us = time.time_ns() // 1_000
    run(folder, shell=shell, **JOB, SLURM_JOB_START_TIME=str(before_us // 1_000_000 - 60), SLURM_JOB_NAME="a=b c")
    run(folder, "epilog.sh", shell, **JOB)
    start, end = events(folder)
    assert (start.action, end.action) == ("start", "end")
    slack_us = 1_000_000 if shell == "busybox" else 0  # whole seconds there
    assert before_us - slack_us <= start.at_us <= end.at_us <= time.time_ns() // 1_000
    assert (start.job_id, start.native_id, start.gpus) == ("31", "31", ("0", "1"))
    assert (start.cluster, start.uid, start.user) == ("lab", 1000, "ada")
    assert start.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (start.account, start.partition, start.job_name) == ("research", "train", "a=b c")
    assert start.started_at_us == (before_us // 1_000_000 - 60) * 1_000_000
    assert sorted(path.name[0] for path in folder.iterdir()) == [
        "1",
        "1",
        "a",
    ]  # and the lock; nothing half written is left


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": ""},
        {"SLURM_JOB_ID": "../../../etc/passwd"},
        {"SLURM_JOB_ID": "31; touch pwned"},
        {"SLURM_JOB_ID": "-n"},
        {"SLURM_JOB_ID": "31\n32"},
        {"SLURM_JOB_ID": "9" * 40},
    ],
)
def test_without_a_job_number_nothing_is_written(folder: Path, shell: str, environment: dict[str, str]) -> None:
    run(folder, shell=shell, **environment)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("shell", SHELLS)
def test_a_garbage_environment_changes_no_other_field(folder: Path, shell: str) -> None:
    odd = {
        "IFS": "0123456789abcdefghijklmnopqrstuvwxyz",
        "PATH": "/nowhere",
        "ENV": "/dev/full",
        "BASH_ENV": "/dev/full",
        "TZ": "Mars/Olympus",
        "PS4": "$(touch /tmp/wl-pwned)",
        "SLURM_JOB_NAME": "x\njob=99\ncluster=elsewhere",
        "SLURM_JOB_ACCOUNT": "$(touch /tmp/wl-pwned)`touch /tmp/wl-pwned`%s%n\\n",
        "SLURM_JOB_QOS": "q" * 100_000,
        "text": "job=98",
        "nl": "X",
        "event": "end",
    }
    run(folder, shell=shell, **{**JOB, **odd})
    (start,) = events(folder)
    assert (start.action, start.job_id, start.cluster, start.job_name) == ("start", "31", "lab", "x")
    assert start.account == odd["SLURM_JOB_ACCOUNT"]
    assert start.qos is None
    assert not Path("/tmp/wl-pwned").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_folder_that_cannot_be_made_or_is_a_file_fails_no_job(folder: Path, shell: str) -> None:
    folder.write_text("a file")
    run(folder, shell=shell, **JOB)
    run(folder / "below", shell=shell, **JOB)
    assert folder.read_text() == "a file"
    run(Path("/proc/no/such"), shell=shell, **JOB)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.root
def test_a_folder_one_may_not_write_fails_no_job(folder: Path, shell: str) -> None:
    folder.mkdir(mode=0o555)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command(shell, "prolog.sh")],
        env={"WATTLEDGER_HOOK_DIR": str(folder), "PATH": os.environ["PATH"], **JOB},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.root
def test_a_full_disk_leaves_no_half_file_and_fails_no_job(folder: Path, shell: str) -> None:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "wl", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.decode()!r}")
    try:
        with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(b"x" * 4_096):
                pass
        run(folder, shell=shell, **JOB)
        assert [path.name for path in folder.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_file_size_limit_costs_the_note_and_not_the_job(folder: Path, shell: str) -> None:
    folder.mkdir()
    with (folder.parent / "log").open("wb") as log:  # to which the limit applies as well
        done = subprocess.run(
            command(shell, "prolog.sh"),
            env={"WATTLEDGER_HOOK_DIR": str(folder), **JOB},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),  # SIGXFSZ on the first byte
            stdout=log,
            stderr=log,
            check=False,
        )
    assert done.returncode == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("shell", SHELLS[:1])  # bash tries for 15 s before it gives up
@pytest.mark.root
def test_even_where_no_process_can_be_had_the_job_starts(folder: Path, shell: str) -> None:
    folder.mkdir(mode=0o777)

    nobody = (
        600_000 + os.getpid()
    )  # 65534 may have processes of its own beside us, and is then not even let start this one

    def nobody_without_processes() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.setgroups([])
        os.setgid(nobody)
        os.setuid(nobody)

    done = subprocess.run(
        command(shell, "prolog.sh"),
        env={"WATTLEDGER_HOOK_DIR": str(folder), **JOB},
        preexec_fn=nobody_without_processes,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_a_name_that_is_taken_by_a_link_is_not_written_through(folder: Path) -> None:
    folder.mkdir()
    prey = folder.parent / "prey"
    prey.write_text("precious")
    fakes = folder.parent / "bin"
    fakes.mkdir()
    # The script's date is not for sale; so the guess is made for it: every name it could use in the next second.
    text = (SCRIPTS / "prolog.sh").read_text().replace("now=$(date +%s%N)", "now=1795274977478518337")
    script = fakes / "prolog.sh"
    script.write_text(text.replace("$now.$$.", "$now.1."))
    (folder / ".1795274977478518337.1.start.31").symlink_to(prey)
    done = subprocess.run([SHELLS[0], str(script)], env={"WATTLEDGER_HOOK_DIR": str(folder), **JOB}, check=False)
    assert done.returncode == 0
    assert prey.read_text() == "precious"


def test_the_oldest_files_give_way_where_no_agent_takes_them_away(folder: Path) -> None:
    folder.mkdir()
    for number in range(4_100):
        (folder / f"{1_700_000_000_000_000_000 + number}.1.start.{number + 1}").touch()
    took_s = run(folder, **JOB)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 4_097
    assert names[0] == "1700000000000000004.1.start.5"
    assert names[-1].endswith(".start.31")
    assert took_s < 1.0


@pytest.mark.parametrize("jobs", [80, pytest.param(1_000, marks=pytest.mark.slow)])
def test_jobs_start_and_end_without_an_agent_and_none_is_lost_or_delayed(folder: Path, jobs: int) -> None:
    """One process a script, as slurmd does it; forty jobs at a time."""
    longest_s = 0.0
    shell = SHELLS[0]
    for first in range(0, jobs, 40):
        batch = []
        begun = time.monotonic()
        for number in range(first, first + 40):
            environment = {"WATTLEDGER_HOOK_DIR": str(folder), **JOB, "SLURM_JOB_ID": str(number + 1)}
            script = f"'{SCRIPTS / 'prolog.sh'}'; '{SCRIPTS / 'epilog.sh'}'"
            batch.append(subprocess.Popen([shell, "-c", script], env=environment))
        assert [process.wait() for process in batch] == [0] * 40
        longest_s = max(longest_s, time.monotonic() - begun)
    found = HookFolder(folder)
    told: list[HookEvent] = []
    while not told or found.more:
        told += found.read({event.name for event in told})
    assert sorted(int(event.job_id) for event in told if event.action == "start") == list(range(1, jobs + 1))
    assert sorted(int(event.job_id) for event in told if event.action == "end") == list(range(1, jobs + 1))
    assert [event.at_us for event in told] == sorted(event.at_us for event in told)
    assert longest_s < 40.0  # eighty scripts took less than forty of them may
    assert found.discard([event.name for event in told]) == set()
    assert list(folder.glob("[0-9]*")) == []
