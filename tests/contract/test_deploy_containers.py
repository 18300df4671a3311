"""deploy/compose and deploy/image: the compose program's own reader, a linter of recipes, and our own command line judge them."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.contract.deploy_words import DEPLOY, PROGRAMS, REPOSITORY, refused, unknown_variables

pytestmark = pytest.mark.contract
BIN = Path(sys.executable).parent
RECIPES = sorted([*DEPLOY.glob("image/*Containerfile"), *DEPLOY.rglob("Dockerfile")])
SERVER = DEPLOY / "image/server.Containerfile"
OURS = {"migrate", "serve", "worker", "dashboard", "backup"}


def compose(env: dict[str, str] | None = None) -> dict[str, Any]:
    file = str(DEPLOY / "compose/compose.yaml")
    command = [str(BIN / "docker-compose"), "-f", file, "--profile", "backup", "config", "--format", "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": "/bin:/usr/bin", **(env or {})}
    )
    assert (done.returncode, done.stderr) == (0, "")
    read: dict[str, Any] = json.loads(done.stdout)
    return read


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


def version() -> str:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def test_the_compose_program_reads_the_file_and_every_command_and_variable_in_it_is_one(
    services: dict[str, Any],
) -> None:
    assert set(services) == {"db", *OURS}
    for name in OURS:
        assert refused(services[name]["command"]) is None, name
        assert unknown_variables(services[name].get("environment", {})) == set()
        assert services[name]["image"] == f"wattledger:{version()}"
        assert Path(services[name]["build"]["context"]) == REPOSITORY


def test_only_loopback_is_listened_on_and_the_database_by_nobody(services: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in services.items()}
    assert {port["host_ip"] for each in ports.values() for port in each} == {"127.0.0.1"}
    assert not ports["db"]
    assert set(services["db"]["networks"]) == {"data"}
    assert compose()["networks"]["data"]["internal"] is True
    assert "data" not in services["dashboard"]["networks"]


def test_two_replicas_of_serve_have_a_port_each() -> None:
    (port,) = compose(env={"WATTLEDGER_SERVE_PORTS": "8480-8481"})["services"]["serve"]["ports"]
    assert (port["published"], port["target"]) == ("8480-8481", 8470)


def test_secrets_come_by_files_that_the_script_or_the_instructions_make(
    services: dict[str, Any], tmp_path: Path
) -> None:
    script = DEPLOY / "compose/secrets.sh"
    subprocess.run([script, tmp_path / "made"], check=True, capture_output=True)
    made = {path.name: path.read_text(encoding="ascii") for path in (tmp_path / "made").iterdir()}
    subprocess.run([script, tmp_path / "made"], check=True, capture_output=True)
    assert made == {path.name: path.read_text(encoding="ascii") for path in (tmp_path / "made").iterdir()}, "kept"
    assert {each["source"] for service in services.values() for each in service["secrets"]} == {*made}
    # Its instructions fill it by `>`, under whatever umask: the container's user has to read it all the same.
    token = tmp_path / "made/dashboard_token"
    assert made["dashboard_token"] == ""
    subprocess.run(["sh", "-c", f"umask 077; echo secret > {token}; {script} {token.parent}"], check=True)
    assert (token.read_text(encoding="ascii"), stat.S_IMODE(token.stat().st_mode)) == ("secret\n", 0o644)
    assert made["database_url"] == f"postgresql://wattledger:{made['wattledger_password']}@db:5432/wattledger"
    backup_url = f"postgresql://wattledger_backup:{made['backup_password']}@db:5432/wattledger"
    assert made["backup_database_url"] == backup_url
    for who in ("serve", "worker"):
        url = f"postgresql://wattledger_{who}_login:{made[f'{who}_password']}@db:5432/wattledger"
        assert made[f"{who}_database_url"] == url
        assert {each["source"] for each in services[who]["secrets"]} == {f"{who}_database_url"}, "and not the owner's"
    assert len({made[name] for name in made if name.endswith("_password")}) == 5
    assert re.fullmatch(r"[0-9a-f]{48}", made["wattledger_password"])
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").iterdir()}
    assert {mode for name, mode in modes.items() if name != "dashboard_token"} == {0o444}
    text = (DEPLOY / "compose/compose.yaml").read_text(encoding="utf-8")
    assert not re.search(r"PASSWORD:", text), "a password in the environment is in `docker inspect`"
    for service in services.values():
        mounted = {f"/run/secrets/{each['source']}" for each in service["secrets"]}
        assert {value for value in service["environment"].values() if value.startswith("/run/secrets/")} <= mounted


def test_every_service_is_bounded_confined_and_asked_for_its_health(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
        assert "no-new-privileges:true" in service["security_opt"]
        if name in OURS:
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        asked = " ".join(service["healthcheck"].get("test", []))
        assert ("/readyz" in asked) == (name == "serve")
        assert ("/metrics" in asked) == (name == "worker")
        assert asked or name in {"migrate", "backup"}
    after = services["serve"]["depends_on"]
    assert after["migrate"]["condition"] == "service_completed_successfully"
    assert after["db"]["condition"] == "service_healthy"


def test_a_backup_is_made_when_asked_for_and_sees_what_the_worker_has_without_changing_it(
    services: dict[str, Any],
) -> None:
    backup = services["backup"]
    assert (backup["profiles"], backup["restart"]) == (["backup"], "no")
    mounts = {mount["target"]: mount for mount in backup["volumes"]}
    assert (mounts["/var/lib/wattledger"]["source"], mounts["/var/lib/wattledger"]["read_only"]) == ("worker", True)
    assert backup["command"][1] == "/backup"
    assert not mounts["/backup"].get("read_only")
    assert "/backup" in SERVER.read_text(encoding="utf-8").partition("install -d -o 65532")[2].partition("\n")[0]
    (port,) = services["worker"]["ports"]
    words = services["worker"]["command"]
    assert port["target"] == int(words[words.index("--metrics-port") + 1])


def test_what_a_health_check_runs_is_python_that_runs(services: dict[str, Any]) -> None:
    for name in ("serve", "dashboard", "worker"):
        kind, program, flag, code = services[name]["healthcheck"]["test"]
        assert (kind, program, flag) == ("CMD", "python", "-c")
        done = subprocess.run(
            [sys.executable, "-c", re.sub(r":\d{4}/", ":1/", code)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "URLError" in done.stderr, "nobody listens there, which is not health"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_the_linter_finds_no_error_in_a_recipe_and_what_it_copies_is_there(recipe: Path) -> None:
    linted = subprocess.run(
        [BIN / "hadolint", "--failure-threshold", "warning", recipe], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout
    assert re.search(r"pip install .*(-c|--constraint) \S*constraints.txt", recipe.read_text(encoding="utf-8"))
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            for source in line.split()[1:-1]:
                assert (REPOSITORY / source).exists(), source


def test_the_server_s_image_is_pinned_runs_as_nobody_and_starts_what_the_wheel_installs() -> None:
    text = SERVER.read_text(encoding="utf-8")
    said = {line.split()[0]: line for line in text.replace("\\\n", " ").splitlines() if re.match("[A-Z]", line)}
    assert "--constraint constraints.txt" in text
    assert said["USER"] == "USER 65532:65532"
    assert f"-t wattledger:{version()} ." in text
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    entry = json.loads(said["ENTRYPOINT"].removeprefix("ENTRYPOINT "))
    assert set(scripts) == PROGRAMS
    assert entry == ["wattledger"]
    assert refused(json.loads(said["CMD"].removeprefix("CMD "))) is None
    assert "/readyz" in said["HEALTHCHECK"]
    variables = set(re.findall(r"(WATTLEDGER_\w+)=", text))
    assert unknown_variables(variables) == set()


def test_the_server_s_image_copies_all_that_the_wheel_is_made_of() -> None:
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"][
        "targets"
    ]
    copied = set(re.findall(r"^COPY (\w+) \1$", SERVER.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert copied == set(wheel["wheel"]["only-include"])
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert not copied & set(ignored)


def test_the_commands_at_the_top_of_the_compose_file_are_understood() -> None:
    head = (DEPLOY / "compose/compose.yaml").read_text(encoding="utf-8").partition("name:")[0]
    runs = re.findall(r"docker compose run --rm (?:-T )?migrate (.*?)(?: > .*)?$", head, flags=re.MULTILINE)
    assert len(runs) == 1
    assert refused(shlex.split(runs[0])) is None
