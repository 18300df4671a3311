"""deploy/server's units: systemd accepts them, calls them well confined, and they start what is installed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contract.deploy_words import DEPLOY, refused, unknown_variables

pytestmark = pytest.mark.contract
FOLDER = DEPLOY / "server"
WATCHER = DEPLOY / "slurm/wattledger-watch-slurm.service"
UNITS = [*sorted(FOLDER.glob("*.service")), WATCHER]
AT_MOST_TENTHS = 25
"""systemd-analyze's exposure times ten; 100 is unconfined. Measured: 14 to 16 with systemd 252."""


def values(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """All units as systemd would find them; the program is not installed where the tests run."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here; Debian's package systemd has it")
    for timer in FOLDER.glob("*.timer"):
        (tmp_path / timer.name).write_text(timer.read_text(encoding="utf-8"))
    for unit in UNITS:
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(encoding="utf-8"), flags=re.MULTILINE)
        (tmp_path / unit.name.replace("@.", "@8470.")).write_text(text)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit_and_calls_it_well_confined(unit: Path, laid_out: Path) -> None:
    instance = laid_out / unit.name.replace("@.", "@8470.")
    verified = subprocess.run(["systemd-analyze", "verify", instance], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={AT_MOST_TENTHS}", str(instance)]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" not in judged.stderr:
        assert judged.returncode == 0, judged.stdout[-400:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_it_starts_is_understood_and_what_it_sets_is_read(unit: Path) -> None:
    (start,) = values(unit, "ExecStart")
    program, *words = shlex.split(start.replace("%i", "8470").replace("%S", "/var/lib"))
    assert program == "/opt/wattledger/bin/wattledger"
    assert refused(words) is None
    (environment,) = values(unit, "Environment")
    said = dict(pair.split("=", 1) for pair in environment.split())
    assert unknown_variables(said) == set()
    credentials = {value.split(":")[0] for value in values(unit, "LoadCredential")}
    files = {value.removeprefix("%d/") for value in (*said.values(), *words) if value.startswith("%d/")}
    assert files == credentials
    assert f"%S/{values(unit, 'StateDirectory')[0]}" == said["WATTLEDGER_HOME"]
    assert values(unit, "User") == ["wattledger-watch" if unit == WATCHER else "wattledger"]
    assert values(unit, "MemoryMax")
    assert "Environment=WATTLEDGER_DATABASE_URL=" not in unit.read_text(encoding="utf-8"), "a secret anybody can read"


def test_no_service_is_given_the_url_of_another_or_the_owner_s() -> None:
    for name, file in (
        ("wattledger-serve@", "serve_database_url"),
        ("wattledger-worker", "worker_database_url"),
        ("wattledger-migrate", "database_url"),
    ):
        assert values(FOLDER / f"{name}.service", "LoadCredential") == [f"database_url:/etc/wattledger/{file}"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_unit_forbids_what_polars_does_when_it_is_loaded(unit: Path) -> None:
    # Tried with PR_SET_MDWE: "could not execute mprotect for CPUID check", and neither serve nor worker started.
    assert values(unit, "MemoryDenyWriteExecute") in ([], ["no"])


def test_the_watcher_s_user_is_one_that_slurm_can_know_and_each_shipped_unit_is_looked_at() -> None:
    # slurmctld and slurmdbd know users by name: one that systemd makes up at each start is nobody to them.
    assert values(WATCHER, "DynamicUser") == []
    made = (DEPLOY / "slurm/sysusers.conf").read_text(encoding="utf-8").split()
    assert made[:2] == ["u", *values(WATCHER, "User")]
    elsewhere = {DEPLOY / "agent/wattledger-agent.service"}  # test_agent_deploy.py
    assert set(DEPLOY.rglob("*.service")) == {*UNITS, *elsewhere}


def test_the_user_is_made_and_no_two_units_listen_on_one_port() -> None:
    assert (FOLDER / "sysusers.conf").read_text(encoding="utf-8").split()[:2] == ["u", "wattledger"]
    (dashboard,) = values(FOLDER / "wattledger-dashboard.service", "ExecStart")
    assert dashboard.endswith("--port 8501")
    assert "server 127.0.0.1:8501;" in (FOLDER / "nginx.conf").read_text(encoding="utf-8")


def test_the_settings_file_names_only_settings_and_changes_nothing_as_shipped() -> None:
    text = (FOLDER / "wattledger.env").read_text(encoding="utf-8")
    names = set(re.findall(r"^#?(WATTLEDGER_\w+)=", text, flags=re.MULTILINE))
    assert len(names) >= 7
    assert unknown_variables(names) == set()
    assert all(line.startswith("#") for line in text.splitlines() if line)


def test_a_unit_waits_longer_for_its_end_than_the_process_takes() -> None:
    service = (DEPLOY.parent / "wattledger/service.py").read_text(encoding="utf-8")
    (graceful_s,) = re.findall(r"timeout_graceful_shutdown=(\d+)", service)
    assert int(values(FOLDER / "wattledger-serve@.service", "TimeoutStopSec")[0]) > int(graceful_s)


def test_the_timer_is_one_that_systemd_accepts_and_starts_the_backup(laid_out: Path) -> None:
    (timer,) = FOLDER.glob("*.timer")
    verified = subprocess.run(
        ["systemd-analyze", "verify", laid_out / timer.name], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    backup = timer.with_suffix(".service")
    target = shlex.split(values(backup, "ExecStart")[0])[2]
    assert target in {f"%S/{name}" for name in values(backup, "StateDirectory")}, "the only places it may write to"
    assert values(timer, "Persistent") == ["yes"], "a machine that was off makes up for it"


def test_where_postgresql_is_our_own_the_backup_needs_no_credential(laid_out: Path) -> None:
    backup = laid_out / "wattledger-backup.service"
    drop_in = FOLDER / "backup-embedded.conf"
    (laid_out / f"{backup.name}.d").mkdir()
    (laid_out / f"{backup.name}.d" / "embedded.conf").write_text(drop_in.read_text(encoding="utf-8"))
    verified = subprocess.run(["systemd-analyze", "verify", backup], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    emptied, environment = values(drop_in, "Environment")
    assert (emptied, values(drop_in, "LoadCredential")) == ("", [""])
    assert "DATABASE_URL" not in environment
    assert unknown_variables(pair.split("=")[0] for pair in environment.split()) == set()


@pytest.mark.parametrize("unit", ["wattledger-worker.service", "wattledger.service"])
def test_the_worker_s_metrics_are_opened_on_loopback(unit: str) -> None:
    (start,) = values(FOLDER / unit, "ExecStart")
    assert start.endswith("--metrics-port 9470")
    assert "--metrics-host" not in start


def test_the_worker_is_behind_ingest_before_its_filter_forbids_it_to_step_back() -> None:
    work = (DEPLOY.parent / "wattledger/work.py").read_text(encoding="utf-8")
    (nice,) = re.findall(r"^_NICE: Final = (\d+)", work, flags=re.MULTILINE)
    worker = FOLDER / "wattledger-worker.service"
    assert "~@privileged @resources" in values(worker, "SystemCallFilter"), "setpriority is among these"
    assert values(worker, "Nice") == [nice]
